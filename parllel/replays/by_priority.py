"""ByPriority: what buffers share that draw in proportion to priorities: sums, weights, saves."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from parllel.arrays import ArraySpec
from parllel.kernels.sum_tree import pack_largest, unpack_largest
from parllel.ops.priorities import NO_UPDATE, Priorities, count_numbers
from parllel.replays.base_replay import BaseReplay, MinibatchMemory
from parllel.replays.final_obs import FinalObs
from parllel.replays.saved_numbers import (
    check_integer,
    check_range,
    check_real,
    check_sums,
    find_most,
)
from parllel.tree import ArrayDict, SavedTree, allocate_tree

_logger = logging.getLogger(__name__)

M = TypeVar("M", bound=MinibatchMemory)


class ByPriority(BaseReplay[M]):
    """A buffer with a priority for each step of the ring; it stands before the kind of buffer.

    A subclass calls `_begin_priorities` at the end of its constructor, and says how priorities are
    refreshed, drawn by and updated.
    """

    _extra: ClassVar[Mapping[str, np.dtype[Any]]] = {"weight": np.dtype(np.float32)}

    def _begin_priorities(
        self, *, alpha: float, beta: float, epsilon: float, n_final_obs: int | None
    ) -> None:
        """Allocate the priorities of all steps.

        Args:
            alpha, beta, epsilon: checked numbers.
            n_final_obs: as the constructor got it.
        """
        self._beta = float(beta)
        self._draws.write_beta(self._beta)
        self._alpha = np.float32(alpha)
        self._epsilon = np.float32(epsilon)
        specs = self.make_specs(self.samples, n_final_obs)
        self.priorities = allocate_tree(specs["priorities"], self.storage)
        self.priorities["largest"][0] = NO_UPDATE
        self._has_warned = False  # of errors that are no numbers
        read = self.priorities.to_cupy() if self._is_on_gpu else self.priorities.to_ndarray()
        n_places = self.full_size * self.batch_B
        self._priorities = Priorities(read["sums"], read["largest"], n_places)

    @classmethod
    def make_specs(cls, samples: ArrayDict, n_final_obs: int | None = None) -> ArrayDict:
        """Return the specs of the memory that a buffer allocates beside a tree (`ReplayBuffer`)."""
        specs = super().make_specs(samples, n_final_obs)
        n_numbers = count_numbers(math.prod(specs["slot"].batch_shape))
        specs["priorities"] = ArrayDict(
            {
                "sums": ArraySpec.of((n_numbers,), np.int64),
                "largest": ArraySpec.of((1,), np.int64),
            }
        )
        return specs

    @property
    def beta(self) -> float:
        """Exponent of the weights, for the minibatches that are drawn from now on."""
        return self._beta

    @beta.setter
    def beta(self, beta: float) -> None:
        check_number("beta", beta)
        if beta == self._beta:
            return
        self._begin_change("beta")
        self._beta = float(beta)  # what JSON can hold
        self._draws.write_beta(self._beta)

    def _warn_once(self, n_finite: int, n_errors: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "update_priorities: %d of %d errors are NaN or infinite, expected numbers; what"
                " they belong to keeps the priority that it has",
                n_errors - n_finite,
                n_errors,
            )

    @property
    def _memory(self) -> ArrayDict:
        return ArrayDict({**super()._memory, "priorities": self.priorities})

    def close(self) -> None:
        """Free the buffer's memory, as `ReplayBuffer.close` does. The sample tree stays open."""
        super().close()
        self._priorities.release()
        self.priorities.close()
        # Its arrays would keep the memory of a device (test_closing_gives_the_sums_back).
        vars(self).pop("_priorities", None)

    def _own_tree(self, table: FinalObs | None = None) -> ArrayDict:
        return ArrayDict({**super()._own_tree(table), "priorities": self.priorities})

    def _settings(self) -> dict[str, Any]:
        formula = {"alpha": self._alpha, "epsilon": self._epsilon}
        return {**super()._settings(), **{name: float(value) for name, value in formula.items()}}

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "beta": self._beta}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self._beta = state["beta"]
        self._draws.write_beta(self._beta)

    def _check_state(self, where: str, state: Mapping[str, Any]) -> None:
        super()._check_state(where, state)
        check_real(f"{where}.beta", state["beta"])

    def _check_tables(self, where: str, saved: SavedTree) -> None:
        super()._check_tables(where, saved)
        sums, largest = (
            saved.read_leaf("replay", "priorities", name) for name in ("sums", "largest")
        )
        n_places = self.full_size * self.batch_B
        check_sums(f"{where}priorities.sums", sums, n_places)
        most, stop = find_most(n_places), saved.numbers["state"]["stop"]
        check_range(f"{where}priorities.largest", largest, 0, pack_largest(stop, most))
        number = unpack_largest(int(largest[0]))
        check_integer(f"{where}priorities.largest: priority", number, 1, most)


def check_number(name: str, number: float) -> None:
    """Raise ValueError unless a number is 0 or more, as float32 has it."""
    if not 0 <= number <= np.finfo(np.float32).max:
        raise ValueError(f"{name}: got {number}, expected a number of 0 or more, as float32 has it")

"""EnvParts: the random parts of one batch that have whole environments each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cuda import AnyArray
from parllel.ops.row_copy import prepare_gather
from parllel.ops.stack_gather import RowSource
from parllel.replays.batch_parts import BatchParts
from parllel.tree import ArrayDict


class EnvParts(BatchParts):
    """A batch that is cut into random environments, of which a part has all T steps.

    `Minibatches(whole_envs=True)` makes it. A part's rows are time-major: those of step 0 of its
    environments, then those of step 1. The branches that have a row for each environment, and not
    for each step, are gathered by a second launch.

    Args:
        batch: as for `BatchParts`.
        n_steps: T.
        n_envs: environments of each part.
        states, out_states: for each leaf with a row for each environment its rows, and the memory
            of a minibatch; none where there are no such leaves.
        arguments: those of `BatchParts`; `rows` are the columns of all environments.

    >>> from parllel.arrays import Array
    >>> from parllel.replays import Minibatches
    >>> batch = ArrayDict({"reward": Array.from_numpy(np.arange(6).reshape(3, 2))})
    >>> parts = Minibatches(2, np.random.default_rng(0), whole_envs=True).bind(batch)
    >>> parts.shuffle()
    >>> sorted(parts.gather(number)["reward"].tolist() for number in range(2))
    [[[0], [2], [4]], [[1], [3], [5]]]
    """

    def __init__(
        self,
        batch: ArrayDict,
        *arguments: Any,  # Any: those of the base class
        n_steps: int,
        n_envs: int,
        states: Sequence[RowSource],
        out_states: Sequence[AnyArray],
        **more: Any,  # as above
    ) -> None:
        self._n_steps, self._n_envs = n_steps, n_envs
        super().__init__(batch, *arguments, **more)
        names = ["initial_rnn_state"] * len(states)
        self._gather_states = prepare_gather(out_states, states, names=names) if states else None

    def _count_parts(self) -> int:
        return len(self._rows) // self._n_envs

    def _arrange(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of all parts in turn, and behind them the columns of all parts."""
        columns = order[: self._n_parts * self._n_envs].reshape(self._n_parts, 1, self._n_envs)
        steps = len(self._rows) * np.arange(self._n_steps)[:, None]
        return np.concatenate([(steps + columns).ravel(), columns.ravel()])

    def gather(self, number: int) -> ArrayDict:
        """Return a part of the batch, [T, n, ...], as `BatchParts.gather`."""
        tensors = super().gather(number)
        if self._gather_states is not None:
            assert self._order is not None  # which the base class has found
            begin = self._n_parts * self._size + number * self._n_envs
            self._gather_states(self._order[begin : begin + self._n_envs])
        return tensors

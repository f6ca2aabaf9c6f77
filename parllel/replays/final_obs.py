"""FinalObs: the true final observations of episodes, kept beside a ring of samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from parllel.arrays import Array, ArraySpec
from parllel.tree import ArrayDict, allocate_tree, dict_map, leaves_of

_logger = logging.getLogger(__name__)

_BRANCH, _PLACE = "observation", "place"


class FinalObs:
    """A table with a row for each episode that ended in a ring, of a size that never changes.

    Where an episode ends, the ring's next row holds the first observation of the next one. The
    final one gets a row of the table, a slot, and its step the slot's number. Slots are used in
    turn: a full table forgets the oldest episode's end. Of stacked frames the newest one is kept:
    those before it are in the ring.

    Args:
        specs: of `make_specs`.
        storage: kind of the memory.
        observation: of the ring, an Array or a tree.

    Attributes:
        tree: ArrayDict of the table; of `place`, int64 [n_slots], the places in the ring of the
            steps that own slots; and of `slot`, int32 [n_rows, B]: -1 where no final observation
            was given. What it holds where no episode ended means nothing.
        owner: int64 [n_slots], in host memory. Number of the step that owns a slot; -1 for a
            free one. `owner_array` is the Array of it.
        n_added: final observations that were ever added.
    """

    def __init__(self, specs: ArrayDict, storage: str, observation: Any) -> None:
        self.tree = allocate_tree(specs, storage)
        self._table = ArrayDict({name: self.tree[name] for name in (_BRANCH, _PLACE)})
        self._slot: Array = self.tree["slot"]
        self._n_rows, self._width = self._slot.batch_shape
        n_slots = len(next(leaf for _, leaf in self._table.walk()))
        self._is_on_host = self._slot.is_on_host
        self.owner_array = Array((n_slots,), np.int64)
        self.owner_array[...] = -1
        self.owner = self.owner_array.to_ndarray()
        self.n_added = 0
        self._has_warned = False
        self._begin = 0
        self._slots = np.zeros((0, self._width), np.int32)  # of the steps that are being written
        self._pending: dict[int, Any] = {}  # rows of the table by slot, on their way to a device
        self._specs = dict_map(spec_of, observation)
        self._has_parts = any(leaf.row_writer is not None for _, leaf in leaves_of(observation))

    @staticmethod
    def make_specs(observation: Any, n_slots: int) -> ArrayDict:
        """Return what the table takes, for a ring's `observation`: an Array, a spec, or a tree."""
        leaves = ArrayDict({_BRANCH: observation}).apply(spec_of)
        ring = next(leaf for _, leaf in leaves.walk())
        specs = leaves.apply(ArraySpec.rows_spec, n_slots)
        specs[_PLACE] = ArraySpec.of((n_slots,), np.int64)
        specs["slot"] = ArraySpec.of((ring.full_size, ring.batch_shape[1]), np.int32)
        return specs

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one final observation."""
        return sum(leaf[0].nbytes for _, leaf in self._table.walk())

    @property
    def table(self) -> Any:
        """The table: an Array [n_slots, ...] or a tree of such, as the ring's `observation` is."""
        return self.tree[_BRANCH]

    @property
    def place(self) -> Array:
        """Where the step that owns a slot lies, int64 [n_slots]."""
        place: Array = self.tree[_PLACE]
        return place

    @property
    def slot(self) -> Array:
        """The slot of each step, int32 [n_rows, B]."""
        return self._slot

    def begin(self, number: int, n_steps: int, *, keeps: bool = False) -> None:
        """Begin to write the ends of some steps.

        Args:
            number: of the first of these steps.
            n_steps: how many they are; the ring's end is not between them.
            keeps: what was given for these steps before. The host waits for it then.
        """
        self._begin = number
        row = number % self._n_rows
        self._slots = np.full((n_steps, self._width), -1, np.int32)
        if keeps:
            self._slots[...] = self._slot[row : row + n_steps].to_ndarray()

    def add(self, step: int, final_obs: Mapping[int, Any]) -> int:
        """Keep the final observations of a step.

        Args:
            step: counted from the first of the steps that are being written.
            final_obs: by the column of the environment.

        Returns:
            Number of the first step whose final observation is still there, and those of all that
            follow; 0 where nothing was forgotten.
        """
        n_slots, oldest = len(self.owner), 0
        first_place = (self._begin + step) % self._n_rows * self._width
        for column, observation in final_obs.items():
            slot = self.n_added % n_slots
            oldest = max(oldest, int(self.owner[slot]) + 1)
            self.n_added += 1
            self.owner[slot] = self._begin + step
            self._slots[step, column] = slot
            own = _row_of(observation, self._specs) if self._has_parts else observation
            row = {_BRANCH: own, _PLACE: first_place + column}
            if self._is_on_host:
                self._table[slot] = row
            else:
                self._pending[slot] = row
        return oldest

    def refuse(self, step: int) -> None:
        """Give a step's final observations up, so that it can't be sampled."""
        self._slots[step] = -1

    def end(self) -> None:
        """Write the slots of the steps; what a device needs is copied there and launched."""
        row = self._begin % self._n_rows
        self._slot[row : row + len(self._slots)] = self._slots
        if self._pending:
            rows = self._table.apply(_host_rows, len(self._pending))
            for number, row in enumerate(self._pending.values()):
                rows[number] = row
            self._table[np.array(list(self._pending))] = rows
            self._pending = {}

    def warn_once(self, n_steps: int) -> None:
        """Say that the table is too small, the first time that it costs something."""
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "replay: %d final observations are too few for the episodes of the ring: the oldest"
                " %d steps of each environment were forgotten early; raise n_final_obs (%d bytes"
                " each)",
                len(self.owner),
                n_steps,
                self.bytes_per_slot,
            )


def spec_of(leaf: Any) -> ArraySpec:
    """Return the spec of an Array; a spec is its own."""
    return leaf.spec if isinstance(leaf, Array) else leaf


def _host_rows(leaf: Array, n_rows: int) -> Any:
    return np.zeros((n_rows, *leaf.shape[1:]), leaf.dtype)


def _row_of(observation: Any, specs: Any) -> Any:
    """Return what of an observation the table keeps: what its own row of the ring stores."""
    if isinstance(specs, ArrayDict):
        return {name: _row_of(observation[name], each) for name, each in specs.items()}
    return specs.row_of(observation)

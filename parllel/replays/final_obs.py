"""FinalObs: the true final observations of episodes, kept beside a ring of samples."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from operator import methodcaller
from typing import Any

import numpy as np

from parllel.arrays import Array, ArraySpec
from parllel.kernels.transitions import NOT_GIVEN, REFUSED
from parllel.tree import ArrayDict, allocate_tree, dict_map, leaves_of

_logger = logging.getLogger(__name__)

_BRANCH, _PLACE, _SLOT = "observation", "place", "slot"


class FinalObs:
    """A table with one row for each final observation of an episode in a ring.

    Where an episode ends, the ring's next row holds the first observation of the next episode. The
    final observation gets a row of the table, which is called a slot, and its step gets the slot's
    number. Slots are used in turn. Where the oldest one still belongs to a step of the ring, the
    table grows by half; at its largest size it forgets the end of the oldest episode instead. For
    stacked frames, a slot keeps the newest frame only, because those before it are in the ring.

    Args:
        specs: the specs that `make_specs` returned.
        storage: kind of the memory.
        observation: the branch of the ring, an Array or a tree.
        most_slots: number of rows up to which the table grows; left out, it does not.
        missing: what the slot of a step is without a final observation, `NOT_GIVEN` or `REFUSED`.

    Attributes:
        tree: ArrayDict with three branches: `observation`, the table; `place`, int64 [n_slots],
            where in the ring (row * B + column) the step lies that owns a slot; and `slot`, int32
            [n_rows, B], the slot of each step: `NOT_GIVEN` where no final observation was given,
            `REFUSED` where the step can't be sampled without one. The values of `slot` where no
            episode ended have no meaning.
        owner: int64 [n_slots], in host memory: the number of the step that owns a slot, or -1.
        owner_array: the Array of `owner`.
        most_slots: as given.
        n_added: number of final observations that were ever added.

    >>> observation = Array((2, 3), np.float32, feature_shape=(4,), full_size=6, padding=1)
    >>> table = FinalObs(FinalObs.make_specs(observation, n_slots=5), "local", observation)
    >>> table.begin(number=0, n_steps=2)
    >>> table.add(1, {2: np.ones(4)}, oldest=0)  # the episode of column 2 ended with step 1
    0
    >>> table.end()
    >>> table.slot[:2].to_ndarray().tolist(), table.table[0].to_ndarray()
    ([[-1, -1, -1], [-1, -1, 0]], array([1., 1., 1., 1.], dtype=float32))
    """

    def __init__(
        self,
        specs: ArrayDict,
        storage: str,
        observation: Array | ArrayDict,
        *,
        most_slots: int = 0,
        missing: int = NOT_GIVEN,
    ) -> None:
        self._storage, self._missing = storage, missing
        self._slot: Array = allocate_tree(ArrayDict({_SLOT: specs[_SLOT]}), storage)[_SLOT]
        self._n_rows, self._width = self._slot.batch_shape
        self._is_on_host = self._slot.is_on_host
        self._allocate(ArrayDict({name: specs[name] for name in (_BRANCH, _PLACE)}))
        self.most_slots = max(most_slots, len(self.owner))
        self.n_added = 0
        self.order_slots()
        self._has_warned = False
        self._begin = 0
        self._slots = np.zeros((0, self._width), np.int32)  # of the steps that are being written
        self._specs = dict_map(spec_of, observation)
        self._has_parts = any(leaf.row_writer is not None for _, leaf in leaves_of(observation))

    @staticmethod
    def make_specs(observation: Array | ArraySpec | ArrayDict, n_slots: int) -> ArrayDict:
        """Return the specs of the table and of what lies beside it.

        Args:
            observation: the branch of the ring: an Array, a spec, or a tree of such.
            n_slots: number of rows of the table.
        """
        leaves = ArrayDict({_BRANCH: observation}).apply(spec_of)
        ring = next(leaf for _, leaf in leaves.walk())
        specs = leaves.apply(methodcaller("rows_spec", n_slots))
        specs[_PLACE] = ArraySpec.of((n_slots,), np.int64)
        specs[_SLOT] = ArraySpec.of((ring.full_size, ring.batch_shape[1]), np.int32)
        return specs

    def _allocate(self, specs: ArrayDict) -> None:
        """Take memory for a table, in the place of the one before."""
        self._table = allocate_tree(specs, self._storage)
        self.tree = ArrayDict({**self._table, _SLOT: self._slot})
        self.owner_array = Array((len(self._table[_PLACE]),), np.int64)
        self.owner_array[...] = -1
        self.owner = self.owner_array.to_ndarray()

    def order_slots(self) -> None:
        """Let slots be used in the order of the steps that own them, after `owner` was written.

        Rows of a batch that was not ended are dropped: their slots may have other owners now.
        """
        self._pending: dict[int, Any] = {}  # rows of the table by slot, on their way to a device
        self._order = np.argsort(self.owner, kind="stable").astype(np.int32)
        self._next = 0  # where in the order the slot is that is used next

    def _grow(self) -> None:
        """Take memory for a larger table; slots keep their numbers, and new ones come next."""
        n_slots = len(self.owner)
        n_more = min(n_slots // 2 + 1, self.most_slots - n_slots)
        table, owner = self._table, self.owner
        specs = table.apply(lambda leaf: leaf.spec.changed(batch_shape=_longer(leaf, n_more)))
        self._allocate(specs)
        self._table[:n_slots] = table
        self.owner[:n_slots] = owner
        new = np.arange(n_slots, n_slots + n_more, dtype=np.int32)
        self._order = np.concatenate([new, self._order[self._next :], self._order[: self._next]])
        self._next = 0

    def _take_slot(self, oldest: int) -> int:
        """Return the slot that is used next."""
        is_full = self.owner[self._order[self._next]] >= oldest
        if is_full and len(self.owner) < self.most_slots:
            try:
                self._grow()
            except MemoryError:
                self.most_slots = len(self.owner)  # from now on it forgets
        slot = int(self._order[self._next])
        self._next = (self._next + 1) % len(self._order)
        return slot

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one final observation."""
        return sum(leaf[0].nbytes for _, leaf in self._table.walk())

    @property
    def table(self) -> Array | ArrayDict:
        """The table: an Array [n_slots, ...] or a tree of such, as the ring's `observation` is."""
        table: Array | ArrayDict = self.tree[_BRANCH]
        return table

    @property
    def place(self) -> Array:
        """Where in the ring the step lies that owns a slot, int64 [n_slots]."""
        place: Array = self.tree[_PLACE]
        return place

    @property
    def slot(self) -> Array:
        """The slot of each step, int32 [n_rows, B]."""
        return self._slot

    @property
    def number(self) -> int:
        """The number of the first step that is being written."""
        return self._begin

    def begin(self, number: int, n_steps: int, *, keeps: bool = False) -> None:
        """Begin to write the slots of some steps.

        Args:
            number: number of the first of these steps.
            n_steps: number of steps, which don't reach over the ring's end.
            keeps: whether final observations that these steps have stay. Then the host waits for
                the slots of a device.
        """
        self._begin = number
        row = number % self._n_rows
        self._slots = np.full((n_steps, self._width), self._missing, np.int32)
        if keeps:
            self._slots[...] = self._slot[row : row + n_steps].to_ndarray()

    def add(self, step: int, final_obs: Mapping[int, Any], *, oldest: int) -> int:
        """Keep the final observations of a step. This may change `tree` and `owner_array`.

        Args:
            step: the step, counted from the first one that is being written.
            final_obs: the final observations by the columns of their environments.
            oldest: number of the oldest step of the ring: slots of older ones are free.

        Returns:
            Number of the oldest step from which on no final observation was forgotten for these;
            0 where none was forgotten.
        """
        kept_from = 0
        first_place = (self._begin + step) % self._n_rows * self._width
        for column, observation in final_obs.items():
            slot = self._take_slot(oldest)
            kept_from = max(kept_from, int(self.owner[slot]) + 1)
            self.n_added += 1
            self.owner[slot] = self._begin + step
            self._slots[step, column] = slot
            own = _row_of(observation, self._specs) if self._has_parts else observation
            row = {_BRANCH: own, _PLACE: first_place + column}
            if self._is_on_host:
                self._table[slot] = row
            else:
                # Copied to the device when the batch ends, and the caller may reuse its arrays.
                self._pending[slot] = copy.deepcopy(row)
        return kept_from

    def refuse(self, step: int, columns: Any = slice(None)) -> None:  # Any: an index
        """Take its final observations from a step, so that it can't be sampled, or from columns."""
        self._slots[step, columns] = REFUSED

    def end(self) -> None:
        """Write the slots of the steps; into device memory, all rows of the table in one launch."""
        row = self._begin % self._n_rows
        self._slot[row : row + len(self._slots)] = self._slots
        if self._pending:
            rows = self._table.apply(_host_rows, len(self._pending))
            for number, row in enumerate(self._pending.values()):
                rows[number] = row
            self._table[np.array(list(self._pending))] = rows
            self._pending = {}

    def warn_once(self, n_steps: int, n_left: int) -> None:
        """Log that the table is too small, when steps are forgotten for it for the first time.

        Args:
            n_steps: number of steps that are forgotten.
            n_left: number of steps that are left: as many as the table's episodes have.
        """
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "replay: %d final observations are too few for the episodes of the ring: the oldest"
                " %d steps of each environment were forgotten early, %.0f%% of the ring is left (%d"
                " of %d steps); raise n_final_obs (%d bytes each)",
                len(self.owner),
                n_steps,
                100 * n_left / self._n_rows,
                n_left,
                self._n_rows,
                self.bytes_per_slot,
            )


def spec_of(leaf: Array | ArraySpec) -> ArraySpec:
    """Return the spec of an Array, or a spec itself."""
    return leaf.spec if isinstance(leaf, Array) else leaf


def _longer(leaf: Array, n_more: int) -> tuple[int, ...]:
    n_rows, *others = leaf.batch_shape
    return (n_rows + n_more, *others)


def _host_rows(leaf: Array, n_rows: int) -> Any:
    return leaf.new_array(batch_shape=(n_rows, *leaf.batch_shape[1:]), storage="local")


def _row_of(observation: Any, specs: ArrayDict | ArraySpec) -> Any:  # Any: of an environment
    """Return the part of an observation that the table keeps: that of its own row in the ring."""
    if isinstance(specs, ArrayDict):
        return {name: _row_of(observation[name], each) for name, each in specs.items()}
    return specs.row_of(observation)

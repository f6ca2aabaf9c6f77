"""Cases of `ragged`: elements of different length, packed, against lists of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.ops.ragged import PackedRows, RaggedGather
from parllel.ops.stack_gather import RowSource
from ptx_cases.comparing import assert_bits
from ptx_cases.copies import pick, place, somewhere

# Items of words, of parts of words, and of bytes at any address; capacities whose slots are split.
_ITEMS = (
    ("f4", (4,)),
    ("f4", (3,)),
    ("i8", ()),
    ("f4", ()),
    ("u1", ()),
    ("u1", (5,)),
    ("f8", (2,)),
)
_CAPACITIES = (1, 3, 16, 40, 200, 1500)
# Slots of which a lane has all eight words at once, and bytes of which few lanes copy both ends.
_LONG = (("f4", (4,), 1024), ("u1", (16,), 8), ("u1", (16,), 127), ("u1", (1,), 128))
_N_BESIDE = 3
_OLDER = 1 << 48  # a number of rows may have more bits above those that name its slot


class _Leaf:
    """Slots in device memory, and what each of them has."""

    def __init__(self, rng: np.random.Generator, n_slots: int, codes: npt.NDArray[Any] | None):
        name, shape = _ITEMS[rng.integers(len(_ITEMS))]
        self.capacity = int(rng.choice(_CAPACITIES, p=(0.15, 0.2, 0.25, 0.2, 0.15, 0.05)))
        is_long = bool(rng.random() < 0.3)
        if is_long:
            name, shape, self.capacity = _LONG[rng.integers(len(_LONG))]
        dtype = np.dtype(name)
        self.is_jagged = bool(rng.random() < 0.8)
        if not self.is_jagged:
            self.capacity = 1
        self.codes = codes
        slots = (n_slots + _N_BESIDE, self.capacity, *shape)
        self.slots = rng.integers(0, 200, slots).astype(dtype)
        self.lengths = rng.integers(0, self.capacity + 1, len(self.slots))
        if is_long:
            self.lengths[rng.random(len(self.lengths)) < 0.7] = self.capacity
        offset, self.out_offset = (rng.choice([0, 0, 1, 4], 2) * dtype.itemsize).tolist()
        parts = np.split(self.slots if self.is_jagged else self.slots[:, 0], [n_slots])
        frames, beside = (place(part, offset) for part in parts)
        counts: list[Any] = [None, None]
        if self.is_jagged:
            told = self.lengths.copy()
            if rng.random() < 0.2:  # what is none of a slot counts as the nearest that is
                told[self.lengths == self.capacity] += int(rng.integers(1, 2**40))
                told[self.lengths == 0] -= 1
            counts = [cuda.to_device(part) for part in np.split(told, [n_slots])]
        rows = None if codes is None else cuda.to_device(codes)
        more = {} if codes is None else {"beside": beside, "beside_lengths": counts[1]}
        self.source = RowSource(frames, lengths=counts[0], rows=rows, **more)
        self.n_slots = n_slots

    def element(self, index: int) -> npt.NDArray[Any]:
        """Return the element that an index names."""
        slot = index if self.codes is None else int(self.codes[index])
        slot = self.n_slots - 1 - slot if slot < 0 else slot % _OLDER
        n_items = int(self.lengths[slot]) if self.is_jagged else 1
        return self.slots[slot, :n_items]


def pack(rng: np.random.Generator) -> None:
    """Elements of several leaves, some by way of codes, and rows of one length beside them."""
    n_slots, codes = int(rng.integers(1, 30)), None
    limit = n_slots
    if rng.random() < 0.5:
        limit = 20
        codes = rng.integers(0, n_slots, limit).astype(np.int64)
        codes[rng.random(limit) < 0.3] += _OLDER * 3
        codes[rng.random(limit) < 0.3] = -1 - rng.integers(0, _N_BESIDE)
    leaves = [_Leaf(rng, n_slots, codes) for _ in range(int(rng.integers(1, 5)))]
    count = int(rng.choice([0, 1, 7, 8, 9, 20, 33]))
    index = pick(rng, count, limit, twice=True)
    room = max(count, len(index))
    outputs: list[Any] = []
    for leaf in leaves:
        shape = (room * leaf.capacity + 2, *leaf.slots.shape[2:])
        values = place(np.full(shape, 7, leaf.slots.dtype), leaf.out_offset)
        offsets = cuda.to_device(np.full(room + 1, 99, np.int64))
        outputs.append(PackedRows(values, offsets) if leaf.is_jagged else values)
    RaggedGather([leaf.source for leaf in leaves], outputs).run(somewhere(rng, index))
    for leaf, output in zip(leaves, outputs, strict=True):
        elements = [leaf.element(int(row)) for row in index]
        values = output.values if leaf.is_jagged else output
        expected = np.full(values.shape, 7, values.dtype)
        packed = np.concatenate([expected[:0], *elements])
        expected[: len(packed)] = packed
        assert_bits("values", values, expected)
        if leaf.is_jagged:
            told = np.full(room + 1, 99, np.int64)
            told[: len(index) + 1] = np.cumsum([0, *map(len, elements)])
            assert_bits("offsets", output.offsets, told)

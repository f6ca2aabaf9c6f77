"""The row-copy kernel: its CPU twin against NumPy, its grid, its boundary and its table."""

import gc
import itertools
import math
import subprocess
import sys
from collections import Counter
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.extending import intrinsic

from copied_bytes import CopiedBytes
from lanes import launch_lanes
from parllel.kernels import row_share
from parllel.kernels import rows as kernel
from parllel.kernels.addresses import memory_intrinsics
from parllel.kernels.row_table import Rows, RowTable
from parllel.kernels.rows import check_rows, copy_rows
from parllel.kernels.targets import Axes, ThreadPosition, bind
from parllel.kernels.teams import TEAM_PARTS, WARP, Share, Teams
from parllel.kernels.words import word_intrinsics
from profiles import fewer_examples

Bytes: TypeAlias = npt.NDArray[np.uint8]
Index: TypeAlias = range | npt.NDArray[np.int64]

DTYPES = ("?", "u1", "<i2", ">i4", "f4", "f8", "c16", "M8[s]", "S3", "i4, u1")
# Below and above 4 words of 16 bytes, with rests of 8, 4 and 1 bytes; and nothing at all.
ROW_SHAPES = ((), (3,), (4,), (2, 3), (17,), (5, 7), (64,), (2, 0))
GAPS = (0, 1, 2, 4, 8, 13, 16, 64)  # between two rows


class Leaf(NamedTuple):
    """Rows in the middle of some memory."""

    memory: Bytes
    rows: npt.NDArray[Any]

    def copy(self) -> "Leaf":
        """Return the same rows in a copy of the whole memory."""
        memory = self.memory.copy()
        offset = address_of(self.rows) - address_of(self.memory)
        rows = self.rows
        return Leaf(memory, np.ndarray(rows.shape, rows.dtype, memory, offset, rows.strides))


class Case(NamedTuple):
    """A copy of rows, as drawn."""

    destination: list[Leaf]
    source: list[Leaf]
    written: Index
    read: Index

    def make_table(self) -> RowTable:
        destination = [leaf.rows for leaf in self.destination]
        return RowTable.of_arrays(destination, [leaf.rows for leaf in self.source])

    def expect(self) -> list[bytes]:
        """Return what the destinations' whole memory holds after the copy, by NumPy."""
        copies = [leaf.copy() for leaf in self.destination]
        for copy, leaf in zip(copies, self.source, strict=True):
            copy.rows[np.asarray(self.written, int)] = leaf.rows[np.asarray(self.read, int)]
        return [copy.memory.tobytes() for copy in copies]

    def result(self) -> list[bytes]:
        return [leaf.memory.tobytes() for leaf in self.destination]


def address_of(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def lay_out(
    dtype: str, row_shape: tuple[int, ...], n_rows: int, *, offset: int, gap: int, sign: int
) -> Leaf:
    """Return rows of random bytes, which random bytes surround.

    The rows begin `offset` bytes after a multiple of 64, lie `gap` bytes apart, and go from high
    addresses to low ones where the sign is -1.
    """
    item = np.dtype(dtype).itemsize
    stride = item * math.prod(row_shape) + gap
    size = offset + n_rows * stride + 64
    raw = np.random.default_rng(size).integers(0, 256, size + 64, np.uint8)
    memory = raw[-address_of(raw) % 64 :][:size]
    first = offset + max(0, n_rows - 1) * stride * (sign < 0)
    inner = [item * math.prod(row_shape[axis + 1 :]) for axis in range(len(row_shape))]
    shape, strides = (n_rows, *row_shape), (sign * stride, *inner)
    return Leaf(memory, np.ndarray(shape, dtype, memory, first, strides))


@st.composite
def ranges(draw: st.DrawFn, count: int, limit: int) -> range:
    """Draw a range of `count` rows below the limit."""
    if count == 0:
        start = draw(st.integers(-limit - 2, limit + 2))  # no row, so no row is outside
        return range(start, start)
    reach = (limit - 1) // max(1, count - 1)
    step = draw(st.integers(1, max(1, reach)))
    start = draw(st.integers(0, limit - 1 - (count - 1) * step))
    rows = range(start, start + count * step, step)
    return draw(st.sampled_from([rows, rows[::-1]]))


@st.composite
def cases(draw: st.DrawFn, max_rows: int = 20, max_leaves: int = 4) -> Case:
    """Draw a copy: leaves of any dtype, shape and place, indices of both kinds on both sides."""
    n_written, n_read = (draw(st.integers(1, max_rows)) for _ in range(2))
    count = draw(st.integers(0, n_written))
    written: Index = draw(ranges(count, n_written))
    if draw(st.booleans()):
        written = np.array(draw(st.permutations(range(n_written)))[:count], np.int64)
    if count <= n_read and draw(st.booleans()):
        read: Index = draw(ranges(count, n_read))
    else:
        choices = st.lists(st.integers(0, n_read - 1), min_size=count, max_size=count)
        read = np.array(draw(choices), np.int64)
    destination, source = [], []
    for _ in range(draw(st.integers(1, max_leaves))):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(ROW_SHAPES))
        for leaves, n_rows in ((destination, n_written), (source, n_read)):
            place = {
                "offset": draw(st.sampled_from([0, 0, 8, 4, 1, 16, 19])),
                "gap": draw(st.sampled_from(GAPS)),
                "sign": draw(st.sampled_from([1, -1])),
            }
            leaves.append(lay_out(dtype, shape, n_rows, **place))
    return Case(destination, source, written, read)


@given(case=cases())
def test_rows_are_copied_as_numpy_copies_them(case: Case) -> None:
    expected = case.expect()
    copy_rows(case.make_table(), case.written, case.read)
    assert case.result() == expected


@fewer_examples(2)
@given(
    nbytes=st.integers(0, 300),
    offsets=st.tuples(st.integers(0, 16), st.integers(0, 16)),
    gaps=st.tuples(st.integers(0, 16), st.integers(0, 16)),
)
def test_rows_of_every_length_and_place_are_copied(
    nbytes: int, offsets: tuple[int, int], gaps: tuple[int, int]
) -> None:
    destination, source = (
        lay_out("u1", (nbytes,), 3, offset=offset, gap=gap, sign=1)
        for offset, gap in zip(offsets, gaps, strict=True)
    )
    case = Case([destination], [source], range(3), np.array([2, 0, 2]))
    expected = case.expect()
    copy_rows(case.make_table(), case.written, case.read)
    assert case.result() == expected


# The grid


def launch(case: Case, n_blocks: int, n_threads: int, teams: Teams) -> CopiedBytes:
    """Run the GPU's entry on host memory, thread by thread."""
    table = case.make_table()
    arguments: list[object] = [table.address, len(case.written)]
    for index in (case.written, case.read):
        if isinstance(index, range):
            arguments += [0, index.start, index.step]
        else:
            arguments += [address_of(index) if index.size else 0, 0, 0]
    rows = [leaf.rows[row : row + 1] for leaf in case.source for row in set(case.read)]
    copied = CopiedBytes([(address_of(row), address_of(row) + row.nbytes) for row in rows])
    grid, block = Axes(n_blocks, 1), Axes(n_threads, 1)
    launch_lanes(kernel.DEVICE, [*arguments, *teams], copied, grid=grid, block=block)
    return copied


def one_team(case: Case, bits: int) -> Teams:
    return Teams(len(case.source), 0, bits, 0, 0)


@st.composite
def teams_of(draw: st.DrawFn, n_leaves: int) -> tuple[int, Teams]:
    """Draw a block's threads, and how they share leaves."""
    n_wide, n_riders = draw(st.integers(0, n_leaves)), draw(st.integers(0, 3))
    n_threads = draw(st.integers(1, 7))
    bits = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return n_threads, Teams(n_wide, n_leaves - n_wide, *bits, n_riders)


@given(case=cases(max_rows=6, max_leaves=3), n_blocks=st.integers(1, 3), data=st.data())
def test_a_grid_of_any_shape_copies_each_byte_once(
    case: Case, n_blocks: int, data: st.DataObject
) -> None:
    expected = case.expect()
    copied = launch(case, n_blocks, *data.draw(teams_of(len(case.source))))
    assert case.result() == expected
    rows = [leaf.rows[row : row + 1] for leaf in case.destination for row in case.written]
    begins = [(address_of(row), row.nbytes) for row in rows]
    written = itertools.chain(*(range(begin, begin + nbytes) for begin, nbytes in begins))
    assert copied.n_writes == Counter(written)


@fewer_examples(2)
@given(
    nbytes=st.integers(0, 700),
    offsets=st.tuples(st.integers(0, 16), st.integers(0, 16)),
    bits=st.sampled_from([0, 1, 2, 3, 4, 6]),
)
def test_lanes_share_rows_of_every_length_and_place(
    nbytes: int, offsets: tuple[int, int], bits: int
) -> None:
    destination, source = (
        lay_out("u1", (nbytes,), 2, offset=offset, gap=0, sign=1) for offset in offsets
    )
    case = Case([destination], [source], range(2), range(1, -1, -1))
    expected = case.expect()
    copied = launch(case, 1, 1 << bits, one_team(case, bits))
    assert case.result() == expected
    assert set(copied.n_writes.values()) <= {1}
    assert copied.n_writes.total() == 2 * nbytes


def share_of(teams: Teams, thread: int, n_threads: int) -> Share:
    position = ThreadPosition(Axes(1, 1), Axes(0, 0), Axes(n_threads, 1), Axes(thread, 0))
    *parts, find_share = TEAM_PARTS
    share: Share = bind(find_share, parts, {"cuda": position}, lambda part: part)(teams)
    return share


@given(
    n_threads=st.integers(1, 200),
    n_riders=st.integers(0, 70),
    bits=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_mates_are_the_lanes_of_a_warp_that_share_a_row(
    n_threads: int, n_riders: int, bits: tuple[int, int]
) -> None:
    """In blocks of any size, whose riders may begin in the middle of a warp."""
    shares = [
        share_of(Teams(1, 1, *bits, n_riders), thread, n_threads) for thread in range(n_threads)
    ]
    for thread, share in enumerate(shares):
        if share.n_leaves:
            begin = thread - thread % WARP
            mates = [
                other.n_leaves and (other.first_leaf, other.row) == (share.first_leaf, share.row)
                for other in shares[begin : begin + WARP]
            ]
            assert share.mates == sum(1 << lane for lane, is_mate in enumerate(mates) if is_mate)


@pytest.mark.parametrize(
    ("offsets", "gap", "nbytes", "words"),
    [
        ((0, 0), 0, 128, {16: 8}),
        ((16, 32), 48, 144, {16: 9}),
        ((0, 0), 0, 127, {1: 127}),  # the next row begins at an odd address
        ((0, 0), 1, 127, {16: 7, 8: 1, 4: 1, 1: 3}),
        ((0, 0), 4, 124, {16: 7, 8: 1, 4: 1}),
        ((0, 0), 5, 123, {16: 7, 8: 1, 1: 3}),
        ((8, 0), 0, 120, {8: 15}),
        ((0, 8), 0, 120, {8: 15}),
        ((4, 4), 0, 124, {4: 31}),
        ((0, 0), 0, 12, {4: 3}),
        ((0, 2), 0, 126, {1: 126}),
        ((0, 0), 0, 1, {1: 1}),
        # Longer rows elsewhere are shifted. A word is read whole: none may begin before the row,
        # nor end after it.
        ((0, 8), 16, 128, {16: 6, 1: 16 + 16}),
        ((8, 8), 16, 128, {16: 7, 1: 8 + 8}),
        ((15, 0), 16, 160, {16: 9, 1: 1 + 15}),
        ((1, 0), 16, 160, {16: 9, 1: 15 + 1}),
        ((0, 1), 16, 160, {16: 8, 1: 16 + 16}),
    ],
)
def test_words_are_as_long_as_both_sides_allow(
    offsets: tuple[int, int], gap: int, nbytes: int, words: dict[int, int]
) -> None:
    destination, source = (
        lay_out("u1", (nbytes,), 3, offset=offset, gap=gap, sign=1) for offset in offsets
    )
    case = Case([destination], [source], range(3), range(3))
    copied = launch(case, 1, 4, one_team(case, 2))
    assert copied.n_words == {size: 3 * n_words for size, n_words in words.items()}


def test_one_row_is_aligned_whatever_its_stride_is() -> None:
    leaf = lay_out("u1", (64,), 1, offset=0, gap=1, sign=1)
    other = lay_out("u1", (64,), 1, offset=0, gap=0, sign=1)
    case = Case([leaf], [other], range(1), range(1))
    assert launch(case, 1, 4, one_team(case, 1)).n_words == {16: 4}


@pytest.mark.parametrize("is_for_gpus", [False, True])
def test_lanes_of_compiled_code_share_a_row(is_for_gpus: bool) -> None:
    """The intrinsics in both of their forms; a GPU's addresses are a CPU's here.

    But for exchanges of words, which a CPU has not: each lane loads both words.
    """
    names = memory_intrinsics(
        intrinsic, address_space=0, is_aligned=is_for_gpus, joins_words=not is_for_gpus
    ) | word_intrinsics(intrinsic, address_space=0, has_lanes=False)
    inline = numba.njit(inline="always")
    *parts, share = row_share.SHARE_PARTS
    copy_share = numba.njit(bind(share, parts, names, inline))
    lengths = (*range(0, 130, 7), *range(131, 900, 41))
    for lanes, nbytes, shift in itertools.product((1, 2, 5), lengths, range(16)):
        place = {"gap": 0, "sign": 1}
        source = lay_out("u1", (nbytes,), 1, offset=64 + shift, **place)
        destination = lay_out("u1", (nbytes,), 1, offset=64 + nbytes % 3, **place)
        expected = Case([destination], [source], range(1), range(1)).expect()
        addresses = address_of(destination.rows), address_of(source.rows)
        for lane in range(lanes):
            copy_share(*addresses, nbytes, addresses[0] | addresses[1], lane, lanes, 0)
        assert destination.memory.tobytes() == expected[0]


GUARDED = """
import ctypes, mmap
import numba, numpy as np
from numba.extending import intrinsic
from parllel.kernels import row_share
from parllel.kernels.addresses import memory_intrinsics
from parllel.kernels.targets import bind
from parllel.kernels.words import word_intrinsics

page, PROT_NONE = mmap.PAGESIZE, 0
memory = np.frombuffer(mmap.mmap(-1, 3 * page), np.uint8)
begin = memory.ctypes.data
protect = ctypes.CDLL(None, use_errno=True).mprotect
for guard in (0, 2):
    assert protect(ctypes.c_void_p(begin + guard * page), ctypes.c_size_t(page), PROT_NONE) == 0
names = memory_intrinsics(intrinsic, address_space=0, is_aligned=True, joins_words=False)
names |= word_intrinsics(intrinsic, address_space=0, has_lanes=False)
*parts, share = row_share.SHARE_PARTS
copy = numba.njit(bind(share, parts, names, numba.njit(inline="always")))
out = np.zeros(4096, np.uint8)
shift = -out.ctypes.data % 16
for nbytes in (1, 5, 33, 48, 112, 127, 128, 160, 207, 400, 1000):
    for source in (begin + page, begin + 2 * page - nbytes):
        for offset in (0, 1, 9):
            to = out.ctypes.data + shift + offset
            for lane in range(3):
                copy(to, source, nbytes, to | source, lane, 3, 0)
print("read nothing else")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows protects pages by another function")
def test_no_byte_beside_a_row_is_read() -> None:
    """Rows lie at both ends of a page between two that must not be read; Python would crash."""
    command = [sys.executable, "-c", GUARDED]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.stdout == "read nothing else\n", finished.stderr


# Indices


def small_table(n_destination: int = 4, n_source: int = 5) -> tuple[Any, Any, RowTable]:
    destination = np.zeros((n_destination, 3), np.float32)
    source = np.arange(n_source * 3, dtype=np.float32).reshape(n_source, 3) + 1
    return destination, source, RowTable.of_arrays([destination], [source])


@pytest.mark.parametrize("dtype", ["i1", "u2", "<i4", ">i8", "u8"])
def test_an_index_may_have_any_integer_dtype(dtype: str) -> None:
    destination, source, table = small_table()
    index = np.array([3, 0, 1], dtype)
    copy_rows(table, index, index)
    assert (destination[index] == source[index]).all()


def test_an_index_may_be_strided_and_read_only() -> None:
    destination, source, table = small_table()
    index = np.array([3, -9, 0, -9])[::2]
    index.flags.writeable = False
    copy_rows(table, range(2), index)
    assert (destination[:2] == source[[3, 0]]).all()


def test_an_index_may_lie_in_the_rows_that_are_written() -> None:
    places = np.array([3, 2, 1, 0])
    table = RowTable.of_arrays([places], [np.array([0, 0, 0, 0])])
    copy_rows(table, places, range(4))
    assert places.tolist() == [0, 0, 0, 0]


def test_an_index_to_read_by_may_lie_in_the_rows_that_are_written() -> None:
    places = np.array([3, 2, 1, 0])
    table = RowTable.of_arrays([places], [np.array([10, 11, 12, 13])])
    copy_rows(table, range(4), places)  # in turn, row 1 would be read by what is written to it
    assert places.tolist() == [13, 12, 11, 10]


def test_a_destination_row_that_is_named_twice_keeps_the_later_one() -> None:
    destination, source, table = small_table()
    copy_rows(table, np.array([1, 1]), np.array([4, 2]))
    assert (destination[1] == source[2]).all()


def test_a_source_may_be_one_row_for_all() -> None:
    destination, _, _ = small_table()
    table = RowTable.of_arrays([destination], [np.broadcast_to(np.full(3, 7, "f4"), (4, 3))])
    copy_rows(table, range(4), range(4))
    assert (destination == 7).all()


def test_the_shortest_leaf_is_the_limit() -> None:
    leaves = [np.zeros(4), np.zeros(3)]
    table = RowTable.of_arrays(leaves, [np.ones(5), np.ones(6)])
    assert (table.n_destination, table.n_source) == (3, 5)
    with pytest.raises(IndexError, match=r"destination_index: rows 0 to 3, .* from 0 to 2"):
        copy_rows(table, range(4), range(4))


def outside(limit: int) -> list[object]:
    """Return indices of two rows, of which one is not in [0, limit)."""
    return [
        range(limit - 1, limit + 1),
        range(-1, 1),
        range(1, -3, -2),
        range(0, 2**62 + 1, 2**62),
        range(2**63 - 1, 2**63 + 1),
        range(-(2**63), 2**62, 2**63),
        range(0, 2 * 2**64, 2**64),  # the same row, were it a machine's integer
        np.array([0, limit]),
        np.array([-1, 0]),
        np.array([-(2**63), 0]),
        np.array([0, 2**64 - 1], np.uint64),
        np.array([limit, 0], np.int16),
    ]


@pytest.mark.parametrize("number", range(len(outside(4))))
@pytest.mark.parametrize("side", ["destination", "source"])
def test_a_row_outside_is_refused_and_nothing_is_written(number: int, side: str) -> None:
    destination, _, table = small_table(4, 4)
    index = outside(4)[number]
    indices = (index, range(2)) if side == "destination" else (range(2), index)
    for call in (check_rows, copy_rows):
        with pytest.raises(IndexError, match=f"{side}_index: rows .* expected rows from 0 to 3"):
            call(table, *indices)  # type: ignore[arg-type]  # any of them
    assert (destination == 0).all()


@pytest.mark.parametrize("index", [range(2**70), range(0, -(2**70), -1)])
def test_a_range_longer_than_memory_is_refused(index: range) -> None:
    _, _, table = small_table()
    with pytest.raises(IndexError, match="source_index"):
        copy_rows(table, range(2), index)


@pytest.mark.parametrize("empty", [range(0), range(9, 9), range(-3, -5), np.zeros(0, np.int64)])
def test_no_rows_are_copied_in_peace(empty: Index) -> None:
    destination, _, table = small_table()
    copy_rows(table, empty, range(7, 7))
    copy_rows(table, np.zeros(0, np.int32), empty)
    assert (destination == 0).all()


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([0, 1], TypeError, "source_index: list, expected a range or a vector of integers"),
        (1, TypeError, "source_index: int, expected a range"),
        (slice(2), TypeError, "source_index: slice"),
        (None, TypeError, "source_index: NoneType"),
        (np.array([0.0, 1.0]), TypeError, "source_index: dtype float64"),
        (np.array([True, False, True, True]), TypeError, "dtype bool, .* numpy.flatnonzero"),
        (np.array(1), ValueError, r"source_index: shape \(\), expected one axis"),
        (np.array([[0, 1]]), ValueError, r"source_index: shape \(1, 2\), expected one axis"),
        (np.array([0, 1, 2]), ValueError, "2 rows in destination_index, 3 in source_index"),
        (range(3), ValueError, "2 rows in destination_index, 3 in source_index"),
        (range(0), ValueError, "2 rows in destination_index, 0 in source_index"),
    ],
)
def test_an_index_that_does_not_fit_is_named(
    index: Any, error: type[Exception], message: str
) -> None:
    destination, _, table = small_table()
    for call in (check_rows, copy_rows):
        with pytest.raises(error, match=message):
            call(table, range(2), index)
    assert (destination == 0).all()


def test_a_check_writes_nothing() -> None:
    destination, _, table = small_table()
    check_rows(table, range(4), range(4))
    check_rows(table, range(4), np.arange(4, dtype=np.int8))
    assert (destination == 0).all()


# Memory that both sides share


def test_rows_of_one_array_are_copied_where_they_are_apart() -> None:
    ring = np.arange(40).reshape(10, 4)
    table = RowTable.of_arrays([ring], [ring])
    assert not table.is_apart
    expected = ring.copy()
    expected[:3] = ring[6:9]
    copy_rows(table, range(3), range(6, 9))
    assert (ring == expected).all()
    expected[[9, 2, 5]] = ring[[0, 4, 3]]  # each in a gap of the others
    copy_rows(table, np.array([9, 2, 5]), np.array([0, 4, 3]))
    assert (ring == expected).all()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (range(3), range(2, 5)),
        (range(2, 5), range(3)),
        (range(3), range(3)),
        (np.array([9, 4, 0]), np.array([1, 2, 4])),
        (range(0, 10, 2), range(8, -1, -2)),
    ],
)
def test_rows_that_are_written_and_read_are_refused(written: Index, read: Index) -> None:
    ring = np.arange(40).reshape(10, 4)
    table = RowTable.of_arrays([ring], [ring], names=["obs.camera"])
    expected = ring.copy()
    for call in (check_rows, copy_rows):
        with pytest.raises(ValueError, match=r"obs\.camera: source row . shares memory with a row"):
            call(table, written, read)
    assert (ring == expected).all()


@given(
    shift=st.integers(-40, 40),
    rows=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    gaps=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    signs=st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])),
    seed=st.integers(0, 99),
)
def test_shared_bytes_are_found_exactly(
    shift: int, rows: tuple[int, int], gaps: tuple[int, int], signs: tuple[int, int], seed: int
) -> None:
    """Two leaves of rows of one byte-length in one memory, against the sets of their bytes."""
    nbytes, count = rows
    memory = np.random.default_rng(seed).integers(0, 256, 900, np.uint8)
    views = [
        np.ndarray((12, nbytes), "u1", memory, offset, (sign * (nbytes + gap), 1))
        for offset, gap, sign in zip((450, 450 + shift), gaps, signs, strict=True)
    ]
    picks = [np.random.default_rng([seed, side]).permutation(12)[:count] for side in range(2)]
    touched = [
        {address_of(view[row]) + byte for row in picked for byte in range(nbytes)}
        for view, picked in zip(views, picks, strict=True)
    ]
    table = RowTable.of_arrays([views[0]], [views[1]])
    if touched[0] & touched[1]:
        assert not table.is_apart
        with pytest.raises(ValueError, match="shares memory"):
            copy_rows(table, *picks)
    else:
        expected = views[1][picks[1]]
        copy_rows(table, *picks)
        assert (views[0][picks[0]] == expected).all()


def test_columns_of_one_table_are_apart() -> None:
    cells = np.arange(48).reshape(6, 8)
    left, right = cells[:, :3], cells[::-1, 3:6]
    table = RowTable.of_arrays([left], [right])
    assert table.is_apart
    expected = right[[5, 0, 5]]
    copy_rows(table, range(3), np.array([5, 0, 5]))
    assert (left[:3] == expected).all()


# The table


@pytest.mark.parametrize(
    ("destination", "source", "error", "message"),
    [
        ([], [], ValueError, "rows: no leaf"),
        ([np.zeros(2)], [], ValueError, "1 destination leaves, 0 source leaves"),
        ([[1.0]], [np.zeros(2)], TypeError, "destination leaf 0: list, expected numpy.ndarray"),
        ([np.zeros(2)], [None], TypeError, "source leaf 0: NoneType"),
        ([np.zeros(2, object)], [np.zeros(2, object)], TypeError, "destination leaf 0: .* object"),
        ([np.zeros(())], [np.zeros(2)], ValueError, r"destination leaf 0: shape \(\)"),
        ([np.zeros(2), np.zeros(2)], [np.zeros(2), np.zeros(2, "f4")], ValueError, "leaf 1: dtype"),
        ([np.zeros(2, ">f8")], [np.zeros(2)], ValueError, "dtype float64 into >f8"),
        ([np.zeros((2, 3))], [np.zeros((2, 4))], ValueError, r"shape \(4,\) into \(3,\)"),
        ([np.zeros((2, 3))], [np.zeros((2, 6))[:, ::2]], ValueError, "source leaf 0: .* C-contig"),
        ([np.zeros((3, 2, 2)).transpose(1, 2, 0)], [np.zeros((2, 2, 3))], ValueError, "destinati"),
        ([np.broadcast_to(np.zeros(()), (2,))], [np.zeros(2)], ValueError, "leaf 0: read-only"),
        (
            [np.lib.stride_tricks.as_strided(np.zeros(5), (3, 2), (8, 8))],
            [np.zeros((3, 2))],
            ValueError,
            "destination leaf 0: rows of 16 bytes, 8 bytes from one to the next",
        ),
    ],
)
def test_leaves_that_do_not_fit_are_named(
    destination: Any, source: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RowTable.of_arrays(destination, source)


def test_a_destination_that_overlaps_another_leaf_is_refused() -> None:
    memory = np.zeros(12)
    with pytest.raises(ValueError, match="destination a: overlaps destination b"):
        RowTable.of_arrays([memory[:5], memory[4:9]], [np.zeros(5), np.zeros(5)], names="ab")
    with pytest.raises(ValueError, match=r"(source b|destination a): overlaps"):
        RowTable.of_arrays([memory[:5], np.zeros(5)], [np.zeros(5), memory[4:9]], names="ab")
    both = memory[4:9]
    assert RowTable.of_arrays([np.zeros(5), np.zeros(5)], [both, both]).is_apart


def test_neighbours_and_empty_leaves_overlap_nothing() -> None:
    memory = np.zeros((12, 4))
    leaves = [memory[:4], memory[4:8], memory[:4, :0], memory[3:3]]
    sources = [memory[8:], memory[8:], memory[8:, :0], memory[8:8]]
    assert RowTable.of_arrays(leaves, sources).is_apart


def test_a_table_keeps_its_arrays_alive() -> None:
    destination, source, table = small_table()
    expected = source[4].copy()
    view = destination[1]
    del destination, source
    gc.collect()
    copy_rows(table, range(1, 2), range(4, 5))
    assert (view == expected).all()


def test_a_table_of_integers_is_enough() -> None:
    memory = np.arange(64, dtype=np.uint8)
    begin = address_of(memory)
    table = RowTable([Rows(begin, 8, 8, 2)], [Rows(begin + 56, -8, 8, 4)])
    assert table.entries.tolist() == [[begin, 8, begin + 56, -8, 8]]
    copy_rows(table, range(2), range(2))
    assert memory[:16].tolist() == [*range(56, 64), *range(48, 56)]
    with pytest.raises(ValueError, match="leaf 0: rows of 4 bytes into 8"):
        RowTable([Rows(begin, 8, 8, 2)], [Rows(begin + 56, 4, 4, 2)])


def test_a_table_cannot_be_changed_by_accident() -> None:
    _, _, table = small_table()
    with pytest.raises(ValueError, match="read-only"):
        table.entries[0, 0] = 0

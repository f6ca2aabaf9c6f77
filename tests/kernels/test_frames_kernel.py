"""The frames kernel: its CPU twin against plain Python, its grid, its boundary and its table."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copied_bytes import CopiedBytes
from lanes import launch_lanes
from parllel.kernels import frames_on_grid as kernel
from parllel.kernels.frames import check_stacks, gather_stacks
from parllel.kernels.stack_table import Stacks, StackTable
from parllel.kernels.targets import Axes
from parllel.kernels.teams import Teams
from parllel.ops.stack_gather import RowSource, StackGather, as_range

Index: TypeAlias = range | npt.NDArray[np.int64]

FRAME_SHAPES = ((), (1,), (4,), (3, 3), (16,), (8, 12), (7, 13))
DTYPES = ("u1", "<i2", "f4", "f8")


class Case(NamedTuple):
    """A gather, as drawn: sources and the memory that the stacks go to."""

    sources: list[RowSource]
    outputs: list[npt.NDArray[Any]]
    index: Index

    def table(self) -> StackTable:
        pairs = zip(self.sources, self.outputs, strict=True)
        return StackTable([source.locate(address_of(output)) for source, output in pairs])

    def expect(self) -> list[npt.NDArray[Any]]:
        """Return what the outputs hold after the gather, frame by frame."""
        expected = [output.copy() for output in self.outputs]
        for source, output in zip(self.sources, expected, strict=True):
            for number, row in enumerate(self.index):
                output[number] = stack_of(source, int(row))
        return expected


def address_of(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def with_history(array: npt.NDArray[Any], n_rows: int) -> npt.NDArray[Any]:
    """Return the rows of an array, and as many before it as lie in its memory."""
    assert array.base is not None
    n_all = n_rows + len(array)
    begin = address_of(array) - n_rows * array.strides[0]
    offset = begin - address_of(array.base)
    return np.ndarray((n_all, *array.shape[1:]), array.dtype, array.base, offset, array.strides)


def stack_of(source: RowSource, row: int) -> npt.NDArray[Any]:
    """Return a stack by the definition: walk back until an episode begins."""
    if source.is_first is not None and source.is_first.ndim > 1:
        return np.stack([stack_of(alone(source, n), row) for n in range(source.is_first.shape[1])])
    if source.rows is not None:
        row = int(source.rows[row])
    beside = None
    if row < 0:
        beside = source.beside[-1 - row]
        if source.is_first is None:
            return np.asarray(beside)
        row = int(source.beside_rows[-1 - row])
    if source.is_first is None:
        return np.asarray(source.frames[row])
    n_before = (source.stack - 1) * source.n_columns
    frames, flags = with_history(source.frames, n_before), with_history(source.is_first, n_before)
    at = row + n_before
    stack = [frames[at]]
    while len(stack) < source.stack:
        if flags[at]:
            fill = frames[at] if source.blank is None else source.blank[0]
            stack += [fill] * (source.stack - len(stack))
        else:
            at -= source.n_columns
            stack.append(frames[at])
    stack = stack[::-1]
    return np.stack(stack if beside is None else [*stack[1:], beside])


def alone(source: RowSource, n: int) -> RowSource:
    """Return the frames of one of the agents that a row has stacks of."""
    beside = None if source.beside is None else source.beside[:, n]
    frames, flags = source.frames[:, n], source.is_first[:, n]
    return replace(source, frames=frames, is_first=flags, beside=beside)


def place(array: npt.NDArray[Any], offset: int) -> npt.NDArray[Any]:
    """Return a copy that begins some bytes after a multiple of 64."""
    memory = np.empty(array.nbytes + 192, np.uint8)
    begin = -address_of(memory) % 64 + offset
    copy: npt.NDArray[Any] = np.ndarray(array.shape, array.dtype, memory, begin)
    copy[...] = array
    return copy


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    return rng.integers(0, 200, shape).astype(dtype)


@st.composite
def cases(draw: st.DrawFn, max_steps: int = 8, max_leaves: int = 3) -> Case:
    """Draw leaves of stacks and of plain rows, with or without frames beside them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_columns, n_steps = draw(st.integers(1, 3)), draw(st.integers(1, max_steps))
    n_rows, count = n_columns * n_steps, draw(st.integers(0, 9))
    index: Index = rng.integers(0, n_rows, count)
    if draw(st.booleans()):
        start, step = draw(st.integers(0, n_rows - 1)), draw(st.sampled_from([1, 2, -1, n_columns]))
        index = range(start, n_rows if step > 0 else -1, step)
    sources, outputs = [], []
    for _ in range(draw(st.integers(1, max_leaves))):
        shape, dtype = draw(st.sampled_from(FRAME_SHAPES)), draw(st.sampled_from(DTYPES))
        offset = draw(st.sampled_from([0, 16, 8]))
        stack = draw(st.integers(1, 5))
        n_before = (stack - 1) * n_columns
        agents = draw(st.sampled_from([(), (), (1,), (2,), (3,)]))
        n = (n_before + n_rows, *agents)
        frames = place(random_values(rng, (*n, *shape), dtype), offset)
        flags = place(rng.random(n) < draw(st.sampled_from([0, 0.3, 1])), 0)
        source = RowSource(frames[n_before:], flags[n_before:], n_columns, stack)
        if not agents and draw(st.booleans()):
            source = RowSource(frames[n_before:])  # plain rows
        elif draw(st.booleans()):
            blank = place(np.zeros((1, *shape), dtype), 0)
            source = RowSource(frames[n_before:], flags[n_before:], n_columns, stack, blank)
        if draw(st.booleans()):
            n_beside = 3
            source = RowSource(
                source.frames,
                source.is_first,
                source.n_columns,
                source.stack,
                source.blank,
                rows=rng.integers(-n_beside, n_rows, n_rows),
                beside=place(
                    random_values(rng, (n_beside, *source.frames.shape[1:]), dtype), offset
                ),
                beside_rows=rng.integers(0, n_rows, n_beside),
            )
        sources.append(source)
        output = np.zeros((len(index) + draw(st.integers(0, 1)), *source.shape[1:]), dtype)
        outputs.append(place(output, draw(st.sampled_from([0, 16, 4]))))
    return Case(sources, outputs, index)


@given(case=cases())
def test_stacks_are_gathered_as_their_definition_says(case: Case) -> None:
    expected = case.expect()
    gather_stacks(case.table(), case.index)
    for output, right in zip(case.outputs, expected, strict=True):
        np.testing.assert_array_equal(output, right)


@pytest.mark.parametrize("n_rows", [7, 8, 9, 40])
def test_many_rows_are_gathered_in_parts(n_rows: int) -> None:
    frames, flags = np.arange(43 * 5).reshape(43, 5), np.zeros(43, bool)
    flags[11] = True
    output = np.zeros((n_rows, 4, 5), frames.dtype)
    case = Case([RowSource(frames[3:], flags[3:], 1, 4)], [output], range(n_rows))
    (expected,) = case.expect()
    gather_stacks(case.table(), case.index)
    np.testing.assert_array_equal(output, expected)


# The grid


@given(
    case=cases(max_steps=4, max_leaves=2),
    n_blocks=st.integers(1, 3),
    n_threads=st.integers(1, 7),
    bits=st.integers(0, 2),
    n_riders=st.integers(0, 3),
)
def test_a_grid_of_any_shape_writes_each_byte_once(
    case: Case, n_blocks: int, n_threads: int, bits: int, n_riders: int
) -> None:
    expected, table, index = case.expect(), case.table(), case.index
    picks = [0, index.start, index.step] if isinstance(index, range) else [address_of(index), 0, 0]
    shapes = [(1,) if each.is_first is None else each.is_first.shape for each in case.sources]
    stacks = [math.prod(shape[1:]) for shape in shapes]
    most_frames = max(n * each.stack for n, each in zip(stacks, case.sources, strict=True))
    teams = Teams(1, len(table.entries) - 1, bits, 0, n_riders)
    copied = CopiedBytes()
    arguments = [table.address, 0, len(index), *picks, most_frames, *teams]
    grid, block = Axes(n_blocks, 1), Axes(n_threads, 1)
    launch_lanes(kernel.DEVICE, arguments, copied, grid=grid, block=block)
    written: Counter[int] = Counter()
    for output, right in zip(case.outputs, expected, strict=True):
        np.testing.assert_array_equal(output, right)
        part = output[: len(index)]
        written.update(range(address_of(part), address_of(part) + part.nbytes))
    assert copied.n_writes == written


@pytest.mark.parametrize("name", ["frames", "blank", "beside", "output"])
@pytest.mark.parametrize("offset", [0, 4, 8])
def test_words_are_as_long_as_all_frames_allow(name: str, offset: int) -> None:
    """Frames of 32 bytes: what is elsewhere decides for all of them."""

    def lay_out(n: int, which: str) -> npt.NDArray[Any]:
        return place(np.zeros((n, 32), np.uint8), offset if which == name else 0)

    rows, beside_rows = np.array([1, -1]), np.array([0])
    optional = {"rows": rows, "beside": lay_out(1, "beside"), "beside_rows": beside_rows}
    frames, is_first = lay_out(3, "frames"), np.array([False, True, True])
    source = RowSource(frames[1:], is_first[1:], 1, 2, lay_out(1, "blank"), **optional)
    output = lay_out(4, "output").reshape(2, 2, 32)
    table = StackTable([source.locate(address_of(output))])
    copied = CopiedBytes()
    arguments = [table.address, 0, 2, 0, 0, 1, 2, *Teams(1, 0, 0, 0, 0)]
    grid, block = Axes(1, 1), Axes(1, 1)
    launch_lanes(kernel.DEVICE, arguments, copied, grid=grid, block=block)
    word = offset or 16
    assert copied.n_words == {word: 4 * 32 // word}


# What is read, and what is refused


def frames_of_one_column(n_rows: int = 6, stack: int = 3) -> tuple[RowSource, Any]:
    """Return frames 10, 11, ... with two earlier ones, and an output."""
    values = np.arange(10 - stack + 1, 10 + n_rows, dtype=np.int32)
    flags = np.zeros(len(values), bool)
    source = RowSource(values[stack - 1 :], flags[stack - 1 :], 1, stack)
    return source, np.full((n_rows, stack), -1, np.int32)


def test_the_first_rows_have_the_frames_before_them() -> None:
    source, output = frames_of_one_column()
    gather_stacks(Case([source], [output], range(6)).table(), range(2))
    assert output[:3].tolist() == [[8, 9, 10], [9, 10, 11], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("blank", "expected"),
    [
        (None, [[8, 9, 10], [11, 11, 11], [11, 11, 12], [11, 12, 13], [12, 13, 14], [15, 15, 15]]),
        ([0], [[8, 9, 10], [0, 0, 11], [0, 11, 12], [11, 12, 13], [12, 13, 14], [0, 0, 15]]),
    ],
)
def test_a_stack_is_filled_before_its_episode(blank: Any, expected: list[list[int]]) -> None:
    source, output = frames_of_one_column()
    source.is_first[[1, 5]] = True  # type: ignore[index]
    blank = None if blank is None else np.array(blank, np.int32)
    source = RowSource(source.frames, source.is_first, 1, 3, blank)
    gather_stacks(Case([source], [output], range(6)).table(), range(6))
    assert output.tolist() == expected


def test_a_frame_beside_the_rows_follows_a_row() -> None:
    source, output = frames_of_one_column()
    source.is_first[3] = True  # type: ignore[index]
    source = RowSource(
        source.frames,
        source.is_first,
        stack=3,
        rows=np.array([4, -1, -2, 0]),
        beside=np.array([77, 88], np.int32),
        beside_rows=np.array([2, 3]),
    )
    gather_stacks(Case([source], [output], range(4)).table(), range(4))
    assert output[:4].tolist() == [[13, 13, 14], [11, 12, 77], [13, 13, 88], [8, 9, 10]]


@pytest.mark.parametrize("dtype", ["i1", "u2", "<i4", ">i8", "u8"])
def test_an_index_may_have_any_integer_dtype(dtype: str) -> None:
    source, output = frames_of_one_column()
    gather_stacks(Case([source], [output], range(6)).table(), np.array([3, 0], dtype))
    assert output[:2].tolist() == [[11, 12, 13], [8, 9, 10]]


@pytest.mark.parametrize("index", [range(5, 7), range(-1, 1), np.array([0, 6]), np.array([-1, 0])])
@pytest.mark.parametrize("function", [gather_stacks, check_stacks])
def test_a_row_outside_is_refused_before_anything_is_written(function: Any, index: Index) -> None:
    source, output = frames_of_one_column()
    with pytest.raises(IndexError, match=r"index: rows .*, expected rows from 0 to 5"):
        function(Case([source], [output], range(6)).table(), index)
    assert (output == -1).all()


def test_an_index_of_another_kind_is_refused() -> None:
    source, output = frames_of_one_column()
    table = Case([source], [output], range(6)).table()
    with pytest.raises(TypeError, match="index: list, expected a range or a vector of integers"):
        gather_stacks(table, [0, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"index: shape \(1, 2\), expected one axis"):
        gather_stacks(table, np.array([[0, 1]]))


def test_the_shortest_leaf_is_the_limit() -> None:
    sources = [frames_of_one_column(n_rows)[0] for n_rows in (6, 4)]
    table = StackTable([source.locate(0) for source in sources])
    assert table.n_rows == 4
    with pytest.raises(IndexError, match="from 0 to 3"):
        check_stacks(table, range(5))


def test_a_table_needs_a_leaf_and_a_frame() -> None:
    with pytest.raises(ValueError, match="no leaf, expected at least one"):
        StackTable([])
    with pytest.raises(ValueError, match="got 0 frames, expected 1 or more"):
        StackTable([Stacks(1, 0, 0, 1, 1, n_frames=0)])


# Prepared gathers


def test_an_output_that_does_not_fit_is_refused() -> None:
    source, output = frames_of_one_column()
    with pytest.raises(ValueError, match=r"rows of shape \(2,\), expected int32 and \(3,\)"):
        StackGather([source], [output[:, :2].copy()])
    with pytest.raises(ValueError, match="dtype int64"):
        StackGather([source], [output.astype(np.int64)])
    with pytest.raises(ValueError, match="expected contiguous"):
        StackGather([source], [np.asfortranarray(output)])
    output.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        StackGather([source], [output])


def test_an_output_over_other_memory_is_refused() -> None:
    source, output = frames_of_one_column()
    with pytest.raises(ValueError, match="shares memory with another array"):
        StackGather([source, source], [output, output[2:]])
    with pytest.raises(ValueError, match="shares memory with another array"):
        StackGather([RowSource(output)], [output])


@pytest.mark.parametrize("is_behind", [False, True])
def test_an_output_may_lie_next_to_what_is_read(is_behind: bool) -> None:
    block = np.arange(12).reshape(4, 3)
    output, source = (block[2:], block[:2]) if is_behind else (block[:2], block[2:])
    expected = source[::-1].copy()
    StackGather([RowSource(source)], [output]).run(np.array([1, 0]))
    np.testing.assert_array_equal(output, expected)


def test_more_rows_than_an_output_has_are_refused() -> None:
    source, output = frames_of_one_column()
    gather = StackGather([source], [output[:2]])
    with pytest.raises(ValueError, match="got 3 rows, expected at most 2"):
        gather.run(range(3))
    gather = StackGather([source])
    with pytest.raises(ValueError, match="got 3 rows, expected at most 2"):
        gather.run(range(3), out=output[:2])


def test_rows_with_gaps_between_are_plain_rows() -> None:
    table = np.arange(40).reshape(10, 4)
    output = np.zeros((3, 2), table.dtype)
    StackGather([RowSource(table[:, 1:3])], [output]).run(np.array([9, 0, 4]))
    assert output.tolist() == [[37, 38], [1, 2], [17, 18]]


@given(numbers=st.lists(st.integers(0, 6), max_size=4))
def test_numbers_that_are_a_range_become_one(numbers: list[int]) -> None:
    found = as_range(np.array(numbers, np.int64))
    assert list(found) == numbers
    steps = {later - earlier for earlier, later in itertools.pairwise(numbers)}
    assert isinstance(found, range) == (len(numbers) < 2 or (len(steps) == 1 and steps != {0}))

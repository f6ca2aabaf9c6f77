"""FrameArray: frames stored once hold what whole stacks hold, in every kind of memory."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing as mp
import operator
import pickle
from collections import deque
from collections.abc import Iterator
from multiprocessing import resource_sharer
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from long_run import all_but_first
from optional import needs
from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.arrays import ArraySpec, FrameSpec
from parllel.ops.stack_gather import RowSource, StackGather
from parllel.replays import Minibatches
from parllel.tree import allocate_tree
from profiles import fewer_examples

# Python 3.12 and later warn of every fork beside threads; NumPy's own threads are enough for it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")

TIMEOUT_S = 60
HOST_KINDS = ("local", "shared", "inherited")
CUDA_KINDS = ("device", "managed", "pinned")
FRAME = (2,)  # so small, and of so few values, that different frames are often equal


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_sharing_thread() -> Iterator[None]:
    """End the thread that hands descriptors to other processes: other modules fork, too."""
    yield
    resource_sharer.stop(timeout=TIMEOUT_S)


# Whole stacks, to compare with


class Streams:
    """Environments that stack their frames themselves, as the usual wrappers do."""

    def __init__(self, rng: np.random.Generator, n_envs: int, stack: int, fill: str) -> None:
        self._rng = rng
        self._fill = fill
        self._stacks = [deque([np.zeros(FRAME, np.uint8)] * stack, stack) for _ in range(n_envs)]
        self.p_first = 1.0  # of the next step: the first one begins episodes

    def step(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the next stacks, and which of them begin an episode."""
        is_first = self._rng.random(len(self._stacks)) < self.p_first
        for frames, begins in zip(self._stacks, is_first, strict=True):
            frame = self._rng.integers(0, 3, FRAME, np.uint8)
            if begins:
                frames.extend([frame * (self._fill == "first")] * len(frames))
            frames.append(frame)
        self.p_first = 0.25
        return np.array(self._stacks), is_first


class Pair:
    """A FrameArray, and an Array that holds whole stacks.

    `whole` tells which rows are to be the same: those that were written, and before which no row
    that their stacks need was written since.
    """

    def __init__(self, array: FrameArray) -> None:
        self.array = array
        self.dense = Array.from_spec(_dense_spec(array.spec))
        spec = ArraySpec.of(array.batch_shape, bool, (), array.padding, array.full_size)
        self.whole = Array.from_spec(spec)

    def write(self, t: int, step: tuple[NDArray[np.uint8], NDArray[np.bool_]], how: int) -> None:
        stacks, is_first = step
        self.dense[t] = stacks
        self.whole[t] = True
        self._break(t + 1)
        if how == 0:
            self.array[t] = stacks
        elif how == 1:
            self.array.write_frames(t, stacks[:, -1], is_first=is_first)
        elif how == 2:
            for b in range(len(stacks)):
                self.array[t, b] = torch.from_numpy(stacks[b])
        else:
            view = self.array[t]
            view.frames[...] = stacks[:, -1].tolist()
            view.is_first[...] = is_first

    def rotate(self) -> None:
        for array in (self.array, self.dense, self.whole):
            array.rotate()
        if self.array.window_begin == 0:
            self._break(self.array.padding)

    def reset(self) -> None:
        for array in (self.array, self.dense, self.whole):
            array.reset()

    def _break(self, first: int) -> None:
        """Note that the rows before `first` have changed."""
        last = self.array.full_size - self.array.window_begin + self.array.padding
        self.whole[first : min(first + self.array.stack - 1, last)] = False

    def compare(self, index: Any) -> None:
        whole = self.whole[index].to_ndarray()
        found, expected = self.array[index].to_ndarray(), self.dense[index].to_ndarray()
        assert found.shape == expected.shape
        assert_array_equal(found[whole], expected[whole])


def _dense_spec(spec: ArraySpec) -> ArraySpec:
    assert isinstance(spec, FrameSpec)
    shape = (spec.stack, *spec.feature_shape)
    return ArraySpec.of(spec.batch_shape, spec.dtype, shape, spec.padding, spec.full_size)


class Draw(NamedTuple):
    """Sizes of a FrameArray and what is done with it."""

    T: int
    B: int
    stack: int
    fill: str
    padding: int
    n_windows: int
    seed: int

    def make(self, storage: str) -> FrameArray:
        return FrameArray(
            (self.T, self.B),
            np.uint8,
            FRAME,
            stack=self.stack,
            fill=self.fill,  # type: ignore[arg-type]
            storage=storage,
            padding=self.padding,
            full_size=self.T * self.n_windows,
        )


def some_batch_index(rng: np.random.Generator, draw: Draw) -> Any:
    """Return an index of batch dimensions, of any kind, inside of the window and its padding."""
    T, B, padding = draw.T, draw.B, draw.padding
    steps = rng.integers(-padding, T + padding, 3)
    columns = rng.integers(0, B, 3)
    return [
        int(steps[0]),
        (int(steps[0]), int(columns[0])),
        slice(-padding, T + padding),
        slice(int(steps[1]), None, -1),
        (slice(None, None, 2), int(columns[1])),
        (slice(1, T), slice(None, None, -1)),
        steps,
        (steps, columns),
        (slice(None), columns),
        (steps, int(columns[0])),
        rng.random((T, B)) < 0.4,
        ...,
    ][rng.integers(12)]


def play(draw: Draw, storage: str, n_batches: int = 4) -> None:
    """Sample some batches; compare after each step with whole stacks."""
    rng = np.random.default_rng(draw.seed)
    pair = Pair(draw.make(storage))
    streams = Streams(rng, draw.B, draw.stack, draw.fill)
    has_row_behind = draw.padding > 0
    n_resets = 1  # of which each leaves rows unwritten, as the beginning does
    if has_row_behind:
        pair.reset()
        pair.write(draw.T, streams.step(), int(rng.integers(4)))
    for _ in range(n_batches):
        pair.rotate()
        pair.compare(slice(-draw.padding, draw.T + draw.padding))
        for t in range(draw.T):
            pair.write(t + has_row_behind, streams.step(), int(rng.integers(4)))
            pair.compare(some_batch_index(rng, draw))
        if rng.random() < 0.2 and has_row_behind:
            streams.p_first = 1.0
            n_resets += 1
            pair.reset()
            pair.write(draw.T, streams.step(), int(rng.integers(4)))
    pair.compare(slice(-draw.padding, draw.T + draw.padding))
    whole = pair.whole.full.to_ndarray()
    found, expected = pair.array.full.to_ndarray(), pair.dense.full.to_ndarray()
    assert_array_equal(found[whole], expected[whole])
    n_rows = draw.T * draw.n_windows
    if n_batches >= draw.n_windows:  # all are written; the window's own, and all but a few others
        fewest = n_rows - n_resets * (draw.stack - 1 + draw.padding)
        assert whole.sum(axis=0).min() >= fewest
    pair.array.close()


@st.composite
def draws(make: st.DrawFn) -> Draw:
    T = make(st.integers(1, 5))
    return Draw(
        T=T,
        B=make(st.integers(1, 3)),
        stack=make(st.integers(1, 5)),
        fill=make(st.sampled_from(["first", "zero"])),
        padding=make(st.integers(0, T)),
        n_windows=make(st.integers(1, 3)),
        seed=make(st.integers(0, 2**32)),
    )


@fewer_examples(2)
@given(draw=draws())
def test_frames_stored_once_read_like_whole_stacks(draw: Draw) -> None:
    play(draw, "local", n_batches=5)


@fewer_examples(8)
@given(draw=draws(), storage=st.sampled_from(HOST_KINDS[1:]))
def test_memory_of_every_kind_holds_them(draw: Draw, storage: str) -> None:
    play(draw, storage)


@pytest.mark.parametrize("storage", CUDA_KINDS)
def test_memory_of_cuda_holds_them(storage: str, cuda_device: torch.device) -> None:
    rng = np.random.default_rng(8)
    for seed in range(5):
        T = int(rng.integers(1, 5))
        fill = ("first", "zero")[int(rng.integers(2))]
        stack, padding = int(rng.integers(1, 5)), int(rng.integers(0, T + 1))
        play(Draw(T, int(rng.integers(1, 3)), stack, fill, padding, 1 + seed % 2, seed), storage, 2)


# Views


def written(storage: str = "local", fill: str = "first", **options: Any) -> Pair:
    """Return a pair of T, B = 6, 3 whose rows are all written, those of the padding included."""
    options = {"padding": 2, "full_size": 6, **options}
    array = FrameArray((6, 3), np.uint8, FRAME, fill=fill, storage=storage, **options)  # type: ignore[arg-type]
    pair, streams = Pair(array), Streams(np.random.default_rng(5), 3, 4, fill)
    for t in range(-array.padding, 6 + array.padding):
        pair.write(t, streams.step(), how=1)
    assert pair.whole[-array.padding : 6 + array.padding].to_ndarray().all()
    return pair


INDICES: list[Any] = [
    2,
    -2,
    (3, 1),
    (-1, 2, 0),
    (4, 0, 3, 1),
    ...,
    slice(-2, 8, 3),
    slice(7, None, -2),
    (slice(None), 1),
    (slice(0, 0),),
    (slice(1, 4), slice(2, 0, -1), slice(1, 3)),
    (..., 0),
    (slice(None), slice(None), 2),
    (slice(None), slice(None), slice(None, None, -1), slice(0, 1)),
    [0, 5, 5, -1],
    ([0, 5, 5, -1], [2, 1, 1, 0]),
    ([[0, 1], [2, 3]], [[0], [2]]),
    ([0, 2], slice(None), 3),
    ([0, 2], [1, 0], 3),
    (slice(None), [1, 0], slice(None), 0),
    (slice(1, 5), [1, 0], ..., slice(1)),
    (..., [0, 2], slice(None), slice(None)),
    np.arange(18).reshape(6, 3) % 5 == 0,
    np.array([True, False, True, False, False, True]),
    [],
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("fill", ["first", "zero"])
def test_any_view_shows_what_whole_stacks_show(index: Any, fill: str) -> None:
    pair = written(fill=fill)
    view, expected = pair.array[index], pair.dense[index]
    assert (view.shape, view.batch_shape, view.feature_shape, view.dtype) == (
        (expected.shape, expected.batch_shape, expected.feature_shape, expected.dtype)
    )
    assert_array_equal(view.to_ndarray(), expected.to_ndarray())
    if all(stride >= 0 for stride in expected.to_ndarray().strides):  # others torch does not know
        assert_array_equal(view.to_torch().numpy(), expected.to_ndarray())
    assert_array_equal(np.asarray(view), expected.to_ndarray())


@pytest.mark.parametrize("index", [1, (2, 1), slice(1, 4), ([0, 3], [1, 2]), ...])
def test_next_and_previous_are_stacks_too(index: Any) -> None:
    pair = written()
    view, expected = pair.array[index], pair.dense[index]
    assert_array_equal(view.next.to_ndarray(), expected.next.to_ndarray())
    assert_array_equal(view.previous.to_ndarray(), expected.previous.to_ndarray())


def test_a_view_is_indexed_again() -> None:
    pair = written()
    for first, second in [(slice(5, 0, -2), slice(1, None)), (2, 1), (slice(2, 5), -1)]:
        found = pair.array[first][second].to_ndarray()
        assert_array_equal(found, pair.dense[first][second].to_ndarray())


def test_a_view_stays_where_it_was_when_the_array_rotates() -> None:
    pair = written(full_size=12)
    view, expected = pair.array[3], pair.dense[3].to_ndarray().copy()
    pair.rotate()
    assert_array_equal(view.to_ndarray(), expected)


def test_integer_arrays_on_the_stack_are_refused() -> None:
    array = written().array
    for index in [(0, 0, [1, 2]), (..., [0, 1]), np.ones(array.shape, bool)]:
        with pytest.raises(IndexError, match="index the batch dimensions of a FrameArray only"):
            array[index]


def test_frames_before_the_padding_are_no_rows() -> None:
    array = FrameArray((4,), np.uint8, FRAME, padding=1)
    array[-1]
    with pytest.raises(IndexError, match="outside the base buffer"):
        array[-2]
    with pytest.raises(IndexError, match="outside the base buffer"):
        array[5]


def test_what_is_read_can_not_be_written() -> None:
    array = written().array
    values = array[0].to_ndarray()
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1
    with pytest.raises(ValueError, match="can't be read without a copy"):
        np.asarray(array[0], copy=False)


def test_a_tensor_is_a_copy_of_its_own() -> None:
    pair = written()
    tensor = pair.array[2].to_torch()
    tensor[...] = 99
    assert_array_equal(pair.array[2].to_ndarray(), pair.dense[2].to_ndarray())


def test_kept_memory_is_written() -> None:
    pair = written()
    expected = pair.dense[1:3].to_ndarray()
    for out in (np.zeros((2, 3, 4, 2), np.uint8), Array((2, 3), np.uint8, feature_shape=(4, 2))):
        pair.array[1:3].gather(out_stacks=out)
        assert_array_equal(np.asarray(out), expected)
    tensor = torch.zeros((2, 3, 4, 2), dtype=torch.uint8)
    pair.array[1:3].gather(out_stacks=tensor)
    assert_array_equal(tensor.numpy(), expected)


def test_memory_that_does_not_fit_is_refused() -> None:
    array = written().array
    with pytest.raises(ValueError, match=r"out_stacks: got shape \(3, 4\).* expected contiguous"):
        array[0].gather(out_stacks=np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="expected contiguous"):
        array[0].gather(out_stacks=np.zeros((3, 4, 4), np.uint8)[..., ::2])
    with pytest.raises(ValueError, match="dtype float32"):
        array[0].gather(out_stacks=np.zeros((3, 4, 2), np.float32))
    with pytest.raises(ValueError, match="made of whole stacks"):
        array[0, :, 3].gather(out_stacks=np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match="a view that is gathered"):
        array[0].gather(out_stacks=array[1])


# Writing


def first_stack(value: int = 7) -> NDArray[np.uint8]:
    return np.full((3, 4, 2), value, np.uint8)


def test_a_stack_that_follows_from_nothing_is_refused_and_not_written() -> None:
    pair = written()
    before = pair.array[-2:8].to_ndarray()
    stacks = pair.dense[3].to_ndarray().copy()
    stacks[1, 1] += 1
    with pytest.raises(ValueError, match=r"stack 1 of 3 neither goes on .* fill='first'"):
        pair.array[3] = stacks
    assert_array_equal(pair.array[-2:8].to_ndarray(), before)


def test_a_stack_that_is_refused_leaves_the_beginning_of_an_episode() -> None:
    array = FrameArray((2, 3), np.uint8, FRAME)
    array[0] = first_stack()
    follows_from_nothing = np.arange(3 * 4 * 2, dtype=np.uint8).reshape(3, 4, *FRAME)
    with pytest.raises(ValueError, match="neither goes on"):
        array[0] = follows_from_nothing
    assert array.is_first[0].to_ndarray().all()
    assert_array_equal(array[0].to_ndarray(), first_stack())


def test_a_stack_of_another_fill_is_refused() -> None:
    array = FrameArray((2, 3), np.uint8, FRAME, fill="zero")
    with pytest.raises(ValueError, match=r"zeros before it: fill='zero'"):
        array[0] = first_stack()


def test_steps_are_written_in_the_order_of_time() -> None:
    pair = written()
    other = FrameArray((6, 3), np.uint8, FRAME, padding=2)
    other[-2:8] = pair.dense[-2:8]
    assert_array_equal(other[-2:8].to_ndarray(), pair.dense[-2:8].to_ndarray())
    backwards = FrameArray((6, 3), np.uint8, FRAME, padding=2)
    backwards[7:-3:-1] = pair.dense[7:-3:-1]
    assert_array_equal(backwards[-2:8].to_ndarray(), pair.dense[-2:8].to_ndarray())


def test_rows_are_written_by_integer_arrays() -> None:
    pair = written()
    other = FrameArray((6, 3), np.uint8, FRAME, padding=2)
    steps, columns = np.mgrid[-2:8, :3]
    order = np.random.default_rng(0).permutation(30)
    steps, columns = steps.ravel()[order], columns.ravel()[order]
    other[steps, columns] = pair.dense[steps, columns]
    assert_array_equal(other[-2:8].to_ndarray(), pair.dense[-2:8].to_ndarray())


def test_a_scalar_is_a_first_stack_of_equal_frames() -> None:
    array = written().array
    array[...] = 3
    assert (array.to_ndarray() == 3).all()
    assert array.is_first.to_ndarray().all()


def test_parts_of_stacks_are_not_written() -> None:
    array = written().array
    for index in [(0, 0, 3), (..., 0), (slice(None), slice(None), slice(0, 2))]:
        with pytest.raises(ValueError, match="expected whole stacks"):
            array[index] = 0
        with pytest.raises(ValueError, match="expected whole stacks"):
            array.write_frames(index, 0, is_first=True)


def test_frames_are_cast_as_an_array_casts_them() -> None:
    array, dense = FrameArray((2,), np.float32, FRAME), Array((2,), np.float32, feature_shape=FRAME)
    array.write_frames(0, [1, 2], is_first=True)
    array[1] = [[1, 2], [1, 2], [1, 2], [3, 4]]
    dense[0] = [3, 4]
    assert_array_equal(array[1, 3].to_ndarray(), dense[0].to_ndarray())


def test_not_a_number_goes_on_like_any_other_frame() -> None:
    array = FrameArray((3,), np.float32, FRAME, stack=2)
    array[0] = np.nan
    array[1] = [[np.nan, np.nan], [1, 2]]
    assert not array.is_first[1]
    with pytest.raises(ValueError, match="neither goes on"):
        array[2] = [[np.nan, np.nan], [1, 2]]


def test_history_is_written_where_an_episode_is_under_way() -> None:
    pair = written()
    stacks = np.random.default_rng(1).integers(0, 255, (3, 4, 2), np.uint8)
    pair.array.write_history(3, stacks)
    assert_array_equal(pair.array[3].to_ndarray(), stacks)
    pair.array.write_frames(4, 250, is_first=[False, False, True])
    assert_array_equal(pair.array[4, :2, :3].to_ndarray(), stacks[:2, 1:])
    assert (pair.array[4, 2].to_ndarray() == 250).all()
    pair.array.write_history((-2, 1), stacks[0])  # before the padding there is room for it
    assert_array_equal(pair.array[-2, 1].to_ndarray(), stacks[0])


def test_rows_after_the_newest_show_frames_of_both_rounds() -> None:
    """What `FrameArray` promises of a ring that goes around, and no more."""
    array = FrameArray((2,), np.uint8, (), full_size=8)
    for step in range(10):
        array.write_frames(step % 2, step + 1, is_first=step == 0)
        if step % 2:
            array.rotate()
    stacks = array.full.to_ndarray()
    assert stacks[:2].tolist() == [[6, 7, 8, 9], [7, 8, 9, 10]]
    assert stacks[2:5].tolist() == [[8, 9, 10, 3], [9, 10, 3, 4], [10, 3, 4, 5]]
    assert stacks[5:].tolist() == [[3, 4, 5, 6], [4, 5, 6, 7], [5, 6, 7, 8]]


# What it is made of


@pytest.mark.parametrize("fill", ["first", "zero"])
def test_a_transition_of_atari_takes_at_most_7200_bytes(fill: str) -> None:
    """One observation each, the next one is the next row; 50,000 of 8 environments."""
    spec = FrameSpec.of((128, 8), np.uint8, (84, 84), 1, 6272, fill=fill)  # type: ignore[arg-type]
    assert spec.nbytes / (6272 * 8) <= 7200
    small = FrameArray((16, 8), np.uint8, (84, 84), padding=1, full_size=160, fill=fill)  # type: ignore[arg-type]
    n_rows = (160 + 2 + 3 + (fill == "zero")) * 8
    assert small.allocated_nbytes == n_rows * (84 * 84 + 1)


def test_it_tells_what_it_is() -> None:
    array = FrameArray([5, 2], "f4", (3, 3), stack=2, fill="zero", padding=1, full_size=10)
    assert array.shape == (5, 2, 2, 3, 3)
    assert (array.batch_shape, array.feature_shape) == ((5, 2), (2, 3, 3))
    assert (array.stack, array.fill, array.frame_shape) == (2, "zero", (3, 3))
    assert (array.padding, array.full_size, array.nbytes) == (1, 10, 5 * 2 * 2 * 9 * 4)
    assert isinstance(array.spec, FrameSpec)
    assert not isinstance(array[0].spec, FrameSpec)
    assert repr(array) == (
        "FrameArray(shape=(5, 2, 2, 3, 3), dtype=float32, stack=2, fill='zero', storage='local')"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stack": 0}, ValueError, "stack: got 0, expected 1 or more"),
        ({"stack": 2.5}, TypeError, "float"),
        ({"fill": "last"}, ValueError, "fill: got 'last', expected \"first\""),
        ({"padding": 9}, ValueError, "padding: got 9"),
        ({"dtype": object}, TypeError, "Python objects"),
    ],
)
def test_bad_arguments_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FrameArray(**{"batch_shape": (4, 2), "dtype": np.uint8, "feature_shape": FRAME, **options})


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_there_may_be_no_rows(shape: tuple[int, ...]) -> None:
    array = FrameArray(shape, np.uint8, FRAME)
    array[...] = 0
    array.rotate()
    assert array.to_ndarray().shape == (*shape, 4, 2)


@pytest.mark.parametrize("fill", ["first", "zero"])
def test_frames_may_be_empty(fill: Any) -> None:
    array = FrameArray((3, 2), np.uint8, (0, 4), stack=2, fill=fill, padding=1)
    array[1] = np.zeros((2, 2, 0, 4), np.uint8)
    assert array.is_first[1].to_ndarray().all()
    assert array[0:2].to_ndarray().shape == (2, 2, 2, 0, 4)


def test_more_batch_dimensions_are_columns() -> None:
    array = FrameArray((4, 2, 3), np.uint8, FRAME, padding=1)
    dense = Array((4, 2, 3), np.uint8, feature_shape=(4, *FRAME), padding=1)
    streams = Streams(np.random.default_rng(2), 6, 4, "first")
    for t in range(5):
        stacks = streams.step()[0].reshape(2, 3, 4, 2)
        array[t] = stacks
        dense[t] = stacks
    for index in [
        ...,
        (2, 1),
        (slice(None), 1, 2),
        ([4, 0], [1, 0]),
        ([4, 0], [1, 0], 2),
        (1, 0, 2),
    ]:
        assert_array_equal(array[index].to_ndarray(), dense[index].to_ndarray())


# Wrappers of the environments


class Counting(gym.Env[NDArray[np.uint8], int]):
    """Shows random frames; an episode ends after 1 to 6 steps, in one way or the other."""

    observation_space = gym.spaces.Box(0, 255, (3, 2), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 7))
        return self._frame(), {}

    def step(self, action: int) -> Any:
        self._left -= 1
        terminated = self._left == 0 and bool(self.np_random.integers(2))
        return self._frame(), 0.0, terminated, self._left == 0 and not terminated, {}

    def _frame(self) -> NDArray[np.uint8]:
        return self.np_random.integers(0, 255, (3, 2), np.uint8)


@pytest.mark.parametrize(("padding_type", "fill"), [("reset", "first"), ("zero", "zero")])
@pytest.mark.parametrize("stack", [2, 4])
def test_stacks_are_those_of_gymnasium(padding_type: str, fill: Any, stack: int) -> None:
    env = FrameStackObservation(Counting(), stack, padding_type=padding_type)
    shape = Counting.observation_space.shape
    stacks = FrameArray((60, 1), np.uint8, shape, stack=stack, fill=fill)
    frames = FrameArray((60, 1), np.uint8, shape, stack=stack, fill=fill)
    is_done, expected = True, []
    for t in range(60):
        if is_done:
            observation, _ = env.reset(seed=t)
        else:
            observation, _, terminated, truncated, _ = env.step(0)
        frames.write_frames((t, 0), observation[-1], is_first=is_done)
        is_done = False if is_done else terminated or truncated
        stacks[t, 0] = observation
        expected.append(observation.copy())
    assert_array_equal(stacks[:, 0].to_ndarray(), expected)
    assert_array_equal(frames[:, 0].to_ndarray(), expected)
    assert_array_equal(frames.is_first.to_ndarray(), stacks.is_first.to_ndarray())


@needs("ale_py")
@pytest.mark.parametrize("mode", all_but_first(["NEXT_STEP", "SAME_STEP"]))
def test_stacks_are_those_of_ale(mode: str) -> None:
    import ale_py

    gym.register_envs(ale_py)
    is_same_step = mode == "SAME_STEP"
    env = gym.make_vec(
        "ALE/Breakout-v5",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        autoreset_mode=gym.vector.AutoresetMode[mode],
        episodic_life=True,
    )
    stacks, frames = (
        FrameArray((80, 2), np.uint8, (84, 84), fill="zero", full_size=160) for _ in range(2)
    )
    observation, _ = env.reset(seed=0)
    is_first, is_done, expected, n_first = np.array([True, True]), np.zeros(2, bool), [], 0
    for t in range(160):
        stacks[t % 80] = observation
        frames.write_frames(t % 80, observation[:, -1], is_first=is_first)
        n_first += int(is_first.sum())
        if t % 80 == 79:
            stacks.rotate()
            frames.rotate()
        expected.append(observation.copy())
        was_done = is_done
        observation, _, terminated, truncated, _ = env.step(np.array([t % 4, 3 - t % 3]))
        is_done = terminated | truncated
        is_first = is_done if is_same_step else was_done
    env.close()
    assert n_first > 6
    assert_array_equal(stacks.full.to_ndarray(), expected)
    assert_array_equal(frames.full.to_ndarray(), expected)


# Life, and other processes


def test_a_pickled_array_of_local_memory_is_a_copy() -> None:
    pair = written(full_size=12)
    other = pickle.loads(pickle.dumps(pair.array))
    assert_array_equal(other[-2:8].to_ndarray(), pair.dense[-2:8].to_ndarray())
    other.write_frames(0, 99, is_first=True)
    assert_array_equal(pair.array[0].to_ndarray(), pair.dense[0].to_ndarray())
    view = pickle.loads(pickle.dumps(pair.array[1:3]))
    assert_array_equal(view.to_ndarray(), pair.dense[1:3].to_ndarray())


@pytest.mark.parametrize("kind", HOST_KINDS)
def test_copies_have_the_same_stacks(kind: str) -> None:
    pair = written()
    with pair.array.to(kind) as other:
        assert isinstance(other, FrameArray)
        assert other.storage == kind
        assert_array_equal(other[-2:8].to_ndarray(), pair.dense[-2:8].to_ndarray())
        deep = copy.deepcopy(other)
        assert isinstance(deep, FrameArray)
        assert_array_equal(deep[-2:8].to_ndarray(), pair.dense[-2:8].to_ndarray())
    assert_array_equal(copy.copy(pair.array).to_ndarray(), pair.dense.to_ndarray())
    dense = copy.deepcopy(pair.array[2])
    assert not isinstance(dense, FrameArray)
    assert_array_equal(dense.to_ndarray(), pair.dense[2].to_ndarray())


def test_a_closed_array_is_neither_read_nor_written() -> None:
    array = written().array
    view, tensor = array[0], array[0].to_torch()
    array.close()
    array.close()
    assert tensor.shape == (3, 4, 2)
    for closed in (array, view):
        with pytest.raises(ValueError, match="the Array is closed"):
            closed.to_ndarray()
        with pytest.raises(ValueError, match="the Array is closed"):
            closed.write_frames(..., 0, is_first=True)
    with pytest.raises(ValueError, match="the Array is closed"):
        array.rotate()
    assert repr(array).startswith("FrameArray(closed, ")


def test_closing_a_view_leaves_the_array_open() -> None:
    array = written().array
    view = array[0]
    view.close()
    with pytest.raises(ValueError, match="the Array is closed"):
        view.to_ndarray()
    array[0].to_ndarray()


@pytest.mark.parametrize(("kind", "method"), [("shared", "spawn"), ("inherited", "fork")])
def test_another_process_writes_rows(kind: str, method: str) -> None:
    pair = written()
    array = FrameArray((6, 3), np.uint8, FRAME, storage=kind)
    array[2] = 0
    array.write_history(2, pair.dense[2])
    expected = pair.dense[3].to_ndarray()
    # A function that a spawned process finds without importing this module.
    process = mp.get_context(method).Process(
        target=operator.setitem, args=(array[3], ..., expected)
    )
    process.start()
    process.join(TIMEOUT_S)
    assert process.exitcode == 0
    assert_array_equal(array[3].to_ndarray(), expected)
    array.close()


# Trees


def make_tree(storage: str, n_windows: int = 1) -> tuple[ArrayDict, ArrayDict]:
    """Return a tree with stacks of frames, and the same one with whole stacks on the host."""
    options: Any = {"padding": 1, "full_size": 6 * n_windows}
    specs = ArrayDict(
        {
            "observation": {
                "image": FrameSpec.of((6, 3), np.uint8, FRAME, **options),
                "state": ArraySpec.of((6, 3), np.float32, (5,), **options),
            },
            "reward": ArraySpec.of((6, 3), np.float32, **options),
        }
    )
    tree = allocate_tree(specs, storage)
    specs["observation"]["image"] = _dense_spec(specs["observation"]["image"])
    dense = allocate_tree(specs)
    rng = np.random.default_rng(4)
    streams = Streams(rng, 3, 4, "first")
    for t in range(-1, 7):
        stacks, is_first = streams.step()
        tree["observation"]["image"].write_frames(t, stacks[:, -1], is_first=is_first)
        dense["observation"]["image"][t] = stacks
        for each in (tree, dense):
            each["observation"]["state"][t] = t
            each["reward"][t] = t / 2
    return tree, dense


def assert_same(tree: ArrayDict, expected: ArrayDict) -> None:
    for (path, leaf), (_, other) in zip(tree.walk(), expected.walk(), strict=True):
        assert_array_equal(leaf.to_ndarray(), other.to_ndarray(), err_msg=path)


def test_a_tree_takes_it_as_a_leaf() -> None:
    tree, dense = make_tree("shared")
    assert isinstance(tree["observation"]["image"], FrameArray)
    assert_same(tree, dense)
    assert_same(tree[2], dense[2])
    assert_same(tree[[4, 0], [1, 1]], dense[[4, 0], [1, 1]])
    assert tree[1:3].to_torch()["observation"]["image"].shape == (2, 3, 4, 2)
    tree.rotate()
    dense.rotate()
    assert_same(tree[-1:1], dense[-1:1])
    n_bytes = (6 + 2 + 3) * 3 * (2 + 1)
    assert f"<td>(6, 3, 4, 2)</td><td>shared</td><td>{n_bytes}</td>" in tree._repr_html_()
    tree.close()
    assert tree["observation"]["image"]._buffer.is_closed


def test_new_trees_have_frames_too() -> None:
    tree, dense = make_tree("local")
    other = tree.new_array(batch_shape=(4, 2), storage="shared", padding=0)
    image = other["observation"]["image"]
    assert isinstance(image, FrameArray)
    assert (image.batch_shape, image.stack, image.storage) == ((4, 2), 4, "shared")
    assert_same(tree.to("shared"), dense)
    assert_same(copy.deepcopy(tree), dense)


def test_a_tree_that_does_not_fit_is_described() -> None:
    specs = ArrayDict({"image": FrameSpec.of((10**6, 1000), np.uint8, (84, 84))})
    with pytest.raises(MemoryError, match=r"image: \(1000003, 1000, 84, 84\) uint8"):
        allocate_tree(specs)


def assert_minibatches_are_those_of_whole_stacks(kind: str, n_windows: int) -> None:
    tree, dense = make_tree(kind, n_windows)
    pairs = zip(
        Minibatches(4, np.random.default_rng(3)).of(tree, n_passes=2),
        Minibatches(4, np.random.default_rng(3)).of(dense, n_passes=2),
        strict=True,
    )
    for minibatch, expected in pairs:
        for (path, tensor), (_, right) in zip(minibatch.walk(), expected.walk(), strict=True):
            assert_array_equal(tensor.cpu().numpy(), right.numpy(), err_msg=path)
    tree.close()


@pytest.mark.parametrize("n_windows", [1, 2])
def test_minibatches_are_gathered_from_frames(n_windows: int) -> None:
    assert_minibatches_are_those_of_whole_stacks("local", n_windows)


@pytest.mark.parametrize("kind", ["managed", "device"])
def test_minibatches_are_gathered_from_frames_on_a_device(
    kind: str, cuda_device: torch.device
) -> None:
    assert_minibatches_are_those_of_whole_stacks(kind, 2)


def test_a_minibatch_is_one_launch(cuda_device: torch.device) -> None:
    tree, _ = make_tree("device")
    minibatches = Minibatches(3, np.random.default_rng(3)).of(tree)
    next(minibatches)
    assert count(lambda: next(minibatches)) == Counts(1, 0, 0)
    tree.close()


def test_gaps_between_rows_are_no_source() -> None:
    array = written().array
    assert array[2:4].row_source("host").shape == (6, 4, 2)
    assert array.full.next.row_source("host").shape == (18, 4, 2)
    for index in [(slice(None), 1), slice(None, None, 2), (..., 0), ([0, 2, 5],)]:
        with pytest.raises(ValueError, match="expected whole time steps"):
            array[index].row_source("host")


# On a device


class Counts(NamedTuple):
    launches: int
    copies_to_device: int
    waits: int


def count(function: Any) -> Counts:
    before = copy.copy(cuda.counters)
    function()
    now = cuda.counters.since(before)
    waits = now.stream_synchronizations + now.event_synchronizations
    return Counts(now.launches, now.copies_to_device, waits)


def test_reading_is_one_launch(cuda_device: torch.device) -> None:
    pair = written("device")
    for index in [2, (3, 1), ..., slice(-2, 8), (slice(5, None, -1), 1), (slice(None), 2)]:
        view = pair.array[index]
        assert count(view.to_torch) == Counts(1, 0, 0)
        assert count(view.to_cupy) == Counts(1, 0, 0)
        assert_array_equal(view.to_ndarray(), pair.dense[index].to_ndarray())
    view = pair.array[[4, 0, 0], [2, 1, 1]]
    assert count(view.to_torch) == Counts(1, 1, 0)  # the rows' numbers
    assert_array_equal(view.to_ndarray(), pair.dense[[4, 0, 0], [2, 1, 1]].to_ndarray())


def test_reading_into_kept_memory_is_one_launch(cuda_device: torch.device) -> None:
    pair = written("device")
    out = Array((3,), np.uint8, feature_shape=(4, 2), storage="device")
    view = pair.array[3]
    assert count(lambda: view.gather(out_stacks=out)) == Counts(1, 0, 0)
    assert_array_equal(out.to_ndarray(), pair.dense[3].to_ndarray())
    with pytest.raises(TypeError, match="got host memory, expected the device's"):
        view.gather(out_stacks=np.zeros((3, 4, 2), np.uint8))


def test_frames_are_written_without_a_wait(cuda_device: torch.device) -> None:
    pair = written("device")
    frames = cuda.to_device(np.full((3, 2), 5, np.uint8))
    assert count(lambda: pair.array.write_frames(2, frames, is_first=False)) == Counts(0, 0, 0)
    assert (pair.array[2, :, 3].to_ndarray() == 5).all()


def test_a_gpu_reads_memory_of_the_host(cuda_device: torch.device) -> None:
    for kind in ("managed", "pinned"):
        pair = written(kind)
        found = pair.array[2].to_cupy()
        assert_array_equal(cuda.to_host(found), pair.dense[2].to_ndarray())  # waits for it
        assert_array_equal(pair.array[2].to_ndarray(), pair.dense[2].to_ndarray())
        pair.array.close()
    with pytest.raises(TypeError, match="no GPU can use it"):
        written("local").array.to_cupy()


def test_only_the_frames_go_to_the_device(cuda_device: torch.device) -> None:
    """Of whole stacks, a quarter, and a byte for each that says where episodes begin."""
    frames = np.zeros((8, 84, 84), np.uint8)
    array = FrameArray((4, 8), np.uint8, (84, 84), storage="device")
    before = copy.copy(cuda.counters)
    array.write_frames(1, frames, is_first=np.zeros(8, bool))
    assert cuda.counters.since(before).bytes_to_device == 8 * (7056 + 1)


def test_a_tree_rotates_in_one_launch(cuda_device: torch.device) -> None:
    tree, dense = make_tree("device")
    assert count(tree.rotate).launches == 1
    dense.rotate()
    assert_same(tree[-1:1], dense[-1:1])
    tree.close()


@pytest.mark.parametrize("index", [([4, 0, 5], [1, 2, 1]), ([2, 2], 0), ([[0], [3]], [[1, 2]])])
def test_a_tree_is_gathered_in_one_launch(index: Any, cuda_device: torch.device) -> None:
    tree, dense = make_tree("device", n_windows=2)
    found: list[ArrayDict] = []
    counts = count(lambda: found.append(tree[index].to_torch()))
    assert counts.launches == 1
    assert counts.waits == 0
    cuda.synchronize()
    for (path, tensor), (_, leaf) in zip(found[0].walk(), dense[index].walk(), strict=True):
        assert_array_equal(tensor.cpu().numpy(), leaf.to_ndarray(), err_msg=path)
    tree.close()


def test_a_gather_reads_rows_of_its_own_and_frames_beside_them(cuda_device: torch.device) -> None:
    """As a replay buffer does: what follows is the next row, or the last frame of an episode."""
    rng = np.random.default_rng(6)
    numbers = rng.integers(-2, 15, 12)
    beside, after = rng.integers(0, 255, (2, *FRAME), np.uint8), np.array([7, 11])
    values = rng.integers(0, 255, (15, 4), np.uint8), rng.integers(0, 255, (2, 4), np.uint8)
    gathered: list[list[Any]] = []
    for kind in ("local", "device"):
        on_gpu = kind == "device"
        put: Any = cuda.to_device if on_gpu else np.copy
        source = written(kind).array.row_source("gpu" if on_gpu else "host")
        own = {"rows": put(numbers), "beside_rows": put(after)}
        sources = [
            dataclasses.replace(source, beside=put(beside), **own),
            RowSource(put(values[0]), rows=own["rows"], beside=put(values[1])),
        ]
        outputs = [put(np.zeros((12, *each.shape[1:]), np.uint8)) for each in sources]
        StackGather(sources, outputs).run(range(12))
        gathered.append([cuda.to_host(each) if on_gpu else each for each in outputs])
    for on_host, on_device in zip(*gathered, strict=True):
        assert_array_equal(on_device, on_host)
    stacks, rows = gathered[0]
    dense = written().dense.to_ndarray().reshape(-1, 4, 2)
    for number, stack, row in zip(numbers, stacks, rows, strict=True):
        if number >= 0:
            assert_array_equal(stack, dense[number])
            assert_array_equal(row, values[0][number])
        else:
            assert_array_equal(stack[:-1], dense[after[-1 - number], 1:])
            assert_array_equal(stack[-1], beside[-1 - number])
            assert_array_equal(row, values[1][-1 - number])


def test_whole_steps_of_a_tree_are_gathered(cuda_device: torch.device) -> None:
    tree, dense = make_tree("device")
    assert_same(tree[[4, 0]], dense[[4, 0]])
    tree.close()


def test_a_tree_is_written_by_integer_arrays(cuda_device: torch.device) -> None:
    tree, dense = make_tree("device")
    steps, columns = np.array([3, 5]), np.array([0, 1])
    values = dense[steps, columns].to_ndarray()
    tree[steps, columns] = values
    assert_same(tree, dense)
    tree.close()


def test_a_tree_moves_to_a_device_and_back(cuda_device: torch.device) -> None:
    tree, dense = make_tree("local")
    there = tree.to("device")
    assert isinstance(there["observation"]["image"], FrameArray)
    assert_same(there, dense)
    assert_same(there.to("local"), dense)
    there.close()


def test_no_device_is_needed_on_the_host() -> None:
    assert count(lambda: written().array.to_torch()) == Counts(0, 0, 0)

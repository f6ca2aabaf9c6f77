"""The kernel of running returns, its CPU twin: its numbers and its boundary."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel.kernels import running_returns as kernel
from parllel.kernels.running_returns import sum_rewards
from parllel.kernels.targets import Axes, launch_plainly, pointer_to

U = 2.0**-24  # of float32


class Arrays:
    """A random batch, and its results."""

    def __init__(
        self, steps: int, n_envs: int, n_rewards: int = 1, *, ends: float = 0.2, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        width = n_envs * n_rewards
        self.reward = rng.standard_normal((steps, width), np.float32)
        self.terminated, self.truncated = rng.random((2, steps, n_envs)) < ends
        self.begin = rng.standard_normal(width, np.float32)
        self.out_return = np.full((steps, width), np.nan, np.float32)
        self.out_end = np.full(width, np.nan, np.float32)

    def sum_up(self, discount: float = 0.99) -> None:
        sum_rewards(**vars(self), discount=discount)


def sums_of_episodes(
    arrays: Arrays, discount: float, *, magnitude: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return G and what is carried on, in float64, and how many rewards each G is made of.

    No recursion: a plain sum for each step, of the rewards since the end before.
    """
    reward, begin = arrays.reward.astype(np.float64), arrays.begin.astype(np.float64)
    if magnitude:
        reward, begin = abs(reward), abs(begin)
    result, counts = np.zeros_like(reward), np.zeros(reward.shape, np.int64)
    end = begin.copy()
    steps, width = reward.shape
    for column in range(width):
        environment = column * arrays.terminated.shape[1] // width
        done = (arrays.terminated | arrays.truncated)[:, environment]
        for t in range(steps):
            ends = np.flatnonzero(done[:t])
            first = int(ends[-1]) + 1 if len(ends) else 0
            rewards = reward[first : t + 1, column]
            powers = discount ** np.arange(t - first, -1, -1.0)
            total = float(powers @ rewards)
            if not len(ends):
                total += discount ** (t + 1) * begin[column]
            result[t, column] = total
            counts[t, column] = t - first + 2
        if steps:
            end[column] = 0 if done[-1] else result[-1, column]
    return result, end, counts


@given(
    steps=st.integers(0, 40),
    n_envs=st.integers(1, 20),
    n_rewards=st.integers(1, 3),
    ends=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    discount=st.sampled_from([0.0, 1.0]) | st.floats(2**-10, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_are_those_of_double_precision(
    steps: int, n_envs: int, n_rewards: int, ends: float, discount: float, seed: int
) -> None:
    """A term is rounded in each step at most twice (product and sum), and the discount once.

    That is 3 t u for t steps, and 4 (t + 1) u leaves room for products of roundings.
    """
    arrays = Arrays(steps, n_envs, n_rewards, ends=ends, seed=seed)
    arrays.sum_up(discount)
    expected, end, counts = sums_of_episodes(arrays, discount)
    size, *_ = sums_of_episodes(arrays, discount, magnitude=True)
    bound = 4 * counts * U * size + steps * 2.0**-148
    assert (abs(arrays.out_return - expected) <= bound).all()
    assert (arrays.out_end[end == 0] == 0).all() or not steps
    assert (abs(arrays.out_end - end) <= (bound[-1] if steps else 0)).all()


@given(
    cuts=st.lists(st.integers(0, 12), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_that_carry_on_are_the_whole_bit_for_bit(cuts: list[int], seed: int) -> None:
    whole = Arrays(12, 3, 2, seed=seed)
    whole.sum_up()
    carried, bounds = whole.begin, [0, *sorted(cuts), 12]
    for first, stop in itertools.pairwise(bounds):
        part = Arrays(stop - first, 3, 2)
        for name in ("reward", "terminated", "truncated"):
            setattr(part, name, getattr(whole, name)[first:stop])
        part.begin = carried
        part.sum_up()
        assert part.out_return.tobytes() == whole.out_return[first:stop].tobytes()
        carried = part.out_end
    assert carried.tobytes() == whole.out_end.tobytes()


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_nothing_crosses_an_end_not_even_nan(flag: str) -> None:
    arrays = Arrays(3, 1, ends=0)
    getattr(arrays, flag)[0] = True
    arrays.reward[:, 0] = [np.nan, 2, 4]
    arrays.sum_up(0.5)
    assert np.isnan(arrays.out_return[0, 0])
    assert arrays.out_return[1:, 0].tolist() == [2, 4 + 0.5 * 2]
    assert arrays.out_end.tolist() == [5]


def run_on_grid(arrays: Arrays, grid: int, block: int) -> None:
    steps, width = arrays.reward.shape
    names = ("reward", "terminated", "truncated", "begin")
    inputs = [pointer_to(getattr(arrays, name)) for name in names]
    sizes = steps, width, arrays.terminated.shape[1]
    outputs = pointer_to(arrays.out_return), pointer_to(arrays.out_end)
    arguments = (*inputs, np.float32(0.99), *sizes, *outputs)
    launch_plainly(kernel.DEVICE, arguments, grid=Axes(grid, 1), block=Axes(block, 1))


@pytest.mark.parametrize(("grid", "block"), [(1, 1), (1, 7), (2, 3), (4, 4)])
@pytest.mark.parametrize("steps", [0, 1, 16, 19])
def test_a_grid_of_any_shape_sums_every_column(grid: int, block: int, steps: int) -> None:
    arrays, expected = Arrays(steps, 4, 3), Arrays(steps, 4, 3)
    assert kernel.sum_checked(**vars(expected), discount=0.99)  # in plain Python, as the grid
    run_on_grid(arrays, grid, block)
    assert arrays.out_return.tobytes() == expected.out_return.tobytes()
    assert arrays.out_end.tobytes() == expected.out_end.tobytes()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_batch_carries_on_what_it_was_given(shape: tuple[int, int]) -> None:
    arrays = Arrays(*shape)
    arrays.sum_up()
    assert (arrays.out_end == arrays.begin).all()


def test_inputs_may_be_read_only() -> None:
    arrays, expected = Arrays(5, 3), Arrays(5, 3)
    expected.sum_up()
    for name in ("reward", "terminated", "truncated", "begin"):
        getattr(arrays, name).flags.writeable = False
    arrays.sum_up()
    assert (arrays.out_return == expected.out_return).all()


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("reward", [[1.0]], TypeError, "reward: list, expected numpy.ndarray"),
        ("reward", np.zeros(4, np.float32), ValueError, r"reward: shape \(4,\), expected two axes"),
        ("reward", np.zeros((4, 6)), ValueError, "reward: dtype float64, expected float32"),
        ("reward", np.zeros((4, 5), np.float32), ValueError, r"terminated: shape \(4, 3\), .* 5 c"),
        ("terminated", np.zeros((3, 3), bool), ValueError, r"terminated: shape .* \(4, B\)"),
        ("terminated", np.zeros((4, 3), np.uint8), ValueError, "terminated: dtype uint8, .* bool"),
        ("truncated", np.zeros((4, 1), bool), ValueError, r"truncated: shape \(4, 1\), .* \(4, 3"),
        ("begin", np.zeros(3, np.float32), ValueError, r"begin: shape \(3,\), expected \(6,\)"),
        ("begin", np.zeros(12, np.float32)[::2], ValueError, "begin: strides"),
        ("begin", np.zeros(6, ">f4"), ValueError, "begin: dtype >f4"),
        ("out_end", np.zeros((6, 1), np.float32), ValueError, r"out_end: shape \(6, 1\)"),
        ("out_return", np.zeros((4, 6)), ValueError, "out_return: dtype float64"),
        ("discount", 1.5, ValueError, r"discount: 1.5, expected a number in \[0, 1\]"),
        ("discount", "1", TypeError, "discount: str, expected float"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    name: str, wrong: Any, error: type[Exception], message: str
) -> None:
    arrays = Arrays(4, 3, 2)
    out = arrays.out_return
    given = {**vars(arrays), "discount": 0.99, name: wrong}
    with pytest.raises(error, match=message):
        sum_rewards(**given)
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("output", "other"),
    [("out_end", "begin"), ("out_return", "reward")],
)
def test_an_output_that_overlaps_or_is_read_only_is_refused(output: str, other: str) -> None:
    arrays = Arrays(4, 3, 2)
    setattr(arrays, output, getattr(arrays, other))
    with pytest.raises(ValueError, match=f"{output}: overlaps {other}"):
        arrays.sum_up()
    arrays = Arrays(4, 3, 2)
    getattr(arrays, output).flags.writeable = False
    with pytest.raises(ValueError, match=f"{output}: read-only"):
        arrays.sum_up()

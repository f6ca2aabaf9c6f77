"""The advantage kernel's CPU twin: its numbers and its boundary."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel.kernels import advantage as kernel
from parllel.kernels import advantage_on_grid
from parllel.kernels.advantage import GaePointers, estimate_advantage, prepare_estimate
from parllel.kernels.targets import Axes, launch_plainly, pointer_to
from profiles import fewer_examples

KERNELS = Path(kernel.__file__).parent
GARBAGE = np.array([np.nan, np.inf, -np.inf, 3e38], np.float32)

# Below 2**-10 rounding a factor, or a product with it, could underflow: no relative bound holds.
factors = st.sampled_from([0.0, 1.0]) | st.floats(2**-10, 1)


class Arrays:
    """A random batch, its results, and garbage wherever the formulas read nothing."""

    def __init__(self, steps: int, width: int, *, ends: float = 0.2, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.terminated = rng.random((steps, width)) < ends
        self.truncated = rng.random((steps, width)) < ends
        scale = 10.0 ** rng.integers(-3, 4)
        self.reward = (scale * rng.standard_normal((steps, width))).astype(np.float32)
        self.value = rng.standard_normal((steps + 1, width), np.float32)
        self.final_value = rng.standard_normal((steps, width), np.float32)
        unused = ~self.truncated | self.terminated
        self.final_value[unused] = rng.choice(GARBAGE, unused.sum())
        if steps:
            unused = self.terminated[-1] | self.truncated[-1]
            self.value[-1, unused] = rng.choice(GARBAGE, unused.sum())
        self.out_advantage = np.full((steps, width), np.nan, np.float32)
        self.out_return = np.full((steps, width), np.nan, np.float32)

    def estimate(self, discount: float = 0.99, gae_lambda: float = 0.95) -> None:
        estimate_advantage(**vars(self), discount=discount, gae_lambda=gae_lambda)

    def column(self, environment: int) -> "Arrays":
        one = Arrays(0, 1)
        for name, array in vars(self).items():
            setattr(one, name, array[:, environment : environment + 1].copy())
        return one

    @classmethod
    def of_one(
        cls, *, reward: list[float], value: list[float], final_value: list[float]
    ) -> "Arrays":
        """Return one environment whose episodes never end."""
        one = cls(len(reward), 1, ends=0)
        for name, numbers in (("reward", reward), ("value", value), ("final_value", final_value)):
            setattr(one, name, np.array(numbers, np.float32)[:, None])
        return one


def episodes(done: npt.NDArray[np.bool_]) -> Iterator[slice]:
    """Yield the steps of each episode of one environment; the batch's end cuts off the last."""
    begin = 0
    for end in (*(np.flatnonzero(done) + 1).tolist(), len(done)):
        if end > begin:
            yield slice(begin, end)
        begin = end


def sum_episode(
    reward: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
    after: float,
    discount: float,
    gae_lambda: float,
) -> npt.NDArray[np.float64]:
    """Return A[t] = sum over k of (discount * gae_lambda)**k * d[t + k] for one episode.

    `after` is what the last observation is worth. No recursion: a plain sum for each step.
    """
    delta = reward + discount * np.append(value[1:], after) - value
    powers = (discount * gae_lambda) ** np.arange(len(reward), dtype=np.float64)
    return np.array([powers[: len(delta) - t] @ delta[t:] for t in range(len(delta))])


def sum_over_episodes(
    arrays: Arrays, discount: float, gae_lambda: float, *, magnitude: bool = False
) -> npt.NDArray[np.float64]:
    """Return the advantages in float64, or with `magnitude` the M[t] of the error bound."""
    result = np.zeros_like(arrays.reward, np.float64)
    for environment in range(result.shape[1]):
        column = arrays.column(environment)
        terminated, truncated = column.terminated[:, 0], column.truncated[:, 0]
        for steps in episodes(terminated | truncated):
            last = steps.stop - 1
            if terminated[last]:
                after = 0.0
            elif truncated[last]:
                after = float(column.final_value[last, 0])
            else:
                after = float(column.value[-1, 0])
            reward = column.reward[steps, 0].astype(np.float64)
            value = column.value[steps, 0].astype(np.float64)
            if magnitude:
                # d[t] subtracts the value: a minus before a negative one makes it a plus. What
                # follows is added in d[t - 1] as it is, which needs the positive one.
                reward, value, after = abs(reward), abs(value), abs(after)
                reward = reward + 2 * value
            total = sum_episode(reward, value, after, discount, gae_lambda)
            result[steps, environment] = total + value if magnitude else total
    return result


def bound(arrays: Arrays, discount: float, gae_lambda: float) -> npt.NDArray[np.float64]:
    """Return the largest error of a result that the docstring allows.

    Derivation (Higham, Accuracy and Stability, lemma 3.1): a term rounded m times is wrong by at
    most m u / (1 - m u) of itself, with u = 2**-24. The term that travels k steps back is rounded
    3 times in each (the decay itself, the product, the sum). In its own step it is rounded at
    most 5 times: discount, its product with the bootstrap, the reward's sum, minus the value,
    plus the carry. The return adds once more. As k <= T - 1: m <= 3 T + 3, and
    m u / (1 - m u) <= (4 T + 4) u = (T + 1) * 2**-22 for every T up to a million. Fused
    multiply-add rounds less often. Underflow adds at most 2**-150 for each product.
    """
    steps = len(arrays.reward)
    relative = (steps + 1) * 2.0**-22
    return (
        relative * sum_over_episodes(arrays, discount, gae_lambda, magnitude=True)
        + steps * 2.0**-148
    )


@given(
    steps=st.integers(1, 24),
    width=st.integers(1, 40),  # below, at and above one vector, with all remainders
    ends=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    discount=factors,
    gae_lambda=factors,
)
def test_equals_sums_over_episodes(
    steps: int, width: int, ends: float, seed: int, discount: float, gae_lambda: float
) -> None:
    arrays = Arrays(steps, width, ends=ends, seed=seed)
    expected = sum_over_episodes(arrays, discount, gae_lambda)
    arrays.estimate(discount, gae_lambda)
    error = bound(arrays, discount, gae_lambda)
    assert (abs(arrays.out_advantage - expected) <= error).all()
    assert (abs(arrays.out_return - (expected + arrays.value[:-1])) <= error).all()


@pytest.mark.parametrize(("steps", "width"), [(2048, 1), (2048, 3), (128, 16), (1, 1), (1, 999)])
def test_equals_sums_over_episodes_in_larger_batches(steps: int, width: int) -> None:
    arrays = Arrays(steps, width, ends=0.003, seed=steps + width)
    arrays.estimate(1.0, 0.999)
    expected = sum_over_episodes(arrays, 1.0, 0.999)
    assert (abs(arrays.out_advantage - expected) <= bound(arrays, 1.0, 0.999)).all()


@given(steps=st.integers(1, 40), width=st.integers(2, 70), seed=st.integers(0, 2**32 - 1))
def test_both_loop_orders_agree_bit_for_bit(steps: int, width: int, seed: int) -> None:
    """One environment is walked alone, as a GPU's thread walks it; more are walked row by row."""
    assert 1 < kernel.FEWEST_FOR_ROWS <= width
    arrays = Arrays(steps, width, seed=seed)
    arrays.estimate()
    for environment in range(width):
        alone = arrays.column(environment)
        alone.estimate()
        for name in ("out_advantage", "out_return"):
            together = getattr(arrays, name)[:, environment].tobytes()
            assert getattr(alone, name).tobytes() == together


@pytest.mark.parametrize("width", [1, 5])
def test_the_body_runs_as_plain_python(width: int) -> None:
    arrays = Arrays(6, width, ends=0, seed=width)
    arrays.terminated[2] = arrays.truncated[4] = True
    arrays.final_value[:] = 7
    assert kernel.estimate_batch(**vars(arrays), discount=0.99, gae_lambda=0.95)
    expected = sum_over_episodes(arrays, 0.99, 0.95)
    assert (abs(arrays.out_advantage - expected) <= bound(arrays, 0.99, 0.95)).all()


def run_on_grid(
    arrays: Arrays, span: int, grid: int, block: int, discount: float = 0.99, decay: float = 0.94
) -> None:
    """Run the GPU's entries as plain Python, in the order of their launches."""
    steps, width = arrays.reward.shape
    pointers = [pointer_to(getattr(arrays, name)) for name in kernel.GaePointers._fields]
    sizes = steps, width, span
    arguments = (*pointers[:5], np.float32(discount), np.float32(decay), *sizes, *pointers[5:])
    axes = {"grid": Axes(grid, 1), "block": Axes(block, 1)}
    with np.errstate(invalid="ignore", over="ignore"):
        if span < steps:
            launch_plainly(advantage_on_grid.SPANS, arguments, **axes)
            launch_plainly(advantage_on_grid.CARRIES, (*sizes, *pointers[5:]), **axes)
        launch_plainly(advantage_on_grid.WALK, arguments, **axes)


@pytest.mark.parametrize(("grid", "block"), [(1, 1), (1, 7), (2, 3), (3, 1), (4, 4)])
def test_a_grid_of_any_shape_estimates_every_environment(grid: int, block: int) -> None:
    arrays, expected = Arrays(6, 10, ends=0), Arrays(6, 10, ends=0)
    for batch in (arrays, expected):  # both in plain Python, so that no multiply-add is fused
        batch.terminated[2, 3:5] = batch.truncated[4, 4:] = True
        batch.final_value[:] = 7
    assert kernel.estimate_batch(**vars(expected), discount=0.99, gae_lambda=0.95)
    run_on_grid(arrays, 6, grid, block, decay=0.99 * 0.95)
    assert arrays.out_advantage.tobytes() == expected.out_advantage.tobytes()
    assert arrays.out_return.tobytes() == expected.out_return.tobytes()


@fewer_examples(2)
@given(
    steps=st.integers(1, 50),
    width=st.integers(1, 5),
    span=st.integers(1, 50),
    ends=st.sampled_from([0.0, 0.05, 0.3]),
    seed=st.integers(0, 2**32 - 1),
    discount=factors,
    gae_lambda=factors,
    grid=st.integers(1, 3),
    block=st.integers(1, 7),
)
def test_spans_of_time_are_joined_within_the_same_bound(
    steps: int,
    width: int,
    span: int,
    ends: float,
    seed: int,
    discount: float,
    gae_lambda: float,
    grid: int,
    block: int,
) -> None:
    """A term that crosses a span is rounded as often as where its steps are walked one by one.

    That is twice in each step (the decay itself, and its product with the others), then once in
    the carry's product and once in its sum: at most three times in each step, as `bound` has it.
    """
    arrays = Arrays(steps, width, ends=ends, seed=seed)
    run_on_grid(arrays, span, grid, block, discount, discount * gae_lambda)
    expected = sum_over_episodes(arrays, discount, gae_lambda)
    allowed = bound(arrays, discount, gae_lambda)
    assert (abs(arrays.out_advantage - expected) <= allowed).all()
    assert (abs(arrays.out_return - (expected + arrays.value[:-1])) <= allowed).all()


@pytest.mark.parametrize("span", [1, 2, 16, 40, 64])
def test_nothing_crosses_an_end_from_one_span_to_another(span: int) -> None:
    """Not even NaN, whatever factor it comes with."""
    arrays = Arrays(40, 2, ends=0)
    arrays.terminated[20, 0] = arrays.truncated[20, 1] = True
    arrays.final_value[20] = 1
    arrays.reward[21:] = np.nan
    run_on_grid(arrays, span, 2, 3)
    assert np.isfinite(arrays.out_advantage[:21]).all()
    assert np.isnan(arrays.out_advantage[21:]).all()


def test_a_truncated_episode_is_bootstrapped_with_its_final_value() -> None:
    # 1 + 0.99 * 10 - 10 = 0.9. Treated as terminated it would be 1 - 10 = -9.0.
    arrays = Arrays.of_one(reward=[1, 0], value=[10, 0, 0], final_value=[10, np.nan])
    arrays.truncated[0] = True
    arrays.estimate()
    # T = 2, M = 1 + 0.99 * 10 + 10 + 10 < 31: the bound is 3 * 2**-22 * 31 < 3e-5.
    assert arrays.out_advantage[0, 0] == pytest.approx(0.9, abs=3e-5)
    assert arrays.out_return[0, 0] == pytest.approx(10.9, abs=3e-5)


def test_terminated_wins_where_both_flags_are_set() -> None:
    arrays = Arrays.of_one(reward=[1], value=[10, np.nan], final_value=[np.inf])
    arrays.truncated[0] = arrays.terminated[0] = True
    arrays.estimate()
    assert arrays.out_advantage[0, 0] == 1 - 10
    assert arrays.out_return[0, 0] == 1


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_nothing_of_the_next_episode_crosses_an_end(flag: str) -> None:
    arrays = Arrays.of_one(reward=[1, 5], value=[2, np.nan, 3], final_value=[4, 4])
    getattr(arrays, flag)[0] = True
    arrays.estimate(1.0, 1.0)
    assert arrays.out_advantage[0, 0] == (1 - 2 if flag == "terminated" else 1 + 4 - 2)
    assert np.isnan(arrays.out_advantage[1, 0])


def test_values_of_zero_and_a_trace_of_one_give_discounted_returns() -> None:
    arrays = Arrays.of_one(reward=[1, 2, 4], value=[0] * 4, final_value=[0] * 3)
    arrays.estimate(0.5, 1.0)
    # Exact: all numbers are sums of few powers of two.
    assert arrays.out_return[:, 0].tolist() == [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4]
    assert (arrays.out_return == arrays.out_advantage).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_batch_is_accepted(shape: tuple[int, int]) -> None:
    Arrays(*shape).estimate()


def test_inputs_may_be_read_only_and_windows_of_larger_buffers() -> None:
    arrays, expected = Arrays(5, 3), Arrays(5, 3)
    expected.estimate()
    buffer = np.zeros((9, 3), np.float32)
    buffer[2:8] = arrays.value
    arrays.value = buffer[2:8]
    arrays.reward.flags.writeable = arrays.truncated.flags.writeable = False
    arrays.estimate()
    assert (arrays.out_advantage == expected.out_advantage).all()
    assert (buffer[[0, 1, 8]] == 0).all()


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("reward", [[1.0]], TypeError, "reward: list, expected numpy.ndarray"),
        ("reward", np.zeros(4, np.float32), ValueError, r"reward: shape \(4,\), expected two axes"),
        ("reward", np.zeros((4, 3)), ValueError, "reward: dtype float64, expected float32"),
        (
            "value",
            np.zeros((4, 3), np.float32),
            ValueError,
            r"value: shape \(4, 3\), expected \(5, 3\) = \(T \+ 1, B\)",
        ),
        ("value", None, TypeError, "value: NoneType, expected numpy.ndarray"),
        ("terminated", np.zeros((4, 3), np.uint8), ValueError, "terminated: dtype uint8, .* bool"),
        ("truncated", np.zeros((4, 3), np.float32), ValueError, "truncated: dtype float32"),
        (
            "final_value",
            np.zeros((3, 3), np.float32),
            ValueError,
            r"final_value: shape \(3, 3\), expected \(4, 3\) = \(T, B\)",
        ),
        ("reward", np.zeros((3, 4), np.float32).T, ValueError, "reward: strides .* C-contiguous"),
        ("out_advantage", np.zeros((4, 6), np.float32)[:, ::2], ValueError, "out_advantage: strid"),
        ("out_return", np.zeros((5, 3), np.float32), ValueError, r"out_return: shape \(5, 3\)"),
        ("out_return", np.zeros((4, 3)), ValueError, "out_return: dtype float64"),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    name: str, wrong: object, error: type[Exception], message: str
) -> None:
    arrays = Arrays(4, 3)
    setattr(arrays, name, wrong)
    with pytest.raises(error, match=message):
        arrays.estimate()


@pytest.mark.parametrize("name", ["reward", "value", "final_value"])
def test_another_byte_order_is_refused_whatever_came_before(name: str) -> None:
    """Numba keeps types of arrays that are read-only, without their byte order."""
    for dtype in (">f4", np.float32, ">f4", np.float32):
        arrays = Arrays(4, 3)
        array = getattr(arrays, name).astype(dtype)
        array.flags.writeable = False
        setattr(arrays, name, array)
        if dtype == np.float32:
            arrays.estimate()
        else:
            with pytest.raises(ValueError, match=f"{name}: dtype >f4, expected float32"):
                arrays.estimate()


@pytest.mark.parametrize("name", ["reward", "value", "final_value", "out_advantage", "out_return"])
def test_an_array_that_is_not_aligned_is_refused(name: str) -> None:
    arrays = Arrays(4, 3)
    shape = getattr(arrays, name).shape
    odd = np.zeros(np.prod(shape) * 4 + 1, np.uint8)[1:].view(np.float32).reshape(shape)
    setattr(arrays, name, odd)
    with pytest.raises(ValueError, match=f"{name}: strides .* aligned"):
        arrays.estimate()
    assert (odd == 0).all()


@pytest.mark.parametrize("name", list(vars(Arrays(1, 1))))
@pytest.mark.parametrize("cut", [(slice(-1), slice(None)), (slice(None), slice(-1))])
def test_every_array_must_have_its_shape(name: str, cut: tuple[slice, slice]) -> None:
    arrays = Arrays(4, 3)
    setattr(arrays, name, getattr(arrays, name)[cut].copy())
    # The shape of reward is what the others are measured by: value is the first of them.
    blamed = "value" if name == "reward" else name
    with pytest.raises(ValueError, match=f"^{blamed}: shape"):
        arrays.estimate()


def prepare(arrays: Arrays, discount: float = 0.99) -> Callable[[], None]:
    *inputs, out_advantage, out_return = (getattr(arrays, name) for name in GaePointers._fields)
    outputs = (out_advantage, out_return)
    return prepare_estimate(tuple(inputs), outputs, discount=discount, gae_lambda=0.95)


def test_a_prepared_estimate_reads_what_the_arrays_hold_then() -> None:
    arrays, other = Arrays(4, 3), Arrays(4, 3, seed=1)
    run = prepare(arrays)
    for _ in range(2):
        run()
        expected = copy.deepcopy(arrays)
        expected.estimate()
        assert arrays.out_advantage.tobytes() == expected.out_advantage.tobytes()
        assert arrays.out_return.tobytes() == expected.out_return.tobytes()
        for name in GaePointers._fields[:5]:
            getattr(arrays, name)[...] = getattr(other, name)


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("reward", [[1.0]], TypeError),
        ("value", None, TypeError),
        ("reward", np.zeros((4, 3), ">f4"), ValueError),
        ("out_return", np.zeros((4, 3), ">f4"), ValueError),
        ("final_value", np.zeros((4, 3)), ValueError),
        ("value", np.zeros((4, 3), np.float32), ValueError),
        ("truncated", np.zeros((4, 6), bool)[:, ::2], ValueError),
        ("out_advantage", np.zeros((5, 3), np.float32), ValueError),
    ],
)
def test_a_prepared_estimate_refuses_what_does_not_fit_each_time(
    name: str, wrong: object, error: type[Exception]
) -> None:
    arrays = Arrays(4, 3)
    setattr(arrays, name, wrong)
    run = prepare(arrays)
    for _ in range(2):
        with pytest.raises(error, match=f"{name}: "):
            run()
    with pytest.raises(ValueError, match=r"discount: 1\.5"):
        prepare(Arrays(4, 3), discount=1.5)()


def test_an_array_whose_bytes_are_told_otherwise_is_still_the_one_that_was_prepared() -> None:
    arrays, expected = Arrays(4, 3), Arrays(4, 3)
    expected.estimate()
    run = prepare(arrays)
    arrays.reward.dtype = arrays.reward.dtype.newbyteorder()  # in place: the caller's own array
    run()
    assert (arrays.out_advantage == expected.out_advantage).all()


@pytest.mark.parametrize("name", ["discount", "gae_lambda"])
@pytest.mark.parametrize("wrong", [-0.1, 1.1, 2, np.nan, np.inf])
def test_a_factor_outside_zero_to_one_is_refused(name: str, wrong: float) -> None:
    arrays = Arrays(2, 2)
    with pytest.raises(ValueError, match=rf"{name}: {wrong}, expected a number in \[0, 1\]"):
        arrays.estimate(**{name: wrong})
    assert np.isnan(arrays.out_advantage).all()


@pytest.mark.parametrize("wrong", ["0.9", None, np.array(0.9), 0.9j])
def test_a_factor_that_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"discount: {type(wrong).__name__}, expected float"):
        Arrays(2, 2).estimate(wrong)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("right", [1, True, np.float32(0.5), np.float64(0.5), np.int64(0)])
def test_a_factor_may_be_any_real_number(right: float) -> None:
    arrays, expected = Arrays(4, 3), Arrays(4, 3)
    arrays.estimate(right, right)
    expected.estimate(float(right), float(right))
    assert (arrays.out_advantage == expected.out_advantage).all()


def test_a_read_only_output_is_refused() -> None:
    arrays = Arrays(2, 2)
    arrays.out_return.flags.writeable = False
    with pytest.raises(ValueError, match="out_return: read-only"):
        arrays.estimate()


@pytest.mark.parametrize("output", ["out_advantage", "out_return"])
@pytest.mark.parametrize("other", ["reward", "value", "terminated", "truncated", "final_value"])
def test_an_output_that_overlaps_an_input_is_refused(output: str, other: str) -> None:
    arrays = Arrays(4, 3)
    memory = np.zeros(4 * 3 * 4 * 3, np.uint8)
    shared = getattr(arrays, other)
    at_end = memory[4 * 3 * 4 - 4 :][: shared.nbytes].view(shared.dtype).reshape(shared.shape)
    setattr(arrays, output, memory[: 4 * 3 * 4].view(np.float32).reshape(4, 3))
    setattr(arrays, other, at_end)
    with pytest.raises(ValueError, match=f"{output}: overlaps {other}"):
        arrays.estimate()
    assert (memory == 0).all()


def test_outputs_that_overlap_each_other_are_refused() -> None:
    arrays = Arrays(4, 3)
    arrays.out_return = arrays.out_advantage
    with pytest.raises(ValueError, match="out_advantage: overlaps out_return"):
        arrays.estimate()


def test_neighbours_in_one_buffer_do_not_overlap() -> None:
    arrays = Arrays(4, 3)
    buffer = np.zeros((12, 3), np.float32)
    buffer[4:8] = arrays.reward
    arrays.out_advantage, arrays.reward, arrays.out_return = buffer[:4], buffer[4:8], buffer[8:]
    arrays.estimate()

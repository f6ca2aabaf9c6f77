"""Generalized advantage estimation: the formulas, the kernel for the CPU, and its checks.

`advantage_on_grid` has the entries for GPUs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.array_checks import (
    are_native,
    check_dtype,
    check_fraction,
    check_is_ndarray,
    check_layout,
    check_output,
    check_shape,
    is_aligned,
    is_apart,
)
from parllel.kernels.targets import CpuKernel, pointer_to

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

# A vector holds neighbours of a row. One environment has none: by rows it takes 1.4 times as long.
FEWEST_FOR_ROWS = 2


def estimate_advantage(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    *,
    discount: float,
    gae_lambda: float,
    out_advantage: Floats,
    out_return: Floats,
) -> None:
    """Write generalized advantage estimates, and the returns that belong to them.

    next_value[t] = final_value[t] where truncated[t], else value[t + 1]
    d[t] = reward[t] + discount * (1 - terminated[t]) * next_value[t] - value[t]
    A[t] = d[t] + discount * gae_lambda * (1 - done[t]) * A[t + 1],  A[T] = 0
    return[t] = A[t] + value[t],  done = terminated | truncated

    A truncated episode was cut off, for example by a time limit, before the task ended: its value
    estimate goes on with the value of its own last observation. value[t + 1] would be wrong there,
    because environments reset in the same step, so it belongs to the next episode. Where both
    flags are set, terminated wins. With a lambda of 1 and values of 0 both results are the plain
    discounted returns.

    All arrays are C-contiguous and in host memory. Elements that the formulas do not use may hold
    anything, also NaN. Runs in the calling thread, without the GIL, and allocates nothing. The
    first call compiles, or loads what an earlier process compiled.

    Args:
        reward: float32 [T, B]. Reward for action t.
        value: float32 [T + 1, B]. Estimate before action t; row T: after the batch's last action.
        terminated: bool [T, B]. The task ended: nothing follows.
        truncated: bool [T, B]. The episode was cut off: more would have followed.
        final_value: float32 [T, B]. Estimate for the last observation of the episode that ended
            with action t. Used only where truncated and not terminated.
        discount, gae_lambda: float in [0, 1]; `gae_lambda` is the paper's lambda.
        out_advantage: float32 [T, B], overwritten; must not overlap another array.
        out_return: float32 [T, B], overwritten; must not overlap another array.

    Raises:
        TypeError: an array is no numpy.ndarray, or a scalar is no number.
        ValueError: an array has another dtype, shape or layout, is read-only or overlaps where it
            must not, or a scalar is outside [0, 1]. Nothing has been written then.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    Error: <= (T + 1) * 2**-22 * M[t], where M[t] is A[t] + value[t] computed with the magnitudes
        of all rewards and values and with every minus made plus (`test_equals_sums_over_episodes`).
    """
    inputs = (reward, value, terminated, truncated, final_value)
    outputs = (out_advantage, out_return)
    mismatch = None
    try:
        is_written = are_native(reward, value, final_value, *outputs) and _ON_CPU.compiled(
            *inputs, discount, gae_lambda, *outputs
        )
    except (TypeError, AttributeError) as error:  # raised before anything is written
        is_written, mismatch = False, error
    if not is_written:
        _explain_refusal(inputs, outputs, discount, gae_lambda)
        raise AssertionError("the compiled entry refuses what no check finds wrong") from mismatch


def prepare_estimate(
    inputs: tuple[Floats, Floats, Bools, Bools, Floats],
    outputs: tuple[Floats, Floats],
    *,
    discount: float,
    gae_lambda: float,
) -> Callable[[], None]:
    """Return a function that does what `estimate_advantage` does, again and again.

    It keeps views of its own, whose type nothing changes: their byte order is looked up here, and
    all else with each call.

    Args:
        inputs: reward, value, terminated, truncated and final_value, as for `estimate_advantage`.
        outputs: out_advantage and out_return.
        discount, gae_lambda: as for `estimate_advantage`.
    """
    out_advantage, out_return = outputs
    estimate = partial(
        estimate_advantage,
        *inputs,
        discount=discount,
        gae_lambda=gae_lambda,
        out_advantage=out_advantage,
        out_return=out_return,
    )
    arrays = (*inputs, *outputs)
    if not (all(isinstance(array, np.ndarray) for array in arrays) and are_native(*arrays)):
        return estimate
    views = [array[...] for array in arrays]
    arguments = (*views[:5], discount, gae_lambda, *views[5:])

    def run() -> None:
        try:
            is_written = _ON_CPU.compiled(*arguments)
        except TypeError:  # raised before anything is written
            is_written = False
        if not is_written:
            estimate()  # which explains the refusal

    return run


class GaePointers(NamedTuple):
    """Pointers to the first elements of a batch's arrays; flags are uint8."""

    reward: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.uint8]
    truncated: npt.NDArray[np.uint8]
    final_value: npt.NDArray[np.float32]
    out_advantage: npt.NDArray[np.float32]
    out_return: npt.NDArray[np.float32]


class Expected(NamedTuple):
    """The dtype and shape that an argument must have; `meaning` is the shape in words."""

    dtype: type[np.float32 | np.bool_]
    shape: tuple[int, int]
    meaning: str


def expected_arrays(steps: int, width: int) -> dict[str, Expected]:
    """Return the dtypes and shapes that a batch's arrays must have, by their names."""
    hint = "reward's shape is (T, B), and value's row T follows the batch's last action"
    floats = Expected(np.float32, (steps, width), f"(T, B); {hint}")
    expected = dict.fromkeys(GaePointers._fields, floats)
    expected["terminated"] = expected["truncated"] = floats._replace(dtype=np.bool_)
    expected["value"] = Expected(np.float32, (steps + 1, width), f"(T + 1, B); {hint}")
    return expected


class Step(NamedTuple):
    """What the arrays hold of one step of one environment."""

    reward: np.float32
    value: np.float32
    final_value: np.float32
    terminated: int
    truncated: int


def load_step(batch: GaePointers, at: int) -> Step:
    """Return the step at an index into a flat [T, B] array."""
    return Step(
        batch.reward[at],
        batch.value[at],
        batch.final_value[at],
        batch.terminated[at],
        batch.truncated[at],
    )


def load_steps(
    batch: GaePointers, last: int, width: int, environment: int
) -> tuple[Step, Step, Step, Step]:
    """Return the last step of four, and the three before it; step 0 in the place of none."""
    return (
        load_step(batch, last * width + environment),
        load_step(batch, max(0, last - 1) * width + environment),
        load_step(batch, max(0, last - 2) * width + environment),
        load_step(batch, max(0, last - 3) * width + environment),
    )


def find_advantage(
    step: Step,
    discount: np.float32,
    decay: np.float32,
    next_value: np.float32,
    carry: np.float32,
) -> np.float32:
    """Return the advantage of one step of one environment.

    Values that a flag rules out are computed all the same, and then not selected. Without
    branches, the compiler computes neighbours together in a vector
    (`test_rows_are_computed_in_vectors`). It costs the reading of `final_value`.

    Args:
        step: what the arrays hold.
        discount: float32. Python's float would make float64 of all that follows.
        decay: float32. discount * gae_lambda.
        next_value: the environment's value at its next step.
        carry: the environment's advantage at its next step.
    """
    bootstrap = step.final_value if step.truncated != 0 else next_value
    target = step.reward + discount * bootstrap
    delta = (step.reward if step.terminated != 0 else target) - step.value
    traced = delta + decay * carry
    return delta if (step.terminated | step.truncated) != 0 else traced


def estimate_steps(
    batch: GaePointers,
    discount: np.float32,
    decay: np.float32,
    begin: int,
    end: int,
    width: int,
    environment: int,
    carry: np.float32,
    writes: bool,
) -> tuple[np.float32, np.float32]:
    """Walk steps of one environment from the last to the first, and write their results or not.

    Return the advantage of the first, and the factor by which `carry`, the advantage of the step
    after the last, contributes to it: 0 where an episode ends between them.

    The arrays of 16 steps are read before a result of them is written, so that memory is waited
    for once in 16 steps: no compiler may do that by itself, as it cannot know that a result does
    not lie where the next step is read.
    """
    factor = np.float32(1)
    next_value = batch.value[end * width + environment]
    last = end - 1
    while last >= begin:
        loaded = (
            load_steps(batch, last, width, environment),
            load_steps(batch, max(0, last - 4), width, environment),
            load_steps(batch, max(0, last - 8), width, environment),
            load_steps(batch, max(0, last - 12), width, environment),
        )
        for four in loaded:
            for step in four:
                if last >= begin:
                    carry = find_advantage(step, discount, decay, next_value, carry)
                    factor *= np.float32(0) if (step.terminated | step.truncated) != 0 else decay
                    next_value = step.value
                    if writes:
                        at = last * width + environment
                        batch.out_advantage[at] = carry
                        batch.out_return[at] = carry + step.value
                last -= 1
    return carry, factor


def estimate_rows(
    batch: GaePointers, discount: np.float32, decay: np.float32, steps: int, width: int
) -> None:
    """Write the results of all environments, row by row, from the last step to the first.

    The advantages of a row are the next row's carry.
    """
    last = (steps - 1) * width
    for environment in range(width):
        batch.out_advantage[last + environment] = 0
    for step in range(steps - 1, -1, -1):
        following = min(step + 1, steps - 1) * width
        for environment in range(width):
            at = step * width + environment
            loaded = load_step(batch, at)
            next_value = batch.value[at + width]
            carry = batch.out_advantage[following + environment]
            advantage = find_advantage(loaded, discount, decay, next_value, carry)
            batch.out_advantage[at] = advantage
            batch.out_return[at] = advantage + loaded.value


def are_aligned(
    reward: Floats, value: Floats, final_value: Floats, out_advantage: Floats, out_return: Floats
) -> bool:
    """Return whether all floats lie at multiples of their size."""
    inputs_are = is_aligned(reward) and is_aligned(value) and is_aligned(final_value)
    return inputs_are and is_aligned(out_advantage) and is_aligned(out_return)


def is_apart_from_inputs(
    output: Floats,
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
) -> bool:
    """Return whether an output shares no byte with an input."""
    return (
        is_apart(output, reward)
        and is_apart(output, value)
        and is_apart(output, terminated)
        and is_apart(output, truncated)
        and is_apart(output, final_value)
    )


def estimate_batch(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    discount: float,
    gae_lambda: float,
    out_advantage: Floats,
    out_return: Floats,
) -> bool:
    """Check all that the types leave open, then write; return whether the checks passed."""
    steps, width = shape = reward.shape
    are_alike = (
        terminated.shape == truncated.shape == final_value.shape == shape
        and out_advantage.shape == out_return.shape == shape
        and value.shape == (steps + 1, width)
    )
    if not (are_alike and 0 <= discount <= 1 and 0 <= gae_lambda <= 1):
        return False
    if reward.size == 0:
        return True
    if not (
        are_aligned(reward, value, final_value, out_advantage, out_return)
        and is_apart(out_advantage, out_return)
        and is_apart_from_inputs(out_advantage, reward, value, terminated, truncated, final_value)
        and is_apart_from_inputs(out_return, reward, value, terminated, truncated, final_value)
    ):
        return False
    batch = GaePointers(
        pointer_to(reward),
        pointer_to(value),
        pointer_to(terminated),
        pointer_to(truncated),
        pointer_to(final_value),
        pointer_to(out_advantage),
        pointer_to(out_return),
    )
    discount_32, decay = np.float32(discount), np.float32(discount * gae_lambda)
    if width < FEWEST_FOR_ROWS:
        for environment in range(width):
            carry = np.float32(0)
            estimate_steps(batch, discount_32, decay, 0, steps, width, environment, carry, True)
    else:
        estimate_rows(batch, discount_32, decay, steps, width)
    return True


# What `estimate_steps` and its callers' entries are made of, in the order of `twin`'s parts.
WALK_PARTS = (load_step, load_steps, find_advantage, estimate_steps)
_READ, _WRITTEN = "Array(float32, 2, 'C', readonly=True)", "Array(float32, 2, 'C')"
_FLAGS = "Array(boolean, 2, 'C', readonly=True)"
_ON_CPU = CpuKernel(
    estimate_batch,
    f"boolean({_READ}, {_READ}, {_FLAGS}, {_FLAGS}, {_READ}, float64, float64, "
    f"{_WRITTEN}, {_WRITTEN})",
    parts=(
        *(*WALK_PARTS, estimate_rows),
        *(is_aligned, are_aligned, is_apart, is_apart_from_inputs),
    ),
    outputs_are_apart=True,
)


def _explain_refusal(
    inputs: tuple[Floats, Floats, Bools, Bools, Floats],
    outputs: tuple[Floats, Floats],
    discount: float,
    gae_lambda: float,
) -> None:
    """Raise the error that says what is wrong with the arguments.

    Slow, and not needed for the decision: the compiled entry has refused already.
    """
    arrays = dict(zip(GaePointers._fields, (*inputs, *outputs), strict=True))
    reward = inputs[0]
    check_is_ndarray("reward", reward)
    if reward.ndim != 2:
        raise ValueError(f"reward: shape {reward.shape}, expected two axes, (T, B)")
    for name, (dtype, shape, meaning) in expected_arrays(*reward.shape).items():
        check_is_ndarray(name, arrays[name])
        check_dtype(name, arrays[name], dtype)
        check_shape(name, arrays[name], shape, meaning)
        check_layout(name, arrays[name])
    check_fraction("discount", discount)
    check_fraction("gae_lambda", gae_lambda)
    check_output("out_advantage", arrays)
    check_output("out_return", arrays)

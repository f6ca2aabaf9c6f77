"""Discounted sums of rewards from an episode's beginning on: the kernel and its CPU twin."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parllel.kernels.array_checks import (
    Shaped,
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
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda, pointer_to

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def sum_rewards(
    reward: Floats,
    terminated: Bools,
    truncated: Bools,
    begin: Floats,
    *,
    discount: float,
    out_return: Floats,
    out_end: Floats,
) -> None:
    """Write what each step has made of the discounted sum of its episode's rewards.

    G[t] = reward[t] + discount * (1 - done[t - 1]) * G[t - 1],  done = terminated | truncated

    Where the batch begins, `begin` stands for (1 - done[t - 1]) * G[t - 1]; `out_end` is that
    number for the batch that follows. Nothing of an episode crosses its end, not even NaN. An
    environment may have several rewards, whose sums are apart.

    Runs in the calling thread, without the GIL, and allocates nothing. All arrays are C-contiguous
    and in host memory.

    Args:
        reward: float32 [T, B * n], n neighbours for each environment.
        terminated, truncated: bool [T, B].
        begin: float32 [B * n].
        discount: float in [0, 1].
        out_return: float32 [T, B * n], overwritten; must not overlap another array.
        out_end: float32 [B * n], as `out_return`.

    Raises:
        TypeError: an array is no numpy.ndarray, or the discount is no number.
        ValueError: an array has another dtype, shape or layout, is read-only or overlaps where it
            must not, or the discount is outside [0, 1]. Nothing has been written then.

    Source: `discounted_reward` of gymnasium's NormalizeReward, and `returns` of VecNormalize of
        Stable-Baselines3, which puts it back to 0 as here, at each end of an episode.
    Error: <= (t + 1) * 2**-22 times the same sum of magnitudes, for a sum of t rewards
        (`test_sums_are_those_of_double_precision`).
    """
    inputs, outputs = (reward, terminated, truncated, begin), (out_return, out_end)
    mismatch = None
    try:
        is_written = are_native(reward, begin, *outputs) and _ON_CPU.compiled(
            *inputs, discount, *outputs
        )
    except (TypeError, AttributeError) as error:  # raised before anything is written
        is_written, mismatch = False, error
    if not is_written:
        arrays = dict(zip(NAMES, (*inputs, *outputs), strict=True))
        for name, array in arrays.items():
            check_is_ndarray(name, array)
        check_sum_rewards(*inputs, discount, *outputs)
        for name, array in arrays.items():
            check_layout(name, array)
        for name in NAMES[-2:]:
            check_output(name, arrays)
        raise AssertionError("the compiled entry refuses what no check finds wrong") from mismatch


NAMES = ("reward", "terminated", "truncated", "begin", "out_return", "out_end")


def check_sum_rewards(
    reward: Shaped,
    terminated: Shaped,
    truncated: Shaped,
    begin: Shaped,
    discount: float,
    out_return: Shaped,
    out_end: Shaped,
) -> None:
    """Raise TypeError or ValueError if arrays of NumPy or CuPy do not go together."""
    for name, array in (("reward", reward), ("terminated", terminated)):
        if array.ndim != 2:
            raise ValueError(f"{name}: shape {array.shape}, expected two axes, (T, columns)")
    columns, flags = reward.shape[1], terminated.shape
    if flags[0] != len(reward) or (columns % flags[1] if flags[1] else columns):  # type: ignore[arg-type]  # arrays have a length
        raise ValueError(
            f"terminated: shape {flags}, expected ({reward.shape[0]}, B) = (T, B), of which"
            f" reward's {columns} columns are a multiple"
        )
    check_shape("truncated", truncated, flags, "the shape of terminated")
    check_shape("begin", begin, (columns,), "a number for each column of reward")
    check_shape("out_return", out_return, reward.shape, "the shape of reward")
    check_shape("out_end", out_end, (columns,), "a number for each column of reward")
    for name, array in (("terminated", terminated), ("truncated", truncated)):
        check_dtype(name, array, np.bool_)
    for name, array in (("reward", reward), ("begin", begin)):
        check_dtype(name, array, np.float32)
    for name, array in (("out_return", out_return), ("out_end", out_end)):
        check_dtype(name, array, np.float32)
    check_fraction("discount", discount)


class RewardPointers(NamedTuple):
    """Pointers to the first elements of a batch's arrays; flags are uint8."""

    reward: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.uint8]
    truncated: npt.NDArray[np.uint8]


class Rewarded(NamedTuple):
    """What the arrays hold of one step of one column."""

    reward: np.float32
    terminated: int
    truncated: int


def load_reward(
    batch: RewardPointers, step: int, width: int, column: int, n_envs: int, environment: int
) -> Rewarded:
    """Return a step of a column, whose flags are those of an environment."""
    flag = step * n_envs + environment
    return Rewarded(
        batch.reward[step * width + column], batch.terminated[flag], batch.truncated[flag]
    )


def carry_on(step: Rewarded, total: np.float32) -> np.float32:
    """Return what the next step is given of a sum: nothing where the episode has ended."""
    return np.float32(0) if (step.terminated | step.truncated) != 0 else total


def sum_rows(
    batch: RewardPointers,
    begin: Floats,
    discount: np.float32,
    steps: int,
    width: int,
    n_envs: int,
    out_return: Floats,
    out_end: Floats,
) -> None:
    """Write the sums of all columns, row by row; `out_end` holds what is carried on."""
    n_rewards = width // n_envs
    for column in range(width):
        out_end[column] = begin[column]
    for step in range(steps):
        for number in range(n_rewards):
            for environment in range(n_envs):
                column = environment * n_rewards + number
                loaded = load_reward(batch, step, width, column, n_envs, environment)
                total = loaded.reward + discount * out_end[column]
                out_return[step * width + column] = total
                out_end[column] = carry_on(loaded, total)


def load_four(
    batch: RewardPointers,
    first: int,
    last: int,
    width: int,
    column: int,
    n_envs: int,
    environment: int,
) -> tuple[Rewarded, Rewarded, Rewarded, Rewarded]:
    """Return four steps from a first one on; the last step in the place of none."""
    return (
        load_reward(batch, min(first, last), width, column, n_envs, environment),
        load_reward(batch, min(first + 1, last), width, column, n_envs, environment),
        load_reward(batch, min(first + 2, last), width, column, n_envs, environment),
        load_reward(batch, min(first + 3, last), width, column, n_envs, environment),
    )


def sum_on_grid(
    reward: npt.NDArray[np.float32],
    terminated: npt.NDArray[np.uint8],
    truncated: npt.NDArray[np.uint8],
    begin: npt.NDArray[np.float32],
    discount: np.float32,
    steps: int,
    width: int,
    n_envs: int,
    out_return: npt.NDArray[np.float32],
    out_end: npt.NDArray[np.float32],
) -> None:
    """Write the sums of all columns, a thread for each. A grid with one axis.

    16 steps are read before one of them is written, so that memory is waited for once in 16 steps
    (`kernels.advantage.estimate_steps` says why).
    """
    batch = RewardPointers(reward, terminated, truncated)
    column = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while column < width:
        environment = column // (width // n_envs)
        carry = begin[column]
        step = 0
        while step < steps:
            loaded = (
                load_four(batch, step, steps - 1, width, column, n_envs, environment),
                load_four(batch, step + 4, steps - 1, width, column, n_envs, environment),
                load_four(batch, step + 8, steps - 1, width, column, n_envs, environment),
                load_four(batch, step + 12, steps - 1, width, column, n_envs, environment),
            )
            for four in loaded:
                for each in four:
                    if step < steps:
                        total = each.reward + discount * carry
                        out_return[step * width + column] = total
                        carry = carry_on(each, total)
                    step += 1
        out_end[column] = carry
        column += cuda.gridDim.x * cuda.blockDim.x


_FLOATS, _FLAGS = "CPointer(float32)", "CPointer(uint8)"
DEVICE = DeviceEntry(
    "running_returns",
    sum_on_grid,
    f"void({_FLOATS}, {_FLAGS}, {_FLAGS}, {_FLOATS}, float32, int64, int64, int64, "
    f"{_FLOATS}, {_FLOATS})",
    (load_reward, carry_on, load_four),
)


def sum_checked(
    reward: Floats,
    terminated: Bools,
    truncated: Bools,
    begin: Floats,
    discount: float,
    out_return: Floats,
    out_end: Floats,
) -> bool:
    """Check all that the types leave open, then write; return whether the checks passed."""
    (steps, width), n_envs = reward.shape, terminated.shape[1]
    if n_envs == 0 or width % n_envs != 0:
        sizes_are_0: bool = width == out_end.size == begin.size == truncated.size == 0
        return sizes_are_0 and n_envs == out_return.size == 0
    if not (
        terminated.shape == truncated.shape == (steps, n_envs)
        and out_return.shape == reward.shape
        and begin.shape == out_end.shape == (width,)
        and 0 <= discount <= 1
    ):
        return False
    for output in (out_return.reshape(-1), out_end):
        for array in (reward.reshape(-1), begin):
            if not (is_apart(output, array) and is_aligned(array)):
                return False
        if not (is_apart(output, terminated) and is_apart(output, truncated)):
            return False
    if not (is_apart(out_return, out_end) and is_aligned(out_return) and is_aligned(out_end)):
        return False
    batch = RewardPointers(pointer_to(reward), pointer_to(terminated), pointer_to(truncated))
    ends, returns = pointer_to(out_end), pointer_to(out_return)
    discount_32 = np.float32(discount)
    sum_rows(batch, pointer_to(begin), discount_32, steps, width, n_envs, returns, ends)
    return True


_READ, _WRITTEN = "Array(float32, 2, 'C', readonly=True)", "Array(float32, 2, 'C')"
_READ_FLAGS = "Array(boolean, 2, 'C', readonly=True)"
_ON_CPU = CpuKernel(
    sum_checked,
    f"boolean({_READ}, {_READ_FLAGS}, {_READ_FLAGS}, Array(float32, 1, 'C', readonly=True), "
    f"float64, {_WRITTEN}, Array(float32, 1, 'C'))",
    parts=(is_aligned, is_apart, load_reward, carry_on, sum_rows),
    outputs_are_apart=True,
)

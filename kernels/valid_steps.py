"""Steps of a batch that are no transitions: ends of episodes before them, and nothing in results.

Where steps are valid is read where the work is done: on a GPU the host need not wait for it.
"""

import numpy as np

from parllel.kernels.addresses import load_byte, load_float32, store_float32, store_uint8
from parllel.kernels.targets import CpuKernel, DeviceEntry, cuda


def cut_step(
    valid: int,
    terminated: int,
    truncated: int,
    value: int,
    final_value: int,
    following: int,
    step_after: int,
    at: int,
    out_truncated: int,
    out_final_value: int,
) -> None:
    """Write one step's flag and value, which end its episode where the next step is not valid.

    All that may be needed is loaded without a branch: memory is waited for once.

    Args:
        valid, terminated, truncated, value, final_value, out_truncated, out_final_value: addresses
            of the arrays' first elements.
        following: number of the next step in `value`.
        step_after: number of the next step among the flags; the step itself where there is none.
        at: number of the step.
    """
    is_valid, goes_on = load_byte(valid + at), load_byte(valid + step_after)
    is_terminated, is_truncated = load_byte(terminated + at), load_byte(truncated + at)
    next_value = load_float32(value + following * 4)
    own_value = load_float32(final_value + at * 4)
    is_open = is_valid != 0 and (is_terminated | is_truncated) == 0
    is_cut = is_open and goes_on == 0
    store_uint8(out_truncated + at, 1 if is_cut else min(is_truncated, 1))
    store_float32(out_final_value + at * 4, next_value if is_cut else own_value)


def cut_episodes_on_grid(
    valid: int,
    terminated: int,
    truncated: int,
    value: int,
    final_value: int,
    width: int,
    n_items: int,
    out_truncated: int,
    out_final_value: int,
) -> None:
    """End episodes before each step that is not valid: one thread for each step.

    truncated'[t] = truncated[t] or (valid[t] and not valid[t + 1] and not done[t])
    final_value'[t] = value[t + 1] where truncated'[t] and not truncated[t], else final_value[t]

    The step after the batch's last one is valid. A CPU runs it as the only thread of a grid.

    Args:
        valid, terminated, truncated: addresses of bool [T, width].
        value: address of float32 [T + 1, width].
        final_value: address of float32 [T, width].
        width: numbers of a step, 1 or more.
        n_items: T * width.
        out_truncated, out_final_value: addresses of bool and float32 [T, width], overwritten; apart
            from all inputs.
    """
    at = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while at < n_items:
        following = at + width
        step_after = following if following < n_items else at
        cut_step(
            valid,
            terminated,
            truncated,
            value,
            final_value,
            following,
            step_after,
            at,
            out_truncated,
            out_final_value,
        )
        at += cuda.gridDim.x * cuda.blockDim.x


def clear_steps_on_grid(valid: int, n_items: int, out_first: int, out_second: int) -> None:
    """Write 0 to two float32 arrays at the steps that are not valid: one thread for each step."""
    at = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while at < n_items:
        if load_byte(valid + at) == 0:
            store_float32(out_first + at * 4, np.float32(0))
            store_float32(out_second + at * 4, np.float32(0))
        at += cuda.gridDim.x * cuda.blockDim.x


CUT = DeviceEntry(
    "cut_episodes", cut_episodes_on_grid, f"void({', '.join(['int64'] * 9)})", (cut_step,)
)
CLEAR = DeviceEntry("clear_steps", clear_steps_on_grid, "void(int64, int64, int64, int64)", ())
# Compiled, they check nothing.
CUT_ON_CPU = CpuKernel(CUT.entry, CUT.signature, parts=CUT.parts)
CLEAR_ON_CPU = CpuKernel(CLEAR.entry, CLEAR.signature)

"""Generalized advantage estimation on a GPU: one walk, or many that a scan over time joins.

A GPU's thread walks the steps of one environment from the last to the first, and waits for memory
again and again. Where there are few environments, time is divided into spans, which are walked at
once, each with a carry of 0: what the true carry adds to a span's first advantage is the carry
times a factor. So three kernels run one after the other: `SPANS` walks the spans and keeps the
first advantage and the factor of each, `CARRIES` finds the true carries, and `WALK` walks again,
and writes the results. What is kept between them lies in the outputs, in the row of a span's
first step: nothing is allocated.
"""

import numpy as np
import numpy.typing as npt

from parllel.kernels.advantage import WALK_PARTS, GaePointers, estimate_steps
from parllel.kernels.targets import DeviceEntry, cuda


def walk_on_grid(
    reward: npt.NDArray[np.float32],
    value: npt.NDArray[np.float32],
    terminated: npt.NDArray[np.uint8],
    truncated: npt.NDArray[np.uint8],
    final_value: npt.NDArray[np.float32],
    discount: np.float32,
    decay: np.float32,
    steps: int,
    width: int,
    span: int,
    out_advantage: npt.NDArray[np.float32],
    out_return: npt.NDArray[np.float32],
) -> None:
    """Write the results of all steps: a thread for each span of each environment.

    The grid has one axis, and may have any size. Where all steps are one span, its carry is 0;
    else it is what `carry_on_grid` left in `out_return`.
    """
    batch = GaePointers(
        reward, value, terminated, truncated, final_value, out_advantage, out_return
    )
    number = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    begin = number // width * span
    while begin < steps:
        environment = number % width
        carry = out_return[begin * width + environment] if span < steps else np.float32(0)
        end = min(begin + span, steps)
        estimate_steps(batch, discount, decay, begin, end, width, environment, carry, True)
        number += cuda.gridDim.x * cuda.blockDim.x
        begin = number // width * span


def span_on_grid(
    reward: npt.NDArray[np.float32],
    value: npt.NDArray[np.float32],
    terminated: npt.NDArray[np.uint8],
    truncated: npt.NDArray[np.uint8],
    final_value: npt.NDArray[np.float32],
    discount: np.float32,
    decay: np.float32,
    steps: int,
    width: int,
    span: int,
    out_advantage: npt.NDArray[np.float32],
    out_return: npt.NDArray[np.float32],
) -> None:
    """Write each span's first advantage without a carry, and the carry's factor as its return.

    A thread for each span of each environment, but for the first one, whose carry leads nowhere.
    """
    batch = GaePointers(
        reward, value, terminated, truncated, final_value, out_advantage, out_return
    )
    number = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    begin = (number // width + 1) * span
    while begin < steps:
        environment = number % width
        end, carry = min(begin + span, steps), np.float32(0)
        advantage, factor = estimate_steps(
            batch, discount, decay, begin, end, width, environment, carry, False
        )
        at = begin * width + environment
        out_advantage[at] = advantage
        out_return[at] = factor
        number += cuda.gridDim.x * cuda.blockDim.x
        begin = (number // width + 1) * span


def load_spans(
    out_advantage: npt.NDArray[np.float32],
    out_return: npt.NDArray[np.float32],
    at: int,
    step: int,
    first: int,
) -> tuple[tuple[np.float32, np.float32], ...]:
    """Return advantage and factor of four spans, of the first one in the place of none."""
    places = at, max(at - step, first), max(at - 2 * step, first), max(at - 3 * step, first)
    return (
        (out_advantage[places[0]], out_return[places[0]]),
        (out_advantage[places[1]], out_return[places[1]]),
        (out_advantage[places[2]], out_return[places[2]]),
        (out_advantage[places[3]], out_return[places[3]]),
    )


def carry_on_grid(
    steps: int,
    width: int,
    span: int,
    out_advantage: npt.NDArray[np.float32],
    out_return: npt.NDArray[np.float32],
) -> None:
    """Put each span's true carry in the place of its factor: a thread for each environment."""
    environment = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    step = span * width  # from a span's first step to the next span's
    while environment < width:
        carry = np.float32(0)
        at = (steps - 1) // span * step + environment
        first = step + environment
        while at >= first:
            loaded = (
                load_spans(out_advantage, out_return, at, step, first),
                load_spans(out_advantage, out_return, max(at - 4 * step, first), step, first),
            )
            for four in loaded:
                for advantage, factor in four:
                    if at >= first:
                        out_return[at] = carry
                        # Not a product with 0, which NaN and infinity would survive.
                        carry = advantage if factor == 0 else advantage + factor * carry
                    at -= step
        out_return[environment] = carry
        environment += cuda.gridDim.x * cuda.blockDim.x


_FLOATS, _FLAGS = "CPointer(float32)", "CPointer(uint8)"
_INPUTS = ", ".join([_FLOATS, _FLOATS, _FLAGS, _FLAGS, _FLOATS])
_SIZES = "int64, int64, int64"
_OUTPUTS = f"{_FLOATS}, {_FLOATS}"
_SIGNATURE = f"void({_INPUTS}, float32, float32, {_SIZES}, {_OUTPUTS})"
WALK = DeviceEntry("advantage", walk_on_grid, _SIGNATURE, WALK_PARTS)
SPANS = DeviceEntry("advantage_spans", span_on_grid, _SIGNATURE, WALK_PARTS)
CARRIES = DeviceEntry(
    "advantage_carries", carry_on_grid, f"void({_SIZES}, {_OUTPUTS})", (load_spans,)
)

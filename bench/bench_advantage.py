"""Time of advantage estimation against loops over time and a copy of as many bytes.

On a GPU: one launch against torch. Without one: the CPU twin against Numba and NumPy.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numba
import numpy as np

from parllel import Array, ArrayDict, cuda
from parllel.kernels.advantage import estimate_advantage
from parllel.transforms import EstimateAdvantage
from support.advantage_batch import (
    DISCOUNT,
    GAE_LAMBDA,
    Batch,
    Bools,
    Floats,
    numpy_loop,
    random_batch,
)
from support.advantage_on_device import race_advantages
from support.device_report import DeviceReport
from support.device_timing import DeviceTimer
from support.report import Report, parse_out
from support.timing import interleave, ratio

SIZES = ((128, 16), (128, 1024), (2048, 16), (512, 4096))
REPEATS = 31
DEVICE_REPEATS = 101

OURS, TRANSFORM = "parllel", "parllel, EstimateAdvantage"
PLAIN, PLAIN_ROWS = "Numba, plain loop", "Numba, plain loop, time outermost"
NUMPY, COPY, COPY_INPUTS = "NumPy, loop over time", "copy", "copy of the inputs"

TARGETS = (  # size, claim, contestant, reference, most times its time
    ((512, 4096), "time / time of the copy", OURS, COPY, 2.5),
    ((128, 16), "time / time of the plain loop", OURS, PLAIN, 1.0),
    ((128, 16), "time / time of the one with time outermost", OURS, PLAIN_ROWS, 1.0),
    ((128, 16), "EstimateAdvantage: time / time of its kernel", TRANSFORM, OURS, 2.5),
)


@numba.njit(fastmath={"contract"})
def plain_loop(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    out_advantage: Floats,
    out_return: Floats,
    discount: np.float32,
    decay: np.float32,
) -> None:
    """Compute it in the plainest way: environment by environment, backwards, with branches."""
    steps, width = reward.shape
    for b in range(width):
        advantage = np.float32(0)
        for t in range(steps - 1, -1, -1):
            if terminated[t, b]:
                delta = reward[t, b] - value[t, b]
                advantage = delta
            elif truncated[t, b]:
                delta = reward[t, b] + discount * final_value[t, b] - value[t, b]
                advantage = delta
            else:
                delta = reward[t, b] + discount * value[t + 1, b] - value[t, b]
                advantage = delta + decay * advantage
            out_advantage[t, b] = advantage
            out_return[t, b] = advantage + value[t, b]


@numba.njit(fastmath={"contract"})
def plain_rows(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    out_advantage: Floats,
    out_return: Floats,
    discount: np.float32,
    decay: np.float32,
) -> None:
    """Do the same row by row, which walks memory in order."""
    steps, width = reward.shape
    carry = np.zeros(width, np.float32)
    for t in range(steps - 1, -1, -1):
        for b in range(width):
            if terminated[t, b]:
                carry[b] = reward[t, b] - value[t, b]
            elif truncated[t, b]:
                carry[b] = reward[t, b] + discount * final_value[t, b] - value[t, b]
            else:
                delta = reward[t, b] + discount * value[t + 1, b] - value[t, b]
                carry[b] = delta + decay * carry[b]
            out_advantage[t, b] = carry[b]
            out_return[t, b] = carry[b] + value[t, b]


def make_copy(nbytes: int) -> Callable[[], None]:
    """Return a function that copies `nbytes`, which reads as many and writes as many."""
    source = np.ones(nbytes, np.uint8)
    destination = np.ones_like(source)
    return lambda: np.copyto(destination, source)


def make_transform(batch: Batch) -> tuple[Callable[[], object], Batch]:
    """Return the transform of a sample tree with a batch's values; and the tree's arrays."""
    reward, value, terminated, truncated, final_value = batch[:5]
    T, B = reward.shape
    tree = ArrayDict(
        {
            "reward": Array((T, B), np.float32),
            "terminated": Array((T, B), np.bool_),
            "truncated": Array((T, B), np.bool_),
            "final_value": Array((T, B), np.float32),
            "agent_info": {"value": Array((T, B), np.float32, padding=1)},
        }
    )
    tree["reward"][...], tree["final_value"][...] = reward, final_value
    tree["terminated"][...], tree["truncated"][...] = terminated, truncated
    tree["agent_info"]["value"][...], tree["agent_info"]["value"][T] = value[:T], value[T]
    transform = EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA)
    results = (transform(tree)[name].to_ndarray() for name in ("advantage", "return_"))
    return functools.partial(transform, tree), (*batch[:5], *results)


def make_contestants(batches: dict[str, Batch]) -> dict[str, Callable[[], object]]:
    ours = batches[OURS]
    factors = np.float32(DISCOUNT), np.float32(DISCOUNT * GAE_LAMBDA)
    read = sum(array.nbytes for array in ours[:5])
    written = sum(array.nbytes for array in ours[5:])
    return {
        OURS: functools.partial(
            estimate_advantage,
            *ours[:5],
            discount=DISCOUNT,
            gae_lambda=GAE_LAMBDA,
            out_advantage=ours[5],
            out_return=ours[6],
        ),
        PLAIN: functools.partial(plain_loop, *batches[PLAIN], *factors),
        PLAIN_ROWS: functools.partial(plain_rows, *batches[PLAIN_ROWS], *factors),
        NUMPY: functools.partial(numpy_loop, *batches[NUMPY], *factors),
        COPY: make_copy((read + written) // 2),
        COPY_INPUTS: make_copy(read),
    }


def check_results(batches: dict[str, Batch]) -> None:
    """Refuse a contestant that computes something else; small differences are roundings."""
    for name, batch in batches.items():
        for ours, theirs in zip(batches[OURS][5:], batch[5:], strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4, err_msg=name)


def measure_twins(folder: Path, sizes: Sequence[tuple[int, int]], *, repeats: int) -> None:
    report = Report(
        "advantage",
        "Generalized advantage estimation, CPU twin, no GPU: float32 [T, B], one thread",
        [
            f"{repeats} interleaved rounds for each size; ratios are medians over the rounds.",
            f"'{COPY}' copies half of the bytes of all 5 inputs and 2 outputs, each array once: it",
            "reads and writes together exactly as many bytes as the estimate reads and writes.",
            f"'{COPY_INPUTS}' copies as many bytes as the estimate reads: more traffic, more"
            " lenient.",
            "Every contestant works on arrays of its own.",
            f"'{OURS}' is the kernel, '{TRANSFORM}' all that a batch's sample tree needs.",
        ],
    )
    measured = {}
    for size in sizes:
        batches = {name: random_batch(*size) for name in (OURS, PLAIN, PLAIN_ROWS, NUMPY)}
        contestants = make_contestants(batches)
        contestants[TRANSFORM], batches[TRANSFORM] = make_transform(batches[OURS])
        measured[size] = interleave(contestants, repeats=repeats)
        check_results(batches)
        report.add_table(f"(T, B) = {size}", measured[size], references=(COPY, OURS, PLAIN))
    print()
    for size, claim, contestant, reference, limit in TARGETS:
        if size in measured:
            times = ratio(measured[size], contestant, reference)
            report.add_target(f"{size}: {claim}", times, limit)
    report.write(folder)


def measure_device(
    folder: Path, sizes: Sequence[tuple[int, int]], *, timer: DeviceTimer, repeats: int
) -> None:
    report = DeviceReport(
        "advantage",
        "Generalized advantage estimation on a GPU: float32 [T, B]",
        [
            "'parllel' is one launch. 'torch, loop over time' computes all at once that does not",
            "depend on the next step, then each step with one kernel. 'copy' is one copy",
            "on the device; it reads and writes together as many bytes as the estimate: the limit.",
        ],
        timer=timer,
        repeats=repeats,
    )
    race_advantages(report, sizes)
    report.write(folder)


def main() -> None:
    folder = parse_out("Time advantage estimation.")
    if cuda.is_available():
        measure_device(folder, SIZES, timer=DeviceTimer(), repeats=DEVICE_REPEATS)
    else:
        measure_twins(folder, SIZES, repeats=REPEATS)


if __name__ == "__main__":
    main()

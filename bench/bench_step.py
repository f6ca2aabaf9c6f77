"""Time of whole time steps of BasicSampler, with environments and an agent that cost nothing.

On a GPU: a sample tree in its memory, against a loop of torch. Without one: what the same steps
cost the host in local memory, against a loop of NumPy; launches, copies and the bus have no figure
then.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from parllel import cuda
from support.device_report import DeviceReport, device_copy
from support.device_timing import DeviceTimer
from support.host_calls import race_host_calls
from support.report import Report, parse_out
from support.row_trees import Shapes
from support.steps_on_device import SMALL_LEAVES, race_steps
from support.still_envs import StepSize
from support.timing import interleave
from support.whole_steps import ByNumpy, ByTorch, Loop, Sampled, T, check_results

REPEATS = 21
DEVICE_REPEATS = 31
SCREEN, STACK = (84, 84), (4, 84, 84)
SIZES = tuple(
    StepSize(n_envs, shape) for n_envs in (8, 64, 256, 1_024) for shape in (SCREEN, STACK)
)

OURS, NUMPY, TORCH, COPY = "parllel", "NumPy, by hand", "torch, by hand", "copy"
OURS_FRAMES, OURS_LOCAL = "parllel, frames", "parllel, local memory"


def measure_host(folder: Path, sizes: Sequence[StepSize], *, repeats: int) -> None:
    report = Report(
        "step",
        "Whole time steps, no GPU: the host's share, in local memory",
        [
            f"{repeats} interleaved rounds of batches of {T} time steps; times are those of one.",
            "Environments and agent return arrays that were made before. What stays is what the",
            "sampler does with them, and the copy of observations; where frames are stored once,",
            "all stacks are compared with those before, too. What a step takes to a GPU, and how",
            "long that works on it, can't be measured here.",
        ],
    )
    for size in sizes:
        with ExitStack() as stack:
            loops = host_loops(size)
            for loop in loops.values():
                stack.enter_context(closing(loop))
            check_results(loops)
            calls = {name: loop.collect_batch for name, loop in loops.items()}
            batches = interleave(calls, repeats=repeats)
        seconds = {name: [each / T for each in samples] for name, samples in batches.items()}
        columns = {
            "us/env": {
                name: statistics.median(samples) / size.n_envs * 1e6
                for name, samples in seconds.items()
            }
        }
        report.add_table(f"a time step of {size}", seconds, references=[NUMPY], columns=columns)
    report.write(folder)


def host_loops(size: StepSize) -> dict[str, Loop]:
    """Return loops that fill host memory."""
    loops: dict[str, Loop] = {OURS: Sampled(size, "local")}
    if size.are_stacks:
        loops[OURS_FRAMES] = Sampled(size, "local", has_frames=True)
    return {**loops, NUMPY: ByNumpy(size)}


def measure_device(
    folder: Path,
    sizes: Sequence[StepSize],
    *,
    timer: DeviceTimer,
    repeats: int,
    copy_nbytes: int = 2**30,
) -> None:
    report = DeviceReport(
        "step",
        "Whole time steps on a GPU: environments and agent cost nothing",
        [
            "First the way of a step's results to the tree: read over the bus by the launch that",
            "scatters them, or observations by a copy engine and the rest by the launch. 'one",
            "cudaMemcpyAsync' is one copy of as many bytes over the bus: the limit.",
            f"Then whole steps, in batches of {T}; all numbers are those of one step. The host",
            "waits in each step for the actions, so that device time is mostly the host's. 'copy'",
            "is one copy of a step's observations on the device: the limit.",
            "The last tables tell what the device and the host are capable of: one large copy, and",
            "the host's time of single calls.",
        ],
        timer=timer,
        repeats=repeats,
    )
    for size in sizes:
        shapes: Shapes = {"observation": ("u1", size.shape), **SMALL_LEAVES}
        race_steps(report, [size.n_envs], shapes, T)
        race_whole_steps(report, size)
    report.race(
        f"one copy of {copy_nbytes:,} bytes on the device",
        {COPY: device_copy(copy_nbytes)},
        nbytes=2 * copy_nbytes,
        references=(),
    )
    race_host_calls(report, repeats=repeats)
    report.write(folder)


def race_whole_steps(report: DeviceReport, size: StepSize) -> None:
    """Add a table of whole time steps to a report."""
    with ExitStack() as stack:
        loops: dict[str, Loop] = {OURS: Sampled(size, "device")}
        if size.are_stacks:
            loops[OURS_FRAMES] = Sampled(size, "device", has_frames=True)
        loops |= {TORCH: ByTorch(size), OURS_LOCAL: Sampled(size, "local")}
        for loop in loops.values():
            stack.enter_context(closing(loop))
        with closing(ByNumpy(size)) as by_numpy:
            check_results({**loops, NUMPY: by_numpy})
        copy = device_copy(size.nbytes)
        report.race(
            f"a time step of {size}, {T} in a batch",
            {**{name: loop.collect_batch for name, loop in loops.items()}, COPY: repeated(copy)},
            nbytes=2 * size.nbytes,
            references=(TORCH, COPY),
            n_steps=T,
        )


def repeated(call: Callable[[], object]) -> Callable[[], object]:
    """Return a function that makes a call for each step of a batch."""

    def calls() -> None:
        for _ in range(T):
            call()

    return calls


def main() -> None:
    folder = parse_out("Time whole time steps.")
    if cuda.is_available():
        measure_device(folder, SIZES, timer=DeviceTimer(), repeats=DEVICE_REPEATS)
    else:
        measure_host(folder, SIZES, repeats=REPEATS)


if __name__ == "__main__":
    main()

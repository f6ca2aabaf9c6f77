"""DeviceReport: a report of contestants that run on a GPU, and the copy that is their limit."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

from parllel import cuda
from support.device_timing import N_FLUSHES, DeviceTimer
from support.device_work import Work, count_work
from support.gpu_state import read_gpu
from support.report import Report, rates
from support.timing import take_turns

N_WARM_UPS = 3  # the first calls load modules and fill pools
NOTHING = "nothing"


def device_copy(nbytes: int) -> Callable[[], object]:
    """Return a function that copies `nbytes` of the device: it reads as many and writes as many."""
    source = cuda.tensor_over(cuda.allocate_device(nbytes))
    destination = cuda.tensor_over(cuda.allocate_device(nbytes))
    return functools.partial(destination.copy_, source)


class DeviceReport(Report):
    """Times contestants on the current device and reports them.

    Args:
        bench, title, notes: as of a Report.
        timer: takes the samples.
        repeats: rounds; each gives one sample for each contestant.

    Raises:
        CudaUnavailableError: there is no usable device.
    """

    def __init__(
        self, bench: str, title: str, notes: Sequence[str], *, timer: DeviceTimer, repeats: int
    ) -> None:
        super().__init__(bench, title, [*notes, *_explain(timer, repeats)], gpu=read_gpu())
        self._timer = timer
        self._repeats = repeats

    def race(
        self,
        heading: str,
        contestants: Mapping[str, Callable[[], object]],
        *,
        nbytes: int,
        references: Sequence[str],
        n_steps: int = 1,
    ) -> None:
        """Time all contestants in turn, and add a table of them.

        Args:
            heading: what the contestants do.
            contestants: name -> a function without arguments that queues the work.
            nbytes: what each of them reads from and writes to the device's memory.
            references: names of contestants to compare with.
            n_steps: how often a call does the work; all numbers are those of one time.
        """
        works = {}
        for name, call in contestants.items():
            for _ in range(N_WARM_UPS):
                call()
            works[name] = count_work(call)
        calls = {**contestants, NOTHING: lambda: None}
        samples = take_turns(
            calls, lambda name: self._timer.sample(calls[name]), repeats=self._repeats
        )
        self._timer.flush()  # the clocks of an idle device are not those of the samples
        gpu = read_gpu()
        seconds = {name: [each.device_s / n_steps for each in samples[name]] for name in calls}
        columns = {
            "GB/s": rates({name: seconds[name] for name in contestants}, nbytes),
            "call us": {
                name: statistics.median(each.call_s for each in samples[name]) * 1e6 / n_steps
                for name in contestants
            },
            **{
                what: {name: getattr(work, what) / n_steps for name, work in works.items()}
                for what in Work._fields
            },
            "queued": {
                name: statistics.mean(each.is_queued for each in samples[name]) for name in calls
            },
        }
        self.add_table(heading, seconds, references=references, columns=columns, gpu=gpu)


def _explain(timer: DeviceTimer, repeats: int) -> list[str]:
    """Say how samples are taken, and what the columns are."""
    flush = f"{N_FLUSHES} x {timer.flush_nbytes / 2**20:,.0f} MiB"
    return [
        f"Device time between two events: {repeats} samples of each contestant, in rounds of a",
        "shuffled order; ratios are medians over the rounds. Before each sample the device reads",
        f"{flush}: no cache holds anything of the contestants, and the host has time to queue the",
        "whole call. 'queued' is the part of the samples in which it was queued in time; in the",
        "others the device waited for the host. 'call us' is the time until the call returns, on",
        "the host. GB/s counts what is read from and written to the device's memory. Launches,",
        "copies and waits of the host are those of one call: parllel's own, and operations of",
        "torch, each of which launches at least one kernel.",
        f"'{NOTHING}' is the two events alone.",
    ]

"""Timing that all benches share: interleaved runs and one printed table; it knows no kernel."""

import math
import random
import statistics
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from support.machine import describe_machine

Sample = TypeVar("Sample")

# A sample shorter than this is mostly the clock and the loop around the call.
SAMPLE_S = 0.0005

_COLUMN = 10  # characters of a printed column


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    sample_s: float = SAMPLE_S,
) -> dict[str, list[float]]:
    """Time all contestants in turn, so that a noisy moment hits them all.

    Every contestant is warmed up (and with that compiled) first. A fast one is called as often as
    it takes to fill `sample_s`; the sample is then the mean of these calls. The order is shuffled
    in each round. Give each contestant arrays of its own: those that a neighbour has just read are
    in a cache, and a contestant that shares them looks faster than it is.

    Args:
        contestants: name -> a function without arguments that does the work once.
        repeats: rounds; each gives one sample for each contestant.
        sample_s: the shortest sample, in seconds.

    Returns:
        name -> `repeats` samples in seconds for one call; sample i of all names is from round i.
    """
    timers = {name: timeit.Timer(contestant) for name, contestant in contestants.items()}
    calls = {name: _calls_to_fill(timer, sample_s) for name, timer in timers.items()}
    return take_turns(
        timers, lambda name: timers[name].timeit(calls[name]) / calls[name], repeats=repeats
    )


def take_turns(
    names: Iterable[str], sample: Callable[[str], Sample], *, repeats: int
) -> dict[str, list[Sample]]:
    """Return `repeats` samples for each name, taken in rounds, each in an order of its own."""
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    order = list(samples)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            samples[name].append(sample(name))
    return samples


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that makes a long call once and returns its seconds."""
    return lambda: timeit.timeit(call, number=1)


def ratio(seconds: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """Return how many times longer `name` takes: the median over rounds of the ratio in a round.

    Both samples of a round were taken next to each other: what slowed one slowed the other.
    """
    pairs = zip(seconds[name], seconds[reference], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


class Summary(NamedTuple):
    """A summary of a contestant's samples.

    Args:
        median_us, first_quartile_us, third_quartile_us: quartiles of the time of one call.
        n_samples: number of samples.
        times: reference -> how many times longer this one takes.
    """

    median_us: float
    first_quartile_us: float
    third_quartile_us: float
    n_samples: int
    times: dict[str, float]

    @property
    def spread(self) -> float:
        """The distance between the first and the third quartile, as a part of the median."""
        return (self.third_quartile_us - self.first_quartile_us) / self.median_us


def summarize(
    seconds: Mapping[str, Sequence[float]], references: Sequence[str] = ()
) -> dict[str, Summary]:
    """Return a summary for each contestant, with its ratio to each reference."""
    summaries = {}
    for name, samples in seconds.items():
        quartiles = statistics.quantiles(samples, n=4, method="inclusive")
        low, median, high = (quartile * 1e6 for quartile in quartiles)
        times = {reference: ratio(seconds, name, reference) for reference in references}
        summaries[name] = Summary(median, low, high, len(samples), times)
    return summaries


def print_title(title: str) -> dict[str, str]:
    """Print the title, then the machine, the versions and the commit.

    Returns:
        The description of the machine.
    """
    machine = describe_machine()
    print(title)
    print(
        f"{machine['processor']}, load {machine['load']} | {machine['versions']}"
        f" | commit {machine['commit']}"
    )
    return machine


def print_table(
    heading: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    references: Sequence[str] = (),
    columns: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Print one row for each contestant: median, spread, and its ratio to each reference.

    The spread is the distance between the first and the third quartile, in percent of the median.

    Args:
        heading: what was measured.
        seconds: name -> samples.
        references: names of contestants.
        columns: title -> name -> what else is known of contestants; of some or of all.
    """
    columns = columns or {}
    width = max(len(heading), *(len(name) for name in seconds))
    titles = "".join(f"{title:>{_COLUMN}}" for title in columns)
    titles += "".join(f"{'/ ' + reference:>{len(reference) + 5}}" for reference in references)
    print(f"\n{heading:<{width}} {'median us':>12} {'spread':>7}{titles}")
    for name, summary in summarize(seconds, references).items():
        cells = "".join(f"{_cell(column, name):>{_COLUMN}}" for column in columns.values())
        cells += "".join(f"{times:>{len(to) + 5}.2f}" for to, times in summary.times.items())
        print(f"{name:<{width}} {summary.median_us:>12.3f} {summary.spread:>7.0%}{cells}")


def print_target(claim: str, measured: float, limit: float) -> bool:
    """Print whether a measured number is at most its limit, and return that."""
    is_met = measured <= limit
    verdict = "met" if is_met else "missed"
    print(f"target {claim}: measured {measured:.2f}, at most {limit:.2f}: {verdict}")
    return is_met


def _calls_to_fill(timer: timeit.Timer, sample_s: float) -> int:
    timer.timeit(1)
    once_s = max(min(timer.repeat(repeat=5, number=1)), 1e-9)
    return max(1, math.ceil(sample_s / once_s))


def _cell(column: Mapping[str, float], name: str) -> str:
    return f"{column[name]:,.1f}" if name in column else ""

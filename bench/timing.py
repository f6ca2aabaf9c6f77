"""Timing that all benches share: interleaved runs and one printed table; it knows no kernel."""

import math
import platform
import random
import statistics
import subprocess
import timeit
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

# A sample shorter than this is mostly the clock and the loop around the call.
SAMPLE_S = 0.0005


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
    in a cache, and whoever shares them looks faster than it is.

    Args:
        contestants: name -> a function without arguments that does the work once.
        repeats: rounds; each gives one sample for each contestant.
        sample_s: the shortest sample, in seconds.

    Returns:
        name -> `repeats` samples in seconds for one call; sample i of all names is from round i.
    """
    timers = {name: timeit.Timer(contestant) for name, contestant in contestants.items()}
    calls = {name: _calls_to_fill(timer, sample_s) for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(names)
        for name in names:
            seconds[name].append(timers[name].timeit(calls[name]) / calls[name])
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """Return how many times longer `name` takes: the median over rounds of the ratio in a round.

    Both samples of a round were taken next to each other: what slowed one slowed the other.
    """
    pairs = zip(seconds[name], seconds[reference], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def print_title(title: str) -> None:
    """Print what was measured, then on which machine, with which versions, at which commit."""
    print(title)
    print(f"{_processor()} | {_versions()} | commit {_commit()}")


def print_table(
    heading: str, seconds: Mapping[str, Sequence[float]], *, references: Sequence[str] = ()
) -> None:
    """Print one row for each contestant: median, spread, and its ratio to each reference.

    The spread is the distance between the first and the third quartile, in percent of the median.
    """
    width = max(len(name) for name in seconds)
    titles = "".join(f"{'/ ' + reference:>{len(reference) + 5}}" for reference in references)
    print(f"\n{heading:<{width}} {'median us':>12} {'spread':>7}{titles}")
    for name, samples in seconds.items():
        low, median, high = statistics.quantiles(samples, n=4)
        cells = "".join(
            f"{ratio(seconds, name, reference):>{len(reference) + 5}.2f}"
            for reference in references
        )
        spread = (high - low) / median
        print(f"{name:<{width}} {median * 1e6:>12.3f} {spread:>7.0%}{cells}")


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


def _processor() -> str:
    """Return the processor's name; `platform.processor` says only the architecture on Linux."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _versions() -> str:
    packages = ("numpy", "numba", "llvmlite")
    named = " ".join(f"{package} {metadata.version(package)}" for package in packages)
    return f"Python {platform.python_version()} {named}"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "none yet"

"""The schedules of simulated CUDA that tests run under: lazy in the short run, others in the long.

Under `lazy` work runs as late as it may, so a wait that is missing shows. The other schedules try
what only an earlier moment or another order would show: a copy to the host that is there too soon.
Both are a matter of the claim. So the long run tries each claim under each schedule, and each of
its cases under `lazy`, but not each case under each schedule; `--every-schedule` does that.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

SCHEDULES = (("lazy", 0), ("eager", 0), ("random", 0))
OTHERS = ("eager", "random")

# Contracts are by far the most tests of a device: on one that lasts, eager and with a look at each
# tensor, they would take long. All other files run there too: tests/cuda/test_real_device.py.
CONTRACTS = ("test_cuda_memory.py", "test_device_cage.py", "test_jagged_contracts.py")

# Contracts whose cases differ in forms of results alone: what waits is the same code for all of
# them. So each case is tried under one schedule, and each claim under all.
UNDER_ONE_SCHEDULE = ("test_device_cage.py", "test_jagged_contracts.py")


def marks_of(schedule: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return the marker of the long run for all schedules but `lazy`."""
    return () if schedule == "lazy" else (pytest.mark.long,)


each_schedule = pytest.mark.parametrize(
    ("schedule", "seed"),
    [pytest.param(schedule, seed, marks=marks_of(schedule)) for schedule, seed in SCHEDULES],
)


def schedule_of(item: pytest.Function) -> str | None:
    """Return the schedule that a test runs under; None where it runs under none of several."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for name in ("cuda_device", "cuda_simulation", "schedule"):
        value = params.get(name)
        schedule = value[0] if isinstance(value, tuple) else value
        if schedule in ("lazy", *OTHERS):
            return str(schedule)
    return None


def find_repetitions(items: Iterable[pytest.Function]) -> set[pytest.Function]:
    """Return tests that try a claim under a schedule under which another case of it is tried.

    The cases of a claim of a contract are the classes of a file that are held to it: one of them
    is tried under `eager`, the next one under `random`, all or the others under `lazy`. The cases
    of another claim are the values of its arguments: every second one is tried under `eager`, the
    others under `random`. A claim of one case is tried under both. What the short run has of a
    test that takes `cuda_device` runs once more as on a real one, which is eager, but for
    contracts: so it is not tried so here.
    """
    claims: dict[Any, dict[Any, list[pytest.Function]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if schedule_of(item) is not None:
            claim, case = claim_and_case(item)
            claims[claim][case].append(item)
    return {
        item
        for claim, cases in claims.items()
        for number, case in enumerate(cases.values(), zlib.crc32(repr(claim).encode()))
        for item in case
        if is_repetition(item, number, len(cases))
    }


def is_repetition(item: pytest.Function, number: int, n_cases: int) -> bool:
    """Tell whether a case of `n_cases`, counted from any number, needs no such schedule."""
    schedule = schedule_of(item)
    if schedule == "lazy":
        is_once = item.path.name in UNDER_ONE_SCHEDULE and n_cases > len(OTHERS)
        return is_once and number % n_cases < len(OTHERS)
    is_in_short_run = len(list(item.iter_markers("long"))) == 1  # that of the schedule
    is_on_real_device = "cuda_device" in item.fixturenames and item.path.name not in CONTRACTS
    if schedule == "eager" and is_on_real_device and is_in_short_run:
        return True
    of_each = n_cases if is_of_contract(item) else 2
    return n_cases > 1 and number % of_each != OTHERS.index(str(schedule))


def is_of_contract(item: pytest.Function) -> bool:
    return item.function.__module__ != item.module.__name__


def claim_and_case(item: pytest.Function) -> tuple[Any, Any]:
    """Return what a test is called without its case, and its case without the schedule."""
    name = item.path.name, item.function.__module__, item.function.__qualname__
    skipped = ("cuda_device", "cuda_simulation", "schedule", "seed")
    params = repr(
        {key: index for key, index in sorted(item.callspec.indices.items()) if key not in skipped}
    )
    case = str(item.cls)
    return ((*name, params), case) if is_of_contract(item) else ((*name, case), params)

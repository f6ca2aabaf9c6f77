"""The schedules of simulated CUDA that tests run under: all in the long run, lazy in the short.

Under `lazy` work runs as late as it may, so a wait that is missing shows. The other schedules try
what only an earlier moment or another order would show.
"""

import pytest

SCHEDULES = (("lazy", 0), ("eager", 0), ("random", 0))


def marks_of(schedule: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return the marker of the long run for all schedules but `lazy`."""
    return () if schedule == "lazy" else (pytest.mark.long,)


each_schedule = pytest.mark.parametrize(
    ("schedule", "seed"),
    [pytest.param(schedule, seed, marks=marks_of(schedule)) for schedule, seed in SCHEDULES],
)

"""Schedules: numbers by the progress of a run, checked where they are used."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parllel.schedules import linear, value_at

numbers = st.floats(-1e6, 1e6)
shares = st.floats(0, 1)


@given(start=numbers, stop=numbers, until=st.floats(1e-3, 1), progress=shares)
def test_a_line_stays_between_its_ends_and_meets_both(
    start: float, stop: float, until: float, progress: float
) -> None:
    schedule = linear(start, stop, until=until)
    assert schedule(0.0) == start
    assert schedule(until) == schedule(1.0) == stop
    expected = np.interp(progress, [0, until], [start, stop])
    # Two products and a sum, each rounded once.
    assert abs(schedule(progress) - expected) <= 4 * 2**-52 * (abs(start) + abs(stop))


def test_schedules_of_the_same_numbers_are_equal_also_after_a_journey() -> None:
    schedule = linear(1, 0.5, until=0.25)
    assert schedule == linear(1.0, 0.5, until=0.25) != linear(1.0, 0.5)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert eval(repr(schedule), {"linear": linear}) == schedule


def test_a_setting_is_a_number_or_a_function_of_progress() -> None:
    for setting in (0.5, 1, np.float32(0.25)):
        found = value_at("clip", setting, 0.7)
        assert type(found) is float
        assert found == setting
    assert value_at("clip", lambda progress: 2 * progress, 0.25) == 0.5


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        (math.nan, ValueError, "clip: got nan, expected a finite number"),
        (math.inf, ValueError, "clip: got inf, expected"),
        ("0.2", TypeError, "clip: got '0.2', expected a number, or a schedule"),
        (None, TypeError, "clip: got None, expected a number"),
        (True, TypeError, "clip: got True, expected a number"),
        (2.0, ValueError, r"clip: got 2\.0, expected a number in \[0, 1\]"),
        (lambda _: math.nan, ValueError, r"clip: got nan of its schedule at progress 0\.5"),
        (lambda _: None, TypeError, r"clip: got None of its schedule at progress 0\.5"),
        (lambda _: -1, ValueError, r"clip: got -1\.0 of its schedule .*expected a number in"),
    ],
)
def test_what_is_no_number_is_refused_by_name(
    setting: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        value_at("clip", setting, 0.5, least=0, most=1)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_is_a_share(progress: float) -> None:
    with pytest.raises(ValueError, match="progress: got"):
        value_at("clip", 0.2, progress)


def test_a_line_of_no_numbers_is_refused_when_it_is_made() -> None:
    for wrong in ((math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match=r"(start|stop): got"):
            linear(*wrong)
    for until in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="until: got"):
            linear(1.0, 0.0, until=until)

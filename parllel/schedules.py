"""Schedules: numbers that change while an agent learns, as functions of the run's progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

Schedule: TypeAlias = Callable[[float], float]
"""A function of progress, from 0 at the beginning of a run to 1 at its end, that gives a number."""


@dataclass(frozen=True)
class _Linear:
    start: float
    stop: float
    until: float

    def __call__(self, progress: float) -> float:
        share = min(progress / self.until, 1.0)
        return (1 - share) * self.start + share * self.stop  # both ends are met exactly

    def __repr__(self) -> str:
        return f"linear({self.start}, {self.stop}, until={self.until})"


def linear(start: float, stop: float, *, until: float = 1.0) -> Schedule:
    """Return a schedule that goes from one number to another in a straight line.

    Two that were made of the same numbers are equal, and their text makes them again.

    Args:
        start: the number at progress 0.
        stop: the number at progress `until` and later.
        until: progress in (0, 1] at which `stop` is reached.

    Raises:
        TypeError, ValueError: one is no number, is NaN or infinite, or until is not in (0, 1].

    Example:
        >>> epsilon = linear(1.0, 0.1, until=0.5)
        >>> [epsilon(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.55, 0.1, 0.1]
        >>> epsilon
        linear(1.0, 0.1, until=0.5)
    """
    start, stop = _checked("start", start), _checked("stop", stop)
    until = _checked("until", until)
    if not 0 < until <= 1:
        raise ValueError(f"until: got {until}, expected a number in (0, 1]")
    return _Linear(start, stop, until)


def value_at(
    name: str,
    setting: float | Schedule,
    progress: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> float:
    """Return the number that a setting has at some progress of the run.

    Args:
        name: name of the setting, for errors.
        setting: a number, or a schedule.
        progress: number in [0, 1].
        least, most: bounds of the number; they are allowed themselves.

    Raises:
        TypeError: the setting is no number and no function, or the schedule gives no number.
        ValueError: the number is NaN, infinite or out of bounds, or progress is not in [0, 1].

    Example:
        >>> value_at("clip", 0.2, 0.5), value_at("clip", linear(0.2, 0.1), 0.5)
        (0.2, 0.15000000000000002)
        >>> value_at("clip", lambda progress: float("nan"), 0.5)
        Traceback (most recent call last):
        ValueError: clip: got nan of its schedule at progress 0.5, expected a finite number
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: got {progress}, expected a number in [0, 1]")
    if not callable(setting):
        return _checked(name, setting, least=least, most=most, way_out=", or a schedule")
    found = setting(progress)
    return _checked(
        name, found, least=least, most=most, source=f" of its schedule at progress {progress}"
    )


def _checked(
    name: str,
    number: object,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    source: str = "",
    way_out: str = "",
) -> float:
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name}: got {number!r}{source}, expected a number{way_out}")
    try:
        found = float(number)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name}: got {found}{source}, expected a finite number")
    if not least <= found <= most:
        bounds = f"in [{least}, {most}]" if math.isfinite(most) else f"of {least} or more"
        raise ValueError(f"{name}: got {found}{source}, expected a number {bounds}")
    return found

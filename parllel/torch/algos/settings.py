"""Checks of an algorithm's settings, each by its name: counts, flags, numbers and schedules."""

from __future__ import annotations

import math
import sys

from parllel.schedules import value_at

_LARGEST = sys.float_info.max


def check_counts(settings: object, *names: str) -> None:
    """Refuse settings that are no integers of 1 or more.

    >>> from types import SimpleNamespace
    >>> check_counts(SimpleNamespace(n_epochs=2.0), "n_epochs")
    Traceback (most recent call last):
    TypeError: n_epochs: got 2.0, expected an integer of 1 or more; make it int(n_epochs)

    Raises:
        TypeError: one is of another type than int.
        ValueError: one is below 1.
    """
    for name in names:
        count = getattr(settings, name)
        if type(count) is not int:
            raise TypeError(
                f"{name}: got {count!r}, expected an integer of 1 or more; make it int({name})"
            )
        if count < 1:
            raise ValueError(f"{name}: got {count}, expected 1 or more")


def check_flag(settings: object, name: str) -> None:
    """Refuse a setting that is neither True nor False.

    Raises:
        TypeError: it is of another type than bool.
    """
    flag = getattr(settings, name)
    if type(flag) is not bool:
        raise TypeError(f"{name}: got {flag!r}, expected True or False")


def check_number(
    settings: object,
    name: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = _LARGEST,
    is_optional: bool = False,
    may_change: bool = False,
) -> None:
    """Refuse a setting that is no number of its range, of the types int and float alone.

    Other numbers, as a Fraction or NumPy's float32, would be rounded, and a config that JSON holds
    can't have them. NumPy's float64 is a float.

    >>> from types import SimpleNamespace
    >>> check_number(SimpleNamespace(kl_limit=float("nan")), "kl_limit", above=0, is_optional=True)
    Traceback (most recent call last):
    ValueError: kl_limit: got nan, expected a number above 0

    Args:
        settings: the object that has the setting.
        name: the setting's name.
        above: the number is larger than this.
        least, most: bounds of the number, which are allowed themselves; math.inf allows that.
        is_optional: whether it may be None.
        may_change: whether it may be a schedule, which is asked at 0 and at 1; its numbers may
            reach `above`.

    Raises:
        TypeError: it is of another type, or a schedule gives no number.
        ValueError: it is NaN, out of range or too large for a float, or a number of the schedule
            is.
    """
    setting = getattr(settings, name)
    if setting is None and is_optional:
        return
    if may_change and callable(setting):
        for progress in (0.0, 1.0):
            value_at(name, setting, progress, least=max(least, above), most=min(most, _LARGEST))
    elif isinstance(setting, bool) or not isinstance(setting, int | float):
        kinds = ["a plain number", *["a schedule"] * may_change, *["None"] * is_optional]
        raise TypeError(
            f"{name}: got {setting!r}, expected {' or '.join(kinds)}; a number of another kind is"
            " made one by float()"
        )
    else:
        number = _as_float(name, setting)
        if not (number > above and least <= number <= most):
            raise ValueError(
                f"{name}: got {setting}, expected a number{_range(above, least, most)}"
            )


def _as_float(name: str, number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # its digits would be no help, and Python may refuse to write them
        n_bits = int(number).bit_length()
        raise ValueError(
            f"{name}: got an integer of {n_bits} bits, expected a number that a float holds,"
            f" at most {_LARGEST:g} in size"
        ) from None


def _range(above: float, least: float, most: float) -> str:
    bounds = [(f"above {above:g}", above), (f"of {least:g} or more", least)]
    told = [text for text, bound in bounds if bound > -math.inf]
    told += [f"at most {most:g}"] if most < _LARGEST else []
    return f" {' and '.join(told)}" if told else ""

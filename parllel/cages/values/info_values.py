"""The entries of an info that rows are made for, and the dtypes of these rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cages.values.env_rows import write_column
from parllel.cages.values.infos import is_numeric
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.fitting import MisfitError


def info_values(info: Mapping[str, Any], declared: Mapping[str, Any], path: TreePath) -> ArrayDict:
    """Return the entries of an info that are stored, as values of the dtype that their rows get.

    >>> info_values({"luck": 0.5, "name": "a"}, {"odd": False}, ())["odd"].dtype
    dtype('bool')

    Args:
        info: that of a step.
        declared: entries that a later step may have; they decide where both have an entry.
        path: names of the entries that hold these dictionaries.
    """
    kept: dict[str, Any] = {}
    named = [name for name in info if isinstance(name, str)]  # no branch has another name
    for name in [*named, *(name for name in declared if name not in info)]:
        value, likeness = info.get(name), declared.get(name)
        if isinstance(likeness, Mapping) or (likeness is None and isinstance(value, Mapping)):
            within = value if isinstance(value, Mapping) else {}
            kept[name] = info_values(within, likeness or {}, (*path, name))
        elif likeness is not None:
            kept[name] = _declared(likeness, value, (*path, name))
        elif is_numeric(value):
            number = np.asarray(value)
            is_whole = number.ndim == 0 and number.dtype.kind in "biu"
            kept[name] = number.astype(np.float64) if is_whole else _rounded(number)
    return ArrayDict(kept)


def _declared(likeness: object, value: object, path: TreePath) -> NDArray[Any]:
    """Return the value of an entry in the form that was declared, 0 where the step has none."""
    if not is_numeric(likeness):
        raise TypeError(
            f"info: got {likeness!r} for {path_text(path)}, expected a number or an array of"
            " numbers, as it will be in infos"
        )
    form = np.asarray(likeness)
    row = np.zeros(
        (1, *form.shape), (_rounded(form) if isinstance(likeness, float) else form).dtype
    )
    if value is not None:
        try:
            write_column(row, [value])
        except MisfitError as error:
            error.path = ("env_info", *path)
            raise
    return row[0, ...]


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    """Return floats of 64 bits as 32, and other numbers as they are."""
    return values.astype(np.float32) if values.dtype == np.float64 else values

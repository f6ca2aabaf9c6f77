"""How infos, the dictionaries that environments return with observations, are written and copied.

An info has an entry only when the environment has something to say. The rows of an entry that is
absent become 0, and an entry that no row was made for is noted in `LeftOut`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.cages.values.env_rows import Info, write_column
from parllel.tree import ArrayDict, TreePath
from parllel.tree.fitting import MisfitError, describe, has_form, put_batch

_NONE: frozenset[str] = frozenset()


class LeftOut:
    """Numbers in infos that are stored nowhere: none of them was in the example of a step.

    >>> left_out = LeftOut()
    >>> for _ in range(2):
    ...     write_infos(ArrayDict(), [{"is_success": True, "episode": {"r": 1.5}}], left_out)
    >>> left_out.take(), left_out.take()
    ([('episode', 'r'), ('is_success',)], [])
    """

    def __init__(self) -> None:
        self._seen: dict[TreePath, set[str]] = {}
        self.new: list[TreePath] = []

    def look(self, out: ArrayDict, infos: Iterable[Info], path: TreePath = ()) -> None:
        """Note the entries that are seen for the first time and have no branch.

        Args:
            out: the rows of the entries that are stored.
            infos: dictionaries of one level.
            path: names of the entries that hold these dictionaries.
        """
        seen = self._seen.setdefault(path, set())
        for info in infos:
            if info and not info.keys() <= seen:
                for name in info.keys() - seen:
                    seen.add(name)
                    # A name that is no string can't be declared, as no branch may have it.
                    is_entry = isinstance(name, str) and not _is_mask(name, info)
                    if is_entry and name not in out:
                        self.new += _numbers_in(info[name], (*path, name))

    def has_seen(self, info: Info) -> bool:
        """Whether the entries of an info, of which none is stored, were noted before."""
        return info.keys() <= self._seen.get((), _NONE)

    def take(self) -> list[TreePath]:
        """Return the paths that are new since the last call."""
        new, self.new = sorted(self.new), []
        return new


def declaration(paths: Iterable[TreePath], value: object) -> str:
    """Return the call that declares entries of infos, as messages show it.

    >>> declaration([("episode", "r")], 0.0)
    "build_example(make_env, info={'episode': {'r': 0.0}})"
    """
    info: dict[str, Any] = {}
    for *around, name in paths:
        within = info
        for each in around:
            found = within.setdefault(each, {})
            within = found if isinstance(found, dict) else {}  # another cage has a number there
        within.setdefault(name, value)
    return f"build_example(make_env, info={info})".replace("Ellipsis", "...")


def _numbers_in(value: object, path: TreePath) -> Iterator[TreePath]:
    """Yield the paths of the numbers in an entry of an info."""
    if not isinstance(value, Mapping):
        if is_numeric(value):
            yield path
        return
    for name, member in value.items():
        if isinstance(name, str) and not _is_mask(name, value):
            yield from _numbers_in(member, (*path, name))


def _is_mask(name: object, info: Info) -> bool:
    """Whether an entry of a dictionary of arrays tells which environments have another entry."""
    return isinstance(name, str) and name.startswith("_") and name[1:] in info


def is_numeric(value: object) -> bool:
    """Whether an Array can hold a value of an info."""
    try:
        return np.asarray(value).dtype.kind in "biufc"
    except (ValueError, TypeError, RuntimeError):  # a ragged list, or no array at all
        return False


def write_infos(
    out: ArrayDict,
    infos: Sequence[Info],
    left_out: LeftOut | None = None,
    path: TreePath = (),
) -> None:
    """Write the entries of info dictionaries that `out` has branches for; an absent one is 0.

    Args:
        out: n rows for each entry that is kept.
        infos: n dictionaries.
        left_out: notes the other entries.
        path: names of the entries that hold these dictionaries.

    Raises:
        MisfitError: as for `write_column`; the message has the way to declare the entry.
    """
    if left_out is not None and any(infos):
        left_out.look(out, infos, path)
    for name, branch in out.items():
        if isinstance(branch, ArrayDict):
            within = [info.get(name, _EMPTY) for info in infos]
            if all(isinstance(info, Mapping) for info in within):
                write_infos(branch, within, left_out, (*path, name))
                continue
        absent = _absent(branch)
        column = [absent if (value := info.get(name)) is None else value for info in infos]
        try:
            write_column(branch, column)
        except MisfitError as error:
            raise _at_entry(error, path, name)  # noqa: B904  # the same error, with more to say


def write_info_batch(
    out: ArrayDict, info: Info, single: Mapping[int, Info], left_out: LeftOut | None = None
) -> None:
    """Write the entries of an info that `out` has branches for; an absent one is 0.

    Args:
        out: n rows for each entry that is kept.
        info, single: those of a `Batch`.
        left_out: notes the other entries.

    Raises:
        MisfitError: as for `write_infos`.
    """
    _write_info(out, info, None, left_out, ())
    for number, own in single.items():
        write_infos(out[number : number + 1], [own], left_out)


def copy_info(info: Info) -> dict[str, Any]:
    """Return an info dictionary with copies of its arrays and dictionaries."""
    return {
        name: copy_info(value)
        if isinstance(value, Mapping)
        else (value.copy() if isinstance(value, np.ndarray) else value)
        for name, value in info.items()
    }


def info_of(number: int, info: Info, single: Mapping[int, Info]) -> Info:
    """Return one environment's own dictionary of a `Batch`, with copies of its arrays."""
    return single[number] if number in single else take_info(info, number)


def take_info(info: Info, number: int) -> dict[str, Any]:
    """Return one environment's part of a dictionary of arrays [n, ...], as copies."""
    taken: dict[str, Any] = {}
    for name, values in info.items():
        mask = info.get(f"_{name}")
        if (isinstance(name, str) and _is_mask(name, info)) or (
            mask is not None and not mask[number]
        ):
            continue
        if isinstance(values, Mapping):
            taken[name] = take_info(values, number)
        else:
            value = values[number] if np.ndim(values) else values  # one for all
            taken[name] = value.copy() if isinstance(value, np.ndarray) else value
    return taken


_EMPTY: Info = {}


def _write_info(
    out: ArrayDict,
    info: Info,
    present: NDArray[np.bool_] | None,
    left_out: LeftOut | None,
    path: TreePath,
) -> None:
    """Write a dictionary of arrays [n, ...]; rows of environments that are not present become 0."""
    if left_out is not None:
        left_out.look(out, [info], path)
    for name, branch in out.items():
        values, mask = info.get(name), _present(info, name, present)
        is_leaf = type(branch) is np.ndarray
        if is_leaf and mask is None and has_form(values, branch.shape, branch.dtype):
            branch[...] = values
            continue
        if not is_leaf and isinstance(branch, ArrayDict) and isinstance(values, Mapping | None):
            _write_info(branch, values or _EMPTY, mask, left_out, (*path, name))
            continue
        try:
            if not is_leaf and isinstance(branch, ArrayDict):
                number = 0 if mask is None else int(mask.argmax())
                got = describe(values if np.isscalar(values) else np.asarray(values)[number, ...])
                raise MisfitError(got, f"a dictionary with {list(branch)}", environment=number)
            _write_entry(branch, values)
        except MisfitError as error:
            raise _at_entry(error, path, name)  # noqa: B904  # the same error, with more to say
        if mask is not None:
            branch[~mask] = 0


def _write_entry(branch: NDArray[Any], values: Any) -> None:
    """Write one entry of a dictionary of arrays [n, ...], or one value for all environments."""
    if type(values) is np.ndarray and values.ndim and values.dtype != object:
        put_batch(branch, values)
    elif values is None:
        branch[...] = 0
    elif np.asarray(values).dtype == object:  # a Python object for each environment, as a list
        absent = _absent(branch)
        write_column(branch, [absent if value is None else value for value in values])
    elif np.ndim(values):
        put_batch(branch, values)
    else:
        write_column(branch, [values] * len(branch))


def _absent(branch: Any) -> Any:
    """Return the value of an entry that an info has not."""
    is_scalar = isinstance(branch, ArrayDict) or branch.ndim == 1
    return 0 if is_scalar else np.zeros(branch.shape[1:], branch.dtype)


def _at_entry(error: MisfitError, path: TreePath, name: str) -> MisfitError:
    error.path = (*path, name, *error.path)
    error.way_out = (
        f"the example of a step had another {name!r}: declare it with a value of the kind that is"
        f" to come, as in {declaration([(*path, name)], ...)}"
    )
    return error


def _present(info: Info, name: str, present: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which environments have an entry, bool [n]; None where all of them have it."""
    mask: NDArray[np.bool_] | None = info.get(f"_{name}")
    if mask is None or present is None:
        return present if mask is None else mask
    return present & mask

"""How values of environments become rows of arrays, and how rows become actions.

Single environments return a value each; n of those are a column. A vector environment returns an
array [n, ...], or a tree of such arrays: that is a batch. Rows are where either is written to. In a
tree of rows, the members of a tuple are branches with the names "0", "1", ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from parllel.arrays import Array
from parllel.arrays.interop import is_tensor
from parllel.tree import ArrayDict, RowParts, TreePath, dict_map, path_text
from parllel.tree.leaves import as_ndarray
from parllel.tree.row_parts import written_rows

if TYPE_CHECKING:
    import torch

Value: TypeAlias = "ArrayLike | Mapping[str, Value] | tuple[Value, ...]"
"""An action, an observation or a reward of an environment, or n of them."""

Rows: TypeAlias = "NDArray[Any] | ArrayDict"
"""A row for each environment: a NumPy array [n, ...], or an ArrayDict of such arrays."""

Output: TypeAlias = "Array | NDArray[Any] | torch.Tensor | Mapping[str, Output]"
"""Memory of the caller that results are written to: an array, or a tree of arrays."""

Info: TypeAlias = Mapping[str, Any]
"""The dictionary that an environment returns with an observation."""


def write_column(out: Rows, values: Sequence[Any]) -> None:
    """Write one value of each environment into the rows of an array or of a tree of arrays.

    >>> import numpy as np
    >>> rows = np.zeros((2, 3))
    >>> write_column(rows, [[1, 2, 3], np.ones(3)])
    >>> rows
    array([[1., 2., 3.],
           [1., 1., 1.]])

    Args:
        out: n rows, overwritten. A branch is filled from the same key of a mapping, or the member
            of a tuple whose number it bears; `RowParts` are filled from whole samples.
        values: n values of environments.

    Raises:
        TypeError, ValueError: a value does not fit, with the environment's number in a note.
    """
    if isinstance(out, ArrayDict):
        if isinstance(out, RowParts):
            out.write(values)
            return
        for name, branch in out.items():
            write_column(branch, [_member(value, name) for value in values])
    elif out.ndim == 1:
        out[:] = values
    else:
        row, value = 0, None
        try:
            for row, value in enumerate(values):
                out[row] = value
        except (TypeError, ValueError) as error:
            error.add_note(
                f"environment {row} of this cage gave {_describe(value)}, expected"
                f" {out.shape[1:]}, {out.dtype}, as the row that it is written to"
            )
            raise


def write_infos(out: ArrayDict, infos: Sequence[Info]) -> None:
    """Write the entries of info dictionaries that `out` has branches for; an absent one is 0."""
    for name, branch in out.items():
        if isinstance(branch, ArrayDict):
            write_infos(branch, [info.get(name, {}) for info in infos])
        else:
            write_column(branch, [info.get(name, 0) for info in infos])


def stack_column(values: Sequence[Any]) -> Any:
    """Return one value of each environment as an array [n, ...], or as a tree of such."""
    first = values[0]
    if isinstance(first, Mapping | tuple):
        names = first if isinstance(first, Mapping) else map(str, range(len(first)))
        return ArrayDict(
            {name: stack_column([_member(value, name) for value in values]) for name in names}
        )
    return np.stack([np.asarray(value) for value in values])


def as_tree(value: object) -> Any:
    """Return a value with its mappings and tuples as ArrayDicts; a plain value as it is.

    Of an Array that stores a row in several parts, it returns these parts.
    """
    if isinstance(value, Array):
        return written_rows(value, checked=True)
    if isinstance(value, RowParts):
        return value
    if isinstance(value, tuple):
        value = {str(number): member for number, member in enumerate(value)}
    if isinstance(value, Mapping):
        return ArrayDict({name: as_tree(member) for name, member in value.items()})
    return value


def as_output(leaf: Output) -> NDArray[Any]:
    """Return a NumPy array over the memory of a leaf that a caller wants to be written.

    Raises:
        TypeError: NumPy can't write it in place.
        ValueError: it is read-only, as a view made with integer arrays is.
    """
    is_shared = isinstance(leaf, Array | np.ndarray) or (is_tensor(leaf) and _is_shared(leaf))
    if not is_shared or (isinstance(leaf, Array) and not leaf.is_on_host):
        raise TypeError(
            f"out: got a {type(leaf).__name__}, expected an Array in host memory, a NumPy array, or"
            " a CPU tensor of a dtype that NumPy has"
        )
    rows = as_ndarray(leaf)
    if not rows.flags.writeable:
        raise ValueError(
            f"out: got a read-only array of shape {rows.shape}, expected one that is written in"
            " place; a view made with integer arrays or a mask is not"
        )
    return rows


def copy_tree(value: Value) -> Any:
    """Return a value as `as_tree` does, but with copies: environments may reuse their arrays."""
    if isinstance(value, np.ndarray | float):  # most observations and rewards
        return _copy(value)
    return dict_map(_copy, as_tree(value))


def copy_info(info: Info) -> dict[str, Any]:
    """Return an info dictionary with copies of its arrays and dictionaries."""
    return {
        name: copy_info(value) if isinstance(value, Mapping) else _copy(value)
        for name, value in info.items()
    }


def to_actions(rows: Rows, space: spaces.Space[Any]) -> list[Any]:
    """Return the actions of n environments, each like the space's own samples.

    >>> import numpy as np
    >>> from gymnasium import spaces
    >>> to_actions(np.array([0.0, 1.0]), spaces.Discrete(2))
    [np.int64(0), np.int64(1)]

    Args:
        rows: n rows. They are copied, since an environment may keep or overwrite its action.
        space: the space of a single environment's actions.
    """
    if isinstance(space, spaces.Discrete):  # scalars; an Ellipsis would make arrays of them
        return list(rows.astype(space.dtype))
    if isinstance(space, spaces.Dict):
        parts = [to_actions(rows[name], part) for name, part in space.items()]
        return [dict(zip(space, members, strict=True)) for members in zip(*parts, strict=True)]
    if isinstance(space, spaces.Tuple):
        parts = [to_actions(rows[str(number)], part) for number, part in enumerate(space)]
        return list(zip(*parts, strict=True))
    owned = rows.astype(space.dtype)
    return [owned[row, ...] for row in range(len(owned))]


def _is_shared(tensor: torch.Tensor) -> bool:
    """Whether NumPy uses the tensor's own memory, and not a copy of another dtype."""
    values = as_ndarray(tensor)
    return bool(values.ctypes.data == tensor.data_ptr())


def _describe(value: object) -> str:
    dtype = getattr(value, "dtype", type(value).__name__)
    return f"{getattr(value, 'shape', 'no shape')}, {dtype}"


def _copy(value: object) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def check_space(path: TreePath, space: spaces.Space[Any]) -> None:
    """Refuse a space whose values are no arrays of one shape.

    Raises:
        TypeError: a part of the space can't be stored; the message has its path.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        for name, part in parts:
            check_space((*path, str(name)), part)
    elif space.dtype is None or space.shape is None:
        raise TypeError(
            f"{path_text(path)}: got {space}, expected Box, Discrete, MultiDiscrete, MultiBinary,"
            " or a Dict or Tuple of these: values of one shape and dtype; wrap the environment"
        )


def _member(value: Mapping[str, Any] | tuple[Any, ...], name: str) -> Any:
    return value[int(name)] if isinstance(value, tuple) else value[name]


class Batch(NamedTuple):
    """The results of one step of a vector environment.

    >>> import numpy as np
    >>> flag = np.zeros(2, np.bool_)
    >>> batch = Batch(np.ones((2, 3)), np.ones(2), flag, flag, {"lives": np.array([3, 2])}, {})
    >>> info_of(1, batch.info, batch.single)
    {'lives': np.int64(2)}

    Args:
        observation: an array [n, ...], or an ArrayDict of such arrays.
        reward: [n].
        terminated, truncated: bool [n].
        info: one dictionary of arrays [n, ...] for all environments. Beside an entry `name`, a mask
            `_name`, bool [n], tells which environments have it; without a mask, all have.
        single: dictionaries of single environments, by their numbers. They replace the part
            of `info` that these environments have.
    """

    observation: Rows
    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: Info
    single: Mapping[int, Info]


def write_batch(
    out: Rows, batch: Rows, index: NDArray[np.bool_] | int | EllipsisType = ...
) -> None:
    """Write an array [n, ...], or a tree of such arrays, into rows of the same form.

    Args:
        out: rows, overwritten. Branches of the batch that it has not are dropped. `RowParts`
            are filled from whole samples, all rows at once.
        batch: as many rows as `index` picks.
        index: bool [n], the rows to write, or the number of one row; all rows by default.
    """
    if isinstance(out, np.ndarray):
        out[index] = batch
    elif isinstance(out, RowParts):
        samples: Any = batch  # Any: rows in parts are never given a tree
        out.write(samples)
    else:
        for name, branch in out.items():
            write_batch(branch, batch[name], index)


def to_action_batch(rows: Rows, space: spaces.Space[Any]) -> Any:
    """Return the actions of n environments as vector environments take them.

    Args:
        rows: n rows. They are copied, since environments may overwrite their actions.
        space: the space of a single environment's actions.
    """
    if isinstance(rows, np.ndarray):
        return rows.astype(space.dtype)
    if isinstance(space, spaces.Dict):
        return {name: to_action_batch(rows[name], part) for name, part in space.items()}
    assert isinstance(space, spaces.Tuple)
    return tuple(to_action_batch(rows[str(number)], part) for number, part in enumerate(space))


def write_info_batch(out: ArrayDict, info: Info, single: Mapping[int, Info]) -> None:
    """Write the entries of an info that `out` has branches for; an absent one is 0.

    Args:
        out: n rows for each entry that is kept.
        info, single: those of a `Batch`.
    """
    _write_info(out, info, None)
    for number, own in single.items():
        write_infos(out[number : number + 1], [own])


def info_of(number: int, info: Info, single: Mapping[int, Info]) -> Info:
    """Return one environment's own dictionary of a `Batch`, with copies of its arrays."""
    return single[number] if number in single else take_info(info, number)


def take_info(info: Info, number: int) -> dict[str, Any]:
    """Return one environment's part of a dictionary of arrays [n, ...], as copies."""
    taken: dict[str, Any] = {}
    for name, values in info.items():
        is_mask = name.startswith("_") and name[1:] in info
        mask = info.get(f"_{name}")
        if is_mask or (mask is not None and not mask[number]):
            continue
        if isinstance(values, Mapping):
            taken[name] = take_info(values, number)
        else:
            value = values[number] if np.ndim(values) else values  # one for all
            taken[name] = value.copy() if isinstance(value, np.ndarray) else value
    return taken


def _write_info(out: ArrayDict, info: Info, present: NDArray[np.bool_] | None) -> None:
    """Write a dictionary of arrays [n, ...]; rows of environments that are not present become 0."""
    for name, branch in out.items():
        values, mask = info.get(name), _present(info, name, present)
        if not isinstance(branch, np.ndarray):
            _write_info(branch, values if isinstance(values, Mapping) else {}, mask)
            continue
        if values is None:
            branch[...] = 0
        elif np.asarray(values).dtype == object:  # a Python object for each environment, as a list
            write_column(branch, [0 if value is None else value for value in values])
        else:
            branch[...] = values
        if mask is not None:
            branch[~mask] = 0


def _present(info: Info, name: str, present: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which environments have an entry, bool [n]; None where all of them have it."""
    mask: NDArray[np.bool_] | None = info.get(f"_{name}")
    if mask is None or present is None:
        return present if mask is None else mask
    return present & mask

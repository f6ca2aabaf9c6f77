"""How values of environments become rows of arrays, and how rows become actions.

An environment gives a value of its own: a list of n values is a column. A vector environment gives
an array with n rows for each leaf: that is a batch. In a tree, the members of a tuple are branches
named by their position: "0", "1", ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.arrays import Array, FrameArray
from parllel.arrays.interop import is_tensor
from parllel.tree import ArrayDict, TreePath, dict_map, path_text
from parllel.tree.frame_rows import checked_frame_places, is_of_frames, write_stacks
from parllel.tree.leaves import as_ndarray


def write_column(out: Any, values: Sequence[Any]) -> None:
    """Write one value of each environment into the rows of an array or of a tree of arrays.

    Args:
        out: NumPy array [n, ...] or ArrayDict of such; a branch is filled from the same key of a
            mapping, or the same place of a tuple; places of frames are filled from stacks.
        values: n values.

    Raises:
        TypeError, ValueError: a value does not fit, with the environment's number in a note.
    """
    if isinstance(out, ArrayDict):
        if is_of_frames(out):
            write_stacks(out, values)
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
                f" {out.shape[1:]}, {out.dtype}, as its place"
            )
            raise


def write_infos(out: Any, infos: Sequence[Mapping[str, Any]]) -> None:
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


def as_tree(value: Any) -> Any:
    """Return a value with its mappings and tuples as ArrayDicts; a plain value as it is.

    Stacks of frames become the places that their newest frames are written to.
    """
    if isinstance(value, FrameArray):
        return checked_frame_places(value)
    if isinstance(value, tuple):
        value = {str(place): member for place, member in enumerate(value)}
    if isinstance(value, Mapping):
        return ArrayDict({name: as_tree(member) for name, member in value.items()})
    return value


def as_output(leaf: Any) -> NDArray[Any]:
    """Return the NumPy array that writes a leaf's own memory.

    Raises:
        TypeError: NumPy can't write it in place.
        ValueError: it is read-only, as a view made with integer arrays is.
    """
    is_shared = isinstance(leaf, Array | np.ndarray) or (is_tensor(leaf) and _is_shared(leaf))
    if not is_shared or (isinstance(leaf, Array) and leaf.storage == "device"):
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


def copy_tree(value: Any) -> Any:
    """Return a value as `as_tree` does, but copy its arrays: environments may reuse theirs."""
    if isinstance(value, np.ndarray | float):  # most observations and rewards
        return _copy(value)
    return dict_map(_copy, as_tree(value))


def copy_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return an info dictionary with copies of its arrays and dictionaries."""
    return {
        name: copy_info(value) if isinstance(value, Mapping) else _copy(value)
        for name, value in info.items()
    }


def to_actions(rows: Any, space: spaces.Space[Any]) -> list[Any]:
    """Return the actions of n environments, each like the space's own samples.

    Args:
        rows: NumPy array [n, ...] or ArrayDict of such. Copied: an action belongs to its
            environment.
        space: of a single environment's actions.
    """
    if isinstance(space, spaces.Discrete):  # scalars; an Ellipsis would make arrays of them
        return list(rows.astype(space.dtype))
    if isinstance(space, spaces.Dict):
        parts = [to_actions(rows[name], part) for name, part in space.items()]
        return [dict(zip(space, members, strict=True)) for members in zip(*parts, strict=True)]
    if isinstance(space, spaces.Tuple):
        parts = [to_actions(rows[str(place)], part) for place, part in enumerate(space)]
        return list(zip(*parts, strict=True))
    owned = rows.astype(space.dtype)
    return [owned[row, ...] for row in range(len(owned))]


def _is_shared(tensor: Any) -> bool:
    values = as_ndarray(tensor)
    return bool(values.ctypes.data == tensor.data_ptr())


def _describe(value: Any) -> str:
    dtype = getattr(value, "dtype", type(value).__name__)
    return f"{getattr(value, 'shape', 'no shape')}, {dtype}"


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def check_space(path: TreePath, space: spaces.Space[Any]) -> None:
    """Refuse a space whose values are no arrays of one shape.

    Raises:
        TypeError: with the path of the part that can't be stored.
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


def _member(value: Any, name: str) -> Any:
    return value[int(name)] if isinstance(value, tuple) else value[name]


# Info is one dictionary of arrays for all environments. Beside `name`, a mask `_name` tells which
# environments have that entry; without it, all have. `single` holds dictionaries of environments
# that count instead of their rows.


class Batch(NamedTuple):
    """What one step gave: for each an array [n, ...], or a tree of such."""

    observation: Any
    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: Mapping[str, Any]
    single: Mapping[int, Mapping[str, Any]]


def write_batch(out: Any, batch: Any, index: Any = ...) -> None:
    """Write an array [n, ...], or a tree of such, into rows of the same form.

    Args:
        out: NumPy array or ArrayDict of such; other branches of the batch are dropped. Places of
            frames are filled from stacks, of all rows.
        batch: as many rows as `index` picks.
        index: a mask, or the number of one row; all rows by default.
    """
    if isinstance(out, np.ndarray):
        out[index] = batch
    elif is_of_frames(out):
        write_stacks(out, batch)
    else:
        for name, branch in out.items():
            write_batch(branch, batch[name], index)


def to_action_batch(rows: Any, space: spaces.Space[Any]) -> Any:
    """Return the actions of n environments as vector environments take them.

    Args:
        rows: NumPy array [n, ...] or ArrayDict of such. Copied: environments may overwrite theirs.
        space: of a single environment's actions.
    """
    if isinstance(rows, np.ndarray):
        return rows.astype(space.dtype)
    if isinstance(space, spaces.Dict):
        return {name: to_action_batch(rows[name], part) for name, part in space.items()}
    assert isinstance(space, spaces.Tuple)
    return tuple(to_action_batch(rows[str(place)], part) for place, part in enumerate(space))


def write_info_batch(
    out: Any, info: Mapping[str, Any], single: Mapping[int, Mapping[str, Any]]
) -> None:
    """Write the entries of info that `out`, a tree of rows, has branches for; absent ones are 0."""
    _write_info(out, info, None)
    for number, own in single.items():
        write_infos(out[number : number + 1], [own])


def info_of(
    number: int, info: Mapping[str, Any], single: Mapping[int, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return one environment's own dictionary, with copies of its arrays."""
    return single[number] if number in single else take_info(info, number)


def take_info(info: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return one environment's part of a dictionary of batches, with copies of its arrays."""
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


def _write_info(out: Any, info: Mapping[str, Any], present: NDArray[np.bool_] | None) -> None:
    """Write an info dictionary, which only some environments may have."""
    for name, branch in out.items():
        values, mask = info.get(name), _present(info, name, present)
        if not isinstance(branch, np.ndarray):
            _write_info(branch, values if isinstance(values, Mapping) else {}, mask)
            continue
        if values is None:
            branch[...] = 0
        elif np.asarray(values).dtype == object:  # lists, say, of which each row is one
            write_column(branch, [0 if value is None else value for value in values])
        else:
            branch[...] = values
        if mask is not None:
            branch[~mask] = 0


def _present(
    info: Mapping[str, Any], name: str, present: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    mask: NDArray[np.bool_] | None = info.get(f"_{name}")
    if mask is None or present is None:
        return present if mask is None else mask
    return present & mask

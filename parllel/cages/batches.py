"""How what a vector environment returns, a batch for each leaf, becomes rows and members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.cages.columns import write_column, write_infos
from parllel.tree.frame_rows import is_of_frames, write_stacks

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

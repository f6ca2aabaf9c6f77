"""The branch `valid` of a batch: which of its rows are transitions, for what learns from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, Leaf
from parllel.cuda import to_host
from parllel.tree.agent_forms import N_BATCH, agents_of, part_for, parts_of
from parllel.tree.array_dict import ArrayDict
from parllel.tree.leaves import as_ndarray
from parllel.tree.path import TreePath, path_text


def valid_rows(batch: ArrayDict) -> NDArray[np.bool_] | None:
    """Return which rows of a batch are transitions to learn from, bool [T, B].

    Of several agents, a row is one where any of them is alive: `valid_of` tells of each.

    Returns:
        What the branch `valid` holds, on the host: for memory of a GPU the host waits for the
        caller's current stream. None where there is no such branch, or all rows are valid.

    Raises:
        TypeError: its dtype is not bool.
    """
    if "valid" not in batch:
        return None
    masks = [
        as_mask(path_text(("valid", *path)), leaf)
        for path, leaf in parts_of(batch["valid"]).items()
    ]
    rows = [mask.any(axis=tuple(range(N_BATCH, mask.ndim))) for mask in masks]
    valid: NDArray[np.bool_] = np.logical_or.reduce(rows)
    return None if valid.all() else valid


def valid_of(
    batch: ArrayDict, path: TreePath, agents: tuple[int, ...] = (), *, tells_all: bool = False
) -> NDArray[np.bool_] | None:
    """Return in which rows an agent is alive, on the host.

    Args:
        batch: the batch.
        path: the agent's names (`agent_forms.parts_of`), `()` for a leaf of all agents.
        agents: the agent axis of that leaf.
        tells_all: whether a mask that is True everywhere is returned, too: so what is done does not
            depend on values, which differ between the ranks of a run.

    Returns:
        bool [T, B], or [T, B, *agents] where agents of the axis differ. None where there is no
        branch `valid`, or the agent is alive in all rows.

    Raises:
        TypeError: the dtype of `valid` is not bool.
        ValueError: `valid` has other agents than the leaf.
    """
    if "valid" not in batch:
        return None
    name = path_text(("valid", *path))
    valid = as_mask(name, part_for("valid", batch["valid"], path))
    _check_agents(name, valid.shape, agents)
    return None if valid.all() and not tells_all else valid


def valid_beside(batch: ArrayDict, path: TreePath, like: Array) -> Array | None:
    """Return in which rows an agent is alive, where a leaf of the batch lies.

    On a GPU nothing is read, so that the host does not wait, and a program may capture it.

    Args:
        batch: the batch.
        path: as for `valid_of`.
        like: the leaf, [T, B] or [T, B, N].

    Returns:
        bool [T, B] or [T, B, N]: the branch itself where the same side works on both, else a copy,
        which can't be captured. None where there is no branch `valid`, and where the host found
        the agent alive in all rows.

    Raises:
        TypeError: the dtype of `valid` is not bool.
        ValueError: `valid` has other rows or agents than the leaf.
    """
    if "valid" not in batch:
        return None
    name = path_text(("valid", *path))
    leaf = part_for("valid", batch["valid"], path)
    is_there = isinstance(leaf, Array) and leaf.side == like.side
    mask = None if is_there and like.side == "gpu" else as_mask(name, leaf)
    found: Any = leaf if mask is None else mask  # Any: both have a shape and a dtype
    if found.dtype != np.bool_:
        raise TypeError(f"{name}: dtype {found.dtype}, expected bool: True for a valid row")
    _check_agents(name, found.shape, agents_of(like))
    if found.shape[:N_BATCH] != like.shape[:N_BATCH]:
        raise ValueError(
            f"{name}: got rows {found.shape[:N_BATCH]}, expected {like.shape[:N_BATCH]} = (T, B)"
        )
    if mask is not None and mask.all():
        return None
    if is_there and isinstance(leaf, Array):
        return leaf
    copied = like.new_array(dtype=np.dtype(bool), padding=0, full_size=len(like))
    copied[...] = np.broadcast_to(over_agents(found, like.shape), like.shape)
    return copied


def _check_agents(name: str, shape: tuple[int, ...], agents: tuple[int, ...]) -> None:
    if shape[N_BATCH:] not in ((), agents):
        raise ValueError(
            f"{name}: got agents {shape[N_BATCH:]} behind T and B, expected {agents} as the"
            " other quantities have, or one flag for all agents"
        )


def over_agents(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask [T, B] or [T, B, N] with axes of length 1 for what `shape` has behind it."""
    return mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))


def as_mask(name: str, mask: Leaf) -> NDArray[np.bool_]:
    """Return a mask of any library on the host, for which the host waits where it is a GPU's.

    Raises:
        TypeError: the mask is a tree, or its dtype is not bool.
    """
    if isinstance(mask, ArrayDict):
        raise TypeError(f"{name}: got a tree of {sorted(mask)}, expected one leaf of bool")
    values: NDArray[Any]
    if isinstance(mask, Array) and mask.side == "gpu":  # managed memory too: it may be behind
        values = to_host(mask.to_cupy())
    else:
        values = as_ndarray(mask)
    if values.dtype != np.bool_:
        raise TypeError(f"{name}: dtype {values.dtype}, expected bool: True for a valid row")
    return values

"""The first number of a batch that is NaN or infinite, for what learns from the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, Jagged, Leaf
from parllel.arrays.interop import side_of
from parllel.tree.agent_forms import N_BATCH, parts_of
from parllel.tree.array_dict import ArrayDict
from parllel.tree.dict_map import leaves_of
from parllel.tree.leaves import as_ndarray
from parllel.tree.path import TreePath, path_text
from parllel.tree.valid_rows import as_mask, over_agents

# Causes first: a reward that is NaN makes NaN of advantages.
_BRANCHES = ("observation", "action", "reward", "agent_info", "final_value", "return_", "advantage")


def refuse_not_finite(batch: ArrayDict) -> None:
    """Refuse a batch with an observation or a reward that is NaN or infinite, in host memory.

    Rows that nothing learns from are not looked at (`find_not_finite`), nor is memory of a GPU:
    there the loss has to tell.

    Raises:
        ValueError: the message names the first such leaf, row and environment.

    Example:
        >>> refuse_not_finite(ArrayDict({"reward": np.array([[0, np.nan]])}))
        Traceback (most recent call last):
        ValueError: batch: reward is nan in row t = 0 of environment 1; find out why ...
    """
    names = ("observation", "reward")
    leaves = [leaf for _, leaf in _floats(batch, names) if side_of(leaf) == "host"]
    if all(map(_is_finite, leaves)):
        return
    found = find_not_finite(batch, names)
    if found is not None:
        raise ValueError(
            f"batch: {found}; find out why the environment gave it, or replace it before (a"
            " transform, a wrapper)"
        )


def _is_finite(leaf: Leaf) -> bool:
    rows: Any = leaf  # Any: a leaf, or a tree of its parts
    if isinstance(leaf, Array) and leaf.row_writer is not None:
        rows = ArrayDict(leaf.row_parts())  # each frame once, not stacks
    return all(bool(np.isfinite(as_ndarray(part)).all()) for _, part in leaves_of(rows))


def find_not_finite(batch: ArrayDict, names: Sequence[str] = _BRANCHES) -> str | None:
    """Return where the first NaN or infinity among a batch's valid rows is; None if there is none.

    The observation of a row that is not valid counts where the valid step before did not end its
    episode: it is what followed that step. Entries of `env_info` may be NaN, and nothing learns
    from `final_value` but at steps that truncated an episode: these are not looked at. The host
    waits for what is in memory of a GPU.

    Example:
        >>> batch = ArrayDict({"reward": np.array([[0, 1], [2, np.inf]])})
        >>> find_not_finite(batch)
        'reward is inf in row t = 1 of environment 1'
    """
    for path, leaf in _floats(batch, names):
        values = _numbers(leaf)
        is_bad = ~np.isfinite(values)
        if not is_bad.any():
            continue
        valid = _mask_for("valid", batch, path, values)
        is_seen = path[0] == "observation" and valid is not None
        is_bad &= _over(values, _is_read(batch, path, values) if is_seen else valid)
        if path[0] == "final_value":
            is_bad &= _over(values, _is_bootstrapped(batch, path, values))
        if is_bad.any():
            first = np.unravel_index(int(is_bad.argmax()), is_bad.shape)
            t, b, *inner = map(int, first)
            element = f", element {tuple(inner)}" if inner else ""
            where = f"in row t = {t} of environment {b}{element}"
            return f"{path_text(path)} is {values[first]} {where}"
    return None


def _numbers(leaf: Leaf) -> NDArray[np.floating]:
    """Return a leaf's rows; elements of different lengths with zeros behind them."""
    values: object = as_ndarray(leaf)
    return values.padded()[0] if isinstance(values, Jagged) else values  # type: ignore[return-value]


def _floats(batch: ArrayDict, names: Sequence[str]) -> Iterator[tuple[TreePath, Leaf]]:
    for name in names:
        for path, leaf in leaves_of(batch[name]) if name in batch else ():
            dtype = leaf.dtype if isinstance(leaf, Array) else as_ndarray(leaf).dtype
            if np.issubdtype(dtype, np.floating):
                yield (name, *path), leaf


def _mask_for(
    name: str, batch: ArrayDict, path: TreePath, values: NDArray[np.floating]
) -> NDArray[np.bool_] | None:
    """Return the flags of a batch that belong to a leaf; None where there are no such flags.

    Flags of each agent belong to the leaves below the agent's name, or along their agent axis. Of
    a leaf of all agents together, a flag is set where it is for any of them.

    Args:
        name: of the flags.
        batch: the batch.
        path: the leaf's names.
        values: the leaf.
    """
    if name not in batch:
        return None
    masks = {
        agent: as_mask(path_text((name, *agent)), leaf)
        for agent, leaf in parts_of(batch[name]).items()
    }
    for agent, mask in masks.items():
        # Agents stand below a quantity's name, which may have two parts: `agent_info.value`.
        if agent and agent in (path[1 : 1 + len(agent)], path[2 : 2 + len(agent)]):
            return mask
        if not agent and values.shape[2 : mask.ndim] == mask.shape[2:]:
            return mask
    any_agent: NDArray[np.bool_] = np.logical_or.reduce(
        [mask.any(axis=tuple(range(N_BATCH, mask.ndim))) for mask in masks.values()]
    )
    return any_agent


def _is_read(batch: ArrayDict, path: TreePath, values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which observations a valid step was taken from or led to, bool [T + 1, B, ...]."""
    valid = _mask_for("valid", batch, path, values)
    assert valid is not None  # the caller has asked
    none, goes_on = np.zeros((1, *valid.shape[1:]), np.bool_), np.zeros_like(valid)
    flags = [_mask_for(name, batch, path, values) for name in ("terminated", "truncated")]
    if flags[0] is not None and flags[1] is not None:
        is_over = flags[0] | flags[1]
        goes_on = valid & ~over_agents(is_over, valid.shape)
    is_read: NDArray[np.bool_] = np.concatenate([valid, none])
    is_read[1:] |= goes_on
    return is_read[: len(values)]


def _is_bootstrapped(
    batch: ArrayDict, path: TreePath, values: NDArray[np.floating]
) -> NDArray[np.bool_] | None:
    flags = [_mask_for(name, batch, path, values) for name in ("truncated", "terminated")]
    if flags[0] is None or flags[1] is None:
        return None
    is_bootstrapped: NDArray[np.bool_] = flags[0] & ~flags[1]
    return is_bootstrapped


def _over(values: NDArray[np.floating], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return a mask of rows with axes of length 1 for what each row holds.

    Rows behind those of the mask count.
    """
    if mask is None:
        return np.ones((1,) * values.ndim, np.bool_)
    n_more = len(values) - len(mask)
    mask = np.concatenate([mask, np.ones((n_more, *mask.shape[1:]), np.bool_)])
    return mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))

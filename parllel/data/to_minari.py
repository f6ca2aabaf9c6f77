"""to_minari: the episodes of a ring as a new data set of Minari."""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from gymnasium import spaces

from parllel.data.minari_forms import (
    BRANCHES,
    check_finite,
    check_name,
    check_range,
    check_tree,
    fit_rows,
    has_leaves,
    members_of,
)
from parllel.replays import Episode, ReplayBuffer, episodes_of
from parllel.tree import ArrayDict, TreePath

if TYPE_CHECKING:
    from minari import MinariDataset

_logger = logging.getLogger(__name__)

Partial = Literal["drop", "keep"]
"""What becomes of episodes that a ring has only a part of."""


def to_minari(
    replay: ReplayBuffer,
    dataset_id: str,
    *,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    partial: Partial = "drop",
    metadata: Mapping[str, Any] | None = None,
) -> MinariDataset:
    """Write the episodes of a replay buffer's ring to a new data set of Minari, on this machine.

    Each episode has its true last observation. Numbers are those of the ring, in the dtypes of the
    spaces, and images are not compressed: `from_minari` gives the same bits back. Branches of
    the ring beside observations, actions, rewards and flags (`env_info`, `agent_info`) become
    `infos`, whose first row, that of the reset, is zero: a ring keeps no info of a reset. There is
    no seed in a ring, so the data set has none.

    The ring has the beginning of its oldest episodes no more, and the end of its newest ones not
    yet. They are left out, or kept as episodes of their own; how many is logged as a warning. The
    last step of a kept one that goes on is marked as truncated, as by a reset.

    Episodes are read and written one at a time, those of the first environment first. If anything
    fails, nothing of the data set is left behind.

    Args:
        replay: the buffer. It needs the final observations of episodes that terminated, too
            (`keep_terminated=True`).
        dataset_id: the data set's name, as in "cartpole/mixed-v0".
        observation_space, action_space: the spaces of an environment, as cages have them.
        partial: "drop" or "keep" episodes that the ring has only a part of.
        metadata: further arguments of `minari.create_dataset_from_buffers`, such as `env` (by
            which the environment can be made again), `author`, `description` or `data_format`.
            Minari warns of those that it recommends.

    Raises:
        ModuleNotFoundError: Minari is not installed; the message names the extra.
        RuntimeError: a batch is being written, or the buffer is closed.
        TypeError: `episodes_of` can't read the ring, or a space has no place in a data set.
        ValueError: the ring does not fit the spaces, which names the leaf; it has a NaN, or
            whole numbers that a space has not; there is no whole episode; the name is no data
            set's, or is taken; or as for `episodes_of`.
    """
    minari = _import_minari("to_minari")
    if partial not in get_args(Partial):
        raise ValueError(f"partial: got {partial!r}, expected one of {list(get_args(Partial))}")
    arguments = dict(metadata or {})
    if taken := sorted(arguments.keys() & {"dataset_id", "buffer", "jpeg_encoding"}):
        raise ValueError(f"metadata: got {taken}, which are decided here; leave them out")
    check_tree(replay, {"observation": observation_space, "action": action_space})
    episodes = _chosen(replay, partial)
    first = next(episodes, None)
    if first is None:
        raise ValueError(
            f"to_minari: the ring has {len(replay)} steps and no episode that is"
            f' {"whole" if partial == "drop" else "known"}; collect more, or partial="keep"'
        )
    folder = _new_folder(minari, dataset_id)  # late: another process may have made it meanwhile

    def buffers() -> Iterator[Any]:
        for episode in chain([first], episodes):
            yield _buffer_of(episode, observation_space, action_space)

    try:
        dataset: MinariDataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers(),  # read once, one after the other
            observation_space=observation_space,
            action_space=action_space,
            jpeg_encoding=False,
            **arguments,
        )
        return dataset
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _import_minari(needed_by: str) -> ModuleType:
    try:
        return importlib.import_module("minari")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{needed_by} needs {error.name!r}, which is not installed; run: pip install"
            " parllel[minari]",
            name=error.name,
        ) from error


def _new_folder(minari: ModuleType, dataset_id: str) -> Path:
    """Return the folder that a new data set will have; raise where there is one."""
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset_id: got {dataset_id!r}, expected a name and a version, as in"
            ' "cartpole/mixed-v0"'
        ) from error
    folder = Path(minari.storage.datasets_root_dir.get_dataset_path(dataset_id))
    if folder.exists():
        raise ValueError(
            f"dataset_id: {dataset_id!r} exists at {folder}; raise its version, or"
            " minari.delete_dataset it"
        )
    return folder


def _chosen(replay: ReplayBuffer, partial: Partial) -> Iterator[Episode]:
    """Yield the episodes to write; say at last how many are parts only."""
    n_parts = n_steps = 0
    for episode in episodes_of(replay):
        if not episode.is_whole:
            n_parts, n_steps = n_parts + 1, n_steps + len(episode.terminated)
            if partial == "drop":
                continue
        yield episode
    if n_parts:
        _logger.warning(
            "to_minari: %d steps of %d episodes that the ring has only a part of were %s",
            n_steps,
            n_parts,
            'left out; partial="keep" writes them' if partial == "drop" else "kept",
        )


def _buffer_of(
    episode: Episode, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Any:
    """Return an episode as Minari takes it."""
    from minari.data_collector import EpisodeBuffer

    truncated = episode.truncated.copy()
    truncated[-1] |= not episode.has_end
    infos = {name: branch for name, branch in episode.branches.items() if name not in BRANCHES}
    branches = episode.branches
    check_finite(("reward",), branches["reward"])
    return EpisodeBuffer(
        observations=_in_space(("observation",), observation_space, episode.observation),
        actions=_in_space(("action",), action_space, branches["action"]),
        rewards=branches["reward"],
        terminations=episode.terminated,
        truncations=truncated,
        infos={
            name: _info_of((name,), branch) for name, branch in infos.items() if has_leaves(branch)
        },
    )


def _in_space(path: TreePath, space: spaces.Space[Any], rows: Any) -> Any:  # Any: a tree or a leaf
    """Return rows [n, ...] in the form and the dtype of a space."""
    if (members := members_of(space)) is not None:
        parts = {name: _in_space((*path, name), part, rows[name]) for name, part in members.items()}
        return tuple(parts.values()) if isinstance(space, spaces.Tuple) else parts
    fitted = fit_rows(path, rows, rows.shape, np.dtype(space.dtype))
    check_range(path, space, fitted)
    return fitted


def _info_of(path: TreePath, branch: Any) -> Any:  # Any: a tree or a leaf
    """Return rows [n + 1, ...], the first of them zero."""
    check_name(path)
    if isinstance(branch, ArrayDict):
        parts = {name: part for name, part in branch.items() if has_leaves(part)}
        return {name: _info_of((*path, name), part) for name, part in parts.items()}
    return np.concatenate([np.zeros_like(branch[:1]), branch])

"""from_minari: the episodes of a data set of Minari in the ring of a replay buffer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from parllel.data.minari_forms import check_range, check_tree, fit_rows, has_leaves, members_of
from parllel.replays import ReplayBuffer
from parllel.replays.appended_step import check_final_obs
from parllel.tree import ArrayDict, TreePath, leaves_of, path_text

if TYPE_CHECKING:
    from minari import MinariDataset

_logger = logging.getLogger(__name__)


def from_minari(dataset: MinariDataset, replay: ReplayBuffer) -> None:
    """Write all episodes of a data set of Minari into a replay buffer's ring, one after the other.

    Each step that is flagged gets its true next observation, as the data set has it, also where it
    terminated. An episode whose last step has no flag is cut off there, which is logged as a
    warning: the step counts as truncated. Other branches of the tree than a data set has places for
    are looked for in its `infos`, with a first row for the reset, as `to_minari` and Minari's
    collector write them; `valid` becomes true.

    Args:
        dataset: what `minari.load_dataset` returns. Nothing in it is believed: lengths, shapes,
            dtypes and the range of whole numbers are compared with its spaces, and floats must be
            finite. 64-bit floats are rounded to a tree of 32 bits, as those of environments are.
        replay: a buffer of one environment, whose ring has room for all steps; these must be whole
            batches. `build_transition_tree(..., n_steps=dataset.total_steps)` makes such a tree.

    Raises:
        RuntimeError: a batch is being written, or the buffer is closed.
        TypeError: a space has no place in a ring of Arrays.
        ValueError: the spaces do not fit the tree, which names the leaf; the ring is too small, has
            several environments, or its batches don't fit; or an episode is not as described above.
            Batches that were whole by then stay, of which there are none if the ring is one batch.
    """
    places = {"observation": dataset.observation_space, "action": dataset.action_space}
    check_tree(replay, places)
    _check_room(replay, dataset.total_steps)
    begin = replay.steps.stop
    replay.restart()
    try:
        t = n_cut = 0
        for episode in dataset.iterate_episodes():
            rows, is_cut = _rows_of(episode, replay.samples, places)
            n_cut += is_cut
            t = _write(replay, rows, t)
        if t:
            raise ValueError(
                f"from_minari: got {dataset.total_steps} steps by the data set's own account, and"
                f" another number in its episodes; {t} steps of a batch of {replay.batch_T} are"
                " there, expected a whole one"
            )
    except BaseException:
        replay.restart()
        raise
    if replay.steps.start > begin:
        raise ValueError(
            f"from_minari: the first {replay.steps.start - begin} steps were lost while later ones"
            " were written: make the buffer with n_final_obs, the number of episodes, and a ring"
            " that is empty or longer"
        )
    if n_cut:
        _logger.warning(
            "from_minari: %d of %d episodes have no flag at their last step; it counts as"
            " truncated there",
            n_cut,
            dataset.total_episodes,
        )


def _check_room(replay: ReplayBuffer, n_steps: int) -> None:
    """Raise unless a number of steps is whole batches of one environment, and has room."""
    if replay.batch_B != 1:
        raise ValueError(
            f"from_minari: the ring has {replay.batch_B} environments, expected 1, whose episodes"
            " lie one after the other"
        )
    if not 0 < n_steps <= replay.full_size or n_steps % replay.batch_T:
        raise ValueError(
            f"from_minari: the data set has {n_steps} steps, expected 1 to {replay.full_size}"
            f" (full_size), in batches of {replay.batch_T} (T); build_transition_tree(...,"
            " n_steps=dataset.total_steps) makes a ring for them"
        )


def _rows_of(
    episode: Any, samples: ArrayDict, places: Mapping[str, spaces.Space[Any]]
) -> tuple[dict[str, Any], bool]:
    """Return the rows of an episode by branches, and whether it had no flag at its end.

    Args:
        episode: of Minari, from outside.
        samples: the sample tree, for the names and the dtypes of branches.
        places: the spaces of `observation` and `action`.
    """
    n = len(episode.rewards)
    flags = {"terminated": episode.terminations, "truncated": episode.truncations}
    try:
        rows = {
            "observation": _from_space(
                ("observation",), places["observation"], episode.observations, n + 1, samples
            ),
            "action": _from_space(("action",), places["action"], episode.actions, n, samples),
            "reward": fit_rows(("reward",), episode.rewards, (n,), np.dtype(np.float32)),
            **{name: fit_rows((name,), flag, (n,), np.dtype(bool)) for name, flag in flags.items()},
        }
        for name in samples:
            if name == "valid":
                rows[name] = np.ones(n, bool)
            elif name not in rows:
                rows[name] = _from_infos((name,), episode.infos or {}, n, samples[name])
    except ValueError as error:
        raise ValueError(f"from_minari: episode {episode.id} of {n} steps: {error}") from error
    is_cut = n > 0 and not (rows["terminated"][-1] or rows["truncated"][-1])
    if is_cut:
        rows["truncated"][-1] = True
    return rows, is_cut


def _from_space(
    path: TreePath, space: spaces.Space[Any], value: Any, n: int, samples: ArrayDict
) -> Any:
    """Return values [n, ...] of a data set in the form of the rows of a branch.

    Args:
        path: names of the branch.
        space: its space.
        value: what the data set has: an array, or arrays in dictionaries and tuples.
        n: number of values that there have to be.
        samples: the sample tree.
    """
    if (members := members_of(space)) is not None:
        is_tuple = isinstance(space, spaces.Tuple) and isinstance(value, tuple)
        parts = {str(number): part for number, part in enumerate(value)} if is_tuple else value
        if not isinstance(parts, Mapping) or parts.keys() != members.keys():
            got = sorted(parts) if isinstance(parts, Mapping) else f"a {type(value).__name__}"
            raise ValueError(f"{path_text(path)}: got {got}, expected {sorted(members)}")
        return {
            name: _from_space((*path, name), part, parts[name], n, samples)
            for name, part in members.items()
        }
    assert space.shape is not None
    leaf = samples
    for name in path:
        leaf = leaf[name]
    rows = fit_rows(path, value, (n, *space.shape), leaf.dtype)
    check_range(path, space, rows)
    return rows


def _from_infos(path: TreePath, infos: Mapping[str, Any], n: int, branch: Any) -> Any:
    """Return the rows of a branch out of infos, without that of the reset."""
    if isinstance(branch, ArrayDict):
        parts = infos.get(path[-1], {})
        parts = parts if isinstance(parts, Mapping) else {}
        return {
            name: _from_infos((*path, name), parts, n, part)
            for name, part in branch.items()
            if has_leaves(part)
        }
    if path[-1] not in infos:
        raise ValueError(
            f"{path_text(path)}: the data set's infos have no such entry but {sorted(infos)}; make"
            " the tree without this branch"
        )
    return fit_rows(path, infos[path[-1]], (n + 1, *branch.shape[2:]), branch.dtype, finite=False)[
        1:
    ]


def _write(replay: ReplayBuffer, rows: Mapping[str, Any], t: int) -> int:
    """Write the rows of an episode from step t of the batch on; return the step behind them."""
    n, begin = len(rows["reward"]), 0
    flagged = np.flatnonzero(rows["terminated"] | rows["truncated"])
    while begin < n:
        if t == 0:
            replay.begin_batch()
            replay.samples.rotate()
        count = min(replay.batch_T - t, n - begin)
        for name, branch in rows.items():
            n_rows = count + (name == "observation")
            for path, leaf in leaves_of(ArrayDict({name: branch})):
                target = replay.samples
                for each in path:
                    target = target[each]
                target[t : t + n_rows, 0] = leaf[begin : begin + n_rows]
        for step in flagged[(begin <= flagged) & (flagged < begin + count)].tolist():
            final = ArrayDict({"": rows["observation"]})[step + 1][""]
            at = t + step - begin
            check_final_obs(replay.samples["observation"][at], {0: final})
            replay.add_final_obs(at, {0: final})
        begin, t = begin + count, t + count
        if t == replay.batch_T:
            replay.end_batch()
            t = 0
    return t

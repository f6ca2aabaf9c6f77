"""NormalizeRewards: rewards divided by the deviation of discounted returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.kernels.array_checks import check_dtype
from parllel.kernels.moment_layout import N_KEPT, SCALE, count_copies
from parllel.ops.normalize import normalize
from parllel.ops.sides import copy_from_host, fill_rows
from parllel.transforms.agent_shares import Share, ShareKey, find_shares
from parllel.transforms.moments import Moments, over_ranks
from parllel.transforms.running_moments import RunningMoments
from parllel.transforms.running_returns import RunningReturns
from parllel.transforms.transform import contiguous_elements, elements, output_like
from parllel.tree import ArrayDict, TreePath, dict_map, path_text
from parllel.tree.agent_forms import agents_of, joined, part_for, parts_of
from parllel.tree.not_finite import find_not_finite
from parllel.tree.valid_rows import valid_of


class NormalizeRewards:
    """Divide `reward` by the standard deviation of the discounted returns that were seen.

    G[t] = reward[t] + discount * (1 - done[t - 1]) * G[t - 1],  done = terminated | truncated
    reward'[t] = clip(reward[t] / sqrt(variance + epsilon), -clip, clip)

    The variance is that of all G of all batches so far, this one included, from their mean. An
    episode that goes on from batch to batch carries its G on. Rows that the branch `valid` calls no
    transitions count for nothing, and the episode before them ends there. The tree keeps the
    environments' own rewards, and so does a replay buffer over it, which draws these: a transform
    is for what learns from batches.

    Returns are summed up in float32, and their moments merged in double precision. The host reads
    three numbers of each batch; of memory of a GPU it waits for them. A frozen object (`is_frozen`)
    reads nothing, and can be captured in a CUDA graph after a first call.

    Of several ranks (`parllel.ranks`), the moments are those of all: the ranks wait for each other
    once in each batch.

    Several agents, in dictionaries or with an agent axis: each has its own returns, moments and
    deviation, as in N runs of one agent; it counts where it is alive. With `per_agent=False` all
    agents' returns are counted together, and all rewards are divided by one deviation: so the
    agents of a team, or those that share a model, keep the proportions of their rewards.

    A runner saves the state with its own (`RLRunner.state_dict`), and calls `restart` where all
    environments were reset between two batches; a loop of your own does both itself.

    >>> batch = ArrayDict(
    ...     {
    ...         "reward": Array((2, 1), np.float32),
    ...         "terminated": Array((2, 1), bool),
    ...         "truncated": Array((2, 1), bool),
    ...     }
    ... )
    >>> batch["reward"][...] = [[4], [0]]  # G is 4 and 2, whose variance is 1
    >>> transform = NormalizeRewards(discount=0.5, epsilon=3.0)
    >>> transform(batch)["reward"].to_ndarray()[:, 0].tolist()
    [2.0, 0.0]
    >>> transform.moments.count, transform.deviation
    (2, 2.0)

    Args:
        discount: float in [0, 1], that of the values which are learned (`EstimateAdvantage`).
        clip: bound of the magnitude, more than 0; math.inf for none.
        epsilon: float, more than 0, added to the variance.
        per_agent: whether each of several agents has moments of its own.

    Attributes:
        is_frozen: whether batches change nothing: they are scaled by what was seen before, and
            their returns are not followed, so that these begin at 0 afterwards. It may be set.

    Raises:
        ValueError: a number is out of range.

    Source: Engstrom et al. 2020, arXiv:2005.12729, algorithm 1; with its reset and this epsilon,
        VecNormalize of Stable-Baselines3. gymnasium's NormalizeReward resets elsewhere.
    """

    def __init__(
        self,
        *,
        discount: float = 0.99,
        clip: float = 10.0,
        epsilon: float = 1e-8,
        per_agent: bool = True,
    ) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: got {discount}, expected a number in [0, 1]")
        for name, number in (("clip", clip), ("epsilon", epsilon)):
            if not number > 0:
                raise ValueError(f"{name}: got {number}, expected more than 0")
        self.is_frozen = False
        self._discount, self._clip, self._epsilon = discount, clip, epsilon
        self._per_agent = per_agent
        self._moments: dict[TreePath, Moments] = {}  # by agents' names; () for all together
        self._returns: dict[TreePath, RunningReturns] = {}
        self._batch_moments: dict[ShareKey, RunningMoments] = {}
        self._scalings: dict[TreePath, Scaling] = {}
        self._normalized: dict[TreePath, Array] = {}

    @property
    def moments(self) -> Any:  # Any: Moments, or a tree of them
        """Moments of all returns that were seen, float64: of an agent axis [N], by names of agents.

        Before the first batch they are those of one agent.
        """
        return joined(self._moments or {(): _nothing()})

    @property
    def deviation(self) -> Any:  # Any: a float, an array, or a tree of them
        """What rewards are divided by, as `moments`: a float, or float64 [N]."""
        return dict_map(self._deviation, self.moments)

    def _deviation(self, moments: Moments) -> float | NDArray[np.float64]:
        deviation = np.sqrt(moments.variance + self._epsilon)
        return deviation if np.ndim(deviation) else float(deviation)

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the new `reward`, overwritten by the next call.

        Args:
            batch: a tree with float32 [T, B] or [T, B, N] `reward`, bool [T, B] or [T, B, N]
                `terminated` and `truncated`, and such a `valid` or none; each may be a dictionary
                by agents. The host works on all of them, or a GPU does.

        Raises:
            ValueError: a reward is NaN or infinite, or so large that its square is; a leaf has
                another dtype or shape, or there are other environments than before. What was seen
                is what it was.
        """
        rewards = parts_of(batch["reward"])
        for path, reward in rewards.items():
            check_dtype(path_text(("reward", *path)), reward, np.float32)
        if self.is_frozen:
            self.restart()
        else:
            self._see(batch, rewards)
        results = {}
        for path, reward in rewards.items():
            out = results[path] = output_like(reward, self._normalized.get(path))
            scaling = self._scalings.setdefault(path, Scaling())
            moments = self._moments.get(path if self._per_agent else (), _nothing())
            normalize(
                contiguous_elements(reward),
                elements(scaling.like(reward, 1 / self._deviation(moments))),
                low=-self._clip,
                high=self._clip,
                out_values=elements(out),
            )
        self._normalized = results
        return batch.with_branches({"reward": joined(results)})

    def restart(self) -> None:
        """Begin all returns at 0 again: the environments were reset. Moments stay."""
        for returns in self._returns.values():
            returns.restart()

    def merge(self, *others: NormalizeRewards) -> None:
        """Add what others have seen, as in other runs, to what this one has; they keep theirs.

        Raises:
            ValueError: another one has seen other agents.
        """
        for other in others:
            if self._moments and other._moments and self._moments.keys() != other._moments.keys():
                found, own = ([path_text(path) for path in each._moments] for each in (other, self))
                raise ValueError(f"merge: got moments of agents {found}, expected those of {own}")
        for other in others:
            for path, moments in other._moments.items():
                self._moments[path] = self._moments.get(path, _nothing()).merged(moments)

    def state_dict(self) -> dict[str, Any]:  # Any: numbers, and an array or None
        """Return the moments, and where the next batch begins, on the host.

        The host waits where that lives in memory of a GPU. Of several agents in dictionaries,
        `agents` has the same for each.
        """
        begins = {path: returns.begin_on_host() for path, returns in self._returns.items()}
        if not (paths := {*self._moments, *begins} - {()}):
            return {**_saved(self._moments.get((), _nothing())), "begin": begins.get(())}
        agents = [
            {
                "path": path,
                **_saved(self._moments.get(path, _nothing())),
                "begin": begins.get(path),
            }
            for path in sorted(paths | self._moments.keys())
        ]
        return {"agents": agents}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an object was when `state_dict` was called, in any kind of memory.

        Raises:
            KeyError: an entry is missing.
        """
        loaded, returns = {}, {}
        for each in state.get("agents", [{"path": (), **state}]):
            path = tuple(each["path"])
            mean, m2 = (_as_saved(each[name]) for name in ("mean", "m2"))
            count = np.asarray(each["count"])
            if count.any():
                loaded[path] = Moments(count if count.ndim else int(count), mean, m2)
            returns[path] = RunningReturns(self._discount, each["begin"])
        self._moments, self._returns = loaded, returns

    def _see(self, batch: ArrayDict, rewards: Mapping[TreePath, Array]) -> None:
        """Take a batch's returns into the moments, or leave all as it was and raise."""
        valid = {path: valid_of(batch, path, agents_of(leaf)) for path, leaf in rewards.items()}
        summed = {}
        for path, reward in rewards.items():
            terminated, truncated = (
                part_for(name, batch[name], path) for name in ("terminated", "truncated")
            )
            returns = self._returns.setdefault(path, RunningReturns(self._discount))
            summed[path] = returns.sum(reward, terminated, truncated, valid[path])
        seen = self._find_moments(find_shares(summed, valid, per_agent=self._per_agent))
        for moments in seen.values():
            if not np.isfinite([moments.mean, moments.m2]).all():
                found = find_not_finite(batch, ("reward",)) or "the squares of returns overflow"
                raise ValueError(
                    f"batch: {found}; its moments would be NaN. Find out why the environment gave"
                    " it, or replace it before (a transform, a wrapper)"
                )
        for path, moments in over_ranks("moments of returns", seen).items():
            self._moments[path] = self._moments.get(path, _nothing()).merged(moments)
        for path in summed:
            self._returns[path].keep()

    def _find_moments(self, shares: Sequence[Share]) -> dict[TreePath, Moments]:
        """Return the moments of a batch by agents' names; the host waits for those of a GPU."""
        own = {}
        for share in shares:
            kept = self._batch_moments.get(share.key)
            if kept is None or not share.fits(kept):
                kept = RunningMoments(share.rows, feature_shape=share.agents)
                self._batch_moments[share.key] = kept
            own[share.key] = kept
        for kept in own.values():
            kept.reset()
        for share in shares:
            own[share.key].update(share.rows, valid=share.valid)
        by_path: dict[TreePath, list[Moments]] = {}
        for (path, _), kept in own.items():
            by_path.setdefault(path, []).append(Moments.of(kept))
        are_single = {path: at == () for path, at in own}
        return {
            path: each[0] if are_single[path] else Moments(*map(np.array, zip(*each, strict=True)))
            for path, each in by_path.items()
        }


class Scaling:
    """Moments for `ops.normalize` that scale rewards and shift nothing."""

    def __init__(self) -> None:
        self._kept: Array | None = None
        self._scale: Any = None  # Any: what `_kept` holds, a float or float64 [N]

    def like(self, reward: Array, scale: float | NDArray[np.float64]) -> Array:
        """Return the moments in the rewards' kind of memory, overwritten by the next call.

        Args:
            reward: float32 [T, B, ...].
            scale: the factor of all rewards, or of each agent [N] of the axis behind the batch.
        """
        agents = np.shape(scale)
        if self._kept is None or (self._kept.storage, self._kept.shape[2:]) != (
            reward.storage,
            agents,
        ):
            self._kept, self._scale = scaling_like(reward, agents), None
        if not np.array_equal(scale, self._scale):
            if agents:
                rows = elements(self._kept)[SCALE]
                copy_from_host(
                    np.broadcast_to(scale, rows.shape).astype(np.float32, order="C"), out=rows
                )
            else:
                fill_rows((SCALE,), float(scale), out=elements(self._kept))
            self._scale = scale
        return self._kept


def scaling_like(reward: Array, agents: tuple[int, ...] = ()) -> Array:
    """Return moments for `ops.normalize` that leave a number as it is: mean 0 and scale 1.

    Args:
        reward: float32 [T, B, ...], for its kind of memory.
        agents: trailing dimensions of rewards that have scales of their own.
    """
    shape = (N_KEPT, count_copies(math.prod(agents)))
    kept = reward.new_array(batch_shape=shape, feature_shape=agents, padding=0, full_size=N_KEPT)
    kept[SCALE] = 1
    return kept


def _nothing() -> Moments:
    return Moments(0, np.float64(0), np.float64(0))


def _saved(moments: Moments) -> dict[str, Any]:  # Any: numbers or arrays
    return {
        name: value if np.ndim(value) else value.item() if hasattr(value, "item") else value
        for name, value in moments._asdict().items()
    }


def _as_saved(value: Any) -> Any:  # Any: a float64 of NumPy, or an array of them
    return np.array(value, np.float64) if np.ndim(value) else np.float64(value)

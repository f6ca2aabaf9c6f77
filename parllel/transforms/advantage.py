"""EstimateAdvantage and NormalizeAdvantage: the weights of a policy gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from parllel.arrays import Array
from parllel.arrays.readable import Place, are_at
from parllel.cuda import AnyArray
from parllel.ops.advantage import prepare_advantage
from parllel.ops.sides import contiguous, fill_rows
from parllel.ops.valid_steps import clear_steps, cut_episodes
from parllel.ranks import n_ranks
from parllel.transforms.agent_shares import Share, ShareKey, find_shares
from parllel.transforms.moments import Moments, over_ranks
from parllel.transforms.running_moments import RunningMoments
from parllel.transforms.spread_flags import SpreadFlags
from parllel.transforms.transform import (
    as_columns,
    elements,
    output_like,
    refuse_moving,
    side_of_leaves,
)
from parllel.tree import ArrayDict, TreePath
from parllel.tree.agent_forms import agents_of, joined, part_for, parts_of
from parllel.tree.valid_rows import valid_beside, valid_of

_QUANTITIES = ("reward", "agent_info.value", "terminated", "truncated", "final_value")


class EstimateAdvantage:
    """Add `advantage` and `return_` to a batch: generalized advantage estimates, float32 [T, B].

    An episode that was truncated at step t is bootstrapped with `final_value[t]`, the value of
    its own last observation; one that goes on after the batch with row T of `agent_info.value`.

    Where the batch has a branch `valid`, rows that are no transitions get 0 in both. An episode
    that such a row cuts off is bootstrapped with `agent_info.value` of that row.

    Several agents: all branches have an agent axis [T, B, N], or are dictionaries by agents, and
    so are the results. Each agent has its own rewards, values and episodes: the estimates are
    those of N batches of one agent, bit for bit. Flags and `valid` may be one [T, B] for all
    agents. Rows in which an agent is not alive are those that `valid` names.

    In device and managed memory it is one launch in the caller's current stream, or three of 256
    steps or more in few environments, and two more with a branch `valid`; nothing waits for them.
    Of dictionaries it is as many for each agent; flags for all of an agent axis are another one. A
    call after the first one can be captured in a CUDA graph, of a batch whose window stays where it
    is (`full_size` of T). `valid` in memory of the host is copied, which can't be captured.

    >>> import numpy as np
    >>> batch = ArrayDict(
    ...     {
    ...         "reward": Array((3, 1), np.float32),
    ...         "terminated": Array((3, 1), bool),
    ...         "truncated": Array((3, 1), bool),
    ...         "final_value": Array((3, 1), np.float32),
    ...         "agent_info": {"value": Array((3, 1), np.float32, padding=1)},
    ...     }
    ... )
    >>> batch["reward"][...] = 1
    >>> batch["terminated"][1] = True  # the first episode ends with the second step
    >>> batch = EstimateAdvantage(discount=0.5, gae_lambda=1.0)(batch)
    >>> batch["return_"].to_ndarray()[:, 0].tolist()
    [1.5, 1.0, 1.0]

    Args:
        discount: float in [0, 1], of rewards for each step.
        gae_lambda: lambda of the paper, in [0, 1]: 0 takes one reward and a value, 1 all rewards.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """

    def __init__(self, *, discount: float = 0.99, gae_lambda: float = 0.95) -> None:
        for name, number in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= number <= 1:
                raise ValueError(f"{name}: got {number}, expected a number in [0, 1]")
        self._discount, self._gae_lambda = discount, gae_lambda
        self._estimates: dict[TreePath, _Estimate] = {}  # by the agents' names

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with `advantage` and `return_`, overwritten by the next call.

        Args:
            batch: a tree with float32 [T, B] `reward`, `final_value` and `agent_info.value`, which
                has a row T of padding; and bool [T, B] `terminated` and `truncated`. The host
                works on all of them, or a GPU does. `valid`, bool [T, B], may be there or not. Of
                several agents, each is a dictionary of such leaves, or has an agent axis.

        Raises:
            ValueError: quantities have other agents than `reward`, or other dtypes or shapes.
        """
        quantities = (
            batch["reward"],
            batch["agent_info"]["value"],
            batch["terminated"],
            batch["truncated"],
            batch["final_value"],
        )
        last = self._estimates.get(())  # of one leaf, for which looking is half of the time
        if last is not None and "valid" not in batch and (again := last.repeat(quantities)):
            return batch.with_branches({"advantage": again[0], "return_": again[1]})
        advantage, return_ = {}, {}
        for path, reward in parts_of(quantities[0]).items():
            named = zip(_QUANTITIES, quantities, strict=True)
            leaves = [part_for(name, quantity, path) for name, quantity in named]
            estimate = self._estimates.get(path)
            if estimate is None:
                estimate = _Estimate(self._discount, self._gae_lambda)
                self._estimates[path] = estimate
            valid = valid_beside(batch, path, reward)
            advantage[path], return_[path] = estimate(leaves, valid)
        return batch.with_branches({"advantage": joined(advantage), "return_": joined(return_)})


class _Estimate:
    """The estimates of one leaf of rewards, [T, B] or [T, B, N], in memory of its own.

    Args:
        discount, gae_lambda: as for `EstimateAdvantage`.
    """

    def __init__(self, discount: float, gae_lambda: float) -> None:
        self._discount, self._gae_lambda = discount, gae_lambda
        self._advantage: Array | None = None
        self._return: Array | None = None
        self._truncated: Array | None = None  # these two where rows are not valid
        self._final_value: Array | None = None
        self._prepared: _Prepared | None = None

    def __call__(self, leaves: Sequence[Array], valid: Array | None) -> tuple[Array, Array]:
        """Return advantages and returns, overwritten by the next call.

        Args:
            leaves: reward, value, terminated, truncated and final_value.
            valid: the rows that are transitions, of all agents or of each; None for all rows.
        """
        refuse_moving("reward", leaves[0])
        if valid is not None:
            refuse_moving("valid", valid)
            leaves = [*leaves, valid]
        if self._prepared is None or not self._prepared.is_for(leaves):
            return self._estimate(leaves)
        self._prepared.run()
        return self._prepared.results

    def repeat(self, quantities: Sequence[object]) -> tuple[Array, Array] | None:
        """Return what a call does, of the very Arrays of the last one where they were; else None.

        Args:
            quantities: leaves as a call takes them, or trees of leaves.
        """
        prepared = self._prepared
        if prepared is None or not prepared.is_of(quantities):
            return None
        refuse_moving("reward", prepared.leaves[0])
        prepared.run()
        return prepared.results

    def _estimate(self, leaves: Sequence[Array]) -> tuple[Array, Array]:
        """Return the results, and keep what a batch at the same places needs no more.

        Args:
            leaves: reward, value, terminated, truncated, final_value and, where some rows may be no
                transitions, valid.
        """
        reward, value, *others = leaves
        inputs = {"reward": reward, "value": value[: len(value) + 1]}
        inputs |= dict(
            zip(("terminated", "truncated", "final_value", "valid"), others, strict=False)
        )
        side_of_leaves(**inputs)
        _check_agents(inputs)
        flags = [name for name, leaf in inputs.items() if leaf.dtype == np.bool_]
        spread = SpreadFlags([inputs[name] for name in flags], like=reward)
        inputs |= dict(zip(flags, spread.flags, strict=True))
        self._advantage = output_like(reward, self._advantage)
        self._return = output_like(reward, self._return)
        results = self._advantage, self._return
        given = {name: elements(leaf) for name, leaf in inputs.items()}
        arrays = {name: as_columns(contiguous(array)) for name, array in given.items()}
        outputs = {
            "out_advantage": as_columns(elements(self._advantage)),
            "out_return": as_columns(elements(self._return)),
        }
        steps: list[Callable[[], None]] = [spread]
        valid = arrays.pop("valid", None)
        if valid is not None:
            cut = self._cut(inputs["truncated"], inputs["final_value"])
            read = {name: array for name, array in arrays.items() if name != "reward"}
            steps.append(partial(cut_episodes, valid, **read, **cut))
            arrays |= {"truncated": cut["out_truncated"], "final_value": cut["out_final_value"]}
        estimate = prepare_advantage(
            **arrays, discount=self._discount, gae_lambda=self._gae_lambda, **outputs
        )
        steps.append(estimate)
        if valid is not None:
            steps.append(partial(clear_steps, valid, **outputs))

        def run() -> None:
            for step in steps:
                step()

        sources = [*given.values(), *(elements(leaf) for leaf in others)]
        are_read = all(array.flags.c_contiguous for array in sources)
        run()
        self._prepared = _Prepared.of(leaves, run, results) if are_read else None
        return results

    def _cut(self, truncated: Array, final_value: Array) -> dict[str, AnyArray]:
        """Return memory for flags and values that end episodes before rows that are not valid."""
        self._truncated = output_like(truncated, self._truncated)
        self._final_value = output_like(final_value, self._final_value)
        return {
            "out_truncated": as_columns(elements(self._truncated)),
            "out_final_value": as_columns(elements(self._final_value)),
        }

    def __getstate__(self) -> dict[str, Any]:  # Any: as the attributes
        """Return the attributes for a copy, which prepares arrays over its own memory."""
        return {**self.__dict__, "_prepared": None}


def _check_agents(leaves: Mapping[str, Array]) -> None:
    """Raise ValueError where a leaf has another agent axis than the reward."""
    agents = agents_of(leaves["reward"])
    for name, leaf in leaves.items():
        allowed = [agents, ()] if leaf.dtype == np.bool_ else [agents]
        if agents_of(leaf) not in allowed:
            raise ValueError(
                f"{name}: shape {leaf.shape}, expected the agents {agents} of reward behind T and"
                " B; a quantity of each agent has the axis that the others have"
            )


class _Prepared(NamedTuple):
    """An estimate with all its arguments, for leaves that lie where these lay."""

    leaves: Sequence[Array]
    arrays: Sequence[Array]  # the leaves and the outputs
    places: Sequence[Place]  # of all of these
    run: Callable[[], None]
    results: tuple[Array, Array]

    @classmethod
    def of(
        cls, leaves: Sequence[Array], run: Callable[[], None], results: tuple[Array, Array]
    ) -> _Prepared | None:
        """Return it; None where a leaf has no place that is read without a copy."""
        arrays = (*leaves, *results)
        places = [place for place in (each.place for each in arrays) if place is not None]
        return cls(leaves, arrays, places, run, results) if len(places) == len(arrays) else None

    def is_for(self, leaves: Sequence[Array]) -> bool:
        """Tell whether these leaves, and the outputs, are where they were, in open memory."""
        return are_at((*leaves, *self.results), self.places)

    def is_of(self, quantities: Sequence[object]) -> bool:
        """Tell whether these are the very leaves, and no others, and `is_for` holds of them."""
        are_same = len(quantities) == len(self.leaves) and all(map(is_, quantities, self.leaves))
        return are_same and are_at(self.arrays, self.places)


class NormalizeAdvantage:
    """Replace `advantage` by values of mean 0 and standard deviation 1 over the batch.

    Where the batch has a branch `valid`, mean and deviation are those of the valid rows, and the
    others become 0.

    Of several agents, in a dictionary or with an agent axis, each has its own mean and deviation,
    of the rows in which it is alive: so an agent with small rewards learns as fast as one with
    large rewards, and the results are those of N batches of one agent (bit for bit of a
    dictionary; of an axis, sums are rounded in another order). With `per_agent=False` there is one
    mean and deviation for all agents together.

    Of several ranks (`parllel.ranks`), mean and deviation are those of the advantages of all: they
    are exchanged once for each batch, for which the host waits, also for memory of a GPU.

    In device and managed memory it is three launches in the caller's current stream (four for
    more than 8,000 advantages); nothing waits for them. Of dictionaries it is as many for each
    agent, and so it is of an axis whose agents are alive in different rows, with two copies more. A
    branch `valid` there is read once for each batch, for which the host waits; without it, a call
    after the first one can be captured in a CUDA graph. Equal advantages become zeros.

    >>> import numpy as np
    >>> batch = ArrayDict({"advantage": Array((2, 2), np.float32)})
    >>> batch["advantage"][0] = 4
    >>> NormalizeAdvantage()(batch)["advantage"].to_ndarray().tolist()
    [[1.0, 1.0], [-1.0, -1.0]]

    Args:
        epsilon: float, 0 or more, added to the standard deviation.
        per_agent: whether each of several agents has a mean and deviation of its own.

    Raises:
        ValueError: epsilon is negative.
    """

    def __init__(self, *, epsilon: float = 1e-8, per_agent: bool = True) -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon: got {epsilon}, expected 0 or more")
        self._epsilon, self._per_agent = epsilon, per_agent
        self._moments: dict[ShareKey, RunningMoments] = {}
        self._normalized: dict[TreePath, Array] = {}

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with the new `advantage`, overwritten by the next call.

        Args:
            batch: a tree with `advantage`, float32 [T, B] or [T, B, N], or a dictionary of such;
                and `valid`, bool [T, B] or in the form of `advantage`, or none.
        """
        advantages = parts_of(batch["advantage"])
        valid = {
            path: valid_of(batch, path, agents_of(leaf), tells_all=n_ranks() > 1)
            for path, leaf in advantages.items()
        }
        shares = find_shares(advantages, valid, per_agent=self._per_agent)
        own = {share.key: self._moments_of(share) for share in shares}
        for moments in own.values():
            moments.reset()
        for share in shares:
            own[share.key].update(share.rows, valid=share.valid)
        if n_ranks() > 1:
            found = {key: Moments.of(moments) for key, moments in own.items()}
            for key, together in over_ranks("moments of advantages", found).items():
                together.give_to(own[key])
        results = {path: self._output_like(path, leaf) for path, leaf in advantages.items()}
        for share in shares:
            share.write(own[share.key], results[share.path])
        for path, mask in valid.items():
            if mask is not None and not mask.all():
                fill_rows(np.nonzero(~mask), 0, out=elements(results[path]))
        return batch.with_branches({"advantage": joined(results)})

    def _moments_of(self, share: Share) -> RunningMoments:
        """Return the moments that a share of the advantages belongs to."""
        kept = self._moments.get(share.key)
        if kept is None or not share.fits(kept):
            kept = RunningMoments(share.rows, epsilon=self._epsilon, feature_shape=share.agents)
            self._moments[share.key] = kept
        return kept

    def _output_like(self, path: TreePath, leaf: Array) -> Array:
        self._normalized[path] = output_like(leaf, self._normalized.get(path))
        return self._normalized[path]

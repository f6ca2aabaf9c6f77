"""HindsightReplayBuffer: transitions that are drawn with goals which were achieved later (HER)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, SupportsFloat

import numpy as np

from parllel.ops.hindsight import STRATEGIES, Strategy, draw_goals
from parllel.ops.transitions import DrawState
from parllel.replays.hindsight_memory import (
    GoalFunction,
    GoalFunctions,
    HindsightMemory,
    check_goals,
)
from parllel.replays.random_shift import RandomShift
from parllel.replays.replay_buffer import ReplayBuffer
from parllel.replays.transition_memory import TransitionMemory
from parllel.tree import ArrayDict

_STRATEGY, _FLAG = "strategy", "has_compute_terminated"  # of saved settings


class HindsightReplayBuffer(ReplayBuffer):
    """Draw transitions as if what was achieved later had been the goal (HER).

    Observations are trees with the branches `achieved_goal` and `desired_goal`, as those of
    gymnasium_robotics' GoalEnv, and any others. A transition of one step is drawn as by
    `ReplayBuffer`. The first `round(fraction * batch_size)` of each minibatch then get another
    goal: that which is achieved in the observation after a step of the same episode, each such
    step with the same probability. It is written over `desired_goal` of `observation` and of
    `next_observation`, and the reward is computed anew. The rest of the minibatch stays as it was
    collected. All of its transitions are drawn independently of each other, so that it makes no
    difference which ones get other goals.

    The steps of an episode are those of which goals may be: as far as they are in the ring, and up
    to the last one written where the episode is not over yet. A step that is not valid ends them.

    The observation after the last step of an episode may be the one that achieves most. So final
    observations are kept of episodes that terminated, too (`keeps_terminated`): samplers give them
    by themselves, and `append` demands them. A step whose final observation was not given by
    `add_final_obs` is not drawn, nor is its goal. `n_final_obs` counts all ends of episodes.

    Transitions have one step: the rewards of the further ones would have to be computed anew, too.

    Args:
        samples: as for `ReplayBuffer`, with such observations. Goals may be trees. Both have the
            same leaves, of the same shapes and dtypes, and are no stacks of frames.
        rng: as for `ReplayBuffer`. Goals are a function of the same key and number.
        compute_reward: function of the achieved and the desired goals, tensors [n, ...] or trees
            of them, which are not to be written. The achieved ones are those of
            `next_observation`. It returns rewards, float32 [n], by torch's functions alone, so
            that it works on any device, and in a thread where a `Prefetcher` draws.
        compute_terminated: function of the same, which returns whether the episode ends there,
            bool [n]. None where that does not depend on the goal: flags stay what they are.
        strategy: which steps goals may be of: "future" for the transition's own step and all later
            ones, "final" for the last of these alone, "episode" for the steps before, too. The
            time of a draw grows with the number of these steps, of which the flags are read.
        fraction: part of a minibatch that gets other goals, in [0, 1]. The paper's k other goals
            for each transition are a fraction of k / (k + 1).
        discount, n_final_obs, shift: as for `ReplayBuffer`. Images of goals can't be shifted.

    Raises:
        TypeError: a function can't be called, or as for `ReplayBuffer`.
        ValueError: observations have no such goals; a number is out of range, or the strategy is
            another one; or as for `ReplayBuffer`.
        MemoryError: as for `ReplayBuffer`.

    Source: Andrychowicz et al. 2017, arXiv:1707.01495, section 3.3 and algorithm 1.

    >>> from parllel import Array
    >>> goal = {"padding": 1, "full_size": 4}
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": {
    ...             "achieved_goal": Array((2, 1), np.float32, **goal),
    ...             "desired_goal": Array((2, 1), np.float32, **goal),
    ...         },
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> replay = HindsightReplayBuffer(
    ...     samples,
    ...     rng=np.random.default_rng(0),
    ...     compute_reward=lambda achieved, desired: (achieved == desired).float() - 1,
    ...     compute_terminated=None,
    ...     fraction=1.0,
    ... )
    >>> replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    >>> for achieved in (1, 2):
    ...     observation = {"achieved_goal": [achieved], "desired_goal": [9]}
    ...     replay.append(observation, reward=[-1], terminated=[False], truncated=[False])
    >>> minibatch = replay.sample(64)
    >>> minibatch["observation"]["desired_goal"].unique(), minibatch["reward"].unique()
    (tensor([1., 2.]), tensor([-1.,  0.]))
    """

    keeps_terminated = True
    _takes_agents: ClassVar[bool] = False  # a goal is one agent's
    _takes_stacks_of_agents: ClassVar[bool] = False
    _keeps_breaks: ClassVar[bool] = True
    _setting_names: ClassVar[tuple[str, ...]] = (
        *ReplayBuffer._setting_names,
        "fraction",
        _STRATEGY,
        _FLAG,
    )

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        compute_reward: GoalFunction,
        compute_terminated: GoalFunction | None,
        strategy: Strategy = "future",
        fraction: float = 0.8,
        discount: float = 0.99,
        n_final_obs: int | None = None,
        shift: RandomShift | None = None,
    ) -> None:
        self._functions = GoalFunctions(compute_reward, compute_terminated)
        for name, function in self._functions._asdict().items():
            if not callable(function) and (function is not None or name == "compute_reward"):
                raise TypeError(
                    f"{name}: got a {type(function).__name__}, expected a function of the achieved"
                    " and the desired goals"
                )
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy: got {strategy!r}, expected one of {list(STRATEGIES)}")
        if not isinstance(fraction, SupportsFloat):
            raise TypeError(f"fraction: got {fraction!r}, expected a number in [0, 1]")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction: got {fraction}, expected a number in [0, 1]")
        self.strategy, self.fraction = strategy, float(fraction)  # what JSON can hold
        super().__init__(
            samples,
            rng=rng,
            discount=discount,
            n_final_obs=n_final_obs,
            shift=shift,
            keep_terminated=True,
        )
        check_goals(samples, self._sources)

    # Read by an algorithm

    def sample(self, batch_size: int) -> ArrayDict:
        """Return a minibatch as `ReplayBuffer.sample` does, the first part of it with other goals.

        On a device it is four launches in the caller's current stream, beside those of the
        functions: the draw, the draw of goals, and a gather for each. If the functions wait for
        nothing, neither does the host, and all can be captured in a CUDA graph.

        Of the first `round(fraction * batch_size)` transitions these branches are other ones than
        the sampler wrote: `desired_goal` of `observation` and of `next_observation`; `reward` and
        `n_step_return`, both what `compute_reward` returned; and `terminated` and
        `n_step_discount`, where there is `compute_terminated`. A branch like `env_info` that knows
        of the goal stays what it was.

        Args:
            batch_size: number of transitions.

        Raises:
            RuntimeError, ValueError: as for `ReplayBuffer.sample`; or none of so few transitions
                would get another goal, though the fraction is not 0.
            TypeError, ValueError: a function returns no tensor, or one of another shape, dtype or
                device; or, in host memory, a reward that is NaN or infinite. Or an operation of
                torch in it has written to the goals.
        """
        return super().sample(batch_size)

    def make_memory(self, batch_size: int, storage: str | None = None) -> HindsightMemory:
        """Return memory for `sample_into`.

        Args:
            batch_size: number of transitions.
            storage: kind of the memory; by default the kind that `sample` uses.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
        n_relabelled = round(self.fraction * batch_size)
        if not n_relabelled and self.fraction:
            raise ValueError(
                f"batch_size: got {batch_size}, of which a fraction of {self.fraction} is no"
                " transition, so that none would ever get another goal; draw more at once"
            )
        return HindsightMemory(
            self._sources,
            batch_size,
            storage or self.storage,
            n_relabelled=n_relabelled,
            functions=self._functions,
            discount=self.discount,
        )

    def _draw(self, outputs: TransitionMemory, state: DrawState) -> int:
        assert isinstance(outputs, HindsightMemory)  # of `make_memory`
        n_missing = super()._draw(outputs, state)
        if not n_missing and len(outputs.code):
            draw_goals(
                self._ring,
                state,
                self.strategy,
                identity=outputs.identity,
                out_code=outputs.code,
            )
        return n_missing

    def _explain_nothing(self) -> str:
        return (
            "replay: no transition can be sampled: each one has a step that is not valid, or ends"
            " an episode whose final observation was not given (add_final_obs), that of a"
            " termination too"
        )

    # Saved and resumed

    @classmethod
    def open(  # type: ignore[override]  # no save holds a function, so they are given again
        cls,
        folder: str | Path,
        *,
        compute_reward: GoalFunction,
        compute_terminated: GoalFunction | None,
    ) -> Self:
        """Return a saved buffer over the files of its ring, as `ReplayBuffer.open` does.

        Args:
            folder: where it was saved.
            compute_reward, compute_terminated: the functions that the buffer had, which are not
                saved. It goes on as if nothing had been in between if they are the same ones.

        Raises:
            FileNotFoundError, KeyError, ValueError: as for `ReplayBuffer.open`; or there is a
                `compute_terminated` where the buffer had None, or the other way round.
        """
        functions = GoalFunctions(compute_reward, compute_terminated)
        return cls._open(folder, functions._asdict())

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "fraction": self.fraction,
            _STRATEGY: STRATEGIES.index(self.strategy),
            _FLAG: int(self._functions.compute_terminated is not None),
        }

    @classmethod
    def _as_arguments(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        arguments = super()._as_arguments(settings)
        for name in ("n_steps", _FLAG):  # compared when the buffer is made
            del arguments[name]
        return {**arguments, _STRATEGY: STRATEGIES[arguments[_STRATEGY]]}

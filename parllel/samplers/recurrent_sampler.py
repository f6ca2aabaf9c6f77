"""RecurrentSampler: collects batches for agents that keep a state for each environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from parllel.cages import Cage, as_tree
from parllel.samplers.agent import RecurrentActor, check_rows, has_receive_reward
from parllel.samplers.basic_sampler import BasicSampler
from parllel.samplers.group import Group
from parllel.samplers.recorder import Recorder
from parllel.tree import ArrayDict, Rows


class RecurrentSampler(BasicSampler):
    """Collect the batches of `BasicSampler` with an agent that keeps a state.

    Episodes go on from batch to batch and begin anew within a batch, and every row is kept. Where
    an episode ends at step t, the agent's state of that environment is put back before step
    t + 1. A learner that runs the model over the batch has to do the same, and begins with the
    state before the first row:

    - `initial_rnn_state[b]`: the agent's state before step 0.
    - `bootstrap_value[b]`, where the tree has it: value of the observation after the batch, given
      the state after it (that of a new episode where the last step ended one).
    - `valid[t, b]`, where the tree has it: whether the row is a transition to learn from.
    - `final_value` and the row after `agent_info.value`: as for `BasicSampler`; the value of a
      final observation is estimated with the state that saw its episode.

    An agent with a method `receive_reward` is given the rewards of each step, rows [B], before it
    is asked for a value or puts a state back: so it can make inputs of the next step of them.

    Args:
        cages, samples, replay, max_steps_decorrelate, check: as for `BasicSampler`; the tree has a
            branch `initial_rnn_state` of leading dimension B. A replay buffer that draws sequences
            reads the state before each step from `agent_info.rnn_state`, where the agent keeps it.
        agent: the object that chooses the actions and keeps the state.

    Raises:
        TypeError: as for `BasicSampler`; or the agent keeps no state.
        ValueError: as for `BasicSampler`; or there is no `initial_rnn_state`.

    Example:
        >>> import numpy as np
        >>> from parllel.patterns import build_cages, build_example, build_sample_tree
        >>> from parllel.testing.toy_envs import Clock  # its episodes have 3 steps
        >>> class Counting:  # its state and value is the number of steps in the episode
        ...     def begin(self, n_envs):
        ...         self.rnn_state = np.zeros(n_envs, np.float32)
        ...     def reset_state(self, columns):
        ...         self.rnn_state[columns] = 0
        ...     def step(self, observation, *, deterministic=False):
        ...         value = self.value(observation)
        ...         self.rnn_state += 1
        ...         return np.zeros(len(observation), np.int64), {"value": value}
        ...     def value(self, observation, *, columns=None):
        ...         return self.rnn_state.copy() if columns is None else self.rnn_state[columns]
        >>> agent = Counting()
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, agent, batch_shape=(4, 2))
        >>> cages = build_cages(Clock, n_envs=2, n_workers="serial")
        >>> batch, _ = RecurrentSampler(cages, agent, samples).collect_batch()
        >>> batch["agent_info"]["value"].to_ndarray()[:, 0]  # put back after 3 steps
        array([0., 1., 2., 0.], dtype=float32)
        >>> batch["bootstrap_value"].to_ndarray()
        array([1., 1.], dtype=float32)
    """

    agent: Any  # Any: a RecurrentActor; the base class declares an Actor
    _carries_state = True
    _takes_device_results = False  # it values final observations with the state of their step

    def __init__(
        self,
        cages: Sequence[Cage],
        agent: RecurrentActor,
        samples: ArrayDict,
        *,
        replay: Recorder | None = None,
        max_steps_decorrelate: int = 0,
        check: bool = False,
    ) -> None:
        if not isinstance(agent, RecurrentActor):
            raise TypeError(
                f"agent: {type(agent).__name__} keeps no state, expected a RecurrentActor, with"
                " methods begin and reset_state; use BasicSampler"
            )
        super().__init__(
            cages,
            agent,
            samples,
            replay=replay,
            max_steps_decorrelate=max_steps_decorrelate,
            check=check,
        )
        if "initial_rnn_state" not in samples:
            raise ValueError(
                "samples: there is no initial_rnn_state; patterns.build_sample_tree makes it for an"
                " agent that keeps a state"
            )
        self._has_bootstrap_value = "bootstrap_value" in samples
        self._tells_reward = has_receive_reward(agent)

    def reset(self) -> None:
        """Reset all environments, and the state that the agent keeps for each."""
        super().reset()
        self.agent.begin(self.batch_B)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all environments, and the one that the agent keeps for each.

        Raises:
            NotImplementedError, RuntimeError, TypeError: as for `BasicSampler`.
        """
        return {**super().state_dict(), "rnn_state": copy.deepcopy(self.agent.rnn_state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next batch go on from a state that `state_dict` returned, without a reset.

        Raises:
            KeyError, TypeError, ValueError: as for `BasicSampler`; or the agent's state has another
                form.
        """
        super().load_state_dict(state)
        self._goes_on = False
        with self._acting():
            self.agent.begin(self.batch_B)
            self.agent.rnn_state = _like(self.agent.rnn_state, state["rnn_state"])
        self._goes_on = True

    def _collect_steps(self) -> None:
        state, rows = self.agent.rnn_state, self.samples["initial_rnn_state"]
        check_rows("initial_rnn_state", state, rows)
        rows[...] = as_tree(state)
        super()._collect_steps()

    def _complete_step(self, group: Group, t: int) -> None:
        if self._tells_reward:
            self.agent.receive_reward(self.samples["reward"][t])
        super()._complete_step(group, t)
        if ended := group.ended() + group.invalid():
            self.agent.reset_state(ended)

    def _value(self, observation: Rows, columns: Sequence[int] | None = None) -> object:
        return self.agent.value(observation, columns=columns)

    def _complete_batch(self) -> None:
        super()._complete_batch()
        if self._has_bootstrap_value:
            rows, last = self.samples["bootstrap_value"], self.samples["observation"][self.batch_T]
            value = self._value(last)
            check_rows("value", value, rows)
            rows[...] = value


def _like(own: Any, saved: Any) -> Any:
    """Return a copy of a state that was saved, in the memory and the containers of an agent's own.

    Args:
        own: rows, or a tree or a tuple of rows.
        saved: the same, with rows in host memory.
    """
    if isinstance(own, Mapping):
        return type(own)({name: _like(own[name], saved[name]) for name in own})  # type: ignore[call-arg]
    if isinstance(own, tuple | list):
        members = [_like(mine, each) for mine, each in zip(own, saved, strict=True)]
        return type(own)(*members) if hasattr(own, "_fields") else type(own)(members)
    if own.shape != saved.shape or own.dtype != saved.dtype:
        raise ValueError(
            f"rnn_state: got {saved.dtype} {tuple(saved.shape)}, expected {own.dtype}"
            f" {tuple(own.shape)} of this agent"
        )
    copied = copy.deepcopy(saved)
    return copied.to(own.device) if hasattr(copied, "to") else copied

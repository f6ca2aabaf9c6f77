"""ParallelAgents: a PettingZoo parallel environment as one whose agents have fixed slots."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from parllel.cages.states.attributes import pack, unpack
from parllel.cages.values.agent_forms import AgentForm, names_of, told_of
from parllel.cages.values.agent_results import AgentResults, as_agent_reset, as_agent_step
from parllel.cages.values.agent_spaces import (
    as_observed,
    batch_of,
    can_batch,
    empty_value,
    move_mask,
    part_of,
    unmasked,
    with_mask,
)
from parllel.cages.values.any_env import ParallelEnv
from parllel.cages.values.env_checks import check_parallel, is_parallel
from parllel.cages.values.env_rows import as_tree, write_column
from parllel.cages.values.spaces import check_members
from parllel.tree.fitting import MisfitError

Form = Literal["axis", "dictionary"]


class ParallelAgents(gym.Env[Any, Any]):
    """Give each agent of a PettingZoo parallel environment a fixed slot, whether it lives or not.

    The slots are `possible_agents`, in that order. Observations, actions, rewards and flags have
    one of two forms: an array with an axis of agents ("axis": [N, ...]; of a Dict or Tuple each
    member is one), or a dictionary of the agents' names. Infos are dictionaries of names in both.

    Cages make one of these around each parallel environment that `make_env` returns. The form is
    "axis" then if all agents have the same spaces, and else "dictionary".

    An agent acts in a step if it is one of the environment's `agents` before it: it is alive. Its
    last step has its own flags and shows its own final observation. In steps in which a slot is
    empty, its reward is 0, it counts as truncated and not terminated, and its action goes nowhere.
    With the step that an agent comes with, its slot does not count as truncated any more: so the
    environment's episode ends in the one step in which each slot has a flag. The observation of an
    empty slot is zeros; but with the step that ends the life of all agents, each slot shows
    the final observation of its agent. An agent may come later in an episode, and live once in it.

    Masks of actions in observations (`action_mask`) allow all actions to empty slots, which take
    none: a choice among no actions would be NaN.

    Args:
        env: the parallel environment.
        form: "axis" or "dictionary", if it is not to be found by itself.
        info_mask: name of the entry of each agent's info that masks its actions. It is moved into
            the agent's observation, which becomes {"observation": ..., "action_mask": ...}, as by
            `MaskInObservation`. By default there is none.

    Attributes:
        parallel_env: the environment.
        agent_form: the form, for cages.

    Raises:
        TypeError: env is no parallel environment, or form is "axis" and agents have not the same
            spaces.
        ValueError: form is another word, or `possible_agents` are not different names.

    Example:
        >>> from parllel.testing.toy_agents import Relay
        >>> env = ParallelAgents(Relay())
        >>> observation, info = env.reset(seed=0)
        >>> env.agent_form.names, env.alive
        (('ada', 'bob', 'cyd'), array([ True,  True, False]))
        >>> observation, reward, terminated, truncated, info = env.step([0, 0, 0])
        >>> reward
        array([ 1., 10.,  0.])
    """

    def __init__(
        self, env: ParallelEnv, form: Form | None = None, *, info_mask: str | None = None
    ) -> None:
        check_parallel(env)
        if form not in (None, "axis", "dictionary"):
            raise ValueError(f'form: got {form!r}, expected "axis", "dictionary" or None')
        self.parallel_env: Any = env  # Any: it may have more than the protocol names
        self.metadata = getattr(env, "metadata", {})
        self.render_mode = getattr(env, "render_mode", None)
        agents = tuple(env.possible_agents)
        names = names_of(agents, len(agents))
        self._agents = dict(zip(names, agents, strict=True))
        self._slots = {agent: slot for slot, agent in enumerate(agents)}
        self._info_mask = info_mask
        self._action_spaces = [env.action_space(agent) for agent in agents]
        self._spaces = [env.observation_space(agent) for agent in agents]
        if info_mask is not None:
            self._spaces = list(map(with_mask, self._spaces, self._action_spaces))
        is_axis = self._is_axis(form)
        self.agent_form = AgentForm(names, is_axis, has_flags=True)
        self.observation_space = self._joint(self._spaces)
        self.action_space = self._joint(self._action_spaces)
        self._nothing = list(map(empty_value, self._spaces, self._action_spaces))
        self._alive = np.zeros(len(agents), np.bool_)
        self._has_ended = np.zeros(len(agents), np.bool_)
        self._last: dict[int, Any] = {}  # final observations of agents that have ended

    def _is_axis(self, form: Form | None) -> bool:
        first = self._spaces[0], self._action_spaces[0]
        others = zip(self._spaces, self._action_spaces, strict=True)
        can_be = all(pair == first for pair in others) and all(map(can_batch, first))
        if form == "axis" and not can_be:
            kinds = dict(
                zip(self._agents, zip(self._spaces, self._action_spaces, strict=True), strict=True)
            )
            raise TypeError(
                f'form: got "axis" for agents with the spaces {kinds}, expected the same Box,'
                " Discrete, MultiDiscrete, MultiBinary, Dict or Tuple for all of them; use"
                ' "dictionary"'
            )
        return can_be if form is None else form == "axis"

    def _joint(self, parts: Sequence[spaces.Space[Any]]) -> spaces.Space[Any]:
        """Return the space of all agents together."""
        if self.agent_form.is_axis:
            return batch_of(parts[0], len(parts))
        return spaces.Dict(list(zip(self._agents, parts, strict=True)))

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which agents act in the next step, bool [N]: none after the end of an episode."""
        return self._alive.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            MisfitError: no agent lives, one is unknown or has no observation; or as for `step`.
        """
        self._alive[:] = False
        self._has_ended[:] = False
        self._last = {}
        result = self.parallel_env.reset(seed=seed, options=options)
        living = tuple(self.parallel_env.agents)
        observations, infos = as_agent_reset(result, living, self._agents)
        self._alive[[self._slots[agent] for agent in living]] = True
        observation = self._observe(observations, infos, is_first=True)
        return observation, self._infos(infos)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment with the actions of the agents that live.

        Raises:
            MisfitError: a result is missing, or is there for an agent that is unknown or does not
                live; an agent that lived is none of `agents` any more and has no flag, or still is
                one and has; an agent comes back after its end; or a value does not fit its space.
            RuntimeError: no agent lives: the environment was not reset.
        """
        if not self._alive.any():
            raise RuntimeError("step before reset: no agent lives; call reset()")
        acted = [agent for agent, slot in self._slots.items() if self._alive[slot]]
        parts = {agent: self._part(action, agent) for agent in acted}
        result = self.parallel_env.step(parts)
        living = tuple(self.parallel_env.agents)
        ended = {agent for agent, slot in self._slots.items() if self._has_ended[slot]}
        results = as_agent_step(result, acted, living, ended, self._agents)
        reward, terminated, truncated = self._outcome(results, acted, living)
        self._alive[:] = False
        self._alive[[self._slots[agent] for agent in living]] = True
        observation = self._observe(results.observation, results.info)
        form = self.agent_form
        flags = form.value_of(terminated), form.value_of(truncated)
        return observation, form.value_of(reward), *flags, self._infos(results.info)

    def _part(self, action: Any, agent: Any) -> Any:
        """Return the action of one agent."""
        slot = self._slots[agent]
        if self.agent_form.is_axis:
            return part_of(self._action_spaces[slot], action, slot)
        return action[self.agent_form.names[slot]]

    def _outcome(
        self, results: AgentResults, acted: Sequence[Any], living: Sequence[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return rewards and flags of all slots, [N] each."""
        n_agents = len(self._slots)
        reward, terminated = np.zeros(n_agents), np.zeros(n_agents, np.bool_)
        truncated = np.ones(n_agents, np.bool_)  # as in all rows that are no transitions
        # Else the environment's episode would seem to end where new agents take over from all.
        truncated[[self._slots[agent] for agent in living]] = False
        for agent in acted:
            slot = self._slots[agent]
            reward[slot] = results.reward[agent]
            terminated[slot] = results.terminated[agent]
            truncated[slot] = results.truncated[agent]
            self._has_ended[slot] = terminated[slot] or truncated[slot]
        return reward, terminated, truncated

    def _observe(
        self, observations: Mapping[Any, Any], infos: Mapping[Any, Any], *, is_first: bool = False
    ) -> Any:
        """Return the observation of all slots, and keep those of agents that have just ended."""
        is_last = not self._alive.any()
        values = list(self._nothing)
        for agent, slot in self._slots.items():
            if agent in observations:
                value = self._own(slot, observations[agent], infos.get(agent, {}))
                if is_first:
                    name = self.agent_form.names[slot]
                    check_members(self._spaces[slot], value, ("observation", name))
                values[slot] = value
                if self._has_ended[slot] and not is_last:
                    self._last[slot] = copy.deepcopy(value)
            elif is_last and slot in self._last:
                values[slot] = self._last[slot]
        if not self.agent_form.is_axis:
            return dict(zip(self._agents, values, strict=True))
        rows = create_empty_array(self._spaces[0], len(values), fn=np.zeros)
        try:
            write_column(as_tree(rows), values)
        except MisfitError as error:
            slot, error.environment = error.environment or 0, None
            raise told_of(error, ("observation", self.agent_form.names[slot])) from None
        return rows

    def _own(self, slot: int, observation: Any, info: Mapping[str, Any]) -> Any:
        """Return one agent's observation, with the mask of its actions."""
        space, action_space = self._spaces[slot], self._action_spaces[slot]
        is_alive = bool(self._alive[slot])
        path = ("observation", self.agent_form.names[slot])
        if self._info_mask is not None:
            observation = move_mask(observation, info, self._info_mask, is_alive, path)
        return observation if is_alive else unmasked(space, action_space, observation)

    def _infos(self, infos: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the infos of agents by their names."""
        named = {name: infos[agent] for name, agent in self._agents.items() if agent in infos}
        if self._info_mask is not None:
            named = {
                name: {key: entry for key, entry in info.items() if key != self._info_mask}
                for name, info in named.items()
            }
        return {name: info for name, info in named.items() if info}

    @property
    def can_save(self) -> bool:
        """Whether the environment has the methods `get_state()` and `set_state(state)`."""
        methods = (getattr(self.parallel_env, name, None) for name in ("get_state", "set_state"))
        return all(map(callable, methods))

    def get_state(self) -> dict[str, Any]:
        """Return the environment's state, its `np_random`, and which agents live, as plain data."""
        return {
            "env": self.parallel_env.get_state(),
            "np_random": pack(self._generator(), ("np_random",)),
            "alive": self._alive.copy(),
            "has_ended": self._has_ended.copy(),
            "last": copy.deepcopy(self._last),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `get_state` returned."""
        self.parallel_env.set_state(state["env"])
        if state["np_random"] is not None:
            unpack(state["np_random"], self._generator(), ("np_random",))
        self._alive[:] = state["alive"]
        self._has_ended[:] = state["has_ended"]
        last = {int(slot): value for slot, value in state["last"].items()}
        self._last = {slot: as_observed(self._spaces[slot], own) for slot, own in last.items()}

    def _generator(self) -> np.random.Generator | None:
        base = getattr(self.parallel_env, "unwrapped", self.parallel_env)
        generator = getattr(base, "np_random", None)
        return generator if isinstance(generator, np.random.Generator) else None

    def render(self) -> Any:
        """Return the picture of all agents."""
        return self.parallel_env.render()

    def close(self) -> None:
        """Close the environment."""
        self.parallel_env.close()


def as_single_env(env: Any) -> Any:
    """Return what `make_env` returned; a parallel environment with slots for its agents."""
    return ParallelAgents(env) if is_parallel(env) else env

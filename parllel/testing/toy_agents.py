"""Tiny environments of several agents whose numbers are all known; workers can import them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Dictionary = dict[str, Any]


class Life(NamedTuple):
    """The steps of an episode in which an agent acts, which are counted from 1 on.

    Args:
        first, last: the first one and the last one.
        end: the flags of the last step: "terminated", "truncated" or "both".
    """

    first: int
    last: int
    end: str


ENDS = ("terminated", "truncated", "both")
LIVES = {
    "ada": Life(1, 2, "terminated"),
    "bob": Life(1, 4, "truncated"),
    "cyd": Life(2, 6, "terminated"),
}


class Relay:
    """A parallel environment as PettingZoo's, whose agents come and go at known times.

    In step t, which is counted from 1 on, the agent of slot i is paid t * 10**i + action / 4. It is
    shown (number of the episode, number of the step, its last action), and in its info the step.

    Args:
        lives: when each agent acts. One of them acts in the first step, and there is no step before
            the last one in which none does.
        is_random: whether each reset draws other last steps for the agents, from the generator that
            `reset(seed=)` seeds, and other flags for their ends.
        differ: whether the agents have spaces of different sizes.
        reuses_buffer: whether an agent's observations are all the same array, which is filled with
            -1 where the agent is gone.

    Example:
        >>> relay = Relay()
        >>> observations, infos = relay.reset(seed=0)
        >>> sorted(observations)
        ['ada', 'bob']
        >>> relay.step({"ada": 0, "bob": 1})[1]
        {'ada': 1.0, 'bob': 10.25}
        >>> relay.agents
        ['ada', 'bob', 'cyd']
    """

    metadata: Dictionary = {"name": "relay"}  # noqa: RUF012  # as PettingZoo's
    render_mode = None

    def __init__(
        self,
        lives: Mapping[str, Life] | None = None,
        *,
        is_random: bool = False,
        differ: bool = False,
        reuses_buffer: bool = False,
    ) -> None:
        self._lives = dict(LIVES if lives is None else lives)
        self._now = self._lives
        self.possible_agents = list(self._lives)
        self.agents: list[str] = []
        self._is_random, self._differ, self._reuses_buffer = is_random, differ, reuses_buffer
        self.np_random = np.random.default_rng(0)
        self._episode, self._step = -1, 0
        self._buffers = {
            name: np.zeros(self.observation_space(name).shape, np.float32) for name in self._lives
        }

    def observation_space(self, agent: str) -> spaces.Box:
        """Return the space of an agent's observations: (3,), or (3 + slot,) where they differ."""
        n = 3 + (self.possible_agents.index(agent) if self._differ else 0)
        return spaces.Box(-np.inf, np.inf, (n,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        """Return the space of an agent's actions: 4, or 4 + slot where they differ."""
        return spaces.Discrete(4 + (self.possible_agents.index(agent) if self._differ else 0))

    def reset(
        self, seed: int | None = None, options: Dictionary | None = None
    ) -> tuple[Dictionary, Dictionary]:
        """Begin the next episode."""
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self._episode, self._step = self._episode + 1, 0
        self._now = {name: self._draw(life) for name, life in self._lives.items()}
        self.agents = [name for name, life in self._now.items() if life.first == 1]
        return {name: self._observe(name, 0) for name in self.agents}, self._infos(self.agents)

    def _draw(self, life: Life) -> Life:
        if not self._is_random:
            return life
        last = life.first + int(self.np_random.integers(life.last))
        return Life(life.first, last, ENDS[self.np_random.integers(3)])

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[Dictionary, Dictionary, Dictionary, Dictionary, Dictionary]:
        """Go on by one step.

        Raises:
            ValueError: the actions are not those of the living agents, or outside of their spaces.
        """
        if sorted(actions) != sorted(self.agents):
            raise ValueError(f"actions: got {sorted(actions)}, expected {sorted(self.agents)}")
        for name, action in actions.items():
            if not self.action_space(name).contains(action):
                raise ValueError(f"actions: got {action!r} of {name}")
        self._step += 1
        acted = self.agents
        ended = {name: self._now[name].end for name in acted if self._now[name].last == self._step}
        flags = [
            {name: ended.get(name) in (flag, "both") for name in acted}
            for flag in ("terminated", "truncated")
        ]
        rewards = {
            name: self._step * 10.0 ** self.possible_agents.index(name) + float(action) / 4
            for name, action in actions.items()
        }
        born = [name for name, life in self._now.items() if life.first == self._step + 1]
        self.agents = [name for name in acted if name not in ended]
        self.agents = [name for name in self._now if name in (*self.agents, *born)]
        for name in self._now.keys() - {*acted, *born}:
            self._buffers[name][:] = -1  # who keeps an observation copies it
        observations = {name: self._observe(name, actions.get(name, 0)) for name in (*acted, *born)}
        return observations, rewards, flags[0], flags[1], self._infos(acted)

    def _observe(self, name: str, action: Any) -> NDArray[np.float32]:
        observation = self._buffers[name]
        observation[:] = 0
        observation[:3] = self._episode, self._step, action
        return observation if self._reuses_buffer else observation.copy()

    def _infos(self, names: list[str]) -> Dictionary:
        return {name: {"step": self._step} for name in names}

    def get_state(self) -> Dictionary:
        """Return all but the generator, which cages save."""
        return {
            "episode": self._episode,
            "step": self._step,
            "agents": list(self.agents),
            "now": {name: list(life) for name, life in self._now.items()},
        }

    def set_state(self, state: Dictionary) -> None:
        """Go on from a state."""
        self._episode, self._step = state["episode"], state["step"]
        self.agents = list(state["agents"])
        self._now = {name: Life(*life) for name, life in state["now"].items()}

    def render(self) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class Masked:
    """A parallel environment that allows each agent one action in each step, by a mask.

    In step t, the agent of slot i may take action (t + i) % 3 alone. Agent 0 ends with step 2,
    agent 1 with step 4; the masks of their final observations allow nothing.

    Args:
        differ: whether agents show different numbers beside their masks.
        in_info: whether masks are in infos, and not in observations.
        saves: whether it has the methods `get_state` and `set_state`.

    Raises:
        ValueError: in `step`, an action is not allowed.

    Example:
        >>> env = Masked()
        >>> observations, infos = env.reset()
        >>> observations[1]["action_mask"]
        array([0, 1, 0], dtype=int8)
    """

    metadata: Dictionary = {"name": "masked"}  # noqa: RUF012  # as PettingZoo's
    possible_agents = (0, 1)  # names need not be texts

    def __init__(self, differ: bool = False, in_info: bool = False, saves: bool = True) -> None:
        self._differ, self._in_info = differ, in_info
        self._step = 0
        self.agents: list[int] = []
        if not saves:
            self.get_state = None  # type: ignore[assignment, method-assign]

    def observation_space(self, agent: int) -> spaces.Space[Any]:
        """Return the space of an agent's observations."""
        position = spaces.Box(-9, 9, (1 + agent * self._differ,), np.float32)
        if self._in_info:
            return position
        return spaces.Dict({"position": position, "action_mask": spaces.MultiBinary(3)})

    def action_space(self, agent: int) -> spaces.Discrete:
        """Return the space of an agent's actions."""
        return spaces.Discrete(3)

    def reset(
        self, seed: int | None = None, options: Dictionary | None = None
    ) -> tuple[dict[int, Any], dict[int, Any]]:
        """Begin an episode."""
        self._step, self.agents = 0, [0, 1]
        return self._observe([0, 1]), self._infos([0, 1])

    def step(self, actions: Mapping[int, Any]) -> tuple[dict[int, Any], ...]:
        """Go on by one step."""
        for agent, action in actions.items():
            if action != (self._step + agent) % 3:
                raise ValueError(f"actions: got {action} of agent {agent} in step {self._step}")
        self._step += 1
        acted = self.agents
        ended = {agent: self._step == 2 * (agent + 1) for agent in acted}
        self.agents = [agent for agent in acted if not ended[agent]]
        rewards, truncated = dict.fromkeys(acted, 1.0), dict.fromkeys(acted, False)
        return self._observe(acted), rewards, ended, truncated, self._infos(acted)

    def _observe(self, agents: list[int]) -> dict[int, Any]:
        shown = {
            agent: np.full((1 + agent * self._differ,), self._step, np.float32) for agent in agents
        }
        if self._in_info:
            return shown
        return {
            agent: {"position": shown[agent], "action_mask": self._mask(agent)} for agent in agents
        }

    def _infos(self, agents: list[int]) -> dict[int, Any]:
        if not self._in_info:
            return {}
        return {agent: {"action_mask": self._mask(agent)} for agent in agents}

    def _mask(self, agent: int) -> NDArray[np.int8]:
        mask = np.zeros(3, np.int8)
        mask[(self._step + agent) % 3] = agent in self.agents
        return mask

    def get_state(self) -> Dictionary:
        """Return what the step and the agents are."""
        return {"step": self._step, "agents": list(self.agents)}

    def set_state(self, state: Dictionary) -> None:
        """Go on from a state."""
        self._step, self.agents = state["step"], list(state["agents"])

    def close(self) -> None:
        """Do nothing."""


class Team(gym.Env[Any, Any]):
    """A gymnasium environment that pays two agents, and has one flag for both.

    In step t, which is counted from 1 on, it pays t and -2 t, and shows (episode, t).

    Args:
        length: number of steps in an episode.
        is_axis: whether rewards are an array, and not a dictionary of the names "left" and "right".
        end: the flags that are set at an episode's end: "terminated", "truncated" or "both".

    Example:
        >>> env = Team()
        >>> _ = env.reset(seed=0)
        >>> env.step([0, 1])[1]
        {'left': 1.0, 'right': -2.0}
    """

    possible_agents = ("left", "right")
    observation_space = spaces.Box(0, np.inf, (2,), np.float32)
    action_space = spaces.MultiDiscrete([3, 3])

    def __init__(self, length: int = 3, is_axis: bool = False, end: str = "terminated") -> None:
        number = spaces.Box(-np.inf, np.inf, ())
        self.reward_space: spaces.Space[Any] = (
            spaces.Box(-np.inf, np.inf, (2,))
            if is_axis
            else spaces.Dict([("left", number), ("right", number)])
        )
        self._length, self._is_axis, self._end = length, is_axis, end
        self._episode, self._step = -1, 0

    def reset(
        self, *, seed: int | None = None, options: Dictionary | None = None
    ) -> tuple[Any, Dictionary]:
        """Begin the next episode."""
        self._episode, self._step = self._episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Dictionary]:
        """Go on by one step."""
        self._step += 1
        is_end = self._step == self._length
        rewards = np.array([1.0, -2.0]) * self._step
        left, right = rewards
        reward: Any = rewards if self._is_axis else {"left": float(left), "right": float(right)}
        terminated = is_end and self._end in ("terminated", "both")
        truncated = is_end and self._end in ("truncated", "both")
        return self._observe(), reward, terminated, truncated, {}

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self._episode, self._step], np.float32)

    def get_state(self) -> Dictionary:
        """Return the numbers that it shows."""
        return {"episode": self._episode, "step": self._step}

    def set_state(self, state: Dictionary) -> None:
        """Go on from a state."""
        self._episode, self._step = state["episode"], state["step"]

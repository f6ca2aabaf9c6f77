"""Parallel environments that break a law of PettingZoo or fail, and two of other packages."""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from parllel.testing.toy_agents import Relay


class Lie(NamedTuple):
    """A lie.

    Args:
        step: the step in which it is told; 0 for the reset.
        match: what the error says, as a regular expression.
    """

    step: int
    match: str


# Of a Relay: ada acts in steps 1 and 2, bob in 1 to 4, cyd in 2 to 6.
LIES = {
    "no observation": Lie(1, r"observation\.bob: environment 1 of this cage gave nothing"),
    "no final observation": Lie(2, r"observation\.ada: environment 1 .* nothing .* the final one"),
    "no observation of a new agent": Lie(1, r"observation\.cyd: .* nothing for an agent"),
    "an observation of the dead": Lie(4, r"observation\.ada: .* of an agent that is not there"),
    "an observation of another shape": Lie(1, r"observation\.bob: .* gave \(4,\), float64"),
    "no reward": Lie(1, r"reward\.bob: .* gave nothing for an agent that acted"),
    "a reward of the dead": Lie(4, r"reward\.ada: .* gave float 5.0 for an agent that did not act"),
    "a reward of the unborn": Lie(1, r"reward\.cyd: .* gave float 5.0 for an agent that did not"),
    "an array as a reward of the dead": Lie(4, r"reward\.ada: .* gave \(2,\), float64 for an"),
    "a text as a reward": Lie(1, r"reward\.bob: .* gave str 'much', expected a number"),
    "an array as a reward": Lie(1, r"reward\.bob: .* gave \(1,\), float64, expected a number"),
    "no terminated": Lie(1, r"terminated\.bob: .* gave nothing for an agent that acted"),
    "no truncated": Lie(1, r"truncated\.bob: .* gave nothing for an agent that acted"),
    "an array as a flag": Lie(1, r"terminated\.bob: .* gave \(1,\), bool"),
    "2 as a flag": Lie(1, r"truncated\.bob: .* gave int 2, expected True or False"),
    "a flag of a new agent": Lie(1, r"terminated\.cyd: .* gave True for an agent that has not act"),
    "gone without a flag": Lie(1, r"agents\.bob: .* gave agents without it, and no flag"),
    "all gone without flags": Lie(1, r"agents\.ada: .* gave agents without it, and no flag"),
    "stays with a flag": Lie(2, r"agents\.ada: .* has a flag and is still one of agents"),
    "comes back": Lie(4, r"agents\.ada: .* comes back after its end"),
    "an unknown agent": Lie(1, r"agents: .* gave the agents \['eve'\], expected some of possible"),
    "a reward of the unknown": Lie(1, r"reward: .* gave the agents \['eve'\]"),
    "an info of the unknown": Lie(1, r"info: .* gave the agents \['eve'\]"),
    "an agent twice": Lie(1, r"agents: .* gave \['bob', 'ada', 'bob', 'cyd'\]|agents: .* each"),
    "four results": Lie(1, r"step: .* gave a tuple of 4"),
    "a list of rewards": Lie(1, r"reward: .* gave list \[1.* expected a dictionary"),
    "nobody after reset": Lie(0, r"agents: .* gave none after reset"),
    "no first observation": Lie(0, r"observation\.bob: .* nothing for an agent that is there"),
    "a first observation too many": Lie(0, r"observation\.cyd: .* of an agent that is not there"),
    "an unknown agent after reset": Lie(0, r"agents: .* gave the agents \['eve'\]"),
    "one result of reset": Lie(0, r"reset: .* gave dict"),
}


class Liar(Relay):
    """Tell one of the `LIES`, and keep all other laws. An environment may begin to lie later.

    Args:
        lie: its name.
        differ: as for `Relay`.
    """

    def __init__(self, lie: str, differ: bool = False) -> None:
        super().__init__(differ=differ)
        self._lie = lie

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed, options)
        return self._distort(result) if LIES[self._lie].step == 0 else result

    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        return self._distort(result) if self._step == LIES[self._lie].step else result

    def _distort(self, result: Any) -> Any:
        observations = result[0]
        nothing = np.zeros(self.observation_space("bob").shape, np.float32)
        match self._lie:
            case "no observation" | "no first observation":
                del observations["bob"]
            case "no final observation":
                del observations["ada"]
            case "no observation of a new agent":
                del observations["cyd"]
            case "an observation of the dead":
                observations["ada"] = nothing
            case "a first observation too many":
                observations["cyd"] = nothing
            case "an observation of another shape":
                observations["bob"] = np.zeros(4)
            case "nobody after reset" | "all gone without flags":
                self.agents = []
            case "gone without a flag":
                self.agents = ["ada", "cyd"]
            case "stays with a flag" | "comes back":
                self.agents = ["ada", *self.agents]
                observations["ada"] = nothing
            case "an unknown agent" | "an unknown agent after reset":
                self.agents = [*self.agents, "eve"]
            case "an agent twice":
                self.agents = [*self.agents, "bob"]
            case "one result of reset":
                return observations
            case "four results":
                return result[:-1]
            case _:
                return self._distort_outcome(result)
        return result

    def _distort_outcome(self, result: Any) -> Any:
        observations, rewards, terminated, truncated, infos = result
        match self._lie:
            case "no reward":
                del rewards["bob"]
            case "a reward of the dead":
                rewards["ada"] = 5.0
            case "an array as a reward of the dead":
                rewards["ada"] = np.zeros(2)
            case "a reward of the unborn":
                rewards["cyd"] = 5.0
            case "a reward of the unknown":
                rewards["eve"] = 0.0
            case "a text as a reward":
                rewards["bob"] = "much"
            case "an array as a reward":
                rewards["bob"] = np.ones(1)
            case "a list of rewards":
                rewards = list(rewards.values())
            case "no terminated":
                del terminated["bob"]
            case "no truncated":
                del truncated["bob"]
            case "an array as a flag":
                terminated["bob"] = np.zeros(1, np.bool_)
            case "2 as a flag":
                truncated["bob"] = 2
            case "a flag of a new agent":
                terminated["cyd"] = True
            case "an info of the unknown":
                infos["eve"] = {"step": 1}
            case other:
                raise AssertionError(other)
        return observations, rewards, terminated, truncated, infos


def make_one_liar(lie: str, differ: bool = False) -> Any:
    """Return a function that makes honest environments, of which the second one lies."""
    made: list[Any] = []

    def make() -> Any:
        made.append(Liar(lie, differ) if len(made) == 1 else Relay(differ=differ))
        return made[-1]

    return make


class Fragile(Relay):
    """A relay that fails in step 3 of its first episode."""

    def step(self, actions: Any) -> Any:
        if (self._episode, self._step) == (0, 2):
            raise RuntimeError("it breaks")
        return super().step(actions)


def make_spread() -> Any:
    """Return three agents that act together for 7 steps."""
    from mpe2 import simple_spread_v3

    return simple_spread_v3.parallel_env(max_cycles=7)


def make_knights() -> Any:
    """Return four agents that die one after the other, in some 120 steps of random actions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PettingZoo's own, of its names and of pygame's
        from pettingzoo.butterfly import knights_archers_zombies_v11

        return knights_archers_zombies_v11.parallel_env(
            spawn_delay=1, max_zombies=200, line_death=True, max_cycles=150
        )


class Deadly(Relay):
    """A relay whose process ends in step 3 of the first episode of an environment."""

    def __init__(self, file: str, differ: bool = False) -> None:
        super().__init__(differ=differ)
        self._file = Path(file)

    def step(self, actions: Any) -> Any:
        if self._step == 2 and not self._file.exists():
            self._file.touch()
            os._exit(3)
        return super().step(actions)


class Films(Relay):
    """A relay whose agents see stacks of their last 3 frames, each (episode, step).

    Before an agent's first frame, a stack is filled up with zeros, or with that frame.
    """

    def __init__(self, fill: str) -> None:
        super().__init__(is_random=True)
        self._fill = fill
        self._stacks: dict[str, Any] = {}

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (3, 2), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._stacks = {}
        return super().reset(seed, options)

    def _observe(self, name: str, action: Any) -> Any:
        frame = np.array([self._episode, self._step], np.float32)
        filling = frame if self._fill == "first" else np.zeros_like(frame)
        before = self._stacks.get(name, np.stack([filling] * 3))
        self._stacks[name] = np.concatenate([before[1:], frame[None]])
        return self._stacks[name]

"""Environments of clouds, graphs and sequences; worker processes can import them too."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import GraphInstance

from parllel.cages import PointCloud

MOST = 12  # points, nodes; there are at most twice as many edges


class Shapes(gym.Env):
    """Show things whose sizes change from step to step; episodes end at random, as Walk's do.

    All is drawn from the generator that `reset(seed=)` seeds. Rewards are the sum of the
    observation's numbers and of the action.

    Args:
        kind: "cloud", "graph", "bare" (a graph without edge features), "sequence", "stacked" (a
            sequence that comes as an array), "pairs" (a sequence of members of a Dict), or "dict",
            all of these beside a plain array.
        wrong: what is shown in the place of the right observation, in one step of each episode.
        at: the number of that step; 0 is the reset.
        length: number of steps after which an episode is truncated.
        ends: whether episodes end at random.
    """

    action_space = spaces.Discrete(2)

    def __init__(
        self,
        kind: str = "dict",
        wrong: Any = ...,
        at: int = 2,
        length: int | None = None,
        ends: bool = True,
    ) -> None:
        self.kind, self._wrong, self._at, self._length = kind, wrong, at, length
        self._ends = ends
        self.observation_space = space_of(kind)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._step = 0
        return self._observe()[0], {}

    def step(self, action: Any) -> Any:
        self._step += 1
        observation, total = self._observe()
        fate = self.np_random.random() if self._ends else 1.0
        truncated = bool(1 / 8 <= fate < 1 / 4) or self._step == self._length
        return observation, total + float(action), bool(fate < 1 / 8), truncated, {}

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]

    def _observe(self) -> tuple[Any, float]:
        observation = draw(self.kind, self.np_random)
        total = total_of(observation)
        if self._wrong is not ... and self._step == self._at:
            observation = self._wrong
        return observation, total


class PaddedClouds(Shapes):
    """Show the clouds of `Shapes` at one length, behind a row with the number of points."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("cloud", **settings)
        self.observation_space = spaces.Box(-9, 99, (1 + MOST, 3), np.float32)

    def _observe(self) -> tuple[Any, float]:
        cloud, total = super()._observe()
        rows = np.zeros((1 + MOST, 3), np.float32)
        rows[0], rows[1 : 1 + len(cloud)] = len(cloud), cloud
        return rows, total


def space_of(kind: str) -> spaces.Space:
    """Return a new space of a kind of observation."""
    row, pair = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(5)
    made: dict[str, spaces.Space] = {
        "cloud": PointCloud(MOST, (3,), low=-9, high=9),
        "graph": spaces.Graph(row, spaces.Box(-9, 9, (3,), np.float64)),
        "bare": spaces.Graph(spaces.Discrete(7), None),
        "sequence": spaces.Sequence(spaces.Discrete(5)),
        "stacked": spaces.Sequence(row, stack=True),
        "pairs": spaces.Sequence(spaces.Dict(place=row, kind=pair)),
    }
    return made[kind] if kind in made else spaces.Dict({**made, "plain": row})


CAPACITY: dict[str, Any] = {
    "cloud": None,
    "graph": {"nodes": MOST, "edges": 2 * MOST},
    "bare": {"nodes": MOST, "edges": 2 * MOST},
    "sequence": MOST,
    "stacked": MOST,
    "pairs": MOST,
}
CAPACITY["dict"] = {name: most for name, most in CAPACITY.items() if most}


def draw(kind: str, rng: np.random.Generator) -> Any:
    """Return a new observation of a kind."""
    if kind == "dict":
        own = {name: draw(name, rng) for name in CAPACITY if name != "dict"}
        return {**own, "plain": rng.standard_normal(2).astype(np.float32)}
    n = int(rng.integers(MOST + 1))
    if kind == "cloud":
        return rng.standard_normal((n, 3)).astype(np.float32)
    if kind in ("graph", "bare"):
        n_edges = int(rng.integers(2 * MOST + 1)) if n else 0
        links = rng.integers(n, size=(n_edges, 2), dtype=np.int32) if n else None
        if kind == "bare":
            return GraphInstance(rng.integers(7, size=n), None, links)
        edges = rng.standard_normal((n_edges, 3)) if n else None
        return GraphInstance(rng.standard_normal((n, 2)).astype(np.float32), edges, links)
    if kind == "sequence":
        return tuple(rng.integers(5, size=n))
    rows = rng.standard_normal((n, 2)).astype(np.float32)
    if kind == "stacked":
        return rows
    return tuple({"place": row, "kind": int(rng.integers(5))} for row in rows)


def total_of(observation: Any) -> float:
    """Return the sum of an observation's numbers, which shows whether it arrived whole."""
    if observation is None:
        return 0.0
    if isinstance(observation, dict):
        return sum(map(total_of, observation.values()))
    if isinstance(observation, tuple):
        return sum(map(total_of, observation))
    return float(np.sum(observation, dtype=np.float64))


def arrays_of(observation: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an observation as it should be stored, by dotted name."""
    if isinstance(observation, GraphInstance):
        nodes, edges, links = observation
        found = {"nodes": nodes, "edge_links": np.zeros((0, 2)) if links is None else links}
        if nodes.ndim == 2:  # it is no bare one
            found["edges"] = np.zeros((0, 3)) if edges is None else edges
        return found
    if isinstance(observation, dict):
        return {
            f"{name}.{below}".rstrip("."): array
            for name, value in observation.items()
            for below, array in arrays_of(value).items()
        }
    if isinstance(observation, tuple) and observation and isinstance(observation[0], dict):
        return {name: np.array([each[name] for each in observation]) for name in observation[0]}
    return {"": np.asarray(observation)}

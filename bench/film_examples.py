"""Film what examples have learned: episodes of their agents, as GIFs for the gallery.

    python bench/learning_curves.py cartpole_ppo --seeds 0 --runs runs/cartpole_ppo
    python bench/film_examples.py cartpole_ppo runs/cartpole_ppo/0

An example goes on with its finished run, so that it builds its agent itself, and is filmed where it
would save the model.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
from draw_clouds_and_graphs import AGENT, GOAL, JAW, POINT, lay_out, load
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Affine2D

from parllel.runners import record_side_by_side, record_video
from parllel.torch.agents import Agent
from support.machine import describe_machine

VIDEOS = Path(__file__).resolve().parents[1] / "docs" / "videos"


class RandomAgent:
    """Takes any action: what an agent that learned is compared with."""

    def __init__(self, n_actions: int) -> None:
        self.n_actions, self.rng = n_actions, np.random.default_rng(0)

    def step(self, observation: object, *, deterministic: bool = False) -> tuple[np.ndarray, dict]:
        return self.rng.integers(self.n_actions, size=len(observation)), {}


class Smaller(gym.Wrapper):
    """Show every n-th pixel of every n-th row of what an environment shows."""

    def __init__(self, env: gym.Env, every: int) -> None:
        super().__init__(env)
        self.every = every

    def render(self) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(self.env.render())[:: self.every, :: self.every])


class Drawn(gym.Wrapper):
    """Show a picture of the environment, which `draw(env, axes)` draws."""

    render_mode = "rgb_array"

    def __init__(self, env: gym.Env, draw: Callable[[Any, Any], None]) -> None:
        super().__init__(env)
        self.draw = draw

    def render(self) -> np.ndarray:
        figure = Figure(figsize=(2.4, 2.4), dpi=100)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        self.draw(self.env, axes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_grasp(env: Any, axes: Any) -> None:
    """Draw the object where it lies, and the gripper turned above it."""
    axes.scatter(env.points[:, 0], env.points[:, 1], s=8, c=POINT)
    turn = Affine2D().rotate(env.angle) + axes.transData
    width, length = JAW
    x = 1.0 if env.period > 4 else -length / 2  # at a mug's handle, at a bar's middle
    for y in (-1.5, 1.5):
        jaw = Rectangle((x, y - width / 2), length, width, color=AGENT)
        jaw.set_transform(turn)
        axes.add_patch(jaw)
    axes.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])


def draw_maze(env: Any, axes: Any) -> None:
    """Draw halls and their links, with the agent and the goal."""
    graph = env.look()
    places = lay_out(len(graph.nodes), graph.edge_links)
    for one, other in graph.edge_links:
        axes.plot(*places[[one, other]].T, color="#9ca3af", linewidth=1, zorder=1)
    axes.scatter(*places.T, s=24, c=POINT, zorder=2)
    axes.scatter(*places[env.goal], s=90, c=GOAL, zorder=3)
    axes.scatter(*places[env.here], s=60, c=AGENT, zorder=4)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])


def pictures_of_gymnasium(example: ModuleType, every: int = 2) -> gym.Env:
    """Make an example's environment such that gymnasium draws it."""
    with patch.object(gym, "make", partial(gym.make, render_mode="rgb_array")):
        return Smaller(example.make_env(), every)


class Bytes(gym.Wrapper):
    """Show colors in [0, 1] as bytes."""

    def render(self) -> np.ndarray:
        return (np.asarray(self.env.render()) * 255).astype(np.uint8)


def pictures_of_breakout(example: ModuleType) -> gym.Env:
    env = example.make_env()
    env.unwrapped.render_mode = "rgb_array"
    return Bytes(env)


def pictures_of_landmarks(example: ModuleType) -> Any:
    env = example.simple_spread_v3.parallel_env(N=3, max_cycles=25, render_mode="rgb_array")
    render = env.render
    env.render = lambda: np.ascontiguousarray(render()[::3, ::3])
    return env


@dataclass(frozen=True)
class Film:
    """How an example is filmed.

    Args:
        make_env: makes the environment, with pictures, for the example's module.
        options: of `record_video`.
        names: what the agents are called, in the order in which the example saves them. Several
            agents are shown side by side.
        n_actions: number of actions, for a random agent that is shown beside the trained one; 0
            shows none.
    """

    make_env: Callable[[ModuleType], Any]
    options: dict[str, Any]
    names: tuple[str, ...] = ("trained agent",)
    n_actions: int = 0


POLES = Film(pictures_of_gymnasium, {"max_steps": 150, "n_episodes": 100, "fps": 25}, n_actions=2)
PENDULUM = Film(
    partial(pictures_of_gymnasium, every=4), {"max_steps": 600, "n_episodes": 3, "fps": 25}
)
FILMS = {
    "cartpole_ppo": POLES,
    "memory_dqn": POLES,
    "offline_dqn": POLES,
    "memory_ppo": replace(POLES, names=("with a memory", "without a memory"), n_actions=0),
    "pendulum_ppo": PENDULUM,
    "pendulum_sac": PENDULUM,
    "pixels_ppo": Film(
        lambda example: example.make_env("rgb_array"),
        {"max_steps": 150, "n_episodes": 100, "deterministic": False},
        n_actions=6,
    ),
    "pixels_dqn": Film(
        pictures_of_breakout,
        {"max_steps": 150, "n_episodes": 100, "fps": 12, "scale": 12},
        n_actions=3,
    ),
    "multi_agent_ppo": Film(pictures_of_landmarks, {"n_episodes": 4, "fps": 6}),
    "pointcloud_ppo": Film(
        lambda example: Drawn(example.Grasp(), draw_grasp), {"n_episodes": 8, "fps": 3}
    ),
    "graph_ppo": Film(
        lambda example: Drawn(example.Maze(), draw_maze),
        {"n_episodes": 8, "fps": 3, "capacity": {"nodes": 32, "edges": 96}},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", choices=sorted(FILMS))
    parser.add_argument("run", type=Path, help="folder of a finished run of the example")
    parser.add_argument("--out", type=Path, default=VIDEOS, help="folder of the GIF")
    arguments = parser.parse_args()
    machine, begun = describe_machine(), datetime.now(UTC).isoformat(timespec="seconds")
    film, example = FILMS[arguments.example], load(arguments.example)
    config = json.loads((arguments.run / "config.json").read_text())
    path = arguments.out / f"{arguments.example}.gif"
    agents: list[Agent] = []
    returns: dict[str, list[float]] = {}

    def save(agent: Agent, _: object) -> None:
        agents.append(agent)
        if len(agents) == len(film.names):
            returns.update(shoot(film, example, agents, path))

    given = {name: config[name] for name in ("seed", "steps")}
    with patch.object(Agent, "save", save):
        example.main(example.Config(**given, out=arguments.run, resume=True))
    n_episodes = film.options.get("n_episodes", 1)
    about = {"begun": begun, "machine": machine, **given, "n_episodes": n_episodes}
    about["returns"] = returns
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"written: {path}, {path.stat().st_size:,} bytes; returns {returns}")


def shoot(
    film: Film, example: ModuleType, agents: list[Agent], path: Path
) -> dict[str, list[float]]:
    """Write the GIF; return the returns of finished episodes, by the agents' names."""
    make_env = partial(film.make_env, example)
    shown: dict[str, Any] = dict(zip(film.names, agents, strict=True))
    if film.n_actions:
        shown["random agent"] = RandomAgent(film.n_actions)
    if len(shown) > 1:
        return record_side_by_side(shown, make_env, path, seed=0, **film.options)
    ((name, agent),) = shown.items()
    return {name: record_video(agent, make_env, path, seed=0, **film.options)}


if __name__ == "__main__":
    main()

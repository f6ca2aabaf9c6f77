"""Draw the tasks of the examples of point clouds and graphs, and their learning curves, in one PNG.

The curves are those that learning_curves.py wrote.
"""

import importlib.util
import json
from types import ModuleType
from typing import Any

import numpy as np
from learning_curves import COLORS, EXAMPLES
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from support.report import RESULTS

POINT, AGENT, GOAL = "#1f5fa8", "#be123c", "#15803d"
JAW = (0.12, 0.9)  # width and length of a jaw of the gripper
LAYOUT_STEPS = 300


def main() -> None:
    figure = Figure(figsize=(14, 3.6), dpi=130, layout="constrained")
    bar, mug, maze, clouds, graphs = figure.subplots(1, 5, width_ratios=[1, 1, 1.1, 1.5, 1.5])
    draw_object(bar, is_mug=False, title="a bar, seen by the gripper")
    draw_object(mug, is_mug=True, title="a mug: taken by its handle")
    draw_maze(maze)
    draw_curves(clouds, "pointcloud_ppo")
    draw_curves(graphs, "graph_ppo")
    path = RESULTS / "clouds_and_graphs.png"
    figure.savefig(path, facecolor="white")
    print(f"written: {path}")


def load(name: str) -> ModuleType:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_object(axes: Any, *, is_mug: bool, title: str) -> None:
    """Draw a cloud from above, and the jaws of the gripper beside it."""
    env = load("pointcloud_ppo").Grasp()
    seed = next(seed for seed in range(99) if (env.reset(seed=seed), env.period > 4)[1] == is_mug)
    env.reset(seed=seed)
    env.angle = 0.9
    points = env.look()
    axes.scatter(points[:, 0], points[:, 1], s=12, c=points[:, 2], cmap="Blues_r", vmax=2)
    width, length = JAW
    where = [(1.0 if is_mug else -length / 2, y - width / 2) for y in (-1.5, 1.5)]
    for place in where:
        axes.add_patch(Rectangle(place, length, width, color="#6b7280"))
    axes.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def draw_maze(axes: Any) -> None:
    """Draw halls and the links between them; the agent's own, and the goal."""
    env = load("graph_ppo").Maze()
    graph, _ = env.reset(seed=5)
    places = lay_out(len(graph.nodes), graph.edge_links)
    for one, other in graph.edge_links:
        axes.plot(*places[[one, other]].T, color="#9ca3af", linewidth=1, zorder=1)
    colors = np.where(graph.nodes[:, 0] > 0, AGENT, np.where(graph.nodes[:, 1] > 0, GOAL, POINT))
    axes.scatter(*places.T, s=36, c=colors, zorder=2)
    for node, name in ((int(env.here), "agent"), (int(env.goal), "goal")):
        axes.annotate(name, places[node], (4, 4), textcoords="offset points", fontsize=8)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title("a maze of halls with three doors", fontsize=9)


def lay_out(n_nodes: int, links: np.ndarray) -> np.ndarray:
    """Return places [n, 2] of nodes: links are springs, and all nodes push each other away."""
    places = np.random.default_rng(0).standard_normal((n_nodes, 2))
    for step in range(LAYOUT_STEPS):
        apart = places[:, None] - places[None]
        push = (apart / ((apart**2).sum(-1, keepdims=True) + 0.05)).sum(1)
        pull = np.zeros_like(places)
        np.add.at(pull, links[:, 0], places[links[:, 1]] - places[links[:, 0]])
        places += 0.1 * (1 - step / LAYOUT_STEPS) * (push + pull)
    return places


def draw_curves(axes: Any, name: str) -> None:
    """Draw the curves of an example that were measured."""
    runs = json.loads((RESULTS / f"learning_{name}_cpu.json").read_text())["runs"]
    for run, color in zip(runs, COLORS, strict=False):
        label = f"seed {run['seed']}: {run['score']:.2f}"
        axes.plot(*zip(*run["curve"], strict=True), color=color, label=label, linewidth=1.2)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps")
    axes.set_title(f"{name}.py: return of an episode", fontsize=9)
    axes.grid(axis="y", color="#d1d5db")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()

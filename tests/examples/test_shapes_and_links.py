"""The tasks of clouds and graphs are hard: nothing but shape and links tells what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from example_runs import changed, load, train
from optional import needs
from parllel import Jagged

pytestmark = needs("tyro")

STEPS = 24 * 1024  # of runs that can't learn, and of those that could


class MeanAndNumber(nn.Module):
    """Features of the mean of a cloud and of its number of points alone."""

    n_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())

    def forward(self, clouds: Jagged) -> torch.Tensor:
        clouds = clouds.packed()
        means = torch.segment_reduce(clouds.values, "mean", lengths=clouds.counts)
        return self.layers(torch.cat([means, clouds.counts[:, None] / 64], dim=1))


def score(name: str, folder: Path, **constants: Any) -> float:
    """Return the mean return of an example's last 100 episodes, with constants changed."""
    module = load(name)
    with changed(module, constants):
        _, result = train(module, folder, steps=STEPS, storage="local", seed=0)
    return float(result)


def test_clouds_have_no_mean_and_one_size_and_any_number_of_points() -> None:
    example = load("pointcloud_ppo")
    env, counts = example.Grasp(), set()
    for seed in range(300):
        cloud, _ = env.reset(seed=seed)
        assert cloud in env.observation_space
        np.testing.assert_allclose(cloud.mean(axis=0), 0, atol=1e-6)
        assert np.mean(np.sum(cloud**2, axis=1)) == pytest.approx(1, rel=1e-5)
        counts.add(len(cloud))
    assert counts == set(range(example.FEWEST, example.MOST + 1))


def test_a_grasp_is_right_where_the_shape_says_so() -> None:
    """A bar, whose long side is in x at angle 0, is taken there from both sides, a mug from one."""
    env = load("pointcloud_ppo").Grasp()
    for seed in range(20):
        cloud, _ = env.reset(seed=seed)
        is_bar = env.period < 4
        rewards = []
        for angle in (0, np.pi / 2, np.pi):
            env.reset(seed=seed)
            env.angle = angle
            spread = np.abs(env.look()).max(axis=0)
            assert is_bar is False or (spread[0] > spread[1]) == (angle != np.pi / 2)
            rewards.append(env.step(2)[1])
        assert rewards == [1, 0, is_bar]
        assert len(cloud) == len(env.look())


def test_each_door_leads_back_and_mazes_are_whole() -> None:
    example = load("graph_ppo")
    env = example.Maze()
    for seed in range(50):
        graph, _ = env.reset(seed=seed)
        links = {tuple(link) for link in graph.edge_links.tolist()}
        assert {(b, a) for a, b in links} == links
        n_halls = len(graph.nodes)
        assert graph in env.observation_space
        assert len(graph.edge_links) == example.N_DOORS * n_halls
        assert np.bincount(graph.edge_links[:, 0]).tolist() == [example.N_DOORS] * n_halls
        seen, new = set(), {env.here}
        while new:
            seen |= new
            new = {b for a, b in links if a in new} - seen
        assert len(seen) == n_halls
        doors = [
            door
            for door, link in zip(graph.edges, graph.edge_links, strict=True)
            if link[0] == env.here
        ]
        assert sorted(doors) == [0, 1, 2]
        behind = {
            int(door): int(b)
            for door, (a, b) in zip(graph.edges, graph.edge_links, strict=True)
            if a == env.here
        }
        env.step(1)
        assert env.here == behind[1]


@pytest.mark.long
def test_nothing_is_learned_of_the_mean_and_the_number_of_points(tmp_path: Path) -> None:
    """A random policy has 0.05, and one that always closes the gripper at once 0.09."""
    blind = score("pointcloud_ppo", tmp_path / "blind", PointNet=MeanAndNumber)
    assert blind < 0.2
    assert score("pointcloud_ppo", tmp_path / "seeing") > 2 * 0.2


@pytest.mark.long
def test_without_messages_ways_are_found_by_chance(tmp_path: Path) -> None:
    """Such a model sees which door leads to the goal itself, and walks at random before."""
    assert score("graph_ppo", tmp_path / "deaf", N_ROUNDS=0) < 0.4
    assert score("graph_ppo", tmp_path / "hearing") > 0.7

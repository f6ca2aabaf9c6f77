"""Observations of different lengths in cages: what arrives, and what is refused and how."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from jagged_envs import MOST, Shapes, arrays_of, draw

from parllel import Jagged
from parllel.cages import (
    MisfitError,
    PointCloud,
    ProcessCage,
    SerialCage,
    VectorCage,
    WorkerError,
)
from parllel.tree import ArrayDict

KINDS = ("cloud", "graph", "bare", "sequence", "stacked", "pairs", "dict")


def leaf(tree: Any, name: str) -> Any:
    for part in filter(None, name.split(".")):
        tree = tree[part]
    return tree


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_observations_that_are_returned_are_those_of_the_environment(
    kind: str, make_cage: Any
) -> None:
    seen = [draw(kind, rng) for rng in (np.random.default_rng(0), np.random.default_rng(1))]
    envs = iter([Still(kind, each) for each in seen])
    if make_cage is ProcessCage:
        cage = ProcessCage(StillsByTurn, {"kind": kind, "seen": seen}, n_envs=2)
    else:
        cage = SerialCage(lambda: next(envs), n_envs=2)
    with cage:
        cage.reset_async()
        observation, _ = cage.await_step()
    for number, value in enumerate(seen):
        for name, array in arrays_of(value).items():
            found = leaf(observation, name)
            if not name.endswith("plain"):
                assert isinstance(found, Jagged)
            np.testing.assert_array_equal(found[number], array)


class Still(gym.Env):
    """Show the same observation always."""

    action_space = spaces.Discrete(2)

    def __init__(self, kind: str, seen: Any) -> None:
        self.observation_space, self._seen = Shapes(kind).observation_space, seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._seen, {}

    def step(self, action: Any) -> Any:
        return self._seen, 0.0, False, True, {}


class StillsByTurn(Still):
    """Show the observations in turn, one in each environment of the process."""

    n_made = 0

    def __init__(self, kind: str, seen: list[Any]) -> None:
        super().__init__(kind, seen[StillsByTurn.n_made % len(seen)])
        StillsByTurn.n_made += 1


def test_one_environment_gives_arrays_and_keeps_its_final_observation_as_such() -> None:
    graph = GraphInstance(np.ones((3, 2), np.float32), None, None)
    with SerialCage(Still, {"kind": "graph", "seen": graph}) as cage:
        cage.reset_async()
        observation, _ = cage.await_step()
        assert isinstance(observation, ArrayDict)
        assert {name: each.shape for name, each in observation.items()} == {
            "nodes": (3, 2),
            "edges": (0, 3),
            "edge_links": (0, 2),
        }
        cage.step_async(0)
        cage.await_step()
        assert cage.final_obs[0]["nodes"].shape == (3, 2)
        assert cage.final_obs[0]["nodes"] is not graph.nodes


NODES, LINKS = np.zeros((3, 2), np.float32), np.array([[0, 1], [2, 0]], np.int32)
EDGES = np.zeros((2, 3))
GRAPH = GraphInstance(NODES, EDGES, LINKS)
WRONG: list[tuple[str, Any, str]] = [
    ("cloud", np.zeros((MOST + 1, 3), np.float32), "observation: .*13 points, expected from 0 to"),
    ("cloud", np.zeros((4, 2), np.float32), r"observation: .*\(4, 2\), float32, expected rows of"),
    ("cloud", np.zeros(4, np.float32), r"observation: .*\(4,\), float32, expected rows"),
    ("cloud", None, "observation: .*None"),
    ("cloud", [[1, 2, 3], [4, 5]], "observation: .*list"),
    ("graph", GRAPH._replace(edge_links=LINKS + 1), r"edge_links: .*\[3, 1\] in row 1, .*3 nodes"),
    ("graph", GRAPH._replace(edge_links=LINKS - 1), r"edge_links: .*\[-1, 0\] in row 0"),
    ("graph", GRAPH._replace(edge_links=LINKS.astype(np.float32)), "edge_links: .*float32"),
    ("graph", GRAPH._replace(edge_links=LINKS.astype(bool)), "edge_links: .*bool"),
    ("graph", GRAPH._replace(edge_links=LINKS.T.reshape(1, 4)), r"edge_links: .*\(1, 4\)"),
    ("graph", GRAPH._replace(edge_links=None), "edges: .*2 edges and 0 pairs"),
    ("graph", GRAPH._replace(edges=None), "edges: .*0 edges and 2 pairs"),
    ("graph", GRAPH._replace(edges=EDGES[:1]), "edges: .*1 edges and 2 pairs"),
    ("graph", GRAPH._replace(nodes=NODES[:, 0]), r"nodes: .*\(3,\), float32"),
    ("graph", GRAPH._replace(nodes=NODES[:0]), "edge_links: .*own 0 nodes"),
    ("graph", NODES, "observation: .*expected a GraphInstance"),
    ("bare", GraphInstance(np.zeros(3, int), EDGES, LINKS), "edges: .*expected None"),
    ("sequence", np.zeros(3, np.int64), "observation: .*expected a tuple of members"),
    ("sequence", (1, (2, 3)), "observation: .*expected rows of shape"),
    ("stacked", (np.zeros(2), np.zeros(3)), "observation: .*expected rows of shape"),
    ("pairs", ({"place": np.zeros(2)},), "observation.kind|observation: .*a member 'kind'"),
    ("dict", {"cloud": np.zeros((4, 2), np.float32)}, "observation.cloud: "),
]


def run_until(cage: SerialCage, step: int) -> None:
    cage.reset_async()
    cage.await_step()
    for _ in range(step):
        cage.step_async([0, 0, 0])
        cage.await_step()


@pytest.mark.parametrize(("kind", "wrong", "message"), WRONG)
@pytest.mark.parametrize("at", [0, 2])
def test_an_observation_that_is_none_of_its_space_names_environment_seed_and_leaf(
    kind: str, wrong: Any, message: str, at: int
) -> None:
    if kind == "dict":
        wrong = {**draw("dict", np.random.default_rng(0)), **wrong}
    made = iter([{}, {"wrong": wrong, "at": at}, {}])
    with SerialCage(lambda: Shapes(kind, ends=False, **next(made)), n_envs=3, seed=5) as cage:
        with pytest.raises(MisfitError, match=message) as caught:
            run_until(cage, at)
        assert caught.value.environment == 1
        assert caught.value.seed is not None
        assert caught.value.path[0] == "observation"


def test_the_error_of_a_worker_is_the_same() -> None:
    wrong = GRAPH._replace(edge_links=LINKS + 1)
    settings = {"kind": "graph", "wrong": wrong, "at": 1, "ends": False}
    with ProcessCage(Shapes, settings, n_envs=2, seed=5) as cage:
        cage.reset_async()
        cage.await_step()
        cage.step_async([0, 0])
        with pytest.raises(WorkerError, match=r"observation.edge_links: environment 0 .*\[3, 1\]"):
            cage.await_step()


def test_random_steps_after_a_reset_end_with_arrays() -> None:
    with SerialCage(Shapes, {"kind": "dict"}, n_envs=3, seed=0) as cage:
        cage.reset_async(max_random_steps=20)
        observation, _ = cage.await_step()
    assert isinstance(observation["graph"]["nodes"], Jagged)
    assert isinstance(observation["pairs"]["place"], Jagged)


class Bag(gym.Env):
    """Have a space that can't be stored, of observations or of actions."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, **_: Any) -> Any:
        raise AssertionError("the space is refused before")

    step = reset


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Sequence(spaces.Sequence(spaces.Discrete(2))),
            "elements to be arrays",
        ),
        (spaces.Sequence(spaces.Text(3)), "expected its elements"),
        (spaces.Sequence(PointCloud(3)), "expected its elements"),
        (spaces.Sequence(spaces.Dict(a=spaces.Dict())), "observation.a: "),
    ],
)
def test_spaces_whose_elements_have_no_shape_are_refused(space: spaces.Space, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SerialCage(Bag, {"observation": space, "action": spaces.Discrete(2)})


def test_actions_of_different_lengths_are_refused() -> None:
    settings = {"observation": spaces.Discrete(2), "action": spaces.Dict(a=PointCloud(4))}
    with pytest.raises(TypeError, match=r"action.a: got PointCloud.* only observations"):
        SerialCage(Bag, settings)


@pytest.mark.parametrize("kind", ["cloud", "graph", "sequence", "dict"])
def test_vector_environments_of_such_spaces_are_refused(kind: str) -> None:
    envs = gym.vector.SyncVectorEnv([lambda: Shapes(kind)] * 2)
    with pytest.raises(TypeError, match=r"different lengths.*SerialCage or in ProcessCages"):
        VectorCage(lambda: envs)

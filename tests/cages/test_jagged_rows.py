"""Rows of different lengths that cages write in place, and what is refused at the rows."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from jagged_envs import CAPACITY, MOST, Shapes, arrays_of

from long_run import all_but_first
from parllel import ArrayDict, Jagged
from parllel.arrays import JaggedArray
from parllel.cages import (
    Cage,
    MisfitError,
    PointCloud,
    ProcessCage,
    SerialCage,
    WorkerError,
    row_specs,
)
from parllel.patterns import build_cages, build_example
from parllel.tree import allocate_tree

KINDS = tuple(CAPACITY)
N_ENVS = 3


def rows_of(kind: str, storage: str = "local", n_rows: int = N_ENVS, **settings: Any) -> Any:
    """Return rows for observations of a kind, an Array or a tree."""
    specs = row_specs(
        Shapes(kind).observation_space, (n_rows,), capacity=CAPACITY[kind], **settings
    )
    tree = allocate_tree(ArrayDict({"observation": specs}), storage)
    return tree["observation"]


def leaf(tree: Any, name: str) -> Any:
    for part in filter(None, name.split(".")):
        tree = tree[part]
    return tree


def alike(kind: str, seed: int, n_steps: int) -> Iterator[list[Any]]:
    """Yield the observations after a reset and after each step, episodes going on, of 3 cages."""
    cage = SerialCage(Shapes, {"kind": kind, "ends": False}, n_envs=N_ENVS, seed=seed)
    envs = cage._stepper._envs
    for env in envs:
        env._observe = keep(env)
    cage.reset_async()
    cage.await_step()
    yield [env.seen for env in envs]
    for _ in range(n_steps):
        cage.step_async([0] * N_ENVS)
        cage.await_step()
        yield [env.seen for env in envs]
    cage.close()


def keep(env: Any) -> Callable[[], Any]:
    """Return what makes an environment's observations, and keeps the last one."""
    observe = env._observe

    def kept() -> Any:
        result = observe()
        env.seen = result[0]
        return result

    return kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n_workers", "storage"),
    all_but_first([(0, "local"), (2, "shared"), (1, "local"), (3, "shared")], n_short=2),
)
def test_rows_hold_what_environments_gave_step_after_step(
    kind: str, n_workers: int, storage: str
) -> None:
    rows = rows_of(kind, storage)
    cages = build_cages(
        Shapes, N_ENVS, env_kwargs={"kind": kind, "ends": False}, seed=3, n_workers=n_workers
    )
    for number, expected in enumerate(alike(kind, 3, n_steps=4)):
        first = 0
        for cage in cages:
            part = rows[first] if cage.n_envs == 1 else rows[first : first + cage.n_envs]
            start(cage, part, is_reset=number == 0)
            first += cage.n_envs
        for cage in cages:
            cage.await_step()
        for row, value in enumerate(expected):
            for name, array in arrays_of(value).items():
                if isinstance(leaf(rows, name), ArrayDict):
                    array, name = np.zeros((0, 2)), f"{name}.place".lstrip(".")  # no pair
                found = leaf(rows, name)[row].to_ndarray()
                np.testing.assert_allclose(found, array, rtol=1e-6)
                assert found.shape == array.shape
    for cage in cages:
        cage.close()
    rows.close()


def start(cage: Cage, rows: Any, *, is_reset: bool) -> None:
    if is_reset:
        cage.reset_async(out_obs=rows)
    else:
        cage.step_async(np.zeros(cage.n_envs, int) if cage.n_envs > 1 else 0, out_obs=rows)


NODES, EDGES = np.zeros((3, 2), np.float32), np.zeros((2, 3))
GRAPH = GraphInstance(NODES, EDGES, np.array([[0, 1], [2, 0]]))
HUGE = np.zeros((3, 2)) + 1e300
MANY = np.zeros((2 * MOST + 1, 2), np.int32)
WRONG: list[tuple[str, Any, str]] = [
    ("cloud", np.full((2, 3), 1e300), r"observation: environment 1 .*float64 with 1e\+300"),
    ("graph", GRAPH._replace(nodes=HUGE), r"observation.nodes: environment 1 .*1e\+300"),
    (
        "graph",
        GRAPH._replace(nodes=np.zeros((MOST + 1, 2))),
        r"observation.nodes: environment 1 .*13 rows, expected at most 12, the capacity",
    ),
    (
        "graph",
        GRAPH._replace(edges=np.zeros((len(MANY), 3)), edge_links=MANY),
        r"observation.edges: environment 1 .*25 rows, expected at most 24",
    ),
    ("graph", GRAPH._replace(edges=EDGES.astype(str)), r"observation.edges: environment 1 .*<U"),
    ("bare", GraphInstance(np.array([2**40]), None, None), "observation.nodes: .*1099511627776"),
    ("bare", GraphInstance(np.array([0.5]), None, None), "observation.nodes: .*0.5"),
    ("sequence", (1,) * (MOST + 1), "observation: environment 1 .*13 rows"),
    ("sequence", (1, 2**40), "observation: environment 1 .*1099511627776"),
]


@pytest.mark.parametrize(("kind", "wrong", "message"), WRONG)
@pytest.mark.parametrize("way", ["reset", "step", "final"])
def test_what_rows_cannot_hold_names_environment_seed_and_leaf(
    kind: str, wrong: Any, message: str, way: str
) -> None:
    settings = {"wrong": wrong, "at": int(way != "reset"), "ends": False}
    settings |= {"length": 1} if way == "final" else {}
    made = iter([{"ends": False}, settings, {"ends": False}])
    rows = rows_of(kind)
    with SerialCage(lambda: Shapes(kind, **next(made)), n_envs=N_ENVS, seed=5) as cage:
        if way != "reset":
            cage.reset_async()
            cage.await_step()
        with pytest.raises(MisfitError, match=message) as caught:
            start(cage, rows, is_reset=way == "reset")  # which this cage carries out
    assert caught.value.seed is not None
    assert caught.value.environment == 1


def test_what_rows_cannot_hold_is_told_by_workers() -> None:
    wrong = GRAPH._replace(nodes=np.zeros((MOST + 1, 2)))
    settings = {"kind": "graph", "wrong": wrong, "at": 0, "ends": False}
    with ProcessCage(Shapes, settings, n_envs=2, seed=5) as cage:
        cage.reset_async(out_obs=rows_of("graph", "shared", n_rows=2))
        with pytest.raises(WorkerError, match=r"observation.nodes: environment 0 .*13 rows"):
            cage.await_step()


def test_nothing_is_written_of_an_element_behind_its_slot() -> None:
    rows = rows_of("cloud", "shared")
    (values,) = (part for name, part in rows.memory_parts.items() if name == "values")
    values[...] = np.nan
    with SerialCage(Shapes, {"kind": "cloud"}, n_envs=1, seed=0) as cage:
        cage.reset_async(out_obs=rows[1])
        cage.await_step()
    assert np.isnan(values[0]).all()
    assert np.isnan(values[2]).all()
    assert not np.isnan(rows[1].to_ndarray()).any()


def test_points_that_are_too_many_are_dropped_where_that_was_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    space = spaces.Dict(cloud=PointCloud(MOST, (2,)), graph=Shapes("graph").observation_space)
    capacity = {"cloud": 4, "graph": {"nodes": 3, "edges": 2}}
    specs = row_specs(space, (1,), capacity=capacity, on_overflow="drop")
    rows = allocate_tree(specs)
    cloud = np.arange(12, dtype=np.float32).reshape(6, 2)
    links = np.array([[0, 1], [1, 2], [2, 2]])
    graph = GraphInstance(NODES, np.zeros((3, 3)), links)

    class Dropped(Shapes):
        def __init__(self) -> None:
            super().__init__("cloud")
            self.observation_space = space

        def reset(self, **_: Any) -> Any:
            return {"cloud": cloud, "graph": graph}, {}

    with SerialCage(Dropped, n_envs=1) as cage:
        cage.reset_async(out_obs=rows[0])
        cage.await_step()
        cage.reset_async(out_obs=rows[0])
        cage.await_step()
    np.testing.assert_array_equal(rows["cloud"][0].to_ndarray(), cloud[:4])
    assert rows["cloud"].dropped.to_ndarray().tolist() == [2]
    assert rows["graph"]["edge_links"][0].to_ndarray().tolist() == links[:2].tolist()
    assert len(rows["graph"]["edges"][0].to_ndarray()) == 2
    assert sum("2 items were dropped" in record.message for record in caplog.records) == 1
    assert rows["graph"]["nodes"].on_overflow == "raise"


# Capacities


def test_the_example_has_the_capacity_of_a_cloud_by_itself() -> None:
    example = build_example(Shapes, env_kwargs={"kind": "cloud"}, storage="local")
    assert isinstance(example["observation"], JaggedArray)
    assert example["observation"].capacity == MOST
    assert isinstance(example["observation"].to_ndarray(), Jagged)
    smaller = row_specs(PointCloud(MOST), (1,), capacity=5)
    assert smaller.capacity == 5


@pytest.mark.parametrize(
    ("kind", "capacity", "error", "message"),
    [
        ("graph", None, ValueError, r"observation: Graph.*capacity=\{'nodes': 20, 'edges': 60\}"),
        ("graph", {"nodes": 3}, ValueError, r"capacity=\{'nodes': 20, 'edges': 60\}"),
        ("graph", 7, TypeError, r"name them, as in \{'nodes': 7, 'edges': 7\}"),
        ("graph", {"nodes": 3, "links": 5}, ValueError, r"got \['links'\], expected names of obs"),
        ("graph", {"nodes": 3, "edges": 0}, ValueError, "got 0 for observation.edges"),
        ("sequence", None, ValueError, r"observation: Sequence.*capacity=100\)"),
        ("sequence", 2.5, TypeError, "got 2.5 for observation, expected an integer"),
        ("pairs", {"place": 3}, TypeError, "expected an integer"),
        ("dict", 7, TypeError, r"a tree of .*; name the leaves, as in \{'bare': 7\}"),
        ("dict", {"plain": 7}, ValueError, "capacity: got 7 for observation.plain, whose values"),
        ("dict", {"clouds": 7}, ValueError, r"got \['clouds'\], expected names of observation:"),
        (
            "dict",
            {name: most for name, most in CAPACITY["dict"].items() if name != "graph"},
            ValueError,
            r"observation.graph: .*capacity=\{'graph': \{'nodes': 20, 'edges': 60\}\}\)",
        ),
    ],
)
def test_capacities_that_are_missing_or_wrong_say_how_to_give_them(
    kind: str, capacity: Any, error: type[Exception], message: str
) -> None:
    if kind == "dict" and isinstance(capacity, dict) and len(capacity) == 1:
        capacity = {**CAPACITY["dict"], **capacity}
    with pytest.raises(error, match=message):
        build_example(Shapes, env_kwargs={"kind": kind}, storage="local", capacity=capacity)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_memory_that_may_grow_is_refused_where_environments_write(n_envs: int) -> None:
    """Environments would go on to write to the memory before."""
    rows = JaggedArray((n_envs,), "f4", feature_shape=(3,), capacity=MOST, on_overflow="grow")
    with (
        SerialCage(Shapes, {"kind": "cloud"}, n_envs=n_envs) as cage,
        pytest.raises(ValueError, match="JaggedArray whose memory may grow"),
    ):
        cage.reset_async(out_obs=rows)


def test_rows_of_one_environment_with_an_axis_too_many_are_refused() -> None:
    with (
        SerialCage(Shapes, {"kind": "cloud"}, n_envs=1) as cage,
        pytest.raises(ValueError, match=r"slots of shape \(1, 12, 3\), expected \(12, 3\)"),
    ):
        cage.reset_async(out_obs=rows_of("cloud", n_rows=1))

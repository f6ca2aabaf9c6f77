"""docs/tour.md names functions that exist, in the order in which they are called."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from parllel.arrays import Array
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import BasicSampler

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text()
STATION = re.compile(r"`([\w/]+\.py)` `([\w.]+)`")  # a file of parllel/, and a function in it

Station = tuple[str, str]


def stations_of(text: str) -> list[Station]:
    """Return the files and functions that a text names, in its order."""
    return STATION.findall(text)


def section(title: str) -> str:
    """Return the part of the tour below a title, up to the next title of that level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TOUR, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def names_in(file: str) -> set[str]:
    """Return the functions, methods and classes of a file of the package."""
    names = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + child.name)
                walk(child, f"{prefix}{child.name}.")

    walk(ast.parse((ROOT / "parllel" / file).read_text()), "")
    return names


@contextmanager
def calls() -> Iterator[list[Station]]:
    """Record the calls of Python functions of the package, in their order."""
    made: list[Station] = []
    folders = (ROOT / "parllel", ROOT / "kernels")

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        path = Path(frame.f_code.co_filename).resolve()
        for folder, prefix in zip(folders, ("", "kernels/"), strict=True):
            if path.is_relative_to(folder):
                file = prefix + path.relative_to(folder).as_posix()
                made.append((file, frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield made
    finally:
        sys.setprofile(before)


def first_missing(wanted: list[Station], made: list[Station]) -> Station | None:
    """Return the first station that is not called after the ones before it; None if all are."""
    rest = iter(made)
    return next((station for station in wanted if station not in rest), None)


class Random:
    """An agent that acts at random and gives no values."""

    def step(self, observation: Array, *, deterministic: bool = False) -> tuple[torch.Tensor, dict]:
        return torch.randint(2, (len(observation),)), {}


@pytest.fixture
def sampler() -> Iterator[BasicSampler]:
    example = build_example(CartPoleEnv, storage="local")
    agent = Random()
    samples = build_sample_tree(example, agent, batch_shape=(4, 2), full_size=16)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    cages = build_cages(CartPoleEnv, 2, seed=0, n_workers=0)
    yield BasicSampler(cages, agent, samples, replay=replay)
    for cage in cages:
        cage.close()


def test_the_tour_names_what_exists() -> None:
    stations = stations_of(TOUR)
    assert len(stations) > 20
    assert [station for station in stations if station[1] not in names_in(station[0])] == []


def test_a_time_step_is_called_as_the_tour_tells(sampler: BasicSampler) -> None:
    sampler.collect_batch()
    with calls() as made:
        sampler.collect_batch()
    assert first_missing(stations_of(section("One time step")), made) is None


def test_a_minibatch_is_called_as_the_tour_tells(sampler: BasicSampler) -> None:
    replay = sampler.replay
    assert isinstance(replay, ReplayBuffer)
    sampler.collect_batch()
    with calls() as made:
        replay.sample(8)
    assert first_missing(stations_of(section("One minibatch")), made) is None


def test_a_call_that_comes_too_late_is_found() -> None:
    a, b, c = ("a.py", "f"), ("a.py", "g"), ("b.py", "f")
    assert first_missing([a, c], [a, b, c]) is None
    assert first_missing([b, a], [a, b, c]) == a

"""docs/gpu.md says how many launches, copies and waits something takes; the simulation counts."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import ArrayDict, cuda
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import Minibatches
from parllel.samplers import BasicSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Clock
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage

TABLE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
ROW = re.compile(r"^\| (?P<what>[^|]+?) \|(?P<counts>(?: *\d+ *\|){5})$", re.MULTILINE)
T, B = 5, 4


class Agent:
    """Returns device arrays that were made once, as an agent on a GPU does."""

    def __init__(self) -> None:
        self._results: dict[int, Any] = {}

    def _result(self, observation: Any) -> Any:
        n = len(observation)
        if n not in self._results:
            self._results[n] = (
                cuda.to_device(np.zeros(n, np.int64)),
                cuda.to_device(np.zeros(n, np.float32)),
            )
        return self._results[n]

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, value = self._result(observation)
        return action, {"value": value}

    def value(self, observation: Any) -> Any:
        return self._result(observation)[1]


def make_sampler(**window: int) -> BasicSampler:
    agent = Agent()
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B), **window)
    return BasicSampler([SerialCage(Clock, n_envs=B)], agent, samples)


def sampled() -> ArrayDict:
    return make_sampler().collect_batch()[0]


class Step:
    """One step of a sampler in the middle of a batch, from acting to its end."""

    def __init__(self) -> None:
        self._sampler = make_sampler()
        self._sampler.collect_batch()
        self._sampler._rotate()

    def __call__(self) -> None:
        (group,) = self._sampler._groups
        group.act(self._sampler.agent, 0)
        group.finish(0)


def rotation(full_size: int, n_before: int) -> Callable[[], Any]:
    samples = make_sampler(full_size=full_size).samples
    for _ in range(n_before):
        samples.rotate()
    return samples.rotate


def reading(read: Callable[[ArrayDict], Any]) -> Callable[[], Any]:
    samples = sampled()
    return lambda: read(samples)


def writing() -> Callable[[], Any]:
    samples = sampled()["agent_info"]
    index, values = (np.array([0, 2]), np.array([1, 1])), cuda.to_device(np.zeros(2, np.float32))

    def write() -> None:
        samples[index] = {"value": values}

    return write


def minibatch() -> Callable[[], Any]:
    minibatches = Minibatches(2, np.random.default_rng(0)).of(sampled())
    next(minibatches)
    return lambda: next(minibatches)


def minibatch_pass() -> Callable[[], Any]:
    samples, minibatches = sampled(), Minibatches(2, np.random.default_rng(0))
    list(minibatches.of(samples))
    return lambda: list(minibatches.of(samples))


def transform(make: Callable[[], Any]) -> Callable[[], Any]:
    batch, step = EstimateAdvantage()(sampled()), make()
    step(batch)  # allocates its outputs
    return lambda: step(batch)


OPERATIONS: dict[str, Callable[[], Callable[[], Any]]] = {
    "`tree.rotate()` where a leaf wraps": lambda: rotation(T, 1),
    "`tree.rotate()` where none wraps": lambda: rotation(3 * T, 0),
    "a time step of `BasicSampler`": Step,
    "its reset": lambda: make_sampler().reset,
    "`tree.to_torch()`": lambda: reading(ArrayDict.to_torch),
    "`tree[t, b].to_torch()`, integer arrays": lambda: reading(
        lambda samples: samples["agent_info"][[0, 2], [1, 3]].to_torch()
    ),
    "`tree[t, b] = ...`, integer arrays, from the device": writing,
    "`array.to_ndarray()`": lambda: reading(lambda samples: samples["reward"].to_ndarray()),
    "a minibatch of `Minibatches`": minibatch,
    "a pass of 2 minibatches over a new batch": minibatch_pass,
    "`EstimateAdvantage`": lambda: transform(EstimateAdvantage),
    "`NormalizeAdvantage` (of up to 8,000 rows; of more: 4)": lambda: transform(NormalizeAdvantage),
    "`ClipRewards`": lambda: transform(ClipRewards),
}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    before, found = copy.copy(cuda.counters), {}
    yield found
    found |= cuda.counters.since(before).as_dict()


@pytest.mark.parametrize("what", OPERATIONS)
def test_the_documents_say_what_the_simulation_counts(what: str) -> None:
    rows = {row["what"]: row["counts"] for row in ROW.finditer(TABLE.read_text())}
    documented = [int(cell) for cell in rows[what].split("|")[:-1]]
    with simulated_cuda("lazy"):
        run = OPERATIONS[what]()
        with counted() as counts:
            run()
    names = (
        "launches",
        "copies_to_device",
        "copies_to_host",
        "event_synchronizations",
        "stream_synchronizations",
    )
    assert [counts[name] for name in names] == documented
    assert counts["device_synchronizations"] == 0


def test_every_row_of_the_documents_is_counted() -> None:
    assert {row["what"] for row in ROW.finditer(TABLE.read_text())} == set(OPERATIONS)

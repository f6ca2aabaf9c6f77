"""Torch's CUDA graphs in a simulation: operations that run with each replay, and only then."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, cuda
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from parllel.testing.simulated_cuda import NotImitatedError, simulated_cuda, torch_graphs
from parllel.torch.operators import ReplayDraw, estimate_advantage, gather_rows
from schedules import each_schedule
from tests.step_list import Chances, Model, Shape

pytestmark = pytest.mark.simulation("they test the simulation itself")

REAL = {"CUDAGraph": torch.cuda.CUDAGraph, "graph": torch.cuda.graph}


@pytest.mark.parametrize("name", ["capture_begin", "capture_end", "replay", "reset", "pool"])
def test_torchs_graph_takes_the_same_arguments(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(getattr(graph, name)).parameters)
        for graph in (torch_graphs.CUDAGraph, REAL["CUDAGraph"])
    )
    assert ours == theirs[: len(ours)]  # newer ones of torch are not imitated


def test_torchs_context_takes_the_same_arguments() -> None:
    ours, theirs = (
        list(inspect.signature(context.__init__).parameters)
        for context in (torch_graphs.graph, REAL["graph"])
    )
    assert ours == theirs[: len(ours)]  # newer ones of torch are not imitated


def test_torch_has_its_own_classes_back() -> None:
    with simulated_cuda("eager"):
        assert torch.cuda.graph is torch_graphs.graph
    assert torch.cuda.graph is REAL["graph"]
    assert torch.cuda.CUDAGraph is REAL["CUDAGraph"]


@each_schedule
def test_operations_run_with_each_replay_and_not_before(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        array = Array((2,), np.float32, storage="device")
        values, total = array.to_torch(), torch.zeros(2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = values * 2
            total += doubled
            last = total.clone()[1:]
        assert total.tolist() == [0, 0]
        assert doubled.isnan().all()
        for number, expected in ((1.0, 2.0), (5.0, 12.0)):
            array[...] = number
            graph.replay()
            cuda.synchronize()
            assert total.tolist() == [expected] * 2
            assert last.tolist() == [expected]
        assert simulation.counters.graph_launches == 2


Reader = Callable[[torch.Tensor], Any]


def read_refused(read: Reader, value: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="CaptureUnsupported"):
        read(value)


READERS: list[Reader] = [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, repr]


@pytest.mark.parametrize("read", READERS)
def test_values_are_not_read_in_a_capture(read: Reader) -> None:
    with simulated_cuda("lazy"):
        value = Array((1,), np.float32, storage="device").to_torch()
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="CaptureInvalidated"), torch.cuda.graph(graph):
            read_refused(read, value)
        with pytest.raises(RuntimeError, match="without a preceding"):
            graph.replay()
        assert read(value) is not None


def test_what_is_not_imitated_says_so() -> None:
    with simulated_cuda("lazy"):
        with pytest.raises(NotImitatedError):
            torch.cuda.CUDAGraph(keep_graph=True)
        with pytest.raises(NotImitatedError):
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=object())
        with pytest.raises(RuntimeError, match="no capture was begun"):
            torch.cuda.CUDAGraph().capture_end()


def learn(kind: type[ReplayBuffer], *, captures: bool) -> tuple[list[Any], int]:
    """Return losses and weights of updates that draw, learn and give new priorities."""
    shape = Shape(T=2, B=3, n_windows=4, n_steps=2)
    model = Model(shape, Chances(), seed=1, storage="device", kind=kind)
    for _ in range(3):
        model.write_batch()
    weight = torch.ones(1, requires_grad=True)
    draw = ReplayDraw(model.replay, 5)

    def update() -> torch.Tensor:
        minibatch = draw.sample()
        loss = ((minibatch["n_step_return"] - weight) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight.sub_(gradient, alpha=0.1)
        return loss.detach()

    loss, found = update(), []
    graph = torch.cuda.CUDAGraph()
    if captures:
        with torch.cuda.graph(graph):
            loss = update()
    for _ in range(4):
        model.write_batch()
        if captures:
            graph.replay()
            cuda.synchronize()
        else:
            loss = update()
        found.append([loss.item(), weight.item()])
    return found, int(model.replay._n_drawn)


@each_schedule
@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_captured_update_learns_what_calls_learn(
    schedule: str, seed: int, kind: type[ReplayBuffer]
) -> None:
    with simulated_cuda(schedule, seed):
        expected = learn(kind, captures=False)
    with simulated_cuda(schedule, seed):
        assert learn(kind, captures=True) == expected
    assert expected[1] == 5


@each_schedule
@pytest.mark.parametrize("storage", ["local", "device"])
def test_operators_that_compute_run_with_each_replay(
    schedule: str, seed: int, storage: str
) -> None:
    """Of tensors of the host, and over device memory."""
    with simulated_cuda(schedule, seed):
        reward = Array((3, 2), np.float32, storage=storage)
        value, no = torch.zeros(4, 2), torch.zeros(3, 2, dtype=torch.bool)
        arguments = reward.to_torch(), value, no, no, torch.zeros(3, 2)
        index, graph = torch.tensor([2, 0]), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            advantage, _ = estimate_advantage(*arguments, discount=1.0, gae_lambda=1.0)
            (found,) = gather_rows([advantage], index)
        assert found.isnan().all()
        for number in (1.0, 5.0):
            reward[...] = number
            graph.replay()
            cuda.synchronize()
            assert found.tolist() == [[number] * 2, [3 * number] * 2]

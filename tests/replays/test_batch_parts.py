"""Parts of a batch that a program gathers itself, and captures: those of `Minibatches.of`."""

from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import Array, ArrayDict, FrameArray, Jagged, JaggedArray, cuda
from parllel.replays import Minibatches
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule

T, B, N = 4, 3, 3


def make_batch(storage: str = "local", *, has_frames: bool = False, **ring: Any) -> ArrayDict:
    options: Any = {"storage": storage, "padding": 1, **ring}
    observation: Array = Array((T, B), np.float32, feature_shape=(2,), **options)
    if has_frames:
        observation = FrameArray((T, B), np.uint8, (2, 2), **options)
    number = Array((T, B), np.int64, **options)
    number[...] = np.arange(T * B).reshape(T, B)
    return ArrayDict({"observation": observation, "number": number})


def minibatches() -> Minibatches:
    return Minibatches(N, np.random.default_rng(3))


def test_parts_are_the_minibatches_of_passes() -> None:
    batch = make_batch()
    expected = [part["number"].tolist() for part in minibatches().of(batch, n_passes=2)]
    parts, found = minibatches().bind(batch), []
    for _ in range(2):
        parts.shuffle()
        found += [parts.gather(number)["number"].tolist() for number in range(N)]
    assert found == expected


@pytest.mark.simulation("it launches captured graphs of the simulation")
@each_schedule
@pytest.mark.parametrize("has_frames", [False, True])
def test_a_replay_gathers_by_the_order_that_was_drawn_last(
    schedule: str, seed: int, has_frames: bool
) -> None:
    expected = [part["number"].tolist() for part in minibatches().of(make_batch(), n_passes=3)]
    with simulated_cuda(schedule, seed):
        stream, found = cuda.new_stream(), []
        with cuda.use_stream(stream):
            batch = make_batch("device", has_frames=has_frames)
            parts = minibatches().bind(batch)
            parts.shuffle()
            graphs = []
            for number in range(N):
                stream.begin_capture()
                tensors = parts.gather(number)
                graphs.append(stream.end_capture())
            for number in range(3):
                for graph in graphs:
                    graph.launch()
                    found.append([each - number for each in tensors["number"].tolist()])
                parts.shuffle()
                batch["number"][...] = np.arange(T * B).reshape(T, B) + number + 1
        assert found == expected


@pytest.mark.simulation("it captures a simulated stream")
def test_an_order_is_not_drawn_in_a_capture() -> None:
    with simulated_cuda("lazy"):
        parts, stream = minibatches().bind(make_batch("device")), cuda.new_stream()
        with cuda.use_stream(stream):
            stream.begin_capture()
            with pytest.raises(RuntimeError, match="a copy from the host can't be captured"):
                parts.shuffle()


def test_a_batch_that_moved_is_refused() -> None:
    batch = make_batch(full_size=2 * T)
    parts = minibatches().bind(batch)
    batch.rotate()
    with pytest.raises(RuntimeError, match="the window of the batch has moved"):
        parts.shuffle()
    batch.rotate()
    parts.shuffle()


def test_a_part_has_an_order_and_a_number() -> None:
    parts = minibatches().bind(make_batch())
    with pytest.raises(RuntimeError, match="call shuffle before"):
        parts.gather(0)
    parts.shuffle()
    for number in (-1, N):
        with pytest.raises(IndexError, match=f"got {number}, expected a part below {N}"):
            parts.gather(number)


def test_parts_of_memory_that_may_grow_are_refused() -> None:
    """Bound rows would stay those of the memory before; a pass by `of` finds the new ones."""
    clouds = JaggedArray((3, 2), "float32", capacity=1, on_overflow="grow")
    batch = ArrayDict({"cloud": clouds, "number": Array((3, 2), "int64")})
    batch["number"][...] = np.arange(6).reshape(3, 2)
    with pytest.raises(ValueError, match="cloud: got a JaggedArray whose memory may grow"):
        Minibatches(2, np.random.default_rng(0)).bind(batch)
    passes = Minibatches(2, np.random.default_rng(0))
    for n_items in (1, 5, 20):
        clouds[...] = [[[t * 2 + b] * n_items for b in range(2)] for t in range(3)]
        for part in passes.of(batch):
            expected = [[number] * n_items for number in part["number"].tolist()]
            assert [each.tolist() for each in part["cloud"]] == expected


def test_a_jagged_is_no_leaf_of_a_batch() -> None:
    batch = ArrayDict({"cloud": Jagged.of([[1], [2, 3]]).unsqueeze(0)})
    with pytest.raises(TypeError, match="cloud: got a Jagged, which is only read; expected an Arr"):
        next(Minibatches(2, np.random.default_rng(0)).of(batch))

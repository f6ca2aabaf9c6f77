"""Advantages and moments in a captured CUDA graph: those of eager calls, of the batch as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import Array, ArrayDict, cuda
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, RunningMoments
from schedules import each_schedule

pytestmark = pytest.mark.simulation("they launch captured graphs of the simulation")

T, B = 5, 3


def make_batch(storage: str, steps: int = T, **ring: Any) -> ArrayDict:
    floats = {
        name: Array((steps, B), np.float32, storage=storage, **ring)
        for name in ("reward", "final_value")
    }
    flags = {
        name: Array((steps, B), bool, storage=storage, **ring)
        for name in ("terminated", "truncated")
    }
    value = Array((steps, B), np.float32, padding=1, storage=storage, **ring)
    return ArrayDict({**floats, **flags, "agent_info": {"value": value}})


def fill(batch: ArrayDict, number: int) -> None:
    rng = np.random.default_rng(number)
    for _, leaf in batch.walk():
        rows = leaf[: len(leaf) + leaf.padding]
        rows[...] = (rng.random(rows.shape) < 0.2) if leaf.dtype == bool else rng.random(rows.shape)


def learn(batch: ArrayDict, estimate: EstimateAdvantage, normalize: NormalizeAdvantage) -> Any:
    return normalize(estimate(batch))


def results(batch: ArrayDict) -> list[Any]:
    return [batch[name].to_ndarray().tolist() for name in ("advantage", "return_")]


@each_schedule
@pytest.mark.parametrize("steps", [T, 300])  # of the second one time is divided
def test_a_replay_computes_what_the_next_call_would(schedule: str, seed: int, steps: int) -> None:
    transforms = EstimateAdvantage(), NormalizeAdvantage()
    expected = []
    with simulated_cuda(schedule, seed):
        batch = make_batch("device", steps)
        for number in range(4):
            fill(batch, number)
            expected.append(results(learn(batch, *transforms)))
    assert len({str(each) for each in expected}) == 4
    transforms = EstimateAdvantage(), NormalizeAdvantage()
    with simulated_cuda(schedule, seed):
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            batch = make_batch("device", steps)
            fill(batch, 0)
            found = [results(learn(batch, *transforms))]
            stream.begin_capture()
            learned = learn(batch, *transforms)
            graph = stream.end_capture()
            for number in range(1, 4):
                fill(batch, number)
                graph.launch()
                found.append(results(learned))
    assert found == expected


@contextmanager
def capturing() -> Iterator[None]:
    stream = cuda.new_stream()
    with cuda.use_stream(stream):
        stream.begin_capture()
        yield
        stream.end_capture()


def test_a_window_that_moves_is_not_captured() -> None:
    with simulated_cuda("lazy"):
        batch, estimate = make_batch("device", full_size=2 * T), EstimateAdvantage()
        estimate(batch)
        with capturing(), pytest.raises(RuntimeError, match=r"reward of a ring with several"):
            estimate(batch)


def test_rows_that_are_not_valid_are_not_captured() -> None:
    with simulated_cuda("lazy"):
        valid = Array.from_numpy(np.ones((T, B), bool), storage="device")
        batch, estimate = ArrayDict({**make_batch("device"), "valid": valid}), EstimateAdvantage()
        estimate(batch)
        with capturing(), pytest.raises(RuntimeError, match="a copy to the host can't be"):
            estimate(batch)


@pytest.mark.parametrize("n_before", [0, 1])
def test_moments_are_updated_behind_a_captured_reset_alone(n_before: int) -> None:
    with simulated_cuda("lazy"):
        rows = make_batch("device")["reward"]
        moments = RunningMoments(rows, feature_shape=())
        moments.update(rows)
        moments.reset()
        for _ in range(n_before):
            moments.update(rows)
        with capturing():
            with pytest.raises(RuntimeError, match="moments that are not reset in the same graph"):
                moments.update(rows)
            moments.reset()
            moments.update(rows)
            with pytest.raises(RuntimeError, match="moments that are not reset in the same graph"):
                moments.update(rows)


def test_a_normalization_reads_the_moments_at_its_replay() -> None:
    with simulated_cuda("lazy"):
        rows = make_batch("device")["reward"]
        moments, stream = RunningMoments(rows, feature_shape=()), cuda.new_stream()
        with cuda.use_stream(stream):
            rows[...] = 1
            moments.update(rows)
            moments.normalize(rows)
            stream.begin_capture()
            out = moments.normalize(rows)
            graph = stream.end_capture()
            rows[...] = 3
            moments.update(rows)
            graph.launch()
            assert out.to_ndarray().tolist() == [[1.0] * B] * T

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


@each_schedule
@pytest.mark.parametrize("agents", [(), (2,)])
def test_a_replay_reads_which_rows_are_valid(
    schedule: str, seed: int, agents: tuple[int, ...]
) -> None:
    """With flags of whole environments for all of an agent axis, too."""

    def make_valid(storage: str) -> ArrayDict:
        batch = make_batch(storage, feature_shape=agents)
        for name in ("terminated", "truncated", "valid"):
            batch[name] = Array((T, B), bool, storage=storage)
        return batch

    def fill_some(batch: ArrayDict, number: int) -> None:
        fill(batch, number)
        batch["valid"][...] = (
            np.random.default_rng(number).random((T, B)) < (0.6, 1.1, 0, 0.8)[number]
        )

    estimate, expected = EstimateAdvantage(), []
    batch = make_valid("local")
    for number in range(4):
        fill_some(batch, number)
        expected.append(results(estimate(batch)))
    assert len({str(each) for each in expected}) == 4
    estimate = EstimateAdvantage()
    with simulated_cuda(schedule, seed):
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            batch = make_valid("device")
            fill_some(batch, 0)
            found = [results(estimate(batch))]
            stream.begin_capture()
            estimated = estimate(batch)
            graph = stream.end_capture()
            for number in range(1, 4):
                fill_some(batch, number)
                graph.launch()
                found.append(results(estimated))
    assert found == expected


def test_a_mask_of_the_host_is_not_captured() -> None:
    with simulated_cuda("lazy"):
        mask = np.arange(T * B).reshape(T, B) % 4 > 0
        batch, estimate = make_batch("device"), EstimateAdvantage()
        batch["valid"] = Array.from_numpy(mask)
        estimate(batch)
        with capturing(), pytest.raises(RuntimeError, match="can't be captured"):
            estimate(batch)


def test_a_mask_whose_window_moves_is_not_captured() -> None:
    with simulated_cuda("lazy"):
        batch, estimate = make_batch("device"), EstimateAdvantage()
        batch["valid"] = Array((T, B), bool, storage="device", full_size=2 * T)
        estimate(batch)
        with capturing(), pytest.raises(RuntimeError, match=r"valid of a ring with several"):
            estimate(batch)


def test_advantages_of_valid_rows_are_not_normalized_in_a_capture() -> None:
    with simulated_cuda("lazy"):
        batch, normalize = make_batch("device"), NormalizeAdvantage()
        batch["valid"] = Array.from_numpy(np.ones((T, B), bool), storage="device")
        batch = EstimateAdvantage()(batch)
        normalize(batch)
        with capturing(), pytest.raises(RuntimeError, match="a copy to the host can't be"):
            normalize(batch)


@each_schedule
@pytest.mark.parametrize("n_before", [1, 2])
@pytest.mark.parametrize("n_rows", [T, 3000])  # of the second one parts are merged in two steps
def test_replays_merge_their_rows_into_all_before(
    schedule: str, seed: int, n_before: int, n_rows: int
) -> None:
    def numbers(batch: int) -> Any:
        return np.random.default_rng(batch).standard_normal((n_rows, B)).astype(np.float32)

    def seen(moments: RunningMoments) -> list[Any]:
        numbers = moments.mean.to_ndarray().tolist(), moments.variance.to_ndarray().tolist()
        return [moments.count, *numbers]

    expected = []
    with simulated_cuda(schedule, seed):
        rows = Array((n_rows, B), np.float32, storage="device")
        moments = RunningMoments(rows, feature_shape=())
        for batch in range(6):
            rows[...] = numbers(batch)
            moments.update(rows)
            expected.append(seen(moments))
    with simulated_cuda(schedule, seed):
        rows = Array((n_rows, B), np.float32, storage="device")
        moments, stream = RunningMoments(rows, feature_shape=()), cuda.new_stream()
        with cuda.use_stream(stream):
            for batch in range(n_before):
                rows[...] = numbers(batch)
                moments.update(rows)
            stream.begin_capture()
            moments.update(rows)
            graph = stream.end_capture()
            assert moments.count == n_before * n_rows * B
            for batch in range(n_before, 5):
                rows[...] = numbers(batch)
                graph.launch()
                assert seen(moments) == expected[batch]
            rows[...] = numbers(5)
            moments.update(rows)
            assert seen(moments) == expected[5]
            saved = moments.state_dict()
            moments.reset()
            assert (moments.count, moments.is_empty) == (0, False)
            rows[...] = numbers(0)
            graph.launch()
            assert seen(moments) == expected[0]
            moments.load_state_dict(saved)
            assert seen(moments) == expected[5]


@each_schedule
def test_a_captured_reset_forgets_at_each_replay(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed):
        rows = make_batch("device")["reward"]
        moments, stream = RunningMoments(rows, feature_shape=()), cuda.new_stream()
        with cuda.use_stream(stream):
            moments.update(rows)
            stream.begin_capture()
            moments.reset()
            for _ in range(2):
                moments.update(rows)
            graph = stream.end_capture()
            for number in (1.0, 5.0):
                rows[...] = number
                graph.launch()
                assert moments.count == 2 * T * B
                assert moments.mean.to_ndarray() == number
                assert moments.variance.to_ndarray() == 0


@pytest.mark.parametrize("is_used", [False, True])
def test_a_graph_does_not_begin_behind_a_reset_that_it_lacks(is_used: bool) -> None:
    with simulated_cuda("lazy"):
        rows = make_batch("device")["reward"]
        moments = RunningMoments(rows, feature_shape=())
        if is_used:
            moments.update(rows)
            moments.reset()
        with capturing():
            with pytest.raises(RuntimeError, match=r"^the first update of moments, or since"):
                moments.update(rows)
            with pytest.raises(RuntimeError, match=r"^a reset of moments that were not updated"):
                moments.reset()
        rows[...] = 3
        moments.update(rows)
        assert (moments.count, moments.mean.to_ndarray()) == (T * B, 3)


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

"""Minibatches with elements of different length: packed, against lists, on host and device."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from long_run import all_but_first
from parllel import Array, ArrayDict, Jagged, JaggedArray, cuda
from parllel.arrays import JaggedSpec
from parllel.replays import Minibatches, Prefetcher, PrioritizedReplayBuffer, SequenceReplayBuffer
from parllel.testing.simulated_cuda import simulated_cuda
from profiles import fewer_examples
from schedules import each_schedule
from step_list import Chances, Model, Shape, check_jagged, cloud_of, poison, read
from window_list import Form, assert_is, make_kind, read_windows, windows_of

T, B, CAPACITY = 5, 4, 4


def make_batch(storage: str = "local", padding: int = 1) -> ArrayDict:
    """Return a batch whose clouds are those of the numbers beside them."""
    cloud = JaggedArray(
        (T, B), "f4", feature_shape=(3,), capacity=CAPACITY, padding=padding, storage=storage
    )
    number = Array((T, B), "i8", storage=storage)
    numbers = np.arange(1, T * B + 1).reshape(T, B)
    cloud[...] = [[cloud_of(each) for each in row] for row in numbers.tolist()]
    number[...] = numbers
    batch = ArrayDict({"observation": {"cloud": cloud, "number": number}})
    poison(batch)
    return batch


def check_minibatch(minibatch: ArrayDict) -> list[int]:
    """Compare the clouds of a minibatch with the numbers in it, which are returned."""
    found = minibatch["observation"]["cloud"]
    numbers = minibatch["observation"]["number"].cpu()
    assert isinstance(found, Jagged)
    assert found.batch_shape == tuple(numbers.shape)
    check_jagged(found, [cloud_of(number) for number in numbers.flatten().tolist()])
    return numbers.flatten().tolist()


@fewer_examples(8)
@given(st.integers(1, 5), st.booleans(), st.integers(0, 9))
def test_each_pass_packs_each_cloud_once(n_parts: int, whole_envs: bool, seed: int) -> None:
    n_parts = min(n_parts, B) if whole_envs else n_parts
    minibatches = Minibatches(n_parts, np.random.default_rng(seed), whole_envs=whole_envs)
    batch = make_batch()
    for _ in range(1 + seed % 2):
        seen = [number for part in minibatches.of(batch) for number in check_minibatch(part)]
        n_seen = B // n_parts * n_parts * T if whole_envs else T * B // n_parts * n_parts
        assert len(set(seen)) == len(seen) == n_seen


@each_schedule
@pytest.mark.parametrize("whole_envs", [False, True])
def test_a_device_packs_what_the_host_does(schedule: Any, seed: int, whole_envs: bool) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        batch = make_batch("device")
        minibatches = Minibatches(2, np.random.default_rng(0), whole_envs=whole_envs)
        on_host = Minibatches(2, np.random.default_rng(0), whole_envs=whole_envs)
        same = on_host.of(make_batch(), n_passes=2)
        for part in minibatches.of(batch, n_passes=2):
            assert check_minibatch(part) == check_minibatch(next(same))
        parts = minibatches.bind(batch)
        parts.shuffle()
        before = simulation.counters.launches
        parts.gather(0)
        assert simulation.counters.launches - before == 1  # for clouds and numbers together
        batch.close()
        del minibatches, parts, part


@each_schedule
@pytest.mark.parametrize("whole_envs", [False, True])
def test_captured_gathers_go_by_the_order_that_was_written_last(
    schedule: Any, seed: int, whole_envs: bool
) -> None:
    def values(minibatch: ArrayDict) -> Any:
        cloud, number = (minibatch["observation"][name] for name in ("cloud", "number"))
        return [part.tolist() for part in (*cloud.padded(CAPACITY), number)]

    def make_parts(storage: str) -> Any:
        minibatches = Minibatches(2, np.random.default_rng(0), whole_envs=whole_envs)
        return minibatches.bind(make_batch(storage))

    on_host = make_parts("local")
    with simulated_cuda(schedule, seed):
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            parts = make_parts("device")
            for number in range(4):
                on_host.shuffle()
                parts.shuffle()
                if number == 0:
                    parts.gather(0)
                    stream.begin_capture()
                    minibatch = parts.gather(1)
                    graph = stream.end_capture()
                    assert minibatch["observation"]["cloud"].capacity == CAPACITY
                graph.launch()
                assert values(minibatch) == values(on_host.gather(1))
        del parts, minibatch


KINDS: dict[str, Any] = {
    "transitions": {},
    "priorities": {"kind": PrioritizedReplayBuffer},
    "windows": {"kind": make_kind(Form(3, burn_in=2, episode_end="pad"))},
}


@each_schedule
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", all_but_first(["device", "managed"]))
def test_a_ring_on_a_device_is_drawn_from(
    schedule: Any, seed: int, kind: str, storage: str
) -> None:
    shape = Shape(T=3, n_windows=3, has_clouds=True, stack=2 if kind == "windows" else 0)
    with simulated_cuda(schedule, seed):
        model = Model(shape, Chances(), seed=seed, storage=storage, **KINDS[kind])
        for _ in range(5):
            model.write_batch()
            minibatch = model.replay.sample(60)
            if kind == "windows":
                form = Form(3, burn_in=2, episode_end="pad")
                expected = windows_of(model, form)
                for index, window in read_windows(minibatch, model, form).items():
                    assert_is(window, expected[index], model)
            else:
                on_host = _to_host(minibatch)
                assert read(on_host, model.frames).items() <= model.transitions().items()
        model.replay.close()
        model.tree.close()
        del model, minibatch


def _to_host(minibatch: ArrayDict) -> ArrayDict:
    return minibatch.apply(
        lambda leaf: leaf.to_ndarray() if isinstance(leaf, Jagged) else leaf.cpu()
    )


@each_schedule
@pytest.mark.parametrize("storage", ["local", "device"])
def test_a_prefetcher_brings_packed_elements(schedule: Any, seed: int, storage: str) -> None:
    with simulated_cuda(schedule, seed):
        model = Model(Shape(has_clouds=True), Chances(), seed=0)
        for _ in range(4):
            model.write_batch()
        with Prefetcher(model.replay, 20, storage=storage) as prefetcher:
            for _ in range(5):
                minibatch = _to_host(prefetcher.next())
                assert read(minibatch, model.frames).items() <= model.transitions().items()
        del minibatch


def test_elements_of_windows_have_the_shape_of_windows() -> None:
    form = Form(3, burn_in=1)
    model = Model(Shape(T=6, has_clouds=True), Chances(0, 0), seed=0, kind=make_kind(form))
    model.write_batch()
    minibatch = model.replay.sample(7)
    assert isinstance(model.replay, SequenceReplayBuffer)
    assert minibatch["observation"]["cloud"].batch_shape == (form.n_rows + 1, 7)
    assert minibatch["message"].batch_shape == (form.n_rows, 7)


@pytest.mark.parametrize("storage", ["local"])
def test_a_ring_that_may_grow_is_refused(storage: str) -> None:
    model = Model(Shape(), Chances(), seed=0)
    grown = JaggedSpec.of((3, 2), "f4", (), 1, 9, 4, "grow").make(storage)
    tree = ArrayDict({**model.tree, "observation": grown})
    with pytest.raises(ValueError, match="whose memory may grow"):
        type(model.replay)(tree, rng=np.random.default_rng(0))


def test_elements_of_agents_on_an_axis_are_refused() -> None:
    cloud = JaggedArray((T, B, 2), "f4", capacity=3)
    with pytest.raises(ValueError, match="give several agents a branch each"):
        Minibatches(2, np.random.default_rng(0)).bind(ArrayDict({"observation": cloud}))


def test_a_minibatch_overwrites_the_one_before() -> None:
    batch = make_batch()
    parts = Minibatches(2, np.random.default_rng(0)).bind(batch)
    parts.shuffle()
    values = [parts.gather(number)["observation"]["cloud"].values for number in (0, 1)]
    assert values[0].data_ptr() == values[1].data_ptr()
    assert len({len(each) for each in values}) == 2  # of these two

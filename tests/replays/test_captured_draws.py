"""Minibatches drawn by captured CUDA graphs: each replay draws what the next call would."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import Array, ArrayDict, FrameArray, Jagged, cuda
from parllel.cuda import launches
from parllel.replays import (
    PrioritizedReplayBuffer,
    PrioritizedSequenceReplayBuffer,
    RandomShift,
    ReplayBuffer,
)
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule
from step_list import CAPACITY, Chances, Model, Shape, leaves, show
from window_list import Form, make_kind

pytestmark = pytest.mark.simulation("they launch captured graphs of the simulation")

N = 6
BOTH = pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
FORM = Form(length=3, burn_in=1, episode_end="cross")
KINDS = {
    "transitions": ReplayBuffer,
    "by priority": PrioritizedReplayBuffer,
    "windows": make_kind(FORM),
    "windows by priority": make_kind(FORM, PrioritizedSequenceReplayBuffer),
}
ALL = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make_model(kind: type[ReplayBuffer], stack: int = 0, **shape: Any) -> Model:
    """Return a model of some batches."""
    sizes = {"T": 2, "B": 3, "n_windows": 4, "n_steps": 2, "stack": stack, "has_valid": True}
    sizes["has_state"] = kind not in (ReplayBuffer, PrioritizedReplayBuffer)
    model = Model(
        Shape(**{**sizes, **shape}), Chances(invalid=1), seed=1, storage="device", kind=kind
    )
    for _ in range(3):
        model.write_batch()
    return model


@contextmanager
def stream_of_its_own() -> Iterator[Any]:
    stream = cuda.new_stream()
    with cuda.use_stream(stream):
        yield stream


def values(minibatch: Any) -> dict[str, Any]:
    found = {}
    for path, leaf in leaves(minibatch).items():
        if isinstance(leaf, Jagged):  # a graph's has fixed shapes, so padded ones are compared
            rows, mask = leaf.padded(CAPACITY)
            found[path] = [rows.tolist(), mask.tolist()]
        else:
            found[path] = leaf.tolist()
    return found


def update(model: Model, minibatch: Any) -> None:
    """Learn: of a buffer by priority, its priorities change."""
    if isinstance(model.replay, PrioritizedReplayBuffer):
        index = model.replay._outputs.tree["index"].to_cupy()
        error = model.replay._outputs.tree["n_step_return"].to_cupy()
        model.replay.update_priorities(index, error)
    elif isinstance(model.replay, PrioritizedSequenceReplayBuffer):
        tree = model.replay._outputs.tree
        given = [tree[name].to_cupy() for name in ("index", "reward", "mask")]
        model.replay.update_priorities(*given)


def change(model: Model, number: int) -> None:
    """Do what a program does between updates, some of it now and then."""
    if number % 2:
        model.write_batch()
    if number == 3:
        model.reset()
    if number == 4 and hasattr(model.replay, "beta"):
        model.replay.beta = 0.9


def eager(kind: type[ReplayBuffer], stack: int, **shape: Any) -> list[Any]:
    model, drawn = make_model(kind, stack, **shape), []
    for number in range(6):
        minibatch = model.replay.sample(N)
        update(model, minibatch)
        drawn.append(values(minibatch))
        change(model, number)
    return drawn


def replayed(kind: type[ReplayBuffer], stack: int, **shape: Any) -> list[Any]:
    with stream_of_its_own() as stream:
        model = make_model(kind, stack, **shape)
        minibatch = model.replay.sample(N)
        update(model, minibatch)
        drawn = [values(minibatch)]
        stream.begin_capture()
        captured = model.replay.sample(N)
        assert (captured is minibatch) is not model.shape.has_clouds
        update(model, captured)
        graph, minibatch = stream.end_capture(), captured
        change(model, 0)
        for number in range(1, 6):
            if number == 4:  # eager draws in between count, too
                model.replay.sample(N)
                update(model, minibatch)
            else:
                graph.launch()
            drawn.append(values(minibatch))
            change(model, number)
        assert model.replay._n_drawn == 6
        return drawn


@each_schedule
@pytest.mark.parametrize("stack", [0, 3])
@ALL
def test_a_replay_draws_what_the_next_call_would(
    schedule: str, seed: int, stack: int, kind: type[ReplayBuffer]
) -> None:
    with simulated_cuda(schedule, seed):
        expected = eager(kind, stack)
    assert len({str(each["index"]) for each in expected}) == 6
    # Some are of batches that were written behind the capture, whose steps have numbers from 6 on.
    assert any(index >= 6 * 3 for each in expected for index in each["index"])
    with simulated_cuda(schedule, seed):
        assert replayed(kind, stack) == expected


@each_schedule
@ALL
def test_a_replay_draws_elements_of_different_length(
    schedule: str, seed: int, kind: type[ReplayBuffer]
) -> None:
    with simulated_cuda(schedule, seed):
        expected = eager(kind, 0, has_clouds=True)
    with simulated_cuda(schedule, seed):
        assert replayed(kind, 0, has_clouds=True) == expected


def test_what_a_graph_draws_has_the_shapes_of_all_its_memory() -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        model = make_model(ReplayBuffer, has_clouds=True)
        model.replay.sample(N)
        stream.begin_capture()
        clouds = model.replay.sample(N)["observation"]["cloud"]
        stream.end_capture().launch()
        assert (clouds.capacity, len(clouds.values)) == (CAPACITY, N * CAPACITY)
        for use in (clouds.packed, clouds.nested, lambda: clouds[0], lambda: list(clouds)):
            with pytest.raises(RuntimeError, match=r"does not know how many .* use padded\(\)"):
                use()
        rows, mask = clouds.padded()
        numbers = clouds.segment_ids()
        sums = rows.new_zeros(N + 1, rows.shape[-1]).index_add(0, numbers, clouds.values)
        assert sums[:N].tolist() == rows.sum(1).tolist()
        assert mask.sum(1).tolist() == clouds.counts.tolist()
        with pytest.raises(ValueError, match="got 3, expected at least 4"):
            clouds.padded(3)


@ALL
def test_frozen_arguments_are_found(
    kind: type[ReplayBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host gives a kernel its own copy of the state, each replay draws the same."""

    def freeze(self: Any, grid: Any, block: Any, args: Any) -> None:
        if name_of(self).startswith("draw"):
            frozen = args[1].copy()
            kept.append(frozen)
            args = (args[0], frozen, *args[2:])
        call(self, grid, block, args)

    kept: list[Any] = []
    with simulated_cuda("eager"):
        expected = eager(kind, 0)
    with simulated_cuda("eager"):
        kernel = type(launches._kernel(cuda.library(), "rows"))
        call, name_of = kernel.__call__, lambda each: each.name
        monkeypatch.setattr(kernel, "__call__", freeze)
        with pytest.raises(AssertionError):
            assert replayed(kind, 0) == expected


@ALL
def test_an_update_with_its_draw_is_one_graph_launch(kind: type[ReplayBuffer]) -> None:
    with simulated_cuda("lazy") as simulation, stream_of_its_own() as stream:
        model = make_model(kind)
        minibatch = model.replay.sample(N)
        update(model, minibatch)
        stream.begin_capture()
        model.replay.sample(N)
        update(model, minibatch)
        graph = stream.end_capture()
        before = simulation.counters.as_dict()
        for _ in range(4):
            graph.launch()
        counted = simulation.counters.as_dict()
        assert {name: counted[name] - before[name] for name in counted if counted[name]} == {
            **{name: 0 for name in counted if counted[name]},
            "graph_launches": 4,
        }


@ALL
def test_memory_of_a_captured_minibatch_stays(kind: type[ReplayBuffer]) -> None:
    """A call with another size takes new memory, and the graph goes on with its own."""
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        model = make_model(kind)
        minibatch = model.replay.sample(N)
        stream.begin_capture()
        model.replay.sample(N)
        graph = stream.end_capture()
        model.replay.sample(N + 1)
        graph.launch()
        assert model.replay._n_drawn == 3
        found = values(minibatch)
    with simulated_cuda("eager"):
        model = make_model(kind)
        model.replay.sample(N)
        model.replay.sample(N + 1)
        assert values(model.replay.sample(N)) == found


def make_long_model() -> Model:
    """Return a model with a table of final observations of the usual size, which may grow."""
    return make_model(ReplayBuffer, T=8, has_valid=False, n_final_obs=None)


def end_all_episodes(model: Model) -> None:
    """Write a batch in which each step ends each episode."""
    model.replay.begin_batch()
    model.tree.rotate()
    for t in range(8):
        model.replay.add_final_obs(t, {column: show(t) for column in range(3)})
    model.replay.end_batch()


def test_the_table_of_final_observations_does_not_grow_under_a_graph() -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        models = [make_long_model() for _ in range(2)]
        tables = [model.replay.final_obs.table for model in models]
        models[0].replay.sample(N)
        stream.begin_capture()
        models[0].replay.sample(N)
        stream.end_capture()
        for model in models:
            end_all_episodes(model)
        assert models[0].replay.final_obs.table is tables[0]
        assert models[1].replay.final_obs.table is not tables[1]


def test_another_table_is_not_loaded_under_a_graph(tmp_path: Any) -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        saved, model = (make_long_model() for _ in range(2))
        end_all_episodes(saved)
        saved.replay.save(tmp_path)
        model.replay.sample(N)
        stream.begin_capture()
        model.replay.sample(N)
        stream.end_capture()
        with pytest.raises(RuntimeError, match="CUDA graphs have captured"):
            model.replay.load(tmp_path)


def test_a_loaded_key_reaches_a_graph(tmp_path: Any) -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        saved, model = (make_model(ReplayBuffer) for _ in range(2))
        saved.replay._set_state({**saved.replay._state(), "key": [5, 6], "n_drawn": 40})
        saved.replay.save(tmp_path)
        minibatch = model.replay.sample(N)
        stream.begin_capture()
        model.replay.sample(N)
        graph = stream.end_capture()
        model.replay.load(tmp_path)
        graph.launch()
        assert values(minibatch) == values(saved.replay.sample(N))
        assert model.replay._n_drawn == 41


CHANGES: dict[str, Callable[[Model], Any]] = {
    "begin_batch": lambda model: model.replay.begin_batch(),
    "restart": lambda model: model.replay.restart(),
    "add_final_obs": lambda model: model.replay.add_final_obs(0, {}),
    "end_batch": lambda model: model.replay.end_batch(),
    "save": lambda model: model.replay.save("no folder"),
    "load": lambda model: model.replay.load("no folder"),
    "beta": lambda model: setattr(model.replay, "beta", 0.7),
    "append": lambda model: model.replay.append(None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_buffer_is_not_captured(name: str) -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        model = make_model(PrioritizedReplayBuffer)
        model.replay.begin_batch()
        model.tree.rotate()
        state = vars(model.replay)
        if name == "append":
            model.replay._n_appended = 0
        before = {each: state[each] for each in ("_first", "_stop", "_is_writing", "_n_appended")}
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=f"^{name} of a replay buffer can't be captured"):
            CHANGES[name](model)
        stream.end_capture()
        assert {each: vars(model.replay)[each] for each in before} == before


def test_a_first_call_is_not_captured() -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        model = make_model(ReplayBuffer)
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=r"allocation .*after a first call"):
            model.replay.sample(N)
        stream.end_capture()
        model.replay.sample(N)


def test_errors_that_are_not_contiguous_are_not_captured() -> None:
    with simulated_cuda("lazy"), stream_of_its_own() as stream:
        model = make_model(PrioritizedReplayBuffer)
        model.replay.sample(N)
        index = model.replay._outputs.tree["index"]
        error = cuda.to_device(np.ones(2 * N, np.float32))[::2]
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="a copy of values that are not contiguous"):
            model.replay.update_priorities(index, error)
        stream.end_capture()


@each_schedule
@pytest.mark.parametrize("kind", ["frames", "stacks"])
def test_each_replay_shifts_images_anew(schedule: str, seed: int, kind: str) -> None:
    with simulated_cuda(schedule, seed):
        replay = make_images(kind)
        expected = [values(replay.sample(N)) for _ in range(4)]
        assert len({str(each["observation"]) for each in expected}) == 4
    with simulated_cuda(schedule, seed), stream_of_its_own() as stream:
        replay = make_images(kind)
        minibatch = replay.sample(N)
        drawn = [values(minibatch)]
        stream.begin_capture()
        assert replay.sample(N) is minibatch
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch()
            drawn.append(values(minibatch))
    assert drawn == expected


def make_images(kind: str) -> ReplayBuffer:
    """Return a buffer of one batch of random images, which are shifted."""
    T, B, size = 8, 2, (12, 16)
    memory: dict[str, Any] = {"storage": "device", "padding": 1}
    rng = np.random.default_rng(0)
    observation: Array
    if kind == "frames":
        observation = FrameArray((T, B), np.uint8, size, stack=2, **memory)
    else:
        observation = Array((T, B), np.uint8, feature_shape=size, **memory)
    samples = ArrayDict({"observation": observation})
    samples["reward"] = Array((T, B), np.float32, storage="device")
    for name in ("terminated", "truncated"):
        samples[name] = Array((T, B), bool, storage="device")
    replay = ReplayBuffer(samples, rng=np.random.default_rng(1), shift=RandomShift(2))
    replay.restart()
    replay.begin_batch()
    samples.rotate()
    for t in range(T + 1):
        frames = rng.integers(0, 256, (B, *size), np.uint8)
        if isinstance(observation, FrameArray):
            observation.write_frames(t, frames, is_first=np.zeros(B, bool))
        else:
            observation[t] = frames
    replay.end_batch()
    return replay

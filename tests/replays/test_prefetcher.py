"""Prefetcher: the minibatches that sample would give, made ahead by a thread."""

import copy
import gc
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from long_run import all_but_first
from parllel import ArrayDict, cuda
from parllel.replays import Prefetcher, PrioritizedReplayBuffer, ReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule
from step_list import Chances, Model, Shape

each_number_of_batches = pytest.mark.parametrize("n_batches", [2, 3])
SHAPE = Shape(T=4, B=2, n_steps=2, stack=2)
SIZE = 6


def make_model(kind: type[ReplayBuffer] = ReplayBuffer, storage: str = "local") -> Model:
    model = Model(SHAPE, Chances(), seed=0, kind=kind, storage=storage)
    model.write_batch()
    return model


def lists(minibatch: ArrayDict) -> dict[str, list[Any]]:
    return {path: leaf.tolist() for path, leaf in leaves(minibatch).items()}


class Ahead:
    """What a prefetcher has to give: minibatches that are drawn some calls before they are due."""

    def __init__(self, replay: ReplayBuffer, n_batches: int) -> None:
        self.replay, self.n_batches = replay, n_batches
        self.drawn: list[dict[str, list[Any]]] = []

    def next(self) -> dict[str, list[Any]]:
        n_asked = 1 if self.drawn else self.n_batches
        self.drawn += [lists(self.replay.sample(SIZE)) for _ in range(n_asked)]
        return self.drawn.pop(0)


def train(
    model: Model, next_minibatch: Callable[[], Any], *, updates: bool = False
) -> list[dict[str, list[Any]]]:
    """Return minibatches between which batches are written and environments are reset."""
    results = []
    for number in range(12):
        minibatch = next_minibatch()
        results.append(minibatch if isinstance(minibatch, dict) else lists(minibatch))
        if updates:
            index = np.array(results[-1]["index"])
            model.replay.update_priorities(index, (index % 5).astype(np.float32))
        if number % 3 == 2:
            model.write_batch()
        if number == 7:
            model.reset()
    return results


@each_number_of_batches
@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_minibatches_are_those_of_sample(kind: type[ReplayBuffer], n_batches: int) -> None:
    updates = kind is PrioritizedReplayBuffer
    model = make_model(kind)
    expected = train(model, Ahead(model.replay, n_batches).next, updates=updates)
    model = make_model(kind)
    with Prefetcher(model.replay, SIZE, n_batches=n_batches) as prefetcher:
        assert train(model, prefetcher.next, updates=updates) == expected


@each_number_of_batches
@pytest.mark.parametrize("storage", ["local", "pinned"])
def test_minibatches_on_a_device_are_the_same(
    cuda_device: torch.device, n_batches: int, storage: str
) -> None:
    model = make_model()
    expected = train(model, Ahead(model.replay, n_batches).next)
    model = make_model(storage=storage)
    with Prefetcher(model.replay, SIZE, n_batches=n_batches, storage="device") as prefetcher:
        assert train(model, prefetcher.next) == expected


@each_schedule
def test_nothing_is_left_on_the_device(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = make_model(storage="pinned")
        prefetcher = Prefetcher(model.replay, SIZE, storage="device")
        prefetcher.next()
        model.replay.close()
        model.tree.close()
        del model, prefetcher
        simulation.assert_no_leaks()


def test_a_minibatch_stays_until_the_next_call() -> None:
    model = make_model()
    with Prefetcher(model.replay, SIZE) as prefetcher:
        for _ in range(6):
            minibatch = prefetcher.next()
            before = lists(minibatch)
            prefetcher.settle()
            assert lists(minibatch) == before


def test_iterating_goes_on_for_ever() -> None:
    model = make_model()
    expected = [lists(model.replay.sample(SIZE)) for _ in range(5)]
    model = make_model()
    with Prefetcher(model.replay, SIZE) as prefetcher:
        assert [lists(next(iter(prefetcher))) for _ in range(5)] == expected


def test_memory_of_minibatches_is_written_in_turn() -> None:
    model = make_model()
    with Prefetcher(model.replay, SIZE, n_batches=3) as prefetcher:
        places = [prefetcher.next()["reward"].data_ptr() for _ in range(6)]
    assert len({*places}) == 3
    assert places[:3] == places[3:]


# What changes the buffer waits before


class Drawing:
    """A thread that draws minibatches, as the buffer sees it: it notes what it is waited for in."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.found: list[Any] = []

    def settle(self) -> None:
        self.found.append(state_of(self.model))

    def discard(self) -> None:
        pass


def state_of(model: Model) -> Any:
    """Return all that minibatches depend on."""
    replay = model.replay
    trees = ArrayDict({"samples": model.tree, "replay": replay._own_tree()})
    rings = {path: leaf.full.to_ndarray().tobytes() for path, leaf in leaves(trees).items()}
    windows = {path: leaf.window_begin for path, leaf in leaves(trees).items()}
    return rings, windows, replay._is_writing, replay._state(), replay._settings()


def begin(model: Model) -> None:
    model.replay.begin_batch()


def begin_and_rotate(model: Model) -> None:
    model.replay.begin_batch()
    model.tree.rotate()


def do_nothing(model: Model) -> None:
    pass


def save_and_go_on(model: Model) -> None:
    model.replay.save(Path.cwd())
    model.write_batch()


def update(model: Model) -> None:
    model.replay.update_priorities(np.arange(4), np.full(4, 7, np.float32))


def change_beta(model: Model) -> None:
    model.replay.beta = 0.75


CHANGES: dict[str, tuple[Callable[[Model], None], Callable[[Model], object]]] = {
    "sample": (do_nothing, lambda model: model.replay.sample(3)),
    "restart": (do_nothing, lambda model: model.replay.restart()),
    "begin_batch": (do_nothing, lambda model: model.replay.begin_batch()),
    "add_final_obs": (begin, lambda model: model.replay.add_final_obs(0, {0: model.show(1)})),
    "end_batch": (begin_and_rotate, lambda model: model.replay.end_batch()),
    "load": (save_and_go_on, lambda model: model.replay.load(Path.cwd())),
    "update_priorities": (do_nothing, update),
    "beta": (do_nothing, change_beta),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_buffer_waits_before_for_minibatches_being_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(PrioritizedReplayBuffer)
    prepare, change = CHANGES[name]
    prepare(model)
    drawing = Drawing(model)
    model.replay.watchers.add(drawing)
    before = state_of(model)
    change(model)
    assert state_of(model) != before
    assert drawing.found
    assert drawing.found[0] == before


# What a minibatch costs


@each_schedule
def test_a_minibatch_for_the_device_is_one_copy_and_two_waits_in_streams(
    schedule: str, seed: int
) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = make_model(storage="pinned")
        with Prefetcher(model.replay, SIZE, storage="device") as prefetcher:
            for _ in range(3):
                prefetcher.next()
            prefetcher.settle()
            before, before_all = copy.copy(cuda.counters), copy.copy(simulation.counters)
            for _ in range(5):
                prefetcher.next()
                prefetcher.settle()
            counted = cuda.counters.since(before)
            nbytes = 5 * prefetcher._batches[0]._outputs.memory.nbytes
            assert counted == type(counted)(
                copies_to_device=5,
                bytes_to_device=nbytes,
                event_records=10,
                event_waits=10,
                event_synchronizations=5,  # of the thread, for the copy before into the same memory
            )
            assert simulation.counters.since(before_all).device_synchronizations == 0


# Faults that are planted, and found


class Careless(cuda.Event):
    """An event that lets all pass."""

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def read_late(prefetcher: Prefetcher, number: int) -> Any:
    """Queue a copy of what a minibatch holds, as a GPU that lags behind would read it."""
    tree = prefetcher._batches[number].tree
    return {path: leaf.to_cupy().copy() for path, leaf in leaves(tree).items()}


def learn_late(events: dict[str, type[cuda.Event]]) -> tuple[list[Any], list[Any]]:
    """Return the rewards that a lagging device reads, and those that it should read."""
    expected_model = make_model()
    expected = [lists(expected_model.replay.sample(SIZE))["reward"] for _ in range(6)]
    model = make_model(storage="pinned")
    prefetcher = Prefetcher(model.replay, SIZE, storage="device")
    for batch in prefetcher._batches:
        for name, event in events.items():
            setattr(batch, name, event())
    kept = []
    for number in range(6):
        prefetcher.next()
        kept.append(read_late(prefetcher, number % 2)["reward"])
        prefetcher.settle()
    found = [each.get().tolist() for each in kept]
    cuda.synchronize(prefetcher._stream)  # in the place of events that let all pass
    prefetcher.close()
    return found, expected


def test_a_device_that_lags_behind_reads_what_it_should(cuda_device: torch.device) -> None:
    found, expected = learn_late({})
    assert found == expected


@pytest.mark.parametrize("name", ["_is_copied", "_is_free"])
def test_a_minibatch_without_its_event_is_found(name: str) -> None:
    with simulated_cuda("lazy"):
        found, expected = learn_late({name: Careless})
        assert found != expected


# Errors and ends


def test_an_error_of_the_thread_reaches_the_caller_and_the_next_call_begins_anew() -> None:
    model = Model(SHAPE, Chances(), seed=0)
    with Prefetcher(model.replay, SIZE) as prefetcher:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="replay: 0 steps of each environment"):
                prefetcher.next()
        model.write_batch()
        expected = make_model()
        for _ in range(3):
            assert lists(prefetcher.next()) == lists(expected.replay.sample(SIZE))


class Stuck(ReplayBuffer):
    """A buffer whose minibatches don't come before they are let go."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.go = threading.Event()

    def sample_into(self, outputs: Any) -> None:
        self.go.wait()
        super().sample_into(outputs)


def test_a_thread_that_hangs_is_an_error_in_bounded_time() -> None:
    model = make_model(Stuck)
    prefetcher = Prefetcher(model.replay, SIZE, timeout_s=0.05)
    with pytest.raises(RuntimeError, match=r"no minibatch came within 0.05 s = timeout_s"):
        prefetcher.next()
    with pytest.raises(RuntimeError, match=r"no minibatch came within 0.05 s = timeout_s"):
        prefetcher.settle()
    with pytest.raises(RuntimeError, match=r"its thread did not end within 0.05 s"):
        prefetcher.close()
    model.replay.go.set()
    prefetcher._thread.join(10)
    assert not prefetcher._thread.is_alive()
    prefetcher.close()


class Slow(ReplayBuffer):
    """A buffer whose minibatches take half a second in which the process runs."""

    def sample_into(self, outputs: Any) -> None:
        for _ in range(10):
            time.sleep(0.05)
        super().sample_into(outputs)


@pytest.mark.parametrize("call", all_but_first(["next", "settle", "close"]))
def test_time_in_which_the_process_is_stopped_does_not_count(call: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            prefetcher = Prefetcher(make_model(Slow).replay, SIZE, timeout_s=1.5)
            prefetcher._ask(0)
            getattr(prefetcher, call)()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    time.sleep(0.3)
    os.kill(child, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(child, signal.SIGCONT)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_that_the_thread_did_not_come_along() -> None:
    def use(results: Any) -> None:
        try:
            prefetcher.next()
        except RuntimeError as error:
            results.send(str(error))
        model.replay.begin_batch()  # waits for nothing
        prefetcher.close()
        results.send("closed")

    model = make_model()
    context = mp.get_context("fork")
    with Prefetcher(model.replay, SIZE) as prefetcher:
        prefetcher.next()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=use, args=(sender,))
        process.start()
        assert receiver.poll(30)
        assert "its thread does not run, as in a process that was forked" in receiver.recv()
        assert receiver.poll(30)
        assert receiver.recv() == "closed"
        process.join(30)
        prefetcher.next()


def test_closing_ends_the_thread() -> None:
    model = make_model()
    prefetcher = Prefetcher(model.replay, SIZE)
    prefetcher.next()
    prefetcher.close()
    assert not prefetcher._thread.is_alive()
    assert not list(model.replay.watchers)
    with pytest.raises(RuntimeError, match="the prefetcher is closed; make a new one"):
        prefetcher.next()
    prefetcher.settle()
    model.replay.sample(SIZE)


def test_leaving_the_block_ends_the_thread() -> None:
    model = make_model()
    with Prefetcher(model.replay, SIZE) as prefetcher:
        prefetcher.next()
        thread = prefetcher._thread
        assert thread.is_alive()
    assert not thread.is_alive()
    assert not list(model.replay.watchers)
    with pytest.raises(RuntimeError, match="the prefetcher is closed; make a new one"):
        prefetcher.next()


def test_closing_the_buffer_closes_its_prefetchers() -> None:
    model = make_model()
    prefetcher = Prefetcher(model.replay, SIZE)
    model.replay.close()
    assert not prefetcher._thread.is_alive()


def test_a_prefetcher_that_was_not_closed_goes_with_its_last_reference() -> None:
    model = make_model()
    prefetcher = Prefetcher(model.replay, SIZE)
    prefetcher.next()
    thread, reference = prefetcher._thread, weakref.ref(prefetcher)
    del prefetcher
    gc.collect()
    assert reference() is None
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_batches": 1}, "n_batches: got 1, expected 2 or more"),
        ({"storage": "managed"}, "storage: got 'managed', expected"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    n_threads = threading.active_count()
    with pytest.raises(ValueError, match=message):
        Prefetcher(make_model().replay, SIZE, **settings)
    assert threading.active_count() == n_threads


def test_a_buffer_on_a_device_needs_none() -> None:
    with simulated_cuda("lazy"):
        model = make_model(storage="device")
        with pytest.raises(ValueError, match=r"call sample\(\), which waits for nothing"):
            Prefetcher(model.replay, SIZE)


def test_without_a_gpu_a_device_is_refused() -> None:
    with pytest.raises(cuda.CudaUnavailableError):
        Prefetcher(make_model().replay, SIZE, storage="device")

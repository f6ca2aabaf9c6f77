"""Captures of simulated CUDA: what a graph replays, and what CUDA refuses while it is recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import cuda
from parllel.testing.simulated_cuda import (
    Simulation,
    SimulationError,
    UseAfterFreeError,
    simulated_cuda,
)
from parllel.testing.simulated_cuda.capture import GLOBAL, RELAXED, THREAD_LOCAL
from parllel.testing.simulated_cuda.fixture import cuda_simulation

__all__ = ["cuda_simulation"]  # a fixture

pytestmark = pytest.mark.simulation("they test the simulation itself")


def add(grid: Any, block: Any, target: np.ndarray, number: np.int64) -> None:
    target += number


def add_of(grid: Any, block: Any, target: np.ndarray, source: np.ndarray) -> None:
    target += source


KERNELS = {"add": add, "add_of": add_of}


def launch(name: str, *arguments: Any) -> None:
    cuda.library().RawModule(path="no file").get_function(name)((1,), (1,), arguments)


def new_stream(*, non_blocking: bool = True) -> Any:
    return cuda.library().cuda.Stream(non_blocking=non_blocking)


@contextmanager
def captured(stream: Any, mode: int = RELAXED) -> Iterator[list[Any]]:
    """Capture what is queued inside; the graph is in the list behind it."""
    graphs: list[Any] = []
    with stream:
        stream.begin_capture(mode)
        yield graphs
        graphs.append(stream.end_capture())


each_schedule = pytest.mark.parametrize(
    ("schedule", "seed"), [("eager", 0), ("lazy", 0), *(("random", seed) for seed in range(4))]
)


@each_schedule
def test_what_is_captured_runs_with_each_launch_and_not_before(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed, kernels=KERNELS) as simulation:
        stream = new_stream()
        with stream:
            values = cuda.to_device(np.zeros(3, np.int64))
        with captured(stream) as graphs:
            launch("add", values, np.int64(2))
        assert cuda.to_host(values, stream=stream).tolist() == [0, 0, 0]
        for n_launched in (1, 2, 3):
            graphs[0].launch(stream)
            assert cuda.to_host(values, stream=stream).tolist() == [2 * n_launched] * 3
        counters = simulation.counters
        assert (counters.launches, counters.graph_launches) == (0, 3)
        assert not simulation.launches


@each_schedule
def test_memory_is_read_by_the_replay_and_scalars_are_frozen(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed, kernels=KERNELS):
        stream = new_stream()
        with stream:
            values, more = (cuda.to_device(np.zeros(1, np.int64)) for _ in range(2))
        number = 1
        with captured(stream) as graphs:
            launch("add", values, np.int64(number))
            launch("add_of", values, more)
        number = 100
        for value in (10, 20):
            cuda.copy_to_device(np.array([value]), out_device=more, stream=stream)
            graphs[0].launch(stream)
        assert cuda.to_host(values, stream=stream).tolist() == [1 + 10 + 1 + 20]


def join(is_ordered: bool, *, is_joined: bool = True) -> list[int]:
    """Return what two streams of one capture computed, one of which waits for the other."""
    side, stream = new_stream(), new_stream()
    with stream:
        values, more = (cuda.to_device(np.zeros(1, np.int64)) for _ in range(2))
    with captured(stream) as graphs:
        before = cuda.Event().record(stream)
        before.wait(side)
        with side:
            launch("add", more, np.int64(5))
            after = cuda.Event().record(side)
        if is_ordered and is_joined:
            after.wait(stream)
        launch("add_of", values, more)
        if is_joined:
            after.wait(stream)
    graphs[0].launch(stream)
    found: list[int] = cuda.to_host(values, stream=stream).tolist()
    return found


@each_schedule
def test_branches_of_a_graph_keep_their_order(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed, kernels=KERNELS):
        assert join(is_ordered=True) == [5]


def test_a_wait_that_lacks_in_a_branch_is_found() -> None:
    found = set()
    for seed in range(50):
        with simulated_cuda("random", seed, kernels=KERNELS):
            found |= set(join(is_ordered=False))
    assert found == {0, 5}


def test_a_branch_must_be_joined() -> None:
    with (
        simulated_cuda("eager", kernels=KERNELS),
        pytest.raises(RuntimeError, match="StreamCaptureUnjoined"),
    ):
        join(is_ordered=False, is_joined=False)


@pytest.mark.parametrize("seed", range(20))  # a few of them would run it beside itself
def test_a_graph_never_runs_beside_itself(seed: int) -> None:
    with simulated_cuda("random", seed, kernels=KERNELS):
        stream, others = new_stream(), [new_stream() for _ in range(2)]
        with stream:
            values = cuda.to_device(np.zeros(1, np.int64))
            total = cuda.to_device(np.ones(1, np.int64))
        with captured(stream) as graphs:
            launch("add_of", values, total)
            launch("add_of", total, values)
        cuda.synchronize(stream)
        for other in others:
            graphs[0].launch(other)
        for other in others:
            cuda.synchronize(other)
        found = [cuda.to_host(each, stream=stream).tolist() for each in (values, total)]
        assert found == [[1 + 2], [1 + 1 + 3]]


def use_freed_memory(*, is_freed_inside: bool) -> None:
    stream = new_stream()
    with stream:
        other = cuda.to_device(np.zeros(3, np.int64))
    with captured(stream) as graphs:
        values = cuda.library().empty(3, np.int64)
        values.fill(1)
        if is_freed_inside:
            del values
        other.fill(1)
    if not is_freed_inside:
        del values
    cuda.synchronize(stream)
    graphs[0].launch(stream)
    cuda.synchronize(stream)


@each_schedule
@pytest.mark.parametrize("is_freed_inside", [False, True])
def test_a_graph_keeps_no_memory(schedule: str, seed: int, is_freed_inside: bool) -> None:
    """What is freed is another's: a replay would write into it, also the first one."""
    with pytest.raises(UseAfterFreeError), simulated_cuda(schedule, seed):
        use_freed_memory(is_freed_inside=is_freed_inside)


def test_a_captured_copy_reads_the_host_at_its_replay(cuda_simulation: Simulation) -> None:
    stream, host = new_stream(), np.array([1, 2])
    with stream:
        values = cuda.to_device(np.zeros(2, np.int64))
    with captured(stream) as graphs:
        cuda.library().cuda.runtime.memcpyAsync(
            values.data.ptr, host.ctypes.data, host.nbytes, 1, stream.ptr
        )
    host[...] = 7
    graphs[0].launch(stream)
    assert cuda.to_host(values, stream=stream).tolist() == [7, 7]


@pytest.mark.parametrize("is_captured", [False, True])
def test_an_asynchronous_copy_checks_what_the_device_touches(is_captured: bool) -> None:
    with simulated_cuda("eager"), pytest.raises(SimulationError):  # noqa: PT012  # as above
        stream, host = new_stream(), np.zeros(4)
        values = cuda.to_device(np.zeros(2))
        if is_captured:
            stream.begin_capture()
        cuda.library().cuda.runtime.memcpyAsync(
            values.data.ptr, host.ctypes.data, host.nbytes, 1, stream.ptr
        )


# What is refused


def on_legacy_stream(stream: Any, values: Any) -> None:
    with cuda.library().cuda.Stream.null:
        values.fill(1)


def wait_for_earlier_work(stream: Any, values: Any) -> None:
    other = new_stream()
    cuda.Event().record(other).wait(stream)


def merge(stream: Any, values: Any) -> None:
    other = new_stream()
    other.begin_capture()
    cuda.Event().record(other).wait(stream)


def recorded(stream: Any) -> Any:
    event = cuda.library().cuda.Event()
    event.record(stream)
    return event


def end_elsewhere(stream: Any, values: Any) -> None:
    other = new_stream()
    cuda.Event().record(stream).wait(other)
    other.end_capture()


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "waiting for the stream": (lambda stream, _: stream.synchronize(), "CaptureUnsupported"),
    "asking the stream": (lambda stream, _: stream.done, "CaptureUnsupported"),
    "waiting for the device": (
        lambda stream, _: cuda.library().cuda.runtime.deviceSynchronize(),
        "CaptureUnsupported",
    ),
    "waiting for an event of it": (
        lambda stream, _: recorded(stream).synchronize(),
        "CapturedEvent",
    ),
    "asking an event of it": (lambda stream, _: recorded(stream).done, "CapturedEvent"),
    "beginning again": (lambda stream, _: stream.begin_capture(), "CaptureUnsupported"),
    "work that was queued before": (wait_for_earlier_work, "CaptureIsolation"),
    "another capture": (merge, "CaptureMerge"),
    "ending elsewhere": (end_elsewhere, "CaptureUnmatched"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_and_the_capture_is_lost(what: str) -> None:
    program, name = REFUSED[what]
    with simulated_cuda("eager", kernels=KERNELS):
        stream = new_stream()
        with stream:
            values = cuda.to_device(np.zeros(1))
            stream.begin_capture()
            assert stream.is_capturing()
            with pytest.raises(RuntimeError, match=name):
                program(stream, values)
            with pytest.raises(RuntimeError, match="invalidated the capture"):
                stream.is_capturing()
            with pytest.raises(RuntimeError, match="CaptureInvalidated"):
                values.fill(1)
            with pytest.raises(RuntimeError, match="CaptureInvalidated"):
                stream.end_capture()
            assert not stream.is_capturing()


def test_cupys_copies_are_refused(cuda_simulation: Simulation) -> None:
    stream = new_stream()
    with stream:
        values = cuda.to_device(np.zeros(1))
        stream.begin_capture()
        for copy in (values.get, lambda: values.set(np.ones(1)), lambda: bool(values)):
            with pytest.raises(RuntimeError, match="the current stream is capturing"):
                copy()
        stream.end_capture()


@pytest.mark.parametrize("non_blocking", [False, True])
def test_the_legacy_stream_may_be_used_beside_a_stream_that_does_not_block(
    non_blocking: bool,
) -> None:
    with simulated_cuda("eager"):
        values = cuda.to_device(np.zeros(1))
        stream = new_stream(non_blocking=non_blocking)
        stream.begin_capture()
        if non_blocking:
            values.fill(1)
            assert cuda.to_host(values).tolist() == [1]
        else:
            with pytest.raises(RuntimeError, match="CaptureImplicit"):
                values.fill(1)


@pytest.mark.parametrize("address", [0, 1])
def test_the_legacy_stream_is_not_captured(address: int) -> None:
    with simulated_cuda("eager"):
        stream = new_stream()
        stream.ptr = address
        with pytest.raises(RuntimeError, match=r"default \(legacy\) stream"):
            stream.begin_capture()


@pytest.mark.parametrize(("mode", "is_refused"), [(RELAXED, 0), (THREAD_LOCAL, 1), (GLOBAL, 1)])
def test_a_mode_may_refuse_what_may_wait(mode: int, is_refused: bool) -> None:
    for unsafe in (
        lambda: cuda.library().empty(3),
        lambda: cuda.library().cuda.malloc_managed(3),
        lambda: cuda.PageLock(np.zeros(8, np.uint8)).release(),
        lambda: cuda.library().cuda.Stream.null.synchronize(),
    ):
        with simulated_cuda("eager"):
            stream = new_stream()
            stream.begin_capture(mode)
            if is_refused:
                with pytest.raises(RuntimeError, match="CaptureUnsupported"):
                    unsafe()
            else:
                unsafe()
                stream.end_capture()


def test_an_event_of_a_graph_is_not_waited_for() -> None:
    with simulated_cuda("eager"):
        stream = new_stream()
        with captured(stream):
            event = recorded(stream)
        with pytest.raises(RuntimeError, match="CapturedEvent"):
            stream.wait_event(event)


def test_a_graph_is_made_by_a_capture_alone() -> None:
    with simulated_cuda("eager"):
        with pytest.raises(NotImplementedError):
            cuda.library().cuda.Graph()
        with pytest.raises(RuntimeError, match="InvalidValue"):
            new_stream().end_capture()


def test_a_graph_is_one_operation_at_each_launch_and_marks_and_frees_are_none() -> None:
    with simulated_cuda("lazy", kernels=KERNELS) as simulation:
        stream = new_stream()
        with stream:
            values, other = (cuda.to_device(np.zeros(3, np.int64)) for _ in range(2))
            assert simulation.n_operations == 2
            values[...] = other
            launch("add", values, np.int64(2))
            assert simulation.n_operations == 4
            cuda.Event().record().wait()
            del other
            cuda.synchronize()
            assert simulation.n_operations == 4
        with captured(stream) as graphs:
            launch("add", values, np.int64(2))
            launch("add", values, np.int64(2))
        assert simulation.n_operations == 4
        for _ in range(2):
            graphs[0].launch(stream)
        assert simulation.n_operations == 6

"""Streams of the work of Arrays and trees, and the waits for it, on simulated CUDA.

Nothing here ran on a GPU. Under the lazy schedule work runs only when it is waited for, so a
stream that is never waited for shows where work did not go; random orders show what lacks a wait.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from parllel import Array, ArrayDict, cuda
from parllel.testing.simulated_cuda import Simulation, SimulationError, simulated_cuda
from schedules import each_schedule

ROWS = np.array([0, 3, 3])
CUDA_KINDS = ("device", "managed", "pinned")


def new_stream() -> Any:
    return cuda.library().cuda.Stream(non_blocking=True)


def counted(storage: str = "device") -> Array:
    array = Array((6, 4), np.int32, feature_shape=(3,), padding=2, storage=storage)
    array[...] = np.arange(72).reshape(6, 4, 3)
    return array


def make_tree(storage: str = "device") -> ArrayDict:
    tree = ArrayDict(
        {
            "observation": Array((4, 3), np.float32, feature_shape=(5,), padding=1),
            "deep": {"reward": Array((4, 3), np.float32), "done": Array((4, 3), bool, padding=1)},
        }
    )
    for _, leaf in tree.walk():
        leaf[...] = np.arange(leaf.size).reshape(leaf.shape) % 7
    return tree.to(storage)


class Places(NamedTuple):
    """What work is done on: a device Array and a tree; and sources of other kinds of memory.

    They outlive the work: memory of the host must stay until the stream has read it.
    """

    array: Array
    tree: ArrayDict
    local: Array
    pinned: Array
    managed: Array
    rows: ArrayDict


# Everything that queues work.
Work = Callable[[Places], Any]
WORK: dict[str, Work] = {
    "write a scalar": lambda at: at.array.__setitem__(..., 5),
    "write a row": lambda at: at.array.__setitem__(1, np.ones((4, 3))),
    "write an element": lambda at: at.array.__setitem__((1, 2), [1, 2, 3]),
    "write a slice": lambda at: at.array.__setitem__(slice(None, None, -2), 7),
    "write a view": lambda at: at.array[2:4].__setitem__((slice(None), 1), 7),
    "scatter": lambda at: at.array.__setitem__((ROWS, [0, 1, 2]), 3),
    "write a tensor": lambda at: at.array.__setitem__(1, torch.ones(4, 3)),
    "write an Array": lambda at: at.array.__setitem__(slice(0, 2), at.array[4:]),
    "write a gathered Array": lambda at: at.array.__setitem__(slice(0, 3), at.array[ROWS]),
    "write an Array of the host": lambda at: at.array.__setitem__(0, at.local[1]),
    "write a pinned Array": lambda at: at.array.__setitem__(0, at.pinned[1]),
    "write a managed Array": lambda at: at.array.__setitem__(0, at.managed[1]),
    "write a gathered pinned Array": lambda at: at.array.__setitem__(slice(0, 3), at.pinned[ROWS]),
    "rotate": lambda at: at.array.rotate(),
    "gather for CuPy": lambda at: at.array[ROWS].to_cupy(),
    "gather for torch": lambda at: at.array[ROWS].to_torch(),
    "gather from managed memory": lambda at: at.managed[ROWS].to_cupy(),
    "gather from pinned memory": lambda at: at.pinned[ROWS].to_cupy(),
    "copy": lambda at: copy.deepcopy(at.array),
    "copy a view": lambda at: at.array[1:3].to("device"),
    "allocate": lambda at: Array((3,), np.int32, storage="device"),
    "allocate a tree": lambda at: at.tree.new_array(),
    "hand out a copy": lambda at: at.array.__dlpack__(stream=-1, copy=True),
    "move a tree to the device": lambda at: at.rows.to("device"),
    "write a tree": lambda at: at.tree.__setitem__(1, at.rows[2]),
    "scatter into a tree": lambda at: at.tree.__setitem__(ROWS, at.rows[ROWS]),
    "gather a tree": lambda at: at.tree[ROWS].to_torch(),
    "rotate a tree": lambda at: at.tree.rotate(),
}
each_work = pytest.mark.parametrize("work", WORK.values(), ids=WORK)


@contextmanager
def torch_uses(monkeypatch: pytest.MonkeyPatch, address: int) -> Iterator[None]:
    """Let torch appear to use CUDA, in a current stream at an address."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=address))
        yield


def prepare() -> Places:
    """Return places to work on, of which all work has run."""
    kinds = ("local", "pinned", "managed")
    places = Places(counted(), make_tree(), *map(counted, kinds), make_tree("local"))
    cuda.library().cuda.runtime.deviceSynchronize()
    return places


def streams_of(simulation: Simulation) -> set[int]:
    """Return the streams that work waits in, but for the freeing of memory, each in its own."""
    pending = [op for queue in simulation._machine.engine._queues for op in queue.pending]
    return {op.stream.address for op in pending if not op.name.startswith("freeing")}


# Where work goes


@each_work
def test_work_goes_to_the_stream_that_is_used(work: Work) -> None:
    with simulated_cuda("lazy") as simulation:
        places = prepare()
        with cuda.use_stream(new_stream()) as stream:
            kept = work(places)
            assert streams_of(simulation) == {stream.ptr}
            assert {launch.stream for launch in simulation.launches} <= {stream.ptr}
            cuda.synchronize()
        assert streams_of(simulation) == set()
        del kept


@each_work
def test_work_goes_to_torchs_current_stream_where_torch_uses_cuda(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_cuda("lazy") as simulation:
        places = prepare()
        torchs, cupys = new_stream(), new_stream()
        with cupys, torch_uses(monkeypatch, torchs.ptr):
            kept = work(places)
            assert streams_of(simulation) == {torchs.ptr}
            assert {launch.stream for launch in simulation.launches} <= {torchs.ptr}
            assert cuda.library().cuda.get_current_stream() == cupys
        del kept


@each_work
def test_work_waits_for_nothing(work: Work) -> None:
    with simulated_cuda("lazy") as simulation:
        places = prepare()
        simulation.counters.reset()
        cuda.counters.reset()
        with cuda.use_stream(new_stream()):
            kept = work(places)
        for counters in (simulation.counters, cuda.counters):
            assert counters.stream_synchronizations == 0
            assert counters.event_synchronizations == 0
            assert counters.device_synchronizations == 0
        cuda.library().cuda.runtime.deviceSynchronize()
        del kept


READS: dict[str, Work] = {
    "an array": lambda at: at.array.to_ndarray(),
    "a view": lambda at: at.array[1:3, ::-2].to_ndarray(),
    "a gathered view": lambda at: at.array[ROWS].to_ndarray(),
    "an element": lambda at: at.array[1, 2, 0].item(),
    "to the host": lambda at: at.array.to("local"),
    "into an Array of the host": lambda at: at.local.__setitem__(..., at.array),
    "by DLPack": lambda at: np.from_dlpack(at.array, device="cpu"),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_waits_for_the_current_stream_alone(read: Work) -> None:
    with simulated_cuda("lazy") as simulation:
        places = prepare()
        other = counted()
        cuda.library().cuda.runtime.deviceSynchronize()
        with cuda.use_stream(new_stream()) as bystander:
            other[0] = 5
        simulation.counters.reset()
        with cuda.use_stream(new_stream()):
            places.array[...] = 6
            read(places)
        assert bystander.ptr in streams_of(simulation)
        assert simulation.counters.stream_synchronizations == 1
        assert simulation.counters.event_synchronizations == 0
        assert simulation.counters.device_synchronizations == 0


@pytest.mark.parametrize("kind", ["pinned", "managed"])
def test_reading_memory_of_both_sides_waits_for_nothing(kind: str) -> None:
    with simulated_cuda("lazy") as simulation:
        array = counted(kind)
        simulation.counters.reset()
        array.to_ndarray()
        array[ROWS].to_ndarray()
        array.to_torch()
        array.to_cupy()
        np.asarray(array)
        assert simulation.counters == cuda.Counters()


# What use_stream moves


def test_torch_is_asked_once_for_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    n_asked = 0
    with simulated_cuda("lazy", kernels={"twin": lambda *_: None}) as simulation:
        torchs = new_stream()

        def current_stream() -> SimpleNamespace:
            nonlocal n_asked
            n_asked += 1
            return SimpleNamespace(cuda_stream=torchs.ptr)

        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "current_stream", current_stream)
            with cuda.use_stream() as stream:
                assert (n_asked, stream) == (1, torchs)
            assert cuda.launch("twin", (1,), (1,), []) == torchs
            assert n_asked == 2
            cuda.launch("twin", (1,), (1,), [], stream=torchs)  # which is known
            assert n_asked == 2
        assert {launch.stream for launch in simulation.launches} == {torchs.ptr}


def test_torch_follows_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_cuda() as simulation:
        stream = new_stream()
        current = [0x7000]

        @contextmanager
        def use(moved: Any) -> Iterator[None]:
            current.append(moved.cuda_stream)
            yield
            current.pop()

        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=current[-1])
        )
        monkeypatch.setattr(
            torch.cuda, "ExternalStream", lambda address: SimpleNamespace(cuda_stream=address)
        )
        monkeypatch.setattr(torch.cuda, "default_stream", lambda: SimpleNamespace(cuda_stream=0))
        monkeypatch.setattr(torch.cuda, "stream", use)
        with cuda.use_stream(stream):
            assert current == [0x7000, stream.ptr]
            assert cuda.current_stream() == stream
            with cuda.use_stream(cuda.library().cuda.Stream.null):
                assert current == [0x7000, stream.ptr, 0]
                assert cuda.current_stream().ptr == 0
            with cuda.use_stream(SimpleNamespace(cuda_stream=0x9000)) as torchs:
                assert (torchs.ptr, current[-1]) == (0x9000, 0x9000)
            with cuda.use_stream():
                assert current == [0x7000, stream.ptr]
        assert current == [0x7000]
        assert cuda.current_stream().ptr == 0x7000
        assert simulation.counters == cuda.Counters()


@pytest.mark.parametrize("value", [0, 0x7000, "stream", object()])
def test_what_is_no_stream_is_a_type_error(value: Any) -> None:
    with simulated_cuda():
        for use in (
            cuda.synchronize,
            cuda.Event().record,
            lambda it: cuda.use_stream(it).__enter__(),
        ):
            with pytest.raises(TypeError, match=r"expected a stream of CuPy or torch"):
                use(value)


def test_streams_are_ordered_by_an_event_only_where_they_differ() -> None:
    with simulated_cuda("lazy") as simulation:
        cupy = cuda.library()
        array, one, other = counted(), new_stream(), new_stream()
        cuda.synchronize()
        simulation.counters.reset()
        legacy = cupy.cuda.Stream.from_external(Handle(1))
        cuda.order_streams(one, one)
        cuda.order_streams(cupy.cuda.Stream.null, legacy)  # one stream by two names
        assert simulation.counters == cuda.Counters()
        with cuda.use_stream(one):
            array[0] = 8
        cuda.order_streams(one, other)
        cuda.synchronize(other)
        assert (array[0].to_cupy()._values == 8).all()
        assert simulation.counters == cuda.Counters(
            event_records=1, event_waits=1, stream_synchronizations=1
        )


class Handle:
    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


# Two streams, one of which writes what the other one reads


def relay(*, is_ordered: bool) -> np.ndarray:
    """Write batches in one stream, sum them in another; return the sums of all rounds."""
    writer, reader = new_stream(), new_stream()
    batch, total = counted(), Array((6, 4), np.int32, feature_shape=(3,), storage="device")
    cuda.synchronize()
    written, was_read = cuda.Event(), cuda.Event()
    for step in range(4):
        with cuda.use_stream(writer):
            if is_ordered:
                was_read.wait()
            batch[...] = np.full((6, 4, 3), 10**step)
            batch[ROWS] = 2 * 10**step
            written.record()
        with cuda.use_stream(reader):
            if is_ordered:
                written.wait()
            total.to_torch().add_(batch.to_torch())
            was_read.record()
    with cuda.use_stream(reader):
        return total.to_ndarray()


EXPECTED = np.full((6, 4, 3), 1111)
EXPECTED[ROWS] = 2222


@pytest.mark.parametrize("seed", range(30))
def test_streams_that_are_ordered_by_events_agree_in_any_order(seed: int) -> None:
    with simulated_cuda("random", seed) as simulation:
        assert_array_equal(relay(is_ordered=True), EXPECTED)
        assert simulation.counters.device_synchronizations == 0


def test_streams_that_are_ordered_by_events_agree_where_all_is_late() -> None:
    with simulated_cuda("lazy"):
        assert_array_equal(relay(is_ordered=True), EXPECTED)


def test_a_missing_event_shows() -> None:
    """The tests above can fail: without events, lateness gives other sums, or an error."""

    def is_wrong(schedule: str, seed: int) -> bool:
        try:
            with simulated_cuda(schedule, seed):
                return not np.array_equal(relay(is_ordered=False), EXPECTED)
        except SimulationError:
            return True

    assert is_wrong("lazy", 0)
    assert sum(is_wrong("random", seed) for seed in range(10)) > 5


@pytest.mark.parametrize("kind", CUDA_KINDS)
@each_schedule
def test_a_tree_in_a_stream_of_its_own_holds_what_one_on_the_host_holds(
    kind: str, schedule: str, seed: int
) -> None:
    with simulated_cuda(schedule, seed) as simulation, cuda.use_stream(new_stream()):
        tree, host = make_tree(kind), make_tree("local")
        for step in range(3):
            rows = host[ROWS].to_ndarray()
            tree[1] = host[1] = make_tree("local")[step].to_ndarray()
            tree[ROWS] = host[ROWS] = rows
            tree.rotate()
            host.rotate()
            for (path, leaf), (_, other) in zip(tree.walk(), host.walk(), strict=True):
                shown = slice(-other.padding, len(other) + other.padding)
                got, expected = leaf[shown].to_ndarray(), other[shown].to_ndarray()
                assert_array_equal(got, expected, err_msg=path)
        assert simulation.counters.device_synchronizations == 0
        assert simulation.counters.event_synchronizations == 0

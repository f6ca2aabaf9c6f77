"""The simulated device: it finds the classic faults, lets pass what is right, keeps the order."""

import ctypes
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import parllel.kernels
from parllel import cuda
from parllel.cuda import launches
from parllel.kernels.advantage import estimate_advantage
from parllel.kernels.targets import DeviceEntry, find_entries
from parllel.kernels.teams import Teams
from parllel.testing.simulated_cuda import (
    LeakError,
    NotImitatedError,
    OutOfBoundsError,
    Simulation,
    SimulationError,
    UseAfterFreeError,
    simulated_cuda,
)
from parllel.testing.simulated_cuda.engine import Engine
from parllel.testing.simulated_cuda.fixture import cuda_simulation
from parllel.testing.simulated_cuda.operation import Operation
from parllel.testing.simulated_cuda.schedules import make_schedule
from parllel.testing.simulated_cuda.twins import own_twins

__all__ = ["cuda_simulation"]  # a fixture

pytestmark = pytest.mark.simulation("they test the simulation itself")

N_TRIES = 50  # random schedules among which at least one finds a fault


def new_stream(*, non_blocking: bool = True) -> Any:
    """Return a stream of its own, ordered with no other one unless it is told to."""
    return cuda.library().cuda.Stream(non_blocking=non_blocking)


@contextmanager
def pinned(n: int) -> Iterator[np.ndarray]:
    """Lend page-locked int64 numbers, -1 at the beginning."""
    numbers = np.full(n, -1)
    lock = cuda.PageLock(numbers.view(np.uint8))
    yield numbers
    lock.release()


# The classic faults. Each program asserts its own result; `is_right` says whether it does what
# the fault's name says that it should not have left out.

Program = Callable[[bool], None]


def wait_before_the_host_reads(is_right: bool) -> None:
    with pinned(4) as host:
        values = cuda.to_device(np.arange(4))
        cuda.copy_to_host(values, out_host=host)
        copied = cuda.Event().record()
        if is_right:
            copied.synchronize()
        seen = host.tolist()
        cuda.synchronize()
    assert seen == [0, 1, 2, 3]


def wait_before_a_pinned_slot_is_overwritten(is_right: bool) -> None:
    steps = cuda.to_device(np.zeros((3, 2), int))
    copied = cuda.Event()
    with pinned(2) as slot:
        for step in range(3):
            if is_right:
                copied.synchronize()
            slot[...] = step
            cuda.copy_to_device(slot, out_device=steps[step])
            copied.record()
        cuda.synchronize()
    assert cuda.to_host(steps).tolist() == [[0, 0], [1, 1], [2, 2]]


def record_an_event_behind_the_copy(is_right: bool) -> None:
    with pinned(4) as host:
        values = cuda.to_device(np.arange(4))
        event = cuda.Event()
        if not is_right:
            event.record()
        cuda.copy_to_host(values, out_host=host)
        if is_right:
            event.record()
        event.synchronize()
        seen = host.tolist()
        cuda.synchronize()
    assert seen == [0, 1, 2, 3]


def join_a_stream(is_right: bool) -> None:
    side = new_stream()
    values = cuda.to_device(np.zeros(4, int))
    cuda.Event().record().wait(side)
    with cuda.use_stream(side):
        values[...] = 7
        written = cuda.Event().record()
    if is_right:
        written.wait()
    seen = cuda.to_host(values).tolist()
    cuda.synchronize(side)
    assert seen == [7, 7, 7, 7]


def keep_memory_that_another_stream_uses(is_right: bool) -> None:
    side = new_stream()
    values = cuda.to_device(np.arange(4))
    cuda.Event().record().wait(side)
    with cuda.use_stream(side):
        result = values.copy()
        used = cuda.Event().record()
    if is_right:
        used.wait()  # the memory belongs to this stream: it is freed behind the event
    del values
    other = cuda.to_device(np.zeros(4, int))  # the pool may give the same bytes to this one
    cuda.synchronize()
    assert cuda.to_host(result, stream=side).tolist() == [0, 1, 2, 3]
    del other


def keep_memory_whose_address_is_used(is_right: bool) -> None:
    values, result = cuda.to_device(np.arange(4)), cuda.to_device(np.zeros(4, int))
    kept = values if is_right else None
    address = np.int64(values.data.ptr)
    del values
    cuda.launch("copy_from", (1,), (32,), [result, address, np.int64(4)])
    assert cuda.to_host(result).tolist() == [0, 1, 2, 3]
    del kept


def write_memory_before_it_is_read(is_right: bool) -> None:
    total = cuda.library().empty(4, np.float32)
    if is_right:
        total.fill(0)
    cuda.launch("add_one", (1,), (32,), [total])
    assert cuda.to_host(total).tolist() == [1, 1, 1, 1]


def keep_pages_locked_until_the_copy_is_done(is_right: bool) -> None:
    with pinned(4) as host:
        host[...] = range(4)
        values = cuda.to_device(host)
        if is_right:
            cuda.synchronize()
    assert cuda.to_host(values).tolist() == [0, 1, 2, 3]


def wait_before_the_host_reads_managed_memory(is_right: bool) -> None:
    on_device, on_host = cuda.allocate_managed(4)
    on_device.fill(3)
    if is_right:
        cuda.synchronize()
    seen = on_host.tolist()
    cuda.synchronize()
    assert seen == [3, 3, 3, 3]


def wait_before_the_host_reads_mapped_memory(is_right: bool) -> None:
    host = np.zeros(4, np.uint8)
    lock = cuda.PageLock(host)
    lock.device_view().fill(3)
    if is_right:
        cuda.synchronize()
    seen = host.tolist()
    cuda.synchronize()
    lock.release()
    assert seen == [3, 3, 3, 3]


USES: dict[str, Callable[[Any], Any]] = {
    "assignment": lambda array: array.__setitem__(..., cuda.library().empty(4, int)),
    "assignment from it": lambda array: cuda.library().empty(4, int).__setitem__(..., array),
    "fill": lambda array: array[1:].fill(0),
    "gather": lambda array: array[np.array([0])],
    "gather by it": lambda array: cuda.library().empty(4, int)[array],
    "scatter": lambda array: array.__setitem__(np.array([0]), 1),
    "memset": lambda array: array.data.memset_async(0, 8),
    "upload": lambda array: array.set(np.zeros(4, int)),
    "launch": lambda array: cuda.launch("add_one", (1,), (1,), [array]),
    "launch by address": lambda array: cuda.launch(
        "copy_from", (1,), (1,), [cuda.library().empty(1, int), np.int64(array.data.ptr + 8)]
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_using_freed_memory_raises(use: Callable[[Any], Any]) -> None:
    with simulated_cuda("lazy", kernels=TWINS | {"copy_from": lambda *_: None}):
        values, side = cuda.to_device(np.zeros(4, int)), new_stream()
        cuda.Event().record().wait(side)
        with cuda.use_stream(side):
            use(values)
        del values
        cuda.Event().record().synchronize()  # the memory's own stream has freed it
        with pytest.raises(UseAfterFreeError, match="it uses device memory of 32 bytes"):
            cuda.synchronize(side)


def test_a_copy_into_pages_that_were_unlocked_raises() -> None:
    with simulated_cuda("lazy"):
        values = cuda.to_device(np.zeros(4, int))
        with pinned(4) as host:
            cuda.copy_to_host(values, out_host=host)
        with pytest.raises(UseAfterFreeError, match=r"page-locked memory .* after it was unlocked"):
            cuda.synchronize()


def test_freeing_managed_memory_waits_for_the_device() -> None:
    with simulated_cuda("lazy") as simulation:
        on_device, on_host = cuda.allocate_managed(8)
        with cuda.use_stream(new_stream()):
            result = on_device.copy()
        del on_device, on_host
        assert simulation.used_nbytes == 8  # the copy's own
        assert simulation.n_pending == 0
        del result


def bytes_at(address: int, n: int) -> np.ndarray:
    """Return the bytes at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(address))


def copy_from(grid: Any, block: Any, target: np.ndarray, address: np.int64, n: np.int64) -> None:
    """Copy int64 numbers from an address: a twin."""
    target[:n] = bytes_at(int(address), 8 * int(n)).view(np.int64)


def add_one(grid: Any, block: Any, target: np.ndarray) -> None:
    """Add 1: a twin."""
    target += 1


TWINS: dict[str, Callable[..., None]] = {"copy_from": copy_from, "add_one": add_one}
HIDDEN_WHERE_NOTHING_IS_LATE: list[Program] = [
    wait_before_the_host_reads,
    wait_before_a_pinned_slot_is_overwritten,
    record_an_event_behind_the_copy,
    join_a_stream,
    keep_memory_that_another_stream_uses,
    keep_pages_locked_until_the_copy_is_done,
    wait_before_the_host_reads_managed_memory,
    wait_before_the_host_reads_mapped_memory,
]
SHOWN_ALWAYS: list[Program] = [keep_memory_whose_address_is_used, write_memory_before_it_is_read]
each_fault = pytest.mark.parametrize("program", HIDDEN_WHERE_NOTHING_IS_LATE + SHOWN_ALWAYS)


def passes(program: Program, schedule: str, seed: int = 0, *, is_right: bool) -> bool:
    """Tell whether a program got its own result under a schedule."""
    try:
        with simulated_cuda(schedule, seed, kernels=TWINS):
            program(is_right)
    except (AssertionError, SimulationError):
        return False
    return True


@each_fault
def test_lazy_finds_the_fault(program: Program) -> None:
    assert not passes(program, "lazy", is_right=False)


@each_fault
def test_a_random_order_finds_the_fault(program: Program) -> None:
    found = [not passes(program, "random", seed, is_right=False) for seed in range(N_TRIES)]
    assert any(found)


@pytest.mark.parametrize("program", HIDDEN_WHERE_NOTHING_IS_LATE)
def test_where_nothing_is_late_the_fault_does_not_show(program: Program) -> None:
    assert passes(program, "eager", is_right=False)
    assert any(passes(program, "random", seed, is_right=False) for seed in range(N_TRIES))


@pytest.mark.parametrize("program", SHOWN_ALWAYS)
def test_poison_shows_under_every_schedule(program: Program) -> None:
    assert not passes(program, "eager", is_right=False)


@each_fault
@pytest.mark.parametrize("schedule", ["eager", "lazy"])
def test_the_right_program_passes(program: Program, schedule: str) -> None:
    with simulated_cuda(schedule, kernels=TWINS):
        program(True)


@each_fault
@pytest.mark.parametrize("n_orders", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_the_right_program_passes_random_orders(program: Program, n_orders: int) -> None:
    for seed in range(n_orders):
        with simulated_cuda("random", seed, kernels=TWINS):
            program(True)


def test_a_fault_says_where_the_work_was_queued() -> None:
    with pytest.raises(UseAfterFreeError) as caught, simulated_cuda("lazy"):
        keep_pages_locked_until_the_copy_is_done(False)
    (note,) = caught.value.__notes__
    assert Path(__file__).name in note
    assert "a copy of 32 bytes to the device" in note


# Order: a law, for any program of streams and events

N_STREAMS = 4  # 0 is the legacy default stream, 1 and 2 are blocking, 3 is not
IS_BLOCKING = (False, True, True, False)
streams = st.integers(0, N_STREAMS - 1)
steps = st.one_of(
    st.tuples(st.just("work"), streams),
    st.tuples(st.just("record"), streams, st.integers(0, 2)),
    st.tuples(st.just("wait"), streams, st.integers(0, 2)),
    st.tuples(st.just("synchronize"), streams),
    st.tuples(st.just("synchronize event"), st.integers(0, 2)),
    st.tuples(st.just("query"), st.integers(0, 2)),
    st.tuples(st.just("synchronize device")),
)


class Reference:
    """Which work must come before which, by closure over sets: slow, and written apart."""

    def __init__(self) -> None:
        self.before: list[set[int]] = []  # for each work, all that must come before it
        self.reached = [set[int]() for _ in range(N_STREAMS)]  # what later work of a stream needs
        self.events = [set[int]() for _ in range(3)]

    def begin(self, stream: int) -> set[int]:
        """Return what an action in a stream needs, by CUDA's rule of the default stream."""
        if stream == 0:
            for other in range(N_STREAMS):
                if IS_BLOCKING[other]:
                    self.reached[0] |= self.reached[other]
        elif IS_BLOCKING[stream]:
            self.reached[stream] |= self.reached[0]
        return self.reached[stream]

    def work(self, stream: int) -> int:
        needs = self.begin(stream)
        number = len(self.before)
        self.before.append(set(needs))
        needs.add(number)
        return number


class Recorder:
    """Runs a program on an engine and checks the order in which its work ran."""

    def __init__(self, schedule: str, seed: int) -> None:
        self.engine = Engine(make_schedule(schedule, seed))
        self.reference = Reference()
        self.order: list[int] = []
        self.addresses = [0, *(self.engine.open_stream(is_blocking=b) for b in IS_BLOCKING[1:])]
        self.marks: list[Operation | None] = [None] * 3

    def step(self, action: str, *numbers: int) -> None:
        engine, reference = self.engine, self.reference
        must_be_done: set[int] = set()
        if action == "work":
            number = reference.work(numbers[0])
            address = self.addresses[numbers[0]]
            engine.queue(address, "work", lambda: self.order.append(number))
        elif action == "record":
            stream, event = numbers
            reference.events[event] = set(reference.begin(stream))
            self.marks[event] = engine.queue(self.addresses[stream], "record")
        elif action == "wait":
            stream, event = numbers
            reference.begin(stream)
            reference.reached[stream] |= reference.events[event]
            engine.queue(self.addresses[stream], "wait", after=self.marks[event])
        elif action == "synchronize":
            must_be_done = reference.reached[numbers[0]]
            engine.wait(engine.stream_at(self.addresses[numbers[0]]).last)
        elif action == "synchronize event":
            must_be_done = reference.events[numbers[0]]
            engine.wait(self.marks[numbers[0]])
        elif action == "query":
            if engine.is_done(self.marks[numbers[0]]):
                must_be_done = reference.events[numbers[0]]
        else:
            must_be_done = set(range(len(reference.before)))
            engine.wait_for_all()
        self.check(must_be_done)

    def check(self, must_be_done: set[int]) -> None:
        assert must_be_done <= set(self.order)
        for place, number in enumerate(self.order):
            assert self.reference.before[number] <= set(self.order[:place])


@given(
    program=st.lists(steps, max_size=25),
    schedule=st.sampled_from(["eager", "lazy", "random"]),
    seed=st.integers(0, 99),
)
def test_work_runs_in_an_order_that_cuda_allows(
    program: list[tuple[Any, ...]], schedule: str, seed: int
) -> None:
    recorder = Recorder(schedule, seed)
    for action, *numbers in program:
        recorder.step(action, *numbers)
        if schedule == "eager":
            assert recorder.engine.n_pending == 0
    recorder.step("synchronize device")
    assert len(recorder.order) == len(recorder.reference.before)


@given(program=st.lists(steps, max_size=25))
def test_lazy_runs_only_what_the_host_waits_for(program: list[tuple[Any, ...]]) -> None:
    recorder = Recorder("lazy", 0)
    waited_for: set[int] = set()
    for action, *numbers in program:
        recorder.step(action, *numbers)
        reference = recorder.reference
        if action == "synchronize":
            waited_for |= reference.reached[numbers[0]]
        elif action in ("synchronize event", "query"):
            waited_for |= reference.events[numbers[0]]
        elif action == "synchronize device":
            waited_for |= set(range(len(reference.before)))
        assert set(recorder.order) <= waited_for


def orders(program: Callable[[Engine, list[str]], None], n_seeds: int = 200) -> set[str]:
    """Return all orders in which a program's work ran under random schedules."""
    found = set()
    for seed in range(n_seeds):
        engine, ran = Engine(make_schedule("random", seed)), list[str]()
        program(engine, ran)
        engine.wait_for_all()
        found.add("".join(ran))
    return found


def test_a_random_schedule_reaches_every_order_of_independent_streams() -> None:
    def two_streams(engine: Engine, ran: list[str]) -> None:
        one, other = (engine.open_stream(is_blocking=False) for _ in range(2))
        for address, names in ((one, "ab"), (other, "xy")):
            for name in names:
                engine.queue(address, name, lambda name=name: ran.append(name))

    assert orders(two_streams) == {"abxy", "axby", "axyb", "xaby", "xayb", "xyab"}


@pytest.mark.parametrize(
    ("is_blocking", "expected"), [(True, {"abc"}), (False, {"abc", "acb", "bac"})]
)
def test_the_legacy_default_stream_orders_blocking_streams_only(
    is_blocking: bool, expected: set[str]
) -> None:
    def default_before_and_after(engine: Engine, ran: list[str]) -> None:
        address = engine.open_stream(is_blocking=is_blocking)
        for stream, name in ((0, "a"), (address, "b"), (0, "c")):
            engine.queue(stream, name, lambda name=name: ran.append(name))

    assert orders(default_before_and_after) == expected


def test_a_wait_keeps_to_the_place_where_the_event_was_when_it_was_asked_for() -> None:
    with simulated_cuda("lazy"):
        main, side = new_stream(), new_stream()
        event, n_ran = cuda.Event(), cuda.to_device(np.zeros(2, int))
        cuda.synchronize()
        with cuda.use_stream(main):
            n_ran[0].fill(1)
        event.record(main)
        event.wait(side)
        with cuda.use_stream(main):
            n_ran[0].fill(2)
        event.record(main)  # too late for the wait
        assert cuda.to_host(n_ran, stream=side).tolist() == [1, 0]
        event.synchronize()
        assert cuda.to_host(n_ran, stream=side).tolist() == [2, 0]


def test_a_wait_of_a_stream_runs_nothing() -> None:
    with simulated_cuda("lazy") as simulation:
        cuda.to_device(np.zeros(2))
        event = cuda.Event().record()
        event.wait(new_stream())
        event.wait()
        assert simulation.n_pending == 1 + 1 + 2 + 1  # copy, event, waits, freeing


def test_an_event_that_was_never_recorded_is_reached() -> None:
    with simulated_cuda("lazy"):
        event = cuda.Event()
        event.wait()
        event.synchronize()
        assert event.query()


@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
def test_a_host_that_asks_again_and_again_sees_the_event(schedule: str) -> None:
    for seed in range(20):
        with simulated_cuda(schedule, seed):
            values = cuda.to_device(np.arange(3))
            for _ in range(10):
                values = values.copy()
            event = cuda.Event().record()
            n_asked = 1
            while not event.query():
                n_asked += 1
                assert n_asked < 50
            assert (n_asked == 1) or schedule != "eager"


def test_the_current_stream_is_each_threads_own() -> None:
    from threading import Thread

    with simulated_cuda():
        seen = []
        with cuda.use_stream(new_stream()) as stream:
            thread = Thread(target=lambda: seen.append(cuda.current_stream()))
            thread.start()
            thread.join()
            assert cuda.current_stream() == stream
        assert cuda.current_stream() == seen[0] == cuda.library().cuda.Stream.null


# Arrays: as NumPy's, later


@st.composite
def arrays_and_indices(draw: st.DrawFn) -> tuple[np.ndarray, Any, Any]:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    values = np.arange(np.prod(shape)).reshape(shape)
    first = with_dots(draw(hnp.basic_indices(shape)))
    view = values[first]
    if view.ndim and view.size and draw(st.booleans()):
        return values, first, draw(hnp.integer_array_indices(view.shape))
    return values, first, with_dots(draw(hnp.basic_indices(view.shape)))


def with_dots(index: Any) -> tuple[Any, ...]:
    """Return an index with an ellipsis: NumPy gives an array then, never a scalar."""
    items = index if isinstance(index, tuple) else (index,)
    return items if ... in items else (*items, ...)


@given(arrays_and_indices(), st.sampled_from(["eager", "lazy", "random"]))
def test_reading_and_writing_at_an_index_is_numpys(
    case: tuple[np.ndarray, Any, Any], schedule: str
) -> None:
    values, first, second = case
    with simulated_cuda(schedule):
        array = cuda.to_device(values)
        view = array[first]
        np.testing.assert_array_equal(view.get(), values[first])
        np.testing.assert_array_equal(view[second].get(), values[first][second])
        written = values.copy()
        written[first][second] = -5
        view[second] = -5
        np.testing.assert_array_equal(array.get(), written)


@given(arrays_and_indices())
def test_an_array_assigned_at_an_index_is_written_when_its_turn_comes(
    case: tuple[np.ndarray, Any, Any],
) -> None:
    values, first, second = case
    with simulated_cuda("lazy"):
        array = cuda.to_device(values)
        source = cuda.to_device(np.zeros(values[first][second].shape, int))
        array[first][second] = source
        source.fill(-5)  # behind the assignment
        values[first][second] = 0
        np.testing.assert_array_equal(array.get(), values)


def test_integer_indices_that_lie_outside_wrap(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.arange(5))
    assert array[np.array([5, -1, 11])].get().tolist() == [0, 4, 1]
    array[cuda.to_device(np.array([7]))] = 9
    assert array.get().tolist() == [0, 1, 9, 3, 4]


def test_masks_of_the_host_select(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.arange(6).reshape(2, 3))
    mask = np.array([[True, False, True], [False, True, False]])
    assert array[mask].get().tolist() == [0, 2, 4]


def test_masks_of_the_device_are_not_imitated(cuda_simulation: Simulation) -> None:
    array, mask = cuda.to_device(np.arange(3)), np.array([True, False, True])
    with pytest.raises(NotImitatedError, match="mask"):
        array[cuda.to_device(mask)]


def test_numpy_can_neither_read_nor_be_assigned(cuda_simulation: Simulation) -> None:
    array = cuda.to_device(np.arange(3))
    for convert in (np.asarray, np.array, np.sum, lambda a: a + 1, lambda a: np.ones(3) * a):
        with pytest.raises(TypeError):
            convert(array)
    for value in (np.zeros(3), [1, 2, 3]):
        with pytest.raises(ValueError, match="non-scalar"):
            array[...] = value
    array[...] = np.array(4)
    assert array.get().tolist() == [4, 4, 4]


def test_views_share_memory_and_casts_do_not(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.arange(6, dtype=np.int32))
    array[1:].reshape(5, 1)[::-2].fill(-1)
    as_bytes = array.view(np.uint8)
    assert (as_bytes.shape, as_bytes.data.ptr) == ((24,), array.data.ptr)
    as_float = array.astype(np.float64)
    array.fill(0)
    assert as_float.get().tolist() == [0, -1, 2, -1, 4, -1]
    assert array[::2].reshape(1, 3).get().tolist() == [[0, 0, 0]]  # a copy, made in order


def test_an_array_is_assigned_as_cupy_would(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.zeros((2, 3), np.int32))
    array[...] = cuda.to_device(np.array([[[1.9, -2.9, 3]]]))  # cast and broadcast, 1s in front
    assert array.get().tolist() == [[1, -2, 3], [1, -2, 3]]
    array[...] = array  # nothing is queued
    with pytest.raises(ValueError):  # noqa: PT011  # CuPy's words are its own
        array[...] = cuda.to_device(np.zeros(2))
    assert array.get().tolist() == [[1, -2, 3], [1, -2, 3]]


def test_what_a_device_would_do_in_any_order_or_not_at_all_is_refused(
    cuda_simulation: Simulation,
) -> None:
    array = cuda.to_device(np.zeros((2, 3), np.int32))
    with pytest.raises(SimulationError, match="reads bytes that it writes"):
        array[:, 1:] = array[:, :-1]
    text = cuda.library().empty(3, "S2")
    with pytest.raises(TypeError, match="no kernels for dtype"):
        text.fill(b"a")
    for values in (np.zeros(2, ">i4"), np.zeros(2, "M8[s]"), np.zeros(2, np.longdouble)):
        with pytest.raises(ValueError, match="Unsupported dtype"):
            cuda.library().asarray(values)


def test_copies_ask_for_equal_forms(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.zeros((4, 4)))
    with pytest.raises(TypeError, match="float32 array cannot be set to float64"):
        array.set(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="Shape mismatch"):
        array.set(np.zeros(16))
    with pytest.raises(RuntimeError, match="non-contiguous"):
        array[::2, ::2].set(np.zeros((2, 2)))
    with pytest.raises(TypeError, match="Only numpy"):
        array.set([0])
    with pytest.raises(TypeError, match="cannot be obtained"):
        array.get(out=np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="Shape mismatch"):
        array.get(out=np.zeros(16))
    with pytest.raises(RuntimeError, match="non-contiguous"):
        array[:2].get(out=np.zeros((2, 8))[:, ::2])


def test_memory_of_the_host_is_read_early_unless_it_is_locked() -> None:
    with simulated_cuda("lazy"), pinned(2) as locked:
        for host, expected in ((np.array([1, 1]), [1, 1]), (locked, [2, 2])):
            target = cuda.to_device(np.zeros(2, int))
            host[...] = 1
            cuda.copy_to_device(host, out_device=target)
            copied, gathered = cuda.to_device(host), target[host]
            host[...] = 2
            assert cuda.to_host(target).tolist() == expected
            assert cuda.to_host(copied).tolist() == expected
            assert cuda.to_host(gathered).tolist() == [expected[0]] * 2


def test_a_copy_to_memory_that_is_not_locked_ends_before_the_call() -> None:
    with simulated_cuda("lazy") as simulation:
        values, host = cuda.to_device(np.arange(3)), np.zeros(3, int)
        cuda.copy_to_host(values, out_host=host)
        assert host.tolist() == [0, 1, 2]
        assert (
            simulation.counters.stream_synchronizations == 1
        )  # a wait that the program did not ask for


def test_an_array_that_is_not_contiguous_is_gathered_in_the_current_stream() -> None:
    with simulated_cuda("lazy"):
        array, side = cuda.to_device(np.zeros(4, int)), new_stream()
        cuda.synchronize()
        with cuda.use_stream(side):
            array.fill(1)
        assert array[::2].get(stream=side).tolist() != [1, 1]  # no event orders them
        assert array.get(stream=side).tolist() == [1] * 4


def test_reading_an_element_waits_for_it(cuda_simulation: Simulation) -> None:
    array = cuda.to_device(np.array(0.5))
    assert (array.item(), float(array), int(array), bool(array)) == (0.5, 0.5, 0, True)
    assert cuda_simulation.counters.stream_synchronizations == 4
    assert repr(array) == "array(0.5)"


# Memory


def test_new_memory_is_poisoned(cuda_simulation: Simulation) -> None:
    empty = cuda.library().empty
    for dtype in (np.float16, np.float32, np.float64):
        assert np.isnan(empty(4, dtype).get()).all()
    assert empty(4, np.int32).get().tolist() == [-1] * 4
    assert cuda.allocate_device(4).get().tolist() == [0] * 4


def test_freed_memory_is_poisoned_when_its_stream_gets_there() -> None:
    with simulated_cuda("lazy"):
        array = cuda.to_device(np.arange(3))
        seen = array._values  # what no program can have: the bytes themselves
        del array
        cuda.synchronize()
        assert seen.tolist() == [0, 1, 2]
        cuda.Event().record().synchronize()
        assert seen.view(np.uint8).tolist() == [0xFE] * 24


def write_at(grid: Any, block: Any, address: np.int64) -> None:
    """Write one byte: a twin."""
    bytes_at(int(address), 1)[0] = 1


def write_at_first_of(grid: Any, block: Any, table: np.ndarray) -> None:
    """Write one byte at an address that is in memory, where no check sees it: a twin."""
    write_at(grid, block, table[0])


def write_beside_a_block(place: int) -> None:
    with simulated_cuda(kernels={"write_at": write_at}):
        array = cuda.to_device(np.arange(3))
        cuda.launch("write_at", (1,), (1,), [np.int64(array.data.ptr + place)])


def write_into_freed_memory() -> None:
    with simulated_cuda(kernels={"write": write_at_first_of}):
        array = cuda.to_device(np.arange(3))
        table = cuda.to_device(np.array([array.data.ptr]))
        del array
        cuda.launch("write", (1,), (1,), [table])


@pytest.mark.parametrize("place", [-1, 24])
def test_writing_beside_a_block_is_found(place: int) -> None:
    with pytest.raises(OutOfBoundsError, match="24 bytes"):
        write_beside_a_block(place)
    for inside in (0, 23):
        write_beside_a_block(inside)


def test_writing_into_freed_memory_is_found() -> None:
    with pytest.raises(UseAfterFreeError, match="wrote into device memory of 24 bytes"):
        write_into_freed_memory()


def test_a_twin_can_check_its_addresses() -> None:
    with simulated_cuda("eager") as simulation:
        array = cuda.to_device(np.arange(3))
        first = array.data.ptr
        simulation.check(first, 24, "twin")
        with pytest.raises(OutOfBoundsError, match="reach beyond"):
            simulation.check(first + 8, 24, "twin")
        with pytest.raises(OutOfBoundsError, match="no memory"):
            simulation.check(first + 24, 1, "twin")
        del array
        cuda.synchronize()
        cuda.Event().record()
        with pytest.raises(UseAfterFreeError):
            simulation.check(first, 24, "twin")


def test_leaks_are_listed_with_their_origin(cuda_simulation: Simulation) -> None:
    array = cuda.to_device(np.arange(3))
    block = np.zeros(8, np.uint8)
    lock = cuda.PageLock(block)
    with pytest.raises(LeakError, match=r"device memory of 24 bytes.*page-locked memory of 8"):
        cuda_simulation.assert_no_leaks()
    with pytest.raises(LeakError, match=Path(__file__).name):
        cuda_simulation.assert_no_leaks()
    lock.release()
    del array
    cuda_simulation.assert_no_leaks()
    assert cuda_simulation.used_nbytes == 0


def test_memory_runs_out() -> None:
    with simulated_cuda(capacity=1000):
        array = cuda.allocate_device(600)
        assert cuda.free_nbytes() == 400
        with pytest.raises(MemoryError, match="600 bytes wanted; 400 bytes are free"):
            cuda.allocate_device(600)
        with pytest.raises(MemoryError, match="managed memory: 600 bytes wanted"):
            cuda.allocate_managed(600)
        del array
        cuda.allocate_device(600)


def test_what_outlives_a_simulation_is_refused_and_does_no_harm() -> None:
    with simulated_cuda():
        array, event = cuda.to_device(np.arange(3)), cuda.Event()
        block = np.zeros(8, np.uint8)
        lock = cuda.PageLock(block)
    for use in (array.get, array.copy, event.record, event.synchronize):
        with pytest.raises((RuntimeError, cuda.CudaUnavailableError)):
            use()
    with simulated_cuda() as simulation:
        other = cuda.PageLock(block)
        lock.release()  # it may not unlock the other one
        cuda.to_device(block)
        cuda.synchronize()
        other.release()
        simulation.assert_no_leaks()


# Kernels

PTX = """
.visible .entry scale(
	.param .u64 scale_param_0,
	.param .u64 .ptr .global .align 1 scale_param_1,
	.param .f32 scale_param_2,
	.param .u32 scale_param_3
)
{ }
"""


def test_a_twin_runs_when_its_turn_comes() -> None:
    with simulated_cuda("lazy", kernels=TWINS) as simulation:
        array = cuda.to_device(np.zeros(2))
        with cuda.use_stream(new_stream(non_blocking=False)) as stream:
            cuda.launch("add_one", (2, 1), (4,), [array])
        array.fill(5)  # in the default stream, behind the kernel
        assert array._values.tolist() != [5, 5]
        assert cuda.to_host(array).tolist() == [5, 5]
        assert simulation.launches == [("add_one", (2, 1), (4,), stream.ptr, 0)]


def test_arguments_are_held_against_the_ptx(tmp_path: Path) -> None:
    path = tmp_path / "module.ptx"
    path.write_text(PTX)
    with simulated_cuda(kernels={"scale": lambda *args: None}):
        array = cuda.to_device(np.zeros(2))
        scale = cuda.library().RawModule(path=str(path)).get_function("scale")
        right = (array, np.int64(array.data.ptr), np.float32(1), np.uint32(2))
        scale((1,), (1,), right)
        for place, wrong in ((2, np.float64(1)), (2, np.int32(1)), (3, np.int64(2))):
            arguments = (*right[:place], wrong, *right[place + 1 :])
            with pytest.raises(SimulationError, match=f"argument {place} is a"):
                scale((1,), (1,), arguments)
        with pytest.raises(SimulationError, match="got 3 arguments, expected 4"):
            scale((1,), (1,), right[:3])


@pytest.mark.parametrize(
    ("grid", "block"),
    [((0,), (1,)), ((1, 65536), (1,)), ((1,), (1025,)), ((1,), (64, 32)), (1, (1,))],
)
def test_a_grid_that_no_device_takes_is_refused(grid: Any, block: Any) -> None:
    with simulated_cuda(kernels=TWINS), pytest.raises(SimulationError, match=r"grid|block"):
        cuda.launch("add_one", grid, block, [cuda.to_device(np.zeros(1))])


def test_a_kernel_without_a_twin_is_named() -> None:
    with (
        simulated_cuda(kernels=TWINS),
        pytest.raises(SimulationError, match=r"no twin to run.*add"),
    ):
        cuda.launch("missing", (1,), (1,), [])


# Counters


def test_what_reaches_the_device_is_counted(cuda_simulation: Simulation) -> None:
    array = cuda.to_device(np.zeros(4))
    event = cuda.Event().record()
    event.wait()
    event.synchronize()
    event.query()
    array.get()
    cuda.library().cuda.Device().synchronize()
    cuda.library().cuda.runtime.deviceSynchronize()
    assert cuda_simulation.counters.as_dict() == {
        "launches": 0,
        "copies_to_device": 1,
        "bytes_to_device": 32,
        "copies_to_host": 1,
        "bytes_to_host": 32,
        "event_records": 1,
        "event_waits": 1,
        "event_synchronizations": 1,
        "stream_synchronizations": 1,
        "device_synchronizations": 2,
        "graph_launches": 0,
    }


# Torch


def test_torch_takes_its_place_in_the_current_stream(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.arange(4, dtype=np.float32))
    tensor = cuda.tensor_over(array)
    array[...] = cuda.to_device(np.ones(4, np.float32))
    assert tensor.sum().item() == 4
    tensor += 1
    doubled = cuda.to_device(np.zeros(4, np.float32))
    doubled[...] = array
    tensor.zero_()  # behind the assignment
    assert doubled.get().tolist() == [2, 2, 2, 2]


def test_torch_waits_for_the_current_stream_only() -> None:
    with simulated_cuda("lazy") as simulation:
        array, other = cuda.to_device(np.zeros(2)), cuda.to_device(np.zeros(2))
        cuda.synchronize()
        with cuda.use_stream(new_stream()):
            other.fill(1)
        array.fill(1)
        with pinned(2) as host:
            torch.from_numpy(host).sum()  # touches no device memory
        assert simulation.n_pending == 2
        assert cuda.tensor_over(array).sum().item() == 2
        assert simulation.n_pending == 1


def test_a_tensor_is_printed_in_its_place(cuda_simulation: Simulation) -> None:
    tensor = cuda.tensor_over(cuda.to_device(np.arange(3)))
    assert repr(tensor) == str(tensor) == f"{tensor}" == "tensor([0, 1, 2])"


def test_a_tensor_keeps_the_memory(cuda_simulation: Simulation) -> None:
    tensor = cuda.tensor_over(cuda.to_device(np.arange(3))[1:])
    cuda.synchronize()
    assert tensor.tolist() == [1, 2]
    with pytest.raises(LeakError):
        cuda_simulation.assert_no_leaks()
    del tensor
    cuda_simulation.assert_no_leaks()


def test_torch_trains_on_device_memory_in_any_order() -> None:
    def train() -> list[float]:
        weight = torch.zeros(3, requires_grad=True)
        batch = cuda.allocate_device(24).view(np.float32).reshape(2, 3)
        for step in range(5):
            batch[...] = cuda.to_device(np.full((2, 3), step + 1, np.float32))
            loss = ((cuda.tensor_over(batch) @ weight - 1) ** 2).mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 0.01 * gradient
        return weight.tolist()

    def run(schedule: str, seed: int) -> list[float]:
        with simulated_cuda(schedule, seed):
            return train()

    expected = run("eager", 0)
    assert expected[0] > 0.01
    for schedule, seed in (("lazy", 0), *(("random", seed) for seed in range(20))):
        assert run(schedule, seed) == expected


def test_an_optimizer_of_torch_works(cuda_device: torch.device) -> None:
    """It enters spans of torch's profiler, which are operators too, and take no tensors."""
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1)
    optimizer.zero_grad()
    (2 * weight).sum().backward()
    optimizer.step()
    assert weight.tolist() == [-1, -1, -1]


def test_a_torch_that_is_not_in_order_gets_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    with simulated_cuda():
        array = cuda.to_device(np.arange(3))
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match="import torch before"):
            cuda.tensor_over(array)


def test_dlpack_gives_the_order_that_a_consumer_asks_for() -> None:
    with simulated_cuda("lazy") as simulation:
        array = cuda.to_device(np.arange(3))
        consumer = new_stream()
        array.__dlpack__(stream=consumer.ptr)
        cuda.synchronize(consumer)
        assert array._values.tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match="valid stream"):
            array.__dlpack__(stream=0)
        copy = array.__dlpack__(dl_device=(1, 0))
        assert simulation.counters.copies_to_host == 1
        del copy


def test_the_array_interface_leads_back_to_the_memory(cuda_simulation: Simulation) -> None:
    class Exported:
        def __init__(self, array: Any) -> None:
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    array = cuda.to_device(np.arange(12).reshape(3, 4))
    for view in (array, array[1:, ::2], array[::-1, 2], array[:0]):
        other = cuda.library().asarray(Exported(view))
        assert (other.shape, other.strides) == (view.shape, view.strides) or not view.size
        np.testing.assert_array_equal(other.get(), view.get())
    assert array.__cuda_array_interface__["stream"] == 1  # legacy: 0 is not allowed
    with cuda.use_stream(new_stream()) as stream:
        assert array.__cuda_array_interface__["stream"] == stream.ptr


# The context


def test_cupy_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unimportable:
        pass

    monkeypatch.setitem(sys.modules, "cupy", Unimportable)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cupy.inner", Unimportable)  # type: ignore[arg-type]
    with simulated_cuda():
        import cupy

        assert cupy is not Unimportable
        assert "cupy.inner" not in sys.modules
        with pytest.raises(AttributeError, match=r"no cupy\.zeros; it has"):
            cupy.zeros(3)
    assert sys.modules["cupy"] is sys.modules["cupy.inner"] is Unimportable
    assert "cupy.cuda" not in sys.modules or sys.modules["cupy.cuda"].__name__ == "cupy.cuda"


def test_one_simulation_at_a_time() -> None:
    with simulated_cuda():
        with pytest.raises(RuntimeError, match="one at a time"), simulated_cuda():
            pass
        cuda.to_device(np.zeros(1)).get()
    with pytest.raises(ValueError, match="schedule"), simulated_cuda("busy"):
        pass
    with simulated_cuda():
        pass


def test_the_same_seed_gives_the_same_order() -> None:
    def sample(seed: int) -> list[int]:
        with simulated_cuda("random", seed) as simulation:
            pending = []
            for _ in range(20):
                with cuda.use_stream(new_stream()):
                    cuda.to_device(np.zeros(2))
                pending.append(simulation.n_pending)
        return pending

    samples = [sample(seed) for seed in range(10)]
    assert samples == [sample(seed) for seed in range(10)]
    assert len({tuple(each) for each in samples}) > 1


def test_many_operations_can_wait_for_one_synchronization() -> None:
    n = 5000
    with simulated_cuda("lazy", kernels=TWINS) as simulation:
        array = cuda.to_device(np.zeros(1))
        kinds = random.Random(0)
        for _ in range(n):
            cuda.launch("add_one", (1,), (1,), [array], stream=None)
            if kinds.random() < 0.1:
                cuda.Event().record()
        assert simulation.n_pending > n
        assert array.item() == n


# parllel's own kernels


def launch_rows(leaves: list[tuple[Any, Any]], written: Any, read: Any) -> None:
    """Launch the copy of rows: leaves as (destination, source), indices as ranges or arrays."""
    entries = [
        (out.data.ptr, out.strides[0], source.data.ptr, source.strides[0], out[0].nbytes)
        for out, source in leaves
    ]
    table = cuda.to_device(np.array(entries))
    kept, picks = [], []
    for index in (written, read):
        if isinstance(index, range):
            picks += [np.int64(0), np.int64(index.start), np.int64(index.step)]
        else:
            kept.append(cuda.to_device(np.asarray(index)))
            picks += [kept[-1], np.int64(0), np.int64(0)]
    teams = map(np.int64, Teams(len(leaves), 0, 5, 0, 0))
    cuda.launch("rows", (3,), (128,), [table, np.int64(len(written)), *picks, *teams])


@pytest.mark.parametrize("index", [range(5, -1, -2), [5, 3, 1]])
def test_the_kernel_of_rows_runs(index: Any, cuda_device: torch.device) -> None:
    hosts = [np.arange(42, dtype=np.float32).reshape(6, 7), np.arange(6, dtype=np.uint8)]
    leaves = [(cuda.to_device(np.zeros_like(host)), cuda.to_device(host)) for host in hosts]
    launch_rows(leaves, range(1, 4), index)
    for (out, _), host in zip(leaves, hosts, strict=True):
        assert out[1:4].get().tolist() == host[[5, 3, 1]].tolist()
        assert not out[4:].get().any()
        assert not out[0].get().any()


def test_the_kernel_of_rows_is_checked_row_by_row() -> None:
    with simulated_cuda("eager"):
        out, source = cuda.to_device(np.zeros((4, 2))), cuda.to_device(np.ones((4, 2)))
        launch_rows([(out, source)], range(4), [0, 1, 2, 3])
        with pytest.raises(OutOfBoundsError, match="rows, leaf 0, read"):
            launch_rows([(out, source)], range(4), [0, 1, 2, 4])
        with pytest.raises(OutOfBoundsError, match="rows, leaf 0, written"):
            launch_rows([(out, source)], range(-1, 3), range(4))


def test_the_kernel_of_rows_finds_freed_memory_in_its_table() -> None:
    with simulated_cuda("lazy"):
        out, source = cuda.to_device(np.zeros((4, 2))), cuda.to_device(np.ones((4, 2)))
        entry = (out.data.ptr, 16, source.data.ptr, 16, 16)
        table = cuda.to_device(np.array(entry))
        del source
        zero, one = np.int64(0), np.int64(1)
        teams = map(np.int64, Teams(1, 0, 0, 0, 0))
        arguments = [table, np.int64(4), zero, zero, one, zero, zero, one, *teams]
        cuda.launch("rows", (1,), (1,), arguments)
        with pytest.raises(UseAfterFreeError, match="rows, leaf 0, read"):
            cuda.synchronize()


def test_the_kernel_of_advantages_gives_the_hosts_bits(cuda_device: torch.device) -> None:
    rng = np.random.default_rng(0)
    reward, final_value = rng.standard_normal((2, 5, 3), np.float32)
    value = rng.standard_normal((6, 3), np.float32)
    terminated, truncated = rng.random((2, 5, 3)) < 0.2
    inputs = (reward, value, terminated, truncated, final_value)
    expected = {name: np.empty_like(reward) for name in ("out_advantage", "out_return")}
    estimate_advantage(*inputs, discount=0.5, gae_lambda=0.25, **expected)

    outputs = [cuda.library().empty((5, 3), np.float32) for _ in expected]
    sizes = (np.int64(5), np.int64(3), np.int64(5))
    arguments = [*map(cuda.to_device, inputs), np.float32(0.5), np.float32(0.125), *sizes, *outputs]
    cuda.launch("advantage", (2,), (32,), arguments)
    for output, host in zip(outputs, expected.values(), strict=True):
        np.testing.assert_array_equal(output.get(), host)


def test_every_kernel_of_the_module_has_a_twin() -> None:
    assert sorted(own_twins()) == re.findall(r"\.entry (\w+)", launches.PTX.read_text())


TOY = """
import numpy as np
from parllel.kernels.targets import DeviceEntry, cuda

def double_number(value):
    return value + value

def double_on_grid(values, n, out):
    at = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while at < n:
        out[at] = double_number(values[at])
        at += cuda.gridDim.x * cuda.blockDim.x

FLOATS = "CPointer(float32)"
DEVICE = DeviceEntry("double", double_on_grid, f"void({FLOATS}, int64, {FLOATS})", (double_number,))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceEntry]:
    """A new file in the folder of kernels: nothing else is told of it."""
    (tmp_path / "toy.py").write_text(TOY)
    with monkeypatch.context() as patched:
        patched.setattr(parllel.kernels, "__path__", [*parllel.kernels.__path__, str(tmp_path)])
        find_entries.cache_clear()
        yield find_entries()["double"]
    sys.modules.pop("parllel.kernels.toy")
    vars(parllel.kernels).pop("toy")
    find_entries.cache_clear()


def test_a_new_kernel_is_simulated_without_another_edit(toy: DeviceEntry) -> None:
    assert toy.name in own_twins()
    with simulated_cuda():
        values, out = (
            cuda.to_device(np.arange(5, dtype=np.float32)),
            cuda.to_device(np.zeros(5, "f")),
        )
        cuda.launch("double", (1,), (32,), [values, np.int64(5), out])
        assert cuda.to_host(out).tolist() == [0, 2, 4, 6, 8]


def test_a_new_kernel_is_compiled_without_another_edit(toy: DeviceEntry) -> None:
    # numba has a module `cuda` of its own: this one is of numba-cuda alone.
    pytest.importorskip("numba.cuda.core", reason="no numba-cuda: install .[dev]")
    from parllel.kernels.ptx import compile_entry

    assert compile_entry(find_entries()["double"]).startswith(".visible .entry double(")


def test_two_kernels_of_one_name_are_refused(
    toy: DeviceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["parllel.kernels.toy"], "DEVICE", toy._replace(name="rows"))
    find_entries.cache_clear()
    with pytest.raises(ValueError, match="rows: two kernels"):
        find_entries()

"""Several devices in one process: a `with` block names the device, and nothing moves by itself."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict, cuda
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import Minibatches, ReplayBuffer
from parllel.samplers import BasicSampler
from parllel.testing.simulated_cuda import Simulation, WrongDeviceError, simulated_cuda
from parllel.testing.toy_envs import Clock
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

SCHEDULES = ("eager", "lazy", "random")

pytestmark = pytest.mark.simulation("they need two devices")


@pytest.fixture(params=SCHEDULES)
def two_devices(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    with simulated_cuda(request.param, n_devices=2) as simulation:
        yield simulation


def on_device_1(values: Any) -> Any:
    with cuda.use_device(1):
        return cuda.to_device(np.asarray(values))


# What the simulation imitates


def test_a_device_is_current_inside_of_its_block_and_in_its_thread(two_devices: Simulation) -> None:
    seen = []
    with cuda.use_device(1):
        assert cuda.device_number() == 1
        with pytest.raises(ZeroDivisionError), cuda.use_device(0):
            _ = 1 / 0
        assert cuda.device_number() == 1
        thread = threading.Thread(target=lambda: seen.append(cuda.device_number()))
        thread.start()
        thread.join()
    assert cuda.device_number() == 0
    assert seen == [0]
    for number in (-1, 2):
        with pytest.raises(ValueError, match="expected a number below 2"), cuda.use_device(number):
            pass


def test_each_device_has_memory_and_a_current_stream_of_its_own(two_devices: Simulation) -> None:
    free = cuda.free_nbytes()
    stream = cuda.new_stream()
    with cuda.use_stream(stream):
        block = cuda.allocate_device(1000)
        assert cuda.free_nbytes() == free - 1000
        with cuda.use_device(1):
            assert cuda.free_nbytes() == free
            assert cuda.current_stream().ptr == 0
        assert cuda.current_stream() == stream
    assert (block.device.id, stream.device_id) == (0, 0)
    with cuda.use_device(1), pytest.raises(RuntimeError, match=r"created on \(0\)"), stream:
        pass


def test_default_streams_of_two_devices_do_not_wait_for_each_other() -> None:
    with simulated_cuda("lazy", n_devices=2) as simulation:
        blocking = cuda.library().cuda.Stream()  # which the default stream of its device waits for
        kept = [cuda.to_device(np.arange(3), stream=blocking), on_device_1(range(3))]
        with cuda.use_device(1):
            cuda.synchronize()
        assert simulation.n_pending == 1
        assert cuda.to_host(kept[0]).tolist() == [0, 1, 2]


def test_work_of_one_device_on_memory_of_another_one_is_found(two_devices: Simulation) -> None:
    import cupy

    ours, theirs = cuda.to_device(np.zeros(3, "i8")), on_device_1(np.zeros(3, "i8"))
    stream = cuda.current_stream()
    uses: list[Callable[[], Any]] = [
        lambda: theirs.fill(1),
        lambda: ours.__setitem__(..., theirs),
        lambda: theirs.set(np.ones(3, "i8"), stream=stream),
        lambda: theirs.data.memset_async(0, 8, stream),
    ]
    for use in uses:
        with pytest.raises(WrongDeviceError, match="work of device 0, and uses device memory"):  # noqa: PT012
            use()
            cupy.cuda.Device(0).synchronize()


def test_an_event_of_one_device_is_not_recorded_in_a_stream_of_another_one(
    two_devices: Simulation,
) -> None:
    import cupy

    event = cupy.cuda.Event()
    array = cuda.to_device(np.arange(3))
    event.record()
    with cuda.use_device(1):
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidResourceHandle"):
            event.record()
        cuda.current_stream().wait_event(event)  # which CUDA allows
        cuda.synchronize()
    event.synchronize()
    assert array.get().tolist() == [0, 1, 2]


def test_torch_has_its_place_in_the_streams_of_a_tensors_own_device(
    two_devices: Simulation,
) -> None:
    with cuda.use_device(1):
        tensor = cuda.tensor_over(cuda.to_device(np.arange(3)))
    assert (tensor + 1).tolist() == [1, 2, 3]  # it has waited for the copy in device 1's stream
    other = cuda.tensor_over(cuda.to_device(np.arange(3)))
    with pytest.raises(RuntimeError, match="cuda:0 and cuda:1"):
        tensor + other
    assert other.copy_(tensor).tolist() == [0, 1, 2]


# What works


class Agent:
    """Acts by what it sees, on the device where it is shown it."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        value = self.value(observation)
        return (value % 2).long(), {"value": value / 3}

    def value(self, observation: Any) -> Any:
        return observation.to_torch()[:, 1] + 0.25


def as_list(leaf: Any) -> Any:
    return (leaf.to_torch() if isinstance(leaf, Array) else leaf).tolist()


def numbers_of_a_run(folder: Path) -> dict[str, list[Any]]:
    """Sample twice into a ring, with all that follows a batch; return what came of it."""
    agent = Agent()
    example = build_example(Clock)
    samples = build_sample_tree(example, agent, batch_shape=(4, 3), storage="device", full_size=8)
    sampler = BasicSampler([SerialCage(Clock, n_envs=3)], agent, samples)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0), n_steps=2)
    replay.restart()
    steps = EstimateAdvantage(), NormalizeAdvantage()
    found: dict[str, list[Any]] = {}
    for _ in range(3):
        replay.begin_batch()
        batch, _ = sampler.collect_batch()
        replay.end_batch()
        for step in steps:
            batch = step(batch)
        replay.save(folder)
        samples["reward"].full[...] = 0
        replay.load(folder)
        drawn = [replay.sample(8), *Minibatches(2, np.random.default_rng(1)).of(batch)]
        for number, tree in enumerate([batch, *drawn]):
            for name, leaf in tree.walk():
                found.setdefault(f"{number} {name}", []).append(as_list(leaf))
    sampler.close()
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_in_the_block_is_the_one_of_the_first_device(schedule: str, tmp_path: Path) -> None:
    found = []
    for number in (0, 1):
        with simulated_cuda(schedule, n_devices=2) as simulation, cuda.use_device(number):
            found.append(numbers_of_a_run(tmp_path / str(number)))
            assert {launch.device for launch in simulation.launches} == {number}
    assert found[0] == found[1]


# What parllel refuses


def refused_uses() -> dict[str, Callable[[Any], Any]]:
    """Return what may be done with an Array of 4 rows, each of which is work."""
    return {
        "write a number": lambda array: array.__setitem__(..., 1),
        "write a row": lambda array: array.__setitem__(0, np.ones(3, "f4")),
        "write rows of its own device": lambda array: array.__setitem__(0, on_device_1([1.0] * 3)),
        "read": lambda array: array.to_ndarray(),
        "read rows": lambda array: array[[0, 2]].to_ndarray(),
        "read rows on the device": lambda array: array[[0, 2]].to_cupy(),
        "show torch": lambda array: array.to_torch(),
        "rotate": lambda array: array.rotate(),
        "copy to the host": lambda array: array.to("local"),
        "copy to another device": lambda array: array.to("device"),
    }


@pytest.mark.parametrize("storage", ["device", "managed"])
@pytest.mark.parametrize("use", refused_uses())
def test_an_array_is_used_on_its_own_device(use: str, storage: str) -> None:
    with simulated_cuda("lazy", n_devices=2) as simulation:
        with cuda.use_device(1):
            array = Array((4,), "f4", feature_shape=(3,), padding=1, full_size=4, storage=storage)
            array[...] = 2
        before = simulation.n_operations
        work = refused_uses()[use]
        is_of_host = storage == "managed" and use not in ("show torch", "copy to another device")
        if not is_of_host:
            with pytest.raises(RuntimeError, match=r"memory of device 1.*use_device\(1\)"):
                work(array)
            # What it wrote elsewhere before: the value, and the zeros of a copy's own memory.
            n_others = ("rows of its" in use) + ("copy to" in use)
            assert simulation.n_operations - before <= n_others
        with cuda.use_device(1):
            work(array)
        array.close()


def test_values_of_another_device_are_refused(two_devices: Simulation) -> None:
    theirs = on_device_1(np.ones((4, 3), "f4"))
    with cuda.use_device(1):
        tensor = torch.from_dlpack(theirs)
    array = Array((4,), "f4", feature_shape=(3,), storage="device")
    array[...] = 2
    for value in (
        theirs,
        SimpleNamespace(__cuda_array_interface__=theirs.__cuda_array_interface__),
    ):
        with pytest.raises(RuntimeError, match=r"got memory of device 1, expected .* device 0"):
            array[...] = value
    with pytest.raises(RuntimeError, match="got memory of device 1"):
        cuda.array_over(value)
    assert array.to_ndarray().tolist() == [[2.0] * 3] * 4
    array[...] = tensor.cpu()
    assert array.to_ndarray().tolist() == [[1.0] * 3] * 4


def test_a_launch_with_arrays_of_two_devices_is_refused(two_devices: Simulation) -> None:
    table, n = on_device_1(np.zeros(5, "i8")), np.int64(0)
    with pytest.raises(RuntimeError, match=r"rows: argument 0: got memory of device 1.*device 0"):
        cuda.launch("rows", (1,), (32,), [table, *[n] * 12])
    assert not two_devices.launches


def test_a_tree_with_leaves_of_two_devices_is_refused_by_what_moves_rows(
    two_devices: Simulation,
) -> None:
    with cuda.use_device(1):
        theirs = Array((4, 2), "f4", storage="device")
    tree = ArrayDict({"a": Array((4, 2), "f4", storage="device"), "b": theirs})
    for number in (0, 1):
        with cuda.use_device(number), pytest.raises(RuntimeError, match="got memory of device"):
            tree[[0, 2], [0, 1]].to_torch()
    assert not two_devices.launches


def test_an_event_says_on_which_device_it_can_be_used(two_devices: Simulation) -> None:
    event = cuda.Event()
    with cuda.use_device(1), pytest.raises(RuntimeError, match=r"of device 1, .*use_device\(0\)"):
        event.record()


def test_torchs_own_device_has_to_be_cupys_for_each_piece_of_work(
    two_devices: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = Array((2,), "f4", storage="device")
    stream = SimpleNamespace(cuda_stream=0, device_index=1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    with pytest.raises(RuntimeError, match=r"torch's current one is 1, and CuPy's is 0"):
        array[...] = 1


def test_pinned_memory_waits_for_its_own_device_when_it_is_closed() -> None:
    with simulated_cuda("lazy", n_devices=2):
        with cuda.use_device(1):
            pinned = Array((3,), "f4", storage="pinned")
            pinned[...] = 3
            copied = pinned.to_cupy().copy()
        pinned.close()  # while device 0 is current: the copy has run, or it would find no memory
        with cuda.use_device(1):
            assert cuda.to_host(copied).tolist() == [3, 3, 3]

"""parllel.cuda: what it says without a device, and what it does on a simulated one."""

import copy
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from optional import needs
from parllel import Array, cuda
from parllel.cuda import launches
from parllel.testing.simulated_cuda import Simulation, simulated_cuda
from parllel.testing.simulated_cuda.fixture import cuda_simulation

__all__ = ["cuda_simulation"]  # a fixture


def test_importing_it_loads_no_library_of_cuda_and_no_torch() -> None:
    report = "import json, sys, parllel.cuda; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", report]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"cupy", "torch", "pynvml", "numba"} & set(json.loads(run.stdout)) == set()


# Without a device


class FakeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"error {status}")


def fake_cupy(
    *, status: int = 0, n_devices: int = 1, driver: int = 0, capability: str = "90"
) -> ModuleType:
    """Return a module cupy whose runtime raises an error of a status, unless it is 0."""

    def count() -> int:
        if status:
            raise FakeError(status)
        return n_devices

    runtime = SimpleNamespace(
        CUDARuntimeError=FakeError,
        getDeviceCount=count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13020,
    )
    device = SimpleNamespace(compute_capability=capability)
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=runtime, Device=lambda: device)  # type: ignore[attr-defined]
    return cupy


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"status": 35}, "no NVIDIA driver was found"),
        ({"status": 35, "driver": 12040}, r"too old: it supports CUDA 12\.4.*needs CUDA 13\.2"),
        ({"status": 100}, "the NVIDIA driver sees no device"),
        ({"n_devices": 0}, "the NVIDIA driver sees no device"),
        ({"status": 3}, "forked"),
        ({"status": 999}, r"can't be started \(error 999\)"),
        ({"capability": "61"}, r"compute capability 6\.1, expected 7\.5"),
    ],
)
def test_it_says_why_there_is_no_device(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**settings))
    assert not cuda.is_available()
    with pytest.raises(cuda.CudaUnavailableError, match=reason) as caught:
        cuda.library()
    assert 'storage="local"' in str(caught.value)
    with pytest.raises(cuda.CudaUnavailableError):
        cuda.Event()
    with pytest.raises(cuda.CudaUnavailableError):
        cuda.allocate_device(1)


@pytest.mark.parametrize("capability", ["75", "90", "120"])
def test_a_device_that_can_be_used_has_no_reason(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    cupy = fake_cupy(capability=capability)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert cuda.is_available()
    assert cuda.why_unavailable() is None
    assert cuda.library() is cupy


def test_a_forked_process_can_not_use_the_device_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cupy = fake_cupy(capability="90")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert cuda.why_unavailable() is None
    # A forked process asks anew: there, CUDA's own calls tell that it can't be used.
    monkeypatch.setattr(os, "getpid", lambda: -1)
    refusing = fake_cupy(status=3).cuda.runtime.getDeviceCount
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", refusing)
    assert cuda.why_unavailable() is not None


def test_a_library_that_was_found_usable_is_looked_up_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = fake_cupy(), fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", first)
    assert cuda.library() is first
    for cupy in (first, second):
        monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # by which answers are kept otherwise
    assert cuda.library() is first
    monkeypatch.setitem(sys.modules, "cupy", second)  # as a simulation does
    with pytest.raises(cuda.CudaUnavailableError, match="sees no device"):
        cuda.library()


FORKING = """
import os, sys
from types import ModuleType, SimpleNamespace
from parllel import cuda

parent, error = os.getpid(), type("FakeError", (Exception,), {"status": 3})

def count():
    if os.getpid() != parent:
        raise error
    return 1

runtime = SimpleNamespace(
    CUDARuntimeError=error, getDeviceCount=count,
    driverGetVersion=lambda: 13020, runtimeGetVersion=lambda: 13020,
)
cupy = sys.modules["cupy"] = ModuleType("cupy")
device = SimpleNamespace(compute_capability="90")
cupy.cuda = SimpleNamespace(runtime=runtime, Device=lambda: device)
assert cuda.library() is cupy
if os.fork():
    print(cuda.library() is cupy, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    try:
        cuda.library()
    except cuda.CudaUnavailableError as refused:
        os._exit(7 if "forked" in str(refused) else 8)
    os._exit(9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no forks")
def test_a_forked_child_does_not_look_up_what_its_parent_found() -> None:
    command = [sys.executable, "-c", FORKING]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "7"]


def test_hidden_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(status=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES is '-1'" in str(cuda.why_unavailable())


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'parllel[cuda13]'" in str(cuda.why_unavailable())


def test_a_cupy_that_breaks_is_told_from_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    lines = (
        ("import missing_part", "missing_part"),
        ("raise ImportError('x.so')", "x.so"),
        ("raise OSError(13, 'Permission denied', '/home/.cupy')", "set CUPY_CACHE_DIR"),
        ("raise AttributeError('of another NumPy')", "AttributeError: of another NumPy"),
        ("raise SystemExit('no license')", "SystemExit: no license"),
        ("class Panic(BaseException): ...\nraise Panic('in Rust')", "Panic: in Rust"),
    )
    for number, (line, words) in enumerate(lines):
        folder = tmp_path / str(number)
        folder.mkdir()
        log = f"with open({str(folder / 'log')!r}, 'a') as log: log.write('.')"
        (folder / "cupy.py").write_text(f"{log}\n{line}")
        monkeypatch.syspath_prepend(folder)
        for _ in range(2):
            reason = str(cuda.why_unavailable())
            assert "CuPy can't be imported" in reason
            assert words in reason
        assert (folder / "log").read_text() == ".", "it is imported once"


@needs("cupy")
def test_where_cupy_can_not_make_its_cache_the_host_is_used() -> None:
    script = """
from parllel import cuda, default_storage
print(default_storage(), cuda.why_unavailable(), cuda.describe(), sep="\\n")
"""
    environment = {name: x for name, x in os.environ.items() if name != "CUPY_CACHE_DIR"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment | {"HOME": "/proc"},  # where no user makes a folder, root neither
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.stderr == ""
    storage, reason, description = run.stdout.split("\n", 2)
    assert storage == "local"
    assert "/proc/.cupy" in reason
    assert "set CUPY_CACHE_DIR" in reason
    assert description


def test_here_it_says_what_is_missing() -> None:
    """The machine's own words: there is no stand-in in this test."""
    reason = cuda.why_unavailable()
    if reason is None:
        pytest.skip("this machine has a usable GPU")
    assert "\n" not in reason
    with pytest.raises(cuda.CudaUnavailableError, match="storage="):
        cuda.current_stream()


# Description


class FakeNVMLError(Exception):
    pass


def fake_pynvml(*, error: str | None = None, calls: list[str]) -> ModuleType:
    def initialize() -> None:
        if error is not None:
            raise FakeNVMLError(error)
        calls.append("init")

    memory = SimpleNamespace(total=16 * 2**30, free=15 * 2**30)
    pynvml = ModuleType("pynvml")
    pynvml.__dict__.update(
        NVMLError=FakeNVMLError,
        nvmlInit=initialize,
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlSystemGetDriverVersion=lambda: "580.65.06",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda handle: f"Tesla T{4 + handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetCudaComputeCapability=lambda handle: (7, 5),
    )
    return pynvml


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(calls=calls))
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(status=35, driver=13000))
    first, *devices, last = cuda.describe().splitlines()
    assert first.startswith("NVIDIA driver 580.65.06, for CUDA up to 13.0; CuPy ")
    assert devices == [
        f"device {number}: Tesla T{4 + number}, compute capability 7.5, 16,384 MiB of memory,"
        " 15,360 MiB free"
        for number in range(2)
    ]
    assert last.startswith("parllel can't use them: the NVIDIA driver is too old")
    assert calls == ["init", "shutdown"]


def test_without_a_driver_the_description_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    words = "NVML Shared Library Not Found"
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(error=words, calls=calls))
    assert cuda.describe() == f"No NVIDIA driver answers ({words}): only host storages can be used."
    assert calls == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in cuda.describe()


@pytest.mark.parametrize("line", ["nothing = 1", "raise SystemExit('no license')", "raise OSError"])
def test_a_management_library_that_breaks_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, line: str
) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    (tmp_path / "pynvml.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    assert "nvidia-ml-py can't be imported" in cuda.describe()
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)


def test_here_the_description_is_text() -> None:
    description = cuda.describe()
    assert description
    assert cuda.is_available() or len(description.splitlines()) == 1 or "can't use" in description


# What a GPU does


def fake_usage_nvml(calls: list[str], unsupported: str = "") -> ModuleType:
    """Make a stand-in for pynvml, one function of which fails."""

    def answer(name: str, value: object) -> Any:
        def run(*arguments: object) -> object:
            calls.append(name)
            if name == unsupported:
                raise FakeNVMLError("not supported")
            return value

        return run

    pynvml = ModuleType("pynvml")
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByPciBusId": "handle",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3_140_000_000),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87, memory=5),
    }
    pynvml.__dict__.update({name: answer(name, value) for name, value in answers.items()})
    pynvml.__dict__["NVMLError"] = FakeNVMLError
    return pynvml


def test_usage_is_that_of_the_current_device(
    cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "pynvml", fake_usage_nvml(calls))
    usage = cuda.GpuUsage()
    expected = {"gpu/memory_used_gb": 3.14, "gpu/utilization": 0.87}
    assert [usage.read(), usage.read()] == [expected] * 2
    usage.close()
    usage.close()
    assert usage.read() == {}
    assert (calls.count("nvmlInit"), calls.count("nvmlShutdown")) == (1, 1)


@pytest.mark.parametrize(
    ("unsupported", "left"),
    [
        ("nvmlDeviceGetMemoryInfo", {"gpu/utilization": 0.87}),
        ("nvmlDeviceGetUtilizationRates", {"gpu/memory_used_gb": 3.14}),
        ("nvmlInit", {}),
        ("nvmlDeviceGetHandleByPciBusId", {}),
    ],
)
def test_usage_leaves_out_what_a_device_does_not_tell(
    cuda_simulation: Simulation,
    monkeypatch: pytest.MonkeyPatch,
    unsupported: str,
    left: dict[str, float],
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "pynvml", fake_usage_nvml(calls, unsupported=unsupported))
    usage = cuda.GpuUsage()
    assert usage.read() == left
    usage.close()
    assert calls.count("nvmlShutdown") == (unsupported != "nvmlInit")


def test_without_a_device_or_its_library_there_is_no_usage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    usage = cuda.GpuUsage()
    assert usage.read() == {}
    usage.close()


@pytest.mark.parametrize(
    "missing",
    [
        ("NVMLError", "nvmlInit", "nvmlShutdown"),
        ("nvmlDeviceGetHandleByPciBusId", "nvmlShutdown"),
        ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlShutdown"),
    ],
)
def test_a_broken_library_ends_no_run(
    cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    pynvml = fake_usage_nvml([])
    for name in missing:
        delattr(pynvml, name)
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    usage = cuda.GpuUsage()
    assert usage.read() == {}
    usage.close()


# Streams


def fake_torch_stream(monkeypatch: pytest.MonkeyPatch, address: int) -> None:
    """Let torch appear to use CUDA, with a current stream."""
    stream = SimpleNamespace(cuda_stream=address)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)


def test_the_current_stream_is_cupys(cuda_simulation: Simulation) -> None:
    cupy = cuda.library()
    assert cuda.current_stream() == cupy.cuda.Stream.null
    with cupy.cuda.Stream() as stream:
        assert cuda.current_stream() == stream


def test_the_current_stream_is_torchs_where_torch_uses_cuda(
    cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = cuda.library()
    fake_torch_stream(monkeypatch, 0x7000)
    assert cuda.current_stream().ptr == 0x7000
    with cuda.use_stream() as stream:
        assert cupy.cuda.get_current_stream() == stream
        cuda.launch("twin", (1,), (1,), []) if cuda_simulation.launches else None
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    fake_torch_stream(monkeypatch, 0)
    assert cuda.current_stream() == cupy.cuda.Stream.null


def test_streams_of_torch_are_taken(cuda_simulation: Simulation) -> None:
    stream = SimpleNamespace(cuda_stream=0x7000)
    array = cuda.to_device(np.arange(3), stream=stream)
    cuda.Event().record(stream).wait()
    assert array.get().tolist() == [0, 1, 2]
    cuda.synchronize(stream)


def test_work_goes_to_the_stream_that_is_given() -> None:
    with simulated_cuda("lazy", kernels={"twin": lambda *_: None}) as simulation:
        stream = cuda.library().cuda.Stream(non_blocking=True)
        array, host = cuda.library().empty(3, int), np.arange(3)
        cuda.copy_to_device(host, out_device=array, stream=stream)
        cuda.launch("twin", (1,), (1,), [array], stream=stream)
        cuda.to_device(host, stream=stream)
        cuda.synchronize()
        assert simulation.n_pending == 3
        assert simulation.launches[0].stream == stream.ptr
        assert cuda.to_host(array, stream=stream).tolist() == [0, 1, 2]


# Memory


def test_a_block_of_the_device_is_zero_and_aligned(cuda_device: torch.device) -> None:
    block = cuda.allocate_device(1000)
    assert (block.shape, block.dtype, block.data.ptr % 256) == ((1000,), np.uint8, 0)
    assert not block.get().any()
    assert cuda.allocate_device(0).shape == (0,)


def test_managed_memory_is_one_memory(cuda_device: torch.device) -> None:
    on_device, on_host = cuda.allocate_managed(8)
    assert not on_host.any()
    on_host[...] = range(8)
    assert on_device.get().tolist() == list(range(8))
    assert on_device.data.ptr == on_host.ctypes.data
    del on_device
    on_host[0] = 9  # still there
    assert on_host.tolist() == [9, *range(1, 8)]


def test_managed_memory_goes_with_both_of_its_sides(cuda_simulation: Simulation) -> None:
    on_device, on_host = cuda.allocate_managed(8)
    del on_device
    with pytest.raises(Exception, match="managed memory of 8 bytes"):
        cuda_simulation.assert_no_leaks()
    del on_host
    cuda_simulation.assert_no_leaks()


def test_page_locked_memory_is_reached_by_both_sides(cuda_device: torch.device) -> None:
    block = np.zeros(16, np.uint8)
    lock = cuda.PageLock(block)
    view = lock.device_view()
    assert view.data.ptr == lock.device_address
    block[...] = 4
    assert view.get().tolist() == [4] * 16
    view[:8].fill(5)
    cuda.synchronize()
    assert block.tolist() == [5] * 8 + [4] * 8
    del view
    lock.release()
    lock.release()
    with pytest.raises(ValueError, match="released"):
        lock.device_view()


def test_a_copy_to_page_locked_memory_is_waited_for_by_nobody() -> None:
    with simulated_cuda("lazy"):
        array = cuda.to_device(np.arange(4.0))
        block = np.zeros(4)
        lock = cuda.PageLock(block.view(np.uint8))
        cuda.copy_to_host(array, out_host=block)
        assert block.tolist() == [0, 0, 0, 0]
        cuda.synchronize()
        assert block.tolist() == [0, 1, 2, 3]
        lock.release()


def test_a_lock_goes_with_its_last_reference_after_the_work_that_uses_it(
    cuda_simulation: Simulation,
) -> None:
    block = np.zeros(16, np.uint8)
    lock = cuda.PageLock(block)
    view = lock.device_view()
    del lock
    view.fill(1)
    del view
    assert block.tolist() == [1] * 16
    cuda_simulation.assert_no_leaks()


def test_a_lock_that_outlives_its_simulation_does_no_harm() -> None:
    with simulated_cuda("lazy"):
        lock = cuda.PageLock(np.zeros(16, np.uint8))
    del lock


def test_a_lock_that_was_released_is_gone(cuda_simulation: Simulation) -> None:
    lock = cuda.PageLock(np.zeros(16, np.uint8))
    lock.release()
    cuda_simulation.assert_no_leaks()


def test_pages_that_cannot_be_locked_are_named(cuda_device: torch.device) -> None:
    block = np.zeros(16, np.uint8)
    lock = cuda.PageLock(block)
    with pytest.raises(RuntimeError, match=r'could not be page-locked.*use storage="shared"'):
        cuda.PageLock(block[4:])
    lock.release()
    cuda.PageLock(block[4:]).release()


# Launches


@pytest.mark.parametrize("number", [1, 1.0, True])
def test_a_plain_number_is_no_argument(number: Any, cuda_device: torch.device) -> None:
    before = copy.copy(cuda.counters)
    with pytest.raises(TypeError, match=r"argument 1 is.*expected a NumPy scalar"):
        cuda.launch("kernel", (1,), (1,), [np.int64(1), number])
    assert cuda.counters.since(before).launches == 0


def test_a_launch_returns_the_stream_where_its_kernel_is() -> None:
    with simulated_cuda("lazy", kernels={"twin": lambda *_: None}) as simulation:
        side = cuda.new_stream()
        with cuda.use_stream(side):
            assert cuda.launch("twin", (1,), (1,), []) == side
        assert cuda.launch("twin", (1,), (1,), [], stream=side) == side
        assert cuda.launch("twin", (1,), (1,), []).ptr == 0
        assert [launch.stream for launch in simulation.launches] == [side.ptr, side.ptr, 0]


def test_the_module_of_kernels_is_the_packages_own() -> None:
    assert launches.PTX.name == "parllel.ptx"
    assert launches.PTX.with_name("targets.py").exists()


def test_a_module_is_loaded_once_for_each_library() -> None:
    for _ in range(2):
        with simulated_cuda(kernels={"twin": lambda *_: None}) as simulation:
            cuda.launch("twin", (1,), (1,), [])
            cuda.launch("twin", (1,), (1,), [])
            assert launches._module(cuda.library()) is launches._module(cuda.library())
            assert len(simulation.launches) == 2


# Counters


def test_work_is_counted(cuda_device: torch.device) -> None:
    before = copy.copy(cuda.counters)
    array = cuda.to_device(np.zeros(4))
    cuda.copy_to_device(np.zeros(4), out_device=array)
    cuda.copy_to_host(array, out_host=np.zeros(4))
    cuda.to_host(array)
    event = cuda.Event().record()
    event.wait()
    event.synchronize()
    event.query()
    cuda.synchronize()
    assert cuda.counters.since(before) == cuda.Counters(
        copies_to_device=2,
        bytes_to_device=64,
        copies_to_host=2,
        bytes_to_host=64,
        event_records=1,
        event_waits=1,
        event_synchronizations=1,
        stream_synchronizations=2,
    )


def test_nothing_synchronizes_the_device_and_nothing_is_missed(
    cuda_simulation: Simulation,
) -> None:
    before = copy.copy(cuda.counters)
    array = cuda.to_device(np.zeros(4))
    cuda.Event().record().wait()
    cuda.to_host(array)
    cuda.allocate_device(10)
    cuda.allocate_managed(10)
    assert cuda_simulation.counters == cuda.counters.since(before)
    assert cuda_simulation.counters.device_synchronizations == 0


def test_counters_reset() -> None:
    counters = cuda.Counters(launches=3, bytes_to_host=4)
    counters.reset()
    assert counters == cuda.Counters()


# Torch


class FakeAllocator:
    """Memory of the host in the place of torch's caching allocator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.streams: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", self.allocate)
        monkeypatch.setattr(torch.cuda, "caching_allocator_delete", self.free)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 500)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)

    def allocate(self, nbytes: int, device: int, stream: int) -> int:
        block = np.zeros(nbytes, np.uint8)
        self.blocks[block.ctypes.data] = block
        self.streams.append(stream)
        return block.ctypes.data

    def free(self, address: int) -> None:
        del self.blocks[address]


def test_torchs_allocator_can_own_the_memory(
    cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocator = FakeAllocator(monkeypatch)
    cuda.use_torch_allocator()
    free = cuda.library().cuda.runtime.memGetInfo()[0]
    assert cuda.free_nbytes() == free + 400
    with cuda.use_stream(cuda.library().cuda.Stream()) as stream:
        block = cuda.allocate_device(100)
        assert block.data.ptr in allocator.blocks
        assert allocator.streams == [stream.ptr]
        assert not block.get().any()
    del block
    cuda_simulation.assert_no_leaks()
    assert allocator.blocks == {}


def test_a_torch_without_cuda_can_own_nothing(cuda_simulation: Simulation) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch has a device here")
    with pytest.raises(cuda.CudaUnavailableError, match="torch sees no CUDA device"):
        cuda.use_torch_allocator()


def test_a_tensor_is_made_over_the_same_memory(cuda_device: torch.device) -> None:
    array = cuda.to_device(np.arange(6).reshape(2, 3))
    tensor = cuda.tensor_over(array[:, 1:])
    assert tensor.data_ptr() == array.data.ptr + 8
    assert (tuple(tensor.shape), tensor.stride()) == ((2, 2), (3, 1))
    tensor[0, 0] = 9
    assert array.get().tolist() == [[0, 9, 2], [3, 4, 5]]


def test_values_come_to_the_host_from_views_of_any_form(cuda_device: torch.device) -> None:
    values = np.arange(24).reshape(4, 6)
    array = cuda.to_device(values)
    for index in (np.s_[::-1], np.s_[:, ::2], np.s_[1, ::-3]):
        assert cuda.to_host(array[index]).tolist() == values[index].tolist()
        out = np.zeros_like(values[index])
        cuda.copy_to_host(array[index], out_host=out)
        assert out.tolist() == values[index].tolist()


def test_what_is_gathered_for_the_host_is_gathered_in_the_stream_that_is_given() -> None:
    with simulated_cuda("lazy") as simulation:
        array = cuda.to_device(np.arange(6))
        cuda.synchronize()
        stream = cuda.library().cuda.Stream(non_blocking=True)
        with cuda.use_stream(stream):
            array.fill(1)
        assert cuda.to_host(array[::2], stream=stream).tolist() == [1, 1, 1]
        assert simulation.n_pending == 0


@pytest.mark.parametrize("dtype", [">i4", ">f8", ">c8"])
def test_values_of_foreign_byte_order_arrive(dtype: str, cuda_device: torch.device) -> None:
    array = cuda.to_device(np.arange(4).astype(dtype))
    assert array.dtype == np.dtype(dtype).newbyteorder("=")
    assert cuda.to_host(array).tolist() == [0, 1, 2, 3]


def test_arrays_that_share_bytes_are_told(cuda_device: torch.device) -> None:
    array, other = cuda.allocate_device(8), cuda.allocate_device(8)
    assert cuda.may_share_memory(array[1:], array[:2])
    assert cuda.may_share_memory(array[::-1], array[7:])
    assert not cuda.may_share_memory(array[:2], array[2:])
    assert not cuda.may_share_memory(array, other)


@pytest.mark.simulation("they ask for more managed memory than there is, which can hang a GPU")
def test_a_managed_block_of_absurd_size_is_a_memory_error() -> None:
    for nbytes in (2**60, 2**70):
        with (
            simulated_cuda("lazy"),
            pytest.raises(MemoryError, match=f"managed memory: {nbytes:,} bytes wanted"),
        ):
            cuda.allocate_managed(nbytes)


def test_managed_memory_that_the_host_must_not_touch_beside_kernels_is_refused(
    cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = cuda.library().cuda.runtime
    monkeypatch.setattr(runtime, "deviceGetAttribute", lambda attrib, device: 0)
    with pytest.raises(cuda.CudaUnavailableError, match=r"no concurrent managed access.*pinned"):
        Array((2,), "f4", storage="managed")
    Array((2,), "f4", storage="device").close()


@pytest.mark.parametrize("storage", ["device", "managed"])
def test_torch_and_cupy_have_one_current_device(
    storage: str, cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = SimpleNamespace(cuda_stream=0, device_index=1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    with pytest.raises(RuntimeError, match=r"torch's current one is 1, .*use_device\(1\)"):
        Array((2,), "f4", storage=storage)
    assert cuda_simulation.used_nbytes == 0


class Foreign:
    """An array of a library that shows its memory by DLPack alone, as JAX does, in a stream."""

    def __init__(self, array: Any, stream: Any) -> None:
        self._array = array
        self._stream = stream
        self.n_asked = 0

    def __dlpack__(self, *, stream: Any = None, **kwargs: Any) -> Any:
        self.n_asked += 1
        with self._stream:
            return self._array.__dlpack__(stream=stream, **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device


def test_memory_that_comes_by_dlpack_is_read_behind_its_owners_work() -> None:
    with simulated_cuda("lazy") as simulation:
        array = cuda.to_device(np.arange(6.0).reshape(3, 2))
        cuda.synchronize()
        stream = cuda.library().cuda.Stream(non_blocking=True)
        foreign = Foreign(array, stream)
        with cuda.use_stream(stream):
            array.fill(7)
        shown = cuda.array_by_dlpack(foreign)
        assert simulation.n_pending > 0  # the host has not waited
        assert shown.data.ptr == array.data.ptr
        assert (shown.shape, shown.strides, shown.dtype) == ((3, 2), (16, 8), np.float64)
        assert cuda.to_host(shown).tolist() == [[7, 7]] * 3
        assert foreign.n_asked == 1
        assert cuda.array_by_dlpack(array) is array


class NumberedDevice:
    """A device of a CuPy that has two; `current` are those of the thread, the last one counts."""

    current: ClassVar[list[int]] = [0]

    def __init__(self, number: int | None = None) -> None:
        self.number, self.compute_capability = number, "90"

    def __enter__(self) -> None:
        assert self.number is not None
        self.current.append(self.number)

    def __exit__(self, *args: object) -> None:
        self.current.pop()

    def use(self) -> None:
        assert self.number is not None
        self.current[:] = [self.number]


def cupy_of_two(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    cupy = fake_cupy(n_devices=2)
    monkeypatch.setattr(NumberedDevice, "current", [0])
    cupy.cuda.Device = NumberedDevice
    cupy.cuda.runtime.getDevice = lambda: NumberedDevice.current[-1]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_a_rank_begins_with_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    for name, each in {**given, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, each)
    cupy_of_two(monkeypatch)
    assert cuda.library() is sys.modules["cupy"]
    assert cuda.device_number() == 1


def test_a_kind_of_memory_with_a_number_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"'device:1', expected the kind alone.*use_device\(1\)"):
        Array((2,), "f4", storage="device:1")

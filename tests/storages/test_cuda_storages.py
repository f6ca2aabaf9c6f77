"""CUDA storages where there is no CUDA, or too little memory; which storage is the default.

Memory that runs out is a simulated device's, of little capacity.
"""

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import parllel
from parllel import Array, ArrayDict, cuda, default_storage
from parllel.storages import KINDS, allocate, host_memory
from parllel.testing.simulated_cuda import Simulation, simulated_cuda

CUDA_KINDS = ("device", "managed", "pinned")
HOST_KINDS = tuple(kind for kind in KINDS if kind not in CUDA_KINDS)
each_cuda_kind = pytest.mark.parametrize("kind", CUDA_KINDS)
pytestmark = pytest.mark.usefixtures("quick_collections")


class FakeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"error {status}")


def fake_cupy(*, status: int = 0, driver: int = 0, capability: str = "90") -> ModuleType:
    """Return a module cupy whose runtime raises an error of a status, unless it is 0."""

    def count() -> int:
        if status:
            raise FakeError(status)
        return 1

    runtime = SimpleNamespace(
        CUDARuntimeError=FakeError,
        getDeviceCount=count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13020,
    )
    device = SimpleNamespace(compute_capability=capability)
    cupy = ModuleType("cupy")
    cupy.__dict__["cuda"] = SimpleNamespace(runtime=runtime, Device=lambda: device)
    return cupy


# Why there is none

REASONS: dict[str, tuple[ModuleType | None, str]] = {
    "no CuPy": (None, r"CuPy is not installed; `pip install 'parllel\[cuda13\]'` brings it"),
    "no driver": (fake_cupy(status=35), r"no NVIDIA driver was found"),
    "an old driver": (
        fake_cupy(status=35, driver=12040),
        r"the NVIDIA driver is too old: it supports CUDA 12\.4.*update the driver, or install",
    ),
    "no device": (fake_cupy(status=100), r"the NVIDIA driver sees no device"),
    "an old device": (fake_cupy(capability="61"), r"compute capability 6\.1, expected 7\.5"),
    "a forked process": (fake_cupy(status=3), r'start it with the "spawn" or "forkserver" method'),
}
MAKERS: dict[str, Callable[[str], Any]] = {
    "a block": lambda kind: allocate(kind, 256),
    "an Array": lambda kind: Array((4, 3), np.float32, storage=kind),
    "a tree": lambda kind: ArrayDict({"a": Array((4,), np.float32)}).to(kind),
    "a new Array": lambda kind: Array((4,), np.float32).new_array(storage=kind),
}


@each_cuda_kind
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("reason", REASONS)
def test_a_storage_without_a_device_says_why_and_what_to_use(
    kind: str, make: Callable[[str], Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy, words = REASONS[reason]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(cuda.CudaUnavailableError, match=words) as caught:
        make(kind)
    message = str(caught.value)
    assert message.startswith("CUDA is not available: ")
    assert message.endswith('storage="local" and storage="shared" need no GPU')


@pytest.mark.parametrize("reason", REASONS)
def test_host_storages_work_whatever_cuda_lacks(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", REASONS[reason][0])
    for kind in HOST_KINDS:
        with Array((4, 3), np.float32, storage=kind) as array:
            array[1] = 5
            assert array.to_torch().sum() == 15


# The default


@pytest.mark.parametrize("reason", REASONS)
def test_without_a_usable_device_the_default_is_local(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", REASONS[reason][0])
    assert default_storage() == "local"


def test_with_a_usable_device_the_default_is_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    assert parllel.default_storage() == "device"
    with simulated_cuda(), Array((3,), np.float32, storage=default_storage()) as array:
        assert array.storage == "device"


# Without CuPy, in a process of its own

WITHOUT_CUPY = """
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("cupy", "cupyx"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked())

    import numpy as np
    import parllel
    from parllel import Array, ArrayDict, cuda, default_storage

    assert "torch" not in sys.modules and "cupy" not in sys.modules
    assert default_storage() == "local"
    assert "torch" not in sys.modules
    for kind in ("local", "shared", "inherited"):
        tree = ArrayDict({"a": Array((4, 3), np.float32, padding=1)}).to(kind)
        tree[1] = 5
        tree.rotate()
        tree[[0, 2]] = {"a": np.ones((2, 3))}
        assert tree["a"].to_ndarray().sum() == 21
        assert np.from_dlpack(tree["a"]).sum() == 21
        assert tree["a"].__dlpack_device__() == (1, 0)
        assert not hasattr(tree["a"], "__cuda_array_interface__")
        assert tree.to_torch()["a"].sum() == 21
        tree.close()
    for kind in ("device", "managed", "pinned"):
        try:
            Array((4,), np.float32, storage=kind)
        except cuda.CudaUnavailableError as error:
            assert "CuPy is not installed" in str(error), error
        else:
            raise AssertionError(kind)
    assert "\\n" not in cuda.describe() or "CuPy not installed" in cuda.describe()
    assert not cuda.is_available()
    print("done")
"""


@pytest.mark.long
def test_everything_for_the_host_works_where_cupy_is_not_installed() -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WITHOUT_CUPY)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (run.stdout, run.stderr) == ("done\n", "")


# Too little memory


def make_specs(n_rows: int) -> ArrayDict:
    return ArrayDict(
        {
            "observation": {"camera": Array((1, 2), np.uint8, feature_shape=(30, 30))},
            "reward": Array((1, 2), np.float32, padding=1),
        }
    ).map(lambda leaf: leaf.new_array(batch_shape=(n_rows, 2)))


TABLE = (
    "; the tree wants\n"
    "  observation.camera: (100, 2, 30, 30) uint8, 180,000 bytes\n"
    "  reward: (102, 2) float32, 816 bytes"
)


def held() -> int:
    """Return the number of descriptors that this process holds."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def limit(kind: str, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host have so little memory, where a kind of memory is the host's too."""
    if kind == "pinned":
        monkeypatch.setattr(host_memory, "available_nbytes", lambda: nbytes)


@each_cuda_kind
@pytest.mark.parametrize("make", ["to", "new_array"])
def test_a_tree_that_does_not_fit_fails_with_a_table_before_anything_is_allocated(
    kind: str, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_cuda("lazy", capacity=100_000) as simulation:
        fits, too_large = make_specs(20), make_specs(100)
        limit(kind, 100_000, monkeypatch)
        n_held, launches = held(), len(simulation.launches)
        with pytest.raises(MemoryError) as caught:
            too_large.to(kind) if make == "to" else too_large.new_array(storage=kind)
        message = str(caught.value)
        assert message.startswith(f"{kind} memory: 181,248 bytes wanted")
        assert "100,000" in message.partition(";")[0] + message.partition(";")[2]
        assert "free" in message
        assert "make batch_shape or full_size smaller" in message
        assert message.endswith(TABLE)
        assert_nothing_was_allocated(simulation, n_held)
        assert simulation.n_pending == launches == 0
        del caught
        with fits.to(kind)["reward"] as leaf:  # what fits still does
            assert leaf.storage == kind


@each_cuda_kind
def test_an_array_that_does_not_fit_fails_before_anything_is_allocated(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_cuda("lazy", capacity=1000) as simulation:
        limit(kind, 1000, monkeypatch)
        n_held = held()
        with pytest.raises(MemoryError, match=rf"{kind} memory: 4,096 bytes wanted.*1,000.*free"):
            Array((1024,), np.float32, storage=kind)
        assert_nothing_was_allocated(simulation, n_held)


def assert_nothing_was_allocated(simulation: Simulation, n_held: int) -> None:
    assert simulation.used_nbytes == 0
    assert held() == n_held
    simulation.assert_no_leaks()


def test_what_other_trees_hold_is_not_free() -> None:
    with simulated_cuda(capacity=100_000) as simulation:
        first = make_specs(40).to("device")
        free = 100_000 - simulation.used_nbytes
        with pytest.raises(MemoryError, match=f"; {free:,} bytes are free on the device"):
            make_specs(40).to("device")
        first.close()
        del first
        make_specs(40).to("device")


def test_a_tree_is_moved_by_one_copy_of_each_leaf_into_no_memory_but_its_own() -> None:
    tree = make_specs(40)
    tree[...] = 7
    with simulated_cuda() as simulation:
        moved = tree.to("device")
        capacity = simulation.used_nbytes
        assert simulation.counters.copies_to_device == 2
        del moved
    with simulated_cuda(capacity=capacity):
        moved = tree.to("device")  # room for it and for nothing else
        assert (moved["reward"].to_ndarray() == 7).all()
        moved[3] = {"observation": {"camera": np.ones((2, 30, 30), np.uint8)}, "reward": 8}
        assert moved["observation"]["camera"][3].to_ndarray().sum() == 1800


def test_managed_memory_may_be_the_devices_and_the_hosts_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with simulated_cuda(capacity=2000):
        monkeypatch.setattr(host_memory, "available_nbytes", lambda: 3000)
        with pytest.raises(MemoryError, match=r"managed memory: 5,120 bytes wanted, 5,000 free"):
            Array((5120,), np.uint8, storage="managed")
        with pytest.raises(MemoryError, match=r"managed memory: 4,096 bytes wanted; Out of memory"):
            Array((4096,), np.uint8, storage="managed")  # here the simulation is stricter than CUDA
        monkeypatch.setattr(host_memory, "available_nbytes", lambda: None)
        Array((1024,), np.uint8, storage="managed").close()


def test_a_device_whose_free_memory_is_in_pieces_is_a_memory_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with simulated_cuda(capacity=100_000):

        def refuse(*_: object) -> None:
            raise MemoryError("no piece is large enough")

        monkeypatch.setattr(cuda.library(), "empty", refuse)
        with pytest.raises(MemoryError, match="large enough; 100,000 bytes are free on the device"):
            Array((1024,), np.float32, storage="device")


@pytest.mark.parametrize(("status", "error"), [(2, MemoryError), (801, RuntimeError)])
def test_pages_that_can_not_be_locked_leave_nothing_behind(
    status: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_cuda() as simulation:
        runtime = cuda.library().cuda.runtime

        def refuse(*_: object) -> None:
            raise runtime.CUDARuntimeError(status)

        monkeypatch.setattr(runtime, "hostRegister", refuse)
        n_held = held()
        with pytest.raises(error, match=r'could not be page-locked.*`ulimit -l`.*storage="shared"'):
            Array((1024,), np.float32, storage="pinned")
        assert_nothing_was_allocated(simulation, n_held)


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("is_written", [False, True])
def test_pages_stay_locked_until_the_work_that_was_queued_with_them_is_done(
    is_written: bool, is_closed: bool
) -> None:
    with simulated_cuda("lazy") as simulation:
        array = Array((3, 4), np.float32, storage="pinned")
        array.to_ndarray()[...] = 5
        if is_written:
            array.to_cupy().fill(7)
        else:
            there = array.to_cupy().copy()
        assert simulation.n_pending > 0
        if is_closed:
            memory = array.memory  # alive, so that nothing but the call unlocks the pages
            array.close()
            assert memory.is_closed
            assert simulation.n_pending == 0
        del array
        assert simulation.n_pending == 0
        assert is_written or (there.get() == 5).all()


# Description


class FakeNVMLError(Exception):
    pass


def fake_pynvml(**functions: Callable[..., Any]) -> ModuleType:
    memory = SimpleNamespace(total=16 * 2**30, free=15 * 2**30)
    pynvml = ModuleType("pynvml")
    pynvml.__dict__.update(
        NVMLError=FakeNVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65.06",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda handle: f"GPU {handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetCudaComputeCapability=lambda handle: (7, 5),
    )
    pynvml.__dict__.update(functions)
    return pynvml


def test_a_description_has_versions_devices_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml())
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    versions, *devices = cuda.describe().splitlines()
    assert versions.startswith("NVIDIA driver 580.65.06, for CUDA up to 13.0; CuPy ")
    assert versions.endswith(f"; torch {version('torch')}")
    assert devices == [
        f"device {number}: GPU {number}, compute capability 7.5, 16,384 MiB of memory,"
        " 15,360 MiB free"
        for number in range(2)
    ]


def test_what_a_device_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> Any:
        raise FakeNVMLError("Not Supported")

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(nvmlDeviceGetMemoryInfo=refuse))
    assert "compute capability 7.5, no memory of its own" in cuda.describe()
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(nvmlDeviceGetHandleByIndex=refuse))
    assert "device 1 can't be described (Not Supported)" in cuda.describe()


def test_where_a_library_is_broken_the_rest_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_count() -> int:
        raise RuntimeError("no count")

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(nvmlDeviceGetCount=no_count))
    versions, told = cuda.describe().splitlines()
    assert versions.startswith("NVIDIA driver 580.65.06, for CUDA up to 13.0; CuPy ")
    assert told == "More can't be described: nvidia-ml-py raises RuntimeError('no count')."


def test_without_nvidias_library_the_description_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cuda.describe() == (
        "The devices can't be described: nvidia-ml-py is not installed;"
        " `pip install 'parllel[cuda13]'` brings it (or cuda12)."
    )


def test_here_the_description_is_the_machines_own() -> None:
    """There is no stand-in in this test: NVIDIA's library is asked, where it is installed."""
    description = cuda.describe()
    if cuda.is_available():
        assert description.startswith("NVIDIA driver ")
    else:
        assert description.startswith(("No NVIDIA driver answers", "The devices", "NVIDIA driver"))
    assert description == description.strip()


@pytest.mark.parametrize("goes", ["closed", "dropped"])
def test_a_forked_process_has_pinned_memory_without_cuda(
    goes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a forked process can't use CUDA")

    with simulated_cuda("lazy"):
        array = Array((4,), np.float32, storage="pinned")
        child = os.fork()
        if not child:
            outcome = 1
            try:
                monkeypatch.setattr(cuda.library().cuda.runtime, "hostUnregister", refuse)
                monkeypatch.setattr(cuda.library().cuda.Stream, "synchronize", refuse)
                array[...] = 5
                if goes == "closed":
                    array.close()
                del array
                gc.collect()
                outcome = 0
            finally:
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert array.to_ndarray().tolist() == [5, 5, 5, 5]
        array.close()

"""Arrays as tensors of torch, arrays of CuPy, and by the CUDA array interface.

Device, managed and pinned memory are simulated; torch's part that needs CUDA is played by fakes.
"""

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from optional import needs
from parllel import Array, ArrayDict, cuda
from parllel.arrays.interop import plain
from parllel.testing.simulated_cuda import LeakError, Simulation, simulated_cuda
from parllel.testing.simulated_cuda.fixture import cuda_simulation

__all__ = ["cuda_simulation"]  # a fixture

ALL_KINDS = ("local", "shared", "inherited", "pinned", "managed", "device")
CUDA_KINDS = ("pinned", "managed", "device")
each_kind = pytest.mark.parametrize("kind", ALL_KINDS)
each_cuda_kind = pytest.mark.parametrize("kind", CUDA_KINDS)

_PAGE_LOCKED = 1  # cudaMemoryTypeHost

VIEWS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda array: array,
    "rows": lambda array: array[1:3],
    "padding": lambda array: array[-1:6],
    "column": lambda array: array[:, 2],
    "steps": lambda array: array[::2, 1:],
    "row": lambda array: array[2],
    "element": lambda array: array[2, 2],
}
each_view = pytest.mark.parametrize("view_of", VIEWS.values(), ids=VIEWS)


@pytest.fixture
def lazy() -> Iterator[Simulation]:
    with simulated_cuda("lazy") as simulation:
        yield simulation


def counted(storage: str) -> Array:
    array = Array((5, 4), np.float32, padding=1, storage=storage)
    array[-1:6] = np.arange(28).reshape(7, 4)
    return array


def new_stream() -> Any:
    return cuda.library().cuda.Stream(non_blocking=True)


def use_cuda_in_torch(monkeypatch: pytest.MonkeyPatch, address: int) -> None:
    """Let torch appear to use CUDA, in a current stream at an address."""
    stream = SimpleNamespace(cuda_stream=address)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)


# Torch


@each_kind
@each_view
def test_a_tensor_is_the_memory_of_its_view(
    kind: str, view_of: Callable[[Array], Array], lazy: Simulation
) -> None:
    array = counted(kind)
    view = view_of(array)
    tensor = view.to_torch()
    cuda.synchronize()
    assert tensor.tolist() == view.to_ndarray().tolist()
    if kind in CUDA_KINDS:
        assert tensor.data_ptr() == view.to_cupy().data.ptr
    else:
        assert tensor.data_ptr() == view.to_ndarray().ctypes.data
    tensor.fill_(-3)
    assert (view.to_ndarray() == -3).all()
    view[...] = 4
    cuda.synchronize()
    assert (tensor == 4).all()
    assert lazy.counters.device_synchronizations == 0


@each_kind
def test_a_gathered_tensor_is_a_copy_of_what_was_there(kind: str, lazy: Simulation) -> None:
    array = counted(kind)
    tensor = array[[0, 2, 2]].to_torch()
    if kind == "managed":
        cuda.synchronize()  # the host writes it without a stream
    array[...] = 0
    assert tensor.tolist() == [[0 + 4, 5, 6, 7], [12, 13, 14, 15], [12, 13, 14, 15]]


@each_kind
def test_a_tensor_can_have_no_negative_stride(kind: str, lazy: Simulation) -> None:
    for view in (counted(kind)[::-1], counted(kind)[:, ::-2]):
        with pytest.raises(ValueError, match=r"to_torch: torch can't share strides .*-.* positive"):
            view.to_torch()


@each_view
def test_a_tensor_over_pinned_memory_is_pinned_for_torch(
    view_of: Callable[[Array], Array], lazy: Simulation
) -> None:
    """`tensor.is_pinned()` is True where CUDA says so of the address (ATen, CUDAHooks.cpp)."""
    tensor = view_of(counted("pinned")).to_torch()
    assert tensor.device.type == "cpu"
    attributes = cuda.library().cuda.runtime.pointerGetAttributes(tensor.data_ptr())
    assert attributes.type == _PAGE_LOCKED
    plain_tensor = view_of(counted("shared")).to_torch()
    attributes = cuda.library().cuda.runtime.pointerGetAttributes(plain_tensor.data_ptr())
    assert attributes.type != _PAGE_LOCKED


def test_a_tensor_keeps_the_memory_of_a_closed_array(cuda_simulation: Simulation) -> None:
    for kind in ("device", "managed"):
        array = counted(kind)
        tensor = array[1:3].to_torch()
        array.close()
        del array
        assert tensor.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
        with pytest.raises(LeakError):
            cuda_simulation.assert_no_leaks()
        del tensor
        cuda_simulation.assert_no_leaks()


def test_a_tensor_keeps_the_pages_locked_until_the_array_is_closed(
    cuda_simulation: Simulation,
) -> None:
    def is_locked(tensor: torch.Tensor) -> bool:
        attributes = cuda.library().cuda.runtime.pointerGetAttributes(tensor.data_ptr())
        return bool(attributes.type == _PAGE_LOCKED)

    array = counted("pinned")
    tensor = array[1:3].to_torch()
    del array
    assert is_locked(tensor)
    del tensor
    cuda_simulation.assert_no_leaks()
    with counted("pinned") as array:
        tensor = array.to_torch()
    assert not is_locked(tensor)
    assert tensor.tolist() == np.arange(4, 24).reshape(5, 4).tolist()
    cuda_simulation.assert_no_leaks()


@each_kind
@pytest.mark.parametrize("index", [..., slice(1, 3), (slice(None), 2), 1])
def test_the_leaves_of_a_tree_are_tensors_over_its_memory(
    kind: str, index: Any, lazy: Simulation
) -> None:
    specs = {"a": {"b": Array((4, 3), np.float32), "c": Array((4, 3), np.uint8, padding=1)}}
    tree = ArrayDict(specs).to(kind)
    tensors = tree[index].to_torch()
    for (path, tensor), (_, leaf) in zip(tensors.walk(), tree[index].walk(), strict=True):
        assert isinstance(tensor, torch.Tensor), path
        assert tuple(tensor.shape) == leaf.shape
        tensor.fill_(5)
        assert (leaf.to_ndarray() == 5).all()
    assert tree["a"]["b"].to_ndarray().sum() == 5 * tensors["a"]["b"].numel()


def test_arrays_of_cupy_are_leaves_that_torch_gets(lazy: Simulation) -> None:
    array = counted("device")
    tensors = ArrayDict({"a": array.to_cupy(), "b": {"c": array[1:3].to_cupy()}}).to_torch()
    tensors["b"]["c"].fill_(5)
    cuda.synchronize()
    assert tensors["a"][1:3].tolist() == [[5] * 4] * 2
    with pytest.raises(ValueError, match=r"a: to_torch: torch can't share strides"):
        ArrayDict({"a": array[::-1].to_cupy()}).to_torch()


def test_only_arrays_of_cupy_are_device_arrays(
    lazy: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = counted("device")
    assert cuda.is_device_array(array.to_cupy())
    for value in (array, array.to_ndarray(), array.to_torch(), 1, None):
        assert not cuda.is_device_array(value)
    device_array = array.to_cupy()
    monkeypatch.delitem(sys.modules, "cupy")
    assert not cuda.is_device_array(device_array)
    assert "cupy" not in sys.modules


class FakeArray:
    """Looks like a CuPy array on a device; `dlpack_type` is DLPack's."""

    strides = (4,)
    data = SimpleNamespace(device_id=0)

    def __init__(self, dlpack_type: int) -> None:
        self._type = dlpack_type

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._type, self.data.device_id


@pytest.mark.parametrize("dlpack_type", [2, 13])
def test_a_torch_for_cpus_says_what_is_wrong(
    dlpack_type: int, lazy: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(cuda.CudaUnavailableError) as caught:
        cuda.tensor_over(FakeArray(dlpack_type))
    message = str(caught.value)
    assert f"torch sees no CUDA device: it is {torch.__version__}, a build for CPUs" in message
    assert "the memory is CUDA's" in message
    assert "install a build of torch for CUDA, or use to_cupy(), or copy" in message
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    with pytest.raises(cuda.CudaUnavailableError, match=r"for CUDA 12\.1"):
        cuda.tensor_over(FakeArray(dlpack_type))


def test_managed_memory_reaches_torch_by_the_array_interface(
    lazy: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def as_tensor(array: Any, device: str) -> str:
        taken.append((array, device))
        return "tensor"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    managed = FakeArray(13)
    assert cuda.tensor_over(managed) == "tensor"
    assert taken == [(managed, "cuda:0")]
    assert lazy.counters == cuda.Counters()


def test_torch_waits_for_the_callers_stream_when_it_starts_to_use_cuda(
    lazy: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchs = new_stream()

    def as_tensor(array: Any, device: str) -> None:
        use_cuda_in_torch(monkeypatch, torchs.ptr)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    array = counted("device")
    cuda.synchronize()
    with new_stream():
        array[0] = 9
        cuda.tensor_over(FakeArray(13))
    cuda.synchronize(torchs)
    assert (array[0].to_cupy()._values == 9).all()


def test_device_memory_reaches_torch_by_dlpack_in_the_callers_stream(
    lazy: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Any] = []
    torchs = new_stream()
    use_cuda_in_torch(monkeypatch, torchs.ptr)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.utils.dlpack,
        "from_dlpack",
        lambda _: streams.append(cuda.library().cuda.get_current_stream()),
    )
    cuda.tensor_over(FakeArray(2))
    assert streams == [torchs]


# CuPy


@each_cuda_kind
@each_view
def test_an_array_of_cupy_is_the_memory_of_its_view(
    kind: str, view_of: Callable[[Array], Array], cuda_simulation: Simulation
) -> None:
    view = view_of(counted(kind))
    array = view.to_cupy()
    assert (array.shape, array.dtype) == (view.shape, view.dtype)
    array.fill(6)
    cuda.synchronize()
    assert (view.to_ndarray() == 6).all()


@each_cuda_kind
def test_an_array_of_cupy_may_have_negative_strides(kind: str, lazy: Simulation) -> None:
    array = counted(kind)
    assert array[::-1, ::-2].to_cupy().strides == (-16, -8)
    assert_array_equal(array[::-1].to_cupy().get(), array.to_ndarray()[::-1])


# The CUDA array interface


@each_cuda_kind
@each_view
def test_the_array_interface_is_version_3_and_shows_the_view(
    kind: str, view_of: Callable[[Array], Array], lazy: Simulation
) -> None:
    view = view_of(counted(kind))
    interface = view.__cuda_array_interface__
    array = view.to_cupy()
    assert interface["version"] == 3
    assert interface["shape"] == view.shape
    assert interface["typestr"] == "<f4"
    assert interface["data"] == (array.data.ptr, False)
    assert interface["strides"] in (None, array.strides)
    assert (interface["strides"] is None) == array.flags.c_contiguous
    assert interface.get("mask") is None


@each_cuda_kind
def test_the_array_interface_names_the_callers_stream(
    kind: str, lazy: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = counted(kind)
    assert array[1].__cuda_array_interface__["stream"] == 1  # the legacy default stream
    with new_stream() as stream:
        assert array.__cuda_array_interface__["stream"] == stream.ptr
        use_cuda_in_torch(monkeypatch, 0x7000)
        assert array.__cuda_array_interface__["stream"] == 0x7000
        use_cuda_in_torch(monkeypatch, 0)
        assert array.__cuda_array_interface__["stream"] == 1


@each_kind
def test_a_gathered_view_has_no_array_interface(kind: str, lazy: Simulation) -> None:
    view = counted(kind)[[1, 2]]
    assert not hasattr(view, "__cuda_array_interface__")
    with pytest.raises(AttributeError, match=r"no object would keep the copy; use to_cupy\(\)"):
        _ = view.__cuda_array_interface__


@pytest.mark.parametrize("kind", ["local", "shared", "inherited"])
def test_memory_of_the_host_alone_has_no_array_interface(kind: str) -> None:
    with pytest.raises(AttributeError, match='no GPU can use it; allocate with storage="pinned"'):
        _ = counted(kind).__cuda_array_interface__


class Owner:
    """Memory of another library, which names a stream or none."""

    def __init__(self, array: Any, **entries: Any) -> None:
        self._array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | entries


@pytest.mark.parametrize("write", [False, True])
def test_memory_of_others_is_used_behind_their_stream_and_the_host_does_not_wait(
    lazy: Simulation, write: bool
) -> None:
    producer = new_stream()
    array = counted("device")
    cuda.synchronize()
    with cuda.use_stream(producer):
        source = cuda.to_device(np.full((5, 4), 8, np.float32))
        owner = Owner(source)
    lazy.counters.reset()
    if write:
        array[...] = owner
        seen = array.to_cupy()
    else:
        seen = cuda.array_over(owner)
        assert seen.data.ptr == source.data.ptr
        (seen.copy(),)  # work of the current stream
    assert lazy.counters == cuda.Counters(event_records=1, event_waits=1)
    cuda.synchronize()
    assert (seen._values == 8).all()


def test_memory_of_others_that_name_no_stream_or_the_same_needs_no_event(lazy: Simulation) -> None:
    source = cuda.to_device(np.arange(6))
    lazy.counters.reset()
    for owner in (Owner(source), Owner(source, stream=None), Owner(source, stream=1)):
        assert_array_equal(cuda.array_over(owner).shape, (6,))
    assert cuda.array_over(source) is source
    assert lazy.counters == cuda.Counters()


def test_an_array_over_memory_of_others_keeps_the_owner(cuda_simulation: Simulation) -> None:
    owner = Owner(cuda.to_device(np.arange(6)))
    array = cuda.array_over(owner)[2:]
    del owner
    assert array.get().tolist() == [2, 3, 4, 5]
    del array
    cuda_simulation.assert_no_leaks()


def test_memory_of_others_is_copied_to_the_host(cuda_simulation: Simulation) -> None:
    array = Array((6,), np.int64)
    array[...] = Owner(cuda.to_device(np.arange(6)))
    assert array.to_ndarray().tolist() == list(range(6))


def test_what_the_memory_of_a_tensor_does_not_show_is_resolved() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert not plain(weight * 2).requires_grad
    conjugate = torch.tensor([1 + 2j]).conj()
    assert conjugate.is_conj()
    assert not plain(conjugate).is_conj()
    assert plain(conjugate).tolist() == [1 - 2j]
    short = torch.tensor([1.5, 3e38], dtype=torch.bfloat16)
    assert plain(short).dtype == torch.float32
    assert plain(short).tolist() == short.tolist()
    for dtype in (torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64):
        assert plain(torch.zeros(2, dtype=dtype)).dtype == dtype


# One allocator


class FakeAllocator:
    """Memory of the host in the place of torch's caching allocator, of which there is a little."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, capacity: int = 10_000) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.streams: list[int] = []
        self.n_inits = 0
        self._capacity = capacity
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "init", self._init)
        monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", self._allocate)
        monkeypatch.setattr(torch.cuda, "caching_allocator_delete", self.blocks.pop)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 500)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)

    def _init(self) -> None:
        self.n_inits += 1

    def _allocate(self, nbytes: int, device: int, stream: int) -> int:
        if nbytes > self._capacity:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        block = np.zeros(nbytes, np.uint8)
        self.blocks[block.ctypes.data] = block
        self.streams.append(stream)
        return block.ctypes.data


@pytest.fixture
def torchs_allocator(
    monkeypatch: pytest.MonkeyPatch,
    cuda_simulation: Simulation,  # it ends first: at its end it frees what is left
) -> FakeAllocator:
    allocator = FakeAllocator(monkeypatch)
    cuda.use_torch_allocator()
    return allocator


def test_arrays_and_trees_live_in_torchs_memory(
    torchs_allocator: FakeAllocator, cuda_simulation: Simulation
) -> None:
    specs = ArrayDict({"a": Array((4, 3), np.float32), "b": Array((4,), bool)})
    tree = specs.new_array(storage="device")
    assert len(torchs_allocator.blocks) == 1
    tree[1] = {"a": 5, "b": True}
    assert tree["a"].to_ndarray().sum() == 15
    tree.close()
    del tree
    cuda_simulation.assert_no_leaks()
    assert torchs_allocator.blocks == {}
    assert torchs_allocator.n_inits == 1


def test_a_block_belongs_to_the_stream_that_cupys_work_is_in(
    torchs_allocator: FakeAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupys, torchs = new_stream(), new_stream()
    torchs_allocator.streams.clear()
    with cupys:
        use_cuda_in_torch(monkeypatch, torchs.ptr)
        kept = [counted("device"), cuda.library().empty(3)]
    # Arrays are the caller's, whose current stream is torch's; the other one is CuPy's own.
    assert set(torchs_allocator.streams[:-1]) == {torchs.ptr}
    assert torchs_allocator.streams[-1] == cupys.ptr
    del kept


def test_too_little_of_torchs_memory_is_a_memory_error(torchs_allocator: FakeAllocator) -> None:
    specs = ArrayDict({"big": Array((100, 100), np.float32)})
    with pytest.raises(MemoryError, match=r"(?s)40,192 bytes wanted; CUDA out of .* free.*big: "):
        specs.to("device")
    assert torchs_allocator.blocks == {}


def test_what_torch_keeps_counts_as_free(torchs_allocator: FakeAllocator) -> None:
    assert cuda.free_nbytes() == cuda.library().cuda.runtime.memGetInfo()[0] + 400


def test_asking_again_changes_nothing(torchs_allocator: FakeAllocator) -> None:
    before = cuda.library().cuda.get_allocator().__self__
    cuda.use_torch_allocator()
    assert cuda.library().cuda.get_allocator().__self__ is before


def test_another_allocator_is_not_taken_for_torchs(
    cuda_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = cuda.library()
    free = cupy.cuda.runtime.memGetInfo()[0]
    own = cupy.cuda.PythonFunctionAllocator(lambda nbytes, device: 0, lambda address, device: None)
    cupy.cuda.set_allocator(own.malloc)
    assert cuda.free_nbytes() == free
    pool = cupy.get_default_memory_pool()
    monkeypatch.setattr(type(pool), "free_bytes", lambda pool: 700)
    cupy.cuda.set_allocator(None)
    assert cuda.free_nbytes() == free + 700


def test_a_tensor_has_this_machines_byte_order_only() -> None:
    for array in (Array((3,), ">f4"), Array((3,), ">i8")):
        with pytest.raises(TypeError, match=r"got dtype >.*byte order.*newbyteorder"):
            array.to_torch()


def test_a_tensor_has_no_strides_between_elements() -> None:
    values = np.zeros(3, np.dtype({"names": ["a"], "formats": ["<f4"], "itemsize": 6}))["a"]
    with pytest.raises(ValueError, match=r"strides \(6,\) of 4 bytes each"):
        ArrayDict({"a": values}).to_torch()


def test_a_dtype_that_torch_does_not_have_is_named() -> None:
    for dtype in ("M8[s]", "U3", "V4"):
        with pytest.raises(TypeError, match=r"to_torch: torch has no dtype .*astype"):
            Array((3,), dtype).to_torch()


@needs("ml_dtypes")
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_short_floats_of_other_libraries_reach_torch(name: str) -> None:
    import ml_dtypes

    array = Array((2, 3), getattr(ml_dtypes, name))
    array[...] = [[1, 2, 0.5], [4, -1, 0]]
    for view in (array, array[:, 1:], array[1]):
        tensor = view.to_torch()
        assert tensor.dtype == getattr(torch, name)
        assert tensor.float().tolist() == view.to_ndarray().astype(np.float32).tolist()
    array.to_torch()[0, 0] = 8
    assert float(array[0, 0]) == 8
    array[0] = array.to_torch()[1]
    assert array.to_ndarray()[0].tolist() == array.to_ndarray()[1].tolist()
    other = np.zeros(3, ml_dtypes.float8_e4m3)
    with pytest.raises(TypeError, match="torch has no dtype float8_e4m3"):
        Array.from_numpy(other).to_torch()

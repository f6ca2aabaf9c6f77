"""What is special to Arrays and trees in CUDA memory: streams, CuPy, torch's tensors, launches.

What they share with memory of any kind is in the contracts (tests/storages/test_cuda_memory.py).
"""

import copy
import multiprocessing as mp
from collections.abc import Iterator
from contextlib import contextmanager
from operator import setitem
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict, cuda
from parllel.arrays import ArraySpec
from parllel.storages import KINDS
from parllel.testing.simulated_cuda import Simulation, simulated_cuda
from parllel.tree import allocate_tree

CUDA_KINDS = ("device", "managed", "pinned")
each_kind = pytest.mark.parametrize("kind", CUDA_KINDS)


def counted(kind: str, **options: Any) -> Array:
    """Return a float32 Array of shape [6, 4] of which each element is its place."""
    array = Array((6, 4), np.float32, storage=kind, **options)
    array[...] = np.arange(24).reshape(6, 4)
    return array


# CuPy


@each_kind
def test_views_of_cupy_share_the_memory(kind: str, cuda_device: torch.device) -> None:
    array = counted(kind)
    array.to_cupy()[2, 1] = 4.5
    array[:, ::-2].to_cupy()[0] = -1
    cuda.synchronize()
    assert array.to_ndarray()[2].tolist() == [8, 4.5, 10, 11]
    assert array.to_ndarray()[0].tolist() == [0, -1, 2, -1]
    assert array[2:4].to_cupy().shape == (2, 4)
    interface = array[1:].__cuda_array_interface__
    assert (interface["shape"], interface["version"]) == ((5, 4), 3)
    assert interface["data"][0] == array.to_cupy().data.ptr + 16


def test_memory_of_the_host_alone_has_no_array_of_cupy() -> None:
    array = Array((2,), np.float32)
    assert not array.is_for_gpu
    assert not hasattr(array, "__cuda_array_interface__")
    with pytest.raises(TypeError, match='no GPU can use it; allocate with storage="pinned"'):
        array.to_cupy()


# torch


@each_kind
def test_tensors_are_of_the_side_that_owns_the_memory(kind: str, cuda_device: torch.device) -> None:
    tensor = counted(kind)[1:3].to_torch()
    assert tensor.device.type == ("cpu" if kind == "pinned" else cuda_device.type)
    assert tensor.is_pinned() == (kind == "pinned" and cuda_device.type == "cuda")


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8])
def test_tensors_of_the_device_are_written(
    kind: str, dtype: torch.dtype, cuda_device: torch.device
) -> None:
    array = counted(kind)
    tensor = torch.arange(8, dtype=dtype, device=cuda_device).reshape(4, 2).T
    array[2:4] = tensor
    array[[0, 5]] = tensor.flip(0)
    array[1] = torch.ones(4, device=cuda_device).requires_grad_()
    cuda.synchronize()
    assert array.to_ndarray()[:4].tolist() == [[1, 3, 5, 7], [1] * 4, [0, 2, 4, 6], [1, 3, 5, 7]]
    assert array.to_ndarray()[5].tolist() == [0, 2, 4, 6]


@each_kind
def test_a_tensor_whose_sign_is_pending_is_written_with_it(
    kind: str, cuda_device: torch.device
) -> None:
    array = Array((2,), np.complex64, storage=kind)
    tensor = torch.tensor([1 + 2j, 3j], device=cuda_device)
    array[...] = tensor.conj()
    assert array.to_ndarray().tolist() == [1 - 2j, -3j]
    real = Array((2,), np.float32, storage=kind)
    real[...] = tensor.conj().imag
    assert real.to_ndarray().tolist() == [-2, -3]


# Streams


@contextmanager
def another_stream(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make another stream torch's current one, and let it wait for the work until now."""
    mark = cuda.Event().record()
    if device.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):
            mark.wait()
            yield
        return
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        stream = SimpleNamespace(cuda_stream=0x7000)
        patch.setattr(torch.cuda, "current_stream", lambda: stream)
        mark.wait()
        yield


@each_kind
def test_all_work_goes_to_the_current_stream_of_torch(
    kind: str, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = counted(kind, padding=4, full_size=6)
    source = counted("device")
    tree = ArrayDict({"ring": counted(kind, padding=2, full_size=6)})
    with another_stream(cuda_device, monkeypatch):
        array = Array((6, 4), np.float32, storage=kind)
        array[...] = source
        array[0] = 7
        array[[1, 2]] = source[[3, 4]]
        array[3:, ::-1] = source[:3]
        array[4:] = array[3:5]
        ring[6:10] = 1  # into the padding, which the ring carries over
        ring.rotate()
        tree[6:8] = 1
        tree.rotate()
        gathered, copied = array[[0, 4]].to_ndarray(), array.to("device")[:, 1].to_ndarray()
        assert gathered.tolist() == [[7] * 4, [3, 2, 1, 0]]
        assert copied.tolist() == [7, 13, 17, 2, 2, 6]
        assert (ring[:4].to_ndarray() == 1).all()
        assert (tree["ring"][:2].to_ndarray() == 1).all()


# Processes


def test_a_process_writes_pinned_memory_without_cuda(cuda_device: torch.device) -> None:
    """A process that was started has no part in a simulation, and workers need none.

    Where there is no driver, it would fail if it asked for a device.
    """
    array = counted("pinned")
    process = mp.get_context("spawn").Process(target=setitem, args=(array[1:3], ..., 7))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    moved = array.to("device")
    assert moved[:4, 0].to_ndarray().tolist() == [0, 7, 7, 12]


# Trees


def make_tree(storage: str) -> ArrayDict:
    specs = {
        "image": ArraySpec.of((4, 3), np.uint8, (5, 7), padding=1),
        "state": ArraySpec.of((4, 3), np.float64, padding=2),
        "flag": ArraySpec.of((4, 3), bool),
        "ring": ArraySpec.of((4, 3), np.float32, padding=1, full_size=8),
    }
    return allocate_tree(ArrayDict({"deep": specs}), storage)


def test_a_tree_on_the_device_rotates_in_one_launch_or_in_none(cuda_device: torch.device) -> None:
    tree = make_tree("device")
    launches = []
    for _ in range(4):
        before = copy.copy(cuda.counters)
        tree.rotate()
        counted = cuda.counters.since(before)
        launches.append(counted.launches)
        assert counted.copies_to_host == counted.stream_synchronizations == 0
        assert counted.device_synchronizations == 0
    assert launches == [1, 1, 1, 1]  # some leaf wraps each time
    ring = ArrayDict({"ring": Array((2,), np.int32, storage="device", padding=1, full_size=6)})
    launches = []
    for _ in range(6):
        before = copy.copy(cuda.counters)
        ring.rotate()
        launches.append(cuda.counters.since(before).launches)
    assert launches == [0, 0, 1, 0, 0, 1]


@pytest.mark.simulation("they ask the simulation what is still allocated")
@each_kind
def test_all_memory_goes_with_the_last_reference(kind: str) -> None:
    def use(simulation: Simulation) -> None:
        tree = make_tree(kind)
        tree.rotate()
        part = tree[[0, 2]]
        part.to_torch()
        tree.to("device").close()
        assert simulation.used_nbytes > 0 or kind == "pinned"

    with simulated_cuda("lazy") as simulation:
        use(simulation)
        simulation.assert_no_leaks()


# Without a device


@each_kind
def test_without_a_device_the_error_says_why_and_what_to_use(kind: str) -> None:
    if cuda.is_available():
        pytest.skip("this machine has a device")
    with pytest.raises(cuda.CudaUnavailableError, match=r'not available: .*storage="local"'):
        Array((2, 2), np.float32, storage=kind)


def test_each_kind_has_its_name() -> None:
    assert set(CUDA_KINDS) < set(KINDS)
    assert {kind for kind, block in KINDS.items() if getattr(block, "is_for_gpu", False)} == set(
        CUDA_KINDS
    )


@pytest.mark.simulation("they show what is told without a device, too")
def test_a_dtype_that_no_gpu_computes_with_is_told_with_a_way_out() -> None:
    refused = pytest.raises(TypeError, match=r"dtype: got >i4.*storage=.pinned")
    with simulated_cuda("eager"), refused:
        Array((2,), ">i4", storage="device")

"""What can't be captured in a CUDA graph raises, says what can, and leaves the capture whole."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.testing.simulated_cuda import simulated_cuda

pytestmark = pytest.mark.simulation("they ask a simulated stream what was captured")


def stacks() -> Callable[[], Any]:
    array = FrameArray((3, 2, 2), np.uint8, (4,), padding=1, storage="device")
    return lambda: array[1].to_torch()


def copy_to_device() -> Callable[[], Any]:
    values = cuda.to_device(np.zeros(3))
    return lambda: cuda.copy_to_device(np.ones(3), out_device=values)


def copy_to_host() -> Callable[[], Any]:
    values = cuda.to_device(np.zeros(3))
    return lambda: cuda.copy_to_host(values, out_host=np.zeros(3))


def read() -> Callable[[], Any]:
    array = Array((3,), np.float32, storage="device")
    return array.to_ndarray


REFUSED: dict[str, Callable[[], Callable[[], Any]]] = {
    "a copy from the host": copy_to_device,
    "a copy to the host": copy_to_host,
    "the allocation of memory": lambda: lambda: cuda.allocate_device(8),
    "a gather of stacks": stacks,
    "a rotation": lambda: Array((3,), np.float32, storage="device", full_size=6).rotate,
}


def rotate_tree() -> Callable[[], Any]:
    tree = ArrayDict({"reward": Array((3,), np.float32, storage="device", full_size=6)})
    return tree.rotate


ALSO: list[Callable[[], Callable[[], Any]]] = [
    read,
    rotate_tree,
    lambda: lambda: cuda.to_device(np.zeros(3)),
    lambda: lambda: cuda.allocate_managed(8),
]


@pytest.mark.parametrize("make", [*REFUSED.values(), *ALSO])
def test_it_raises_and_the_capture_goes_on(make: Callable[[], Callable[[], Any]]) -> None:
    with simulated_cuda("lazy"):
        call = make()
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            stream.begin_capture()
            counted = cuda.counters.as_dict()
            with pytest.raises(RuntimeError, match=r"can't be captured.*ReplayBuffer\.sample"):
                call()
            assert cuda.counters.as_dict() == counted
            assert cuda.is_capturing()
            stream.end_capture()
            assert not cuda.is_capturing()
            call()


@pytest.mark.parametrize("what", REFUSED)
def test_the_error_names_what_was_called(what: str) -> None:
    with simulated_cuda("lazy"):
        call = REFUSED[what]()
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            stream.begin_capture()
            with pytest.raises(RuntimeError, match=f"^{what}"):
                call()


def test_another_stream_may_be_used_while_one_is_captured() -> None:
    with simulated_cuda("lazy"):
        stream = cuda.new_stream()
        stream.begin_capture()
        assert cuda.is_capturing(stream)
        assert not cuda.is_capturing()
        assert cuda.to_host(cuda.to_device(np.ones(2))).tolist() == [1, 1]

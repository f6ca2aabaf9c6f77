"""What `make test-gpu` does, and what is best seen on a GPU: streams, graphs, torch's allocator.

It says why there is no GPU, or runs just what a GPU can run.
"""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eager_as_real import Operations, Values
from parllel import Array, cuda
from parllel.ops.row_copy import RowCopy
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.operators import gather_rows
from schedules import CONTRACTS
from step_list import Chances, Model, Shape, leaves

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
RECIPE = re.compile(r"^test-gpu:.*\n\t\$\(BIN\)/python -m pytest (.*)$", re.MULTILINE)

LEFT_OUT = (*CONTRACTS, "test_repetitions.py")  # whose tests of a device are made up
OTHERS = [
    path
    for path in TESTS.glob("*/test_*.py")
    if "cuda_device" in path.read_text() and path.name not in LEFT_OUT
]


def make_test_gpu(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests as the Makefile does, with further options."""
    found = RECIPE.search((ROOT / "Makefile").read_text())
    assert found is not None
    return subprocess.run(
        [sys.executable, "-m", "pytest", *found[1].split(), *map(str, options)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_a_gpu_it_fails_at_once_with_the_reason() -> None:
    run = make_test_gpu(CUDA_VISIBLE_DEVICES="-1")
    assert run.returncode == 4  # a wrong use of pytest: no test ran
    assert re.search(
        r"--cuda=real: (no NVIDIA driver was found|the NVIDIA driver sees no device|CuPy is not)",
        run.stderr,
    )
    assert run.stdout == ""


@pytest.mark.long  # it runs a pytest of a thousand tests
def test_it_runs_what_needs_no_simulation_on_one_device() -> None:
    """The device is an eager simulation here, which lasts for all tests as a GPU does."""
    run = make_test_gpu("-p", "eager_as_real", "-v", *OTHERS, PYTHONPATH=str(TESTS))
    assert run.returncode == 0, run.stdout + run.stderr
    ids = re.findall(r"^tests/(\S+)::(.*) PASSED", run.stdout, re.MULTILINE)
    summary = re.search(r"(\d+) passed, (\d+) deselected in", run.stdout)
    assert summary is not None
    assert len(ids) == int(summary[1])
    assert [name for _, name in ids if "[real" not in name] == []
    files = {str(path.relative_to(TESTS)) for path in OTHERS}
    assert {file for file, _ in ids} == files
    for reason in ("they test the simulation itself", "what a GPU does not tell"):
        assert re.search(rf"left out with --cuda=real: .*{reason}: \d+ tests", run.stdout)


def test_what_a_gpu_would_not_do_is_found() -> None:
    with simulated_cuda("eager"), Operations(), Values():
        tensors = [Array((3,), "f4", storage=kind).to_torch() for kind in ("device", "managed")]
        for tensor in (*tensors, tensors[0].clone(), tensors[0][1:] + 1, torch.cat(tensors)):
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                _ = tensor + torch.ones(len(tensor))
            with pytest.raises(TypeError, match=r"use tensor\.cpu\(\)|can't be converted to numpy"):
                tensor.numpy()
            tensor.copy_(torch.ones(len(tensor)))
            assert (tensor.cpu() + torch.ones(len(tensor))).numpy().tolist() == [2] * len(tensor)
        pinned = Array((3,), "f4", storage="pinned").to_torch()  # the host's
        assert (pinned + torch.ones(3)).numpy().tolist() == [1] * 3
        with pytest.raises(RuntimeError, match="one at a time"), simulated_cuda("lazy"):
            """A test with a simulation of its own."""


# Torch's allocator


@pytest.fixture
def torchs_nbytes(
    cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], int]]:
    """Let torch's allocator own device memory; return what tells the bytes that are in use.

    In a simulation the host's memory stands in for torch's.
    """
    former = cuda.library().cuda.get_allocator()
    blocks: dict[int, Any] = {}

    def allocate(nbytes: int, device: int, stream: int) -> int:
        block = np.zeros(nbytes, np.uint8)
        blocks[block.ctypes.data] = block
        return block.ctypes.data

    if cuda_device.type != "cuda":
        stand_ins: dict[str, Any] = {"init": lambda: None, "is_available": lambda: True}
        stand_ins["device"] = nullcontext  # which it makes the current one
        names = ("caching_allocator_alloc", "caching_allocator_delete", "memory_allocated")
        answers = (allocate, blocks.pop, lambda: sum(block.nbytes for block in blocks.values()))
        for name, answer in {**stand_ins, **dict(zip(names, answers, strict=True))}.items():
            monkeypatch.setattr(torch.cuda, name, answer)
    cuda.use_torch_allocator()
    yield torch.cuda.memory_allocated
    cuda.library().cuda.set_allocator(former)


def test_torchs_allocator_serves_arrays_and_takes_them_back(
    torchs_nbytes: Callable[[], int],
) -> None:
    gc.collect()  # what earlier tests have left goes before
    before = torchs_nbytes()
    array = Array((1 << 18,), np.float32, storage="device")
    assert torchs_nbytes() - before >= 1 << 20
    array[...] = 3
    assert array.to_torch().sum().item() == 3 << 18
    array.close()
    del array
    cuda.Event().record().synchronize()  # a simulation frees in the order of the stream
    assert torchs_nbytes() == before


# A stream of the caller's own, and graphs of it


@contextmanager
def side_stream(device: torch.device) -> Iterator[Any]:
    """Make another stream than the default one the caller's: torch's, where torch has the GPU."""
    if device.type != "cuda":
        with cuda.use_stream(cuda.new_stream()) as stream:
            yield stream
        return
    torchs = torch.cuda.Stream(device)
    with torch.cuda.stream(torchs):
        stream = cuda.current_stream()
        assert stream.ptr == torchs.cuda_stream
        yield stream


def test_work_follows_the_callers_stream(cuda_device: torch.device) -> None:
    with side_stream(cuda_device):
        # Allocated in this stream, too: the default one fills an array with zeros when it likes.
        array = Array((1 << 16,), np.float32, storage="device")
        for value in range(20):
            tensor = array.to_torch()
            tensor.fill_(value)
            array[...] = tensor + 1
        done = cuda.Event().record()
    done.wait()  # the default stream, in which the next copy is
    assert (array.to_ndarray() == 20).all()


def captures(device: torch.device, stream: Any, call: Callable[[], object]) -> Iterator[Any]:
    """Capture a call in each way that the device has; yield what launches the graph."""
    stream.begin_capture()
    call()
    graph = stream.end_capture()
    yield lambda: graph.launch(stream)
    if device.type == "cuda":
        of_torch = torch.cuda.CUDAGraph()
        with torch.cuda.graph(of_torch):
            call()
        yield of_torch.replay


def test_a_captured_copy_of_rows_reads_its_memory_anew(cuda_device: torch.device) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (9, 1000), np.uint8)
    with side_stream(cuda_device) as stream:
        source, index = cuda.to_device(values), cuda.to_device(np.array([8, 0, 3]))
        out = cuda.to_device(np.zeros((3, 1000), np.uint8))
        copy = RowCopy([out], [source])
        copy.run(range(3), index)  # loads the kernel
        for launch in captures(cuda_device, stream, lambda: copy.run(range(3), index)):
            for picked in ([1, 2, 3], [7, 7, 0]):
                values = rng.integers(0, 256, (9, 1000), np.uint8)
                cuda.copy_to_device(values, out_device=source)
                cuda.copy_to_device(np.array(picked), out_device=index)
                launch()
                np.testing.assert_array_equal(cuda.to_host(out), values[picked])


def test_a_captured_gather_of_torch_reads_its_memory_anew(cuda_device: torch.device) -> None:
    values = torch.arange(12.0, device=cuda_device).reshape(4, 3)
    flags = torch.tensor([True, False, True, True], device=cuda_device)
    index = torch.tensor([3, 0], device=cuda_device)
    gather_rows([values, flags], index)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gather_rows([values, flags], index)
    for picked in ([1, 2], [0, 0]):
        values.add_(1)
        index.copy_(torch.tensor(picked))
        graph.replay()
        cuda.synchronize()
        assert found[0].tolist() == values[picked].tolist()
        assert found[1].tolist() == flags[picked].tolist()


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_captured_draw_gives_the_next_minibatches(
    cuda_device: torch.device, kind: type[ReplayBuffer]
) -> None:
    def make_model() -> Model:
        shape = Shape(T=2, n_windows=4, n_steps=2)
        model = Model(shape, Chances(), seed=1, storage="device", kind=kind)
        for _ in range(3):
            model.write_batch()
        return model

    def sampled(model: Model) -> dict[str, Any]:
        return {path: leaf.tolist() for path, leaf in leaves(model.replay.sample(6)).items()}

    with side_stream(cuda_device) as stream:
        model = make_model()
        expected = []
        for _ in range(6):
            expected.append(sampled(model))
            model.write_batch()
        assert len({str(each["index"]) for each in expected}) == 6
        model = make_model()
        minibatch = model.replay.sample(6)
        found = [{path: leaf.tolist() for path, leaf in leaves(minibatch).items()}]
        model.write_batch()
        for launch in captures(cuda_device, stream, lambda: model.replay.sample(6)):
            for _ in range(2):
                launch()
                found.append({path: leaf.tolist() for path, leaf in leaves(minibatch).items()})
                model.write_batch()
        assert found == expected[: len(found)]
        assert len(found) >= 3

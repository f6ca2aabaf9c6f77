"""Arrays and trees in CUDA memory, on simulated CUDA: they hold what the same ones on the host do.

Nothing here ran on a GPU. The simulation runs each queued piece of work at once, at the last legal
moment, or at a random one; what lacks a wait reads poison.
"""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from parllel import Array, ArrayDict, cuda
from parllel.storages import KINDS
from parllel.testing.simulated_cuda import simulated_cuda

CUDA_KINDS = ("device", "managed", "pinned")
SCHEDULES = ("eager", "lazy", "random")
each_kind = pytest.mark.parametrize("kind", CUDA_KINDS)


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Iterator[str]:
    with simulated_cuda(schedule=request.param, seed=3):
        yield request.param


def pair(kind: str, **options: Any) -> tuple[Array, Array]:
    """Return an Array in memory of a kind and one on the host, of the same shape."""
    return (
        Array((6, 4), np.float32, feature_shape=(3,), storage=kind, **options),
        Array((6, 4), np.float32, feature_shape=(3,), **options),
    )


def some_index(rng: np.random.Generator) -> Any:
    """Return an index of any kind, inside a window of 6 x 4 x 3 with a padding of 2."""
    return [
        int(rng.integers(-2, 8)),
        (int(rng.integers(-2, 8)), int(rng.integers(4))),
        slice(-1, 5, int(rng.integers(1, 4))),
        (slice(None, None, -1), slice(3, 0, -2)),
        (..., int(rng.integers(3))),
        (rng.integers(-2, 8, 5), rng.integers(0, 4, 5)),
        (slice(1, 4), rng.integers(0, 4, 2)),
        (rng.integers(0, 6, 2), slice(None), rng.integers(0, 3, 2)),
        rng.random((6, 4)) < 0.4,
        ...,
    ][rng.integers(10)]


def some_values(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Return values that a view of a shape takes, of any kind."""
    values = rng.random(shape).astype(np.float32)
    return [values, torch.from_numpy(values), values.tolist(), float(rng.random())][rng.integers(4)]


@each_kind
@pytest.mark.parametrize("full_size", [6, 18])
@pytest.mark.parametrize("seed", range(4))
def test_it_holds_what_the_same_array_on_the_host_holds(
    kind: str, full_size: int, seed: int, schedule: str
) -> None:
    rng = np.random.default_rng(seed)
    array, host = pair(kind, padding=2, full_size=full_size)
    for _ in range(30):
        index = some_index(rng)
        values = some_values(rng, host[index].shape)
        array[index] = values
        host[index] = values
        if rng.random() < 0.3:
            array.rotate()
            host.rotate()
        index = some_index(rng)
        assert_array_equal(array[index].to_ndarray(), host[index].to_ndarray())
    assert_array_equal(array[-2:8].to_ndarray(), host[-2:8].to_ndarray())
    assert_array_equal(array.full.to_ndarray(), host.full.to_ndarray())
    assert_array_equal(array[1:4].next.to_ndarray(), host[1:4].next.to_ndarray())
    assert_array_equal(array.previous.to_ndarray(), host.previous.to_ndarray())
    array.close()


@each_kind
@pytest.mark.parametrize("other", ["local", *CUDA_KINDS])
def test_an_array_is_written_from_another_of_any_kind(kind: str, other: str, schedule: str) -> None:
    array, source = pair(kind)[0], pair(other)[0]
    source[...] = np.arange(72).reshape(6, 4, 3)
    array[1:3] = source[4:]
    assert_array_equal(array[1:3].to_ndarray(), np.arange(48, 72).reshape(2, 4, 3))


@each_kind
def test_to_ndarray_of_device_memory_alone_is_a_read_only_copy(kind: str, schedule: str) -> None:
    array, _ = pair(kind)
    assert array.to_ndarray().flags.writeable == (kind != "device")
    if kind == "device":
        with pytest.raises(TypeError, match=r"not converted implicitly: to_ndarray\(\)"):
            np.asarray(array)
    else:
        np.asarray(array)[2] = 5
        assert (array[2].to_ndarray() == 5).all()


@each_kind
def test_a_gathered_view_reads_and_writes_the_array(kind: str, schedule: str) -> None:
    array, _ = pair(kind)
    view = array[[1, 3], [0, 2]]
    view[...] = 7
    assert array.to_ndarray().sum() == 2 * 3 * 7
    assert not view.to_ndarray().flags.writeable


@each_kind
def test_views_of_cupy_share_the_memory(kind: str, schedule: str) -> None:
    array, _ = pair(kind)
    array.to_cupy()[2, 1] = 4.0
    cuda.synchronize()
    assert array[2, 1].to_ndarray().tolist() == [4, 4, 4]
    assert array[2:4].to_cupy().shape == (2, 4, 3)
    assert array.__cuda_array_interface__["shape"] == (6, 4, 3)


def test_memory_of_the_host_alone_has_no_array_of_cupy() -> None:
    array = Array((2,), np.float32)
    assert not hasattr(array, "__cuda_array_interface__")
    with pytest.raises(TypeError, match='no GPU can use it; allocate with storage="pinned"'):
        array.to_cupy()


@each_kind
def test_a_tensor_shares_the_memory(kind: str, schedule: str) -> None:
    array, _ = pair(kind)
    array[1] = 2
    tensor = array[1].to_torch()
    cuda.synchronize()  # the stand-in's tensors are torch's for the CPU, which knows no stream
    assert tensor.sum() == 2 * 4 * 3
    tensor[0] = 9
    assert array[1, 0].to_ndarray().tolist() == [9, 9, 9]


@each_kind
def test_a_copy_is_independent(kind: str, schedule: str) -> None:
    array, _ = pair(kind, padding=1, full_size=12)
    array.rotate()
    array[0], array[-1] = 1, 2
    other = copy.deepcopy(array)
    assert (other.storage, other.padding, other.full_size) == (kind, 1, 12)
    other[0] = 5
    assert array[0].to_ndarray().max() == 1
    assert (other[-1].to_ndarray() == 2).all()


@pytest.mark.parametrize("kind", ["device", "managed"])
def test_memory_that_no_other_process_can_use_is_not_sent(kind: str, schedule: str) -> None:
    with pytest.raises(ValueError, match="device memory can't be sent to another process"):
        pickle.dumps(pair(kind)[0][1])


@each_kind
def test_a_closed_array_is_an_error(kind: str, schedule: str) -> None:
    array, _ = pair(kind)
    array.close()
    array.close()
    with pytest.raises(ValueError, match="the Array is closed"):
        array[0] = 1


def make_tree(storage: str) -> ArrayDict:
    tree = ArrayDict(
        {
            "image": Array((4, 3), np.uint8, feature_shape=(5, 7), padding=1),
            "deep": {
                "state": Array((4, 3), np.float64, padding=2),
                "flag": Array((4, 3), bool),
                "ring": Array((4, 3), np.float32, padding=1, full_size=8),
            },
        }
    )
    for number, (_, leaf) in enumerate(tree.walk()):
        leaf[-leaf.padding : 4 + leaf.padding] = (
            number
            + np.arange(leaf.size + 6 * leaf.padding * int(np.prod(leaf.feature_shape))).reshape(
                -1, *leaf.shape[1:]
            )
            % 11
        )
    return tree.to(storage)


def assert_trees_equal(tree: ArrayDict, expected: ArrayDict) -> None:
    for (path, leaf), (_, other) in zip(tree.walk(), expected.walk(), strict=True):
        shown = slice(-other.padding, len(other) + other.padding)
        got, wanted = leaf[shown].to_ndarray(), other[shown].to_ndarray()
        assert_array_equal(got, wanted, err_msg=path)


@each_kind
def test_a_tree_moves_to_a_kind_of_memory_and_back(kind: str, schedule: str) -> None:
    tree = make_tree("local")
    moved = tree.to(kind)
    assert {leaf.storage for _, leaf in moved.walk()} == {kind}
    assert_trees_equal(moved.to("local"), tree)


def test_a_tree_on_the_device_rotates_in_one_launch_or_in_none(schedule: str) -> None:
    tree, expected = make_tree("device"), make_tree("local")
    launches = []
    for _ in range(4):
        before = copy.copy(cuda.counters)
        tree.rotate()
        expected.rotate()
        counted = cuda.counters.since(before)
        launches.append(counted.launches)
        assert counted.copies_to_host == counted.stream_synchronizations == 0
        assert counted.device_synchronizations == 0
        assert_trees_equal(tree, expected)
    assert launches == [1, 1, 1, 1]  # some leaf wraps each time
    ring = ArrayDict({"ring": Array((2,), np.int32, storage="device", padding=1, full_size=6)})
    launches = []
    for _ in range(6):
        before = cuda.counters.launches
        ring.rotate()
        launches.append(cuda.counters.launches - before)
    assert launches == [0, 0, 1, 0, 0, 1]


@each_kind
def test_without_a_device_the_error_says_why_and_what_to_use(kind: str) -> None:
    if cuda.is_available():
        pytest.skip("this machine has a device")
    with pytest.raises(cuda.CudaUnavailableError, match=r'not available: .*storage="local"'):
        Array((2, 2), np.float32, storage=kind)


def test_each_kind_has_its_name() -> None:
    assert set(CUDA_KINDS) < set(KINDS)

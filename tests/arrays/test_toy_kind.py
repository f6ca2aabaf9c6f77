"""A kind of Array that stands in one file outside the package goes wherever an Array goes."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from torch import Tensor

from films import Film
from parllel import ArrayDict
from parllel.arrays import Array
from parllel.cages import Cage, ProcessCage, SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import BasicSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import allocate_tree, open_tree, save_tree
from parllel.tree.leaves import as_tensor
from summed_array import SummedArray, SummedSpec

T, B = 5, 2
FEATURES = (3, 2)


def sums_of(values: NDArray[Any], n_batch_dims: int = 2) -> NDArray[np.float32]:
    axes = tuple(range(n_batch_dims, values.ndim))
    return np.asarray(values.sum(axis=axes, dtype=np.float32))


def assert_sums_are_right(array: Array, *, least: int = 0) -> None:
    """Check the sums of all rows, padding and ring included; and that some are no zeros."""
    rows, sums = (
        part if isinstance(part, np.ndarray) else part.get() for part in array.memory_parts.values()
    )
    assert_array_equal(sums, sums_of(rows))
    assert np.count_nonzero(sums) >= least


@pytest.fixture
def array() -> SummedArray:
    made = Array.from_spec(SummedSpec.of((T, B), np.float32, FEATURES, padding=1, full_size=2 * T))
    assert isinstance(made, SummedArray)
    made[...] = np.arange(made.size).reshape(made.shape)
    return made


def test_it_is_read_written_and_rotated_as_an_array(array: SummedArray) -> None:
    expected = np.arange(array.size, dtype=np.float32).reshape(array.shape)
    assert_array_equal(array[1, [1, 0]].to_ndarray(), expected[1, [1, 0]])
    array[3] = expected[3] = 2.5
    for _ in range(3):  # past the end of the ring
        array.rotate()
        array[...] = expected
    assert_array_equal(array.to_ndarray(), expected)
    assert_sums_are_right(array, least=2 * T * B - 1)


@pytest.mark.parametrize("copy", [lambda array: array.to("shared"), lambda array: array.full.next])
def test_a_copy_or_a_view_has_the_same_sums(
    array: SummedArray, copy: Callable[[SummedArray], SummedArray]
) -> None:
    other = copy(array)
    assert isinstance(other, SummedArray)
    assert_array_equal(other.sums.to_ndarray(), sums_of(other.to_ndarray()))
    assert pickle.loads(pickle.dumps(array.row_writer)) == array.row_writer


def test_a_tree_describes_and_copies_it(array: SummedArray) -> None:
    tree = ArrayDict({"observation": array, "reward": Array((T, B), np.float32)})
    described = tree.describe()
    assert described.leaves[0].nbytes >= array.spec.nbytes > array.allocated_nbytes
    assert described.leaves[0].shape == str((T, B, *FEATURES))
    copied = tree.to("shared")["observation"]
    assert isinstance(copied, SummedArray)
    assert copied.spec == array.spec
    assert_sums_are_right(copied, least=T * B - 1)
    assert isinstance(tree.new_array()["observation"], SummedArray)


class Adder:
    """Acts on the sums of what it sees."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return as_tensor(observation).flatten(1).sum(1).long() % 7, {}

    def value(self, observation: Any) -> Tensor:
        raise NotImplementedError


def make_trees(storage: str, full_size: int | None = None) -> tuple[ArrayDict, ArrayDict]:
    """Return a tree whose observations are plain, and one whose observations are summed."""
    example = build_example(Film, storage="local")
    plain = build_sample_tree(example, Adder(), batch_shape=(T, B), full_size=full_size)
    specs = plain.apply(lambda leaf: leaf.spec)
    specs["observation"] = SummedSpec(**vars(specs["observation"]))
    return plain, allocate_tree(specs, storage)


def make_cages(kind: type[SerialCage | ProcessCage]) -> list[Cage]:
    return [kind(Film, n_envs=B, seed=3)]


def assert_trees_are_equal(found: ArrayDict, expected: ArrayDict) -> None:
    others = leaves(expected)
    for path, leaf in leaves(found).items():
        assert_array_equal(leaf.to_ndarray(), others[path].to_ndarray(), err_msg=path)


def collect(samples: ArrayDict, cages: list[Cage], n_batches: int = 3, **options: Any) -> None:
    sampler = BasicSampler(cages, Adder(), samples, **options)
    for _ in range(n_batches):
        sampler.collect_batch()
    sampler.close()


@pytest.mark.parametrize("kind", [SerialCage, ProcessCage])
@pytest.mark.parametrize("storage", ["local", "shared"])
def test_cages_write_it(storage: str, kind: type[SerialCage | ProcessCage]) -> None:
    plain, summed = make_trees(storage)
    collect(plain, make_cages(SerialCage))
    collect(summed, make_cages(kind))
    assert_trees_are_equal(summed, plain)
    assert_sums_are_right(summed["observation"], least=T * B)


@pytest.mark.parametrize("kind", [SerialCage, ProcessCage])
def test_staging_brings_it_to_the_device(
    kind: type[SerialCage | ProcessCage], cuda_device: torch.device
) -> None:
    plain, summed = make_trees("device")
    collect(plain, make_cages(SerialCage))
    collect(summed, make_cages(kind))
    assert_trees_are_equal(summed, plain)
    assert_sums_are_right(summed["observation"], least=T * B)


@pytest.mark.parametrize("storage", ["local", "device"])
def test_a_replay_buffer_draws_it(storage: str, cuda_device: torch.device) -> None:
    drawn = []
    for tree in make_trees(storage, full_size=4 * T):
        replay = ReplayBuffer(tree, rng=np.random.default_rng(5))
        collect(tree, make_cages(SerialCage), replay=replay)
        minibatch = leaves(replay.sample(64))
        drawn.append({path: tensor.cpu().numpy().copy() for path, tensor in minibatch.items()})
    plain, summed = drawn
    for path, values in plain.items():
        assert_array_equal(summed[path], values, err_msg=path)
    assert np.count_nonzero(plain["next_observation"])


def test_it_is_saved_and_read_back(array: SummedArray, tmp_path: Path) -> None:
    array.rotate()
    save_tree(ArrayDict({"observation": array}), tmp_path, {})
    other = Array.from_spec(array.spec)
    open_tree(tmp_path, [SummedSpec]).load_into(ArrayDict({"observation": other}))
    mapped = open_tree(tmp_path, [SummedSpec]).map()["observation"]
    for found in (other, mapped):
        assert isinstance(found, SummedArray)
        assert (found.spec, found.window_begin) == (array.spec, T)
        assert_array_equal(found.full.to_ndarray(), array.full.to_ndarray())
        assert_sums_are_right(found, least=T * B - 1)


def test_a_saved_kind_that_is_not_known_is_refused(array: SummedArray, tmp_path: Path) -> None:
    save_tree(ArrayDict({"observation": array}), tmp_path, {})
    with pytest.raises(ValueError, match=r"kind of Array: got 'summed', expected one of \['array'"):
        open_tree(tmp_path)

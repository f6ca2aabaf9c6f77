"""Trees with a branch "a.b" beside a branch "a" with a leaf "b": two leaves, in every room."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.testing import assert_array_equal

from parllel import Array, ArrayDict
from parllel.cages import Cage, ProcessCage, SerialCage, VectorCage
from parllel.patterns import build_sample_tree, example_of
from parllel.replays import Minibatches, ReplayBuffer
from parllel.samplers import BasicSampler
from parllel.tree import open_tree, path_text, save_tree
from tree_envs import Dotted

T, B = 6, 2
N_ROWS = 5000  # so many that rows in host memory are gathered all leaves at once


def make_tree(storage: str = "local", n_rows: int = T) -> ArrayDict:
    """Return a tree whose two leaves hold other numbers."""
    tree = ArrayDict(
        {
            "a.b": Array((n_rows, B), np.float32, storage=storage),
            "a": {"b": Array((n_rows, B), np.float32, storage=storage)},
        }
    )
    numbers = np.arange(n_rows * B, dtype=np.float32).reshape(n_rows, B)
    tree[...] = {"a.b": numbers, "a": {"b": -numbers}}
    return tree


def test_paths_are_told_apart() -> None:
    paths = [path for path, _ in make_tree().walk()]
    assert paths == [("a.b",), ("a", "b")]
    assert [path_text(path) for path in paths] == ["'a.b'", "a.b"]
    assert path_text(("",)) != path_text(())
    assert path_text(("'a.b'",)) != path_text(("a.b",))


def test_a_tree_is_saved_and_opened(tmp_path: Path) -> None:
    tree, other = make_tree(), make_tree().new_array()
    save_tree(tree, tmp_path, {})
    open_tree(tmp_path).load_into(other)
    for found in (other, open_tree(tmp_path).map()):
        assert_array_equal(found["a.b"], tree["a.b"])
        assert_array_equal(found["a"]["b"], tree["a"]["b"])


@pytest.mark.parametrize(("storage", "n_rows"), [("local", N_ROWS), ("device", T)])
def test_rows_are_gathered_and_scattered(
    cuda_device: torch.device, storage: str, n_rows: int
) -> None:
    tree = make_tree(storage, n_rows)
    index = np.arange(n_rows)[::-1].copy()
    gathered = tree[index].to_ndarray()
    assert_array_equal(gathered["a.b"], np.arange(n_rows * B).reshape(n_rows, B)[::-1])
    assert_array_equal(gathered["a"]["b"], -gathered["a.b"])
    tree[index] = gathered.apply(lambda rows: np.ascontiguousarray(rows[::-1]))
    assert_array_equal(tree["a.b"].to_ndarray(), gathered["a.b"])
    assert_array_equal(tree["a"]["b"].to_ndarray(), -gathered["a.b"])


def test_a_ring_in_device_memory_is_rotated(cuda_device: torch.device) -> None:
    tree = make_tree().new_array(padding=1).to("device")
    tree["a.b"][T], tree["a"]["b"][T] = 1, 2
    tree.rotate()
    assert tree["a.b"][0].to_ndarray().tolist() == [1, 1]
    assert tree["a"]["b"][0].to_ndarray().tolist() == [2, 2]


def test_both_leaves_are_described() -> None:
    description = make_tree().describe()
    assert [leaf.path for leaf in description.leaves] == [("a.b",), ("a", "b")]
    assert [line.split()[0] for line in str(description).splitlines()[1:3]] == ["'a.b'", "a.b"]
    assert "<td>&#x27;a.b&#x27;</td>" in make_tree()._repr_html_()


def test_an_error_says_which_one_it_was() -> None:
    tree = make_tree()
    for wrong, text in (("a.b", "'a.b'"), ("a", "a.b")):
        values: dict[str, Any] = {"a.b": 0, "a": {"b": 0}}
        values[wrong] = np.zeros(7) if wrong == "a.b" else {"b": np.zeros(7)}
        with pytest.raises(ValueError, match=rf"^{text}: writing"):
            tree[...] = values


def test_minibatches_have_both() -> None:
    (minibatch,) = Minibatches(1, np.random.default_rng(0)).of(make_tree())
    assert_array_equal(minibatch["a"]["b"], -minibatch["a.b"])
    assert sorted(minibatch["a.b"].tolist()) == list(range(T * B))


class Constant:
    """Acts 2 as "a.b", and 1 and 0.5 as a -> b."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n_rows = len(observation["a.b"])
        action = {"a.b": np.full(n_rows, 2), "a": {"b": np.tile(np.float32([1, 0.5]), (n_rows, 1))}}
        return ArrayDict(action), {}

    def value(self, observation: Any) -> Any:
        raise NotImplementedError


def make_vector(n_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Dotted] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)


CAGES: dict[str, Any] = {
    "serial": functools.partial(SerialCage, Dotted, n_envs=B),
    "process": functools.partial(ProcessCage, Dotted, n_envs=B),
    "vector": functools.partial(VectorCage, make_vector, {"n_envs": B}),
}


@pytest.mark.parametrize("storage", ["local", "shared", "device"])
@pytest.mark.parametrize("kind", CAGES)
def test_environments_fill_samples_and_replay(
    cuda_device: torch.device, kind: str, storage: str
) -> None:
    """In device memory, rows come by way of staging."""
    cage: Cage = CAGES[kind]()
    samples = build_sample_tree(
        example_of(cage), Constant(), batch_shape=(T, B), full_size=2 * T, storage=storage
    )
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    sampler = BasicSampler([cage], Constant(), samples, replay=replay)
    sampler.collect_batch()
    found = samples.to_ndarray()
    assert found["observation"]["a.b"][:, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert_array_equal(found["observation"]["a"]["b"], -found["observation"]["a.b"])
    assert (found["action"]["a.b"] == 2).all()
    assert (found["action"]["a"]["b"] == [1, 0.5]).all()
    assert (found["reward"] == 2 + 10 * 1.5).all()
    assert found["env_info"]["a.b"][:, 0].tolist() == [1, 2, 3, 4, 1, 2]
    assert_array_equal(found["env_info"]["a"]["b"], -found["env_info"]["a.b"])
    minibatch = replay.sample(50)
    for name in ("observation", "next_observation", "env_info"):
        assert_array_equal(minibatch[name]["a"]["b"].cpu(), -minibatch[name]["a.b"].cpu())
    assert (minibatch["next_observation"]["a.b"] == minibatch["env_info"]["a.b"]).all()
    sampler.close()
    cage.close()

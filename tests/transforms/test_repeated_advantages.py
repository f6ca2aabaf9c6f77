"""EstimateAdvantage of batches at the same places gives what one that is new gives."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from long_run import all_but_first
from parllel import Array, ArrayDict, cuda
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.transforms import EstimateAdvantage
from profiles import fewer_examples
from schedules import each_schedule

T, B = 5, 3
NAMES = ("reward", "terminated", "truncated", "final_value", "value")
RESULTS = ("advantage", "return_")


def make_batch(storage: str = "local", n_envs: int = B, **ring: Any) -> ArrayDict:
    shape = (T, n_envs)
    return ArrayDict(
        {
            **{
                name: Array(shape, np.float32, storage=storage, **ring)
                for name in ("reward", "final_value")
            },
            **{
                name: Array(shape, bool, storage=storage, **ring)
                for name in ("terminated", "truncated")
            },
            "agent_info": {"value": Array(shape, np.float32, padding=1, storage=storage, **ring)},
        }
    )


def fill(batch: ArrayDict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for path, leaf in batch.walk():
        rows = leaf[: T + 1] if path[-1] == "value" else leaf
        values = rng.random(rows.shape) < 0.2
        rows[...] = values if leaf.dtype == bool else rng.standard_normal(rows.shape)


def to_host(leaf: Array) -> np.ndarray:
    return cuda.to_host(leaf.to_cupy()) if leaf.side == "gpu" else leaf.to_ndarray().copy()


def assert_as_new(estimate: EstimateAdvantage, batch: ArrayDict) -> None:
    """Compare with an object that has prepared nothing."""
    found = estimate(batch)
    expected = EstimateAdvantage()(batch)
    assert list(found) == list(expected)
    for name in RESULTS:
        assert to_host(found[name]).tobytes() == to_host(expected[name]).tobytes()


CHANGES = ("rotate", "reset", "leaf", "view", "valid", "invalid", "width", "slice", "again")


@fewer_examples(4)
@given(
    changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=12),
    n_windows=st.integers(1, 3),
    name=st.sampled_from(NAMES),
)
def test_leaves_that_have_moved_are_found_again(
    changes: list[str], n_windows: int, name: str
) -> None:
    estimate, ring = EstimateAdvantage(), {"full_size": n_windows * T}
    batch = make_batch(**ring)
    for seed, change in enumerate(changes):
        if change == "rotate":
            batch.rotate()
        if change == "reset":
            batch.reset()
        if change == "width":
            batch = make_batch(n_envs=2 + seed % 2, **ring)
        fill(batch, seed)
        given_batch = batch
        if change == "leaf":  # another Array takes the place of one
            other = make_batch(n_envs=batch["reward"].shape[1])
            fill(other, seed + 100)
            leaf = other["agent_info"]["value"] if name == "value" else other[name]
            given_batch = with_leaf(batch, name, leaf)
        if change == "view":  # of the same elements
            leaf = batch["agent_info"]["value"] if name == "value" else batch[name]
            if name != "value":
                given_batch = with_leaf(batch, name, leaf[...])
        if change in ("valid", "invalid"):
            valid = Array(batch["reward"].shape, bool)
            valid[...] = np.random.default_rng(seed).random(valid.shape) < (
                2 if change == "valid" else 0.6
            )
            given_batch = ArrayDict({**batch, "valid": valid})
        if change == "slice":  # whose rows are not contiguous, so that they are copied
            given_batch = make_batch(n_envs=4)
            fill(given_batch, seed)
            given_batch = with_leaf(given_batch, "reward", given_batch["reward"][:, 1:3])
            for each in ("terminated", "truncated", "final_value"):
                given_batch = with_leaf(given_batch, each, given_batch[each][:, 1:3])
            value = Array((T, 2), np.float32, padding=1)
            value[: T + 1] = np.random.default_rng(seed).random((T + 1, 2))
            given_batch = with_leaf(given_batch, "value", value)
        assert_as_new(estimate, given_batch)


def with_leaf(batch: ArrayDict, name: str, leaf: Array) -> ArrayDict:
    if name == "value":
        return ArrayDict({**batch, "agent_info": {"value": leaf}})
    return ArrayDict({**batch, name: leaf})


@pytest.mark.parametrize("storage", ["local", "shared"])
@pytest.mark.parametrize("name", NAMES)
def test_memory_that_was_given_back_is_not_read(storage: str, name: str) -> None:
    batch, estimate = make_batch(storage), EstimateAdvantage()
    fill(batch, 0)
    estimate(batch)
    (batch["agent_info"]["value"] if name == "value" else batch[name]).close()
    with pytest.raises(ValueError, match="closed"):
        estimate(batch)


@pytest.mark.parametrize("name", RESULTS)
def test_outputs_that_were_given_back_are_not_written(name: str) -> None:
    batch, estimate = make_batch("shared"), EstimateAdvantage()
    fill(batch, 0)
    estimate(batch)[name].close()
    with pytest.raises(ValueError, match="closed"):
        estimate(batch)


def test_a_copy_writes_outputs_of_its_own() -> None:
    batch, estimate = make_batch(), EstimateAdvantage()
    fill(batch, 0)
    first = estimate(batch)
    other = copy.deepcopy(estimate)
    before = first["advantage"].to_ndarray().copy()
    fill(batch, 1)
    second = other(batch)
    assert (first["advantage"].to_ndarray() == before).all()
    assert second["advantage"].to_ndarray().tobytes() != before.tobytes()
    assert_as_new(other, batch)


def test_the_result_has_the_branches_of_the_batch_that_was_given() -> None:
    batch, estimate = make_batch(), EstimateAdvantage()
    first = estimate(batch)
    batch["more"] = Array((T, B), np.float32)
    second = estimate(batch)
    assert "more" not in first
    assert second["more"] is batch["more"]
    assert "advantage" not in batch
    assert second["advantage"] is first["advantage"]


@each_schedule
@pytest.mark.parametrize("kind", all_but_first(["device", "managed", "pinned"]))
@pytest.mark.parametrize("n_windows", [1, 3])
def test_memory_of_a_gpu_is_found_again(
    kind: str, n_windows: int, schedule: str, seed: int
) -> None:
    with simulated_cuda(schedule, seed):
        batch, estimate = make_batch(kind, full_size=n_windows * T), EstimateAdvantage()
        for number in range(5):
            batch.rotate()
            cuda.synchronize()  # the host may write now, where it can
            fill(batch, number)
            assert_as_new(estimate, batch)
            cuda.synchronize()


def test_rows_that_are_copied_to_be_read_are_copied_each_time() -> None:
    whole, estimate = make_batch(n_envs=4), EstimateAdvantage()
    value = make_batch(n_envs=2)["agent_info"]["value"]
    parts = {name: whole[name][:, 1:3] for name in NAMES[:-1]}
    batch = ArrayDict({**parts, "agent_info": {"value": value}})
    for seed in range(3):
        fill(whole, seed)
        assert_as_new(estimate, batch)


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))]
)
def test_a_copy_together_with_its_batch_belongs_to_it(make_copy: Any) -> None:
    """Pickled, shared memory is the same, and the arrays over it that were prepared are not."""
    batch, estimate = make_batch("shared"), EstimateAdvantage()
    fill(batch, 0)
    estimate(batch)
    other, own = make_copy((estimate, batch))
    fill(own, 1)
    assert_as_new(other, own)
    assert_as_new(estimate, batch)

"""Advantages of batches in which rows are no transitions, against loops over the steps."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order

from parllel import Array, ArrayDict
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.transforms import EstimateAdvantage

T, B = 12, 7
DISCOUNT, LAMBDA = 0.9, 0.7


def make_batch(storage: str, seed: int) -> ArrayDict:
    """Return a batch whose rows that are not valid hold NaN, but for values."""
    rng = np.random.default_rng(seed)
    valid = rng.random((T, B)) < 0.7
    leaves: dict[str, Any] = {"valid": valid}
    leaves |= {name: rng.random((T, B)) < 0.15 for name in ("terminated", "truncated")}
    leaves["reward"] = np.where(valid, rng.standard_normal((T, B)), np.nan).astype(np.float32)
    is_used = leaves["truncated"] & valid
    leaves["final_value"] = np.where(is_used, rng.random((T, B)), np.nan).astype(np.float32)
    batch = ArrayDict(
        {name: Array.from_numpy(leaf, storage=storage) for name, leaf in leaves.items()}
    )
    value = Array((T, B), np.float32, padding=1, storage=storage)
    value[: T + 1] = rng.standard_normal((T + 1, B)).astype(np.float32)
    batch["agent_info"] = ArrayDict({"value": value})
    return batch


def reference(batch: dict[str, Any], value: Any) -> Any:
    """Return advantages, step by step; a row that is not valid ends what comes before it."""
    advantage = np.zeros((T, B))
    for b in range(B):
        for t in reversed(range(T)):
            if not batch["valid"][t, b]:
                continue
            is_cut = t + 1 < T and not batch["valid"][t + 1, b]
            following, carry = value[t + 1, b], 0.0
            if batch["terminated"][t, b]:
                following = 0.0
            elif batch["truncated"][t, b]:
                following = batch["final_value"][t, b]
            elif not is_cut and t + 1 < T:
                carry = advantage[t + 1, b]
            delta = batch["reward"][t, b] + DISCOUNT * following - value[t, b]
            advantage[t, b] = delta + DISCOUNT * LAMBDA * carry
    return advantage


@pytest.mark.parametrize("storage", ["local", "device"])
def test_rows_that_are_not_valid_end_episodes_and_get_nothing(storage: str) -> None:
    with simulated_cuda("lazy") if storage == "device" else nullcontext():
        for seed in range(5):
            batch = make_batch(storage, seed)
            leaves = {name: batch[name].to_ndarray() for name in batch if name != "agent_info"}
            value = batch["agent_info"]["value"][: T + 1].to_ndarray().astype(np.float64)
            expected = reference(leaves, value)
            found = EstimateAdvantage(discount=DISCOUNT, gae_lambda=LAMBDA)(batch)
            np.testing.assert_allclose(found["advantage"].to_ndarray(), expected, atol=1e-5)
            returns = np.where(leaves["valid"], expected + value[:T], 0)
            np.testing.assert_allclose(found["return_"].to_ndarray(), returns, atol=1e-5)


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (np.ones((T, B), np.uint8), TypeError, r"^valid: dtype uint8, expected bool"),
        (np.zeros((T - 1, B), bool), ValueError, r"^valid: got rows \(11, 7\), expected \(12, 7\)"),
        (np.zeros((T, B, 2), bool), ValueError, r"^valid: got agents \(2,\) behind T and B"),
    ],
)
@pytest.mark.parametrize("storage", ["local", "device"])
def test_a_mask_of_another_form_is_refused(
    storage: str, valid: Any, error: type[Exception], message: str
) -> None:
    with simulated_cuda("lazy") if storage == "device" else nullcontext():
        batch = make_batch(storage, 0)
        batch["valid"] = Array.from_numpy(valid, storage=storage)
        with pytest.raises(error, match=message):
            EstimateAdvantage()(batch)

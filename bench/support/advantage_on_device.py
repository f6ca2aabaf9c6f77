"""Advantage estimation on a GPU: one launch, against torch and a copy of as many bytes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from parllel import cuda
from parllel.ops.advantage import estimate_advantage
from support.advantage_batch import DISCOUNT, GAE_LAMBDA, numpy_loop, random_batch
from support.device_report import DeviceReport, device_copy

OURS, TORCH, COPY = "parllel", "torch, loop over time", "copy"


def race_advantages(report: DeviceReport, sizes: Sequence[tuple[int, int]]) -> None:
    """Add a table for each size (T, B) to a report."""
    for size in sizes:
        batches = {name: [cuda.to_device(each) for each in random_batch(*size)] for name in CALLS}
        calls = {name: make(batches[name]) for name, make in CALLS.items()}
        check_results(size, batches, calls)
        nbytes = sum(array.nbytes for array in batches[OURS])
        report.race(
            f"(T, B) = {size}",
            {**calls, COPY: device_copy(nbytes // 2)},
            nbytes=nbytes,
            references=(TORCH, COPY),
        )


def check_results(
    size: tuple[int, int],
    batches: dict[str, list[Any]],  # Any: cupy.ndarray
    calls: dict[str, Callable[[], object]],
) -> None:
    """Refuse a contestant that computes something else; small differences are roundings."""
    expected = random_batch(*size)
    numpy_loop(*expected, np.float32(DISCOUNT), np.float32(DISCOUNT * GAE_LAMBDA))
    for name, call in calls.items():
        call()
        for ours, theirs in zip(batches[name][5:], expected[5:], strict=True):
            np.testing.assert_allclose(
                cuda.to_host(ours), theirs, rtol=1e-4, atol=1e-4, err_msg=name
            )


def estimate_ours(batch: list[Any]) -> Callable[[], object]:  # Any: as above
    *inputs, out_advantage, out_return = batch

    def estimate() -> None:
        estimate_advantage(
            *inputs,
            discount=DISCOUNT,
            gae_lambda=GAE_LAMBDA,
            out_advantage=out_advantage,
            out_return=out_return,
        )

    return estimate


def estimate_by_torch(batch: list[Any]) -> Callable[[], object]:  # Any: as above
    tensors = [cuda.tensor_over(array) for array in batch]
    reward, value, terminated, truncated, final_value, out_advantage, out_return = tensors

    def estimate() -> None:
        bootstrap = torch.where(truncated, final_value, value[1:])
        delta = reward - value[:-1] + torch.where(terminated, 0, DISCOUNT * bootstrap)
        decay = torch.where(terminated | truncated, 0, DISCOUNT * GAE_LAMBDA)
        carry = torch.zeros_like(reward[0])
        for t in range(len(reward) - 1, -1, -1):
            carry = torch.addcmul(delta[t], decay[t], carry, out=out_advantage[t])
        torch.add(out_advantage, value[:-1], out=out_return)

    return estimate


CALLS = {OURS: estimate_ours, TORCH: estimate_by_torch}

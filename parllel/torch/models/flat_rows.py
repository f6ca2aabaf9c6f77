"""Rows of observations as vectors, for networks that are not convolutional."""

from __future__ import annotations

import torch
from torch import Tensor


def flat_rows(rows: Tensor, n_inputs: int, dtype: torch.dtype) -> Tensor:
    """Return rows [B, ...] as [B, n_inputs] of a dtype, without a copy where they are so already.

    Integers are converted, and not scaled.

    Raises:
        ValueError: a row has another number of elements.
    """
    if rows.ndim > 2:
        rows = rows.flatten(1)
    if rows.ndim != 2 or rows.shape[1] != n_inputs:
        raise ValueError(
            f"observation: got {tuple(rows.shape)}, expected (B, {n_inputs}), or more axes with"
            " as many elements in a row; make the network with n_inputs as an observation has them"
        )
    return rows if rows.dtype == dtype else rows.to(dtype)

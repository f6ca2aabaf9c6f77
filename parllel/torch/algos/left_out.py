"""Rows that nothing is learned from: what they hold must not come into a model's gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parllel.tree import dict_map


def clear_rows(rows: Any, is_left_out: Tensor) -> Any:  # Any: a tensor, or a tree of tensors
    """Return rows with zeros where nothing is learned from them; integers stay what they are.

    A loss without such rows is not enough: their gradient of 0 times a NaN that the model made of
    them would be a NaN for all of its weights.

    >>> import torch
    >>> rows = {"speed": torch.tensor([1.0, torch.nan]), "frame": torch.ones(2).byte()}
    >>> cleared = clear_rows(rows, torch.tensor([False, True]))
    >>> cleared["speed"], cleared["frame"]
    (tensor([1., 0.]), tensor([1, 1], dtype=torch.uint8))

    Args:
        rows: [..., F...] for each leaf of a tree, or of one tensor.
        is_left_out: bool [...].
    """
    return dict_map(_clear, rows, is_left_out)


def _clear(leaf: Tensor, is_left_out: Tensor) -> Tensor:
    if not leaf.is_floating_point():
        return leaf
    n_more = leaf.ndim - is_left_out.ndim
    return leaf.masked_fill(is_left_out.reshape(*is_left_out.shape, *[1] * n_more), 0)

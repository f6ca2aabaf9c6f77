"""Rows that nothing is learned from: what they hold must not come into a model's gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parllel.arrays import Jagged
from parllel.tree import dict_map


def finite_rows(rows: Any, is_left_out: Tensor) -> Any:  # Any: as for `clear_rows`
    """Return rows with 0 for what is not finite where nothing is learned from them.

    What is finite stays: what is learned of other agents may depend on it, as when they acted. So
    does a leaf that has no such rows, as one that is of all agents.
    """
    return dict_map(_make_finite, rows, is_left_out)


def _make_finite(leaf: Any, is_left_out: Tensor) -> Any:  # Any: a tensor, or a Jagged of them
    if isinstance(leaf, Jagged):
        is_alike = leaf.batch_shape == is_left_out.shape
        return _of_elements(_make_finite, leaf, is_left_out) if is_alike else leaf
    if not leaf.is_floating_point() or leaf.shape[: is_left_out.ndim] != is_left_out.shape:
        return leaf
    n_more = leaf.ndim - is_left_out.ndim
    left_out = is_left_out.reshape(*is_left_out.shape, *[1] * n_more)
    return leaf.masked_fill(left_out & ~leaf.isfinite(), 0)


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
        rows: [..., F...] for each leaf of a tree, or of one tensor; a Jagged has elements [...].
        is_left_out: bool [...].
    """
    return dict_map(_clear, rows, is_left_out)


def _clear(leaf: Any, is_left_out: Tensor) -> Any:  # Any: a tensor, or a Jagged of tensors
    if isinstance(leaf, Jagged):
        return _of_elements(_clear, leaf, is_left_out)
    if not leaf.is_floating_point():
        return leaf
    n_more = leaf.ndim - is_left_out.ndim
    return leaf.masked_fill(is_left_out.reshape(*is_left_out.shape, *[1] * n_more), 0)


def _of_elements(change: Callable[[Any, Tensor], Any], leaf: Jagged, is_left_out: Tensor) -> Jagged:
    """Change the rows of the elements [...] of a Jagged that are left out."""
    if not leaf.dtype.is_floating_point:
        return leaf
    packed = leaf.packed()
    values = change(packed.values, is_left_out.flatten()[packed.segment_ids()])
    return Jagged(values, packed.offsets, None, packed.batch_shape)


def where_valid(valid: Tensor | None, numbers: Tensor) -> Tensor:
    """Return numbers with 0 in rows that are not valid, whatever these hold.

    No NaN goes back through them either, as it would from 0 * (a loss of NaN).
    """
    return numbers if valid is None else torch.where(valid, numbers, 0)


def mean_of_valid(numbers: Tensor, valid: Tensor | None, n_valid: Tensor | None = None) -> Tensor:
    """Return the mean over the rows that are valid; 0 where none is.

    >>> mean_of_valid(torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([True, False, True]))
    tensor(2.)

    Args:
        numbers: float32 [...].
        valid: bool [...]; None where all are.
        n_valid: what the sum is divided by, where it is not the number of these: of several ranks,
            the mean of their numbers. Then a mean over ranks is one over all rows of them.
    """
    if n_valid is not None:
        return where_valid(valid, numbers).sum() / (n_valid + (n_valid == 0))
    if valid is None:
        return numbers.mean()
    return where_valid(valid, numbers).sum() / valid.sum().clamp(min=1)

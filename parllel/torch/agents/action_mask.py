"""The leaf `action_mask` of observations: which actions an environment allows in each row."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ACTION_MASK = "action_mask"


def find_mask(rows: object) -> Tensor | None:
    """Return the leaf `action_mask` of rows of observations; None where there is none.

    Args:
        rows: a tensor, or a tree of tensors. The mask lies at its top.

    Raises:
        TypeError: the mask is a tree, or has another dtype than bool or integers.

    Example:
        >>> import torch
        >>> rows = {"observation": torch.zeros(1, 3), "action_mask": torch.tensor([[True, False]])}
        >>> find_mask(rows)
        tensor([[ True, False]])
        >>> find_mask(rows["observation"]) is None
        True
    """
    if not isinstance(rows, Mapping) or ACTION_MASK not in rows:
        return None
    mask = rows[ACTION_MASK]
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"action_mask: got {kind}, expected one leaf of bool or integers")
    return mask


def mask_for(rows: object, *, is_expected: bool) -> Tensor | None:
    """Return what `find_mask` does, for rows that have a mask if the agent's example had one.

    Args:
        rows: as for `find_mask`.
        is_expected: whether the example has a mask.

    Raises:
        TypeError: as for `find_mask`.
        ValueError: there is a mask, and the example has none; or the other way round.
    """
    mask = find_mask(rows)
    if (mask is not None) is not is_expected:
        found, expected = ("none", "one") if is_expected else ("one", "none")
        raise ValueError(
            f"action_mask: got {found} with the observations, expected {expected} as with the"
            " example that the agent was made with (example_obs); give both alike"
        )
    return mask

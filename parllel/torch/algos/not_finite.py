"""The first number of a batch that is NaN or infinite: found when a loss has told of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import nn

from parllel.tree import ArrayDict, Rows, leaves_of, path_text
from parllel.tree.leaves import as_ndarray
from parllel.tree.valid_rows import valid_rows

# Causes first: a reward that is NaN makes NaN of advantages.
_BRANCHES = ("observation", "action", "reward", "agent_info", "final_value", "return_", "advantage")


def find_not_finite(batch: ArrayDict) -> str | None:
    """Return where the first NaN or infinity among a batch's valid rows is; None if there is none.

    Entries of `env_info` may be NaN, and nothing learns from `final_value` but at steps that
    truncated an episode: these are not looked at. The host waits for what is in memory of a GPU.

    Example:
        >>> batch = ArrayDict({"reward": np.array([[0, 1], [2, np.inf]])})
        >>> find_not_finite(batch)
        'reward is inf in row t = 1 of environment 1'
    """
    valid = valid_rows(batch)
    for path, leaf in _floats(batch):
        values = as_ndarray(leaf)
        is_bad = ~np.isfinite(values)
        is_bad &= _over(values, valid)
        if path == ("final_value",):
            is_bad &= _over(values, _is_bootstrapped(batch))
        if is_bad.any():
            first = np.unravel_index(int(is_bad.argmax()), is_bad.shape)
            t, b, *inner = map(int, first)
            element = f", element {tuple(inner)}" if inner else ""
            where = f"in row t = {t} of environment {b}{element}"
            return f"{path_text(path)} is {values[first]} {where}"
    return None


def parameter_not_finite(model: object) -> str | None:
    """Return the name of a model's first parameter that has a NaN or an infinity; None for none."""
    parameters = model.named_parameters() if isinstance(model, nn.Module) else iter(())
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            return name
    return None


def _floats(batch: ArrayDict) -> Iterator[tuple[tuple[str, ...], Rows]]:
    for name in _BRANCHES:
        for path, leaf in leaves_of(batch[name]) if name in batch else ():
            if np.issubdtype(as_ndarray(leaf).dtype, np.floating):
                yield (name, *path), leaf


def _is_bootstrapped(batch: ArrayDict) -> NDArray[np.bool_]:
    is_bootstrapped: NDArray[np.bool_] = as_ndarray(batch["truncated"]) & ~as_ndarray(
        batch["terminated"]
    )
    return is_bootstrapped


def _over(values: NDArray[np.floating], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return a mask of rows with axes of length 1 for what each row holds."""
    if mask is None:
        return np.ones((1,) * values.ndim, np.bool_)
    return mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))

"""What a replay buffer asks of a sample tree and of its own numbers: checks that explain."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from parllel.arrays import Array
from parllel.tree import ArrayDict, leaves_of, path_text
from parllel.tree.leaves import describe_leaf

_MOST_SLOTS = 2**31 - 1  # their numbers are int32


def check_tree(samples: ArrayDict) -> None:
    """Raise unless a tree has the branches, the ring and the padding that a buffer reads."""
    missing = [
        name for name in ("observation", "reward", "terminated", "truncated") if name not in samples
    ]
    if missing:
        raise ValueError(f"samples: branches {missing} are missing")
    for path, leaf in samples.walk():
        if not isinstance(leaf, Array):
            raise TypeError(f"{path_text(path)}: got a {type(leaf).__name__}, expected an Array")
    _check_steps(samples)
    rings = {
        path_text(path): (*leaf.batch_shape[:2], leaf.full_size) for path, leaf in samples.walk()
    }
    if len(set(rings.values())) != 1:
        raise ValueError(f"samples: got (T, B, full_size) of {rings}, expected the same for all")
    for path, leaf in samples.walk():
        if leaf.n_older_steps and len(leaf.batch_shape) != 2:
            raise ValueError(
                f"{path_text(path)}: got stacks of batch dimensions {leaf.batch_shape}, expected"
                " (T, B); make the others a part of the frame: its feature_shape"
            )
    for path, leaf in leaves_of(samples["observation"]):
        if leaf.padding < 1:
            text = path_text(("observation", *path))
            raise ValueError(
                f"{text}: got padding 0, expected 1 or more: the last step's next observation lies"
                " behind the ring"
            )


def check_names(samples: ArrayDict, own: Iterable[str]) -> None:
    """Raise where a tree has branches of the same names as what minibatches have beside it."""
    taken = [name for name in own if name in samples and name not in ("terminated", "truncated")]
    if taken:
        raise ValueError(f"samples: minibatches have branches {taken} of their own; rename these")


def _check_steps(samples: ArrayDict) -> None:
    """Refuse leaves that the kernel can't read."""
    for name in ("reward", "terminated", "truncated", *(["valid"] if "valid" in samples else [])):
        leaf, dtype = samples[name], np.dtype(np.float32 if name == "reward" else bool)
        if not isinstance(leaf, Array) or leaf.ndim != 2 or leaf.dtype != dtype:
            found = " ".join(describe_leaf(leaf)[:2])
            raise ValueError(f"{name}: got {found}, expected an Array {dtype} (T, B)")


def check_numbers(n_steps: int, n_final_obs: int | None, full_size: int) -> None:
    """Raise unless numbers are in range."""
    if not 1 <= n_steps <= full_size:
        raise ValueError(
            f"n_steps: got {n_steps}, expected 1 to {full_size} = full_size, the steps of the ring"
        )
    if n_final_obs is not None and not 1 <= n_final_obs <= _MOST_SLOTS:
        raise ValueError(f"n_final_obs: got {n_final_obs}, expected 1 to {_MOST_SLOTS}")

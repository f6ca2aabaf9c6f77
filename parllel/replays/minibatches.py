"""Minibatches: random parts of a batch, gathered for learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.tree import ArrayDict


class Minibatches:
    """Iterate over a batch in random parts; each pass visits every row once.

    The T and B dimensions are flattened. All minibatches of one object have the same size and
    are gathered into the same memory: each overwrites the one before.

    Args:
        batch: tree of leaves [T, B, ...].
        n_minibatches: parts of a pass. Rows that do not fill a whole part are left out, other
            ones in each pass.
        rng: draws the order.

    Raises:
        ValueError: there are fewer rows than minibatches.
    """

    def __init__(self, batch: ArrayDict, n_minibatches: int, rng: np.random.Generator) -> None:
        self._flat = batch.to_ndarray().apply(_flatten)
        self._n_rows = len(next(leaf for _, leaf in self._flat.walk()))
        if not 1 <= n_minibatches <= self._n_rows:
            raise ValueError(
                f"n_minibatches: got {n_minibatches}, expected 1 to {self._n_rows}, the rows of"
                " the batch"
            )
        self._size = self._n_rows // n_minibatches
        self._n_minibatches = n_minibatches
        self._rng = rng
        self._out = self._flat.apply(_empty_like_rows, self._size)
        self._copies = [
            (leaf, out)
            for (_, leaf), (_, out) in zip(self._flat.walk(), self._out.walk(), strict=True)
        ]
        self._tensors = self._out.to_torch()

    def __len__(self) -> int:
        return self._n_minibatches

    def __iter__(self) -> Iterator[ArrayDict]:
        """Yield trees of torch tensors [rows, ...], in a new random order."""
        order = self._rng.permutation(self._n_rows)
        for number in range(self._n_minibatches):
            rows = order[number * self._size : (number + 1) * self._size]
            for leaf, out in self._copies:
                # "clip" writes into `out` at once; "raise" would go through a temporary.
                np.take(leaf, rows, axis=0, out=out, mode="clip")
            yield self._tensors


def _flatten(leaf: NDArray[Any]) -> NDArray[Any]:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _empty_like_rows(leaf: NDArray[Any], n_rows: int) -> NDArray[Any]:
    return np.empty((n_rows, *leaf.shape[1:]), leaf.dtype)

"""Minibatches: random parts of a batch, gathered for learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.tree import ArrayDict


class Minibatches:
    """Cut batches into random parts; each pass over a batch visits every row once.

    The T and B dimensions are flattened. All minibatches have the same size and are gathered into
    the same memory, which is kept from batch to batch: each overwrites the one before.

    Args:
        n_minibatches: parts of a pass. Rows that do not fill a whole part are left out, other
            ones in each pass.
        rng: draws the order.

    Raises:
        ValueError: n_minibatches is not positive.
    """

    def __init__(self, n_minibatches: int, rng: np.random.Generator) -> None:
        if n_minibatches < 1:
            raise ValueError(f"n_minibatches: got {n_minibatches}, expected 1 or more")
        self._n_minibatches = n_minibatches
        self._rng = rng
        self._out: dict[str, NDArray[Any]] = {}
        self._tensors = ArrayDict()

    def of(self, batch: ArrayDict) -> Iterator[ArrayDict]:
        """Yield one pass over a batch, in a new random order.

        Args:
            batch: tree of leaves [T, B, ...].

        Yields:
            Trees of torch tensors [rows, ...], rows = T * B // n_minibatches.

        Raises:
            ValueError: the batch has fewer rows than minibatches.
        """
        flat = batch.to_ndarray().apply(_flatten)
        n_rows = len(next(leaf for _, leaf in flat.walk()))
        size = n_rows // self._n_minibatches
        if not size:
            raise ValueError(
                f"n_minibatches: got {self._n_minibatches}, expected at most {n_rows}, the rows of"
                " the batch"
            )
        self._keep_outputs(flat, size)
        order = self._rng.permutation(n_rows)
        for number in range(self._n_minibatches):
            rows = order[number * size : (number + 1) * size]
            for path, leaf in flat.walk():
                # "clip" writes into `out` at once; "raise" would go through a temporary.
                np.take(leaf, rows, axis=0, out=self._out[path], mode="clip")
            yield self._tensors

    def _keep_outputs(self, flat: ArrayDict, size: int) -> None:
        """Allocate the outputs, unless those of the last batch fit."""
        wanted = {path: (leaf.dtype, (size, *leaf.shape[1:])) for path, leaf in flat.walk()}
        if wanted != {path: (out.dtype, out.shape) for path, out in self._out.items()}:
            outputs = flat.apply(_empty_rows, size)
            self._out = dict(outputs.walk())
            self._tensors = outputs.to_torch()


def _flatten(leaf: NDArray[Any]) -> NDArray[Any]:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _empty_rows(leaf: NDArray[Any], n_rows: int) -> NDArray[Any]:
    return np.empty((n_rows, *leaf.shape[1:]), leaf.dtype)

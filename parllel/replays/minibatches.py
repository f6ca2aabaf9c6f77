"""Minibatches: random parts of a batch, gathered for learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.tree import ArrayDict
from parllel.tree.leaves import empty_rows


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
        self._out = ArrayDict()
        self._tensors = ArrayDict()

    def of(self, batch: ArrayDict) -> Iterator[ArrayDict]:
        """Yield one pass over a batch, in a new random order.

        Args:
            batch: tree of leaves [T, B, ...].

        Yields:
            Trees of torch tensors [rows, ...], rows = T * B // n_minibatches.

        Raises:
            ValueError: the batch has fewer rows than minibatches, no leaf, or leaves with
                different numbers of rows.
        """
        flat = batch.to_ndarray().apply(_flatten)
        n_rows = _count_rows(flat)
        size = n_rows // self._n_minibatches
        if not size:
            raise ValueError(
                f"n_minibatches: got {self._n_minibatches}, expected at most {n_rows}, the rows of"
                " the batch"
            )
        copies = self._find_outputs(flat, size)
        order = self._rng.permutation(n_rows)
        for number in range(self._n_minibatches):
            rows = order[number * size : (number + 1) * size]
            for leaf, out in copies:
                # "clip" writes into `out` at once; "raise" would go through a temporary.
                np.take(leaf, rows, axis=0, out=out, mode="clip")
            yield self._tensors

    def _find_outputs(self, flat: ArrayDict, size: int) -> list[tuple[Any, Any]]:
        """Return each leaf with its output: that of the last batch if all of them fit."""
        leaves = [leaf for _, leaf in flat.walk()]
        wanted = [(path, leaf.dtype, (size, *leaf.shape[1:])) for path, leaf in flat.walk()]
        if wanted != [(path, out.dtype, out.shape) for path, out in self._out.walk()]:
            self._out = flat.apply(empty_rows, size)
            self._tensors = self._out.to_torch()
        return list(zip(leaves, (out for _, out in self._out.walk()), strict=True))


def _count_rows(flat: ArrayDict) -> int:
    """Return the rows that all leaves have."""
    counts = {path: len(leaf) for path, leaf in flat.walk()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"batch: got leaves of {counts} rows, expected as many in all, and a leaf")
    return next(iter(counts.values()))


def _flatten(leaf: NDArray[Any]) -> NDArray[Any]:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])

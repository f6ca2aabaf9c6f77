"""Minibatches: random parts of a batch, which are gathered for learning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parllel.arrays import Array, ArraySpec, Leaf
from parllel.arrays.interop import flat_rows, side_of, to_device
from parllel.cuda import AnyArray
from parllel.ops.stack_gather import RowSource
from parllel.replays.batch_parts import BatchParts
from parllel.replays.random_shift import RandomShift, shift_images
from parllel.storages import Side, storage_for
from parllel.tree import ArrayDict, allocate_tree, path_text
from parllel.tree.leaves import as_ndarray
from parllel.tree.valid_rows import valid_rows


class Minibatches:
    """Cut batches into random parts; each pass over a batch visits every row once.

    The T and B dimensions are flattened: a row is one environment's step. All minibatches have the
    same size and are gathered into the same memory, which is kept from batch to batch: each
    minibatch overwrites the one before. A batch in device memory is gathered there, with one
    launch for each minibatch and one copy of the order for each pass, in the caller's current
    stream; the host does not wait.

    Where a batch has a branch `valid`, bool [T, B], rows that are not valid are left out of all
    minibatches. The host reads that branch once for each batch: in memory of a GPU it waits for
    the current stream.

    Args:
        n_minibatches: number of parts of a pass. Rows that do not fill a whole part are left out;
            in each pass these are other rows.
        rng: generator of the order of rows.
        shift: how the images of the branch `observation` are shifted at random, anew in each pass;
            None for not at all. With it, a pass draws a key, too, and copies it to a device.

    Raises:
        TypeError: rng is no generator of NumPy.
        ValueError: n_minibatches is not positive.

    >>> batch = ArrayDict({"reward": Array.from_numpy(np.arange(6).reshape(3, 2))})
    >>> minibatches = Minibatches(2, np.random.default_rng(0))
    >>> sorted(number for part in minibatches.of(batch) for number in part["reward"].tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self, n_minibatches: int, rng: np.random.Generator, *, shift: RandomShift | None = None
    ) -> None:
        if n_minibatches < 1:
            raise ValueError(f"n_minibatches: got {n_minibatches}, expected 1 or more")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng: got {rng!r}, expected a numpy.random.Generator;"
                " numpy.random.default_rng(0) makes one"
            )
        self._n_minibatches = n_minibatches
        self._rng = rng
        self._shift = shift
        self._form: object = None  # of the batches that the outputs fit
        self._names: list[str] = []  # of the leaves
        self._written: list[AnyArray] = []  # the outputs, as NumPy's or CuPy's arrays
        self._tensors = ArrayDict()  # the outputs, as torch's

    def of(self, batch: ArrayDict, *, n_passes: int = 1) -> Iterator[ArrayDict]:
        """Yield the minibatches of some passes over a batch, each in a new random order.

        Args:
            batch: tree of leaves [T, B, ...], which must not change before the last minibatch.
            n_passes: number of passes.

        Yields:
            Trees of torch tensors [rows, ...], rows = T * B // n_minibatches; of a batch with
            rows that are not valid, the number of the others // n_minibatches.

        Raises:
            TypeError: a part of the batch is in device memory, and another one where no GPU can
                use it.
            ValueError: the batch has fewer valid rows than minibatches, no leaf, or leaves with
                different numbers of rows; or no images that can be shifted.
        """
        parts = self.bind(batch)
        for _ in range(n_passes):
            parts.shuffle()
            for number in range(self._n_minibatches):
                yield parts.gather(number)

    def bind(self, batch: ArrayDict) -> BatchParts:
        """Return the parts of a batch, for a loop that gathers them itself, or captures that.

        Args:
            batch: as for `of`. Its rows have to stay where they are; their values may change.

        Raises:
            TypeError, ValueError: as for `of`.
        """
        side: Side = "gpu" if any(side_of(leaf) == "gpu" for _, leaf in batch.walk()) else "host"
        flat = batch.apply(_flatten, side)
        if self._shift is not None:
            flat = shift_images(flat, self._shift, {"observation": 0})
        n_rows = _count_rows(flat)
        valid = valid_rows(batch)
        rows = np.arange(n_rows) if valid is None else np.flatnonzero(valid)
        size = len(rows) // self._n_minibatches
        if not size:
            which = "rows of the batch" + (" that are valid" if valid is not None else "")
            raise ValueError(
                f"n_minibatches: got {self._n_minibatches}, expected at most {len(rows)}, the"
                f" {which}"
            )
        self._fit_outputs(flat, size, side)
        return BatchParts(
            batch,
            [rows for _, rows in flat.walk()],
            self._written,
            self._names,
            rows=rows,
            rng=self._rng,
            tensors=self._tensors,
            side=side,
            n_shifted=0 if self._shift is None else self._n_minibatches,
        )

    def _fit_outputs(self, flat: ArrayDict, size: int, side: Side) -> None:
        """Keep the outputs of the last batch if all of them fit."""
        form = side, size, [(path, rows.dtype, rows.shape[1:]) for path, rows in flat.walk()]
        if form == self._form:
            return
        outputs = allocate_tree(flat.apply(_spec, size), storage_for(side))
        written = outputs.to_cupy() if side == "gpu" else outputs.to_ndarray()
        self._written = [array for _, array in written.walk()]
        self._names = [path_text(path) for path, _ in flat.walk()]
        self._tensors = outputs.to_torch()
        self._form = form


def _flatten(leaf: Leaf, side: Side) -> RowSource:
    """Return the rows of a leaf of any library, with T and B as one dimension."""
    if isinstance(leaf, Array):
        return leaf.row_source(side)
    return RowSource(flat_rows(to_device(leaf) if side == "gpu" else as_ndarray(leaf)))


def _spec(rows: RowSource, size: int) -> ArraySpec:
    return ArraySpec.of((size,), rows.dtype, rows.shape[1:])


def _count_rows(flat: ArrayDict) -> int:
    """Return the number of rows, which all leaves must have."""
    sizes = {len(leaf) for _, leaf in flat.walk()}
    if len(sizes) != 1:
        counts = {path_text(path): len(leaf) for path, leaf in flat.walk()}
        raise ValueError(f"batch: got leaves of {counts} rows, expected as many in all, and a leaf")
    return sizes.pop()

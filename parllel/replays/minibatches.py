"""Minibatches: random parts of a batch, which are gathered for learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parllel.arrays import Array, Jagged, Leaf
from parllel.arrays.interop import flat_rows, side_of, to_device
from parllel.ops.sides import contiguous
from parllel.ops.stack_gather import RowSource
from parllel.replays.batch_parts import BatchParts
from parllel.replays.env_parts import EnvParts
from parllel.replays.minibatch_outputs import FixedTensors, output_spec
from parllel.replays.random_shift import RandomShift, shift_images
from parllel.storages import Side, storage_for
from parllel.tree import ArrayDict, allocate_tree, path_text
from parllel.tree.leaves import as_ndarray
from parllel.tree.valid_rows import valid_rows

_STATE = "initial_rnn_state"  # the branch that has a row for each environment, not for each step


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

    With `whole_envs`, the batch is cut by environments: each minibatch has all T steps of some of
    them, for agents that go on from a state. Rows stay time-major, [T, environments, ...], and rows
    that are not valid stay in their places: `valid` tells them, and a learner leaves them out of
    its means. The branch `initial_rnn_state` [B, ...], if there is one, comes as [environments,
    ...], for which there is a second launch.

    Args:
        n_minibatches: number of parts of a pass. Rows (with `whole_envs`, environments) that do not
            fill a whole part are left out; in each pass these are other ones.
        rng: generator of the order of rows, or of environments.
        shift: how the images of the branch `observation` are shifted at random, anew in each pass;
            None for not at all. With it, a pass draws a key, too, and copies it to a device.
        whole_envs: whether a minibatch has all steps of some environments.

    Raises:
        TypeError: rng is no generator of NumPy.
        ValueError: n_minibatches is not positive.

    >>> batch = ArrayDict({"reward": Array.from_numpy(np.arange(6).reshape(3, 2))})
    >>> minibatches = Minibatches(2, np.random.default_rng(0))
    >>> sorted(number for part in minibatches.of(batch) for number in part["reward"].tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        n_minibatches: int,
        rng: np.random.Generator,
        *,
        shift: RandomShift | None = None,
        whole_envs: bool = False,
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
        self._whole_envs = whole_envs
        self._form: object = None  # of the batches that the outputs fit
        self._names: list[str] = []  # of the leaves
        self._written: list[Any] = []  # the outputs, as gathers write them
        self._present: Callable[[], ArrayDict] = ArrayDict  # returns the outputs as tensors

    def of(self, batch: ArrayDict, *, n_passes: int = 1) -> Iterator[ArrayDict]:
        """Yield the minibatches of some passes over a batch, each in a new random order.

        Args:
            batch: tree of leaves [T, B, ...], which must not change before the last minibatch.
            n_passes: number of passes.

        Yields:
            Trees of torch tensors [rows, ...], rows = T * B // n_minibatches; of a batch with
            rows that are not valid, the number of the others // n_minibatches. With `whole_envs`
            [T, environments, ...], environments = B // n_minibatches. Elements of different length
            are a packed `Jagged`; in memory of a GPU, the host waits to know how many items.

        Raises:
            TypeError: a part of the batch is in device memory, and another one where no GPU can
                use it.
            ValueError: the batch has fewer valid rows (or environments) than minibatches, no leaf,
                or leaves with different numbers of rows; or no images that can be shifted.
        """
        parts = self._bind(batch)
        for _ in range(n_passes):
            parts.shuffle()
            for number in range(self._n_minibatches):
                yield parts.gather(number)

    def bind(self, batch: ArrayDict) -> BatchParts:
        """Return the parts of a batch, for a loop that gathers them itself, or captures that.

        Args:
            batch: as for `of`. Its rows have to stay where they are; their values may change.

        Raises:
            TypeError, ValueError: as for `of`; or a leaf's memory may grow.
        """
        for path, leaf in batch.walk():
            if isinstance(leaf, Array) and leaf.may_move:
                raise ValueError(
                    f"{path_text(path)}: got a {type(leaf).__name__} whose memory may grow, so that"
                    ' what is written later would be missed; choose on_overflow="raise" or "drop"'
                )
        return self._bind(batch)

    def _bind(self, batch: ArrayDict) -> BatchParts:
        side: Side = "gpu" if any(side_of(leaf) == "gpu" for _, leaf in batch.walk()) else "host"
        has_state = self._whole_envs and _STATE in batch
        states = ArrayDict({_STATE: batch[_STATE]} if has_state else {})
        steps = ArrayDict({name: batch[name] for name in batch if name not in states})
        flat = steps.apply(_flatten, side)
        if self._shift is not None:
            flat = shift_images(flat, self._shift, {"observation": 0})
        n_rows = _count_rows(flat)
        if self._whole_envs:
            return self._bind_envs(steps, flat, states.apply(_rows_of, side), side)
        valid = valid_rows(batch)
        rows = np.arange(n_rows) if valid is None else np.flatnonzero(valid)
        which = "rows of the batch" + (" that are valid" if valid is not None else "")
        size = self._size_of_part(len(rows), which)
        self._fit_outputs(flat, size, side)
        return BatchParts(batch, *self._gathered(flat), rows=rows, size=size, **self._drawn(side))

    def _bind_envs(
        self, batch: ArrayDict, flat: ArrayDict, states: ArrayDict, side: Side
    ) -> EnvParts:
        """Return the parts of a batch that have whole environments.

        Args:
            batch: the branches that have a row for each step.
            flat: their rows.
            states: the rows of the others.
            side: the side that gathers.
        """
        n_steps, n_columns = _batch_shape(batch)
        n_envs = self._size_of_part(n_columns, "environments of the batch")
        for path, rows in states.walk():
            if len(rows) != n_columns:
                raise ValueError(
                    f"{path_text(path)}: got {len(rows)} rows, expected {n_columns}, one for each"
                    " environment"
                )
        self._fit_outputs(flat, n_steps * n_envs, side, states, n_steps)
        return EnvParts(
            batch,
            *self._gathered(flat),
            rows=np.arange(n_columns),
            size=n_steps * n_envs,
            n_steps=n_steps,
            n_envs=n_envs,
            states=[rows for _, rows in states.walk()],
            out_states=self._written[len(self._names) :],
            **self._drawn(side),
        )

    def _size_of_part(self, n_rows: int, which: str) -> int:
        size = n_rows // self._n_minibatches
        if not size:
            raise ValueError(
                f"n_minibatches: got {self._n_minibatches}, expected at most {n_rows}, the {which}"
            )
        return size

    def _gathered(self, flat: ArrayDict) -> tuple[list[RowSource], list[Any], list[str]]:
        """Return the rows of all steps, the memory of a minibatch for them, and their names."""
        sources = [rows for _, rows in flat.walk()]
        return sources, self._written[: len(sources)], self._names

    def _drawn(self, side: Side) -> dict[str, Any]:  # Any: arguments of parts
        """Return what all parts are given, whichever rows they have."""
        n_shifted = 0 if self._shift is None else self._n_minibatches
        return {"rng": self._rng, "present": self._present, "side": side, "n_shifted": n_shifted}

    def _fit_outputs(
        self,
        flat: ArrayDict,
        size: int,
        side: Side,
        states: ArrayDict | None = None,
        n_steps: int = 0,
    ) -> None:
        """Keep the outputs of the last batch if all of them fit.

        Args:
            flat: the rows of all steps.
            size: number of rows of a minibatch.
            side: the side that gathers.
            states: the rows of leaves that have one for each environment, where there are such.
            n_steps: given, rows are shown as [n_steps, size // n_steps, ...].
        """
        states = ArrayDict() if states is None else states
        form = (
            side,
            size,
            n_steps,
            [
                (path, rows.dtype, rows.shape[1:], rows.lengths is None)
                for each in (flat, states)
                for path, rows in each.walk()
            ],
        )
        if form == self._form:
            return
        specs = flat.apply(output_spec, size)
        n_envs = size // n_steps if n_steps else 0
        outputs = allocate_tree(
            ArrayDict({**specs, **states.apply(output_spec, n_envs)}), storage_for(side)
        )
        self._written = [leaf.gather_output(side) for _, leaf in outputs.walk()]
        self._names = [path_text(path) for path, _ in flat.walk()]

        names = list(flat)

        def present(tree: ArrayDict) -> ArrayDict:
            tensors = tree.to_torch()
            if not n_steps:
                return tensors
            of_steps = ArrayDict({name: tensors[name] for name in names})
            return tensors.with_branches(of_steps.apply(_unflatten, (n_steps, n_envs)))

        self._present = FixedTensors(outputs, present)
        self._form = form


def _flatten(leaf: Leaf | Jagged, side: Side) -> RowSource:
    """Return the rows of a leaf of any library, with T and B as one dimension."""
    if isinstance(leaf, Array):
        return leaf.row_source(side)
    if isinstance(leaf, Jagged):
        raise TypeError("got a Jagged, which is only read; expected an Array, such as JaggedArray")
    return RowSource(flat_rows(to_device(leaf) if side == "gpu" else as_ndarray(leaf)))


def _rows_of(leaf: Leaf, side: Side) -> RowSource:
    """Return the rows of a leaf [B, ...] that has one for each environment."""
    if side == "host":
        return RowSource(np.ascontiguousarray(as_ndarray(leaf)))
    return RowSource(contiguous(leaf.to_cupy() if isinstance(leaf, Array) else to_device(leaf)))


def _unflatten(tensor: Any, shape: tuple[int, int]) -> Any:  # Any: torch's, which is not imported
    return tensor.unflatten(0, shape)


def _batch_shape(batch: ArrayDict) -> tuple[int, int]:
    """Return T and B, in which all leaves agree that have as many rows."""
    shapes = {tuple(leaf.shape[:2]) for _, leaf in batch.walk()}
    if len(shapes) != 1:
        found = {path_text(path): tuple(leaf.shape[:2]) for path, leaf in batch.walk()}
        raise ValueError(f"batch: got leaves of {found} steps and environments, expected one shape")
    return shapes.pop()


def _count_rows(flat: ArrayDict) -> int:
    """Return the number of rows, which all leaves must have."""
    sizes = {len(leaf) for _, leaf in flat.walk()}
    if len(sizes) != 1:
        counts = {path_text(path): len(leaf) for path, leaf in flat.walk()}
        raise ValueError(f"batch: got leaves of {counts} rows, expected as many in all, and a leaf")
    return sizes.pop()

"""StepCopy: values of one time step, of any library, go to rows of a tree where the tree is."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.arrays.device_rows import locate_rows
from parllel.arrays.interop import to_host
from parllel.ops.table_copy import ENTRY_NUMBERS, Pieces, TableCopy, find_pieces, most_pieces
from parllel.tree import TreePath
from parllel.tree.fitting import MisfitError


class Place(NamedTuple):
    """Rows of a leaf that values of a step go to.

    Args:
        path: names of the leaf, for errors.
        leaf: Array [T, B, ...], whose window may move.
        shift: which row values of step t go to: `t + shift`.
    """

    path: TreePath
    leaf: Array
    shift: int = 0


class StepCopy:
    """Copies the values of time steps to a tree: on a GPU by one launch for each step.

    The launch reads the values where they lie, so they may have other addresses in each step. Its
    table is in page-locked memory, a part for each step of a batch, so that the host waits for
    nothing in between; `begin_batch` has to be called after all launches of the last batch ran.
    Values whose dtype or strides are not the tree's are converted on the device first. What is
    read stays until the launch ran, as this keeps it.

    On the host, the values are in the tree when `run` returns.

    Nothing is broadcast, and no value becomes one of another kind.

    Args:
        places: where the values go, all in memory of one side.
        n_steps: T.

    Example:
        >>> reward = Array((3, 2), np.float32)
        >>> copy = StepCopy([Place(("reward",), reward)], n_steps=3)
        >>> copy.begin_batch()
        >>> copy.run(1, [np.array([0.5, 1.5], np.float32)])
        >>> reward[1].to_ndarray()
        array([0.5, 1.5], dtype=float32)
    """

    def __init__(self, places: Sequence[Place], n_steps: int) -> None:
        self._places = list(places)
        self._n_steps = n_steps
        self._kept: deque[tuple[cuda.Event, Sequence[object]]] = deque()
        self._is_on_host = all(place.leaf.is_on_host for place in places)
        if self._is_on_host:
            return
        self._shapes = [place.leaf.shape[1:] for place in places]
        n_pieces = sum(most_pieces(place.leaf.shape[1:], place.leaf.dtype) for place in places)
        spec = ArraySpec.of((n_steps, n_pieces, ENTRY_NUMBERS), np.int64)
        self._table = Array.from_spec(spec, "pinned")
        # It keeps the table until the GPU has read it, though nothing else does.
        finalizer = weakref.finalize(self, _wait_for, self._kept, self._table)
        finalizer.atexit = False  # the process takes its memory with it
        self._copies: dict[tuple[int, tuple[Pieces, ...]], TableCopy] = {}
        self._step_nbytes = np.array([_ring_of(place.leaf).strides[0] for place in places])
        self._rings = np.array([_ring_of(place.leaf).data.ptr for place in places])
        self._first_rows = self._rings
        self._device = cuda.device_number()

    def begin_batch(self) -> None:
        """Follow the windows of the leaves. All launches of the last batch have run."""
        self._kept.clear()
        if not self._is_on_host:
            rows = np.array([place.leaf.window_begin + place.shift for place in self._places])
            self._first_rows = self._rings + rows * self._step_nbytes

    def run(self, t: int, values: Sequence[Any], n_places: int | None = None) -> None:
        """Copy values to the rows of step t, in the caller's current stream.

        Args:
            t: the step, as a row of the window.
            values: rows [B, ...] of any library on the tree's side, for each place.
            n_places: how many of the places have a value, from the first one on; all by default.

        Raises:
            MisfitError: a value has another shape than the rows, or is of another kind.
        """
        places = self._places[: n_places or len(self._places)]
        if self._is_on_host:
            for place, value in zip(places, values, strict=True):
                _copy_on_host(place, t, value)
            return
        found = [self._locate(place, value) for place, value in zip(places, values, strict=True)]
        pieces = tuple(each.pieces for each in found)
        copy = self._copies.get((t, pieces))
        if copy is None:
            table = self._table[t]
            copy = self._copies[t, pieces] = TableCopy(pieces, table.to_ndarray(), table.to_cupy())
        n = len(places)
        written = self._first_rows[:n] + t * self._step_nbytes[:n]
        read = np.array([each.address for each in found], np.int64)
        stream = copy.run(written, read, len(values[0]))
        self._keep(stream, [each.kept for each in found])

    def _locate(self, place: Place, value: Any) -> _Found:
        rows = locate_rows(value)
        shape = place.leaf.shape[1:]
        _check_form(place, shape, getattr(value, "shape", None), value)
        if rows is not None and rows.device == self._device:
            _check_kind(place, rows.dtype)
            pieces = find_pieces(rows.shape, place.leaf.dtype, rows.strides, rows.dtype)
            if pieces is not None:
                return _Found(rows.address, pieces, value)
        if (dtype := _dtype_of(value)) is not None:
            _check_kind(place, dtype)
        between = Array(shape[:1], place.leaf.dtype, feature_shape=shape[1:], storage="device")
        between[...] = value
        return self._locate(place, between)

    def _keep(self, stream: cuda.Stream, values: Sequence[object]) -> None:
        """Keep what a launch reads until it ran, and let go of what others have read."""
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()
        event = cuda.Event()
        event.record(stream)
        self._kept.append((event, values))

    def settle(self) -> None:
        """Wait until all launches ran. They did, unless a batch was cut short."""
        _wait_for(self._kept, None)

    def close(self) -> None:
        """Give back the table, after all launches have run."""
        self.settle()
        self._kept.clear()
        if not self._is_on_host:
            self._copies.clear()
            self._table.close()


def _wait_for(kept: Sequence[tuple[cuda.Event, Any]], used: object) -> None:
    """Wait for the last launch; the caller holds what it uses until then."""
    if kept and not kept[-1][0].query():
        kept[-1][0].synchronize()


class _Found(NamedTuple):
    address: int
    pieces: Pieces
    kept: object


def _dtype_of(value: Any) -> np.dtype[Any] | None:
    """Return the dtype of a value as NumPy's; None for short floats of torch, and for no array."""
    try:
        return np.dtype(str(value.dtype).removeprefix("torch."))
    except (AttributeError, TypeError):
        return None


def _ring_of(leaf: Array) -> Any:  # Any: cupy.ndarray
    return leaf.full.to_cupy()


def _copy_on_host(place: Place, t: int, value: Any) -> None:
    values: NDArray[Any] = np.asarray(to_host(value))
    rows = place.leaf[t + place.shift].to_ndarray()
    _check_form(place, rows.shape, values.shape, value)
    _check_kind(place, values.dtype)
    np.copyto(rows, values, casting="same_kind")


def _check_form(place: Place, shape: Sequence[int], found: Any, value: object) -> None:
    if found is None or tuple(found) != tuple(shape):
        got = f"a {type(value).__name__}" if found is None else f"shape {tuple(found)}"
        raise MisfitError(got, f"shape {tuple(shape)}: a row for each environment", path=place.path)


def _check_kind(place: Place, dtype: np.dtype[Any]) -> None:
    if not np.can_cast(dtype, place.leaf.dtype, "same_kind"):
        raise MisfitError(
            str(dtype),
            f"{place.leaf.dtype}, as the tree has it",
            path=place.path,
            way_out="another kind of number would lose something",
        )

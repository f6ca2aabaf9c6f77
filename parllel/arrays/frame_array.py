"""FrameArray: stacked observations whose frames are stored once; and the views of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from parllel.arrays.array import Array, ArrayView, KindSpec
from parllel.arrays.frame_buffer import Fill, FrameBuffer, FrameLayout, are_first
from parllel.arrays.frame_writer import FRAMES, IS_FIRST, PREVIOUS, FrameWriter
from parllel.arrays.interop import side_of, to_device, to_host
from parllel.arrays.location import Location, keys, row_numbers, rows_of, shift
from parllel.arrays.readable import PickedRows
from parllel.arrays.spec import ArraySpec
from parllel.arrays.window import Window
from parllel.ops.stack_gather import RowSource, as_range
from parllel.storages import Memory, Side


@dataclass(frozen=True)
class FrameSpec(KindSpec):
    """Shape, dtype, window and stacks of a FrameArray, checked; its arguments are those of it.

    >>> spec = FrameSpec.of((5, 2), "uint8", (84, 84), stack=4)
    >>> spec.shape, spec.n_older_steps
    ((5, 2, 4, 84, 84), 3)
    """

    kind = "frames"

    stack: int
    fill: Fill

    @classmethod
    def of(
        cls,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        feature_shape: Sequence[int] = (),
        padding: int = 0,
        full_size: int | None = None,
        stack: int = 4,
        fill: Fill = "first",
    ) -> Self:
        """Check what a user gives. `feature_shape` is the shape of one frame.

        Raises:
            TypeError, ValueError: as for `ArraySpec`; or stack is no positive integer, or fill is
                not known.
        """
        plain = ArraySpec.of(batch_shape, dtype, feature_shape, padding, full_size)
        n_frames = operator.index(stack)
        if n_frames < 1:
            raise ValueError(f"stack: got {stack}, expected 1 or more")
        if fill not in get_args(Fill):
            raise ValueError(
                f'fill: got {fill!r}, expected "first" (the episode\'s first frame, as gymnasium'
                ' has it) or "zero" (as ALE has it)'
            )
        return cls(
            plain.batch_shape,
            plain.dtype,
            plain.feature_shape,
            plain.padding,
            plain.full_size,
            n_frames,
            fill,
        )

    @classmethod
    def of_stacks(cls, spec: ArraySpec, fill: Fill) -> Self:
        """Return a spec of the same visible shape and window as a plain one.

        Args:
            spec: what its Arrays hold are stacks, [stack, *frame_shape].
            fill: what a stack holds before its episode's beginning.

        Raises:
            ValueError: it holds single numbers; or fill is not known.
        """
        if not spec.feature_shape:
            raise ValueError("got one number, expected a stack of shape (stack, ...)")
        stack, *frame_shape = spec.feature_shape
        window = spec.padding, spec.full_size
        return cls.of(spec.batch_shape, spec.dtype, frame_shape, *window, stack, fill)

    def make(self, storage: str | Memory = "local") -> FrameArray:
        """Allocate a FrameArray that looks like this, in memory of a kind or in a block of it."""
        return FrameArray(
            self.batch_shape,
            self.dtype,
            self.feature_shape,
            stack=self.stack,
            fill=self.fill,
            storage=storage,
            padding=self.padding,
            full_size=self.full_size,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Visible shape: that of stacks."""
        return (*self.batch_shape, self.stack, *self.feature_shape)

    @property
    def n_older_steps(self) -> int:
        """How many steps before a row its stack reaches back to, `stack - 1`."""
        return self.stack - 1

    def row_of(self, sample: Any) -> Any:  # Any: the spec's own type of sample, indexed
        """Return the newest frame of a stack, which is what its row stores."""
        return sample[-1]

    @property
    def layout(self) -> FrameLayout:
        """How the frames and their flags lie in memory."""
        batch_shape = (self.window().n_rows, *self.batch_shape[1:])
        return FrameLayout(batch_shape, self.feature_shape, self.dtype, self.stack, self.fill)

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of the base buffer of frames."""
        return self.layout.extents

    @property
    def nbytes(self) -> int:
        """Bytes of the frames and of the flags, and of the gap between them."""
        return self.layout.nbytes

    def __str__(self) -> str:
        return f"{super().__str__()}, stacks of {self.stack}, fill {self.fill!r}"


class _Shown(NamedTuple):
    """What a view shows."""

    rows: range | NDArray[np.int64]  # numbers of the stacks, one after the other
    batch_shape: tuple[int, ...]  # that they are reshaped to
    key: tuple[Any, ...]  # what is shown of each stack; () for all of it


class FrameArray(Array):
    """A store of stacked observations: each frame is stored once, and reading gathers the stacks.

    A sample is a stack [stack, *feature_shape], the oldest frame first: the row's own frame and
    those of the steps before it. A stack does not reach behind the beginning of its episode: there
    it is filled, as the environments' own wrappers do it. A flag for each row says whether an
    episode begins with its frame.

    It is used as an Array, with these differences:

    - Reading copies. `to_ndarray`, `to_torch` and `to_cupy` return new memory (`gather` writes
      given memory), on the device by one launch in the caller's current stream.
    - Rows are written as whole stacks (`array[t] = stacks`), which are held against the row before
      (by the host: of device memory it waits for the current stream), or as single frames with
      `write_frames`. A part of a stack is not written.
    - Integer arrays index the batch dimensions only.

    Writing a row again changes the stacks of the `stack - 1` rows after it. So, in a ring that is
    written for a second time, the `stack - 1` rows after the newest one show frames of both
    rounds; all others are what was written.

    Args:
        batch_shape: leading dimensions, usually (T, B): steps and environments.
        dtype: of the elements; any NumPy dtype but object.
        feature_shape: of one frame. A sample's, as the attribute has it, is that of a stack: the
            visible shape is `batch_shape + (stack, *feature_shape)`.
        stack: frames of a stack.
        fill: what a stack holds before its episode's beginning: "first", the episode's first frame
            (`padding_type="reset"` of gymnasium's `FrameStackObservation`), or "zero" (its "zero",
            and what ALE's vector environment does).
        storage, padding, full_size: as for `Array`. `stack - 1` more rows before the padding hold
            earlier frames, and with `fill="zero"` one more is the frame of zeros.

    Raises:
        TypeError, ValueError, MemoryError: as for `Array`; or stack or fill is not known.
    """

    __slots__ = ("_shown",)

    _buffer: FrameBuffer
    _shown: _Shown | None  # None until it is asked for

    def __init__(
        self,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        feature_shape: Sequence[int] = (),
        *,
        stack: int = 4,
        fill: Fill = "first",
        storage: str | Memory = "local",
        padding: int = 0,
        full_size: int | None = None,
    ) -> None:
        spec = FrameSpec.of(batch_shape, dtype, feature_shape, padding, full_size, stack, fill)
        buffer = FrameBuffer.of_layout(spec.layout, storage)
        window = spec.window()
        self._assemble(buffer, (window.rows, *map(range, buffer.extents[1:])), window)

    def _assemble(self, buffer: Any, location: Location, window: Window | None) -> None:
        super()._assemble(buffer, location, window)
        self._shown = None

    @property
    def spec(self) -> ArraySpec:
        """What this Array looks like; of a view, an Array of stacks without a window."""
        if self._window is None:
            return super().spec
        return FrameSpec(
            self.batch_shape,
            self.dtype,
            self.frame_shape,
            self.padding,
            self.full_size,
            self.stack,
            self.fill,
        )

    @property
    def stack(self) -> int:
        """Frames of a stack."""
        return self._buffer.stack

    @property
    def fill(self) -> Fill:
        """What a stack holds before its episode's beginning: "first" or "zero"."""
        return self._buffer.fill

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame."""
        return self._buffer.frame_shape

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of all frames and flags: ring, padding, and the frames before it."""
        buffer = self._buffer
        n_flags = int(np.prod(buffer.is_first.extents))
        return n_flags * (int(np.prod(self.frame_shape)) * self.dtype.itemsize + 1)

    # Single frames

    @property
    def frames(self) -> Array:
        """A view of the rows' own frames, [..., *frame_shape], without those before them.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        buffer = self._buffer
        return ArrayView(buffer.frames, (*self._head(), *map(range, buffer.frame_shape)))

    @property
    def is_first(self) -> Array:
        """A view of the rows' flags, bool [...]: whether an episode begins with the frame.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        return ArrayView(self._buffer.is_first, self._head())

    def write_frames(self, index: Any, frames: Any, *, is_first: Any) -> None:
        """Write the newest frame of each stack, and nothing else of it.

        The frames before are those that the earlier rows hold by the time of reading.

        Args:
            index: of rows, as for reading; `...` for all.
            frames: what broadcasts to [..., *frame_shape], of any library.
            is_first: what broadcasts to bool [...]. Whether the frame is the first one of its
                episode: the one of a reset, not the last one of the episode before.
        """
        rows = self[index]
        rows.frames[...] = frames
        rows.is_first[...] = is_first

    @property
    def row_writer(self) -> FrameWriter:
        """How environments write stacks: the newest frame of each, and its flag."""
        return FrameWriter(self.dtype, self.frame_shape, self.stack, self.fill)

    def row_parts(self, *, checked: bool = False) -> dict[str, Array]:
        """Return the rows' own frames and flags, as `Array` does.

        Args:
            checked: whether the frames one step before are among them, which are compared.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        parts = {FRAMES: self.frames, IS_FIRST: self.is_first}
        if checked and self.stack > 1:
            parts[PREVIOUS] = self.frames.previous
        return parts

    def write_history(self, index: Any, stacks: ArrayLike) -> None:
        """Write stacks that no row before leads to, as those of an episode under way.

        Where all of them are those of first frames, that is what is written. Otherwise all their
        frames are, the older ones to the `stack - 1` rows before: their own stacks, and those of
        the rows after them, are lost.

        Args:
            index: of rows of one time step, as for reading.
            stacks: what broadcasts to [..., stack, *frame_shape].
        """
        rows = self[index]
        head, buffer = rows._head(), self._buffer
        values = buffer.fit(to_host(stacks), rows.shape)
        if are_first(self._flat(values, rows._find_shown().rows), self.fill).all():
            rows.frames[...] = values.take(-1, axis=rows.n_batch_dims)
            rows.is_first[...] = True
            return
        whole = tuple(map(range, buffer.frame_shape))
        for back in range(self.stack):
            place = shift(head, buffer.is_first.extents, -back)
            older = values.take(self.stack - 1 - back, axis=rows.n_batch_dims)
            ArrayView(buffer.frames, (*place, *whole))[...] = older
            if back < self.stack - 1:
                ArrayView(buffer.is_first, place)[...] = False

    def _head(self) -> Location:
        """Return where the rows lie among all frames.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        buffer = self._buffer
        buffer.check_open()
        if self._key():
            raise ValueError(
                "a view of parts of stacks: got indices on the stack or the frame, expected whole"
                " stacks; single frames are written with write_frames, parts of them through frames"
            )
        return shift(self._location[: buffer.n_batch_axes], buffer.is_first.extents, buffer.n_head)

    # Reading

    def gather(self, *, out_stacks: Any) -> None:
        """Write what this view shows into memory that is kept.

        On the host, the stacks are there when this returns. On a GPU it is one launch in the
        caller's current stream, with a copy of the rows' numbers before it where they are no range.

        Args:
            out_stacks: array of NumPy or CuPy, tensor or Array, C-contiguous, of this shape and
                dtype. Where it is decides where the work is done.

        Raises:
            TypeError: `out_stacks` is where this memory can't be read.
            ValueError: it does not fit, or this view shows parts of stacks.
        """
        if isinstance(out_stacks, Array) and out_stacks.is_gathered:
            raise ValueError("out_stacks: got a view that is gathered, expected memory of its own")
        side = side_of(out_stacks)
        if side == "host" and not self._buffer.is_on_host:
            raise TypeError("out_stacks: got host memory, expected the device's; use to_ndarray()")
        rows, _, key = self._find_shown()
        out = to_device(out_stacks) if side == "gpu" else to_host(out_stacks)
        if key or out.shape != self.shape or not out.flags.c_contiguous:
            raise ValueError(
                f"out_stacks: got shape {out.shape}, strides {out.strides}, expected contiguous"
                f" {self.shape}, made of whole stacks"
            )
        self._buffer.read(rows, side, out=self._flat(out, rows))

    def _flat(self, stacks: Any, rows: Any) -> Any:  # Any: of NumPy or CuPy; range or integers
        return stacks.reshape(len(rows), self.stack, *self.frame_shape)

    def to_cupy(self) -> Any:  # Any: cupy.ndarray
        """Return the visible elements in a new CuPy array, gathered by one launch.

        Waits for nothing: of pinned and managed memory, the caller keeps host and streams apart.

        Raises:
            TypeError: no GPU can use memory of this kind.
        """
        return self._gathered("gpu")

    @property
    def is_gathered(self) -> bool:
        """True: reading gathers a copy."""
        return True

    @property
    def n_older_steps(self) -> int:
        """How many steps before a row its stack reaches back to, `stack - 1`."""
        return self.stack - 1

    def row_source(self, side: Side) -> RowSource:
        """Return the frames of the rows that this view shows, for a gather of stacks.

        Rows are counted over the batch dimensions together. The memory is this Array's own: what
        is written later is gathered then.

        Args:
            side: where the rows are gathered, "host" or "gpu".

        Raises:
            TypeError: that side can't use the memory.
            ValueError: the rows do not follow each other in memory, or are parts of stacks.
        """
        rows, _, key = self._find_shown()
        if key or not isinstance(rows, range) or (len(rows) > 1 and rows.step != 1):
            raise ValueError(
                "row_source: got a view with gaps between its rows, expected whole time steps, as"
                " in array, array.full or array[2:5]; gather from them by an index"
            )
        return self._buffer.source(side)[rows.start : rows.stop]

    def picked_rows(self) -> PickedRows | None:
        """Return the stacks that a view made with integer arrays shows, as `Array` does.

        The rows are a `RowSource`. None where the arrays don't stand on all batch dimensions.
        """
        found = rows_of(self._location, self._buffer.extents)
        if found is None or found[0] != self._buffer.n_batch_axes:
            return None
        return PickedRows(self._buffer.source(self._buffer.data_side), found[1])

    def _elements(self) -> Any:  # Any: an array of NumPy or CuPy
        return self._gathered(self._buffer.data_side)

    def _gathered(self, side: Side) -> Any:  # Any: as above
        rows, batch_shape, key = self._find_shown()
        stacks = self._buffer.read(rows, side)
        stacks = stacks.reshape(*batch_shape, *stacks.shape[1:])
        return stacks[(*[slice(None)] * len(batch_shape), *key)] if key else stacks

    def _find_shown(self) -> _Shown:
        if self._shown is None:
            n_axes, extents = self._buffer.n_batch_axes, self._buffer.extents
            numbers = row_numbers(self._location, extents, n_axes)
            self._shown = _Shown(as_range(numbers.ravel()), numbers.shape, self._key())
        return self._shown

    def _key(self) -> tuple[Any, ...]:
        """Return the index of what is shown of each stack; () for all of it."""
        n_axes, extents = self._buffer.n_batch_axes, self._buffer.extents
        # An integer beside integer arrays is one of them, of no dimension.
        axes = (a if isinstance(a, range) else int(a) for a in self._location[n_axes:])
        features = tuple(axes)
        return () if features == tuple(map(range, extents[n_axes:])) else keys(features)[0]

    # Views, and writing through them

    def _view(self, location: Location, data: NDArray[Any] | None = None) -> FrameArray:
        features = location[self._buffer.n_batch_axes :]
        if any(isinstance(axis, np.ndarray) and axis.ndim for axis in features):
            raise IndexError(
                "integer arrays index the batch dimensions of a FrameArray only; index what was"
                " read, as in array[t].to_ndarray()[..., [0, 3], :, :]"
            )
        return FrameView(self._buffer, location)

    def __getitem__(self, index: Any) -> FrameArray:
        view = super().__getitem__(index)
        assert isinstance(view, FrameArray)
        return view

    def _find_lead(self) -> Any:  # Any: as Array has it
        """Return a way of no rows: there is no element to be looked up."""
        self._lead = (self._buffer.data, 0, 0, 0, 0, (), ())
        return self._lead

    def _write(self, location: Location, value: Any) -> None:
        view = self._view(location)
        view._head()  # refuses parts of stacks
        rows = np.asarray(view._find_shown().rows, np.int64)
        stacks = self._buffer.fit(value, view.shape)
        self._buffer.write(rows, self._flat(stacks, rows))

    def __repr__(self) -> str:
        state = "closed, " if self._buffer.is_closed else ""
        return (
            f"FrameArray({state}shape={self.shape}, dtype={self.dtype}, stack={self.stack},"
            f" fill={self.fill!r}, storage={self.storage!r})"
        )


class FrameView(FrameArray, ArrayView):
    """A part of a FrameArray at a place that never changes.

    Args:
        buffer: of the FrameArray.
        location: the part of it.
    """

    __slots__ = ()

    def __init__(self, buffer: FrameBuffer, location: Location) -> None:
        self._assemble(buffer, location, None)

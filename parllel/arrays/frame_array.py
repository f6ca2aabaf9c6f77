"""FrameArray: stacked observations whose frames are stored once; its spec and its views."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from parllel.arrays.array import Array, ArrayView, KindSpec
from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.buffer import Buffer
from parllel.arrays.frame_buffer import Fill, FrameBuffer, FrameLayout, are_first
from parllel.arrays.frame_writer import FRAMES, IS_FIRST, PREVIOUS, FrameWriter
from parllel.arrays.interop import side_of, to_device, to_host
from parllel.arrays.location import Index, Location, keys, row_numbers, rows_of, shift
from parllel.arrays.readable import PickedRows
from parllel.arrays.types import Leaf
from parllel.arrays.window import Window
from parllel.cuda import AnyArray, DeviceArray
from parllel.ops.stack_gather import RowSource, as_range
from parllel.storages import Memory, Side


@dataclass(frozen=True)
class FrameSpec(KindSpec):
    """Shape, dtype, window and stacks of a FrameArray, checked; its arguments are a FrameArray's.

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
        """Check the arguments of a FrameArray, and return them as a spec.

        Args:
            batch_shape, dtype, feature_shape, padding, full_size, stack, fill: as for `FrameArray`.

        Raises:
            TypeError, ValueError: as for `ArraySpec`; or stack is no positive integer, or fill is
                another word.
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
    def of_stacks(cls, spec: ArraySpec, fill: Fill, n_agent_dims: int = 0) -> Self:
        """Return the spec of a FrameArray with the same visible shape and window as a plain Array.

        Args:
            spec: spec of the plain Array, whose samples are stacks, [stack, *frame_shape], or such
                of several agents, [N, stack, *frame_shape].
            fill: content of a stack before the beginning of its episode.
            n_agent_dims: number of dimensions of a sample before those of a stack.

        Raises:
            ValueError: samples are single numbers; or fill is another word.
        """
        agents, of_stack = spec.feature_shape[:n_agent_dims], spec.feature_shape[n_agent_dims:]
        if not of_stack:
            raise ValueError("got one number, expected a stack of shape (stack, ...)")
        stack, *frame_shape = of_stack
        window, batch_shape = (spec.padding, spec.full_size), (*spec.batch_shape, *agents)
        return cls.of(batch_shape, spec.dtype, frame_shape, *window, stack, fill)

    def make(self, storage: str | Memory = "local") -> FrameArray:
        """Allocate a FrameArray as this spec describes it.

        Args:
            storage: kind of memory, or a block of memory that has room for the FrameArray.
        """
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
        """Visible shape of the FrameArray, [..., stack, *feature_shape]."""
        return (*self.batch_shape, self.stack, *self.feature_shape)

    @property
    def n_older_steps(self) -> int:
        """The number of steps before a row whose frames its stack has, `stack - 1`."""
        return self.stack - 1

    def row_of(self, sample: Any) -> Any:  # Any: the spec's own type of sample, indexed
        """Return the newest frame of a stack, or of each agent's, which is what its row stores."""
        of_agents = (slice(None),) * len(self.batch_shape[2:])
        return sample[(*of_agents, -1)] if of_agents else sample[-1]

    @property
    def layout(self) -> FrameLayout:
        """The way in which the frames and their flags lie in memory."""
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
    """The stacks that a view shows."""

    rows: range | NDArray[np.int64]  # numbers of the stacks, one after the other
    batch_shape: tuple[int, ...]  # the shape that the gathered stacks get
    key: tuple[Any, ...]  # index of the part that is shown of each stack; () for all of it


class FrameArray(Array):
    """An Array of stacked frames that stores each frame once; reading gathers the stacks.

    >>> array = FrameArray((3, 1), "uint8", (2,), stack=2)
    >>> array.shape
    (3, 1, 2, 2)
    >>> array[0] = [[5, 5], [5, 5]]  # an episode begins: the first frame, repeated
    >>> array[1] = [[5, 5], [6, 6]]
    >>> array[1, 0].to_ndarray().tolist(), array.frames[1, 0].to_ndarray().tolist()
    ([[5, 5], [6, 6]], [6, 6])

    A sample is a stack [stack, *feature_shape] of the row's own frame and the frames of the steps
    before it, the oldest frame first. A stack has no frame from before the beginning of its
    episode: in these places it is filled, in the same way as the environments' own wrappers do it.
    A flag for each row tells whether an episode begins with its frame.

    A FrameArray is used as an Array, with these differences:

    - Reading copies. `to_ndarray`, `to_torch` and `to_cupy` return new memory, and `gather` writes
      memory that it is given. On the device, that is one launch in the caller's current stream.
    - Rows are written as whole stacks (`array[t] = stacks`) or as single frames (`write_frames`).
      Stacks are compared with the row before by the host, which waits for the current stream where
      the memory is the device's. A part of a stack can't be written.
    - Integer arrays index the batch dimensions only.

    Writing a row again changes the stacks of the `stack - 1` rows after it. So in a ring that is
    written for the second time, the `stack - 1` rows after the newest one show frames of both
    rounds. All other rows show what was written.

    Args:
        batch_shape: leading dimensions, usually (T, B): steps and environments. With (T, B, N) each
            of N agents has a stack and a flag of its own.
        dtype: type of the elements, any NumPy dtype but object.
        feature_shape: shape of one frame. The attribute of that name has the shape of a sample,
            which is a stack: the visible shape is `batch_shape + (stack, *feature_shape)`.
        stack: number of frames of a stack.
        fill: content of a stack before the beginning of its episode: "first", the episode's first
            frame (`padding_type="reset"` of gymnasium's `FrameStackObservation`), or "zero" (the
            `padding_type` of that name, and ALE's vector environment).
        storage, padding, full_size: as for `Array`. `stack - 1` more rows before the padding hold
            earlier frames, and with `fill="zero"` one more row holds the frame of zeros.

    Raises:
        TypeError, ValueError, MemoryError: as for `Array`; or stack is no positive integer, or fill
            is another word.
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

    def _assemble(self, buffer: Buffer, location: Location, window: Window | None) -> None:
        super()._assemble(buffer, location, window)
        self._shown = None

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype, window and stacks; a view is described as a plain Array of stacks."""
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
        """Number of frames of a stack."""
        return self._buffer.stack

    @property
    def fill(self) -> Fill:
        """Content of a stack before the beginning of its episode: "first" or "zero"."""
        return self._buffer.fill

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame."""
        return self._buffer.frame_shape

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of all frames and flags: of the ring, the padding, and the frames before it."""
        buffer = self._buffer
        n_flags = int(np.prod(buffer.is_first.extents))
        return n_flags * (int(np.prod(self.frame_shape)) * self.dtype.itemsize + 1)

    # Single frames

    @property
    def frames(self) -> Array:
        """A view of the rows' own frames, [..., *frame_shape], without the frames before them.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        buffer = self._buffer
        return ArrayView(buffer.frames, (*self._head(), *map(range, buffer.frame_shape)))

    @property
    def is_first(self) -> Array:
        """A view of the rows' flags, bool [...], which tell where an episode begins.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        return ArrayView(self._buffer.is_first, self._head())

    def write_frames(self, index: Index, frames: object, *, is_first: object) -> None:
        """Write the newest frame of each stack, and nothing else of it.

        The other frames of a stack are those of the rows before, when the stack is read.

        Args:
            index: index of the rows; `...` for all rows.
            frames: frames that broadcast to [..., *frame_shape], of any library.
            is_first: flags that broadcast to bool [...]. True where the frame is the first of its
                episode, as a reset returns it; the last frame of the episode before is not.
        """
        rows = self[index]
        rows.frames[...] = frames
        rows.is_first[...] = is_first

    @property
    def row_writer(self) -> FrameWriter:
        """The writer for environments, which writes the newest frame of a stack and its flag."""
        behind = self._location[2 : self._buffer.n_batch_axes]
        agents = tuple(len(axis) for axis in behind if isinstance(axis, range))
        return FrameWriter(self.dtype, self.frame_shape, self.stack, self.fill, agents)

    def row_parts(self, *, checked: bool = False) -> dict[str, Array]:
        """Return the rows' own frames and flags, as `Array` does.

        Args:
            checked: whether to add the frames one step before, with which stacks are compared.

        Raises:
            ValueError: this view shows parts of stacks.
        """
        parts = {FRAMES: self.frames, IS_FIRST: self.is_first}
        if checked and self.stack > 1:
            parts[PREVIOUS] = self.frames.previous
        return parts

    def write_history(self, index: Index, values: object) -> None:
        """Write stacks that do not continue the row before, as in the middle of an episode.

        Where all stacks look like the first ones of an episode, they are written as such. Otherwise
        all their frames are written, the older ones to the `stack - 1` rows before. The stacks of
        these rows, and of the rows after them up to this one, are lost.

        Args:
            index: index of the rows of one time step.
            values: stacks that broadcast to [..., stack, *frame_shape], of any library.
        """
        rows = self[index]
        head, buffer = rows._head(), self._buffer
        stacks = buffer.fit(to_host(values), rows.shape)
        if are_first(self._flat(stacks, rows._find_shown().rows), self.fill).all():
            rows.frames[...] = stacks.take(-1, axis=rows.n_batch_dims)
            rows.is_first[...] = True
            return
        whole = tuple(map(range, buffer.frame_shape))
        for back in range(self.stack):
            place = shift(head, buffer.is_first.extents, -back)
            older = stacks.take(self.stack - 1 - back, axis=rows.n_batch_dims)
            ArrayView(buffer.frames, (*place, *whole))[...] = older
            if back < self.stack - 1:
                ArrayView(buffer.is_first, place)[...] = False

    def _head(self) -> Location:
        """Return the location of the rows among all frames.

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

    def gather(self, *, out_stacks: Leaf) -> None:
        """Write the stacks that this view shows into memory that is given.

        On the host, the stacks are written when this returns. On a GPU, the gather is one launch in
        the caller's current stream, and before it the numbers of the rows are copied to the device
        where they are no range.

        Args:
            out_stacks: array, tensor or Array of this shape and dtype, C-contiguous, overwritten.
                The side that its memory belongs to does the work.

        Raises:
            TypeError: that side can't read this memory.
            ValueError: `out_stacks` has another shape, dtype or layout, or this view shows parts of
                stacks.
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

    def _flat(self, stacks: AnyArray, rows: range | NDArray[np.int64]) -> AnyArray:
        return stacks.reshape(len(rows), self.stack, *self.frame_shape)

    def to_cupy(self) -> DeviceArray:
        """Return the visible elements in a new CuPy array, gathered by one launch.

        The call waits for nothing. In pinned and managed memory, the caller must see to it that the
        host and the streams do not use the same rows at the same time.

        Raises:
            TypeError: no GPU can use memory of this kind.
        """
        return self._gathered("gpu")

    @property
    def is_gathered(self) -> bool:
        """True, since reading always gathers a copy."""
        return True

    @property
    def n_older_steps(self) -> int:
        """How many steps before a row its stack reaches back to, `stack - 1`."""
        return self.stack - 1

    def row_source(self, side: Side, n_axes: int = 2) -> RowSource:
        """Return the frames of the rows that this view shows, as the source of gathers of stacks.

        The source is this Array's own memory, so that a later gather reads what was written until
        then.

        Args:
            side: the side that gathers, "host" or "gpu".
            n_axes: number of batch dimensions that rows are counted over. A row has a stack for
                each place of those behind them, the agents.

        Raises:
            TypeError: that side can't use the memory.
            ValueError: the rows do not follow each other in memory, or are parts of stacks.
        """
        numbers, _, key = self._find_shown()
        agents, buffer = self.batch_shape[n_axes:], self._buffer
        n_counted = buffer.n_batch_axes - len(agents)
        is_whole = agents == buffer.extents[n_counted : buffer.n_batch_axes]
        is_whole &= isinstance(numbers, range) and (len(numbers) < 2 or numbers.step == 1)
        if key or not is_whole or not isinstance(numbers, range):
            raise ValueError(
                "row_source: got a view with gaps between its rows, expected whole time steps, as"
                " in array, array.full or array[2:5]; gather from them by an index"
            )
        first = numbers.start // max(math.prod(agents), 1)
        n_rows = math.prod(self.batch_shape[:n_axes])
        return buffer.source(side, n_counted)[first : first + n_rows]

    def picked_rows(self) -> PickedRows | None:
        """Return the stacks that integer arrays picked for this view; None for any other view.

        The rows are a `RowSource`. None is returned as well where the arrays are on a stack.
        """
        found, buffer = rows_of(self._location, self._buffer.extents), self._buffer
        if found is None or found[0] > buffer.n_batch_axes:
            return None
        return PickedRows(buffer.source(buffer.data_side, found[0]), found[1])

    def _elements(self) -> AnyArray:
        return self._gathered(self._buffer.data_side)

    def _gathered(self, side: Side) -> AnyArray:
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
        """Return the index of the part that is shown of each stack; () for all of it."""
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

    def __getitem__(self, index: Index) -> FrameArray:
        view = super().__getitem__(index)
        assert isinstance(view, FrameArray)
        return view

    def _write(self, location: Location, value: object) -> None:
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
    """A part of a FrameArray, always of the same rows.

    >>> array = FrameArray((3, 1), "uint8", (2,), stack=2)
    >>> array[1:].shape
    (2, 1, 2, 2)

    Args:
        buffer: memory of the FrameArray.
        location: the part of the memory that the view shows.
    """

    __slots__ = ()

    def __init__(self, buffer: FrameBuffer, location: Location) -> None:
        self._assemble(buffer, location, None)

"""FrameBuffer: the single frames of a FrameArray, with flags that say where episodes begin."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays.buffer import Buffer
from parllel.arrays.parted_buffer import PartedBuffer
from parllel.arrays.window import Window
from parllel.cuda import AnyArray
from parllel.ops.sides import AnyIndex
from parllel.ops.stack_gather import RowSource, StackGather
from parllel.storages import Memory, Side, aligned, allocate, nbytes_of

Fill: TypeAlias = Literal["first", "zero"]
"""Content of a stack before the beginning of its episode: the episode's first frame, or zeros."""

_FLAG = np.dtype(np.bool_)


class FrameLayout(NamedTuple):
    """The sizes of a FrameArray's memory: the frames of all rows, and a flag for each.

    >>> layout = FrameLayout((6, 2), (84, 84), np.dtype(np.uint8), stack=4, fill="zero")
    >>> layout.n_head, layout.extents
    (4, (10, 2, 84, 84))

    Args:
        batch_shape: number of rows, ring and padding included, and the other batch dimensions.
        frame_shape: shape of one frame.
        dtype: type of the elements.
        stack: number of frames of a stack.
        fill: content of a stack before the beginning of its episode.
    """

    batch_shape: tuple[int, ...]
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stack: int
    fill: Fill

    @property
    def n_blank(self) -> int:
        """Number of rows at the beginning that stay zero, to fill stacks with."""
        return 1 if self.fill == "zero" else 0

    @property
    def n_head(self) -> int:
        """Number of rows before the first one: the blank row, and frames that older rows have."""
        return self.n_blank + self.stack - 1

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of all frames."""
        return self.flag_extents + self.frame_shape

    @property
    def flag_extents(self) -> tuple[int, ...]:
        """Shape of all flags."""
        n_rows, *columns = self.batch_shape
        return (self.n_head + n_rows, *columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames and of the flags, and of the gap between them."""
        flags = nbytes_of(self.flag_extents, _FLAG)
        return aligned(nbytes_of(self.extents, self.dtype)) + flags


class FrameBuffer(PartedBuffer):
    """Frames that are read as stacks; its `extents` are the shape of all stacks.

    >>> layout = FrameLayout((6, 2), (84, 84), np.dtype(np.uint8), stack=4, fill="first")
    >>> FrameBuffer.of_layout(layout, "local").extents
    (6, 2, 4, 84, 84)

    The first rows of both parts are no rows of their own: with `fill="zero"` one row that stays
    zero, then `stack - 1` rows with the frames before the first row. Row numbers do not count them.

    Args:
        frames: buffer [n_head + n_rows, ..., *frame_shape].
        is_first: buffer of bool [n_head + n_rows, ...], which tells what frames begin an episode.
        stack: number of frames of a stack.
        fill: content of a stack before the beginning of its episode.
    """

    __slots__ = ("_gathers", "fill", "frames", "is_first", "n_columns", "n_head", "stack")

    def __init__(self, frames: Buffer, is_first: Buffer, stack: int, fill: Fill) -> None:
        n_axes = frames.n_batch_axes
        super().__init__({"frames": frames, "is_first": is_first})
        self.frames = frames
        self.is_first = is_first
        self.stack = stack
        self.fill = fill
        self.n_head = stack - 1 + (fill == "zero")
        n_rows, *others = frames.extents
        columns, frame_shape = others[: n_axes - 1], others[n_axes - 1 :]
        self.extents = (n_rows - self.n_head, *columns, stack, *frame_shape)
        self.n_columns = math.prod(columns)
        self._gathers: dict[Side, StackGather] = {}  # by the side that gathers

    @classmethod
    def of_layout(cls, layout: FrameLayout, storage: str | Memory) -> FrameBuffer:
        """Return a zeroed buffer in new memory of a kind, or in the next part of a given block."""
        wanted = aligned(layout.nbytes)
        memory = storage if isinstance(storage, Memory) else allocate(storage, wanted)
        n_axes = len(layout.batch_shape)
        frames = Buffer.allocate(memory, layout.extents, layout.dtype, n_axes)
        is_first = Buffer.allocate(memory, layout.flag_extents, _FLAG, n_axes)
        buffer = cls(frames, is_first, layout.stack, layout.fill)
        if memory.side == "gpu":
            # Now, so that the gather's table is copied in the stream that zeroes the memory: a
            # later stream would not be ordered after it.
            buffer._gather("gpu")
        return buffer

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame."""
        return self.frames.extents[self.n_batch_axes :]

    def source(self, side: Side, n_axes: int | None = None) -> RowSource:
        """Return the frames of all rows, as a gather on a given side reads them.

        Args:
            side: the side that gathers.
            n_axes: number of batch dimensions that rows are counted over, by default all of them.
                A row has as many stacks as the others have places.
        """
        self.check_open()
        parts = (self.frames, self.is_first)
        frames, flags = (part.on_side(side) for part in parts)
        counted = flags.shape[:n_axes]
        shape = (math.prod(counted), *flags.shape[len(counted) :])
        rows = frames.reshape(*shape, *self.frame_shape)  # frames may be empty: no -1
        blank = None
        if self.fill == "zero":
            blank = frames.reshape(flags.size, *self.frame_shape)[:1]
        n_columns = math.prod(counted[1:])
        n_before = self.n_head * n_columns
        return RowSource(
            rows[n_before:], flags.reshape(shape)[n_before:], n_columns, self.stack, blank
        )

    def read(self, index: AnyIndex, side: Side, *, out: AnyArray | None = None) -> AnyArray:
        """Gather the stacks of the rows of an index, on a GPU by one launch.

        Args:
            index: range or integers [n], the rows whose stacks are gathered.
            side: the side that gathers; for "gpu", `out` and the result are CuPy arrays.
            out: array [n, stack, *frame_shape], overwritten; a new array by default.
        """
        self.check_open()
        gather = self._gather(side)
        if out is None:
            shape = (len(index), self.stack, *self.frame_shape)
            if side == "gpu":
                with cuda.use_stream() as used:
                    cuda.refuse_capture("a gather of stacks into new memory", stream=used)
                    out = cuda.library().empty(shape, self.dtype)
            else:
                out = np.empty(shape, self.dtype)
        gather.run(index, out=out)
        return out

    def _gather(self, side: Side) -> StackGather:
        gather = self._gathers.get(side)
        if gather is None:
            gather = self._gathers[side] = StackGather([self.source(side)])
        return gather

    def fit(self, value: object, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a value of the host broadcast to a shape, C-contiguous and of this dtype."""
        if (
            isinstance(value, np.ndarray)
            and (value.shape, value.dtype) == (shape, self.dtype)
            and value.flags.c_contiguous
        ):
            return value
        values: NDArray[Any] = np.empty(shape, self.dtype)
        values[...] = value
        return values

    def write(self, rows: NDArray[np.int64], stacks: NDArray[Any]) -> None:
        """Write whole stacks: the newest frame of each, and whether an episode begins with it.

        In device memory, the frames around these rows are copied to the host and back, and the host
        waits for the current stream.

        Args:
            rows: int64 [n], numbers of the rows in any order; earlier steps are written first.
            stacks: [n, stack, *frame_shape], C-contiguous and of this dtype.

        Raises:
            ValueError: a stack neither continues the row before nor begins an episode. Neither this
                stack nor a stack of a later step was written.
        """
        self.check_open()
        steps = rows // max(self.n_columns, 1)
        if not self.is_on_host:
            self._write_through_host(rows, stacks, steps)
            return
        order = np.argsort(steps, kind="stable")
        begins = np.flatnonzero(np.diff(steps[order])) + 1
        for part in np.split(order, begins):
            wrong = self._write_step(rows[part], stacks[part])
            if wrong is not None:
                filled = "the first frame repeated" if self.fill == "first" else "zeros before it"
                raise ValueError(
                    f"stack {part[wrong]} of {len(rows)} neither goes on with the row before it"
                    f" nor begins an episode ({filled}: fill={self.fill!r}); write rows in the"
                    " order of time, or frames alone with write_frames"
                )

    def _write_step(self, rows: NDArray[np.int64], stacks: NDArray[Any]) -> int | None:
        """Write stacks of one time step; where one is wrong, write none and return its number."""
        source = self.source("host")
        frames, flags = source.frames, source.is_first
        assert flags is not None
        earlier = frames[rows], flags[rows]
        frames[rows] = stacks[:, -1]
        flags[rows] = are_first(stacks, self.fill)
        found = self.read(rows, "host")
        is_wrong = (_bytes_of(found) != _bytes_of(stacks)).any(axis=(1, 2))
        if not is_wrong.any():
            return None
        frames[rows], flags[rows] = earlier
        return int(is_wrong.argmax())

    def _write_through_host(
        self, rows: NDArray[np.int64], stacks: NDArray[Any], steps: NDArray[np.int64]
    ) -> None:
        if not len(rows):
            return
        begin, end = int(steps.min()), int(steps.max()) + 1
        columns = self.extents[1 : self.n_batch_axes]
        batch_shape = (end - begin, *columns)
        layout = FrameLayout(batch_shape, self.frame_shape, self.dtype, self.stack, self.fill)
        copy = FrameBuffer.of_layout(layout, "local")
        parts = [(self.frames, copy.frames), (self.is_first, copy.is_first)]
        for on_device, on_host in parts:
            around = on_device.data[begin + layout.n_blank : end + layout.n_head]
            on_host.data[layout.n_blank :] = cuda.to_host(around)
        try:
            copy.write(rows - begin * self.n_columns, stacks)
        finally:
            for on_device, on_host in parts:
                written = on_device.data[begin + layout.n_head : end + layout.n_head]
                cuda.copy_to_device(on_host.data[layout.n_head :], out_device=written)

    def moves_around_end(self, window: Window) -> list[tuple[AnyArray, AnyArray]]:
        """Return the copies that are left when a window wraps, of frames and of flags.

        The frames before the first row are copied, too; the blank row stays.
        """
        n_before = self.stack - 1
        if not (n_before + window.padding and window.full_size):
            return []
        n_blank = self.n_head - n_before
        return [part.around_end(window.full_size, n_blank) for part in self.buffers.values()]

    def close(self) -> None:
        """Release the memory. A second call does nothing."""
        self._gathers = {}
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_open()
        return FrameBuffer, (self.frames, self.is_first, self.stack, self.fill)


def are_first(stacks: NDArray[Any], fill: Fill) -> NDArray[np.bool_]:
    """Return bool [n], which stacks look like the first ones of an episode.

    A stack that only looks so, and continues the row before, may be taken for a first one: the
    frames that it and the stacks after it are filled with are the same as those they should have.

    Args:
        stacks: [n, stack, *frame_shape].
        fill: content of a stack before the beginning of its episode.
    """
    values = _bytes_of(stacks)
    expected = values[:, -1:] if fill == "first" else np.zeros_like(values[:1, :1])
    is_first: NDArray[np.bool_] = (values[:, :-1] == expected).all(axis=(1, 2))
    return is_first


def _bytes_of(stacks: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of all frames: [n, stack, bytes]."""
    n_rows, stack, *frame_shape = stacks.shape
    nbytes = stacks.itemsize * math.prod(frame_shape)
    return np.ascontiguousarray(stacks).reshape(-1).view(np.uint8).reshape(n_rows, stack, nbytes)

"""PartedBuffer: memory of rows that are stored in several parts; what is in them its kinds say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parllel.arrays.buffer import Buffer
from parllel.arrays.interop import PLAIN, to_host
from parllel.arrays.window import Window
from parllel.cuda import AnyArray


class PartedBuffer(Buffer):
    """A buffer whose rows have several parts, each of them a buffer of its own.

    Copies, rotations and the end reach all parts. A kind of Array is a subclass whose `__reduce__`
    tells how it is made of them.

    >>> import numpy as np
    >>> from parllel.storages import allocate
    >>> memory = allocate("local", 512)
    >>> rows = Buffer.allocate(memory, (4, 2), np.dtype(np.float32), 1)
    >>> flags = Buffer.allocate(memory, (4,), np.dtype(bool), 1)
    >>> [*PartedBuffer({"rows": rows, "flags": flags}).parts]
    ['rows', 'flags']

    Args:
        buffers: the parts by name, in the order in which they were placed. The first one has the
            rows' dtype and batch dimensions.
    """

    __slots__ = ("buffers",)

    def __init__(self, buffers: Mapping[str, Buffer]) -> None:
        first = next(iter(buffers.values()))
        assert first.memory is not None
        super().__init__(first.memory, first.data, first.n_batch_axes, first._offset)
        self.buffers = dict(buffers)
        # The host looks at what is written, so all values come to the host.
        self.plain, self.accept = PLAIN, to_host

    @property
    def parts(self) -> dict[str, AnyArray]:
        """All rows of each part, by its name."""
        self.check_open()
        return {name: part.data for name, part in self.buffers.items()}

    def copy_from(self, other: Buffer) -> None:
        """Overwrite all parts, as `Buffer` does."""
        assert isinstance(other, PartedBuffer)
        for name, part in self.buffers.items():
            part.copy_from(other.buffers[name])

    def moves_around_end(self, window: Window) -> list[tuple[AnyArray, AnyArray]]:
        """Return the copies that are left when a window wraps, of all parts."""
        if not (window.padding and window.full_size):
            return []
        return [part.around_end(window.full_size) for part in self.buffers.values()]

    def close(self) -> None:
        """Release the memory. A second call does nothing."""
        for part in self.buffers.values():
            part.close()
        super().close()

    def closed(self) -> PartedBuffer:
        """Return a buffer like this one, closed, which leaves this one as it is."""
        self.check_open()
        make, args = self.__reduce__()
        other: PartedBuffer = make(*args)
        Buffer.close(other)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_open()
        return PartedBuffer, (self.buffers,)

"""The contract of all storages: one block of memory that Arrays place their base buffers in."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Every base buffer begins at a multiple of this: CUDA's own allocation unit, and more than any
# vector load needs.
ALIGNMENT = 256


Side: TypeAlias = Literal["host", "gpu"]
"""Which side works on the rows in a memory: the host, or the GPU."""


def aligned(nbytes: int) -> int:
    """Round a size in bytes up to the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def nbytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes that a dense array of this shape and dtype holds."""
    return math.prod(shape) * dtype.itemsize


def _address_of(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class MemoryKind(Protocol):
    """A kind of memory: what allocates blocks of it, and says which side works on them.

    >>> from parllel.storages import KINDS
    >>> kind: MemoryKind = KINDS["local"]
    >>> kind.side, kind(256).nbytes
    ('host', 256)
    """

    @property
    def side(self) -> Side:
        """Which side works on the rows in it."""

    @property
    def is_for_gpu(self) -> bool:
        """Whether a GPU can read and write the bytes."""

    def __call__(self, nbytes: int) -> Memory:
        """Allocate one zeroed block."""


class Memory:
    """One zeroed block of memory, shared by the Arrays that were placed in it.

    Each Array acquires the block when it is placed and releases it when it closes; the last
    release closes the block. A block that is never closed is freed with its last reference. Arrays
    of NumPy over a closed block keep their bytes as long as they live.

    >>> from parllel import Array
    >>> from parllel.storages import allocate
    >>> block = allocate("local", 1024)
    >>> first, second = (Array((16,), np.float32, storage=block) for _ in range(2))
    >>> block.side, block.is_closed
    ('host', False)
    >>> first.close()
    >>> second.close()
    >>> block.is_closed
    True

    Four questions tell the kinds of memory apart, so that no other code compares their names:

    - `side`: "host" or "gpu", which of them works on the rows. It decides whether a kernel is
      launched, or its twin runs on the CPU.
    - `is_on_host`: the host can read and write the bytes, so `array` returns an array of NumPy.
      Of managed memory this is true, although the GPU works on it.
    - `is_for_gpu`: a GPU can read and write the bytes, so `device_array` returns an array of CuPy.
      Of pinned memory this is true, although the host works on it.
    - `is_private`: an Array that is sent to another process takes its values there, not its bytes.

    Args:
        block: uint8 [nbytes]. The memory itself, an array of NumPy or CuPy.
        taken: bytes at the beginning that Arrays have taken already.
    """

    kind: ClassVar[str]
    side: ClassVar[Side] = "host"
    is_on_host: ClassVar[bool] = True
    is_for_gpu: ClassVar[bool] = False
    is_private: ClassVar[bool] = False

    def __init__(self, block: NDArray[np.uint8], taken: int = 0) -> None:
        self.nbytes = block.nbytes
        self._block: NDArray[np.uint8] | None = block
        self._address: int | None = None  # looked up when it is asked for
        self._taken = taken
        self._n_users = 0

    @property
    def is_closed(self) -> bool:
        """Whether this process gave the block back; it can be neither read nor sent any more."""
        return self._block is None

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Raise TypeError where elements of this type can't live in memory of this kind."""

    def take(self, nbytes: int) -> int:
        """Reserve the next aligned part of the block and return its offset in bytes."""
        offset = self._taken
        if offset + nbytes > self.nbytes:
            raise MemoryError(
                f"{self.kind} memory: {nbytes:,} bytes wanted, {self.nbytes - offset:,} of"
                f" {self.nbytes:,} left; allocate a larger block"
            )
        self._taken = offset + aligned(nbytes)
        return offset

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a C-contiguous array over the bytes from `offset` on. Nothing is copied."""
        if self._block is None:
            raise ValueError(f"{self.kind} memory: it is closed")
        part: NDArray[Any] = self._part(self._block, offset, shape, dtype)
        return part

    def offset_of(self, part: NDArray[Any]) -> int | None:
        """Return where an array over host memory begins in this block, in bytes; None outside."""
        if self._block is None:
            return None
        if self._address is None:
            self._address = _address_of(self._block)
        offset = _address_of(part) - self._address
        return offset if 0 <= offset < self.nbytes else None

    def device_array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a CuPy array over the bytes from `offset` on, in memory that a GPU can use.

        Raises:
            TypeError: no GPU can use memory of this kind.
        """
        if self.is_on_host:
            raise TypeError(
                f'{self.kind} memory: no GPU can use it; allocate with storage="pinned", "managed"'
                ' or "device"'
            )
        return self.array(offset, shape, dtype)

    @staticmethod
    def _part(block: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return the bytes of a block (of NumPy or CuPy) from an offset on as an array."""
        part = block[offset : offset + nbytes_of(shape, dtype)]
        return part.view(dtype).reshape(shape)

    def acquire(self) -> None:
        """Count one more Array that lives in this block."""
        self._n_users += 1

    def release(self) -> None:
        """Count one Array less, and close the block after the last one."""
        self._n_users -= 1
        if self._n_users <= 0:
            self._close()

    def _close(self) -> None:
        """Give the block back. Called again, it does nothing."""
        self._block = None

"""`Mapped` memory: .npy files, read when they are used; what is written stays in this process."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.storages.storage import Memory, aligned


class Mapped(Memory):
    """Arrays in .npy files as one block of memory, copied on write: the files never change.

    Pages come from a file when they are first used, so files that are larger than the memory can
    be read. No word names this kind of memory: give the block itself as `storage`. Buffers are
    placed over whole files, in their order, and have to have the shapes and dtypes of the files.

    Args:
        files: the files, which must stay as they are, or arrays that are mapped already. Names of
            files may be deleted after this.

    Raises:
        OSError: a file can't be mapped.
        ValueError: a file holds no such array.

    >>> import tempfile
    >>> from parllel import Array
    >>> file = Path(tempfile.mkdtemp(), "numbers.npy")
    >>> np.save(file, np.arange(3))
    >>> array = Array((3,), np.int64, storage=Mapped([file]))
    >>> array[0] = 7
    >>> array.to_ndarray(), np.load(file)
    (array([7, 1, 2]), array([0, 1, 2]))
    """

    kind = "mapped"

    def __init__(self, files: Sequence[Path | NDArray[Any]]) -> None:
        arrays = [
            np.asarray(np.lib.format.open_memmap(each, "c") if isinstance(each, Path) else each)
            for each in files
        ]
        begins = list(accumulate((aligned(array.nbytes) for array in arrays), initial=0))
        super().__init__(np.zeros(0, np.uint8))
        self.nbytes = begins.pop()
        # Arrays without elements begin where the next one does, too.
        self._files: dict[int, list[NDArray[Any]]] = {begin: [] for begin in begins}
        for begin, array in zip(begins, arrays, strict=True):
            self._files[begin].append(array)

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the array of the file that begins at an offset of the block."""
        if self.is_closed:
            raise ValueError(f"{self.kind} memory: it is closed")
        files = self._files.get(offset)
        if not files:
            raise ValueError(f"{self.kind} memory: no file begins at byte {offset:,}")
        for file in files:
            if (file.shape, file.dtype) == (shape, dtype):
                return file
        found = " or ".join(f"{file.dtype} {file.shape}" for file in files)
        raise ValueError(f"{self.kind} memory: the file has {found}, expected {dtype} {shape}")

    def offset_of(self, part: NDArray[Any]) -> int | None:
        """Return None: no other process gets parts of this block."""
        return None

    def _close(self) -> None:
        super()._close()
        self._files = {}

    def __reduce__(self) -> tuple[object, ...]:
        raise ValueError(
            "mapped memory can't be sent to another process; send the folder, or a copy:"
            ' tree.to("shared")'
        )

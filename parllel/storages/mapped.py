"""`Mapped` memory: a file, read when it is used; what is written stays in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parllel.storages.storage import Memory


class Mapped(Memory):
    """A file as memory, copied on write: the file itself never changes.

    Pages come from the file when they are first used, so a file that is larger than the memory
    can be read. It is no kind that a word names: give the block itself as `storage`.

    Args:
        path: of the file, which must stay as it is. It may be deleted meanwhile.

    Raises:
        OSError: the file can't be mapped.
    """

    kind = "mapped"

    def __init__(self, path: Path) -> None:
        super().__init__(_map(path))

    def __reduce__(self) -> tuple[object, ...]:
        raise ValueError(
            "mapped memory can't be sent to another process; send the folder, or a copy:"
            ' tree.to("shared")'
        )


def _map(path: Path) -> NDArray[np.uint8]:
    if not path.stat().st_size:  # an empty file can't be mapped
        return np.zeros(0, np.uint8)
    return np.asarray(np.memmap(path, np.uint8, mode="c"))

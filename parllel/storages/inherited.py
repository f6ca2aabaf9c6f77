"""`inherited` storage: an anonymous map that forked children share from their start."""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from multiprocessing import context
from typing import Any

import numpy as np

from parllel.storages.host_memory import check_available
from parllel.storages.storage import Memory

# The blocks of this process by name. A forked child inherits the table with the maps, so that a
# name that is sent to it finds its memory. Weak: an entry goes with its block.
_blocks: weakref.WeakValueDictionary[tuple[int, int], Inherited] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Inherited(Memory):
    """Memory shared with the children that are forked after it was allocated.

    It needs no descriptor. Pickling sends its name; only a process that inherited the block can
    receive it.

    >>> import multiprocessing
    >>> from parllel import Array
    >>> array = Array((2,), np.int64, storage="inherited")
    >>> def work() -> None:
    ...     array[...] = 7
    >>> process = multiprocessing.get_context("fork").Process(target=work)
    >>> process.start()
    >>> process.join()
    >>> array.to_ndarray().tolist()
    [7, 7]
    >>> array.close()

    Args:
        nbytes: size of the block, reserved at once.

    Raises:
        MemoryError: there is less memory than that, with the bytes wanted and the bytes free.
    """

    kind = "inherited"

    def __init__(self, nbytes: int) -> None:
        super().__init__(np.frombuffer(_reserve(nbytes), np.uint8)[:nbytes])
        self._name = (os.getpid(), next(_numbers))
        _blocks[self._name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_closed:
            raise ValueError("inherited memory: it is closed and can't be sent")
        child: Any = context.get_spawning_popen()  # Any: its method is not declared
        if child is not None and child.method != "fork":
            raise ValueError(
                "inherited memory: a spawned or fork-served process inherits no memory; start it"
                ' with the "fork" method, or use storage="shared"'
            )
        return _find, (self._name,)


def inherited_blocks() -> weakref.WeakSet[Inherited]:
    """Return the blocks that a child would inherit if this process forked it now."""
    return weakref.WeakSet(block for block in _blocks.values() if not block.is_closed)


def _find(name: tuple[int, int]) -> Inherited:
    """Return the block of this name that the process inherited, or allocated itself."""
    block = _blocks.get(name)
    if block is None or block.is_closed:
        raise ValueError(
            "inherited memory: this process did not inherit the block (it was started before the"
            ' allocation, or not by fork); use storage="shared"'
        )
    return block


def _reserve(nbytes: int) -> mmap.mmap:
    """Return a new, zeroed map of this size, with all its pages reserved."""
    check_available("inherited", nbytes)
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    try:
        return mmap.mmap(-1, max(nbytes, 1), flags=flags)
    except OSError as error:
        raise MemoryError(
            f"inherited memory: {nbytes:,} bytes wanted, and the system refused: {error.strerror}"
        ) from error

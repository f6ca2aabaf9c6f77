"""StatusPage: memory in which a cage reads what its worker is doing, even if that hangs."""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterator

import numpy as np

from parllel.storages import Shared

# Indices of the page's words, of 8 bytes each.
CALL, BEGIN, END = range(3)

MOST_ENVIRONMENTS = 2**20
"""The most environments of one worker: `calls_of` tells so many apart."""

_NBYTES = 4096
_MAX_TRACE = 65536  # bytes of a traceback that are read: faulthandler prints 100 frames at most
_NO_CALL = -1


def calls_of(environment: int) -> Iterator[int]:
    """Yield what an environment writes to `words[CALL]` in each call, another number each time.

    So the cage sees which environment was called last, and also that there is progress.

    >>> calls = calls_of(3)
    >>> [next(calls) % MOST_ENVIRONMENTS for _ in range(2)]
    [3, 3]
    """
    return itertools.count(environment, MOST_ENVIRONMENTS)


class StatusPage:
    """Words that the worker writes and the cage reads, without locks, and the worker's traceback.

    Behind the page, its file has room for the traceback that `faulthandler` writes where the
    worker crashes or hangs. For that, the worker needs nothing but a descriptor.

    >>> page = StatusPage()
    >>> page.words[CALL] = next(calls_of(3))
    >>> page.environment
    3
    >>> page.close()

    Args:
        descriptor: the file of a status page, which this object closes; a new file by default.

    Attributes:
        words: int64 [512]. `words[CALL]` tells of the last call of an environment (`calls_of`).
            `words[BEGIN]` and `words[END]` are the times at which the work of the last
            command began and ended, in ns of `time.perf_counter_ns`, a clock that all processes
            share.

    Raises:
        MemoryError: the system has no page of memory left.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._memory = Shared(_NBYTES, descriptor=descriptor)
        self._memory.acquire()
        self.words = self._memory.array(0, (_NBYTES // 8,), np.dtype(np.int64)).data
        if descriptor is None:
            self.words[CALL] = _NO_CALL

    @property
    def descriptor(self) -> int:
        """The descriptor of the file, which this object closes."""
        return self._memory.descriptor

    @property
    def environment(self) -> int | None:
        """The number of the environment that was called last; None if none was."""
        call: int = self.words[CALL]
        return None if call == _NO_CALL else call % MOST_ENVIRONMENTS

    @property
    def busy_span(self) -> tuple[float, float]:
        """When the worker began and ended the last command, in seconds of `time.perf_counter`."""
        return self.words[BEGIN] * 1e-9, self.words[END] * 1e-9

    def open_trace(self) -> int:
        """Return a descriptor that writes behind the page."""
        os.lseek(self.descriptor, _NBYTES, os.SEEK_SET)
        return self.descriptor

    def read_trace(self) -> str:
        """Return the traceback that was written behind the page; empty where there is none."""
        # At an offset of its own: the worker may write at the same moment.
        return os.pread(self.descriptor, _MAX_TRACE, _NBYTES).decode(errors="replace")

    def close(self) -> None:
        """Give the page back. Its words can still be read: they are a copy then."""
        self.words = memoryview(array("q", self.words.tolist()))
        self._memory.release()

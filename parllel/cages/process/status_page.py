"""StatusPage: the page of memory that a cage and its worker share beside their messages."""

from __future__ import annotations

import os

import numpy as np

from parllel.storages import Shared

# Words of 8 bytes.
ENVIRONMENT, BEGIN, END = range(3)

_NBYTES = 4096
_MAX_TRACE = 65536  # bytes of a dump that are read: faulthandler prints 100 frames at most
_NO_ENVIRONMENT = -1


class StatusPage:
    """Words that the worker writes and the cage reads, without locks, and the worker's dumps.

    The file behind the page goes on after it: there `faulthandler` writes where the worker
    crashed or hangs, which takes nothing but a descriptor.

    Args:
        descriptor: of a status page's file, which this object closes; a new one by default.

    Attributes:
        words: int64 [512]. `words[ENVIRONMENT]` is the number of the environment that was called
            last, and `words[BEGIN]` and `words[END]` are when the last command's work began and
            ended, in nanoseconds of `time.perf_counter_ns`: a clock that all processes share.

    Raises:
        MemoryError: there is not even a page of memory.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._memory = Shared(_NBYTES, descriptor=descriptor)
        self._memory.acquire()
        self.words = self._memory.array(0, (_NBYTES // 8,), np.dtype(np.int64)).data
        if descriptor is None:
            self.words[ENVIRONMENT] = _NO_ENVIRONMENT

    @property
    def descriptor(self) -> int:
        """Of the file; it stays the status page's."""
        return self._memory.descriptor

    @property
    def environment(self) -> int | None:
        """The number of the environment that was called last; None if none was."""
        number = self.words[ENVIRONMENT]
        return None if number == _NO_ENVIRONMENT else number

    @property
    def busy_span(self) -> tuple[float, float]:
        """When the worker began and ended the last command, in seconds of `time.perf_counter`."""
        return self.words[BEGIN] * 1e-9, self.words[END] * 1e-9

    def open_trace(self) -> int:
        """Return a descriptor whose writes end up behind the page."""
        os.lseek(self.descriptor, _NBYTES, os.SEEK_SET)
        return self.descriptor

    def read_trace(self) -> str:
        """Return what was written there; reading moves no position."""
        return os.pread(self.descriptor, _MAX_TRACE, _NBYTES).decode(errors="replace")

    def close(self) -> None:
        """Give the page back. The words stay readable as long as somebody holds them."""
        self._memory.release()

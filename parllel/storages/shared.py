"""`shared` storage: an anonymous memory file that every process which received it maps."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import tempfile
import weakref
from multiprocessing import context, reduction, util
from typing import Any

import numpy as np

from parllel.storages.host_memory import check_available
from parllel.storages.storage import Memory

# Of AF_UNIX sockets: `sun_path` has 108 bytes on Linux and 104 on macOS, one of them for the end.
_LONGEST_PATH = 107 if sys.platform == "linux" else 103
_FOLDER_NAME, _SOCKET_NAME = "pymp-12345678", "listener-12345678"  # as multiprocessing names them

# The blocks that this process maps, by the file's identity: a block that is received twice is
# mapped once. Weak: an entry goes with its block.
_mapped: weakref.WeakValueDictionary[tuple[int, int], Shared] = weakref.WeakValueDictionary()


class Shared(Memory):
    """Memory that other processes can map, under fork, forkserver and spawn.

    The file has no name: the system frees it with the last process that holds it, however that
    process ends. Pickling sends a descriptor of the file, never its content.

    >>> import multiprocessing
    >>> from parllel import Array
    >>> array = Array((2,), np.int64, storage="shared")
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
        descriptor: a file of that size to map, which this object closes; a new one by default.
        taken: bytes at the beginning of that file which Arrays have taken already.

    Raises:
        MemoryError: there is less memory than that, with the bytes wanted and the bytes free.
        OSError: this process may have no more open files.
    """

    kind = "shared"

    def __init__(self, nbytes: int, *, descriptor: int | None = None, taken: int = 0) -> None:
        self._descriptor = _reserve(self.kind, nbytes) if descriptor is None else descriptor
        # A finalizer closes exactly once: at close, or with the last reference.
        self._close_file = weakref.finalize(self, os.close, self._descriptor)
        try:
            file_map = mmap.mmap(self._descriptor, max(nbytes, 1))  # an empty file can't be mapped
        except OSError as error:
            self._close_file()
            if error.errno in (errno.EMFILE, errno.ENFILE):  # there is memory, but no descriptor
                raise
            raise _refused(self.kind, nbytes, error) from error
        super().__init__(np.frombuffer(file_map, np.uint8)[:nbytes], taken)
        _mapped[_identity(self._descriptor)] = self

    @property
    def descriptor(self) -> int:
        """Descriptor of the file, which the block keeps. Another process can map the bytes with it.

        Raises:
            ValueError: the block is closed.
        """
        if self.is_closed:
            raise ValueError("shared memory: it is closed")
        return self._descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_closed:
            raise ValueError(
                f"{self.kind} memory: it is closed and can't be sent to another process"
            )
        return _receive, (_handle(self._descriptor), self.nbytes, self._taken)

    def _close(self) -> None:
        super()._close()
        self._close_file()


def _handle(descriptor: int) -> Any:  # Any: multiprocessing's own, by start method
    """Return what `detach` makes a descriptor of in the process that receives it."""
    child: Any = context.get_spawning_popen()  # Any: its list of descriptors is not declared
    if child is not None and child.method == "spawn" and descriptor in child._fds:
        return child.DupFd(descriptor)  # spawn refuses to pass the same one twice
    if child is None:  # multiprocessing hands it out by a socket, not to a child at its start
        _keep_socket_path_short()
    return reduction.DupFd(descriptor)


def _keep_socket_path_short() -> None:
    """Let multiprocessing make its folder in /tmp where a socket in TMPDIR has too long a path.

    Otherwise a Queue would drop the Array, and its receiver would wait for ever.

    Raises:
        OSError: multiprocessing has made its folder before.
    """
    folder = tempfile.gettempdir()
    if _nbytes_of_path(folder, _FOLDER_NAME, _SOCKET_NAME) <= _LONGEST_PATH:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        folder = util.get_temp_dir()  # made once, and kept
    finally:
        tempfile.tempdir = before
    nbytes = _nbytes_of_path(folder, _SOCKET_NAME)
    if nbytes > _LONGEST_PATH:
        raise OSError(
            errno.ENAMETOOLONG,
            f"shared memory can't be sent: got a path of {nbytes} bytes for multiprocessing's"
            f" socket, expected {_LONGEST_PATH} at most; set TMPDIR to a folder with a shorter path"
            " before the program starts",
            folder,
        )


def _nbytes_of_path(*parts: str) -> int:
    return len(os.fsencode(os.path.join(*parts)))


def _receive(handle: Any, nbytes: int, taken: int) -> Shared:
    """Map a block that was sent here, or return the map that this process has already."""
    descriptor: int = handle.detach()
    known = _mapped.get(_identity(descriptor))
    if known is None or known.is_closed:
        return Shared(nbytes, descriptor=descriptor, taken=taken)
    if descriptor != known._descriptor:  # a spawned child gets the same one again
        os.close(descriptor)
    return known


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _reserve(kind: str, nbytes: int) -> int:
    """Return the descriptor of a new, zeroed file of this size, with all its pages reserved."""
    check_available(kind, nbytes)
    descriptor = _anonymous_file()
    try:
        os.truncate(descriptor, max(nbytes, 1))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, max(nbytes, 1))
    except OSError as error:
        os.close(descriptor)
        raise _refused(kind, nbytes, error) from error
    return descriptor


def _refused(kind: str, nbytes: int, error: OSError) -> MemoryError:
    return MemoryError(
        f"{kind} memory: {nbytes:,} bytes wanted, and the system refused: {error.strerror}"
    )


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("parllel", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # a system without memfd: a file without a name
        return os.dup(file.fileno())

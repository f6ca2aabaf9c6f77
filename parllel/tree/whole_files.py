"""Files that are whole or not there: how they are written, and how strangers' files are opened."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from parllel.tree.file_locks import try_lock

# What is no file of its own: a link, a FIFO without a writer, a socket, a name that is too long.
_NO_PLAIN_FILE = (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)


class FileCheck(NamedTuple):
    """The length and the checksum with which the bytes of a file are compared.

    Args:
        nbytes: their number.
        crc32: their CRC-32, from 0 to 2**32 - 1.
    """

    nbytes: int
    crc32: int

    def after(self, data: bytes | memoryview) -> FileCheck:
        """Return the check of the bytes with others behind them.

        >>> FileCheck(0, 0).after(b"12345").after(b"6789")
        FileCheck(nbytes=9, crc32=3421780262)
        """
        return FileCheck(self.nbytes + len(data), zlib.crc32(data, self.crc32))


class CheckedWriter:
    """A new file that is being written, front to back, and the check of what was written so far.

    Args:
        file: the file, open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.check = FileCheck(0, 0)

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes behind those before, and return their number."""
        self.check = self.check.after(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Give all bytes to the system. They are on the disk when the file is whole."""
        self._file.flush()


def write_new_file(path: Path, write: Callable[[CheckedWriter], object]) -> FileCheck:
    """Create a file, and return when its bytes are on the disk; its entry in the folder may not be.

    It is created exclusively, with the permissions of the user's umask. If writing fails, the file
    is removed.

    Args:
        path: a name that no file has.
        write: a function that writes the content.

    Raises:
        FileExistsError: there is a file of that name, or a link.
        OSError: the disk is full, or the like.
    """
    with _new_file(path) as file:
        return _write_whole(file, write)


def replace_file(
    path: Path, write: Callable[[CheckedWriter], object], beside: Path | None = None
) -> FileCheck:
    """Write a file and put it in the place of another one in one step, also for a power cut.

    A reader who opens the path gets the old file or the new one, whole. The new one is on the disk
    when this returns. If anything fails, the old file is what it was, and nothing of the new one is
    left; only a process that is killed leaves the file that it was writing.

    Args:
        path: the file to replace. A link is replaced, and not what it leads to.
        write: a function that writes the content.
        beside: where the file is written before it is put in place, in the same folder. By
            default it is a name with random digits behind that of the file, `*.new`, and files that
            killed processes have left under such names are deleted before.

    Raises:
        ValueError: the path is that of a device, such as /dev/null.
        OSError: the disk is full, or the like.
    """
    if (path.is_char_device() or path.is_block_device()) and not path.is_symlink():
        raise ValueError(f"{path}: it is a device, which no file may replace")
    if beside is None:
        _delete_unfinished(path)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    with _new_file(beside) as file:
        check = _write_whole(file, write)
        os.replace(beside, path)
    sync_folder(path.parent)
    return check


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Create a file that is locked as long as this process writes it; remove it after an error."""
    while True:
        file = path.open("xb")
        if not _is_taken(file):
            break
        file.close()
        path.unlink(missing_ok=True)
    try:
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _is_taken(file: BinaryIO) -> bool:
    """Lock a new file; return whether another process has taken it for one of the dead before."""
    try:
        try_lock(file.fileno())
    except BlockingIOError:
        return True
    return not os.fstat(file.fileno()).st_nlink


def _write_whole(file: BinaryIO, write: Callable[[CheckedWriter], object]) -> FileCheck:
    writer = CheckedWriter(file)
    write(writer)
    file.flush()
    os.fsync(file.fileno())
    return writer.check


def _delete_unfinished(path: Path) -> None:
    """Delete what killed processes have left of files for this path: they hold no lock any more."""
    names = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.new")
    with suppress(OSError):
        for name in filter(names.fullmatch, os.listdir(path.parent)):
            unfinished = path.with_name(name)
            with suppress(OSError, ValueError), open_plain_file(unfinished) as file:
                if try_lock(file.fileno()):
                    unfinished.unlink()


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it, so that they are there after a power cut, too."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk: which files it has, by which names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_plain_file(path: Path) -> BinaryIO:
    """Open a file for reading that may come from a stranger. It returns at once.

    Args:
        path: its name. The folders of the path may be links.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link, a FIFO, a device or a folder.
        OSError: it may not be read, or the like.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _NO_PLAIN_FILE:
            raise
        raise ValueError(f"{path}: {error.strerror}; expected a plain file, and no link") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: it is a folder, a FIFO or a device; expected a plain file")
    return os.fdopen(descriptor, "rb")


def check_of(file: BinaryIO, chunk_nbytes: int = 2**22) -> FileCheck:
    """Read the rest of a file, and return the check of it.

    Args:
        file: open for reading.
        chunk_nbytes: number of bytes that are read at once.
    """
    check = FileCheck(0, 0)
    while data := file.read(chunk_nbytes):
        check = check.after(data)
    return check

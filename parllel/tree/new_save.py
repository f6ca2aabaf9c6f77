"""NewSave: a save that is being written to a folder, and what it leaves there: itself alone."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parllel.tree.file_locks import try_lock, unlock
from parllel.tree.saved_json import DamagedError, from_data, is_begun, read_data, to_data
from parllel.tree.whole_files import make_folders, replace_file, sync_folder, write_new_file

JSON_NAME = "tree.json"
PART_NAME = re.compile(r"\d{3,}-[\w.~%-]*\.(?P<save>\d{1,15})\.npy", re.ASCII)
_LIST_NAME = re.compile(r"tree\.(?P<save>\d{1,15})\.unfinished")
_JSON_NAME = re.compile(r"tree\.(?P<save>\d{1,15})\.new")
_MOST_SAVES = 10**12  # larger numbers are none of a save, and would leave no digits for the next
_QUOTED_PART = re.compile(r'"(\d{3,}-[\w.~%-]*\.\d{1,15}\.npy)"', re.ASCII)


class NewSave:
    """A save in a folder, from its first file until it stands in the place of the last one.

    `tree.3.unfinished` lists the files of save 3 and those of the save that it replaces, as long
    as it is being written. So a save that fails, and the next one after a process that was killed,
    delete files that a save is known to have written, and no others.

    A lock on the folder refuses a second saver. It ends with the process. Where the file system
    has no such locks, savers have names of their own all the same, created exclusively: the last
    one's save stands, and files of savers that were killed stay.

    Args:
        folder: the folder, which is made if there is none.
        names: the names of the files, with `{save}` where the number of the save stands.

    Attributes:
        number: number of the save, counted from 1.
        names: the names of the files.

    Raises:
        BlockingIOError: another process, or another thread, is saving there.
        OSError: the disk is full, or the like.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with NewSave(folder, ["000-reward.rows.{save}.npy"]) as save:
    ...     _ = (folder / save.names[0]).write_bytes(b"...")
    ...     save.finish({"files": save.names})
    >>> sorted(path.name for path in folder.iterdir())
    ['000-reward.rows.1.npy', 'tree.json']
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        make_folders(folder)
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._lock():
                self._clean_up_after_the_dead()
            self._begin(list(names))
        except BaseException:
            self._unlock()
            raise

    def _begin(self, patterns: list[str]) -> None:
        """Take a number that no save has: the one of the first list that could be created."""
        numbers = [
            int(match["save"])
            for name in os.listdir(self._folder)
            for kind in (PART_NAME, _LIST_NAME, _JSON_NAME)
            if (match := kind.fullmatch(name))
        ]
        self.number = max((number for number in numbers if number < _MOST_SAVES), default=0)
        self._replaced = self._standing() or set()
        while True:
            self.number += 1
            self.names = [pattern.replace("{save}", str(self.number)) for pattern in patterns]
            data = to_data({"files": sorted({*self.names, *self._replaced})})
            try:
                write_new_file(self._list_of(self.number), lambda file: file.write(data))  # noqa: B023
                return
            except FileExistsError:
                continue

    def finish(self, content: dict[str, Any]) -> None:
        """Put the save in the place of the last one: its files, their entries, then the JSON.

        Args:
            content: what the JSON holds.
        """
        data = to_data(content)
        sync_folder(self._folder)
        self._replaced |= self._standing() or set()
        path = self._folder / JSON_NAME
        replace_file(path, lambda file: file.write(data), self._unfinished_json(self.number))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error too: what the JSON names stays, be it the last save or this one.
        try:
            self._delete(self.number, {*self.names, *self._replaced})
        finally:
            self._unlock()

    def _standing(self) -> set[str] | None:
        """Return the files that the JSON names, even if it is damaged; None if it can't be read."""
        try:
            data = read_data(self._folder / JSON_NAME)
        except (FileNotFoundError, ValueError):
            return set()
        except OSError:
            return None
        return set(_QUOTED_PART.findall(data.decode(errors="replace")))

    def _delete(self, number: int, names: set[str]) -> None:
        """Delete those files of a save that the JSON does not name, and then its list."""
        standing = self._standing()
        if standing is None:
            return
        for name in sorted(names - standing):
            _delete_plain(self._folder / name)
        _delete_plain(self._unfinished_json(number))
        _delete_plain(self._list_of(number))

    def _clean_up_after_the_dead(self) -> None:
        """Delete what killed processes left: with the lock, no other save is being written."""
        for match in filter(None, map(_LIST_NAME.fullmatch, os.listdir(self._folder))):
            number, names = int(match["save"]), set[str]()
            try:
                data = read_data(self._folder / match[0])
                if not is_begun(data):
                    continue  # a file that no save has written
                names = {name for name in from_data(data)["files"] if PART_NAME.fullmatch(name)}
            except DamagedError:
                pass  # the list was not whole, so no file of it was written
            except (KeyError, OSError, TypeError, ValueError):
                continue
            self._delete(number, names)

    def _list_of(self, number: int) -> Path:
        return self._folder / f"tree.{number}.unfinished"

    def _unfinished_json(self, number: int) -> Path:
        return self._folder / f"tree.{number}.new"

    def _lock(self) -> bool:
        try:
            return try_lock(self._descriptor)
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                "another process or thread is saving to this folder; give each its own",
                str(self._folder),
            ) from error

    def _unlock(self) -> None:
        # By name: a forked child may hold a copy of the descriptor, and with it the lock.
        unlock(self._descriptor)
        os.close(self._descriptor)


def _delete_plain(path: Path) -> None:
    """Delete a file, unless it is none. A save that stands does not fail for it."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()

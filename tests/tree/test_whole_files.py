"""Files that are whole or not there, whatever happens to the process that writes them."""

import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parllel.tree import whole_files
from parllel.tree.whole_files import (
    CheckedWriter,
    check_of,
    make_folders,
    open_plain_file,
    replace_file,
    write_new_file,
)


def write_text(text: str) -> Callable[[CheckedWriter], object]:
    return lambda file: file.write(text.encode())


class DiskFullError(Exception):
    pass


def fail(*arguments: object, **more: object) -> Any:
    raise DiskFullError


def test_a_file_is_replaced_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for text in ("old", "newer"):
        check = replace_file(path, write_text(text))
        assert path.read_text() == text
        with open_plain_file(path) as file:
            assert check_of(file, chunk_nbytes=2) == check
        assert check.nbytes == len(text)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_deleted_by_the_next_one_and_nothing_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.pt"
    (tmp_path / "mine.new").write_text("mine")
    (tmp_path / f"other.pt.{'0' * 16}.new").write_text("another's")
    (tmp_path / f"model.pt.{'1' * 16}.new").symlink_to("mine.new")
    kept = set(tmp_path.iterdir())
    reader, writer = os.pipe()

    def write_and_hang(file: CheckedWriter) -> None:
        file.write(b"half")
        file.flush()
        os.write(writer, b".")
        time.sleep(60)

    child = os.fork()
    if child == 0:
        try:
            replace_file(path, write_and_hang)
        finally:
            os._exit(1)
    os.read(reader, 1)
    replace_file(path, write_text("new"))  # while the other one is being written
    unfinished = set(tmp_path.iterdir()) - kept - {path}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for descriptor in (reader, writer):
        os.close(descriptor)
    assert [each.read_text() for each in unfinished] == ["half"]
    replace_file(path, write_text("newer"))
    assert path.read_text() == "newer"
    assert set(tmp_path.iterdir()) == kept | {path}


def test_a_file_that_is_taken_for_one_of_the_dead_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process looks for such files at the worst moments: it has the lock, or had it."""
    real, lives = whole_files.try_lock, ["locked", "deleted"]

    def try_lock(descriptor: int) -> bool:
        if lives and lives.pop(0) == "locked":
            raise BlockingIOError
        if lives or not done:
            done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            os.unlink(done[-1])
        return real(descriptor)

    done: list[str] = []
    monkeypatch.setattr(whole_files, "try_lock", try_lock)
    replace_file(tmp_path / "model.pt", write_text("new"))
    assert len(done) == 1
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("model.pt", "new")]


def test_a_device_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "null"
    path.write_text("device")  # only a superuser makes devices
    monkeypatch.setattr(Path, "is_char_device", lambda each: each == path)
    with pytest.raises(ValueError, match=r"null: it is a device, which no file may replace"):
        replace_file(path, write_text("x"))
    assert path.read_text() == "device"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "model.pt"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DiskFullError):
            replace_file(path, write_text("new"))
    with pytest.raises(DiskFullError):
        replace_file(path, fail)
    assert [(each, each.read_text()) for each in tmp_path.iterdir()] == [(path, "old")]


def test_bytes_and_entries_reach_the_disk_in_an_order_that_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        calls.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        calls.append(f"{Path(source).name} to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    folder = tmp_path / "new" / "folder"
    make_folders(folder)
    assert calls == [f"sync {tmp_path.name}", "sync new"]
    calls.clear()
    replace_file(folder / "a.pt", write_text("x"), folder / "a.new")
    assert calls == ["sync a.new", "a.new to a.pt", "sync folder"]
    calls.clear()
    make_folders(folder)
    assert calls == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_permissions_are_those_of_the_umask(tmp_path: Path, mask: int) -> None:
    former = os.umask(mask)
    try:
        replace_file(tmp_path / "file", write_text("x"))
    finally:
        os.umask(former)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_links_are_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("link", "new"):
        (tmp_path / name).symlink_to("mine")
    replace_file(tmp_path / "link", write_text("x"))
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "new", write_text("x"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "x"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").is_symlink()


def put_link(path: Path) -> None:
    (path.parent / "other").write_text("secret")
    path.symlink_to("other")


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        former = Path.cwd()
        os.chdir(path.parent)  # paths of sockets are short
        try:
            bound.bind(path.name)
        finally:
            os.chdir(former)


@pytest.mark.parametrize("put", [put_link, put_loop, put_socket, os.mkfifo, Path.mkdir])
def test_what_is_no_plain_file_is_refused_at_once(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / "file")
    gc.collect()  # what earlier tests left
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(ValueError, match=r"/file: .*; expected a plain file"):
        open_plain_file(tmp_path / "file")
    assert os.listdir("/proc/self/fd") == descriptors
    with pytest.raises(FileNotFoundError):
        open_plain_file(tmp_path / "none")

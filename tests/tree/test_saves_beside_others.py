"""Saves beside readers, other savers, files of others, and what killed processes left."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parllel import Array, ArrayDict
from parllel.tree import file_locks, open_tree, part_files, save_tree
from parllel.tree.new_save import NewSave
from parllel.tree.saved_json import from_data, to_data


def make_tree(value: int, n: int = 2) -> ArrayDict:
    tree = ArrayDict({f"leaf{k}": Array((3, 2), "i8", feature_shape=(40,)) for k in range(n)})
    for _, leaf in tree.walk():
        leaf[...] = value
    return tree


def value_in(folder: Path) -> int:
    """Return the number that all leaves of a save have, which was also saved with it."""
    saved = open_tree(folder)
    saved.check()
    values = {int(each) for _, leaf in saved.map().walk() for each in np.unique(leaf.to_ndarray())}
    assert values == {saved.numbers["value"]}
    return values.pop()


def save(folder: Path, value: int, n: int = 2) -> None:
    save_tree(make_tree(value, n), folder, {"value": value})


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def in_child(function: Callable[[], object]) -> int:
    """Call a function in a forked child, and return the child's process id."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


FILES = {"000-leaf0.rows.{}.npy", "001-leaf1.rows.{}.npy"}


def files_of(number: int) -> set[str]:
    return {name.format(number) for name in FILES} | {"tree.json"}


def test_a_saver_that_was_killed_leaves_nothing_after_the_next_save(tmp_path: Path) -> None:
    """Killed at random moments: what stands is the last save or the new one, whole."""
    rng = np.random.default_rng(0)
    save(tmp_path, 0)
    for _ in range(15):
        last = value_in(tmp_path)

        def save_on(last: int = last) -> None:
            for value in range(last + 1, last + 1000):
                save(tmp_path, value)

        child = in_child(save_on)
        time.sleep(rng.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert value_in(tmp_path) >= last
    save(tmp_path, 7)
    assert value_in(tmp_path) == 7
    assert names_in(tmp_path) == files_of(open_tree(tmp_path).save)


@pytest.mark.parametrize("step", ["write_part", "sync_folder", "replace_file", "_delete"])
def test_each_step_can_be_the_last_one_of_a_killed_saver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    save(tmp_path, 1)
    owner: Any = {
        "write_part": "parllel.tree.saving.write_part",
        "_delete": "parllel.tree.new_save.NewSave._delete",
    }.get(step, f"parllel.tree.new_save.{step}")

    def save_and_die() -> None:
        monkeypatch.setattr(owner, lambda *_: os._exit(0))
        save(tmp_path, 2)

    os.waitpid(in_child(save_and_die), 0)
    assert "tree.2.unfinished" in names_in(tmp_path)
    assert value_in(tmp_path) == (2 if step == "_delete" else 1)
    save(tmp_path, 3)
    assert value_in(tmp_path) == 3
    assert names_in(tmp_path) == files_of(open_tree(tmp_path).save)


def test_only_files_of_known_saves_are_deleted(tmp_path: Path) -> None:
    names = [
        *(
            "2024-05-01.1.npy",
            "000-camera.3.npy",
            "000-leaf0.rows.1.npy.bak",
            "000-leaf9.rows.7.npy",
        ),
        *("tree.new", "tree.5.new", "tree.6.unfinished", "tree.json.bak"),
    ]
    for name in names:
        (tmp_path / name).write_text("mine")
    for value in range(3):
        save(tmp_path, value)
    assert value_in(tmp_path) == 2
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}
    assert len(names_in(tmp_path)) == len(names) + 3


@pytest.mark.parametrize(
    "name",
    [f"000-leaf0.rows.{10**15 - 1}.npy", f"tree.{10**15 - 1}.unfinished", "tree.2.new"],
)
def test_files_of_others_with_numbers_stop_no_save(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    (tmp_path / name).mkdir()
    for value in (2, 3):
        save(tmp_path, value)
        assert value_in(tmp_path) == value
    assert len(names_in(tmp_path)) == 4


def test_links_are_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("000-leaf0.rows.1.npy", "tree.json", "tree.2.new", "tree.2.unfinished"):
        (folder / name).symlink_to("../mine")
    save(folder, 1)
    assert (tmp_path / "mine").read_text() == "mine"
    assert value_in(folder) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"leaves": [{"files": 3}]}', "\xff"])
def test_a_damaged_json_stops_no_save(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "tree.json").write_text(text)
    save(tmp_path, 2)
    assert value_in(tmp_path) == 2


def test_files_that_a_damaged_json_still_names_are_deleted(tmp_path: Path) -> None:
    save(tmp_path, 1)
    text = (tmp_path / "tree.json").read_text()
    (tmp_path / "tree.json").write_text(text[: text.rindex(".npy") + 5])
    save(tmp_path, 2)
    assert names_in(tmp_path) == files_of(2)


def test_a_save_that_fails_gives_its_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    n_synced = 0
    fsync = os.fsync

    def fail_at(limit: int) -> Callable[[int], None]:
        def fsync_or_fail(descriptor: int) -> None:
            nonlocal n_synced
            n_synced += 1
            if n_synced == limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        return fsync_or_fail

    for limit in range(1, 6):  # the list, two files, the folder, the JSON
        n_synced = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_at(limit))
            with pytest.raises(OSError, match="No space left"):
                save(tmp_path, 2)
        assert value_in(tmp_path) == 1
        assert names_in(tmp_path) == files_of(1)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [({"k": {1, 2}}, TypeError), ({"k": b""}, TypeError)],
)
def test_numbers_that_json_cannot_hold_are_refused_before_anything_is_written(
    tmp_path: Path, numbers: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        save_tree(make_tree(1), tmp_path / "new", numbers)
    assert not (tmp_path / "new").exists()


def test_values_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply for JSON"):
        save_tree(make_tree(1), tmp_path / "new", {"k": value})
    assert not (tmp_path / "new").exists()


# Two savers, and readers


def test_a_second_saver_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with NewSave(tmp_path, ["000-x.rows.{save}.npy"]) as first:
        (tmp_path / first.names[0]).write_bytes(b"")
        with pytest.raises(BlockingIOError, match="another process or thread is saving"):
            save(tmp_path, 2)
    assert names_in(tmp_path) == files_of(1)
    save(tmp_path, 3)
    assert value_in(tmp_path) == 3


def refuse_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_locks_savers_do_each_other_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_locks.fcntl, "flock", refuse_locks)
    save(tmp_path, 1)
    with NewSave(tmp_path, ["000-x.rows.{save}.npy"]) as first:
        (tmp_path / first.names[0]).write_bytes(b"mine")
        save(tmp_path, 2)
        assert (tmp_path / first.names[0]).read_bytes() == b"mine"
        assert value_in(tmp_path) == 2
    assert value_in(tmp_path) == 2


def test_readers_get_a_whole_save_while_others_save(tmp_path: Path) -> None:
    save(tmp_path, 0, n=8)

    def save_on() -> None:
        for value in range(1, 10_000):
            save(tmp_path, value, n=8)

    savers = [in_child(save_on)]
    try:
        seen = {value_in(tmp_path) for _ in range(60)}
        deadline = time.monotonic() + 60
        while len(seen) == 1 and time.monotonic() < deadline:  # the saver may not have run yet
            seen.add(value_in(tmp_path))
    finally:
        for saver in savers:
            os.kill(saver, signal.SIGKILL)
            os.waitpid(saver, 0)
    assert len(seen) > 1


def test_an_opened_save_stays_readable(tmp_path: Path) -> None:
    save(tmp_path, 1)
    saved = open_tree(tmp_path)
    save(tmp_path, 2)
    saved.check()
    tree = make_tree(0)
    saved.load_into(tree)
    assert (tree["leaf0"].to_ndarray() == 1).all()
    assert (saved.map()["leaf1"].to_ndarray() == 1).all()


def test_a_file_that_changes_while_it_is_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    saved = open_tree(tmp_path)
    monkeypatch.setattr(part_files.PartFile, "compare", lambda self: None)
    path = tmp_path / "000-leaf0.rows.1.npy"
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(ValueError, match=r"000-leaf0.* CRC-32 .*; the file is not what was saved"):
        saved.load_into(make_tree(0))


# What the JSON says


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


FIRST = ("leaves", 0)
FILE = (*FIRST, "files", "rows")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (put(*FILE, "name", value=name), r"leaf 0: .*file|leaf 0: got a")
            for name in (
                "/etc/passwd",
                "../x.npy",
                "sub/000-x.rows.1.npy",
                "",
                ".",
                "a\0b",
                3,
                None,
            )
        ),
        (
            put(*FILE, "name", value="001-leaf1.rows.1.npy"),
            r"001-leaf1|file '001-leaf1.*of its own",
        ),
        (put(*FILE, "name", value="009-gone.rows.1.npy"), r"009-gone\.rows\.1\.npy: No such file"),
        (put(*FILE, "whole", value=[1]), "leaf 0: "),
        (put(*FILE, "whole", value=[1, 2.0]), "leaf 0: got a float, expected a int"),
        (
            put(*FILE, "header", value=[2**40, 0]),
            r"000-leaf0.*: a header of 1,099,511,627,776 bytes",
        ),
        (put(*FIRST, "files", value={}), "leaf 0: files: got none"),
        (put(*FIRST, "path", value=[]), "leaf 0: path of 0 names, expected 1 to 100"),
        (put(*FIRST, "path", value=["x"] * 101), "leaf 0: path of 101 names"),
        (put(*FIRST, "path", value=["leaf1"]), "leaf 1: path leaf1: another leaf has it"),
        (
            put(*FIRST, "path", value=["leaf1", "x"]),
            "leaf 1: path leaf1: another leaf has it, or is",
        ),
        (put("leaves", 1, "path", value=["leaf0", "x"]), "leaf 1: path leaf0.x: another leaf has"),
        (put(*FIRST, "path", value="leaf0"), "leaf 0: got a str, expected a list"),
        (put(*FIRST, "window_begin", value=0.0), "leaf leaf0: got a float, expected a int"),
        (put(*FIRST, "window_begin", value=1), "leaf leaf0: window_begin: got 1, expected a"),
        (put(*FIRST, "array", "batch_shape", value=[-3, -2]), "leaf leaf0: batch_shape: got"),
        (put(*FIRST, "array", "batch_shape", value=[3, 3]), "leaf leaf0: .* bytes, expected"),
        (
            put(*FIRST, "array", "feature_shape", value=[2, 20]),
            "leaf leaf0: mapped memory: the file",
        ),
        (put(*FIRST, "array", "kind", value=[]), "leaf leaf0: "),
        (put(*FIRST, "array", "more", value=1), "leaf leaf0: .*more"),
        (put("leaves", value={}), "leaves: got a dict, expected a list"),
        (put("save", value=True), "save, numbers and leaves: got a bool, expected a int"),
        (put("version", value=2), "expected parllel tree 3: it is parllel tree 2"),
        (lambda content: content["leaves"][0].pop("array"), "leaf leaf0: no 'array'"),
    ],
)
def test_a_json_of_a_stranger_is_refused_by_file_and_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    save(tmp_path, 1)
    content = from_data((tmp_path / "tree.json").read_bytes())
    change(content)
    (tmp_path / "tree.json").write_bytes(to_data(content))
    with pytest.raises(ValueError, match=message) as caught:
        open_tree(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000 + b"]" * 200_000,
        b'{"format": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"format": 1, "format": "parllel tree", "version": 3}',
        b"9" * 100_000,
        b"\xff\xfe",
        b"",
    ],
)
def test_text_that_no_save_has_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tree.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"tree\.json: expected parllel tree 3: "):
        open_tree(tmp_path)


def test_a_byte_that_is_no_boolean_is_refused(tmp_path: Path) -> None:
    """As a program writes it whose flags have other bits, with a right checksum."""
    leaf = Array((3,), np.bool_)
    leaf.to_ndarray().view(np.uint8)[1] = 2
    save_tree(ArrayDict({"leaf": leaf}), tmp_path, {})
    with pytest.raises(ValueError, match="a boolean of 2, expected 0 or 1"):
        open_tree(tmp_path).check()


@pytest.mark.parametrize("name", ["tree.json", "000-leaf0.rows.1.npy"])
def test_one_flipped_bit_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    data = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(len(data) * 8, 300, replace=False):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            open_tree(tmp_path).check()


@pytest.mark.parametrize(
    "put_it", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")]
)
@pytest.mark.parametrize("name", ["tree.json", "000-leaf0.rows.1.npy"])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, name: str, put_it: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    (tmp_path / name).unlink()
    put_it(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected a plain file"):
        open_tree(tmp_path)
    if name == "tree.json" and not (tmp_path / name).is_dir():
        save(tmp_path, 2)
        assert value_in(tmp_path) == 2


def test_a_hole_of_terabytes_is_refused_at_once(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("000-leaf0.rows.1.npy", "tree.json"):
        os.truncate(tmp_path / name, 2**41)
        with pytest.raises(ValueError, match=r"2,199,023,255,552 bytes, expected"):
            open_tree(tmp_path)

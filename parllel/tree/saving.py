"""Trees of Arrays as files: .npy files for each leaf, and one of JSON that names all of them.

A reader sees a save as one step: new files get new names, and only then one rename puts the new
JSON in the place of the old one. Before the rename the last save is whole; after it, the new one
is.

    tree.json                            the tree, its windows, and the numbers saved with it
    000-reward.rows.3.npy                leaf 0, the rows of its ring and padding, save 3
    001-observation.frames.3.npy         leaf 1, which has two parts
    001-observation.is_first.3.npy

Every .npy file is an array that `numpy.load` opens.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, ArraySpec, spec_from_entry
from parllel.cuda import AnyArray
from parllel.storages import aligned
from parllel.storages.mapped import Mapped
from parllel.tree.array_dict import ArrayDict
from parllel.tree.errors import raise_at
from parllel.tree.path import TreePath, path_text

_NAME = "tree.json"
_FORMAT, _VERSION = "parllel tree", 2
_PART_FILE = re.compile(r"\d{3,}-.*\.(?P<save>\d+)\.npy")
_NAME_LENGTH = 100  # of a path in a file's name: systems allow 255 bytes
_CHUNK_NBYTES = 2**26  # read or written at once: a copy of it is made of device memory


class SavedLeaf(NamedTuple):
    """One leaf of a saved tree.

    Args:
        path: the way to the leaf in the tree.
        files: the name of the file in the folder for each part of the Array's memory, by the
            part's name (`Array.memory_parts`). The first one has the Array's dtype.
        spec: what the Array looks like.
        window_begin: the row of its ring at which its window begins.
    """

    path: TreePath
    files: dict[str, str]
    spec: ArraySpec
    window_begin: int


@dataclass(frozen=True)
class SavedTree:
    """A tree in a folder, of which the JSON was read; leaves are read when they are asked for.

    Args:
        folder: the folder that it was saved to.
        leaves: its leaves, in the tree's order.
        save: number of the save, counted from 1.
        numbers: the numbers and texts that were saved with the tree.

    >>> import tempfile
    >>> tree = ArrayDict({"reward": Array((3, 2), np.float32)})
    >>> folder = tempfile.mkdtemp()
    >>> save_tree(tree, folder, {"n_batches": 7})
    >>> saved = open_tree(folder)
    >>> saved.numbers, saved.leaves[0].files
    ({'n_batches': 7}, {'rows': '000-reward.rows.1.npy'})
    >>> np.load(saved.folder / "000-reward.rows.1.npy").shape
    (3, 2)
    """

    folder: Path
    leaves: tuple[SavedLeaf, ...]
    save: int
    numbers: dict[str, Any]

    def load_into(self, tree: ArrayDict) -> None:
        """Read a tree's leaves, their rings and their windows.

        All leaves are checked before the first one is written.

        Args:
            tree: Arrays like those that were saved, in memory of any kind.

        Raises:
            KeyError: the tree has other leaves.
            ValueError: a leaf has another dtype or shape.
        """
        leaves = _arrays_of(tree)
        saved = {leaf.path: leaf for leaf in self.leaves}
        if leaves.keys() != saved.keys():
            missing, unknown = saved.keys() - leaves.keys(), leaves.keys() - saved.keys()
            raise KeyError(
                f"{self.folder}: leaves saved and not in the tree"
                f" {sorted(map(path_text, missing))}, in the tree and not saved"
                f" {sorted(map(path_text, unknown))}, expected the same"
            )
        for path, leaf in leaves.items():
            _check_spec(path, saved[path].spec, leaf.spec)
            for file, part in self._files_of(saved[path], leaf):
                _check_part(file, part)
        for path, leaf in leaves.items():
            for file, part in self._files_of(saved[path], leaf):
                _read(file, part)
            leaf.move_window(saved[path].window_begin)

    def _files_of(self, saved: SavedLeaf, leaf: Array) -> list[tuple[Path, AnyArray]]:
        """Return the parts of a leaf's memory, each with the file that holds it."""
        files = [self.folder / file for file in saved.files.values()]
        return list(zip(files, leaf.memory_parts.values(), strict=True))

    def map(self) -> ArrayDict:
        """Return the tree over the files themselves, read when they are used.

        What is written to it stays in this process: the files never change.
        """
        tree = ArrayDict()
        for leaf in self.leaves:
            branch = tree
            for name in leaf.path[:-1]:
                branch = branch.setdefault(name, ArrayDict())
            files = [self.folder / file for file in leaf.files.values()]
            array = Array.from_spec(leaf.spec, Mapped(files))
            array.move_window(leaf.window_begin)
            branch[leaf.path[-1]] = array
        return tree

    def part(self, name: str) -> SavedTree:
        """Return the branch of a name as a tree of its own."""
        leaves = [leaf for leaf in self.leaves if leaf.path[0] == name]
        inner = tuple(leaf._replace(path=leaf.path[1:]) for leaf in leaves)
        return replace(self, leaves=inner)


def open_tree(folder: str | Path, kinds: Collection[type[ArraySpec]] = ()) -> SavedTree:
    """Return what was saved in a folder last.

    Args:
        folder: the folder that `save_tree` was given.
        kinds: the specs of kinds of Array in it that are not the package's own.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: it is no such folder, or a file of it is not whole.
    """
    folder = Path(folder)
    json_path = folder / _NAME
    if not json_path.exists():
        raise FileNotFoundError(f"{json_path}: no such file, expected a folder of save_tree")
    try:
        content = json.loads(json_path.read_text())
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is {content['format']} {content['version']}")
        entries = list(content["leaves"])
        for entry in entries:
            entry["path"], entry["files"] = tuple(entry["path"]), dict(entry["files"])
        saved = SavedTree(folder, (), content["save"], content["numbers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{json_path}: expected {_FORMAT} {_VERSION}; {error}") from error
    return replace(saved, leaves=tuple(_leaf_from(entry, folder, kinds) for entry in entries))


def save_tree(tree: ArrayDict, folder: str | Path, numbers: Mapping[str, Any]) -> None:
    """Save all leaves of a tree of Arrays, their rings and windows, in the place of the last save.

    The bytes are on the disk when this returns. From device memory, the host waits for the
    caller's current stream. While it saves, the folder holds both saves.

    Args:
        tree: Arrays that are no views.
        folder: the folder, which is made if there is none. Files of earlier saves are deleted.
        numbers: values that JSON can hold, to be saved with the tree.

    Raises:
        OSError: the disk is full, or the like; the last save is what it was.
        TypeError: a leaf is no Array, it is a view, or a .npy file can't hold its dtype.
    """
    leaves = _arrays_of(tree)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save = _next_save(folder)
    saved = []
    for number, (path, leaf) in enumerate(leaves.items()):
        try:
            saved.append(_write(folder, number, path, save, leaf))
        except TypeError as error:
            raise_at(path, error)
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "save": save,
        "leaves": [_entry_of(leaf) for leaf in saved],
        "numbers": dict(numbers),
    }
    _replace(folder / _NAME, json.dumps(content, indent=1))
    _delete_others(folder, {file for leaf in saved for file in leaf.files.values()})


def _arrays_of(tree: ArrayDict) -> dict[TreePath, Array]:
    """Return a tree's leaves by their paths, which all have to be Arrays."""
    leaves = dict(tree.walk())
    for path, leaf in leaves.items():
        if not isinstance(leaf, Array):
            raise TypeError(f"{path_text(path)}: got a {type(leaf).__name__}, expected an Array")
    return leaves


def _next_save(folder: Path) -> int:
    try:
        return open_tree(folder).save + 1
    except (FileNotFoundError, ValueError):
        found = [_PART_FILE.fullmatch(path.name) for path in folder.iterdir()]
        return max((int(match["save"]) for match in found if match), default=0) + 1


def _chunks(part: AnyArray) -> Iterator[AnyArray]:
    """Yield all rows of an array, some at a time."""
    n_rows = max(1, _CHUNK_NBYTES * len(part) // max(part.nbytes, 1))
    yield from (part[begin : begin + n_rows] for begin in range(0, len(part), n_rows))


def _write(folder: Path, number: int, path: TreePath, save: int, leaf: Array) -> SavedLeaf:
    """Write each part of a leaf's memory to a file of its own."""
    spec, window_begin = leaf.spec, leaf.window_begin  # refuses a view
    text = quote(".".join(path), safe="")[:_NAME_LENGTH]
    files = {}
    for name, part in leaf.memory_parts.items():
        files[name] = f"{number:03d}-{text}.{name}.{save}.npy"
        _write_part(folder / files[name], part)
    return SavedLeaf(path, files, spec, window_begin)


def _write_part(path: Path, part: AnyArray) -> None:
    # NumPy writes the header, and reads it back: what it can't read later is refused now. The rows
    # are written through the file and not through the map, which has no error for a full disk.
    offset = np.lib.format.open_memmap(path, "w+", part.dtype, part.shape).offset
    try:
        read = np.lib.format.open_memmap(path, "r").dtype
    except ValueError as error:
        raise TypeError(f"dtype: got {part.dtype}, which NumPy does not read back") from error
    if read != part.dtype:
        raise TypeError(f"dtype: got {part.dtype}, which NumPy reads back as {read}")
    with path.open("r+b") as file:
        file.seek(offset)
        for rows in _chunks(part):
            file.write(_as_bytes(rows))
        file.flush()
        os.fsync(file.fileno())


def _as_bytes(rows: AnyArray) -> memoryview:
    values = rows if isinstance(rows, np.ndarray) else cuda.to_host(rows)
    return values.reshape(-1).view(np.uint8).data


def _read(path: Path, part: AnyArray) -> None:
    for rows, values in zip(_chunks(part), _chunks(_map(path)), strict=True):
        if isinstance(rows, np.ndarray):
            rows[...] = values
        else:
            cuda.copy_to_device(values, out_device=rows)


def _check_part(path: Path, part: AnyArray) -> None:
    saved = _map(path)
    if (saved.shape, saved.dtype) != (part.shape, part.dtype):
        raise ValueError(
            f"{path}: {saved.dtype} {saved.shape}, expected {part.dtype} {part.shape}; the file is"
            " not what was saved"
        )


def _map(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file, read when it is used."""
    try:
        return np.asarray(np.lib.format.open_memmap(path, "r"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; the file is not what was saved") from error


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _delete_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if _PART_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def _entry_of(leaf: SavedLeaf) -> dict[str, Any]:
    return {
        "path": leaf.path,
        "files": leaf.files,
        "window_begin": leaf.window_begin,
        "array": leaf.spec.to_entry(),
    }


def _leaf_from(
    entry: Mapping[str, Any], folder: Path, kinds: Collection[type[ArraySpec]]
) -> SavedLeaf:
    """Return the leaf of an entry of the JSON, whose files are checked."""
    parts = [_map(folder / file) for file in entry["files"].values()]
    try:
        spec = spec_from_entry(entry["array"], parts[0].dtype, kinds)
        leaf = SavedLeaf(entry["path"], entry["files"], spec, entry["window_begin"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / _NAME}: expected {_FORMAT} {_VERSION}; {error}") from error
    nbytes = 0
    for part in parts:
        nbytes = aligned(nbytes) + part.nbytes
    if nbytes != spec.nbytes:
        raise ValueError(
            f"{folder / next(iter(leaf.files.values()))}: {nbytes:,} bytes, expected"
            f" {spec.nbytes:,} of the leaf {path_text(leaf.path)}; the file is not what was saved"
        )
    return leaf


def _check_spec(path: TreePath, saved: ArraySpec, found: ArraySpec) -> None:
    if saved != found:
        error = ValueError(f"saved {saved}, expected {found} as the tree has")
        raise_at(path, error)

"""Trees of Arrays as files: a raw one for each leaf, and one of JSON that names and describes them.

A save is one step for whoever reads: new files get new names, and only then one rename puts the
JSON in its place. Before it, the last save is whole; after it, the new one is.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import numpy as np

from parllel import cuda
from parllel.arrays import Array, ArraySpec, spec_from_entry
from parllel.storages import aligned
from parllel.storages.mapped import Mapped
from parllel.tree.array_dict import ArrayDict
from parllel.tree.errors import raise_at
from parllel.tree.path import TreePath, path_text

AnyArray: TypeAlias = Any  # numpy.ndarray or cupy.ndarray

_NAME = "tree.json"
_FORMAT, _VERSION = "parllel tree", 1
_RAW = re.compile(r"\d{3,}-.*\.(?P<save>\d+)\.raw")
_NAME_LENGTH = 100  # of a path in a file's name: systems allow 255 bytes
_CHUNK_NBYTES = 2**26  # read or written at once: a copy of it is made of device memory


class SavedLeaf(NamedTuple):
    """A leaf as a file.

    Args:
        names: the way to it in the tree.
        file: its name in the folder.
        spec: of the Array.
        window_begin: of the Array.
    """

    names: TreePath
    file: str
    spec: ArraySpec
    window_begin: int


@dataclass(frozen=True)
class SavedTree:
    """A tree in a folder, of which the JSON was read; leaves are read when they are asked for.

    Args:
        folder: where it is.
        leaves: in the tree's order.
        save: number of the save, counted from 1.
        numbers: what was saved with the tree.
    """

    folder: Path
    leaves: tuple[SavedLeaf, ...]
    save: int
    numbers: dict[str, Any]

    def load_into(self, tree: ArrayDict) -> None:
        """Read a tree's leaves, their rings and their windows.

        All leaves are checked before the first one is written.

        Raises:
            KeyError: the tree has other leaves.
            ValueError: a leaf has another dtype or shape.
        """
        leaves = _arrays_of(tree)
        saved = {leaf.names: leaf for leaf in self.leaves}
        if leaves.keys() != saved.keys():
            missing, unknown = saved.keys() - leaves.keys(), leaves.keys() - saved.keys()
            raise KeyError(
                f"{self.folder}: leaves saved and not in the tree"
                f" {sorted(map(path_text, missing))}, in the tree and not saved"
                f" {sorted(map(path_text, unknown))}, expected the same"
            )
        for names, leaf in leaves.items():
            _check_spec(names, saved[names].spec, leaf.spec)
        for names, leaf in leaves.items():
            _read(self.folder / saved[names].file, leaf)
            leaf.move_window(saved[names].window_begin)

    def map(self) -> ArrayDict:
        """Return the tree over the files themselves, read when they are used.

        What is written to it stays in this process: the files never change.
        """
        tree = ArrayDict()
        for leaf in self.leaves:
            branch = tree
            for name in leaf.names[:-1]:
                branch = branch.setdefault(name, ArrayDict())
            array = Array.from_spec(leaf.spec, Mapped(self.folder / leaf.file))
            array.move_window(leaf.window_begin)
            branch[leaf.names[-1]] = array
        return tree

    def part(self, name: str) -> SavedTree:
        """Return the branch of a name as a tree of its own."""
        leaves = [leaf for leaf in self.leaves if leaf.names[0] == name]
        inner = tuple(leaf._replace(names=leaf.names[1:]) for leaf in leaves)
        return replace(self, leaves=inner)


def open_tree(folder: str | Path, kinds: Collection[type[ArraySpec]] = ()) -> SavedTree:
    """Return what was saved in a folder last.

    Args:
        folder: of `save_tree`.
        kinds: the specs of kinds of Array in it that are not the package's own.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: it is no such folder, or a file of it is not whole.
    """
    folder = Path(folder)
    path = folder / _NAME
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected a folder of save_tree")
    try:
        content = json.loads(path.read_text())
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is {content['format']} {content['version']}")
        leaves = tuple(_leaf_from(entry, kinds) for entry in content["leaves"])
        saved = SavedTree(folder, leaves, content["save"], content["numbers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected {_FORMAT} {_VERSION}; {error}") from error
    for leaf in leaves:
        _check_file(folder / leaf.file, leaf)
    return saved


def save_tree(tree: ArrayDict, folder: str | Path, numbers: Mapping[str, Any]) -> None:
    """Save all leaves of a tree of Arrays, their rings and windows, in the place of the last save.

    The bytes are on the disk when this returns. From device memory, the host waits for the
    caller's current stream. While it saves, the folder holds both saves.

    Args:
        tree: of Arrays that are no views.
        folder: made if there is none. Files of earlier saves are deleted.
        numbers: what JSON can hold, saved with the tree.

    Raises:
        OSError: the disk is full, or the like; the last save is what it was.
        TypeError: a leaf is no Array, or it is a view.
    """
    leaves = list(_arrays_of(tree).items())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save = _next_save(folder)
    saved = [_describe(number, names, save, leaf) for number, (names, leaf) in enumerate(leaves)]
    for entry, (_, leaf) in zip(saved, leaves, strict=True):
        _write(folder / entry.file, leaf)
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "save": save,
        "leaves": [_entry_of(leaf) for leaf in saved],
        "numbers": dict(numbers),
    }
    _replace(folder / _NAME, json.dumps(content, indent=1))
    _delete_others(folder, {leaf.file for leaf in saved})


def _check_file(path: Path, leaf: SavedLeaf) -> None:
    nbytes = path.stat().st_size if path.exists() else 0
    if nbytes != leaf.spec.nbytes:
        raise ValueError(
            f"{path}: {nbytes:,} bytes, expected {leaf.spec.nbytes:,} of the leaf"
            f" {path_text(leaf.names)}; the file is not what was saved"
        )


def _arrays_of(tree: ArrayDict) -> dict[TreePath, Array]:
    """Return a tree's leaves by their paths, which all have to be Arrays."""
    leaves = dict(tree.walk())
    for path, leaf in leaves.items():
        if not isinstance(leaf, Array):
            raise TypeError(f"{path_text(path)}: got a {type(leaf).__name__}, expected an Array")
    return leaves


def _describe(number: int, names: TreePath, save: int, leaf: Array) -> SavedLeaf:
    file = f"{number:03d}-{quote('.'.join(names), safe='')[:_NAME_LENGTH]}.{save}.raw"
    try:
        return SavedLeaf(names, file, leaf.spec, leaf.window_begin)
    except TypeError as error:
        raise_at(names, error)


def _next_save(folder: Path) -> int:
    try:
        return open_tree(folder).save + 1
    except (FileNotFoundError, ValueError):
        found = [_RAW.fullmatch(path.name) for path in folder.iterdir()]
        return max((int(match["save"]) for match in found if match), default=0) + 1


def _chunks(part: AnyArray) -> Iterator[AnyArray]:
    """Yield all rows of an array, some at a time."""
    n_rows = max(1, _CHUNK_NBYTES * len(part) // max(part.nbytes, 1))
    yield from (part[begin : begin + n_rows] for begin in range(0, len(part), n_rows))


def _write(path: Path, leaf: Array) -> None:
    """Write the parts as they lie in a block of memory."""
    with path.open("wb") as file:
        for part in leaf.memory_parts:
            file.seek(aligned(file.tell()))
            for rows in _chunks(part):
                file.write(_as_bytes(rows))
        file.flush()
        os.fsync(file.fileno())


def _as_bytes(rows: AnyArray) -> memoryview:
    values = rows if isinstance(rows, np.ndarray) else cuda.to_host(rows)
    return values.reshape(-1).view(np.uint8).data


def _read(path: Path, leaf: Array) -> None:
    saved = Array.from_spec(leaf.spec, Mapped(path))
    for part, saved_part in zip(leaf.memory_parts, saved.memory_parts, strict=True):
        for rows, values in zip(_chunks(part), _chunks(saved_part), strict=True):
            if isinstance(rows, np.ndarray):
                rows[...] = values
            else:
                cuda.copy_to_device(values, out_device=rows)


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
        if _RAW.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def _entry_of(leaf: SavedLeaf) -> dict[str, Any]:
    return {
        "names": leaf.names,
        "file": leaf.file,
        "dtype": repr(np.lib.format.dtype_to_descr(leaf.spec.dtype)),
        "window_begin": leaf.window_begin,
        "array": leaf.spec.to_entry(),
    }


def _leaf_from(entry: Mapping[str, Any], kinds: Collection[type[ArraySpec]]) -> SavedLeaf:
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(entry["dtype"]))
    spec = spec_from_entry(entry["array"], dtype, kinds)
    return SavedLeaf(tuple(entry["names"]), entry["file"], spec, entry["window_begin"])


def _check_spec(path: TreePath, saved: ArraySpec, found: ArraySpec) -> None:
    if saved != found:
        error = ValueError(f"saved {saved}, expected {found} as the tree has")
        raise_at(path, error)

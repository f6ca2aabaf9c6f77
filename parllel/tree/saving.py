"""Trees of Arrays as files: .npy files for each leaf, and one of JSON that names all of them.

A reader sees a save as one step: new files get new names, and only then one rename puts the new
JSON in the place of the old one. Before the rename the last save is whole; after it, the new one
is. The JSON holds checksums of all files, and one of itself.

    tree.json                            the tree, its windows, and the numbers saved with it
    000-reward.rows.3.npy                leaf 0, the rows of its ring and padding, save 3
    001-observation.frames.3.npy         leaf 1, which has two parts
    001-observation.is_first.3.npy

Every .npy file is an array that `numpy.load` opens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, ArraySpec, spec_from_entry
from parllel.cuda import AnyArray
from parllel.storages import aligned, nbytes_of
from parllel.storages.mapped import Mapped
from parllel.tree.array_dict import ArrayDict
from parllel.tree.errors import raise_at
from parllel.tree.new_save import JSON_NAME, PART_NAME, NewSave
from parllel.tree.part_files import PartCheck, PartFile, header_of, write_part
from parllel.tree.path import TreePath, path_text
from parllel.tree.saved_json import check_crc32, parse, read_data, to_data
from parllel.tree.whole_files import FileCheck

_FORMAT, _VERSION = "parllel tree", 3
_NAME_LENGTH = 100  # of a path in a file's name: systems allow 255 bytes
_DEPTH = 100  # of a tree
_N_READS = 100  # of a folder that another process saves to again and again
# What is raised where JSON holds other types and numbers than a save has.
_ENTRY_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)

Kind = TypeVar("Kind")


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

    Its files were opened and stay readable, also when a new save takes the place of this one. Their
    lengths and headers were compared with the JSON; `check` compares all bytes.

    Args:
        folder: the folder that it was saved to.
        leaves: its leaves, in the tree's order.
        save: number of the save, counted from 1.
        numbers: the numbers and texts that were saved with the tree.
        parts: the open files, by their names.

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
    parts: Mapping[str, PartFile] = field(repr=False)

    @property
    def json_path(self) -> Path:
        """The file of the folder that names all others."""
        return self.folder / JSON_NAME

    def check(self) -> None:
        """Read all files, and compare them with their checksums.

        Raises:
            ValueError: a file is not what was saved.
            OSError: a file can't be read.
        """
        for leaf in self.leaves:
            for file in leaf.files.values():
                self.parts[file].compare()

    def load_into(self, tree: ArrayDict) -> None:
        """Read a tree's leaves, their rings and their windows.

        All is checked before the first leaf is written: the files are read twice, and never held
        in memory. A `JaggedArray` that may grow takes as much memory as the saved one had.

        Args:
            tree: Arrays like those that were saved, in memory of any kind.

        Raises:
            KeyError: the tree has other leaves.
            ValueError: a leaf has another dtype or shape, or a file is not what was saved.
            OSError: a file can't be read.
        """
        self.check_fits(tree)
        self.check()
        leaves = dict(tree.walk())
        for saved in self.leaves:
            leaves[saved.path].make_room(saved.spec)
        for saved in self.leaves:
            leaf = leaves[saved.path]
            for name, file in saved.files.items():
                self.parts[file].read_into(leaf.memory_parts[name])
            leaf.move_window(saved.window_begin)

    def check_fits(self, tree: ArrayDict) -> None:
        """Raise unless a tree has the leaves that were saved, of the same shapes and dtypes.

        Args:
            tree: as for `load_into`, which asks this first.

        Raises:
            KeyError, ValueError: as for `load_into`.
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
            leaf.window_begin  # noqa: B018  # refuses a view
            _check_spec(path, saved[path].spec, leaf)

    def read_leaf(self, *path: str) -> NDArray[Any]:
        """Return a copy of all rows of a plain leaf, ring and padding, compared with its checksum.

        Args:
            path: names of the branches on the way to the leaf.

        Raises:
            ValueError: the tree has no such leaf, or its file is not what was saved.
        """
        for leaf in self.leaves:
            if leaf.path == path:
                part = self.parts[next(iter(leaf.files.values()))]
                part.compare()
                rows: NDArray[Any] = np.empty(part.shape, part.dtype)
                part.read_into(rows)
                return rows
        raise ValueError(f"{self.json_path}: expected a leaf {path_text(path)}")

    def map(self) -> ArrayDict:
        """Return the tree over the files themselves, read when they are used.

        What is written to it stays in this process: the files never change. Their bytes are not
        compared with the checksums, for which `check` has to read them all. A file that another
        program cuts off meanwhile ends this process (SIGBUS) where the missing bytes are read.
        """
        tree = ArrayDict()
        for leaf in self.leaves:
            branch = tree
            for name in leaf.path[:-1]:
                branch = branch.setdefault(name, ArrayDict())
            array = _map_leaf(leaf, self.parts)
            array.move_window(leaf.window_begin)
            branch[leaf.path[-1]] = array
        return tree

    def part(self, name: str) -> SavedTree:
        """Return the branch of a name as a tree of its own."""
        leaves = [leaf for leaf in self.leaves if leaf.path[0] == name and len(leaf.path) > 1]
        inner = tuple(leaf._replace(path=leaf.path[1:]) for leaf in leaves)
        return replace(self, leaves=inner)


def open_tree(folder: str | Path, kinds: Collection[type[ArraySpec]] = ()) -> SavedTree:
    """Return what was saved in a folder last.

    If a new save takes its place during that, the new one is read. A stranger's folder is read
    safely: no other file is opened, and no code is run.

    Args:
        folder: the folder that `save_tree` was given.
        kinds: the specs of kinds of Array in it that are not the package's own.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: it is no such folder, or a file of it is not whole.
        OSError: a file can't be read.
    """
    json_path = Path(folder) / JSON_NAME
    data = _read(json_path)
    for _ in range(_N_READS):
        try:
            return _open(json_path, data, kinds)
        except ValueError:
            former, data = data, _read(json_path)
            if data == former:
                raise
    raise ValueError(f"{json_path}: it changed {_N_READS} times while it was read; try again later")


def save_tree(tree: ArrayDict, folder: str | Path, numbers: Mapping[str, Any]) -> None:
    """Save all leaves of a tree of Arrays, their rings and windows, in the place of the last save.

    The bytes are on the disk when this returns. From device memory, the host waits for the
    caller's current stream. While it saves, the folder holds both saves.

    Args:
        tree: Arrays that are no views.
        folder: the folder, which is made if there is none. Files of earlier saves are deleted.
        numbers: values that JSON can hold, to be saved with the tree.

    Raises:
        BlockingIOError: another process, or another thread, is saving to the folder.
        OSError: the disk is full, or the like; the last save is what it was, and nothing is left of
            this one.
        TypeError: a leaf is no Array, it is a view, or a .npy file can't hold its dtype; or JSON
            can't hold a number. Nothing is written.
        ValueError: numbers are nested too deeply or too long for JSON, or the tree is too deep.
            Nothing is written.
    """
    leaves = _arrays_of(tree)
    to_data({"numbers": dict(numbers)})
    planned = [_plan(number, path, leaf) for number, (path, leaf) in enumerate(leaves.items())]
    parts = [part for leaf in planned for part in leaf.parts]
    with NewSave(Path(folder), [part.pattern for part in parts]) as save:
        entries = dict(zip((part.pattern for part in parts), save.names, strict=True))
        saved = [leaf.write(Path(folder), entries) for leaf in planned]
        content = {"format": _FORMAT, "version": _VERSION, "save": save.number}
        save.finish({**content, "leaves": saved, "numbers": dict(numbers)})


class _PlannedPart(NamedTuple):
    """A part of a leaf before it is written; `{save}` stands for the save's number in the name."""

    name: str
    pattern: str
    header: bytes
    rows: AnyArray


class _PlannedLeaf(NamedTuple):
    path: TreePath
    spec: ArraySpec
    window_begin: int
    parts: list[_PlannedPart]

    def write(self, folder: Path, names: Mapping[str, str]) -> dict[str, Any]:
        """Write the files of a leaf, and return its entry of the JSON."""
        files = {}
        for part in self.parts:
            file = names[part.pattern]
            check = write_part(folder / file, part.header, part.rows)
            files[part.name] = {"name": file, "header": check.header, "whole": check.whole}
        return {
            "path": self.path,
            "files": files,
            "window_begin": self.window_begin,
            "array": self.spec.to_entry(),
        }


def _plan(number: int, path: TreePath, leaf: Array) -> _PlannedLeaf:
    if len(path) > _DEPTH:
        raise ValueError(f"{path_text(path)}: {len(path)} names, expected {_DEPTH} at most")
    text = quote(".".join(path), safe="", errors="surrogatepass")[:_NAME_LENGTH]
    try:
        spec, window_begin = leaf.spec, leaf.window_begin  # refuses a view
        parts = [
            _PlannedPart(name, f"{number:03d}-{text}.{name}.{{save}}.npy", header_of(rows), rows)
            for name, rows in leaf.memory_parts.items()
        ]
    except TypeError as error:
        raise_at(path, error)
    return _PlannedLeaf(path, spec, window_begin, parts)


def _arrays_of(tree: ArrayDict) -> dict[TreePath, Array]:
    """Return a tree's leaves by their paths, which all have to be Arrays."""
    leaves = dict(tree.walk())
    for path, leaf in leaves.items():
        if not isinstance(leaf, Array):
            raise TypeError(f"{path_text(path)}: got a {type(leaf).__name__}, expected an Array")
    return leaves


def _read(json_path: Path) -> bytes:
    try:
        return read_data(json_path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{json_path}: no such file, expected a folder of save_tree"
        ) from error


def _open(json_path: Path, data: bytes, kinds: Collection[type[ArraySpec]]) -> SavedTree:
    """Open all files that the JSON names, and check all that it says about them."""
    with _told(json_path, f"expected {_FORMAT} {_VERSION}"):
        content = parse(data)
        if (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
            raise ValueError(f"it is {content.get('format')} {content.get('version')}")
        check_crc32(data)
    with _told(json_path, "save, numbers and leaves"):
        save, numbers = _typed(content["save"], int), _typed(content["numbers"], dict)
        entries = _typed(content["leaves"], list)
    parts: dict[str, PartFile] = {}
    leaves: dict[TreePath, SavedLeaf] = {}
    branches: set[TreePath] = set()
    for number, entry in enumerate(entries):
        with _told(json_path, f"leaf {number}"):
            path = tuple(_typed(name, str) for name in _typed(entry["path"], list))
            _check_path(path, leaves, branches)
            checks = _checks_from(entry["files"], parts)
        opened = {name: PartFile(json_path.parent / name, each) for _, name, each in checks}
        parts.update(opened)
        with _told(json_path, f"leaf {path_text(path)}"):
            dtype = opened[checks[0][1]].dtype
            spec = spec_from_entry(_typed(entry["array"], dict), dtype, kinds)
            window_begin = _typed(entry["window_begin"], int)
            spec.window().move(window_begin)
            files = {part: name for part, name, _ in checks}
            leaf = SavedLeaf(path, files, spec, window_begin)
            _check_parts(leaf, opened)
        leaves[path] = leaf
    return SavedTree(json_path.parent, tuple(leaves.values()), save, numbers, parts)


@contextmanager
def _told(json_path: Path, where: str) -> Iterator[None]:
    try:
        yield
    except _ENTRY_ERRORS as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{json_path}: {where}: {text}; it is not what was saved") from error


def _typed(value: object, kind: type[Kind]) -> Kind:
    """Return a value of JSON, whose type is exactly a given one: True is no integer."""
    if type(value) is not kind:
        raise TypeError(f"got a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _check_path(path: TreePath, leaves: Collection[TreePath], branches: set[TreePath]) -> None:
    """Raise unless a leaf can have a path beside others, and add its branches to theirs."""
    if not 1 <= len(path) <= _DEPTH:
        raise ValueError(f"path of {len(path)} names, expected 1 to {_DEPTH}")
    above = {path[:length] for length in range(1, len(path))}
    if path in leaves or path in branches or not above.isdisjoint(leaves):
        raise ValueError(f"path {path_text(path)}: another leaf has it, or is a branch of it")
    branches |= above


def _checks_from(files: object, taken: Collection[str]) -> list[tuple[str, str, PartCheck]]:
    """Return part, file and check for each part of a leaf; files are names in the folder."""
    checks = []
    for part, entry in _typed(files, dict).items():
        name = _typed(entry["name"], str)
        if not PART_NAME.fullmatch(name) or name in taken:
            raise ValueError(f"file {name!r}, expected a name of its own as 000-leaf.rows.1.npy")
        header, whole = (
            FileCheck(*(_typed(number, int) for number in _typed(entry[key], list)))
            for key in ("header", "whole")
        )
        checks.append((part, name, PartCheck(header, whole)))
    if not checks:
        raise ValueError("files: got none, expected one for each part of the leaf")
    return checks


def _check_parts(leaf: SavedLeaf, parts: Mapping[str, PartFile]) -> None:
    """Raise unless the files of a leaf are the memory that its spec describes."""
    nbytes = 0
    for file in leaf.files.values():
        nbytes = aligned(nbytes) + nbytes_of(parts[file].shape, parts[file].dtype)
    if nbytes != leaf.spec.nbytes:
        raise ValueError(f"{nbytes:,} bytes, expected {leaf.spec.nbytes:,} of {leaf.spec}")
    names = list(_map_leaf(leaf, parts).memory_parts)
    if names != list(leaf.files):
        raise ValueError(f"files of the parts {list(leaf.files)}, expected {names}")


def _map_leaf(leaf: SavedLeaf, parts: Mapping[str, PartFile]) -> Array:
    return Array.from_spec(leaf.spec, Mapped([parts[file].map() for file in leaf.files.values()]))


def _check_spec(path: TreePath, saved: ArraySpec, leaf: Array) -> None:
    if not leaf.spec.holds(saved):
        error = ValueError(f"saved {saved}, expected {leaf.spec} as the tree has")
        raise_at(path, error)

"""ArrayDict: a tree of named arrays that is used like one array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NoReturn

from parllel.arrays import Array, ArraySpec
from parllel.arrays.row_plan import PlannedRows, RowPlan, find_write, write_whole
from parllel.storages import KINDS, Memory, aligned, allocate
from parllel.tree.errors import raise_at
from parllel.tree.gathers import gather, has_arrays, scatter
from parllel.tree.leaves import (
    arrays_over,
    as_ndarray,
    as_tensor,
    call,
    call_method,
    check_write,
    checked_write,
    describe_leaf,
    lock,
)
from parllel.tree.path import TreePath, path_text
from parllel.tree.rotating import rotate_leaves
from parllel.tree.tree_description import TreeDescription, describe_tree, html_table, text_of


class ArrayDict(MutableMapping[str, Any]):
    """A tree: a dictionary of arrays, or of further ArrayDicts, which acts on all leaves at once.

    A name picks a branch (`tree["action"]`); any other index goes to every leaf (`tree[0, 1]`).
    A write to rows is checked whole, names, shapes and dtypes, before the first byte is written.
    `tree[0]["action"] = x` writes into the tree; a branch that it does not have is refused.
    A leaf is an array at the end of a branch. Attributes and methods of the leaves are those of
    the tree: `tree.dtype` is a tree of dtypes, and `tree.mean(axis=0)` calls every leaf's `mean`
    and returns a tree of results.

    Leaves are Arrays, NumPy arrays, torch tensors, JAX arrays, or anything that acts like them.
    The message of an error that a leaf raises begins with its path (`observation.camera`).

    In device memory, writing, gathering and rotating are work of the caller's current stream, as
    they are for Arrays: they return at once. Rows that integer arrays pick are gathered by one
    launch for all leaves.

    Args:
        items: names and leaves, as `dict` takes them. Mappings in it become ArrayDicts; leaves
            are not copied.

    Raises:
        TypeError: a name is no string.

    >>> import numpy as np
    >>> tree = ArrayDict({"reward": np.zeros(3), "observation": {"camera": np.zeros((3, 2))}})
    >>> tree[1] = {"reward": 5, "observation": {"camera": [6, 7]}}
    >>> tree["observation"]["camera"][1], tree.sum()["reward"]
    (array([6., 7.]), np.float64(5.0))
    >>> [path for path, leaf in tree.walk()]
    [('reward',), ('observation', 'camera')]
    """

    __slots__ = ("__weakref__", "_items", "_origin", "_plan", "_rows")

    _items: dict[str, Any]  # not there yet where `_rows` are: `__getattr__` makes them
    _origin: tuple[ArrayDict, Any] | None  # of `tree[index]`: tree and index
    _plan: RowPlan | None  # of one row; None until the first use, and where branches change
    _rows: PlannedRows | None  # of `tree[t]`, whose views are made when they are asked for

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None) -> None:
        self._items = {}
        self._origin = self._plan = self._rows = None
        for name, value in dict({} if items is None else items).items():
            self._set_branch(name, value)

    # A dictionary of branches

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __delitem__(self, name: str) -> None:
        del self._items[name]
        self._plan = None

    def __eq__(self, other: object) -> bool:
        if other is None:  # as of an Array
            return False
        raise TypeError(
            f"`==` between a tree and a {type(other).__name__}: arrays have no single truth value;"
            " compare leaf by leaf, with numpy.testing and `walk()`, or ask `is`"
        )

    __hash__ = object.__hash__  # of the object, not of its leaves

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "a tree is no single array: to_ndarray() returns the tree of its arrays, and"
            " tree['name'] one of its branches"
        )

    def __array_function__(self, *_: object) -> NoReturn:
        self.__array__()  # for NumPy's array_equal, an error of a conversion means "not equal"

    def walk(self) -> Iterator[tuple[TreePath, Any]]:
        """Yield each leaf with its path, in the tree's order.

        A path is the tuple of the names that lead to the leaf: `("observation", "camera")`.
        """
        for name, item in self._items.items():
            if isinstance(item, Array) or not isinstance(item, ArrayDict):  # quickly told
                yield (name,), item
            else:
                yield from (((name, *path), leaf) for path, leaf in item.walk())

    # Indexing

    def __getitem__(self, index: object) -> Any:
        if isinstance(index, str):
            try:  # here: the most frequent use of all
                return self._items[index]
            except KeyError:
                return self._branch(index)
        if index.__class__ is int:
            rows = (self._plan or self._make_plan()).find(index)
            if rows is not None:
                tree = ArrayDict.__new__(ArrayDict)
                tree._origin, tree._plan, tree._rows = (self, index), None, rows
                return tree
        name, items = "", {}
        try:
            for name, item in self._items.items():
                items[name] = item[index]
        except Exception as error:
            raise_at((name,), error)
        return _tree_of(items, (self, index))

    def _branch(self, name: str) -> Any:
        try:
            return self._items[name]
        except KeyError:
            raise KeyError(f"{name}: no such branch, expected one of {list(self._items)}") from None

    def __setitem__(self, index: object, value: object) -> None:
        if index.__class__ is int:  # first: the most frequent write (bench_index.py)
            plan = self._plan or self._make_plan()
            values = value if value.__class__ is dict else _as_mapping(value)
            if values is not None and plan.write(index, values):
                return
        elif index is Ellipsis and value.__class__ is dict and write_whole(self._items, value):
            return  # an agent's results (bench_sampling.py)
        elif isinstance(index, str):
            self._set_branch(index, value)
            return
        elif index is not Ellipsis and has_arrays(index):
            values = _as_mapping(value)
            if values is not None and self._scatter(index, values):
                return
        writes: list[tuple[Any, Any, Any]] = []
        self._collect_writes(index, value, writes)
        try:  # no path: making one for each leaf takes 5 % of a write (bench_index.py)
            for number, (target, place, content) in enumerate(writes):  # noqa: B007
                target[place] = content
        except Exception as error:
            raise_at(list(self.walk())[number][0], error)

    def _set_branch(self, name: str, value: Any) -> None:  # Any: a leaf of any library
        if not isinstance(name, str):
            raise TypeError(f"ArrayDict: got {name!r} as a name, expected a string")
        if self._origin is not None:
            self._write_branch(name, value)
            return
        is_leaf = isinstance(value, Array) or not isinstance(value, Mapping)  # quickly told
        self._items[name] = value if is_leaf or isinstance(value, ArrayDict) else ArrayDict(value)
        self._plan = None

    def _make_plan(self) -> RowPlan:
        """Return the plan of writes to one row, which changes of branches put away."""
        self._plan = RowPlan(self._items)
        return self._plan

    def _write_branch(self, name: str, value: object) -> None:
        """Write a branch of the rows that this tree shows, into the tree that was indexed."""
        assert self._origin is not None
        tree, index = self._origin
        if name not in self._items:
            raise KeyError(
                f"{name}: no such branch in the tree that was indexed, expected one of"
                f" {list(self._items)}; add it to the whole tree, or to ArrayDict(rows)"
            )
        branch = tree._branch(name)
        try:
            if isinstance(branch, ArrayDict):
                branch[index] = value
            else:
                check_write(branch, index, value)
                branch[index] = value
        except Exception as error:
            raise_at((name,), error)
        if tree._origin is not None:  # its rows may be copies, as those that a mask picks
            tree._write_branch(name, branch)
        self._items[name] = branch[index]

    def _collect_writes(
        self, index: object, value: object, writes: list[tuple[Any, Any, Any]]
    ) -> None:
        """Check the write of a value to all leaves, and add the assignments that make it up.

        Args:
            index: index of the rows.
            value: a tree of values, or one value for all leaves.
            writes: assignments `target[place] = content`, one for each leaf in the order of `walk`.
        """
        values = value if value.__class__ is dict else _as_mapping(value)
        if index.__class__ is int and values is not None:
            plan = self._plan or self._make_plan()
            if plan.write(index, values, writes):
                return
        name = None
        try:
            if values is None:
                values = dict.fromkeys(self._items, value)
            elif values.keys() != self._items.keys():
                raise KeyError(self._describe_difference(values))
            for name, item in self._items.items():
                content = values[name]
                if item.__class__ is ArrayDict:  # isinstance() of a Mapping is slow
                    item._collect_writes(index, content, writes)
                else:
                    write = find_write(item, index, content)
                    writes.append(write or checked_write(item, index, content))
        except Exception as error:
            raise_at(() if name is None else (name,), error)

    def _scatter(self, index: object, values: Mapping[str, Any]) -> bool:
        """Write the rows that integer arrays pick, all leaves at once; tell whether that worked."""
        flat, views = dict(ArrayDict(values).walk()), dict(self[index].walk())
        return views.keys() == flat.keys() and scatter(views, flat)

    def _gathered(self) -> ArrayDict:
        """Return the rows that integer arrays pick, gathered at once where that is quicker.

        Where it does not, return this tree.
        """
        for item in self._items.values():  # of most trees, after one look at the first leaf
            if isinstance(item, Array) and not item.is_gathered:
                return self
            break
        gathered = gather(self.walk())
        if gathered is None:
            return self
        rows = iter(gathered.values())
        return self.apply(lambda _: next(rows))

    def _describe_difference(self, values: Mapping[str, Any]) -> str:
        missing = [name for name in self._items if name not in values]
        unknown = [name for name in values if name not in self._items]
        return (
            f"names of the values: missing {missing}, unknown {unknown}, expected"
            f" {list(self._items)}; to write a part, go by branches: tree['name'][index] = ..."
        )

    # All leaves at once

    def apply(self, function: Callable[..., Any], *args: object, **kwargs: object) -> ArrayDict:
        """Call `function(leaf, *args, **kwargs)` for all leaves; return the tree of results."""
        name, items = "", {}
        try:
            for name, item in self._items.items():
                if isinstance(item, Array) or not isinstance(item, ArrayDict):  # quickly told
                    items[name] = function(item, *args, **kwargs)
                else:
                    items[name] = item.apply(function, *args, **kwargs)
        except Exception as error:
            raise_at((name,), error)
        return _tree_of(items)

    map = apply

    def with_branches(self, branches: Mapping[str, Any]) -> ArrayDict:
        """Return a tree that shares this one's branches, but for those that are given.

        `ArrayDict({**tree, **branches})` is the same, and takes several times as long.

        Args:
            branches: leaves or ArrayDicts by name, which replace branches or are added.
        """
        items = dict(self._items)
        tree = _tree_of(items)
        for name, branch in branches.items():
            if isinstance(branch, Array) and name.__class__ is str:  # quickly told
                items[name] = branch
            else:
                tree._set_branch(name, branch)
        return tree

    def __getattr__(self, name: str) -> ArrayDict:
        if name == "_items" and self._rows is not None:  # the slot is empty
            self._items, self._rows = self._rows.views(self._origin[1]), None  # type: ignore[index]
            return self._items  # type: ignore[return-value]  # of a slot, not of the leaves
        if name.startswith("_"):  # protocols probe for these: a tree has none of its leaves'
            raise AttributeError(f"ArrayDict has no attribute {name!r}")
        return self.apply(getattr, name)

    def __call__(self, *args: object, **kwargs: object) -> ArrayDict:
        """Call every leaf: `tree.mean(axis=0)` calls the tree of the leaves' methods."""
        return self.apply(call, *args, **kwargs)

    def to_ndarray(self) -> ArrayDict:
        """Return the tree of NumPy arrays over the same memory, where the host can read it.

        Leaves in device memory become read-only copies, for which the host waits
        (`Array.to_ndarray`); rows that integer arrays pick become read-only copies too.
        """
        if self._rows is not None and (row := self._rows.arrays(self._origin[1])):  # type: ignore[index]
            return _tree_of(row)
        source = self._gathered()
        quick = arrays_over(self._items) if source is self and type(self) is ArrayDict else None
        if quick is not None:
            return _tree_of(quick)
        arrays = source.apply(as_ndarray)
        if source is not self:
            arrays.apply(lock)
        return arrays

    def to_torch(self) -> ArrayDict:
        """Return the tree of torch tensors over the same memory. Waits for nothing.

        Rows that integer arrays pick are gathered: in device memory, the same rows of all leaves
        by one launch in the caller's current stream.
        """
        return self._gathered().apply(as_tensor)

    def rotate(self) -> None:
        """Rotate all leaves (`Array.rotate`).

        Where windows wrap in device memory, one launch in the caller's current stream copies the
        rows around the end of all rings.
        """
        self._check_arrays("rotate")
        rotate_leaves(list(self.walk()))

    def reset(self) -> None:
        """Reset all leaves, so that the next `rotate` lands at the beginning."""
        self._check_arrays("reset")
        self.apply(call_method, "reset")

    def close(self) -> None:
        """Close all leaves that are Arrays. Called again, it does nothing.

        Raises:
            TypeError: a leaf is no Array; the others are closed then.
        """
        for _, leaf in self.walk():
            if isinstance(leaf, Array):
                leaf.close()
        self._check_arrays("close")

    def _check_arrays(self, what: str) -> None:
        for path, leaf in self.walk():
            if not isinstance(leaf, Array):
                text = path_text(path)
                raise TypeError(f"{text}: {what} got a {type(leaf).__name__}, expected an Array")

    def to(self, *args: object, **kwargs: object) -> ArrayDict:
        """Return a copy of a tree of Arrays in one block of memory of another kind.

        `tree.to("device")`: each leaf keeps its ring, its padding and its window. There is one
        copy for each leaf, which is queued or waited for as `Array.to` tells.

        With another argument than a kind of memory, the leaves' own `to` is called: a tree of
        tensors goes to a device with `tree.to(device=...)`.

        Raises:
            CudaUnavailableError: the kind of memory needs a GPU, and there is no usable one.
            MemoryError: the memory can't be had, with a table of the leaves; nothing was
                allocated.
            TypeError: a leaf is no Array.
        """
        kind = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(kind, str) or kind not in KINDS:
            return self.apply(call_method, "to", *args, **kwargs)
        return self.apply(call_method, "to", _allocate_for(self.apply(_changed_spec), kind))

    def new_array(self, *, storage: str | None = None, **changes: object) -> ArrayDict:
        """Return a new, zeroed tree of Arrays like these leaves, all in one block of memory.

        Args:
            storage: kind of the memory; the leaves' own by default.
            changes: arguments of `Array.new_array`, for all leaves.

        Raises:
            TypeError: a leaf is no Array, an argument is unknown, or the leaves differ in storage
                and none is given.
            CudaUnavailableError, MemoryError: as `to`.
        """
        specs = self.apply(_changed_spec, **changes)
        kinds = {leaf.storage for _, leaf in self.walk()}
        if storage is None and len(kinds) > 1:
            raise TypeError(f"new_array: the leaves live in {sorted(kinds)}; give one storage=")
        return allocate_tree(specs, storage or kinds.pop()) if kinds else specs

    # Showing and sending

    def describe(self, storage: str | None = None) -> TreeDescription:
        """Return a description of the leaves and of their memory; a table in print and notebooks.

        Leaves may be specs: the bytes are then those that `allocate_tree` will allocate. Where
        leaves are, or would be, on a device, this asks for its size, which starts a context.

        Args:
            storage: kind of the memory that specs are meant for.
        """
        return describe_tree(list(self.walk()), storage)

    def __repr__(self) -> str:
        return text_of(self._items)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        titles = ("path", "dtype", "shape", "storage", "bytes")
        rows = [(path_text(path), *describe_leaf(leaf)) for path, leaf in self.walk()]
        return html_table(titles, rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"items": dict(self._items)}  # copied: a shallow copy gets names of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._items = state["items"]
        self._origin = self._plan = self._rows = None


def _tree_of(items: dict[str, Any], origin: tuple[ArrayDict, object] | None = None) -> ArrayDict:
    """Return a tree of these very branches, which nothing looks at."""
    tree = ArrayDict.__new__(ArrayDict)
    tree._items, tree._origin, tree._plan, tree._rows = items, origin, None, None
    return tree


def allocate_tree(specs: ArrayDict, storage: str = "local") -> ArrayDict:
    """Allocate a zeroed tree of Arrays in one block of memory.

    Device memory is zeroed in the caller's current stream, and belongs to it; the host does not
    wait.

    Args:
        specs: a tree whose leaves are `ArraySpec`.
        storage: kind of the memory.

    Raises:
        CudaUnavailableError: the storage needs a GPU, and there is no usable one.
        MemoryError: the memory can't be had, with a table of the leaves; nothing was allocated.
    """
    return specs.apply(Array.from_spec, _allocate_for(specs, storage))


def _allocate_for(specs: ArrayDict, storage: str) -> Memory:
    """Allocate one block for all leaves of a tree of specs."""
    leaves = list(specs.walk())
    try:
        return allocate(storage, sum(aligned(spec.nbytes) for _, spec in leaves))
    except MemoryError as error:
        table = "".join(
            f"\n  {path_text(path)}: {spec.extents} {spec.dtype}, {spec.nbytes:,} bytes"
            for path, spec in leaves
        )
        raise MemoryError(f"{error}; the tree wants{table}") from error


def _changed_spec(leaf: object, **changes: object) -> ArraySpec:
    if not isinstance(leaf, Array):
        raise TypeError(f"new_array: got a {type(leaf).__name__}, expected an Array")
    return leaf.spec.changed(**changes)


def _as_mapping(value: object) -> Mapping[str, Any] | None:
    """Return the named parts of a value; None for a value without names."""
    if isinstance(value, ArrayDict):
        return value._items
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a NamedTuple
        names: Mapping[str, Any] = value._asdict()
        return names
    return None

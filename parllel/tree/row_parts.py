"""RowParts: rows of an Array that stores a row in several parts, as environments write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from parllel.arrays import Array, ArraySpec, RowWriter
from parllel.storages import Memory
from parllel.tree.array_dict import ArrayDict


class RowParts(ArrayDict):
    """The parts of some rows, one branch for each, and how samples are written to them.

    A worker knows memory and trees of it, and no kind of Array: it gets the rows of such a leaf as
    a tree of plain arrays, with the writer that the kind of Array brings.

    Args:
        parts: arrays [n, ...] by their names, or what `apply` made of them.
        writer: writes samples to the parts.
    """

    __slots__ = ("writer",)

    def __init__(
        self, parts: Mapping[str, Any] | Iterable[tuple[str, Any]], writer: RowWriter
    ) -> None:
        super().__init__(parts)
        self.writer = writer

    def write(self, samples: Sequence[Any]) -> None:
        """Write one sample of each environment; the parts are arrays of NumPy.

        Args:
            samples: n of them, or an array [n, ...].

        Raises:
            ValueError: a sample can't be stored. Those before it are written.
        """
        self.writer.write(self._items, samples)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return found if isinstance(index, str) else RowParts(found, self.writer)

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> RowParts:
        """Call `function(part, *args, **kwargs)` for all parts, as `ArrayDict` does."""
        return RowParts(super().apply(function, *args, **kwargs), self.writer)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "writer": self.writer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.writer = state["writer"]


def written_rows(leaf: Array, *, checked: bool = False) -> Array | RowParts:
    """Return what is written of some rows: the rows themselves, or their parts.

    Args:
        leaf: the rows.
        checked: whether parts that are only read, to compare with, are among them.
    """
    writer = leaf.row_writer
    return leaf if writer is None else RowParts(leaf.row_parts(checked=checked), writer)


def written_specs(leaf: Array, n_envs: int) -> ArraySpec | RowParts:
    """Return what one step of some environments looks like, in memory of its own.

    Args:
        leaf: [T, B, ...], which the step is brought to.
        n_envs: number of environments.
    """
    batch_shape, writer = (n_envs, *leaf.batch_shape[2:]), leaf.row_writer
    if writer is None:
        return ArraySpec.of(batch_shape, leaf.dtype, leaf.feature_shape)
    return RowParts(writer.part_specs(batch_shape), writer)


def kept_specs(specs: ArrayDict) -> ArrayDict:
    """Return what `allocate_kept` allocates for steps of these specs (`written_specs`)."""
    kept = ArrayDict()
    for number, (branch,) in enumerate(_branches_of_parts(specs)):
        batch_shape = next(iter(branch.values())).batch_shape
        kept[str(number)] = ArrayDict(branch.writer.kept_specs(batch_shape))
    return kept


def allocate_kept(steps: Sequence[ArrayDict], memory: Memory) -> None:
    """Give steps whose memory is written in turn the parts that are kept from one to the next.

    Args:
        steps: trees of `written_specs`, alike; they get the same parts.
        memory: block with room for `kept_specs`.
    """
    for branches in _branches_of_parts(*steps):
        batch_shape = next(iter(branches[0].values())).batch_shape
        for name, spec in branches[0].writer.kept_specs(batch_shape).items():
            part = Array.from_spec(spec, memory)
            for branch in branches:
                branch[name] = part


def first_rows(rows: Any, places: Any) -> Any:
    """Return where first observations are written to: whole samples, where rows have parts.

    They may come from the middle of an episode.

    Args:
        rows: of the tree's observation.
        places: for other leaves.
    """
    if isinstance(rows, ArrayDict):
        return ArrayDict({name: first_rows(row, places[name]) for name, row in rows.items()})
    return places if rows.row_writer is None else Array.from_spec(rows.spec)


def take_first_rows(rows: Any, first: Any, places: Any) -> None:
    """Write first observations to rows that have parts, and what is kept of them.

    Args:
        rows, places: as `first_rows` got them.
        first: what it returned, written. Rows without parts are left alone.
    """
    if isinstance(rows, ArrayDict):
        for name, row in rows.items():
            take_first_rows(row, first[name], places[name])
    elif rows.row_writer is not None:
        rows.write_history(..., first)
        for name, values in rows.row_writer.kept_of(first.to_ndarray()).items():
            if isinstance(places, RowParts) and name in places:
                places[name][...] = values


def _branches_of_parts(*trees: ArrayDict) -> Iterator[tuple[RowParts, ...]]:
    """Yield the rows that have parts, in trees that are alike."""
    for name, branch in trees[0].items():
        if isinstance(branch, ArrayDict):
            branches: Any = tuple(tree[name] for tree in trees)
            if isinstance(branch, RowParts):
                yield branches
            else:
                yield from _branches_of_parts(*branches)

"""RowParts: rows that environments write in several parts, where an Array stores them so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from parllel.arrays import Array, ArraySpec, RowWriter
from parllel.storages import Memory
from parllel.tree.array_dict import ArrayDict


class RowParts(ArrayDict):
    """A tree of the parts of some rows, with the writer that writes samples to them.

    A worker does not know the kinds of Array. It gets the rows of such an Array as a tree of NumPy
    arrays, and the writer that the kind of Array has.

    >>> import numpy as np
    >>> from parllel import FrameArray
    >>> array = FrameArray((3, 1), "uint8", (2,), stack=2)
    >>> parts = written_rows(array[0]).to_ndarray()
    >>> parts.write(np.full((1, 2, 2), 5))
    >>> {name: part.tolist() for name, part in parts.items()}
    {'frames': [[5, 5]], 'is_first': [True]}

    Args:
        parts: arrays [n, ...] by name, or the results of a function that was applied to them.
        writer: object that writes samples to the parts.
    """

    __slots__ = ("writer",)

    def __init__(
        self, parts: Mapping[str, Any] | Iterable[tuple[str, Any]], writer: RowWriter
    ) -> None:
        super().__init__(parts)
        self.writer = writer

    def write(self, samples: Sequence[Any]) -> None:
        """Write one sample of each environment, where the parts are NumPy arrays.

        Args:
            samples: n samples, or an array [n, ...].

        Raises:
            ValueError: a sample can't be stored. The samples before it are written.
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
    """Return the rows that environments write: the leaf itself, or its parts.

    Args:
        leaf: rows of an Array of any kind.
        checked: whether to add the parts that a writer only reads, to check samples.

    Raises:
        ValueError: the leaf may take new memory, while environments write to that of before.
    """
    writer = leaf.row_writer
    if leaf.may_move:
        raise ValueError(
            f"got a {type(leaf).__name__} whose memory may grow, expected one that stays where it"
            ' is, as environments write in place; choose on_overflow="raise" or "drop"'
        )
    return leaf if writer is None else RowParts(leaf.row_parts(checked=checked), writer)


def written_specs(leaf: Array, n_envs: int) -> ArraySpec | RowParts:
    """Return the specs of one step of some environments, in memory outside the leaf.

    Args:
        leaf: Array [T, B, ...] that the step is copied to later.
        n_envs: number of environments.
    """
    batch_shape, writer = (n_envs, *leaf.batch_shape[2:]), leaf.row_writer
    if writer is None:
        return ArraySpec.of(batch_shape, leaf.dtype, leaf.feature_shape)
    return RowParts(writer.part_specs(batch_shape), writer)


def kept_specs(specs: ArrayDict) -> ArrayDict:
    """Return the specs of the parts that `allocate_kept` allocates.

    Args:
        specs: tree of `written_specs`.
    """
    kept = ArrayDict()
    for number, (branch,) in enumerate(_branches_of_parts(specs)):
        batch_shape = next(iter(branch.values())).batch_shape
        kept[str(number)] = ArrayDict(branch.writer.kept_specs(batch_shape))
    return kept


def allocate_kept(steps: Sequence[ArrayDict], memory: Memory) -> None:
    """Add the parts that are kept from step to step, where steps are written in turn.

    Args:
        steps: trees of the same `written_specs`, allocated; all of them get the same kept parts.
        memory: block of memory that has room for `kept_specs`.
    """
    for branches in _branches_of_parts(*steps):
        batch_shape = next(iter(branches[0].values())).batch_shape
        for name, spec in branches[0].writer.kept_specs(batch_shape).items():
            part = Array.from_spec(spec, memory)
            for branch in branches:
                branch[name] = part


def first_rows(rows: Array | ArrayDict, written: Array | ArrayDict) -> Array | ArrayDict:
    """Return memory for first observations; where rows have parts, it is for whole samples.

    A first observation may come from the middle of an episode, so that its parts are not enough.

    Args:
        rows: rows of the tree's branch `observation`.
        written: the rows that environments write later, as they are returned for other leaves.
    """
    if isinstance(rows, ArrayDict):
        return ArrayDict({name: first_rows(row, written[name]) for name, row in rows.items()})
    return written if rows.row_writer is None else Array.from_spec(rows.spec)


def take_first_rows(
    rows: Array | ArrayDict, first: Array | ArrayDict, written: Array | ArrayDict
) -> None:
    """Write first observations to rows that have parts, and to the parts that are kept.

    Args:
        rows, written: arguments of `first_rows`.
        first: its result, after environments have written it. Rows without parts stay as they are.
    """
    if isinstance(rows, ArrayDict):
        for name, row in rows.items():
            take_first_rows(row, first[name], written[name])
    elif rows.row_writer is not None:
        assert isinstance(first, Array)
        rows.write_history(..., first)
        _keep(first, written)


def keep_rows(rows: Array | ArrayDict, written: Array | ArrayDict) -> None:
    """Write to the parts that are kept what rows hold.

    Args:
        rows, written: arguments of `first_rows`.
    """
    if isinstance(rows, ArrayDict):
        for name, row in rows.items():
            keep_rows(row, written[name])
    else:
        _keep(rows, written)


def _keep(rows: Array, written: Array | ArrayDict) -> None:
    if isinstance(written, RowParts):
        for name, values in written.writer.kept_of(rows.to_ndarray()).items():
            if name in written:
                written[name][...] = values


def _branches_of_parts(*trees: ArrayDict) -> Iterator[tuple[RowParts, ...]]:
    """Yield the rows that have parts, in trees that are alike."""
    for name, branch in trees[0].items():
        if isinstance(branch, ArrayDict):
            branches: Any = tuple(tree[name] for tree in trees)
            if isinstance(branch, RowParts):
                yield branches
            else:
                yield from _branches_of_parts(*branches)

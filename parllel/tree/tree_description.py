"""TreeDescription: dtypes, shapes and places of a tree's leaves, and the memory they take."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.arrays.array import ArrayView
from parllel.storages import KINDS, aligned
from parllel.tree.leaves import describe_leaf
from parllel.tree.path import TreePath, path_text

_TITLES = ("path", "dtype", "shape", "rows", "storage", "bytes")


class LeafDescription(NamedTuple):
    """The dtype, shape and memory of a leaf.

    Args:
        path: names that lead to the leaf.
        dtype, shape: the leaf's, as text.
        rows: number of rows of the base buffer, ring and padding; for a view, of what it shows.
        storage: kind of the memory; "-" for a spec that has none yet.
        nbytes: bytes that the leaf takes of a block of memory; for a view, those that it shows.
    """

    path: TreePath
    dtype: str
    shape: str
    rows: int
    storage: str
    nbytes: int


@dataclass(frozen=True)
class TreeDescription:
    """A table of a tree's leaves and of their bytes: `print` and notebooks show it.

    Args:
        leaves: descriptions of the leaves, in the tree's order.
        device_total_nbytes: bytes of the current device's memory; None where there is no device,
            or where no leaf uses it.

    >>> from parllel import Array, ArrayDict
    >>> tree = ArrayDict({"reward": Array((3, 2), "float32", padding=1)})
    >>> print(tree.describe())
    path    dtype    shape   rows  storage  bytes
    reward  float32  (3, 2)     5  local      256
    total                                     256
    >>> tree.describe().nbytes
    256
    """

    leaves: tuple[LeafDescription, ...]
    device_total_nbytes: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves: the size of a block of memory that holds them."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def device_share(self) -> float | None:
        """Part of the device's memory that the leaves in it take, from 0; None without a device."""
        if self.device_total_nbytes is None:
            return None
        used = sum(leaf.nbytes for leaf in self.leaves if _is_on_gpu(leaf.storage))
        return used / self.device_total_nbytes

    def __str__(self) -> str:
        table = [_TITLES, *self._rows()]
        widths = [max(len(row[column]) for row in table) for column in range(len(_TITLES))]
        lines = ["  ".join(map(_justify, range(len(row)), row, widths)).rstrip() for row in table]
        return "\n".join((*lines, *self._shares()))

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return "".join((html_table(_TITLES, self._rows()), *self._shares()))

    def _rows(self) -> list[tuple[str, ...]]:
        cells = [
            (path_text(path), dtype, shape, f"{rows:,}", storage, f"{nbytes:,}")
            for path, dtype, shape, rows, storage, nbytes in self.leaves
        ]
        return [*cells, ("total", "", "", "", "", f"{self.nbytes:,}")]

    def _shares(self) -> Iterator[str]:
        if self.device_share is not None:
            yield f"{self.device_share:.1%} of the device's {self.device_total_nbytes:,}"


def html_table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table for notebooks.

    Args:
        titles: the first row, which stands out.
        rows: cells of the other rows, as plain text.
    """
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def describe_tree(leaves: list[tuple[TreePath, object]], storage: str | None) -> TreeDescription:
    """Describe leaves.

    Args:
        leaves: leaves or specs, each with its path.
        storage: kind of the memory that specs are meant for.
    """
    described = tuple(_describe(path, leaf, storage) for path, leaf in leaves)
    uses_device = any(_is_on_gpu(leaf.storage) for leaf in described)
    has_device = uses_device and cuda.is_available()
    return TreeDescription(described, cuda.total_nbytes() if has_device else None)


def _describe(path: TreePath, leaf: object, storage: str | None) -> LeafDescription:
    if isinstance(leaf, ArraySpec):
        return _describe_spec(path, leaf, storage or "-")
    if isinstance(leaf, Array) and not isinstance(leaf, ArrayView):
        return _describe_spec(path, leaf.spec, leaf.storage)
    dtype, shape, where, _ = describe_leaf(leaf)
    n_rows = (*getattr(leaf, "shape", ()), 0)[0]
    return LeafDescription(path, dtype, shape, n_rows, where, int(getattr(leaf, "nbytes", 0)))


def _describe_spec(path: TreePath, spec: ArraySpec, storage: str) -> LeafDescription:
    n_rows, nbytes = spec.extents[0], aligned(spec.nbytes)
    return LeafDescription(path, str(spec.dtype), str(spec.shape), n_rows, storage, nbytes)


def _is_on_gpu(storage: str) -> bool:
    """Whether memory of a kind is the GPU's; other libraries' places are no kinds."""
    return storage in KINDS and KINDS[storage].side == "gpu"


def _justify(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if _TITLES[column] in ("rows", "bytes") else cell.ljust(width)


def text_of(items: Mapping[str, object]) -> str:
    """Return the text that `repr` of a tree is, of its branches by name."""
    lines = [
        f"    {name!r}: {repr(item).replace(chr(10), chr(10) + '    ')},\n"
        for name, item in items.items()
    ]
    return "ArrayDict({" + ("\n" if lines else "") + "".join(lines) + "})"

"""TreeDescription: what the leaves of a tree are, and how much memory they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.arrays.array import ArrayView
from parllel.storages import KINDS, aligned
from parllel.tree.leaves import describe_leaf
from parllel.tree.path import TreePath, path_text

_TITLES = ("path", "dtype", "shape", "rows", "storage", "bytes")


class LeafDescription(NamedTuple):
    """One leaf."""

    path: TreePath
    dtype: str
    shape: str
    rows: int  # of the base buffer: ring and padding; of a view, what it shows
    storage: str  # "-" where a spec has none yet
    nbytes: int  # that it takes of a block of memory; of a view, what it shows


@dataclass(frozen=True)
class TreeDescription:
    """What a tree holds, or will hold: a table as text, and the same as numbers.

    Args:
        leaves: in the tree's order.
        device_total_nbytes: memory of the current device; None where there is no device, or where
            no leaf uses it.
    """

    leaves: tuple[LeafDescription, ...]
    device_total_nbytes: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves: what a block of memory for them is allocated with."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def device_share(self) -> float | None:
        """Share of the device's memory that the leaves in it take; None without a device."""
        if self.device_total_nbytes is None:
            return None
        used = sum(leaf.nbytes for leaf in self.leaves if _is_on_gpu(leaf.storage))
        return used / self.device_total_nbytes

    def __str__(self) -> str:
        cells = [
            (path_text(path), dtype, shape, f"{rows:,}", storage, f"{nbytes:,}")
            for path, dtype, shape, rows, storage, nbytes in self.leaves
        ]
        table = [_TITLES, *cells, ("total", "", "", "", "", f"{self.nbytes:,}")]
        widths = [max(len(row[column]) for row in table) for column in range(len(_TITLES))]
        lines = ["  ".join(map(_justify, range(len(row)), row, widths)).rstrip() for row in table]
        if self.device_share is not None:
            lines.append(f"{self.device_share:.1%} of the device's {self.device_total_nbytes:,}")
        return "\n".join(lines)


def describe_tree(leaves: list[tuple[TreePath, Any]], storage: str | None) -> TreeDescription:
    """Describe leaves by their paths; `storage` is where leaves that are specs would be."""
    described = tuple(_describe(path, leaf, storage) for path, leaf in leaves)
    uses_device = any(_is_on_gpu(leaf.storage) for leaf in described)
    has_device = uses_device and cuda.is_available()
    return TreeDescription(described, cuda.total_nbytes() if has_device else None)


def _describe(path: TreePath, leaf: Any, storage: str | None) -> LeafDescription:
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

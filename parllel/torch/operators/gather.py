"""gather_rows: rows of many tensors as an operator of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parllel.cuda import DeviceArray, is_capturing
from parllel.ops.row_copy import RowCopy
from parllel.torch.operators.library import as_array, define


def _gather(rows: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    outputs = _empty(rows, index)
    if rows and len(index):
        destination = [as_array(_bits(each)) for each in outputs]
        source = [as_array(_bits(each)) for each in rows]
        copy = RowCopy(destination, source, allocate=_allocator(index))
        copy.run(range(len(index)), as_array(index))
    return outputs


def _allocator(index: Tensor) -> Callable[[int], DeviceArray] | None:
    """Return what allocates the table of a captured gather, in the graph's own memory."""
    if not (index.is_cuda and is_capturing()):
        return None
    return lambda n: as_array(index.new_empty(n, dtype=torch.int64))


def _bits(tensor: Tensor) -> Tensor:
    """Return short floats, some of which NumPy lacks, as integers over the same memory."""
    if not tensor.is_floating_point() or tensor.itemsize > 2:
        return tensor
    return tensor.resolve_neg().view(torch.int16 if tensor.itemsize == 2 else torch.uint8)


def _empty(rows: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    if index.ndim != 1:
        raise ValueError(f"index: shape {tuple(index.shape)}, expected one axis: numbers of rows")
    return [each.new_empty((index.shape[0], *each.shape[1:])) for each in rows]


_OPERATOR = define("gather_rows(Tensor[] rows, Tensor index) -> Tensor[]", _gather, _empty)


def gather_rows(rows: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Return rows of some tensors, in new memory; `torch.compile` leaves the call whole.

    All tensors are gathered at once: on a GPU by one launch in torch's current stream, before
    which a table of their addresses is copied there. Captured in a CUDA graph, a launch for each
    tensor writes the table (for each 16 KiB of longer rows), and no copy. There is no gradient.

    >>> import torch
    >>> rows = torch.arange(3.0), torch.tensor([[True], [False], [True]])
    >>> [each.tolist() for each in gather_rows(rows, torch.tensor([2, 1]))]
    [[2.0, 1.0], [[True], [False]]]

    Args:
        rows: tensors [n, ...] of the same n. Those that are not contiguous are copied.
        index: int64 [k], numbers of rows. On a GPU they are not checked.

    Returns:
        A tensor [k, ...] for each of `rows`.

    Raises:
        IndexError: on the CPU, there is no such row.
        TypeError: `index` is of another dtype than integers.
        ValueError: `index` has not one axis, or one of `rows` has none.
    """
    found: list[Tensor] = _OPERATOR(list(rows), index)
    return found

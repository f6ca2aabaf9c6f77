"""TransitionOutputs: memory that minibatches of transitions are gathered into, again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.kernels.gather import GatheredLeaf, compiled_gather
from parllel.kernels.transitions import Transitions
from parllel.replays.final_obs import FinalObs
from parllel.storages import Memory, aligned, allocate
from parllel.tree import ArrayDict

AnyArray: TypeAlias = Any  # numpy.ndarray or cupy.ndarray

# Written when a transition is drawn: they belong to its last step, or to no step alone.
DRAWN: dict[str, np.dtype[Any]] = {
    "index": np.dtype(np.int64),
    "n_step_return": np.dtype(np.float32),
    "n_step_discount": np.dtype(np.float32),
    "terminated": np.dtype(bool),
    "truncated": np.dtype(bool),
}
NOT_GATHERED = ("terminated", "truncated", "valid")

_WORD = 16  # bytes of one access
_THREADS = 256  # of a block: allowed on every GPU, not tuned on one yet
_MOST_GROUPS = 65_535  # the kernel goes on where the grid ends


class Source(NamedTuple):
    """Where the rows of one leaf of a minibatch are gathered from; all of them are contiguous.

    Args:
        rows: [n, ...]. The ring, T and B taken together.
        beside: [m, ...]. The final observations; None where `rows` is all there is.
    """

    rows: AnyArray
    beside: AnyArray = None


class TransitionOutputs:
    """One minibatch of transitions, in a block of memory of its own.

    Args:
        sources: of `find_sources`.
        batch_size: transitions.
        storage: kind of the memory: the sources' own, or another kind of the host.
        extra: names and dtypes of further branches [batch_size], for who draws.

    Attributes:
        tree: Arrays [batch_size, ...]: what `sources` has, and `DRAWN`.
        arguments: what kernels are given (`as_argument`): `transitions`, the table of
            `kernels.transitions.Transitions`; `scratch`; and the extra branches by name.
        scratch: int64 [batch_size], for who draws.
        memory: the block.
    """

    def __init__(
        self,
        sources: ArrayDict,
        batch_size: int,
        storage: str,
        *,
        extra: Mapping[str, np.dtype[Any]],
    ) -> None:
        specs = sources.apply(_output_spec, batch_size)
        for name, dtype in {**DRAWN, **extra}.items():
            specs[name] = ArraySpec.of((batch_size,), dtype)
        self.memory: Memory = allocate(storage, count_bytes(specs))
        self.tree = specs.apply(Array.from_spec, self.memory)
        self.tensors = self.tree.to_torch()
        self.batch_size = batch_size
        first = next(source for _, source in sources.walk())
        self._is_on_gpu = not isinstance(first.rows, np.ndarray)
        # Row and next row of each transition: the index vectors.
        vectors = Array((3, batch_size), np.int64, storage=storage if self._is_on_gpu else "local")
        rows, next_rows, self.scratch = (
            _read(vectors[number], self._is_on_gpu) for number in range(3)
        )
        drawn = {name: address_of(_read(self.tree[name], self._is_on_gpu)) for name in DRAWN}
        table = Transitions(
            drawn["index"],
            address_of(rows),
            address_of(next_rows),
            drawn["n_step_return"],
            drawn["n_step_discount"],
            drawn["terminated"],
            drawn["truncated"],
        )
        self._transitions = as_table(table, on_gpu=self._is_on_gpu)
        self.arguments = {
            "transitions": as_argument(self._transitions),
            "scratch": as_argument(self.scratch),
            **{name: as_argument(_read(self.tree[name], self._is_on_gpu)) for name in extra},
        }
        self._prepare(sources, rows, next_rows)

    def _prepare(self, sources: ArrayDict, rows: AnyArray, next_rows: AnyArray) -> None:
        """Make the table of the `gather` kernel."""
        leaves = [(path, source) for path, source in sources.walk() if _row_nbytes(source)]
        written = dict(self.tree.walk())
        entries = [
            GatheredLeaf(
                address_of(_read(written[path], self._is_on_gpu)),
                address_of(source.rows),
                0 if source.beside is None else address_of(source.beside),
                address_of(rows if source.beside is None else next_rows),
                _row_nbytes(source),
            )
            for path, source in leaves
        ]
        self._owners = sources, rows, next_rows  # a table of addresses keeps nothing alive
        self._n_leaves = len(leaves)
        self._table = as_table(entries, on_gpu=self._is_on_gpu)
        self._table_argument = as_argument(self._table)
        longest = max(entry.nbytes for entry in entries)
        self._lanes = min(_THREADS, 1 << max(0, -(-longest // _WORD) - 1).bit_length())

    def gather(self) -> None:
        """Gather what was drawn: in host memory when this returns, on a device in one launch.

        The launch goes to the caller's current stream; nothing waits for it.
        """
        if not self._is_on_gpu:
            compiled_gather()(self._table_argument, self._n_leaves, self.batch_size)
            return
        rows_per_block = _THREADS // self._lanes
        groups = min(-(-self.batch_size // rows_per_block), _MOST_GROUPS)
        cuda.launch(
            "gather",
            (groups, self._n_leaves),
            (self._lanes, rows_per_block),
            [self._table_argument, np.int64(self.batch_size)],
        )

    def close(self) -> None:
        """Give the memory back. Tensors that were taken before stay valid."""
        self.tree.close()


def find_sources(samples: ArrayDict, final_obs: FinalObs, *, on_gpu: bool) -> ArrayDict:
    """Return the `Source` of each leaf of a minibatch: the tree's branches, `next_observation`.

    An observation that follows a step lies in the next row of the same leaf, or among the final
    observations. This is where leaves of the ring are read; whatever kind of Array they are.
    """
    kept: Mapping[str, Any] = {
        name: branch for name, branch in samples.items() if name not in NOT_GATHERED
    }
    sources = ArrayDict(kept).apply(lambda leaf: Source(_ring_rows(leaf, 0, on_gpu)))
    tables = ArrayDict({"observation": final_obs.table}).walk()
    following = ArrayDict({"observation": samples["observation"]}).apply(
        lambda leaf: Source(_ring_rows(leaf, 1, on_gpu), _read(next(tables)[1], on_gpu))
    )
    sources["next_observation"] = following["observation"]
    return sources


def ring_of(leaf: Array, *, on_gpu: bool) -> AnyArray:
    """Return the rows of a leaf's ring over its memory, T and B taken together."""
    return _ring_rows(leaf, 0, on_gpu)


def address_of(values: AnyArray) -> int:
    """Return the address of an array's first element."""
    address: int = values.ctypes.data if isinstance(values, np.ndarray) else values.data.ptr
    return address


def as_argument(values: AnyArray) -> Any:
    """Return what a kernel is given for an array: its address; a device array as it is.

    Who gives an address keeps the array.
    """
    return address_of(values) if isinstance(values, np.ndarray) else values


def as_table(numbers: Sequence[Any], *, on_gpu: bool) -> AnyArray:
    """Return integers, or rows of integers, as a table that a kernel reads: int64."""
    table = np.array(numbers, np.int64)
    return cuda.to_device(table) if on_gpu else table


def count_bytes(specs: ArrayDict) -> int:
    """Return the bytes of a block for all leaves of a tree of specs."""
    return sum(aligned(spec.nbytes) for _, spec in specs.walk())


def _ring_rows(leaf: Array, n_behind: int, on_gpu: bool) -> AnyArray:
    """Return the rows of a ring, and of the padding behind it, T and B taken together."""
    values = _read(leaf.full[0 : leaf.full_size + n_behind], on_gpu)
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])


def _read(leaf: Array, on_gpu: bool) -> AnyArray:
    return leaf.to_cupy() if on_gpu else leaf.to_ndarray()


def _output_spec(source: Source, batch_size: int) -> ArraySpec:
    return ArraySpec.of((batch_size,), source.rows.dtype, source.rows.shape[1:])


def _row_nbytes(source: Source) -> int:
    nbytes: int = math.prod(source.rows.shape[1:]) * source.rows.dtype.itemsize
    return nbytes

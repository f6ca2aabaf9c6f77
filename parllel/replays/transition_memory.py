"""TransitionMemory: memory that minibatches of transitions are gathered into, again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parllel.arrays import Array, ArraySpec
from parllel.cuda import AnyArray
from parllel.ops.stack_gather import RowSource, StackGather
from parllel.ops.transitions import DrawnTransitions
from parllel.replays.final_obs import FinalObs
from parllel.storages import Memory, aligned, allocate
from parllel.tree import ArrayDict

# Written when a transition is drawn: they belong to its last step, or to no step alone.
DRAWN: dict[str, np.dtype[Any]] = {
    "index": np.dtype(np.int64),
    "n_step_return": np.dtype(np.float32),
    "n_step_discount": np.dtype(np.float32),
    "terminated": np.dtype(bool),
    "truncated": np.dtype(bool),
}
NOT_GATHERED = ("terminated", "truncated", "valid")
NEXT = "next_observation"


class TransitionMemory:
    """One minibatch of transitions, in a block of memory of its own.

    Args:
        sources: of `find_sources`.
        batch_size: transitions.
        storage: kind of the memory: the sources' own, or another kind of the host.
        extra: names and dtypes of further branches [batch_size], for who draws.

    Attributes:
        tree: Arrays [batch_size, ...]: what `sources` has, and `DRAWN`.
        drawn: what a draw writes of the tree, and the rows that are gathered then.
        extra: the extra branches by name, as arrays of NumPy or CuPy.
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
        self._is_on_gpu = not isinstance(first.frames, np.ndarray)
        # Row and next row of each transition: the index vectors.
        vectors = Array((3, batch_size), np.int64, storage=storage if self._is_on_gpu else "local")
        rows, next_rows, scratch = (_read(vectors[number], self._is_on_gpu) for number in range(3))
        branches = {name: _read(self.tree[name], self._is_on_gpu) for name in (*DRAWN, *extra)}
        self.drawn = DrawnTransitions(
            identity=branches["index"],
            row=rows,
            next_row=next_rows,
            n_step_return=branches["n_step_return"],
            n_step_discount=branches["n_step_discount"],
            terminated=branches["terminated"],
            truncated=branches["truncated"],
            scratch=scratch,
        )
        self.extra = {name: branches[name] for name in extra}
        self._rows = range(batch_size)
        self._gather = self._prepare(sources, rows, next_rows)

    def _prepare(self, sources: ArrayDict, rows: AnyArray, next_rows: AnyArray) -> StackGather:
        written = dict(self.tree.walk())
        following = dict(ArrayDict({NEXT: sources[NEXT]}).walk())
        leaves = {path: source for path, source in sources.walk() if math.prod(source.shape[1:])}
        picked = [
            replace(source, rows=next_rows if path in following else rows)
            for path, source in leaves.items()
        ]
        return StackGather(picked, [_read(written[path], self._is_on_gpu) for path in leaves])

    def gather(self) -> None:
        """Gather what was drawn: in host memory when this returns, on a device in one launch.

        The launch goes to the caller's current stream; nothing waits for it.
        """
        self._gather.run(self._rows)

    def close(self) -> None:
        """Give the memory back. Tensors that were taken before stay valid."""
        self.tree.close()


def find_sources(samples: ArrayDict, final_obs: FinalObs, *, on_gpu: bool) -> ArrayDict:
    """Return the `RowSource` of each leaf of a minibatch: the tree's branches, `NEXT`.

    An observation that follows a step lies in the next row of the same leaf, or among the final
    observations. This is where leaves of the ring are read; whatever kind of Array they are.
    """
    kept: Mapping[str, Any] = {
        name: branch for name, branch in samples.items() if name not in NOT_GATHERED
    }
    sources = ArrayDict(kept).apply(_ring_source, 0, on_gpu)
    tables = ArrayDict({NEXT: final_obs.table}).walk()
    before = _read(final_obs.place, on_gpu)

    def add_table(source: RowSource) -> RowSource:
        beside = _read(next(tables)[1], on_gpu)
        return replace(source, beside=beside, beside_rows=before if source.stack > 1 else None)

    following = ArrayDict({NEXT: samples["observation"]}).apply(_ring_source, 1, on_gpu)
    return ArrayDict({**sources, **following.apply(add_table)})


def ring_of(leaf: Array, *, on_gpu: bool) -> AnyArray:
    """Return the rows of a leaf's ring over its memory, T and B taken together."""
    rows: AnyArray = _ring_source(leaf, 0, on_gpu).frames
    return rows


def count_bytes(specs: ArrayDict) -> int:
    """Return the bytes of a block for all leaves of a tree of specs."""
    return sum(aligned(spec.nbytes) for _, spec in specs.walk())


def _ring_source(leaf: Array, n_behind: int, on_gpu: bool) -> RowSource:
    """Return the rows of a ring, and of the padding behind it, T and B taken together."""
    rows = leaf.full[0 : leaf.full_size + n_behind]
    return rows.row_source("gpu" if on_gpu else "host")


def _read(leaf: Array, on_gpu: bool) -> AnyArray:
    return leaf.to_cupy() if on_gpu else leaf.to_ndarray()


def _output_spec(source: RowSource, batch_size: int) -> ArraySpec:
    return ArraySpec.of((batch_size,), source.dtype, source.shape[1:])

"""SequenceMemory: memory of a minibatch of windows, which is written again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from parllel.arrays import Array, ArraySpec
from parllel.cuda import AnyArray
from parllel.kernels.window_search import WindowTable
from parllel.ops.ragged import RaggedGather
from parllel.ops.sequences import DrawnWindows, WindowGather, WindowSource
from parllel.ops.sides import to_side
from parllel.ops.stack_gather import RowSource
from parllel.replays.final_obs import FinalObs
from parllel.replays.minibatch_outputs import FixedTensors, output_spec
from parllel.replays.transition_memory import (
    count_bytes,
    read,
    ring_source,
    table_source,
)
from parllel.storages import Memory, Side, allocate
from parllel.tree import ArrayDict
from parllel.tree.path import TreePath

if TYPE_CHECKING:
    import torch

INITIAL = "initial_rnn_state"
# Written when a window is drawn; `weight` of those drawn by priority is added.
DRAWN = ("index", "is_first", "mask")

# Which of a draw's codes name the rows of a leaf.
Codes: TypeAlias = Literal["observed", "steps", "initial"]
_Vectors: TypeAlias = Codes | Literal["scratch"]


class LeafSource(NamedTuple):
    """Where the rows of a leaf of windows are.

    Args:
        ring: in the ring; of stacks, single frames.
        beside: beside it, one row or more; with lengths where those of the ring have some.
        codes: the codes that name them.
    """

    ring: RowSource
    beside: RowSource
    codes: Codes


class SequenceMemory:
    """One minibatch of windows, in a block of memory of its own.

    Args:
        sources: the sources that `find_window_sources` returned.
        form: the form of all windows.
        batch_size: number of windows, N.
        storage: kind of the memory: that of the sources, or another kind of host memory.
        extra: names and dtypes of further branches [N], which the draw writes.

    Attributes:
        sources: as given, or as `bind` was given last.
        tree: Arrays with two leading axes, time and windows, and [N, ...] of what a window has
            once. Of stacks there are single frames: `n - 1` more rows than of other observations.
        drawn: what a draw writes.
        memory: the block.

    A replay buffer makes it: `SequenceReplayBuffer.make_memory`.

    >>> ring, beside = RowSource(np.float32([5, 6, 7])), RowSource(np.zeros(1, np.float32))
    >>> sources = ArrayDict({"reward": LeafSource(ring, beside, "steps")})
    >>> form = WindowTable(length=2, burn_in=0, stride=1, ends=0, n_older=0)
    >>> memory = SequenceMemory(sources, form, 1, "local", extra={})
    >>> memory.gather()  # of place 0: no draw has written other places yet
    >>> memory.tensors["reward"]
    tensor([[5.],
            [5.]])
    """

    def __init__(
        self,
        sources: ArrayDict,
        form: WindowTable,
        batch_size: int,
        storage: str,
        *,
        extra: Mapping[str, np.dtype[Any]],
    ) -> None:
        self.batch_size, self._form = batch_size, form
        first = next(source for _, source in sources.walk())
        self._is_on_gpu = not isinstance(first.beside.frames, np.ndarray)
        n_rows = form.burn_in + form.length
        specs = sources.apply(self._output_spec)
        specs["index"] = ArraySpec.of((batch_size,), np.int64)
        specs["is_first"] = ArraySpec.of((n_rows + 1, batch_size), np.bool_)
        specs["mask"] = ArraySpec.of((n_rows, batch_size), np.bool_)
        for name, dtype in extra.items():
            specs[name] = ArraySpec.of((batch_size,), dtype)
        self.memory: Memory = allocate(storage, count_bytes(specs))
        self.tree = specs.apply(Array.from_spec, self.memory)
        # How tensors become those of a minibatch: stacks of frames, elements of different length.
        self._changes: dict[TreePath, Callable[[Any], Any]] = {}
        for path, source in sources.walk():
            if source.ring.is_first is not None:
                self._changes[path] = partial(_as_stacks, stack=source.ring.stack)
            elif source.ring.lengths is not None:
                sizes = self._batch_shape(source)
                self._changes[path] = methodcaller("unflatten", 0, sizes)
        self._tensors = FixedTensors(self.tree, partial(_present, changes=self._changes))
        self._codes = self._allocate_codes(storage)
        branches = {name: read(self.tree[name], self._is_on_gpu) for name in (*DRAWN, *extra)}
        self.drawn = DrawnWindows(
            identity=branches["index"],
            is_first=branches["is_first"],
            mask=branches["mask"],
            **self._codes,
            **{name: branches[name] for name in extra},
        )
        self.bind(sources)

    def _allocate_codes(self, storage: str) -> dict[_Vectors, AnyArray]:
        n_rows = self._form.burn_in + self._form.length
        lengths: dict[_Vectors, int] = {
            "observed": self._form.n_older + n_rows + 1,
            "steps": n_rows,
            "initial": 1,
            "scratch": 1,
        }
        shape = sum(lengths.values()), self.batch_size
        codes = Array(shape, np.int64, storage=storage if self._is_on_gpu else "local")
        every, begin, parts = read(codes, self._is_on_gpu), 0, {}
        for name, length in lengths.items():
            parts[name] = every[begin : begin + length]
            begin += length
        return {**parts, "initial": parts["initial"][0], "scratch": parts["scratch"][0]}

    def _batch_shape(self, source: LeafSource) -> tuple[int, ...]:
        """Return the leading dimensions of what a leaf's rows are gathered to."""
        n_rows = self._form.burn_in + self._form.length
        lead: dict[Codes, tuple[int, ...]] = {
            "observed": (source.ring.stack + n_rows, self.batch_size),
            "steps": (n_rows, self.batch_size),
            "initial": (self.batch_size,),
        }
        return lead[source.codes]

    def _output_spec(self, source: LeafSource) -> ArraySpec:
        single = replace(source.ring, is_first=None)  # of stacks, single frames
        return output_spec(single, *self._batch_shape(source))

    @property
    def tensors(self) -> ArrayDict:
        """What `present` makes of the tree.

        Where elements have different lengths, the host of a GPU waits to know how many items.
        """
        return self._tensors()

    def present(self, tree: ArrayDict) -> ArrayDict:
        """Return a tree of Arrays like `tree` as the tensors of a minibatch.

        Stacks are views [rows + 1, N, stack, ...] over single frames.
        """
        return _present(tree, self._changes)

    def bind(self, sources: ArrayDict) -> None:
        """Gather from other sources of the same rows from now on."""
        self.sources = sources
        written, side = dict(self.tree.walk()), self._side
        leaves = {
            path: source
            for path, source in sources.walk()
            if math.prod(source.ring.frames.shape[1:])
        }
        windows = [
            self._locate(source, written[path].gather_output(side))
            for path, source in leaves.items()
            if source.ring.lengths is None
        ]
        self._gathers = [WindowGather(windows).run] if windows else []
        for n_codes, paths in _by_codes(leaves, self._codes_of).items():
            elements = [self._elements_of(leaves[path]) for path in paths]
            outputs = [written[path].gather_output(side) for path in paths]
            gather = RaggedGather(elements, outputs)
            self._gathers.append(partial(gather.run, range(n_codes)))

    @property
    def _side(self) -> Side:
        return "gpu" if self._is_on_gpu else "host"

    def _codes_of(self, source: LeafSource) -> AnyArray:
        codes = self._codes[source.codes]
        if source.codes == "observed":  # a shorter stack than the longest one has fewer older rows
            codes = codes[self._form.n_older + 1 - source.ring.stack :]
        return codes.reshape(-1)

    def _locate(self, source: LeafSource, output: AnyArray) -> WindowSource:
        codes = self._codes_of(source)
        rows = output.reshape(len(codes), *source.ring.frames.shape[1:])
        return WindowSource(source.ring, source.beside.frames, codes, rows)

    def _elements_of(self, source: LeafSource) -> RowSource:
        """Return elements of different length as the codes name them."""
        beside = source.beside.frames, source.beside.lengths
        codes = self._codes_of(source)
        return replace(source.ring, rows=codes, beside=beside[0], beside_lengths=beside[1])

    def gather(self, seed: AnyArray | None = None) -> None:
        """Gather the rows that were drawn, for all branches.

        In host memory they are there when this returns. On a device it is one launch in the
        caller's current stream, and one more for elements of different length; the host does not
        wait.

        Args:
            seed: not needed here: nothing is shifted.
        """
        for gather in self._gathers:
            gather()

    def close(self) -> None:
        """Free the memory. Tensors that were taken before stay valid."""
        self.tree.close()


def find_window_sources(
    steps: ArrayDict, final_obs: FinalObs, *, on_gpu: bool, keeps_valid: bool
) -> ArrayDict:
    """Return the tree of a minibatch with a `LeafSource` for each leaf.

    Args:
        steps: the branches of the sample tree that have a row for each step. `agent_info.rnn_state`
            becomes the branch `initial_rnn_state`.
        final_obs: the final observations beside the ring.
        on_gpu: whether a GPU gathers.
        keeps_valid: whether `valid` is a branch of windows, and not a part of their mask alone.
    """
    left_out = {"observation"} if keeps_valid else {"observation", "valid"}
    kept: dict[str, Any] = {name: branch for name, branch in steps.items() if name not in left_out}
    info = kept.get("agent_info")
    state = None
    if isinstance(info, ArrayDict) and "rnn_state" in info:
        state = info["rnn_state"]
        rest = {name: branch for name, branch in info.items() if name != "rnn_state"}
        kept["agent_info"] = ArrayDict(rest)
        if not any(True for _ in kept["agent_info"].walk()):
            del kept["agent_info"]
    sources = ArrayDict(kept).apply(_step_source, "steps", on_gpu)
    if state is not None:
        initial = ArrayDict({INITIAL: state}).apply(_step_source, "initial", on_gpu)
        sources = ArrayDict({**sources, **initial})
    tables = ArrayDict({"observation": final_obs.table}).walk()

    def observe(leaf: Array) -> LeafSource:
        beside = table_source(next(tables)[1], on_gpu)
        return LeafSource(ring_source(leaf, 1, on_gpu), beside, "observed")

    observed = ArrayDict({"observation": steps["observation"]}).apply(observe)
    return ArrayDict({**observed, **sources})


def _step_source(leaf: Array, codes: Codes, on_gpu: bool) -> LeafSource:
    ring = ring_source(leaf, 0, on_gpu)
    side: Side = "gpu" if on_gpu else "host"
    zeros = to_side(np.zeros((1, *ring.frames.shape[1:]), ring.dtype), side)
    lengths = None if ring.lengths is None else to_side(np.zeros(1, np.int64), side)
    return LeafSource(ring, RowSource(zeros, lengths=lengths), codes)


def _present(tree: ArrayDict, changes: Mapping[TreePath, Callable[[Any], Any]]) -> ArrayDict:
    """Return a tree of Arrays as tensors, some of which are changed."""
    tensors = tree.to_torch()
    for path, change in changes.items():
        branch = tensors
        for name in path[:-1]:
            branch = branch[name]
        branch[path[-1]] = change(branch[path[-1]])
    return tensors


def _by_codes(
    leaves: Mapping[TreePath, LeafSource], codes_of: Callable[[LeafSource], AnyArray]
) -> dict[int, list[TreePath]]:
    """Return the leaves with elements of different length, by the number of their rows."""
    found: dict[int, list[TreePath]] = {}
    for path, source in leaves.items():
        if source.ring.lengths is not None:
            found.setdefault(len(codes_of(source)), []).append(path)
    return found


def _as_stacks(frames: torch.Tensor, stack: int) -> torch.Tensor:
    """Return the stacks [rows, N, stack, ...] of frames [stack - 1 + rows, N, ...], as a view."""
    n_frames, n_windows, *frame_shape = frames.shape
    per_frame = math.prod(frame_shape)
    per_step = n_windows * per_frame
    size = (n_frames - stack + 1, n_windows, stack, *frame_shape)
    return frames.as_strided(size, (per_step, per_frame, per_step, *frames.stride()[2:]))

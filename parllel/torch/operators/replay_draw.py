"""ReplayDraw: draws from a replay buffer as an operator of torch."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from parllel import cuda
from parllel.arrays import Array, Jagged
from parllel.cuda import AnyArray
from parllel.replays.base_replay import BaseReplay
from parllel.torch.operators.library import as_array, define
from parllel.tree import ArrayDict


class Part(NamedTuple):
    """Where a tensor of a minibatch lies in the bytes of all."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None  # None where it is contiguous


class LeafParts(NamedTuple):
    """The tensors of a leaf of a minibatch; of elements of different length, values and offsets.

    Args:
        path: names of the branches that lead to the leaf.
        parts: where its tensors lie.
        form: the elements' batch_shape and capacity; None for one tensor.
    """

    path: tuple[str, ...]
    parts: tuple[Part, ...]
    form: tuple[tuple[int, ...], int | None] | None


class Source:
    """A buffer, and the memory that it draws minibatches of one size into.

    Args:
        replay: the buffer.
        batch_size: number of transitions.
    """

    def __init__(self, replay: BaseReplay[Any], batch_size: int) -> None:
        self._replay = weakref.ref(replay)
        self._memory = replay.make_memory(batch_size)
        nbytes = self._memory.memory.nbytes
        self.block = _tensor_over(self._memory.memory.array(0, (nbytes,), np.dtype(np.uint8)))
        self.state = _tensor_over(replay.draw_state.numbers)
        written = dict(self._memory.tree.walk())
        self.leaves = [
            self._find_leaf(path, leaf, written[path]) for path, leaf in self._memory.tensors.walk()
        ]

    def _find_leaf(self, path: tuple[str, ...], leaf: Any, memory: Array) -> LeafParts:
        """Return where a leaf lies, which is a tensor, or a Jagged of tensors."""
        if not isinstance(leaf, Jagged):
            return LeafParts(path, (self._find_part(leaf),), None)
        fixed = memory.fixed_tensors()  # a compiled program has fixed shapes
        parts = self._find_part(fixed.values), self._find_part(fixed.offsets)
        return LeafParts(path, parts, (leaf.batch_shape, fixed.capacity))

    def _find_part(self, tensor: Tensor) -> Part:
        begin = tensor.data_ptr() - self.block.data_ptr() if tensor.numel() else 0
        return Part(
            begin,
            begin + _count_bytes(tensor),
            tensor.dtype,
            tuple(tensor.shape),
            None if tensor.is_contiguous() else tensor.stride(),
        )

    def draw(self, state: Tensor) -> Tensor:
        """Draw by a state, which is counted up, and return all bytes in new memory."""
        replay = self._replay()
        if replay is None:
            raise RuntimeError("ReplayDraw: its buffer is gone; keep the buffer while it is drawn")
        own = state.data_ptr() == self.state.data_ptr()
        numbers = replay.draw_state if own else replay.draw_state.over(as_array(state))
        replay.sample_into(self._memory, numbers)
        return self.block.clone()


# An operator takes tensors and numbers: a number stands for a source as long as its owner lives.
_sources: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def _draw(state: Tensor, number: int, nbytes: int) -> Tensor:
    return _sources[number].draw(state)


def _empty(state: Tensor, number: int, nbytes: int) -> Tensor:
    return state.new_empty((nbytes,), dtype=torch.uint8)


_OPERATOR = define("draw(Tensor(a!) state, int number, int nbytes) -> Tensor", _draw, _empty)


class ReplayDraw:
    """Minibatches of a replay buffer for a program that `torch.compile` compiles.

    `sample` draws what `ReplayBuffer.sample` would draw next; calls of both may take turns. It
    returns new memory each time, for which all bytes of the minibatch are copied once: a compiler
    may move what reads them. On a GPU that is the launches of `ReplayBuffer.sample`, and a copy.

    Elements of different length are a `Jagged` with a `capacity`: its `padded` and `segment_ids`
    have fixed shapes. All the memory that there is for them is copied.

    Args:
        replay: the buffer. It is not kept alive.
        batch_size: number of transitions.

    Raises:
        MemoryError, ValueError: as for `ReplayBuffer.make_memory`.

    >>> import numpy as np
    >>> from parllel import Array
    >>> from parllel.replays import ReplayBuffer
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> replay.end_batch()
    >>> draw = ReplayDraw(replay, batch_size=8)
    >>> draw.sample()["reward"].shape
    torch.Size([8])
    """

    def __init__(self, replay: BaseReplay[Any], batch_size: int) -> None:
        self._source = Source(replay, batch_size)
        self._number = next(_numbers)
        _sources[self._number] = self._source
        self._state, self._leaves = self._source.state, self._source.leaves
        self._nbytes = self._source.block.nbytes

    def sample(self) -> ArrayDict:
        """Return a minibatch, a tree as `ReplayBuffer.sample` gives it, in new memory.

        Raises:
            RuntimeError: as for `ReplayBuffer.sample`, or the buffer is gone.
        """
        block: Tensor = _OPERATOR(self._state, self._number, self._nbytes)
        tree: dict[str, Any] = {}  # Any: a tensor, or a tree of tensors
        for path, parts, form in self._leaves:
            inside = tree
            for name in path[:-1]:
                inside = inside.setdefault(name, {})
            leaf: Any = _tensor_of(block, parts[0])
            if form is not None:
                leaf = Jagged(leaf, _tensor_of(block, parts[1]), None, form[0], form[1])
            inside[path[-1]] = leaf
        return ArrayDict(tree)


def _tensor_of(block: Tensor, part: Part) -> Tensor:
    flat = block[part.begin : part.end].view(part.dtype)
    return flat.as_strided(part.shape, part.stride) if part.stride else flat.view(part.shape)


def _count_bytes(leaf: Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last one."""
    if not leaf.numel():
        return 0
    last = sum((n - 1) * step for n, step in zip(leaf.shape, leaf.stride(), strict=True))
    return (last + 1) * leaf.itemsize


def _tensor_over(array: AnyArray) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else cuda.tensor_over(array)

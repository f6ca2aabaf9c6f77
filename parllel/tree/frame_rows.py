"""How stacks that environments give become single frames in the rows of a FrameArray.

A worker knows memory and trees of it, and no FrameArray: what it is to write is a branch of plain
arrays with names that no space has. Each environment's newest frame is written, and whether its
stack is that of an episode's first frame, which shows in the stack itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import ArraySpec, FrameArray
from parllel.storages import Memory
from parllel.tree import ArrayDict

PREVIOUS = "frames:previous"
"""Name of the branch that workers read, and don't write."""

_PREFIX = "frames:"
_IS_FIRST = "is_first"
_LAST = "last"


def frame_places(leaf: FrameArray) -> ArrayDict:
    """Return the places of some rows, which a GPU or environments write instead of stacks.

    Args:
        leaf: whole stacks.

    Returns:
        Arrays [..., *frame_shape], and bool [...].
    """
    return ArrayDict({_name_of(leaf): leaf.frames, _IS_FIRST: leaf.is_first})


def checked_frame_places(leaf: FrameArray) -> ArrayDict:
    """Return the places, and beside them the frames one step before, which are compared."""
    places = frame_places(leaf)
    if leaf.stack > 1:
        places[PREVIOUS] = leaf.frames.previous
    return places


def frame_specs(leaf: FrameArray, batch_shape: Sequence[int]) -> ArrayDict:
    """Return what the places of some rows look like, in memory of their own."""
    frames = ArraySpec.of(batch_shape, leaf.dtype, leaf.frame_shape)
    return ArrayDict({_name_of(leaf): frames, _IS_FIRST: ArraySpec.of(batch_shape, np.bool_)})


def last_specs(specs: ArrayDict) -> ArrayDict:
    """Return what `remember_last` allocates for trees of these specs."""
    frames = (next(iter(branch.values())) for (branch,) in _frame_branches(specs))
    return ArrayDict({str(number): spec for number, spec in enumerate(frames)})


def remember_last(trees: Sequence[ArrayDict], memory: Memory) -> None:
    """Let places of frames, in memory that is written in turn, know the frames written last.

    What is written is compared with them.

    Args:
        trees: alike; with places of `frame_specs`.
        memory: with room for one newest frame of each environment.
    """
    for branches in _frame_branches(*trees):
        frames = next(iter(branches[0].values()))
        last = frames.spec.make(memory)
        for branch in branches:
            branch[_LAST] = last


def first_places(rows: Any, places: Any) -> Any:
    """Return where first observations are written to: whole stacks, for rows of frames.

    They may come from the middle of an episode.

    Args:
        rows: of the tree's observation.
        places: for other leaves.
    """
    if isinstance(rows, ArrayDict):
        return ArrayDict({name: first_places(row, places[name]) for name, row in rows.items()})
    return rows.spec.make() if isinstance(rows, FrameArray) else places


def take_first_stacks(rows: Any, first: Any, places: Any) -> None:
    """Write first observations to rows of frames, and remember the newest ones.

    Args:
        rows, places: as `first_places` got them.
        first: what it returned, written. Leaves that are no stacks are left alone.
    """
    if isinstance(rows, ArrayDict):
        for name, row in rows.items():
            take_first_stacks(row, first[name], places[name])
    elif isinstance(rows, FrameArray):
        rows.write_history(..., first)
        if isinstance(places, ArrayDict) and _LAST in places:
            places[_LAST][...] = first.to_ndarray().take(-1, axis=rows.n_batch_dims)


def _frame_branches(*trees: ArrayDict) -> Iterator[tuple[ArrayDict, ...]]:
    """Yield the places of frames in trees that are alike."""
    for name, branch in trees[0].items():
        if isinstance(branch, ArrayDict):
            branches = tuple(tree[name] for tree in trees)
            if is_of_frames(branch):
                yield branches
            else:
                yield from _frame_branches(*branches)


def is_of_frames(out: ArrayDict) -> bool:
    """Whether a branch holds places of frames."""
    return next(iter(out), "").startswith(_PREFIX)


def write_stacks(out: ArrayDict, stacks: Sequence[NDArray[Any]]) -> None:
    """Write the newest frame of each stack, and whether an episode begins with it.

    Args:
        out: places [n, ...], as NumPy arrays.
        stacks: n of them, [stack, *frame_shape].

    Raises:
        ValueError: a stack has another number of frames; or it is not that of a first frame, and
            does not go on with the frame before. What was written before it stays.
    """
    name = next(iter(out))
    _, n_frames, fill = name.split(":")
    frames, is_first = out[name], out[_IS_FIRST]
    last = out.get(_LAST)
    previous = out.get(PREVIOUS, last)
    for row, stack in enumerate(stacks):
        if len(stack) != int(n_frames):
            raise ValueError(f"observation: got {len(stack)} frames, expected stacks of {n_frames}")
        begins = _is_first(stack, fill)
        if not begins and previous is not None and not _are_equal(stack[-2], previous[row]):
            raise ValueError(
                f"observation of environment {row}: it neither goes on with the one before nor"
                f" begins an episode as fill={fill!r} has it; a FrameArray takes stacks of the last"
                f" {n_frames} frames only; use an Array for others"
            )
        frames[row] = stack[-1]
        is_first[row] = begins
        if last is not None:
            last[row] = stack[-1]


def _is_first(stack: NDArray[Any], fill: str) -> bool:
    """Whether a stack is that of an episode's first frame; the second newest one tells mostly."""
    older = reversed(stack[:-1])
    if fill == "first":
        return all(_are_equal(frame, stack[-1]) for frame in older)
    return all(_are_equal(frame, np.zeros_like(frame)) for frame in older)


def _are_equal(frame: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two frames have the same bytes, for which memory is compared at once."""
    if frame.dtype != other.dtype:
        frame = frame.astype(other.dtype)
    return frame.tobytes() == other.tobytes()


def _name_of(leaf: FrameArray) -> str:
    return f"{_PREFIX}{leaf.stack}:{leaf.fill}"

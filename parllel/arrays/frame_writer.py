"""FrameWriter: it writes the stacks of environments as single frames in rows of a FrameArray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.frame_buffer import Fill
from parllel.arrays.row_writer import RowWriter

Place: TypeAlias = tuple[int, ...]
"""The number of a row, and that of an agent where a row has several."""

FRAMES = "frames"
IS_FIRST = "is_first"
PREVIOUS = "previous"  # the frames one step before; only read
LAST = "last"  # the frames written last; kept from step to step


@dataclass(frozen=True)
class FrameWriter(RowWriter):
    """Writes the newest frame of each stack, and a flag that tells whether an episode begins.

    A stack that is filled like the first one of an episode is taken for one.

    >>> writer = FrameWriter(np.dtype(np.uint8), (2,), stack=2, fill="first")
    >>> parts = {FRAMES: np.zeros((1, 2), np.uint8), IS_FIRST: np.zeros(1, bool)}
    >>> writer.write(parts, [np.array([[5, 5], [5, 5]])])
    >>> parts["frames"].tolist(), parts["is_first"].tolist()
    ([[5, 5]], [True])

    Args:
        dtype: type of the elements.
        frame_shape: shape of one frame.
        stack: number of frames of a stack.
        fill: content of a stack before the beginning of its episode.
        agents: dimensions of a sample before those of a stack, (N,) of several agents. A flag
            belongs to each stack: the episodes of agents begin apart.
    """

    dtype: np.dtype[Any]
    frame_shape: tuple[int, ...]
    stack: int
    fill: Fill
    agents: tuple[int, ...] = ()

    only_read = frozenset({PREVIOUS})

    @property
    def sample_form(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of a stack, or of the stacks of all agents."""
        return (*self.agents, self.stack, *self.frame_shape), self.dtype

    def part_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return the specs of frames and flags, for rows in memory of their own."""
        frames = ArraySpec.of(batch_shape, self.dtype, self.frame_shape)
        return {FRAMES: frames, IS_FIRST: ArraySpec.of(batch_shape, np.bool_)}

    def kept_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return the spec of the frames written last, which the next stacks must continue."""
        return {LAST: ArraySpec.of(batch_shape, self.dtype, self.frame_shape)}

    def write(self, parts: Mapping[str, NDArray[Any]], samples: Sequence[NDArray[Any]]) -> None:
        """Write one stack of each environment, or those of all its agents.

        Args:
            parts: frames [n, *agents, *frame_shape] and flags [n, *agents], overwritten; and the
                frames one step before, `PREVIOUS` or `LAST`, where stacks are compared with them.
            samples: n samples [*agents, stack, *frame_shape].

        Raises:
            ValueError: a stack has another number of frames; or it neither begins an episode nor
                continues the frame before. The stacks before it are written.
        """
        frames, is_first, last = parts[FRAMES], parts[IS_FIRST], parts.get(LAST)
        previous = parts.get(PREVIOUS, last)
        for at, stack in self._stacks_of(samples):
            if len(stack) != self.stack:
                raise ValueError(
                    f"{_name_of(at)}: got {len(stack)} frames, expected stacks of {self.stack}"
                )
            begins = self._is_first(stack)
            if not begins and previous is not None and not _are_equal(stack[-2], previous[at]):
                raise ValueError(
                    f"{_name_of(at)}: it neither goes on with the one before nor begins an episode"
                    f" as fill={self.fill!r} has it; a FrameArray takes stacks of the last"
                    f" {self.stack} frames only; use an Array for others"
                )
            frames[at] = stack[-1]
            is_first[at] = begins
            if last is not None:
                last[at] = stack[-1]

    def _stacks_of(self, samples: Iterable[NDArray[Any]]) -> Iterator[tuple[Place, NDArray[Any]]]:
        """Yield all stacks of some samples, each with its place."""
        for row, sample in enumerate(samples):
            for agent in product(*map(range, self.agents)):
                yield (row, *agent), sample[agent] if agent else sample

    def kept_of(self, samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the newest frame of each stack."""
        axis = samples.ndim - len(self.frame_shape) - 1
        return {LAST: samples.take(self.stack - 1, axis=axis)}

    def follow(
        self, before: NDArray[Any], after: NDArray[Any], *, may_begin: bool
    ) -> NDArray[np.bool_]:
        """Return bool [n, *agents], whether stacks go on with those before by one more frame."""
        pairs = zip(self._stacks_of(before), self._stacks_of(after), strict=True)
        fits = [
            _are_equal(new[:-1], old[1:]) or (may_begin and self._is_first(new))
            for (_, old), (_, new) in pairs
        ]
        return np.array(fits, bool).reshape(len(after), *self.agents)

    def _is_first(self, stack: NDArray[Any]) -> bool:
        """Whether a stack begins an episode; for most stacks the second newest frame tells."""
        older = reversed(stack[:-1])
        if self.fill == "first":
            return all(_are_equal(frame, stack[-1]) for frame in older)
        return all(_are_equal(frame, np.zeros_like(frame)) for frame in older)


def _name_of(at: Place) -> str:
    row, *agent = at
    return f"observation of environment {row}" + "".join(f", agent {number}" for number in agent)


def _are_equal(frame: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two frames have the same bytes, which takes one comparison of memory."""
    if frame.dtype != other.dtype:
        frame = frame.astype(other.dtype)
    return frame.tobytes() == other.tobytes()

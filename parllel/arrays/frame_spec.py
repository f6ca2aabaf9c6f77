"""FrameSpec: what a FrameArray looks like before it has memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from parllel.arrays.spec import ArraySpec
from parllel.storages import Memory, aligned, nbytes_of

if TYPE_CHECKING:
    from parllel.arrays.frame_array import FrameArray

Fill: TypeAlias = Literal["first", "zero"]
_FILLS = ("first", "zero")


@dataclass(frozen=True)
class FrameSpec(ArraySpec):
    """Shape, dtype, window and stacks of a FrameArray, checked; its arguments are those of it."""

    stack: int
    fill: Fill

    @classmethod
    def of(
        cls,
        batch_shape: Sequence[int],
        dtype: DTypeLike,
        feature_shape: Sequence[int] = (),
        padding: int = 0,
        full_size: int | None = None,
        stack: int = 4,
        fill: Fill = "first",
    ) -> Self:
        """Check what a user gives. `feature_shape` is that of one frame.

        Raises:
            TypeError, ValueError: as for `ArraySpec`; or stack is no positive integer, or fill is
                not known.
        """
        plain = ArraySpec.of(batch_shape, dtype, feature_shape, padding, full_size)
        n_frames = operator.index(stack)
        if n_frames < 1:
            raise ValueError(f"stack: got {stack}, expected 1 or more")
        if fill not in _FILLS:
            raise ValueError(
                f'fill: got {fill!r}, expected "first" (the episode\'s first frame, as gymnasium'
                ' has it) or "zero" (as ALE has it)'
            )
        return cls(
            plain.batch_shape,
            plain.dtype,
            plain.feature_shape,
            plain.padding,
            plain.full_size,
            n_frames,
            fill,
        )

    def make(self, storage: str | Memory = "local") -> FrameArray:
        """Allocate a FrameArray that looks like this, in memory of a kind or in a block of it."""
        from parllel.arrays.frame_array import (
            FrameArray,
        )  # here, because a FrameArray knows its spec

        return FrameArray(
            self.batch_shape,
            self.dtype,
            self.feature_shape,
            stack=self.stack,
            fill=self.fill,
            storage=storage,
            padding=self.padding,
            full_size=self.full_size,
        )

    @property
    def n_blank(self) -> int:
        """Rows at the beginning of the base buffer that stay zero, to fill stacks with."""
        return 1 if self.fill == "zero" else 0

    @property
    def n_head(self) -> int:
        """Rows of the base buffer before the padding: the blank one, and frames before it."""
        return self.n_blank + self.stack - 1

    @property
    def extents(self) -> tuple[int, ...]:
        """Shape of the base buffer of frames."""
        return (self.n_head + self.window().n_rows, *self.batch_shape[1:], *self.feature_shape)

    @property
    def flag_extents(self) -> tuple[int, ...]:
        """Shape of the flags beside it."""
        return self.extents[: len(self.batch_shape)]

    @property
    def nbytes(self) -> int:
        """Bytes of the frames and of the flags, and the gap between them."""
        flags = nbytes_of(self.flag_extents, np.dtype(np.bool_))
        return aligned(nbytes_of(self.extents, self.dtype)) + flags

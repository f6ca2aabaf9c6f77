"""The contract of all transforms."""

from __future__ import annotations

from typing import Protocol

from parllel.tree import ArrayDict


class Transform(Protocol):
    """A step between sampling and learning.

    It returns a tree that shares the unchanged leaves of the batch. New leaves are its own
    Arrays, which its next call overwrites.
    """

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        """Return the batch with what the transform adds or replaces."""

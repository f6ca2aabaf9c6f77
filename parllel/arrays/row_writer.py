"""RowWriter: how environments write rows of an Array that stores a row in several parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from parllel.arrays.spec import ArraySpec


class RowWriter(ABC):
    """How samples of environments become rows of an Array that stores a row in several parts.

    It holds no memory. It is sent to worker processes, which write the parts as NumPy arrays. So
    it must be possible to pickle it, and writers that do the same must be equal and have the same
    hash, as frozen dataclasses of the same values.

    Parts have names. There are those that a row consists of, and there may be two kinds beside
    them: parts that are only read (`only_read`), which are given where the rows are those of the
    Array itself; and parts that are kept from one set of rows to the next (`kept_specs`), which are
    given where several sets of rows are written in turn and then copied to the Array.
    """

    only_read: frozenset[str] = frozenset()
    """Names of the parts that `write` reads and does not write."""

    @abstractmethod
    def part_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return what the parts look like for rows in memory of their own, by their names."""

    def kept_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return what is kept beside such rows, from one set of them to the next: nothing."""
        return {}

    @abstractmethod
    def write(self, parts: Mapping[str, NDArray[Any]], samples: Sequence[NDArray[Any]]) -> None:
        """Write one sample of each environment.

        Args:
            parts: arrays [n, ...] by their names.
            samples: n of them, or an array [n, ...].

        Raises:
            ValueError: a sample can't be stored. Those before it are written.
        """

    def kept_of(self, samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return what is kept of samples that did not go through `write`: nothing.

        Args:
            samples: array [n, ...].
        """
        return {}

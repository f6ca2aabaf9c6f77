"""RowWriter: it writes samples of environments to rows that are stored in several parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.arrays.array_spec import ArraySpec


class RowWriter(ABC):
    """Writes samples of environments to rows of an Array that stores a row in several parts.

    A writer has no memory of its own. It is sent to worker processes, which write the parts as
    NumPy arrays, so it must be possible to pickle it. Writers that do the same must be equal and
    have the same hash, as frozen dataclasses of the same values.

    Parts have names. Beside the parts of a row, there may be others: parts that are only read
    (`only_read`), where the rows are in the Array itself; and parts that are kept from one step to
    the next (`kept_specs`), where steps are written in turn to memory outside the Array.

    >>> from parllel import FrameArray
    >>> writer = FrameArray((5, 2), "uint8", (84, 84)).row_writer
    >>> list(writer.part_specs((2,))), writer.only_read
    (['frames', 'is_first'], frozenset({'previous'}))
    """

    only_read: frozenset[str] = frozenset()
    """Names of the parts that `write` reads and does not write."""

    @property
    def sample_form(self) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        """Shape and dtype of a sample, which cages compare; by default None: the writer does."""
        return None

    @property
    def longest(self) -> int | None:
        """The most rows of a sample [n, ...], beyond which cages refuse it; None for any number."""
        return None

    @abstractmethod
    def part_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return the specs of the parts by name, for rows in memory of their own.

        Args:
            batch_shape: (n, ...), the number of rows first.
        """

    def kept_specs(self, batch_shape: Sequence[int]) -> dict[str, ArraySpec]:
        """Return the specs of the parts that are kept from step to step, by name; none by default.

        Args:
            batch_shape: (n, ...), the number of rows first.
        """
        return {}

    @abstractmethod
    def write(self, parts: Mapping[str, NDArray[Any]], samples: Sequence[NDArray[Any]]) -> None:
        """Write one sample of each environment.

        Args:
            parts: NumPy arrays [n, ...] by name, overwritten.
            samples: n samples, or an array [n, ...].

        Raises:
            ValueError: a sample can't be stored. The samples before it are written.
        """

    def kept_of(self, samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the kept parts for samples that were written in another way; none by default.

        Args:
            samples: [n, ...], one sample of each environment.
        """
        return {}

    def follow(
        self, before: NDArray[Any], after: NDArray[Any], *, may_begin: bool
    ) -> NDArray[np.bool_]:
        """Return bool [n], whether samples can be stored in the rows after others.

        By default, all can. Where each of several agents has its own part of a sample, [n, N].

        Args:
            before: [n, ...], the samples of one step.
            after: [n, ...], those of the next one.
            may_begin: whether a sample that begins an episode can be stored.
        """
        return np.ones(len(after), bool)

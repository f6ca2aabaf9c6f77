"""Kinds of memory, one file for each; `allocate` makes a block of the kind that a word names."""

from __future__ import annotations

from collections.abc import Callable

from parllel.storages.inherited import Inherited
from parllel.storages.local import Local
from parllel.storages.shared import Shared
from parllel.storages.storage import Memory, aligned, nbytes_of

__all__ = ["KINDS", "Inherited", "Local", "Memory", "Shared", "aligned", "allocate", "nbytes_of"]

KINDS: dict[str, Callable[[int], Memory]] = {kind.kind: kind for kind in (Local, Shared, Inherited)}


def allocate(kind: str, nbytes: int) -> Memory:
    """Allocate one zeroed block of memory.

    Args:
        kind: one of `KINDS`: "local", "shared" or "inherited".
        nbytes: size of the block in bytes.

    Raises:
        ValueError: the kind is not known.
        MemoryError: there is less memory than that.
    """
    if kind not in KINDS:
        raise ValueError(f"storage: got {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    return KINDS[kind](nbytes)

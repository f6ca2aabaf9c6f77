"""Kinds of memory, one file for each; `allocate` makes a block of the kind that a word names."""

from __future__ import annotations

from parllel import cuda
from parllel.storages.device import Device
from parllel.storages.inherited import Inherited, inherited_blocks
from parllel.storages.local import Local
from parllel.storages.managed import Managed
from parllel.storages.pinned import Pinned
from parllel.storages.shared import Shared
from parllel.storages.storage import Memory, MemoryKind, Side, aligned, nbytes_of

__all__ = [
    "KINDS",
    "Device",
    "Inherited",
    "Local",
    "Managed",
    "Memory",
    "MemoryKind",
    "Pinned",
    "Shared",
    "Side",
    "aligned",
    "allocate",
    "default_storage",
    "inherited_blocks",
    "nbytes_of",
    "storage_for",
]

KINDS: dict[str, MemoryKind] = {
    kind.kind: kind for kind in (Local, Shared, Inherited, Pinned, Managed, Device)
}
"""The kinds of memory by the words that `storage=` takes. A kind of your own is added here."""


def allocate(kind: str, nbytes: int) -> Memory:
    """Allocate one zeroed block of memory.

    Args:
        kind: one of `KINDS`: "local", "shared", "inherited", "pinned", "managed" or "device".
        nbytes: size of the block in bytes.

    Raises:
        ValueError: the kind is not known.
        CudaUnavailableError: the kind needs a GPU, and there is no usable one; the message says
            why, and which kinds need none.
        MemoryError: there is less memory than that; nothing was allocated.
    """
    if not isinstance(kind, str):
        raise TypeError(f"storage: got {kind!r}, expected a kind of memory or a block of it")
    if kind.partition(":")[0] in ("device", "managed") and ":" in kind:
        raise ValueError(
            f"storage: got {kind!r}, expected the kind alone: memory is of the current device;"
            f" choose it with `with parllel.cuda.use_device({kind.partition(':')[2]}):` around all"
            " that uses the memory, or with CUDA_VISIBLE_DEVICES for the program"
        )
    if kind not in KINDS:
        raise ValueError(f"storage: got {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    return KINDS[kind](nbytes)


def default_storage() -> str:
    """Return "device" where this process can use a CUDA device, and "local" elsewhere.

    The first call imports CuPy where it is installed, and starts no CUDA context. A program that
    asks once and passes the answer on keeps all its memory in one place.
    """
    return storage_for("gpu" if cuda.is_available() else "host")


def storage_for(side: Side) -> str:
    """Return the kind of memory for what one side of this process uses alone: minibatches, scratch.

    Args:
        side: "host" or "gpu", which of them works on the memory.
    """
    return Device.kind if side == "gpu" else Local.kind

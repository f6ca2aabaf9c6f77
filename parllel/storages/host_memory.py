"""How much host memory can still be promised, asked before a block is reserved."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_nbytes() -> int | None:
    """Return the bytes that this process can still get without swapping; None where unknown.

    The smaller of what the kernel calls available and what the control group (a container's
    limit) leaves.
    """
    limits = [limit for limit in (_meminfo_available(), _cgroup_left()) if limit is not None]
    return min(limits, default=None)


def check_available(kind: str, nbytes: int, *, elsewhere: int = 0) -> None:
    """Raise MemoryError if `nbytes` more cannot be promised.

    Pages of shared and of managed memory are counted when they are touched. Without this check,
    too large a block ends the process with SIGBUS or the kernel's out-of-memory killer instead of
    an error.

    Args:
        kind: kind of the memory, for the message.
        nbytes: what is wanted.
        elsewhere: free bytes that memory of this kind may have beside those of the host.
    """
    available = available_nbytes()
    if available is None:
        return
    free = available + elsewhere
    if nbytes > free:
        raise MemoryError(
            f"{kind} memory: {nbytes:,} bytes wanted, {free:,} free; make batch_shape or full_size"
            " smaller, store observations as uint8, or close other trees first"
        )


def _meminfo_available() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_left() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - int(used) + _cache_nbytes(), 0)


def _cache_nbytes() -> int:
    """Return what counts as used for files that are not in use: it goes when memory is wanted."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))

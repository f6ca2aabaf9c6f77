"""Locks on open files and folders: they end with the process that holds them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

fcntl: Any  # Windows has none
try:
    import fcntl
except ImportError:
    fcntl = None


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder, and return at once.

    Args:
        descriptor: it holds the lock until it is unlocked or closed. A forked child that has a
            copy of it holds the lock, too.

    Returns:
        Whether it is locked; False where the system, or the file's own file system, has no locks.

    Raises:
        BlockingIOError: another descriptor holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give up a lock, also for forked children; do nothing where there is none."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)

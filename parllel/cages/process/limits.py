"""Errors of a process that has reached a limit of the system, with the limit and the way out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

resource: Any  # Windows has none, and no ProcessCage
try:
    import resource
except ImportError:
    resource = None


@contextmanager
def limits_explained() -> Iterator[None]:
    """Raise errors that come of a limit with its size, and with the way out.

    >>> with limits_explained():
    ...     raise OSError(errno.EMFILE, "Too many open files")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    OSError: [Errno 24] no worker process: Too many open files; this process may open ...
    """
    try:
        yield
    except OSError as error:
        advice = _advice(error.errno)
        if advice is None:
            raise
        what = str(error.strerror).removeprefix("no worker process: ")
        raise OSError(error.errno, f"no worker process: {what}; {advice}") from error


def _advice(number: int | None) -> str | None:
    if number == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"this process may open {_text(soft)} files: raise that by `ulimit -n` (up to"
            f" {_text(hard)}), or use fewer workers (n_workers=)"
        )
    if number == errno.ENFILE:
        return "the system has reached its own limit (sysctl fs.file-max); use fewer workers"
    if number == errno.EAGAIN:
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        return (
            f"this user may have {_text(soft)} processes and threads: raise that by `ulimit -u` (up"
            f" to {_text(hard)}) or the container's own limit, or use fewer workers (n_workers=)"
        )
    return None


def _text(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)

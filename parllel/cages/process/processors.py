"""How many processors this process may keep busy, and how many threads a worker may start."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

# Variables for workers. There are as many workers as processors, so more threads of a library would
# wait for each other.
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1"
    for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB", "NUMEXPR", "NUMBA")
}


def n_physical_cores() -> int:
    """Return the number of physical cores that this process may use, 1 at least.

    These are the cores that its affinity allows, and no more than its control group (the limit of
    a container) has time for. Where the system does not describe its cores, every processor counts
    as one.
    """
    processors = _allowed()
    cores = {_core_of(processor) for processor in processors}
    return max(1, min(len(cores), _quota() or len(cores)))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _core_of(processor: int) -> str:
    """Return a name of the core, which is the same for all processors of that core."""
    try:
        return (_TOPOLOGY / f"cpu{processor}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(processor)


def _quota() -> int | None:
    """Return how many processors the control group has time for; None where it sets no limit."""
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(int(quota) // int(period), 1)

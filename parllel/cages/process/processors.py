"""How many processors this process may keep busy, and how many threads a worker may start."""

from __future__ import annotations

import os
from contextlib import suppress
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


def processors_to_bind(n_workers: int) -> list[int]:
    """Return a processor for each worker, of those that this process may use.

    The workers go round the cores, so that no core has two of them before each has one.
    """
    of_cores: dict[str, list[int]] = {}
    for processor in sorted(_allowed()):
        of_cores.setdefault(_core_of(processor), []).append(processor)
    cores = list(of_cores.values())
    rounds = (divmod(number, len(cores)) for number in range(n_workers))
    return [cores[core][turn % len(cores[core])] for turn, core in rounds]


def check_processor(processor: int | None) -> int | None:
    """Return a processor of those that this process may use, or None; refuse all else.

    Raises:
        TypeError: it is no int.
        ValueError: this process may not use it.
    """
    if processor is None or (type(processor) is int and processor in _allowed()):
        return processor
    error = ValueError if type(processor) is int else TypeError
    raise error(
        f"processor: got {processor!r}, expected an int of {sorted(_allowed())}, the processors"
        " that this process may use"
    )


def bind(process: int, processor: int) -> None:
    """Let the main thread of a process run on one processor; nothing where it has ended.

    What the thread starts later, threads and programs, stays on that processor, too.

    Raises:
        TypeError, ValueError: as for `check_processor`.
    """
    check_processor(processor)
    with suppress(ProcessLookupError):
        os.sched_setaffinity(process, {processor})


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

"""The processes of one run: which of them this one is, and what they tell each other.

`torchrun` starts several processes of one program, its ranks. Each has environments, samples and a
replay buffer of its own; their gradients and moments are those of all (docs/several_gpus.md).
Without it there is one rank, and nothing here imports torch or waits for anything.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

_Value = TypeVar("_Value")

# So long a rank waits for the others, where neither program nor user say it. They reach each
# exchange together, but for what one environment takes longer than another; torch's own half an
# hour hides a suspended process.
TIMEOUT_S = 600.0
_TIMEOUT = "PARLLEL_RANKS_TIMEOUT_S"  # where a user says it, of a program that does not

# One of them is in each error of gloo and NCCL: gloo names its source file.
_WORDS_OF_EXCHANGE = "gloo", "nccl", "connection", "socket", "timed out", "timeout"

# Where torchrun says which of a machine's ranks this one is.
_LOCAL = "LOCAL_RANK"

# The processes of the host, where torch has chosen another kind of group for its default one.
_host_groups: list[Any] = []  # Any: torch's ProcessGroup; one at most


class RankError(RuntimeError):
    """The ranks of a run do not go on together: one has ended, or waits for something else.

    >>> raise RankError("rank 0 of 2 waited at 'gradients', and another rank has ended")
    Traceback (most recent call last):
    parllel.ranks.RankError: rank 0 of 2 waited at 'gradients', and another rank has ended
    """


def rank() -> int:
    """Return the number of this process among the ranks of its run; 0 where it is alone.

    >>> rank()
    0
    """
    distributed = _initialized()
    return distributed.get_rank() if distributed is not None else _count("RANK", 0)


def n_ranks() -> int:
    """Return how many ranks the run has, as `torchrun` has started them; 1 without it.

    >>> n_ranks()
    1
    """
    distributed = _initialized()
    return distributed.get_world_size() if distributed is not None else _count("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the number of this process among those of its machine, which is that of its GPU.

    >>> local_rank()
    0
    """
    return int(os.environ.get(_LOCAL, 0)) if n_ranks() > 1 else 0


def device_of_rank(n_devices: int) -> int:
    """Return the number of the GPU that is this rank's own.

    >>> device_of_rank(4)
    0

    Args:
        n_devices: how many this process sees. Where it is one, that is the rank's, as programs
            are started that show each rank another one (CUDA_VISIBLE_DEVICES).

    Raises:
        RankError: there are fewer than ranks on this machine, and more than one; or nothing says
            which of this machine's ranks this one is.
    """
    number = local_rank()
    if n_devices == 1:
        return 0
    if n_ranks() > 1 and _LOCAL not in os.environ:
        raise RankError(
            f"rank {rank()} of {n_ranks()} sees {n_devices} GPUs, and {_LOCAL} is not set, expected"
            " its number among the ranks of its machine, as torchrun sets it; set it, or show each"
            " rank one GPU alone with CUDA_VISIBLE_DEVICES"
        )
    if number >= n_devices:
        raise RankError(
            f"rank {rank()} is number {number} of its machine, and sees {n_devices} GPUs, expected"
            " one for each rank; start as many ranks on a machine as it has GPUs"
            f" (torchrun --nproc-per-node {n_devices})"
        )
    return number


def join(*, timeout_s: float | None = None) -> None:
    """Meet the other ranks of the run; where there is one, do nothing.

    What exchanges something calls it by itself. A program calls it first of all where another
    time than ten minutes is right; of a program that does not, the user says it by the environment
    variable PARLLEL_RANKS_TIMEOUT_S. torch's default process group is made, of gloo for memory of
    the host, and of NCCL for that of GPUs where there are any; a group that the program has made
    itself is used as it is.

    Args:
        timeout_s: seconds that a rank waits for the others in an exchange, this one too, before it
            raises; above 0.

    Raises:
        RankError: the others did not come in time, or are somewhere else.
        ValueError: the time is not above 0, or no number.
    """
    if n_ranks() == 1 or _initialized() is not None:
        return
    wait_s = _timeout_s() if timeout_s is None else timeout_s
    if not 0 < wait_s < math.inf:
        raise ValueError(f"timeout_s: got {wait_s}, expected seconds above 0")
    import torch
    from torch import distributed

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(device_of_rank(torch.cuda.device_count()))
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    with explained(f"the beginning, at {where} (MASTER_ADDR and MASTER_PORT, alike for all)"):
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=timedelta(seconds=wait_s)
        )
    atexit.register(_leave)


def gather(what: str, value: _Value) -> list[_Value]:
    """Return the values of all ranks, in their order; each of them has to call this.

    The host waits until all have come here. Where there is one rank, it is the value alone.

    >>> gather("the number of episodes", 3)
    [3]

    Args:
        what: what is exchanged, in words that differ from those of other calls: ranks that meet
            with different words are not at the same place of the program.
        value: plain data or NumPy arrays, which are pickled; they may differ in size.

    Raises:
        RankError: a rank has ended, did not come in time, or has called this for something else.
    """
    if n_ranks() == 1:
        return [value]
    join()
    from torch import distributed

    found: list[Any] = [None] * n_ranks()
    with explained(what):
        distributed.all_gather_object(found, (what, value), group=_host_group())
    places = [place for place, _ in found]
    if len(set(places)) > 1:
        raise RankError(
            f"the ranks are at different places of the program: {_by_rank(places)}; all have to"
            " call the same functions that exchange something, in the same order, as often"
        )
    return [each for _, each in found]


def check_same(what: str, facts: Mapping[str, object]) -> None:
    """Refuse ranks that differ in something which has to be the same for all.

    >>> check_same("the run", {"n_steps": 1000})

    Args:
        what: what the facts are about; each rank has to call this.
        facts: by names: plain data that can be compared.

    Raises:
        RankError: as for `gather`.
        ValueError: a fact differs; the message says which rank has what. All ranks raise it.
    """
    if n_ranks() == 1:
        return
    found = gather(what, dict(facts))
    differing = {}
    for name in dict.fromkeys(name for each in found for name in each):
        own = [each.get(name, "nothing") for each in found]
        if any(each != own[0] for each in own):
            differing[name] = own
    if differing:
        told = "; ".join(f"{name}: {_by_rank(own)}" for name, own in differing.items())
        raise ValueError(
            f"{what}: got ranks that differ, expected the same for all: {told}; start all ranks"
            " with one program and the same arguments"
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say at what a rank waited, where torch's exchange with the others fails in the block.

    Args:
        what: what is exchanged.

    Raises:
        RankError: in the place of torch's RuntimeError. One that tells of something else, as of
            memory or of a loss without gradients, stays what it is.
    """
    try:
        yield
    except RankError:
        raise
    except RuntimeError as error:  # torch's DistError and those of gloo are such
        if not _is_of_exchange(error):
            raise
        raise RankError(
            f"rank {rank()} of {n_ranks()} waited for the others at {what!r}, and they did not"
            f" come: {_first_sentence(error)}. A rank has ended, hangs, or is at another place of"
            " the program; what it has printed says why"
        ) from error


def _timeout_s() -> float:
    text = os.environ.get(_TIMEOUT, str(TIMEOUT_S))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{_TIMEOUT}: got {text!r}, expected a number of seconds") from None


def _count(name: str, default: int) -> int:
    """Return a number that torchrun has set; the default where it did not start this process."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return default
    return int(os.environ.get(name, default))


def _initialized() -> Any:  # Any: the module torch.distributed, or None
    """Return torch's module if it has a process group; nothing is imported."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def _host_group() -> Any:  # Any: a ProcessGroup, or None for torch's default one
    """Return the processes as a group that exchanges memory of the host."""
    from torch import distributed

    if "gloo" in str(distributed.get_backend_config()):
        return None
    if not _host_groups:  # all ranks come here at the same exchange
        _host_groups.append(distributed.new_group(backend="gloo"))
    return _host_groups[0]


def _leave() -> None:
    """Leave the group at the end of the process, but not after an error: NCCL would wait."""
    if _initialized() is not None and not hasattr(sys, "last_value"):
        _initialized().destroy_process_group()


def _is_of_exchange(error: RuntimeError) -> bool:
    """Tell whether an error is one of torch's exchange; gloo's have no class of their own."""
    if type(error).__name__.startswith("Dist"):
        return True
    text = str(error).lower()
    return any(word in text for word in _WORDS_OF_EXCHANGE)


def _first_sentence(error: RuntimeError) -> str:
    """Return what happened, without gloo's advice behind it."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")


def _by_rank(values: list[Any]) -> str:
    return ", ".join(f"rank {number} has {value!r}" for number, value in enumerate(values))

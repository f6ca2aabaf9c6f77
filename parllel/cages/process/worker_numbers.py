"""How many workers step environments: the number that is given, or that which suits the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Literal

from parllel.cages.process.processors import n_physical_cores
from parllel.cages.stepper import Stepper
from parllel.cages.values.any_env import AnyEnv

# Sending a step to a worker and waiting for it costs this process some 50 us for all environments
# of the worker together: with less work than this in each step, a worker gains nothing.
_WORTH_WORKERS_S = 20e-6

# Enough for a median that one slow step does not move, and not noticed where steps are slow.
_TIMED_STEPS = 64
_LONGEST_TIMING_S = 0.02


def find_n_workers(
    n_workers: int | Literal["serial"] | None,
    n_envs: int,
    make_env: Callable[..., AnyEnv],
    env_kwargs: Mapping[str, Any],
    *,
    n_busy: int = 0,
    is_timed: bool = True,
) -> int:
    """Return how many workers to make; 0 where environments are better off in this process.

    >>> from parllel.testing.toy_envs import Clock
    >>> find_n_workers(3, 2, Clock, {}), find_n_workers(None, 2, Clock, {})
    (2, 0)

    Args:
        n_workers: a number, "serial" for 0, or None for that which suits the machine.
        n_envs: number of environments for workers.
        make_env, env_kwargs: as for `Stepper`. Some steps of an environment are timed where
            `n_workers` is None; where they are short, there are no workers.
        n_busy: how many processes step other environments meanwhile. Where `n_workers` is None,
            each of them keeps a core.
        is_timed: whether an environment is timed at all.

    Raises:
        ValueError: n_workers is no such number.
    """
    if n_workers == "serial":
        return 0
    if n_workers is not None:
        if not isinstance(n_workers, int) or n_workers < 0:
            raise ValueError(f'n_workers: got {n_workers!r}, expected 0 or more, "serial" or None')
        return min(n_workers, n_envs)
    n_cores = n_physical_cores() if sys.platform == "linux" else 0
    n_used = min(n_cores, n_envs + n_busy)
    if n_used < 2 or (is_timed and _step_s(make_env, env_kwargs) < _WORTH_WORKERS_S):
        return 0
    return n_used - n_busy


def check_n_serial_envs(n_serial_envs: object, n_envs: int, on_worker_error: str) -> None:
    """Refuse a number of environments that can't step in this process beside workers.

    Raises:
        TypeError: it is no int.
        ValueError: it is negative, leaves no environment to workers, or they are to be made anew.
    """
    if type(n_serial_envs) is not int:
        raise TypeError(
            f"n_serial_envs: got {n_serial_envs!r}, expected an int, the number of environments"
            " that step in this process beside workers"
        )
    if n_serial_envs and not 0 < n_serial_envs < n_envs:
        raise ValueError(
            f"n_serial_envs: got {n_serial_envs}, expected 0 or more, and fewer than n_envs"
            f" ({n_envs}); all environments are in this process with n_workers=0"
        )
    if n_serial_envs and on_worker_error == "restart":
        raise ValueError(
            f'n_serial_envs: got {n_serial_envs} with on_worker_error="restart", expected 0: what'
            " ends an environment of this process ends the program"
        )


def _step_s(make_env: Callable[..., AnyEnv], env_kwargs: Mapping[str, Any]) -> float:
    """Return the median time of some random steps of an environment, in seconds."""
    stepper = Stepper(make_env, env_kwargs, seed=0)
    try:
        stepper.reset()
        begin_s = time.perf_counter()
        times_s: list[float] = []
        for _ in range(_TIMED_STEPS):
            actions = stepper.random_actions()  # which follow the step before: it may mask some
            step_begin_s = time.perf_counter()
            stepper.step(actions)
            end_s = time.perf_counter()
            times_s.append(end_s - step_begin_s)
            if end_s - begin_s > _LONGEST_TIMING_S:
                break
    finally:
        stepper.close()
    return median(times_s)

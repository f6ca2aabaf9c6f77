"""Task: what a worker process is told at its start."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np

from parllel.cages.episodes import TrajInfo
from parllel.cages.process.processors import ONE_THREAD


class Surroundings(NamedTuple):
    """What the worker takes over from its cage's process, so that the same code does the same.

    Args:
        path: `sys.path`.
        folder: the current one; None if it is gone.
        variables: the environment's, but for the numbers of threads.
        authkey: with which shared memory in `env_kwargs` is received.
        env_specs: gymnasium's registry, as far as it is not gymnasium's own; pickled.
    """

    path: list[str]
    folder: str | None
    variables: Mapping[str, str]
    authkey: bytes
    env_specs: bytes

    @classmethod
    def of_this_process(cls) -> Surroundings:
        """Return this process's surroundings, with one thread for each library."""
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            folder = None
        return cls(
            path=list(sys.path),
            folder=folder,
            variables=os.environ | ONE_THREAD,
            authkey=bytes(multiprocessing.current_process().authkey),
            env_specs=_pack_env_specs(),
        )

    def take_over(self) -> None:
        """Make this process's surroundings these."""
        sys.path[:] = self.path
        importlib.invalidate_caches()
        if self.folder is not None:
            os.chdir(self.folder)
        os.environ.update(self.variables)
        for name in os.environ.keys() - self.variables.keys():
            del os.environ[name]
        multiprocessing.current_process().authkey = self.authkey
        gym.registry.update(pickle.loads(self.env_specs))


class Task(NamedTuple):
    """What a worker is for.

    Args:
        surroundings: of its cage.
        calls: `(make_env, env_kwargs, make_traj_info)`, pickled: it is read in the surroundings.
        seeds: one for each environment.
        restarts: whether environments that fail are made anew.
    """

    surroundings: Surroundings
    calls: bytes
    seeds: Sequence[np.random.SeedSequence]
    restarts: bool


def pack_calls(
    make_env: Callable[..., gym.Env[Any, Any]],
    env_kwargs: Mapping[str, Any],
    make_traj_info: Callable[[], TrajInfo],
) -> bytes:
    """Pickle what makes environments and summaries, to be called in another process.

    Functions and classes of `__main__`, local ones and lambdas are sent by their definitions, all
    others by their names.

    Raises:
        TypeError: one of them can't be pickled.
    """
    calls = {"make_env": make_env, "env_kwargs": env_kwargs, "make_traj_info": make_traj_info}
    for name, value in calls.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            raise TypeError(
                f"{name}: got {value!r}, which can't be sent to a worker process ({error}); open"
                " files, sockets, locks and generators inside of make_env, or use a SerialCage"
                " (n_workers=0)"
            ) from error
    packed: bytes = cloudpickle.dumps(tuple(calls.values()))
    return packed


def _pack_env_specs() -> bytes:
    """Pickle what the program has registered with gymnasium; what can't be is left out."""
    specs = {name: spec for name, spec in gym.registry.items() if not _is_gymnasiums_own(spec)}
    try:
        packed: bytes = cloudpickle.dumps(specs)
    except Exception:  # an entry point that is a closure over anything
        packed = cloudpickle.dumps({name: s for name, s in specs.items() if _can_be_pickled(s)})
    return packed


def _is_gymnasiums_own(spec: Any) -> bool:
    entry_point = spec.entry_point
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return str(module).startswith("gymnasium.")


def _can_be_pickled(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True

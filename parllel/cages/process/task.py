"""Task: all that a worker process needs to make its environments."""

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
from gymnasium.envs.registration import EnvSpec

from parllel.cages.episodes import TrajInfo
from parllel.cages.process.processors import ONE_THREAD


class Surroundings(NamedTuple):
    """The state of the cage's process that its worker takes over, so that code does the same there.

    >>> Surroundings.of_this_process().variables["OMP_NUM_THREADS"]
    '1'

    Args:
        path: `sys.path`.
        folder: the current folder; None where it was deleted.
        variables: the process's environment variables, with one thread for each library.
        authkey: the key of `multiprocessing`, without which the worker could not receive shared
            memory in `env_kwargs`.
        env_specs: the environments that the program has registered with gymnasium, pickled.
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
        """Give this process the same state."""
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
    """The environments of a worker, and how it makes them.

    >>> calls = pack_calls(gym.make, {"id": "CartPole-v1"}, TrajInfo)
    >>> task = Task(Surroundings.of_this_process(), calls, [np.random.SeedSequence(0)], False)
    >>> make_env, env_kwargs, make_traj_info = pickle.loads(task.calls)

    Args:
        surroundings: the state of the cage's process.
        calls: `(make_env, env_kwargs, make_traj_info)`, pickled apart from the rest: it can be
            unpickled only after the worker has taken over the surroundings.
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
    """Pickle the functions that make environments and summaries, for a call in another process.

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
    """Pickle what the program has registered with gymnasium, but for what can't be pickled."""
    specs = {name: spec for name, spec in gym.registry.items() if not _is_gymnasiums_own(spec)}
    try:
        packed: bytes = cloudpickle.dumps(specs)
    except Exception:  # an entry point may be a closure over any object
        packed = cloudpickle.dumps({name: s for name, s in specs.items() if _can_be_pickled(s)})
    return packed


def _is_gymnasiums_own(spec: EnvSpec) -> bool:
    entry_point = spec.entry_point
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return str(module).startswith("gymnasium.")


def _can_be_pickled(value: object) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True

"""Task: all that a worker process needs to make its environments."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from parllel.cages.process.definitions import pack, packing
from parllel.cages.process.env_specs import pack_env_specs
from parllel.cages.process.interpreter import import_path
from parllel.cages.process.processors import ONE_THREAD


class Surroundings(NamedTuple):
    """The state of the cage's process that its worker takes over, so that code does the same there.

    >>> Surroundings.of_this_process().variables["OMP_NUM_THREADS"]
    '1'

    Args:
        path: `sys.path`, without entries that are no strings.
        folder: the current folder; None where it was deleted.
        variables: the process's environment variables, with one thread for each library.
        authkey: the key of `multiprocessing`, without which the worker could not receive shared
            memory in `env_kwargs`.
    """

    path: list[str]
    folder: str | None
    variables: Mapping[str, str]
    authkey: bytes

    @classmethod
    def of_this_process(cls) -> Surroundings:
        """Return this process's surroundings, with one thread for each library."""
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            folder = None
        return cls(
            path=import_path(),
            folder=folder,
            variables=os.environ | ONE_THREAD,
            authkey=bytes(multiprocessing.current_process().authkey),
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


class Task(NamedTuple):
    """The environments of a worker, and how it makes them.

    >>> from parllel.cages import TrajInfo
    >>> from parllel.cages.process.definitions import unpack
    >>> calls = {"make_env": gym.make, "env_kwargs": {}, "make_traj_info": TrajInfo}
    >>> with packed_task(calls, [np.random.SeedSequence(0)]) as task:
    ...     make_env, env_kwargs, make_traj_info = unpack(task.calls)

    Args:
        surroundings: the state of the cage's process; None where its worker has its own.
        env_specs: the environments that the program has registered with gymnasium.
        calls: `(make_env, env_kwargs, make_traj_info)`, packed apart from the rest: it can be
            unpacked only after the worker has taken over the surroundings.
        seeds: one for each environment.
        restarts: whether environments that fail are made anew.
        descriptors: files and sockets that the calls use, which are sent beside the task.
    """

    surroundings: Surroundings | None
    env_specs: Mapping[str, EnvSpec]
    calls: bytes
    seeds: Sequence[np.random.SeedSequence]
    restarts: bool
    descriptors: Sequence[int] = ()

    def register(self) -> None:
        """Give the registry of gymnasium the program's environments, whatever it had."""
        # A module that registers environments does so again when it is imported here. The program
        # was told of what is overridden, and -W error would make it an exception.
        warnings.filterwarnings(
            "ignore", ".*Overriding environment .* already in registry", UserWarning
        )
        gym.registry.update(self.env_specs)


@contextmanager
def packed_task(
    calls: Mapping[str, object],
    seeds: Sequence[np.random.SeedSequence],
    *,
    restarts: bool = False,
    start_method: str = "forkserver",
    is_near: bool = True,
) -> Iterator[Task]:
    """Pack a task for one worker. Its descriptors are those of the program until the context ends.

    Args:
        calls: make_env, env_kwargs and make_traj_info by these names.
        seeds, restarts: as for `Task`.
        start_method: as for `ProcessCage`.
        is_near: whether the worker is a process of this machine, which takes over the surroundings
            of this one and its descriptors.

    Raises:
        TypeError: one of the calls can't be pickled, or has descriptors that can't be sent.
    """
    with packing(start_method) as handles:
        try:
            packed = pack(tuple(calls.values()))
        except Exception as error:
            raise _refusal(calls, error) from error
        if handles.descriptors and not is_near:
            raise TypeError(
                f"{_holder(calls, start_method)}: it has a file, socket or shared memory of this"
                " machine, which can't be sent to another one; open it inside of make_env, or use a"
                " ProcessCage"
            )
        surroundings = Surroundings.of_this_process() if is_near else None
        env_specs = pack_env_specs()
        yield Task(surroundings, env_specs, packed, seeds, restarts, handles.descriptors)


def _holder(calls: Mapping[str, object], start_method: str) -> str:
    """Return the name of the call that has descriptors."""
    for name, value in calls.items():
        with packing(start_method) as handles:
            pack(value)
        if handles.descriptors:
            return name
    return "environments registered with gymnasium"


def _refusal(calls: Mapping[str, object], error: Exception) -> Exception:
    for name, value in calls.items():
        try:
            pack(value)
        except Exception as reason:
            return TypeError(
                f"{name}: got {value!r}, which can't be sent to a worker process ({reason}); open"
                " files, sockets, locks and generators inside of make_env, or use a SerialCage"
                " (n_workers=0)"
            )
    return error

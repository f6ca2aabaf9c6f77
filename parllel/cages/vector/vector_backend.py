"""VectorBackend: how each class of vector environments is seeded, started, awaited and reset."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import ArrayLike, NDArray

from parllel.cages.cage import OF_THE_PARENT
from parllel.cages.values.env_rows import Value, as_tree
from parllel.cages.values.infos import take_info
from parllel.cages.values.spaces import ACTION_MASK
from parllel.cages.vector.backend import Mask
from parllel.tree import dict_map


def _first(numbers: Sequence[int]) -> Any:
    return numbers[0]


def _each(numbers: Sequence[int]) -> Any:
    return list(numbers)


def _each_of_31_bits(numbers: Sequence[int]) -> Any:
    return np.array(numbers) >> 1  # as 32 bits with a sign; a negative seed would count as none


def _none(numbers: Sequence[int]) -> Any:
    return None


def _never(env: VectorEnv[Any, Any, Any]) -> bool:
    return False


def _always(env: VectorEnv[Any, Any, Any]) -> bool:
    return True


def _with_shared_memory(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environments of an AsyncVectorEnv share its memory.

    If they do not, a worker that was reset by mask resets once more in its next step.
    """
    return bool(getattr(env, "shared_memory"))  # noqa: B009  # of AsyncVectorEnv alone


def _from_0_12_1_on(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether a reset of some environments ends: in ale-py before 0.12.1 it waits for ever."""
    return tuple(map(int, re.findall(r"\d+", metadata.version("ale-py"))[:3])) >= (0, 12, 1)


class _Class(NamedTuple):
    """The abilities of a class of vector environments beyond the contract of `VectorEnv`.

    Args:
        start: the method that starts a step and does not wait for it; empty where there is none.
        wait: the method that waits for a step that was started.
        to_seed: makes the argument `seed` of `reset` of one number for each environment.
        resets_by_mask: whether some environments can be reset, although it resets by itself.
        gives_all_rows: whether such a reset returns the rows of the others too.
    """

    start: str = ""
    wait: str = ""
    to_seed: Callable[[Sequence[int]], Any] = _first
    resets_by_mask: Callable[[VectorEnv[Any, Any, Any]], bool] = _never
    gives_all_rows: bool = True


# By full names, since none of these packages has to be installed.
_CLASSES = {
    "gymnasium.vector.sync_vector_env.SyncVectorEnv": _Class(to_seed=_each, resets_by_mask=_always),
    "gymnasium.vector.async_vector_env.AsyncVectorEnv": _Class(
        start="step_async", wait="step_wait", to_seed=_each, resets_by_mask=_with_shared_memory
    ),
    "ale_py.vector_env.AtariVectorEnv": _Class(
        start="send", wait="recv", to_seed=_each_of_31_bits, resets_by_mask=_from_0_12_1_on
    ),
    "envpool.python.gymnasium_envpool.GymnasiumEnvPoolMixin": _Class(
        start="send", wait="recv", to_seed=_none, resets_by_mask=_always, gives_all_rows=False
    ),
}


class VectorBackend:
    """A vector environment, with the fastest way that its class has to do what a cage needs.

    >>> import gymnasium as gym
    >>> from gymnasium.vector import SyncVectorEnv
    >>> envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    >>> backend = VectorBackend(envs)
    >>> backend.mode.name, backend.resets_by_mask, backend.goes_on
    ('NEXT_STEP', True, False)
    >>> backend.close()

    Args:
        env: the vector environment; `close` closes it.

    Attributes:
        n_envs: number of environments.
        observation_space, action_space: those of a single environment.
        mode: when the environment resets those whose episode ended.
        resets_by_mask: whether `reset_ended` works. Where it does not and the mode is NEXT_STEP,
            the environment spends the next step on the reset.
        goes_on: whether a step goes on after `start`, until `wait`.
        forgets_resets: whether a reset of all environments also cancels the resets that the next
            step would do.

    Raises:
        ValueError: its autoreset mode is unknown, or it steps a part of its environments at a time.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        _check_steps_all(env)
        self.env = env
        self.n_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.mode = _mode_of(env)
        self._class = _class_of(env.unwrapped)
        # A wrapper may count on what it wraps to reset by itself, and must not be passed by.
        is_wrapped = env is not env.unwrapped
        self.resets_by_mask = self.mode is AutoresetMode.DISABLED or (
            not is_wrapped and self._class.resets_by_mask(env)
        )
        self.forgets_resets = getattr(env.unwrapped, "shared_memory", True)
        self.goes_on = bool(self._class.start) and not is_wrapped
        # Its processes and threads are those of this process alone.
        self._owner = os.getpid() if self._class.start else None
        self._is_closed = self._is_under_way = False
        self._results: Any = None  # of a step that was not started but taken
        if self.mode is AutoresetMode.SAME_STEP and isinstance(env.unwrapped, SyncVectorEnv):
            env.unwrapped.envs = [_KeepsFinalObs(single) for single in env.unwrapped.envs]

    def reset(self, numbers: Sequence[int] | None) -> tuple[Any, Mapping[str, Any]]:
        """Reset all environments, and return their first observations and info.

        Args:
            numbers: a seed for each environment; None where they were seeded before.
        """
        self._check_open()
        seed = None if numbers is None else self._class.to_seed(numbers)
        options = {} if seed is None else {"seed": seed}
        observation, info = self.env.reset(**options)
        if not isinstance(info, Mapping):
            raise TypeError(
                f"info: got a {type(info).__name__}, expected a dictionary of arrays; leave out"
                " wrappers that change its form"
            )
        return as_tree(observation), info

    def check_can_be_seeded(self) -> None:
        """Refuse an environment that takes its seed only when it is made.

        Raises:
            NotImplementedError: it is one of those.
        """
        if self.mode is AutoresetMode.NEXT_STEP and not self.forgets_resets:
            raise NotImplementedError(
                "reseed: AsyncVectorEnv(shared_memory=False) carries resets that are due into the"
                " steps after a reset of all; use shared memory, or another autoreset mode"
            )
        if self._class.to_seed is _none:
            raise NotImplementedError(
                f"reseed: {type(self.env.unwrapped).__name__} takes a seed only when it is made;"
                " make the cage anew"
            )

    def start(self, actions: Value) -> None:
        """Start a step of all environments; where it can't be started, take it."""
        self._check_open()
        if self.goes_on:
            getattr(self.env, self._class.start)(actions)
        else:
            self._results = self.env.step(actions)
        self._is_under_way = True

    def wait(self) -> tuple[Any, NDArray[Any], Mask, Mask, Mapping[str, Any]]:
        """Wait for the step that was started.

        Returns:
            Observation, reward, terminated, truncated and info: the environment's own, which it
            may overwrite.
        """
        self._check_is_ours()
        self._is_under_way = False
        if self.goes_on:
            results = getattr(self.env, self._class.wait)()
        else:
            results, self._results = self._results, None
        observation, reward, terminated, truncated, info = results
        return (
            observation if isinstance(observation, np.ndarray) else as_tree(observation),
            np.asarray(reward),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
            info,
        )

    def reset_ended(self, ended: Mask) -> tuple[Any, dict[int, dict[str, Any]]]:
        """Reset the environments of a mask, bool [n].

        Returns:
            The first observations of these alone, and the masks of actions in their infos, each in
            a dictionary that is empty where there is none, by the number of the environment.
        """
        observation, info = self.env.reset(options={"reset_mask": ended})
        rows, numbers = as_tree(observation), np.flatnonzero(ended).tolist()
        if not self._class.gives_all_rows:
            return rows, {each: mask_of(info, row) for row, each in enumerate(numbers)}
        return dict_map(_select, rows, ended), {each: mask_of(info, each) for each in numbers}

    def close(self) -> None:
        """Wait for a step under way, and close the environment. Called again, it does nothing.

        In a forked child, leave an environment with processes or threads of its own to the parent.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._owner is not None and self._owner != os.getpid():
            self.env.unwrapped.closed = True  # otherwise its end would end the parent's processes
            return
        try:
            if self._is_under_way:
                self.wait()
        finally:
            self.env.close()
            del self.env  # AtariVectorEnv ends its threads when it is gone

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the cage is closed: its environments are gone; make a new one")
        self._check_is_ours()

    def _check_is_ours(self) -> None:
        if self._owner is not None and self._owner != os.getpid():
            raise RuntimeError(OF_THE_PARENT)


class _KeepsFinalObs(gym.Wrapper[Any, Any, Any, Any]):
    """Copy an episode's last observation: the reset in the same step may overwrite it."""

    def step(self, action: Value) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info


def mask_of(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return the part of an info that masks the actions of one of its rows; {} for none."""
    names = [name for name in (ACTION_MASK, f"_{ACTION_MASK}") if name in info]
    return take_info({name: info[name] for name in names}, row) if names else {}


def _select(leaf: ArrayLike, mask: Mask) -> NDArray[Any]:
    return np.asarray(leaf)[mask]


def _class_of(env: object) -> _Class:
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(env).__mro__)
    return next((_CLASSES[name] for name in names if name in _CLASSES), _Class())


def _mode_of(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """Return the autoreset mode that an environment, or its outermost wrapper, declares."""
    # AtariVectorEnv writes its mode to the dictionary that all classes share, so that one says
    # nothing about this environment.
    declared = env.metadata if env.metadata is not VectorEnv.metadata else {}
    mode = declared.get("autoreset_mode", getattr(env.unwrapped, "autoreset_mode", None))
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise ValueError(
            f"autoreset_mode: got {mode!r} of {env}, expected one of"
            f" {[str(mode) for mode in AutoresetMode]} in its metadata['autoreset_mode']: without"
            " it, a cage can't tell which rows are valid"
        ) from error


def backend_of(env: object) -> VectorBackend:
    """Return a vector environment with what it needs; close it where it is refused.

    Raises:
        TypeError: it is no vector environment.
        ValueError: as `VectorBackend`.
    """
    if not isinstance(env, VectorEnv):
        raise TypeError(
            f"make_vector_env: got a {type(env).__name__}, expected a gymnasium.vector.VectorEnv;"
            " SerialCage steps single environments"
        )
    try:
        return VectorBackend(env)
    except BaseException:
        env.close()
        raise


def _check_steps_all(env: VectorEnv[Any, Any, Any]) -> None:
    base: Any = env.unwrapped
    batch_size = getattr(base, "batch_size", env.num_envs)  # of AtariVectorEnv
    if getattr(base, "is_async", False):  # of envpool
        batch_size = base.config["batch_size"]
    if batch_size != env.num_envs:
        raise ValueError(
            f"batch_size: got {batch_size}, expected {env.num_envs} = num_envs: a step of a cage is"
            " one of all its environments"
        )

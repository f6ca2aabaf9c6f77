"""States of single environments with their wrappers, as plain data; how an environment has one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym

from parllel.cages.states.attributes import attributes_of, pack, set_attributes, unpack
from parllel.cages.states.known_envs import WAY_OUT, Access, known_access

# Of wrappers: what lies below, and how they were made.
_NOT_OWN = frozenset({"env", "_saved_kwargs", "_cached_spec", "_metadata"})


class _Layers(NamedTuple):
    """An environment taken apart.

    Args:
        wrappers: those of whose attributes the state is made, the outermost first.
        owner: the wrapper or the environment that gives the state of all that is below them.
        access: how the owner's state is read and set.
    """

    wrappers: list[gym.Wrapper[Any, Any, Any, Any]]
    owner: gym.Env[Any, Any]
    access: Access


def check_env_state(env: gym.Env[Any, Any]) -> None:
    """Refuse an environment whose state can't be saved.

    >>> from parllel.testing.toy_envs import Walk
    >>> check_env_state(gym.wrappers.TimeLimit(Walk(), 10))

    Raises:
        TypeError: it has no `get_state` and `set_state`, or a wrapper around it has an attribute
            that is no plain data.
    """
    layers = _layers_of(env)
    for wrapper in layers.wrappers:
        _wrapper_state(wrapper)
    layers.access.check(layers.owner)


def env_state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the state of an environment that was reset, as plain data of their own.

    It consists of:

    - what `get_state()` of the outermost layer returns that has this method and `set_state(state)`;
      for Atari games, `ale_py`'s state with its generator; for gymnasium's MuJoCo, that of the
      physics and the attributes; for its classic control, and environments whose class says
      `attributes_are_state = True`, the attributes;
    - the attributes of the wrappers around that layer (`attributes_of`). An array among them must
      not be the memory of an array of the environment: afterwards they are two;
    - the state of the environment's `np_random`, and those of its spaces.

    Raises:
        TypeError: as for `check_env_state`.
    """
    layers, base = _layers_of(env), env.unwrapped
    return {
        "wrappers": [(type(each).__name__, _wrapper_state(each)) for each in layers.wrappers],
        "own": copy.deepcopy(layers.access.get(layers.owner)),
        "np_random": pack(getattr(base, "_np_random", None), ("np_random",)),
        "spaces": [
            pack(space, ("spaces",)) for space in (base.observation_space, base.action_space)
        ],
    }


def set_env_state(env: gym.Env[Any, Any], state: Mapping[str, Any]) -> None:
    """Set an environment that was reset to a state of one that was made in the same way.

    Raises:
        TypeError: as for `check_env_state`.
        ValueError: it has other wrappers, or these have other attributes; or the state of an Atari
            game is none that the game wrote, or that of MuJoCo's physics one of another model.
    """
    layers, base = _layers_of(env), env.unwrapped
    names = [type(each).__name__ for each in layers.wrappers]
    saved = [name for name, _ in state["wrappers"]]
    if names != saved:
        raise ValueError(f"{env}: got the wrappers {names}, expected {saved}, as were saved")
    layers.access.set(layers.owner, copy.deepcopy(state["own"]))
    for wrapper, (_, attributes) in zip(layers.wrappers, state["wrappers"], strict=True):
        set_attributes(wrapper, attributes, but=_NOT_OWN)
    if state["np_random"] is not None:
        unpack(state["np_random"], base.np_random, ("np_random",))
    for space, data in zip(
        (base.observation_space, base.action_space), state["spaces"], strict=True
    ):
        unpack(data, space, ("spaces",))


def _layers_of(env: gym.Env[Any, Any]) -> _Layers:
    wrappers: list[gym.Wrapper[Any, Any, Any, Any]] = []
    owner = env
    while isinstance(owner, gym.Wrapper) and not _has_methods(owner):
        wrappers.append(owner)
        owner = owner.env
    access = _OWN_METHODS if _has_methods(owner) else known_access(owner)
    if access is None:
        inner = getattr(owner, "parallel_env", owner)
        raise TypeError(
            f"environment {env}: {type(inner).__name__} can't save its state, expected methods"
            f" get_state() and set_state(state); give it these, {WAY_OUT}"
        )
    return _Layers(wrappers, owner, access)


def _has_methods(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment or a wrapper can save its state, and that of all below."""
    names = ("get_state", "set_state")
    # `ParallelAgents` has these methods, and can save if what it wraps can.
    can_save = getattr(env, "can_save", True)
    return bool(can_save) and all(callable(getattr(type(env), name, None)) for name in names)


def _wrapper_state(wrapper: gym.Wrapper[Any, Any, Any, Any]) -> dict[str, Any]:
    try:
        return attributes_of(wrapper, but=_NOT_OWN)
    except TypeError as error:
        raise TypeError(
            f"environment {wrapper}: the wrapper {type(wrapper).__name__} can't be saved with it:"
            f" {error}; give the wrapper methods get_state() and set_state(state), which save all"
            f" below it too, {WAY_OUT}"
        ) from error


_OWN_METHODS = Access(lambda env: env.get_state(), lambda env, state: env.set_state(state))

"""States of single environments with their wrappers, as plain data; how an environment has one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym

from parllel.cages.states.attributes import attributes_of, pack, set_attributes, unpack

# Of wrappers: what lies below, and how they were made.
_NOT_OWN = frozenset({"env", "_saved_kwargs", "_cached_spec", "_metadata"})

# Environments of gymnasium whose attributes are all of their state.
_PLAIN_MODULE = "gymnasium.envs.classic_control."

# The bytes by which ALE's states differ in length: its generator's 624 words are decimal numbers.
_ALE_VARIES = 624 * 10

_WAY_OUT = "or let each checkpoint reset all environments (saves_envs=False)"


class _Layers(NamedTuple):
    """An environment taken apart.

    Args:
        wrappers: those of whose attributes the state is made, the outermost first.
        owner: the wrapper or the environment that gives the state of all that is below them.
        get, set: functions that get the owner's state, and set it.
    """

    wrappers: list[gym.Wrapper[Any, Any, Any, Any]]
    owner: gym.Env[Any, Any]
    get: Callable[[Any], Any]
    set: Callable[[Any, Any], object]


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
    if layers.get is _own_attributes:
        layers.get(layers.owner)


def env_state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the state of an environment that was reset, as plain data of their own.

    It consists of:

    - what `get_state()` of the outermost layer returns that has this method and `set_state(state)`;
      for Atari games, `ale_py`'s state with its generator; for gymnasium's classic control, the
      attributes;
    - the attributes of the wrappers around that layer (`attributes_of`). An array among them must
      not be the memory of an array of the environment: afterwards they are two;
    - the state of the environment's `np_random`, and those of its spaces.

    Raises:
        TypeError: as for `check_env_state`.
    """
    layers, base = _layers_of(env), env.unwrapped
    return {
        "wrappers": [(type(each).__name__, _wrapper_state(each)) for each in layers.wrappers],
        "own": copy.deepcopy(layers.get(layers.owner)),
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
            game is none that the game wrote.
    """
    layers, base = _layers_of(env), env.unwrapped
    names = [type(each).__name__ for each in layers.wrappers]
    saved = [name for name, _ in state["wrappers"]]
    if names != saved:
        raise ValueError(f"{env}: got the wrappers {names}, expected {saved}, as were saved")
    layers.set(layers.owner, copy.deepcopy(state["own"]))
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
    if _has_methods(owner):
        return _Layers(wrappers, owner, lambda env: env.get_state(), _set_own)
    module = f"{type(owner).__module__}."
    if module == "ale_py.env.":
        return _Layers(wrappers, owner, _atari_state, _set_atari)
    if module.startswith(_PLAIN_MODULE):
        return _Layers(wrappers, owner, _own_attributes, _set_own_attributes)
    raise TypeError(
        f"environment {env}: {type(owner).__name__} can't save its state, expected methods"
        f" get_state() and set_state(state); give it these, {_WAY_OUT}"
    )


def _has_methods(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment or a wrapper can save its state, and that of all below."""
    return all(callable(getattr(type(env), name, None)) for name in ("get_state", "set_state"))


def _wrapper_state(wrapper: gym.Wrapper[Any, Any, Any, Any]) -> dict[str, Any]:
    try:
        return attributes_of(wrapper, but=_NOT_OWN)
    except TypeError as error:
        raise TypeError(
            f"environment {wrapper}: the wrapper {type(wrapper).__name__} can't be saved with it:"
            f" {error}; give the wrapper methods get_state() and set_state(state), which save all"
            f" below it too, {_WAY_OUT}"
        ) from error


def _set_own(env: Any, state: Any) -> None:
    env.set_state(state)


def _atari_state(env: Any) -> bytes:
    state: bytes = env.ale.cloneState(include_rng=True).serialize()
    _set_atari(env, state)
    return state


def _set_atari(env: Any, state: bytes) -> None:
    """Restore a game, from bytes that it wrote itself.

    ALE's reader is C++, which is given bytes of the length of its own states alone, and has to
    write the same bytes again. That finds damage; it does not make the reader safe against bytes
    that were made to do harm.

    A state lacks the action before, which may be repeated (sticky actions).

    A reset makes that no action. It is done where a state is saved, too, so that the game goes on
    there as it does where the state is loaded (test_atari_games_go_on_with_sticky_actions).
    """
    from ale_py import ALEState

    env.ale.reset_game()
    expected = len(env.ale.cloneState(include_rng=True).serialize())
    if type(state) is not bytes or abs(len(state) - expected) > _ALE_VARIES:
        found = f"{len(state):,} bytes" if type(state) is bytes else f"a {type(state).__name__}"
        raise ValueError(f"{env}: got {found}, expected about {expected:,} bytes of ALE's state")
    try:
        env.ale.restoreState(ALEState(state))
        restored = env.ale.cloneState(include_rng=True).serialize()
    except (RuntimeError, SystemError) as error:  # which one depends on ALE's bindings
        env.ale.reset_game()
        raise ValueError(f"{env}: ALE can't read the state, as it does its own: {error}") from error
    if restored != state:
        env.ale.reset_game()
        raise ValueError(
            f"{env}: the state is none that this game wrote: ALE makes other bytes of it"
        )


# Generators and spaces are a part of every state.
_OF_ALL = frozenset({"_np_random", "observation_space", "action_space", "spec"})


def _own_attributes(env: Any) -> dict[str, Any]:
    try:
        return attributes_of(env, but=_OF_ALL)
    except TypeError as error:
        raise TypeError(
            f"environment {env}: {error}; make it without rendering, {_WAY_OUT}"
        ) from error


def _set_own_attributes(env: Any, state: dict[str, Any]) -> None:
    set_attributes(env, state, but=_OF_ALL)

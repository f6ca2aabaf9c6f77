"""States of environments whose classes have no `get_state`: Atari, MuJoCo, and attributes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from parllel.cages.states.attributes import attributes_of, set_attributes

# Environments of gymnasium whose attributes are all of their state.
_PLAIN_MODULE = "gymnasium.envs.classic_control."
_MUJOCO_MODULE = "gymnasium.envs.mujoco."

# Generators and spaces are a part of every state.
_OF_ALL = frozenset({"_np_random", "observation_space", "action_space", "spec"})
# Of MuJoCo: the physics, whose state is saved; and what draws it, which has no part in it.
_PHYSICS = frozenset({"model", "data", "mujoco_renderer"})

# The bytes by which ALE's states differ in length: its generator's 624 words are decimal numbers.
_ALE_VARIES = 624 * 10

WAY_OUT = "or let each checkpoint reset all environments (saves_envs=False)"


def _refuse_none(env: Any) -> None:
    """Accept an environment: all of its kind can be saved."""


class Access(NamedTuple):
    """How the state of one kind of environment is read and set.

    Args:
        get: returns it, as plain data or arrays of the environment's own.
        set: sets the environment to it.
        check: refuses an environment whose state can't be saved, and leaves it as it is.
    """

    get: Callable[[Any], Any]
    set: Callable[[Any, Any], object]
    check: Callable[[Any], object] = _refuse_none


def known_access(env: gym.Env[Any, Any]) -> Access | None:
    """Return how the state of an environment without `get_state` is saved; None where it isn't.

    >>> env = gym.make("CartPole-v1").unwrapped
    >>> known_access(env).get(env)["gravity"]
    9.8
    """
    module = f"{type(env).__module__}."
    if module == "ale_py.env.":
        return Access(_atari_state, _set_atari)
    if any(each.__module__.startswith(_MUJOCO_MODULE) for each in type(env).__mro__):
        return Access(_mujoco_state, _set_mujoco, _mujoco_attributes)
    if module.startswith(_PLAIN_MODULE) or getattr(type(env), "attributes_are_state", False):
        return Access(_attributes, _set_attributes, _attributes)
    return None


def _attributes(env: Any) -> dict[str, Any]:
    return _own_attributes(env, _OF_ALL)


def _set_attributes(env: Any, state: dict[str, Any]) -> None:
    set_attributes(env, state, but=_OF_ALL)


def _own_attributes(env: Any, but: frozenset[str]) -> dict[str, Any]:
    try:
        return attributes_of(env, but=but)
    except TypeError as error:
        raise TypeError(
            f"environment {env}: {error}; make it without rendering, {WAY_OUT}"
        ) from error


def _mujoco_attributes(env: Any) -> dict[str, Any]:
    return _own_attributes(env, _OF_ALL | _PHYSICS)


def _mujoco_state(env: Any) -> dict[str, Any]:
    import mujoco

    part = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(env.model, part))
    mujoco.mj_getState(env.model, env.data, physics, part)
    state = {
        "model": _model_digest(env.model),
        "physics": physics,
        "attributes": _mujoco_attributes(env),
    }
    _set_physics(env, physics)
    return state


def _set_mujoco(env: Any, state: dict[str, Any]) -> None:
    if state["model"] != _model_digest(env.model):
        raise ValueError(
            f"environment {env}: its MuJoCo model is another one than that of the state, expected"
            " the same numbers in it; an environment that changes its model has to save that by"
            f" methods get_state() and set_state(state), {WAY_OUT}"
        )
    _set_physics(env, state["physics"])
    set_attributes(env, state["attributes"], but=_OF_ALL | _PHYSICS)


def _set_physics(env: Any, physics: Any) -> None:
    """Set MuJoCo's state, and compute what follows from it.

    That is done where a state is saved, too: after a step, some of these values are those of the
    time before it, and an environment may read them for its next reward.
    """
    import mujoco

    part = mujoco.mjtState.mjSTATE_INTEGRATION
    expected = mujoco.mj_stateSize(env.model, part)
    if np.shape(physics) != (expected,):
        raise ValueError(
            f"environment {env}: got a state of shape {np.shape(physics)}, expected ({expected},)"
        )
    mujoco.mj_resetData(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, physics, part)
    mujoco.mj_forward(env.model, env.data)


def _model_digest(model: Any) -> str:
    import mujoco

    content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.sha256(content.tobytes()).hexdigest()


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

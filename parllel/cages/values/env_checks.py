"""Checks of environments and of the functions that make them, before anything else is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.vector import VectorEnv

from parllel.cages.values.agent_forms import AgentForm
from parllel.tree.fitting import MisfitError, describe

_WAY_OUT = "wrap an environment of another API, such as gym's before 0.26"


def check_make_env(make_env: object) -> None:
    """Refuse what can't be called to make an environment.

    Raises:
        TypeError: it is an environment, an id, or something else.
    """
    if callable(make_env):
        return
    if isinstance(make_env, str):
        got, way_out = (
            f"the text {make_env!r}",
            f"pass gym.make with env_kwargs={{'id': {make_env!r}}}; build_cages and build_example"
            " take ids too",
        )
    else:
        got = f"a {type(make_env).__name__}"
        is_env = hasattr(make_env, "reset") and hasattr(make_env, "step")
        got += ", which is an environment itself" if is_env else ""
        way_out = "each environment is made by a call of its own, as by lambda: gym.make(...)"
    raise TypeError(
        f"make_env: got {got}, expected a function that returns an environment; {way_out}"
    )


def check_env(env: Any, others: Sequence[Any]) -> None:
    """Refuse what `make_env` returned if it is no environment, or one that is stepped already.

    Args:
        env: the result of `make_env`.
        others: the environments that it returned before.

    Raises:
        TypeError: it is something else.
        ValueError: it is one of the others.
    """
    parts = ("observation_space", "action_space", "reset", "step", "close")
    missing = [name for name in parts if not hasattr(env, name)]
    is_vector = isinstance(env, VectorEnv)
    if missing or is_vector:
        got = "a vector environment, " if is_vector else ""
        lacks = f", which has no {', '.join(missing)}" if missing and not is_vector else ""
        way_out = "VectorCage steps vector environments" if is_vector else _WAY_OUT
        raise TypeError(
            f"make_env: it returned {got}a {type(env).__name__}{lacks}, expected a single gymnasium"
            f" environment; {way_out}"
        )
    own = getattr(env, "parallel_env", env)
    if any(own is getattr(other, "parallel_env", other) for other in others):
        raise ValueError(
            f"make_env: it returned the same {type(own).__name__} twice, expected a new one for"
            " each call: environments of one cage step on their own"
        )


def is_parallel(env: Any) -> bool:
    """Tell whether this is a PettingZoo environment, whose agents have spaces of their own."""
    return all(callable(getattr(env, name, None)) for name in ("observation_space", "action_space"))


def check_parallel(env: Any) -> None:
    """Refuse what is no PettingZoo parallel environment.

    Raises:
        TypeError: it is something else; or one whose agents act one after the other (AEC).
    """
    is_of_turns = hasattr(env, "agent_iter") or hasattr(env, "agent_selection")
    if is_parallel(env) and hasattr(env, "possible_agents") and not is_of_turns:
        return
    got = f"a {type(env).__name__}"
    got += ", whose agents act one after the other" if is_of_turns else ""
    way_out = (
        "pettingzoo.utils.aec_to_parallel makes one of it"
        if is_of_turns
        else "it has possible_agents, and functions observation_space and action_space"
    )
    raise TypeError(f"env: got {got}, expected a PettingZoo parallel environment; {way_out}")


def as_reset(result: Any) -> tuple[Any, Any]:
    """Return what `reset` of an environment returned, if it is (observation, info).

    Raises:
        MisfitError: it is something else, as from gym's API before 0.26.
    """
    if isinstance(result, tuple) and len(result) == 2:
        observation, info = result
        if type(info) is dict or isinstance(info, Mapping):
            return observation, info
    raise MisfitError(
        _got_of(result),
        "(observation, info), of which info is a dictionary, to be returned",
        path=("reset",),
        way_out=_WAY_OUT,
    )


def as_step(
    result: Any, agents: AgentForm | None = None
) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Return what `step` of an environment returned, if it is what gymnasium's return.

    Args:
        result: what it returned.
        agents: the form of its rewards, and of its flags if agents have their own.

    Raises:
        MisfitError: it is something else, as from gym's API before 0.26.
    """
    is_whole = isinstance(result, tuple) and len(result) == 5
    if not is_whole or not isinstance(result[4], Mapping):
        raise MisfitError(
            _got_of(result),
            "(observation, reward, terminated, truncated, info), of which info is a dictionary,"
            " to be returned",
            path=("step",),
            way_out=_WAY_OUT,
        )
    for name, value in zip(("reward", "terminated", "truncated"), result[1:4], strict=True):
        if agents is not None and (agents.has_flags or name == "reward"):
            agents.check(name, value, is_number)
        elif not is_number(value):
            expected = "a number" if name == "reward" else "True or False"
            raise MisfitError(describe(value), f"{expected} of no shape", path=(name,))
    observation, reward, terminated, truncated, info = result
    return observation, reward, terminated, truncated, info


def is_number(value: Any) -> bool:
    """Tell whether a value is one number, and no array of one or a text."""
    if getattr(value, "shape", ()) != ():
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str | bytes)


def _got_of(result: object) -> str:
    if not isinstance(result, tuple):
        return describe(result)
    return f"a tuple of {len(result)}: ({', '.join(type(part).__name__ for part in result)})"

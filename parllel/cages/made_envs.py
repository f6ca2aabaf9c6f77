"""Making environments, closing them, and telling in errors which one they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np

from parllel.cages.parallel_agents import as_single_env
from parllel.cages.seeds import seed_words
from parllel.cages.values.agent_forms import AgentForm, form_of_all
from parllel.cages.values.env_checks import check_env
from parllel.cages.values.spaces import check_space
from parllel.tree.fitting import MisfitError

_Envs = list[gym.Env[Any, Any]]


def make_envs(
    make_env: Callable[..., Any],
    env_kwargs: Mapping[str, Any],
    seeds: Sequence[np.random.SeedSequence],
) -> tuple[_Envs, AgentForm | None]:
    """Make an environment for each seed; return them and the form of their agents.

    Where one can't be made, those before it are closed.

    >>> from parllel.testing.toy_agents import Relay
    >>> envs, agents = make_envs(Relay, {}, np.random.SeedSequence(0).spawn(2))
    >>> len(envs), agents.names
    (2, ('ada', 'bob', 'cyd'))

    Args:
        make_env: returns a gymnasium environment or a PettingZoo parallel environment.
        env_kwargs: keyword arguments of `make_env`.
        seeds: the environments' own, for errors.

    Raises:
        TypeError: `make_env` makes no environment, or a space's values can't be stored.
        ValueError: it returned the same environment twice, or others with other agents.
    """
    envs: _Envs = []
    try:
        for _ in seeds:
            env = as_single_env(make_env(**env_kwargs))
            check_env(env, envs)
            envs.append(env)
        agents = form_of_all(envs)
        check_space(("observation",), envs[0].observation_space)
        check_space(("action",), envs[0].action_space)
    except BaseException as error:
        try:
            close_envs(envs, seeds)
        except Exception as another:  # any that an environment raises: the first one counts
            error.add_note(f"nor can the environments made before be closed: {another!r}")
        raise
    return envs, agents


def close_envs(envs: _Envs, seeds: Sequence[np.random.SeedSequence]) -> None:
    """Close all environments, also where one can't be closed."""
    with ExitStack() as stack:  # it calls all, the last one first, and raises what they raise
        for number, env in enumerate(envs):
            stack.callback(_close_one, env, number, seeds[number])


def tell_of(error: BaseException, number: int, seed: np.random.SeedSequence) -> None:
    """Add to an error which environment it comes from, and with which seed it was reset."""
    word, _ = seed_words(seed)
    if isinstance(error, MisfitError):
        error.environment, error.seed = number, word
    else:
        error.add_note(f"environment {number} of this cage, first reset with seed {word}")


def _close_one(env: gym.Env[Any, Any], number: int, seed: np.random.SeedSequence) -> None:
    try:
        env.close()
    except Exception as error:
        tell_of(error, number, seed)
        raise

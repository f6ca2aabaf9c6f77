"""WatchedEnv: it tells which environment is called, and replaces one that fails."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from parllel.cages.parallel_agents import as_single_env
from parllel.cages.process.status_page import CALL, calls_of
from parllel.cages.seeds import restart_seed, seed_data, seed_of, seed_words
from parllel.cages.states.env_states import check_env_state, env_state, set_env_state
from parllel.cages.values.agent_forms import form_of, no_step, owner_of
from parllel.cages.values.any_env import AnyEnv
from parllel.cages.values.env_checks import as_reset, check_env
from parllel.cages.values.env_rows import Value, copy_tree
from parllel.tree.fitting import MisfitError

# An environment that fails in more steps in a row than this is not made anew.
_MOST_FAILURES = 3

_logger = logging.getLogger(__name__)


class Watch:
    """A record of the calls and the failures of a worker's environments.

    >>> import array
    >>> watch = Watch(memoryview(array.array("q", [0] * 3)))
    >>> watch.failed is None, watch.invalid
    (True, [])

    Args:
        words: the words of the status page. Environments write to `words[CALL]` when they are
            called (`calls_of`).

    Attributes:
        restarts: whether an environment that raises is made anew. Otherwise the command fails.
        failed: number of the environment by whose error the command failed; None where it did not.
        invalid: numbers of the environments that were made anew in a step: it is no transition.
        restarted: tracebacks of the environments that were made anew, by their numbers.
    """

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.restarts = False
        self.clear()

    def clear(self) -> None:
        """Forget the failures of the last command."""
        self.failed: int | None = None
        self.invalid: list[int] = []
        self.restarted: dict[int, str] = {}


class WatchedEnv(gym.Env[Any, Any]):
    """Pass calls on to an environment, and replace it where it fails.

    With `watch.restarts`, an environment that raises is closed and made anew, with another seed.
    The step that failed returns the observation before it, reward 0, and truncated; the reset that
    follows is the first one of the new environment.

    >>> import array
    >>> from functools import partial
    >>> from parllel.cages.process.status_page import MOST_ENVIRONMENTS
    >>> watch = Watch(memoryview(array.array("q", [-1] * 3)))
    >>> make_env = partial(gym.make, "CartPole-v1")
    >>> env = WatchedEnv(2, np.random.SeedSequence(0), make_env, watch)
    >>> watch.words[CALL] % MOST_ENVIRONMENTS
    2

    Args:
        number: the number of the environment in its cage.
        seed: the environment's own seed.
        make_env: returns a new environment.
        watch: keeps its calls and its failures.
    """

    def __init__(
        self,
        number: int,
        seed: np.random.SeedSequence,
        make_env: Callable[[], AnyEnv],
        watch: Watch,
    ) -> None:
        self._number = number
        self._calls = calls_of(number)
        self._seed = seed
        self._make_env = make_env
        self._watch = watch
        self._words = watch.words
        self._n_failures = 0  # in a row
        self._first_seed: int | None = None  # of an environment that was made anew
        self._observation: Any = None  # the last one
        self._env = self._make()
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self.agent_form = form_of(self._env)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which agents act in the next step, where they may come and go."""
        alive: NDArray[np.bool_] = owner_of(self._env, "alive").alive
        return alive

    def step(self, action: Value) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment."""
        self._words[CALL] = next(self._calls)
        try:
            result = self._env.step(action)
        except MisfitError:  # what it gives to agents would not fit another time, either
            self._watch.failed = self._number
            raise
        except BaseException as error:  # a panic of a Rust extension is no Exception
            self._restart(error)
            self._watch.invalid.append(self._number)
            return (self._observation, *no_step(self.agent_form), {})
        self._n_failures = 0
        self._observation = result[0]
        return result

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._words[CALL] = next(self._calls)
        if self._first_seed is None:
            try:
                self._observation, info = as_reset(self._env.reset(seed=seed))
                return self._observation, info
            except BaseException as error:  # a panic of a Rust extension is no Exception
                self._restart(error)
        self._observation, info = self._reset_first()
        return self._observation, info

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Derive the seeds of environments that are made anew from this one."""
        self._seed, self._first_seed, self._n_failures = seed, None, 0

    def check_state(self) -> None:
        """Refuse an environment whose state can't be saved."""
        self._words[CALL] = next(self._calls)
        check_env_state(self._env)

    def get_state(self) -> dict[str, Any]:
        """Return the environment's state, and all that tells how it would be made anew."""
        self._words[CALL] = next(self._calls)
        watch: dict[str, Any] = {"seed": seed_data(self._seed), "n_failures": self._n_failures}
        if self._watch.restarts:
            watch["observation"] = copy_tree(self._observation)
        return {**env_state(self._env), "watch": watch}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `get_state` returned; or from one without what is of workers."""
        self._words[CALL] = next(self._calls)
        set_env_state(self._env, state)
        watch = state.get("watch", {})
        self._n_failures = watch.get("n_failures", 0)
        self._observation = watch.get("observation", self._observation)
        if "seed" in watch:
            self._seed = seed_of(watch["seed"])

    def close(self) -> None:
        """Close the environment."""
        self._words[CALL] = next(self._calls)
        self._env.close()

    def _make(self) -> gym.Env[Any, Any]:
        self._words[CALL] = next(self._calls)
        try:
            env: gym.Env[Any, Any] = as_single_env(self._make_env())
            check_env(env, ())
            return env
        except BaseException:
            self._watch.failed = self._number
            raise

    def _restart(self, error: BaseException) -> None:
        """Make the environment anew; or raise its error where that is not allowed."""
        self._n_failures += 1
        if not self._watch.restarts or self._n_failures > _MOST_FAILURES:
            self._watch.failed = self._number
            raise error
        self._watch.restarted[self._number] = "".join(traceback.format_exception(error))
        try:
            self._env.close()
        except BaseException:
            _logger.warning("environment %d can't be closed", self._number, exc_info=True)
        self._seed = restart_seed(self._seed)
        self._first_seed, _ = seed_words(self._seed)
        self._env = self._make()

    def _reset_first(self) -> tuple[Any, dict[str, Any]]:
        """Reset an environment for the first time after it was made anew."""
        seed, self._first_seed = self._first_seed, None
        try:
            return as_reset(self._env.reset(seed=seed))
        except BaseException:
            self._watch.failed = self._number
            raise

"""WatchedEnv: an environment in a worker, which tells when it is called and may be made anew."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from parllel.cages.process.status_page import ENVIRONMENT
from parllel.cages.stepper import restart_seed, seed_words

# An environment that fails in so many steps in a row is not made anew any more.
_MOST_FAILURES = 3

_logger = logging.getLogger(__name__)


class Watch:
    """What is known of a worker's environments while they are called.

    Args:
        words: of the board; `words[ENVIRONMENT]` is kept at the environment that was called last.

    Attributes:
        restarts: whether an environment that fails is made anew. Otherwise its error goes on.
        failed: number of the environment whose error went on; None where there was none.
        invalid: environments that were made anew in a step, which is no transition.
        restarted: tracebacks of the environments that were made anew, by their numbers.
    """

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.restarts = False
        self.clear()

    def clear(self) -> None:
        """Forget what the last command brought."""
        self.failed: int | None = None
        self.invalid: list[int] = []
        self.restarted: dict[int, str] = {}


class WatchedEnv(gym.Env[Any, Any]):
    """Pass calls on to an environment.

    With `watch.restarts`, an environment that raises is closed and made anew, with another seed.
    Where a step of it failed, that step returns the observation before it, reward 0, and
    truncated: the reset that follows is the new environment's first one.

    Args:
        number: of the environment in its cage.
        seed: the environment's own.
        make_env: makes it.
        watch: is told of all calls.
    """

    def __init__(
        self,
        number: int,
        seed: np.random.SeedSequence,
        make_env: Callable[[], gym.Env[Any, Any]],
        watch: Watch,
    ) -> None:
        self._number = number
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

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        self._words[ENVIRONMENT] = self._number
        try:
            result = self._env.step(action)
        except (Exception, SystemExit) as error:
            self._restart(error)
            self._watch.invalid.append(self._number)
            return self._observation, 0.0, False, True, {}
        self._n_failures = 0
        self._observation = result[0]
        return result

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._words[ENVIRONMENT] = self._number
        if self._first_seed is None:
            try:
                self._observation, info = self._env.reset(seed=seed)
                return self._observation, info
            except (Exception, SystemExit) as error:
                self._restart(error)
        self._observation, info = self._reset_first()
        return self._observation, info

    def close(self) -> None:
        """Close the environment."""
        self._words[ENVIRONMENT] = self._number
        self._env.close()

    def _make(self) -> gym.Env[Any, Any]:
        self._words[ENVIRONMENT] = self._number
        try:
            return self._make_env()
        except BaseException:
            self._watch.failed = self._number
            raise

    def _restart(self, error: BaseException) -> None:
        """Make the environment anew; or raise its error."""
        self._n_failures += 1
        if not self._watch.restarts or self._n_failures > _MOST_FAILURES:
            self._watch.failed = self._number
            raise error
        self._watch.restarted[self._number] = "".join(traceback.format_exception(error))
        try:
            self._env.close()
        except Exception:
            _logger.warning("environment %d can't be closed", self._number, exc_info=True)
        self._seed = restart_seed(self._seed)
        self._first_seed, _ = seed_words(self._seed)
        self._env = self._make()

    def _reset_first(self) -> tuple[Any, dict[str, Any]]:
        """Reset an environment that was made anew for the first time."""
        seed, self._first_seed = self._first_seed, None
        try:
            return self._env.reset(seed=seed)
        except BaseException:
            self._watch.failed = self._number
            raise

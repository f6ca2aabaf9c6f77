"""DeviceBackend: environments with tensors, as a stepper of NumPy's arrays uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from parllel.cages.device.dialect import DeviceStep, Dialect
from parllel.cages.device.tensors import Tensors, as_torch, map_tensors, to_numpy
from parllel.cages.values.env_rows import Value, as_tree, check_counts
from parllel.cages.vector.backend import Mask


class DeviceBackend:
    """What a `VectorStepper` asks of environments, with each result copied to the host.

    `DeviceCage` uses it where a caller wants arrays of the host: for resets, examples, evaluations
    and random steps. Each step waits for the device. It has the methods of `VectorBackend`.

    >>> from parllel.cages.device.known_dialects import dialect_of
    >>> from parllel.testing.device_envs import FakeManiSkill
    >>> from parllel.testing.toy_envs import Clock
    >>> backend = DeviceBackend(dialect_of(FakeManiSkill([Clock] * 2)))
    >>> observation, info = backend.reset([0, 1])
    >>> observation.tolist()
    [[0.0, 0.0], [0.0, 0.0]]

    Args:
        dialect: the environments; `close` closes them.
    """

    mode = AutoresetMode.SAME_STEP
    goes_on = False
    forgets_resets = True

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.n_envs = dialect.n_envs
        self.observation_space = dialect.observation_space
        self.action_space = dialect.action_space
        self.resets_by_mask = dialect.resets_some
        self._results: Any = None
        self._previous: Any = None  # the last observations, where true last ones are lost
        self._is_closed = False

    def reset(self, numbers: Sequence[int] | None) -> tuple[Any, Mapping[str, Any]]:
        """Reset all environments, and return their first observations and info."""
        self.check_open()
        observation, info = self.dialect.reset(numbers)
        rows = self.rows_of(observation)
        self._keep(rows)
        return rows, map_tensors(to_numpy, info)

    def check_can_be_seeded(self) -> None:
        """Do nothing: they can."""

    def start(self, actions: Value) -> None:
        """Take a step of all environments, with copies of the actions."""
        self.check_open()
        action = self.dialect.to_action(map_tensors(np.array, actions))
        self._results = self.dialect.step(action)

    def wait(self) -> tuple[Any, NDArray[Any], Mask, Mask, Mapping[str, Any]]:
        """Return the results of the step: arrays of the host, which the next one may overwrite."""
        step: DeviceStep
        step, self._results = self._results, None
        terminated, truncated = (
            np.asarray(to_numpy(flags), bool) for flags in (step.terminated, step.truncated)
        )
        info = dict(map_tensors(to_numpy, step.info))
        observation = self.rows_of(step.observation)
        ended = terminated | truncated
        if ended.any():
            info["final_obs"] = self._final_obs(step, ended)
        self._keep(observation)
        return observation, np.asarray(to_numpy(step.reward)), terminated, truncated, info

    def _final_obs(self, step: DeviceStep, ended: Mask) -> Any:
        """Return a batch whose rows of ended environments are their last observations."""
        if self.dialect.loses_final_obs:
            return self._previous
        if step.final_obs is None:
            raise RuntimeError(missing_final(int(ended.argmax())))
        if step.has_final is not None:
            lacking = ended & ~np.asarray(to_numpy(step.has_final), bool)
            if lacking.any():
                raise RuntimeError(missing_final(int(lacking.argmax())))
        return self.rows_of(step.final_obs)

    def reset_ended(self, ended: Mask) -> tuple[Any, dict[int, dict[str, Any]]]:
        """Reset the environments of a mask, bool [n]; return their first observations alone."""
        observation = self.dialect.reset_some(as_torch(ended, self.dialect.side))
        rows = self.rows_of(observation)
        return map_tensors(lambda leaf: leaf[ended], rows), {}

    def close(self) -> None:
        """Close the environments. Called again, it does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self.dialect.close()

    def check_open(self) -> None:
        """Raise RuntimeError where the environments are closed."""
        if self._is_closed:
            raise RuntimeError("the cage is closed: its environments are gone; make a new one")

    def rows_of(self, tree: Tensors) -> Any:
        """Return a tree of tensors as rows of NumPy; the host waits for those of a device.

        Raises:
            MisfitError: a leaf has another number of rows than there are environments.
        """
        rows = as_tree(map_tensors(to_numpy, tree))
        check_counts(rows, self.n_envs, ("observation",))
        return rows

    def take_shown(self, tree: Tensors) -> Any:
        """Return observations of a step that was taken elsewhere, as `rows_of` does.

        Where true last observations are lost, they stand for those of the next step.
        """
        rows = self.rows_of(tree)
        self._keep(rows)
        return rows

    def _keep(self, observation: Any) -> None:
        if self.dialect.loses_final_obs:
            self._previous = map_tensors(np.array, observation)


def missing_final(number: int, at: str = "") -> str:
    """Return the message for an environment whose episode ended without a last observation."""
    return (
        f"final_obs: got nothing for environment {number}{at}, expected its last observation: its"
        " episode ended, and the environments say that they keep these"
    )

"""The contract of all cages, and the one routine that carries out what they are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import gymnasium as gym

from parllel.arrays import Array
from parllel.cages.columns import as_tree, stack_column, to_actions, write_column, write_infos
from parllel.cages.stepper import Columns, Stepper
from parllel.cages.trajectory import TrajInfo
from parllel.tree import dict_map
from parllel.tree.leaves import as_ndarray


class Outputs(NamedTuple):
    """The places that a caller wants results to be written to; None where it wants them back."""

    action: Any = None
    observation: Any = None
    reward: Any = None
    terminated: Any = None
    truncated: Any = None
    info: Any = None


class Cage(ABC):
    """Environments that are stepped without waiting, with results written in place.

    A call of `reset_async`, `step_async` or `random_step_async` starts the work, and `await_step`
    waits for it. A cage of one environment takes and gives single rows (`out_reward` of shape
    (), an observation without a leading axis); a cage of n takes and gives n rows.

    Results are written to the places given as `out_...` (Arrays, NumPy arrays, or trees of them).
    `await_step` returns all results: those places, and new values for the places left out. Of
    info, entries that `out_info` has no branch for are dropped, and missing ones become 0.

    Environments are reset in the step that ends their episode: `out_obs` gets the first
    observation of the next episode, and `final_obs` keeps the true last one.
    """

    n_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    def reset_async(self, *, out_obs: Any = None, out_info: Any = None) -> None:
        """Start a reset of all environments. `await_step` returns (observation, info).

        The first reset seeds the environments. Episodes under way are forgotten.
        """
        self._submit("reset", None, Outputs(observation=out_obs, info=out_info))

    def step_async(
        self,
        action: Any,
        *,
        out_obs: Any = None,
        out_reward: Any = None,
        out_terminated: Any = None,
        out_truncated: Any = None,
        out_info: Any = None,
    ) -> None:
        """Start a step. `await_step` returns (observation, reward, terminated, truncated, info).

        Args:
            action: a row for each environment; copied before the environments see it.
            out_obs, out_reward, out_terminated, out_truncated, out_info: places for the results.

        Raises:
            RuntimeError: the environments were never reset.
            ValueError: the number of actions is not `n_envs`.
        """
        outputs = Outputs(None, out_obs, out_reward, out_terminated, out_truncated, out_info)
        self._submit("step", action, outputs)

    def random_step_async(
        self,
        *,
        out_action: Any = None,
        out_obs: Any = None,
        out_reward: Any = None,
        out_terminated: Any = None,
        out_truncated: Any = None,
        out_info: Any = None,
    ) -> None:
        """Start a step with random actions, after a reset if there was none yet.

        `await_step` returns (action, observation, reward, terminated, truncated, info).
        """
        outputs = Outputs(out_action, out_obs, out_reward, out_terminated, out_truncated, out_info)
        self._submit("random_step", None, outputs)

    @abstractmethod
    def _submit(self, command: str, action: Any, outputs: Outputs) -> None:
        """Start one command of `execute`."""

    @abstractmethod
    def await_step(self) -> tuple[Any, ...] | None:
        """Wait for what was started and return its results; None if nothing was."""

    @property
    @abstractmethod
    def final_obs(self) -> Mapping[int, Any]:
        """True final observations of the last step, by the number of the environment.

        There is one for each environment whose episode ended in that step.
        """

    @abstractmethod
    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""

    @abstractmethod
    def close(self) -> None:
        """Close the environments. Called again, it does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def execute(stepper: Stepper, command: str, action: Any, outputs: Outputs) -> tuple[Any, ...]:
    """Carry out one command ("reset", "step", "random_step") and return its results."""
    n_envs = stepper.n_envs
    if command == "reset":
        observations, infos = stepper.reset()
        return (
            _deliver(observations, outputs.observation, n_envs),
            _deliver_infos(infos, outputs.info, n_envs),
        )
    if command == "step":
        actions = to_actions(_rows(action, n_envs), stepper.action_space)
        _check_number(actions, n_envs)
        return _deliver_step(stepper.step(actions), outputs, n_envs)
    actions = stepper.random_actions()
    results = _deliver_step(stepper.step(actions), outputs, n_envs)
    return (_deliver(actions, outputs.action, n_envs), *results)


def _deliver_step(columns: Columns, outputs: Outputs, n_envs: int) -> tuple[Any, ...]:
    return (
        _deliver(columns.observation, outputs.observation, n_envs),
        _deliver(columns.reward, outputs.reward, n_envs),
        _deliver(columns.terminated, outputs.terminated, n_envs),
        _deliver(columns.truncated, outputs.truncated, n_envs),
        _deliver_infos(columns.info, outputs.info, n_envs),
    )


def _deliver(values: Sequence[Any], out: Any, n_envs: int) -> Any:
    """Write the values where the caller wants them, or return them."""
    if out is None:
        return as_tree(values[0]) if n_envs == 1 else stack_column(values)
    write_column(_rows(out, n_envs), values)
    return out


def _deliver_infos(infos: Sequence[dict[str, Any]], out: Any, n_envs: int) -> Any:
    if out is None:
        return infos[0] if n_envs == 1 else list(infos)
    if len(out):  # most environments have no info that is kept
        write_infos(_rows(out, n_envs), infos)
    return out


def _rows(place: Any, n_envs: int) -> Any:
    """Return a place as NumPy arrays with one row for each environment, over the same memory."""
    rows = as_ndarray(place) if isinstance(place, Array) else dict_map(as_ndarray, as_tree(place))
    return rows if n_envs > 1 else rows[None]


def _check_number(actions: list[Any], n_envs: int) -> None:
    if len(actions) != n_envs:
        raise ValueError(
            f"action: got {len(actions)} rows, expected {n_envs}, one for each environment"
        )

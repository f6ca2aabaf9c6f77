"""The contract of all cages, and the one routine that carries out what they are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

import gymnasium as gym

from parllel.cages.env_rows import (
    as_output,
    as_tree,
    copy_info,
    copy_tree,
    stack_column,
    to_actions,
    write_column,
    write_infos,
)
from parllel.cages.episodes import TrajInfo
from parllel.cages.stepper import Columns, Stepper
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


class Command(NamedTuple):
    """What environments are told to do, with all its places looked up, to be given many times."""

    kind: str  # "reset", "step" or "random_step"
    action: Any  # rows, read at each start; None where the kind takes no action
    outputs: Outputs  # as the caller gave them
    rows: Outputs  # the same places as NumPy arrays, a row for each environment
    max_random_steps: int = 0  # after a reset
    packed: Any = None  # Any: what a kind of cage makes of it for itself


class Cage(ABC):
    """Environments that are stepped without waiting, with results written in place.

    A call of `reset_async`, `step_async` or `random_step_async` starts the work, and `await_step`
    waits for it. A cage of one environment takes and gives single rows (`out_reward` of shape
    (), an observation without a leading axis); a cage of n takes and gives n rows.

    One command is under way at a time: starting the next waits for it and drops its results, but
    what it was to write is written.

    Results are written to the places given as `out_...` (Arrays, NumPy arrays, or trees of them).
    `await_step` returns all results: those places, and new values for the places left out. Of
    info, entries that `out_info` has no branch for are dropped, and missing ones become 0.

    Environments are reset in the step that ends their episode: `out_obs` gets the first
    observation of the next episode, and `final_obs` keeps the true last one. Every row is that of a
    transition, except those of the environments in `invalid`.
    """

    n_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    n_restarts: int = 0
    """How many environments were made anew because they failed (`ProcessCage`)."""

    busy_span: tuple[float, float] | None = None
    """When the last command's work began and ended, in seconds of `time.perf_counter`; None where
    that is not known."""

    def reset_async(
        self, *, out_obs: Any = None, out_info: Any = None, max_random_steps: int = 0
    ) -> None:
        """Start a reset of all environments. `await_step` returns (observation, info).

        The first reset seeds the environments. Episodes under way are forgotten.

        Args:
            out_obs, out_info: places for the results; info is that of the reset.
            max_random_steps: each environment takes up to as many steps after its reset, with
                random actions, so that their episodes do not go in step. The number is drawn from
                the environment's own seed. Episodes that end meanwhile are not reported.

        Raises:
            ValueError: max_random_steps is negative, or a place is read-only.
        """
        if max_random_steps < 0:
            raise ValueError(f"max_random_steps: got {max_random_steps}, expected 0 or more")
        command = self._prepare("reset", None, Outputs(observation=out_obs, info=out_info))
        self.start_command(command._replace(max_random_steps=max_random_steps))

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
            TypeError: a place can't be written in place, or there is no action.
            ValueError: the number of actions is not `n_envs`, or a place is read-only.
        """
        self.start_command(
            self.prepare_step(
                action,
                out_obs=out_obs,
                out_reward=out_reward,
                out_terminated=out_terminated,
                out_truncated=out_truncated,
                out_info=out_info,
            )
        )

    def prepare_step(
        self,
        action: Any,
        *,
        out_obs: Any = None,
        out_reward: Any = None,
        out_terminated: Any = None,
        out_truncated: Any = None,
        out_info: Any = None,
    ) -> Command:
        """Look up once where a step reads and writes; return what `start_command` takes.

        Arguments are those of `step_async`. Each start reads what `action` holds at that moment.
        """
        if action is None:
            raise TypeError("action: got None, expected a row for each environment")
        if isinstance(action, tuple) and not isinstance(self.action_space, gym.spaces.Tuple):
            action = list(action)  # rows, not the parts of one action
        outputs = Outputs(None, out_obs, out_reward, out_terminated, out_truncated, out_info)
        return self._prepare("step", action, outputs)

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
        self.start_command(self._prepare("random_step", None, outputs))

    @abstractmethod
    def start_command(self, command: Command) -> None:
        """Start a command; some cage's worker runs `execute` with it."""

    def _prepare(self, kind: str, action: Any, outputs: Outputs) -> Command:
        rows = Outputs(*(None if out is None else self._rows(out, as_output) for out in outputs))
        if action is not None:
            action = self._rows(action, as_ndarray)
            dict_map(_check_number, action, self.n_envs)
        return Command(kind, action, outputs, rows)

    def _rows(self, place: Any, convert: Callable[[Any], Any]) -> Any:
        """Return NumPy arrays with one row for each environment."""
        rows = dict_map(convert, as_tree(place))
        return rows if self.n_envs > 1 else rows[None]

    @abstractmethod
    def await_step(self) -> Any:  # Any: a tuple whose length the command decides
        """Wait for what was started and return its results; None if nothing was."""

    @property
    @abstractmethod
    def final_obs(self) -> Mapping[int, Any]:
        """True final observations of the last step, by the number of the environment.

        There is one for each environment whose episode ended in that step.
        """

    @property
    def invalid(self) -> Collection[int]:
        """Numbers of the environments whose last step is no transition to learn from.

        Of such a row reward is 0, terminated False and truncated True, so that nothing is carried
        across it, and the observation is the first one of an episode. `final_obs` has nothing of
        the step, and no summary counts it. The step was spent on a reset (`VectorCage`), or the
        environment failed and was made anew (`ProcessCage`); then nobody sums up its episode.
        Empty for most cages, always.
        """
        return ()

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


def execute(stepper: Stepper, command: Command) -> tuple[Any, ...]:
    """Carry out a command and return its results."""
    outputs, rows = command.outputs, command.rows
    if command.kind == "step":
        actions = to_actions(command.action, stepper.action_space)
        return _deliver_step(stepper.step(actions), outputs, rows)
    if command.kind == "reset":
        observations, infos = stepper.reset(command.max_random_steps)
        return (
            _deliver(observations, outputs.observation, rows.observation),
            _deliver_infos(infos, outputs.info, rows.info),
        )
    actions = stepper.random_actions()
    action = _deliver(actions, outputs.action, rows.action)  # the environments may overwrite theirs
    return (action, *_deliver_step(stepper.step(actions), outputs, rows))


def _deliver_step(columns: Columns, outputs: Outputs, rows: Outputs) -> tuple[Any, ...]:
    return (
        _deliver(columns.observation, outputs.observation, rows.observation),
        _deliver(columns.reward, outputs.reward, rows.reward),
        _deliver(columns.terminated, outputs.terminated, rows.terminated),
        _deliver(columns.truncated, outputs.truncated, rows.truncated),
        _deliver_infos(columns.info, outputs.info, rows.info),
    )


def _deliver(values: Sequence[Any], out: Any, rows: Any) -> Any:
    """Write the values where the caller wants them, or return them."""
    if out is None:
        return copy_tree(values[0]) if len(values) == 1 else stack_column(values)
    write_column(rows, values)
    return out


def _deliver_infos(infos: Sequence[dict[str, Any]], out: Any, rows: Any) -> Any:
    if out is None:
        own = [copy_info(info) for info in infos]
        return own[0] if len(own) == 1 else own
    if len(rows):  # most environments have no info that is kept
        write_infos(rows, infos)
    return out


def _check_number(action: Any, n_envs: int) -> None:
    n_rows = len(action) if action.ndim else 1
    if not action.ndim or n_rows != n_envs:
        raise ValueError(f"action: got {n_rows} rows, expected {n_envs}, one for each environment")

"""Cage: what all cages promise; and `execute`, by which single environments carry out a command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.cages.episodes import TrajInfo
from parllel.cages.stepper import Columns, Stepper
from parllel.cages.values.agent_forms import AgentForm
from parllel.cages.values.env_rows import (
    Info,
    Output,
    Rows,
    Value,
    as_output,
    as_tree,
    check_fits,
    copy_tree,
    stack_column,
    write_column,
)
from parllel.cages.values.infos import LeftOut, copy_info, write_infos
from parllel.cages.values.spaces import to_actions
from parllel.tree import ArrayDict, TreePath, dict_map
from parllel.tree.fitting import MisfitError, has_form, put_column
from parllel.tree.leaves import as_ndarray

OF_THE_PARENT = (
    "the cage belongs to the process that made it, and this is a forked child: make a cage here"
)
"""What is raised where two processes would read the results of the same environments."""

_OF_STEP = ("observation", "reward", "terminated", "truncated", "env_info")


class Outputs(NamedTuple):
    """Where a caller wants each result to be written; None where it wants the result returned.

    >>> import numpy as np
    >>> Outputs(reward=np.zeros(3)).observation is None
    True
    """

    action: Any = None  # each Any: an Output as the caller gave it, or Rows over the same memory
    observation: Any = None
    reward: Any = None
    terminated: Any = None
    truncated: Any = None
    info: Any = None
    valid: Any = None


class Command(NamedTuple):
    """An order that environments carry out. One command can be started many times.

    >>> Command("reset", None, Outputs(), Outputs()).max_random_steps
    0

    Args:
        kind: "reset", "step" or "random_step".
        action: rows, which are read at each start; None where the kind takes no action.
        outputs: as the caller gave them.
        rows: NumPy arrays over the memory of `outputs`, with a row for each environment.
        max_random_steps: the most random steps that an environment takes after a reset.
        packed: the form in which a cage with a worker sends this command.
    """

    kind: str
    action: Rows | None
    outputs: Outputs
    rows: Outputs
    max_random_steps: int = 0
    packed: Any = None  # Any: each kind of cage has a form of its own, and reads only that


class Cage(ABC):
    """Environments that are stepped without waiting, with results written in place.

    A call of `reset_async`, `step_async` or `random_step_async` starts the work, and `await_step`
    waits for it. A cage of one environment takes and gives single rows (`out_reward` of shape
    (), an observation without a leading axis); a cage of n takes and gives n rows.

    One command is under way at a time. Starting the next one waits for it: its results are written
    to its outputs, and those that it was to return are dropped.

    A result is written to the output given as `out_...`: an Array, a NumPy array, a CPU tensor, or
    a tree of these. `await_step` returns all results: the outputs that were given, and new values
    for the others. Of info, entries that `out_info` has no branch for are dropped, and missing
    ones become 0.

    Environments are reset in the step that ends their episode: `out_obs` gets the first
    observation of the next episode, and `final_obs` keeps the true last one. Every row is that of a
    transition, except those of the environments in `invalid`.

    >>> import gymnasium as gym
    >>> import numpy as np
    >>> from parllel.cages import SerialCage
    >>> with SerialCage(gym.make, {"id": "CartPole-v1"}, n_envs=2, seed=0) as cage:
    ...     cage.reset_async()
    ...     observation, info = cage.await_step()
    ...     cage.step_async(np.array([0, 1]))
    ...     observation, reward, terminated, truncated, info = cage.await_step()
    >>> observation.shape, reward
    ((2, 4), array([1., 1.]))
    """

    n_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    agents: AgentForm | None = None
    """The agents of an environment, and the form of what each of them is given; None where there is
    one reward and one flag. Then rewards have a number for each agent, and so have flags where
    `agents.has_flags`. An environment is reset when all of its agents have ended."""

    goes_on: bool = False
    """Whether a step goes on after `start_command`, in other processes or threads. A caller that
    has to wait for something else meanwhile leaves them its core."""

    n_restarts: int = 0
    """How many environments were made anew because they failed (`ProcessCage`)."""

    stepped_by: object = None
    """A mark of the sampler that has reset the environments last, so that another one that took
    them for its own finds out."""

    busy_span: tuple[float, float] | None = None
    """When the work of the last command began and ended, in seconds of `time.perf_counter`; None
    before the first command."""

    def reset_async(
        self,
        *,
        out_obs: Output | None = None,
        out_info: Output | None = None,
        max_random_steps: int = 0,
    ) -> None:
        """Start a reset of all environments. `await_step` returns (observation, info).

        The first reset seeds the environments. Episodes under way are forgotten.

        Args:
            out_obs, out_info: outputs for the results; info is that of the reset.
            max_random_steps: the most steps with random actions that an environment takes after
                its reset, so that the environments' episodes do not end at the same time. How
                many it takes is drawn from its own seed. Episodes that end in these steps are not
                reported.

        Raises:
            ValueError: max_random_steps is negative, or an output is read-only.
        """
        if max_random_steps < 0:
            raise ValueError(f"max_random_steps: got {max_random_steps}, expected 0 or more")
        command = self._prepare("reset", None, Outputs(observation=out_obs, info=out_info))
        self.start_command(command._replace(max_random_steps=max_random_steps))

    def step_async(
        self,
        action: Value | None,
        *,
        out_obs: Output | None = None,
        out_reward: Output | None = None,
        out_terminated: Output | None = None,
        out_truncated: Output | None = None,
        out_info: Output | None = None,
    ) -> None:
        """Start a step. `await_step` returns (observation, reward, terminated, truncated, info).

        Args:
            action: a row for each environment; copied before the environments see it.
            out_obs, out_reward, out_terminated, out_truncated, out_info: outputs for the results.

        Raises:
            RuntimeError: the environments were never reset.
            TypeError: NumPy can't write an output's own memory, or there is no action.
            ValueError: the number of actions is not `n_envs`, or an output is read-only.
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
        action: Value | None,
        *,
        out_obs: Output | None = None,
        out_reward: Output | None = None,
        out_terminated: Output | None = None,
        out_truncated: Output | None = None,
        out_info: Output | None = None,
        out_valid: Output | None = None,
    ) -> Command:
        """Look up once where a step reads and writes; return what `start_command` takes.

        Arguments are those of `step_async`, and an output that is written and never returned. Each
        start reads what `action` holds at that moment.

        Args:
            out_valid: bool, in the form of rewards: which agents have acted. Only of environments
                whose agents may come and go (`agents.has_flags`).

        Raises:
            TypeError, ValueError: as for `step_async`; or there is no such thing to be written.
        """
        if action is None:
            raise TypeError("action: got None, expected a row for each environment")
        if isinstance(action, tuple) and not isinstance(self.action_space, gym.spaces.Tuple):
            action = list(action)  # rows, not the parts of one action
        if out_valid is not None and (self.agents is None or not self.agents.has_flags):
            raise ValueError(
                "out_valid: the environments have no agents that come and go; `invalid` tells of"
                " rows that are no transitions"
            )
        outputs = Outputs(
            None, out_obs, out_reward, out_terminated, out_truncated, out_info, out_valid
        )
        return self._prepare("step", action, outputs)

    def random_step_async(
        self,
        *,
        out_action: Output | None = None,
        out_obs: Output | None = None,
        out_reward: Output | None = None,
        out_terminated: Output | None = None,
        out_truncated: Output | None = None,
        out_info: Output | None = None,
    ) -> None:
        """Start a step with random actions, after a reset if there was none yet.

        `await_step` returns (action, observation, reward, terminated, truncated, info).
        """
        outputs = Outputs(out_action, out_obs, out_reward, out_terminated, out_truncated, out_info)
        self.start_command(self._prepare("random_step", None, outputs))

    @abstractmethod
    def reseed(self, seed: Any) -> None:  # Any: a Seed, whose room imports this one
        """Have the next reset seed the environments, as the first one of a new cage does.

        From that reset on, results depend on this seed and on actions alone, for environments of
        which a seeded reset leaves nothing of what was before. Call `reset_async` next: a step
        before it is an error.

        Args:
            seed: an integer for all environments, or a SeedSequence for each.

        Raises:
            TypeError, ValueError: as for the seed of a new cage.
        """

    @abstractmethod
    def start_command(self, command: Command) -> None:
        """Start a command that `prepare_step` returned; `await_step` waits for it."""

    def _prepare(self, kind: str, action: Value | None, outputs: Outputs) -> Command:
        rows = Outputs(
            *(
                None if out is None else self._rows(f"output of {name}", out, as_output)
                for name, out in zip(Outputs._fields, outputs, strict=True)
            )
        )
        action_rows = None if action is None else self._rows("action", action, as_ndarray)
        return Command(kind, action_rows, outputs, rows)

    def _rows(self, name: str, tree: Value | Output, convert: Callable[[Any], NDArray[Any]]) -> Any:
        """Return NumPy arrays with one row for each environment; `convert` makes them of leaves."""
        # Most are plain leaves, which need no walk.
        leaf = tree if tree.__class__ is np.ndarray else as_tree(tree)
        is_plain = leaf.__class__ is np.ndarray or isinstance(leaf, Array)
        rows = convert(leaf) if is_plain else dict_map(convert, leaf)
        if self.n_envs == 1:
            rows = rows[None]
        if rows.__class__ is np.ndarray:
            _check_number(rows, name, self.n_envs)
        else:
            dict_map(_check_number, rows, name, self.n_envs)
        return rows

    @abstractmethod
    def await_step(self) -> Any:  # Any: a tuple whose length the command decides
        """Wait for the command that was started and return its results; None if there was none."""

    @property
    @abstractmethod
    def final_obs(self) -> Mapping[int, Any]:
        """True final observations of the last step, by the number of the environment.

        There is one for each environment whose episode ended in that step.
        """

    @property
    def invalid(self) -> Collection[int]:
        """Numbers of the environments whose last step is no transition to learn from.

        In such a row, reward is 0, terminated False and truncated True, so that returns and
        advantages end there, and the observation is the first one of an episode. `final_obs` has
        nothing of the step, and no summary counts it. Either the environment spent the step on a
        reset (`VectorCage`), or it failed and was made anew (`ProcessCage`); then its episode is
        not reported. For all other cages this is empty.
        """
        return ()

    @property
    def is_ready(self) -> bool:
        """Whether `await_step` is known to return at once. A cage that can't tell says no."""
        return not self.goes_on

    @property
    def gives_invalid_rows(self) -> bool:
        """Whether `invalid` may ever name an environment."""
        return type(self).invalid is not Cage.invalid

    @abstractmethod
    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call, in the order of their ends."""

    def take_left_out(self) -> list[TreePath]:
        """Return the paths of numbers in infos that are new since the last call and not stored.

        Those are entries that `out_info` has no branch for; each is told once.
        """
        return []

    def check_state(self) -> None:
        """Refuse environments whose states can't be saved: call this before a long run.

        Raises:
            NotImplementedError: the cage can't save any (`VectorCage`).
            TypeError: an environment can't save its state. It can where it, or a wrapper around
                it, has methods `get_state()` and `set_state(state)`, for nested dictionaries,
                lists and tuples of arrays, numbers, texts and bytes; those of `ale_py`,
                gymnasium's MuJoCo and classic control can, too, and those whose class has
                `attributes_are_state = True`. Wrappers above are saved by their attributes.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: it can't save the states of its environments; step them in a"
            " SerialCage or a ProcessCage, or let each checkpoint reset them (saves_envs=False)"
        )

    def get_state(self) -> list[dict[str, Any]]:
        """Wait for the command under way; return a state of each environment as plain data.

        From these states, another cage of such environments goes on with the same bits, and so
        does this one. Beside what `check_state` tells of, they have the generators `np_random` and
        those of spaces, the summary of the episode under way, the seeds, and of a worker the
        global generators of Python and NumPy. Summaries that `take_completed` was not asked for
        yet are no part of it.

        Raises:
            NotImplementedError, TypeError: as for `check_state`; or the summary of an episode has
                an attribute that is no plain data.
            RuntimeError: the environments were never reset.
        """
        raise NotImplementedError(f"{type(self).__name__} has no get_state")

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Have the environments go on from states that `get_state` returned.

        Environments that were never reset are reset before. Where it fails, call `reset_async`
        next.

        Args:
            states: one for each environment. They are copied.

        Raises:
            NotImplementedError, TypeError: as for `check_state`.
            ValueError: the states are not of such environments, or not as many.
        """
        raise NotImplementedError(f"{type(self).__name__} has no set_state")

    @abstractmethod
    def close(self) -> None:
        """Close the environments. Called again, it does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def execute(stepper: Stepper, command: Command) -> tuple[Any, ...]:
    """Carry out a command with single environments, and return its results.

    Raises:
        MisfitError: an environment gave something that is not what the outputs hold.
    """
    try:
        if command.kind == "step":  # most: a call less
            actions = to_actions(command.action, stepper.action_space)
            return _deliver_step(stepper, stepper.step(actions), command.outputs, command.rows)
        return _execute(stepper, command)
    except MisfitError as error:
        if error.environment is not None and error.seed is None:
            stepper.tell_of(error, error.environment)
        if error.path[:1] == ("observation",) and command.rows.observation is not None:
            _explain_output(error, stepper.observation_space, command.rows.observation)
        raise


def _explain_output(error: MisfitError, space: gym.Space[Any], rows: Rows) -> None:
    """Tell of an output that the environment's space does not fit, whatever the value is."""
    try:
        for name in error.path[1:]:
            space = space[int(name)] if isinstance(space, spaces.Tuple) else space[name]  # type: ignore[index]
            rows = rows[name]
    except (LookupError, TypeError):  # the value lacks a branch, or the space has no members
        return
    if isinstance(rows, np.ndarray) and rows.shape[1:] != space.shape:
        error.way_out = (
            f"the output has another shape than the space's {space.shape}; that of a single"
            " environment has no axis for environments"
        )


def _execute(stepper: Stepper, command: Command) -> tuple[Any, ...]:
    """Carry out a reset or a random step."""
    outputs, rows = command.outputs, command.rows
    left_out = stepper.left_out
    if command.kind == "reset":
        observations, infos = stepper.reset(command.max_random_steps)
        observation = "observation", observations, outputs.observation, rows.observation
        info = "env_info", infos, outputs.info, rows.info
        return _deliver([observation, info], left_out, stepper.observation_space)
    actions = stepper.random_actions()
    # Before environments overwrite it.
    action = _deliver([("action", actions, outputs.action, rows.action)], left_out)
    return action + _deliver_step(stepper, stepper.step(actions), outputs, rows)


def _deliver_step(
    stepper: Stepper, columns: Columns, outputs: Outputs, rows: Outputs
) -> tuple[Any, ...]:
    if outputs.observation is not None and stepper.final_obs:
        _check_final_obs(stepper.final_obs, rows.observation)
    # Without `valid`, which is written where it is wanted, and never returned.
    results: Any = zip(_OF_STEP, columns, outputs[1:], rows[1:], strict=False)
    if rows.valid is not None:
        assert columns.valid is not None  # prepare_step has looked
        _deliver([("valid", columns.valid, outputs.valid, rows.valid)], stepper.left_out)
    return _deliver(results, stepper.left_out, stepper.observation_space)


def _check_final_obs(final_obs: Mapping[int, Any], rows: Rows) -> None:
    """Compare observations that are kept outside of the rows with the rows."""
    for number, value in final_obs.items():
        if isinstance(rows, np.ndarray) and has_form(value, rows.shape[1:], rows.dtype):
            continue
        try:
            check_fits(rows, value, number)
        except MisfitError as error:
            error.path = ("observation", *error.path)
            raise


def _deliver(
    results: Iterable[tuple[str, Sequence[Any], Output | None, Any]],
    left_out: LeftOut,
    space: gym.Space[Any] | None = None,
) -> tuple[Any, ...]:
    """Write values to outputs; return these, and the values that there is no output for.

    Args:
        results: for each result its name, a value of each environment, the output and its rows.
        left_out: notes entries of infos that are not written.
        space: that of observations.
    """
    delivered, name = [], ""
    try:
        for name, values, out, rows in results:
            if rows.__class__ is np.ndarray:  # most
                put_column(rows, values)
            elif name == "env_info":
                out = _deliver_infos(values, out, rows, left_out)
            elif out is None:
                of_values = space if name == "observation" else None
                is_one = len(values) == 1
                out = copy_tree(values[0]) if is_one else stack_column(values, of_values)
            else:
                write_column(rows, values)
            delivered.append(out)
    except MisfitError as error:
        error.path = (name, *error.path)
        raise
    return tuple(delivered)


def _deliver_infos(
    infos: Sequence[Info], out: Output | None, rows: ArrayDict, left_out: LeftOut
) -> Any:
    """Write the info of each environment to an output; or return them where there is none."""
    if out is None:
        own = [copy_info(info) for info in infos]
        return own[0] if len(own) == 1 else own
    if len(rows) or any(infos):  # most environments have no info
        write_infos(rows, infos, left_out)
    return out


def _check_number(leaf: NDArray[Any], name: str, n_envs: int) -> None:
    n_rows = len(leaf) if leaf.ndim else 1
    if not leaf.ndim or n_rows != n_envs:
        raise ValueError(f"{name}: got {n_rows} rows, expected {n_envs}, one for each environment")

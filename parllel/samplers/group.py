"""Group: cages that step together, and their columns of the sample tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.cages import AgentForm, Cage, Command, TrajInfo
from parllel.cages.cage import Outputs
from parllel.samplers.action_check import ActionCheck
from parllel.samplers.agent import Actor, Part, check_rows, check_step
from parllel.samplers.ends import Ends
from parllel.samplers.in_place import InPlace
from parllel.samplers.staging import Staging
from parllel.samplers.transfer import Transfer, batch_shape_of
from parllel.tree import ArrayDict, Rows, path_text


class _AgentRows(NamedTuple):
    """Rows of the tree that an agent's step reads and fills, found once for each batch."""

    observation: Any  # Any: Rows, which are indexed and written without a look at their type
    agent_info: Any  # as above; None where the tree has no such branch


class Group:
    """Step some cages together: their environments are neighbouring columns of the tree.

    For each time step a sampler calls `act`, then `finish`. Work in between runs while the
    environments of cages with workers step.

    Args:
        cages: the cages, in the order of their columns.
        samples: the sampler's tree.
        columns: the columns of the cages' environments in the tree's second dimension.
        check: whether to check each action of the agent, and not only the first one.
        others_go_on: whether environments of other groups may step while this one waits for an
            action, in processes or threads of their own (`Cage.goes_on`). Then the wait for a GPU
            leaves its core to them.
    """

    def __init__(
        self,
        cages: Sequence[Cage],
        samples: ArrayDict,
        columns: range,
        *,
        check: bool = False,
        others_go_on: bool = False,
    ) -> None:
        self.cages = list(cages)
        self._check = check
        self._checks_action = True  # the first action in any case
        self.columns = columns
        self._samples = samples
        self._batch_T, batch_B = batch_shape_of(samples)[:2]
        self._is_all = len(columns) == batch_B
        # What an agent is told that treats environments apart.
        self._told: dict[str, Any] = {} if self._is_all else {"part": Part(columns, batch_B)}
        self._has_agent_info = bool(samples.get("agent_info"))
        self._has_valid = "valid" in samples
        self._agents = self.cages[0].agents
        self._check_action = ActionCheck(
            self.cages[0].action_space, len(columns), agents=_names_in_axis(self._agents)
        )
        # Whether agents come and go, so that environments write `valid`.
        self._has_flags = self._agents is not None and self._agents.has_flags
        self.keeps_final = True  # whether last observations are wanted
        self.gives_invalid_rows = any(cage.gives_invalid_rows for cage in self.cages)
        self._is_moving = any(leaf.full_size > len(leaf) for _, leaf in samples.walk())
        self._parts = _parts_of(self.cages)
        self._rows: list[_AgentRows] = []
        self._is_collected = False  # whether the results of a step are on their way already
        self._is_checked = False  # whether the agent's steps return what they have to
        self.transfer: Transfer = self._make_transfer(sleeps=others_go_on)
        # For each of the transfer's host rows, a command for each cage.
        self._commands = self._prepare_commands()

    def _make_transfer(self, *, sleeps: bool) -> Transfer:
        return _transfer_for(self._samples, self.columns, sleeps=sleeps)

    def start_reset(self, max_random_steps: int = 0) -> None:
        """Start a reset of all environments, and random steps after it."""
        first = self.transfer.first_rows()
        for cage, part in zip(self.cages, self._parts, strict=True):
            cage.reset_async(out_obs=_part(first, part), max_random_steps=max_random_steps)

    def finish_reset(self) -> None:
        """Wait for the reset, and bring first observations to the row after the batch."""
        for cage in self.cages:
            cage.await_step()
            cage.take_completed()
        self.transfer.take_first()

    def move(self) -> None:
        """Follow the tree's window after it has moved."""
        self._is_collected = False  # an error may have cut the last batch short
        if self.transfer.move():
            self._commands = self._prepare_commands()
        if self._is_moving or not self._rows:
            self._rows = [self._find_rows(t) for t in range(self._batch_T)]

    def act(
        self,
        agent: Actor,
        t: int,
        *,
        deterministic: bool = False,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Let the agent act on observation t; start step t of the environments.

        Args:
            agent: the object that chooses the actions.
            t: the step.
            deterministic: as for the agent's `step`.
            meanwhile: called when the agent's work was queued, and before its end is awaited.
        """
        rows, transfer = self._rows[t], self.transfer
        if self._told and getattr(agent, "takes_part", False):
            result = agent.step(rows.observation, deterministic=deterministic, **self._told)
        else:
            result = agent.step(rows.observation, deterministic=deterministic)
        if not self._is_checked:
            check_step(agent, result)
            if rows.agent_info is not None:
                check_rows("agent_info", result[1], rows.agent_info)
            self._is_checked = True
        action, agent_info = result
        if self._checks_action:
            self._check_action(action, bounds=self._check)
            self._checks_action = self._check
        is_taken = transfer.send_actions(t, action, agent_info)
        if meanwhile is not None:
            meanwhile()
        transfer.await_actions(t)
        self._start(t)
        if not is_taken and rows.agent_info is not None:  # written while the environments step
            rows.agent_info[...] = agent_info

    def _start(self, t: int) -> None:
        """Start step t of the environments: their action is there."""
        for cage, command in zip(self.cages, self._commands[t % len(self._commands)], strict=True):
            cage.start_command(command)

    def finish(self, t: int) -> None:
        """Wait for step t, and bring its results and observation t + 1 to the tree."""
        if not self._is_collected:
            self._collect(t)
        self._is_collected = False
        self.transfer.take_outputs(t)

    def collect_ready(self, t: int) -> None:
        """Start to bring the results of step t to the tree, if they are there and that saves time.

        `finish` has to follow.
        """
        if self.transfer.copies_ahead and all(cage.is_ready for cage in self.cages):
            self._collect(t)
            self._is_collected = True

    def _collect(self, t: int) -> None:
        for cage in self.cages:
            cage.await_step()
        if self._has_valid and not self._has_flags:
            valid = self.host_rows(t)["valid"].to_ndarray()
            valid[...] = True
            for column in self.invalid():
                valid[column - self.columns.start] = False
        self.transfer.start_outputs(t)

    def host_rows(self, t: int) -> ArrayDict:
        """Return the results of step t in host memory, rows [len(columns), ...]."""
        rows = self.transfer.host_rows
        return rows[t % len(rows)]

    def ended(self) -> list[int]:
        """Return the columns whose episode ended in the last step, in their order."""
        found: list[int] = []
        first = self.columns.start
        for cage in self.cages:
            found += [first + number for number in cage.final_obs]
            first += cage.n_envs
        return found

    def final_obs(self) -> dict[int, Any]:
        """Return the final observations of the last step by the column of the tree."""
        found: dict[int, Any] = {}
        first = self.columns.start
        for cage in self.cages:
            found |= {first + number: value for number, value in cage.final_obs.items()}
            first += cage.n_envs
        return found

    def cut_obs(self, t: int) -> dict[int, Any]:
        """Return the final observations of step t by the column of the tree.

        Those of episodes that terminated are left out: what follows them counts for nothing. Where
        agents have flags of their own, those in which no agent was truncated are left out.
        """
        first, found = self.columns.start, {}
        for cage, command in zip(self.cages, self._commands[t % len(self._commands)], strict=True):
            if final_obs := cage.final_obs:
                terminated = command.rows.terminated
                if self._has_flags:
                    terminated = ~self._is_cut(command.rows)
                for number, observation in final_obs.items():
                    if not terminated[number]:
                        found[first + number] = observation
            first += cage.n_envs
        return found

    def cut_lives(self, t: int) -> list[int]:
        """Return the columns that go on after step t, in which an agent was truncated.

        The agent's final observation is the next one of its slot.
        """
        found: list[int] = []
        if not self._has_flags or not self._has_valid:
            return found
        first = self.columns.start
        for cage, command in zip(self.cages, self._commands[t % len(self._commands)], strict=True):
            is_cut = self._is_cut(command.rows)
            found += [
                first + int(number)
                for number in np.flatnonzero(is_cut)
                if number not in cage.final_obs and number not in cage.invalid
            ]
            first += cage.n_envs
        return found

    def _is_cut(self, rows: Outputs) -> NDArray[np.bool_]:
        """Return in which environments an agent was truncated in its last step, bool [n]."""
        is_truncated = self._each(rows.truncated) & ~self._each(rows.terminated)
        is_cut: NDArray[np.bool_] = np.any(is_truncated & self._each(rows.valid), axis=1)
        return is_cut

    def _each(self, rows: Any) -> NDArray[np.bool_]:
        """Return the flags of all agents, bool [n, N], of rows in the agents' form."""
        assert self._agents is not None
        if self._agents.is_axis:
            return np.asarray(rows, np.bool_)
        return np.stack([rows[name] for name in self._agents.names], axis=1).astype(np.bool_)

    def end_batch(self, *, all_ends: bool) -> Ends | None:
        """Return the ends of episodes that no step has told of: here none.

        Args:
            all_ends: whether those of terminated episodes are wanted, too.
        """
        return None

    def invalid(self) -> list[int]:
        """Return the columns whose row of the last step is no transition."""
        found: list[int] = []
        first = self.columns.start
        if not self.gives_invalid_rows:
            return found
        for cage in self.cages:
            found += [first + number for number in cage.invalid]
            first += cage.n_envs
        return found

    def take_completed(self) -> list[TrajInfo]:
        """Return the episodes that ended since the last call."""
        return [traj for cage in self.cages for traj in cage.take_completed()]

    def close(self) -> None:
        """Give back what was allocated here. Cages and tree stay open."""
        self.transfer.close()
        self._rows, self._commands = [], []

    def _find_rows(self, t: int) -> _AgentRows:
        return _AgentRows(
            observation=self._columns_of("observation", t),
            agent_info=self._columns_of("agent_info", t) if self._has_agent_info else None,
        )

    def _columns_of(self, branch: str, t: int) -> Rows:
        """Return row t of a branch, with the columns of this group alone."""
        if self._is_all:
            return self._samples[branch][t]
        return self._samples[branch][t, self.columns.start : self.columns.stop]

    def _prepare_commands(self) -> list[list[Command]]:
        return [
            [
                _prepare_step(cage, rows.apply(_part, part), has_flags=self._has_flags)
                for cage, part in zip(self.cages, self._parts, strict=True)
            ]
            for rows in self.transfer.host_rows
        ]


def _transfer_for(samples: ArrayDict, columns: range, *, sleeps: bool) -> Transfer:
    """Return the transfer that suits the memory of a sample tree."""
    leaves = list(samples.walk())
    on_host = [path_text(path) for path, leaf in leaves if leaf.is_on_host]
    if len(on_host) == len(leaves):
        return InPlace(samples, columns)
    if on_host:
        raise ValueError(
            f"samples: {', '.join(on_host)} in other memory than the device's, expected all"
            ' leaves there or none; move the tree with samples.to("device")'
        )
    return Staging(samples, columns, sleeps=sleeps)


def _prepare_step(cage: Cage, rows: ArrayDict, *, has_flags: bool) -> Command:
    return cage.prepare_step(
        rows["action"],
        out_obs=rows["observation"],
        out_reward=rows["reward"],
        out_terminated=rows["terminated"],
        out_truncated=rows["truncated"],
        out_info=rows["env_info"],
        out_valid=rows.get("valid") if has_flags else None,
    )


def _names_in_axis(agents: AgentForm | None) -> Sequence[str]:
    """Return the names of agents whose actions have an axis of them."""
    return agents.names if agents is not None and agents.has_flags and agents.is_axis else ()


def _parts_of(cages: Sequence[Cage]) -> list[int | slice | None]:
    """Return the index of each cage's rows within the group's; None for all of them."""
    if len(cages) == 1:
        return [None if cages[0].n_envs > 1 else 0]
    parts: list[int | slice | None] = []
    first = 0
    for cage in cages:
        parts.append(first if cage.n_envs == 1 else slice(first, first + cage.n_envs))
        first += cage.n_envs
    return parts


def _part(rows: Rows, part: int | slice | None) -> Rows:
    return rows if part is None else rows[part]

"""What all samplers share: the agent that they ask, and one time step of all environments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

from parllel.arrays import Array
from parllel.cages import Cage, Command, TrajInfo
from parllel.cages.columns import write_column
from parllel.cages.staging import Staging
from parllel.cages.transfer import InPlace, Transfer
from parllel.tree import ArrayDict, dict_map
from parllel.tree.leaves import empty_rows, is_on_gpu


class Agent(Protocol):
    """Whom a sampler asks for actions and values; rows are those of the sample tree.

    An agent may have a method `acting` too, which returns a context manager: a sampler enters it
    once for each batch, and an agent can do there what it would do in each call otherwise. Serial
    cages step their environments inside of it.
    """

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        """Return an action for each row, and a mapping of what else is kept for learning."""

    def value(self, observation: Any) -> Any:
        """Return a value estimate for each row."""


class _Rows(NamedTuple):
    """Where the agent reads and writes one time step: views that are found once for a batch."""

    observation: Any
    agent_info: Any  # None where the tree has no such branch


class Sampler:
    """Steps all environments of some cages with an agent, and writes the sample tree in place.

    The tree has the branches `observation` (with padding of at least 1), `action`, `reward`,
    `terminated`, `truncated` and `env_info`, of leading dimensions (T, B), where B counts the
    environments of all cages in their order. With a branch `agent_info`, the agent's second
    result is written there. With a branch `final_value` too, values for learning are completed:
    see `BasicSampler`.

    Args:
        cages: their environments make the second dimension. The caller closes them.
        agent: chooses the actions.
        samples: the tree to be written.

    Raises:
        ValueError: a branch is missing, `observation` has no padding, or B is not the number of
            environments.
    """

    def __init__(self, cages: Sequence[Cage], agent: Agent, samples: ArrayDict) -> None:
        _check(cages, samples)
        self.cages = list(cages)
        self.agent = agent
        self.samples = samples
        self.batch_T, self.batch_B = samples["reward"].batch_shape[:2]
        self._has_agent_info = bool(samples.get("agent_info"))
        self._columns = _columns_of(self.cages)
        self._is_moving = any(leaf.full_size > self.batch_T for _, leaf in samples.walk())
        self._rows: list[_Rows] = []
        self._transfer: Transfer = _transfer_for(samples)
        self._commands = self._bind()  # for each of the transfer's host rows, one for each cage

    def reset(self) -> None:
        """Reset all environments; the next batch begins with their first observations."""
        self.samples.reset()
        first = self._transfer.first_rows()
        for cage, columns in zip(self.cages, self._columns, strict=True):
            cage.reset_async(out_obs=_part(first, columns))
        for cage in self.cages:
            cage.await_step()
            cage.take_completed()
        self._transfer.take_first()

    def close(self) -> None:
        """Give back what the sampler allocated: nothing, where the tree is in host memory.

        Cages and the tree stay open. Called again, it does nothing.
        """
        self._transfer.close()

    def _rotate(self) -> None:
        """Move the tree's window on, and find the rows of its steps."""
        self.samples.rotate()
        if self._is_moving or not self._rows:
            self._rows = [self._find_rows(t) for t in range(self.batch_T)]
        if self._transfer.move():
            self._commands = self._bind()

    def _find_rows(self, t: int) -> _Rows:
        samples = self.samples
        return _Rows(
            observation=samples["observation"][t],
            agent_info=samples["agent_info"][t] if self._has_agent_info else None,
        )

    def _bind(self) -> list[list[Command]]:
        return [
            [
                self._bind_step(cage, rows.apply(_part, columns))
                for cage, columns in zip(self.cages, self._columns, strict=True)
            ]
            for rows in self._transfer.host_rows
        ]

    @staticmethod
    def _bind_step(cage: Cage, rows: ArrayDict) -> Command:
        return cage.bind_step(
            rows["action"],
            out_obs=rows["observation"],
            out_reward=rows["reward"],
            out_terminated=rows["terminated"],
            out_truncated=rows["truncated"],
            out_info=rows["env_info"],
        )

    def _step(self, t: int, *, deterministic: bool = False) -> None:
        """Act on observation t; write action t, its outcome, and observation t + 1."""
        rows, transfer = self._rows[t], self._transfer
        action, agent_info = self.agent.step(rows.observation, deterministic=deterministic)
        transfer.action_rows(t)[...] = action
        if rows.agent_info is not None:
            rows.agent_info[...] = agent_info
        transfer.send_actions(t)
        for cage, command in zip(self.cages, self._commands[t % len(self._commands)], strict=True):
            cage.start(command)
        for cage in self.cages:
            cage.await_step()
        transfer.take_outputs(t)

    def _host_rows(self, t: int) -> ArrayDict:
        """Return step t as the environments wrote it, in host memory."""
        rows = self._transfer.host_rows
        return rows[t % len(rows)]

    def _acting(self) -> AbstractContextManager[None]:
        """Return the context in which the agent acts."""
        context: AbstractContextManager[None] = getattr(self.agent, "acting", nullcontext)()
        return context

    def _final_obs(self) -> dict[int, Any]:
        """Return the true final observations of the last step by the environment's column."""
        first, found = 0, {}
        for cage in self.cages:
            for number, observation in cage.final_obs.items():
                found[first + number] = observation
            first += cage.n_envs
        return found

    def _take_completed(self) -> list[TrajInfo]:
        return [traj for cage in self.cages for traj in cage.take_completed()]


def _transfer_for(samples: ArrayDict) -> Transfer:
    """Return the way that suits the memory of a sample tree."""
    storages = {path: leaf.storage for path, leaf in samples.walk()}
    if "device" not in storages.values():
        return InPlace(samples)
    elsewhere = [path for path, storage in storages.items() if storage != "device"]
    if elsewhere:
        raise ValueError(
            f"samples: {', '.join(elsewhere)} in other memory than the device's, expected all"
            ' leaves there or none; move the tree with samples.to("device")'
        )
    return Staging(samples)


def as_rows(observations: Sequence[Any], like: Any) -> Any:
    """Return observations as new rows with the dtype and shape that the sample tree has.

    Args:
        observations: k of them, from environments.
        like: rows of the tree's `observation`, [B, ...].

    Returns:
        NumPy arrays, or Arrays in device memory for a tree that a GPU works on; and trees of them.
    """
    rows = dict_map(empty_rows, like, len(observations))
    write_column(rows, observations)
    first = next(leaf for _, leaf in ArrayDict({"observation": like}).walk())
    if not is_on_gpu(first):
        return rows
    return dict_map(Array.from_numpy, rows, storage="device", force_32bit=False)


def _columns_of(cages: Sequence[Cage]) -> list[int | slice | None]:
    """Return for each cage its columns of the batch; None where they are all of them."""
    if len(cages) == 1:
        return [None if cages[0].n_envs > 1 else 0]
    columns: list[int | slice | None] = []
    first = 0
    for cage in cages:
        columns.append(first if cage.n_envs == 1 else slice(first, first + cage.n_envs))
        first += cage.n_envs
    return columns


def _part(place: Any, columns: int | slice | None) -> Any:
    return place if columns is None else place[columns]


def _check(cages: Sequence[Cage], samples: ArrayDict) -> None:
    expected = ("observation", "action", "reward", "terminated", "truncated", "env_info")
    missing = [name for name in expected if name not in samples]
    if missing:
        raise ValueError(
            f"samples: branches {missing} are missing; patterns.build_sample_tree makes them all"
        )
    n_envs, batch_B = sum(cage.n_envs for cage in cages), samples["reward"].batch_shape[1]
    if n_envs != batch_B:
        raise ValueError(f"samples: got B = {batch_B}, expected {n_envs}, the cages' environments")
    leaves = ArrayDict({"observation": samples["observation"]}).walk()
    for path, leaf in leaves:
        if leaf.padding < 1:
            raise ValueError(
                f"{path}: got padding 0, expected 1 or more: a batch ends with the observation"
                " after its last step"
            )

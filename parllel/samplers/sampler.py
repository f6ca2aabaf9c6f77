"""What all samplers share: the agent that they ask, and one time step of all environments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

from parllel.cages import Cage, Command, TrajInfo
from parllel.cages.columns import write_column
from parllel.tree import ArrayDict, dict_map
from parllel.tree.leaves import empty_rows


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


class _Places(NamedTuple):
    """Where one time step is read and written: views that are found once, not at every step."""

    observation: Any
    action: Any
    agent_info: Any  # None where the tree has no such branch
    commands: list[Command]  # one for each cage


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
        self._places: list[_Places] = []

    def reset(self) -> None:
        """Reset all environments; the next batch begins with their first observations."""
        self.samples.reset()
        first = self.samples["observation"][self.batch_T]  # rotate carries it to row 0
        for cage, columns in zip(self.cages, self._columns, strict=True):
            cage.reset_async(out_obs=_part(first, columns))
        for cage in self.cages:
            cage.await_step()
            cage.take_completed()

    def _rotate(self) -> None:
        """Move the tree's window on, and find the places that its steps are written to."""
        self.samples.rotate()
        if self._is_moving or not self._places:
            self._places = [self._find_places(t) for t in range(self.batch_T)]

    def _find_places(self, t: int) -> _Places:
        samples = self.samples
        outputs = {
            "out_obs": samples["observation"][t + 1],
            "out_reward": samples["reward"][t],
            "out_terminated": samples["terminated"][t],
            "out_truncated": samples["truncated"][t],
            "out_info": samples["env_info"][t],
        }
        action = samples["action"][t]
        return _Places(
            observation=samples["observation"][t],
            action=action,
            agent_info=samples["agent_info"][t] if self._has_agent_info else None,
            commands=[
                cage.bind_step(
                    _part(action, columns),
                    **{name: _part(place, columns) for name, place in outputs.items()},
                )
                for cage, columns in zip(self.cages, self._columns, strict=True)
            ],
        )

    def _step(self, t: int, *, deterministic: bool = False) -> None:
        """Act on observation t; write action t, its outcome, and observation t + 1."""
        places = self._places[t]
        action, agent_info = self.agent.step(places.observation, deterministic=deterministic)
        places.action[...] = action
        if places.agent_info is not None:
            places.agent_info[...] = agent_info
        for cage, command in zip(self.cages, places.commands, strict=True):
            cage.start(command)
        for cage in self.cages:
            cage.await_step()

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


def as_rows(observations: Sequence[Any], like: Any) -> Any:
    """Return observations as NumPy rows with the dtype and shape that the sample tree has.

    Args:
        observations: k of them, from environments.
        like: rows of the tree's `observation`, [B, ...].
    """
    rows = dict_map(empty_rows, like, len(observations))
    write_column(rows, observations)
    return rows


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

"""What all samplers share: the agent that they ask, and one time step of all environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from parllel.arrays import Array
from parllel.arrays.interop import side_of
from parllel.cages import Cage, TrajInfo, write_column
from parllel.samplers.group import Group
from parllel.tree import ArrayDict, dict_map, leaves_of, path_text
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


class Recorder(Protocol):
    """What hears of the batches that a sampler writes, as `replays.ReplayBuffer`."""

    samples: ArrayDict

    def restart(self) -> None:
        """All environments are about to be reset: move the tree's window to where that goes."""

    def begin_batch(self) -> None:
        """The window is about to be rotated, and a batch written."""

    def add_final_obs(self, t: int, final_obs: Mapping[int, Any]) -> None:
        """Episodes ended with step t: their true final observations, by column."""

    def end_batch(self) -> None:
        """The batch was written."""


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

    _max_steps_decorrelate = 0

    def __init__(self, cages: Sequence[Cage], agent: Agent, samples: ArrayDict) -> None:
        _check(cages, samples)
        self.cages = list(cages)
        self.agent = agent
        self.samples = samples
        self.batch_T, self.batch_B = samples["reward"].batch_shape[:2]
        self._is_closed = False
        self._groups = [
            Group(part, samples, columns) for part, columns in self._split_cages(self.cages)
        ]

    def _split_cages(self, cages: Sequence[Cage]) -> list[tuple[Sequence[Cage], range]]:
        """Return the groups that step together, with their columns: here one of all cages."""
        return [(cages, range(self.batch_B))]

    def reset(self) -> None:
        """Reset all environments; the next batch begins with their first observations."""
        self._check_open()
        self._settle()
        self._rewind()
        for group in self._groups:
            group.start_reset(self._max_steps_decorrelate)
        for group in self._groups:
            group.finish_reset()

    def _rewind(self) -> None:
        """Move the tree's window to where the first observations go."""
        self.samples.reset()

    def close(self) -> None:
        """Give back what the sampler allocated: slots in pinned memory, for a tree on the device.

        Cages and the tree stay open; the sampler can't be used any more. Called again, it does
        nothing.
        """
        self._is_closed = True
        for group in self._groups:
            group.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the sampler is closed; make a new one")

    def _rotate(self) -> None:
        """Move the tree's window on, and find the rows of its steps."""
        self._check_open()
        self._settle()
        self.samples.rotate()
        for group in self._groups:
            group.move()

    def _settle(self) -> None:
        for group in self._groups:
            group.transfer.settle()

    def _acting(self) -> AbstractContextManager[None]:
        """Return the context in which the agent acts."""
        context: AbstractContextManager[None] = getattr(self.agent, "acting", nullcontext)()
        return context

    def _take_completed(self) -> list[TrajInfo]:
        return [traj for group in self._groups for traj in group.take_completed()]


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
    (_, first), *_ = leaves_of(like)
    if side_of(first) == "host":
        return rows
    return dict_map(Array.from_numpy, rows, storage="device", force_32bit=False)


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
    for path, leaf in leaves_of(samples["observation"]):
        if leaf.padding < 1:
            text = path_text(("observation", *path))
            raise ValueError(
                f"{text}: got padding 0, expected 1 or more: a batch ends with the observation"
                " after its last step"
            )

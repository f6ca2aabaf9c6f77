"""Sampler: the base of all samplers; not the loop over the steps, which each of them defines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from parllel.cages import Cage, Seed, TrajInfo, declaration, spawn_seeds
from parllel.samplers.action_check import ActionCheck
from parllel.samplers.agent import Actor
from parllel.samplers.agent_rows import check_agent_rows
from parllel.samplers.device_group import group_of
from parllel.samplers.group import Group
from parllel.samplers.transfer import batch_shape_of
from parllel.tree import ArrayDict, TreePath, leaves_of, path_text


class Sampler:
    """Step all environments of some cages with an agent, and write the sample tree in place.

    The tree has the branches `observation` (with padding of at least 1), `action`, `reward`,
    `terminated`, `truncated` and `env_info`, of leading dimensions (T, B): T time steps of B
    environments. The columns of the tree are the environments of all cages in their order. With a
    branch `agent_info`, the agent's second result is written there. With a branch `final_value`
    too, values for learning are completed: see `BasicSampler`.

    This class resets, steps and closes; subclasses define the loop over the steps.

    Args:
        cages: the environments. The caller closes them.
        agent: the object that chooses the actions.
        samples: the tree to write.
        check: whether to compare each action with the environments' action space, NaN and the
            bounds of a Box included. It copies actions on a device to the host. Otherwise only the
            first action is looked at, for its shape, its dtype, NaN and integers out of range.

    Raises:
        TypeError: samples is no tree of Arrays, the agent has no `step`, or `action` is of another
            kind than the environments' action space.
        ValueError: a branch is missing, `observation` has no padding, B is not the number of
            environments, `action` has another shape than their space, or these differ.

    Example:
        >>> import numpy as np
        >>> from parllel.patterns import build_cages, build_example, build_sample_tree
        >>> from parllel.testing.toy_envs import Clock  # it shows the episode and the step
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, Zeros(), batch_shape=(4, 2))
        >>> cages = build_cages(Clock, n_envs=2, n_workers="serial")
        >>> sampler = Sampler(cages, Zeros(), samples)
        >>> sampler.batch_T, sampler.batch_B
        (4, 2)
        >>> sampler.reset()
        >>> samples["observation"][4].to_ndarray()  # the row that the next batch begins with
        array([[0., 0.],
               [0., 0.]], dtype=float32)
    """

    _max_steps_decorrelate = 0
    _takes_device_results = False  # whether it completes what a `DeviceGroup` leaves for the end
    _builder = "patterns.build_sample_tree"  # of a tree that fits; named in errors

    def __init__(
        self, cages: Sequence[Cage], agent: Actor, samples: ArrayDict, *, check: bool = False
    ) -> None:
        _check(cages, samples, self._builder)
        if not callable(getattr(agent, "step", None)):
            raise TypeError(
                f"agent: {type(agent).__name__} has no method step, expected an Actor: its step"
                " returns actions and a mapping"
            )
        self.cages = list(cages)
        self.agent = agent
        self.samples = samples
        self.batch_T, self.batch_B = batch_shape_of(samples)[:2]
        self._is_closed = False
        self._mark = object()  # of the cages that go on where this sampler left them
        bind_actions = getattr(agent, "bind_actions", None)
        if bind_actions is not None:
            bind_actions(cages[0].action_space)
        self._left_out: set[TreePath] = set()  # entries of infos that were told of
        parts = self._split_cages(self.cages)
        self._groups: list[Group] = [
            group_of(
                part,
                samples,
                columns,
                takes_device_results=self._takes_device_results,
                check=check,
                others_go_on=any(
                    cage.goes_on for other, _ in parts if other is not part for cage in other
                ),
            )
            for part, columns in parts
        ]

    def _split_cages(self, cages: Sequence[Cage]) -> list[tuple[Sequence[Cage], range]]:
        """Return the groups of cages that step together, with their columns: here one of all."""
        return [(cages, range(self.batch_B))]

    def reset(self) -> None:
        """Reset all environments; the next batch begins with their first observations."""
        self._check_open()
        self._settle()
        self._rewind()
        self._mark_cages()
        for group in self._groups:
            group.start_reset(self._max_steps_decorrelate)
        for group in self._groups:
            group.finish_reset()

    def _mark_cages(self) -> None:
        for cage in self.cages:
            cage.stepped_by = self._mark

    def _check_cages(self) -> None:
        """Refuse to go on with environments that another sampler has reset since."""
        taken = [number for number, cage in enumerate(self.cages) if cage.stepped_by != self._mark]
        if taken:
            raise RuntimeError(
                f"cages: another sampler has reset the environments of cages {taken}, so that they"
                " are not where the last batch ended; give evaluation cages of its own, or call"
                " reset() first"
            )

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed all environments, as `build_cages` with this seed does.

        Call `reset` next, or collect a batch, which begins with the reset then.

        Args:
            seed: one for all environments, or a SeedSequence for each.

        Raises:
            NotImplementedError: an environment takes no seed after it was made (`VectorCage`).
            TypeError, ValueError: as for `build_cages`.
        """
        seeds = spawn_seeds(seed, self.batch_B)
        for cage in self.cages:
            own, seeds = seeds[: cage.n_envs], seeds[cage.n_envs :]
            cage.reseed(own)

    def check_state(self) -> None:
        """Refuse environments whose states can't be saved (`Cage.check_state`).

        Raises:
            NotImplementedError, TypeError: as for `Cage.check_state`.
        """
        for cage in self.cages:
            cage.check_state()

    def _rewind(self) -> None:
        """Move the tree's window to where the first observations go."""
        self.samples.reset()

    def close(self) -> None:
        """Give back what the sampler allocated: pinned memory, for a tree in device memory.

        Cages and the tree stay open; the sampler can't be used any more. A second call does
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

    def _tell_left_out(self) -> None:
        """Warn of the numbers in infos that appeared later than the tree was made."""
        paths = {path for cage in self.cages for path in cage.take_left_out()} - self._left_out
        if paths:
            self._left_out |= paths
            names = ", ".join(repr(path_text(path)) for path in sorted(paths))
            warnings.warn(
                f"env_info: the tree has no branch for {names} of the environments' infos, so that"
                " they are not stored; where they are wanted, declare them with values like those"
                f" that are to come, as in {declaration(sorted(paths), 0.0)}",
                stacklevel=3,
            )

    def _take_completed(self) -> list[TrajInfo]:
        return [traj for group in self._groups for traj in group.take_completed()]


def _check(cages: Sequence[Cage], samples: ArrayDict, builder: str) -> None:
    if not isinstance(samples, ArrayDict):
        raise TypeError(
            f"samples: got a {type(samples).__name__}, expected an ArrayDict; {builder} makes it"
        )
    expected = ("observation", "action", "reward", "terminated", "truncated", "env_info")
    missing = [name for name in expected if name not in samples]
    if missing:
        raise ValueError(f"samples: branches {missing} are missing; {builder} makes them all")
    n_envs, batch_shape = sum(cage.n_envs for cage in cages), batch_shape_of(samples)
    if len(batch_shape) < 2:
        raise ValueError(
            f"samples: reward has leading dimensions {batch_shape}, expected (T, B): T steps of"
            f" {n_envs} environments; {builder} makes such a tree"
        )
    if n_envs != batch_shape[1]:
        raise ValueError(
            f"samples: got B = {batch_shape[1]}, expected {n_envs}, the cages' environments;"
            f" {builder} makes such a tree"
        )
    for cage in cages:
        if cage.action_space != cages[0].action_space:
            raise ValueError(
                f"cages: got the action spaces {cages[0].action_space} and {cage.action_space},"
                " expected one for all cages of a sampler"
            )
        if cage.agents != cages[0].agents:
            raise ValueError(
                f"cages: got the agents {cages[0].agents} and {cage.agents}, expected the same for"
                " all cages of a sampler"
            )
    if cages[0].agents is not None:
        check_agent_rows(cages[0].agents, samples, builder)
    ActionCheck(cages[0].action_space, n_envs).check_rows(samples["action"])
    for path, leaf in leaves_of(samples["observation"]):
        if leaf.padding < 1:
            text = path_text(("observation", *path))
            raise ValueError(
                f"{text}: got padding 0, expected 1 or more: a batch ends with the observation"
                " after its last step"
            )

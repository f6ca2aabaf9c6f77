"""BasicSampler: collects batches of T steps; episodes go on from batch to batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parllel.arrays import Array
from parllel.cages import Cage, Seed, TrajInfo
from parllel.samplers.agent import Actor, RecurrentActor, check_rows
from parllel.samplers.ends import Ends
from parllel.samplers.group import Group
from parllel.samplers.new_rows import as_rows
from parllel.samplers.observed import Observed
from parllel.samplers.recorder import Recorder
from parllel.samplers.sampler import Sampler
from parllel.samplers.trace import Trace, TracedAgent, traced
from parllel.tree import ArrayDict, Rows, leaves_of


class BasicSampler(Sampler):
    """Collect batches of T steps from B environments.

    Every row is a transition to learn from. Where cages have other rows (`Cage.invalid`), a branch
    `valid`, bool [T, B], tells them apart. The sampler adds that branch to a tree that lacks it, in
    memory of its own, unless a replay buffer is given: that leaves these rows out by itself.

    If the tree has a branch `final_value`, values for learning are completed. The agent is asked
    for values once for each step at which an episode was truncated, and once for each batch:

    - `final_value[t, b]`: value of the true final observation, where the episode of environment b
      was truncated (and not terminated) at step t. Where that row is no transition, it is the
      agent's value of observation t: nothing has happened. Other rows keep what an earlier batch
      left there. Of several agents, the rows of all are written where one was truncated: where
      the others go on, with the value of their observation t + 1.
    - `agent_info.value[T, b]`: value of the observation after the batch (row `last + 1`).

    Args:
        cages, agent, samples: as for `Sampler`.
        replay: a replay buffer over the same tree, which is told of each batch; none by default.
            It is an attribute of the sampler, too.
        max_steps_decorrelate: the most random steps that each environment takes after a reset of
            all. Their number differs, so that episodes do not begin and end together.
        check: as for `Sampler`.

    Attributes:
        began_with_reset: whether all environments were reset for the last batch: no episode of the
            batch before goes on in it.

    Raises:
        TypeError: as for `Sampler`; or the agent keeps a state, which only a `RecurrentSampler`
            carries; or there is `final_value`, but the agent has no method `value`.
        ValueError: as for `Sampler`; or the tree has a branch `initial_rnn_state`, as for a
            `RecurrentSampler`; or there is `final_value`, but no `agent_info.value` with a
            row of padding; or max_steps_decorrelate is negative, or the replay has another tree.

    Example:
        >>> import numpy as np
        >>> from parllel.patterns import build_cages, build_example, build_sample_tree
        >>> from parllel.testing.toy_envs import Clock  # pays the number of the step, 3 at most
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, Zeros(), batch_shape=(4, 2))
        >>> cages = build_cages(Clock, n_envs=2, n_workers="serial")
        >>> batch, episodes = BasicSampler(cages, Zeros(), samples).collect_batch()
        >>> batch["reward"].to_ndarray()[:, 0]
        array([1., 2., 3., 1.], dtype=float32)
        >>> [episode.length for episode in episodes]
        [3, 3]
    """

    _carries_state = False
    _takes_device_results = True

    def __init__(
        self,
        cages: Sequence[Cage],
        agent: Actor,
        samples: ArrayDict,
        *,
        replay: Recorder | None = None,
        max_steps_decorrelate: int = 0,
        check: bool = False,
    ) -> None:
        if not self._carries_state:
            self._refuse_state(agent, samples)
        if isinstance(samples, ArrayDict):
            _add_valid(samples, cages, has_replay=replay is not None)
        super().__init__(cages, agent, samples, check=check)
        if max_steps_decorrelate < 0:
            raise ValueError(
                f"max_steps_decorrelate: got {max_steps_decorrelate}, expected 0 or more"
            )
        self._max_steps_decorrelate = max_steps_decorrelate
        if replay is not None and replay.samples is not samples:
            raise ValueError("replay: its tree is another one, expected the sampler's own")
        self.replay = replay
        self._completes_values = "final_value" in samples
        if self._completes_values:
            _check_value(samples, agent)
        self._reads_final_obs = self._completes_values or replay is not None
        self._gives_terminated = getattr(replay, "keeps_terminated", False)
        self._goes_on = False
        self.began_with_reset = self._is_reset = False
        self._observed: Observed | None = None  # of the batch under way
        # By step, the columns that went on when an agent of theirs was truncated.
        self._cut_lives: dict[int, list[int]] = {}

    def _refuse_state(self, agent: Actor, samples: ArrayDict) -> None:
        name = type(self).__name__
        if isinstance(agent, RecurrentActor):
            raise TypeError(
                f"agent: {type(agent).__name__} keeps a state for each environment, which"
                f" {name} doesn't carry from step to step; use RecurrentSampler"
            )
        if "initial_rnn_state" in samples:
            raise ValueError(
                f"samples: the tree is one for an agent with a state, and {name} can't fill"
                " initial_rnn_state; build it with the agent that acts, or use RecurrentSampler"
            )

    def reset(self) -> None:
        """Reset all environments; the next batch begins with their first observations.

        A replay keeps what it holds, and counts the episodes that are cut off as truncated.
        """
        self._goes_on = False
        super().reset()
        self._goes_on = self._is_reset = True

    def reseed(self, seed: Seed) -> None:
        """Have the next reset seed all environments; the next batch begins with that reset."""
        self._goes_on = False
        super().reseed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all environments, to go on from between two batches.

        The next batch also begins with a row of the sample tree, which is not part of this: save
        the tree too, or the replay buffer over it (`runners.Checkpoints` does).

        Raises:
            NotImplementedError, TypeError: as for `Cage.get_state`.
            RuntimeError: the next batch begins with a reset.
        """
        self._check_open()
        if not self._goes_on:
            raise RuntimeError(
                "the next batch begins with a reset: no environment has a state to go on from; save"
                " after collect_batch, and before reseed"
            )
        return {"envs": [state for cage in self.cages for state in cage.get_state()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next batch go on from a state that `state_dict` returned, without a reset.

        The environments may be in other cages than they were then. Load the sample tree before.

        Raises:
            KeyError, TypeError, ValueError: the state is not that of such a sampler.
        """
        self._check_open()
        self._settle()
        self._goes_on, states = False, list(state["envs"])
        if len(states) != self.batch_B:
            raise ValueError(f"state: got {len(states)} environments, expected {self.batch_B}")
        for cage in self.cages:
            own, states = states[: cage.n_envs], states[cage.n_envs :]
            cage.set_state(own)
        for group in self._groups:
            group.transfer.take_up()
        self._mark_cages()
        self._goes_on, self._is_reset = True, False

    def _rewind(self) -> None:
        if self.replay is None:
            super()._rewind()
        else:
            self.replay.restart()

    def collect_batch(self) -> tuple[ArrayDict, list[TrajInfo]]:
        """Collect T steps.

        The environments are reset first if they never were, or if an error or Ctrl-C cut the last
        batch short: they are not where it began any more.

        Returns:
            The sample tree, with its window on the new batch, and the episodes that ended.

        Raises:
            RuntimeError: another sampler has reset the environments since the last batch.
            ValueError: an agent that observes refuses the batch; the next one begins with a reset.
        """
        if self._goes_on:
            self._check_cages()
        else:
            self.reset()
        self.began_with_reset, self._is_reset = self._is_reset, False
        self._goes_on = False
        agent: Any = self.agent  # it may have more than an Actor needs
        observes = getattr(agent, "observes", False)
        shape, agents = (self.batch_T, self.batch_B), self.cages[0].agents
        self._observed = Observed(*shape, agents) if observes else None
        if observes:
            agent.begin_batch()
        if self.replay is not None:
            self.replay.begin_batch()
        self._rotate()
        self._cut_lives = {}
        for group in self._groups:
            group.keeps_final = self._reads_final_obs or observes
        with self._acting():
            self._collect_steps()
            self._complete_batch()
        if self._observed is not None:
            rows, observed = self.samples["observation"], self._observed
            agent.observe(rows, valid=observed.valid, final_obs=observed.final_rows(rows[0]))
        if self.replay is not None:
            self.replay.end_batch()
        self._goes_on = True
        self._tell_left_out()
        return self.samples, self._take_completed()

    def _complete_batch(self) -> None:
        """Write the values that are known after the last step only."""
        all_ends = self._gives_terminated or self._observed is not None
        for group in self._groups:
            ends = group.end_batch(all_ends=all_ends)
            if ends is not None:
                self._complete_ends(ends)
        if self._completes_values:
            last, values = self.samples["observation"][self.batch_T], self.samples["agent_info"]
            row, value = values["value"][self.batch_T], self._value(last)
            check_rows("value", value, row)
            row[...] = value
            for t, columns in self._cut_lives.items():
                self.samples["final_value"][t, columns] = values["value"][t + 1, columns]

    def trace(self, path: str | Path) -> tuple[ArrayDict, list[TrajInfo]]:
        """Collect a batch as `collect_batch` does, and write where its time went.

        The trace has a lane for the environments of each cage, one for the agent, one for copies
        and one for waits. It shows the host's time: queueing a copy or a launch is seen, the work
        of the GPU behind it is not.

        Args:
            path: the file to write in Chrome's trace format, such as `batch.json`: open it in
                Perfetto or chrome://tracing. A Gantt chart is written beside it, `batch.png`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; parllel[train] brings it.
        """
        batch, completed, trace = self.collect_traced()
        trace.write_json(path)
        trace.write_png(Path(path).with_suffix(".png"))
        return batch, completed

    def collect_traced(self) -> tuple[ArrayDict, list[TrajInfo], Trace]:
        """Collect a batch as `collect_batch` does; return where its time went, too."""
        if not self._goes_on:
            self.reset()
        agent = self.agent
        with traced(self._groups) as trace:
            self.agent = TracedAgent(agent, trace)
            try:
                batch, completed = self.collect_batch()
            finally:
                self.agent = agent
        return batch, completed, trace

    def _collect_steps(self) -> None:
        for t in range(self.batch_T):
            for group in self._groups:
                group.act(self.agent, t)
            for group in self._groups:
                self._finish(group, t)

    def _finish(self, group: Group, t: int) -> None:
        """Wait for a group's step t; complete its values, and tell the replay what ended."""
        group.finish(t)
        if self._observed is not None:
            self._observed.add(t, group)
        if self._completes_values and (columns := group.cut_lives(t)):
            self._cut_lives.setdefault(t, []).extend(columns)
        self._complete_step(group, t)

    def _complete_step(self, group: Group, t: int) -> None:
        if self._completes_values and group.gives_invalid_rows and (invalid := group.invalid()):
            values = self.samples["agent_info"]["value"]
            self.samples["final_value"][t, invalid] = values[t, invalid]
        if not self._reads_final_obs:
            return
        cut = group.cut_obs(t)
        if self._completes_values and cut:
            self._value_final_obs(t, cut)
        kept = group.final_obs() if self._gives_terminated else cut
        if self.replay is not None and kept:
            self.replay.add_final_obs(t, kept)

    def _value_final_obs(self, t: int, final_obs: dict[int, object]) -> None:
        columns = list(final_obs)
        rows = as_rows([final_obs[column] for column in columns], self.samples["observation"][t])
        value = self._value(rows, columns)
        check_rows("value", value, self.samples["final_value"][t, columns])
        self.samples["final_value"][t, columns] = value

    def _complete_ends(self, ends: Ends) -> None:
        """Write the values of truncated ends that no step has told of; tell the replay of ends."""
        if self._completes_values and len(cut := ends.cut()):
            value = self._value(cut.rows(), cut.columns.tolist())
            target = self.samples["final_value"]
            check_rows("value", value, target[cut.steps, cut.columns])
            cut.write(value, out=target)
        if self.replay is None and self._observed is None:
            return
        last = ends.rows().to_ndarray()  # once for the batch
        if self._observed is not None:
            self._observed.add_final(last[row] for row in range(len(ends)))
        if self.replay is not None:
            kept = np.flatnonzero(ends.is_cut | self._gives_terminated)
            for t in np.unique(ends.steps[kept]).tolist():
                of_step = kept[ends.steps[kept] == t]
                found = {int(ends.columns[row]): last[row] for row in of_step}
                self.replay.add_final_obs(t, found)

    def _value(self, observation: Rows, columns: Sequence[int] | None = None) -> object:
        """Return the agent's values of rows of observations.

        Args:
            observation: rows [n, ...].
            columns: the column of each row in the tree; all columns by default.
        """
        agent: Any = self.agent  # an Agent, which was checked
        return agent.value(observation)


def _add_valid(samples: ArrayDict, cages: Sequence[Cage], *, has_replay: bool) -> None:
    """Add a branch `valid` where rows may be no transitions, and the tree has none to say so."""
    if "valid" in samples:
        return
    flag = samples.get("terminated")
    come_and_go = any(cage.agents is not None and cage.agents.has_flags for cage in cages)
    if come_and_go and has_replay:
        raise ValueError(
            "samples: there is no valid, and agents come and go; patterns.build_sample_tree makes"
            " it, before the replay is made"
        )
    is_needed = come_and_go or (not has_replay and any(cage.gives_invalid_rows for cage in cages))
    if is_needed and isinstance(flag, Array | ArrayDict):
        samples["valid"] = flag.new_array(dtype=bool)
        for (_, leaf), (_, own) in zip(leaves_of(samples["valid"]), leaves_of(flag), strict=True):
            leaf.move_window(own.window_begin)


def _check_value(samples: ArrayDict, agent: Actor) -> None:
    if not callable(getattr(agent, "value", None)):
        raise TypeError(
            f"agent: {type(agent).__name__} has no method value, which gives the values of final"
            " observations; define it, or build the tree with an agent that gives no value"
        )
    value = samples.get("agent_info", {}).get("value")
    padding = None if value is None else min(leaf.padding for _, leaf in leaves_of(value))
    if padding is None or padding < 1:
        found = "no such branch" if padding is None else f"padding {padding}"
        raise ValueError(
            f"agent_info.value: got {found}, expected padding of 1 or more, as the tree has"
            " final_value: the value after the last step is kept behind the batch"
        )

"""RingRecord: the steps that are in a sample tree's ring, as its sampler tells."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

import numpy as np

from parllel import cuda
from parllel.arrays import Array
from parllel.arrays.interop import side_of
from parllel.kernels.transitions import NOT_GIVEN, REFUSED
from parllel.replays.agent_ends import ENDS, AgentEnds, as_flags, ends_of_rows
from parllel.replays.appended_step import AppendedStep, check_final_obs, fitted, follows, value_at
from parllel.replays.final_obs import FinalObs, spec_of
from parllel.replays.ring_checks import check_tree
from parllel.storages import Side, storage_for
from parllel.tree import ArrayDict, dict_map, leaves_of, path_text
from parllel.tree.agent_forms import N_BATCH, parts_of
from parllel.tree.leaves import as_ndarray
from parllel.tree.not_finite import refuse_not_finite

# Of the table's usual size: episodes may be that short on average.
_STEPS_PER_FINAL_OBS = 16
_STEPS_PER_LARGE_ONE = 80  # frames: 88 bytes for each transition
# Of the largest table, where observations are large: it takes a quarter of the ring's bytes then.
_STEPS_AT_MOST = 4
_SMALL_NBYTES = 1024
_MOST_SLOTS = 2**31 - 1  # their numbers are int32


class Watcher(Protocol):
    """A drawer of minibatches in another thread, which the buffer waits for before it changes."""

    def settle(self) -> None:
        """Wait until no minibatch is being drawn, because the buffer is about to change."""

    def discard(self) -> None:
        """Drop the minibatches that were drawn ahead: the buffer was saved, or loaded."""

    def close(self) -> None:
        """Stop drawing: the buffer is about to free its memory."""


class RingRecord:
    """The ring of a sample tree, written in batches, with the final observations beside it.

    Steps have numbers that count from the first one ever written, and lie in row
    `number % full_size`. The oldest ones are overwritten.

    Args:
        samples: the sample tree of a replay buffer.
        n_steps: number of steps of what is drawn: so many steps before a batch depend on it.
        n_final_obs: number of rows of the table of final observations. By default there is one
            for each 16 steps of the ring, or for each 80 where observations have more than 1 KiB,
            and the table grows up to one for each step, or for each 4.

    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> record = RingRecord(samples, n_steps=1, n_final_obs=None)
    >>> record.restart()
    >>> for _ in range(2):
    ...     record.begin_batch()
    ...     samples.rotate()  # and then the batch is written
    ...     record.end_batch()
    ...     print(len(record))
    2
    4
    """

    # Branches of the sample tree that belong to a batch, and have no row for each step.
    _not_steps: ClassVar[tuple[str, ...]] = ()
    _n_steps_name: ClassVar[str] = "n_steps"  # in errors
    _takes_agents: ClassVar[bool] = False  # whether the tree may have several agents
    _takes_stacks_of_agents: ClassVar[bool] = False  # and stacks of frames behind an axis of them

    # Whether final observations of episodes that terminated are needed, too: a sampler asks. Steps
    # that lack theirs can't be sampled then.
    keeps_terminated: bool = False

    def __init__(self, samples: ArrayDict, *, n_steps: int, n_final_obs: int | None) -> None:
        self._steps = ArrayDict(
            {name: branch for name, branch in samples.items() if name not in self._not_steps}
        )
        check_tree(
            self._steps,
            takes_agents=self._takes_agents,
            takes_stacks_of_agents=self._takes_stacks_of_agents,
        )
        self._reward: Array = next(iter(parts_of(samples["reward"]).values()))
        self.samples = samples
        # Steps before one that are a part of its samples, and so no other step's alone.
        self._n_older = max(leaf.n_older_steps for _, leaf in self._steps.walk())
        self.batch_T, self.batch_B = self._reward.shape[:N_BATCH]
        self.full_size: int = self._reward.full_size
        self._check_numbers(n_steps, n_final_obs)
        self.n_steps = operator.index(n_steps)
        self._is_on_gpu = any(side_of(leaf) == "gpu" for _, leaf in self._steps.walk())
        self.side: Side = "gpu" if self._is_on_gpu else "host"
        self.storage = storage_for(self.side)  # of minibatches and the table
        # The ends of environments, of those of their agents; None where there is one agent.
        self.agents = AgentEnds.of(samples, self.storage, self.n_steps)
        most_slots = n_final_obs or most_final_obs(samples)
        self.final_obs = self._make_table(n_final_obs, most_slots=most_slots)
        self.watchers: WeakSet[Watcher] = WeakSet()
        self._first = 0  # number of the oldest step that is there
        self._stop = 0  # number of the step that will be written next
        self._is_writing = False
        self._is_closed = False
        self._n_appended: int | None = None  # steps of the batch; None: reset first

    @classmethod
    def make_specs(cls, samples: ArrayDict, n_final_obs: int | None = None) -> ArrayDict:
        """Return the specs of the memory that a buffer allocates beside a tree.

        It is of the tree's kind. In host memory, 12 bytes for each final observation come on top.
        The table of final observations may grow later, if no number is given for it. Where windows
        or goals are drawn, there is a bit for each step, `breaks`.

        Args:
            samples: the sample tree, with Arrays or with specs as leaves.
            n_final_obs: as for the constructor.
        """
        n_places, n_columns, is_small = _size_up(samples)
        steps = _STEPS_PER_FINAL_OBS if is_small else _STEPS_PER_LARGE_ONE
        usual = n_places // steps + n_columns
        specs = FinalObs.make_specs(samples["observation"], n_final_obs or usual)
        return specs.with_branches(AgentEnds.make_specs(samples))

    def _make_table(self, n_slots: int | None, *, most_slots: int) -> FinalObs:
        specs = RingRecord.make_specs(self.samples, n_slots)
        observation = self.samples["observation"]
        missing = REFUSED if self.keeps_terminated else NOT_GIVEN
        return FinalObs(specs, self.storage, observation, most_slots=most_slots, missing=missing)

    def __len__(self) -> int:
        """Return the number of steps in the ring, of all environments together."""
        n_steps: int = max(0, self._stop - self._first) * self.batch_B
        return n_steps

    @property
    def steps(self) -> range:
        """The numbers of the steps that are there, those of each environment.

        Raises:
            RuntimeError: a batch is being written, or the buffer is closed.
        """
        self._settle()
        if self._is_writing:
            raise RuntimeError("replay: a batch is being written; read steps after end_batch")
        return range(self._first, self._stop)

    def restart(self) -> None:
        """Prepare the tree for a reset of all environments, which will write first observations.

        The steps in the ring stay. Episodes that the reset cuts off count as truncated at their
        last step; the observations after it are copied to the host, and from there to the table.
        With stacked frames, the last `stack - 1` steps are lost before, because the reset may
        write their frames. So is one more step where the frames of an agent begin anew behind it
        while the environment's episode goes on.
        """
        self._begin_change("restart")
        self._n_appended = None
        if self._stop > self._first:
            self._cut_episodes()
        for _, leaf in self._steps.walk():
            leaf.move_window((self._stop - self.batch_T) % self.full_size)
        self._is_writing = False

    def begin_batch(self) -> None:
        """Forget the steps that the next batch overwrites. Call it before the rotation.

        Raises:
            RuntimeError: steps are being appended, so that the ring is no sampler's.
        """
        if self._n_appended is not None:
            raise RuntimeError(
                "replay: steps are being appended (reset, append), and a sampler begins a batch:"
                " reset the sampler first, or give each its own buffer"
            )
        self._begin_change("begin_batch")
        self._forget(self._oldest_after(self._stop + self.batch_T))
        self.final_obs.begin(self._stop, self.batch_T)
        self._is_writing = True

    def reset(self, observation: object) -> None:
        """Begin to append steps: all environments were reset, and gave these first observations.

        Steps that are in the ring stay; episodes under way count as truncated (`restart`). Steps of
        a batch that is not whole yet, fewer than T, are dropped.

        Args:
            observation: rows [B, ...], a tree where the tree's `observation` is one. Stacks of
                frames may come from the middle of an episode.

        Raises:
            ValueError: it does not fit the tree, or is not finite. Nothing was changed.
        """
        first = fitted(("observation",), self.samples["observation"], observation)
        self.restart()
        for path, leaf in leaves_of(self.samples["observation"]):
            # Whole stacks, which may come from the middle of an episode.
            leaf.write_history(self.batch_T, value_at(first, path))
        self._n_appended = 0

    def append(
        self,
        next_observation: object,
        *,
        final_obs: Mapping[int, object] | None = None,
        **branches: object,
    ) -> None:
        """Append one step of all environments, in a loop of one's own or from data on a disk.

        Call `reset` before the first step, and after each reset of all environments. The
        observations that were acted on are those of the call before. After T steps, those of a
        batch, these can be sampled: make the tree with T = 1 where that should be at once. Flags on
        a device are copied to the host, which waits for them.

        Args:
            next_observation: rows [B, ...] to act on next: where an episode ended, the first
                observation of the next one.
            final_obs: the true last observation of each episode that was truncated, by the number
                of its environment. Those that terminated need none, except where the buffer has
                `keeps_terminated`.
            branches: rows [B, ...] of all other branches of the tree: `action`, `reward`,
                `terminated`, `truncated` and so on.

        Raises:
            RuntimeError: `reset` was not called before, or an error cut a batch short.
            TypeError: a branch is missing, or is none of the tree.
            ValueError: a value has another shape than its rows, would lose something, or is not
                finite; `final_obs` are not those of ended episodes; or a stack of frames, one
                of `final_obs` too, does not follow on the one that was acted on. Nothing was
                changed.
        """
        if self._n_appended is None:
            raise RuntimeError(
                "append: there is no observation that was acted on: call reset before, and again"
                " after a sampler has written, or a batch was cut short"
            )
        self._begin_change("append")
        t = self._n_appended % self.batch_T
        acted_on = t or self.batch_T  # the window has not moved yet
        step = AppendedStep.of(
            self._steps,
            acted_on,
            next_observation,
            branches,
            final_obs or {},
            needs_terminated=self.keeps_terminated,
        )
        self._n_appended = None
        if t == 0:
            self.begin_batch()
            self.samples.rotate()
        for name, rows in step.rows.items():
            _write(self.samples[name], t, rows)
        _write(self.samples["observation"], t + 1, step.observation)
        if step.final_obs:
            self._add_final_obs(t, step.final_obs)
        if t == self.batch_T - 1:
            self.end_batch()
        self._n_appended = t + 1

    def add_final_obs(self, t: int, final_obs: Mapping[int, Any]) -> None:
        """Keep the true final observations of episodes that were cut off at step t of the batch.

        An episode that terminated needs none, except where the buffer has `keeps_terminated`: its
        `n_step_discount` is 0, so that no value of what follows counts. Given all the same, the
        observation is kept, too.

        Args:
            t: step of the batch, from 0.
            final_obs: the final observations by the columns of their environments, as
                `Cage.final_obs` has them.

        Raises:
            IndexError: the batch has no such step or column.
            RuntimeError: no batch was begun.
            ValueError: a final observation is NaN or infinite; or, in host memory, a stack of
                frames does not go on with the one that was acted on, at a step whose final
                observation is needed.
        """
        self._begin_change("add_final_obs")
        if not self._is_writing:
            raise RuntimeError("replay: no batch is being written; call begin_batch before")
        is_inside = all(0 <= column < self.batch_B for column in final_obs)
        if t not in range(self.batch_T) or not is_inside:
            raise IndexError(
                f"final_obs: got step {t} and columns {sorted(final_obs)}, expected a step below"
                f" {self.batch_T} of the batch, and columns below {self.batch_B}"
            )
        for column, observation in final_obs.items():
            _check_finite(t, column, observation, self.samples["observation"])
        if self._reward.is_on_host:  # on a device, the host would have to wait
            is_over, _ = ends_of_rows({name: self.samples[name][t] for name in self._flag_names})
            needed = {
                column: each
                for column, each in final_obs.items()
                if self.keeps_terminated or not is_over[column]
            }
            valid = self.samples["valid"][t] if "valid" in self.samples else None
            check_final_obs(self.samples["observation"][t], needed, valid)
        self._add_final_obs(t, final_obs)

    def _add_final_obs(self, t: int, final_obs: Mapping[int, Any]) -> None:
        table = self.final_obs.tree
        oldest = self.final_obs.add(t, final_obs, oldest=self._first)
        if self.final_obs.tree is not table:
            self._bind_table()
        if oldest > self._first:
            n_left = self.final_obs.number + t + 1 - oldest
            self.final_obs.warn_once(oldest - self._first, n_left)
            self._forget(oldest)

    def _bind_table(self) -> None:
        """React to a table of final observations that has other memory than before."""

    def end_batch(self) -> None:
        """Let the steps of the batch that was written be sampled.

        Raises:
            RuntimeError: no batch was begun, or the tree's window is not where it has to lie.
            ValueError: in host memory, a reward or an observation is NaN or infinite. The batch is
                not taken.
        """
        row, expected = self._reward.window_begin, self._stop % self.full_size
        if row != expected or not self._is_writing:
            raise RuntimeError(
                f"replay: the batch lies at row {row} of the ring, expected row {expected}: call"
                " begin_batch, then rotate the tree once, write it, and call end_batch; or restart"
            )
        self._begin_change("end_batch")
        refuse_not_finite(self._written())
        self.final_obs.end()
        self._is_writing = False
        if self.agents is not None:
            self.agents.join(row, self.batch_T)
        self._stop += self.batch_T
        self._change_flags(self._stop - self.batch_T, self._stop)
        self._change_steps(self._stop - self.batch_T - self.n_steps + 1, self._stop)

    def _written(self) -> ArrayDict:
        """Return the rows that transitions of the batch read: the observation behind it too."""
        names = ("reward", "terminated", "truncated", "valid")
        rows = {name: self.samples[name] for name in names if name in self.samples}
        observation = self.samples["observation"]
        return ArrayDict({"observation": dict_map(_with_next, observation), **rows})

    def _begin_change(self, name: str) -> None:
        """Wait until no thread draws, and refuse to be captured: a graph would have half of it.

        Args:
            name: what the caller has called.
        """
        self._settle()
        if self._is_on_gpu:
            cuda.refuse_capture(f"{name} of a replay buffer")

    def _settle(self) -> None:
        """Wait until no thread draws, before the buffer changes or is read as a whole."""
        self._check_open()
        if self.watchers:  # a question that costs less than to copy an empty set
            for watcher in list(self.watchers):
                watcher.settle()

    def _check_open(self) -> None:
        """Raise if the memory was given back: kernels know its addresses only, and can't tell."""
        if self._is_closed:
            raise RuntimeError("replay: the buffer is closed; make a new one, or open a saved one")

    def _oldest_after(self, stop: int) -> int:
        """Return the number of the oldest step that is complete when `stop` is written next.

        The observation after the last step lies in row `stop`, where it overwrites the observation
        of an older step, and a frame of the stacks of the next rows. After the ring's last row it
        lies behind the ring, and overwrites nothing; row 0 has frames of its own before it.

        Args:
            stop: number of the step that is written next.
        """
        row = stop % self.full_size
        n_lost = 1 + min(self._n_older, self.full_size - 1 - row) if row else 0
        return stop - self.full_size + n_lost

    def _forget(self, first: int) -> None:
        former, self._first = self._first, max(self._first, first)
        if self._first > former:
            self._change_steps(former, self._first)

    def _change_flags(self, begin: int, stop: int) -> None:
        """React to flags of the steps from `begin` to `stop` that were written."""

    def _change_steps(self, begin: int, stop: int) -> None:
        """React to steps from `begin` to `stop` that can be sampled now, or not any more."""

    def _check_numbers(self, n_steps: int, n_final_obs: int | None) -> None:
        """Raise where a number is out of range."""
        # Between two batches, some steps of the ring are always lost: as many as `_oldest_after`
        # says, whichever row is written next.
        stops = range(self.full_size, 2 * self.full_size, self.batch_T)
        most = min(stop - self._oldest_after(stop) for stop in stops)
        if not 1 <= n_steps <= most:
            raise ValueError(
                f"{self._n_steps_name}: got {n_steps}, expected 1 to {most}: as many of the"
                f" {self.full_size} steps of the ring (full_size) are there at any time; make the"
                " ring longer"
            )
        if n_final_obs is not None and not 1 <= n_final_obs <= _MOST_SLOTS:
            raise ValueError(f"n_final_obs: got {n_final_obs}, expected 1 to {_MOST_SLOTS}")

    def _cut_episodes(self) -> None:
        last = self._stop - 1 - self._n_older
        for number in range(max(last, self._first), self._stop):
            self.final_obs.begin(number, 1, keeps=True)
            if number == last:
                self._cut_episodes_at(number)
            else:
                self.final_obs.refuse(0)
                self._truncate(number % self.full_size)
            self.final_obs.end()
        self._change_flags(max(last, self._first), self._stop)
        self._change_steps(last - self.n_steps + 1, self._stop)

    def _cut_episodes_at(self, number: int) -> None:
        row = number % self.full_size
        flags = ends_of_rows(
            {name: dict_map(_ring_row, self.samples[name], row) for name in self._flag_names}
        )
        columns = np.flatnonzero(~(flags[0] | flags[1]))
        if columns.size:
            observation = ArrayDict({"observation": self.samples["observation"]})
            after = observation.apply(_ring_row, row + 1).to_ndarray()
            before = observation.apply(_ring_row, row)["observation"]
            valid = None
            if "valid" in self.samples:
                valid = as_flags(dict_map(_ring_row, self.samples["valid"], row))
            final = {int(each): after[each]["observation"] for each in columns}
            # The first frame of an agent that came back just then goes on with nothing.
            kept = {at: each for at, each in final.items() if follows(before, at, each, valid)}
            self._add_final_obs(0, kept)
            self.final_obs.refuse(0, [at for at in final if at not in kept])
            self._truncate(row, columns)

    def _truncate(self, row: int, columns: Any = slice(None)) -> None:  # Any: an index
        """Set the flag of a row of the ring, of all agents."""
        for leaf in parts_of(self.samples["truncated"]).values():
            leaf.full[row, columns] = True
        if self.agents is not None:
            self.agents.join(row, 1)

    def _ends(self) -> dict[str, ArrayDict]:
        """Return the branch of the ends of environments with several agents."""
        return {} if self.agents is None else {ENDS: self.agents.tree}

    @property
    def _flag_names(self) -> list[str]:
        return [name for name in ("terminated", "truncated", "valid") if name in self.samples]


def _write(branch: Array | ArrayDict, row: int, rows: Any) -> None:  # Any: rows that fit
    branch[row] = rows


def _with_next(leaf: Array) -> Array:
    return leaf[: len(leaf) + 1]


def _ring_row(leaf: Array, row: int) -> Array:
    return leaf.full[row]


def _check_finite(t: int, column: int, observation: Any, like: Array | ArrayDict) -> None:
    """Refuse a final observation, a value of an environment, with a NaN or an infinity."""
    for path, _ in leaves_of(like):
        values = as_ndarray(value_at(observation, path))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(
                f"batch: {path_text(('observation', *path))} is not finite behind row t = {t} of"
                f" environment {column}, where its episode ended; find out why the environment gave"
                " it"
            )


def _size_up(samples: ArrayDict) -> tuple[int, int, bool]:
    """Return the numbers of steps and columns of a ring, and whether observations are small."""
    specs = [spec_of(leaf) for _, leaf in leaves_of(samples["observation"])]
    n_columns: int = specs[0].batch_shape[1]
    nbytes = sum(spec.rows_spec(1).nbytes for spec in specs)
    return specs[0].full_size * n_columns, n_columns, nbytes <= _SMALL_NBYTES


def most_final_obs(samples: ArrayDict) -> int:
    """Return the number of final observations up to which the usual table grows."""
    n_places, n_columns, is_small = _size_up(samples)
    return min(n_places if is_small else n_places // _STEPS_AT_MOST + n_columns, _MOST_SLOTS)

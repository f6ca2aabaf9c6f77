"""Staging: pinned memory of a time step, between environments and a tree in device memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.ops.row_copy import RowCopy
from parllel.samplers import ahead_copy
from parllel.samplers.ahead_copy import AheadCopy, nbytes_of_tree
from parllel.samplers.result_copy import ResultCopy, table_spec
from parllel.samplers.transfer import batch_shape_of, output_branches
from parllel.storages import Memory, aligned, allocate
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.row_parts import (
    allocate_kept,
    first_rows,
    keep_rows,
    kept_specs,
    take_first_rows,
    written_rows,
    written_specs,
)

_N_STAGED = 2  # environments write one while the GPU still reads the other


class RingCopy(NamedTuple):
    """A copy of staged rows to those leaves of the tree whose rings have the same size.

    Args:
        leaf: one of the leaves: its window tells where the rows go.
        rows: the copy; it counts the rows of a ring over steps and environments together.
    """

    leaf: Array
    rows: RowCopy


class StagedStep(NamedTuple):
    """Pinned memory of one time step, and the copies that take it to the tree.

    Args:
        rows: the branch `action` and the environments' results, Arrays [B, ...].
        to_tree: copies of the results to the tree.
        first_to_tree: copies of the observations alone, for a reset.
        observation: uint8 [n], the memory of all leaves of `observation`, gaps included.
    """

    rows: ArrayDict
    to_tree: list[RingCopy]
    first_to_tree: list[RingCopy]
    observation: NDArray[np.uint8]


class Staging:
    """A `Transfer` for a tree in device memory: environments use pinned memory in between.

    Two staged steps take turns. For each time step, whatever the number of environments and of
    leaves: one launch of the `rows` kernel takes the agent's results from where they are to the
    tree, and the action to a staged step over the bus as well (`ResultCopy`). The host waits for
    that launch, environments write their results beside the action, and one more launch reads them
    over the bus and scatters them to the tree (one for each size of ring, where leaves differ).

    All work goes to the caller's current stream, as the agent's work must. It has to be the same
    stream in all calls; `send_actions` asks which one it is. This is why a step needs no other wait
    than that for its action: before action t is there, the stream has run the launch that read the
    same memory for step t - 2 (`test_a_staged_step_is_written_only_after_it_was_taken`). A reset
    has no action to wait for; there the host waits for events behind the last launches
    (`test_a_reset_waits_until_the_gpu_has_read_the_last_step`).

    Where groups take turns, large observations go to the device by a copy in a stream of its own,
    which `start_outputs` begins while the agent may work for the other group (`AheadCopy`). The
    second launch then reads them there.

    Args:
        samples: the sampler's tree, all of it in device memory.
        columns: the environments of this transfer, as columns of the tree; all by default.
        sleeps: whether the host leaves its core to others while it waits for an action.

    Raises:
        MemoryError, RuntimeError: as for `pinned` memory.

    Example:
        >>> from parllel.testing import simulated_cuda
        >>> with simulated_cuda("lazy"):
        ...     samples = ArrayDict({"action": Array((4, 2), np.int64, storage="device")})
        ...     for name in ("reward", "terminated", "truncated"):
        ...         samples[name] = Array((4, 2), np.float32, storage="device")
        ...     samples["observation"] = Array((4, 2), np.float32, storage="device", padding=1)
        ...     staging = Staging(samples)
        ...     staging.host_rows[0]["observation"][...] = 7  # as environments do in step 0
        ...     staging.take_outputs(0)
        ...     samples["observation"][1].to_ndarray()
        array([7., 7.], dtype=float32)
    """

    def __init__(
        self, samples: ArrayDict, columns: range | None = None, *, sleeps: bool = False
    ) -> None:
        self._samples = samples
        self._batch_T, self._batch_B = batch_shape_of(samples)[:2]
        self._columns = range(self._batch_B) if columns is None else columns
        n_envs = len(self._columns)
        actions = ArrayDict({"action": samples["action"]}).apply(written_specs, n_envs)
        branches = ArrayDict({name: samples[name] for name in output_branches(samples)})
        outputs = branches.apply(written_specs, n_envs)
        table = table_spec(samples, n_envs)
        action_memory = allocate(
            "pinned", _N_STAGED * nbytes_of_tree(actions) + aligned(table.nbytes)
        )
        n_kept_bytes = nbytes_of_tree(kept_specs(outputs))
        output_memory = allocate("pinned", _N_STAGED * nbytes_of_tree(outputs) + n_kept_bytes)
        self._ahead = self._find_ahead(outputs)
        self.copies_ahead = self._ahead is not None
        slots = [actions.apply(Array.from_spec, action_memory) for _ in range(_N_STAGED)]
        self._steps = [self._make_step(slot, outputs, output_memory) for slot in slots]
        self.host_rows = [step.rows for step in self._steps]
        allocate_kept(self.host_rows, output_memory)
        self._table = Array.from_spec(table, action_memory)
        self._action = actions.apply(Array.from_spec, allocate("device", nbytes_of_tree(actions)))
        self._results = ResultCopy(samples, self._columns, slots, self._action, self._table)
        self._first: Array | ArrayDict | None = None
        self._stream: cuda.Stream = None  # of the last step
        # Behind the last launch that reads the agent's results, and that which reads a staged step.
        self._is_sent, self._is_taken = cuda.Event(sleeps=sleeps), cuda.Event()
        self._events = [self._is_sent, self._is_taken]
        if self._ahead is not None:
            self._events.append(self._ahead.is_copied)
        # The finalizer keeps the pinned memory until the GPU has used it, though nothing else does.
        used = self._steps, self._table, self._ahead
        self._finalizer = weakref.finalize(self, _wait_for, self._events, used)
        self._finalizer.atexit = False  # the process takes its memory with it

    def _find_ahead(self, outputs: ArrayDict) -> AheadCopy | None:
        """Return what copies observations ahead, where the agent has other work meanwhile."""
        observation = ArrayDict({"observation": outputs["observation"]})
        takes_turns = len(self._columns) < self._batch_B
        if not takes_turns or nbytes_of_tree(observation) < ahead_copy.ENGINE_NBYTES:
            return None
        return AheadCopy(observation)

    def _make_step(self, slot: ArrayDict, outputs: ArrayDict, memory: Memory) -> StagedStep:
        """Allocate one step: the next part of page-locked memory."""
        specs = ArrayDict({"observation": outputs["observation"]})
        begin, n_bytes = memory.take(0), nbytes_of_tree(specs)
        observation = specs.apply(Array.from_spec, memory)
        others = ArrayDict({name: spec for name, spec in outputs.items() if name not in specs})
        output = {**observation, **others.apply(Array.from_spec, memory)}
        return StagedStep(
            rows=ArrayDict({**slot, **output}),
            to_tree=self._find_copies(
                ArrayDict(output if self._ahead is None else {**output, **self._ahead.rows})
            ),
            first_to_tree=self._find_copies(observation),
            observation=memory.array(begin, (n_bytes,), np.dtype(np.uint8)),
        )

    def _find_copies(self, step: ArrayDict) -> list[RingCopy]:
        """Return the copies of one step's rows to step t of the tree, the observation to t + 1."""
        rings = ArrayDict({name: self._samples[name].full for name in step})
        rings["observation"] = rings["observation"].next
        samples = ArrayDict({name: self._samples[name] for name in step})
        roots = dict(samples.apply(_root_of_parts).walk())
        written = dict(rings.apply(written_rows).to_cupy().apply(_flatten).walk())
        read = dict(step.to_cupy().walk())
        paths_of: dict[int, list[TreePath]] = {}
        for path, leaf in roots.items():
            paths_of.setdefault(leaf.full_size, []).append(path)
        return [
            RingCopy(
                roots[paths[0]],
                RowCopy(
                    [written[path] for path in paths],
                    [read[path] for path in paths],
                    names=[path_text(path) for path in paths],
                ),
            )
            for paths in paths_of.values()
        ]

    def settle(self) -> None:
        """Do nothing: the tree is written in the order of the stream."""

    def move(self) -> bool:
        """Follow the window with the agent's results; the host rows stay what they are."""
        self._results.move()
        return False

    def send_actions(self, t: int, action: object, agent_info: Mapping[str, object]) -> bool:
        """Launch the copy of the agent's results to tree and staged step. Returns at once."""
        self._stream, is_taken = self._results.run(t, t % _N_STAGED, action, agent_info)
        self._is_sent.record(self._stream)
        return is_taken

    def await_actions(self, t: int) -> None:
        """Wait for the action, and with it for the launch that read the same staged step before."""
        self._is_sent.synchronize()

    def start_outputs(self, t: int) -> None:
        """Queue the copy of large observations in a stream of its own. Returns at once."""
        if self._ahead is not None:
            self._ahead.start(self._steps[t % _N_STAGED].observation)

    def take_outputs(self, t: int) -> None:
        """Launch the copy of the staged step to row t of the tree. Returns at once."""
        if self._ahead is not None:
            self._ahead.order(self._stream)
        self._copy(self._steps[t % _N_STAGED].to_tree, t, self._stream)

    def first_rows(self) -> Array | ArrayDict:
        """Return the observations of the first staged step, after the GPU has read it.

        Rows that are stored in parts have whole samples in their place.
        """
        self._wait()
        self._first = first_rows(self._first_row(), self._steps[0].rows["observation"])
        return self._first

    def take_first(self) -> None:
        """Launch the copy of the first observations to the row after the batch."""
        self._copy(self._steps[0].first_to_tree, self._batch_T - 1, cuda.current_stream())
        assert self._first is not None  # first_rows is called before
        take_first_rows(self._first_row(), self._first, self._steps[0].rows["observation"])

    def take_up(self) -> None:
        """Copy the frames that the next stacks must continue from the row after the batch."""
        self._wait()  # an error may have cut the last batch short
        keep_rows(self._first_row(), self._steps[0].rows["observation"])

    def _first_row(self) -> Array | ArrayDict:
        columns = self._columns
        row = self._samples["observation"][self._batch_T, columns.start : columns.stop]
        first: Array | ArrayDict = row
        return first

    def _copy(self, copies: list[RingCopy], t: int, stream: cuda.Stream) -> None:
        n_envs = len(self._columns)
        for leaf, rows in copies:
            begin = (leaf.window_begin + t) * self._batch_B + self._columns.start
            rows.run(range(begin, begin + n_envs), range(n_envs), stream=stream)
        self._is_taken.record(stream)

    def _wait(self) -> None:
        _wait_for(self._events, None)

    def close(self) -> None:
        """Wait until the GPU has read the pinned memory, and give it back.

        No other method works afterwards. A second call does nothing.
        """
        if not self._finalizer.alive:
            return
        self._finalizer()
        for step in self._steps:
            step.rows.close()
        self._action.close()
        self._table.close()
        if self._ahead is not None:
            self._ahead.close()
        self._steps, self.host_rows = [], []  # the copies of a step keep its memory alive
        del self._results


def _wait_for(events: Iterable[cuda.Event], used: object) -> None:
    """Wait for the launches before some events; the caller holds what they use until then."""
    for event in events:
        if not event.query():
            event.synchronize()


def _root_of_parts(leaf: Array) -> Array | ArrayDict:
    """Return the leaf itself, for each of its parts."""
    parts = written_rows(leaf)
    return parts.apply(lambda _: leaf) if isinstance(parts, ArrayDict) else leaf


def _flatten(ring: Any) -> Any:  # Any: cupy.ndarray, which is untyped
    return ring.reshape(ring.shape[0] * ring.shape[1], *ring.shape[2:])

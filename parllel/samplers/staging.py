"""Staging: pinned slots of one time step, between environments and a sample tree on the device."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array, ArraySpec, FrameArray
from parllel.ops.row_copy import RowCopy
from parllel.samplers.transfer import outputs_of
from parllel.storages import aligned, allocate
from parllel.tree import ArrayDict
from parllel.tree.frame_rows import (
    first_places,
    frame_places,
    frame_specs,
    last_specs,
    remember_last,
    take_first_stacks,
)

_N_SLOTS = 2  # environments write one while the GPU still reads the other
_BYTES = np.dtype(np.uint8)


class RingCopy(NamedTuple):
    """A copy of a slot's rows to the leaves of a tree that have rings of the same size.

    Args:
        leaf: one of them.
        rows: writes rows of their rings, T and B taken together.
    """

    leaf: Array
    rows: RowCopy


class Slot(NamedTuple):
    """Pinned memory of one time step.

    Args:
        rows: `action` and the environments' outputs, Arrays [B, ...].
        action_bytes: uint8 [n]. All leaves of `action`, with the gaps between them.
        to_tree: brings outputs and actions to the tree.
        first_to_tree: brings observations to the tree.
        is_taken: reached when the GPU has read the outputs.
    """

    rows: ArrayDict
    action_bytes: NDArray[np.uint8]
    to_tree: list[RingCopy]
    first_to_tree: list[RingCopy]
    is_taken: cuda.Event


class Staging:
    """Environments read and write pinned slots; a tree in device memory gets their rows.

    For each time step, whatever the number of environments and of leaves: one copy brings the
    action to a slot, the host waits for that copy, environments write the slot, and one launch of
    the `rows` kernel reads the slot over the bus and scatters it to the tree (one for each size of
    ring, where leaves differ). A slot is written again when the launch that reads it is done, as
    an event tells.

    All work goes to the caller's current stream, and the agent's work is taken to be there, too:
    it has to be the same stream in all calls.

    Args:
        samples: of a sampler, all of it in device memory.
        columns: environments that are brought; all by default.

    Raises:
        MemoryError, RuntimeError: as for `pinned` memory.
    """

    def __init__(self, samples: ArrayDict, columns: range | None = None) -> None:
        self._samples = samples
        self._batch_T, self._batch_B = samples["reward"].batch_shape[:2]
        self._columns = range(self._batch_B) if columns is None else columns
        n_envs = len(self._columns)
        actions = ArrayDict({"action": samples["action"]}).apply(_row_spec, n_envs)
        branches = ArrayDict({name: samples[name] for name in outputs_of(samples)})
        outputs = branches.apply(_row_spec, n_envs)
        n_action_bytes, n_output_bytes = _nbytes_of(actions), _nbytes_of(outputs)
        on_device = allocate("device", n_action_bytes)
        self._action = actions.apply(Array.from_spec, on_device)
        self._action_bytes = on_device.array(0, (n_action_bytes,), _BYTES)
        action_slots = allocate("pinned", _N_SLOTS * n_action_bytes)
        n_last_bytes = _nbytes_of(last_specs(outputs))
        output_slots = allocate("pinned", _N_SLOTS * n_output_bytes + n_last_bytes)
        self._slots = []
        for number in range(_N_SLOTS):
            action = actions.apply(Array.from_spec, action_slots)  # placed as on the device
            output = outputs.apply(Array.from_spec, output_slots)
            begin = number * n_action_bytes
            self._slots.append(
                Slot(
                    rows=ArrayDict({**action, **output}),
                    action_bytes=action_slots.array(begin, (n_action_bytes,), _BYTES),
                    to_tree=self._find_copies(ArrayDict({**self._action, **output})),
                    first_to_tree=self._find_copies(
                        ArrayDict({"observation": output["observation"]})
                    ),
                    is_taken=cuda.Event(),
                )
            )
        self.host_rows = [slot.rows for slot in self._slots]
        remember_last(self.host_rows, output_slots)
        self._first: Any = None
        self._is_sent = cuda.Event()
        # The slots go with this object, but not before the GPU has read them.
        self._finalizer = weakref.finalize(self, _wait_for, self._slots)
        self._finalizer.atexit = False  # the process takes its memory with it

    def _find_copies(self, step: ArrayDict) -> list[RingCopy]:
        """Return the copies of one step's rows to step t of the tree, the observation to t + 1."""
        rings = ArrayDict({name: self._samples[name].full for name in step})
        rings["observation"] = rings["observation"].next
        samples = ArrayDict({name: self._samples[name] for name in step})
        roots = dict(samples.apply(_root_of_parts).walk())
        written = dict(rings.apply(_parts).to_cupy().apply(_flatten).walk())
        read = dict(step.to_cupy().walk())
        paths_of: dict[int, list[str]] = {}
        for path, leaf in roots.items():
            paths_of.setdefault(leaf.full_size, []).append(path)
        return [
            RingCopy(
                roots[paths[0]],
                RowCopy([written[p] for p in paths], [read[p] for p in paths], names=paths),
            )
            for paths in paths_of.values()
        ]

    def settle(self) -> None:
        """Do nothing: the tree is written in the order of the stream."""

    def move(self) -> bool:
        """Do nothing: the host rows stay what they are."""
        return False

    def action_rows(self, t: int) -> Any:
        """Return memory of the device, from where the action goes to environments and tree."""
        return self._action["action"]

    def send_actions(self, t: int) -> None:
        """Queue the copy of the action to the slot of step t. Returns at once."""
        slot = self._slots[t % _N_SLOTS]
        cuda.copy_to_host(self._action_bytes, out_host=slot.action_bytes)
        self._is_sent.record()

    def await_actions(self, t: int) -> None:
        """Wait for the copy, and until the slot of step t was taken the last time."""
        self._is_sent.synchronize()
        _wait_for([self._slots[t % _N_SLOTS]])

    def take_outputs(self, t: int) -> None:
        """Launch the copy of the slot of step t to row t of the tree. Returns at once."""
        slot = self._slots[t % _N_SLOTS]
        self._copy(slot.to_tree, t)
        slot.is_taken.record()

    def first_rows(self) -> Any:
        """Return the first slot's place for observations, when it may be written.

        What is stored as frames has whole stacks beside it.
        """
        _wait_for(self._slots[:1])
        self._first = first_places(self._first_row(), self._slots[0].rows["observation"])
        return self._first

    def take_first(self) -> None:
        """Launch the copy of the first slot's observations to the row after the batch."""
        self._copy(self._slots[0].first_to_tree, self._batch_T - 1)
        self._slots[0].is_taken.record()
        take_first_stacks(self._first_row(), self._first, self._slots[0].rows["observation"])

    def _first_row(self) -> Any:
        columns = self._columns
        return self._samples["observation"][self._batch_T, columns.start : columns.stop]

    def _copy(self, copies: list[RingCopy], t: int) -> None:
        for leaf, rows in copies:
            begin = (leaf.window_begin + t) * self._batch_B + self._columns.start
            n_envs = len(self._columns)
            rows.run(range(begin, begin + n_envs), range(n_envs))

    def close(self) -> None:
        """Wait until the GPU has read the slots, and give them back. Nothing works afterwards."""
        if not self._finalizer.alive:
            return
        self._finalizer()
        for slot in self._slots:
            slot.rows.close()
        self._action.close()
        self._slots, self.host_rows = [], []  # what copies to the tree holds on to it
        del self._action_bytes


def _wait_for(slots: list[Slot]) -> None:
    for slot in slots:
        if not slot.is_taken.query():
            slot.is_taken.synchronize()


def _row_spec(leaf: Array, n_envs: int) -> ArraySpec | ArrayDict:
    batch_shape = (n_envs, *leaf.batch_shape[2:])
    if isinstance(leaf, FrameArray):
        return frame_specs(leaf, batch_shape)
    return ArraySpec.of(batch_shape, leaf.dtype, leaf.feature_shape)


def _parts(leaf: Array) -> Array | ArrayDict:
    """Return what rows are copied to."""
    return frame_places(leaf) if isinstance(leaf, FrameArray) else leaf


def _root_of_parts(leaf: Array) -> Array | ArrayDict:
    """Return the leaf itself, for each of its parts."""
    parts = _parts(leaf)
    return parts.apply(lambda _: leaf) if isinstance(parts, ArrayDict) else leaf


def _nbytes_of(specs: ArrayDict) -> int:
    return sum(aligned(spec.nbytes) for _, spec in specs.walk())


def _flatten(ring: Any) -> Any:  # Any: cupy.ndarray
    return ring.reshape(ring.shape[0] * ring.shape[1], *ring.shape[2:])

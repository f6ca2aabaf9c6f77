"""ReplayBuffer: random transitions out of the ring of a sample tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from parllel import cuda
from parllel.kernels.transitions import REFUSED
from parllel.ops.transitions import DrawState, SampledRing, draw_transitions
from parllel.replays.final_obs import FinalObs
from parllel.replays.random_shift import RandomShift, shift_images
from parllel.replays.ring_record import RingRecord, most_final_obs
from parllel.replays.saved_numbers import check_integer, check_keys, check_range, check_real
from parllel.replays.transition_memory import (
    DRAWN,
    NEXT,
    TransitionMemory,
    find_sources,
    ring_of,
)
from parllel.tree import ArrayDict, SavedTree, TreeDescription, open_tree, save_tree

_SHIFT, _CHANNELS_LAST = "shift_pixels", "shift_channels_last"  # of saved settings
_STREAMS = {"observation": 0, NEXT: 1}  # of random shifts
_MOST_STEPS = 2**62  # of all environments together: kernels count in int64


class ReplayBuffer(RingRecord):
    """Draw minibatches of transitions, each with the same probability, from a sample tree's ring.

    The sample tree is the storage. Its leaves are rings of `full_size` rows, into which a sampler
    writes batches of T steps, one after the other. A sampler that is given the buffer (`replay=`)
    tells it which steps are there. Each observation is stored once, and each frame of stacked
    observations too (`FrameArray`). The observation that follows a step is the next row of the
    same leaf. Where an episode ended, that row belongs to the next episode, so the buffer keeps
    the final observation in a table. Where it ended because the task was done, nothing follows that
    could be learned from (`n_step_discount` is 0), and the sampler gives no final observation:
    `next_observation` is the observation of the last step itself.

    A transition begins at a step and has `n_steps` steps, or fewer where the episode ends. It
    can't be sampled in four cases: one of its steps was not written yet; one of them is being
    overwritten; the tree has a branch `valid`, and one of its steps is not valid; or it ends with a
    truncation whose final observation was not given. The branch `valid` is about steps, not about
    their observations.

    A buffer belongs to one thread. A `Prefetcher` draws in another thread; the buffer waits for it
    before it changes.

    The time of a draw is in proportion to the minibatch, whatever the size of the ring: a step is
    drawn at random until one can be sampled. Only where hardly any can be, a walk through all
    steps finds one.

    Args:
        samples: tree of Arrays [T, B, ...] with the same T, B and `full_size`. It has the branches
            `observation` (padding of 1 or more), `reward` (float32 [T, B]), `terminated` and
            `truncated` (bool [T, B]), and any others.
        rng: generator of a key, which is drawn once. A minibatch is a function of the key and of
            its own number, by Philox4x32-10, and the same in every kind of memory.
        n_steps: number of steps of a transition.
        discount: factor for each step, in [0, 1].
        n_final_obs: number of rows of the table of final observations, for which it is allocated.
            By default there is one for each 16 steps of the ring, or for each 80 where observations
            have more than 1 KiB; where more episodes are truncated, the table grows up to one for
            each step of the ring, or for each 4 of large observations: a quarter of their bytes.
            If it is full all the same, the oldest steps are forgotten earlier, with a warning.
        shift: how the images of `observation` and `next_observation` are shifted at random in each
            minibatch; None for not at all. Shifts are a function of the same key and number.

    Raises:
        TypeError, ValueError: the tree is not like that, or a number is out of range.
        MemoryError: there is no memory for the table.

    >>> from parllel import Array
    >>> samples = ArrayDict(
    ...     {
    ...         "observation": Array((2, 1), np.float32, full_size=4, padding=1),
    ...         "reward": Array((2, 1), np.float32, full_size=4),
    ...         "terminated": Array((2, 1), bool, full_size=4),
    ...         "truncated": Array((2, 1), bool, full_size=4),
    ...     }
    ... )
    >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    >>> replay.restart()  # a sampler calls this and the next three methods
    >>> replay.begin_batch()
    >>> samples.rotate()
    >>> replay.end_batch()
    >>> len(replay), sorted(replay.sample(batch_size=8))[:3]
    (2, ['index', 'n_step_discount', 'n_step_return'])
    """

    _extra: ClassVar[Mapping[str, np.dtype[Any]]] = {}  # branches of minibatches beside `DRAWN`
    _setting_names: ClassVar[tuple[str, ...]] = ("n_steps", "discount")  # of `_settings`

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        n_steps: int = 1,
        discount: float = 0.99,
        n_final_obs: int | None = None,
        shift: RandomShift | None = None,
    ) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: got {discount}, expected a number in [0, 1]")
        _check_names(samples, (NEXT, *DRAWN, *self._extra))
        super().__init__(samples, n_steps=n_steps, n_final_obs=n_final_obs)
        self.discount = float(discount)  # what JSON can hold
        self._shift = shift
        self._bind_table()
        self._key = (int(rng.integers(2**32)), int(rng.integers(2**32)))
        self._draws = DrawState(self.side, key=self._key, discount=self.discount)
        self._outputs: TransitionMemory | None = None
        self._captured: list[TransitionMemory] = []  # graphs write it: it stays

    @property
    def _n_drawn(self) -> int:
        """Minibatches drawn; the host waits for a device to know."""
        return self._draws.read_number()

    def _bind_table(self) -> None:
        self._sources = find_sources(self.samples, self.final_obs, on_gpu=self._is_on_gpu)
        if self._shift is not None:
            self._sources = shift_images(self._sources, self._shift, _STREAMS)
        self._ring = self._find_ring()

    def _find_ring(self) -> SampledRing:
        leaves = {name: self.samples[name] for name in ("reward", "terminated", "truncated")}
        leaves["final_slot"] = self.final_obs.slot
        if "valid" in self.samples:
            leaves["valid"] = self.samples["valid"]
        rings = {name: ring_of(leaf, on_gpu=self._is_on_gpu) for name, leaf in leaves.items()}
        return SampledRing(**{"valid": None, **rings}, width=self.batch_B, n_steps=self.n_steps)

    def describe(self) -> TreeDescription:
        """Return the memory of the sample tree and of the buffer, as `make_specs` announces it.

        The memory of minibatches comes on top.
        """
        return ArrayDict({"samples": self.samples, "replay": self.final_obs.tree}).describe()

    # Read by an algorithm

    def sample(self, batch_size: int) -> ArrayDict:
        """Return a minibatch of transitions, in memory that the next call overwrites.

        In host memory it is complete when this returns. On a device it is queued in the caller's
        current stream as two launches, the draw and the gather of the whole tree; no byte is
        copied to or from the host, and the host does not wait. The two launches can be captured in
        a CUDA graph after a first call with this batch size: each replay draws the next minibatch
        out of the steps that are there then, as a call does.

        Args:
            batch_size: number of transitions.

        Returns:
            Tree of torch tensors [batch_size, ...]. It has the sample tree's branches, which are
            those of the first step of each transition, and

            - `next_observation`: the observation after the last step; after a termination, that
              of the last step itself;
            - `n_step_return`: float32, the sum of discount**k * reward of the k-th step;
            - `n_step_discount`: float32, the factor for the value of `next_observation`:
              discount ** (number of steps), and 0 where the last step terminated;
            - `terminated`, `truncated`: bool, the flags of the last step;
            - `index`: int64, the number of the transition.

        Raises:
            RuntimeError: there are fewer than `n_steps` steps; the buffer is closed; or, in host
                memory, no transition can be sampled. On a device, `n_step_return` and
                `n_step_discount` are NaN in this case. While a stream is captured, the first call
                with another batch size raises, as it allocates.
            ValueError: batch_size is not positive.
        """
        self._settle()
        if self._outputs is None or self._outputs.batch_size != batch_size:
            self._outputs = self.make_memory(batch_size)
        self.sample_into(self._outputs)
        return self._outputs.tensors

    def make_memory(self, batch_size: int, storage: str | None = None) -> TransitionMemory:
        """Return memory for `sample_into`.

        Args:
            batch_size: number of transitions.
            storage: kind of the memory; by default the kind that `sample` uses.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
        return TransitionMemory(
            self._sources, batch_size, storage or self.storage, extra=self._extra
        )

    @property
    def draw_state(self) -> DrawState:
        """What changes from draw to draw, which a draw reads and counts up."""
        return self._draws

    def sample_into(self, outputs: TransitionMemory, state: DrawState | None = None) -> None:
        """Draw a minibatch as `sample` does, into memory of `make_memory`.

        Args:
            outputs: the memory.
            state: what to draw by, in the place of `draw_state`: a copy of it.
        """
        self._check_open()
        if self._stop - self._first < self.n_steps:
            raise RuntimeError(
                f"replay: {self._stop - self._first} steps of each environment are there, expected"
                f" {self.n_steps} or more = n_steps; collect batches first"
            )
        if self._is_on_gpu and cuda.is_capturing():
            self._keep_for_graphs(outputs)
        state = state or self._draws
        if self._draw(outputs, state):
            raise RuntimeError(
                "replay: no transition can be sampled: each one has a step that is not valid, or"
                " ends at a truncation whose final observation was not given (add_final_obs)"
            )
        if outputs.sources is not self._sources:
            outputs.bind(self._sources)
        outputs.gather(state.seed)

    def _draw(self, outputs: TransitionMemory, state: DrawState) -> int:
        """Choose transitions, and write their rows and returns; return how many were not found."""
        return draw_transitions(self._ring, state, outputs.drawn)

    def _keep_for_graphs(self, outputs: TransitionMemory) -> None:
        """Let all memory stay where it is that a graph which is being captured has addresses of."""
        if outputs not in self._captured:
            self._captured.append(outputs)
        self.final_obs.most_slots = len(self.final_obs.owner)

    def _change_steps(self, begin: int, stop: int) -> None:
        self._draws.write_steps(self._first, self._stop)

    # Saved and resumed

    def save(self, folder: str | Path) -> None:
        """Save the ring, and all else that the next minibatches depend on (`tree.save_tree`).

        A save is whole or not there: the files come with checksums, the last save stays until the
        new one is on the disk, and a save that fails leaves nothing behind.

        Minibatches that a `Prefetcher` has drawn ahead are drawn again after the save, here and in
        a run that goes on from it: both have the same minibatches.

        Raises:
            BlockingIOError: another process, or another thread, is saving to the folder.
            OSError: the disk is full, or the like; the last save is what it was.
            RuntimeError: a batch is being written.
        """
        self._begin_change("save")
        if self._is_writing:
            raise RuntimeError("replay: a batch is being written; save after end_batch")
        tree = ArrayDict({"samples": self.samples, "replay": self._own_tree()})
        save_tree(tree, folder, {"settings": self._settings(), "state": self._state()})
        self._discard_drawn()

    def load(self, folder: str | Path) -> None:
        """Go on where a buffer was saved. This overwrites the ring of the sample tree, too.

        Minibatches that a `Prefetcher` has drawn ahead are dropped.

        Raises:
            FileNotFoundError: nothing was saved there.
            KeyError, ValueError: another tree, or a buffer with other settings, was saved; or a
                file is not what was saved. Nothing was changed.
        """
        self._begin_change("load")
        saved = open_tree(folder)
        self._check_settings(saved)
        table = self._find_table(saved)
        tree = ArrayDict({"samples": self.samples, "replay": self._own_tree(table)})
        saved.check_fits(tree)
        self._check_saved(saved)
        saved.load_into(tree)
        if table is not self.final_obs:
            self.final_obs = table
            self._bind_table()
        self._set_state(saved.numbers["state"])
        self._discard_drawn()

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Return a saved buffer over the files of its ring, which are read when they are used.

        Rows that are written to the ring stay in this process: the files never change. What the
        buffer draws by, its own tables, is compared with its checksums. The ring is not read, and
        so not compared; `tree.open_tree(folder).check()` reads it all. A file that another program
        cuts off meanwhile ends this process (SIGBUS).

        Raises:
            FileNotFoundError, KeyError, ValueError: as for `load`; or another class saved it.
        """
        saved = open_tree(folder)
        cls._check_setting_names(saved)
        own = saved.part("replay")
        n_final_obs = _count_final_obs(saved)
        try:
            buffer = cls(
                saved.part("samples").map(),
                rng=np.random.default_rng(0),  # its key is replaced
                n_final_obs=n_final_obs,
                **_as_arguments(saved.numbers["settings"]),
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{saved.json_path}: no tree of a buffer: {error}") from error
        buffer.final_obs.most_slots = max(n_final_obs, most_final_obs(buffer.samples))
        own.check_fits(buffer._own_tree())
        buffer._check_saved(saved)
        own.load_into(buffer._own_tree())
        buffer._set_state(saved.numbers["state"])
        return buffer

    def _own_tree(self, table: FinalObs | None = None) -> ArrayDict:
        table = table or self.final_obs
        return ArrayDict({**table.tree, "owner": table.owner_array})

    def _find_table(self, saved: SavedTree) -> FinalObs:
        """Return a table of the size that was saved: it may have grown before, or be smaller."""
        n_slots, most_slots = _count_final_obs(saved), self.final_obs.most_slots
        if n_slots == len(self.final_obs.owner):
            return self.final_obs
        if self._captured:
            raise RuntimeError(
                "load: another table of final observations was saved, and CUDA graphs have captured"
                " this one; load into a new buffer, and capture again"
            )
        if n_slots > most_slots:
            raise ValueError(
                f"{saved.folder}: saved with {n_slots} final observations, expected at most"
                f" {most_slots}; make the buffer with n_final_obs={n_slots}, or without it"
            )
        return self._make_table(n_slots, most_slots=most_slots)

    def _settings(self) -> dict[str, Any]:
        settings = {"n_steps": self.n_steps, "discount": self.discount}
        if self._shift is not None:  # else as before there were shifts
            settings[_SHIFT] = self._shift.pixels
            settings[_CHANNELS_LAST] = int(self._shift.channels_last)
        return settings

    def _state(self) -> dict[str, Any]:
        steps = {"first": self._first, "stop": self._stop, "n_final_obs": self.final_obs.n_added}
        return {**steps, "key": self._key, "n_drawn": self._n_drawn}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._first, self._stop = state["first"], state["stop"]
        self.final_obs.n_added = state["n_final_obs"]
        self.final_obs.order_slots()
        self._key = (state["key"][0], state["key"][1])
        self._draws.write_seed(self._key, state["n_drawn"])
        self._draws.write_steps(self._first, self._stop)
        self._is_writing, self._n_appended = False, None

    def _check_saved(self, saved: SavedTree) -> None:
        """Raise ValueError unless kernels can be given what was saved; nothing is changed.

        Args:
            saved: a tree that fits.
        """
        where = f"{saved.json_path}: numbers.state"
        state = saved.numbers.get("state")
        check_keys(where, state, self._state())
        self._check_state(where, saved.numbers["state"])
        windows = {leaf.window_begin for leaf in saved.part("samples").leaves}
        if len(windows) != 1:
            raise ValueError(f"{saved.json_path}: windows at {sorted(windows)}, expected one row")
        self._check_tables(f"{saved.folder}: leaf replay.", saved)

    def _check_state(self, where: str, state: Mapping[str, Any]) -> None:
        most = _MOST_STEPS // self.batch_B
        check_integer(f"{where}.stop", state["stop"], 0, most)
        if state["stop"] % self.batch_T:
            raise ValueError(
                f"{where}.stop: {state['stop']}, expected a multiple of {self.batch_T}"
            )
        oldest = max(0, self._oldest_after(state["stop"]))
        check_integer(f"{where}.first", state["first"], oldest, state["stop"] + self.batch_T)
        for name in ("n_final_obs", "n_drawn"):
            check_integer(f"{where}.{name}", state[name], 0, _MOST_STEPS)
        key = state["key"]
        if not isinstance(key, list) or len(key) != 2:
            raise ValueError(f"{where}.key: expected a list of two integers")
        for number in key:
            check_integer(f"{where}.key", number, 0, 2**32 - 1)

    def _check_tables(self, where: str, saved: SavedTree) -> None:
        n_slots, n_places = _count_final_obs(saved), self.full_size * self.batch_B
        ends = saved.numbers["state"]["stop"] + self.batch_T
        for name, least, stop in (
            ("slot", REFUSED, n_slots),
            ("place", 0, n_places),
            ("owner", -1, ends),
        ):
            check_range(where + name, saved.read_leaf("replay", name), least, stop - 1)

    def _check_settings(self, saved: SavedTree) -> None:
        found, expected = saved.numbers.get("settings"), self._settings()
        if found != expected:
            raise ValueError(
                f"{saved.folder}: saved with {found}, expected {expected} as of this"
                f" {type(self).__name__}"
            )

    @classmethod
    def _check_setting_names(cls, saved: SavedTree) -> None:
        found = saved.numbers.get("settings")
        settings = found if isinstance(found, dict) else {}
        names = settings.keys() - {_SHIFT, _CHANNELS_LAST}
        has_part = (_SHIFT in settings) != (_CHANNELS_LAST in settings)
        if has_part or names != set(cls._setting_names):
            raise ValueError(
                f"{saved.folder}: saved with settings {sorted(settings)}, expected"
                f" {sorted(cls._setting_names)} of a {cls.__name__}; open it as what was saved"
            )
        for name, number in settings.items():
            check_real(f"{saved.json_path}: numbers.settings.{name}", number)

    def _discard_drawn(self) -> None:
        for watcher in list(self.watchers):
            watcher.discard()

    def close(self) -> None:
        """Free the buffer's memory, and close its prefetchers. It can't be used afterwards.

        The sample tree stays open. A second call does nothing.
        """
        for watcher in list(self.watchers):
            watcher.close()
        self._is_closed = True
        self.final_obs.tree.close()
        for outputs in (self._outputs, *self._captured):
            if outputs is not None:
                outputs.close()


def _as_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings as arguments of a buffer."""
    arguments = dict(settings)
    if _SHIFT in arguments:
        channels_last = bool(arguments.pop(_CHANNELS_LAST))
        arguments["shift"] = RandomShift(arguments.pop(_SHIFT), channels_last=channels_last)
    return arguments


def _count_final_obs(saved: SavedTree) -> int:
    return saved.read_leaf("replay", "owner").size


def _check_names(samples: ArrayDict, own: Iterable[str]) -> None:
    """Raise where a tree has branches with the names that minibatches have for their own ones."""
    taken = [name for name in own if name in samples and name not in ("terminated", "truncated")]
    if taken:
        raise ValueError(f"samples: minibatches have branches {taken} of their own; rename these")

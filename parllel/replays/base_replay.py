"""BaseReplay: what buffers of transitions and of sequences share: keys, memory, saves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.cuda import AnyArray
from parllel.kernels.breaks import count_integers
from parllel.kernels.transitions import REFUSED
from parllel.ops.breaks import mark_breaks
from parllel.ops.transitions import DrawState, SampledRing
from parllel.replays.final_obs import FinalObs
from parllel.replays.ring_record import RingRecord, most_final_obs
from parllel.replays.saved_numbers import check_integer, check_keys, check_range, check_real
from parllel.replays.transition_memory import find_ring
from parllel.storages import Memory
from parllel.tree import (
    ArrayDict,
    SavedTree,
    TreeDescription,
    allocate_tree,
    open_tree,
    save_tree,
)

_MOST_STEPS = 2**62  # of all environments together: kernels count in int64
_BREAKS = "breaks"


class MinibatchMemory(Protocol):
    """Memory of one minibatch, which is written again and again."""

    tree: ArrayDict
    batch_size: int
    memory: Memory
    sources: ArrayDict

    @property
    def tensors(self) -> ArrayDict:
        """What `present` makes of the tree."""

    def present(self, tree: ArrayDict) -> ArrayDict:
        """Return a tree of Arrays like `tree` as the tensors that a caller gets."""

    def bind(self, sources: ArrayDict) -> None:
        """Gather from other sources of the same rows from now on."""

    def gather(self, seed: AnyArray | None = None) -> None:
        """Gather what was drawn."""

    def close(self) -> None:
        """Free the memory. Tensors that were taken before stay valid."""


M = TypeVar("M", bound=MinibatchMemory)


class BaseReplay(RingRecord, Generic[M]):
    """A buffer over the ring of a sample tree that draws minibatches of some form.

    A subclass says what is drawn (`_draw`), into what memory (`make_memory`), and from which
    sources (`_bind_table`, which is called first when the constructor of this class has the ring).

    Args:
        samples: the sample tree.
        rng: generator of a key, which is drawn once.
        n_steps: as for `RingRecord`.
        n_final_obs: as for `RingRecord`.
        discount: the factor by which draws discount rewards.
    """

    _extra: ClassVar[Mapping[str, np.dtype[Any]]] = {}  # further branches of minibatches
    _setting_names: ClassVar[tuple[str, ...]] = ()  # of `_settings`, without optional ones
    _optional_names: ClassVar[tuple[tuple[str, ...], ...]] = ()  # of each group all, or none
    # Whether draws look for the ends of episodes: then there is a bit for each step.
    _keeps_breaks: ClassVar[bool] = False

    _sources: ArrayDict
    _ring: SampledRing

    def __init__(
        self,
        samples: ArrayDict,
        *,
        rng: np.random.Generator,
        n_steps: int,
        n_final_obs: int | None,
        discount: float = 1.0,
    ) -> None:
        super().__init__(samples, n_steps=n_steps, n_final_obs=n_final_obs)
        self._breaks: Array | None = None
        if self._keeps_breaks:
            specs = _specs_of_breaks(self.final_obs.slot.spec)
            self._breaks = allocate_tree(specs, self.storage)[_BREAKS]
        self._bind_table()
        self._key = (int(rng.integers(2**32)), int(rng.integers(2**32)))
        self._draws = DrawState(self.side, key=self._key, discount=discount)
        self._outputs: M | None = None
        self._captured: list[M] = []  # graphs write it: it stays

    @classmethod
    def make_specs(cls, samples: ArrayDict, n_final_obs: int | None = None) -> ArrayDict:
        """Return the specs of the memory that a buffer allocates beside a tree (`RingRecord`)."""
        specs = super().make_specs(samples, n_final_obs)
        return specs.with_branches(_specs_of_breaks(specs["slot"]) if cls._keeps_breaks else {})

    @property
    def _memory(self) -> ArrayDict:
        """What `make_specs` has announced."""
        breaks = {} if self._breaks is None else {_BREAKS: self._breaks}
        return self.final_obs.tree.with_branches({**self._ends(), **breaks})

    @property
    def _n_drawn(self) -> int:
        """Minibatches drawn; the host waits for a device to know."""
        return self._draws.read_number()

    def describe(self) -> TreeDescription:
        """Return the memory of the sample tree and of the buffer, as `make_specs` announces it.

        The memory of minibatches comes on top.
        """
        return ArrayDict({"samples": self.samples, "replay": self._memory}).describe()

    # Read by an algorithm

    def sample(self, batch_size: int) -> ArrayDict:
        """Return a minibatch, in memory that the next call overwrites.

        Args:
            batch_size: how many are drawn.
        """
        self._settle()
        if self._outputs is None or self._outputs.batch_size != batch_size:
            self._outputs = self.make_memory(batch_size)
        self.sample_into(self._outputs)
        return self._outputs.tensors

    def make_memory(self, batch_size: int, storage: str | None = None) -> M:
        """Return memory for `sample_into`.

        Args:
            batch_size: how many are drawn.
            storage: kind of the memory; by default the kind that `sample` uses.
        """
        raise NotImplementedError

    @property
    def draw_state(self) -> DrawState:
        """What changes from draw to draw, which a draw reads and counts up."""
        return self._draws

    def sample_into(self, outputs: M, state: DrawState | None = None) -> None:
        """Draw a minibatch as `sample` does, into memory of `make_memory`.

        Args:
            outputs: the memory.
            state: what to draw by, in the place of `draw_state`: a copy of it.
        """
        self._check_open()
        self._check_filled()
        if self._is_on_gpu and cuda.is_capturing():
            self._keep_for_graphs(outputs)
        state = state or self._draws
        if self._draw(outputs, state):
            raise RuntimeError(self._explain_nothing())
        if outputs.sources is not self._sources:
            outputs.bind(self._sources)
        outputs.gather(state.seed)

    def _check_filled(self) -> None:
        """Raise RuntimeError where too few steps are there for any draw."""
        if self._stop - self._first < self._n_needed:
            raise RuntimeError(
                f"replay: {self._stop - self._first} steps of each environment are there, expected"
                f" {self._n_needed} or more = {self._needed_name}; collect batches first"
            )

    @property
    def _n_needed(self) -> int:
        """Steps without which nothing can be drawn."""
        return self.n_steps

    @property
    def _needed_name(self) -> str:
        return "n_steps"

    def _explain_nothing(self) -> str:
        """Return the message of an error: nothing of what is there can be drawn."""
        raise NotImplementedError

    def _draw(self, outputs: M, state: DrawState) -> int:
        """Choose what a minibatch has; return for how many items nothing was found."""
        raise NotImplementedError

    def _keep_for_graphs(self, outputs: M) -> None:
        """Let all memory stay where it is that a graph which is being captured has addresses of."""
        if outputs not in self._captured:
            self._captured.append(outputs)
        self.final_obs.most_slots = len(self.final_obs.owner)

    def _find_ring(self, steps: ArrayDict) -> SampledRing:
        """Return the leaves of the ring by which is drawn, as kernels read them."""
        agents, on_gpu = self.agents, self._is_on_gpu
        return find_ring(
            steps, self.final_obs, self._breaks, on_gpu=on_gpu, n_steps=self.n_steps, agents=agents
        )

    def _change_flags(self, begin: int, stop: int) -> None:
        if self._breaks is not None:
            begin, end = begin % self.full_size, begin % self.full_size + stop - begin
            mark_breaks(self._ring, begin, min(end, self.full_size))
            if end > self.full_size:
                mark_breaks(self._ring, 0, end - self.full_size)

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
        buffer draws by, its own tables, is compared with its checksums. The ring is not read
        (but for its flags, where windows or goals are drawn), and so not compared;
        `tree.open_tree(folder).check()` reads it all. A file that another program
        cuts off meanwhile ends this process (SIGBUS).

        Raises:
            FileNotFoundError, KeyError, ValueError: as for `load`; or another class saved it.
        """
        return cls._open(folder, {})

    @classmethod
    def _open(cls, folder: str | Path, unsaved: Mapping[str, Any]) -> Self:
        """Return a saved buffer as `open` does; `unsaved` are arguments that no save can hold."""
        saved = open_tree(folder)
        cls._check_setting_names(saved)
        own = saved.part("replay")
        n_final_obs = _count_final_obs(saved)
        try:
            buffer = cls(
                saved.part("samples").map(),
                rng=np.random.default_rng(0),  # its key is replaced
                n_final_obs=n_final_obs,
                **cls._as_arguments(saved.numbers["settings"]),
                **unsaved,
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{saved.json_path}: no tree of a buffer: {error}") from error
        buffer._check_settings(saved)
        buffer.final_obs.most_slots = max(n_final_obs, most_final_obs(buffer.samples))
        own.check_fits(buffer._own_tree())
        buffer._check_saved(saved)
        own.load_into(buffer._own_tree())
        buffer._set_state(saved.numbers["state"])
        return buffer

    def _own_tree(self, table: FinalObs | None = None) -> ArrayDict:
        table = table or self.final_obs
        return ArrayDict({**table.tree, "owner": table.owner_array, **self._ends()})

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
        """Return what a saved buffer has to share with one that loads it: names and numbers."""
        raise NotImplementedError

    @classmethod
    def _as_arguments(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return saved settings as arguments of a buffer."""
        raise NotImplementedError

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
        self._change_flags(0, self.full_size)
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
        windows = {
            leaf.window_begin
            for leaf in saved.part("samples").leaves
            if leaf.path[0] not in self._not_steps
        }
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
        groups = [set(group) for group in cls._optional_names]
        names = settings.keys() - set().union(*groups)
        has_part = any(settings.keys() & group not in (set(), group) for group in groups)
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
        self._memory.close()
        for outputs in (self._outputs, *self._captured):
            if outputs is not None:
                outputs.close()


def _count_final_obs(saved: SavedTree) -> int:
    return saved.read_leaf("replay", "owner").size


def _specs_of_breaks(slot: ArraySpec) -> ArrayDict:
    """Return the spec of the bits by which ends of episodes are found: 1 for each step.

    Args:
        slot: the spec of an Array [full_size, B].
    """
    n_rows, n_columns = slot.batch_shape
    return ArrayDict({_BREAKS: ArraySpec.of((count_integers(n_rows), n_columns), np.int64)})


def check_names(samples: ArrayDict, own: Iterable[str]) -> None:
    """Raise where a tree has branches with the names that minibatches have for their own ones.

    Args:
        samples: the sample tree.
        own: names of branches; `terminated` and `truncated` may be in both.

    Raises:
        ValueError: a name is in both.
    """
    taken = [name for name in own if name in samples and name not in ("terminated", "truncated")]
    if taken:
        raise ValueError(f"samples: minibatches have branches {taken} of their own; rename these")

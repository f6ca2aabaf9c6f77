"""Episodes: what lies in a ring between the beginnings and the ends of episodes, for data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.kernels.transitions import NOT_GIVEN
from parllel.replays.agent_ends import ends_of_rows
from parllel.replays.ring_record import RingRecord
from parllel.tree import ArrayDict, dict_map, leaves_of, path_text
from parllel.tree.agent_forms import N_BATCH

_FIELDS = ("observation", "terminated", "truncated", "valid")


class Episode(NamedTuple):
    """The steps of one episode, or a part of one, in host memory.

    Args:
        env: the number of the environment.
        observation: [n + 1, ...], a tree where the ring's `observation` is one. The last one is
            what followed the last step: the true final observation of an episode that ended.
        branches: rows [n, ...] of the tree's other branches, but for the next two and `valid`.
        terminated: bool [n], the flag of each step; true of the last one at most.
        truncated: bool [n], likewise.
        has_begin: whether it is known that the first row is an episode's first one.
        has_end: whether the episode ended with the last row. One that goes on has not.

    >>> flags = np.array([False, True])
    >>> episode = Episode(0, np.arange(3.0), {}, flags, flags & False, True, True)
    >>> len(episode.terminated), episode.is_whole
    (2, True)
    """

    env: int
    observation: Any  # an array or an ArrayDict
    branches: dict[str, Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    has_begin: bool
    has_end: bool

    @property
    def is_whole(self) -> bool:
        """Whether it has all steps from the beginning to the end."""
        return self.has_begin and self.has_end


class _Span(NamedTuple):
    """The steps [begin, stop) of one environment; `slot` is that of the end's final observation."""

    column: int
    begin: int
    stop: int
    slot: int  # -1 where the next row of the ring has the observation after the last step
    has_begin: bool
    has_end: bool


def episodes_of(replay: RingRecord) -> Iterator[Episode]:
    """Yield the episodes that are in a replay buffer's ring, of one environment after the other.

    Those that the ring has only a part of are yielded too: the oldest one of an environment, whose
    beginning may be overwritten, and the one that goes on. Rows that are not `valid` belong to no
    episode. Where an episode was truncated and its final observation is not in the buffer, its
    last step is left out, as its transition is not known; so are the last `stack - 1` steps before
    a reset of all environments, where frames are stored once.

    One episode is read at a time, from a device by a few copies that the host waits for. The
    buffer must not change meanwhile.

    Args:
        replay: a buffer whose steps have one agent; for whole episodes of tasks that terminate,
            one made with `keep_terminated=True`, or to which `append` gave all final observations.

    Raises:
        RuntimeError: a batch is being written, or the buffer is closed.
        TypeError: there are several agents, or leaves whose elements differ in length.
        ValueError: an episode terminated, and its final observation is not in the buffer.

    >>> from parllel.replays import ReplayBuffer
    >>> samples = ArrayDict({"observation": Array((1, 1), np.float32, full_size=9, padding=1)})
    >>> samples["reward"] = Array((1, 1), np.float32, full_size=9)
    >>> samples["terminated"] = Array((1, 1), bool, full_size=9)
    >>> samples["truncated"] = Array((1, 1), bool, full_size=9)
    >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    >>> replay.reset([0])
    >>> more = {"reward": [1], "truncated": [False]}
    >>> replay.append([1], terminated=[False], **more)
    >>> replay.append([0], terminated=[True], final_obs={0: 2}, **more)
    >>> replay.append([1], terminated=[False], **more)
    >>> [(each.observation.tolist(), each.is_whole) for each in episodes_of(replay)]
    [([0.0, 1.0, 2.0], True), ([0.0, 1.0], False)]
    """
    if replay.agents is not None:
        raise TypeError("episodes: the ring has several agents, expected one: no form for them yet")
    steps = replay.steps
    if not steps:
        return
    slots = replay.final_obs.slot.to_ndarray()
    for column in range(replay.batch_B):
        for span in _spans(replay, column, steps, slots[:, column]):
            yield _read(replay, span)


def _spans(
    replay: RingRecord, column: int, steps: range, slots: NDArray[np.int32]
) -> Iterator[_Span]:
    """Yield the spans of the steps of one environment."""
    names = [name for name in ("terminated", "truncated", "valid") if name in replay.samples]
    rows = {name: replay.samples[name].full[:, column].to_ndarray() for name in names}
    terminated, truncated = ends_of_rows(rows)
    is_end = terminated | truncated
    is_valid = rows.get("valid", np.ones(replay.full_size, bool))
    numbers = np.arange(steps.start, steps.stop)
    is_mark = is_end | ~is_valid
    begin, has_begin = steps.start, _begins(replay, steps.start, is_end)
    for number in numbers[is_mark[numbers % replay.full_size]].tolist():
        row = number % replay.full_size
        slot = int(slots[row])
        if not is_valid[row]:  # what followed the step before lies in this row
            if number > begin:
                yield _Span(column, begin, number, -1, has_begin, has_end=False)
                has_begin = False
        elif slot >= 0:
            yield _Span(column, begin, number + 1, slot, has_begin, has_end=True)
            has_begin = True
        else:
            if terminated[row] and slot == NOT_GIVEN:
                raise ValueError(
                    f"episodes: an episode of environment {column} terminated at step {number}, and"
                    " its final observation is not in the buffer: make the buffer with"
                    " keep_terminated=True, or give it to append by final_obs"
                )
            if number > begin:
                yield _Span(column, begin, number, -1, has_begin, has_end=False)
            has_begin = True
        begin = number + 1
    if begin < steps.stop:
        yield _Span(column, begin, steps.stop, -1, has_begin, has_end=False)


def _begins(replay: RingRecord, number: int, is_end: NDArray[np.bool_]) -> bool:
    """Whether an episode begins with the oldest step: the flags of the one before may be there."""
    is_there = number > 0 and number - 1 >= replay.steps.stop - replay.full_size
    return number == 0 or (is_there and bool(is_end[(number - 1) % replay.full_size]))


def _read(replay: RingRecord, span: _Span) -> Episode:
    samples, column = replay.samples, span.column
    numbers = np.arange(span.begin, span.stop) % replay.full_size
    # Not row 0 after the ring's last one: that may be of the step that was written there since.
    with_next = np.append(numbers, numbers[-1] + 1)
    observation = _leaves(samples["observation"], "observation", replay, with_next, column)
    if span.slot >= 0:
        final = dict_map(_row, replay.final_obs.table, span.slot)
        places = (observation, final, samples["observation"])
        for (_, rows), (_, newest), (_, leaf) in zip(*map(leaves_of, places), strict=True):
            _put_last(rows, newest, leaf)
    branches = {
        name: _leaves(branch, name, replay, numbers, column)
        for name, branch in samples.items()
        if name not in _FIELDS and name not in replay._not_steps
    }
    terminated, truncated = (
        _leaves(samples[name], name, replay, numbers, column) for name in _FIELDS[1:3]
    )
    return Episode(
        column, observation, branches, terminated, truncated, span.has_begin, span.has_end
    )


def _leaves(
    branch: Array | ArrayDict, name: str, replay: RingRecord, rows: NDArray[Any], column: int
) -> Any:
    """Return rows of the ring [n, ...], copies of those of one environment."""
    tree = ArrayDict({name: branch})
    found = tree.apply(_ring_rows, replay.full_size, rows, column)
    for path, leaf in found.walk():
        if not isinstance(leaf, np.ndarray):
            raise TypeError(
                f"{path_text(path)}: its elements differ in length, expected leaves of one shape"
            )
    return found[name]


def _ring_rows(leaf: Array, full_size: int, rows: NDArray[Any], column: int) -> Any:
    n_behind = int(rows[-1] == full_size)  # the padding behind the ring
    found = leaf.full[0 : full_size + n_behind][rows, column].to_ndarray()
    is_plain = isinstance(found, np.ndarray) and not found.flags.writeable
    return found.copy() if is_plain else found


def _row(leaf: Array, slot: int) -> Any:
    return leaf[slot].to_ndarray()


def _put_last(rows: NDArray[Any], final: NDArray[Any], leaf: Array) -> None:
    """Write a final observation to the last row; of a stack, the table has the newest frame.

    Args:
        rows: [n, ...], overwritten; of stacks [n, *agents, stack, ...].
        final: the final observation, as the buffer's table has it.
        leaf: the ring's, whose batch dimensions tell those of agents.
    """
    if final.ndim == rows.ndim - 1:
        rows[-1] = final
        return
    stacks = np.moveaxis(rows, len(leaf.batch_shape) - N_BATCH + 1, 1)
    stacks[-1, :-1] = stacks[-2, 1:]
    stacks[-1, -1] = final

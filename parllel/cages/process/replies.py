"""Replies: what a worker tells its cage beside the rows that it writes, and how values are sent."""

from __future__ import annotations

import pickle
import struct
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from parllel.cages.episodes import TrajInfo


class Failure(NamedTuple):
    """An error that a worker caught.

    Args:
        error: the exception, pickled; None where it can't be.
        summary: what it says, without its traceback.
        text: its traceback.
        environment: that raised it; None if it was none of them.
    """

    error: bytes | None
    summary: str
    text: str
    environment: int | None


class Reply(NamedTuple):
    """What came of a command; an answer without a reply stands for an empty one.

    Args:
        results: those that the command has no place for, in their order.
        final_obs: true final observations by the number of the environment.
        completed: summaries of the episodes that ended, in the order of their ends.
        invalid: environments that were made anew: this step of theirs is no transition.
        restarted: tracebacks of the environments that were made anew, by their numbers.
        failure: the command was not carried out; only `completed` and `restarted` tell of it.
    """

    results: Sequence[Any] = ()
    final_obs: Mapping[int, Any] = {}
    completed: Sequence[TrajInfo] = ()
    invalid: Sequence[int] = ()
    restarted: Mapping[int, str] = {}
    failure: Failure | None = None


def dumps(value: Any, arrays: list[pickle.PickleBuffer] | None = None) -> bytes:
    """Pickle a value; by its definition what is of a class that only `__main__` has.

    Args:
        value: anything that cloudpickle can pickle.
        arrays: what arrays hold is appended here, in place of being copied.
    """
    taken: list[pickle.PickleBuffer] = []
    take = None if arrays is None else taken.append
    try:
        packed = pickle.dumps(value, 5, buffer_callback=take)
    except (pickle.PicklingError, AttributeError, TypeError):
        taken.clear()
        packed = cloudpickle.dumps(value, 5, buffer_callback=take)
    if arrays is not None:
        arrays += taken
    return packed


def describe_failure(error: BaseException, environment: int | None) -> Failure:
    """Return what can be sent of an error that was caught.

    Args:
        error: with its traceback.
        environment: that raised it; None if it was none of them.
    """
    summary = "".join(traceback.format_exception_only(error)).rstrip()
    text = "".join(traceback.format_exception(error))
    try:
        packed = dumps(error)
        pickle.loads(packed)  # many exceptions can be pickled, but not made again
    except Exception:
        return Failure(None, summary, text, environment)
    return Failure(packed, summary, text, environment)


class ReplyMemory:
    """Pickles replies, but leaves what their arrays hold in memory that both processes share.

    One reply is there at a time.

    Args:
        memory: uint8 [n]. Where arrays do not fit in, they are pickled.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory

    def pack(self, reply: Reply) -> bytes:
        """Return the message's body; the arrays stay in the memory until the next reply."""
        arrays: list[pickle.PickleBuffer] = []
        packed = dumps(tuple(reply), arrays)
        parts = [array.raw() for array in arrays]
        sizes = [part.nbytes for part in parts]
        if sum(sizes) > len(self._memory):
            sizes, parts, packed = [], [], dumps(tuple(reply))
        begin, target = 0, self._memory.data
        for part, size in zip(parts, sizes, strict=True):
            target[begin : begin + size] = part
            begin += size
        return struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + packed

    def unpack(self, body: bytes) -> Reply:
        """Return a reply whose arrays are copies: the next one may come."""
        (n_arrays,) = struct.unpack_from("<I", body)
        sizes = struct.unpack_from(f"<{n_arrays}Q", body, 4)
        begin, source, arrays = 0, self._memory.data, []
        for size in sizes:
            arrays.append(bytearray(source[begin : begin + size]))
            begin += size
        return Reply(*pickle.loads(memoryview(body)[4 + 8 * n_arrays :], buffers=arrays))

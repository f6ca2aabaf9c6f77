"""Reply: a worker's results that are not written to rows; and how values are pickled for it."""

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
from parllel.tree import TreePath
from parllel.tree.fitting import MisfitError


class Failure(NamedTuple):
    """An error that a worker caught.

    >>> failure = describe_failure(LookupError("no ball"), environment=2)
    >>> failure.summary, failure.environment
    ('LookupError: no ball', 2)

    Args:
        error: the exception, pickled; None where it can't be pickled and unpickled.
        summary: its type and message.
        text: its traceback, as Python prints it.
        environment: the number of the environment that raised it; None where none did.
    """

    error: bytes | None
    summary: str
    text: str
    environment: int | None


class Reply(NamedTuple):
    """The results of a command that are not written to rows.

    >>> Reply().final_obs
    {}

    Args:
        results: those that the command has no output for, in their order.
        final_obs: the true final observations, by the number of the environment.
        completed: the summaries of the episodes that ended, in the order of their ends.
        invalid: numbers of the environments that were made anew: their step is no transition.
        restarted: tracebacks of the environments that were made anew, by their numbers.
        failure: the error by which the command ended; then of the others, only `completed` and
            `restarted` are set.
        left_out: paths of the entries of infos that appeared, and are stored nowhere.
    """

    results: Sequence[Any] = ()
    final_obs: Mapping[int, Any] = {}
    completed: Sequence[TrajInfo] = ()
    invalid: Sequence[int] = ()
    restarted: Mapping[int, str] = {}
    failure: Failure | None = None
    left_out: Sequence[TreePath] = ()


def dumps(value: object, arrays: list[pickle.PickleBuffer] | None = None) -> bytes:
    """Pickle a value. An object whose class is defined in `__main__` is sent with its class.

    Args:
        value: anything that cloudpickle can pickle.
        arrays: the memory of NumPy arrays is appended here, and is not part of the result; None
            copies it to the result.
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


def misfit_of(reply: Reply) -> MisfitError | None:
    """Return an error that names the entry of a reply that can't be pickled; None if all can."""
    parts: list[tuple[int | None, str, object]] = []
    for result in reply.results:
        infos = result if isinstance(result, list) else [result]
        parts += [(number, "info", info) for number, info in enumerate(infos)]
    parts += [(number, "final_obs", value) for number, value in reply.final_obs.items()]
    parts += [(None, "summary of an episode", traj) for traj in reply.completed]
    for number, name, value in parts:
        found = _unpicklable(value, (name,))
        if found is not None:
            path, culprit = found
            return MisfitError(
                f"a {type(culprit).__name__}",
                "a value that can be pickled, as the worker sends it",
                environment=number,
                path=path,
                way_out="leave it out, or step the environment in this process (SerialCage)",
            )
    return None


def _unpicklable(value: object, path: TreePath) -> tuple[TreePath, object] | None:
    """Return the innermost part of a value that can't be pickled, with its path."""
    try:
        dumps(value)
    except Exception:  # any that the value's own class raises
        if isinstance(value, Mapping):
            for name, member in value.items():
                found = _unpicklable(member, (*path, str(name)))
                if found is not None:
                    return found
        return path, value
    return None


def describe_failure(error: BaseException, environment: int | None) -> Failure:
    """Return an error that was caught in a form that can be sent.

    Args:
        error: the exception, with its traceback.
        environment: the number of the environment that raised it; None where none did.
    """
    summary = "".join(traceback.format_exception_only(error)).rstrip()
    text = "".join(traceback.format_exception(error))
    try:
        packed = dumps(error)
        pickle.loads(packed)  # many exceptions can be pickled, but not made again
    except BaseException:  # raised by methods of the exception's own class
        return Failure(None, summary, text, environment)
    return Failure(packed, summary, text, environment)


class ReplyMemory:
    """Memory of both processes that carries the arrays of a reply; all else of it is pickled.

    It holds the arrays of one reply at a time.

    >>> memory = ReplyMemory(np.zeros(100, np.uint8))
    >>> body = memory.pack(Reply(results=[np.arange(3)]))
    >>> memory.unpack(body).results
    [array([0, 1, 2])]

    Args:
        memory: uint8 [n]. Arrays that do not fit in are pickled, too.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory

    def pack(self, reply: Reply) -> bytes:
        """Write the arrays of a reply to the memory; return all else, as the body of a message."""
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
        """Return the reply of a message's body, with copies of the arrays in the memory."""
        (n_arrays,) = struct.unpack_from("<I", body)
        sizes = struct.unpack_from(f"<{n_arrays}Q", body, 4)
        begin, source, arrays = 0, self._memory.data, []
        for size in sizes:
            arrays.append(bytearray(source[begin : begin + size]))
            begin += size
        return Reply(*pickle.loads(memoryview(body)[4 + 8 * n_arrays :], buffers=arrays))

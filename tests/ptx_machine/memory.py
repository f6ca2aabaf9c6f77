"""The memory that a launch may use: it holds every access against it and against other threads."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ptx_machine.faults import MisalignedError, OutOfBoundsError, RaceError

Addresses = npt.NDArray[np.int64]
Threads = npt.NDArray[np.int32]  # numbers of threads, from 1 on: 0 is none

_SEVERAL = -1  # in the place of a thread's number

READ, WRITE, CHANGE = "read", "write", "atomic"
"""The kinds of access; a change is one that takes its turn."""
_ARTICLES = {READ: "a", WRITE: "a", CHANGE: "an"}


class Block(NamedTuple):
    """Bytes that follow each other in memory."""

    address: int
    data: npt.NDArray[np.uint8]
    origin: object  # its text says which memory it is


class Shared(NamedTuple):
    """Two kinds of access that several threads may have to a byte all the same.

    Args:
        kind, other: the kinds.
        address: somewhere in the block that they may have it to; None for all memory.
    """

    kind: str
    other: str
    address: int | None = None


class DeviceMemory:
    """All that one launch may use, and which thread has used which byte.

    Threads of a launch run in any order, so a byte that one writes is no other one's, and one that
    is changed by atomics is used by nothing else.

    Args:
        blocks: what is allocated.
        allowed: exceptions from that.
    """

    def __init__(self, blocks: Sequence[Block], allowed: Collection[Shared] = ()) -> None:
        self._blocks = sorted((each for each in blocks if each.data.nbytes), key=_address_of)
        self._starts = np.array([block.address for block in self._blocks], np.int64)
        self._ends = self._starts + [block.data.nbytes for block in self._blocks]
        self._allowed = {self._locate(each) for each in allowed}
        self._users: dict[tuple[str, int], Threads] = {}

    def load(self, at: Addresses, dtype: np.dtype, n: int, threads: Threads) -> npt.NDArray[Any]:
        """Return what lies at addresses: [k, n] of the type."""
        values = np.empty((len(at), n), dtype)
        for number, picked, offsets in self._find(at, dtype.itemsize * n, READ, threads):
            values[picked] = self._window(number, dtype, n)[offsets]
        return values

    def store(self, at: Addresses, values: npt.NDArray[Any], threads: Threads) -> None:
        """Write [k, n] to addresses."""
        n = values.shape[1]
        for number, picked, offsets in self._find(at, values.itemsize * n, WRITE, threads):
            self._window(number, values.dtype, n)[offsets] = values[picked]

    def change(
        self,
        at: Addresses,
        values: npt.NDArray[Any],
        threads: Threads,
        by: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]],
    ) -> npt.NDArray[Any]:
        """Change numbers one after the other, in the order given; return what was there, [k]."""
        former = np.empty_like(values)
        for number, picked, offsets in self._find(at, values.itemsize, CHANGE, threads):
            window = self._window(number, values.dtype, 1)
            for item, offset in zip(picked.tolist(), offsets.tolist(), strict=True):
                former[item] = window[offset, 0]
                window[offset] = by(window[offset], values[item : item + 1])
        return former

    def _find(
        self, at: Addresses, nbytes: int, kind: str, threads: Threads
    ) -> Iterator[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.int64]]]:
        """Yield blocks, which of the addresses lie there, and how far from the beginning."""
        self._check(at, nbytes, threads)
        numbers = np.searchsorted(self._starts, at, side="right") - 1
        for number in np.unique(numbers).tolist():
            picked = np.flatnonzero(numbers == number)
            offsets = at[picked] - self._starts[number]
            self._note(number, offsets, nbytes, kind, threads[picked])
            yield number, picked, offsets

    def _check(self, at: Addresses, nbytes: int, threads: Threads) -> None:
        """Raise unless all bytes are there, at a multiple of their number."""
        if (wrong := at % nbytes != 0).any():
            raise MisalignedError(f"{_first(at, threads, wrong)}: no multiple of {nbytes}")
        numbers = np.searchsorted(self._starts, at, side="right") - 1
        is_inside = numbers >= 0
        is_inside[is_inside] = (at + nbytes)[is_inside] <= self._ends[numbers[is_inside]]
        if (wrong := ~is_inside).any():
            raise OutOfBoundsError(
                f"{_first(at, threads, wrong)}: {nbytes} bytes, {self._describe(at[wrong][0])}"
            )

    def _describe(self, address: int) -> str:
        if not self._blocks:
            return "and nothing is allocated"
        number = max(0, int(np.searchsorted(self._starts, address, side="right")) - 1)
        return f"and the nearest is {self._blocks[number].origin}"

    def _window(self, number: int, dtype: np.dtype, n: int) -> npt.NDArray[Any]:
        """Return a block's memory as the [n] of a type that begin at each of its bytes."""
        data = self._blocks[number].data
        shape = data.nbytes - dtype.itemsize * n + 1, n
        return np.ndarray(shape, dtype, data.data, strides=(1, dtype.itemsize))

    def _note(
        self, number: int, offsets: npt.NDArray[np.int64], nbytes: int, kind: str, threads: Threads
    ) -> None:
        """Raise if another thread used a byte in a way that does not go with this one."""
        mine = threads[:, None]
        for other in (READ, WRITE, CHANGE):
            may_share = kind == other != WRITE or self._is_allowed(number, kind, other)
            if may_share or (other != kind and (other, number) not in self._users):
                continue
            users = self._users_of(number, nbytes, other)[offsets]
            if (wrong := ((users != 0) & (users != mine)).any(axis=1)).any():
                self._refuse(
                    number, offsets, threads, wrong, f"{kind} beside {_ARTICLES[other]} {other}"
                )
        users = self._users_of(number, nbytes, kind)
        former = users[offsets]
        users[offsets] = now = np.where((former == 0) | (former == mine), mine, _SEVERAL)
        if (wrong := users[offsets] != now).any():  # several of them at once
            if kind == WRITE and not self._is_allowed(number, WRITE, WRITE):
                self._refuse(number, offsets, threads, wrong.any(axis=1), "write beside a write")
            is_lost = wrong.any(axis=1)
            users[offsets[is_lost]] = _SEVERAL

    def _locate(self, shared: Shared) -> tuple[frozenset[str], int | None]:
        """Return the kinds of an exception, and the number of its block."""
        kinds = frozenset((shared.kind, shared.other))
        if shared.address is None:
            return kinds, None
        return kinds, int(np.searchsorted(self._starts, shared.address, side="right")) - 1

    def _is_allowed(self, number: int, kind: str, other: str) -> bool:
        kinds = frozenset((kind, other))
        return (kinds, None) in self._allowed or (kinds, number) in self._allowed

    def _users_of(self, number: int, nbytes: int, kind: str) -> Threads:
        """Return who used each byte of a block, as a window of so many bytes."""
        n = self._blocks[number].data.nbytes
        if (kind, number) not in self._users:
            self._users[kind, number] = np.zeros(n, np.int32)
        users = self._users[kind, number]
        return np.ndarray((n - nbytes + 1, nbytes), np.int32, users.data, strides=(4, 4))

    def _refuse(
        self,
        number: int,
        offsets: npt.NDArray[np.int64],
        threads: Threads,
        wrong: npt.NDArray[np.bool_],
        what: str,
    ) -> None:
        block = self._blocks[number]
        raise RaceError(
            f"{_first(offsets + block.address, threads, wrong)}: {what} ({block.origin})"
        )


def _address_of(block: Block) -> int:
    return block.address


def _first(at: Addresses, threads: Threads, wrong: npt.NDArray[np.bool_]) -> str:
    return f"thread {threads[wrong][0] - 1}, address {at[wrong][0]:#x}"

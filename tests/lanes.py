"""Launches in plain Python, thread by thread, of entries whose lanes hand words to each other.

A thread can't wait for another one that has not run. So each launch runs twice: first all threads
say what they hand over, and write nothing; then each gets what the others said.
"""

import ctypes
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from copied_bytes import CopiedBytes
from parllel.kernels.targets import Axes, DeviceEntry, ThreadPosition, bind
from parllel.kernels.teams import WARP


class Own(NamedTuple):
    """What a lane loaded of the words in which 16 bytes lie."""

    first: bytes
    second: bytes | None  # None: it was not loaded
    is_handed: bool


class Given(NamedTuple):
    """What a lane hands over, and which lanes it expects to do so, too."""

    mates: int
    value: Any  # Any: an address, or a word


class Lane:
    """One thread; the names by which an entry exchanges words.

    Args:
        copied: tells what may be read.
        number: of the lane in its warp.
        warp: what all lanes of the warp have handed over, in the order of each lane's exchanges.
        is_rehearsed: whether this is the first run, which fills `warp`.
    """

    def __init__(
        self,
        copied: CopiedBytes,
        number: int,
        warp: defaultdict[int, list[Given]],
        *,
        is_rehearsed: bool,
    ) -> None:
        self._copied, self._number, self._warp = copied, number, warp
        self._is_rehearsed = is_rehearsed
        self.n_exchanges = 0
        self.names = {
            "is_handed": self._find_is_handed,
            "load_own": self._load_own,
            "load_around": self._load_around,
            "take_around": self._take_around,
            "word_at": lambda around, address: around[address % 16 :][:16],
        }

    def _exchange(self, mates: int, value: Any) -> Any:  # Any: as `Given` has it
        """Return what the next lane hands over; what this one does if it is the last of them."""
        assert mates >> self._number & 1, "a lane is one of those that it exchanges words with"
        at, given = self.n_exchanges, Given(mates, value)
        self.n_exchanges += 1
        if self._is_rehearsed:
            self._warp[self._number].append(given)
            return value
        assert self._warp[self._number][at] == given, "what is handed over depends on exchanges"
        for lane in range(WARP):
            if mates >> lane & 1:
                there = self._warp[lane][at : at + 1]
                assert [each.mates for each in there] == [mates], f"lane {lane} does not come"
        behind = self._number + 1
        return self._warp[behind][at].value if mates >> behind & 1 else value

    def _find_is_handed(self, address: int, mates: int) -> bool:
        first = address & ~15
        return bool(self._exchange(mates, first) == first + 16)

    def _load(self, address: int) -> bytes:
        self._copied.check_readable(address)
        return ctypes.string_at(address, 16)

    def _load_own(self, address: int, is_handed: bool) -> Own:
        first, second = address & ~15, address + 15 & ~15
        is_missing = first != second and not is_handed
        return Own(self._load(first), self._load(second) if is_missing else None, is_handed)

    def _load_around(self, address: int) -> bytes:
        return self._load(address & ~15) + self._load(address + 15 & ~15)

    def _take_around(self, own: Own, mates: int) -> bytes:
        theirs: bytes = self._exchange(mates, own.first)
        return own.first + (theirs if own.is_handed else own.second or own.first)


def launch_lanes(
    kernel: DeviceEntry,
    arguments: Sequence[object],
    copied: CopiedBytes,
    *,
    grid: Axes,
    block: Axes,
) -> None:
    """Run a kernel that copies, on one axis, as `targets.launch_plainly` does.

    Raises:
        AssertionError: lanes that should exchange words do not come together, or another
            expectation of `CopiedBytes` is wrong.
    """
    warps: dict[tuple[int, int], defaultdict[int, list[Given]]]
    warps = defaultdict(lambda: defaultdict(list))
    for is_rehearsed in (True, False):
        copied.is_rehearsed = is_rehearsed
        for number, thread in itertools.product(range(grid.x), range(block.x)):
            warp, lane_number = warps[number, thread // WARP], thread % WARP
            lane = Lane(copied, lane_number, warp, is_rehearsed=is_rehearsed)
            position = ThreadPosition(grid, Axes(number, 0), block, Axes(thread, 0))
            names = {**copied.names, **lane.names, "cuda": position}
            inline: Callable[[Any], Any] = lambda part: part  # noqa: E731  # Any: of all kinds
            bind(kernel.entry, kernel.parts, names, inline)(*arguments)
            assert lane.n_exchanges == len(warp[lane_number]), "a lane does not come any more"

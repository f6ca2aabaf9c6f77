"""Memory: the blocks of the simulated devices, poisoned and watched, and the host's locked pages.

New bytes are 0xFF: not a number in every float, -1 or the largest in integers. Freed bytes are
0xFE. Around each block lie guards, which are read when it is freed and at the end.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.testing.simulated_cuda.engine import Engine
from parllel.testing.simulated_cuda.errors import (
    LeakError,
    OutOfBoundsError,
    UseAfterFreeError,
    WrongDeviceError,
)
from parllel.testing.simulated_cuda.origins import find_origin

UNINITIALIZED = 0xFF
FREED = 0xFE
_GUARD = 0xFD
_GUARD_NBYTES = 512
_ALIGNMENT = 512  # of CuPy's pool
_KEPT_NBYTES = 2**27  # of freed blocks, whose poison is watched; the oldest go first


class Region:
    """Bytes that a device can reach: a block of its own memory, or what all devices can use.

    All of them can use managed memory and locked pages of the host.

    Args:
        engine: whose work uses the bytes.
        kind: "device", "managed", "foreign" or "page-locked".
        data: uint8 [nbytes]. The bytes.
        stream: address of the stream that the memory belongs to; it is freed in its order.
        device: number of the device whose memory it is, or that was current when it was made.
        guarded: the same bytes with guards around them, where there are any.
        give_back: called with the address when it is freed.
    """

    def __init__(
        self,
        engine: Engine,
        kind: str,
        data: NDArray[np.uint8],
        *,
        stream: int = 0,
        guarded: NDArray[np.uint8] | None = None,
        give_back: Callable[[int], None] | None = None,
    ) -> None:
        self.kind = kind
        self.data = data
        self.device = engine.thread.device
        self._engine = engine
        self.address = int(data.__array_interface__["data"][0])
        self.stream = stream
        self.give_back = give_back
        self.origin = find_origin()
        self.is_gone = False
        self._guarded = guarded

    @property
    def end(self) -> int:
        """Address behind the last byte."""
        return self.address + self.data.nbytes

    def check(self, name: str) -> None:
        """Raise if the region can't be used any more, or not by the work that runs now."""
        if self.is_gone:
            verb = "unlocked" if self.kind == "page-locked" else "freed"
            raise UseAfterFreeError(f"{name}: it uses {self} after it was {verb}")
        running = self._engine.running
        is_for_all = self.kind in ("managed", "page-locked")
        if running is not None and running.device != self.device and not is_for_all:
            raise WrongDeviceError(
                f"{name}: it is work of device {running.device}, and uses {self} of device"
                f" {self.device}; queue it while device {self.device} is the current one"
            )

    def check_guards(self) -> None:
        """Raise if bytes beside the region were written."""
        if self._guarded is not None:
            guarded, n = self._guarded, _GUARD_NBYTES
            if (guarded[:n] != _GUARD).any() or (guarded[-n:] != _GUARD).any():
                raise OutOfBoundsError(f"a kernel or a copy wrote beside {self}")

    def check_poison(self) -> None:
        """Raise if the region was written after it was freed."""
        if self.is_gone and self.kind != "page-locked" and (self.data != FREED).any():
            raise UseAfterFreeError(f"a kernel or a copy wrote into {self} after it was freed")

    def __repr__(self) -> str:
        return (
            f"{self.kind} memory of {self.data.nbytes:,} bytes at {self.address:#x}"
            f" (from {self.origin})"
        )


class Memory:
    """All memory that the simulated devices can reach.

    Args:
        engine: where freeing takes its turn.
        capacity: bytes of memory that each device has.
    """

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.capacity = capacity
        self._used: Counter[int] = Counter()  # by device
        self._engine = engine
        self._addresses: list[int] = []
        self._regions: dict[int, Region] = {}
        self._kept: deque[Region] = deque()
        self._kept_nbytes = 0
        self._dropped: deque[Region] = deque()  # by finalizers, which may run anywhere
        engine.before_work = self.collect

    def used_by(self, device: int) -> int:
        """Return the bytes of a device that are allocated."""
        return self._used[device]

    @property
    def used(self) -> int:
        """Bytes of all devices that are allocated."""
        return self._used.total()

    def allocate(self, nbytes: int, *, kind: str, stream: int) -> Region:
        """Return a new, poisoned block of the current device; MemoryError if it has too little."""
        with self._engine.lock:
            self.collect()
            device = self._engine.thread.device
            free = self.capacity - self._used[device]
            if nbytes > free:
                raise MemoryError(f"{nbytes:,} bytes wanted, {free:,} free")
            raw = np.full(nbytes + 2 * _GUARD_NBYTES + _ALIGNMENT, UNINITIALIZED, np.uint8)
            start = _GUARD_NBYTES + -(raw.ctypes.data + _GUARD_NBYTES) % _ALIGNMENT
            guarded = raw[start - _GUARD_NBYTES : start + nbytes + _GUARD_NBYTES]
            guarded[:_GUARD_NBYTES] = guarded[nbytes + _GUARD_NBYTES :] = _GUARD
            data = guarded[_GUARD_NBYTES : _GUARD_NBYTES + nbytes]
            self._used[device] += nbytes
            return self._add(Region(self._engine, kind, data, stream=stream, guarded=guarded))

    def adopt(
        self, address: int, nbytes: int, *, stream: int, give_back: Callable[[int], None]
    ) -> Region:
        """Return a block that a user's allocator made, and takes back when it is freed."""
        data = bytes_at(address, nbytes)
        region = Region(self._engine, "foreign", data, stream=stream, give_back=give_back)
        return self._add(region)

    def drop(self, region: Region) -> None:
        """Free a block, in the order of its stream. Called by finalizers: takes no lock."""
        self._dropped.append(region)

    def lock_pages(self, address: int, nbytes: int) -> bool:
        """Make host memory reachable. Return False where a part of it is already."""
        with self._engine.lock:
            at = bisect.bisect_left(self._addresses, address + nbytes)
            before = self._regions[self._addresses[at - 1]] if at else None
            if before is not None and before.end > address and not before.is_gone:
                return False
            self._add(Region(self._engine, "page-locked", bytes_at(address, nbytes)))
            return True

    def unlock_pages(self, address: int) -> bool:
        """Undo `lock_pages`. Waits for nothing. Return False where nothing was locked."""
        with self._engine.lock:
            region = self._regions.get(address)
            if region is None or region.kind != "page-locked":
                return False
            region.is_gone = True
            self._forget(region)
            return True

    def find(self, address: int) -> Region | None:
        """Return the region that holds an address, also one that was freed lately."""
        at = bisect.bisect_right(self._addresses, address)
        region = self._regions[self._addresses[at - 1]] if at else None
        return region if region is not None and address < region.end else None

    def find_locked(self, array: NDArray[Any]) -> Region | None:
        """Return the page-locked region that holds all of a host array; None for other memory."""
        first = int(array.__array_interface__["data"][0])
        region = self.find(first)
        if region is None or region.kind != "page-locked" or first + array.nbytes > region.end:
            return None
        return region

    def check(self, address: int, nbytes: int, name: str) -> None:
        """Raise unless the device may use these bytes now."""
        region = self.find(address)
        if region is None:
            raise OutOfBoundsError(f"{name}: no memory of the device at {address:#x}")
        region.check(name)
        if address + nbytes > region.end:
            raise OutOfBoundsError(
                f"{name}: {nbytes:,} bytes at {address:#x} reach beyond {region}"
            )

    def collect(self) -> None:
        """Queue the freeing of all blocks that were dropped."""
        while self._dropped:
            region = self._dropped.popleft()
            if region.give_back is None:  # a pool may give it out at once, in its order
                self._used[region.device] -= region.data.nbytes
            if region.kind == "managed":  # cudaFree waits for the device
                self._engine.wait_for_all()
                self._free(region)
            else:
                free = functools.partial(self._free, region)
                name, place = f"freeing {region}", region.device
                self._engine.queue(region.stream, name, free, is_recorded=False, device=place)

    def reachable(self) -> list[Region]:
        """Return what work may use now; unlike `live`, it runs nothing."""
        return [region for region in self._regions.values() if not region.is_gone]

    def live(self) -> list[Region]:
        """Return what is allocated or locked."""
        self.collect()
        self._engine.wait_for_all()
        return self.reachable()

    def assert_no_leaks(self) -> None:
        """Raise if anything is still allocated or locked."""
        live = self.live()
        if live:
            raise LeakError(f"still there: {', '.join(map(repr, live))}")

    def check_all(self) -> None:
        """Raise if bytes beside a block, or of a freed one, were written."""
        for region in self._regions.values():
            region.check_guards()
            region.check_poison()

    def _free(self, region: Region) -> None:
        region.is_gone = True
        region.check_guards()
        if region.give_back is not None:
            self._forget(region)
            region.give_back(region.address)
            return
        region.data[...] = FREED
        self._kept.append(region)
        self._kept_nbytes += region.data.nbytes
        while self._kept_nbytes > _KEPT_NBYTES:
            oldest = self._kept.popleft()
            self._kept_nbytes -= oldest.data.nbytes
            self._forget(oldest)
            oldest.check_poison()

    def _add(self, region: Region) -> Region:
        self._regions[region.address] = region
        bisect.insort(self._addresses, region.address)
        return region

    def _forget(self, region: Region) -> None:
        del self._regions[region.address]
        self._addresses.remove(region.address)


def bytes_at(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Return bytes of this process at an address, which must be there."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

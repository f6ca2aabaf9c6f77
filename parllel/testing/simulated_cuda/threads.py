"""ThreadState: which device and which streams are the current ones of a thread."""

from __future__ import annotations

import threading


class ThreadState(threading.local):
    """A thread's own current device, and its current stream of each device.

    Every thread begins with device 0, and with each device's default stream.

    >>> state = ThreadState()
    >>> state.push(0x5000)
    >>> state.device = 1
    >>> state.stream  # of device 1
    0
    >>> state.device = 0
    >>> state.stream == 0x5000
    True
    """

    def __init__(self) -> None:
        self.device = 0
        self._streams: dict[int, list[int]] = {}  # addresses, by device; the last one is current
        self._entered: list[int] = []  # devices of the streams that were pushed

    @property
    def stream(self) -> int:
        """Address of the current stream of the current device."""
        return self.stream_of(self.device)

    def stream_of(self, device: int) -> int:
        """Return the address of a device's current stream; 0 is its default stream."""
        return self._streams[device][-1] if device in self._streams else 0

    def use(self, address: int) -> None:
        """Replace the current stream of the current device."""
        self._streams.setdefault(self.device, [0])[-1] = address

    def push(self, address: int) -> None:
        """Make a stream the current one of the current device, until `pop`."""
        self._streams.setdefault(self.device, [0]).append(address)
        self._entered.append(self.device)

    def pop(self) -> None:
        """Undo the last `push`, whichever device is current by now."""
        self._streams[self._entered.pop()].pop()

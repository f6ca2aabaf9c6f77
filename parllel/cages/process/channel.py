"""Channel: small messages between a cage and its worker, in both directions, in their order."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

# What a message is about. Up: from the cage to the worker.
SET_UP, BLOCK, INHERITED, FORGET, FORM, EXECUTE, RECOVER = range(7)
# Down: from the worker to the cage.
READY, DONE = range(10, 12)

_HEADER = struct.Struct("<IIIIQ")  # kind, argument, number, sequence, bytes of the body
_INLINE = 32_768  # a body up to here travels with its header
_CHUNK = 65_536  # packets of larger ones; the system's default buffers hold three
_GONE = "the other end of the channel is gone"


class Message(NamedTuple):
    """What was received.

    Args:
        kind: one of the constants of this module.
        number: what it is about: a block, a form, or nothing.
        body: bytes.
        argument: of a command, from 0 on.
        sequence: tells a command and its answer from others, and from the same ones sent again.
    """

    kind: int
    number: int
    body: bytes
    argument: int
    sequence: int


def pack(
    kind: int, number: int = 0, body: bytes = b"", argument: int = 0, sequence: int = 0
) -> bytes:
    """Return a message of 32 KiB at most, to be posted."""
    return _HEADER.pack(kind, argument, number, sequence, len(body)) + body


class Channel:
    """One end of a pair of connected sockets that keep the boundaries of messages.

    What one side wrote to shared memory before it sent a message, the other side sees when it has
    received it.

    Args:
        end: a socket of kind SOCK_SEQPACKET, which this object closes.
        timeout_s: for the other end to make room for a message, or to send the rest of one; None
            waits for ever.

    Attributes:
        is_cut: whether the reading of a large message was cut short (by Ctrl-C), so that nobody
            can tell where the next one begins.
    """

    def __init__(self, end: socket.socket, timeout_s: float | None = None) -> None:
        end.setblocking(True)  # it has another's descriptor, or `socket.setdefaulttimeout`
        if timeout_s is not None:
            fraction, seconds = math.modf(timeout_s)
            limit = struct.pack("@ll", int(seconds), max(int(fraction * 1e6), 1))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._end = end
        self.is_cut = False
        self._buffer = bytearray(_HEADER.size + _CHUNK)

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._end.fileno()

    def post(self, packed: bytes) -> None:
        """Send what `pack` made.

        Raises:
            OSError: the other end is gone, or did not make room in time.
        """
        self._end.send(packed)

    def send(
        self,
        kind: int,
        number: int = 0,
        body: bytes = b"",
        descriptors: Sequence[int] = (),
        sequence: int = 0,
    ) -> None:
        """Send a message of any size, with descriptors of files (`read_descriptors`).

        Raises:
            OSError: as for `post`.
        """
        if len(body) <= _INLINE:
            self._end.send(pack(kind, number, body, 0, sequence))
        else:
            self._end.send(_HEADER.pack(kind, 0, number, sequence, len(body)))
            for begin in range(0, len(body), _CHUNK):
                self._end.send(body[begin : begin + _CHUNK])
        if descriptors:
            socket.send_fds(self._end, [b"\0"], descriptors)

    def read(self) -> Message:
        """Return the next message, and wait for it.

        Raises:
            EOFError: the other end is gone.
            OSError: the rest of a message did not come in time.
        """
        n_bytes = self._receive()
        kind, argument, number, sequence, n_body = _HEADER.unpack_from(self._buffer)
        body = bytes(memoryview(self._buffer)[_HEADER.size : n_bytes])
        if len(body) < n_body:
            parts, self.is_cut = [], True
            while n_body > 0:
                n_bytes = self._receive()
                parts.append(bytes(memoryview(self._buffer)[:n_bytes]))
                n_body -= n_bytes
            body, self.is_cut = b"".join(parts), False
        return Message(kind, number, body, argument, sequence)

    def read_descriptors(self, n: int) -> list[int]:
        """Return the descriptors that came with the message that was read last."""
        packet, descriptors = receive_descriptors(self._end, n)
        if not packet:
            raise EOFError(_GONE)
        return descriptors

    def _receive(self) -> int:
        n_bytes = self._end.recv_into(self._buffer)
        if not n_bytes:
            raise EOFError(_GONE)
        return n_bytes

    def shut_down(self) -> None:
        """Have both ends find the other one gone, also where another process holds a copy of one.

        What was sent before can still be read at the other end. An end that waits to send does not
        wait any more.

        Raises:
            OSError: the other end is gone.
        """
        self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Called again, it does nothing."""
        self._end.close()


def receive_descriptors(end: socket.socket, n: int) -> tuple[bytes, list[int]]:
    """Receive one small packet with up to n descriptors, which no program started here inherits.

    Returns:
        The packet, empty where the other end is gone, and the descriptors.
    """
    packet, descriptors, _, _ = socket.recv_fds(end, 64, n, socket.MSG_CMSG_CLOEXEC)
    return packet, list(descriptors)

"""Channel: small messages between a cage and its worker, which arrive in the order of sending."""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

# Kinds of messages from the cage to the worker.
SET_UP, BLOCK, INHERITED, FORGET, FORM, EXECUTE, RECOVER, SEED, STATE = range(9)
# Kinds of messages from the worker to the cage.
READY, DONE = range(10, 12)

_HEADER = struct.Struct("<IIIIQ")  # kind, argument, number, sequence, bytes of the body
_INLINE = 32_768  # bytes: a body of at most this size is sent in one packet with its header
_CHUNK = 65_536  # bytes of a packet of larger bodies; the system's default buffers hold three
_LARGEST = 2**30  # bytes of a body: no more are read, whatever length a message announces
_MOST_DESCRIPTORS = 200  # of a packet: the system takes 253
_CLOSED = "the other end of the channel is closed"


class GarbageError(Exception):
    """A packet arrived that is no part of a message: something else writes to the socket."""


class Message(NamedTuple):
    """A message that was received.

    >>> Message(READY, 0, b"spaces", 0, 0).body
    b'spaces'

    Args:
        kind: one of the constants of this module.
        number: the number of the block or of the command form that it is about; else 0.
        body: its content.
        argument: the number of random steps of a command; else 0.
        sequence: the number of a command, which its reply bears too. A message that is sent again
            keeps it.
    """

    kind: int
    number: int
    body: bytes
    argument: int
    sequence: int


def pack(
    kind: int, number: int = 0, body: bytes = b"", argument: int = 0, sequence: int = 0
) -> bytes:
    """Return a message as one packet for `Channel.post`; its body has 32 KiB at most."""
    return _HEADER.pack(kind, argument, number, sequence, len(body)) + body


class Channel:
    """One end of a pair of connected sockets that keep the boundaries of messages.

    When one side has received a message, it sees all that the other side wrote to shared memory
    before it sent the message.

    >>> ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    >>> cage, worker = map(Channel, ends)
    >>> cage.send(FORGET, 3)
    >>> worker.read().number
    3
    >>> cage.close()
    >>> worker.close()

    Args:
        end: a socket of kind SOCK_SEQPACKET, which this object closes.
        timeout_s: longest wait until the other end makes room for a message, or sends the rest of
            one; None waits for ever.

    Attributes:
        is_cut: whether the reading of a large message was cut short (by Ctrl-C). The rest of it
            can't be told from the next message.
    """

    def __init__(self, end: socket.socket, timeout_s: float | None = None) -> None:
        # Not blocking after `socket.setdefaulttimeout`, or where its other holder has set that
        # (test_a_default_timeout_of_sockets_is_none_of_a_worker).
        end.setblocking(True)
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
        """Send a packet that `pack` returned.

        Raises:
            OSError: the other end is closed, or did not make room in time.
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
            ValueError: the body has more than 1 GiB.
        """
        if len(body) > _LARGEST:
            raise ValueError(
                f"message: got {len(body):,} bytes, expected {_LARGEST:,} at most; give outputs"
                " (`out_...`) for large results, and keep large arrays out of infos"
            )
        if len(body) <= _INLINE:
            self._end.send(pack(kind, number, body, 0, sequence))
        else:
            self._end.send(_HEADER.pack(kind, 0, number, sequence, len(body)))
            for begin in range(0, len(body), _CHUNK):
                self._end.send(body[begin : begin + _CHUNK])
        for begin in range(0, len(descriptors), _MOST_DESCRIPTORS):
            some = descriptors[begin : begin + _MOST_DESCRIPTORS]
            socket.send_fds(self._end, [b"\0"], some)

    def read(self) -> Message:
        """Wait for the next message and return it.

        Raises:
            EOFError: the other end is closed.
            OSError: the rest of a message did not come in time.
            GarbageError: what arrived is no message, or announces more than 1 GiB.
        """
        n_bytes = self._receive()
        if n_bytes < _HEADER.size:
            raise GarbageError(f"a message of {n_bytes} bytes, which is less than its header has")
        kind, argument, number, sequence, n_body = _HEADER.unpack_from(self._buffer)
        body, n_inline = b"", n_bytes - _HEADER.size
        if n_inline != n_body or n_body > _INLINE:
            if n_body > _LARGEST or n_inline:
                raise GarbageError(f"a message of {n_inline:,} bytes that announces {n_body:,}")
            body = self._read_rest(n_body)
        elif n_body:
            body = bytes(memoryview(self._buffer)[_HEADER.size : n_bytes])
        return Message(kind, number, body, argument, sequence)

    def _read_rest(self, n_body: int) -> bytes:
        """Return a body of so many bytes, which comes in packets of its own."""
        if n_body <= _INLINE:
            raise GarbageError(f"a message without its {n_body:,} bytes")
        parts, self.is_cut = [], True
        while n_body > 0:
            n_bytes = self._receive()
            if n_bytes != min(n_body, _CHUNK):
                raise GarbageError(f"a packet of {n_bytes:,} bytes where {n_body:,} are missing")
            parts.append(bytes(memoryview(self._buffer)[:n_bytes]))
            n_body -= n_bytes
        self.is_cut = False
        return b"".join(parts)

    def read_descriptors(self, n: int) -> list[int]:
        """Return the n descriptors that came with the message that was read last.

        Raises:
            EOFError: the other end is closed.
            OSError: this process may have no more open files.
        """
        received: list[int] = []
        for begin in range(0, n, _MOST_DESCRIPTORS):
            n_sent = min(n - begin, _MOST_DESCRIPTORS)
            packet, descriptors = receive_descriptors(self._end, n_sent)
            received += descriptors
            if not packet:
                raise EOFError(_CLOSED)
            if len(descriptors) < n_sent:  # the system has dropped the others
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return received

    def _receive(self) -> int:
        n_bytes = self._end.recv_into(self._buffer)
        if not n_bytes:
            raise EOFError(_CLOSED)
        return n_bytes

    def shut_down(self) -> None:
        """Let each end find that the other one is closed, even if another process has a copy of it.

        Messages that were sent before can still be read at the other end. An end that waits to
        send waits no more.

        Raises:
            OSError: the other end is closed.
        """
        self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Called again, it does nothing."""
        self._end.close()


def receive_descriptors(end: socket.socket, n: int) -> tuple[bytes, list[int]]:
    """Receive one small packet with up to n descriptors.

    Programs that this process starts do not inherit these descriptors.

    Returns:
        The packet, empty where the other end is closed, and the descriptors.
    """
    # Not by `socket.recv_fds`, which ignores its flags in Python 3.11
    # (test_a_program_that_an_environment_starts_has_none_of_its_descriptors).
    descriptors = array("i")
    room = socket.CMSG_LEN(n * descriptors.itemsize)
    packet, ancillary, _, _ = end.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return packet, descriptors.tolist()

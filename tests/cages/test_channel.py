"""Channel: messages arrive whole and in order, and every wait for the other end has an end."""

import os
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import pytest

from parllel.cages.process import channel
from parllel.cages.process.channel import (
    BLOCK,
    EXECUTE,
    FORM,
    Channel,
    GarbageError,
    pack,
    receive_descriptors,
)

SIZES = (0, 1, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537, 131_072, 200_001)
SHORT_S = 0.1


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return two connected sockets, and fail where a test waits for longer than 20 s."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it still waits after 20 s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Ends = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("size", SIZES)
def test_a_body_of_any_size_arrives_whole_and_the_next_message_behind_it(
    size: int, ends: Ends
) -> None:
    cage, worker = map(Channel, ends)
    body = bytes(number % 251 for number in range(size))
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)
    cage.send(FORM, 7, body, sequence=2**32 - 1)
    cage.send(EXECUTE, 8)
    message = worker.read()
    assert (message.kind, message.number, message.sequence) == (FORM, 7, 2**32 - 1)
    assert message.body == body
    assert not worker.is_cut
    assert worker.read().number == 8


def test_a_packet_that_is_posted_is_a_message(ends: Ends) -> None:
    cage, worker = map(Channel, ends)
    cage.post(pack(EXECUTE, 3, b"offsets", argument=5, sequence=9))
    assert worker.read() == (EXECUTE, 3, b"offsets", 5, 9)


def test_the_rest_of_a_message_is_not_awaited_for_ever(ends: Ends) -> None:
    cage, worker = Channel(ends[0], SHORT_S), Channel(ends[1])
    header = pack(FORM, body=b"")[:-8] + (100_000).to_bytes(8, "little")
    worker.post(header)
    with pytest.raises(BlockingIOError):
        cage.read()
    assert cage.is_cut


HEADER = pack(FORM)


@pytest.mark.parametrize(
    "packets",
    [
        [b"garbage"],
        [HEADER[:-8] + (2**63).to_bytes(8, "little")],
        [HEADER + b"more than it announces"],
        [HEADER[:-8] + (9).to_bytes(8, "little") + b"less"],
        [HEADER[:-8] + (70_000).to_bytes(8, "little"), bytes(70_001)],
        [HEADER[:-8] + (70_000).to_bytes(8, "little"), bytes(10)],
        [HEADER[:-8] + (70_000).to_bytes(8, "little") + bytes(10)],
    ],
)
def test_what_is_no_message_is_told(packets: list[bytes], ends: Ends) -> None:
    for packet in packets:
        ends[0].send(packet)
    with pytest.raises(GarbageError):
        Channel(ends[1]).read()


def test_a_message_that_is_too_large_is_not_sent(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_LARGEST", 50_000)
    with pytest.raises(ValueError, match="message: got 50,001 bytes, expected 50,000 at most"):
        Channel(ends[0]).send(FORM, body=bytes(50_001))


def test_room_for_a_message_is_not_awaited_for_ever(ends: Ends) -> None:
    cage = Channel(ends[0], SHORT_S)

    def fill() -> None:
        for _ in range(10_000):
            cage.send(FORM, body=bytes(30_000))

    with pytest.raises(BlockingIOError):
        fill()


def test_a_time_below_a_microsecond_is_not_for_ever(ends: Ends) -> None:
    with pytest.raises(BlockingIOError):
        Channel(ends[0], 1e-9).read()


def test_a_default_timeout_does_not_reach_a_channel(ends: Ends) -> None:
    ends[0].settimeout(0)
    own = Channel(ends[0])
    assert ends[0].gettimeout() is None
    Channel(ends[1]).send(EXECUTE)
    assert own.read().kind == EXECUTE


def test_descriptors_come_with_their_message_and_no_program_inherits_them(ends: Ends) -> None:
    cage, worker = map(Channel, ends)
    reader, writer = os.pipe()
    cage.send(BLOCK, 4, b"", [writer])
    os.close(writer)
    assert worker.read().number == 4
    (received,) = worker.read_descriptors(1)
    assert not os.get_inheritable(received)
    os.write(received, b"through")
    os.close(received)
    assert os.read(reader, 10) == b"through"
    os.close(reader)


def test_descriptors_that_were_not_sent_are_an_error(ends: Ends) -> None:
    cage, worker = map(Channel, ends)
    cage.close()
    with pytest.raises(EOFError, match="the other end of the channel is closed"):
        worker.read_descriptors(1)
    assert receive_descriptors(ends[1], 1) == (b"", [])


def test_a_channel_that_is_shut_down_is_closed_though_another_holds_its_end(ends: Ends) -> None:
    cage, worker = map(Channel, ends)
    copy = os.dup(cage.fileno())
    cage.send(EXECUTE, 1)
    cage.shut_down()
    assert worker.read().number == 1  # it was sent before
    with pytest.raises(EOFError):
        worker.read()
    with pytest.raises(BrokenPipeError):
        worker.send(EXECUTE)
    os.close(copy)

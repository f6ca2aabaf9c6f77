"""ForkClient: the program's end of the fork server, which starts and signals its workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from parllel.cages.process.fork_server import FORK, REQUEST, RESPONSE, SIGNAL, serve
from parllel.cages.process.interpreter import import_path, interpreter_flags
from parllel.cages.process.processors import ONE_THREAD
from parllel.storages import Memory, inherited_blocks

START_S = 60.0  # longest wait for the server to import what workers need: 0.3 s on an idle machine
_END_S = 5.0  # longest wait for the server to end

_BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from parllel.cages.process.fork_server import serve; serve({descriptor}, {program})"
)


class Forked(NamedTuple):
    """A worker that was started; `ForkClient` has an example.

    Args:
        process: the number of its process.
        exit_pipe: a descriptor that can be read when the worker has ended. Then it holds an
            `EXIT_CODE`, or nothing where the server ended first.
        client: the client that started it, and can signal it.
    """

    process: int
    exit_pipe: int
    client: ForkClient


class ForkClient:
    """Starts a fork server, and asks it for workers.

    >>> from parllel.cages.process.fork_server import EXIT_CODE
    >>> from parllel.cages.process.status_page import StatusPage
    >>> client, page = ForkClient(), StatusPage()
    >>> ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    >>> worker = client.fork(theirs, page.descriptor)
    >>> ours.close()  # the worker finds its cage gone, and ends
    >>> theirs.close()
    >>> EXIT_CODE.unpack(os.read(worker.exit_pipe, EXIT_CODE.size))
    (0,)
    >>> os.close(worker.exit_pipe)
    >>> page.close()
    >>> client.close()

    Args:
        inherits: whether the server is forked from this process, with all that this has in
            memory; otherwise it is a new program.

    Attributes:
        is_shared: whether all cages use this client whose workers inherit nothing.
        inherited: the blocks of memory that workers have from their start.
    """

    def __init__(self, *, inherits: bool = False) -> None:
        self._lock = threading.Lock()  # for requests that have a response: one at a time
        self._n_requests = 0
        self.is_shared = not inherits
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inherited: Collection[Memory] = inherited_blocks() if inherits else ()
        try:
            with theirs:
                server = _fork_server(ours, theirs) if inherits else _start_server(theirs)
        except BaseException:
            ours.close()
            raise
        ours.settimeout(START_S)
        self._end = ours
        self.close = weakref.finalize(self, _close, ours, server, os.getpid())

    def fork(self, end: socket.socket, page_descriptor: int) -> Forked:
        """Start a worker.

        Args:
            end: the worker's end of its socket.
            page_descriptor: the file of its status page. Both are sent; the caller closes its own.

        Raises:
            OSError: the system has no process or descriptor left, or the server has ended.
        """
        exit_pipe, exit_pipe_end = os.pipe()
        outputs = [1, 2] if _is_open(1) and _is_open(2) else []
        try:
            with self._lock:
                process = self._request([end.fileno(), exit_pipe_end, page_descriptor, *outputs])
            if process < 0:
                raise OSError(-process, f"no worker process: {os.strerror(-process)}")
        except BaseException:
            os.close(exit_pipe)
            raise
        finally:
            os.close(exit_pipe_end)
        return Forked(process, exit_pipe, self)

    def _request(self, descriptors: Sequence[int]) -> int:
        """Return the process of a new worker with these descriptors, or minus an error's number."""
        self._n_requests += 1
        packed = REQUEST.pack(FORK, self._n_requests, len(descriptors))
        socket.send_fds(self._end, [packed], descriptors)
        while packet := self._end.recv(RESPONSE.size):
            request, process = RESPONSE.unpack(packet)
            # Not the response to an earlier request whose wait was cut short
            # (test_a_worker_that_was_not_waited_for_is_not_taken_for_the_next).
            if request == self._n_requests:
                return int(process)
        raise ConnectionResetError("the process that forks workers has ended")

    def send_signal(self, process: int, number: signal.Signals) -> None:
        """Signal a worker; nothing happens where it has ended."""
        with suppress(OSError):  # the server has ended, and its workers with it
            self._end.send(REQUEST.pack(SIGNAL, process, number))


# The client of this process. It is kept when cages are closed: a start takes a third of a second.
_client: ForkClient | None = None
_client_lock = threading.Lock()


def fork_worker(end: socket.socket, page_descriptor: int) -> Forked:
    """Start a worker by the `ForkClient` that all cages share; arguments are those of its `fork`.

    Raises:
        OSError: as for `fork`; but a server that has ended is replaced.
    """
    client = _client_but()
    try:
        return client.fork(end, page_descriptor)
    except (ConnectionError, TimeoutError):  # the server was killed: once more, with a new one
        return _client_but(client).fork(end, page_descriptor)


def _client_but(lost: ForkClient | None = None) -> ForkClient:
    """Return the client of this process; a new one where there is none, or only the lost one."""
    global _client
    with _client_lock:
        if _client is lost:  # otherwise another thread has replaced it before
            _client = ForkClient()
        assert _client is not None
        return _client


def _forget_parents_client() -> None:
    """In a forked child, forget the parent's client, and a lock that its threads may have held."""
    global _client, _client_lock
    _client, _client_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_forget_parents_client)


def _start_server(end: socket.socket) -> subprocess.Popen[bytes]:
    boot = _BOOT.format(path=import_path(), descriptor=end.fileno(), program=os.getpid())
    return subprocess.Popen(
        [sys.executable, *interpreter_flags(), "-c", boot],
        pass_fds=[end.fileno()],
        stdin=subprocess.DEVNULL,
        env=os.environ | ONE_THREAD,
        start_new_session=True,  # Ctrl-C is for the program, which then closes its cages
    )


def _fork_server(ours: socket.socket, end: socket.socket) -> BaseProcess:
    arguments = ours, end.detach(), os.getpid()
    server = multiprocessing.get_context("fork").Process(
        target=_serve_forked, args=arguments, daemon=True
    )
    this = multiprocessing.current_process()
    was_daemon, this.daemon = this.daemon, False  # a daemonic process may have no children
    try:
        server.start()
    finally:
        this.daemon = was_daemon
        os.close(arguments[1])
    return server


def _serve_forked(ours: socket.socket, descriptor: int, program: int) -> None:
    """Serve in a process that is forked from the program."""
    ours.close()
    os.setsid()
    multiprocessing.current_process().daemon = False  # environments may have children
    # The program's handlers of signals are not for workers.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    serve(descriptor, program)


def _close(end: socket.socket, server: subprocess.Popen[bytes] | BaseProcess, owner: int) -> None:
    """Close the socket, whereupon the server ends; kill it where it does not."""
    end.close()
    if os.getpid() != owner:  # the server is the parent's, which waits for its end
        if isinstance(server, subprocess.Popen):
            server.returncode = 0
    elif not _has_ended(server, _END_S):
        server.kill()
        _has_ended(server, _END_S)


def _has_ended(server: subprocess.Popen[bytes] | BaseProcess, timeout_s: float) -> bool:
    """Wait for the server to end and reap it; tell whether it has ended."""
    if isinstance(server, subprocess.Popen):
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout_s)
        return server.returncode is not None
    server.join(timeout_s)
    has_ended = not server.is_alive()
    if has_ended:
        server.close()
    return has_ended


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True

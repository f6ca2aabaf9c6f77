"""The process that forks workers: it runs no environment, and dies with the program it is for.

It has imported what workers need and nothing else, so a worker starts in milliseconds, with one
thread, without torch or CuPy, and without the program's `__main__`. `fork_client` starts it.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from parllel.cages.process.channel import receive_descriptors

REQUEST = struct.Struct("<iii")  # FORK, request, descriptors; or SIGNAL, process, signal
RESPONSE = struct.Struct("<ii")  # the request; the new process, or minus the error's number
EXIT_CODE = struct.Struct("<i")  # of a worker that has ended, as `os.waitstatus_to_exitcode` has it
FORK, SIGNAL = range(2)

_MOST_DESCRIPTORS = 8
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def serve(descriptor: int, program: int) -> None:
    """Fork workers as they are asked for, until the program ends or closes its socket.

    Args:
        descriptor: of the socket that requests come by.
        program: the process that started this one.
    """
    # Here, not above: the program itself imports this module, and runs no worker.
    from parllel.cages.process.worker import run_worker

    gc.collect()
    gc.freeze()  # a child's garbage collection would copy all pages otherwise
    with socket.socket(fileno=descriptor) as end:
        ForkServer(end, program, run_worker).run()


class ForkServer:
    """Forks, signals and reaps workers.

    A worker leads a process group of its own. When it has ended, whatever its environments have
    left running in that group is killed.

    Args:
        end: the socket for requests.
        program: the process that is served.
        run_worker: is called in each new worker, with its socket and the descriptor of its status
            page.
    """

    def __init__(
        self, end: socket.socket, program: int, run_worker: Callable[[socket.socket, int], None]
    ) -> None:
        self._end = end
        self._run_worker = run_worker
        self._workers: dict[int, int] = {}  # processes, and the pipes that tell their ends
        self._own_descriptors = [end.fileno()]
        woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken = woken
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the program may hold some back
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._poll.register(woken, select.POLLIN)
        self._own_descriptors += [woken, waker]
        self._program = _watch(program)
        if self._program is not None:
            self._poll.register(self._program, select.POLLIN)
            self._own_descriptors.append(self._program)

    def run(self) -> None:
        """Serve until the end."""
        try:
            while True:
                ready = {descriptor for descriptor, _ in self._poll.poll()}
                if self._woken in ready:
                    os.read(self._woken, 4096)
                    self._reap()
                if self._program in ready or (
                    self._end.fileno() in ready and not self._handle_request()
                ):
                    return
        finally:
            for process in self._workers:  # the system kills workers with us, but not their groups
                _kill_group(process)

    def _handle_request(self) -> bool:
        """Do what one request asks for; tell whether there was one."""
        packet, descriptors = receive_descriptors(self._end, _MOST_DESCRIPTORS)
        if not packet:
            return False
        what, process, number = REQUEST.unpack(packet)
        if what == FORK:
            with suppress(BrokenPipeError):  # the program has ended; noticed next
                self._end.send(RESPONSE.pack(process, self._fork(descriptors, number)))
        elif process in self._workers:  # nobody else can have this number: it is not reaped yet
            os.kill(process, number)
        return True

    def _fork(self, descriptors: list[int], n_sent: int) -> int:
        """Start a worker with these descriptors: socket, exit pipe, status page, and output."""
        if len(descriptors) < n_sent:  # this process may have no more of them
            for descriptor in descriptors:
                os.close(descriptor)
            return -errno.EMFILE
        end, exit_pipe, page, *outputs = descriptors
        server = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            process = -(error.errno or errno.EAGAIN)
        if process == 0:
            self._become_worker(server, end, exit_pipe, page, outputs)
        for descriptor in (end, page, *outputs):
            os.close(descriptor)
        if process > 0:
            self._workers[process] = exit_pipe
        else:
            os.close(exit_pipe)
        return process

    def _become_worker(
        self, server: int, end: int, exit_pipe: int, page: int, outputs: list[int]
    ) -> None:
        """Run a worker in this new process, and end it."""
        exit_code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (exit_pipe, *self._own_descriptors, *self._workers.values()):
                os.close(descriptor)
            os.setsid()
            die_with_parent(server)
            for number, descriptor in enumerate(outputs, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            with socket.socket(fileno=end) as channel_end:
                self._run_worker(channel_end, page)
            exit_code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _flush_outputs()
            os._exit(exit_code)

    def _reap(self) -> None:
        """Report the workers that have ended."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            _kill_group(ended.si_pid)  # before it is reaped: its number is nobody else's yet
            _, wait_status = os.waitpid(ended.si_pid, 0)
            descriptor = self._workers.pop(ended.si_pid)
            with suppress(BrokenPipeError):  # nobody wants to know
                os.write(descriptor, EXIT_CODE.pack(os.waitstatus_to_exitcode(wait_status)))
            os.close(descriptor)


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, also where that is killed.

    Args:
        parent: the process that was this one's parent when it was forked.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _watch(program: int) -> int | None:
    """Return a descriptor that is readable when a process has ended; None where there is none.

    Children that the program forks hold its socket, too: without this, they would keep us alive.
    """
    try:
        watched = os.pidfd_open(program)
    except OSError:  # an old system, or one that forbids it
        return None
    if os.getppid() != program:
        sys.exit()
    return watched


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _flush_outputs() -> None:
    for stream in (sys.stdout, sys.stderr):
        # There is none, or it was closed, or nobody reads it any more.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _do_nothing(*_: object) -> None:
    """Let the signal wake the poll: an ignored one would not."""

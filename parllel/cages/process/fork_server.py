"""ForkServer: the process that forks workers, runs no environment, and ends with the program.

It has imported all that workers need and nothing else. So a worker starts in milliseconds, with one
thread, without torch or CuPy, and without the program's `__main__`. A `ForkClient` starts it.
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

REQUEST = struct.Struct("<iii")
"""FORK, the request's number and that of its descriptors; or SIGNAL, the process and the signal."""

RESPONSE = struct.Struct("<ii")
"""The request's number; and the new process, or minus the number of an error."""

EXIT_CODE = struct.Struct("<i")
"""How a worker ended, as `os.waitstatus_to_exitcode` has it."""

FORK, SIGNAL = range(2)

_MOST_DESCRIPTORS = 8  # of a request, which has at most 5
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def serve(descriptor: int, program: int) -> None:
    """Fork workers on request, until the program ends or closes its socket.

    Args:
        descriptor: the socket that receives requests.
        program: the process that started this one.
    """
    # Imported here: the program itself imports this module, too, and runs no worker.
    from parllel.cages.process.worker import run_worker

    gc.collect()
    gc.freeze()  # otherwise a garbage collection in a worker writes to all pages and copies them
    with socket.socket(fileno=descriptor) as end:
        ForkServer(end, program, run_worker).run()


class ForkServer:
    """Forks, signals and reaps workers.

    A worker leads a process group of its own. When it has ended, processes that its environments
    have left running in that group are killed.

    Args:
        end: the socket that receives requests.
        program: the process that sends them.
        run_worker: is called in each new worker, with its socket and the file of its status page.
    """

    def __init__(
        self, end: socket.socket, program: int, run_worker: Callable[[socket.socket, int], None]
    ) -> None:
        self._end = end
        self._run_worker = run_worker
        self._workers: dict[int, int] = {}  # the exit pipe of each process
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
            for process in self._workers:  # the system kills the workers, but not their groups
                _kill_group(process)

    def _handle_request(self) -> bool:
        """Carry out one request; return False where the program has closed its socket."""
        try:
            packet, descriptors = receive_descriptors(self._end, _MOST_DESCRIPTORS)
        except ConnectionResetError:  # closed, with a response that was not read
            return False
        if not packet:
            return False
        what, process, number = REQUEST.unpack(packet)
        if what == FORK:
            with suppress(BrokenPipeError):  # the program has ended; `run` notices it next
                self._end.send(RESPONSE.pack(process, self._fork(descriptors, number)))
        elif process in self._workers:  # not reaped yet, so no other process has this number
            os.kill(process, number)
        return True

    def _fork(self, descriptors: list[int], n_sent: int) -> int:
        """Start a worker with these descriptors: socket, exit pipe, status page, and output."""
        if len(descriptors) < n_sent:  # the others are lost: this process has too many open files
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
            _kill_group(ended.si_pid)  # before it is reaped: afterwards its number can be another's
            _, wait_status = os.waitpid(ended.si_pid, 0)
            descriptor = self._workers.pop(ended.si_pid)
            with suppress(BrokenPipeError):  # the cage was closed, or the program has ended
                os.write(descriptor, EXIT_CODE.pack(os.waitstatus_to_exitcode(wait_status)))
            os.close(descriptor)


def die_with_parent(parent: int) -> None:
    """Let the system kill this process when its parent ends, even if the parent is killed.

    Args:
        parent: the process that forked this one.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it had ended before the call
        os._exit(1)


def _watch(program: int) -> int | None:
    """Return a descriptor that can be read when a process has ended; None where there is none.

    Children that the program forks hold its socket, too. Without this descriptor, the server would
    live as long as they do (test_a_program_leaves_no_process_and_no_file_behind).
    """
    try:
        watched = os.pidfd_open(program)
    except OSError:  # Linux before 5.3, or a sandbox that forbids it
        return None
    if os.getppid() != program:
        sys.exit()
    return watched


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _flush_outputs() -> None:
    for stream in (sys.stdout, sys.stderr):
        # There is no stream, or it was closed, or its reader has ended.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _do_nothing(*_: object) -> None:
    """Handle a signal, so that it wakes the poll: an ignored signal would not."""

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
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from parllel.cages.process.channel import receive_descriptors

REQUEST = struct.Struct("<iii")
"""FORK, the request's number and that of its descriptors; or SIGNAL, the process and the signal."""

RESPONSE = struct.Struct("<ii")
"""The request's number; and the new process, or minus the number of an error."""

EXIT_CODE = struct.Struct("<i")
"""The exit code of a worker, as `os.waitstatus_to_exitcode` gives it."""

FORK, SIGNAL = range(2)

_MOST_DESCRIPTORS = 8  # of a request, which has at most 5
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
_END_S = 2.0  # longest wait for the processes that environments have started, at the end


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

    A worker ends with all that its environments have started, also where that leads sessions of
    its own: the system makes a worker the parent of processes below it that have lost theirs, and
    this process the parent of those that a worker leaves behind. So a child of this process that is
    no worker is killed.

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
        adopt_orphans()
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
            end = time.monotonic() + _END_S
            while self._kill_children() and time.monotonic() < end:
                self._poll.poll(10)

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
            adopt_orphans()
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

    def _kill_children(self) -> bool:
        """Kill and reap all children of this process; return False where there were none.

        The children of one that is killed become this process's.
        """
        for process in children_of(os.getpid()):
            _kill(process)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return False
        return True

    def _reap(self) -> None:
        """Report the workers that have ended, and kill what they have left behind."""
        ended = []
        with suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                ended.append(reaped)
        if not ended:
            return
        # Children of what has ended are this process's by now. Theirs become that when they are
        # killed, which a signal tells.
        exit_pipes = [self._workers.pop(process, None) for process, _ in ended]
        for process in children_of(os.getpid()):
            if process not in self._workers:
                _kill(process)
        for (_, wait_status), exit_pipe in zip(ended, exit_pipes, strict=True):
            if exit_pipe is not None:  # otherwise it was no worker
                with suppress(BrokenPipeError):  # the cage was closed, or the program has ended
                    os.write(exit_pipe, EXIT_CODE.pack(os.waitstatus_to_exitcode(wait_status)))
                os.close(exit_pipe)


def die_with_parent(parent: int) -> None:
    """Let the system kill this process when its parent ends, even if the parent is killed.

    Args:
        parent: the process that forked this one.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it had ended before the call
        os._exit(1)


def adopt_orphans() -> None:
    """Have the system make this process the parent of processes below it that lose theirs."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(parent: int) -> list[int]:
    """Return the numbers of a process's children, with those that were not reaped yet."""
    children = []
    # Not /proc/<n>/task/<n>/children: kernels may be built without it.
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # it has ended
                _, _, words = file.read().rpartition(b")")
                if int(words.split()[1]) == parent:
                    children.append(int(name))
    return children


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


def _kill(process: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or is another user's
        os.kill(process, signal.SIGKILL)


def _flush_outputs() -> None:
    for stream in (sys.stdout, sys.stderr):
        # There is no stream, or it was closed, or its reader has ended.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _do_nothing(*_: object) -> None:
    """Handle a signal, so that it wakes the poll: an ignored signal would not."""

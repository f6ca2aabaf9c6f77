"""Environments that go wrong as they are told to; worker processes import them."""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Faulty(gym.Env):
    """Show (own seed, number of the step); go wrong at one step of the first episode.

    Args:
        fault: what happens; see `commit`. It befalls the environments whose action is 1.
        at: number of the step, from 1 on.
        length: steps of an episode, which is terminated then.
        folder: where `made_<process>_<n>` tells of each environment that was made.
        is_once: whether only the first three environments go wrong.
        exits_when_made, exits_when_reset: numbers of the environments that end the process then;
            they count in the order in which environments are made in the folder.
    """

    observation_space = spaces.Box(0, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(
        self,
        fault: str = "",
        at: int = 2,
        length: int = 100,
        folder: Path | None = None,
        is_once: bool = False,
        exits_when_made: Sequence[int] = (),
        exits_when_reset: Sequence[int] = (),
    ) -> None:
        self._fault, self._at, self._length, self._folder = fault, at, length, folder
        self._n_steps, self._seed, self._exits_when_reset = 0, 0, False
        if folder is not None:
            number = sum(1 for _ in folder.iterdir())
            (folder / f"made_{os.getpid()}_{number}").touch()
            self._fault = "" if is_once and number >= 3 else fault
            self._exits_when_reset = number in exits_when_reset
            if number in exits_when_made:
                os._exit(5)
        if fault == "raise when made":
            raise OSError("it can't be made")
        if fault == "raise what is of this process when made":
            raise OwnError(os.getpid())
        if fault == "sys.exit when made":
            sys.exit(7)
        if fault == "exit when made":
            os._exit(5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._seed = seed
        self._n_steps = 0
        if self._exits_when_reset:
            os._exit(5)
        if self._fault == "raise in reset":
            raise LookupError("no beginning")
        return np.array([self._seed, 0.0]), {}

    def step(self, action: Any) -> Any:
        self._n_steps += 1
        if action == 1 and self._n_steps == self._at:
            if self._fault == "leave a child":
                assert self._folder is not None
                child = subprocess.Popen(["sleep", "3600"])
                (self._folder / f"child_{child.pid}").touch()
                os._exit(3)
            if self._fault == "leave a session":
                assert self._folder is not None
                command = f"setsid sleep 3600 & echo $! > {self._folder}/grandchild; sleep 3600"
                child = subprocess.Popen(["sh", "-c", command], start_new_session=True)
                while not (self._folder / "grandchild").exists():
                    time.sleep(0.01)
                (self._folder / f"child_{child.pid}").touch()
                os._exit(3)
            if self._fault == "start a program":
                assert self._folder is not None
                child = subprocess.Popen(["sleep", "3600"], close_fds=False)
                (self._folder / f"child_{child.pid}").touch()
            commit(self._fault)
        is_end = self._n_steps == self._length
        return np.array([self._seed, self._n_steps], float), 1.0, is_end, False, {}


class Exclusive(gym.Env):
    """Hold a file as long as it is open, as simulators hold a port; fail in the first step."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, held: Path) -> None:
        self._held = held
        held.touch(exist_ok=False)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        raise LookupError("lost the ball")

    def close(self) -> None:
        self._held.unlink()


def commit(fault: str) -> None:
    """Do what the word says."""
    if fault == "raise":
        raise LookupError("lost the ball")
    if fault == "raise what can't be pickled":
        raise UnpicklableError(1, 2)
    if fault == "raise in two lines":
        raise LookupError("lost the ball\nand the field")
    if fault == "sys.exit":
        sys.exit(7)
    if fault == "exit":
        os._exit(3)
    if fault == "panic":
        raise PanicException("index out of bounds")
    if fault == "write garbage":
        write_to_the_cage(b"garbage")
    if fault == "announce an endless message":
        write_to_the_cage(struct.pack("<IIIIQ", 11, 0, 0, 2, 2**63), *[bytes(60_000)] * 10_000)
    if fault == "reply what can't be unpickled":
        write_to_the_cage(struct.pack("<IIIIQ", 11, 0, 0, 3, 9) + bytes(9))
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "crash":
        ctypes.string_at(0)
    if fault == "hang":
        time.sleep(3600)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "print":
        sys.stdout.write("x" * (2**20 + 1))  # the last one waits in a buffer
        sys.stderr.write("y" * (2**20 + 1))


def write_to_the_cage(*packets: bytes) -> None:
    """Send packets through the worker's own socket."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as end:
            if end.type == socket.SOCK_SEQPACKET:
                for packet in packets:
                    end.send(packet)


class PanicException(BaseException):
    """As PyO3 raises it where an extension in Rust panics."""


class UnpicklableError(Exception):
    """An exception that is pickled without complaint, and can't be made again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class OwnError(Exception):
    """An exception that can be made again in its own process only."""

    def __init__(self, process: int) -> None:
        super().__init__(process)
        if os.getpid() != process:
            raise LookupError("it is of another process")


class Talkative(Faulty):
    """Its infos are larger than what waits to be read; `closed` in the folder tells of its end."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"said": [str(number) for number in range(200_000)]}

    def close(self) -> None:
        assert self._folder is not None
        (self._folder / "closed").touch()


class Unclosable(Faulty):
    """It is never done."""

    def close(self) -> None:
        raise LookupError("no end")


class Slow(Faulty):
    """Each call takes a while, in seconds."""

    def __init__(self, call_s: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        self._call_s = call_s

    def reset(self, **options: Any) -> Any:
        time.sleep(self._call_s)
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        time.sleep(self._call_s)
        return super().step(action)

"""What a ProcessCage does when its worker goes wrong, with real processes and real signals."""

import errno
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faulty_envs import Exclusive, Faulty, Slow, Talkative, Unclosable
from long_run import all_but
from parllel import Array, ArrayDict
from parllel.cages import ProcessCage, WorkerError
from parllel.cages.process import fork_client
from parllel.cages.process.status_page import BEGIN, END
from parllel.cages.process.worker_process import _TRACE_S as TRACE_S
from parllel.cages.seeds import restart_seed, seed_words, spawn_seeds
from parllel.metrics import MetricsSink
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import RLRunner
from parllel.samplers import BasicSampler, EvalSampler, RecurrentSampler
from parllel.storages import host_memory
from parllel.testing.contracts.cage_calls import random_step, reset, step

TIMEOUT_S = 60
SHORT_S = 0.5

# How it ends, and what the error says of it.
DEATHS = {
    "exit": "the worker ended with exit code 3",
    "kill": "the worker was killed by signal 9",
    "crash": "the worker was killed by signal 11",
    "hang": r"did not reply within 0.5 s \(timeout_s\)",
    "stop": r"did not reply within 0.5 s \(timeout_s\)",
}
# Python 3.12 and later warn of every fork beside threads; NumPy's own threads are enough for it.
with_fork = pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")
any_death = pytest.mark.parametrize("fault", all_but(DEATHS, DEATHS.keys() - {"stop"}))
ACTIONS = np.array([0, 1, 0])  # it befalls environment 1


def faulty_cage(fault: str, **options: Any) -> ProcessCage:
    kwargs = {"fault": fault, **options.pop("env_kwargs", {})}
    options.setdefault("timeout_s", SHORT_S if fault in ("hang", "stop") else TIMEOUT_S)
    options.setdefault("seed", 5)
    return ProcessCage(Faulty, kwargs, n_envs=3, **options)


def env_seed(number: int) -> int:
    return seed_words(spawn_seeds(5, 3)[number])[0]


def is_running(process: int) -> bool:
    """Tell whether a process runs; one that has ended and was not reaped does not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_until(claim: Any, what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not claim():
        assert time.monotonic() < end, f"in {TIMEOUT_S} s it was not so: {what}"
        time.sleep(0.005)


# An error that says what happened


def test_an_error_in_an_environment_says_which_and_where() -> None:
    with faulty_cage("raise") as cage:
        reset(cage)
        step(cage, ACTIONS)
        with pytest.raises(WorkerError, match="LookupError: lost the ball") as caught:
            step(cage, ACTIONS)
    error = caught.value
    assert (error.environment, error.seed, error.action) == (1, env_seed(1), 1)
    assert "faulty_envs.py" in error.worker_traceback
    assert 'raise LookupError("lost the ball")' in error.worker_traceback
    assert isinstance(error.__cause__, LookupError)
    for part in ("environment: 1", f"seed of its first reset: {env_seed(1)}", "last action: 1"):
        assert part in str(error)


def test_the_seed_of_the_error_repeats_it() -> None:
    with faulty_cage("raise") as cage:
        observation, _ = reset(cage)
        step(cage, ACTIONS)
        with pytest.raises(WorkerError) as caught:
            step(cage, ACTIONS)
    alone, _ = Faulty("raise").reset(seed=caught.value.seed)
    np.testing.assert_array_equal(observation[1], alone)


def test_a_cage_can_be_used_after_an_error_in_an_environment() -> None:
    with faulty_cage("raise") as cage:
        reset(cage)
        step(cage, ACTIONS)
        with pytest.raises(WorkerError):
            step(cage, ACTIONS)
        observation, _ = reset(cage)
        np.testing.assert_array_equal(observation[:, 1], 0)
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 1)


def test_an_error_that_cannot_be_pickled_is_told_by_its_traceback() -> None:
    with faulty_cage("raise what can't be pickled", env_kwargs={"at": 1}) as cage:
        reset(cage)
        with pytest.raises(WorkerError, match="UnpicklableError: 1 and 2") as caught:
            step(cage, ACTIONS)
    assert caught.value.__cause__ is None


def test_all_lines_of_an_exception_are_told() -> None:
    with faulty_cage("raise in two lines", env_kwargs={"at": 1}) as cage:
        reset(cage)
        with pytest.raises(WorkerError, match="error: LookupError: lost the ball\nand the field"):
            step(cage, ACTIONS)


def test_sys_exit_in_an_environment_is_an_error_like_others() -> None:
    with faulty_cage("sys.exit", env_kwargs={"at": 1}) as cage:
        reset(cage)
        with pytest.raises(WorkerError, match="SystemExit: 7") as caught:
            step(cage, ACTIONS)
        assert caught.value.environment == 1


def test_an_exception_that_is_no_exception_names_its_environment() -> None:
    with faulty_cage("panic") as cage:
        reset(cage)
        step(cage, ACTIONS)
        with pytest.raises(WorkerError, match="PanicException: index out of bounds") as caught:
            step(cage, ACTIONS)
        assert (caught.value.environment, caught.value.seed) == (1, env_seed(1))


@pytest.mark.long
def test_times_of_slow_environments_do_not_add_up_to_silence() -> None:
    kwargs = {"length": 1}
    with ProcessCage(Slow, kwargs, n_envs=3, seed=0, timeout_s=0.5) as cage:
        reset(cage)  # which takes 0.6 s, and a step 1.2 s
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 0)
        reset(cage, max_random_steps=1)  # with this seed it is 1 in each


@pytest.mark.long
def test_a_worker_that_falls_silent_after_progress_is_given_up_in_time() -> None:
    with faulty_cage("hang", env_kwargs={"at": 1}, timeout_s=1) as cage:
        reset(cage)
        start = time.monotonic()
        with pytest.raises(WorkerError, match="did not reply"):
            step(cage, ACTIONS)
        assert time.monotonic() - start < 1 + TRACE_S + 1


GARBAGE = ["write garbage", "announce an endless message", "reply what can't be unpickled"]


@pytest.mark.parametrize("fault", GARBAGE)
def test_garbage_on_the_channel_is_an_error(fault: str) -> None:
    with faulty_cage(fault, timeout_s=5) as cage:
        reset(cage)
        step(cage, ACTIONS)
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"the worker sent .*, and was killed"):
            step(cage, ACTIONS)
        assert time.monotonic() - start < 5
        assert not is_running(cage._worker.process)


@pytest.mark.parametrize("fault", GARBAGE)
def test_a_worker_that_sends_garbage_is_replaced(fault: str, tmp_path: Path) -> None:
    kwargs = {"folder": tmp_path, "is_once": True}
    with faulty_cage(fault, on_worker_error="restart", env_kwargs=kwargs) as cage:
        reset(cage)
        for _ in range(4):
            step(cage, ACTIONS)
        assert cage.n_restarts == 3


SUSPENDED = """
import os, signal, sys
import numpy as np
from faulty_envs import Slow
from parllel.cages import ProcessCage

with ProcessCage(Slow, {"call_s": 0.6}, timeout_s=1) as cage:
    cage.reset_async()
    cage.await_step()
    cage.step_async(0)
    print(cage._worker.process, flush=True)
    cage.await_step()
"""


@pytest.mark.long
def test_a_job_that_was_suspended_goes_on() -> None:
    command = [sys.executable, "-c", SUSPENDED]
    path = str(Path(__file__).parents[1])
    variables = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as program:
        assert program.stdout is not None
        processes = [int(program.stdout.readline()), program.pid]
        time.sleep(0.3)  # the program has seen that the step began, and sees nothing new now
        for process in reversed(processes):
            os.kill(process, signal.SIGSTOP)
        time.sleep(1.2)  # more than timeout_s
        for process in reversed(processes):  # the worker is the last one to go on
            os.kill(process, signal.SIGCONT)
            time.sleep(0.1)
        assert program.wait(TIMEOUT_S) == 0


@any_death
def test_the_end_of_a_worker_is_an_error_within_bounded_time(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    with faulty_cage(fault) as cage:
        reset(cage)
        step(cage, ACTIONS)
        worker = cage._worker.process
        with pytest.raises(WorkerError, match=DEATHS[fault]) as caught:
            step(cage, ACTIONS)
        error = caught.value
        assert (error.environment, error.seed, error.action) == (1, env_seed(1), 1)
        wait_until(lambda: not is_running(worker), "the worker has ended")
        with pytest.raises(RuntimeError, match="the cage has lost its worker"):
            reset(cage)
    assert "did not close" not in caplog.text  # it was killed before that


@pytest.mark.parametrize(("fault", "where"), [("hang", "in commit"), ("crash", "in commit")])
def test_the_error_says_where_the_worker_hung_or_crashed(fault: str, where: str) -> None:
    with faulty_cage(fault) as cage:
        reset(cage)
        step(cage, ACTIONS)
        with pytest.raises(WorkerError) as caught:
            step(cage, ACTIONS)
    assert where in caught.value.worker_traceback
    assert "faulty_envs.py" in caught.value.worker_traceback
    assert where in str(caught.value)


def test_the_last_action_is_known_wherever_it_was() -> None:
    for storage in ("local", "shared"):
        actions = Array((2, 3), np.int32, storage=storage)
        actions[1] = ACTIONS
        with faulty_cage("kill", env_kwargs={"at": 1}) as cage:
            reset(cage)
            with pytest.raises(WorkerError) as caught:
                step(cage, actions[1])
            assert caught.value.action == 1


def test_the_last_random_action_is_known_where_it_is_stored() -> None:
    for storage in ("local", "shared"):
        actions = Array((2, 3), np.int32, storage=storage)
        with faulty_cage("kill", seed=3, env_kwargs={"at": 1}) as cage:
            reset(cage)
            with pytest.raises(WorkerError) as caught:
                random_step(cage, out_action=actions[0])  # with this seed they are 0, 1, 1
        assert (caught.value.environment, caught.value.action) == (1, 1)


def test_an_error_counts_environments_of_the_run() -> None:
    seeds = spawn_seeds(5, 5)
    cages = build_cages(Faulty, 5, env_kwargs={"fault": "raise", "at": 1}, n_workers=2, seed=5)
    for cage in cages:
        reset(cage)
    with pytest.raises(WorkerError, match="environment: 3") as caught:
        step(cages[1], ACTIONS)
    for cage in cages:
        cage.close()
    error = caught.value
    assert (error.environment, error.seed) == (3, seed_words(seeds[3])[0])


def test_a_worker_that_is_killed_between_two_steps_is_noticed_at_the_next() -> None:
    with faulty_cage("") as cage:
        reset(cage)
        os.kill(cage._worker.process, signal.SIGKILL)
        wait_until(lambda: not is_running(cage._worker.process), "the worker has ended")
        with pytest.raises(WorkerError, match="killed by signal 9"):
            step(cage, ACTIONS)


def test_an_error_can_be_sent_to_another_process() -> None:
    error = WorkerError("it ended", environment=2, seed=3, action=np.int64(1), worker_traceback="x")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.environment, copy.seed, copy.action) == (2, 3, 1)


# Before environments are made


def test_the_end_of_a_worker_that_makes_environments_is_an_error() -> None:
    with pytest.raises(WorkerError, match="ended with exit code 5"):
        faulty_cage("exit when made")


def test_an_error_of_make_env_carries_the_workers_traceback() -> None:
    with pytest.raises(OSError, match="it can't be made") as caught:
        faulty_cage("raise when made")
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerError)
    assert "faulty_envs.py" in cause.worker_traceback
    assert cause.environment == 0


def test_an_error_of_make_env_that_cannot_be_unpickled_is_told_by_its_traceback() -> None:
    with pytest.raises(WorkerError, match=r"the environments can't be made: .*OwnError") as caught:
        faulty_cage("raise what is of this process when made")
    assert caught.value.__cause__ is None
    assert "faulty_envs.py" in caught.value.worker_traceback


def test_sys_exit_in_make_env_is_an_error_and_no_exit() -> None:
    with pytest.raises(WorkerError, match="the environments can't be made: SystemExit: 7"):
        faulty_cage("sys.exit when made")


def test_what_cannot_be_sent_to_a_worker_is_an_error_at_once() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"make_env: got .* can't be sent .* SerialCage"):
        ProcessCage(lambda: Faulty(str(lock)))
    with pytest.raises(TypeError, match=r"env_kwargs: got .* can't be sent"):
        ProcessCage(Faulty, {"fault": (number for number in range(3))})


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_timeout_must_be_a_number_of_seconds(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s: got"):
        ProcessCage(Faulty, timeout_s=timeout_s)


def test_words_for_errors_and_starts_are_one_of_two() -> None:
    with pytest.raises(ValueError, match="on_worker_error: got 'ignore'"):
        ProcessCage(Faulty, on_worker_error="ignore")
    with pytest.raises(ValueError, match="start_method: got 'thread'"):
        ProcessCage(Faulty, start_method="thread")


# Output


def test_a_worker_may_print_a_megabyte(capfd: pytest.CaptureFixture[str]) -> None:
    with faulty_cage("print") as cage:
        reset(cage)
        for number in (1, 2, 3):
            observation, *_ = step(cage, ACTIONS)
            np.testing.assert_array_equal(observation[:, 1], number)
    captured = capfd.readouterr()
    assert captured.out.count("x") == captured.err.count("y") == 2**20 + 1


# Restarts


class Restarted:
    """What a cage with on_worker_error="restart" does in five steps; the second one fails."""

    def __init__(self, fault: str, storage: str, folder: Path) -> None:
        self.samples = ArrayDict(
            {
                "observation": Array((6, 3), np.float64, feature_shape=(2,), storage=storage),
                "reward": Array((5, 3), np.float32, storage=storage),
                "terminated": Array((5, 3), bool, storage=storage),
                "truncated": Array((5, 3), bool, storage=storage),
            }
        )
        self.samples["reward"][...] = 9
        self.invalid, self.final_obs, self.completed = [], [], []
        kwargs = {"length": 4, "folder": folder}
        with faulty_cage(fault, on_worker_error="restart", env_kwargs=kwargs) as cage:
            reset(cage, out_obs=self.samples["observation"][0])
            for t in range(5):
                step(
                    cage,
                    ACTIONS,
                    out_obs=self.samples["observation"][t + 1],
                    **{f"out_{name}": self.samples[name][t] for name in list(self.samples)[1:]},
                )
                self.invalid.append(sorted(cage.invalid))
                self.final_obs.append(dict(cage.final_obs))
                self.completed.append(cage.take_completed())
            self.n_restarts = cage.n_restarts
        self.samples = self.samples.to_ndarray()


any_storage = pytest.mark.parametrize("storage", ["local", "shared"])


@any_storage
@pytest.mark.parametrize("fault", ["raise", "sys.exit", "panic"])
def test_an_environment_that_raises_is_made_anew_and_the_others_go_on(
    fault: str, storage: str, tmp_path: Path
) -> None:
    ran = Restarted(fault, storage, tmp_path)
    observation = ran.samples["observation"]
    np.testing.assert_array_equal(observation[:, [0, 2], 1], [[t % 4] * 2 for t in range(6)])
    np.testing.assert_array_equal(observation[:, 1, 1], [0, 1, 0, 1, 0, 1])
    assert len(set(observation[2::2, 1, 0]) | {env_seed(1)}) == 3  # the new ones have other seeds
    assert ran.invalid == [[], [1], [], [1], []]
    np.testing.assert_array_equal(ran.samples["truncated"][:, 1], [0, 1, 0, 1, 0])
    assert not ran.samples["truncated"][:, [0, 2]].any()
    np.testing.assert_array_equal(ran.samples["reward"][:, 1], [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(ran.samples["terminated"][3], [True, False, True])
    assert ran.n_restarts == 2
    assert len(list(tmp_path.iterdir())) == 3 + 2


@pytest.mark.parametrize(
    ("fault", "storage"),
    [
        ("kill", "local"),
        ("kill", "shared"),
        ("exit", "local"),
        pytest.param("hang", "shared", marks=pytest.mark.long),
    ],
)
def test_environments_of_a_lost_worker_are_made_anew(
    fault: str, storage: str, tmp_path: Path
) -> None:
    ran = Restarted(fault, storage, tmp_path)
    observation = ran.samples["observation"]
    np.testing.assert_array_equal(observation[..., 1], [[t] * 3 for t in (0, 1, 0, 1, 0, 1)])
    assert len(set(observation[[0, 2, 4], :, 0].ravel())) == 9  # none has a seed twice
    assert ran.invalid == [[], [0, 1, 2], [], [0, 1, 2], []]
    np.testing.assert_array_equal(ran.samples["truncated"], [[t % 2] * 3 for t in range(5)])
    np.testing.assert_array_equal(ran.samples["reward"], [[1 - t % 2] * 3 for t in range(5)])
    assert not ran.samples["terminated"].any()
    assert ran.n_restarts == 6
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize(("fault", "ended"), [("raise", [0, 2]), ("kill", [])])
def test_an_episode_that_was_cut_off_has_no_summary(
    fault: str, ended: list[int], tmp_path: Path
) -> None:
    ran = Restarted(fault, "local", tmp_path)
    assert [sorted(final_obs) for final_obs in ran.final_obs] == [[], [], [], ended, []]
    assert [[traj.length for traj in completed] for completed in ran.completed] == [
        [],
        [],
        [],
        [4] * len(ended),
        [],
    ]


def test_the_same_seed_gives_the_same_restarts(tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        runs.append(Restarted("kill", "shared", tmp_path / name).samples["observation"])
    np.testing.assert_array_equal(*runs)


def test_an_environment_that_failed_is_closed_before_its_successor_is_made(tmp_path: Path) -> None:
    kwargs = {"held": tmp_path / "held"}
    with ProcessCage(Exclusive, kwargs, on_worker_error="restart", timeout_s=TIMEOUT_S) as cage:
        reset(cage)
        step(cage, np.array(0))
        assert (list(cage.invalid), cage.n_restarts) == ([0], 1)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_lost_in_a_reset_is_replaced() -> None:
    with faulty_cage("", on_worker_error="restart") as cage:
        reset(cage)
        step(cage, ACTIONS)
        os.kill(cage._worker.process, signal.SIGKILL)
        wait_until(lambda: not is_running(cage._worker.process), "the worker has ended")
        observation, _ = reset(cage)
        np.testing.assert_array_equal(observation[:, 1], 0)
        assert (list(cage.invalid), cage.n_restarts) == ([], 3)
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 1)


def test_a_second_worker_that_is_lost_while_it_replaces_the_first_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = {"at": 1, "folder": tmp_path, "is_once": True, "exits_when_reset": [3]}
    with faulty_cage("kill", on_worker_error="restart", env_kwargs=kwargs) as cage:
        reset(cage)
        observation, reward, terminated, truncated, _ = step(cage, ACTIONS)
        seeds = [restart_seed(restart_seed(seed)) for seed in spawn_seeds(5, 3)]
        expected = [[seed_words(seed)[0], 0] for seed in seeds]
        np.testing.assert_array_equal(observation, expected)
        assert (reward.any(), terminated.any(), truncated.all()) == (False, False, True)
        assert (sorted(cage.invalid), cage.n_restarts) == ([0, 1, 2], 6)
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 1)
    assert "killed by signal 9" in caplog.text
    assert "ended with exit code 5" in caplog.text
    workers = [int(path.name.split("_")[1]) for path in sorted(tmp_path.iterdir())]
    assert len(set(workers)) == 3
    assert not any(map(is_running, workers))


def test_a_command_that_loses_four_workers_is_an_error_after_all(tmp_path: Path) -> None:
    kwargs = {"at": 1, "folder": tmp_path, "exits_when_reset": range(3, 100)}
    with faulty_cage("kill", on_worker_error="restart", env_kwargs=kwargs) as cage:
        reset(cage)
        with pytest.raises(WorkerError, match="ended with exit code 5"):
            step(cage, ACTIONS)
        with pytest.raises(RuntimeError, match="the cage has lost its worker"):
            reset(cage)
        workers = {int(path.name.split("_")[1]) for path in tmp_path.iterdir()}
        assert len(workers) == 4
        wait_until(lambda: not any(map(is_running, workers)), "the workers have ended")


def test_a_worker_that_is_lost_while_it_makes_environments_anew_is_an_error(tmp_path: Path) -> None:
    kwargs = {"at": 1, "folder": tmp_path, "exits_when_made": [4]}
    with faulty_cage("kill", on_worker_error="restart", env_kwargs=kwargs) as cage:
        reset(cage)
        with pytest.raises(WorkerError, match="ended with exit code 5") as caught:
            step(cage, ACTIONS)
        seed, _ = seed_words(restart_seed(spawn_seeds(5, 3)[1]))
        assert (caught.value.environment, caught.value.seed) == (1, seed)
        with pytest.raises(RuntimeError, match="the cage has lost its worker"):
            reset(cage)


def test_an_environment_that_always_fails_is_an_error_after_all() -> None:
    with faulty_cage("raise", on_worker_error="restart", env_kwargs={"at": 1}) as cage:
        reset(cage)
        for _ in range(3):
            step(cage, ACTIONS)
            assert list(cage.invalid) == [1]
        with pytest.raises(WorkerError, match="lost the ball"):
            step(cage, ACTIONS)
        assert cage.n_restarts == 3


def test_failures_with_a_good_step_between_them_are_not_in_a_row() -> None:
    with faulty_cage("raise", on_worker_error="restart", env_kwargs={"at": 2}) as cage:
        reset(cage)
        for number in range(1, 6):
            step(cage, ACTIONS)
            assert list(cage.invalid) == []
            step(cage, ACTIONS)
            assert (list(cage.invalid), cage.n_restarts) == ([1], number)


def test_what_was_made_anew_by_a_step_that_failed_after_all_is_counted() -> None:
    with faulty_cage("raise", on_worker_error="restart", env_kwargs={"at": 1}) as cage:
        reset(cage)
        for _ in range(3):
            step(cage, ACTIONS)
        reset(cage)
        with pytest.raises(WorkerError) as caught:
            step(cage, np.array([1, 1, 0]))  # the first time for environment 0
        assert (caught.value.environment, cage.n_restarts) == (1, 4)
        seed, _ = seed_words(restart_seed(spawn_seeds(5, 3)[0]))
        assert cage._error("", 0, "", None).seed == seed


def test_a_worker_that_can_never_be_replaced_is_an_error_after_all() -> None:
    with (
        faulty_cage("raise in reset", on_worker_error="restart") as cage,
        pytest.raises(WorkerError, match="no beginning"),
    ):
        reset(cage)


def test_restarts_are_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    Restarted("raise", "local", tmp_path)
    assert "environment 1 failed and was made anew" in caplog.text
    assert "lost the ball" in caplog.text


class StepNumberAgent:
    """Take the actions that go wrong, and value an observation by its step's number."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        value = np.array(observation)[:, 1]
        return np.resize(ACTIONS, len(value)), {"value": value}

    def value(self, observation: Any) -> Any:
        return np.array(observation)[:, 1]


def samples_for(n_envs: int) -> ArrayDict:
    example = build_example(Faulty, storage="local")
    tree = build_sample_tree(example, StepNumberAgent(), batch_shape=(5, n_envs))
    return ArrayDict({**tree, "valid": Array((5, n_envs), bool)})


@pytest.mark.parametrize(("fault", "lost"), [("raise", [1]), ("kill", [0, 1, 2])])
def test_a_sampler_marks_the_row_and_values_what_was_seen_before(
    fault: str, lost: list[int]
) -> None:
    samples = samples_for(3)
    kwargs = {"length": 4}
    with faulty_cage(fault, on_worker_error="restart", env_kwargs=kwargs) as cage:
        _, completed = BasicSampler([cage], StepNumberAgent(), samples).collect_batch()
    expected = np.ones((5, 3), bool)
    expected[np.ix_([1, 3], lost)] = False
    np.testing.assert_array_equal(samples["valid"], expected)
    np.testing.assert_array_equal(samples["truncated"], ~expected)
    np.testing.assert_array_equal(samples["final_value"].to_ndarray()[~expected], 1)
    assert [traj.length for traj in completed] == [4] * (3 - len(lost))


def test_an_evaluation_plays_episodes_again_that_were_cut_off(tmp_path: Path) -> None:
    kwargs = {"length": 4, "folder": tmp_path, "is_once": True}
    with faulty_cage("raise", on_worker_error="restart", env_kwargs=kwargs) as cage:
        sampler = EvalSampler([cage], StepNumberAgent(), samples_for(3), n_episodes=6)
        episodes = sampler.collect_episodes()
        assert cage.n_restarts == 1
    assert [traj.length for traj in episodes] == [4] * 6


class AgeingAgent(StepNumberAgent):
    """Keep the number of steps of each environment's episode, and hold it against what it sees."""

    rnn_state: Any

    def begin(self, n_envs: int) -> None:
        self.rnn_state = {"age": torch.zeros(n_envs)}

    def reset_state(self, columns: Sequence[int]) -> None:
        age = self.rnn_state["age"].clone()
        age[list(columns)] = 0
        self.rnn_state = {"age": age}

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        np.testing.assert_array_equal(np.array(observation)[:, 1], self.rnn_state["age"])
        self.rnn_state = {"age": self.rnn_state["age"] + 1}
        return super().step(observation)

    def value(self, observation: Any, *, columns: Sequence[int] | None = None) -> Any:
        return super().value(observation)


@pytest.mark.parametrize("fault", ["raise", "kill"])
@pytest.mark.parametrize("sampler_type", [RecurrentSampler, EvalSampler])
def test_the_state_of_an_agent_begins_anew_with_the_environment(
    fault: str, sampler_type: type[Any], tmp_path: Path
) -> None:
    agent = AgeingAgent()
    agent.begin(3)
    state = ArrayDict({"age": Array((3,), np.float32)})
    samples = ArrayDict({**samples_for(3), "initial_rnn_state": state})
    kwargs = {"length": 4, "folder": tmp_path, "is_once": True}
    with faulty_cage(fault, on_worker_error="restart", env_kwargs=kwargs) as cage:
        if sampler_type is EvalSampler:
            EvalSampler([cage], agent, samples, n_episodes=6).collect_episodes()
        else:
            sampler = RecurrentSampler([cage], agent, samples)
            for _ in range(3):
                sampler.collect_batch()
        assert cage.n_restarts == (1 if fault == "raise" else 3)


class Numbers(MetricsSink):
    """Keep what was logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.rows.append(values)

    def _finish(self) -> None:
        pass


class Idler:
    """Learn nothing."""

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        return {}


def test_restarts_are_counted_in_the_metrics() -> None:
    metrics = Numbers()
    kwargs = {"length": 4, "at": 4}  # in the fourth step of each episode: 4, 8 and 12 of 15
    with faulty_cage("raise", on_worker_error="restart", env_kwargs=kwargs) as cage:
        sampler = BasicSampler([cage], StepNumberAgent(), samples_for(3))
        RLRunner(sampler, Idler(), metrics, n_steps=3 * 5 * 3).run()
    assert [row["train/n_restarts"] for row in metrics.rows] == [1, 2, 3]


# Ctrl-C, and going on


@contextmanager
def interrupted() -> Iterator[None]:
    """Interrupt what is done inside of the context, by a real signal."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_wait_that_is_interrupted_can_be_taken_up_again() -> None:
    with faulty_cage("stop", env_kwargs={"at": 1}, timeout_s=TIMEOUT_S) as cage:
        reset(cage)
        cage.step_async(ACTIONS)
        with interrupted():
            cage.await_step()
        os.kill(cage._worker.process, signal.SIGCONT)
        observation, *_ = cage.await_step()
        np.testing.assert_array_equal(observation[:, 1], 1)
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 2)


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("method", ["read", "post"])
def test_a_step_whose_message_is_interrupted_is_taken_once(
    method: str, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_cage("") as cage:
        reset(cage)
        for number in (1, 2, 3):
            channel = cage._worker._channel
            call = getattr(channel, method)

            def interrupt(*args: Any, call: Any = call) -> None:
                if is_done:
                    call(*args)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(channel, method, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    step(cage, ACTIONS)
            observation, *_ = cage.await_step()
            np.testing.assert_array_equal(observation[:, 1], number)
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 4)


def test_a_large_message_that_is_interrupted_gives_the_worker_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with ProcessCage(Talkative, {"folder": tmp_path}) as cage:
        reset(cage)
        channel, n_calls = cage._worker._channel, 0
        receive = channel._receive

        def interrupt() -> int:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 3:
                raise KeyboardInterrupt
            return receive()

        monkeypatch.setattr(channel, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step(cage, 0)
        with pytest.raises(WorkerError, match="Ctrl-C, or another exception, cut a message"):
            cage.await_step()


def test_a_cage_whose_restart_was_interrupted_has_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with faulty_cage("", on_worker_error="restart") as cage:
        reset(cage)
        os.kill(cage._worker.process, signal.SIGKILL)
        monkeypatch.setattr(cage, "_start_worker", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step(cage, ACTIONS)
        with pytest.raises(RuntimeError, match="the cage has lost its worker"):
            reset(cage)


def test_a_worker_that_was_not_waited_for_is_not_taken_for_the_next(tmp_path: Path) -> None:
    with faulty_cage("") as cage:
        server = parent_of(cage._worker.process)
    os.kill(server, signal.SIGSTOP)
    with interrupted():
        faulty_cage("")
    os.kill(server, signal.SIGCONT)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with faulty_cage("", env_kwargs={"folder": tmp_path / name}) as cage:
            process = cage._worker.process
            assert parent_of(process) == server
        assert {path.name.split("_")[1] for path in (tmp_path / name).iterdir()} == {str(process)}


def test_a_cage_is_closed_though_its_worker_has_much_to_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cage = ProcessCage(Talkative, {"folder": tmp_path})
    reset(cage)
    cage.step_async(0)
    words = cage._worker._status_page.words
    wait_until(lambda: words[END] > words[BEGIN], "the step is done")
    cage.close()
    assert (tmp_path / "closed").exists()
    assert caplog.text == ""


# Nothing is left behind


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def holdings(process: int) -> dict[str, int]:
    """Count what a process holds: descriptors, threads, children, maps of anonymous files."""
    folder = Path(f"/proc/{process}")
    children = [path.read_text().split() for path in folder.glob("task/*/children")]
    return {
        "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
        "threads": sum(1 for _ in (folder / "task").iterdir()),
        "children": sum(map(len, children)),
        "maps": (folder / "maps").read_text().count("memfd:"),
    }


def own_holdings() -> dict[str, int]:
    """Count what this process holds, without what earlier tests left to be collected."""
    gc.collect()
    return holdings(os.getpid())


def test_making_and_closing_cages_changes_nothing() -> None:
    def use() -> int:
        with faulty_cage("") as cage:
            reset(cage)
            step(cage, ACTIONS)
            return parent_of(cage._worker.process)

    server = use()
    before = own_holdings(), holdings(server)
    for _ in range(15):
        assert use() == server
    wait_until(lambda: (holdings(os.getpid()), holdings(server)) == before, "nothing is left")


def open_files(process: int) -> list[str]:
    """Return the kinds of files that a process has open, but for its input and its outputs."""
    files = []
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            files += [os.readlink(link)] if int(link.name) > 2 else []
    return sorted(file.split(":")[0] for file in files)


def test_a_worker_has_its_own_descriptors_and_no_others() -> None:
    block = ["/memfd"] * 2  # Python's mmap keeps a descriptor of its own
    with faulty_cage("") as first, faulty_cage("") as cage, faulty_cage(""):
        for each in (first, cage):
            assert open_files(each._worker.process) == [*block, "socket"]  # the status page
        reset(cage)  # adds the memory for replies
        assert open_files(cage._worker.process) == [*block * 2, "socket"]
        for _ in range(2):
            step(cage, ACTIONS)  # adds a stand-in for the action
            assert open_files(cage._worker.process) == [*block * 3, "socket"]


def test_a_program_that_an_environment_starts_has_none_of_its_descriptors(tmp_path: Path) -> None:
    with faulty_cage("start a program", env_kwargs={"at": 1, "folder": tmp_path}) as cage:
        reset(cage)
        step(cage, ACTIONS)
        (path,) = tmp_path.glob("child_*")
        child = int(path.name.removeprefix("child_"))
        # What it has inherited would stay; while it starts, it opens its libraries.
        wait_until(lambda: open_files(child) == [], "the program has no descriptor of the cage")


def test_a_cage_that_is_forgotten_ends_its_worker() -> None:
    cage = faulty_cage("")
    worker = cage._worker.process
    del cage
    gc.collect()
    wait_until(lambda: not is_running(worker), "the worker has ended")


def test_close_is_idempotent_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    cage = faulty_cage("hang", timeout_s=0.5)
    reset(cage)
    step(cage, ACTIONS)
    cage.step_async(ACTIONS)  # it hangs in this one
    start = time.monotonic()
    cage.close()
    assert time.monotonic() - start < TIMEOUT_S / 2
    assert not is_running(cage._worker.process)
    assert "did not close within 0.5 s" in caplog.text
    cage.close()
    with pytest.raises(RuntimeError, match="the cage is closed"):
        reset(cage)


def test_an_environment_that_cannot_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    cage = ProcessCage(Unclosable)
    cage.close()
    assert "failed to close its environments" in caplog.text


def test_processes_that_an_environment_left_are_ended(tmp_path: Path) -> None:
    with faulty_cage("leave a child", env_kwargs={"at": 1, "folder": tmp_path}) as cage:
        reset(cage)
        with pytest.raises(WorkerError):
            step(cage, ACTIONS)
    (path,) = tmp_path.glob("child_*")
    child = int(path.name.removeprefix("child_"))
    wait_until(lambda: not is_running(child), "the child has ended")


def test_processes_that_lead_sessions_of_their_own_end_with_their_worker(tmp_path: Path) -> None:
    with faulty_cage("leave a session", env_kwargs={"at": 1, "folder": tmp_path}) as cage:
        reset(cage)
        with pytest.raises(WorkerError):
            step(cage, ACTIONS)
    (path,) = tmp_path.glob("child_*")
    left = [int(path.name.removeprefix("child_")), int((tmp_path / "grandchild").read_text())]
    wait_until(lambda: not any(map(is_running, left)), "both have ended")


@with_fork
@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_a_daemonic_process_may_use_cages(start_method: Any) -> None:
    def use() -> None:
        with faulty_cage("", start_method=start_method) as cage:
            reset(cage)

    process = multiprocessing.get_context("fork").Process(target=use, daemon=True)
    process.start()
    process.join(TIMEOUT_S)
    assert process.exitcode == 0


def test_a_new_server_takes_the_place_of_one_that_was_killed() -> None:
    with faulty_cage("") as cage:
        worker = cage._worker.process
        server = parent_of(worker)
        reset(cage)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not is_running(worker), "the worker has ended")
        with pytest.raises(WorkerError, match="was ended with the process that had forked it"):
            step(cage, ACTIONS)
    with faulty_cage("") as cage:
        reset(cage)
        assert parent_of(cage._worker.process) != server


@contextmanager
def new_server() -> Iterator[int]:
    """Have cages use a server of their own, and give its process."""
    before, fork_client._client = fork_client._client, None
    try:
        with faulty_cage("") as cage:
            server = parent_of(cage._worker.process)
        del cage  # it holds the client
        yield server
    finally:
        assert fork_client._client is not None
        fork_client._client.close()
        fork_client._client = before


@pytest.mark.long
def test_a_server_that_is_silent_is_replaced_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_client, "_END_S", 0.2)
    with new_server() as server:
        assert fork_client._client is not None
        assert fork_client._client._end.gettimeout() == fork_client.START_S
        fork_client._client._end.settimeout(0.5)  # otherwise it has a minute
        os.kill(server, signal.SIGSTOP)
        with faulty_cage("") as cage:
            reset(cage)
            assert parent_of(cage._worker.process) != server
        gc.collect()
        wait_until(lambda: not Path(f"/proc/{server}").exists(), "the silent server is reaped")


def test_a_server_that_ends_takes_the_processes_of_environments_with_it(tmp_path: Path) -> None:
    kwargs = {"at": 1, "folder": tmp_path}
    with new_server(), faulty_cage("start a program", env_kwargs=kwargs) as cage:
        reset(cage)
        step(cage, ACTIONS)
        (path,) = tmp_path.glob("child_*")
        child = int(path.name.removeprefix("child_"))
        assert is_running(child)
        assert fork_client._client is not None
        fork_client._client.close()
        wait_until(lambda: not is_running(child), "the child has ended")
        wait_until(lambda: not is_running(cage._worker.process), "the worker has ended")


def test_a_closed_cage_holds_nothing_and_still_tells_its_last_times() -> None:
    faulty_cage("").close()  # starts the server, which stays
    before = own_holdings()
    cage = faulty_cage("")
    reset(cage)
    step(cage, ACTIONS)
    assert holdings(os.getpid())["maps"] == before["maps"] + 3  # stand-ins and replies, too
    span = cage._worker.busy_span
    cage.close()
    assert holdings(os.getpid()) == before
    assert cage._worker.busy_span == span != (0, 0)


def test_threads_that_find_the_server_killed_share_a_new_one() -> None:
    with faulty_cage("") as cage:
        server = parent_of(cage._worker.process)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not is_running(server), "the server has ended")
    cages = build_cages(Faulty, 4, n_workers=4)
    for cage in cages:
        reset(cage)
    servers = {parent_of(cage._worker.process) for cage in cages}
    for cage in cages:
        cage.close()
    assert len(servers) == 1
    assert servers != {server}


def test_a_server_without_descriptors_is_an_error_and_its_workers_go_on() -> None:
    with faulty_cage("") as cage:
        reset(cage)
        server = parent_of(cage._worker.process)
        before = own_holdings(), holdings(server)
        limits = resource.prlimit(server, resource.RLIMIT_NOFILE)
        resource.prlimit(
            server, resource.RLIMIT_NOFILE, (holdings(server)["descriptors"] + 2, limits[1])
        )
        try:
            with pytest.raises(OSError, match="no worker process: Too many open files"):
                faulty_cage("")
        finally:
            resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
        assert (holdings(os.getpid()), holdings(server)) == before
        step(cage, ACTIONS)
        with faulty_cage("") as another:
            assert parent_of(another._worker.process) == server


@with_fork
def test_the_end_of_a_worker_is_told_though_the_program_holds_signals_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        with faulty_cage("kill", env_kwargs={"at": 1}, start_method="fork") as cage:
            reset(cage)
            with pytest.raises(WorkerError, match="killed by signal 9"):
                step(cage, ACTIONS)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
@with_fork
def test_a_default_timeout_of_sockets_is_none_of_a_worker(start_method: Any) -> None:
    socket.setdefaulttimeout(0.01)
    try:
        with faulty_cage("", start_method=start_method) as cage:
            reset(cage)
            time.sleep(0.1)  # the worker waits for longer than that
            step(cage, ACTIONS)
    finally:
        socket.setdefaulttimeout(None)


def test_too_little_memory_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty_cage("").close()  # starts the server, which stays
    before = own_holdings()
    monkeypatch.setattr(host_memory, "available_nbytes", lambda: 10_000)  # enough for a status page
    with pytest.raises(MemoryError, match=r"shared memory: [\d,]+ bytes wanted, 10,000 free"):
        faulty_cage("")
    wait_until(lambda: holdings(os.getpid()) == before, "nothing is left")


def named_memory(process: int) -> list[str]:
    """Return the files in /dev/shm that a process has open or mapped."""
    folder = Path(f"/proc/{process}")
    opened = [os.readlink(link) for link in (folder / "fd").iterdir()]
    mapped = [line.split()[-1] for line in (folder / "maps").read_text().splitlines()]
    return [name for name in opened + mapped if name.startswith("/dev/shm/")]


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from faulty_envs import Faulty, Unclosable
from parllel.cages import ProcessCage

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever it inherits from its parent

def report(*cages):
    workers = [cage._worker.process for cage in cages]
    stat = Path(f"/proc/{workers[0]}/stat").read_text()
    print(*workers, stat.rpartition(")")[2].split()[1], flush=True)
    sys.stdin.readline()  # until the test has looked at the processes

cages = [ProcessCage(Faulty, {"fault": "hang", "at": 1}, n_envs=2, timeout_s=1) for _ in range(2)]
for cage in cages:
    cage.reset_async()
for cage in cages:
    cage.await_step()
"""
ENDS = {
    "it comes to its end": "report(*cages)",
    "it closes its cages": "report(*cages)\nfor cage in cages: cage.close()",
    "an agent raises": "report(*cages)\nraise ValueError('of the agent')",
    "an agent raises while environments hang": """
        cages[0].step_async(np.array([1, 1]))
        report(*cages)
        raise ValueError('of the agent')
    """,
    "Ctrl-C": "report(*cages)\ntime.sleep(60)",
    "Ctrl-C while environments hang": """
        cages[0].step_async(np.array([1, 1]))
        report(*cages)
        cages[0].await_step()
    """,
    "it is killed": "report(*cages)\ntime.sleep(60)",
    "it is killed while environments hang": """
        cages[0].step_async(np.array([1, 1]))
        report(*cages)
        time.sleep(60)
    """,
    "it is killed, and a child of it goes on": """
        if os.fork() == 0:
            time.sleep(60)
        report(*cages)
        time.sleep(60)
    """,
}


@pytest.mark.parametrize("how", all_but(ENDS, ["it is killed, and a child of it goes on"]))
def test_a_program_leaves_no_process_and_no_file_behind(how: str, tmp_path: Path) -> None:
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(tmp_path)}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(ENDS[how])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        processes = [int(number) for number in program.stdout.readline().split()]
        assert len(processes) == 3, program.communicate()
        named = [name for number in processes for name in named_memory(number)]
        inputs = {os.readlink(f"/proc/{number}/fd/0") for number in processes}
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
        if how.startswith("Ctrl-C"):
            time.sleep(0.1)  # until it waits
            os.killpg(program.pid, signal.SIGINT)
        if how.startswith("it is killed"):
            os.kill(program.pid, signal.SIGKILL)
        for process in processes:
            wait_until(lambda p=process: not is_running(p), f"{process} has ended")
        program.wait(TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):  # its child, which goes on
            os.killpg(program.pid, signal.SIGKILL)
        _, errors = program.communicate(timeout=TIMEOUT_S)
    expected = {"an agent": "ValueError: of the agent", "Ctrl-C": "KeyboardInterrupt"}
    for beginning, line in expected.items():
        assert (line in errors) == how.startswith(beginning)
    assert "Warning" not in errors
    assert list(tmp_path.iterdir()) == []
    assert named == []
    assert inputs == {os.devnull}  # the program's own input is for the program


@with_fork
def test_a_forked_child_leaves_its_parents_worker_alone() -> None:
    with faulty_cage("") as cage:
        reset(cage)
        child = os.fork()
        if child == 0:
            cage.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        observation, *_ = step(cage, ACTIONS)
        np.testing.assert_array_equal(observation[:, 1], 1)


@with_fork
def test_a_forked_child_may_make_cages_whatever_threads_of_its_parent_did() -> None:
    with fork_client._client_lock:  # as if another thread started the server
        child = os.fork()
        if child == 0:
            signal.alarm(TIMEOUT_S)
            with faulty_cage("") as cage:
                reset(cage)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@with_fork
@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_a_cage_is_refused_in_a_forked_child(start_method: Any) -> None:
    def refuses(call: Any) -> bool:
        try:
            call()
        except RuntimeError as error:
            return "and this is a forked child" in str(error)
        return False

    with faulty_cage("", start_method=start_method) as cage:
        reset(cage)
        command = cage.prepare_step(ACTIONS)
        cage.start_command(command)
        child = os.fork()
        if child == 0:
            calls = cage.await_step, cage.reset_async, lambda: cage.start_command(command)
            os._exit(0 if all(map(refuses, calls)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        observation, *_ = cage.await_step()
        np.testing.assert_array_equal(observation[:, 1], 1)


def test_a_limit_that_is_reached_is_told_with_its_size() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    faulty_cage("").close()  # starts the server, which stays
    gc.collect()  # what is closed later would make room below the limit
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    for n_more in range(1, 6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + n_more, before[1]))
        try:
            with pytest.raises(OSError, match=r"Too many open files.* raise that by `ulimit -n`"):
                faulty_cage("").close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for filler in fillers:
        os.close(filler)


def test_too_many_processes_are_told_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(fork_client.ForkClient, "fork", refuse)
    with pytest.raises(OSError, match=r"temporarily unavailable; this user may .* `ulimit -u`"):
        faulty_cage("")

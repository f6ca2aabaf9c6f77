"""RayCage where environments, actors, Ray or the program fail."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import faulty_envs
from faulty_envs import Faulty, Slow, Unclosable
from optional import needs
from parllel import Array
from parllel.cages import RayCage, WorkerError
from parllel.cages.actors.actor_worker import ActorWorker
from parllel.cages.seeds import seed_words, spawn_seeds
from parllel.testing.contracts.cage_calls import reset, step
from ray_cluster import NO_CPU

pytestmark = needs("ray")
on_ray = pytest.mark.usefixtures("ray_cluster")
on_used_actors = pytest.mark.usefixtures("recycled_actors")

ACTIONS = np.array([0, 1])  # what befalls the second environment
TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module", autouse=True)
def _send_definitions() -> Iterator[None]:
    """Actors can't import the modules of tests."""
    for module in (faulty_envs, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in (faulty_envs, sys.modules[__name__]):
        cloudpickle.unregister_pickle_by_value(module)


def faulty_cage(fault: str, env_kwargs: Any = None, **options: Any) -> RayCage:
    settings = {"n_envs": 2, "seed": 5, "actor_options": NO_CPU, **options}
    return RayCage(Faulty, {"fault": fault, **(env_kwargs or {})}, **settings)


class Telling(Faulty):
    """Tell of its process."""

    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0], {"process": os.getpid()}


def process_of(cage: RayCage) -> int:
    """Reset the `Telling` environments of a cage, and return their process."""
    infos = reset(cage)[1]
    return int(infos[0]["process"])


def await_end_of(process: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][:3]:
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


# Environments


@on_ray
def test_an_environment_that_raises_is_an_error_and_a_killed_actor_another() -> None:
    settings: Any = {"n_envs": 2, "seed": 5, "first_env": 6, "actor_options": NO_CPU}
    with RayCage(Telling, {"fault": "raise what can't be pickled"}, **settings) as cage:
        process = process_of(cage)
        step(cage, ACTIONS)
        with pytest.raises(WorkerError, match="UnpicklableError: 1 and 2") as caught:
            step(cage, ACTIONS)
        seed, _ = seed_words(spawn_seeds(5, 2)[1])
        error = caught.value
        assert (error.environment, error.seed, error.action) == (7, seed, 1)
        assert "in commit" in error.worker_traceback
        assert step(cage, ACTIONS)[0].tolist()[1] == [seed, 3]  # it goes on
        os.kill(process, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"the actor is lost \(ActorDiedError\)"):
            step(cage, ACTIONS)
        with pytest.raises(RuntimeError, match="the cage has lost its worker"):
            step(cage, ACTIONS)


@pytest.mark.long
@on_used_actors
def test_an_error_that_can_be_pickled_is_the_cause_and_one_of_make_env_is_raised() -> None:
    with faulty_cage("raise") as cage:
        reset(cage)
        step(cage, ACTIONS)
        actions = ACTIONS.copy()
        cage.step_async(actions)
        actions[:] = 7  # the caller's memory is its own again
        with pytest.raises(WorkerError) as caught:
            cage.await_step()
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.action == 1
    with pytest.raises(OSError, match="it can't be made"):
        faulty_cage("raise when made")


@pytest.mark.long
@pytest.mark.parametrize("fault", ["exit", "kill", "crash"])
@on_used_actors
def test_an_environment_that_ends_its_process_is_an_error_within_bounded_time(fault: str) -> None:
    with faulty_cage(fault) as cage:
        reset(cage)
        step(cage, ACTIONS)
        begin_s = time.monotonic()
        with pytest.raises(WorkerError, match="the actor is lost"):
            step(cage, ACTIONS)
        assert time.monotonic() - begin_s < 30
    assert cage.is_ready


@pytest.mark.long
@on_used_actors
def test_an_environment_that_hangs_is_an_error_with_the_place_where_it_does() -> None:
    with faulty_cage("hang") as cage:
        reset(cage)
        step(cage, ACTIONS)
        cage._worker._timeout_s = 2  # not sooner: an actor takes longer to start
        begin_s = time.monotonic()
        with pytest.raises(WorkerError, match=r"did not reply within 2 s \(timeout_s\)") as caught:
            step(cage, ACTIONS)
        assert 1 < time.monotonic() - begin_s < 20
        assert (caught.value.environment, caught.value.action) == (1, 1)
        assert "in commit\n    time.sleep(3600)" in caught.value.worker_traceback


@pytest.mark.long
@on_used_actors
def test_the_times_of_several_environments_do_not_add_up() -> None:
    options: Any = {"n_envs": 4, "actor_options": NO_CPU}
    with RayCage(Slow, {"call_s": 1.0}, **options) as cage:
        cage._worker._timeout_s = 2
        begin_s = time.monotonic()
        reset(cage)
        assert time.monotonic() - begin_s > 3.9


@pytest.mark.long
@on_used_actors
def test_an_environment_that_raises_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    with faulty_cage("raise", on_worker_error="restart") as cage:
        assert cage.gives_invalid_rows
        reset(cage)
        step(cage, ACTIONS)
        _, reward, terminated, truncated, _ = step(cage, ACTIONS)
        assert (list(cage.invalid), cage.n_restarts) == ([1], 1)
        assert (reward.tolist(), truncated.tolist()) == ([1, 0], [False, True])
        assert not terminated.any()
        step(cage, ACTIONS)
        assert list(cage.invalid) == []
    assert "environment 1 failed and was made anew" in caplog.text


@pytest.mark.long
@on_ray
def test_a_killed_actor_is_replaced_with_all_of_its_environments() -> None:
    settings: Any = {"n_envs": 2, "seed": 5, "on_worker_error": "restart"}
    rows = np.zeros((2, 2))
    with RayCage(Telling, actor_options=NO_CPU, **settings) as cage:
        process = process_of(cage)
        before = step(cage, ACTIONS)[0]
        os.kill(process, signal.SIGKILL)
        *_, truncated, _ = step(cage, ACTIONS, out_obs=rows)
        assert (sorted(cage.invalid), cage.n_restarts) == ([0, 1], 2)
        assert truncated.all()
        assert (rows[:, 0] != before[:, 0]).all()  # they have other seeds
        assert (rows[:, 1] == 0).all()
        assert step(cage, ACTIONS)[0][:, 1].tolist() == [1, 1]
        assert list(cage.invalid) == []


# The way there


@pytest.mark.long
@on_used_actors
def test_a_reply_that_is_interrupted_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with faulty_cage("") as cage:
        reset(cage)
        monkeypatch.setattr(cage._worker._ray, "get", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step(cage, ACTIONS)
        assert cage.await_step()[0][:, 1].tolist() == [1, 1]
        call = ActorWorker._call

        def call_and_interrupt(*arguments: Any) -> None:
            call(*arguments)
            cage._worker._due = None  # the assignment did not come
            interrupt()

        monkeypatch.setattr(ActorWorker, "_call", call_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            cage.step_async(ACTIONS)
        assert cage.await_step()[0][:, 1].tolist() == [2, 2]  # taken once
        assert step(cage, ACTIONS)[0][:, 1].tolist() == [3, 3]


@pytest.mark.long
@on_ray
def test_an_actor_that_finds_no_room_is_an_error_with_what_is_free() -> None:
    with pytest.raises(WorkerError, match=r"no node .* within 1 s .* free are 1 CPUs of 1"):
        RayCage(Faulty, timeout_s=1, actor_options={"num_cpus": 64})
    with pytest.raises(ValueError, match="num_cores"):
        RayCage(Faulty, actor_options={"num_cores": 1})
    for refused in (  # two cages would share environments, or an actor has none after a restart
        {"name": "one", "get_if_exists": True},
        {"max_restarts": -1},
        {"max_concurrency": 8},
    ):
        with pytest.raises(ValueError, match=r"^actor_options: got .*an actor of its own"):
            RayCage(Faulty, actor_options=refused)


def test_what_belongs_to_this_machine_is_refused_by_name() -> None:
    memory = Array((4,), np.float32, storage="shared")
    with pytest.raises(TypeError, match=r"^env_kwargs: it has a file, socket or shared memory"):
        RayCage(Faulty, {"folder": memory})


def test_a_cage_starts_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"Ray is not initialised; call ray.init\(\)"):
        RayCage(Faulty)


def test_the_extra_is_named_where_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install parllel\[ray\]"):
        RayCage(Faulty)


# Ends


@pytest.mark.long
@on_ray
def test_actors_end_with_their_cage_be_it_closed_or_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: Any = {"n_envs": 2, "actor_options": NO_CPU}
    first, second = RayCage(Telling, **settings), RayCage(Telling, **settings)
    processes = process_of(first), process_of(second)
    assert processes[0] != processes[1]
    first.close()
    first.close()
    await_end_of(processes[0])
    with pytest.raises(RuntimeError, match="the cage is closed"):
        reset(first)
    step(second, ACTIONS)  # is not disturbed
    del second
    await_end_of(processes[1])
    with RayCage(Unclosable, **settings) as third:
        reset(third)
    assert "failed to close its environments" in caplog.text
    with faulty_cage("hang", env_kwargs={"at": 1}) as cage:
        reset(cage)
        cage._worker._timeout_s = 1
        cage.step_async(ACTIONS)
    assert "an actor did not close" in caplog.text


PROGRAM = """
import logging, sys, time
import numpy as np, ray
from faulty_envs import Faulty
from parllel.cages import RayCage, WorkerError
import cloudpickle, faulty_envs, os
cloudpickle.register_pickle_by_value(faulty_envs)

class Telling(Faulty):
    def reset(self, **options):
        return super().reset(**options)[0], {"process": os.getpid()}

def connect():
    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)

connect()
cage = RayCage(Telling, actor_options={"num_cpus": 0})
cage.reset_async()
print(cage.await_step()[1]["process"], flush=True)
"""
WAITING = PROGRAM + "time.sleep(3600)"
SHUTTING_DOWN = (
    PROGRAM
    + """
def told(what):
    try:
        what()
    except (WorkerError, RuntimeError) as error:
        print(str(error).splitlines()[0])

def step():
    cage.step_async(0)
    cage.await_step()

other = RayCage(Telling, actor_options={"num_cpus": 0})
other.reset_async()
other.await_step()
cage.step_async(0)
ray.shutdown()
told(cage.await_step)
told(lambda: RayCage(Telling))
assert not ray.is_initialized()
cage.close()
connect()
cage = other
told(step)
assert cage.is_ready
with RayCage(Telling, actor_options={"num_cpus": 0}) as cage:
    cage.reset_async()
    step()
    print("steps")
"""
)


def start(program: str, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", program, address]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([TESTS, *sys.path])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)


@pytest.mark.long
def test_the_actor_of_a_program_that_was_killed_ends(ray_cluster: str) -> None:
    with start(WAITING, ray_cluster) as program:
        assert program.stdout is not None
        process = int(program.stdout.readline())
        assert Path(f"/proc/{process}").exists()
        program.kill()
    await_end_of(process)


@pytest.mark.long
def test_ray_may_be_shut_down_under_a_cage_and_initialised_anew(ray_cluster: str) -> None:
    with start(SHUTTING_DOWN, ray_cluster) as program:
        output, _ = program.communicate(timeout=120)
    assert program.returncode == 0
    assert output.splitlines()[1:] == [
        "the actor has ended with Ray: ray.shutdown() was called",
        "RayCage: Ray is not initialised; call ray.init() for a cluster of this machine alone, or"
        ' ray.init(address="auto") for the one that this machine is a node of',
        "the actor has ended with its cluster: Ray was shut down and initialised anew",
        "steps",
    ]

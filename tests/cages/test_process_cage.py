"""ProcessCage against the contract of all cages, and against SerialCage bit by bit."""

import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from films import FRAME, STACK, make_film
from long_run import all_but_first
from parllel import Array, ArrayDict, FrameArray, dict_map
from parllel.cages import (
    Cage,
    ProcessCage,
    Seed,
    SerialCage,
    TrajInfo,
    WorkerError,
    n_physical_cores,
)
from parllel.cages.process import processors, worker_numbers
from parllel.cages.process.processors import processors_to_bind
from parllel.patterns import build_cages, build_eval_tree, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler
from parllel.testing import toy_agents, toy_envs
from parllel.testing.contracts import cage_calls
from parllel.testing.contracts.cage_agents_contract import CageAgentsContract
from parllel.testing.contracts.cage_calls import assert_same, random_step, reset, rollout, step
from parllel.testing.contracts.cage_contract import CageContract
from parllel.testing.contracts.cage_states_contract import CageStatesContract, go_on
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Clock, Echo, Walk
from parllel.tree.leaves import as_tensor
from schedules import each_schedule

T = 8
FILLS = "first", "zero"


@pytest.fixture(scope="module", autouse=True)
def _send_definitions() -> Iterator[None]:
    """Have environments sent to workers by their definitions, as if they were of `__main__`.

    Importing this module would bring pytest along, and importing parllel.testing simulated CUDA,
    which takes each worker 70 ms. tests/cages/test_worker_faults.py sends environments by their
    names.
    """
    modules = sys.modules[__name__], toy_agents, toy_envs, cage_calls
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


class TestProcessCage(CageContract, CageStatesContract, CageAgentsContract):
    storage = "shared"

    def make_cage(
        self,
        make_env: Callable[..., gym.Env],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> Cage:
        return ProcessCage(make_env, env_kwargs, make_traj_info, n_envs=n_envs, seed=seed)


@pytest.mark.long
class TestProcessCageInLocalMemory(TestProcessCage):
    storage = "local"


# With samplers


class TensorAgent:
    """Choose actions and values by arithmetic."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first = as_tensor(observation)[:, 0]
        return (first.abs() * 64).floor().long() % 4, {"value": first * 2}

    def value(self, observation: Any) -> Any:
        return as_tensor(observation)[:, 0] * 2


def summaries(completed: Sequence[TrajInfo]) -> list[tuple[int, float]]:
    return [(traj.length, traj.episode_return) for traj in completed]


def copied(leaf: Array) -> Any:
    return leaf.to_ndarray().copy()


def collect(
    n_workers: int,
    storage: str,
    kind: type[BasicSampler] = BasicSampler,
    *,
    n_serial_envs: int = 0,
    **window: int,
) -> list[ArrayDict]:
    """Return four batches of five environments, with what ended in each."""
    agent, batches = TensorAgent(), []
    cages = build_cages(Walk, 5, n_workers=n_workers, seed=3, n_serial_envs=n_serial_envs)
    assert len(cages) == (n_workers + 1 if n_serial_envs else max(n_workers, 1))
    samples = build_sample_tree(
        build_example(Walk, storage="local"), agent, batch_shape=(T, 5), storage=storage, **window
    )
    with ExitStack() as stack:
        for cage in cages:
            stack.enter_context(cage)
        sampler = kind(cages, agent, samples)
        stack.callback(sampler.close)
        for _ in range(4):
            batch, completed = sampler.collect_batch()
            copies = ArrayDict({name: dict_map(copied, batch[name]) for name in batch})
            is_used = copies["truncated"] & ~copies["terminated"]
            copies["final_value"] = np.where(is_used, copies["final_value"], 0)
            copies["lengths"] = np.array(sorted(summaries(completed)))
            batches.append(copies)
    assert sum(batch["final_value"].any() for batch in batches) > 2
    return batches


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("storage", ["local", "shared", "inherited"])
def test_workers_give_the_batches_of_a_serial_cage(storage: str, n_workers: int) -> None:
    for batch, expected in zip(collect(n_workers, storage), collect(0, "local"), strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize(("n_workers", "n_serial_envs"), [(1, 3), (2, 1)])
@pytest.mark.parametrize("kind", all_but_first([BasicSampler, AlternatingSampler]))
def test_workers_and_this_process_give_the_batches_of_a_serial_cage(
    kind: type[BasicSampler], n_workers: int, n_serial_envs: int
) -> None:
    batches = collect(n_workers, "shared", kind, n_serial_envs=n_serial_envs)
    for batch, expected in zip(batches, collect(0, "local"), strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_workers_follow_a_window_that_moves(storage: str) -> None:
    batches = collect(2, storage, full_size=3 * T)
    for batch, expected in zip(batches, collect(0, "local"), strict=True):
        assert_same(batch, expected)


def test_alternating_workers_give_the_batches_of_serial_cages() -> None:
    runs = collect(2, "shared", AlternatingSampler), collect(0, "local")
    for batch, expected in zip(*runs, strict=True):
        assert_same(batch, expected)


@each_schedule
def test_workers_write_pinned_slots_that_are_staged_to_a_device(schedule: str, seed: int) -> None:
    expected = collect(0, "local")
    with simulated_cuda(schedule, seed):
        batches = collect(2, "device")
    for batch, other in zip(batches, expected, strict=True):
        assert_same(batch, other)


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_an_evaluation_with_workers_is_that_of_a_serial_cage(n_workers: int) -> None:
    finished = []
    for number in (n_workers, 0):
        cages = build_cages(Walk, 4, n_workers=number, seed=1)
        agent = TensorAgent()
        samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, 4))
        tree = build_eval_tree(samples, n_envs=4)
        finished.append(EvalSampler(cages, agent, tree, n_episodes=12).collect_episodes())
        for cage in cages:
            cage.close()
    assert summaries(finished[0]) == summaries(finished[1])
    assert len(finished[0]) == 12


# Forked from this process

# Python 3.12 and later warn of every fork beside threads; NumPy's own threads are enough for it.
with_fork = pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")


@with_fork
class TestForkedProcessCage:
    def make_cage(self, **options: Any) -> ProcessCage:
        return ProcessCage(Walk, n_envs=3, seed=2, start_method="fork", **options)

    def test_it_gives_the_results_of_a_serial_cage(self) -> None:
        with self.make_cage() as cage, SerialCage(Walk, n_envs=3, seed=2) as serial:
            assert_same(rollout([cage]), rollout([serial]))

    def test_it_writes_inherited_memory_itself(self) -> None:
        outputs = Array((2, 3), np.float64, feature_shape=(3,), storage="inherited")
        with self.make_cage() as cage, SerialCage(Walk, n_envs=3, seed=2) as serial:
            later = Array((2, 3), np.float64, feature_shape=(3,), storage="inherited")
            expected = reset(serial)[0]
            reset(cage, out_obs=outputs[1])
            np.testing.assert_array_equal(outputs[1], expected)
            action = np.zeros(3, int)
            assert cage.prepare_step(action, out_obs=outputs[0]).packed.copies_out == []
            assert len(cage.prepare_step(action, out_obs=later[0]).packed.copies_out) == 1
            step(cage, action, out_obs=later[1])
            np.testing.assert_array_equal(later[1], step(serial, action)[0])

    def test_it_ends_its_server_too(self) -> None:
        with self.make_cage() as cage:
            server = parent_of(cage._worker.process)
            assert parent_of(server) == os.getpid()
        assert not Path(f"/proc/{server}").exists()

    def test_a_lost_worker_is_replaced(self) -> None:
        outputs = Array((2, 3), np.float64, feature_shape=(3,), storage="inherited")
        with self.make_cage(on_worker_error="restart") as cage:
            reset(cage)
            os.kill(cage._worker.process, signal.SIGKILL)
            step(cage, np.zeros(3, int), out_obs=outputs[1])
            assert sorted(cage.invalid) == [0, 1, 2]
        assert outputs[1].to_ndarray().all()


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


# Workers


class Surroundings(Clock):
    """Tell of the process in `info`."""

    def _info(self) -> dict[str, Any]:
        heavy = [name for name in ("torch", "cupy", "numba.cuda", "pytest") if name in sys.modules]
        return {
            "process": os.getpid(),
            "heavy": heavy,
            "n_threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
            "n_blas_threads": [os.environ[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS")],
            "folder": str(Path.cwd()),
            "variable": os.environ.get("PARLLEL_TEST"),
            "drawn": float(np.random.random()),  # noqa: NPY002
        }


def surroundings(**options: Any) -> dict[str, Any]:
    with ProcessCage(make_surroundings, **options) as cage:
        return reset(cage)[1]


def make_surroundings() -> gym.Env:
    np.zeros((100, 100)) @ np.zeros((100, 100))  # threads of BLAS start with the first product
    return Surroundings()


def test_a_worker_imports_nothing_heavy_and_has_one_thread() -> None:
    told = surroundings()
    assert told["process"] != os.getpid()
    assert told["heavy"] == []
    assert told["n_threads"] == 1
    assert told["n_blas_threads"] == ["1", "1"]


def test_a_worker_takes_over_the_folder_and_the_variables_of_its_cage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARLLEL_TEST", "a")
    told = surroundings()
    assert (told["folder"], told["variable"]) == (str(tmp_path), "a")
    monkeypatch.delenv("PARLLEL_TEST")
    assert surroundings()["variable"] is None


def test_global_generators_of_workers_differ_and_are_seeded() -> None:
    drawn = [surroundings(seed=seed)["drawn"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


SCRIPT = """
from dataclasses import dataclass, field
import sqlite3  # in the place of torch, which takes longer
import gymnasium as gym, numpy as np
from parllel.cages import ProcessCage, TrajInfo

OFFSET = 3

class Mine(gym.Env):
    observation_space = gym.spaces.Box(0, 9, (2,))
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        import sys
        assert "sqlite3" not in sys.modules
        return np.full(2, OFFSET, np.float32), {}
    def step(self, action):
        return np.full(2, action + OFFSET, np.float32), 1.0, True, False, {}

@dataclass(slots=True)
class MyInfo(TrajInfo):
    n_told: int = field(default=0, init=False)

    def step(self, *told):
        TrajInfo.step(self, *told)
        self.n_told += 1

gym.register("Mine-v0", Mine)
for make_env in (Mine, lambda: Mine(), lambda: gym.make("Mine-v0", disable_env_checker=True)):
    with ProcessCage(make_env, None, MyInfo) as cage:
        cage.reset_async()
        cage.await_step()
        cage.step_async(1)
        cage.await_step()
        (traj,) = cage.take_completed()
        assert (type(traj), traj.n_told, traj.length) == (MyInfo, 1, 1)
        print(cage.final_obs[0])
"""


def test_a_script_without_a_guard_may_define_environments_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.stderr) == ("[4. 4.]\n" * 3, "")


# Memory


@pytest.mark.parametrize("name", ["previous", "last", "is_first"])
def test_a_branch_of_observations_may_have_any_name(name: str) -> None:
    """Beside frames there are branches that workers read; these are none of them."""
    space = spaces.Dict({"now": spaces.Box(0, 1, (3,)), name: spaces.Box(0, 1, (3,))})
    with ProcessCage(Echo, {"space": space}, n_envs=2, seed=0) as cage:
        out = ArrayDict({key: Array((2,), np.float32, feature_shape=(3,)) for key in space})
        reset(cage, out_obs=out)
        assert all(leaf.to_ndarray().all() for leaf in out.values())


def test_outputs_that_differ_only_in_how_samples_are_written_are_told_apart() -> None:
    """Parts of rows have one shape whatever a stack holds before its episode's beginning."""
    outputs = [FrameArray((2, 2), np.uint8, FRAME, stack=STACK, fill=fill) for fill in FILLS]
    for output in outputs:
        output.frames[...] = 9  # which no stack goes on from
    with ProcessCage(make_film, {"fill": "zero"}, n_envs=2, seed=0) as cage:
        with pytest.raises(WorkerError, match="nor begins an episode as fill='first' has it"):
            reset(cage, out_obs=outputs[0][1])
        reset(cage, out_obs=outputs[1][1])
    stacks = outputs[1][1].to_ndarray()
    assert stacks[:, -1].any()
    assert not stacks[:, :-1].any()


def test_memory_of_a_closed_tree_is_given_back_by_the_worker() -> None:
    def n_maps() -> int:
        gc.collect()
        maps = Path(f"/proc/{cage._worker.process}/maps").read_text()
        return maps.count("memfd:parllel")

    with ProcessCage(Clock) as cage:
        counts = []
        for _ in range(4):
            output = Array((4,), np.float32, feature_shape=(2,), storage="shared")
            reset(cage, out_obs=output[0])
            counts.append(n_maps())
            output.close()
        # The next one is known to the worker before the last one's end is noticed, or after it.
        assert max(counts) <= counts[0] + 1


def test_descriptors_do_not_add_up_with_trees() -> None:
    def n_descriptors() -> list[int]:
        gc.collect()
        processes = os.getpid(), cage._worker.process
        return [sum(1 for _ in Path(f"/proc/{number}/fd").iterdir()) for number in processes]

    with ProcessCage(Clock) as cage:
        counts = []
        reset(cage)
        for _ in range(4):
            output = Array((4,), np.float32, feature_shape=(2,), storage="shared")
            step(cage, np.int64(0), out_obs=output[0])  # the action is in local memory
            counts.append(n_descriptors())
            output.close()
        assert counts[1:] == counts[:-1]


def test_a_bound_step_keeps_its_places_alive() -> None:
    with ProcessCage(Walk, n_envs=2, seed=0) as cage:
        reset(cage)

        def bind() -> Any:
            output = Array((2, 2), np.float64, feature_shape=(3,), storage="shared")
            action = Array((2, 2), np.int64, storage="shared")
            return output[0], cage.prepare_step(action[0], out_obs=output[0])

        row, command = bind()
        gc.collect()
        cage.start_command(command)
        cage.await_step()
        assert row.to_ndarray().any()


def test_results_may_be_larger_than_the_reply_memory_and_a_message() -> None:
    kwargs = {"shape": (300, 1000)}  # of an info, which no space tells of
    with ProcessCage(LargeInfo, kwargs, n_envs=2) as cage:
        _, infos = reset(cage)
    for info in infos:
        np.testing.assert_array_equal(info["large"], np.arange(300_000).reshape(300, 1000))


def test_observations_without_places_come_as_arrays_of_their_own() -> None:
    with ProcessCage(Walk, n_envs=2, seed=0) as cage, SerialCage(Walk, n_envs=2, seed=0) as serial:
        kept = [(random_step(cage), random_step(serial)) for _ in range(20)]
    for results, expected in kept:
        for result, other in zip(results[:-1], expected[:-1], strict=True):
            assert result.flags.writeable
            np.testing.assert_array_equal(result, other, strict=True)
        assert results[-1] == expected[-1]


class LargeInfo(Clock):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape

    def _info(self) -> dict[str, Any]:
        return {"large": np.arange(np.prod(self._shape)).reshape(self._shape)}


def test_actions_of_python_objects_are_an_error() -> None:
    with ProcessCage(Clock, n_envs=2) as cage:
        reset(cage)
        with pytest.raises(TypeError, match="action: got Python objects"):
            step(cage, np.array([object(), object()]))


def test_an_empty_observation_is_no_error() -> None:
    space = spaces.Box(0, 1, (0,))
    with ProcessCage(Empty, {"space": space}, n_envs=2) as cage:
        output = Array((2, 2), np.float32, feature_shape=(0,), storage="shared")
        reset(cage, out_obs=output[1])
        assert reset(cage)[0].shape == (2, 0)


class Empty(Clock):
    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.observation_space = space

    def _observe(self) -> Any:
        return np.zeros(0, np.float32)


def no_reward(number: int) -> Any:
    return None if number > 1 else 1.0


class Wide(Clock):
    def _observe(self) -> Any:
        return np.zeros(3, np.float32)


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_nothing_is_pickled_for_a_step_with_places(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = {
        "out_obs": Array((2,), np.float32, feature_shape=(2,), storage=storage),
        "out_reward": Array((2,), np.float32, storage=storage),
        "out_terminated": Array((2,), bool, storage=storage),
        "out_truncated": Array((2,), bool, storage=storage),
        "out_info": ArrayDict({"step": Array((2,), np.int32, storage=storage)}),
    }
    action = Array((2,), np.int64, storage=storage)
    with ProcessCage(NoReplies, n_envs=2) as cage:
        reset(cage)
        command = cage.prepare_step(action, **outputs)
        cage.start_command(command)
        cage.await_step()
        for module in (pickle, cloudpickle):
            for name in ("dumps", "loads"):
                monkeypatch.setattr(module, name, None)
        cage.start_command(command)
        cage.await_step()
    np.testing.assert_array_equal(outputs["out_info"]["step"], 2)


class NoReplies(Clock):
    """Have no reply pickled after the first step's, which tells of entries that have no place."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        from parllel.cages.process.replies import ReplyMemory

        self.n_steps += 1
        if self.n_steps > 1:
            ReplyMemory.pack = None  # of the worker
        return super().step(action)


@pytest.mark.parametrize("kind", [SerialCage, ProcessCage])
def test_what_cannot_be_used_is_told_with_its_environment(kind: type[Any]) -> None:
    def message_of(error: Exception) -> str:
        return "".join(traceback.format_exception(error))

    with kind(Clock, {"reward_type": no_reward}, n_envs=2) as cage:
        reset(cage)
        step(cage, np.zeros(2, int))
        with pytest.raises((TypeError, WorkerError)) as caught:
            step(cage, np.zeros(2, int))
    assert "environment 0 of this cage returned (array([0., 2.]" in message_of(caught.value)
    with kind(Wide, n_envs=2) as cage, pytest.raises((ValueError, WorkerError)) as caught:
        reset(cage, out_obs=np.zeros((2, 2), np.float32))
    expected = "observation: environment 0 of this cage gave (3,), float32, expected (2,), float32"
    assert expected in message_of(caught.value)


# Builders


def test_environments_are_divided_among_workers() -> None:
    def sizes(**options: Any) -> list[tuple[str, int]]:
        cages = build_cages(Clock, 5, **options)
        for cage in cages:
            cage.close()
        return [(type(cage).__name__, cage.n_envs) for cage in cages]

    assert sizes(n_workers=2) == [("ProcessCage", 2), ("ProcessCage", 3)]
    assert sizes(n_workers=9) == [("ProcessCage", 1)] * 5
    assert sizes(n_workers=0) == sizes(n_workers="serial") == [("SerialCage", 5)]
    assert sizes(n_workers=1, n_serial_envs=3) == [("ProcessCage", 2), ("SerialCage", 3)]
    assert sizes(n_workers=9, n_serial_envs=3) == [("ProcessCage", 1)] * 2 + [("SerialCage", 3)]
    assert sizes(n_workers=0, n_serial_envs=3) == [("SerialCage", 5)]


def test_fast_environments_stay_here_and_slow_ones_get_workers() -> None:
    def kinds(make_env: Any, **options: Any) -> set[type[Any]]:
        cages = build_cages(make_env, 4, seed=0, **options)
        for cage in cages:
            cage.close()
        return {type(cage) for cage in cages}

    slow = ProcessCage if n_physical_cores() > 1 else SerialCage
    assert kinds(Clock) == {SerialCage}
    assert kinds(Slow) == {slow}
    assert kinds(Clock, on_worker_error="restart") == {slow}
    assert kinds(Clock, n_workers=2) == {ProcessCage}


class Slow(Clock):
    """Take a tenth of a millisecond for a step."""

    def step(self, action: Any) -> Any:
        time.sleep(1e-4)
        return super().step(action)


def test_this_process_is_one_of_those_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for n_cores, expected in ((1, 0), (2, 1), (3, 2), (9, 2)):
        monkeypatch.setattr(worker_numbers, "n_physical_cores", lambda n=n_cores: n)
        cages = build_cages(Slow, 4, seed=0, n_serial_envs=2)
        for cage in cages:
            cage.close()
        assert [type(cage) for cage in cages] == [ProcessCage] * expected + [SerialCage]
        assert sum(cage.n_envs for cage in cages) == 4


def test_environments_here_step_while_those_of_workers_do(tmp_path: Path) -> None:
    """Each waits for the file of the other in its step."""

    class Meeting(Clock):
        def step(self, action: Any) -> Any:
            own = tmp_path / ("here" if os.getpid() == here else "there")
            own.touch()
            end = time.monotonic() + 10
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.001)
            return super().step(action)

    here = os.getpid()
    agent = TensorAgent()
    cages = build_cages(Meeting, 2, n_workers=1, n_serial_envs=1)
    with ExitStack() as stack:
        for cage in cages:
            stack.callback(cage.close)
        samples = build_sample_tree(build_example(Clock), agent, batch_shape=(1, 2))
        begin = time.monotonic()
        BasicSampler(cages, agent, samples).collect_batch()
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("number", [-1, 2, 3])
def test_some_environments_are_left_to_workers(number: int) -> None:
    with pytest.raises(ValueError, match=rf"n_serial_envs: got {number}, .* n_envs \(2\)"):
        build_cages(Clock, 2, n_workers=1, n_serial_envs=number)


@pytest.mark.parametrize("number", [True, 1.0, "1"])
def test_a_number_of_environments_here_is_an_int(number: Any) -> None:
    with pytest.raises(TypeError, match=f"n_serial_envs: got {number!r}, expected an int"):
        build_cages(Clock, 2, n_workers=1, n_serial_envs=number)


def test_environments_here_are_not_made_anew() -> None:
    with pytest.raises(ValueError, match='n_serial_envs: got 1 with on_worker_error="restart"'):
        build_cages(Clock, 2, n_workers=1, n_serial_envs=1, on_worker_error="restart")


def test_where_no_worker_can_be_made_environments_here_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = []

    class Closing(Clock):
        def close(self) -> None:
            closed.append(threading.current_thread())

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError("no worker process")

    monkeypatch.setattr("parllel.patterns.ProcessCage", fail)
    with pytest.raises(OSError, match="no worker process"):
        build_cages(Closing, 3, n_workers=1, n_serial_envs=2)
    assert closed == [threading.main_thread()] * 2


@pytest.mark.parametrize("n_workers", [-1, 1.5, "parallel"])
def test_a_number_of_workers_is_not_negative(n_workers: Any) -> None:
    with pytest.raises(ValueError, match=f"n_workers: got {n_workers!r}, expected 0 or more"):
        build_cages(Clock, 2, n_workers=n_workers)


def test_where_one_worker_cannot_be_made_the_others_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ProcessCage] = []

    class OneIsMissing(ProcessCage):
        def __init__(self, *args: Any, first_env: int, **options: Any) -> None:
            if first_env == 1:
                raise OSError("no worker process")
            super().__init__(*args, first_env=first_env, **options)
            made.append(self)

    monkeypatch.setattr("parllel.patterns.ProcessCage", OneIsMissing)
    with pytest.raises(OSError, match="no worker process"):
        build_cages(Clock, 3, n_workers=3)
    assert len(made) == 2
    for cage in made:
        assert not Path(f"/proc/{cage._worker.process}").exists()
        with pytest.raises(RuntimeError, match="the cage is closed"):
            reset(cage)


# States


def test_a_workers_global_generators_go_on() -> None:
    class Drawing(Walk):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            drawn = random.random() + np.random.random()  # noqa: NPY002  # what it is about
            return observation + drawn, *rest

    with ProcessCage(Drawing, seed=1) as cage, ProcessCage(Drawing, seed=2) as other:
        reset(cage)
        go_on(cage, 5)
        states = cage.get_state()
        expected, _ = go_on(cage)
        for each in (other, cage):
            each.set_state(states)
            assert_same(go_on(each)[0], expected)


def test_environments_are_made_anew_after_a_state_as_before() -> None:
    class Fragile(Walk):
        def step(self, action: Any) -> Any:
            if action == 3:
                raise LookupError("it breaks")
            return super().step(action)

    def break_and_go_on(cage: ProcessCage) -> list[Any]:
        found = []
        for action in (3, 0, 3, 3, 1):
            observation, *rest = step(cage, np.array([action, 1]))
            found.append((observation.tolist(), [np.asarray(each).tolist() for each in rest[:3]]))
            found.append((list(cage.invalid), cage.n_restarts - n_before))
        return found

    options: Any = {"n_envs": 2, "on_worker_error": "restart"}
    with (
        ProcessCage(Fragile, seed=1, **options) as cage,
        ProcessCage(Fragile, seed=2, **options) as other,
    ):
        reset(cage)
        step(cage, np.array([3, 0]))
        step(cage, np.array([0, 0]))
        states = cage.get_state()
        n_before = 1
        expected = break_and_go_on(cage)
        n_before = 0
        other.set_state(states)
        assert break_and_go_on(other) == expected


def test_a_worker_that_is_lost_with_states_is_told() -> None:
    class Ending(Walk):
        def get_state(self) -> Any:
            os._exit(3)

    cage = ProcessCage(Ending, seed=1)
    reset(cage)
    with pytest.raises(WorkerError, match="ended with exit code 3"):
        cage.get_state()
    with pytest.raises(RuntimeError, match="the cage has lost its worker"):
        reset(cage)
    cage.close()


# Processors


class Bound(Clock):
    """Tells as its reward on how many processors, and on which one at least, it may run."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        allowed = os.sched_getaffinity(0)
        return observation, 1000.0 * len(allowed) + min(allowed), *rest


def test_workers_are_bound_to_processors_in_turn() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    for bind_workers in (False, True):
        cages = build_cages(Bound, 3, n_workers=3, bind_workers=bind_workers)
        try:
            rewards = []
            for cage in cages:
                reset(cage)
                rewards.append(step(cage, 0)[1])
        finally:
            for cage in cages:
                cage.close()
        if bind_workers:
            expected = [1000 + processor for processor in processors_to_bind(3)]
            assert set(processors_to_bind(3)) <= set(allowed)
        else:
            expected = [1000 * len(allowed) + allowed[0]] * 3
        assert rewards == expected
    assert sorted(os.sched_getaffinity(0)) == allowed


def test_a_worker_that_is_made_anew_is_bound_again() -> None:
    processor = min(os.sched_getaffinity(0))
    with ProcessCage(Bound, processor=processor, on_worker_error="restart") as cage:
        reset(cage)
        os.kill(cage._worker.process, signal.SIGKILL)
        step(cage, 0)
        assert cage.n_restarts == 1
        assert step(cage, 0)[1] == 1000 + processor


def test_a_processor_that_this_process_may_not_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"processor: got 4096, expected an int of \[\d"):
        ProcessCage(Clock, processor=4096)


@pytest.mark.parametrize("processor", [0.0, "0", True, np.int64(0)])
def test_a_processor_of_another_type_is_refused_before_a_worker_starts(processor: Any) -> None:
    def fail() -> None:
        raise AssertionError("a worker has called it")

    with pytest.raises(TypeError, match=r"^processor: got .*, expected an int of \["):
        ProcessCage(fail, processor=processor)  # type: ignore[arg-type]


def test_workers_go_round_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_allowed", lambda: {0, 1, 4, 5, 7})
    monkeypatch.setattr(processors, "_core_of", lambda processor: str(processor // 2))
    assert processors_to_bind(7) == [0, 4, 7, 1, 5, 7, 0]

"""Large observations of groups that take turns: copied by a copy engine, beside the agent's work.

Nothing here ran on a GPU. Under the lazy schedule a copy runs as late as it may, so that a wait
that is missing shows.
"""

import copy
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation

from long_run import all_but
from parllel import Array, ArrayDict, cuda
from parllel.arrays import ArraySpec
from parllel.cages import Cage, ProcessCage, SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, ahead_copy
from parllel.samplers.ahead_copy import ENGINE_NBYTES, AheadCopy
from parllel.samplers.staging import Staging
from parllel.storages import aligned
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.tree import leaves_of
from schedules import each_schedule
from tree_envs import make_echo

T, SIZES = 5, (1, 2, 1)  # the first cage takes turns with the other two
B = sum(SIZES)
on_a_device = pytest.mark.usefixtures("cuda_device")


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let observations of any size be copied ahead."""
    monkeypatch.setattr(ahead_copy, "ENGINE_NBYTES", 0)


class Noise(gym.Env[Any, Any]):
    """Shows frames that tell its seed, its actions and its steps; episodes have 3 steps."""

    observation_space = spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._n_steps, self._offset = 0, int(self.np_random.integers(100))
        return self._frame(0), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        return self._frame(action), float(action), False, self._n_steps == 3, {}

    def _frame(self, action: int) -> np.ndarray[Any, Any]:
        return np.uint8(self._offset + 7 * action) + np.arange(6, dtype=np.uint8).reshape(2, 3)


def make_stacks() -> gym.Env[Any, Any]:
    return FrameStackObservation(Noise(), 3)


class Agent:
    """Draws actions, and queues all work."""

    def __init__(self, form: Callable[[Any], Any], space: gym.Space[Any]) -> None:
        self._form, self._space, self._n_calls = form, space, 0
        self._space.seed(0)

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first = observation
        while isinstance(first, ArrayDict):
            first = next(iter(first.values()))
        self._n_calls += 1
        drawn = [self._space.sample() for _ in range(len(first))]
        return self._of(drawn), {"value": self._form(np.full(len(first), self._n_calls, "f4"))}

    def _of(self, drawn: list[Any]) -> Any:
        if isinstance(drawn[0], dict):
            return {name: self._of([each[name] for each in drawn]) for name in drawn[0]}
        if isinstance(drawn[0], tuple):
            members = zip(*drawn, strict=True)
            return {str(n): self._of(list(each)) for n, each in enumerate(members)}
        return self._form(np.array(drawn))

    def value(self, observation: Any) -> Any:
        return self._form(np.zeros(len(observation), np.float32))


def make_sampler(
    storage: str,
    make_env: Callable[..., Any] = Walk,
    kind: type[Cage] = SerialCage,
    sampler: type[BasicSampler] = AlternatingSampler,
    **options: Any,
) -> BasicSampler:
    """Return a sampler of a tree without final values, whose agent gives arrays of its memory."""
    example = build_example(make_env, storage="local")
    form = np.array if storage == "local" else cuda.to_device
    agent = Agent(form, make_env().action_space)
    local = Agent(np.array, make_env().action_space)
    samples = build_sample_tree(example, local, batch_shape=(T, B), **options)
    del samples["final_value"]
    make: Any = kind
    cages = [make(make_env, n_envs=size, seed=size) for size in SIZES]
    return sampler(cages, agent, samples.to(storage))


def rows_of(sampler: BasicSampler, n_batches: int = 3) -> list[Any]:
    found = []
    for _ in range(n_batches):
        samples, _ = sampler.collect_batch()
        found += [leaf.to_ndarray().tolist() for _, leaf in samples.walk()]
        found += [leaf[T].to_ndarray().tolist() for _, leaf in leaves_of(samples["observation"])]
    for cage in sampler.cages:
        cage.close()
    return found


ENVS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "plain": (Walk, {}),
    "ring": (Walk, {"full_size": 3 * T}),
    "tree": (make_echo, {}),
    "stacks": (make_stacks, {}),
    "frames": (make_stacks, {"frames": "first"}),
}


@on_a_device
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("kind", [SerialCage, ProcessCage])
@pytest.mark.parametrize("what", ENVS)
def test_batches_are_those_of_host_memory(what: str, kind: type[Cage]) -> None:
    make_env, options = ENVS[what]
    expected = rows_of(make_sampler("local", make_env, **options))
    sampler = make_sampler("device", make_env, kind, **options)
    assert all(group.transfer.copies_ahead for group in sampler._groups)
    assert rows_of(sampler) == expected


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("goes_on", ["order", "start"])
def test_a_copy_that_is_not_waited_for_or_not_made_is_found(
    goes_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows_of(make_sampler("local"))
    monkeypatch.setattr(AheadCopy, goes_on, lambda *_: None)
    with simulated_cuda("lazy"):
        assert rows_of(make_sampler("device")) != expected


def calls_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the beginnings of the names of transfers' methods, with the numbers of groups."""
    calls: list[tuple[str, int]] = []
    with simulated_cuda("lazy"):
        sampler = make_sampler("device")
        numbers = {id(group.transfer): n for n, group in enumerate(sampler._groups)}
        for name in ("send_actions", "await_actions", "start_outputs", "take_outputs"):
            method = getattr(Staging, name)

            def note(self: Any, *args: Any, method: Any = method, name: str = name) -> Any:
                calls.append((name.partition("_")[0], numbers[id(self)]))
                return method(self, *args)

            monkeypatch.setattr(Staging, name, note)
        sampler.collect_batch()
    return calls


@pytest.mark.usefixtures("any_size")
def test_the_copy_begins_while_the_agent_works_for_the_other_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn = [
        *(("take", 0), ("send", 0), ("start", 1), ("await", 0)),
        *(("take", 1), ("send", 1), ("start", 0), ("await", 1)),
    ]
    begin = [("send", 0), ("await", 0), ("send", 1), ("start", 0), ("await", 1)]
    end = [("take", 0), ("start", 1), ("take", 1)]
    assert calls_of_a_batch(monkeypatch) == begin + turn * (T - 1) + end


@pytest.mark.usefixtures("any_size")
def test_environments_that_are_not_done_are_not_awaited_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SerialCage, "is_ready", False)
    acting = [[("send", n), ("await", n)] for n in range(2)]
    ending = [[("start", n), ("take", n)] for n in range(2)]
    turn = ending[0] + acting[0] + ending[1] + acting[1]
    expected = acting[0] + acting[1] + turn * (T - 1) + ending[0] + ending[1]
    assert calls_of_a_batch(monkeypatch) == expected


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("what", ["step", "await_actions"])
@pytest.mark.parametrize("n_calls", all_but(range(1, 2 * T + 1), [1, T, T + 1, 2 * T]))
def test_a_batch_that_is_cut_off_leaves_nothing_behind(
    n_calls: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for storage in ("local", "device"):
        with simulated_cuda("lazy"), monkeypatch.context() as patch:
            sampler = make_sampler(storage)
            sampler.collect_batch()
            calls = itertools.count(1)

            def cut_off(*args: Any, method: Any, calls: Any = calls, **kwargs: Any) -> Any:
                if next(calls) == n_calls:
                    raise KeyboardInterrupt
                return method(*args, **kwargs)

            owners = [sampler.agent] if what == "step" else [g.transfer for g in sampler._groups]
            for owner in owners:
                setattr(owner, what, partial(cut_off, method=getattr(owner, what)))
            with pytest.raises(KeyboardInterrupt):
                sampler.collect_batch()
            patch.setattr(SerialCage, "is_ready", False)  # from now on nothing is begun early
            found.append(rows_of(sampler))
    assert found[0] == found[1]


@each_schedule
@pytest.mark.usefixtures("any_size")
def test_a_sampler_that_was_closed_holds_on_to_nothing(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        sampler = make_sampler("device")
        sampler.collect_batch()
        sampler.close()
        sampler.samples.close()
        sampler.agent = None  # type: ignore[assignment]
        simulation.assert_no_leaks()


def test_the_copy_of_a_large_observation_is_another_streams_and_the_rest_is_read_over_the_bus() -> (
    None
):
    frame = spaces.Box(0, 255, (2 * ENGINE_NBYTES // 3,), np.uint8)

    class Large(Noise):
        observation_space = frame

        def _frame(self, action: int) -> np.ndarray[Any, Any]:
            return np.zeros(frame.shape, np.uint8)

    with simulated_cuda("lazy") as simulation:
        samplers = [make_sampler("device", Large, sampler=kind) for kind in
                    (AlternatingSampler, BasicSampler)]  # fmt: skip
        ahead = [[group.transfer.copies_ahead for group in each._groups] for each in samplers]
        assert ahead == [[False, True], [False]]  # 1 environment, 3, and all of them
        sampler = samplers[0]
        sampler.collect_batch()
        before, n_launches = copy.copy(cuda.counters), len(simulation.launches)
        sampler._rotate()
        _, group = sampler._groups
        group.act(sampler.agent, 0)
        cuda.synchronize()
        waiting = copy.copy(cuda.counters)
        group.finish(0)
        counted = cuda.counters.since(waiting)
        assert (counted.copies_to_device, counted.launches) == (1, 1)
        assert counted.bytes_to_device == aligned(3 * frame.shape[0])  # type: ignore[index]
        assert (counted.event_waits, counted.event_synchronizations) == (1, 0)
        assert {launch.stream for launch in simulation.launches[n_launches:]} == {0}
        assert cuda.counters.since(before).stream_synchronizations >= 1


@each_schedule
def test_the_zeros_of_new_memory_do_not_follow_a_copy(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed):
        ahead = AheadCopy(ArrayDict({"observation": ArraySpec.of((2,), np.uint8)}))
        staged = Array((ahead.nbytes,), np.uint8, storage="pinned")
        staged[...] = 5
        ahead.start(staged.to_ndarray())
        ahead.is_copied.synchronize()
        assert ahead.rows["observation"].to_ndarray().tolist() == [5, 5]


# Cages that tell whether they are done


class Slow(Walk):
    def step(self, action: Any) -> Any:
        time.sleep(0.3)
        return super().step(action)


def test_a_cage_with_a_worker_tells_when_its_step_is_done() -> None:
    with ProcessCage(Slow, n_envs=1) as cage:
        assert cage.is_ready  # nothing was started
        cage.reset_async()
        cage.await_step()
        assert cage.is_ready
        cage.step_async(np.int64(0))
        assert not cage.is_ready
        deadline = time.monotonic() + 30
        while not cage.is_ready:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cage.await_step()
        assert cage.is_ready


def test_a_serial_cage_is_always_done() -> None:
    with SerialCage(Walk, n_envs=1) as cage:
        cage.reset_async()
        assert cage.is_ready
        assert not cage.goes_on


def test_rows_of_a_device_are_placed_as_those_of_a_staged_step() -> None:
    with simulated_cuda("lazy"):
        sampler = make_sampler("device", make_echo)
        staging = Staging(sampler.samples, range(2))
        specs = ArrayDict({"observation": sampler.samples["observation"][0].apply(_spec_of)})
        ahead = AheadCopy(specs)
        begin = staging._steps[1].observation.ctypes.data
        staged = dict(staging._steps[1].rows["observation"].walk())
        base = next(iter(dict(ahead.rows.walk()).values())).to_cupy().data.ptr
        for path, leaf in ahead.rows["observation"].walk():
            place = leaf.to_cupy().data.ptr - base
            assert staged[path].to_ndarray().ctypes.data - begin == place


def _spec_of(rows: Array) -> Any:
    return rows.spec.changed(batch_shape=(2,))

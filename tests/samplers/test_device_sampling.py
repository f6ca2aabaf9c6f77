"""Samplers of trees in CUDA memory: the same batches as in host memory.

On simulated CUDA, what lacks a wait reads poison, or what was there before.
"""

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from parllel import Array, ArrayDict, cuda
from parllel.cages import Cage, ProcessCage, SerialCage, VectorCage
from parllel.patterns import build_eval_tree, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler, Sampler
from parllel.samplers.staging import Staging
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Clock, Walk
from parllel.tree import dict_map
from parllel.tree.leaves import as_tensor
from schedules import each_schedule
from tree_envs import make_echo

T, B = 5, 4  # odd: a batch ends in the staged step that a reset writes
on_a_device = pytest.mark.usefixtures("cuda_device")


class TensorAgent:
    """Choose actions and values by arithmetic on tensors."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first = as_tensor(observation)[:, 0]
        action = (first.abs() * 64).floor().long() % 4
        return action, {"value": first * 2, "extra": {"square": first * first}}

    def value(self, observation: Any) -> Tensor:
        return as_tensor(observation)[:, 0] * 2


ACTIONS = np.random.default_rng(0).integers(0, 4, (97, B))


class QueueingAgent:
    """Queue all work and read nothing back, as a model on a GPU does.

    In a simulation, torch's operations run the current stream before they return, which hides
    waits that are missing. This agent uses none: its actions come from a table, a row for each
    call, and the rest is what the observation shows. So the agent must be asked in a fixed order.

    Args:
        kind: kind of the memory that its results are in.
    """

    def __init__(self, kind: str) -> None:
        self._actions = Array.from_numpy(ACTIONS, storage=kind)
        self._n_calls = 0

    def step(self, observation: Array, *, deterministic: bool = False) -> tuple[Any, Any]:
        action = self._actions[self._n_calls % len(ACTIONS), : len(observation)]
        self._n_calls += 1
        return action, {"value": self.value(observation), "extra": {"second": observation[:, 1]}}

    def value(self, observation: Array) -> Array:
        return observation[:, 0]

    def close(self) -> None:
        self._actions.close()


class QueueingActor(QueueingAgent):
    """Without values: `step` is all that it is asked."""

    def step(self, observation: Array, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, agent_info = super().step(observation)
        del agent_info["value"]
        return action, agent_info


class TreeAgent:
    """Draw actions of `tree_envs.SPACE`, and value an observation by what it contains."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n, rng = len(observation["talk"]), self._rng
        move = {"0": rng.integers(0, 5, n), "1": rng.uniform(-1, 1, (n, 2)).astype(np.float32)}
        return {"move": move, "talk": rng.integers(0, 2, (n, 3))}, {
            "value": self.value(observation)
        }

    def value(self, observation: Any) -> Tensor:
        rows = dict_map(as_tensor, observation)
        return rows["move"]["0"] + rows["talk"].sum(dim=1)


def make_tree(make_env: Callable[..., gym.Env], agent: Any, n_envs: int = B) -> ArrayDict:
    """Return a tree in memory of the host."""
    example = build_example(make_env, storage="local")
    return build_sample_tree(example, agent, batch_shape=(T, n_envs))


def make_cages(make_env: Callable[..., gym.Env], sizes: Sequence[int]) -> list[Cage]:
    return [SerialCage(make_env, n_envs=size, seed=size) for size in sizes]


@contextmanager
def cages_of(
    kind: str, make_env: Callable[..., gym.Env] = Walk, n_envs: int = B
) -> Iterator[list[Cage]]:
    """Make cages of a kind that hold n environments together, and close them afterwards."""
    cages: list[Cage] = []
    if kind == "VectorCage":
        cages = [VectorCage(SyncVectorEnv, {"env_fns": [make_env] * n_envs}, seed=0)]
    elif kind == "SerialCage":
        cages = [SerialCage(make_env, n_envs=n_envs, seed=0)]
    else:
        sizes = (1, n_envs - 1) if n_envs > 1 else (1,)
        cages = [ProcessCage(make_env, n_envs=size, seed=size) for size in sizes]
    yield cages
    for cage in cages:
        cage.close()


KINDS = ["SerialCage", "ProcessCage", "VectorCage"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def collect(sampler: BasicSampler, n_batches: int) -> Iterator[dict[str, list[Any]]]:
    """Yield what the tree holds after each batch, with one row of padding where there is some."""
    for _ in range(n_batches):
        samples, completed = sampler.collect_batch()
        batch = {
            path: leaf[-min(leaf.padding, 1) : T + min(leaf.padding, 1)].to_ndarray().tolist()
            for path, leaf in leaves(samples).items()
        }
        yield {**batch, "completed": [(each.length, each.episode_return) for each in completed]}


WINDOWS: tuple[dict[str, int], ...] = ({}, {"full_size": 3 * T}, {"padding": 3, "full_size": 2 * T})


@on_a_device
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sizes", [(B,), (1, 3)])
def test_batches_are_those_of_host_memory(window: dict[str, int], sizes: Sequence[int]) -> None:
    host = make_tree(Walk, QueueingAgent("local")).new_array(**window)
    sampler = BasicSampler(make_cages(Walk, sizes), QueueingAgent("local"), host)
    expected = list(collect(sampler, 5))
    samples = host.new_array(storage="device")
    sampler = BasicSampler(make_cages(Walk, sizes), QueueingAgent("device"), samples)
    assert list(collect(sampler, 5)) == expected
    assert sum(sum(map(sum, batch["truncated"])) for batch in expected) > 0


@on_a_device
def test_actions_follow_from_what_the_device_holds() -> None:
    host = make_tree(Walk, TensorAgent()).new_array(full_size=3 * T)
    expected = list(collect(BasicSampler(make_cages(Walk, (1, 3)), TensorAgent(), host), 5))
    samples = host.new_array(storage="device")
    sampler = BasicSampler(make_cages(Walk, (1, 3)), TensorAgent(), samples)
    assert list(collect(sampler, 5)) == expected


@each_schedule
def test_a_sampler_that_was_closed_holds_on_to_nothing(schedule: str, seed: int) -> None:
    host = make_tree(Walk, QueueingAgent("local")).new_array(padding=3, full_size=2 * T)
    with simulated_cuda(schedule, seed) as simulation:
        samples = host.new_array(storage="device")
        agent = QueueingAgent("device")
        sampler = BasicSampler(make_cages(Walk, (1, 3)), agent, samples)
        assert len(list(collect(sampler, 5))) == 5
        sampler.close()
        sampler.close()
        samples.close()
        agent.close()
        simulation.assert_no_leaks()  # though the sampler is still there
        with pytest.raises(RuntimeError, match="the sampler is closed"):
            sampler.collect_batch()


@on_a_device
@pytest.mark.parametrize("kind", ["device", "managed"])
@pytest.mark.parametrize("has_workers", [False, True])
def test_taking_turns_gives_the_batches_of_host_memory(kind: str, has_workers: bool) -> None:
    host = make_tree(Walk, QueueingAgent("local"))
    sampler = AlternatingSampler(make_cages(Walk, (1, 3)), QueueingAgent("local"), host)
    expected = list(collect(sampler, 3))
    samples = host.new_array(storage=kind)
    with cages_of("ProcessCage") as workers:
        cages = workers if has_workers else make_cages(Walk, (1, 3))
        sampler = AlternatingSampler(cages, QueueingAgent(kind), samples)
        assert list(collect(sampler, 3)) == expected


@on_a_device
@pytest.mark.parametrize("kind", ["pinned", "managed"])
def test_memory_of_host_and_gpu_is_written_in_place(kind: str) -> None:
    host = make_tree(Walk, TensorAgent())
    expected = list(collect(BasicSampler(make_cages(Walk, (B,)), TensorAgent(), host), 3))
    sampler = BasicSampler(make_cages(Walk, (B,)), TensorAgent(), host.new_array(storage=kind))
    gc.collect()  # managed memory of other tests waits where it is freed
    before = copy.copy(cuda.counters)
    assert list(collect(sampler, 3)) == expected
    counted = cuda.counters.since(before)
    assert (counted.launches, counted.stream_synchronizations) == (
        0,
        4,
    )  # one for the reset, one for each batch


@on_a_device
def test_trees_of_observations_and_actions_come_through() -> None:
    host = make_tree(make_echo, TreeAgent())
    expected = list(collect(BasicSampler(make_cages(make_echo, (1, 3)), TreeAgent(), host), 3))
    samples = host.new_array(storage="device")
    sampler = BasicSampler(make_cages(make_echo, (1, 3)), TreeAgent(), samples)
    assert list(collect(sampler, 3)) == expected


@on_a_device
def test_leaves_may_have_rings_of_different_sizes() -> None:
    host = make_tree(Walk, QueueingAgent("local"))
    host["reward"] = Array((T, B), np.float32, full_size=4 * T)
    host["observation"] = Array((T, B), np.float32, feature_shape=(3,), full_size=2 * T, padding=2)
    sampler = BasicSampler(make_cages(Walk, (B,)), QueueingAgent("local"), host)
    expected = list(collect(sampler, 5))
    samples = host.new_array(storage="device")
    sampler = BasicSampler(make_cages(Walk, (B,)), QueueingAgent("device"), samples)
    assert list(collect(sampler, 5)) == expected


@on_a_device
def test_an_evaluation_is_that_of_host_memory() -> None:
    def play(storage: str) -> list[tuple[int, float]]:
        tree = build_eval_tree(make_tree(Walk, QueueingActor("local")), n_envs=B)
        sampler = EvalSampler(
            make_cages(Walk, (B,)), QueueingActor(storage), tree.to(storage), n_episodes=3 * B
        )
        episodes = sampler.collect_episodes()
        return [(each.length, each.episode_return) for each in episodes]

    expected = play("local")
    assert play("device") == expected


class Dial(Clock):
    """Take as many actions as a `QueueingActor` has."""

    action_space = spaces.Discrete(4)


@on_a_device
def test_a_reset_begins_anew() -> None:
    samples = make_tree(Dial, QueueingActor("local")).new_array(full_size=2 * T, storage="device")
    sampler = BasicSampler(make_cages(Dial, (B,)), QueueingActor("device"), samples)
    for _ in range(3):
        sampler.collect_batch()
    sampler.reset()
    sampler.collect_batch()
    assert samples.full["reward"].to_ndarray()[:T, 0].tolist() == [1, 2, 3, 1, 2]
    assert samples["observation"][0].to_ndarray()[:, 1].tolist() == [0] * B


def rows_of_ring(kind: type[BasicSampler], storage: str, *, is_reset: bool) -> dict[str, Any]:
    """Return the whole ring, with the row after it, which nothing reads before the sampler ends.

    The agent is a `QueueingActor`, so nothing waits for the device but the sampler itself.
    """
    samples = make_tree(Walk, QueueingActor("local")).new_array(full_size=3 * T, storage=storage)
    sampler = kind(make_cages(Walk, (1, 3)), QueueingActor(storage), samples)
    for _ in range(2):
        sampler.collect_batch()
    if is_reset:
        sampler.reset()  # the last step's observation stays in the ring
        sampler.collect_batch()
    sampler.close()
    return whole_ring(samples)


def whole_ring(samples: ArrayDict) -> dict[str, Any]:
    return {
        path: leaf.full[: leaf.full_size + min(leaf.padding, 1)].to_ndarray().tolist()
        for path, leaf in samples.walk()
    }


@on_a_device
@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
def test_a_reset_waits_until_the_gpu_has_read_the_last_step(kind: type[BasicSampler]) -> None:
    assert T % 2 == 1  # the last step is staged where first observations are written
    expected = rows_of_ring(kind, "local", is_reset=True)
    assert rows_of_ring(kind, "device", is_reset=True) == expected


@on_a_device
@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
def test_closing_waits_until_the_gpu_has_read_the_last_step(kind: type[BasicSampler]) -> None:
    """Closed where another stream is the current one: it is the sampler's that counts."""
    expected = rows_of_ring(kind, "local", is_reset=False)
    samples = make_tree(Walk, QueueingActor("local")).new_array(full_size=3 * T, storage="device")
    stream = cuda.new_stream()
    cuda.synchronize()
    with cuda.use_stream(stream):
        sampler = kind(make_cages(Walk, (1, 3)), QueueingActor("device"), samples)
        for _ in range(2):
            sampler.collect_batch()
    sampler.close()
    cuda.synchronize(stream)
    assert whole_ring(samples) == expected


@on_a_device
def test_closing_waits_until_the_gpu_has_read_first_observations() -> None:
    stream = cuda.new_stream()
    rows = {}
    for kind in ("local", "device"):
        samples = make_tree(Walk, QueueingActor("local")).new_array(storage=kind)
        cuda.synchronize()
        with cuda.use_stream(stream):
            sampler = BasicSampler(make_cages(Walk, (1, 3)), QueueingActor(kind), samples)
            sampler.reset()
        sampler.close()
        cuda.synchronize(stream)
        rows[kind] = samples["observation"][T].to_ndarray().tolist()
    assert rows["device"] == rows["local"]


# The cost of a step


class DeviceAgent:
    """Return what was allocated in device memory once, as an agent on a GPU returns its results."""

    def __init__(self, samples: ArrayDict) -> None:
        self._action = samples["action"][0].to_cupy().copy()
        self._value = samples["agent_info"]["value"][0].to_cupy().copy()

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return self._action, {"value": self._value}

    def value(self, observation: Any) -> Any:
        return self._value


@each_schedule
@pytest.mark.parametrize(
    ("kind", "make_env", "n_envs"),
    [(kind, *each) for kind in KINDS for each in ((Clock, 1), (Clock, 16), (make_echo, 3))],
)
def test_a_step_is_two_launches_and_one_wait(
    schedule: str, seed: int, kind: str, make_env: Callable[..., gym.Env], n_envs: int
) -> None:
    agent = TreeAgent() if make_env is make_echo else TensorAgent()
    host = make_tree(make_env, agent, n_envs)
    del host["final_value"]
    host["agent_info"] = ArrayDict({"value": host["agent_info"]["value"]})
    with simulated_cuda(schedule, seed) as simulation, cages_of(kind, make_env, n_envs) as cages:
        samples = host.to("device")
        sampler = BasicSampler(cages, DeviceAgent(samples), samples)
        sampler.collect_batch()
        before, before_all = copy.copy(cuda.counters), copy.copy(simulation.counters)
        sampler.collect_batch()
        counted, all_counted = cuda.counters.since(before), simulation.counters.since(before_all)
    assert counted.launches == 2 * T + 1  # and one for the rotation
    assert counted.copies_to_host == 0
    assert counted.event_synchronizations == T
    assert counted.copies_to_device == 1  # the rotation's table
    assert counted.stream_synchronizations == counted.device_synchronizations == 0
    assert all_counted.stream_synchronizations == all_counted.device_synchronizations == 0


@each_kind
def test_the_host_sleeps_only_where_other_environments_use_its_core(kind: str) -> None:
    with simulated_cuda("lazy"), cages_of(kind) as first, cages_of("SerialCage") as second:
        for sampler_kind, cages, expected in (
            (BasicSampler, first, [False]),
            # The first group's environments step while the second one waits for its action.
            (AlternatingSampler, [*first, *second], [False, kind == "ProcessCage"]),
        ):
            n_envs = sum(cage.n_envs for cage in cages)
            samples = make_tree(Walk, QueueingAgent("local"), n_envs).to("device")
            sampler = sampler_kind(cages, QueueingAgent("device"), samples)
            transfers: list[Any] = [group.transfer for group in sampler._groups]
            found = [each._is_sent._event._is_blocking for each in transfers]
            assert found == expected


# Staged steps


class Spy(Staging):
    """Poison what environments are about to write, as late as it may be written."""

    def await_actions(self, t: int) -> None:
        super().await_actions(t)
        rows = self.host_rows[t % len(self.host_rows)]
        for name in ("observation", "reward"):
            rows[name].to_ndarray()[...] = np.nan


class Hasty(Staging):
    """Does not wait for the action's copy."""

    def await_actions(self, t: int) -> None:
        """Do nothing."""


class HastySpy(Spy, Hasty):
    """Poisons what the GPU may not have read yet."""


def sample_with(staging: type[Staging], kind: str) -> list[dict[str, list[Any]]]:
    with cages_of(kind) as cages:
        samples = make_tree(Walk, QueueingAgent("local")).new_array(storage="device")
        sampler = BasicSampler(cages, QueueingAgent("device"), samples)
        (group,) = sampler._groups
        group.transfer = staging(samples)
        group._commands = group._prepare_commands()
        return list(collect(sampler, 4))


def sample_on_host(kind: str) -> list[dict[str, list[Any]]]:
    with cages_of(kind) as cages:
        samples = make_tree(Walk, QueueingAgent("local"))
        return list(collect(BasicSampler(cages, QueueingAgent("local"), samples), 4))


@on_a_device
@each_kind
def test_a_staged_step_is_written_only_after_it_was_taken(kind: str) -> None:
    assert sample_with(Spy, kind) == sample_on_host(kind)


@each_kind
@pytest.mark.parametrize("staging", [Hasty, HastySpy])
def test_a_missing_wait_is_found(kind: str, staging: type[Staging]) -> None:
    with simulated_cuda("lazy"):
        assert sample_with(staging, kind) != sample_on_host(kind)


def test_staged_leaves_begin_at_multiples_of_256_bytes() -> None:
    with simulated_cuda("lazy"):
        staging = Staging(make_tree(Walk, QueueingAgent("local")).to("device"))
        addresses = [
            leaf.to_ndarray().ctypes.data for rows in staging.host_rows for _, leaf in rows.walk()
        ]
        assert len(staging.host_rows) >= 2
        assert len({*addresses}) == len(addresses)
        assert all(address % 256 == 0 for address in addresses)


def test_a_tree_that_is_only_partly_on_the_device_is_refused() -> None:
    with simulated_cuda("lazy"):
        samples = make_tree(Walk, QueueingAgent("local")).to("device")
        samples["reward"] = Array((T, B), np.float32)
        with pytest.raises(ValueError, match="samples: reward in other memory than the device's"):
            Sampler(make_cages(Walk, (B,)), QueueingAgent("device"), samples)


# Rows that the GPU has yet to read


@on_a_device
@pytest.mark.parametrize("kind", ["device", "managed", "pinned"])
def test_a_batch_that_is_read_late_is_not_overwritten(kind: str) -> None:
    samples = make_tree(Walk, QueueingAgent("local")).new_array(storage=kind)
    sampler = BasicSampler(make_cages(Walk, (B,)), QueueingAgent(kind), samples)
    sampler.collect_batch()
    batch, _ = sampler.collect_batch()
    expected = [batch["observation"][-1 : T + 1].to_ndarray().tolist()]
    late = [batch["observation"][-1 : T + 1].to_cupy().copy()]  # queued, and read when it runs
    batch, _ = sampler.collect_batch()
    expected.append(batch["observation"].next.to_ndarray().tolist())
    late.append(batch["observation"].next.to_cupy().copy())
    sampler.reset()
    assert [cuda.to_host(each).tolist() for each in late] == expected

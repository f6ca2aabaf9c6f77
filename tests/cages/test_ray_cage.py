"""RayCage: the contract of all cages, samplers and messages, on a Ray cluster of this machine."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import cloudpickle
import gymnasium as gym
import jagged_envs
import numpy as np
import pytest
from jagged_envs import CAPACITY, Shapes

import films
from films import FRAME, STACK, make_film
from optional import needs
from parllel import ArrayDict, FrameArray, dict_map
from parllel.cages import Cage, RayCage, Seed, SerialCage, TrajInfo, WorkerError, row_specs
from parllel.cages.actors.sent_forms import SentForms
from parllel.patterns import build_cages, build_eval_tree, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler
from parllel.testing import toy_agents, toy_envs
from parllel.testing.contracts import cage_calls
from parllel.testing.contracts.cage_agents_contract import CageAgentsContract
from parllel.testing.contracts.cage_calls import assert_same, reset, step
from parllel.testing.contracts.cage_contract import CageContract
from parllel.testing.contracts.cage_states_contract import CageStatesContract
from parllel.testing.toy_envs import Clock, Walk
from parllel.tree import allocate_tree, leaves_of
from parllel.tree.leaves import as_tensor
from ray_cluster import NO_CPU

pytestmark = needs("ray")
T = 8


@pytest.fixture(scope="module", autouse=True)
def _send_definitions() -> Iterator[None]:
    """Have environments sent by their definitions, as those of `__main__`.

    Actors can't import the modules of tests; and importing parllel.testing would take time.
    """
    modules = sys.modules[__name__], films, jagged_envs, toy_agents, toy_envs, cage_calls
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


on_ray = pytest.mark.usefixtures("recycled_actors")


def make_ray_cage(make_env: Callable[..., gym.Env], *arguments: Any, **options: Any) -> RayCage:
    return RayCage(make_env, *arguments, actor_options=NO_CPU, **options)


@pytest.mark.long
@on_ray
class TestRayCage(CageContract, CageStatesContract, CageAgentsContract):
    def make_cage(
        self,
        make_env: Callable[..., gym.Env],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> Cage:
        return make_ray_cage(make_env, env_kwargs, make_traj_info, n_envs=n_envs, seed=seed)


# With samplers


class TensorAgent:
    """Choose actions and values by arithmetic."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first = as_tensor(observation)[:, 0]
        return (first.abs() * 64).floor().long() % 4, {"value": first * 2}

    def value(self, observation: Any) -> Any:
        return as_tensor(observation)[:, 0] * 2


def make_cages(n_workers: int, n_envs: int) -> list[Cage]:
    return build_cages(Walk, n_envs, n_workers=n_workers, worker_cage=make_ray_cage, seed=3)


def collect(n_workers: int, kind: type[BasicSampler] = BasicSampler) -> list[ArrayDict]:
    """Return four batches of five environments, in a window that moves."""
    agent, batches = TensorAgent(), []
    example = build_example(Walk, storage="local")
    samples = build_sample_tree(example, agent, batch_shape=(T, 5), full_size=3 * T)
    with ExitStack() as stack:
        cages = [stack.enter_context(cage) for cage in make_cages(n_workers, 5)]
        assert len(cages) == max(n_workers, 1)
        sampler = kind(cages, agent, samples)
        stack.callback(sampler.close)
        for _ in range(4):
            batch, completed = sampler.collect_batch()
            copies = ArrayDict({name: dict_map(np.array, batch[name]) for name in batch})
            is_used = copies["truncated"] & ~copies["terminated"]
            copies["final_value"] = np.where(is_used, copies["final_value"], 0)
            copies["lengths"] = np.array(sorted(each.length for each in completed))
            batches.append(copies)
    assert sum(batch["final_value"].any() for batch in batches) > 2
    return batches


@on_ray
def test_actors_give_the_batches_of_a_serial_cage() -> None:
    for batch, expected in zip(collect(2), collect(0), strict=True):
        assert_same(batch, expected)


@pytest.mark.long
@on_ray
def test_alternating_actors_give_the_batches_of_serial_cages() -> None:
    for batch, expected in zip(collect(2, AlternatingSampler), collect(0), strict=True):
        assert_same(batch, expected)


@pytest.mark.long
@on_ray
def test_an_evaluation_with_actors_is_that_of_a_serial_cage() -> None:
    finished = []
    for n_workers in (2, 0):
        cages, agent = make_cages(n_workers, 4), TensorAgent()
        samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, 4))
        tree = build_eval_tree(samples, n_envs=4)
        episodes = EvalSampler(cages, agent, tree, n_episodes=12).collect_episodes()
        finished.append([(each.length, each.episode_return) for each in episodes])
        for cage in cages:
            cage.close()
    assert finished[0] == finished[1]
    assert len(finished[0]) == 12


def test_there_is_no_default_number_of_actors_nor_are_they_bound() -> None:
    with pytest.raises(ValueError, match="n_workers: got None, expected a number"):
        build_cages(Walk, 4, worker_cage=RayCage)
    with pytest.raises(ValueError, match="bind_workers: got True, expected False"):
        build_cages(Walk, 4, n_workers=2, worker_cage=RayCage, bind_workers=True)


# Kinds of rows


@pytest.mark.long
@pytest.mark.parametrize("fill", ["first", "zero"])
@on_ray
def test_stacks_are_sent_as_frames_with_those_before_them(fill: Any) -> None:
    frames = []
    for make in (make_ray_cage, SerialCage):
        rows = FrameArray((T, 2), np.uint8, FRAME, stack=STACK, fill=fill)
        with make(make_film, {"fill": fill}, n_envs=2, seed=0) as cage:
            reset(cage, out_obs=rows[0])
            for t in range(1, T):
                step(cage, np.zeros(2, int), out_obs=rows[t])
        frames.append(rows.to_ndarray())
    np.testing.assert_array_equal(*frames)


@pytest.mark.long
@on_ray
def test_a_stack_that_does_not_go_on_from_the_last_one_is_refused() -> None:
    rows = FrameArray((2, 2), np.uint8, FRAME, stack=STACK, fill="first")
    rows.frames[...] = 9
    with make_ray_cage(make_film, {"fill": "zero"}, n_envs=2, seed=0) as cage:  # noqa: SIM117
        with pytest.raises(WorkerError, match="nor begins an episode as fill='first' has it"):
            reset(cage, out_obs=rows[1])


@pytest.mark.long
@on_ray
def test_clouds_graphs_and_sequences_are_those_of_a_serial_cage() -> None:
    found = []
    for make in (make_ray_cage, SerialCage):
        space = Shapes("dict").observation_space
        specs = row_specs(space, (T, 2), capacity=CAPACITY["dict"])
        rows = allocate_tree(ArrayDict({"observation": specs}), "local")["observation"]
        with make(Shapes, {"kind": "dict"}, n_envs=2, seed=3) as cage:
            reset(cage, out_obs=rows[0])
            final_obs = []
            for t in range(1, T):
                step(cage, np.zeros(2, int), out_obs=rows[t])
                final_obs += list(cage.final_obs.values())
        assert final_obs
        places = [(t, b) for t in range(T) for b in (0, 1)]
        found.append(
            [[leaf[place].to_ndarray() for place in places] for _, leaf in leaves_of(rows)]
        )
    for leaf, other in zip(*found, strict=True):
        for row, expected in zip(leaf, other, strict=True):
            np.testing.assert_array_equal(row, expected, strict=True)


class Large(Clock):
    """Show more than Ray sends beside a reply: it goes by the object store."""

    observation_space = gym.spaces.Box(0, 255, (400, 400), np.float32)

    def _observe(self) -> Any:
        return np.full((400, 400), self._step, np.float32)


@pytest.mark.long
@on_ray
def test_rows_of_the_object_store_are_copied() -> None:
    rows = np.zeros((4, 2, 400, 400), np.float32)
    with make_ray_cage(Large, {"length": 3}, n_envs=2) as cage:
        reset(cage, out_obs=rows[0])
        returned = step(cage, np.zeros(2, int))[0]
        step(cage, np.zeros(2, int), out_obs=rows[2])
        assert not cage._worker.written.flags.writeable
        step(cage, np.zeros(2, int), out_obs=rows[3])
        final_obs = [cage.final_obs[number] for number in (0, 1)]
    rows[1] = returned
    np.testing.assert_array_equal(rows[:, :, 0, 0].T, [[0, 1, 2, 0]] * 2)
    assert all(each.flags.writeable and (each == 3).all() for each in [*final_obs, *returned + 2])
    assert returned.flags.writeable


# Messages


def test_what_a_command_reads_and_writes_are_two_buffers() -> None:
    """Whatever the strides of the caller's rows, and the order of its leaves."""
    big = np.zeros((3, 6), np.float64)
    outputs = {"out_obs": big[:, ::2], "out_reward": np.zeros((6, 3), np.float32).T[:, 0]}
    with SerialCage(
        toy_envs.Echo, {"space": gym.spaces.MultiDiscrete([9, 9, 9])}, n_envs=3
    ) as cage:
        action = np.arange(18).reshape(3, 6)[:, 3:]
        command = cage.prepare_step(action, **outputs)
        forms = SentForms()
        sent = forms.pack(command, action)
        for part, rows in sent.copies_in:
            part[...] = rows
        made = forms.form(sent.number).make()
        made.inputs[...] = sent.inputs
        np.testing.assert_array_equal(made.command.action, action)
        made.command.rows.observation[...] = [[1, 2, 3]] * 3
        made.command.rows.reward[...] = [4, 5, 6]
        made.outputs.flags.writeable = False  # as those of the object store
        sent.write(made.outputs)
        np.testing.assert_array_equal(big, [[1, 0, 2, 0, 3, 0]] * 3)
        np.testing.assert_array_equal(outputs["out_reward"], [4, 5, 6])
        again = forms.pack(cage.prepare_step(action, **outputs), action)
        other = forms.pack(cage.prepare_step(action, out_obs=big[:, ::2]), action)
        assert (again.number, other.number) == (0, 1)


def test_python_objects_are_refused_by_name() -> None:
    with SerialCage(Clock, n_envs=2) as cage:
        action = np.array([0, 1], object)
        with pytest.raises(TypeError, match="action: got Python objects, expected numbers"):
            SentForms().pack(cage.prepare_step(action), action)

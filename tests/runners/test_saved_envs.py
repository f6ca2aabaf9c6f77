"""Checkpoints with environments: a sampler goes on in the middle of episodes, bit for bit."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from films import make_film
from optional import needs
from parllel import ArrayDict
from parllel.cages import Cage, ProcessCage, SerialCage, VectorCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.runners import Checkpoints
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler, RecurrentSampler
from parllel.testing.contracts.cage_calls import assert_same
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Clock, Walk
from parllel.tree.leaves import as_tensor

T, B = 5, 4


class Viewer:
    """Acts on all that it sees."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        value = self.value(observation)
        return value.abs().floor().long() % 4, {"value": value}

    def value(self, observation: Any) -> Tensor:
        seen = as_tensor(observation).double().flatten(1)
        return (seen * torch.ones_like(seen).cumsum(1)).sum(1).float()


class Summing(Viewer):
    """Keeps the sum of what it saw, and the number of steps."""

    def begin(self, n_envs: int) -> None:
        self.rnn_state = {"sum": torch.zeros(n_envs), "count": (np.zeros((n_envs, 1)),)}

    def reset_state(self, columns: Sequence[int]) -> None:
        self.rnn_state["sum"][list(columns)] = 0
        self.rnn_state["count"][0][list(columns)] = 0

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        value = self.value(observation)
        self.rnn_state["sum"] += value / 8
        self.rnn_state["count"][0][...] += 1
        return value.abs().floor().long() % 4, {"value": value}

    def value(self, observation: Any, *, columns: Sequence[int] | None = None) -> Tensor:
        index: Any = ... if columns is None else list(columns)
        count = torch.from_numpy(self.rnn_state["count"][0][index, 0]).float()
        return super().value(observation) + self.rnn_state["sum"][index] + count


class Runner:
    """What checkpoints need of a runner."""

    n_steps = n_episodes = 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        assert state == {}


def walk_maker() -> Callable[[], Any]:
    """Return a function that workers get by its definition: they do not import this module."""

    def make_walk() -> Any:
        return TimeLimit(Walk(), 7)

    return make_walk


make_walk = walk_maker()


def collect(sampler: Any, n_batches: int) -> list[Any]:
    """Return what the tree holds after each batch, and the episodes that ended."""
    found = []
    for _ in range(n_batches):
        samples, completed = sampler.collect_batch()
        rows = {path: leaf.to_ndarray().tolist() for path, leaf in leaves(samples).items()}
        ended = sorted(dataclasses.astuple(episode) for episode in completed)  # cages may be others
        found.append((rows, ended))
    return found


def make_tree(make_env: Callable[[], Any], agent: Any, storage: str, **window: Any) -> ArrayDict:
    frames: Any = "first" if make_env is make_film else None
    example = build_example(make_env, storage=storage)
    return build_sample_tree(example, agent, batch_shape=(T, B), frames=frames, **window)


def assert_goes_on(make_sampler: Callable[[int], tuple[Any, dict[str, Any]]], folder: Path) -> None:
    """Check that a sampler made with another seed goes on from a checkpoint."""
    sampler, parts = make_sampler(1)
    checkpoints = Checkpoints(folder, sampler, seed=0, saves_envs=True, **parts)
    collect(sampler, 3)
    checkpoints(Runner())
    expected = collect(sampler, 4)
    assert sum(len(completed) for _, completed in expected) > B
    sampler.close()
    other, parts = make_sampler(2)
    checkpoints = Checkpoints(folder, other, seed=0, saves_envs=True, **parts)
    collect(other, 2)  # an unused one is `test_a_run_that_is_killed...`
    for _ in range(2):
        assert checkpoints.load(Runner())
        assert collect(other, 4) == expected
    other.close()
    for each in (*sampler.cages, *other.cages):
        each.close()


@pytest.mark.parametrize(
    ("kind", "cage", "storage", "make_env", "window"),
    [
        (BasicSampler, SerialCage, "local", make_walk, {}),
        (BasicSampler, SerialCage, "local", make_film, {"full_size": 3 * T}),
        (AlternatingSampler, ProcessCage, "shared", make_film, {}),
        (BasicSampler, ProcessCage, "local", make_film, {}),
        (RecurrentSampler, SerialCage, "local", make_walk, {}),
        (RecurrentSampler, ProcessCage, "shared", make_walk, {"full_size": 2 * T}),
    ],
)
def test_a_sampler_goes_on_from_a_checkpoint(
    kind: Any, cage: Any, storage: str, make_env: Any, window: Any, tmp_path: Path
) -> None:
    def make_sampler(seed: int) -> tuple[Any, dict[str, Any]]:
        agent = Summing() if kind is RecurrentSampler else Viewer()
        cages = [cage(make_env, n_envs=n_envs, seed=seed + n_envs) for n_envs in (1, 3)]
        return kind(cages, agent, make_tree(make_env, agent, storage, **window)), {}

    assert_goes_on(make_sampler, tmp_path)


@needs("safetensors")
@pytest.mark.parametrize("make_env", [make_walk, make_film])
def test_a_sampler_of_a_device_goes_on(
    make_env: Any, cuda_device: torch.device, tmp_path: Path
) -> None:
    def make_sampler(seed: int) -> tuple[Any, dict[str, Any]]:
        cages = [SerialCage(make_env, n_envs=2, seed=seed + n) for n in range(2)]
        return BasicSampler(cages, Viewer(), make_tree(make_env, Viewer(), "device")), {}

    assert_goes_on(make_sampler, tmp_path)


def test_a_replay_buffer_goes_on(tmp_path: Path) -> None:
    replays = []

    def make_sampler(seed: int) -> tuple[Any, dict[str, Any]]:
        samples = make_tree(make_film, Viewer(), "local", full_size=4 * T)
        replay = ReplayBuffer(samples, rng=np.random.default_rng(seed))
        replays.append(replay)
        cages = [SerialCage(make_film, n_envs=B, seed=seed)]
        return BasicSampler(cages, Viewer(), samples, replay=replay), {"replay": replay}

    assert_goes_on(make_sampler, tmp_path)
    first, other = (replay.sample(64) for replay in replays)
    assert_same(first, other)


def test_cages_may_be_others(tmp_path: Path) -> None:
    numbers = iter((SerialCage, ProcessCage))

    def make_sampler(seed: int) -> tuple[Any, dict[str, Any]]:
        cage = next(numbers)
        sizes = (4,) if cage is SerialCage else (3, 1)
        cages = [cage(make_walk, n_envs=n_envs, seed=seed) for n_envs in sizes]
        return BasicSampler(cages, Viewer(), make_tree(make_walk, Viewer(), "local")), {}

    assert_goes_on(make_sampler, tmp_path)


# Refusals


def make_sampler_of(cages: Sequence[Cage], **options: Any) -> BasicSampler:
    agent = Viewer()
    samples = make_tree(Walk, agent, "local", full_size=2 * T)
    if "replay" in options:
        options["replay"] = ReplayBuffer(samples, rng=np.random.default_rng(0))
    return BasicSampler(cages, agent, samples, **options)


def test_what_can_not_be_saved_is_refused_before_the_run(tmp_path: Path) -> None:
    def refuse(error: type[Exception], match: str, sampler: Any, **parts: Any) -> None:
        with pytest.raises(error, match=match):
            Checkpoints(tmp_path, sampler, seed=0, saves_envs=True, **parts)

    walks = [SerialCage(Walk, n_envs=B)]
    refuse(ValueError, "add it, as replay=", make_sampler_of(walks, replay=True))
    sampler = make_sampler_of(walks)
    refuse(TypeError, r"\['samples'\] are added with saves_envs", sampler, samples=sampler.samples)
    vector = VectorCage(SyncVectorEnv, {"env_fns": [Walk] * B})
    refuse(NotImplementedError, "VectorCage: it can't save", make_sampler_of([vector]))
    evaluation = EvalSampler(walks, Viewer(), n_episodes=B, storage="local")
    refuse(TypeError, "got a EvalSampler, whose episodes do not go on", evaluation)
    clocks = [SerialCage(Clock, n_envs=B)]
    samples = make_tree(Clock, Viewer(), "local")
    refuse(TypeError, "Clock can't save its state", BasicSampler(clocks, Viewer(), samples))


def test_a_sampler_that_is_to_reset_has_no_state(tmp_path: Path) -> None:
    sampler = make_sampler_of([SerialCage(Walk, n_envs=B, seed=1)])
    checkpoints = Checkpoints(tmp_path, sampler, seed=0, saves_envs=True)
    with pytest.raises(RuntimeError, match="the next batch begins with a reset"):
        checkpoints(Runner())
    sampler.collect_batch()
    checkpoints(Runner())
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="state: got 3 environments, expected 4"):
        sampler.load_state_dict({"envs": state["envs"][1:]})
    sampler.collect_batch()  # begins with a reset
    sampler.reseed(1)
    with pytest.raises(RuntimeError, match="and before reseed"):
        sampler.state_dict()


def test_a_checkpoint_is_of_one_way(tmp_path: Path) -> None:
    sampler = make_sampler_of([SerialCage(Walk, n_envs=B, seed=1)])
    sampler.collect_batch()
    Checkpoints(tmp_path, sampler, seed=0)(Runner())
    with pytest.raises(KeyError, match=r"saved with the parts .*, expected .*'sampler'"):
        Checkpoints(tmp_path, sampler, seed=0, saves_envs=True).load(Runner())


def test_a_recurrent_state_must_fit() -> None:
    agent = Summing()
    cages = [SerialCage(Walk, n_envs=B, seed=1)]
    sampler = RecurrentSampler(cages, agent, make_tree(Walk, agent, "local"))
    sampler.collect_batch()
    state = sampler.state_dict()
    state["rnn_state"]["sum"] = torch.zeros(B + 1)
    with pytest.raises(ValueError, match=r"rnn_state: got torch.float32 \(5,\), expected"):
        sampler.load_state_dict(state)

"""Transforms with a state: saved with the runner, and told where environments were reset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parllel import ArrayDict
from parllel.cages import SerialCage
from parllel.metrics import Metrics
from parllel.patterns import build_example, build_sample_tree
from parllel.runners import Checkpoints, RLRunner
from parllel.samplers import BasicSampler
from parllel.testing.toy_envs import Clock, Walk
from parllel.transforms import ClipRewards, NormalizeRewards

T, B = 4, 3


class Zeros:
    """An agent that keeps nothing."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return np.zeros(len(observation), np.int64), {}


class Kept:
    """An algorithm that keeps the rewards that it was given."""

    def __init__(self) -> None:
        self.rewards: list[Any] = []

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        self.rewards.append(batch["reward"].to_ndarray().tolist())
        return {}


class Counting:
    """A transform that notes when it is told to restart."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def restart(self) -> None:
        self.calls.append("restart")

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        self.calls.append("batch")
        return batch


def make_sampler(cage: SerialCage, make_env: Any) -> BasicSampler:
    agent = Zeros()
    samples = build_sample_tree(build_example(make_env, storage="local"), agent, batch_shape=(T, B))
    return BasicSampler([cage], agent, samples)


def run(
    folder: Path, n_batches: int, saves_envs: bool, *, resume: bool = False
) -> tuple[list[Any], NormalizeRewards]:
    """Run with a checkpoint after each batch; return rewards as they were learned from."""
    transform, kept = NormalizeRewards(discount=0.9), Kept()
    with SerialCage(Walk, n_envs=B, seed=5) as cage:
        sampler = make_sampler(cage, Walk)
        checkpoints = Checkpoints(folder, sampler, seed=5, saves_envs=saves_envs)
        runner = RLRunner(
            sampler,
            kept,
            Metrics(),
            n_steps=n_batches * T * B,
            transforms=[ClipRewards(-9, 9), transform],
            after_batch=[checkpoints],
        )
        runner.run(resume=checkpoints if resume else None)
    return kept.rewards, transform


@pytest.mark.parametrize("saves_envs", [False, True])
def test_a_resumed_run_normalizes_on(saves_envs: bool, tmp_path: Path) -> None:
    """Nothing names the transform to the checkpoints: it is a part of the runner."""
    whole, transform = run(tmp_path / "whole", 5, saves_envs)
    first, _ = run(tmp_path / "cut", 2, saves_envs)
    rest, resumed = run(tmp_path / "cut", 5, saves_envs, resume=True)
    assert first + rest == whole
    assert resumed.moments == transform.moments
    assert resumed.moments.count == 5 * T * B


def test_a_transform_is_told_of_each_reset_between_batches() -> None:
    counting = Counting()
    with SerialCage(Clock, {"length": 50}, n_envs=B) as cage:
        sampler = make_sampler(cage, Clock)

        def reset_at_times(run: Any) -> None:
            if run.n_steps == 2 * T * B:
                sampler.reset()
            if run.n_steps == 3 * T * B:
                sampler.reseed(1)

        RLRunner(
            sampler,
            Kept(),
            Metrics(),
            n_steps=5 * T * B,
            transforms=[counting],
            after_batch=[reset_at_times],
        ).run()
    batch, reset = ["batch"], ["restart", "batch"]
    assert counting.calls == reset + batch + reset + reset + batch


@pytest.mark.parametrize("saves_envs", [False, True])
def test_returns_go_on_over_a_checkpoint_where_episodes_do(
    saves_envs: bool, tmp_path: Path
) -> None:
    """Walk pays by its steps; a return that went on over a reset would count them twice."""
    rewards, transform = run(tmp_path, 3, saves_envs)
    expected = NormalizeRewards(discount=0.9)
    with SerialCage(Walk, n_envs=B, seed=5) as cage:
        sampler = make_sampler(cage, Walk)
        for number in range(3):
            batch, _ = sampler.collect_batch()
            if number and not saves_envs:
                expected.restart()
            found = expected(ClipRewards(-9, 9)(batch))["reward"].to_ndarray().tolist()
            assert found == rewards[number]
            if not saves_envs:
                sampler.reseed(np.random.SeedSequence([5, (number + 1) * T * B]))
    assert transform.moments == expected.moments


def test_a_runner_with_other_transforms_is_refused() -> None:
    with SerialCage(Clock, n_envs=B) as cage:
        sampler = make_sampler(cage, Clock)

        def make(*transforms: Any) -> RLRunner:
            return RLRunner(sampler, Kept(), Metrics(), n_steps=T * B, transforms=transforms)

        state = make(ClipRewards(), NormalizeRewards()).state_dict()
        make(ClipRewards(-2, 2), NormalizeRewards()).load_state_dict(state)
        for others in ((NormalizeRewards(),), (NormalizeRewards(), ClipRewards()), ()):
            with pytest.raises(ValueError, match="transforms: got the states of 2, expected"):
                make(*others).load_state_dict(state)

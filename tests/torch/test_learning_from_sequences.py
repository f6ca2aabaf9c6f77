"""Sequences of a replay buffer, and what a recurrent agent makes of them: no stand-ins here."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from long_run import all_but_first
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from parllel.runners import RLRunner
from parllel.samplers import EvalSampler, RecurrentSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import PreviousInputs, RecurrentQAgent
from parllel.torch.algos import DQN, DQNSettings
from parllel.torch.models import Gru, Lstm, Mlp, QNetwork, RecurrentNetwork
from schedules import each_schedule

T, B, LENGTH, BURN_IN = 10, 3, 6, 3


class World:
    """An agent that acts in walks of some steps, and the buffer that its sequences come from."""

    def __init__(
        self, episode_end: Any, storage: str = "local", kind: Any = SequenceReplayBuffer
    ) -> None:
        torch.manual_seed(0)
        example = build_example(Walk, storage=storage)
        previous = PreviousInputs(Walk.action_space)
        head = QNetwork(nn.Identity(), 4, n_features=8)
        model = RecurrentNetwork(Mlp(3, [6]), Lstm(6 + previous.n_features, 8), head)
        self.agent = RecurrentQAgent(
            model,
            example["observation"],
            0.5,
            torch.Generator().manual_seed(0),
            keeps_value=True,
            previous=previous,
            keeps_state=True,
        )
        self.samples = build_sample_tree(example, self.agent, batch_shape=(T, B), full_size=6 * T)
        self.replay = kind(
            self.samples,
            rng=np.random.default_rng(0),
            length=LENGTH,
            burn_in=BURN_IN,
            episode_end=episode_end,
        )
        cages = build_cages(Walk, B, seed=0, n_workers=0)
        self.sampler = RecurrentSampler(cages, self.agent, self.samples, replay=self.replay)

    def collect(self, n_batches: int) -> None:
        for _ in range(n_batches):
            self.sampler.collect_batch()

    def make_dqn(self) -> DQN:
        optimizer = torch.optim.Adam(self.agent.model.parameters(), lr=0.01)  # type: ignore[attr-defined]
        settings = DQNSettings(batch_size=8, n_updates=2, target_period=3, n_steps=3, discount=0.9)
        return DQN(self.agent, self.replay, optimizer, settings)


@pytest.mark.parametrize("episode_end", ["pad", "cross"])
def test_a_window_gives_the_values_that_the_agent_acted_by(episode_end: Any) -> None:
    """Stored states, previous inputs, beginnings and final observations are all those of then."""
    world = World(episode_end)
    world.collect(8)  # more than the ring has
    windows = world.replay.sample(256)
    values = world.agent.action_values(
        windows["observation"], recurrence=world.agent.recurrence(windows)
    ).amax(-1)
    mask, kept = windows["mask"], windows["agent_info"]["value"]
    # float32: sums of some 20 products of about 1, in another order, through 10 steps.
    close: dict[str, Any] = {"rtol": 0, "atol": 10 * 2 * 20 * 2**-24}
    torch.testing.assert_close(values[:-1][mask], kept[mask], **close)
    cut = mask & windows["truncated"] & ~windows["terminated"]
    assert cut.sum() > 20
    assert windows["is_first"][1:].sum() > 20
    torch.testing.assert_close(values[1:][cut], windows["final_value"][cut], **close)


def test_windows_with_large_errors_come_more_often() -> None:
    """A priority is made of the absolute errors of the steps that were learned from."""
    world = World("pad", kind=PrioritizedSequenceReplayBuffer)
    world.collect(6)
    dqn = world.make_dqn()
    drawn: list[Any] = []
    sample = world.replay.sample

    def watched(batch_size: int) -> Any:
        windows = sample(batch_size)
        drawn.append((windows["index"].tolist(), windows["weight"].tolist()))
        return windows

    world.replay.sample = watched
    told: list[Any] = []
    update = world.replay.update_priorities

    def kept(index: Any, error: Any, mask: Any) -> None:
        told.append((index.tolist(), error.clone(), mask.clone()))
        update(index, error, mask)

    world.replay.update_priorities = kept
    for _ in range(60):
        numbers = dqn.optimize(world.samples)
    assert np.isfinite(numbers["loss"])
    assert len(told) == len(drawn) == 120
    assert [each[0] for each in told] == [each[0] for each in drawn]
    assert all((error[~mask] == 0).all() for _, error, mask in told)
    weights = [weight for _, weight in drawn[-20:] for weight in weight]
    assert max(weights) == 1  # the rarest one
    assert min(weights) < 0.9
    # The weights undo that windows of larger errors come more often: these have the smaller ones.
    index, weight = drawn[-1]
    before = {
        i: float(error[:, at].abs().max())
        for i_s, error, _ in told[:-1]
        for at, i in enumerate(i_s)
    }
    pairs = [(before[i], w) for i, w in zip(index, weight, strict=True) if i in before]
    assert len(pairs) > 3
    assert np.corrcoef(np.array(pairs).T)[0, 1] < 0


@each_schedule
@pytest.mark.parametrize(
    ("episode_end", "kind"),
    all_but_first(
        [
            ("cross", PrioritizedSequenceReplayBuffer),
            ("pad", SequenceReplayBuffer),
        ]
    ),
)
def test_on_the_device_updates_are_the_same(
    schedule: str, seed: int, episode_end: Any, kind: Any
) -> None:
    def learn(storage: str) -> list[dict[str, float]]:
        world = World(episode_end, storage, kind)
        world.collect(3)
        dqn, results = world.make_dqn(), []
        for _ in range(3):
            world.collect(1)
            results.append(dqn.optimize(world.samples))
        return results

    expected = learn("local")
    with simulated_cuda(schedule, seed):
        assert learn("device") == expected


class Recall(gym.Env[Any, Any]):
    """Show a number in the first step, and pay for the action of that number in the last one."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)
    length = 4

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step, self._cue = 0, int(self.np_random.integers(2))
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        is_right = self._step == self.length - 1 and action == self._cue
        self._step += 1
        return self._look(), float(is_right), self._step == self.length, False, {}

    def _look(self) -> Any:
        seen = np.zeros(3, np.float32)
        if self._step == 0:
            seen[self._cue] = 1
        seen[2] = self._step == self.length - 1
        return seen


@pytest.mark.long
def test_what_was_seen_at_the_beginning_is_recalled_from_sequences() -> None:
    torch.manual_seed(0)
    example = build_example(Recall, storage="local")
    head = QNetwork(nn.Identity(), 2, n_features=16)
    model = RecurrentNetwork(Mlp(3, [16]), Gru(16, 16), head)
    epsilon = linear(1.0, 0.1, until=0.5)
    agent = RecurrentQAgent(model, example["observation"], epsilon, keeps_state=True)
    samples = build_sample_tree(example, agent, batch_shape=(8, 8), full_size=256)
    rng = np.random.default_rng(0)
    replay = SequenceReplayBuffer(samples, rng=rng, length=6, burn_in=2, episode_end="cross")
    cages = build_cages(Recall, 8, seed=0, n_workers=0)
    sampler = RecurrentSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    settings = DQNSettings(batch_size=32, n_updates=2, target_period=50, n_steps=2, discount=0.95)
    dqn = DQN(agent, replay, optimizer, settings)
    RLRunner(sampler, dqn, Metrics(), n_steps=16_000, learn_after=500).run()
    eval_cages = build_cages(Recall, 8, seed=1, n_workers=0)
    eval_sampler = EvalSampler(eval_cages, agent, n_episodes=64, storage="local")
    returns = [episode.episode_return for episode in eval_sampler.collect_episodes()]
    assert np.mean(returns) > 0.95  # 0.5 is that of guessing

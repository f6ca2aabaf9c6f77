"""Kill runs at random moments, resume them, and compare their weights with those of one left alone.

A program of its own: it imports torch once, and forks a process for each try.
"""

import json
import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from films import make_film
from parllel import ArrayDict
from parllel.metrics import CsvMetrics, Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import Prefetcher, PrioritizedReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs, QAgent
from parllel.torch.algos import DQN, PPO, DQNSettings, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, RunningMoments
from parllel.tree.whole_files import replace_file

T, B, N_BATCHES = 8, 3, 18
SEED = 5


class ActorCritic(nn.Module):
    """A small model with dropout, which draws random numbers when it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.1))
        self.policy, self.critic = nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, observation: Tensor) -> ModelOutputs:
        features = self.body(observation)
        logits, value = self.policy(features), self.critic(features).squeeze(-1)
        return ModelOutputs(DistParams(logits=logits), value)


class ToFloat(nn.Module):
    """Makes one row of numbers of each observation."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation.flatten(1).float()


class NormalizeReward:
    """Scale rewards by what was seen so far: a part of a run that has a state."""

    def __init__(self, moments: RunningMoments) -> None:
        self._moments = moments

    def __call__(self, batch: ArrayDict) -> ArrayDict:
        self._moments.update(batch["reward"])
        return ArrayDict({**batch, "reward": self._moments.normalize(batch["reward"])})


def train(kind: str, folder: Path) -> None:
    """Train from the newest checkpoint in a folder on, and write the weights there.

    Args:
        kind: "ppo", "dqn", or "frames", which is DQN with frames stored once. With the words "with
            environments" behind it, checkpoints save these.
        folder: the run's.
    """
    torch.manual_seed(SEED)
    learner, _, saves_envs = kind.partition(" ")
    make_env = make_film if learner == "frames" else Walk
    cages = build_cages(make_env, B, n_workers="serial", seed=SEED)
    eval_cages = build_cages(make_env, 1, n_workers="serial")
    make = train_ppo if learner == "ppo" else train_dqn
    sampler, algorithm, parts, options = make(cages, build_example(make_env, storage="local"))
    checkpoints = Checkpoints(
        folder / "checkpoints", sampler, seed=SEED, saves_envs=bool(saves_envs), **parts
    )
    evaluation = Evaluator(
        EvalSampler(
            eval_cages, sampler.agent, n_episodes=1, seed=1, deterministic=False, storage="local"
        )
    )
    with Metrics(CsvMetrics(folder / "metrics.csv")) as metrics:
        runner = RLRunner(
            sampler,
            algorithm,
            metrics,
            n_steps=T * B * N_BATCHES,
            after_batch=[every(5 * T * B, evaluation), every(3 * T * B, checkpoints)],
            **options,
        )
        runner.run(resume=Noted(checkpoints, folder / "resumed"))
    weights = b"".join(each.detach().numpy().tobytes() for each in sampler.agent.model.parameters())
    replace_file(folder / "weights", lambda file: file.write(weights))


class Noted:
    """Checkpoints that note in a file when a run was resumed from one of them."""

    def __init__(self, checkpoints: Checkpoints, path: Path) -> None:
        self._checkpoints = checkpoints
        self._path = path

    def load(self, runner: Any) -> bool:
        is_loaded = self._checkpoints.load(runner)
        with self._path.open("a") as file:
            file.write("x" * is_loaded)
        return is_loaded


def train_ppo(cages: Any, example: ArrayDict) -> tuple[BasicSampler, Any, Mapping[str, Any], Any]:
    agent = CategoricalPgAgent(ActorCritic(), Categorical(4), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    sampler = BasicSampler(cages, agent, samples, max_steps_decorrelate=3)
    moments = RunningMoments(samples["reward"])
    optimizer = torch.optim.Adam(agent.model.parameters(), lr=1e-2)
    settings = PPOSettings(n_epochs=2, n_minibatches=3, learning_rate=lambda p: 1e-2 * (1 - p))
    algorithm = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))
    parts = {"agent": agent, "algorithm": algorithm, "moments": moments}
    transforms = [NormalizeReward(moments), EstimateAdvantage(), NormalizeAdvantage()]
    return sampler, algorithm, parts, {"transforms": transforms}


def train_dqn(cages: Any, example: ArrayDict) -> tuple[BasicSampler, Any, Mapping[str, Any], Any]:
    shape = example["observation"].shape[1:]
    frames: Any = "first" if len(shape) > 1 else None
    n_actions = int(cages[0].action_space.n)
    layers = nn.Linear(math.prod(shape), 16), nn.Tanh(), nn.Linear(16, n_actions)
    agent = QAgent(
        nn.Sequential(ToFloat(), *layers),
        example["observation"],
        epsilon=lambda p: 0.5 * (1 - p),
    )
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=8 * T, frames=frames)
    replay = PrioritizedReplayBuffer(samples, rng=np.random.default_rng(SEED), n_steps=3)
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(agent.model.parameters(), lr=1e-2)
    settings = DQNSettings(batch_size=16, n_updates=2, target_period=5)
    algorithm = DQN(agent, replay, optimizer, settings, prefetcher=Prefetcher(replay, 16))
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay}
    return sampler, algorithm, parts, {"learn_after": 3 * T * B}


def start(kind: str, folder: Path) -> int:
    """Return the number of a process that trains."""
    folder.mkdir(exist_ok=True)
    number = os.fork()
    if not number:
        status = 1
        try:
            train(kind, folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return number


def wait(number: int, longest_s: float) -> bool:
    """Wait for the end of a process, and kill it when the time is over; return whether it was."""
    end = time.monotonic() + longest_s
    while time.monotonic() < end:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            assert status == 0, f"the run failed with status {status}"
            return False
        time.sleep(0.0005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return True


def main(kind: str, n_kills: int, folder: Path) -> None:
    torch.set_num_threads(1)
    (folder / "first").mkdir()
    train(kind, folder / "first")  # loads all kernels, for all processes that are forked
    begin_s = time.monotonic()
    wait(start(kind, folder / "alone"), 300)
    duration_s = time.monotonic() - begin_s
    expected = (folder / "alone" / "weights").read_bytes()
    assert (folder / "first" / "weights").read_bytes() == expected
    moments, found, n_runs = random.Random(SEED), {"n_kills": 0, "n_wrong": 0, "n_resumed": 0}, 0
    # On a busy machine most may come before the first checkpoint: then there are more of them.
    while found["n_kills"] < n_kills or (
        found["n_resumed"] <= n_kills // 4 and found["n_kills"] < 5 * n_kills
    ):
        own, n_runs = folder / str(n_runs), n_runs + 1
        while wait(start(kind, own), moments.uniform(0, 0.7 * duration_s)):
            found["n_kills"] += 1
        found["n_wrong"] += (own / "weights").read_bytes() != expected
        found["n_resumed"] += len((own / "resumed").read_text())
    print(json.dumps({**found, "n_runs": n_runs, "duration_s": duration_s}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

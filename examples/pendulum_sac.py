# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train SAC on Pendulum-v1: a continuous action, learned from a replay buffer."""

from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.torch.agents import QPgAgent
from parllel.torch.algos import SAC, SACSettings
from parllel.torch.distributions import SquashedGaussian
from parllel.torch.models import SoftActorCritic

N_ENVS, T = 4, 8  # environments, and steps of each between updates
RING = 20_000 // N_ENVS  # steps of each environment that are kept
SETTINGS = SACSettings(
    batch_size=128,
    n_updates=N_ENVS * T,  # one for each step
    target_share=0.01,
    temperature_rate=1e-3,
    learning_rate=1e-3,
)
SIZES = (128, 128)
LEARN_AFTER, LOG_EVERY, EVALUATE_EVERY, CHECKPOINT_EVERY = 1_000, 500, 500, 5_000
N_EVAL_ENVS, N_LAST_EVALUATIONS = 40, 10  # returns differ by 80 from one beginning to another


@dataclass(frozen=True)
class Config(RunConfig):
    """Train SAC on Pendulum-v1."""

    steps: int = 10_000


def make_env() -> gym.Env:
    return gym.make("Pendulum-v1")  # its Box of actions is [-2, 2]: the agent scales to it


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of the last ten evaluations."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # networks this small are slower with more

    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=0)
    eval_cages = build_cages(make_env, N_EVAL_ENVS, n_workers=0)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, the ring is in its memory

    # A policy, two critics, and the distribution of actions.
    model = SoftActorCritic(n_features=3, n_actions=1, sizes=SIZES).to(device)
    agent = QPgAgent(model, SquashedGaussian(dim=1), example["observation"])

    # The ring of the sample tree is the storage of the replay buffer.
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), full_size=RING - RING % T)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(config.seed), discount=0.98)
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    algorithm = SAC(agent, replay, optimizer, SETTINGS)

    eval_sampler = EvalSampler(
        eval_cages, agent, n_episodes=N_EVAL_ENVS, max_steps=200, seed=1, storage=config.storage
    )
    evaluations = Evaluations(eval_sampler)
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay, "scores": evaluations}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        log_every=LOG_EVERY,
        learn_after=min(LEARN_AFTER, config.steps // 2),
        after_batch=[
            every(EVALUATE_EVERY, evaluations.hook),
            every(CHECKPOINT_EVERY, checkpoints),
        ],
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        for each in (samples, replay, eval_sampler, sampler, *cages, *eval_cages):
            stack.callback(each.close)
        runner.run(resume=checkpoints if config.resume else None)
    agent.save(run.model)
    return evaluations.mean


class Evaluations:
    """The returns of the last evaluations, which checkpoints keep."""

    def __init__(self, sampler: EvalSampler) -> None:
        self.returns: list[float] = []
        self.hook = Evaluator(sampler, after=[self._keep])

    def _keep(self, runner: RLRunner, means: dict[str, float]) -> None:
        self.returns.append(means["episode_return"])

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns[-N_LAST_EVALUATIONS:]))

    def state_dict(self) -> dict[str, list[float]]:
        return {"returns": self.returns}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.returns = list(state["returns"])


def main(config: Config) -> None:
    run = RunFolder(config, name="pendulum_sac")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    print(f"learning curve: {run.curve}; model: {run.model}; mean return of 10 evaluations:")
    print(f"score {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))

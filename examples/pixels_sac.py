# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "box2d==2.3.10", "pygame-ce>=2.5"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train SAC on CarRacing-v3 from pixels, shifted at random (DrQ): steering, gas and brake."""

from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import RandomShift, ReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.torch.agents import QPgAgent
from parllel.torch.algos import SAC, SACSettings
from parllel.torch.distributions import SquashedGaussian
from parllel.torch.models import FrameConv, SoftActorCritic

N_ENVS, T = 4, 16  # environments, and steps of each between updates
N_WORKERS, STACK = 2, 3
RING = 100_000 // N_ENVS  # steps of each environment that are kept, a frame of each
N_STEPS, DISCOUNT = 3, 0.99
SETTINGS = SACSettings(
    batch_size=128,
    n_updates=32,  # one for each 2 steps
    temperature=0.1,
    target_share=0.01,
    learning_rate=5e-4,
)
N_FEATURES, SIZES = 50, (256, 256)
LEARN_AFTER, LOG_EVERY, EVALUATE_EVERY, CHECKPOINT_EVERY = 5_000, 1_000, 50_000, 50_000
N_EVAL_ENVS, MAX_STEPS = 4, 1_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train SAC on CarRacing-v3 from pixels."""

    steps: int = 500_000


class Small(gym.ObservationWrapper):
    """Frames of 48 by 48 pixels, in gray: every second one of 96 by 96 in colors."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (48, 48), np.uint8)

    def observation(self, frame: np.ndarray) -> np.ndarray:
        return frame[::2, ::2].mean(axis=-1).astype(np.uint8)


def make_env() -> gym.Env:
    return gym.wrappers.FrameStackObservation(Small(gym.make("CarRacing-v3")), STACK)


class Encoder(nn.Module):
    """The one of critics and policy, which learns by the critics' loss alone."""

    n_features = N_FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FrameConv((STACK, 48, 48), 32, kernel_size=3, stride=2),  # it scales bytes itself
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=3, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 9 * 9, N_FEATURES),
            nn.LayerNorm(N_FEATURES),
            nn.Tanh(),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layers(frames)


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of the last evaluation."""
    torch.manual_seed(config.seed)
    cages = build_cages(make_env, N_ENVS, seed=config.seed, n_workers=N_WORKERS)
    eval_cages = build_cages(make_env, N_EVAL_ENVS, seed=1, n_workers=N_WORKERS)
    example = build_example(make_env, storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, the ring is in its memory

    k = cages[0].action_space.shape[0]  # their bounds differ: the agent scales to them
    model = SoftActorCritic(N_FEATURES, k, SIZES, encoder=Encoder()).to(device)
    agent = QPgAgent(model, SquashedGaussian(k), example["observation"])

    # Each frame is stored once; images are shifted by up to 2 pixels while they are gathered.
    ring = {"full_size": RING - RING % T, "frames": "first"}
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), **ring)
    replay = ReplayBuffer(
        samples,
        rng=np.random.default_rng(config.seed),
        n_steps=N_STEPS,
        discount=DISCOUNT,
        shift=RandomShift(2),
    )
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    algorithm = SAC(agent, replay, optimizer, SETTINGS)

    eval_settings = {"n_episodes": N_EVAL_ENVS, "max_steps": MAX_STEPS, "seed": 1}
    eval_sampler = EvalSampler(eval_cages, agent, **eval_settings, storage=config.storage)
    scores = []
    evaluation = Evaluator(
        eval_sampler, after=[lambda _, means: scores.append(means["episode_return"])]
    )
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        log_every=LOG_EVERY,
        learn_after=min(LEARN_AFTER, config.steps // 2),
        after_batch=[every(EVALUATE_EVERY, evaluation), every(CHECKPOINT_EVERY, checkpoints)],
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        for each in (samples, replay, eval_sampler, sampler, *cages, *eval_cages):
            stack.callback(each.close)
        runner.run(resume=checkpoints if config.resume else None)
        if not scores:  # a run was resumed that had come to its end
            evaluation(runner)
    agent.save(run.model)
    return scores[-1]


def main(config: Config) -> None:
    run = RunFolder(config, name="pixels_sac")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    print(f"learning curve: {run.curve}; model: {run.model}; mean return of 4 episodes:")
    print(f"score {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))

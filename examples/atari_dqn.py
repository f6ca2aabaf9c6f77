# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "ale-py>=0.12.1"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train DQN on an Atari game: double, three steps, by priority, with the numbers of Rainbow."""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from parllel.cages import VectorCage, spawn_seeds
from parllel.metrics import Metrics
from parllel.patterns import build_sample_tree, example_of
from parllel.replays import PrioritizedReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import AlternatingSampler, EvalSampler
from parllel.schedules import linear
from parllel.torch.agents import QAgent
from parllel.torch.algos import DQN, DQNSettings
from parllel.torch.models import NatureCnn, QNetwork

# Mnih et al. 2015 with three parts of Rainbow and its numbers (Hessel et al. 2018,
# arXiv:1710.02298, table 1). It counts frames; here are steps, 4 frames each, or updates.
N_ENVS, T = 8, 4  # environments, and steps of each between updates
N_STEPS, DISCOUNT, ALPHA = 3, 0.99, 0.5
SETTINGS = DQNSettings(
    batch_size=32,
    n_updates=N_ENVS * T // 4,
    target_period=2_000,  # updates: 8,000 steps
    learning_rate=6.25e-5,
    beta=linear(0.4, 1.0),
    max_grad_norm=10.0,
)
EXPLORE_STEPS, LAST_EPSILON, EVAL_EPSILON = 1_000_000, 0.01, 0.01
LEARN_AFTER, LOG_EVERY = 20_000, 10_000
N_EVAL_ENVS, N_EPISODES, N_LAST_EPISODES = 10, 10, 100  # of evaluations, and of the last one
EVALUATE_EVERY, CHECKPOINT_EVERY = 250_000, 1_000_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train DQN on an Atari game.

    Args:
        steps: number of environment steps, of 4 frames each.
        game: its name in ale-py.
        repeat_action_probability: 0.25 for "sticky actions" (Machado et al. 2018), 0 for none.
        ring: number of steps that are kept, of 7 KB each; checkpoints hold them, too.
    """

    steps: int = 10_000_000
    game: str = "breakout"
    repeat_action_probability: float = 0.25
    ring: int = 1_000_000


def make_cage(config: Config, seeds: list[np.random.SeedSequence], *, clips: bool) -> VectorCage:
    """Return games that step in threads of ale-py; stacks of 4 frames, 84 by 84, each for 4."""
    env_kwargs = {
        "game": config.game,
        "num_envs": len(seeds),
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "repeat_action_probability": config.repeat_action_probability,
        "reward_clipping": clips,  # the ring's rewards are -1, 0 or 1; evaluations count all points
    }
    return VectorCage(AtariVectorEnv, env_kwargs, seed=seeds)


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of 100 episodes of the trained agent."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # the other cores step games

    # While one half of the games steps, the agent acts for the other one.
    seeds = spawn_seeds(config.seed, N_ENVS)
    halves = seeds[: N_ENVS // 2], seeds[N_ENVS // 2 :]
    cages = [make_cage(config, half, clips=True) for half in halves]
    eval_cage = make_cage(config, spawn_seeds(config.seed + 1, N_EVAL_ENVS), clips=False)
    example = example_of(cages[0], storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, the ring is in its memory

    n_actions = int(cages[0].action_space.n)
    model = QNetwork(NatureCnn(example["observation"].shape[1:]), n_actions).to(device)
    epsilon = linear(1.0, LAST_EPSILON, until=min(EXPLORE_STEPS / config.steps, 1.0))
    agent = QAgent(model, example["observation"], epsilon)
    eval_agent = QAgent(model, example["observation"], EVAL_EPSILON)  # the same model

    # The ring is the storage of the replay buffer. Each frame is stored once.
    rows = config.ring // N_ENVS // T * T
    samples = build_sample_tree(
        example, agent, batch_shape=(T, N_ENVS), full_size=rows, frames="zero"
    )
    rng = np.random.default_rng(config.seed)
    replay = PrioritizedReplayBuffer(
        samples, rng=rng, n_steps=N_STEPS, discount=DISCOUNT, alpha=ALPHA
    )
    sampler = AlternatingSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), eps=1.5e-4, fused=True)
    algorithm = DQN(agent, replay, optimizer, SETTINGS)

    eval_sampler, last_sampler = (
        EvalSampler(
            [eval_cage],
            eval_agent,
            n_episodes=n_episodes,
            max_steps=n_episodes * 27_000,  # ale-py ends an episode after 108,000 frames
            deterministic=False,  # by its own epsilon
            seed=config.seed + 1,
            storage=config.storage,
        )
        for n_episodes in (N_EPISODES, N_LAST_EPISODES)
    )
    evaluation = Evaluator(eval_sampler)
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    hooks = [every(EVALUATE_EVERY, evaluation), every(CHECKPOINT_EVERY, checkpoints)]
    runner = RLRunner(
        sampler,
        algorithm,
        metrics,
        n_steps=config.steps,
        log_every=LOG_EVERY,
        learn_after=min(LEARN_AFTER, config.steps // 2),
        after_batch=hooks,
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        for each in (*cages, eval_cage, samples, replay, eval_sampler, last_sampler, sampler):
            stack.callback(each.close)
        runner.run(resume=checkpoints if config.resume else None)
        agent.save(run.model)
        episodes = last_sampler.collect_episodes()
    return float(np.mean([episode.episode_return for episode in episodes]))


def main(config: Config) -> None:
    run = RunFolder(config, name="atari_dqn")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    print(f"learning curve: {run.curve}; model: {run.model}; mean return of 100 episodes:")
    print(f"score {score:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))

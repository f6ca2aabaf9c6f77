# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "ale-py>=0.12.1"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PPO on an Atari game, with the numbers that papers use (Huang et al. 2022)."""

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
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import AlternatingSampler, EvalSampler
from parllel.schedules import linear
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, NatureCnn
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage

# "The 37 implementation details of proximal policy optimization", but for the end of an episode:
# it is that of the game, not of a life (Machado et al. 2018, arXiv:1709.06009, section 4).
N_ENVS, T = 8, 128  # environments, and steps of each in a batch
DISCOUNT, GAE_LAMBDA = 0.99, 0.95
SETTINGS = PPOSettings(
    n_epochs=4,
    n_minibatches=4,
    clip=linear(0.1, 0.0),
    value_clip=linear(0.1, 0.0),
    entropy_coefficient=0.01,
    learning_rate=linear(2.5e-4, 0.0),
    max_grad_norm=0.5,
)
N_EVAL_ENVS, N_EPISODES, N_LAST_EPISODES = 10, 10, 100  # of evaluations, and of the last one
EVALUATE_EVERY, CHECKPOINT_EVERY = 500_000, 500_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PPO on an Atari game.

    Args:
        steps: number of environment steps, of 4 frames each.
        game: its name in ale-py.
        repeat_action_probability: 0.25 for "sticky actions" (Machado et al. 2018), 0 for none.
    """

    steps: int = 10_000_000
    game: str = "breakout"
    repeat_action_probability: float = 0.25


def make_cage(config: Config, seeds: list[np.random.SeedSequence]) -> VectorCage:
    """Return games that step in threads of ale-py; stacks of 4 frames, 84 by 84, each for 4."""
    env_kwargs = {
        "game": config.game,
        "num_envs": len(seeds),
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "repeat_action_probability": config.repeat_action_probability,
        "reward_clipping": False,  # returns are those of the game; see ClipRewards below
    }
    return VectorCage(AtariVectorEnv, env_kwargs, seed=seeds)


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of 100 episodes of the trained agent."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)  # the other cores step games

    # While one half of the games steps, the agent acts for the other one.
    seeds = spawn_seeds(config.seed, N_ENVS)
    cages = [make_cage(config, half) for half in (seeds[: N_ENVS // 2], seeds[N_ENVS // 2 :])]
    eval_cage = make_cage(config, spawn_seeds(config.seed + 1, N_EVAL_ENVS))
    example = example_of(cages[0], storage=config.storage)
    device = example["reward"].to_torch().device  # where a GPU is, samples are in its memory

    n_actions = int(cages[0].action_space.n)
    model = ActorCritic(NatureCnn(example["observation"].shape[1:]), n_actions).to(device)
    agent = CategoricalPgAgent(model, Categorical(dim=n_actions), example["observation"])

    # Each frame is stored once; a stack begins with zeros, as ale-py has it.
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), frames="zero")
    sampler = AlternatingSampler(cages, agent, samples)

    transforms = [
        ClipRewards(),
        EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA),
        NormalizeAdvantage(),
    ]
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    algorithm = PPO(agent, optimizer, SETTINGS, rng=np.random.default_rng(config.seed))

    eval_sampler, last_sampler = (
        EvalSampler(
            [eval_cage],
            agent,
            n_episodes=n_episodes,
            max_steps=n_episodes * 27_000,  # ale-py ends an episode after 108,000 frames
            deterministic=False,  # by the policy
            seed=config.seed + 1,
            storage=config.storage,
        )
        for n_episodes in (N_EPISODES, N_LAST_EPISODES)
    )
    evaluation = Evaluator(eval_sampler)
    parts = {"agent": agent, "algorithm": algorithm}
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=config.seed, **parts)
    hooks = [every(EVALUATE_EVERY, evaluation), every(CHECKPOINT_EVERY, checkpoints)]
    runner = RLRunner(
        sampler, algorithm, metrics, n_steps=config.steps, transforms=transforms, after_batch=hooks
    )
    with ExitStack() as stack:  # closes environments and memory, also after an error
        for each in (*cages, eval_cage, samples, eval_sampler, last_sampler, sampler):
            stack.callback(each.close)
        runner.run(resume=checkpoints if config.resume else None)
        agent.save(run.model)
        episodes = last_sampler.collect_episodes()
    return float(np.mean([episode.episode_return for episode in episodes]))


def main(config: Config) -> None:
    run = RunFolder(config, name="atari_ppo")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    run.print(f"learning curve: {run.curve}; model: {run.model}; mean return of 100 episodes:")
    run.print(f"score {score:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))

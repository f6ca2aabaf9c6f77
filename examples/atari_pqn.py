# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "ale-py>=0.12.1"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train PQN on an Atari game: Q learning without replay or target network (arXiv:2407.04811)."""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch.optim import RAdam

from parllel import ArrayDict
from parllel.cages import VectorCage, spawn_seeds
from parllel.metrics import Metrics
from parllel.patterns import build_sample_tree, example_of
from parllel.replays import Minibatches
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import AlternatingSampler, EvalSampler
from parllel.schedules import linear
from parllel.torch.agents import QAgent
from parllel.torch.models import NatureCnn, QNetwork
from parllel.transforms import ClipRewards, EstimateAdvantage

N_ENVS, T = 128, 32  # environments, and steps of each in a batch
N_EPOCHS, N_MINIBATCHES = 2, 32
DISCOUNT, LAMBDA = 0.99, 0.65
LEARNING_RATE, MAX_GRAD_NORM = 2.5e-4, 10.0
EPSILON, EVAL_EPSILON = linear(1.0, 0.001, until=0.1), 0.001
N_EVAL_ENVS, N_EPISODES, N_LAST_EPISODES = 10, 10, 100  # of evaluations, and of the last one
EVALUATE_EVERY, CHECKPOINT_EVERY = 500_000, 500_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train PQN on an Atari game.

    Args:
        steps: number of environment steps, of 4 frames each.
        game: its name in ale-py.
        repeat_action_probability: 0.25 for "sticky actions" (Machado et al. 2018), 0 for none.
    """

    steps: int = 10_000_000
    game: str = "breakout"
    repeat_action_probability: float = 0.25


class PQN:
    """Move the value of each action that was taken to the lambda return of its step.

    G[t] = r[t] + discount * (lambda * G[t+1] + (1 - lambda) * max_a Q(s[t+1], a))
    With max_a Q as the value of a state, it is the `return_` of `EstimateAdvantage`.
    """

    def __init__(self, agent: QAgent, optimizer: RAdam, rng: np.random.Generator) -> None:
        self.agent, self.optimizer = agent, optimizer
        self.minibatches = Minibatches(N_MINIBATCHES, rng)
        self.set_progress = agent.set_progress  # epsilon

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        needed = ArrayDict({name: batch[name] for name in ("observation", "action", "return_")})
        losses = []
        for rows in self.minibatches.of(needed, n_passes=N_EPOCHS):
            index = self.agent.action_index(rows["action"]).unsqueeze(1)
            value = self.agent.action_values(rows["observation"]).gather(1, index).squeeze(1)
            loss = 0.5 * torch.nn.functional.mse_loss(value, rows["return_"])
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.agent.model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean().item()}


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

    encoder = NatureCnn(example["observation"].shape[1:], layer_norm=True)
    model = QNetwork(encoder, int(cages[0].action_space.n)).to(device)
    agent = QAgent(model, example["observation"], EPSILON, keeps_value=True)
    eval_agent = QAgent(model, example["observation"], EVAL_EPSILON)  # the same model
    # Each frame is stored once; a stack begins with zeros, as ale-py has it.
    samples = build_sample_tree(example, agent, batch_shape=(T, N_ENVS), frames="zero")
    sampler = AlternatingSampler(cages, agent, samples)

    transforms = [ClipRewards(), EstimateAdvantage(discount=DISCOUNT, gae_lambda=LAMBDA)]
    optimizer = RAdam(model.parameters(), lr=LEARNING_RATE)
    rng = np.random.default_rng(config.seed)
    algorithm = PQN(agent, optimizer, rng)

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
    parts = {"agent": agent, "optimizer": optimizer, "rng": rng}
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
    run = RunFolder(config, name="atari_pqn")
    with run.open_metrics(config.steps, curve=["train/episode_return", "eval/episode_return"]) as m:
        score = train(config, run, m)
    print(f"learning curve: {run.curve}; mean return of 100 episodes:\nscore {score:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))

# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Train DQN on CartPole-v1 in a loop of one's own: environments and replay are of parllel."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, VectorEnv
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Adam

from parllel import Array, ArrayDict, default_storage
from parllel.cages import VectorCage
from parllel.metrics import Metrics
from parllel.replays import ReplayBuffer
from parllel.runners import RunConfig, RunFolder, load_run, save_run

N_ENVS, RING = 8, 100_000  # environments, and steps that are kept
BATCH_SIZE, N_STEPS, DISCOUNT = 128, 5, 0.99
LEARNING_RATE = 5e-4  # at first; it falls to 0
LEARN_AFTER, LEARN_EVERY, TARGET_EVERY = 1_000, 4, 1_000  # steps
EXPLORE_STEPS, LAST_EPSILON = 30_000, 0.02
LOG_EVERY, CHECKPOINT_EVERY = 1_000, 20_000


@dataclass(frozen=True)
class Config(RunConfig):
    """Train DQN on CartPole-v1."""

    steps: int = 60_000


@dataclass
class Done:
    """How far the run is."""

    n_steps: int = 0
    returns: list[float] = field(default_factory=list)  # of the last 100 episodes

    def state_dict(self) -> dict[str, Any]:
        return {"n_steps": self.n_steps, "returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_steps, self.returns = state["n_steps"], state["returns"]


def make_envs() -> VectorEnv:
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec("CartPole-v1", N_ENVS, vectorization_mode="sync", vector_kwargs=same_step)


def make_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    )


def learn(model: nn.Module, target: nn.Module, optimizer: Adam, batch: ArrayDict) -> Tensor:
    with torch.no_grad():
        best = model(batch["next_observation"]).argmax(1, keepdim=True)
        next_value = target(batch["next_observation"]).gather(1, best).squeeze(1)
        goal = batch["n_step_return"] + batch["n_step_discount"] * next_value
    value = model(batch["observation"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    loss = nn.functional.smooth_l1_loss(value, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(config: Config, run: RunFolder, metrics: Metrics) -> float:
    """Train, and return the mean return of the last 100 episodes."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    cage = VectorCage(make_envs, seed=config.seed)
    ring = {"full_size": RING // N_ENVS, "storage": config.storage or default_storage()}
    step = (1, N_ENVS)
    samples = ArrayDict(
        {
            "observation": Array(step, np.float32, feature_shape=(4,), padding=1, **ring),
            "action": Array(step, np.int64, **ring),
            "reward": Array(step, np.float32, **ring),
            "terminated": Array(step, bool, **ring),
            "truncated": Array(step, bool, **ring),
        }
    )
    rng = np.random.default_rng(config.seed)
    replay = ReplayBuffer(samples, rng=rng, n_steps=N_STEPS, discount=DISCOUNT)
    device = samples["reward"].to_torch().device  # where a GPU is, the ring is in its memory
    model, target = make_network().to(device), make_network().to(device)
    target.load_state_dict(model.state_dict())
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    done = Done()
    learned = {"model": model, "target": target, "optimizer": optimizer}
    parts = {**learned, "replay": replay, "rng": rng, "done": done}

    def reset() -> np.ndarray:  # with new seeds, so that a resumed run goes on with the same ones
        cage.reseed(np.random.SeedSequence([config.seed, done.n_steps]))
        cage.reset_async()
        observation, _ = cage.await_step()
        replay.reset(observation)
        return observation

    if config.resume and load_run(run.checkpoints, **parts):
        metrics.rewind(done.n_steps)
    observation, loss = reset(), torch.zeros(())
    while done.n_steps < config.steps:
        epsilon = max(LAST_EPSILON, 1 - done.n_steps / EXPLORE_STEPS)
        with torch.no_grad():
            best = model(torch.as_tensor(observation, device=device)).argmax(1).cpu().numpy()
        action = np.where(rng.random(N_ENVS) < epsilon, rng.integers(2, size=N_ENVS), best)
        cage.step_async(action)
        observation, reward, terminated, truncated, _ = cage.await_step()
        flags = {"terminated": terminated, "truncated": truncated}
        cut = {n: final for n, final in cage.final_obs.items() if not terminated[n]}
        replay.append(observation, action=action, reward=reward, final_obs=cut, **flags)
        done.returns += [episode.episode_return for episode in cage.take_completed()]
        done.returns, done.n_steps = done.returns[-100:], done.n_steps + N_ENVS

        if done.n_steps > LEARN_AFTER:
            share_left = max(0.0, 1 - done.n_steps / config.steps)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * share_left
            for _ in range(N_ENVS // LEARN_EVERY):
                loss = learn(model, target, optimizer, replay.sample(BATCH_SIZE))
        if done.n_steps % TARGET_EVERY < N_ENVS:
            target.load_state_dict(model.state_dict())
        if done.n_steps % LOG_EVERY < N_ENVS and done.returns:
            means = {"train/episode_return": np.mean(done.returns), "algo/loss": loss.item()}
            metrics.log(done.n_steps, means)
        if done.n_steps % CHECKPOINT_EVERY < N_ENVS or done.n_steps >= config.steps:
            save_run(run.checkpoints, **parts)
            observation = reset()
    save_file(model.state_dict(), run.model)
    cage.close()
    return float(np.mean(done.returns))


def main(config: Config) -> None:
    run = RunFolder(config, name="loop_by_hand")
    with run.open_metrics(config.steps) as metrics:
        score = train(config, run, metrics)
    print(f"learning curve: {run.curve}; mean return of the last 100 episodes:\nscore {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))

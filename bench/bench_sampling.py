"""Environment steps per second of a sampler, against a loop by hand; then PPO's two halves."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import gymnasium as gym
import numpy as np
import torch

from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import RunFolder
from parllel.samplers import BasicSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.distributions import Categorical
from support.cartpole import cartpole_ppo
from support.report import Report, parse_out
from support.timing import interleave, ratio

T, B = 128, 16
REPEATS = 31
LEAST_SHARE = 0.8  # of the steps per second by hand
PPO_STEPS = 100_000


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report = Report(
        "sampling",
        f"Sampling {B} CartPole-v1, T = {T}, a 4-64-64 actor-critic, one torch thread",
        [f"{REPEATS} interleaved rounds; ratios are medians over the rounds."],
    )
    contestants = {"by hand": loop_by_hand(), "BasicSampler": loop_of_parllel()}
    seconds = interleave(contestants, repeats=REPEATS)
    report.add_table(f"{T * B} steps", seconds, references=["by hand"])
    for name, samples in seconds.items():
        print(f"{name}: {T * B / float(np.median(samples)):,.0f} environment steps per second")
    times = ratio(seconds, "BasicSampler", "by hand")
    report.add_target("BasicSampler / by hand, time", times, 1 / LEAST_SHARE)
    print(f"BasicSampler has {1 / times:.0%} of the steps per second by hand")
    report.write(folder)
    print_ppo()


def loop_of_parllel() -> Callable[[], object]:
    cages = build_cages(cartpole_ppo.make_env, B, seed=0, n_workers=0)
    example = build_example(cartpole_ppo.make_env)
    torch.manual_seed(0)
    model = cartpole_ppo.ActorCritic(4, 2)
    agent = CategoricalPgAgent(model, Categorical(dim=2), example_obs=example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    return BasicSampler(cages, agent, samples).collect_batch


class ByHand:
    """The plainest loop: the same model, Gumbel noise, preallocated NumPy."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = cartpole_ppo.ActorCritic(4, 2)
        self.envs: list[gym.Env] = [cartpole_ppo.make_env() for _ in range(B)]
        self.observation = np.zeros((T + 1, B, 4), np.float32)
        self.action = np.zeros((T, B), np.int64)
        self.reward = np.zeros((T, B), np.float32)
        self.terminated = np.zeros((T, B), bool)
        self.truncated = np.zeros((T, B), bool)
        self.value = np.zeros((T + 1, B), np.float32)
        self.log_prob = np.zeros((T, B), np.float32)
        for b, env in enumerate(self.envs):
            self.observation[T, b], _ = env.reset(seed=b)

    @torch.inference_mode()
    def collect_batch(self) -> None:
        self.observation[0] = self.observation[T]
        for t in range(T):
            outputs = self.model(torch.from_numpy(self.observation[t]))
            log_probs = outputs.dist_params.logits.log_softmax(-1)
            noise = torch.empty_like(log_probs).exponential_().log_()
            action = (log_probs - noise).argmax(-1)
            self.action[t] = action.numpy()
            self.value[t] = outputs.value.numpy()
            self.log_prob[t] = log_probs.gather(-1, action[:, None])[:, 0].numpy()
            for b, env in enumerate(self.envs):
                observation, reward, terminated, truncated, _ = env.step(self.action[t, b])
                if terminated or truncated:
                    observation, _ = env.reset()
                self.observation[t + 1, b] = observation
                self.reward[t, b] = reward
                self.terminated[t, b] = terminated
                self.truncated[t, b] = truncated
        self.value[T] = self.model(torch.from_numpy(self.observation[T])).value.numpy()


def loop_by_hand() -> Callable[[], object]:
    return ByHand().collect_batch


def print_ppo() -> None:
    settings = cartpole_ppo.PPOSettings(n_epochs=4, n_minibatches=4)
    cartpole_ppo.SETTINGS, cartpole_ppo.T = settings, T
    with TemporaryDirectory() as folder, Metrics() as metrics:
        config = cartpole_ppo.Config(steps=PPO_STEPS, out=Path(folder))
        summary = cartpole_ppo.train(config, RunFolder(config, name="bench"), metrics)
    print(
        f"\nPPO, {summary.n_steps:,} steps, {B} environments, {settings.n_epochs} epochs,"
        f" {settings.n_minibatches} minibatches: sampling {summary.sample_s:.2f} s, learning"
        f" {summary.learn_s:.2f} s, mean return of the last 100 episodes"
        f" {summary.mean_return:.0f}"
    )


if __name__ == "__main__":
    main(parse_out("Time sampling."))

"""Collectors of torchrl in the environments of mock_pixels.py; import it where torchrl is there."""

import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.collectors import AsyncBatchedCollector, Collector
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv

from support.atari import N_ACTIONS, N_CORES, STACK, build_model, with_torch_threads
from support.mock_pixels import EPISODE_STEPS, N_FRAMES, random_frames
from support.timing import timed

N_BATCHES = 4  # of the asynchronous collector, after a first one


class MockPixels(EnvBase):
    """The environment of mock_pixels.py as torchrl's own kind, without a wrapper between."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self._frames, self._step_s, self._n_steps = torch.from_numpy(random_frames()), step_s, 0
        self.observation_spec = Composite(pixels=Unbounded(STACK, dtype=torch.uint8))
        self.action_spec = Categorical(N_ACTIONS, shape=(), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = Categorical(2, shape=(1,), dtype=torch.bool)
        self._reward = torch.ones(1)
        self._flags = torch.tensor([[False], [True]])

    def _set_seed(self, seed: int | None) -> None:
        """Do nothing: nothing is drawn."""

    def _reset(self, tensordict: Any = None, **_: Any) -> TensorDict:
        self._n_steps = 0
        flag = self._flags[0]
        return TensorDict({"pixels": self._frames[0], "done": flag, "terminated": flag})

    def _step(self, tensordict: Any) -> TensorDict:
        if self._step_s:
            time.sleep(self._step_s)
        self._n_steps += 1
        flag = self._flags[int(self._n_steps == EPISODE_STEPS)]
        return TensorDict(
            {
                "pixels": self._frames[self._n_steps % N_FRAMES],
                "reward": self._reward,
                "done": flag,
                "terminated": flag,
            }
        )


class Policy(torch.nn.Module):
    """Draw actions by Gumbel noise, as the agents of parllel do; return what PPO keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(channels_last=True)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        outputs = self.model(pixels if pixels.ndim == 4 else pixels[None])
        log_probs = outputs.dist_params.logits.log_softmax(-1)
        action = (log_probs - torch.empty_like(log_probs).exponential_().log_()).argmax(-1)
        log_prob = log_probs.gather(-1, action[:, None])[:, 0]
        results = action, log_prob, outputs.value
        return results if pixels.ndim == 4 else tuple(each[0] for each in results)


def policy() -> TensorDictModule:
    return TensorDictModule(
        Policy().eval(), in_keys=["pixels"], out_keys=["action", "log_prob", "value"]
    )


@contextmanager
def collectors(T: int, B: int, step_s: float) -> Iterator[dict[str, Callable[[], float]]]:
    """Give a function for each kind of collector, which returns its seconds for T * B frames."""
    make_env = partial(MockPixels, step_s)
    settings = {"frames_per_batch": T * B, "total_frames": -1}
    made = {
        "SerialEnv": SerialEnv(B, make_env),
        "ParallelEnv": ParallelEnv(B, make_env, mp_start_method="fork"),
    }
    with ExitStack() as stack:
        calls = {}
        for name, envs in made.items():
            collector = Collector(envs, policy(), trust_policy=True, **settings)
            stack.callback(collector.shutdown)
            calls[f"torchrl, {name}"] = timed(
                with_torch_threads(N_CORES, partial(next, iter(collector)))
            )
        make_collector = partial(
            AsyncBatchedCollector, [make_env] * B, env_backend="threading", **settings
        )
        calls["torchrl, asynchronous"] = partial(time_asynchronous, make_collector)
        yield calls


def time_asynchronous(make_collector: Callable[..., AsyncBatchedCollector]) -> float:
    """Return the seconds for a batch of a collector that never stops, so it is made for each time.

    What it collected while others took their turn would be there at once.
    """
    torch.set_num_threads(N_CORES)
    collector = make_collector(policy=policy())
    try:
        batches = iter(collector)
        next(batches)
        return timeit.timeit(partial(next, batches), number=N_BATCHES) / N_BATCHES
    finally:
        collector.shutdown()

"""Evaluations and videos leave training as it was: the same weights, bit for bit."""

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from long_run import all_but_first
from optional import needs
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.runners import Evaluator, RLRunner, record_side_by_side, record_video
from parllel.runners.generators import unchanged_generators
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import CategoricalPgAgent, QAgent
from parllel.torch.algos import DQN, PPO, DQNSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Mlp, QNetwork
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage

T, B = 8, 2


class Restless(Walk):
    """Draws from all generators that programs share, and moves by what it drew."""

    render_mode = "rgb_array"

    def step(self, action: int) -> Any:
        self._position += random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        return super().step(action)

    def render(self) -> Any:
        return np.full((4, 4, 3), random.randrange(256), np.uint8)


def learner(kind: str, has_generator: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Return a sampler, an algorithm, and arguments of the runner."""
    cages = build_cages(Restless, B, n_workers="serial", seed=1)
    example = build_example(Restless, storage="local")
    generator = torch.Generator().manual_seed(3) if has_generator else None
    shape = {"batch_shape": (T, B)}
    if kind == "ppo":
        body = nn.Sequential(nn.Dropout(0.2), Mlp(3))  # draws while it learns
        model = ActorCritic(body, 4, n_features=body[1].n_features)
        agent: Any = CategoricalPgAgent(model, Categorical(4), example["observation"], generator)
        sampler = BasicSampler(cages, agent, build_sample_tree(example, agent, **shape))
        optimizer = torch.optim.Adam(model.parameters())
        algorithm: Any = PPO(agent, optimizer, rng=np.random.default_rng(0))
        return sampler, algorithm, {"transforms": [EstimateAdvantage(), NormalizeAdvantage()]}
    network = QNetwork(Mlp(3), 4)
    agent = QAgent(network, example["observation"], epsilon=0.5, generator=generator)
    samples = build_sample_tree(example, agent, **shape, full_size=4 * T)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(network.parameters())
    return sampler, DQN(agent, replay, optimizer, DQNSettings(n_updates=2)), {}


def weights_after(kind: str, has_generator: bool, make_hook: Any) -> torch.Tensor:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    sampler, algorithm, options = learner(kind, has_generator)
    hooks = [] if make_hook is None else [make_hook(sampler.agent)]
    runner = RLRunner(
        sampler, algorithm, Metrics(), n_steps=5 * T * B, after_batch=hooks, **options
    )
    runner.run()
    sampler.close()
    return torch.cat([each.detach().flatten() for each in sampler.agent.model.parameters()])


def evaluation(agent: Any, folder: Path) -> Any:
    cages = build_cages(Restless, 1, n_workers="serial")
    return Evaluator(
        EvalSampler(cages, agent, n_episodes=2, deterministic=False, storage="local"),
        after=[lambda run, means: video(agent, folder)(run)],
    )


def video(agent: Any, folder: Path) -> Any:
    return lambda run: record_video(
        agent, Restless, folder / "a.gif", deterministic=False, max_steps=9, storage="local"
    )


def videos(agent: Any, folder: Path) -> Any:
    agents = {"one": agent, "the same": agent}
    return lambda run: record_side_by_side(
        agents, Restless, folder / "a.gif", deterministic=False, max_steps=9, storage="local"
    )


@needs("imageio")
@pytest.mark.parametrize("hook", [evaluation, video, videos])
@pytest.mark.parametrize("has_generator", all_but_first([False, True]))
@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_training_ends_with_the_same_weights_with_a_hook_and_without(
    kind: str, has_generator: bool, hook: Any, tmp_path: Path
) -> None:
    alone = weights_after(kind, has_generator, None)
    with_hook = weights_after(kind, has_generator, lambda agent: hook(agent, tmp_path))
    assert torch.equal(alone, with_hook)
    assert (tmp_path / "a.gif").exists()
    drawing = weights_after(kind, has_generator, lambda agent: lambda run: torch.rand(1))
    assert not torch.equal(alone, drawing)


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator(), lambda own: torch.rand(1, generator=own).item()),
        (np.random.default_rng(0), lambda own: own.random()),
        (np.random.RandomState(0), lambda own: own.rand()),
        (random.Random(0), lambda own: own.random()),
    ],
)
def test_an_agent_may_draw_from_any_kind_of_generator(generator: Any, draw: Any) -> None:
    class Own:
        """An agent with a generator of its own."""

        def __init__(self) -> None:
            self.generator = generator

    with suppress(KeyError), unchanged_generators(Own()):  # also after an error
        first = draw(generator)
        raise KeyError
    assert draw(generator) == first
    assert draw(generator) != first

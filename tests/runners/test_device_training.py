"""Training with samples in CUDA memory, on simulated CUDA: the same numbers as in host memory.

Nothing here ran on a GPU.
"""

import copy
from typing import Any

import numpy as np
import torch

from parllel import default_storage
from parllel.metrics import Metrics, MetricsSink
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.runners import Evaluator, RLRunner, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage
from schedules import each_schedule

T, B = 8, 4


class Model(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 5)

    def forward(self, observation: torch.Tensor) -> ModelOutputs:
        logits, value = super().forward(observation).split([4, 1], dim=-1)
        return ModelOutputs(dist_params=DistParams(logits=logits), value=value.squeeze(-1))


class Recorder(MetricsSink):
    """Keep what was logged, without times."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.logs.append(
            {name: x for name, x in values.items() if not name.startswith(("time/", "gpu/"))}
        )

    def _finish(self) -> None:
        """Do nothing."""


def train(storage: str | None) -> tuple[list[dict[str, float]], list[Any]]:
    """Return what a small run logs, and the trained parameters."""
    torch.manual_seed(0)
    example = build_example(Walk, storage=storage)
    agent = CategoricalPgAgent(Model(), Categorical(4), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=2 * T)
    # Not in workers where this machine is busy: the order of episodes would be another one.
    cages = build_cages(Walk, B, n_workers="serial", seed=1)
    eval_cages = build_cages(Walk, 2, n_workers="serial", seed=2)
    eval_sampler = EvalSampler(eval_cages, agent, n_episodes=4, storage=storage)
    recorder = Recorder()
    runner = RLRunner(
        BasicSampler(cages, agent, samples),
        PPO(
            agent,
            torch.optim.Adam(agent.model.parameters(), lr=1e-2),
            PPOSettings(n_epochs=2, n_minibatches=3),
            rng=np.random.default_rng(0),
        ),
        Metrics(recorder),
        n_steps=4 * T * B,
        transforms=[ClipRewards(-2, 2), EstimateAdvantage(), NormalizeAdvantage()],
        after_batch=[every(2 * T * B, Evaluator(eval_sampler))],
    )
    runner.run()
    return recorder.logs, [each.tolist() for each in agent.model.parameters()]


@each_schedule
def test_a_run_gives_the_same_numbers(schedule: str, seed: int) -> None:
    expected = train("local")
    with simulated_cuda(schedule, seed) as simulation:
        assert default_storage() == "device"
        before = copy.copy(simulation.counters)
        logs, parameters = train(None)
        counted = simulation.counters.since(before)
    assert parameters == expected[1]
    assert logs == expected[0]
    assert counted.launches > 4 * T
    assert counted.device_synchronizations == 0

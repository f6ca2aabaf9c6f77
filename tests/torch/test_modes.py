"""Models with dropout or batch normalization: they act in one mode, and learn in the other."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parllel import Array, ArrayDict
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams

T, B = 8, 4


class Functional(nn.Module):
    """Dropout as a function, which no look at the model's parts finds."""

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.dropout(rows, 0.5, self.training)


class Model(nn.Module):
    """A policy and a value behind one layer, which remembers the modes of its calls."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 16), layer, nn.Linear(16, 3)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, observation: Tensor) -> ModelOutputs:
        self.modes.append((self.training, self.layer.training))
        logits, value = self.last(self.layer(self.first(observation))).split([2, 1], dim=-1)
        return ModelOutputs(DistParams(logits=logits), value.squeeze(-1))


LAYERS = {
    "dropout": lambda: nn.Dropout(0.5),
    "functional": Functional,
    "batch norm": lambda: nn.BatchNorm1d(16),
}
each_layer = pytest.mark.parametrize("layer", LAYERS)


def make_agent(layer: str) -> CategoricalPgAgent:
    torch.manual_seed(0)
    return CategoricalPgAgent(Model(LAYERS[layer]()), Categorical(2), np.zeros((1, 3), np.float32))


def make_batch(agent: CategoricalPgAgent) -> ArrayDict:
    rng = np.random.default_rng(0)
    specs: dict[str, Any] = {
        "observation": Array((T, B), np.float32, feature_shape=(3,)),
        "action": Array((T, B), np.int64),
        "advantage": Array((T, B), np.float32),
        "return_": Array((T, B), np.float32),
        "agent_info": {"log_prob": Array((T, B), np.float32)},
    }
    batch = ArrayDict(specs)
    for name, shape in (("observation", (T, B, 3)), ("advantage", (T, B)), ("return_", (T, B))):
        batch[name][...] = rng.standard_normal(shape)
    for t in range(T):
        batch["action"][t], info = agent.step(batch["observation"][t])
        batch["agent_info"]["log_prob"][t] = info["log_prob"]
    return batch


def make_ppo(agent: CategoricalPgAgent, lr: float, **settings: Any) -> PPO:
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=lr)
    return PPO(agent, optimizer, PPOSettings(**settings), rng=np.random.default_rng(0))


@each_layer
@pytest.mark.parametrize("left_in", ["train", "eval", "mixed"])
def test_modes_are_those_of_the_work_whatever_the_model_was_left_in(
    layer: str, left_in: str
) -> None:
    agent = make_agent(layer)
    model = agent.model.train(left_in != "eval")
    if left_in == "mixed":
        model.layer.eval()
    former = [part.training for part in model.modules()]
    observation = torch.randn(5, 3)
    first, again = (agent.step(observation, deterministic=True)[1]["value"] for _ in range(2))
    assert torch.equal(first, again)
    with torch.inference_mode():  # the program's own, in which the modes are still to be set
        assert torch.equal(agent.value(observation), first)
    with agent.acting():
        agent.step(observation)
    assert set(model.modes) == {(False, False)}
    batch = make_batch(agent)
    model.modes.clear()
    agent.evaluate(observation, torch.zeros(5).long())
    make_ppo(agent, lr=0.01).optimize(batch)
    assert set(model.modes) == {(True, True)}
    assert [part.training for part in model.modules()] == former


@each_layer
def test_the_ratio_of_a_policy_that_did_not_change_is_1(layer: str) -> None:
    agent = make_agent(layer)
    batch = make_batch(agent)
    numbers = make_ppo(agent, lr=0.0, n_epochs=3, n_minibatches=2).optimize(batch)
    assert (numbers["kl"], numbers["clip_fraction"]) == (0, 0)


@each_layer
def test_the_ratio_compares_with_the_policy_before_the_updates(layer: str) -> None:
    agent = make_agent(layer)
    ppo = make_ppo(agent, lr=0.5, n_epochs=1, n_minibatches=2)
    for _ in range(2):
        numbers = ppo.optimize(make_batch(agent))
        assert 1e-6 < numbers["kl"] < 1


def test_learning_moves_the_statistics_of_a_batch_normalization_once_for_each_minibatch() -> None:
    agent = make_agent("batch norm")
    batch = make_batch(agent)
    assert agent.model.layer.num_batches_tracked == 0
    make_ppo(agent, lr=0.1, n_epochs=3, n_minibatches=2).optimize(batch)
    assert agent.model.layer.num_batches_tracked == 6


@pytest.mark.parametrize("part", [nn.Identity(), nn.LayerNorm(16)])
def test_a_model_without_modes_keeps_the_log_probabilities_that_it_was_given(
    part: nn.Module,
) -> None:
    torch.manual_seed(0)
    agent = CategoricalPgAgent(Model(part), Categorical(2), np.zeros((1, 3), np.float32))
    batch = make_batch(agent)
    batch["agent_info"]["log_prob"][...] = -10
    numbers = make_ppo(agent, lr=0.0, n_epochs=1, n_minibatches=1).optimize(batch)
    assert numbers["clip_fraction"] == 1

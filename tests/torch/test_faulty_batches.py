"""Batches that PPO must not learn from as they are: with NaN, or rows that are no transitions."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parllel import Array, ArrayDict
from parllel.replays import Minibatches
from parllel.torch.agents import CategoricalPgAgent, Evaluation, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, RunningMoments

T, B = 8, 4


class Model(nn.Module):
    """A policy and a value that squeeze what they see into (-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, observation: Tensor) -> ModelOutputs:
        logits, value = self.layer(observation).tanh().split([2, 1], dim=-1)
        return ModelOutputs(DistParams(logits=logits), value.squeeze(-1))


def make_agent() -> CategoricalPgAgent:
    torch.manual_seed(0)
    return CategoricalPgAgent(Model(), Categorical(2), np.zeros((1, 3), np.float32))


def make_batch() -> ArrayDict:
    """Return a batch as a sampler leaves it, of one episode that goes on."""
    rng = np.random.default_rng(0)
    batch = ArrayDict(
        {
            "observation": Array((T, B), np.float32, feature_shape=(3,), padding=1),
            "action": Array((T, B), np.int64),
            "reward": Array((T, B), np.float32),
            "terminated": Array((T, B), bool),
            "truncated": Array((T, B), bool),
            "final_value": Array((T, B), np.float32),
            "valid": Array((T, B), bool),
            "agent_info": {
                "value": Array((T, B), np.float32, padding=1),
                "log_prob": Array((T, B), np.float32),
            },
        }
    )
    batch["observation"][: T + 1] = rng.standard_normal((T + 1, B, 3))
    batch["reward"][...] = rng.standard_normal((T, B))
    batch["agent_info"]["value"][: T + 1] = rng.standard_normal((T + 1, B))
    batch["agent_info"]["log_prob"][...] = np.log(0.5)
    batch["final_value"][...] = np.nan  # nothing learns from what no truncation has set
    batch["valid"][...] = True
    return batch


TRANSFORMS = [EstimateAdvantage(), NormalizeAdvantage()]


def learn(
    batch: ArrayDict, agent: CategoricalPgAgent | None = None, **settings: Any
) -> dict[str, float]:
    agent = agent or make_agent()
    for transform in TRANSFORMS:
        batch = transform(batch)
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
    ppo = PPO(agent, optimizer, PPOSettings(**settings), rng=np.random.default_rng(0))
    return ppo.optimize(batch)


def weights(agent: CategoricalPgAgent) -> Tensor:
    return torch.cat([each.detach().flatten() for each in agent.model.parameters()])


# Numbers that are not finite


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("observation",), (5, 2, 1)),
        (("reward",), (5, 2)),
        (("agent_info", "log_prob"), (5, 2)),
        (("agent_info", "value"), (5, 2)),
    ],
)
def test_the_first_number_that_is_not_finite_is_named(
    path: tuple[str, ...], where: tuple[int, ...], number: float
) -> None:
    agent, batch = make_agent(), make_batch()
    leaf = batch
    for name in path:
        leaf = leaf[name]
    leaf[where] = leaf[7, 3] = number  # the second one comes later
    before = weights(agent)
    if path[-1] == "log_prob" and number == np.inf:
        leaf[7, 3] = 0  # one alone: a ratio of 0 is finite, and so is its loss, but not kl
    with pytest.raises(ValueError, match=rf"{'.'.join(path)} is .* row t = 5 of environment 2"):
        learn(batch, agent, n_epochs=1)
    assert weights(agent).isfinite().all()
    assert len(before) == len(weights(agent))


def test_a_limit_of_kl_stops_at_nan() -> None:
    agent, batch = make_agent(), make_batch()
    batch["observation"][0] = np.nan
    before = weights(agent)
    with pytest.raises(ValueError, match="observation is nan in row t = 0 of environment 0"):
        learn(batch, agent, kl_limit=0.1, n_minibatches=1)
    assert torch.equal(weights(agent), before)


def test_parameters_that_are_not_finite_are_named() -> None:
    agent = make_agent()
    with torch.no_grad():
        agent.model.layer.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"the model's parameter layer\.bias is not, and all"):
        learn(make_batch(), agent)


def test_a_gradient_that_is_not_finite_ends_the_batch_before_its_update() -> None:
    class Root(Model):
        def forward(self, observation: Tensor) -> ModelOutputs:
            outputs = super().forward(observation)
            zeros = self.layer.bias.sum() * 0
            return outputs._replace(value=outputs.value + zeros.sqrt())  # its slope is infinite

    torch.manual_seed(0)
    agent = CategoricalPgAgent(Root(), Categorical(2), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="the norm of the gradient is not finite, and all of"):
        learn(make_batch(), agent)
    assert weights(agent).isfinite().all()


def test_large_observations_whose_sum_overflows_are_no_error() -> None:
    batch = make_batch()
    batch["observation"][...] = np.finfo(np.float32).max
    assert np.isfinite(list(learn(batch).values())).all()


# Rows that are no transitions


def spoil(batch: ArrayDict, rows: tuple[Any, ...], number: float) -> None:
    """Write a number to all floats of some rows, and mark them as an environment's failure is."""
    for name in ("observation", "reward", "final_value"):
        batch[name][rows] = number
    batch["agent_info"]["log_prob"][rows] = number
    batch["action"][rows] = 0 if np.isnan(number) else 1
    batch["truncated"][rows] = True
    batch["valid"][rows] = False


@pytest.mark.parametrize("rows", [(3, 1), (0, 2), (T - 1, 0), ([2, 3, 5], [1, 1, 3])])
def test_weights_do_not_depend_on_rows_that_are_not_valid(rows: tuple[Any, ...]) -> None:
    results = []
    for number in (0.0, 1e4, np.nan):
        agent, batch = make_agent(), make_batch()
        spoil(batch, rows, number)
        numbers = learn(batch, agent, n_minibatches=3)
        assert np.isfinite(list(numbers.values())).all()
        results.append(weights(agent))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_an_episode_is_cut_before_a_row_that_is_not_valid() -> None:
    batch = make_batch()
    spoil(batch, (3, 1), np.nan)
    result = EstimateAdvantage(discount=0.5, gae_lambda=1.0)(batch)
    value, reward = batch["agent_info"]["value"].to_ndarray(), batch["reward"].to_ndarray()
    advantage = result["advantage"].to_ndarray()
    expected = reward[2, 1] + 0.5 * value[3, 1] - value[2, 1]
    assert advantage[2, 1] == pytest.approx(expected, abs=1e-6)
    assert advantage[3, 1] == result["return_"].to_ndarray()[3, 1] == 0
    assert np.isfinite(advantage).all()
    assert not batch["truncated"].to_ndarray()[2, 1]


def test_advantages_are_normalized_over_valid_rows() -> None:
    batch = EstimateAdvantage()(make_batch())
    valid = np.random.default_rng(1).random((T, B)) < 0.7
    batch["valid"][...] = valid
    batch["advantage"][np.nonzero(~valid)] = np.nan
    before = batch["advantage"].to_ndarray()[valid].astype(np.float64)
    after = NormalizeAdvantage()(batch)["advantage"].to_ndarray()
    np.testing.assert_allclose(after[valid], (before - before.mean()) / before.std(), atol=1e-5)
    assert (after[~valid] == 0).all()


def test_running_moments_count_valid_rows_alone() -> None:
    rows, valid = Array((T, B), np.float32, feature_shape=(3,)), np.ones((T, B), bool)
    rows[...] = np.random.default_rng(0).standard_normal((T, B, 3))
    valid[2:4, 1] = False
    rows[2:4, 1] = np.nan
    moments = RunningMoments(rows)
    moments.update(rows, valid=valid)
    kept = rows.to_ndarray()[valid]
    assert moments.count == len(kept) == T * B - 2
    np.testing.assert_allclose(moments.mean, kept.mean(axis=0, dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(moments.variance, kept.var(axis=0, dtype=np.float64), rtol=1e-5)
    moments.update(rows, valid=np.zeros((T, B), bool))
    assert moments.count == len(kept)
    with pytest.raises(ValueError, match=r"valid: shape \(4, 8\), expected \(8, 4\)"):
        moments.update(rows, valid=valid.T)
    with pytest.raises(TypeError, match="valid: dtype float64, expected bool"):
        moments.update(rows, valid=np.ones((T, B)))


def test_minibatches_have_valid_rows_alone_each_once() -> None:
    batch = ArrayDict(
        {"number": np.arange(T * B).reshape(T, B), "valid": np.arange(T * B).reshape(T, B) % 3 > 0}
    )
    parts = Minibatches(3, np.random.default_rng(0)).of(batch)
    drawn = [number for part in parts for number in part["number"].tolist()]
    valid = [number for number in range(T * B) if number % 3 > 0]
    assert len(set(drawn)) == len(drawn) == len(valid) // 3 * 3
    assert set(drawn) <= set(valid)
    batch["valid"][...] = False
    batch["valid"][0, 0] = True
    with pytest.raises(ValueError, match=r"got 3, expected at most 1, the rows .* that are valid"):
        next(Minibatches(3, np.random.default_rng(0)).of(batch))


# What PPO is given


def test_a_batch_without_advantages_tells_what_adds_them() -> None:
    agent = make_agent()
    ppo = PPO(agent, torch.optim.SGD(agent.model.parameters()), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"no advantage and no return_, which .*EstimateAdvantage"):
        ppo.optimize(make_batch())
    batch = EstimateAdvantage()(make_batch())
    del batch["agent_info"]["log_prob"]
    with pytest.raises(ValueError, match=r"no agent_info\.log_prob"):
        ppo.optimize(batch)


def test_a_seed_is_no_generator() -> None:
    agent = make_agent()
    optimizer = torch.optim.SGD(agent.model.parameters())
    with pytest.raises(TypeError, match=r"rng: got 0, expected a numpy\.random\.Generator"):
        PPO(agent, optimizer, rng=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="agent: Linear has no evaluate and no model"):
        PPO(nn.Linear(1, 1), optimizer, rng=np.random.default_rng(0))  # type: ignore[arg-type]


def test_any_class_with_a_model_and_evaluate_can_be_trained() -> None:
    class Own:
        def __init__(self, columns: int) -> None:
            self.model, self.columns = nn.Linear(3, 2), columns

        def evaluate(self, observation: Any, action: Tensor) -> Evaluation:
            mean, value = self.model(observation).unbind(-1)
            value = value.reshape((-1,) + (1,) * (self.columns > 0))
            return Evaluation(-((action - mean) ** 2) / 2, torch.zeros_like(mean), value)

    for columns in (0, 1):
        agent = Own(columns)
        optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
        ppo = PPO(agent, optimizer, rng=np.random.default_rng(0))
        batch = EstimateAdvantage()(make_batch())
        if columns == 0:
            assert ppo.optimize(batch)["n_updates"] == 16
        else:
            with pytest.raises(ValueError, match=r"value has shape \(8, 1\), expected \(8,\)"):
                ppo.optimize(batch)

"""Agents whose actions are numbers: scaled once, never outside of the space, learned by PPO."""

from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from continuous_envs import HIGH, LOW, Drift, Pointing
from long_run import all_but
from parllel import Array
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.samplers import BasicSampler, EvalSampler, RecurrentSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import (
    ModelOutputs,
    PgAgent,
    PreviousInputs,
    QPgAgent,
    Recurrence,
    RecurrentPgAgent,
)
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import (
    Categorical,
    ClippedGaussian,
    Gaussian,
    SquashedGaussian,
)
from parllel.torch.models import (
    ActionCritics,
    GaussianActorCritic,
    GaussianHead,
    Gru,
    Mlp,
    NormalizeObservations,
    RecurrentNetwork,
    SoftActorCritic,
)
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage
from schedules import each_schedule

T, B = 8, 4
KINDS: dict[str, Any] = {
    "plain": Gaussian,
    "squashed": SquashedGaussian,
    "clipped": ClippedGaussian,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


class DriftInFloat64(Drift):
    """The same with bounds that float32 has not."""

    action_space = spaces.Box(np.array([-0.1, 0.3]), np.array([0.7, 0.9]), dtype=np.float64)


class DriftInFloat16(Drift):
    """The same with actions of few digits."""

    action_space = spaces.Box(np.float16([-0.1, 0.3]), np.float16([0.7, 0.9]), dtype=np.float16)


def make_env_of(kind: str, env: type[gym.Env[Any, Any]]) -> Any:
    """A plain Gaussian knows no bounds: actions are clipped behind it."""
    return (lambda: gym.wrappers.ClipAction(env())) if kind == "plain" else env


def make_agent(kind: str, observation: Any, *, log_std: float = 0.0) -> Any:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    n_inputs = observation.shape[-1]
    k = 1 if n_inputs == 1 else 2
    if kind == "critics":
        model = SoftActorCritic(3, 2, (8,), initial_log_std=log_std)
        return QPgAgent(model, SquashedGaussian(2), observation, generator)
    encoders = {"value_encoder": Mlp(n_inputs, (32, 32))}
    actor = GaussianActorCritic(Mlp(n_inputs, (32, 32)), k, **encoders, initial_log_std=log_std)
    return PgAgent(actor, KINDS[kind](k), observation, generator)


@pytest.mark.parametrize("env", all_but([Drift, DriftInFloat64, DriftInFloat16], [DriftInFloat64]))
@pytest.mark.parametrize("log_std", [-2.0, 1.5])
@pytest.mark.parametrize("kind", [*KINDS, "critics"])
def test_actions_fill_the_space_and_never_leave_it(kind: str, log_std: float, env: Any) -> None:
    if kind == "plain" and env is DriftInFloat16:
        pytest.skip("a plain Gaussian refuses 16 bits (test_spaces_that_do_not_fit_are_refused)")
    make_env = make_env_of(kind, env)
    example = build_example(make_env, storage="local")
    agent = make_agent(kind, example["observation"], log_std=log_std)
    samples = build_sample_tree(example, agent, batch_shape=(64, B))
    cages = build_cages(make_env, B, n_workers="serial", seed=0)
    sampler = BasicSampler(cages, agent, samples, check=True)  # and environments raise
    batch, _ = sampler.collect_batch()
    action = batch["action"].to_torch().flatten(0, 1)
    low, high = (torch.from_numpy(each) for each in (env.action_space.low, env.action_space.high))
    share = ((action - low) / (high - low)).float()
    if kind != "plain":
        assert (share >= -1e-6).all()  # environments were given the bounds of 64 bits themselves
        assert (share <= 1 + 1e-6).all()
        middle = ((share > 0.4) & (share < 0.6)).float().mean()
        ends = ((share < 0.1) | (share > 0.9)).float().mean()
        assert (middle > 0.5) == (log_std < 0)
        assert (ends > 0.5) == (log_std > 0)
        own = (
            agent._action_map.from_space(action) if kind != "critics" else agent.own_action(action)
        )
        torch.testing.assert_close(
            own, 2 * share - 1, rtol=0, atol=1e-2 if low.dtype == torch.float16 else 1e-5
        )
        assert kind != "clipped" or log_std < 0 or (own.abs() == 1).float().mean() > 0.5
    if kind != "critics":  # what learning finds is what acting found, bit for bit
        rows = batch["observation"].to_torch().flatten(0, 1)
        found = agent.evaluate(rows, action)
        kept = batch["agent_info"]["log_prob"].to_torch().flatten()
        assert kept.isfinite().all()
        torch.testing.assert_close(found.log_prob.detach(), kept, rtol=1e-5, atol=1e-5)
        (found.log_prob.sum() + found.entropy.sum() + found.value.sum()).backward()
        slopes = [each.grad for each in agent.model.parameters()]
        assert all(slope is not None and slope.isfinite().all() for slope in slopes)
    rows = example["observation"]
    one, other = (agent.step(rows, deterministic=True)[0] for _ in range(2))
    assert torch.equal(one, other)
    for cage in cages:
        cage.close()


def test_an_agent_of_critics_has_one_space() -> None:
    agent = make_agent("critics", torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="own_action: the agent knows no space of actions"):
        agent.own_action(torch.zeros(1, 2))
    agent.bind_actions(Drift.action_space)
    agent.bind_actions(spaces.Box(LOW, HIGH))  # an equal one, as of evaluation
    with pytest.raises(ValueError, match=r"action space: got .* in which this agent acts already"):
        agent.bind_actions(spaces.Box(2 * LOW, 2 * HIGH))
    torch.testing.assert_close(agent.own_action(torch.from_numpy(LOW)[None]), -torch.ones(1, 2))
    with pytest.raises(ValueError, match="finite bounds"):
        make_agent("critics", torch.zeros(1, 3)).bind_actions(spaces.Box(-np.inf, np.inf, (2,)))


def test_a_policy_has_one_space_too() -> None:
    agent = make_agent("clipped", torch.zeros(1, 3))
    agent.bind_actions(Drift.action_space)
    with pytest.raises(ValueError, match=r"action space: got .* in which this agent acts already"):
        agent.bind_actions(DriftInFloat64.action_space)


def test_what_normalizes_observations_is_an_encoder_of_critics() -> None:
    rows = torch.zeros(1, 3)
    torch.manual_seed(0)
    normalize = NormalizeObservations(rows)
    agent = QPgAgent(SoftActorCritic(3, 2, (8,), encoder=normalize), SquashedGaussian(2), rows)
    assert agent.observes
    example = build_example(Drift, storage="local")
    samples = build_sample_tree(example, agent, batch_shape=(64, B))
    cages = build_cages(Drift, B, n_workers="serial", seed=0)
    sampler = BasicSampler(cages, agent, samples)
    for _ in range(2):
        batch, _ = sampler.collect_batch()
    rows = batch["observation"].to_torch().flatten(0, 1)
    features = agent.encode(rows)
    assert features.std() == pytest.approx(1, abs=0.1)  # of observations of 2
    params = agent.distribution.normalize(agent.model.policy(features))
    action, _ = agent.step(rows, deterministic=True)
    torch.testing.assert_close(agent.own_action(action), agent.distribution.mode(params).detach())


def test_a_model_or_a_distribution_that_does_not_fit_is_refused() -> None:
    model, rows = SoftActorCritic(3, 2, (8,)), torch.zeros(4, 3)
    with pytest.raises(TypeError, match="model: Linear has no encode and no policy and no critic"):
        QPgAgent(nn.Linear(3, 2), SquashedGaussian(2), rows)
    with pytest.raises(TypeError, match="distribution: ClippedGaussian has no sample_with_log"):
        QPgAgent(model, ClippedGaussian(2), rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 1\)"):
        QPgAgent(model, SquashedGaussian(1), rows)
    model.critic = ActionCritics(3, 1, (8,))
    with pytest.raises(ValueError, match=r"action: got \(4, 2\), expected \(4, 1\)"):
        QPgAgent(model, SquashedGaussian(2), rows)

    class Flat(nn.Module):
        def forward(self, features: Any, action: Any) -> Any:
            return features.sum(-1)

    model.critic = Flat()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"its critic gives \(4,\), expected \(n, 4\)"):
        QPgAgent(model, SquashedGaussian(2), rows)
    with pytest.raises(TypeError, match="dist_params: got a Tensor, expected GaussianParams"):
        PgAgent(lambda _: ModelOutputs(rows, rows[:, 0]), SquashedGaussian(2), rows)
    with pytest.raises(TypeError, match="action space: got Box"):
        PgAgent(GaussianActorCritic(Mlp(3), 2), Gaussian(2), rows).bind_actions(
            spaces.Box(0, 3, (2,), np.int64)
        )
    assert Categorical(2).dim == 2


# Models


@pytest.mark.parametrize("has_own_std", [False, True])
def test_deviations_stay_in_their_bounds(has_own_std: bool) -> None:
    head = GaussianHead(
        3, 2, has_own_std=has_own_std, initial_log_std=-1.0, log_std_bounds=(-4.0, 1.0)
    )
    mean, log_std = head(torch.randn(50, 3))
    torch.testing.assert_close(log_std, torch.full((50, 2), -1.0), rtol=0, atol=0.1)
    assert mean.abs().max() < 0.2
    assert has_own_std == bool((log_std == log_std[0]).all())
    with torch.no_grad():
        raw = head.raw_std if has_own_std else head.layer.bias[2:]
        raw += torch.tensor([1e6, -1e6])
    assert head(torch.zeros(1, 3)).log_std[0].tolist() == [1.0, -4.0]
    with pytest.raises(ValueError, match=r"initial_log_std: got 3\.0, expected a number between"):
        GaussianHead(3, 2, initial_log_std=3.0)


def test_critics_are_networks_of_their_own() -> None:
    critics = ActionCritics(3, 2, (8, 8), n_critics=3, layer_norm=True)
    features, action = torch.randn(5, 3), torch.randn(5, 2)
    values = critics(features, action)
    for i in range(3):
        hidden = torch.cat([features, action], -1)
        for number, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            hidden = hidden @ weight[i] + bias[i]
            if number < 2:
                hidden = torch.relu(nn.functional.layer_norm(hidden, (8,)))
        torch.testing.assert_close(values[i], hidden[:, 0])
    assert not torch.equal(values[0], values[1])
    bound = 1 / np.sqrt(5)
    assert 0.8 * bound < critics.weights[0].abs().max() <= bound
    with pytest.raises(ValueError, match=r"action: got \(1, 2\), expected \(5, 2\)"):
        critics(features, action[:1])
    with pytest.raises(ValueError, match="n_critics: got 0"):
        ActionCritics(3, 2, n_critics=0)


def test_a_policy_and_a_value_may_share_an_encoder() -> None:
    shared, parted = (
        GaussianActorCritic(Mlp(3), 2, **more, leaf="seen")
        for more in ({}, {"value_encoder": Mlp(3)})
    )
    rows = {"seen": torch.randn(4, 3)}
    for model in (shared, parted):
        model(rows).value.sum().backward()
    assert all(each.grad is not None for each in shared.encoding.parameters())
    assert all(each.grad is None for each in parted.encoding.parameters())
    assert shared(rows).dist_params.log_std.shape == (4, 2)
    with pytest.raises(ValueError, match="autocast: got a dtype, expected None"):
        SoftActorCritic(3, 2, autocast=torch.bfloat16)


# PPO


def learn(
    kind: str, env: type[gym.Env[Any, Any]], storage: str | None, *, n_batches: int, T: int = T
) -> tuple[Any, Any]:
    make_env = make_env_of(kind, env)
    with ExitStack() as stack:
        example = build_example(make_env, storage=storage)
        agent = make_agent(kind, example["observation"], log_std=-0.5)
        samples = build_sample_tree(example, agent, batch_shape=(T, B))
        stack.callback(samples.close)
        cages = build_cages(make_env, B, n_workers="serial", seed=0)
        sampler = BasicSampler(cages, agent, samples)
        ppo = PPO(
            agent,
            torch.optim.Adam(agent.model.parameters(), lr=3e-3),
            PPOSettings(n_epochs=4, n_minibatches=4, entropy_coefficient=1e-3),
            rng=np.random.default_rng(0),
        )
        numbers = []
        for _ in range(n_batches):
            batch, _ = sampler.collect_batch()
            for transform in (EstimateAdvantage(), NormalizeAdvantage()):
                batch = transform(batch)
            numbers.append(ppo.optimize(batch))
        return numbers, agent


@each_schedule
@pytest.mark.parametrize("kind", all_but(KINDS, ["clipped"]))
def test_a_device_gives_the_same_numbers(schedule: str, seed: int, kind: str) -> None:
    """Nothing here ran on a GPU."""
    expected, agent = learn(kind, Drift, "local", n_batches=3)
    with simulated_cuda(schedule, seed):
        found, other = learn(kind, Drift, None, n_batches=3)
    assert found == expected
    for own, its in zip(agent.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(own, its)


# With a memory


def make_recurrent_sampler(kind: str) -> RecurrentSampler:
    torch.manual_seed(0)
    make_env = make_env_of(kind, Drift)
    cages = build_cages(make_env, B, n_workers="serial", seed=0)
    previous = PreviousInputs(cages[0].action_space)
    head = GaussianActorCritic(nn.Identity(), 2, n_features=8, policy_gain=1.0)
    model = RecurrentNetwork(Mlp(3, (6,)), Gru(6 + previous.n_features, 8), head)
    example = build_example(make_env, storage="local")
    generator = torch.Generator().manual_seed(0)
    agent = RecurrentPgAgent(
        model, KINDS[kind](2), example["observation"], generator, previous=previous
    )
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    samples["valid"] = Array((T, B), bool)
    return RecurrentSampler(cages, agent, samples)


@each_kind
def test_a_policy_of_numbers_may_have_a_memory(kind: str) -> None:
    sampler = make_recurrent_sampler(kind)
    for _ in range(3):
        batch, _ = sampler.collect_batch()
    is_over = batch["terminated"].to_torch() | batch["truncated"].to_torch()
    is_first = torch.cat([torch.zeros(1, B, dtype=torch.bool), is_over[:-1]])
    tensors = batch.to_torch()
    told = Recurrence(tensors["initial_rnn_state"], is_first, tensors["agent_info"]["previous"])
    found = sampler.agent.evaluate(tensors["observation"], tensors["action"], recurrence=told)
    kept = tensors["agent_info"]
    # float32: sums of some 20 products of about 1, in another order, through T steps.
    torch.testing.assert_close(found.value, kept["value"], rtol=0, atol=T * 2 * 20 * 2**-24)
    torch.testing.assert_close(found.log_prob, kept["log_prob"], rtol=1e-4, atol=1e-4)


@each_kind
def test_what_is_in_rows_that_are_no_transitions_changes_no_policy_of_numbers(kind: str) -> None:
    results: list[Any] = []
    for is_spoiled in (False, True):
        sampler = make_recurrent_sampler(kind)
        batch, _ = sampler.collect_batch()
        places = np.array([2, 7, 4]), np.array([0, 1, 3])
        batch["valid"][places] = False
        for transform in (EstimateAdvantage(), NormalizeAdvantage()):
            batch = transform(batch)
        if is_spoiled:
            info = batch["agent_info"]
            for leaf in (batch["observation"], batch["action"], info["previous"]):
                leaf[places] = np.nan
            info["log_prob"][places] = np.nan
        optimizer = torch.optim.SGD(sampler.agent.model.parameters(), lr=0.1)
        settings = PPOSettings(n_minibatches=2, entropy_coefficient=0.1)
        ppo = PPO(sampler.agent, optimizer, settings, rng=np.random.default_rng(0))
        results.append(ppo.optimize(batch))
        results.append([each.tolist() for each in sampler.agent.model.parameters()])
    assert results[:2] == results[2:]


@pytest.mark.long
@each_kind
def test_ppo_learns_to_point(kind: str) -> None:
    _, agent = learn(kind, Pointing, "local", n_batches=60, T=64)
    cages = build_cages(make_env_of(kind, Pointing), 16, n_workers="serial", seed=1)
    evaluation = EvalSampler(cages, agent, n_episodes=64, seed=1, storage="local")
    score = np.mean([each.episode_return for each in evaluation.collect_episodes()])
    assert score > -0.5  # at first -2.6, of a plain Gaussian, whose means are 0, -4.1

"""SAC against its formulas in double precision; what it refuses; and that it learns."""

import copy
import math
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continuous_envs import HIGH, LOW, Drift, Pointing, PointingAtPixels
from long_run import all_but_first
from parllel import ArrayDict, default_storage
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import Prefetcher, PrioritizedReplayBuffer, RandomShift, ReplayBuffer
from parllel.runners import load_run, save_run
from parllel.samplers import BasicSampler, EvalSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import QPgAgent
from parllel.torch.algos import SAC, SACSettings
from parllel.torch.distributions import SquashedGaussian
from parllel.torch.models import FrameConv, SoftActorCritic
from replay_world import World, fill_replay, weights
from schedules import each_schedule

K, SIZE = 2, 64


def make_world(
    stack: ExitStack,
    *,
    storage: str | None = "local",
    has_encoder: bool = False,
    n_critics: int = 2,
    **replay: Any,
) -> World[QPgAgent]:
    torch.manual_seed(0)
    example = build_example(Drift, storage=storage)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()) if has_encoder else None
    n_features = 4 if has_encoder else 3
    model = SoftActorCritic(n_features, K, (8,), encoder=encoder, n_critics=n_critics)
    with torch.no_grad():
        model.policy[-1].layer.weight.normal_()  # so that policies differ from state to state
    generator = torch.Generator().manual_seed(0)
    agent = QPgAgent(model, SquashedGaussian(K), example["observation"], generator)
    return fill_replay(stack, Drift, agent, example, **replay)


def make_sac(world: World[QPgAgent], *, lr: float = 0.1, **settings: Any) -> SAC:
    optimizer = torch.optim.SGD(world.agent.model.parameters(), lr=lr)
    numbers = {"batch_size": SIZE, **settings}
    return SAC(world.agent, world.replay, optimizer, SACSettings(**numbers))


def make_with_adam(world: World[QPgAgent]) -> SAC:
    optimizer = torch.optim.Adam(world.agent.model.parameters(), lr=0.1)
    settings = SACSettings(batch_size=SIZE, learning_rate=linear(0.1, 0.0), temperature_rate=0.1)
    return SAC(world.agent, world.replay, optimizer, settings)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, each in expected.items():
            assert_same(found[name], each)
    else:
        assert found == expected


BROKEN = {
    "target": {"w": torch.ones(1)},
    "optimizer": {"state": {}, "param_groups": []},
    "progress": "half",
    "log_temperature": torch.zeros(2),
    "temperature_optimizer": {"state": {}, "param_groups": []},
}


@pytest.mark.parametrize("name", [*BROKEN, "n_updates"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_a_state_that_is_refused_changes_nothing(
    stack: ExitStack, name: str, is_missing: bool
) -> None:
    world, twin = (make_world(stack) for _ in range(2))
    sac, other = make_with_adam(world), make_with_adam(twin)
    sac.optimize(world.replay.samples)
    other.set_progress(0.5)
    for _ in range(2):
        other.optimize(twin.replay.samples)
    before = copy.deepcopy(sac.state_dict())
    state = {**other.state_dict(), **({} if is_missing else {name: BROKEN.get(name, "two")})}
    if is_missing:
        del state[name]
    with pytest.raises((KeyError, RuntimeError, TypeError, ValueError)):
        sac.load_state_dict(state)
    assert_same(sac.state_dict(), before)


def test_an_interrupt_of_a_load_changes_nothing(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, twin = (make_world(stack) for _ in range(2))
    sac, other = make_with_adam(world), make_with_adam(twin)
    other.optimize(twin.replay.samples)
    before, state = copy.deepcopy(sac.state_dict()), other.state_dict()
    load_optimizer, n_loads = sac._descent.load_state_dict, 0

    def interrupt_once(own: Any) -> None:
        nonlocal n_loads
        n_loads += 1
        if n_loads == 1:  # after the target and the temperature were loaded
            raise KeyboardInterrupt
        load_optimizer(own)

    monkeypatch.setattr(sac._descent, "load_state_dict", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        sac.load_state_dict(state)
    assert n_loads == 2
    assert_same(sac.state_dict(), before)


def test_a_state_that_was_loaded_is_not_changed_by_updates(stack: ExitStack) -> None:
    """Torch's optimizers go on with the tensors that they are given."""
    world, twin = (make_world(stack) for _ in range(2))
    sac, other = make_with_adam(world), make_with_adam(twin)
    sac.optimize(world.replay.samples)
    state = sac.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    other.optimize(twin.replay.samples)
    assert_same(sac.state_dict(), before)


# The formulas, in double precision, with torch's gradients and nothing of parllel


class ByHand:
    """One update of SAC by the paper's equations, of networks with one hidden layer."""

    def __init__(self, model: nn.Module, target: dict[str, Tensor], temperature: float) -> None:
        self.own = {
            name: each.detach().double().clone().requires_grad_()
            for name, each in model.named_parameters()
        }
        self.target = {name: each.double() for name, each in target.items()}
        self.temperature = temperature

    def features(self, rows: Tensor) -> Tensor:
        if "encoding.encoder.0.weight" not in self.own:
            return rows
        weight, bias = (self.own[f"encoding.encoder.0.{name}"] for name in ("weight", "bias"))
        return torch.tanh(rows @ weight.T + bias)

    def draw(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        own = self.own
        hidden = features @ own["policy.0.layers.0.weight"].T + own["policy.0.layers.0.bias"]
        outputs = hidden.relu() @ own["policy.1.layer.weight"].T + own["policy.1.layer.bias"]
        mean, raw = outputs.split(K, dim=-1)
        std = (-5 + 7 / (1 + (-raw).exp())).exp()
        action = torch.tanh(mean + std * noise)
        density = torch.distributions.Normal(mean, std).log_prob(mean + std * noise)
        return action, (density - torch.log(1 - action**2)).sum(-1)

    def values(self, parameters: dict[str, Tensor], features: Tensor, action: Tensor) -> Tensor:
        rows, prefix = torch.cat([features, action], -1), ""
        if "critic.weights.0" in parameters:
            prefix = "critic."
        weights_0, biases_0, weights_1, biases_1 = (
            parameters[f"{prefix}{name}.{i}"] for i in (0, 1) for name in ("weights", "biases")
        )
        found = [
            ((rows @ weights_0[i] + biases_0[i]).relu() @ weights_1[i] + biases_1[i])[:, 0]
            for i in range(len(weights_0))
        ]
        return torch.stack(found)

    def descend(self, loss: Tensor, lr: float, *, is_policy: bool) -> None:
        learning = {
            name: each for name, each in self.own.items() if name.startswith("policy") == is_policy
        }
        slopes = torch.autograd.grad(loss, list(learning.values()))
        for (name, each), slope in zip(learning.items(), slopes, strict=True):
            self.own[name] = (each - lr * slope).detach().requires_grad_()

    def update(
        self, minibatch: ArrayDict, noises: tuple[Tensor, Tensor], lr: float
    ) -> dict[str, Any]:
        rows = {
            name: minibatch[name].double()
            for name in ("observation", "action", "next_observation", "n_step_return")
        }
        ends = minibatch["terminated"]
        discount = minibatch["n_step_discount"].double()
        weight = minibatch["weight"].double() if "weight" in minibatch else torch.ones(SIZE)
        low, high = torch.from_numpy(LOW).double(), torch.from_numpy(HIGH).double()
        action = 2 * (rows["action"] - low) / (high - low) - 1
        with torch.no_grad():
            following = self.features(rows["next_observation"])
            next_action, log_prob = self.draw(following, noises[0])
            next_value = self.values(self.target, following, next_action).min(0).values
            rest = discount * (next_value - self.temperature * log_prob)
            target = rows["n_step_return"] + torch.where(ends, 0, rest)
        features = self.features(rows["observation"])
        errors = self.values(self.own, features, action) - target
        critic_loss = (weight * 0.5 * (errors**2).sum(0)).mean()
        self.descend(critic_loss, lr, is_policy=False)
        new_action, log_prob = self.draw(features.detach(), noises[1])
        value = self.values(self.own, features.detach(), new_action).min(0).values
        policy_loss = (weight * (self.temperature * log_prob - value)).mean()
        self.descend(policy_loss, lr, is_policy=True)
        return {
            "critic_loss": critic_loss.item(),
            "policy_loss": policy_loss.item(),
            "entropy": -log_prob.mean().item(),
            "td_error": errors.abs().mean().item(),
            "value": (errors + target).mean().item(),
            "errors": errors.abs().mean(0).detach(),
            "log_prob": log_prob.detach(),
        }


@pytest.mark.parametrize("has_encoder", [False, True])
@pytest.mark.parametrize(
    ("n_critics", "n_steps", "kind"),
    all_but_first([(2, 2, PrioritizedReplayBuffer), (1, 3, ReplayBuffer), (2, 1, ReplayBuffer)]),
)
def test_an_update_is_that_of_the_formulas(
    stack: ExitStack, has_encoder: bool, n_critics: int, n_steps: int, kind: Any
) -> None:
    chosen: dict[str, Any] = {"kind": kind, "n_steps": n_steps, "n_critics": n_critics}
    world, twin = (make_world(stack, **chosen, has_encoder=has_encoder) for _ in range(2))
    sac = make_sac(world, lr=0.05, temperature=0.3, learns_temperature=False)
    torch.manual_seed(1)
    target = {name: torch.randn_like(each) for name, each in sac.state_dict()["target"].items()}
    sac.load_state_dict({**sac.state_dict(), "target": target})
    share, model = 0.005, world.agent.model
    for _ in range(2):  # the second minibatch of a prioritized buffer has unequal weights
        target = {name: each.clone() for name, each in sac.state_dict()["target"].items()}
        by_hand = ByHand(model, target, 0.3)
        generator = torch.Generator()
        generator.set_state(world.agent.generator.get_state())
        noises = [torch.empty(SIZE, K).normal_(generator=generator).double() for _ in range(2)]
        numbers = sac.optimize(world.replay.samples)
        minibatch = twin.replay.sample(SIZE)
        assert 0 < minibatch["terminated"].float().mean() < 1
        assert ((minibatch["action"] > 7) == torch.tensor([False, True])).all()
        expected = by_hand.update(minibatch, (noises[0], noises[1]), 0.05)
        for name in ("critic_loss", "policy_loss", "entropy", "td_error", "value"):
            assert numbers[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
        assert numbers["temperature"] == pytest.approx(0.3)
        for name, parameter in model.named_parameters():
            found = by_hand.own[name].detach()
            torch.testing.assert_close(parameter.detach().double(), found, rtol=1e-4, atol=1e-5)
        for name, each in sac.state_dict()["target"].items():
            own = model.critic.state_dict()[name]
            moved = (1 - share) * target[name] + share * own
            torch.testing.assert_close(each, moved, rtol=1e-5, atol=1e-6)
        if isinstance(twin.replay, PrioritizedReplayBuffer):
            twin.replay.update_priorities(minibatch["index"], expected["errors"].float())
    if kind is PrioritizedReplayBuffer:
        assert minibatch["weight"].unique().numel() > 2


class Constant:
    """An agent whose critics estimate 10 of all, and whose log-probability is 2."""

    def __init__(self) -> None:
        policy, critic = nn.Linear(1, 1), nn.Linear(1, 1)
        self.model = nn.ModuleDict({"policy": policy, "critic": critic})
        nn.init.zeros_(critic.weight)
        nn.init.constant_(critic.bias, 10)

    def encode(self, observation: Any) -> Tensor:
        return torch.zeros(len(observation), 1)

    def own_action(self, action: Tensor) -> Tensor:
        return torch.zeros(len(action), 1)

    def draw_action(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * self.model["policy"](features), 2 + 0 * self.model["policy"](features)[:, 0]

    def action_values(self, features: Tensor, action: Tensor, *, critic: Any = None) -> Tensor:
        return (critic or self.model["critic"])(features).T


@pytest.mark.parametrize(
    ("ends", "error"),
    # reward 1, and with a temperature of 0.5 a value of 10 - 0.5 * 2 = 9 after it: 10 against it
    [((False, True), abs(10 - (1 + 0.9 * 9))), ((True, False), 9.0), ((True, True), 9.0)],
)
def test_termination_alone_cuts_the_bootstrap(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, ends: tuple[bool, bool], error: float
) -> None:
    class Ending(Drift):
        def step(self, action: Any) -> Any:
            observation, *_ = super().step(action)
            return observation, 1.0, *ends, {}

    monkeypatch.setitem(make_world.__globals__, "Drift", Ending)
    world = make_world(stack, discount=0.9)
    agent = Constant()
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=1e-3)
    settings = SACSettings(temperature=0.5, batch_size=SIZE)
    numbers = SAC(agent, world.replay, optimizer, settings).optimize(world.replay.samples)
    assert numbers["td_error"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("target_entropy", [None, 5.0, -50.0])
def test_the_temperature_keeps_up_the_entropy(
    stack: ExitStack, target_entropy: float | None
) -> None:
    world = make_world(stack)
    rate = 0.01
    settings = {"temperature_rate": rate, "target_entropy": target_entropy}
    sac = make_sac(world, lr=1e-9, temperature=0.2, **settings)
    before = copy.deepcopy(sac.state_dict()["log_temperature"])
    assert before.item() == pytest.approx(math.log(0.2), rel=1e-6)
    numbers = sac.optimize(world.replay.samples)
    wanted = -K if target_entropy is None else target_entropy
    # The first step of Adam is its rate, against the sign of the slope.
    moved = sac.state_dict()["log_temperature"] - before
    assert moved.item() == pytest.approx(rate if numbers["entropy"] < wanted else -rate, rel=1e-4)
    slope = sac._log_temperature.grad  # of -alpha * (log pi + wanted)
    assert slope.item() == pytest.approx(0.2 * (numbers["entropy"] - wanted), rel=1e-4)


def test_targets_follow_in_their_period(stack: ExitStack) -> None:
    world = make_world(stack)
    sac = make_sac(world, target_period=3, target_share=1.0)
    before = weights(world.agent.model.critic)
    for number in range(1, 7):
        sac.optimize(world.replay.samples)
        found = torch.cat([each.flatten() for each in sac.state_dict()["target"].values()])
        if number % 3 == 0:
            before = weights(world.agent.model.critic)
        assert torch.equal(found, before)


def test_gradients_are_cut_down_each(stack: ExitStack) -> None:
    world = make_world(stack)
    critic, policy = world.agent.model.critic, world.agent.model.policy
    before = weights(critic), weights(policy)
    make_sac(world, lr=1.0, max_grad_norm=1e-3).optimize(world.replay.samples)
    for part, former in zip((critic, policy), before, strict=True):
        moved = float((weights(part) - former).norm())
        assert moved == pytest.approx(1e-3, rel=2e-2)


def test_schedules_set_rate_and_weights(stack: ExitStack) -> None:
    world = make_world(stack, kind=PrioritizedReplayBuffer)
    rates = {"learning_rate": linear(0.2, 0.0), "temperature_rate": linear(0.1, 0.3)}
    sac = make_sac(world, **rates, beta=linear(0.4, 1.0))
    assert isinstance(world.replay, PrioritizedReplayBuffer)
    sac.set_progress(0.5)
    assert world.replay.beta == pytest.approx(0.7)
    assert sac.optimize(world.replay.samples)["learning_rate"] == pytest.approx(0.1)
    moved = sac.state_dict()["log_temperature"].abs().item()  # the first step of Adam is its rate
    assert moved == pytest.approx(0.2, rel=1e-4)


def test_a_temperature_that_is_not_learned_may_have_a_schedule(stack: ExitStack) -> None:
    world = make_world(stack)
    sac = make_sac(world, lr=0.01, temperature=linear(0.5, 0.0), learns_temperature=False)
    for progress, expected in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):
        sac.set_progress(progress)
        numbers = sac.optimize(world.replay.samples)
        assert numbers["temperature"] == pytest.approx(expected, rel=1e-5)
        assert all(math.isfinite(number) for number in numbers.values())
    with pytest.raises(TypeError, match="temperature: got linear"):
        SACSettings(temperature=linear(0.5, 0.0))


def test_a_prefetcher_gives_the_same_updates(stack: ExitStack) -> None:
    results = []
    settings = SACSettings(batch_size=16, n_updates=4)
    for has_prefetcher in (False, True):
        world = make_world(stack)
        prefetcher = Prefetcher(world.replay, 16) if has_prefetcher else None
        optimizer = torch.optim.SGD(world.agent.model.parameters(), lr=0.1)
        sac = SAC(world.agent, world.replay, optimizer, settings, prefetcher=prefetcher)
        results.append((sac.optimize(world.replay.samples), weights(world.agent.model)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    wrong = SAC(
        world.agent, world.replay, optimizer, SACSettings(batch_size=8), prefetcher=prefetcher
    )
    with pytest.raises(ValueError, match=r"prefetcher: got a minibatch of 16 .* expected 8"):
        wrong.optimize(world.replay.samples)


def test_modes_are_put_back_and_targets_have_no_gradients(stack: ExitStack) -> None:
    world = make_world(stack)
    sac = make_sac(world)
    world.agent.model.eval()
    sac.optimize(world.replay.samples)
    assert not world.agent.model.training
    assert all(each.requires_grad for each in world.agent.model.parameters())
    assert not any(each.requires_grad for each in sac._target.model.parameters())


@pytest.mark.parametrize("part", ["policy", "critic"])
def test_a_number_that_is_not_finite_ends_the_batch_before_its_step(
    stack: ExitStack, part: str
) -> None:
    world = make_world(stack)
    sac = make_sac(world)
    model = world.agent.model
    with torch.no_grad():
        next(getattr(model, part).parameters())[0, 0] = torch.nan
    before = weights(model)
    with pytest.raises(ValueError, match=f"the model's parameter {part}.* is not, and all"):
        sac.optimize(world.replay.samples)
    assert torch.equal(weights(model).nan_to_num(), before.nan_to_num())
    assert all(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_it_goes_on_from_a_saved_run_bit_for_bit(
    stack: ExitStack, kind: type[ReplayBuffer], tmp_path: Path
) -> None:
    def make() -> tuple[World[QPgAgent], SAC]:
        world = make_world(stack, kind=kind)
        optimizer = torch.optim.Adam(world.agent.model.parameters(), lr=0.1)
        settings = SACSettings(
            batch_size=16, n_updates=3, target_period=4, learning_rate=linear(0.1, 0.0)
        )
        return world, SAC(world.agent, world.replay, optimizer, settings)

    (world, sac), (other, resumed) = make(), make()
    for number in range(2):
        sac.set_progress(number / 4)
        sac.optimize(world.replay.samples)
    save_run(tmp_path, agent=world.agent, sac=sac, replay=world.replay)
    load_run(tmp_path, agent=other.agent, sac=resumed, replay=other.replay)
    for each in (sac, resumed):
        each.set_progress(0.5)
    results = [each.optimize(each_world.replay.samples)
               for each, each_world in ((sac, world), (resumed, other))]  # fmt: skip
    assert results[0] == results[1]
    assert results[0]["n_updates"] == 9
    assert torch.equal(weights(world.agent.model), weights(other.agent.model))
    again = [each.optimize(each_world.replay.samples)["temperature"]
             for each, each_world in ((sac, world), (resumed, other))]  # fmt: skip
    assert again[0] == again[1] != 1.0
    rows = torch.randn(50, 3)
    assert torch.equal(world.agent.step(rows)[0], other.agent.step(rows)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"n_updates": 0},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"learns_temperature": 1},
        {"target_entropy": math.nan},
        {"temperature_rate": 0},
        {"temperature_rate": linear(0.1, -0.1)},
        {"target_period": 0},
        {"target_share": 0.0},
        {"target_share": 1.5},
        {"max_grad_norm": 0},
        {"beta": linear(0.4, -1.0)},
        {"learning_rate": float("nan")},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises((TypeError, ValueError), match=f"{name}: got"):
        SACSettings(**wrong)


def test_what_it_can_not_work_with_is_refused(stack: ExitStack) -> None:
    world = make_world(stack)
    model = world.agent.model
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="beta: got one for a buffer without priorities"):
        SAC(world.agent, world.replay, optimizer, SACSettings(beta=0.5))
    sequences: Any = SimpleNamespace(burn_in=2)
    with pytest.raises(ValueError, match="replay: got a SimpleNamespace, which draws sequences"):
        SAC(world.agent, sequences, optimizer)
    with pytest.raises(TypeError, match="agent: Linear has no encode and no own_action"):
        SAC(nn.Linear(1, 1), world.replay, optimizer)  # type: ignore[arg-type]
    other = stack.enter_context(Prefetcher(make_world(stack).replay, 32))
    with pytest.raises(ValueError, match="prefetcher: it draws from another buffer than replay"):
        SAC(world.agent, world.replay, optimizer, prefetcher=other)
    some = torch.optim.SGD(model.policy.parameters())
    with pytest.raises(ValueError, match=r"optimizer: it has no parameter critic\.weights\.0 of"):
        SAC(world.agent, world.replay, some)
    model.critic.requires_grad_(False)
    SAC(world.agent, world.replay, some)
    agent = Constant()
    agent.model = nn.ModuleDict({"policy": nn.Linear(1, 1)})
    with pytest.raises(TypeError, match=r"model\.critic: got a NoneType, expected a torch\.nn"):
        SAC(agent, world.replay, optimizer)


def test_values_that_only_broadcast_are_refused(stack: ExitStack) -> None:
    world = make_world(stack)
    for name, wrong in (
        ("action_values", lambda *_, **__: torch.zeros(SIZE, requires_grad=True)),
        ("draw_action", lambda features: (torch.zeros(len(features), 1), torch.zeros(SIZE, 1))),
    ):
        agent = Constant()
        setattr(agent, name, wrong)
        optimizer = torch.optim.SGD(agent.model.parameters())
        sac = SAC(agent, world.replay, optimizer, SACSettings(batch_size=SIZE))
        with pytest.raises(ValueError, match="action_values: got"):
            sac.optimize(world.replay.samples)


@each_schedule
@pytest.mark.parametrize("kind", all_but_first([PrioritizedReplayBuffer, ReplayBuffer]))
def test_a_device_gives_the_same_numbers(schedule: str, seed: int, kind: Any) -> None:
    """Nothing here ran on a GPU."""

    def learn(storage: str | None) -> tuple[Any, Any]:
        with ExitStack() as stack:
            world = make_world(
                stack, kind=kind, storage=storage, n_batches=1, n_steps=2, has_encoder=True
            )
            sac = make_sac(world, batch_size=8, n_updates=2, target_period=3)
            numbers = []
            for _ in range(4):
                batch, _ = world.sampler.collect_batch()
                numbers.append(sac.optimize(batch))
            return numbers, weights(world.agent.model).tolist()

    expected = learn("local")
    with simulated_cuda(schedule, seed) as simulation:
        assert default_storage() == "device"
        before = copy.copy(simulation.counters)
        found = learn(None)
        assert simulation.counters.since(before).device_synchronizations == 0
    assert found == expected


# Learning


class Pictures(nn.Module):
    """One convolution, and the features of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = FrameConv((1, 12, 12), 8, kernel_size=3, stride=2)
        self.dense = nn.Linear(8 * 5 * 5, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(frames)).flatten(1)
        return torch.tanh(self.norm(self.dense(hidden)))


@pytest.mark.long
@pytest.mark.parametrize("is_seen", [False, True], ids=["numbers", "pixels"])
def test_it_learns_to_point(stack: ExitStack, is_seen: bool) -> None:
    """From pixels it learns with images that are shifted at random, by an encoder (DrQ)."""
    torch.manual_seed(0)
    make_env: Any = PointingAtPixels if is_seen else Pointing
    example = build_example(make_env, storage="local")
    if is_seen:
        model = SoftActorCritic(32, 1, (32, 32), encoder=Pictures())
    else:
        model = SoftActorCritic(1, 1, (32, 32))
    agent = QPgAgent(model, SquashedGaussian(1), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(8, 8), full_size=256)
    shift = RandomShift(1) if is_seen else None
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0), shift=shift)
    (cage,) = build_cages(make_env, 8, n_workers="serial", seed=0)
    stack.enter_context(cage)
    sampler = BasicSampler([cage], agent, samples, replay=replay)
    settings = SACSettings(
        batch_size=64, n_updates=16, temperature=0.1, temperature_rate=1e-2, target_share=0.05
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    sac = SAC(agent, replay, optimizer, settings)
    eval_cages = build_cages(make_env, 16, n_workers="serial", seed=1)
    evaluation = EvalSampler(eval_cages, agent, n_episodes=64, seed=1, storage="local")

    def score() -> float:
        return float(np.mean([each.episode_return for each in evaluation.collect_episodes()]))

    before = score()
    for _ in range(40):
        batch, _ = sampler.collect_batch()
        sac.optimize(batch)
    assert before < -1.5
    assert score() > (-0.8 if is_seen else -0.4)

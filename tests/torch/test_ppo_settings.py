"""What PPO may change while it learns, and how it goes on from its state."""

import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from linear_agent import make_agent, parameters, ppo_batch
from parllel import Array, ArrayDict
from parllel.runners.state_data import from_data, to_data
from parllel.schedules import linear
from parllel.torch.agents import CategoricalPgAgent, Evaluation
from parllel.torch.algos import PPO, DQNSettings, PPOSettings

ONE_UPDATE: dict[str, Any] = {"n_epochs": 1, "n_minibatches": 1}


def make_ppo(agent: CategoricalPgAgent, lr: float = 0.1, **settings: Any) -> PPO:
    optimizer = torch.optim.Adam(agent.model.parameters(), lr=lr)
    return PPO(agent, optimizer, PPOSettings(**settings), rng=np.random.default_rng(0))


class ValueAlone:
    """An agent of one parameter for each row: its value; its policy never changes."""

    def __init__(self, value: np.ndarray) -> None:
        self.model = torch.nn.ParameterList([torch.tensor(value)])
        self.seen_progress: list[float] = []

    def evaluate(self, observation: Any, action: Any) -> Evaluation:
        value = self.model[0][observation.long()]
        zeros = value * 0
        return Evaluation(zeros, zeros, value)

    def set_progress(self, progress: float) -> None:
        self.seen_progress.append(progress)


@pytest.mark.parametrize("clip", [0.25, linear(0.0, 0.5)])
def test_value_clipping_is_that_of_the_formula(clip: Any) -> None:
    T, B = 6, 4
    rng = np.random.default_rng(0)
    value, old, return_ = (rng.standard_normal((T, B)).astype(np.float32) for _ in range(3))
    leaf = {"feature_shape": ()}
    batch = ArrayDict(
        {
            "observation": Array.from_numpy(np.arange(T * B).reshape(T, B)),
            "action": Array((T, B), np.int64, **leaf),
            "advantage": Array((T, B), np.float32),
            "return_": Array.from_numpy(return_),
            "agent_info": {
                "log_prob": Array((T, B), np.float32),
                "value": Array((T, B), np.float32, padding=1),
            },
        }
    )
    batch["agent_info"]["value"][...] = old
    agent = ValueAlone(value.ravel())
    settings = PPOSettings(**ONE_UPDATE, value_clip=clip, value_coefficient=1, max_grad_norm=1e9)
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=1.0)
    ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
    ppo.set_progress(0.5)
    assert agent.seen_progress == [0.5]
    bound = 0.25  # of the schedule at 0.5, too
    expected_loss, gradient = 0.0, np.zeros((T, B))
    for t in range(T):
        for b in range(B):
            v, o, r = (float(each[t, b]) for each in (value, old, return_))
            clipped = o + min(max(v - o, -bound), bound)
            plain_is_larger = (v - r) ** 2 >= (clipped - r) ** 2
            expected_loss += max((v - r) ** 2, (clipped - r) ** 2) / 2 / (T * B)
            is_moving = plain_is_larger or clipped == v
            gradient[t, b] = (v - r) / (T * B) if is_moving else 0.0
    assert 0 < (gradient == 0).mean() < 1
    assert ppo.optimize(batch)["value_loss"] == pytest.approx(expected_loss, rel=1e-5)
    moved = value - agent.model[0].detach().numpy().reshape(T, B)
    np.testing.assert_allclose(moved, gradient, rtol=1e-4, atol=1e-6)
    del batch["agent_info"]["value"]
    with pytest.raises(ValueError, match=r"no agent_info\.value, the value estimate .*value_clip"):
        ppo.optimize(batch)


@pytest.mark.parametrize("name", ["clip", "entropy_coefficient", "learning_rate", "value_clip"])
def test_a_schedule_learns_as_its_number_at_that_progress_does(name: str) -> None:
    results = []
    for setting in (linear(0.4, 0.0), 0.1, 0.2):
        agent = make_agent()
        batch = ppo_batch(agent, off_policy=0.3)
        batch["agent_info"]["value"] = Array(batch["return_"].shape, np.float32)
        # Adam's first step has the same length for all gradients of the same signs.
        optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
        settings = PPOSettings(**ONE_UPDATE, **{name: setting})
        ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
        if callable(setting):
            ppo.set_progress(0.75)
        numbers = ppo.optimize(batch)
        results.append(parameters(agent))
        if name == "learning_rate" and setting != 0.2:
            assert numbers["learning_rate"] == pytest.approx(0.1)
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)
    assert not torch.equal(results[1], results[2])


def test_a_rate_of_the_settings_replaces_that_of_all_groups_and_else_it_stays() -> None:
    agent = make_agent()
    for rate, expected in ((None, [0.1, 0.2]), (0.3, [0.3, 0.3])):
        groups = [
            {"params": agent.model.pi.parameters(), "lr": 0.1},
            {"params": agent.model.critic.parameters(), "lr": torch.tensor(0.2)},
        ]
        optimizer = torch.optim.Adam(groups, lr=1.0)
        PPO(agent, optimizer, PPOSettings(learning_rate=rate), rng=np.random.default_rng(0))
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": linear(0.1, -0.1)},
        {"clip": lambda _: math.nan},
        {"entropy_coefficient": -0.1},
        {"entropy_coefficient": "0.1"},
        {"learning_rate": math.nan},
        {"value_clip": 0},
        {"value_coefficient": math.nan},
    ],
)
def test_settings_that_mean_nothing_are_refused_at_once(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises((TypeError, ValueError), match=f"{name}: got"):
        PPOSettings(**wrong)


@pytest.mark.parametrize(
    ("settings", "name", "value", "expected"),
    [
        (settings, name, value, expected)
        for settings, names in (
            (PPOSettings, ("value_coefficient", "max_grad_norm", "kl_limit")),
            (DQNSettings, ("target_share", "max_grad_norm")),
        )
        for name in names
        for value, expected in (
            (linear(0.5, 0.1), "a plain number"),
            (np.float32(0.5), "a plain number"),
            (Fraction(1, 2), "a plain number"),
            (Decimal("0.5"), "a plain number"),
            (True, "a plain number"),
            ("0.5", "a plain number"),
            (math.nan, "a number"),
            (-1.0, "a number"),
        )
    ]
    + [
        (settings, name, value, "a plain number or a schedule")
        for settings, names in (
            (PPOSettings, ("clip", "value_clip", "entropy_coefficient", "learning_rate")),
            (DQNSettings, ("learning_rate", "beta")),
        )
        for name in names
        for value in (np.float32(0.5), Fraction(1, 2), True, "0.5")
    ]
    + [
        (settings, name, value, "an integer of 1 or more")
        for settings, names in (
            (PPOSettings, ("n_epochs", "n_minibatches")),
            (DQNSettings, ("batch_size", "n_updates", "target_period")),
        )
        for name in names
        for value in (2.0, True, np.int64(2), linear(1, 2), "2")
    ]
    + [
        (DQNSettings, "double", 1, "True or False"),
        (PPOSettings, "clip", None, "a plain number or a schedule"),
        (PPOSettings, "value_coefficient", math.inf, "a number of 0 or more"),
    ],
)
def test_a_setting_of_another_kind_than_documented_is_refused(
    settings: Any, name: str, value: Any, expected: str
) -> None:
    error = ValueError if expected.startswith("a number") else TypeError
    with pytest.raises(error, match=re.escape(f"{name}: got {value!r}, expected {expected}")):
        settings(**{name: value})


@pytest.mark.parametrize("name", ["kl_limit", "max_grad_norm", "clip"])
@pytest.mark.parametrize("n_digits", [400, 5000])  # Python writes at most 4300
def test_an_integer_that_no_float_holds_is_refused(name: str, n_digits: int) -> None:
    size = 10**n_digits
    n_bits = size.bit_length()
    for number in (size, -size):
        with pytest.raises(ValueError, match=f"^{name}: got an integer of {n_bits} bits, expected"):
            PPOSettings(**{name: number})
    assert PPOSettings(max_grad_norm=2**1000).max_grad_norm == 2**1000
    with pytest.raises(ValueError, match="clip: got inf of its schedule at progress 0"):
        PPOSettings(clip=lambda _: size)


def test_settings_take_what_is_documented() -> None:
    ppo = PPOSettings(
        clip=1, value_clip=linear(0.2, 0), value_coefficient=0, max_grad_norm=math.inf, kl_limit=1
    )
    dqn = DQNSettings(target_share=1, beta=0, max_grad_norm=math.inf, double=False)
    assert json.loads(json.dumps([ppo.max_grad_norm, dqn.target_share])) == [math.inf, 1]
    assert PPOSettings(clip=np.float64(0.1)).clip == 0.1


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_it_goes_on_from_its_state_bit_for_bit(optimizer: Any) -> None:
    def make() -> tuple[CategoricalPgAgent, PPO]:
        agent = make_agent()
        settings = PPOSettings(learning_rate=linear(0.1, 0.0))
        descends = optimizer(agent.model.parameters(), lr=1.0)
        return agent, PPO(agent, descends, settings, rng=np.random.default_rng(0))

    agent, ppo = make()
    batches = [ppo_batch(agent, seed=seed) for seed in range(4)]
    for number, batch in enumerate(batches):
        if number == 2:
            state = [copied(ppo.state_dict()), copied(agent.state_dict())]
        ppo.set_progress(number / 4)
        ppo.optimize(batch)
    other, resumed = make()
    resumed.load_state_dict(state[0])
    other.load_state_dict(state[1])
    for number in (2, 3):
        resumed.set_progress(number / 4)
        resumed.optimize(batches[number])
    assert torch.equal(parameters(agent), parameters(other))


@pytest.mark.parametrize("name", ["rng", "optimizer", "progress"])
def test_a_state_that_lacks_a_part_changes_nothing(name: str) -> None:
    def make(seed: int) -> PPO:
        agent = make_agent()
        descends = torch.optim.SGD(agent.model.parameters(), lr=1.0, momentum=0.9)
        settings = PPOSettings(learning_rate=linear(0.1, 0.0))
        ppo = PPO(agent, descends, settings, rng=np.random.default_rng(seed))
        ppo.set_progress(seed / 2)
        ppo.optimize(ppo_batch(agent, seed=seed))
        return ppo

    ppo, state = make(0), make(1).state_dict()
    before = to_data(copied(ppo.state_dict()))
    del state[name]
    with pytest.raises(KeyError, match=name):
        ppo.load_state_dict(state)
    after = to_data(ppo.state_dict())
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    assert after[1]
    assert all(torch.equal(after[1][each], before[1][each]) for each in before[1])


def copied(state: Any) -> Any:
    """Return a copy, by way of what a checkpoint holds."""
    data, tensors = to_data(state)
    return from_data(
        json.loads(json.dumps(data)), {name: each.clone() for name, each in tensors.items()}
    )

"""An agent's actions are compared with the space of the environments when a sampler binds them."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from misfit_envs import Shown, Still
from parllel import Array, ArrayDict
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.samplers import BasicSampler
from parllel.samplers.action_check import ActionCheck
from parllel.torch.agents.categorical import CategoricalPgAgent, DistParams, ModelOutputs
from parllel.torch.distributions.categorical import Categorical
from parllel.transforms import EstimateAdvantage

SPACE = spaces.Box(-1, 1, (2,), np.float32)
B = 3


class Takes(Shown):
    """Note the actions that come in."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(SPACE, [np.zeros(2, np.float32)])
        self.action_space = action_space
        self.seen: list[Any] = []

    def step(self, action: Any) -> Any:
        self.seen.append(action)
        return super().step(action)


def sampler_of(
    space: spaces.Space[Any], action: Any, *, check: bool = False, agent: Any = None
) -> tuple[BasicSampler, list[Takes]]:
    envs: list[Takes] = []

    def make_env() -> Takes:
        envs.append(Takes(space))
        return envs[-1]

    example = build_example(lambda: Takes(space), storage="local")
    agent = Still(action) if agent is None else agent
    samples = build_sample_tree(example, agent, batch_shape=(4, B))
    cage = SerialCage(make_env, n_envs=B, seed=0)
    return BasicSampler([cage], agent, samples, check=check), envs


BOX = spaces.Box(-1, 1, (2,), np.float32)
WRONG: dict[str, tuple[spaces.Space[Any], Any]] = {
    "one number for all": (spaces.Discrete(3), 1),
    "(1,) for all": (spaces.Discrete(3), np.array([1])),
    "(B, 1) for (B,)": (spaces.Discrete(3), np.zeros((B, 1), np.int64)),
    "(B,) for (B, k)": (BOX, np.zeros(B, np.float32)),
    "(k,) for (B, k)": (BOX, np.zeros(2, np.float32)),
    "floats for Discrete": (spaces.Discrete(3), np.array([0.2, 1.0, 2.0])),
    "a tensor of floats": (spaces.Discrete(3), torch.ones(B)),
    "counted from 0": (spaces.Discrete(3, start=5), np.arange(B)),
    "counted from 0, some": (spaces.MultiDiscrete([3, 3], start=[0, 4]), np.ones((B, 2), int)),
    "3 of 3": (spaces.Discrete(3), np.array([0, 2, 3])),
    "-1": (spaces.Discrete(3), np.array([0, -1, 2])),
    "2 for a flag": (spaces.MultiBinary(2), np.full((B, 2), 2)),
    "3 of 3, some": (spaces.MultiDiscrete([4, 3]), np.full((B, 2), 3)),
    "300 for uint8": (spaces.Box(0, 255, (2,), np.uint8), np.full((B, 2), 300)),
    "-1 for uint8": (spaces.Box(0, 255, (2,), np.uint8), np.full((B, 2), -1)),
    "a tuple of rows": (spaces.Discrete(3), (0, 1, 2)),
    "a tuple of parts": (spaces.Tuple([spaces.Discrete(3)] * 2), (np.zeros(B, int),) * 2),
    "a tuple in a tree": (
        spaces.Dict({"a": spaces.Tuple([spaces.Discrete(3)])}),
        {"a": (np.zeros(B, int),)},
    ),
    "NaN": (BOX, np.full((B, 2), np.nan, np.float32)),
    "complex": (BOX, np.zeros((B, 2), np.complex64)),
    "text": (spaces.Discrete(3), np.array(["0", "1", "2"])),
    "a tree for a leaf": (spaces.Discrete(3), {"a": np.zeros(B, int)}),
    "a leaf for a tree": (spaces.Dict({"a": spaces.Discrete(3)}), np.zeros(B, int)),
    "another key": (spaces.Dict({"a": spaces.Discrete(3)}), {"b": np.zeros(B, int)}),
}


@pytest.mark.parametrize(("space", "action"), WRONG.values(), ids=WRONG)
def test_a_first_action_that_does_not_fit_is_refused(space: Any, action: Any) -> None:
    sampler, envs = sampler_of(space, action)
    with pytest.raises((TypeError, ValueError), match=r"action.*expected"):
        sampler.collect_batch()
    assert not any(env.seen for env in envs)


def test_fractions_beyond_a_box_are_left_to_environments_unless_checked() -> None:
    action = np.full((B, 2), 1.5, np.float32)
    sampler, envs = sampler_of(BOX, action)  # they clip, or raise themselves
    sampler.collect_batch()
    assert all((seen == 1.5).all() for env in envs for seen in env.seen)
    with pytest.raises(ValueError, match="for environment 0 of the agent's action"):
        sampler_of(BOX, action, check=True)[0].collect_batch()


def test_members_of_a_tuple_are_given_by_their_numbers() -> None:
    space = spaces.Tuple([spaces.Discrete(3), BOX])
    action = {"0": np.arange(B), "1": np.full((B, 2), 0.5, np.float32)}
    sampler, envs = sampler_of(space, action, check=True)
    sampler.collect_batch()
    assert [int(env.seen[-1][0]) for env in envs] == [0, 1, 2]
    assert all((env.seen[-1][1] == 0.5).all() for env in envs)


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (BOX, np.full((B, 2), 1.5, np.float32)),
        (spaces.Discrete(3), np.full(B, 3)),
        (spaces.MultiBinary(2), np.full((B, 2), 2)),
    ],
)
def test_with_check_each_action_has_to_lie_in_the_space(space: Any, action: Any) -> None:
    later = np.zeros_like(action)
    sampler, _ = sampler_of(space, later, check=True)
    sampler.collect_batch()
    later[...] = action
    with pytest.raises(ValueError, match="for environment 0 of the agent's action"):
        sampler.collect_batch()


def test_a_bound_that_was_rounded_to_32_bits_is_within_and_sent_as_it_is() -> None:
    space = spaces.Box(-0.1, 0.1, (2,), np.float64)
    rounded = np.full((B, 2), 0.1, np.float32)
    assert float(rounded[0, 0]) > 0.1
    sampler, envs = sampler_of(space, rounded, check=True)
    sampler.collect_batch()
    assert all(space.contains(action) for env in envs for action in env.seen)


@pytest.mark.parametrize(
    ("space", "leaf"),
    [
        (spaces.Discrete(3), Array((4, B), np.float32, storage="local")),
        (spaces.Discrete(300), Array((4, B), np.int8, storage="local")),
        (BOX, Array((4, B), np.float32, storage="local")),
        (BOX, Array((4, B), np.int32, feature_shape=(2,), storage="local")),
        (spaces.Dict({"a": BOX}), ArrayDict({"b": Array((4, B), np.float32, storage="local")})),
    ],
)
def test_a_tree_that_can_not_hold_the_actions_is_refused(space: Any, leaf: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"action.*expected"):
        ActionCheck(space, B).check_rows(leaf)


def test_cages_of_one_sampler_have_one_action_space() -> None:
    sampler, _ = sampler_of(spaces.Discrete(3), np.zeros(B, int))
    cages = [SerialCage(lambda: Takes(spaces.Discrete(3)), n_envs=2)]
    cages.append(SerialCage(lambda: Takes(spaces.Discrete(2))))
    with pytest.raises(ValueError, match="cages: got the action spaces"):
        BasicSampler(cages, Still(), sampler.samples)


class Model(torch.nn.Linear):
    def forward(self, observation: torch.Tensor) -> ModelOutputs:
        logits, value = super().forward(observation).split([3, 1], dim=-1)
        return ModelOutputs(DistParams(logits=logits), value.squeeze(-1))


def test_a_categorical_agent_counts_from_the_start_of_the_space() -> None:
    agent = CategoricalPgAgent(Model(2, 4), Categorical(dim=3), torch.zeros(1, 2))
    sampler, envs = sampler_of(spaces.Discrete(3, start=5), None, agent=agent, check=True)
    batch, _ = sampler.collect_batch()
    assert {int(action) for env in envs for action in env.seen} <= {5, 6, 7}
    EstimateAdvantage()(batch)
    rows = batch["observation"].to_torch().flatten(0, 1)
    found = agent.evaluate(rows, batch["action"].to_torch().flatten()).log_prob
    torch.testing.assert_close(found, batch["agent_info"]["log_prob"].to_torch().flatten())


class MaskingModel(Model):
    """A model that never takes the last action."""

    def forward(self, observation: torch.Tensor) -> ModelOutputs:
        dist_params, value = super().forward(observation)
        last = torch.tensor([False, False, True])
        return ModelOutputs(
            DistParams(logits=dist_params.logits.masked_fill(last, -torch.inf)), value
        )


class MaskingProbs(MaskingModel):
    """The same, by probabilities."""

    def forward(self, observation: torch.Tensor) -> ModelOutputs:
        dist_params, value = super().forward(observation)
        return ModelOutputs(DistParams(probs=dist_params.logits.softmax(-1)), value)


@pytest.mark.parametrize("model", [MaskingModel, MaskingProbs])
def test_a_categorical_agent_may_have_more_actions_if_they_are_masked(model: Any) -> None:
    agent = CategoricalPgAgent(model(2, 4), Categorical(dim=3), torch.zeros(1, 2))
    sampler, envs = sampler_of(spaces.Discrete(2), None, agent=agent, check=True)
    sampler.collect_batch()
    assert {int(action) for env in envs for action in env.seen} <= {0, 1}
    with pytest.raises(ValueError, match="action space: got"):
        agent.bind_actions(spaces.Discrete(1))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.Discrete(2), BOX])
def test_a_categorical_agent_refuses_other_spaces(space: spaces.Space[Any]) -> None:
    agent = CategoricalPgAgent(Model(2, 4), Categorical(dim=3), torch.zeros(1, 2))
    with pytest.raises((TypeError, ValueError), match="action space: got"):
        agent.bind_actions(space)

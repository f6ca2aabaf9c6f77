"""Agents of action values, of several choices, and of environments that tell what is allowed."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor, nn

from long_run import all_but_first
from parllel import default_storage
from parllel.cages import Cage, MaskInObservation, ProcessCage, SerialCage, VectorCage
from parllel.cages.values.spaces import sample_action
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import Agent, CategoricalPgAgent, ModelOutputs, PgAgent, QAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams, MultiCategorical
from parllel.transforms import EstimateAdvantage
from schedules import each_schedule

T, B = 6, 3


class Allowing(gym.Env[Any, Any]):
    """Allow some actions at random, tell them in the info, and pay 1 where one of them is taken."""

    observation_space = spaces.Box(-1, 1, (2,))

    def __init__(self, space: spaces.Space[Any], nvec: list[int]) -> None:
        self.action_space, self._nvec = space, nvec

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._tell()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        start = getattr(self.action_space, "start", 0)
        chosen = np.atleast_1d(action - start)
        places = [*np.cumsum([0, *self._nvec])[:-1] + chosen]
        reward = float(self._mask[places].all())
        observation, info = self._tell()
        return observation, reward, False, bool(self.np_random.random() < 0.2), info

    def _tell(self) -> tuple[Any, dict[str, Any]]:
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self._mask = self.np_random.random(sum(self._nvec)) < 0.5
        for begin, count in zip(np.cumsum([0, *self._nvec]), self._nvec, strict=False):
            self._mask[begin + self.np_random.integers(count)] = True
        return observation, {"action_mask": self._mask, "other": 1.0}


class Inner(nn.Module):
    """A model that reads the tree's leaf `observation`."""

    def __init__(self, n_actions: int, *, has_value: bool = True) -> None:
        super().__init__()
        self.layer, self.has_value = nn.Linear(2, n_actions + 1), has_value

    def forward(self, rows: Any) -> Any:
        outputs = self.layer(rows["observation"])
        if not self.has_value:
            return outputs[:, :-1]
        return ModelOutputs(DistParams(logits=outputs[:, :-1]), outputs[:, -1])


SPACES: dict[str, tuple[spaces.Space[Any], list[int]]] = {
    "discrete": (spaces.Discrete(4, start=3), [4]),
    "multi": (spaces.MultiDiscrete([3, 2], start=[1, 0]), [3, 2]),
    "binary": (spaces.MultiBinary(3), [2, 2, 2]),
    "values": (spaces.Discrete(4, start=-1), [4]),
}


def make_agent(name: str, observation: Any) -> Agent[Any]:
    nvec = SPACES[name][1]
    torch.manual_seed(0)
    model = Inner(sum(nvec), has_value=name != "values")
    if name == "values":
        return QAgent(model, observation, epsilon=0.5)
    if name == "discrete":
        return CategoricalPgAgent(model, Categorical(4), observation)
    return PgAgent(model, MultiCategorical(nvec), observation)


@pytest.mark.parametrize("name", SPACES)
def test_masked_environments_are_sampled_and_learned_from(name: str) -> None:
    def make_env() -> gym.Env[Any, Any]:
        return MaskInObservation(Allowing(*SPACES[name]))

    example = build_example(make_env, storage="local")
    agent = make_agent(name, example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B))
    cages = build_cages(make_env, B, n_workers="serial", seed=0)
    sampler = BasicSampler(cages, agent, samples, check=True)
    for _ in range(3):
        batch, _ = sampler.collect_batch()
        assert (batch["reward"].to_ndarray() == 1).all()
    assert set(batch["observation"]) == {"observation", "action_mask"}
    assert set(batch["env_info"]) == {"other"}
    rows = batch["observation"].to_torch().apply(lambda leaf: leaf.flatten(0, 1))
    action = batch["action"].to_torch().flatten(0, 1)
    if isinstance(agent, PgAgent):
        evaluation = agent.evaluate(rows, action)
        log_prob = batch["agent_info"]["log_prob"].to_torch().flatten()
        torch.testing.assert_close(evaluation.log_prob, log_prob)
        assert evaluation.entropy.isfinite().all()
        (evaluation.log_prob + evaluation.entropy).sum().backward()
    else:
        assert isinstance(agent, QAgent)
        values = agent.action_values(rows)
        assert torch.equal(values.isinf(), rows["action_mask"] == 0)
        taken = values.gather(1, agent.action_index(action)[:, None])
        (taken.sum() + values.amax(-1).sum()).backward()
        assert torch.equal(agent.value(rows), values.amax(-1))
    assert all(parameter.grad.isfinite().all() for parameter in agent.model.parameters())
    for cage in cages:
        cage.close()


@pytest.mark.parametrize("name", ["discrete", "values"])
def test_a_row_that_allows_nothing_is_an_error_on_the_host(name: str) -> None:
    rows = {"observation": torch.zeros(2, 2), "action_mask": torch.tensor([[1, 0, 0, 0]] * 2)}
    agent = make_agent(name, rows)
    agent.step(rows)
    rows["action_mask"][1] = 0
    with pytest.raises(ValueError, match="action_mask: row 1 allows no action"):
        agent.step(rows)
    rows["action_mask"] = rows["action_mask"].float()
    with pytest.raises(TypeError, match=r"action_mask: got torch\.float32"):
        agent.step(rows)


@pytest.mark.parametrize("name", ["discrete", "values"])
def test_a_mask_neither_vanishes_nor_appears(name: str) -> None:
    plain = {"observation": torch.zeros(2, 2)}
    masked = {**plain, "action_mask": torch.ones(2, 4).bool()}
    for example, other, message in (
        (masked, plain, "got none with the observations, expected one"),
        (plain, masked, "got one with the observations, expected none"),
    ):
        agent = make_agent(name, example)
        with pytest.raises(ValueError, match=f"action_mask: {message}"):
            agent.step(other)


@pytest.mark.parametrize("name", ["discrete", "values"])
def test_a_mask_of_another_length_is_found_when_the_agent_is_made(name: str) -> None:
    rows = {"observation": torch.zeros(2, 2), "action_mask": torch.ones(2, 5).bool()}
    with pytest.raises(ValueError, match=r"action_mask: shape \(2, 5\), expected \(2, 4\)"):
        make_agent(name, rows)


# The wrapper


class Strict(Allowing):
    """Raise where an action is taken that was not allowed."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        result = super().step(action)
        if not result[1]:
            raise ValueError(f"illegal action {action}")
        return result


class OfOtherKind(VectorEnv):
    """A vector environment of no known class: it spends steps on resets."""

    def __init__(self, env_fns: Any) -> None:
        self._envs = SyncVectorEnv(env_fns, copy=False)
        self.metadata, self.num_envs = self._envs.metadata, self._envs.num_envs
        for name in ("observation_space", "action_space"):
            for prefix in ("", "single_"):
                setattr(self, prefix + name, getattr(self._envs, prefix + name))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert options is None
        return self._envs.reset(seed=seed)

    def step(self, actions: Any) -> Any:
        return self._envs.step(actions)


def make_masked_cage(kind: Any, make_env: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Cage):
        return kind(make_env, n_envs=3, seed=0)
    return VectorCage(kind, {"env_fns": [make_env] * 3}, seed=0)


MASKED = [
    (spaces.Discrete(5), [5]),
    (spaces.Discrete(5, start=3), [5]),
    (spaces.MultiDiscrete([2, 4]), [2, 4]),
    (spaces.MultiBinary(3), [2, 2, 2]),
]


@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize(
    "kind",
    [
        SerialCage,
        OfOtherKind,
        *(partial(SyncVectorEnv, autoreset_mode=mode) for mode in AutoresetMode),
    ],
)
@pytest.mark.parametrize(("space", "nvec"), MASKED)
def test_random_actions_are_allowed_ones(
    kind: Any, space: Any, nvec: list[int], is_wrapped: bool
) -> None:
    check_random_actions(kind, space, nvec, is_wrapped=is_wrapped)


@pytest.mark.long  # workers start for a second or two, and do the same as cages without
@pytest.mark.parametrize("kind", [ProcessCage, AsyncVectorEnv])
@pytest.mark.parametrize(("number", "is_wrapped"), [(1, True), (2, False), (3, True)])
def test_random_actions_of_workers_are_allowed_ones(
    kind: Any, number: int, is_wrapped: bool
) -> None:
    check_random_actions(kind, *MASKED[number], is_wrapped=is_wrapped)


def check_random_actions(kind: Any, space: Any, nvec: list[int], *, is_wrapped: bool) -> None:
    def make_env() -> gym.Env[Any, Any]:
        env = Strict(space, nvec)
        return MaskInObservation(env) if is_wrapped else env

    with make_masked_cage(kind, make_env) as cage:
        for _ in range(2):
            cage.reset_async(max_random_steps=20)
            cage.await_step()
            for _ in range(20):
                cage.random_step_async()
                reward = cage.await_step()[2]
                assert all(reward[n] == 1 for n in range(3) if n not in cage.invalid)


@pytest.mark.long
def test_environments_are_timed_with_allowed_actions() -> None:
    def make_env() -> gym.Env[Any, Any]:
        return MaskInObservation(Strict(spaces.Discrete(5), [5]))

    for cage in build_cages(make_env, 2, seed=0):  # whether they need workers is measured
        cage.close()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros(5, bool),
            r"action_mask: got \[False, .*\], which allows no action of Multi",
        ),
        (np.array([1, 1, 0, 0, 0]), r"which allows no action of .*, expected one or more of each"),
        (np.ones(4, bool), r"action_mask: got 4 entries, expected 5, one for each action of Multi"),
    ],
)
def test_a_random_action_needs_one_that_is_allowed(mask: Any, message: str) -> None:
    space = spaces.MultiDiscrete([2, 3])
    for arguments in (({"action_mask": mask}, {}), (None, {"action_mask": mask})):
        with pytest.raises(ValueError, match=message):
            sample_action(space, *arguments)
    assert sample_action(space, {"action_mask": ([0, 1], [0, 0, 1])}).tolist() == [1, 2]
    assert space.contains(sample_action(space, {}, {}))


@pytest.mark.parametrize(
    "mask",
    [
        np.array([0, 1, 0, 0, 1, 1, 0, 1, 0]),
        [0, 1, 0, 0, 1, 1, 0, 1, 0],
        (np.array([0, 1]), np.array([0, 0, 1]), np.array([1, 0]), np.array([1, 0])),
        (
            (np.array([0, 1]), np.array([0, 0, 1])),
            (np.array([1, 0]), np.array([1, 0])),
        ),
    ],
    ids=["vector", "list", "parts", "gymnasium's"],
)
def test_random_actions_of_choices_in_a_table_obey_masks(mask: Any) -> None:
    table = spaces.MultiDiscrete([[2, 3], [2, 2]])
    for _ in range(9):
        assert sample_action(table, {}, {"action_mask": mask}).tolist() == [[1, 2], [0, 0]]


def test_it_is_told_where_no_agent_sees_a_mask() -> None:
    with pytest.warns(UserWarning, match=r"action_mask: it is in the environment's infos, where"):
        build_example(lambda: Allowing(spaces.Discrete(5), [5]), storage="local")


class Telling(gym.Env[Any, Any]):
    """Give an info that the test chooses."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])

    def __init__(self, info: dict[str, Any], *, terminated: bool = False) -> None:
        self.info, self.terminated = info, terminated

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {"action_mask": np.ones(5, bool)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, self.terminated, False, self.info


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, ValueError, r"info: there is no 'action_mask' among \['action_mask_2'\]"),
        (np.ones(4, bool), ValueError, r"info\.action_mask: shape \(4,\), expected \(5,\)"),
        (np.ones(5, np.float32), TypeError, r"info\.action_mask: got float32"),
        (np.full(5, 2), ValueError, r"info\.action_mask: got \[2, 2, 2, 2, 2\], expected 0 and 1"),
    ],
)
def test_what_is_no_mask_is_refused(mask: Any, error: type[Exception], message: str) -> None:
    info = {"action_mask_2": 1} if mask is None else {"action_mask": mask}
    env = MaskInObservation(Telling(info))
    env.reset()
    with pytest.raises(error, match=message):
        env.step([0, 0])
    assert env.observation_space.contains(env.reset()[0])
    with pytest.raises(TypeError, match="action space: got Box"):
        MaskInObservation(gym.make("Pendulum-v1"))


def test_after_a_termination_no_mask_is_asked_for() -> None:
    env = MaskInObservation(Telling({}, terminated=True))
    env.reset()
    assert env.step([0, 0])[0]["action_mask"].tolist() == [1] * 5


# Epsilon


def q_agent(epsilon: Any, seed: int = 0) -> QAgent:
    generator = torch.Generator().manual_seed(seed)
    return QAgent(nn.Identity(), torch.zeros(1, 4), epsilon, generator)


def share_of_best(agent: QAgent, rows: Tensor, n: int) -> Tensor:
    return torch.stack([agent.step(rows)[0] == 2 for _ in range(n)]).float().mean(0)


def test_actions_are_the_best_but_for_a_share_that_is_drawn_evenly() -> None:
    n, epsilon = 40_000, 0.3
    rows = torch.tensor([[0.0, 1, 2, 1]]).expand(n, 4)
    counts = torch.bincount(q_agent(epsilon).step(rows)[0], minlength=4)
    expected = torch.full((4,), n * epsilon / 4)
    expected[2] += n * (1 - epsilon)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 30.7  # 3 degrees of freedom: one in a million
    assert q_agent(epsilon).step(rows, deterministic=True)[0].unique().tolist() == [2]


def test_each_environment_may_have_its_own_epsilon() -> None:
    rows, n = torch.tensor([[0.0, 1, 2, 1]]).expand(3, 4), 4000
    agent = q_agent(np.array([0.0, 0.4, 1.0]))
    found = share_of_best(agent, rows, n)
    expected = torch.tensor([1, 1 - 0.4 * 3 / 4, 1 / 4])
    # 5 deviations of a share, at most 0.5 / sqrt(n) each
    assert (found - expected).abs().max() < 5 * 0.5 / n**0.5
    assert found[0] == 1
    with pytest.raises(ValueError, match="epsilon: got 3 numbers for 2 rows"):
        agent.step(rows[:2])
    assert len(agent.step(rows[:2], deterministic=True)[0]) == 2  # an evaluation has its own


class Alike(gym.Env[Any, Any]):
    """Shows the same row always, of which action 2 is the best."""

    observation_space, action_space = spaces.Box(0, 9, (4,)), spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.float32([0, 1, 2, 1]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.float32([0, 1, 2, 1]), 0.0, False, False, {}


@pytest.mark.parametrize("is_traced", all_but_first([False, True]))
@pytest.mark.parametrize("n_envs", all_but_first([[1, 1, 2], [2, 2], [1, 3]]))
@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
def test_each_environment_has_its_own_epsilon_where_groups_take_turns(
    kind: Any, n_envs: list[int], is_traced: bool
) -> None:
    T = 400
    agent = q_agent(np.array([0.0, 0.4, 0.8, 0.0]))
    samples = build_sample_tree(
        build_example(Alike, storage="local"), agent, batch_shape=(T, sum(n_envs))
    )
    cages = [SerialCage(Alike, n_envs=n) for n in n_envs]
    sampler = kind(cages, agent, samples)
    batch = (sampler.collect_traced if is_traced else sampler.collect_batch)()[0]
    found = (batch["action"].to_ndarray() == 2).mean(0)
    expected = np.array([1, 1 - 0.4 * 3 / 4, 1 - 0.8 * 3 / 4, 1])
    assert np.abs(found - expected).max() < 5 * 0.5 / T**0.5  # 5 deviations of a share, at most
    assert found[0] == found[3] == 1
    for wrong in (n_envs[0], 8):  # as many as one group has, and more than there are
        few = q_agent(np.full(wrong, 0.5))
        with pytest.raises(ValueError, match=f"epsilon: got {wrong} numbers for 4 rows"):
            kind(cages, few, samples).collect_batch()


def test_epsilon_follows_its_schedule() -> None:
    rows = torch.tensor([[0.0, 1, 2, 1]]).expand(200, 4)
    agent = q_agent(linear(1.0, 0.0, until=0.5))
    assert (agent.step(rows)[0] != 2).any()
    agent.set_progress(0.5)
    assert (agent.step(rows)[0] == 2).all()


def test_an_agent_may_keep_the_value_of_the_best_action() -> None:
    rows = torch.tensor([[0.0, 1, 2, 1]]).expand(50, 4)
    agent = QAgent(nn.Identity(), rows, 1.0, keeps_value=True)
    action, agent_info = agent.step(rows)
    assert len(action.unique()) > 1
    assert agent_info["value"].tolist() == agent.value(rows).tolist() == [2.0] * 50
    assert q_agent(1.0).step(rows)[1] == {}


@pytest.mark.parametrize("epsilon", [-0.1, 1.5, np.nan, [0.1, 2.0], linear(2.0, 0.0), "0.1"])
def test_epsilon_is_a_probability(epsilon: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="epsilon: got"):
        q_agent(epsilon)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda rows: rows[:, 0], r"it returned torch\.float32 \(1,\), expected floats \(1, n\)"),
        (lambda rows: rows.long(), r"it returned torch\.int64 \(1, 4\)"),
        (lambda rows: (rows, rows), "it returned a tuple, expected a tensor"),
    ],
)
def test_a_model_that_gives_no_values_is_found_at_once(outputs: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        QAgent(outputs, torch.zeros(1, 4), 0.1)


def test_an_agent_of_values_takes_the_spaces_actions() -> None:
    agent = q_agent(0.0)
    agent.bind_actions(spaces.Discrete(4, start=7))
    action, _ = agent.step(torch.tensor([[0.0, 1, 2, 1]]))
    assert action.tolist() == [9]
    assert agent.action_index(action.int()).tolist() == [2]
    for wrong in (spaces.Discrete(3), spaces.MultiBinary(4)):
        with pytest.raises((TypeError, ValueError), match="action space: got"):
            agent.bind_actions(wrong)


# State


@pytest.mark.parametrize("name", ["discrete", "values"])
def test_an_agent_goes_on_where_its_state_was_taken(name: str) -> None:
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        if name == "values":
            return QAgent(nn.Linear(4, 3), rows, linear(1.0, 0.0), generator)
        layer = nn.Linear(4, 4)

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, rows: Tensor) -> ModelOutputs:
                outputs = self.layer(rows)
                return ModelOutputs(DistParams(logits=outputs[:, :3]), outputs[:, 3])

        return CategoricalPgAgent(Model(), Categorical(3), rows, generator)

    agent, other = make(0), make(1)
    if name == "values":
        agent.set_progress(0.5)
    agent.step(rows)
    other.load_state_dict(agent.state_dict())
    for _ in range(3):
        assert torch.equal(agent.step(rows)[0], other.step(rows)[0])
    state = agent.state_dict()
    with pytest.raises(ValueError, match="generator: the state has none, and the agent has one"):
        other.load_state_dict({**state, "generator": None})


# On a device


@each_schedule
@pytest.mark.parametrize("name", ["discrete", "multi"])
def test_learning_with_masks_on_a_device_gives_the_same_numbers(
    schedule: str, seed: int, name: str
) -> None:
    """Nothing here ran on a GPU."""

    def learn(storage: str | None) -> tuple[Any, Any]:
        def make_env() -> gym.Env[Any, Any]:
            return MaskInObservation(Allowing(*SPACES[name]))

        example = build_example(make_env, storage=storage)
        agent = make_agent(name, example["observation"])
        samples = build_sample_tree(example, agent, batch_shape=(T, B))
        with ExitStack() as stack:
            cages = build_cages(make_env, B, n_workers="serial", seed=0)
            for cage in cages:
                stack.enter_context(cage)
            stack.callback(samples.close)
            sampler = BasicSampler(cages, agent, samples)
            stack.callback(sampler.close)
            optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
            settings = PPOSettings(n_epochs=2, n_minibatches=2, value_clip=0.2)
            ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
            advantage, numbers = EstimateAdvantage(), []
            for _ in range(2):
                batch, _ = sampler.collect_batch()
                numbers.append(ppo.optimize(advantage(batch)))
            return numbers, [each.tolist() for each in agent.model.parameters()]

    expected = learn("local")
    with simulated_cuda(schedule, seed):
        assert default_storage() == "device"
        assert learn(None) == expected

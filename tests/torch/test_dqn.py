"""DQN against losses and gradients that are computed by hand, and with samples on a device."""

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from parllel import Array, ArrayDict, default_storage
from parllel.cages import MaskInObservation
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import Prefetcher, PrioritizedReplayBuffer, ReplayBuffer
from parllel.runners import RLRunner, load_run, save_run
from parllel.samplers import BasicSampler, EvalSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import QAgent
from parllel.torch.algos import DQN, DQNSettings
from replay_world import World, fill_replay, weights
from schedules import each_schedule

N_ACTIONS, SIZE = 3, 64


class Ending(gym.Env[Any, Any]):
    """Give random numbers, end at random, terminated or truncated, and allow some actions."""

    observation_space, action_space = spaces.Box(-9, 9, (2,)), spaces.Discrete(N_ACTIONS, start=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._tell()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, info = self._tell()
        terminated, truncated = self.np_random.random(2) < 0.2
        return observation, self.np_random.normal(), bool(terminated), bool(truncated), info

    def _tell(self) -> tuple[Any, dict[str, Any]]:
        mask = self.np_random.random(N_ACTIONS) < 0.5
        mask[self.np_random.integers(N_ACTIONS)] = True
        return self.np_random.normal(0, 2, 2).astype(np.float32), {"action_mask": mask}


class Unlimited(Ending):
    """The same environment, which tells of no mask."""

    def _tell(self) -> tuple[Any, dict[str, Any]]:
        observation, _ = super()._tell()
        return observation, {}


class Values(nn.Linear):
    """A linear model of the values, of what is seen alone or of a tree with a mask."""

    def __init__(self) -> None:
        super().__init__(2, N_ACTIONS)

    def forward(self, rows: Any) -> Tensor:
        return super().forward(rows if isinstance(rows, Tensor) else rows["observation"])


def make_world(
    stack: ExitStack,
    *,
    is_masked: bool = False,
    storage: str | None = "local",
    **replay: Any,
) -> World[QAgent]:
    torch.manual_seed(0)
    make_env: Any = (lambda: MaskInObservation(Ending())) if is_masked else Unlimited
    example = build_example(make_env, storage=storage)
    generator = torch.Generator().manual_seed(0)
    agent = QAgent(Values(), example["observation"], 0.5, generator)
    return fill_replay(stack, make_env, agent, example, **replay)


def make_dqn(world: World[QAgent], *, lr: float = 1.0, **settings: Any) -> DQN:
    optimizer = torch.optim.SGD(world.agent.model.parameters(), lr=lr)
    numbers = {"batch_size": SIZE, "max_grad_norm": 1e9, **settings}
    return DQN(world.agent, world.replay, optimizer, DQNSettings(**numbers))


def by_hand(
    model: Values, target: Values, minibatch: ArrayDict, settings: DQNSettings
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Return loss, mean absolute error, and gradient of weight and bias: row by row."""
    own, other = (
        [each.detach().double().numpy() for each in net.parameters()] for net in (model, target)
    )
    loss, error_sum = 0.0, 0.0
    slope, offset = np.zeros((N_ACTIONS, 2)), np.zeros(N_ACTIONS)
    for i in range(SIZE):
        seen, mask = minibatch["observation"], None
        following = minibatch["next_observation"]
        if not isinstance(seen, Tensor):
            mask = following["action_mask"][i].numpy()
            seen, following = seen["observation"], following["observation"]
        state, next_state = seen[i].numpy(), following[i].numpy()
        action = int(minibatch["action"][i]) - 1
        values, next_values = own[0] @ state + own[1], other[0] @ next_state + other[1]
        choosing = own[0] @ next_state + own[1] if settings.double else next_values
        allowed = [a for a in range(N_ACTIONS) if mask is None or mask[a]]
        best = max(allowed, key=lambda a: choosing[a])
        end = float(minibatch["n_step_return"][i])
        if not minibatch["terminated"][i]:
            end += float(minibatch["n_step_discount"][i]) * next_values[best]
        error = values[action] - end
        weight = float(minibatch["weight"][i]) if "weight" in minibatch else 1.0
        is_small = settings.loss == "squared" or abs(error) <= 1
        loss += weight * (error**2 / 2 if is_small else abs(error) - 0.5) / SIZE
        error_sum += abs(error) / SIZE
        pull = weight * (error if is_small else np.sign(error)) / SIZE
        slope[action] += pull * state
        offset[action] += pull
    return loss, error_sum, slope, offset


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    ("loss", "n_steps", "kind"),
    [
        ("squared", 1, ReplayBuffer),
        ("huber", 3, ReplayBuffer),
        ("huber", 2, PrioritizedReplayBuffer),
    ],
)
def test_an_update_is_that_of_the_formulas(
    stack: ExitStack, is_masked: bool, double: bool, loss: Any, n_steps: int, kind: Any
) -> None:
    chosen: dict[str, Any] = {"is_masked": is_masked, "kind": kind, "n_steps": n_steps}
    world, twin = (make_world(stack, **chosen) for _ in range(2))
    dqn = make_dqn(world, double=double, loss=loss)
    torch.manual_seed(1)
    target = Values()  # another one, as some updates after it was copied
    dqn.load_state_dict({**dqn.state_dict(), "target": target.state_dict()})
    for _ in range(2):  # the second minibatch of a prioritized buffer has unequal weights
        before = copy.deepcopy(world.agent.model)
        numbers = dqn.optimize(world.replay.samples)
        minibatch = twin.replay.sample(SIZE)
        assert 0 < minibatch["terminated"].float().mean() < 1
        settings = DQNSettings(double=double, loss=loss)
        expected, error, slope, offset = by_hand(before, target, minibatch, settings)
        assert numbers["loss"] == pytest.approx(expected, rel=1e-4)
        assert numbers["td_error"] == pytest.approx(error, rel=1e-4)
        moved = weights(before) - weights(world.agent.model)
        np.testing.assert_allclose(moved, [*slope.flatten(), *offset], rtol=1e-3, atol=1e-5)
        if isinstance(twin.replay, PrioritizedReplayBuffer):
            twin.agent.model.load_state_dict(before.state_dict())
            errors = dqn_errors(twin, target, minibatch, double=double)
            twin.replay.update_priorities(minibatch["index"], errors)
    if kind is PrioritizedReplayBuffer:
        assert minibatch["weight"].unique().numel() > 2


def dqn_errors(
    world: World[QAgent], target: Values, minibatch: ArrayDict, *, double: bool
) -> Tensor:
    """Return the errors of a minibatch, by torch's operations alone."""
    with torch.no_grad():
        index = minibatch["action"].long() - 1
        value = world.agent.action_values(minibatch["observation"])[torch.arange(SIZE), index]
        following = minibatch["next_observation"]
        next_values = world.agent.action_values(following, model=target)
        own = world.agent.action_values(following) if double else next_values
        next_value = next_values[torch.arange(SIZE), own.argmax(1)]
        rest = minibatch["n_step_discount"] * next_value
        return value - torch.where(minibatch["terminated"], 0, rest) - minibatch["n_step_return"]


@pytest.mark.parametrize(("period", "share"), [(3, 1.0), (1, 0.25), (2, 0.5)])
def test_the_target_network_follows(stack: ExitStack, period: int, share: float) -> None:
    world = make_world(stack)
    dqn = make_dqn(world, lr=0.1, target_period=period, target_share=share)
    target = weights(world.agent.model).double()
    for number in range(1, 7):
        dqn.optimize(world.replay.samples)
        if number % period == 0:
            target = (1 - share) * target + share * weights(world.agent.model)
        found = torch.cat([each.flatten() for each in dqn.state_dict()["target"].values()])
        torch.testing.assert_close(found.double(), target, rtol=1e-5, atol=1e-6)


def test_statistics_of_the_model_go_to_the_target_and_choosing_does_not_change_them(
    stack: ExitStack,
) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.values = nn.BatchNorm1d(2), Values()

        def forward(self, rows: Tensor) -> Tensor:
            return self.values(self.norm(rows))

    world = make_world(stack)
    agent = QAgent(Normed(), torch.zeros(1, 2), 0.1)
    agent.bind_actions(Ending.action_space)
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
    dqn = DQN(agent, world.replay, optimizer, DQNSettings(n_updates=5, target_period=5))
    dqn.optimize(world.replay.samples)
    assert agent.model.norm.num_batches_tracked == 5
    state = agent.model.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in dqn.state_dict()["target"].items())


def test_gradients_are_cut_down(stack: ExitStack) -> None:
    world = make_world(stack)
    before = weights(world.agent.model)
    make_dqn(world, max_grad_norm=1e-3).optimize(world.replay.samples)
    moved = float((weights(world.agent.model) - before).norm())
    assert moved == pytest.approx(1e-3, rel=1e-2)  # differences of numbers of about 1


def test_schedules_set_rate_weights_and_epsilon(stack: ExitStack) -> None:
    world = make_world(stack, kind=PrioritizedReplayBuffer)
    world = world._replace(agent=QAgent(Values(), torch.zeros(1, 2), linear(1.0, 0.0)))
    world.agent.bind_actions(Ending.action_space)
    dqn = make_dqn(world, learning_rate=linear(0.2, 0.0), beta=linear(0.4, 1.0))
    assert isinstance(world.replay, PrioritizedReplayBuffer)
    assert world.replay.beta == 0.4
    dqn.set_progress(0.5)
    assert world.replay.beta == pytest.approx(0.7)
    assert dqn.optimize(world.replay.samples)["learning_rate"] == pytest.approx(0.1)
    assert world.agent.state_dict()["progress"] == 0.5


def test_a_prefetcher_gives_the_same_updates(stack: ExitStack) -> None:
    results = []
    for has_prefetcher in (False, True):
        world = make_world(stack)
        prefetcher = Prefetcher(world.replay, 16) if has_prefetcher else None
        optimizer = torch.optim.SGD(world.agent.model.parameters(), lr=0.1)
        settings = DQNSettings(batch_size=16, n_updates=4)
        dqn = DQN(world.agent, world.replay, optimizer, settings, prefetcher=prefetcher)
        results.append((dqn.optimize(world.replay.samples), weights(world.agent.model)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    settings = DQNSettings(batch_size=8)
    wrong = DQN(world.agent, world.replay, optimizer, settings, prefetcher=prefetcher)
    with pytest.raises(ValueError, match=r"prefetcher: got a minibatch of 16 .* expected 8"):
        wrong.optimize(world.replay.samples)


def test_a_number_that_is_not_finite_ends_the_batch_before_its_update(stack: ExitStack) -> None:
    world = make_world(stack)
    dqn = make_dqn(world)
    with torch.no_grad():
        world.agent.model.bias[0] = torch.nan
    before = weights(world.agent.model)
    with pytest.raises(ValueError, match="the model's parameter bias is not, and all"):
        dqn.optimize(world.replay.samples)
    assert torch.equal(weights(world.agent.model).nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_it_goes_on_from_a_saved_run_bit_for_bit(
    stack: ExitStack, kind: type[ReplayBuffer], tmp_path: Path
) -> None:
    def make() -> tuple[World[QAgent], DQN]:
        world = make_world(stack, kind=kind)
        optimizer = torch.optim.Adam(world.agent.model.parameters(), lr=0.1)
        settings = DQNSettings(n_updates=3, target_period=4, learning_rate=linear(0.1, 0.0))
        return world, DQN(world.agent, world.replay, optimizer, settings)

    (world, dqn), (other, resumed) = make(), make()
    for number in range(2):
        dqn.set_progress(number / 4)
        dqn.optimize(world.replay.samples)
    save_run(tmp_path, agent=world.agent, dqn=dqn, replay=world.replay)
    load_run(tmp_path, agent=other.agent, dqn=resumed, replay=other.replay)
    for each in (dqn, resumed):
        each.set_progress(0.5)
    results = [each.optimize(world.replay.samples) for each in (dqn, resumed)]
    assert results[0] == results[1]
    assert results[0]["n_updates"] == 9
    assert torch.equal(weights(world.agent.model), weights(other.agent.model))
    rows = torch.randn(50, 2)
    assert torch.equal(world.agent.step(rows)[0], other.agent.step(rows)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"n_updates": 0},
        {"target_period": 0},
        {"target_share": 0.0},
        {"target_share": 1.5},
        {"loss": "l1"},
        {"max_grad_norm": 0},
        {"beta": linear(0.4, -1.0)},
        {"learning_rate": float("nan")},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises((TypeError, ValueError), match=f"{name}: got"):
        DQNSettings(**wrong)


def test_what_it_can_not_work_with_is_refused(stack: ExitStack) -> None:
    world = make_world(stack)
    optimizer = torch.optim.SGD(world.agent.model.parameters())
    with pytest.raises(ValueError, match="beta: got one for a buffer without priorities"):
        DQN(world.agent, world.replay, optimizer, DQNSettings(beta=0.5))
    with pytest.raises(TypeError, match="agent: Linear has no action_values and no"):
        DQN(nn.Linear(1, 1), world.replay, optimizer)  # type: ignore[arg-type]
    agent = QAgent(lambda rows: torch.zeros(len(rows), 3), torch.zeros(1, 2), 0.1)
    with pytest.raises(TypeError, match=r"model: got a function, expected a torch\.nn\.Module"):
        DQN(agent, world.replay, optimizer)
    other = stack.enter_context(Prefetcher(make_world(stack).replay, 32))
    with pytest.raises(ValueError, match="prefetcher: it draws from another buffer than replay"):
        DQN(world.agent, world.replay, optimizer, prefetcher=other)
    stranger = torch.optim.SGD(Values().parameters())
    with pytest.raises(ValueError, match="optimizer: it has no parameter of the agent's model"):
        DQN(world.agent, world.replay, stranger)


@each_schedule
@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_device_gives_the_same_numbers(schedule: str, seed: int, kind: Any) -> None:
    """Nothing here ran on a GPU."""

    def learn(storage: str | None) -> tuple[Any, Any]:
        with ExitStack() as stack:
            world = make_world(
                stack, kind=kind, is_masked=True, storage=storage, n_batches=1, n_steps=2
            )
            dqn = make_dqn(world, lr=0.1, batch_size=8, n_updates=2, target_period=3)
            numbers = []
            for _ in range(4):
                batch, _ = world.sampler.collect_batch()
                numbers.append(dqn.optimize(batch))
            return numbers, weights(world.agent.model).tolist()

    expected = learn("local")
    with simulated_cuda(schedule, seed) as simulation:
        assert default_storage() == "device"
        before = copy.copy(simulation.counters)
        found = learn(None)
        assert simulation.counters.since(before).device_synchronizations == 0
    assert found == expected


class Corridor(gym.Env[Any, Any]):
    """Pay 1 at the end of five places, after which the episode is over; action 3 goes there."""

    observation_space, action_space = spaces.Box(0, 1, (5,)), spaces.Discrete(2, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._n_steps = 0, 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place = max(0, self._place + (1 if action == 3 else -1))
        self._n_steps += 1
        is_there = self._place == 4
        return self._look(), float(is_there), is_there, self._n_steps == 20, {}

    def _look(self) -> Any:
        return np.eye(5, dtype=np.float32)[self._place]


@pytest.mark.long
@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_it_learns_to_go_to_the_end(kind: Any) -> None:
    torch.manual_seed(0)
    example = build_example(Corridor, storage="local")
    model = nn.Linear(5, 2, bias=False)
    agent = QAgent(model, example["observation"], linear(1.0, 0.1, until=0.5))
    samples = build_sample_tree(example, agent, batch_shape=(8, 4), full_size=256)
    replay = kind(samples, rng=np.random.default_rng(0), discount=0.9)
    cages = build_cages(Corridor, 4, seed=0, n_workers=0)
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    settings = DQNSettings(n_updates=2, target_period=10)
    dqn = DQN(agent, replay, torch.optim.Adam(model.parameters(), lr=0.03), settings)
    RLRunner(sampler, dqn, Metrics(), n_steps=8000).run()
    evaluation = EvalSampler(cages, agent, n_episodes=4, seed=1, storage="local")
    assert [each.length for each in evaluation.collect_episodes()] == [4] * 4
    # Discounted once for each step that is left: 0.9**3, 0.9**2, 0.9 and 1.
    values = agent.action_values(torch.eye(5)[:4]).amax(-1)
    torch.testing.assert_close(values, 0.9 ** torch.arange(3.0, -1, -1), rtol=0, atol=0.05)


@pytest.mark.parametrize("form", ["axis", "dictionary"])
def test_a_replay_of_several_agents_is_refused(form: str) -> None:
    """Q-values of an axis would fit, and be learned where no agent is, too."""
    shape, feature = (4, 3), ((3,) if form == "axis" else ())

    def make(dtype: Any, **options: Any) -> Any:
        leaf = Array(shape, dtype, feature_shape=feature, **options)
        return leaf if form == "axis" else {name: leaf.new_array() for name in ("pinky", "inky")}

    flags = {name: make(bool) for name in ("terminated", "truncated", "valid")}
    samples = ArrayDict(
        {
            "observation": Array(shape, np.float32, feature_shape=(3, 2), padding=1),
            "action": make(np.int64),
            "reward": make(np.float32),
            **flags,
        }
    )
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    agent = QAgent(Values(), torch.zeros(1, 2), 0.5)
    with pytest.raises(ValueError, match="replay: its rewards are those of several agents"):
        DQN(agent, replay, torch.optim.SGD(agent.model.parameters(), lr=1.0))

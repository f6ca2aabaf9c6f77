"""IndependentPgAgents, and PPO of several agents: equal to each agent's own, in both forms."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_batches import FORMS, N_OBS, NAMES, Numbers, Shape, by_agent, make_batch, random_numbers
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from parllel import Array, ArrayDict, Jagged, JaggedArray
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.agents import (
    Evaluation,
    IndependentPgAgents,
    ModelOutputs,
    PgAgent,
)
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.torch.models import ActorCritic, Lstm, Mlp
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage
from schedules import each_schedule

N_ACTIONS = 2
each_form = pytest.mark.parametrize("form", FORMS)


def make_agent(seed: int, *, generator: bool = True) -> PgAgent:
    torch.manual_seed(seed)
    own = torch.Generator().manual_seed(seed) if generator else None
    model = ActorCritic(Mlp(N_OBS, [8]), N_ACTIONS, policy_gain=1.0)
    return PgAgent(model, Categorical(N_ACTIONS), torch.zeros(1, N_OBS), own)


def together(form: str, agents: list[PgAgent], critic: Any = None) -> IndependentPgAgents:
    named = dict(zip(NAMES, agents, strict=False))
    return IndependentPgAgents(agents if form == "axis" else named, critic=critic)


def observe(form: str, values: NDArray[np.float32]) -> Any:
    """Return observations [n, N, ...] in a form."""
    if form == "axis":
        return torch.from_numpy(values)
    return {name: torch.from_numpy(values[:, i].copy()) for i, name in enumerate(NAMES)}


def some_rows(n: int = 5, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 3, N_OBS)).astype(np.float32)


@each_form
def test_each_agent_acts_as_it_does_alone(form: str) -> None:
    rows, agents = some_rows(), [make_agent(seed) for seed in range(3)]
    alone = [make_agent(seed) for seed in range(3)]
    action, info = together(form, agents).step(observe(form, rows))
    value = together(form, agents).value(observe(form, rows))
    for i, agent in enumerate(alone):
        own_action, own_info = agent.step(torch.from_numpy(rows[:, i].copy()))
        assert by_agent(action)[:, i].tolist() == own_action.tolist()
        for name in ("value", "log_prob"):
            assert by_agent(info[name])[:, i].tobytes() == own_info[name].numpy().tobytes(), name
        assert by_agent(value)[:, i].tobytes() == own_info["value"].numpy().tobytes()


def test_both_forms_of_one_shared_agent_draw_the_same_actions() -> None:
    """The rows of all its roles go through its model at once, those of the first role first."""
    found = []
    for form in FORMS:
        agents = together(form, [make_agent(0)] * 3)
        calls: list[int] = []
        agents.agents[0 if form == "axis" else "pinky"].model.register_forward_hook(
            lambda _, inputs, __, calls=calls: calls.append(len(inputs[0]))
        )
        action, info = agents.step(observe(form, some_rows(40)))
        assert calls == [120]
        found.append((by_agent(action).tolist(), by_agent(info["log_prob"]).tolist()))
        assert 0 < np.mean(found[0][0]) < 1
    assert found[0] == found[1]


@each_form
def test_what_is_evaluated_is_what_step_gave(form: str) -> None:
    first, other = make_agent(0), make_agent(1)
    agents = together(form, [first, other, first])
    rows = observe(form, some_rows())
    action, info = agents.step(rows)
    taken = {name: each.clone() for name, each in action.items()} if form != "axis" else action
    taken = taken.clone() if isinstance(taken, Tensor) else taken
    evaluation = agents.evaluate(rows, taken)
    for name in ("log_prob", "value"):
        found = by_agent(getattr(evaluation, name), lambda leaf: leaf.detach().numpy())
        np.testing.assert_allclose(found, by_agent(info[name]), rtol=1e-5)
    assert agents.shared_by == ([[0, 2], [1]] if form == "axis" else [["pinky", "clyde"], ["inky"]])


class Critic(nn.Module):
    """Values of all observations, for each agent or one for all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        torch.manual_seed(9)
        self.layer = nn.Linear(3 * N_OBS, 1 if kind == "one" else 3)

    def forward(self, observation: Any) -> Any:
        if not isinstance(observation, Tensor):
            observation = torch.stack([observation[name] for name in NAMES], 1)
        values = self.layer(observation.flatten(1))
        if self.kind == "one":
            return values[:, 0]
        named = self.kind == "names"
        return dict(zip(NAMES, values.unbind(1), strict=True)) if named else values


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("axis", "one"),
        ("axis", "each"),
        *itertools.product(["dictionary"], ["one", "each", "names"]),
    ],
)
def test_a_critic_sees_the_observations_of_all(form: str, kind: str) -> None:
    critic = Critic(kind)
    agents = together(form, [make_agent(0)] * 3, critic)
    rows = some_rows()
    expected = critic.layer(torch.from_numpy(rows).flatten(1)).detach().numpy()
    expected = np.broadcast_to(expected, (5, 3))
    action, info = agents.step(observe(form, rows))
    assert by_agent(info["value"]).tobytes() == np.ascontiguousarray(expected).tobytes()
    assert (by_agent(agents.value(observe(form, rows))) == expected).all()
    actions = {n: a.clone() for n, a in action.items()} if form != "axis" else action.clone()
    value = agents.evaluate(observe(form, rows), actions).value
    total = sum(value.values()) if isinstance(value, dict) else value.sum(1)
    total.sum().backward()
    assert critic.layer.weight.grad is not None
    assert all(p.grad is None for p in agents.model.agents.parameters())
    assert any(p is critic.layer.weight for p in agents.model.parameters())


def test_values_that_do_not_fit_the_agents_are_refused() -> None:
    agents = together("axis", [make_agent(0)] * 3, lambda rows: rows.sum(-1)[:, :2])
    with pytest.raises(ValueError, match=r"critic: got values \(5, 2\), expected \(5,\) for all"):
        agents.value(observe("axis", some_rows()))


# PPO


def estimated(
    numbers: Numbers, form: str, storage: str = "local", *, shared: bool = False
) -> ArrayDict:
    batch = make_batch(numbers, form, storage, shared=shared)
    return EstimateAdvantage()(batch)


def learn(
    agent: Any, batch: ArrayDict, n_times: int = 2, **settings: Any
) -> list[dict[str, float]]:
    options = {"n_epochs": 2, "n_minibatches": 2, "max_grad_norm": float("inf"), **settings}
    optimizer = torch.optim.Adam(agent.model.parameters(), lr=0.01)
    ppo = PPO(agent, optimizer, PPOSettings(**options), rng=np.random.default_rng(0))
    return [ppo.optimize(batch) for _ in range(n_times)]


def parameters(model: nn.Module) -> list[bytes]:
    return [each.detach().cpu().numpy().tobytes() for each in model.parameters()]


@each_form
@pytest.mark.parametrize("more", [{}, {"value_clip": 0.1, "entropy_coefficient": 0.1}])
def test_agents_with_models_of_their_own_learn_as_in_runs_of_their_own(
    form: str, more: dict[str, float]
) -> None:
    """Bit for bit, where all are alive and no gradient is cut down."""
    numbers = random_numbers(1, Shape(16, 3, 3), dies=False)
    agents, alone = ([make_agent(seed) for seed in range(3)] for _ in range(2))
    found = learn(together(form, agents), estimated(numbers, form), **more)
    expected = [learn(each, estimated(numbers, str(i)), **more) for i, each in enumerate(alone)]
    for mine, own in zip(agents, alone, strict=True):
        assert parameters(mine.model) == parameters(own.model)
    for name in ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction"):
        means = [np.mean([each[turn][name] for each in expected]) for turn in range(2)]
        np.testing.assert_allclose([each[name] for each in found], means, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("order", [[0, 0, 0], [0, 1, 0], [0, 1, 2]])
def test_both_forms_learn_the_same_bits(order: list[int], dies: bool) -> None:
    found = []
    for form in FORMS:
        numbers = random_numbers(2, Shape(16, 3, 3), dies=dies, poison=0.5)
        made = [make_agent(seed) for seed in range(3)]
        agents = together(form, [made[i] for i in order])
        results = learn(agents, estimated(numbers, form), value_clip=0.2)
        found.append((results, parameters(agents.model)))
    assert found[0] == found[1]
    assert found[0][0][0] != found[0][0][1]


@each_form
def test_several_objects_with_one_model_share_its_loss(form: str, tmp_path: Path) -> None:
    batch = estimated(random_numbers(3, Shape(16, 3, 3)), form)
    one, other = make_agent(0), make_agent(0)
    around = [PgAgent(other.model, Categorical(N_ACTIONS), torch.zeros(1, N_OBS)) for _ in range(2)]
    expected, found = together(form, [one] * 3), together(form, [other, *around])
    assert len(found.shared_by) == 1
    assert len(found.shared_by[0]) == 3
    numbers = zip(learn(found, batch), learn(expected, batch), strict=True)
    for mine, own in numbers:  # rows of one object go through the model together: other last bits
        assert mine == pytest.approx(own, rel=1e-4, abs=1e-6)
    assert found.model.state_dict().keys() == expected.model.state_dict().keys()
    found.save(tmp_path / "model.safetensors")
    expected.load(tmp_path / "model.safetensors")


def by_loops(
    numbers: Numbers, agents: list[PgAgent], groups: list[list[int]], batch: ArrayDict
) -> dict[str, float]:
    """Return the numbers of a first update on a whole batch: means of the living, over models."""
    advantage, return_ = (by_agent(batch[name]) for name in ("advantage", "return_"))
    sums: dict[str, list[float]] = {}
    for group in groups:
        terms: dict[str, list[float]] = {}
        for t, b, i in np.ndindex(advantage.shape):
            if i not in group or not numbers["valid"][t, b, i]:
                continue
            row = torch.from_numpy(numbers["observation"][t, b, i][None])
            log_probs = torch.log_softmax(agents[i].model(row).dist_params.logits[0], -1).tolist()
            value = agents[i].model(row).value[0].item()
            ratio = np.exp(log_probs[numbers["action"][t, b, i]] - numbers["log_prob"][t, b, i])
            clipped = np.clip(ratio, 0.8, 1.2)
            gain = min(ratio * advantage[t, b, i], clipped * advantage[t, b, i])
            own = {
                "policy_loss": -gain,
                "value_loss": 0.5 * (value - return_[t, b, i]) ** 2,
                "entropy": -sum(np.exp(each) * each for each in log_probs),
                "kl": ratio - 1 - np.log(ratio),
                "clip_fraction": float(ratio != clipped),
            }
            for name, term in own.items():
                terms.setdefault(name, []).append(term)
        for name, each in terms.items():
            sums.setdefault(name, []).append(float(np.mean(each)))
    return {name: float(np.mean(each)) for name, each in sums.items()}


@each_form
@pytest.mark.parametrize("order", [[0, 0, 0], [0, 1, 0]])
def test_losses_are_means_of_the_living_as_loops_find_them(form: str, order: list[int]) -> None:
    numbers = random_numbers(3, Shape(10, 2, 3), poison=np.nan)
    made = [make_agent(seed) for seed in range(2)]
    own = [made[i] for i in order]
    batch = estimated(numbers, form)
    groups = [[i for i in range(3) if order[i] == each] for each in sorted(set(order))]
    expected = by_loops(numbers, own, groups, batch)
    found = learn(together(form, own), batch, 1, n_epochs=1, n_minibatches=1)[0]
    for name, number in expected.items():
        assert found[name] == pytest.approx(number, rel=1e-4, abs=1e-5), name


@each_form
@pytest.mark.parametrize("sees_all", [True, False])
def test_nothing_is_learned_from_the_dead_whatever_they_hold(form: str, sees_all: bool) -> None:
    """But what a critic sees of them, which is finite, or else 0."""
    found = []
    for poison in (np.nan, np.inf, 0.0):
        numbers = random_numbers(4, Shape(12, 3, 3), poison=poison)
        agents = together(form, [make_agent(0)] * 3, Critic("each") if sees_all else None)
        results = learn(agents, NormalizeAdvantage()(estimated(numbers, form)), value_clip=0.2)
        found.append((results, parameters(agents.model)))
        assert all(np.isfinite(number) for each in results for number in each.values())
    assert found[0] == found[1] == found[2]


def test_rows_in_which_nobody_lives_are_in_no_minibatch() -> None:
    numbers = random_numbers(5, Shape(8, 2, 3), dies=False)
    numbers["valid"][2:5, 1] = False
    seen: list[int] = []

    class Counting(IndependentPgAgents):
        def evaluate(self, observation: object, action: Any) -> Evaluation:
            seen.append(len(action))
            return super().evaluate(observation, action)

    learn(Counting([make_agent(0)] * 3), estimated(numbers, "axis"), 1, n_epochs=1, n_minibatches=1)
    assert set(seen) == {13}


def test_gradients_of_all_models_are_cut_down_together() -> None:
    numbers = random_numbers(1, Shape(8, 3, 3), dies=False)
    agents = together("axis", [make_agent(seed) for seed in range(3)])
    optimizer = torch.optim.SGD(agents.model.parameters(), lr=1.0)
    before = [each.detach().clone() for each in agents.model.parameters()]
    settings = PPOSettings(n_epochs=1, n_minibatches=1, max_grad_norm=0.01)
    PPO(agents, optimizer, settings, rng=np.random.default_rng(0)).optimize(
        estimated(numbers, "axis")
    )
    moved = [
        (after.detach() - each).flatten()
        for after, each in zip(agents.model.parameters(), before, strict=True)
    ]
    assert float(torch.cat(moved).norm()) == pytest.approx(0.01, rel=1e-3)


@each_schedule
@each_form
def test_a_batch_on_the_device_is_learned_from_with_equal_losses(
    form: str, schedule: str, seed: int
) -> None:
    numbers = random_numbers(6, Shape(10, 3, 3))
    expected = learn(together(form, [make_agent(0)] * 3), estimated(numbers, form))
    with simulated_cuda(schedule, seed=seed):
        batch = EstimateAdvantage()(make_batch(numbers, form).to("device"))
        found = learn(together(form, [make_agent(0)] * 3), batch)
    assert found == expected


class Sizes(nn.Module):
    """A model of the sum of an agent's points, of which each observation has its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.pi, self.value = nn.Linear(2, N_ACTIONS), nn.Linear(2, 1)

    def forward(self, rows: Any) -> ModelOutputs:
        points = rows.padded()[0] if isinstance(rows, Jagged) else rows  # of points more, zeros
        features = points.tanh().sum(dim=1)
        return ModelOutputs(DistParams(logits=self.pi(features)), self.value(features).squeeze(-1))


@pytest.mark.parametrize("order", [[0, 0, 0], [0, 1, 0], [0, 1, 2]])
def test_agents_with_clouds_of_points_learn_as_with_padded_rows(order: list[int]) -> None:
    """The dead see NaN, which is not learned from; agents that share a model are run together."""

    numbers, rng = random_numbers(7, Shape(10, 3, 3)), np.random.default_rng(7)
    batch, T, B = estimated(numbers, "dictionary"), 10, 3
    clouds, padded = {}, {}
    for i, name in enumerate(NAMES):
        alive = numbers["valid"][..., i]
        padded[name] = Array((T, B), np.float32, feature_shape=(4, 2), padding=1)
        clouds[name] = JaggedArray((T, B), np.float32, feature_shape=(2,), capacity=4, padding=1)
        for t, b in np.ndindex(T, B):
            points = rng.standard_normal((int(rng.integers(5)), 2)).astype(np.float32)
            points[...] = points if alive[t, b] else np.nan
            clouds[name][t, b] = points
            padded[name][t, b, : len(points)] = points
    found = []
    for kind, example in (
        (clouds, Jagged.of([torch.zeros(1, 2)])),
        (padded, torch.zeros(1, 4, 2)),
    ):
        torch.manual_seed(0)
        made = [PgAgent(Sizes(), Categorical(N_ACTIONS), example) for _ in range(3)]
        agents = together("dictionary", [made[i] for i in order])
        found.append(learn(agents, batch.with_branches({"observation": ArrayDict(kind)})))
        assert all(torch.isfinite(each).all() for each in agents.model.parameters())
    for mine, own in zip(*found, strict=True):
        assert mine == pytest.approx(own, rel=1e-4, abs=1e-5)


# Saved, refused


@each_form
def test_saved_agents_go_on_with_the_same_actions(form: str, tmp_path: Path) -> None:
    first, other = make_agent(0), make_agent(1)
    agents = together(form, [first, other, first], Critic("each"))
    rows = observe(form, some_rows(20))
    agents.step(rows)
    agents.save(tmp_path / "model.safetensors")
    state = agents.state_dict()
    loaded, unlike = make_agent(5), make_agent(6)
    other_agents = together(form, [loaded, unlike, loaded], Critic("each"))
    other_agents.load_state_dict(
        {
            "model": {k: v.clone() for k, v in state["model"].items()},
            "generators": state["generators"],
        }
    )
    expected, found = agents.step(rows), other_agents.step(rows)
    for mine, own in ((found[0], expected[0]), (found[1]["value"], expected[1]["value"])):
        assert by_agent(mine).tobytes() == by_agent(own).tobytes()
    third = together(form, [make_agent(7), make_agent(8), make_agent(9)], Critic("each"))
    with pytest.raises(ValueError, match="of the model that are not in the file"):
        third.load(tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match="generators: the state has 2 of 2 agents, expected 0 of 1"
    ):
        together(form, [make_agent(0, generator=False)] * 3).load_state_dict(state)


def test_a_state_within_recurrent_agents_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = Lstm(N_OBS, 4), nn.Linear(4, 3)

        def forward(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    class State(PgAgent):
        def begin(self, n_envs: int) -> None: ...

        def reset_state(self, columns: Any) -> None: ...

    agent = State(make_agent(0).model, Categorical(N_ACTIONS), torch.zeros(1, N_OBS))
    with pytest.raises(TypeError, match="agent inky: State keeps a state for each environment"):
        IndependentPgAgents({"pinky": make_agent(0), "inky": agent})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: IndependentPgAgents({}), ValueError, "agents: got none, expected one for each"),
        (lambda: IndependentPgAgents([3]), TypeError, "agent 0: int has no step and no value"),
        (
            lambda: together("axis", [make_agent(0)] * 3).step(torch.zeros(4, 2, N_OBS)),
            ValueError,
            r"agents: got rows of shape \(4, 2, 3\), expected \(4, 3, ...\)",
        ),
        (
            lambda: together("dictionary", [make_agent(0)] * 3).step({"pinky": torch.zeros(4, 3)}),
            ValueError,
            r"agents: got rows of \['pinky'\], expected a branch for each of \['clyde', 'inky', 'p",
        ),
        (
            lambda: together("axis", [make_agent(0)] * 3).bind_actions(
                spaces.MultiDiscrete([2, 2])
            ),
            ValueError,
            r"action space: got agents \[0, 1\], expected 3 agents in an axis",
        ),
        (
            lambda: together("axis", [make_agent(0)] * 3).bind_actions(spaces.Discrete(2)),
            TypeError,
            r"action space: got Discrete\(2\), expected 3 agents in an axis",
        ),
        (
            lambda: together("axis", [make_agent(0)] * 3).bind_actions(
                spaces.MultiDiscrete([2, 3, 2])
            ),
            ValueError,
            r"agent 1: action space: got Discrete\(3\), expected Discrete\(2\)",
        ),
        (
            lambda: learn(
                together("dictionary", [make_agent(0)] * 2),
                estimated(random_numbers(1), "dictionary"),
            ),
            ValueError,
            r"batch: its advantages are those of agents \['pinky', 'inky', 'clyde'\], expected",
        ),
    ],
)
def test_agents_that_do_not_fit_are_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_batch_whose_numbers_are_not_finite_is_refused_with_the_agent() -> None:
    numbers = random_numbers(1, Shape(6, 2, 3), dies=False)
    batch = estimated(numbers, "dictionary")
    batch["observation"]["inky"][2, 1] = np.nan
    with pytest.raises(ValueError, match=r"observation.inky is nan in row t = 2 of environment 1"):
        learn(together("dictionary", [make_agent(0)] * 3), batch)


def test_actions_are_counted_from_each_agents_own_start() -> None:
    space = spaces.Dict(
        {name: spaces.Discrete(N_ACTIONS, start=10 * i) for i, name in enumerate(NAMES)}
    )
    agents = together("dictionary", [make_agent(seed) for seed in range(3)])
    agents.bind_actions(space)
    action, info = agents.step(observe("dictionary", some_rows(30)))
    for i, name in enumerate(NAMES):
        assert set(action[name].tolist()) == {10 * i, 10 * i + 1}
    taken = {name: each.clone() for name, each in action.items()}
    log_prob = agents.evaluate(observe("dictionary", some_rows(30)), taken).log_prob
    for name in NAMES:
        assert torch.allclose(log_prob[name], info["log_prob"][name].clone())

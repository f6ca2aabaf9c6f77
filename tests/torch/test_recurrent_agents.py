"""Recurrent agents: what they acted with is found again when their model runs over a batch."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from long_run import all_but_first
from parllel import ArrayDict
from parllel.cages import SerialCage
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.samplers import BasicSampler, EvalSampler, RecurrentAgent, RecurrentSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import (
    ModelOutputs,
    PreviousInputs,
    Recurrence,
    RecurrentPgAgent,
    RecurrentQAgent,
)
from parllel.torch.distributions import Categorical, DistParams, MultiCategorical
from parllel.torch.models import ActorCritic, Gru, Lstm, Mlp, QNetwork, RecurrentNetwork
from parllel.transforms import ClipRewards
from schedules import each_schedule

T, B, N_FEATURES = 12, 3, 8
# float32: the same sums of some 20 products of about 1, in another order, through T steps of
# layers that pass on at most twice an error: T * 2 * 20 * 2**-24.
CLOSE: dict[str, float] = {"rtol": 0, "atol": T * 2 * 20 * 2**-24}


class Roam(Walk):
    """Walk by other actions than those of a Discrete that counts from 0."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__()
        self.action_space = action_space

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(int(np.sum(action)) % 4)


def roam(action_space: spaces.Space[Any]) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Roam(action_space)


def make_model(
    space: spaces.Space[Any], kind: Any, previous: PreviousInputs | None, *, is_q: bool = False
) -> RecurrentNetwork:
    torch.manual_seed(0)
    n_logits = int(space.n if isinstance(space, spaces.Discrete) else space.nvec.sum())  # type: ignore[attr-defined]
    head: nn.Module
    if is_q:
        head = QNetwork(nn.Identity(), n_logits, n_features=N_FEATURES)
    else:
        head = ActorCritic(nn.Identity(), n_logits, n_features=N_FEATURES, policy_gain=3.0)
    n_inputs = 6 + (0 if previous is None else previous.n_features)
    return RecurrentNetwork(Mlp(3, [6]), kind(n_inputs, N_FEATURES), head)


def make_agent(
    space: spaces.Space[Any] = Walk.action_space,
    kind: Any = Lstm,
    *,
    has_previous: bool = True,
    is_q: bool = False,
    **options: Any,
) -> Any:
    previous = PreviousInputs(space) if has_previous else None
    model = make_model(space, kind, previous, is_q=is_q)
    generator = torch.Generator().manual_seed(0)
    options = {"previous": previous, "generator": generator, **options}
    if is_q:
        return RecurrentQAgent(model, torch.zeros(1, 3), 0.5, keeps_value=True, **options)
    distribution = (
        Categorical(4) if isinstance(space, spaces.Discrete) else MultiCategorical([3, 2])
    )
    return RecurrentPgAgent(model, distribution, torch.zeros(1, 3), **options)


def make_sampler(
    agent: Any,
    space: spaces.Space[Any] = Walk.action_space,
    *,
    storage: str = "local",
    n_envs: int = B,
    **tree: Any,
) -> RecurrentSampler:
    example = build_example(roam(space), storage=storage)
    samples = build_sample_tree(example, agent, batch_shape=(T, n_envs), **tree)
    return RecurrentSampler(build_cages(roam(space), n_envs, seed=0, n_workers=0), agent, samples)


def recurrence_of(batch: ArrayDict) -> Recurrence:
    """Return what a batch tells of states, by NumPy alone."""
    flat = batch.to_ndarray()
    is_first = np.zeros((T, flat["reward"].shape[1]), bool)
    is_first[1:] = (flat["terminated"] | flat["truncated"])[:-1]
    state = {name: torch.tensor(x) for name, x in flat["initial_rnn_state"].items()}
    previous = flat["agent_info"].get("previous")
    return Recurrence(
        state, torch.tensor(is_first), None if previous is None else torch.tensor(previous)
    )


SPACES = {
    "discrete": spaces.Discrete(4),
    "from 3 on": spaces.Discrete(4, start=3),
    "several": spaces.MultiDiscrete([3, 2]),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("kind", all_but_first([Lstm, Gru]))
@pytest.mark.parametrize("has_previous", [False, True])
def test_a_batch_is_evaluated_as_it_was_acted(
    space: spaces.Space[Any], kind: Any, has_previous: bool
) -> None:
    agent = make_agent(space, kind, has_previous=has_previous)
    assert isinstance(agent, RecurrentAgent)
    sampler = make_sampler(agent, space)
    n_ends = 0
    for _ in range(3):
        batch, completed = sampler.collect_batch()
        n_ends += len(completed)
        rows = batch["observation"].to_torch()
        found = agent.evaluate(rows, batch["action"].to_torch(), recurrence=recurrence_of(batch))
        kept = batch["agent_info"]
        torch.testing.assert_close(found.log_prob, kept["log_prob"].to_torch(), **CLOSE)
        torch.testing.assert_close(found.value, kept["value"].to_torch(), **CLOSE)
        assert found.entropy.shape == (T, B)
        found.value.sum().backward()
    assert n_ends > 10
    # A state that is not put back, or not carried from the batch before, gives other values.
    recurrence = recurrence_of(batch)
    for wrong in (
        recurrence._replace(is_first=torch.zeros(T, B, dtype=torch.bool)),
        recurrence._replace(initial_rnn_state=agent.model.first_state(B)),
    ):
        other = agent.evaluate(rows, batch["action"].to_torch(), recurrence=wrong)
        assert (other.value - found.value).abs().max() > 1e-3


def test_action_values_of_a_batch_are_those_that_it_was_acted_by() -> None:
    agent = make_agent(is_q=True)
    sampler = make_sampler(agent)
    for _ in range(3):
        batch, _ = sampler.collect_batch()
    rows = batch["observation"].to_torch()
    values = agent.action_values(rows, recurrence=recurrence_of(batch))
    assert values.shape == (T, B, 4)
    kept = batch["agent_info"]["value"].to_torch()
    torch.testing.assert_close(values.amax(-1), kept, **CLOSE)
    copied = make_model(Walk.action_space, Lstm, PreviousInputs(Walk.action_space), is_q=True)
    other = agent.action_values(rows, recurrence=recurrence_of(batch), model=copied)
    assert torch.equal(other, values)  # of the same weights
    with torch.no_grad():
        copied.head.head.bias[2] += 100  # type: ignore[union-attr,operator]
    other = agent.action_values(rows, recurrence=recurrence_of(batch), model=copied)
    assert (other[..., 2] - values[..., 2]).min() > 99
    taken = batch["action"].to_torch()
    is_best = taken == values.argmax(-1)
    assert 0.4 < is_best.float().mean() < 0.9  # epsilon is 0.5, and a quarter of those are best


def test_each_environment_is_acted_for_as_if_it_were_alone() -> None:
    agent = make_agent(is_q=True)
    agent.begin(B)
    alone = [make_agent(is_q=True) for _ in range(B)]
    for each in alone:
        each.begin(1)
    for t in range(8):
        rows, reward = torch.randn(B, 3), torch.randn(B)
        value = agent.value(rows)
        action, _ = agent.step(rows, deterministic=True)
        agent.receive_reward(reward)
        for env, each in enumerate(alone):
            torch.testing.assert_close(each.value(rows[[env]]), value[[env]], **CLOSE)
            torch.testing.assert_close(
                agent.value(rows[[env, env]], columns=[env, env])[1:],
                each.value(rows[[env]]) * 0 + agent.value(rows[[env]], columns=[env]),
            )
            assert each.step(rows[[env]], deterministic=True)[0] == action[env]
            each.receive_reward(reward[[env]])
        if t == 4:
            agent.reset_state([1])
            alone[1].begin(1)


# The previous action and reward


class Ledger(nn.Module):
    """Values what it is told: the previous action's number times 100, and the previous reward."""

    def first_state(self, n_envs: int) -> dict[str, Tensor]:
        return {"count": torch.zeros(n_envs)}

    def forward(self, observation: Tensor, state: Any, is_first: Any, previous: Tensor) -> Any:
        numbers = 100 * torch.arange(1.0, 5.0)
        value = (previous[..., :4] * numbers).sum(-1) + previous[..., 4]
        logits = torch.zeros(value.numel(), 4)
        count = state["count"] + len(observation)
        return ModelOutputs(DistParams(logits=logits), value.flatten()), {"count": count}


def ledger_batches(n_batches: int, **options: Any) -> Any:
    previous = PreviousInputs(Walk.action_space)
    generator = torch.Generator().manual_seed(0)
    example_obs = torch.zeros(1, 3)
    agent = RecurrentPgAgent(
        Ledger(), Categorical(4), example_obs, generator, previous=previous, **options
    )
    sampler = make_sampler(agent)
    for _ in range(n_batches):
        yield sampler.collect_batch()[0]


def test_the_previous_action_and_reward_are_those_of_the_episode() -> None:
    """By a loop over all steps: in values, in those of final observations, behind the batch."""
    told = np.zeros(B)
    n_cut = 0
    for batch in ledger_batches(4):
        flat = batch.to_ndarray()
        for t in range(T):
            np.testing.assert_allclose(flat["agent_info"]["value"][t], told, rtol=1e-6)
            after = 100 * (flat["action"][t] + 1) + flat["reward"][t]
            is_cut = flat["truncated"][t] & ~flat["terminated"][t]
            np.testing.assert_allclose(flat["final_value"][t][is_cut], after[is_cut], rtol=1e-6)
            n_cut += is_cut.sum()
            told = np.where(flat["terminated"][t] | flat["truncated"][t], 0, after)
        np.testing.assert_allclose(flat["bootstrap_value"], told, rtol=1e-6)
        behind = batch["agent_info"]["value"][T].to_ndarray()
        np.testing.assert_allclose(behind, told, rtol=1e-6)
        state = flat["initial_rnn_state"]["previous"]
        np.testing.assert_array_equal(state, flat["agent_info"]["previous"][0])
    assert n_cut > 5
    assert (told != 0).any()


@pytest.mark.parametrize(
    ("name", "is_q"), [("from 3 on", False), ("from 3 on", True), ("several", False)]
)
def test_previous_actions_are_counted_from_0(name: str, is_q: bool) -> None:
    """Whatever number the space's actions begin at."""
    space: Any = SPACES[name]
    agent = make_agent(space, is_q=is_q)
    sampler = make_sampler(agent, space)
    batch = sampler.collect_batch()[0].to_ndarray()
    counts = [space.n] if isinstance(space, spaces.Discrete) else space.nvec.tolist()
    own = batch["action"].reshape(T, B, -1) - space.start
    chosen = [np.eye(count)[own[..., i]] for i, count in enumerate(counts)]
    goes_on = ~(batch["terminated"] | batch["truncated"])[:-1]
    found = batch["agent_info"]["previous"][1:, :, :-1]
    np.testing.assert_array_equal(found[goes_on], np.concatenate(chosen, axis=2)[:-1][goes_on])
    assert goes_on.sum() > T


def test_what_transforms_make_of_rewards_is_not_what_the_agent_was_told() -> None:
    batch = list(ledger_batches(2))[1]
    clipped = ClipRewards(-0.1, 0.1)(batch)
    assert not np.array_equal(clipped["reward"], batch["reward"])
    previous = clipped["agent_info"]["previous"].to_ndarray()[..., -1]
    is_first = recurrence_of(batch).is_first.numpy()
    expected = np.where(is_first[1:], 0, batch["reward"].to_ndarray()[:-1])
    np.testing.assert_array_equal(previous[1:], expected)


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3, start=5), [[2], [0]], [[0, 0, 1, 7], [1, 0, 0, 8]]),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [0, 0]], [[0, 1, 0, 0, 1, 7], [1, 0, 1, 0, 0, 8]]),
        (spaces.MultiBinary(2), [[1, 0], [0, 0]], [[0, 1, 1, 0, 7], [1, 0, 1, 0, 8]]),
        (spaces.Box(-1, 1, (2,)), [[0.5, -1.0], [0.25, 0.0]], [[0.5, -1, 7], [0.25, 0, 8]]),
    ],
)
def test_actions_of_each_space_become_inputs(
    space: spaces.Space[Any], action: Any, expected: Any
) -> None:
    previous = PreviousInputs(space)
    rows = torch.tensor(action)
    rows = rows[:, 0] if isinstance(space, spaces.Discrete) else rows
    found = previous.encode(rows, torch.tensor([7.0, 8.0]))
    assert found.dtype == torch.float32
    assert found.tolist() == expected
    assert previous.n_features == len(expected[0])
    assert previous.encode(rows[None], torch.tensor([[7.0, 8.0]])).tolist() == [expected]
    assert previous.first(2, rows.device).tolist() == [[0] * previous.n_features] * 2


def test_a_space_or_rows_that_are_no_actions_are_refused() -> None:
    with pytest.raises(TypeError, match="action space: got Dict"):
        PreviousInputs(spaces.Dict({}))
    with pytest.raises(ValueError, match=r"action \(2, 1\) and reward \(2,\), expected actions of"):
        PreviousInputs(spaces.Discrete(2)).encode(torch.zeros(2, 1).long(), torch.zeros(2))


# The order of calls


def test_a_reward_comes_between_two_steps() -> None:
    agent, rows = make_agent(), torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="there is no state; call begin before"):
        agent.step(rows)
    agent.begin(2)
    with pytest.raises(RuntimeError, match="got a reward without a step"):
        agent.receive_reward(torch.zeros(2))
    agent.step(rows)
    for call in (agent.step, agent.value):
        with pytest.raises(RuntimeError, match="the reward of the last step is missing"):
            call(rows)
    with pytest.raises(ValueError, match=r"reward: got \(3,\), expected \(2,\)"):
        agent.receive_reward(torch.zeros(3))
    agent.receive_reward(np.ones(2, np.float32))
    agent.step(rows)
    agent.begin(2)  # a reset of all environments: no reward will come
    agent.step(rows)
    without = make_agent(has_previous=False)
    without.begin(2)
    for _ in range(2):
        without.step(rows)
    without.receive_reward(torch.zeros(5))  # whatever it is


def test_a_recurrent_agent_learns_from_sequences_alone() -> None:
    rows, action = torch.zeros(T, B, 3), torch.zeros(T, B, dtype=torch.int64)
    agent = make_agent()
    with pytest.raises(TypeError, match="RecurrentPgAgent: got no recurrence, expected one"):
        agent.evaluate(rows, action)
    recurrence = Recurrence(agent.model.first_state(B), torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(ValueError, match="previous: the sequences have none, and the agent takes"):
        agent.evaluate(rows, action, recurrence=recurrence)
    with pytest.raises(TypeError, match="RecurrentQAgent: got no recurrence"):
        make_agent(is_q=True).action_values(rows)
    sampler = make_sampler(agent)
    with pytest.raises(TypeError, match=r"RecurrentPgAgent keeps a state .* use RecurrentSampler"):
        BasicSampler(sampler.cages, agent, sampler.samples)


def test_models_without_a_state_are_refused() -> None:
    with pytest.raises(TypeError, match="model: Linear has no first_state, expected a model that"):
        RecurrentPgAgent(nn.Linear(3, 2), Categorical(2), torch.zeros(1, 3))

    class Growing(Ledger):
        def forward(self, observation: Tensor, state: Any, *others: Any) -> Any:
            outputs = ModelOutputs(DistParams(logits=torch.zeros(1, 4)), torch.zeros(1))
            return outputs, {"count": torch.zeros(2)}

    with pytest.raises(ValueError, match=r"model: its state is .* before a step and .* after it"):
        RecurrentPgAgent(Growing(), Categorical(4), torch.zeros(1, 3))

    class Single(Ledger):
        def forward(self, observation: Tensor, state: Any, *others: Any) -> Any:
            return torch.zeros(1, 4)

    with pytest.raises(TypeError, match="it returned a Tensor, expected a pair"):
        RecurrentQAgent(Single(), torch.zeros(1, 3), 0.1)
    with pytest.raises(ValueError, match=r"dist_params has shape \(1, 4\), expected \(1, 3\)"):
        RecurrentPgAgent(
            make_model(Walk.action_space, Lstm, None), Categorical(3), torch.zeros(1, 3)
        )


@pytest.mark.parametrize(
    ("first_state", "message"),
    [
        (lambda n: (torch.zeros(n, 2), torch.zeros(n, 2)), "first_state: got .*, expected a dict"),
        (
            lambda n: {"h": {"deep": torch.zeros(n, 2)}},
            r"first_state: got \['.*[dD]ict'\], expected",
        ),
        (lambda n: {}, "expected a dictionary of tensors, one at least"),
        (lambda n: {"h": torch.zeros(1, n, 2)}, r"\(1, 2, 2\) of 'h' for 2 environments, expected"),
        (lambda n: {"h": torch.zeros(())}, r"got \(\) of 'h' for 2 environments"),
        (lambda n: {"previous": torch.zeros(n)}, "'previous', which is the name of the previous"),
    ],
)
def test_a_state_that_has_no_rows_is_refused(first_state: Any, message: str) -> None:
    model = Ledger()
    model.first_state = first_state  # type: ignore[method-assign]
    with pytest.raises((TypeError, ValueError), match=message):
        RecurrentPgAgent(model, Categorical(4), torch.zeros(1, 3))


class Bfloat16(nn.Module):
    """Keeps all that it was given in a short float, from a number that is not 0."""

    def first_state(self, n_envs: int) -> dict[str, Tensor]:
        return {"sum": torch.full((n_envs,), 0.5, dtype=torch.bfloat16)}

    def forward(
        self, observation: Tensor, state: Any, is_first: Any = None, previous: Any = None
    ) -> Any:
        assert list(state) == ["sum"]
        total, values = state["sum"], []
        assert total.dtype == torch.bfloat16
        for t, row in enumerate(observation):
            if is_first is not None:
                total = torch.where(is_first[t], self.first_state(len(row))["sum"], total)
            total = total + row.sum(-1).bfloat16() / 8
            values.append(total.float())
        value = torch.cat(values)
        return ModelOutputs(DistParams(logits=torch.zeros(len(value), 4)), value), {"sum": total}


def test_a_state_begins_as_the_model_has_it_in_each_episode_and_dtype() -> None:
    agent = RecurrentPgAgent(
        Bfloat16(),
        Categorical(4),
        torch.zeros(1, 3),
        torch.Generator().manual_seed(0),
        previous=PreviousInputs(Walk.action_space),
        keeps_state=True,
    )
    sampler = make_sampler(agent)
    n_ends = 0
    for _ in range(3):
        batch, completed = sampler.collect_batch()
        n_ends += len(completed)
        rows, told = batch["observation"].to_torch(), recurrence_of(batch)
        found = agent.evaluate(rows, batch["action"].to_torch(), recurrence=told).value
        assert torch.equal(found, batch["agent_info"]["value"].to_torch())
        kept = batch["agent_info"]["rnn_state"]["sum"].to_ndarray()
        assert (kept[told.is_first.numpy()] == 0.5).all()
        rest = agent.burn_in(rows, told, 5)
        assert rest.initial_rnn_state["sum"].dtype == torch.bfloat16
    assert n_ends > B


def test_previous_inputs_of_other_actions_are_refused() -> None:
    wrong: Any
    for wrong in (spaces.Discrete(3), spaces.Discrete(5), spaces.Box(-1, 1, ()), SPACES["several"]):
        agent = make_agent()
        agent._previous = PreviousInputs(wrong)
        with pytest.raises(ValueError, match=r"action space: got .* of which the previous inputs"):
            agent.bind_actions(Walk.action_space)
    make_agent().bind_actions(SPACES["from 3 on"])  # counted from 0 by the agent


def test_trying_a_model_leaves_no_state_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    agent = RecurrentPgAgent(
        Ledger(),
        Categorical(4),
        torch.zeros(1, 3),
        previous=PreviousInputs(Walk.action_space),
    )
    assert agent.rnn_state is None
    assert torch.equal(torch.get_rng_state(), before)


# The state that is kept, and saved


@pytest.mark.parametrize("is_q", [False, True])
def test_the_state_of_each_step_is_kept(is_q: bool) -> None:
    agent = make_agent(is_q=is_q, keeps_state=True)
    sampler = make_sampler(agent, full_size=2 * T)
    for _ in range(3):
        batch, _ = sampler.collect_batch()
    kept = batch["agent_info"]
    assert {path: leaf.shape for path, leaf in leaves(kept["rnn_state"]).items()} == {
        "hidden": (T, B, 1, N_FEATURES),
        "cell": (T, B, 1, N_FEATURES),
    }
    whole, rows = recurrence_of(batch), batch["observation"].to_torch()
    for t in (0, 5, T - 1):
        state = {name: torch.tensor(x[t].to_ndarray()) for name, x in kept["rnn_state"].items()}
        assert whole.previous is not None
        rest = Recurrence(state, whole.is_first[t:], whole.previous[t:])
        if is_q:
            found = agent.action_values(rows[t:], recurrence=rest).amax(-1)
        else:
            found = agent.evaluate(rows[t:], batch["action"].to_torch()[t:], recurrence=rest).value
        torch.testing.assert_close(found, kept["value"].to_torch()[t:], **CLOSE)
    first = {name: x[0].to_ndarray() for name, x in kept["rnn_state"].items()}
    for name, part in first.items():
        np.testing.assert_array_equal(part, batch["initial_rnn_state"][name])


def test_a_sampler_goes_on_with_the_state_and_what_was_told_last() -> None:
    def make() -> RecurrentSampler:
        return make_sampler(make_agent())

    one, other = make(), make()
    for _ in range(2):
        one.collect_batch()
    state, actor = one.state_dict(), one.agent.state_dict()
    samples = {path: leaf.full.to_ndarray().copy() for path, leaf in leaves(one.samples).items()}
    expected = one.collect_batch()[0].to_ndarray()
    other.reset()
    for path, leaf in leaves(other.samples).items():
        leaf.full[...] = samples[path]
    last = samples["observation"]
    assert last.shape[0] >= T
    other.samples["observation"][T] = one.samples["observation"][0]  # where the batch began
    other.load_state_dict(state)
    other.agent.load_state_dict(actor)
    found = other.collect_batch()[0].to_ndarray()
    for (path, mine), own in zip(leaves(found).items(), leaves(expected).values(), strict=True):
        np.testing.assert_array_equal(mine, own, err_msg=path)
    assert (expected["initial_rnn_state"]["previous"] != 0).any()


def test_an_evaluation_tells_rewards_and_gives_the_state_back() -> None:
    agent = make_agent()
    sampler = make_sampler(agent)
    sampler.collect_batch()
    before = {name: part.clone() for name, part in agent.rnn_state.items()}
    told: list[Sequence[float]] = []
    receive = agent.receive_reward
    agent.receive_reward = lambda reward: (
        told.append(reward.to_ndarray().tolist()),
        receive(reward),
    )[1]
    with SerialCage(Walk, n_envs=2, seed=1) as cage, ExitStack() as stack:
        eval_sampler = EvalSampler([cage], agent, n_episodes=4, storage="local")
        stack.callback(eval_sampler.close)
        episodes = eval_sampler.collect_episodes()
    assert len(episodes) == 4
    assert len(told) >= max(episode.length for episode in episodes)
    first = min(episodes, key=lambda episode: episode.length)
    assert any(
        sum(row[env] for row in told[: first.length]) == pytest.approx(first.episode_return)
        for env in range(2)
    )
    assert all(torch.equal(part, before[name]) for name, part in agent.rnn_state.items())
    sampler.collect_batch()


@each_schedule
@pytest.mark.parametrize("is_q", all_but_first([False, True]))
def test_on_the_device_batches_are_the_same(schedule: str, seed: int, is_q: bool) -> None:
    def collect(storage: str) -> list[dict[str, Any]]:
        agent = make_agent(is_q=is_q, keeps_state=True)
        sampler = make_sampler(agent, full_size=2 * T, storage=storage)
        batches = []
        for _ in range(3):
            batch, _ = sampler.collect_batch()
            batches.append(
                {path: leaf.to_ndarray().tolist() for path, leaf in leaves(batch).items()}
            )
        return batches

    expected = collect("local")
    with simulated_cuda(schedule, seed):
        assert collect("device") == expected

"""DQN of an agent with a state: returns within windows, and updates computed by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from long_run import all_but_first
from parllel import ArrayDict
from parllel.torch.agents import PreviousInputs, QAgent, RecurrentQAgent
from parllel.torch.algos import DQN, DQNSettings
from parllel.torch.algos.sequence_returns import n_step_returns, squash, unsquash
from parllel.torch.models import Gru, Lstm, Mlp, QNetwork, RecurrentNetwork
from profiles import fewer_examples

K, N, N_ACTIONS = 6, 5, 3
SPACE = spaces.Discrete(N_ACTIONS, start=2)


# Returns


def returns_by_hand(
    reward: Any, terminated: Any, mask: Any, value: Any, n_steps: int, discount: float
) -> Any:
    """Walk ahead from each step, as far as steps can be learned from."""
    n_rows, n_windows = reward.shape
    returns = np.zeros((n_rows, n_windows))
    for t in range(n_rows):
        for b in range(n_windows):
            factor, at = 1.0, t
            for k in range(n_steps):
                returns[t, b] += factor * reward[at, b]
                factor *= discount
                is_end, at = terminated[at, b], at + 1
                if is_end:
                    factor = 0.0
                if is_end or k == n_steps - 1 or at == n_rows or not mask[at, b]:
                    break
            if factor:
                returns[t, b] += factor * value[at, b]
    return returns


@fewer_examples(2)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 8),
    n_steps=st.integers(1, 10),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
def test_returns_are_those_of_a_walk_ahead(
    seed: int, n_rows: int, n_steps: int, discount: float
) -> None:
    rng = np.random.default_rng(seed)
    reward = rng.standard_normal((n_rows, N)).astype(np.float32)
    value = rng.standard_normal((n_rows + 1, N)).astype(np.float32)
    terminated, mask = rng.random((n_rows, N)) < 0.2, rng.random((n_rows, N)) < 0.8
    reward[~mask], value[:-1][~mask] = rng.choice([0, 7]), rng.choice([1, 3])
    found = n_step_returns(
        *map(torch.from_numpy, (reward, terminated, mask, value)),
        n_steps=n_steps,
        discount=discount,
    )
    expected = returns_by_hand(reward, terminated, mask, value, n_steps, discount)
    # n_steps products and sums of numbers below 7 + 3.
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=n_steps * 2**-22 * 40)


def test_nothing_comes_back_from_behind_a_termination() -> None:
    reward, value = torch.ones(2, 1), torch.full((3, 1), torch.inf)
    terminated = torch.tensor([[False], [True]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    found = n_step_returns(reward, terminated, mask, value, n_steps=2, discount=0.5)
    assert found.tolist() == [[1.5], [1.0]]


@given(number=st.floats(-1e6, 1e6, width=32))
def test_values_are_squashed_and_back(number: float) -> None:
    exact = np.sign(number) * (np.sqrt(abs(np.float64(number)) + 1) - 1) + 1e-3 * number
    squashed = squash(torch.tensor([number]))
    # The root, the sum and the difference are rounded: each to 2**-24 of at most |x| + 1.
    assert abs(squashed.item() - exact) <= 2**-22 * (abs(exact) + 1)
    assert abs(unsquash(squashed).item() - number) <= 2e-6 * (1 + abs(number))
    back = unsquash(torch.tensor([exact], dtype=torch.float64)).item()
    assert back == pytest.approx(number, rel=1e-9, abs=1e-12)


# Updates


class Windows:
    """Windows as a buffer of sequences draws them, of random numbers; it keeps the errors.

    Args:
        burn_in: rows before those to learn from.
        has_priority: whether windows have weights.
    """

    def __init__(self, burn_in: int, seed: int, *, has_previous: bool) -> None:
        rng = np.random.default_rng(seed)
        self.burn_in = burn_in
        n_rows = burn_in + K
        is_first = rng.random((n_rows + 1, N)) < 0.2
        terminated = np.zeros((n_rows, N), bool)
        # Where an episode begins, the one before has terminated, or was cut off behind its step.
        terminated[is_first[1:]] = rng.random(int(is_first[1:].sum())) < 0.5
        mask = rng.random((n_rows, N)) < 0.8
        mask &= ~(is_first[1:] & ~terminated)
        mask[:burn_in] = False
        action = rng.integers(2, 2 + N_ACTIONS, (n_rows, N))
        reward = rng.normal(0, 2, (n_rows, N)).astype(np.float32)
        action[burn_in:][~mask[burn_in:]] = 0  # as rows that are no steps have it
        tree: dict[str, Any] = {
            "observation": rng.standard_normal((n_rows + 1, N, 3)).astype(np.float32),
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "is_first": is_first,
            "mask": mask,
            "weight": rng.random(N).astype(np.float32),
            "index": np.arange(N),
        }
        state = {
            name: rng.normal(0, 0.5, (N, 1, 4)).astype(np.float32) for name in ("hidden", "cell")
        }
        if has_previous:
            previous = rng.random((n_rows, N, N_ACTIONS + 1)).astype(np.float32)
            tree["agent_info"] = {"previous": previous}
        self.rows = ArrayDict(tree | {"initial_rnn_state": state})

    def sample(self, batch_size: int) -> ArrayDict:
        assert batch_size == N
        return self.rows.apply(torch.from_numpy)


class Prioritized(Windows):
    beta = 0.4

    def update_priorities(self, index: Tensor, error: Tensor, mask: Tensor) -> None:
        self.told = index, error, mask


def make_agent(*, kind: Any = Lstm, has_previous: bool = True) -> RecurrentQAgent:
    torch.manual_seed(0)
    previous = PreviousInputs(SPACE) if has_previous else None
    n_inputs = 4 + (0 if previous is None else previous.n_features)
    head = QNetwork(nn.Identity(), N_ACTIONS, n_features=4)
    model = RecurrentNetwork(Mlp(3, [4]), kind(n_inputs, 4), head)
    agent = RecurrentQAgent(model, torch.zeros(1, 3), 0.1, previous=previous, keeps_state=True)
    agent.bind_actions(SPACE)
    return agent


def other_model(agent: RecurrentQAgent) -> Any:
    """Return a target network that has gone another way."""
    other = make_agent(has_previous=agent._previous is not None).model
    assert isinstance(other, nn.Module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return other


def values_by_hand(
    model: Any, windows: dict[str, Any], b: int, *, has_previous: bool, burn_in: int
) -> Tensor:
    """Return the values of all rows behind the burn-in of one window, step by step."""
    state = {
        name: torch.tensor(part[[b]])
        for name, part in windows["initial_rnn_state"].items()
        if name in model.core.names
    }
    values = []
    for t in range(len(windows["is_first"])):
        if windows["is_first"][t, b]:
            state = model.first_state(1)
        told = []
        if has_previous:
            inputs = np.zeros(N_ACTIONS + 1, np.float32)
            if t == 0:
                inputs[:] = windows["agent_info"]["previous"][0, b]
            elif not windows["is_first"][t, b]:
                action = windows["action"][t - 1, b] - 2
                inputs[:N_ACTIONS] = np.arange(N_ACTIONS) == action
                inputs[N_ACTIONS] = windows["reward"][t - 1, b]
            told = [None, torch.tensor(inputs).view(1, 1, -1)]
        if t == burn_in:
            state = {name: part.detach() for name, part in state.items()}
        seen = torch.tensor(windows["observation"][t, b]).view(1, 1, -1)
        found, state = model(seen, state, *told)
        if t >= burn_in:
            values.append(found[0])
    return torch.stack(values)


def by_hand(
    agent: RecurrentQAgent, target: Any, replay: Windows, settings: DQNSettings
) -> tuple[Tensor, Any]:
    """Return the loss and the errors [K, N], window by window and step by step."""
    windows: dict[str, Any] = dict(replay.rows)
    has_previous = agent._previous is not None
    options: dict[str, Any] = {"has_previous": has_previous, "burn_in": replay.burn_in}
    losses, errors = [], np.zeros((K, N))
    for b in range(N):
        own = values_by_hand(agent.model, windows, b, **options)
        other = values_by_hand(target, windows, b, **options).detach()
        best = (own if settings.double else other).argmax(1)
        value = other[torch.arange(K + 1), best].numpy().astype(np.float64)
        if settings.rescales_values:
            value = np.array([float(unsquash(torch.tensor(x))) for x in value])
        rows = {
            name: windows[name][replay.burn_in :, [b]] for name in ("reward", "terminated", "mask")
        }
        assert settings.n_steps is not None
        assert settings.discount is not None
        returns = returns_by_hand(
            *rows.values(), value[:, None], settings.n_steps, settings.discount
        )
        if settings.rescales_values:
            returns = squash(torch.from_numpy(returns)).numpy()
        for t in range(K):
            if rows["mask"][t, 0]:
                taken = own[t, windows["action"][replay.burn_in + t, b] - 2]
                error = taken - float(returns[t, 0])
                errors[t, b] = float(error.detach())
                is_small = settings.loss == "squared" or abs(errors[t, b]) <= 1
                loss = error**2 / 2 if is_small else error.abs() - 0.5
                losses.append(float(windows["weight"][b]) * loss)
    return torch.stack(losses).mean(), errors


def weights(model: Any) -> Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


@pytest.mark.parametrize(
    ("burn_in", "options"),
    all_but_first(
        [
            (3, {"n_steps": 3}),
            (2, {"n_steps": 9, "rescales_values": True}),
            (3, {"n_steps": 3, "double": False, "loss": "squared"}),
            (0, {"n_steps": 1}),
        ],
        n_short=2,
    ),
)
@pytest.mark.parametrize("has_previous", [False, True])
def test_an_update_is_that_of_a_loop_over_steps(
    burn_in: int, options: dict[str, Any], has_previous: bool
) -> None:
    agent = make_agent(has_previous=has_previous)
    target = other_model(agent)
    replay: Any = Prioritized(burn_in, 1, has_previous=has_previous)
    mask = replay.rows["mask"][burn_in:]
    assert 0 < mask.sum() < mask.size
    settings = DQNSettings(batch_size=N, discount=0.9, max_grad_norm=1e9, **options)
    model: Any = agent.model
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    dqn = DQN(agent, replay, optimizer, settings)
    dqn.load_state_dict({**dqn.state_dict(), "target": target.state_dict()})
    loss, errors = by_hand(agent, target, replay, settings)
    gradient = torch.cat([x.flatten() for x in torch.autograd.grad(loss, model.parameters())])
    assert gradient.norm() > 0.01
    before = weights(model)
    numbers = dqn.optimize(ArrayDict())
    # Sums of N * K = 30 products of about 1, in another order, through layers of 4.
    torch.testing.assert_close(before - weights(model), gradient, rtol=1e-3, atol=1e-6)
    assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert numbers["td_error"] == pytest.approx(abs(errors).sum() / mask.sum(), rel=1e-4)
    index, error, told = replay.told
    assert index.tolist() == list(range(N))
    np.testing.assert_allclose(error.numpy(), errors, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(told.numpy(), mask)


def test_without_priorities_all_windows_weigh_alike() -> None:
    agent = make_agent(kind=Gru)
    replay: Any = Windows(2, 0, has_previous=True)
    replay.rows["weight"][...] = 1
    settings = DQNSettings(batch_size=N, n_steps=2, discount=0.9)
    loss, _ = by_hand(agent, agent.model, replay, settings)
    replay.rows["weight"][...] = np.nan  # which nothing reads
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    numbers = DQN(agent, replay, optimizer, settings).optimize(ArrayDict())
    assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def is_used(rows: Any, burn_in: int) -> Any:
    """Walk back from each row that is read, to where its episode begins: bool [R + 1, N]."""
    mask, used = rows["mask"], np.zeros_like(rows["is_first"])
    used[:burn_in] = True
    for t, b in np.ndindex(used.shape):
        is_after = t > 0 and mask[t - 1, b] and not rows["terminated"][t - 1, b]
        if is_after or (t < len(mask) and mask[t, b]):
            first = t
            while first > 0 and not rows["is_first"][first, b]:
                first -= 1
            used[first : t + 1, b] = True
    return used


@pytest.mark.parametrize("has_previous", [False, True])
def test_what_can_not_be_learned_from_changes_nothing(has_previous: bool) -> None:
    results = []
    for is_spoiled in (False, True):
        agent = make_agent(has_previous=has_previous)
        replay: Any = Windows(2, 6, has_previous=has_previous)
        rows = replay.rows
        is_unused = ~is_used(rows, 2)
        assert (is_unused[1:] & rows["mask"] & rows["terminated"]).any()
        # The reward of a step is an input of the next row, too.
        is_told = ~is_unused[1:] if has_previous else np.zeros_like(rows["mask"])
        is_told &= ~rows["is_first"][1:]
        if is_spoiled:
            rows["observation"][is_unused] = np.nan
            rows["reward"][~rows["mask"] & ~is_told] = np.nan
        optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
        settings = DQNSettings(batch_size=N, n_steps=3, discount=0.9, n_updates=2)
        results.append(DQN(agent, replay, optimizer, settings).optimize(ArrayDict()))
        results.append(weights(agent.model).tolist())
    assert results[:2] == results[2:]


def test_agents_and_buffers_that_do_not_go_together_are_refused() -> None:
    agent, windows = make_agent(), Windows(0, 0, has_previous=True)
    still = QAgent(nn.Linear(3, N_ACTIONS), torch.zeros(1, 3), 0.1)
    optimizer: Any = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    sequences = DQNSettings(n_steps=2, discount=0.9)
    transitions: Any = object()
    with pytest.raises(ValueError, match="replay: got a object, which draws transitions, expected"):
        DQN(agent, transitions, optimizer, sequences)
    with pytest.raises(ValueError, match="agent: QAgent goes on from no state, expected one that"):
        DQN(still, windows, optimizer, sequences)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_steps: got none for sequences, expected n_steps and"):
        DQN(agent, windows, optimizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_steps: got 2, expected n_steps and discount in DQNSet"):
        DQN(still, transitions, optimizer, sequences)
    with pytest.raises(ValueError, match="n_steps: got 2 with discount None, expected both"):
        DQNSettings(n_steps=2)
    with pytest.raises(ValueError, match=r"discount: got 1\.5"):
        DQNSettings(n_steps=2, discount=1.5)
    with pytest.raises(TypeError, match="rescales_values: got 1, expected True or False"):
        DQNSettings(rescales_values=1)  # type: ignore[arg-type]


def test_windows_without_a_step_to_learn_from_are_told_and_change_nothing() -> None:
    agent, windows = make_agent(), Windows(0, 0, has_previous=True)
    windows.rows["mask"][...] = False
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    settings = DQNSettings(batch_size=N, n_steps=2, discount=0.9)
    dqn = DQN(agent, windows, optimizer, settings)  # type: ignore[arg-type]
    before = weights(agent.model)
    assert np.isnan(dqn.optimize(ArrayDict())["loss"])  # which a runner refuses
    assert torch.equal(weights(agent.model), before)


@pytest.mark.parametrize("name", ["initial_rnn_state", "agent_info"])
def test_windows_without_what_the_agent_goes_on_from_are_refused(name: str) -> None:
    agent, windows = make_agent(), Windows(0, 0, has_previous=True)
    del windows.rows[name]
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    settings = DQNSettings(batch_size=N, n_steps=2, discount=0.9)
    dqn = DQN(agent, windows, optimizer, settings)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"windows: there is no (initial_rnn|agent_info\.previous)"
    ):
        dqn.optimize(ArrayDict())

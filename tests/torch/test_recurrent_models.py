"""LSTM and GRU cores against their formulas in double precision, with the bound of rounding."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from parllel.torch.distributions import DistParams
from parllel.torch.models import (
    ActorCritic,
    Gru,
    Lstm,
    Mlp,
    QNetwork,
    RecurrentNetwork,
)
from parllel.torch.models.recurrent_core import RecurrentCore
from profiles import fewer_examples

N_INPUTS, N_FEATURES = 3, 4
U = 2**-24  # of float32: a rounded number is off by at most this share of it
# torch's sigmoid and tanh are off by at most this, besides what their argument is.
FUNCTION_ERROR = 8 * U

each_core = pytest.mark.parametrize("kind", [Lstm, Gru])


class Reference(NamedTuple):
    """Features and state of a core in double precision, and how far off float32 may be."""

    features: np.ndarray
    bound: np.ndarray
    state: dict[str, np.ndarray]


def make_core(kind: type[RecurrentCore], **options: Any) -> RecurrentCore:
    torch.manual_seed(0)
    core = kind(N_INPUTS, N_FEATURES, **options)
    with torch.no_grad():
        for parameter in core.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-1, 1)
    return core


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_formulas(
    core: RecurrentCore, inputs: np.ndarray, state: dict[str, np.ndarray], is_first: np.ndarray
) -> Reference:
    """Return what torch's documentation of the layers says, environment by environment.

    The bound goes from step to step as errors do. A sum of K products is off by K * U of the sum of
    their absolute values, in whatever order they are added; sigmoid and tanh have slopes of at most
    1 / 4 and 1; what a step makes of the state's error is taken from the formulas' derivatives.
    Terms of second order are covered by a factor of 2.
    """
    weights = {
        name: each.detach().double().numpy() for name, each in core.layers.named_parameters()
    }
    w, r = weights["weight_ih_l0"], weights["weight_hh_l0"]
    b, c = weights["bias_ih_l0"], weights["bias_hh_l0"]
    n_terms = N_INPUTS + N_FEATURES + 2
    features = np.zeros((*inputs.shape[:2], N_FEATURES))
    bound = np.zeros_like(features)
    after = {name: np.zeros_like(part[:, 0]) for name, part in state.items()}
    for env in range(inputs.shape[1]):
        hidden, cell = (state.get(name, state["hidden"])[env, 0] for name in ("hidden", "cell"))
        off, cell_off = np.zeros(N_FEATURES), np.zeros(N_FEATURES)
        for t in range(len(inputs)):
            if is_first[t, env]:
                hidden, cell, off, cell_off = (0 * each for each in (hidden, cell, off, cell_off))
            x = inputs[t, env]
            from_x, from_h = w @ x + b, r @ hidden + c
            size = abs(w) @ abs(x) + abs(b) + abs(r) @ abs(hidden) + abs(c)
            sum_off = n_terms * U * size + abs(r) @ off
            if isinstance(core, Lstm):
                i, f, g, o = np.split(from_x + from_h, 4)
                di, df, dg, do = np.split(sum_off, 4)
                i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
                di, df, do = (each / 4 + FUNCTION_ERROR for each in (di, df, do))
                dg = dg + FUNCTION_ERROR
                cell_off = f * cell_off + abs(cell) * df + abs(g) * di + i * dg
                cell = f * cell + i * g
                cell_off += 3 * U * (abs(cell) + 1)
                off = abs(np.tanh(cell)) * do + o * (cell_off + FUNCTION_ERROR) + U
                hidden = o * np.tanh(cell)
            else:
                xr, xz, xn = np.split(from_x, 3)
                hr, hz, hn = np.split(from_h, 3)
                dr, dz, dn = np.split(sum_off, 3)
                reset, update = sigmoid(xr + hr), sigmoid(xz + hz)
                dr, dz = (each / 4 + FUNCTION_ERROR for each in (dr, dz))
                new = np.tanh(xn + reset * hn)
                dn = dn + abs(hn) * dr + 3 * U * (abs(xn) + abs(hn)) + FUNCTION_ERROR
                off = abs(hidden - new) * dz + (1 - update) * dn + update * off + 4 * U
                hidden = (1 - update) * new + update * hidden
            features[t, env], bound[t, env] = hidden, 2 * off
        after["hidden"][env] = hidden
        if "cell" in after:
            after["cell"][env] = cell
    return Reference(features, bound, after)


def draw(seed: int, n_steps: int, n_envs: int, core: RecurrentCore) -> tuple[Any, Any, Any]:
    """Return inputs, a state and where episodes begin."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n_steps, n_envs, N_INPUTS)).astype(np.float32)
    state = {
        name: rng.uniform(-1, 1, (n_envs, 1, N_FEATURES)).astype(np.float32) for name in core.names
    }
    return inputs, state, rng.random((n_steps, n_envs)) < rng.choice([0, 0.2, 0.7])


def tensors(state: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(part) for name, part in state.items()}


@each_core
@fewer_examples(5)
@given(seed=st.integers(0, 2**32 - 1), n_steps=st.integers(1, 12), n_envs=st.integers(1, 4))
def test_unrolled_equals_stepped(
    kind: type[RecurrentCore], seed: int, n_steps: int, n_envs: int
) -> None:
    """Both are those of the formulas, and so is each environment alone, but for rounding."""
    core = make_core(kind)
    inputs, state, is_first = draw(seed, n_steps, n_envs, core)
    expected = by_formulas(core, inputs, state, is_first)
    rows, firsts = torch.from_numpy(inputs), torch.from_numpy(is_first)
    with torch.no_grad():
        unrolled, after = core(rows, tensors(state), firsts)
        current, stepped = tensors(state), []
        for t in range(n_steps):
            found, current = core(rows[t : t + 1], current, firsts[t : t + 1])
            stepped.append(found)
        alone = [
            core(
                rows[:, env : env + 1],
                {name: part[env : env + 1] for name, part in tensors(state).items()},
                firsts[:, env : env + 1],
            )[0]
            for env in range(n_envs)
        ]
    for found in (unrolled, torch.cat(stepped), torch.cat(alone, dim=1)):
        assert (abs(found.numpy() - expected.features) <= expected.bound).all()
    for name in core.names:
        for found in (after, current):
            np.testing.assert_allclose(found[name][:, 0], expected.state[name], rtol=0, atol=1e-4)
    assert expected.bound.max() < 1e-4  # what a state that is not put back would exceed


@each_core
def test_layers_are_stacked_as_torch_stacks_them(kind: type[RecurrentCore]) -> None:
    core = make_core(kind, n_layers=2)
    rows = torch.randn(6, 3, N_INPUTS)
    state = {name: torch.randn(3, 2, N_FEATURES) for name in core.names}
    parts = [state[name].transpose(0, 1) for name in core.names]
    given_state = parts[0] if len(parts) == 1 else tuple(part.contiguous() for part in parts)
    expected, _ = core.layers(rows, given_state)
    features, after = core(rows, state)
    assert torch.equal(features, expected)
    assert after["hidden"].shape == (3, 2, N_FEATURES)
    torch.testing.assert_close(after["hidden"][:, -1], features[-1])


@each_core
@pytest.mark.parametrize("n_layers", [1, 2])
def test_nothing_goes_from_one_episode_to_the_next(
    kind: type[RecurrentCore], n_layers: int
) -> None:
    core = make_core(kind, n_layers=n_layers)
    is_first = torch.zeros(5, 2, dtype=torch.bool)
    is_first[2, 0] = True
    rows = torch.randn(5, 2, N_INPUTS, requires_grad=True)
    shape = (2, n_layers, N_FEATURES)
    state = {name: torch.randn(shape, requires_grad=True) for name in core.names}
    features, _ = core(rows, state, is_first)
    features[2:].sum().backward()
    assert rows.grad is not None
    assert (rows.grad[:2, 0] == 0).all()
    assert (rows.grad[:2, 1] != 0).all()
    assert (rows.grad[2:] != 0).all()
    for part in state.values():
        assert part.grad is not None
        assert (part.grad[0] == 0).all()
        assert (part.grad[1] != 0).any()
    with torch.no_grad():  # not even what is no number
        broken = rows.clone()
        broken[:2, 0] = torch.nan
        found, _ = core(broken, state, is_first)
    torch.testing.assert_close(found[2:, 0], features[2:, 0])


@each_core
def test_a_first_step_counts_whatever_the_state_is(kind: type[RecurrentCore]) -> None:
    core = make_core(kind)
    rows = torch.randn(3, 2, N_INPUTS)
    state = {name: torch.full((2, 1, N_FEATURES), torch.nan) for name in core.names}
    is_first = torch.zeros(3, 2, dtype=torch.bool)
    is_first[0] = True
    found, _ = core(rows, state, is_first)
    expected, _ = core(rows, core.first_state(2))
    assert torch.equal(found, expected)


@each_core
def test_what_does_not_fit_is_refused(kind: type[RecurrentCore]) -> None:
    core = make_core(kind)
    state, rows = core.first_state(2), torch.zeros(5, 2, N_INPUTS)
    with pytest.raises(ValueError, match=r"inputs: got \(5, 2, 4\), expected \(T, B, 3\)"):
        core(torch.zeros(5, 2, 4), state)
    with pytest.raises(ValueError, match=r"state: got \(1, 1, 4\) of 'hidden', expected \(2, 1, 4"):
        core(rows, core.first_state(1))
    with pytest.raises(ValueError, match="state: got none of"):
        core(rows, {})
    with pytest.raises(ValueError, match=r"is_first: got \(5, 1\), expected \(5, 2\)"):
        core(rows, state, torch.zeros(5, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="n_layers: got 0, expected 1 or more"):
        kind(3, 4, 0)


def test_weights_are_orthogonal_or_torchs_own() -> None:
    torch.manual_seed(0)
    weight = Lstm(4, 4, gain=2.0).layers.weight_hh_l0.detach()
    torch.testing.assert_close(weight.T @ weight, 4 * torch.eye(4), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    own = Gru(4, 4, gain=None).layers.weight_hh_l0
    torch.manual_seed(0)
    assert torch.equal(own, nn.GRU(4, 4).weight_hh_l0)


# The network


def make_network(n_previous: int = 0, **options: Any) -> RecurrentNetwork:
    torch.manual_seed(0)
    head = ActorCritic(nn.Identity(), 2, n_features=6, policy_gain=1.0)
    return RecurrentNetwork(Mlp(3, [5]), Lstm(5 + n_previous, 6), head, **options)


def test_rows_are_encoded_remembered_and_headed_in_their_order() -> None:
    model, rows = make_network(2), torch.randn(4, 3, 3)
    previous, is_first = torch.randn(4, 3, 2), torch.rand(4, 3) < 0.3
    outputs, after = model(rows, model.first_state(3), is_first, previous)
    features = torch.stack([model.encoder(each) for each in rows])
    features, state = model.core(
        torch.cat([features, previous], -1), model.first_state(3), is_first
    )
    for t in range(4):
        expected = model.head(features[t])
        of_step = slice(3 * t, 3 * t + 3)
        found = outputs.dist_params.logits[of_step], outputs.value[of_step]
        torch.testing.assert_close(found, (expected.dist_params.logits, expected.value))
    assert isinstance(outputs.dist_params, DistParams)
    torch.testing.assert_close(after, state)


def test_a_leaf_of_a_tree_and_heads_of_other_kinds() -> None:
    model = RecurrentNetwork(
        Mlp(3, [5]), Gru(5, 6), QNetwork(nn.Identity(), 4, n_features=6, dueling=True), leaf="seen"
    )
    rows = {"seen": torch.randn(2, 3, 3), "action_mask": torch.ones(2, 3, 4, dtype=torch.bool)}
    values, _ = model(rows, model.first_state(3))
    assert values.shape == (6, 4)


def test_a_core_of_another_width_is_refused() -> None:
    model = make_network()
    with pytest.raises(
        ValueError, match=r"n_inputs = 5, expected 8: 5 features .* and 3 of the pr"
    ):
        model(torch.zeros(1, 2, 3), model.first_state(2), None, torch.zeros(1, 2, 3))
    with pytest.raises(TypeError, match="encoder: Identity has no integer n_features"):
        RecurrentNetwork(nn.Identity(), Lstm(3, 3), nn.Identity())


def test_the_encoder_alone_computes_in_fewer_bits() -> None:
    model = make_network(autocast=torch.bfloat16)
    outputs, after = model(torch.randn(2, 3, 3), model.first_state(3))
    assert outputs.value.dtype == after["cell"].dtype == torch.float32

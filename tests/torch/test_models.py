"""Models: what they compute, against plain layers; their options; and agents that act with them."""

import copy
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from parllel.torch.agents import CategoricalPgAgent, ModelOutputs, QAgent
from parllel.torch.distributions import Categorical
from parllel.torch.models import (
    ActorCritic,
    DuelingHead,
    FrameConv,
    ImpalaCnn,
    Mlp,
    NatureCnn,
    QNetwork,
    TwinMlp,
)

CHW, HWC = (4, 40, 36), (40, 36, 4)
EXACT = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order
MAKE_ENCODER: dict[str, Callable[..., Any]] = {"nature": NatureCnn, "impala": ImpalaCnn}
each_encoder = pytest.mark.parametrize("make_encoder", MAKE_ENCODER.values(), ids=MAKE_ENCODER)


def frames(n: int = 3, shape: tuple[int, ...] = CHW, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


def seeded(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return make(*arguments, **options)


def assert_close(one: Tensor, two: Tensor, bound: float = 1e-5) -> None:
    """Compare up to a share of the largest value: that of sums of many in another order."""
    assert one.shape == two.shape
    assert (one - two).detach().abs().max() <= bound * (1 + float(two.detach().abs().max()))


def layers_of(network: nn.Module, kind: type = nn.Conv2d) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, kind)]


# Encoders of frames


def test_the_nature_cnn_is_that_of_the_paper() -> None:
    encoder = seeded(NatureCnn, (4, 84, 84))
    first, second, third = layers_of(encoder)
    (dense,) = layers_of(encoder, nn.Linear)
    assert dense.in_features == 64 * 7 * 7
    rows = frames(shape=(4, 84, 84))
    hidden = functional.conv2d(rows / 255, first.weight, first.bias, stride=4).relu()
    hidden = functional.conv2d(hidden, second.weight, second.bias, stride=2).relu()
    hidden = functional.conv2d(hidden, third.weight, third.bias, stride=1).relu()
    expected = functional.linear(hidden.flatten(1), dense.weight, dense.bias).relu()
    assert encoder.n_features == 512
    assert_close(encoder(rows), expected)


def test_the_impala_cnn_is_that_of_the_paper() -> None:
    encoder = seeded(ImpalaCnn, CHW)
    convs = layers_of(encoder)
    (dense,) = layers_of(encoder, nn.Linear)
    assert [conv.out_channels for conv in convs] == [16] * 5 + [32] * 10
    rows = frames()
    hidden = rows / 255
    for section in range(3):
        first, *blocks = convs[5 * section : 5 * section + 5]
        hidden = functional.conv2d(hidden, first.weight, first.bias, padding=1)
        hidden = functional.max_pool2d(hidden, 3, stride=2, padding=1)
        for one, two in (blocks[:2], blocks[2:]):
            inner = functional.conv2d(hidden.relu(), one.weight, one.bias, padding=1)
            inner = functional.conv2d(inner.relu(), two.weight, two.bias, padding=1)
            hidden = hidden + inner
    expected = functional.linear(hidden.relu().flatten(1), dense.weight, dense.bias).relu()
    assert_close(encoder(rows), expected)


def test_the_width_of_an_impala_cnn_multiplies_channels() -> None:
    convs = layers_of(ImpalaCnn((1, 10, 10), width=2, channels=(4, 8)))
    assert [conv.out_channels for conv in convs] == [8] * 5 + [16] * 5


@each_encoder
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_order_of_axes_and_of_memory_changes_no_feature(
    make_encoder: Any, layer_norm: bool, channels_last: bool
) -> None:
    options = {"layer_norm": layer_norm}
    plain = seeded(make_encoder, CHW, **options)
    other = seeded(make_encoder, HWC, order="HWC", channels_last=channels_last, **options)
    rows = frames()
    before = rows.clone()
    assert_close(other(rows.permute(0, 2, 3, 1)), plain(rows))
    assert_close(other(rows.permute(0, 2, 3, 1).contiguous()), plain(rows))
    assert_close(plain(rows / 255), plain(rows))
    assert torch.equal(rows, before)
    seen: list[Tensor] = []
    layers_of(other)[1].register_forward_hook(lambda _, inputs, output: seen.append(output))
    other(rows.permute(0, 2, 3, 1))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last


@each_encoder
def test_layer_norm_gives_each_row_mean_0_and_variance_1(make_encoder: Any) -> None:
    encoder = make_encoder(CHW, layer_norm=True)
    seen: list[Tensor] = []
    norms = layers_of(encoder, nn.GroupNorm)
    assert len(norms) >= 4
    for norm in norms:
        norm.register_forward_hook(lambda _, inputs, output: seen.append(output))
    encoder(frames())
    for output in seen:
        rows = output.flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(rows.var(1, correction=0), torch.ones(3), rtol=0, atol=0.05)


def test_booleans_are_not_scaled() -> None:
    layer = FrameConv((2, 10, 10), 3, 3)
    rows = frames(shape=(2, 10, 10)) > 99
    assert torch.equal(layer(rows), layer(rows.float()))


def test_bytes_are_converted_once_to_what_autocast_computes_in() -> None:
    layer, seen = FrameConv(CHW, 8, 8), []
    convolve = layer._conv_forward

    def look(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(rows)
        return convolve(rows, weight, bias)

    layer._conv_forward = look  # type: ignore[method-assign]
    rows = frames()
    layer(rows)
    with torch.autocast("cpu", torch.bfloat16):
        layer(rows)
    assert [each.dtype for each in seen] == [torch.float32, torch.bfloat16]
    assert all(torch.equal(each.to(torch.uint8), rows) for each in seen)  # exact, not scaled


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (frames(shape=HWC), ValueError, r"frames: got \(3, 40, 36, 4\), expected \(B, 4, 40, 36\)"),
        (frames()[0], ValueError, r"frames: got \(4, 40, 36\), expected \(B, 4, 40, 36\)"),
        (frames().long(), TypeError, r"frames: got torch\.int64, expected uint8"),
    ],
)
def test_frames_of_another_form_are_refused(rows: Tensor, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        NatureCnn(CHW)(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NatureCnn((4, 35, 84)), r"got \(4, 35, 84\) as CHW, expected frames of 36 by 36"),
        (lambda: NatureCnn(HWC), r"got \(40, 36, 4\) as CHW, expected frames of 36 by 36"),
        (lambda: NatureCnn((84, 84)), r"got \(84, 84\), expected 3 numbers"),
        (lambda: ImpalaCnn(CHW, order="WHC"), r"order: got 'WHC', expected 'CHW' or 'HWC'"),
        (lambda: ImpalaCnn(CHW, width=0), r"expected one number or more, and a factor of 1"),
        (lambda: Mlp(4, []), r"sizes: got none"),
        (lambda: TwinMlp(4, 2, []), r"sizes: got none"),
    ],
)
def test_networks_that_cannot_be_made_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Vectors


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_mlp_is_its_layers(layer_norm: bool) -> None:
    encoder = Mlp(6, [8, 5], activation=torch.relu, layer_norm=layer_norm)
    first, second = layers_of(encoder, nn.Linear)
    rows = torch.randn(7, 2, 3)
    hidden = first(rows.reshape(7, 6))
    hidden = (functional.layer_norm(hidden, (8,)) if layer_norm else hidden).relu()
    hidden = second(hidden)
    expected = (functional.layer_norm(hidden, (5,)) if layer_norm else hidden).relu()
    assert_close(encoder(rows), expected)
    torch.testing.assert_close(encoder(rows.double()), expected, **EXACT)
    assert encoder.n_features == 5


@pytest.mark.parametrize("shape", [(7,), (7, 5), (7, 2, 4)])
@pytest.mark.parametrize("make", [lambda: Mlp(6), lambda: TwinMlp(6, 2)])
def test_rows_of_another_length_are_refused(make: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"observation: got .*expected \(B, 6\)"):
        make()(torch.zeros(shape))


def weights_of(twin: TwinMlp) -> list[tuple[Any, Any]]:
    names = range(sum(name.startswith("weight") for name, _ in twin.named_parameters()))
    return [(getattr(twin, f"weight_{i}"), getattr(twin, f"bias_{i}")) for i in names]


def two_networks(twin: TwinMlp, n_logits: int) -> list[nn.Sequential]:
    """Return the two networks of a twin, with its weights, as plain layers."""
    networks = []
    for which in range(2):
        layers: list[nn.Module] = []
        for i, (weight, bias) in enumerate(weights_of(twin)):
            is_last = i == len(weights_of(twin)) - 1
            n_first = n_logits if is_last else len(weight) // 2
            rows = slice(n_first, None) if which else slice(n_first)
            n_in = weight.shape[1] if i == 0 else weight.shape[1] // 2
            columns = slice(n_in, None) if which and i else slice(n_in)
            plain = nn.Linear(n_in, len(bias[rows]))
            plain.weight.data = weight.detach()[rows, columns].clone()
            plain.bias.data = bias.detach()[rows].clone()
            layers += [plain, nn.Tanh()]
        networks.append(nn.Sequential(*layers[:-1]))
    return networks


@pytest.mark.parametrize("sizes", [(8,), (8, 8), (8, 5, 7)])
def test_a_twin_is_two_networks(sizes: tuple[int, ...]) -> None:
    twin = seeded(TwinMlp, 4, 3, sizes, policy_gain=1.0)
    for _, bias in weights_of(twin):
        nn.init.normal_(bias)
    policy, critic = two_networks(twin, 3)
    rows = torch.randn(5, 4)
    outputs = twin(rows)
    with torch.no_grad():
        assert_close(twin(rows).value, outputs.value)
        assert_close(twin.eval()(rows).value, outputs.value)
    assert_close(outputs.dist_params.logits, policy(rows))
    assert_close(outputs.value, critic(rows).squeeze(-1))
    (outputs.dist_params.logits.square().sum() + outputs.value.sum()).backward()
    (policy(rows).square().sum() + critic(rows).sum()).backward()
    for i, (weight, bias) in enumerate(weights_of(twin)):
        of_policy, of_critic = policy[2 * i], critic[2 * i]
        join = torch.block_diag if i else lambda *blocks: torch.cat(blocks)
        assert_close(weight.grad, join(of_policy.weight.grad, of_critic.weight.grad))
        assert_close(bias.grad, torch.cat([of_policy.bias.grad, of_critic.bias.grad]))


def other_weights(twin: TwinMlp) -> Tensor:
    weight = weights_of(twin)[1][0]
    return torch.cat([weight[:8, 8:], weight[8:, :8]])


def test_the_networks_of_a_twin_stay_apart_after_updates() -> None:
    twin = seeded(TwinMlp, 4, 3, (8, 8))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    rows = torch.randn(5, 4)
    for _ in range(3):
        outputs = twin(rows)
        (outputs.value - outputs.dist_params.logits.sum(1)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (other_weights(twin) == 0).all()


@pytest.mark.parametrize("is_acting", [False, True])
def test_weights_between_the_networks_of_a_twin_count_for_nothing(is_acting: bool) -> None:
    twin = seeded(TwinMlp, 4, 3, (8, 8))
    rows = torch.randn(5, 4)
    before = twin(rows).value
    with torch.no_grad():
        weights_of(twin)[1][0][8:, :8] = 9.0  # from the policy to the value
        if is_acting:
            twin.eval()
        assert_close(twin(rows).value, before)


def test_a_loaded_twin_has_no_weights_between_its_networks() -> None:
    twin = TwinMlp(4, 3, (8, 8)).eval()
    state = twin.state_dict()
    twin.load_state_dict({**state, "weight_1": torch.ones(16, 16)})
    assert (other_weights(twin) == 0).all()
    assert (weights_of(twin)[1][0].sum(1) == 8).all()


def test_a_twin_that_was_copied_or_loaded_is_the_same() -> None:
    twin = seeded(TwinMlp, 4, 2)
    rows = torch.randn(5, 4)
    other = TwinMlp(4, 2)
    other.load_state_dict(twin.state_dict())
    for each in (other, copy.deepcopy(twin)):
        assert torch.equal(each(rows).value, twin(rows).value)


# Heads and first weights


@pytest.mark.parametrize("make", [lambda: ActorCritic(Mlp(4), 3), lambda: TwinMlp(4, 3)])
def test_first_policies_are_almost_even_and_values_are_not(make: Any) -> None:
    torch.manual_seed(0)
    outputs = make()(10 * torch.randn(100, 4))
    assert outputs.dist_params.logits.abs().max() < 0.2
    assert outputs.value.std() > 0.2


def test_weights_are_orthogonal_with_their_gains() -> None:
    model = ActorCritic(Mlp(8, [6], gain=3.0), 2, policy_gain=0.5, value_gain=2.0)
    (layer,) = layers_of(model.encoder, nn.Linear)
    torch.testing.assert_close(layer.weight @ layer.weight.T, 9.0 * torch.eye(6), **EXACT)
    policy, value = model.heads.weight[:2], model.heads.weight[2:]
    torch.testing.assert_close(policy @ policy.T, 0.25 * torch.eye(2), **EXACT)
    torch.testing.assert_close(value.norm(), torch.tensor(2.0), **EXACT)
    assert all((each.bias == 0).all() for each in (layer, model.heads))
    twin = TwinMlp(4, 2, (8, 8))
    block = weights_of(twin)[1][0][8:, 8:]
    torch.testing.assert_close(block @ block.T, 2.0 * torch.eye(8), **EXACT)
    torch.testing.assert_close(weights_of(twin)[2][0][2].norm(), torch.tensor(1.0), **EXACT)


def test_without_a_gain_weights_are_torchs_own() -> None:
    (layer,) = layers_of(seeded(Mlp, 8, [6], gain=None), nn.Linear)
    assert torch.equal(layer.weight, seeded(nn.Linear, 8, 6).weight)


def test_a_dueling_head_is_value_and_advantage() -> None:
    head = DuelingHead(6, 3, n_hidden=4)
    features = torch.randn(5, 6)
    hidden = head.hidden(features).relu()
    value, advantage = head.value(hidden[:, :4]), head.advantage(hidden[:, 4:])
    torch.testing.assert_close(
        head(features), value + advantage - advantage.mean(1, keepdim=True), **EXACT
    )
    torch.testing.assert_close(head(features).mean(1), value.squeeze(1), **EXACT)


def test_an_encoder_of_ones_own_says_how_many_features_it_has() -> None:
    encoder = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
    with pytest.raises(TypeError, match="Sequential has no integer n_features; give n_features="):
        ActorCritic(encoder, 2)
    assert QNetwork(encoder, 2, n_features=7)(torch.zeros(3, 4)).shape == (3, 2)


# Options, and agents


def make_model(kind: str, **options: Any) -> Any:
    if kind == "twin":
        return TwinMlp(math.prod(CHW), 3, **options)
    if kind == "q":
        return QNetwork(NatureCnn(CHW, None), 3, dueling=True, n_hidden=32, **options)
    encoder = {"impala": ImpalaCnn, "nature": NatureCnn}[kind](CHW, 32, layer_norm=True)
    return ActorCritic(encoder, 3, **options)


def tensors(outputs: Any) -> list[Tensor]:
    is_policy = isinstance(outputs, ModelOutputs)
    return [outputs.dist_params.logits, outputs.value] if is_policy else [outputs]


@pytest.mark.parametrize("kind", ["impala", "nature", "twin", "q"])
def test_agents_act_with_each_model_and_keep_its_file(kind: str, tmp_path: Any) -> None:
    example = frames().numpy()

    def make_agent() -> Any:
        model = make_model(kind)
        if kind == "q":
            return QAgent(model, example, epsilon=0.1)
        return CategoricalPgAgent(model, Categorical(3), example)

    agent, other = make_agent(), make_agent()
    action, _ = agent.step(example, deterministic=True)
    assert action.shape == (3,)
    agent.save(tmp_path / "model.safetensors")
    other.load(tmp_path / "model.safetensors")
    assert torch.equal(other.value(example), agent.value(example))


def test_a_model_takes_one_leaf_of_a_tree() -> None:
    model = ActorCritic(Mlp(4), 3, leaf="observation")
    rows = torch.randn(2, 4)
    tree = {"observation": rows, "action_mask": torch.ones(2, 3, dtype=torch.bool)}
    expected = model.heads(model.encoder(rows))
    assert torch.equal(model(tree).value, expected[:, -1])
    CategoricalPgAgent(model, Categorical(3), tree).step(tree)


@pytest.mark.parametrize("kind", ["impala", "nature", "q"])
def test_bf16_autocast_is_close_and_its_outputs_and_gradients_are_float32(kind: str) -> None:
    plain = seeded(make_model, kind)
    model = make_model(kind, autocast=torch.bfloat16)
    model.load_state_dict(plain.state_dict())
    rows, seen = frames(8), []
    layers_of(model)[1].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    outputs = tensors(model(rows))
    assert seen == [torch.bfloat16]
    for one, two in zip(outputs, tensors(plain(rows)), strict=True):
        assert one.dtype == torch.float32
        # bfloat16 has 8 bits: each of some ten layers is off by 2**-9 of its values at most.
        assert_close(one, two, 10 * 2**-9)
    sum(output.sum() for output in outputs).backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "kind", [pytest.param("impala", marks=pytest.mark.long), "nature", "twin", "q"]
)
def test_models_are_compiled_as_one_graph(kind: str) -> None:
    model, rows = make_model(kind), frames()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for one, two in zip(tensors(compiled(rows)), tensors(model(rows)), strict=True):
        assert_close(one, two)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_compiled_model_computes_the_same() -> None:
    model = seeded(make_model, "nature", autocast=torch.bfloat16)
    with torch.no_grad():
        value = torch.compile(model)(frames()).value
        # Compiled code keeps numbers in float32 that bfloat16 rounds in between.
        assert_close(value, model(frames()).value, 10 * 2**-9)

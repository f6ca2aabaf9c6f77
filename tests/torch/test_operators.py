"""Operators of torch: what they promise a compiler, and whole graphs of updates that use them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from long_run import all_but_first
from parllel import Array, ArrayDict, Jagged
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from parllel.torch.operators import ReplayDraw, estimate_advantage, gather_rows
from parllel.transforms import EstimateAdvantage
from tests.step_list import CAPACITY, Chances, Model, Shape, leaves

N = 6
BOTH = pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
OPERATORS: Any = torch.ops.parllel


def make_model(kind: type[ReplayBuffer], storage: str = "local") -> Model:
    shape = Shape(T=2, B=3, n_windows=4, n_steps=2, stack=3, has_valid=True)
    model = Model(shape, Chances(invalid=1), seed=1, storage=storage, kind=kind)
    for _ in range(3):
        model.write_batch()
    return model


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function as one graph, which raises where a compiler would break it."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def gae_inputs(steps: int = 5, width: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    reward, final = (torch.rand(steps, width, generator=generator) for _ in range(2))
    value = torch.rand(steps + 1, width, generator=generator)
    ends = [torch.rand(steps, width, generator=generator) < 0.2 for _ in range(2)]
    return reward, value, *ends, final


# What torch is told of them


@BOTH
def test_a_draw_is_what_it_says(kind: type[ReplayBuffer]) -> None:
    model = make_model(kind)
    draw = ReplayDraw(model.replay, N)
    torch.library.opcheck(OPERATORS.draw.default, (draw._state, draw._number, draw._nbytes))


def test_an_estimate_is_what_it_says() -> None:
    torch.library.opcheck(OPERATORS.estimate_advantage.default, (*gae_inputs(), 0.9, 0.8))


def test_a_gather_is_what_it_says() -> None:
    rows = [torch.arange(12.0).reshape(4, 3), torch.tensor([True, False, True, True])]
    torch.library.opcheck(OPERATORS.gather_rows.default, (rows, torch.tensor([3, 0, 3])))
    torch.library.opcheck(OPERATORS.gather_rows.default, ([], torch.tensor([3])))


# What they compute


def test_estimates_are_those_of_the_transform() -> None:
    reward, value, terminated, truncated, final = gae_inputs()
    batch = {"reward": reward, "terminated": terminated, "truncated": truncated}
    tree: dict[str, Any] = {name: Array.from_numpy(leaf.numpy()) for name, leaf in batch.items()}
    tree["final_value"] = Array.from_numpy(final.numpy())
    tree["agent_info"] = {"value": Array.from_numpy(value.numpy()[:-1], padding=1)}
    tree["agent_info"]["value"][5] = value[5]
    expected = EstimateAdvantage(discount=0.9, gae_lambda=0.8)(ArrayDict(tree))
    inputs = reward.T.contiguous().T, value, terminated, truncated, final
    found = estimate_advantage(*inputs, discount=0.9, gae_lambda=0.8)
    for name, each in zip(("advantage", "return_"), found, strict=True):
        assert each.tolist() == expected[name].to_ndarray().tolist()


def test_gathers_are_those_of_indexing() -> None:
    rows = [torch.arange(24).reshape(4, 2, 3).transpose(1, 2), torch.tensor([True, False] * 2)]
    index = torch.tensor([3, 0, 3])
    for found, leaf in zip(gather_rows(rows, index), rows, strict=True):
        assert found.tolist() == leaf[index].tolist()
    with pytest.raises(IndexError):
        gather_rows(rows, torch.tensor([4]))


def drawn(model: Model, n: int) -> list[Any]:
    return [
        {path: leaf.tolist() for path, leaf in leaves(model.replay.sample(N)).items()}
        for _ in range(n)
    ]


@BOTH
def test_draws_are_those_of_the_buffer_and_take_turns_with_them(kind: type[ReplayBuffer]) -> None:
    expected = drawn(make_model(kind), 4)
    model = make_model(kind)
    draw = ReplayDraw(model.replay, N)
    minibatches = [draw.sample(), draw.sample()]  # both stay what they are
    found = [
        {path: leaf.tolist() for path, leaf in leaves(minibatch).items()}
        for minibatch in minibatches
    ]
    found += drawn(model, 1)
    found += [{path: leaf.tolist() for path, leaf in leaves(draw.sample()).items()}]
    assert found == expected


@BOTH
def test_a_draw_on_a_device_is_that_of_the_host(
    cuda_device: torch.device, kind: type[ReplayBuffer]
) -> None:
    expected = drawn(make_model(kind), 2)
    draw = ReplayDraw((model := make_model(kind, "device")).replay, N)
    for each in expected:
        found = {path: leaf.tolist() for path, leaf in leaves(draw.sample()).items()}
        assert found.keys() == each.keys()
        weights = [minibatch.pop("weight", None) for minibatch in (found, each)]
        assert found == each
        assert weights[0] == pytest.approx(weights[1])  # powers differ in their last digits
    assert model.replay._n_drawn == 2


def drawn_clouds(kind: type[ReplayBuffer], storage: str, n: int, draws: bool) -> list[Any]:
    shape = Shape(T=2, B=3, n_windows=4, has_clouds=True)
    model = Model(shape, Chances(), seed=1, storage=storage, kind=kind)
    for _ in range(3):
        model.write_batch()
    draw = ReplayDraw(model.replay, N) if draws else None
    found = []
    for _ in range(n):
        minibatch = draw.sample() if draw is not None else model.replay.sample(N)
        found.append({})
        for path, leaf in leaves(minibatch).items():
            if isinstance(leaf, Jagged):
                assert (leaf.capacity is not None) is draws
                rows, mask = leaf.padded(CAPACITY)
                found[-1][path] = [rows.tolist(), mask.tolist()]
            else:
                found[-1][path] = leaf.tolist()
    return found


@pytest.mark.parametrize("kind", all_but_first([ReplayBuffer, PrioritizedReplayBuffer]))
@pytest.mark.parametrize("storage", ["local", "device"])
def test_draws_have_elements_of_different_length(
    cuda_device: torch.device, storage: str, kind: type[ReplayBuffer]
) -> None:
    expected = drawn_clouds(kind, storage, 3, draws=False)
    assert drawn_clouds(kind, storage, 3, draws=True) == expected


def test_a_compiled_program_has_padded_elements() -> None:
    def update(draw: ReplayDraw) -> tuple[torch.Tensor, ...]:
        clouds = draw.sample()["observation"]["cloud"]
        rows, mask = clouds.padded()
        sums = rows.new_zeros(N + 1, 3).index_add(0, clouds.segment_ids(), clouds.values)
        return rows, mask, sums[:N]

    expected = drawn_clouds(ReplayBuffer, "local", 2, draws=False)
    shape = Shape(T=2, B=3, n_windows=4, has_clouds=True)
    model = Model(shape, Chances(), seed=1)
    for _ in range(3):
        model.write_batch()
    draw, step = ReplayDraw(model.replay, N), compiled(update)
    for each in expected:
        rows, mask, sums = step(draw)
        assert [rows.tolist(), mask.tolist()] == each["observation.cloud"]
        assert sums.tolist() == rows.sum(1).tolist()


def test_a_buffer_that_is_gone_is_not_drawn_from() -> None:
    model = make_model(ReplayBuffer)
    draw = ReplayDraw(model.replay, N)
    model.replay = None
    with pytest.raises(RuntimeError, match="its buffer is gone"):
        draw.sample()


def test_errors_of_a_draw_are_the_buffers() -> None:
    shape = Shape(T=2, B=3, n_windows=4)
    model = Model(shape, Chances(), seed=1)
    draw = ReplayDraw(model.replay, N)
    with pytest.raises(RuntimeError, match="0 steps of each environment are there"):
        draw.sample()


# Compiled updates


@pytest.mark.parametrize("kind", all_but_first([PrioritizedReplayBuffer, ReplayBuffer]))
def test_an_update_with_its_draws_is_one_graph(kind: type[ReplayBuffer]) -> None:
    """Two draws of one update: none is left out, moved, or taken for the other."""

    def update(draw: ReplayDraw, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = draw.sample(), draw.sample()
        loss = (first["n_step_return"] * weight).sum() + second["n_step_discount"].sum()
        pixels = first["observation"]["camera"].float().mean()
        return loss, pixels, first["index"], second["index"]

    weight = torch.ones(1, requires_grad=True)
    results = []
    for run in (update, compiled(update)):
        model = make_model(kind)
        draw = ReplayDraw(model.replay, N)
        found = []
        for _ in range(3):
            loss, *others = run(draw, weight)
            (gradient,) = torch.autograd.grad(loss, weight)
            found.append([each.tolist() for each in (loss, gradient, *others)])
            model.write_batch()  # new rows are seen
        assert model.replay._n_drawn == 6
        results.append(found)
    assert results[0] == results[1]
    indices = {str(index) for found in results[0] for index in found[-2:]}
    assert len(indices) == 6


def test_advantages_and_gathers_are_one_graph() -> None:
    def learn(index: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        advantage, _ = estimate_advantage(*inputs, discount=0.9, gae_lambda=0.8)
        rows = gather_rows([advantage.flatten(), inputs[0].flatten()], index)
        return (rows[0] * rows[1]).sum()

    arguments = torch.tensor([3, 0, 3]), *gae_inputs()
    assert compiled(learn)(*arguments).item() == learn(*arguments).item()


def test_a_draw_whose_state_was_copied_counts_up_the_copy_alone() -> None:
    model = make_model(ReplayBuffer)
    draw = ReplayDraw(model.replay, N)
    other = draw._state.clone()
    first = OPERATORS.draw(other, draw._number, draw._nbytes)
    assert model.replay._n_drawn == 0
    assert other[4].item() == 1
    assert np.array_equal(first, OPERATORS.draw(draw._state, draw._number, draw._nbytes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_short_floats_are_gathered_with_their_bits(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.5, -2.0], [3.0, float("inf")], [-0.0, 0.25]]).to(dtype)
    (found,) = gather_rows([rows], torch.tensor([2, 0]))
    assert found.dtype == dtype
    assert found.float().tolist() == rows.float()[[2, 0]].tolist()
    assert found.float().signbit().tolist() == rows.float()[[2, 0]].signbit().tolist()


def test_no_rows_are_gathered_by_an_empty_index() -> None:
    index = torch.tensor([], dtype=torch.int64)
    found = gather_rows([torch.ones(3, 2), torch.ones(0)], index)
    assert [tuple(each.shape) for each in found] == [(0, 2), (0,)]


@pytest.mark.parametrize("index", [torch.tensor(1), torch.tensor([[1]])])
def test_an_index_of_another_form_is_refused(index: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^index: shape \(.*\), expected one axis"):
        gather_rows([torch.ones(3)], index)


def test_a_dtype_that_numpy_has_not_is_refused_with_the_way_out() -> None:
    no = torch.zeros(3, 2, dtype=torch.bool)
    values = torch.ones(4, 2), no, no, torch.zeros(3, 2)
    reward = torch.ones(3, 2, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"bfloat16.*tensor\.float\(\)"):
        estimate_advantage(reward, *values, discount=0.5, gae_lambda=0.5)

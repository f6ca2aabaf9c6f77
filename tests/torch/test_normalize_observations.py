"""NormalizeObservations as a module: its numbers, what it refuses, its state, its memory."""

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from long_run import all_but_first
from parllel import Array, ArrayDict, cuda
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.models import NormalizeObservations
from profiles import fewer_examples
from schedules import each_schedule

EPSILON = 1e-8


def make_rows(
    seed: int, lead: tuple[int, ...] = (6, 3), features: tuple[int, ...] = (4,), mean: float = 5.0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(mean * seed, 1 + seed, (*lead, *features)).astype(np.float32)


def make(features: tuple[int, ...] = (4,), **options: Any) -> NormalizeObservations:
    return NormalizeObservations(torch.zeros(1, *features), **options)


def seen_by(*batches: np.ndarray, **options: Any) -> NormalizeObservations:
    """Return a module for which some batches of rows [T, B, F] count."""
    normalize = make(batches[0].shape[2:], **options)
    for rows in batches:
        normalize.observe(rows)
    normalize.begin_batch()
    return normalize


def expected_of(
    seen: np.ndarray, rows: np.ndarray, clip: float = 10.0, epsilon: float = EPSILON
) -> np.ndarray:
    """Return what is to come of rows; `seen` is float64 [n, F...]."""
    scaled = (rows - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + epsilon)
    return np.clip(scaled, -clip, clip)


def content_of(normalize: NormalizeObservations) -> dict[str, Any]:
    return {name: value.tolist() for name, value in normalize.state_dict().items()}


@fewer_examples(4)
@given(
    batches=st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), min_size=1, max_size=4
    ),
    features=st.sampled_from([(), (1,), (3,), (2, 2)]),
    clip=st.sampled_from([0.5, 10.0, math.inf]),
    epsilon=st.sampled_from([EPSILON, 0.5]),
    seed=st.integers(0, 2**31),
)
def test_rows_are_counted_in_deviations_of_all_that_was_seen(
    batches: Sequence[tuple[int, int, bool]],
    features: tuple[int, ...],
    clip: float,
    epsilon: float,
    seed: int,
) -> None:
    """Rows that do not count are left out, and final observations are not."""
    normalize, rng, seen = make(features, clip=clip, epsilon=epsilon), None, []
    rng = np.random.default_rng(seed)
    for number, (n_steps, n_final, some_lost) in enumerate(batches):
        rows = make_rows(number, (n_steps, 3), features)
        valid = rng.random((n_steps, 3)) < (0.6 if some_lost else 2.0)
        final = make_rows(number + 1, (n_final,), features)
        seen += [rows[valid].astype(np.float64), final.astype(np.float64)]
        rows[~valid] = np.nan
        normalize.observe(
            rows,
            valid=valid if some_lost else None,
            final_obs=final if n_final else None,
        )
    normalize.begin_batch()
    together = np.concatenate(seen)
    assert normalize.moments().count.item() == len(together)
    probe = make_rows(2, (5, 2), features)
    found = normalize(torch.from_numpy(probe)).numpy()
    assert found.dtype == np.float32
    if len(together) > 1:
        # Rounded in float32 by the kernel, relative to numbers below 200 and deviations above 1e-2.
        variance = together.var(axis=0)
        allowed = 1e-4 * (1 + 200 / np.sqrt(variance + epsilon))
        error = abs(found - expected_of(together, probe, clip, epsilon))
        assert (error <= allowed).all()
    elif not len(together):
        assert (found == np.clip(probe, -clip, clip)).all()


def test_what_was_observed_counts_from_the_next_batch_on() -> None:
    normalize, rows = make(), make_rows(1)
    probe = torch.from_numpy(rows)
    normalize.begin_batch()
    assert torch.equal(normalize(probe), probe.clamp(-10, 10))  # as nothing was seen
    normalize.observe(rows)
    assert torch.equal(normalize(probe), probe.clamp(-10, 10))
    normalize.begin_batch()
    first = normalize(probe)
    np.testing.assert_allclose(first.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(first.std((0, 1), correction=0), 1, atol=1e-5)
    normalize.observe(make_rows(2))
    assert torch.equal(normalize(probe), first)
    normalize.begin_batch()
    assert not torch.equal(normalize(probe), first)


def test_numbers_that_never_differ_become_0_and_stay_finite() -> None:
    rows = make_rows(1)
    rows[..., 2] = 0.7
    normalize = seen_by(rows, rows[:1], rows)
    assert normalize.moments().m2[2].item() == 0
    probe = torch.from_numpy(rows)
    assert (normalize(probe)[..., 2] == 0).all()
    probe[..., 2] = 0.8
    assert (normalize(probe)[..., 2] == 10).all()  # clipped
    assert normalize(probe).isfinite().all()


@pytest.mark.long
def test_many_small_batches_lose_nothing() -> None:
    """2,000 of them, far from 0; sums in float32 would be off by more."""
    normalize, rng = make((2,)), np.random.default_rng(0)
    seen = []
    for number in range(2000):
        rows = rng.normal([1000, 0], [1 + number / 1000, 1e-3], (2, 2, 2)).astype(np.float32)
        normalize.observe(rows)
        seen.append(rows.reshape(-1, 2).astype(np.float64))
    together = np.concatenate(seen)
    count, mean, _ = normalize.moments()
    assert count.item() == 8000
    np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(normalize.moments().variance, together.var(axis=0), rtol=1e-5)


@fewer_examples(4)
@given(parts=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_moments_of_several_runs_merge_to_those_of_all(parts: list[int]) -> None:
    batches = [[make_rows(10 * k + n) for n in range(size)] for k, size in enumerate(parts)]
    runs = [seen_by(*own) for own in batches]
    before = [content_of(run) for run in runs]
    everything = [rows.reshape(-1, 4).astype(np.float64) for own in batches for rows in own]
    runs[0].merge(*runs[1:])
    assert content_of(runs[0])["mean"] == before[0]["mean"]  # until the next batch
    assert [content_of(run) for run in runs[1:]] == before[1:]
    runs[0].begin_batch()
    probe = make_rows(3)
    found = runs[0](torch.from_numpy(probe)).numpy()
    np.testing.assert_allclose(found, expected_of(np.concatenate(everything), probe), atol=1e-3)


# Trees


def make_tree(seed: int, lead: tuple[int, ...] = (6, 3)) -> ArrayDict:
    rng = np.random.default_rng(seed)
    return ArrayDict(
        {
            "image": rng.integers(0, 256, (*lead, 4, 4), np.uint8),
            "body": ArrayDict({"a.b": make_rows(seed, lead, (2,)), "z": make_rows(1, lead, ())}),
            "speed": make_rows(seed + 1, lead, (3,)),
            "action_mask": rng.random((*lead, 5)) < 0.5,
            "room": rng.integers(0, 9, lead),
        }
    )


def as_tensors(tree: ArrayDict) -> ArrayDict:
    return tree.apply(torch.from_numpy)


def test_of_a_tree_the_leaves_of_floats_are_normalized_and_no_others() -> None:
    batches = [make_tree(seed) for seed in range(3)]
    normalize = NormalizeObservations(make_tree(9, (1,)))
    for batch in batches:
        normalize.observe(batch)
    normalize.begin_batch()
    probe = as_tensors(make_tree(5))
    found = normalize(probe)
    assert isinstance(found, ArrayDict)
    for name in ("image", "action_mask", "room"):
        assert found[name] is probe[name]
    for path in (("body", "a.b"), ("body", "z"), ("speed",)):
        seen, own, result = batches, probe, found
        for name in path:
            seen, own, result = [each[name] for each in seen], own[name], result[name]
        together = np.concatenate([each.reshape(-1, *each.shape[2:]) for each in seen])
        expected = expected_of(together.astype(np.float64), own.numpy())
        np.testing.assert_allclose(result, expected, atol=1e-3)
        assert normalize.moments(*path).count.item() == len(together)


def test_a_tree_may_be_any_mapping_and_leaves_may_be_named() -> None:
    normalize = NormalizeObservations(make_tree(9, (1,)), leaves=["body"])
    assert str(normalize) == "NormalizeObservations(body.'a.b', body.z)"
    normalize.observe(make_tree(1))
    normalize.begin_batch()
    probe = as_tensors(make_tree(1))
    found = normalize(dict(probe))
    assert found["speed"] is probe["speed"]
    assert abs(found["body"]["z"].mean()) < 1e-5


def test_a_leaf_that_is_missing_is_named() -> None:
    normalize = NormalizeObservations(make_tree(9, (1,)))
    probe = as_tensors(make_tree(1))
    with pytest.raises(ValueError, match=r"leaves \['speed'\] are missing, which are normalized"):
        normalize({name: probe[name] for name in probe if name != "speed"})


# What is refused


@pytest.mark.parametrize(
    ("example", "options", "error", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.uint8), {}, TypeError, "observation: got .*uint8.*, expect"),
        (torch.zeros(1, dtype=torch.int64), {}, TypeError, "integers have no mean"),
        (torch.zeros(1, 3).double(), {}, TypeError, r"observation: torch.float64, expected torch"),
        ({"a": np.zeros((1, 2))}, {}, TypeError, r"observation.a: torch.float64, expected"),
        (make_tree(0), {"leaves": ["image"]}, TypeError, "observation.image: torch.uint8, expec"),
        (make_tree(0), {"leaves": ["body", "x"]}, ValueError, r"leaves: got \['x'\], expected"),
        (make_tree(0), {"leaves": "body"}, ValueError, "leaves: got 'body', expected a list"),
        (torch.zeros(1, 3), {"leaves": ["a"]}, ValueError, r"leaves: got \['a'\], .*: \[\]"),
        (make_tree(0), {"leaves": []}, TypeError, "expected a leaf of torch.float32"),
        ({"a.b": np.zeros((1, 2), "f"), "a_b": np.zeros((1, 2), "f")}, {}, ValueError, "more tha"),
        (torch.zeros(1, 3), {"clip": 0}, ValueError, "clip: got 0, expected more than 0"),
        (torch.zeros(1, 3), {"epsilon": 0.0}, ValueError, "epsilon: got 0.0, expected more"),
    ],
)
def test_what_can_not_be_normalized_is_refused_by_name(
    example: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        NormalizeObservations(example, **options)


def test_rows_of_another_shape_are_refused_that_would_broadcast() -> None:
    normalize = make((4,))
    for shape in ((5, 1), (5, 2, 1), (4, 3), (5,)):
        with pytest.raises(ValueError, match=r"observation: got .*, expected \(4,\) behind"):
            normalize(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"rows: shape .*, expected features of shape \(4,\)"):
            normalize.observe(np.zeros((2, *shape), np.float32))
    with pytest.raises(ValueError, match=r"rows: dtype uint8, expected float32"):
        normalize.observe(np.zeros((2, 4), np.uint8))
    with pytest.raises(ValueError, match=r"valid: shape \(3, 1\), expected \(3, 5\)"):
        normalize.observe(np.ones((3, 5, 4), np.float32), valid=np.zeros((3, 1), bool))
    assert normalize.moments().count.item() == 0


def test_observations_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observation: got a tree of \['image', .*whole model"):
        make((4,)).observe(make_tree(1))
    normalize = NormalizeObservations(make_tree(9, (1,)))
    for wrong in (make_rows(1), ArrayDict({"speed": make_rows(1, features=(3,))})):
        with pytest.raises(ValueError, match=r"observation: there is no leaf body\.'a\.b', which"):
            normalize.observe(wrong)
    assert normalize.moments("speed").count.item() == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(wrong: float) -> None:
    normalize = seen_by(make_rows(1))
    before = content_of(normalize)
    spoiled = make_rows(2)
    spoiled[3, 1, 2] = wrong
    text = rf"observation is {wrong} in row t = 3 of environment 1, element \(2,\)"
    with pytest.raises(ValueError, match=text):
        normalize.observe(spoiled)
    assert content_of(normalize) == before
    with pytest.raises(ValueError, match="observation is NaN, infinite or too large"):
        normalize.observe(make_rows(2), final_obs=spoiled[3])
    with pytest.raises(ValueError, match="too large to be squared"):
        normalize.observe(make_rows(2) * np.float32(1e30))
    assert content_of(normalize) == before
    valid = np.ones((6, 3), bool)
    valid[3, 1] = False
    normalize.observe(spoiled, valid=valid)
    assert normalize.moments().count.item() == 18 + 17


def test_a_batch_without_a_transition_changes_nothing_not_even_behind_one_with_nan() -> None:
    normalize = seen_by(make_rows(1))
    before, spoiled = content_of(normalize), make_rows(2)
    spoiled[0] = np.nan
    with pytest.raises(ValueError, match="observation is nan"):
        normalize.observe(spoiled)
    normalize.observe(spoiled, valid=np.zeros((6, 3), bool))
    assert content_of(normalize) == before


def test_of_a_tree_with_a_bad_leaf_no_leaf_is_taken() -> None:
    normalize = NormalizeObservations(make_tree(9, (1,)))
    normalize.observe(make_tree(1))
    before, spoiled = content_of(normalize), make_tree(2)
    spoiled["speed"][2, 0, 1] = np.nan  # the last one of all
    with pytest.raises(ValueError, match=r"observation.speed is nan in row t = 2 of environment 0"):
        normalize.observe(spoiled)
    assert content_of(normalize) == before


def test_converted_buffers_are_refused() -> None:
    for convert in (nn.Module.half, nn.Module.double, lambda each: each.to(torch.bfloat16)):
        normalize = convert(seen_by(make_rows(1)))
        with pytest.raises(TypeError, match=r"NormalizeObservations: its buffer .*, expected tor"):
            normalize.observe(make_rows(1))
        with pytest.raises(TypeError, match="convert the layers behind it alone"):
            normalize.begin_batch()


def test_others_of_other_leaves_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"merge: got leaves .*'speed'.*, expected \[''\]"):
        make().merge(NormalizeObservations(make_tree(0)))


# State


def test_a_frozen_one_changes_nothing() -> None:
    normalize = seen_by(make_rows(1))
    normalize.observe(make_rows(2))
    before = content_of(normalize)
    normalize.is_frozen = True
    normalize.observe(make_rows(3))
    normalize.begin_batch()
    assert content_of(normalize) == before
    normalize.is_frozen = False
    normalize.begin_batch()
    assert content_of(normalize)["mean"] != before["mean"]


def test_copies_and_loaded_states_go_on_bit_for_bit() -> None:
    normalize = seen_by(make_rows(1), make_rows(2))
    normalize.observe(make_rows(3))  # it does not count yet
    loaded = make()
    loaded.load_state_dict(normalize.state_dict())
    copies = [copy.deepcopy(normalize), pickle.loads(pickle.dumps(normalize)), loaded]
    probe = torch.from_numpy(make_rows(4))
    for each in copies:
        assert torch.equal(each(probe), normalize(probe))
    for each in (normalize, *copies):
        each.begin_batch()
        each.observe(make_rows(5))
        each.begin_batch()
    for each in copies:
        assert content_of(each) == content_of(normalize)


def test_a_state_of_other_leaves_is_refused() -> None:
    one = NormalizeObservations({"a": np.zeros((1, 2), np.float32)})
    other = NormalizeObservations({"b": np.zeros((1, 2), np.float32)})
    with pytest.raises(RuntimeError, match=r"a:mean"):
        one.load_state_dict(other.state_dict())


def test_gradients_go_through_where_rows_have_them() -> None:
    normalize = seen_by(make_rows(1))
    rows = torch.from_numpy(make_rows(1)).requires_grad_()
    normalize(rows).sum().backward()
    scale = normalize.get_buffer("scale")
    assert torch.allclose(rows.grad, scale.expand_as(rows))
    assert not list(normalize.parameters())


# Memory


@each_schedule
@pytest.mark.parametrize("kind", all_but_first(["device", "managed"]))
def test_memory_of_a_gpu_gives_the_hosts_bits(kind: str, schedule: str, seed: int) -> None:
    on_host = make()
    with simulated_cuda(schedule, seed):
        on_device = make()
        for number in range(3):
            rows, final = make_rows(number), make_rows(7, (2,))
            valid = np.random.default_rng(number).random((6, 3)) < 0.8
            rows[~valid] = np.nan
            place = Array((6, 3), np.float32, feature_shape=(4,), storage=kind)
            place[...] = rows
            ends = Array((2,), np.float32, feature_shape=(4,), storage="device")
            ends[...] = final
            on_device.observe(place, valid=valid, final_obs=ends)
            on_host.observe(rows, valid=valid, final_obs=final)
            cuda.synchronize()  # the host may write managed memory now
        spoiled = make_rows(3)
        spoiled[5, 0, 0] = np.nan
        place[...] = spoiled
        with pytest.raises(ValueError, match="observation is nan in row t = 5 of environment 0"):
            on_device.observe(place)
        for each in (on_device, on_host):
            each.begin_batch()
        assert content_of(on_device) == content_of(on_host)


@pytest.mark.simulation("it launches captured graphs of the simulation")
@each_schedule
def test_a_captured_graph_reads_what_is_in_force_at_its_replay(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed):
        rows = Array((2, 4), np.float32, storage="device")
        normalize, values = make(), rows.to_torch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = normalize(values)
        for number in (1, 2):
            batch = make_rows(number)
            normalize.observe(batch)
            normalize.begin_batch()
            rows[...] = batch[0, :2]
            graph.replay()
            cuda.synchronize()
            assert torch.equal(result, normalize(values))
        with (
            torch.cuda.graph(torch.cuda.CUDAGraph()),
            pytest.raises(RuntimeError, match=r"an update of moments|captured"),
        ):
            normalize.observe(rows)


def test_it_reads_rows_without_a_copy_and_writes_none() -> None:
    normalize, rows = seen_by(make_rows(1)), make_rows(1)
    before = rows.copy()
    result: Tensor = normalize(torch.from_numpy(rows))
    assert (rows == before).all()
    assert result.data_ptr() != rows.ctypes.data


def test_agents_who_are_not_alive_count_for_nothing_or_are_refused() -> None:
    rows = make_rows(1, (6, 3, 2))
    alive = np.random.default_rng(0).random((6, 3, 2)) < 0.5
    shared, of_each = make((4,)), make((2, 4))
    shared.observe(rows, valid=alive)
    np.testing.assert_allclose(shared.moments().mean.numpy(), rows[alive].mean(axis=0), rtol=1e-5)
    match = "observation: got rows in which some agents are not alive, .* moments that agents share"
    with pytest.raises(ValueError, match=match):
        of_each.observe(rows, valid=alive)
    of_each.observe(rows)  # of teams in which all agents live
    by_name = NormalizeObservations({name: torch.zeros(1, 4) for name in ("pinky", "inky")})
    tree = ArrayDict({"pinky": rows[:, :, 0], "inky": rows[:, :, 1]})
    with pytest.raises(ValueError, match=r"observation\.pinky: got rows in which some agents are"):
        by_name.observe(tree, valid=ArrayDict({"pinky": alive[..., 0], "inky": alive[..., 1]}))

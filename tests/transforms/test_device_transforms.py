"""Transforms of batches in CUDA memory, on simulated CUDA: the same bits as on the host.

Nothing here ran on a GPU. What lacks a wait, or a launch before it, reads poison.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from long_run import all_but_first
from parllel import Array, ArrayDict, cuda
from parllel.ops.advantage import estimate_advantage
from parllel.ops.moments import update_moments
from parllel.ops.normalize import normalize
from parllel.testing.simulated_cuda import Simulation, simulated_cuda
from parllel.transforms import (
    ClipRewards,
    EstimateAdvantage,
    NormalizeAdvantage,
    RunningMoments,
    Transform,
)

SCHEDULES = ("lazy", "eager", "random")
# One number; several environments; more advantages than one thread merges (three launches).
SHAPES = ((1, 1), (12, 5), (70, 130))
each_kind = pytest.mark.parametrize("kind", ["device", "managed"])


@pytest.fixture(params=all_but_first(SCHEDULES))
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    with simulated_cuda(schedule=request.param, seed=5) as simulation:
        yield simulation


def random_batch(shape: tuple[int, int], seed: int = 0, storage: str = "local") -> ArrayDict:
    """Return a batch like that of a sampler, in the second window of a ring."""
    rng, (T, _) = np.random.default_rng(seed), shape
    ring = {"full_size": 2 * T}
    batch = ArrayDict(
        {
            "reward": Array(shape, np.float32, **ring),
            "terminated": Array(shape, bool, **ring),
            "truncated": Array(shape, bool, **ring),
            "final_value": Array(shape, np.float32, **ring),
            "agent_info": {"value": Array(shape, np.float32, padding=1, **ring)},
        }
    )
    batch.rotate()
    batch["reward"][...] = 3 * rng.standard_normal(shape)
    batch["terminated"][...] = rng.random(shape) < 0.1
    batch["truncated"][...] = rng.random(shape) < 0.1
    batch["final_value"][...] = rng.standard_normal(shape)
    batch["agent_info"]["value"][: T + 1] = rng.standard_normal((T + 1, shape[1]))
    return batch.to(storage)


def make_transforms() -> list[Transform]:
    return [ClipRewards(-2, 1.5), EstimateAdvantage(gae_lambda=0.9), NormalizeAdvantage()]


def apply(transforms: list[Transform], batch: ArrayDict) -> ArrayDict:
    for transform in transforms:
        batch = transform(batch)
    return batch


def to_host(leaf: Array) -> np.ndarray:
    return cuda.to_host(leaf.to_cupy()) if leaf.storage == "managed" else leaf.to_ndarray()


@each_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_on_the_device_gives_the_hosts_bits(
    kind: str, shape: tuple[int, int], simulation: Simulation
) -> None:
    transforms, on_host = make_transforms(), make_transforms()
    for seed in (1, 2):  # the second batch overwrites the results of the first
        result = apply(transforms, random_batch(shape, seed, kind))
        expected = apply(on_host, random_batch(shape, seed))
        for name in ("reward", "advantage", "return_"):
            assert result[name].storage == kind
            assert to_host(result[name]).tobytes() == expected[name].to_ndarray().tobytes()


@pytest.mark.parametrize(
    ("shape", "n_launches", "has_same_bits"),
    [((256, 3), 3, False), ((700, 1), 3, False), ((255, 3), 1, True), ((256, 4097), 1, True)],
)
def test_long_walks_are_divided_within_the_bound(
    shape: tuple[int, int], n_launches: int, has_same_bits: bool
) -> None:
    """Twice the bound of `kernels.advantage.estimate_advantage`: the host's error is as large."""
    steps, _ = shape
    with simulated_cuda("lazy") as simulation:
        on_host = random_batch(shape, 0)
        on_host["terminated"][: steps - 30] = False  # many terms travel far
        on_host["truncated"][: steps - 30] = False
        on_device = on_host.to("device")
        before = simulation.counters.launches
        result = EstimateAdvantage()(on_device)
        assert simulation.counters.launches - before == n_launches
        expected = EstimateAdvantage()(on_host)
        sizes = random_batch(shape, 0)
        for name in ("terminated", "truncated"):
            sizes[name][...] = on_host[name]
        for name in ("reward", "final_value"):
            sizes[name][...] = np.abs(sizes[name].to_ndarray())
        value = sizes["agent_info"]["value"]
        value[: steps + 1] = np.abs(value[: steps + 1].to_ndarray())
        sizes["reward"][...] = sizes["reward"].to_ndarray() + 2 * value.to_ndarray()
        magnitude = EstimateAdvantage()(sizes)["return_"].to_ndarray()
        for name in ("advantage", "return_"):
            got, right = to_host(result[name]), expected[name].to_ndarray()
            assert (np.abs(got - right) <= 2 * (steps + 1) * 2.0**-22 * magnitude).all()
            assert not has_same_bits or got.tobytes() == right.tobytes()


def mark_invalid(batch: ArrayDict, share: float) -> ArrayDict:
    """Return a batch of which some rows are no transitions, and hold what nothing may read."""
    valid = np.random.default_rng(7).random(batch["reward"].shape) < share
    batch["valid"] = batch["terminated"].new_array()
    batch["valid"].move_window(batch["terminated"].window_begin)
    batch["valid"][...] = valid
    batch["reward"][np.nonzero(~valid)] = np.nan
    batch["final_value"][np.nonzero(~valid)] = np.nan
    return batch


@each_kind
@pytest.mark.parametrize("share", [1.0, 0.7, 0.0])
def test_rows_that_are_no_transitions_give_the_hosts_bits(
    kind: str, share: float, simulation: Simulation
) -> None:
    transforms, on_host = make_transforms(), make_transforms()
    for seed in (1, 2):
        result = apply(transforms, mark_invalid(random_batch((12, 5), seed), share).to(kind))
        expected = apply(on_host, mark_invalid(random_batch((12, 5), seed), share))
        assert np.isfinite(expected["advantage"].to_ndarray()).all()
        if share:  # where no row is valid, nothing is normalized
            assert (
                expected["advantage"].to_ndarray()[np.nonzero(~expected["valid"].to_ndarray())] == 0
            ).all()
        for name in ("advantage", "return_"):
            assert to_host(result[name]).tobytes() == expected[name].to_ndarray().tobytes()


@each_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_costs_launches_alone_and_their_number_is_known(
    kind: str, shape: tuple[int, int], simulation: Simulation
) -> None:
    transforms = make_transforms()
    batches = [random_batch(shape, seed, kind) for seed in (1, 2)]
    apply(transforms, batches[0])
    allocations = count_allocations()
    launches = []
    for transform in transforms:
        before = copy.copy(simulation.counters)
        batches[1] = transform(batches[1])
        counted = simulation.counters.since(before)
        launches.append(counted.launches)
        counted.launches = 0
        assert not any(counted.as_dict().values())
    assert launches == [1, 1, 4 if np.prod(shape) > 8000 else 3]
    assert allocations == []


def count_allocations() -> list[int]:
    """Return a list that gets the bytes of each block of device memory from now on."""
    cupy, sizes = cuda.library(), []
    malloc = cupy.cuda.get_allocator()

    def allocate(nbytes: int) -> Any:
        sizes.append(nbytes)
        return malloc(nbytes)

    cupy.cuda.set_allocator(allocate)
    return sizes


def test_work_goes_to_the_callers_stream(simulation: Simulation) -> None:
    batch, transforms = random_batch((12, 5), 0, "device"), make_transforms()
    stream = cuda.library().cuda.Stream(non_blocking=True)
    ready = cuda.Event().record()
    ready.wait(stream)
    with cuda.use_stream(stream):
        result = apply(transforms, batch)["advantage"].to_ndarray()
    assert {launch.stream for launch in simulation.launches} == {stream.ptr}
    assert (result == apply(make_transforms(), random_batch((12, 5)))["advantage"]).all()


def test_a_stream_that_waits_for_nobody_is_found() -> None:
    with simulated_cuda("lazy"):
        batch = random_batch((12, 5))
        on_device = ArrayDict({"reward": Array((12, 5), np.float32, storage="device")})
        cuda.synchronize()
        on_device["reward"][...] = batch["reward"]  # queued in the default stream
        with cuda.use_stream(cuda.library().cuda.Stream(non_blocking=True)):
            clipped = ClipRewards()(on_device)["reward"].to_ndarray()
    assert not (clipped == ClipRewards()(batch)["reward"].to_ndarray()).all()


def test_a_result_moves_to_where_the_batch_is(simulation: Simulation) -> None:
    transforms = make_transforms()
    for kind in ("device", "local", "managed", "device"):
        result = apply(transforms, random_batch((12, 5), 3, kind))
        expected = apply(make_transforms(), random_batch((12, 5), 3))
        assert {result[name].storage for name in ("reward", "advantage", "return_")} == {kind}
        assert (to_host(result["advantage"]) == expected["advantage"]).all()


def test_leaves_on_both_sides_are_refused(simulation: Simulation) -> None:
    batch = random_batch((12, 5), 0, "device")
    batch["reward"] = Array((12, 5), np.float32)
    with pytest.raises(ValueError, match=r"leaves live in {'reward': 'local', 'value': 'device'"):
        EstimateAdvantage()(batch)
    assert not simulation.launches


@each_kind
def test_a_leaf_that_is_not_contiguous_is_copied_first(kind: str, simulation: Simulation) -> None:
    batch, on_host = random_batch((12, 5), 0, kind), random_batch((12, 5), 0)
    result = apply(make_transforms(), batch[:, 1:4])
    expected = apply(make_transforms(), on_host[:, 1:4])
    assert (to_host(result["advantage"]) == expected["advantage"]).all()


# What a launch checks before it


def on_device(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[Any]:
    return [cuda.to_device(np.zeros(shape, dtype)) for shape in shapes]


def advantage_arguments() -> dict[str, Any]:
    reward, final_value, advantage, return_ = on_device(*[(4, 3)] * 4)
    terminated, truncated = on_device((4, 3), (4, 3), dtype=bool)
    return {
        "reward": reward,
        "value": on_device((5, 3))[0],
        "terminated": terminated,
        "truncated": truncated,
        "final_value": final_value,
        "discount": 0.99,
        "gae_lambda": 0.95,
        "out_advantage": advantage,
        "out_return": return_,
    }


def moments_arguments() -> dict[str, Any]:
    rows, kept, scratch = on_device((4, 3), (6, 42, 3), (3, 12))
    counts = cuda.to_device(np.zeros(3, np.int64))
    outputs = {"out_kept": kept, "out_counts": counts, "out_scratch": scratch}
    return {"rows": rows, **outputs, "begins_anew": False, "epsilon": 1e-8}


def normalize_arguments() -> dict[str, Any]:
    values, kept, out = on_device((4, 3), (6, 42, 3), (4, 3))
    return {"values": values, "kept": kept, "out_values": out, "low": -1, "high": 1}


LAUNCHES: dict[Callable[..., None], Callable[[], dict[str, Any]]] = {
    estimate_advantage: advantage_arguments,
    update_moments: moments_arguments,
    normalize: normalize_arguments,
}


@pytest.mark.parametrize(
    ("launch", "name", "make_wrong", "error", "message"),
    [
        *(
            (launch, name, make_wrong, error, f"{name}: {message}")
            for launch, name in (
                (estimate_advantage, "final_value"),
                (estimate_advantage, "out_return"),
                (update_moments, "rows"),
                (update_moments, "out_kept"),
                (normalize, "values"),
                (normalize, "out_values"),
            )
            for make_wrong, error, message in (
                (lambda array: array.get(), TypeError, "numpy.ndarray, expected .*ndarray"),
                (lambda array: array.astype("f8"), ValueError, "dtype float64, expected float32"),
                (lambda array: array[::2, ..., ::2], ValueError, "strides .* C-contiguous"),
            )
        ),
        (
            estimate_advantage,
            "value",
            lambda array: array[1:],
            ValueError,
            r"value: shape \(4, 3\), expected \(5, 3\) = \(T \+ 1, B\)",
        ),
        (
            estimate_advantage,
            "reward",
            lambda array: array[0],
            ValueError,
            r"reward: shape \(3,\), expected two axes",
        ),
        (
            estimate_advantage,
            "gae_lambda",
            lambda number: 2 * number,
            ValueError,
            r"gae_lambda: 1.9, expected a number in \[0, 1\]",
        ),
        (
            update_moments,
            "out_kept",
            lambda array: array[:5],
            ValueError,
            r"out_kept: shape \(5, 42, 3\), expected \(6, 42, 3\)",
        ),
        (
            update_moments,
            "out_scratch",
            lambda array: array[:2],
            ValueError,
            r"out_scratch: shape \(2, 12\), expected \(3, 12\) or longer",
        ),
        (
            normalize,
            "kept",
            lambda array: array.reshape(6, 3, 42),
            ValueError,
            r"kept: shape \(6, 3, 42\), expected",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_launched(
    launch: Callable[..., None],
    name: str,
    make_wrong: Callable[[Any], Any],
    error: type[Exception],
    message: str,
) -> None:
    with simulated_cuda("eager") as simulation:
        arguments = LAUNCHES[launch]()
        arguments[name] = make_wrong(arguments[name])
        with pytest.raises(error, match=f"^{message}"):
            launch(**arguments)
        assert not simulation.launches


@pytest.mark.parametrize(
    ("launch", "output", "other"),
    [
        (estimate_advantage, "out_return", "reward"),
        (estimate_advantage, "out_advantage", "out_return"),
        (normalize, "out_values", "values"),
    ],
)
def test_an_output_that_overlaps_is_refused(
    launch: Callable[..., None], output: str, other: str
) -> None:
    with simulated_cuda("eager") as simulation:
        arguments = LAUNCHES[launch]()
        arguments[output] = arguments[other]
        with pytest.raises(ValueError, match=f"{output}: overlaps {other}"):
            launch(**arguments)
        assert not simulation.launches


def test_a_batch_of_no_environments_launches_nothing(simulation: Simulation) -> None:
    result = apply(make_transforms(), random_batch((3, 0), 0, "device"))
    assert result["advantage"].shape == (3, 0)
    assert not simulation.launches


# Running moments


@each_kind
@pytest.mark.parametrize("features", [(), (3,), (2, 70)])
def test_running_moments_on_the_device_have_the_hosts_bits(
    kind: str, features: tuple[int, ...], simulation: Simulation
) -> None:
    rows = Array((90, 100), np.float32, feature_shape=features, storage=kind)
    other = Array((90, 100), np.float32, feature_shape=features)
    moments, expected = RunningMoments(rows), RunningMoments(other)
    for seed, T in enumerate((3, 90, 1)):
        values = np.random.default_rng(seed).standard_normal(other[:T].shape, np.float32) + 4
        rows[:T], other[:T] = values, values
        before = simulation.counters.launches
        moments.update(rows[:T])
        assert simulation.counters.launches - before == (3 if T * 100 > 8000 else 2)
        expected.update(other[:T])
        cuda.synchronize()  # the host may write managed memory now
    out = rows.new_array()
    moments.normalize(rows, out=out, clip=1)
    assert to_host(out).tobytes() == expected.normalize(other, clip=1).to_ndarray().tobytes()
    for name, value in expected.state_dict().items():
        assert moments.state_dict()[name].tobytes() == value.tobytes()
    assert moments.mean.storage == moments.variance.storage == kind
    assert (to_host(moments.mean) == expected.mean).all()


def test_an_update_copies_nothing_and_waits_for_nothing(simulation: Simulation) -> None:
    rows = Array((4, 5), np.float32, feature_shape=(3,), storage="device")
    moments = RunningMoments(rows)
    moments.update(rows)
    allocations, before = count_allocations(), copy.copy(simulation.counters)
    for _ in range(3):
        moments.update(rows)
    counted = simulation.counters.since(before)
    assert counted.launches == 6
    counted.launches = 0
    assert not any(counted.as_dict().values())
    assert allocations == []


@each_kind
def test_moments_are_restored_on_the_other_side(kind: str, simulation: Simulation) -> None:
    host = Array((40,), np.float32, feature_shape=(3,))
    host[...] = np.random.default_rng(0).standard_normal(host.shape)
    rows = host.to(kind)
    moments, on_host = RunningMoments(rows), RunningMoments(host)
    moments.update(rows)
    on_host.load_state_dict(moments.state_dict())
    restored = RunningMoments(rows)
    restored.load_state_dict(on_host.state_dict())
    restored.update(rows)
    moments.update(rows)
    on_host.update(host)
    expected = on_host.normalize(host).to_ndarray()
    assert (to_host(restored.normalize(rows)) == expected).all()
    assert (to_host(moments.normalize(rows)) == expected).all()
    with pytest.raises(ValueError, match="rows: local memory, and these moments work in device"):
        moments.update(host)
    with pytest.raises(ValueError, match=f"rows: {kind} memory, and these moments work in host"):
        on_host.normalize(rows)


def test_an_output_that_would_be_a_copy_is_refused(simulation: Simulation) -> None:
    rows = Array((4, 5), np.float32, storage="device")
    moments = RunningMoments(rows)
    moments.update(rows)
    with pytest.raises(IndexError, match="made with integer arrays"):
        moments.normalize(rows[[0, 1]], out=rows[[2, 3]])

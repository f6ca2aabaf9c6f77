"""Samplers whose observations have different lengths: true batches, alike in each memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from jagged_envs import CAPACITY, Shapes

from long_run import all_but_first
from parllel import Array, ArrayDict, Jagged
from parllel.cages import Cage, ProcessCage, SerialCage, spawn_seeds
from parllel.patterns import build_eval_tree, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree import leaves_of
from parllel.tree.leaves import as_tensor
from schedules import each_schedule

T, B = 6, 4


class Adder:
    """Values an observation by the sum of its numbers, which environments pay as a reward, too."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        value = self.value(observation)
        return (value * 1000).long() % 2, {"value": value}

    def value(self, observation: Any) -> torch.Tensor:
        total: Any = 0
        for _, leaf in leaves_of(observation):
            rows = as_tensor(leaf)
            total = total + (sums_of(rows) if isinstance(rows, Jagged) else rows.flatten(1).sum(1))
        return total


def sums_of(rows: Jagged) -> torch.Tensor:
    """Return the sum of each element, float32 [k]."""
    packed = rows.packed()
    totals = packed.values.float().flatten(1).sum(1) if packed.feature_shape else packed.values
    return torch.zeros(len(rows)).index_add(0, packed.segment_ids(), totals.float())


def serial(kind: str, **settings: Any) -> list[Cage]:
    settings = {"kind": kind, **settings}
    return [SerialCage(Shapes, settings, n_envs=B, seed=7)]


def in_workers(kind: str, **settings: Any) -> list[Cage]:
    seeds, settings = spawn_seeds(7, B), {"kind": kind, **settings}
    return [
        ProcessCage(Shapes, settings, n_envs=1, seed=seeds[:1]),
        ProcessCage(Shapes, settings, n_envs=3, seed=seeds[1:]),
    ]


def collect(
    kind: str,
    storage: str,
    make_cages: Callable[..., list[Cage]] = serial,
    sampler_type: Any = BasicSampler,
    n_batches: int = 3,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Yield copies of some batches, by dotted names of leaves; elements are lists of arrays."""
    example = build_example(
        Shapes, env_kwargs={"kind": kind}, storage=storage, capacity=CAPACITY[kind]
    )
    agent = Adder()
    samples = build_sample_tree(example, agent, batch_shape=(T, B), **options)
    with ExitStack() as stack:
        stack.callback(samples.close)
        cages = [stack.enter_context(cage) for cage in make_cages(kind)]
        sampler = sampler_type(cages, agent, samples)
        stack.callback(sampler.close)
        for _ in range(n_batches):
            batch, episodes = sampler.collect_batch()
            copies = {".".join(path): copy_of(leaf) for path, leaf in batch.walk()}
            last = {f"after.{path}": copy_of(leaf) for path, leaf in after(batch, T)}
            yield {**copies, **last, "episodes": episodes}


def after(batch: ArrayDict, row: int) -> list[tuple[str, Any]]:
    pairs = leaves_of(batch["observation"])
    return [(".".join(path), leaf[row : row + 1]) for path, leaf in pairs]


def copy_of(leaf: Array) -> Any:
    rows: Any = leaf.to_ndarray()
    if isinstance(rows, Jagged):
        count = int(np.prod(rows.batch_shape))
        flat = Jagged(rows.values, rows.offsets, rows.lengths, (count,))
        return [element.copy() for element in flat]
    return rows.copy()


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, rows in one.items():
        if isinstance(rows, np.ndarray):
            np.testing.assert_array_equal(rows, other[name], err_msg=name)
        elif name != "episodes":
            assert [len(each) for each in rows] == [len(each) for each in other[name]]
            for mine, its in zip(rows, other[name], strict=True):
                np.testing.assert_array_equal(mine, its, err_msg=name)
    assert sorted(map(repr, one["episodes"])) == sorted(map(repr, other["episodes"]))


@pytest.mark.parametrize("kind", CAPACITY)
def test_values_are_those_of_the_observations_that_environments_gave(kind: str) -> None:
    """A reward is the sum of the observation after the step, and the action."""
    n_cut = 0
    for batch in collect(kind, "local"):
        value = np.concatenate([batch["agent_info.value"], sums(batch, kind)[None]])
        total = batch["reward"] - batch["action"]
        ended = batch["terminated"] | batch["truncated"]
        np.testing.assert_allclose(value[1:][~ended], total[~ended], rtol=1e-4, atol=1e-4)
        cut = batch["truncated"] & ~batch["terminated"]
        np.testing.assert_allclose(batch["final_value"][cut], total[cut], rtol=1e-4, atol=1e-4)
        others = abs(value[1:][ended] - total[ended]) > 0.01  # first ones of the next episodes
        assert others.sum() > 0.7 * ended.sum()
        n_cut += cut.sum()
    assert n_cut > 3


def sums(batch: dict[str, Any], kind: str) -> Any:
    """Return the sums of the observations after the batch."""
    leaves = [rows for name, rows in batch.items() if name.startswith("after.")]
    return np.array(
        [
            sum(each.sum(dtype=np.float64) for each in column)
            for column in zip(
                *(rows if isinstance(rows, list) else rows[0] for rows in leaves), strict=True
            )
        ]
    )


@pytest.mark.parametrize("kind", all_but_first(["dict", "cloud"]))
@pytest.mark.parametrize(
    ("make_cages", "storage", "sampler_type"),
    all_but_first(
        [
            (in_workers, "shared", BasicSampler),
            (in_workers, "local", BasicSampler),
            (serial, "inherited", BasicSampler),
            (in_workers, "shared", AlternatingSampler),
        ]
    ),
)
def test_batches_are_the_same_in_workers_and_in_shared_memory(
    kind: str, make_cages: Any, storage: str, sampler_type: Any
) -> None:
    batches = collect(kind, storage, make_cages, sampler_type)
    for one, other in zip(collect(kind, "local"), batches, strict=True):
        assert_same(one, other)


@each_schedule
@pytest.mark.parametrize(
    ("kind", "make_cages", "sampler_type"),
    all_but_first(
        [
            ("dict", serial, BasicSampler),
            ("graph", in_workers, BasicSampler),
            ("dict", in_workers, AlternatingSampler),
        ]
    ),
)
@pytest.mark.parametrize("storage", all_but_first(["device", "pinned", "managed"]))
def test_batches_are_the_same_on_a_device(
    kind: str, make_cages: Any, sampler_type: Any, storage: str, schedule: str, seed: int
) -> None:
    expected = list(collect(kind, "local"))
    with simulated_cuda(schedule, seed):
        batches = collect(kind, storage, make_cages, sampler_type)
        for one, other in zip(expected, batches, strict=True):
            assert_same(one, other)


def test_a_ring_keeps_earlier_batches() -> None:
    batches = list(collect("dict", "local", n_batches=4))
    example = build_example(
        Shapes, env_kwargs={"kind": "dict"}, storage="local", capacity=CAPACITY["dict"]
    )
    samples = build_sample_tree(example, Adder(), batch_shape=(T, B), full_size=3 * T)
    with serial("dict")[0] as cage:
        sampler = BasicSampler([cage], Adder(), samples)
        for _ in batches:
            sampler.collect_batch()
    for path, leaf in samples["observation"].walk():
        found, name = copy_of(leaf.full), ".".join(("observation", *path))
        a_row = B if isinstance(found, list) else 1
        for number in (1, 2, 3):
            begin, expected = number % 3 * T * a_row, batches[number][name]
            pairs = [*zip(found[begin : begin + len(expected)], expected, strict=True)]
            for mine, its in pairs[a_row if number == 1 else 0 :]:  # that row follows batch 3 now
                np.testing.assert_array_equal(mine, its, err_msg=name)


def test_frames_of_such_leaves_are_refused() -> None:
    example = build_example(Shapes, env_kwargs={"kind": "cloud"}, storage="local")
    with pytest.raises(ValueError, match="observation is a leaf of the kind 'jagged', expected"):
        build_sample_tree(example, Adder(), batch_shape=(T, B), frames="first")


@pytest.mark.parametrize("kind", ["cloud", "graph"])
def test_evaluations_have_a_tree_of_their_own(kind: str) -> None:
    example = build_example(
        Shapes, env_kwargs={"kind": kind}, storage="local", capacity=CAPACITY[kind]
    )
    samples = build_sample_tree(example, Adder(), batch_shape=(T, B))
    scores = []
    tree = build_eval_tree(samples, n_envs=B)
    for options in ({"samples": tree}, {"capacity": CAPACITY[kind]}):
        with serial(kind)[0] as cage:
            evaluation = EvalSampler([cage], Adder(), n_episodes=B, **options)
            scores.append([each.episode_return for each in evaluation.collect_episodes()])
            evaluation.close()
    assert scores[0] == scores[1]
    if kind == "graph":
        with (
            serial(kind)[0] as cage,
            pytest.raises(ValueError, match="no largest number"),
        ):
            EvalSampler([cage], Adder(), n_episodes=B)
        with serial(kind)[0] as cage, pytest.raises(ValueError, match=r"capacity: got .* beside"):
            EvalSampler([cage], Adder(), tree, n_episodes=B, capacity=CAPACITY[kind])

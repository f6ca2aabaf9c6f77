"""Samplers whose trees store frames once: the same batches as with whole stacks, at every place."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from torch import Tensor

from films import FRAME, STACK, FilmWithSound, make_film
from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.arrays import ArraySpec, FrameSpec
from parllel.arrays.frame_writer import PREVIOUS
from parllel.cages import Cage, ProcessCage, SerialCage, VectorCage, as_tree, write_column
from parllel.patterns import build_eval_tree, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import allocate_tree, dict_map
from parllel.tree.leaves import as_tensor

T, B = 5, 4


class Viewer:
    """Acts on all frames of a stack, and values them."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        value = self.value(observation)
        return value.long() % 7, {"value": value}

    def value(self, observation: Any) -> Tensor:
        frames = as_tensor(observation).flatten(2).float().sum(2)  # whole numbers: exact anywhere
        return frames[:, 0] + 2 * frames[:, 1] + 3 * frames[:, 2]


class ViewerOfTrees(Viewer):
    def value(self, observation: Any) -> Tensor:
        sound = as_tensor(observation["sound"])[:, -1] > 0
        return super().value(observation["image"]) + sound.float()


def with_frames(tree: ArrayDict, fill: str, storage: str, **options: Any) -> ArrayDict:
    """Return a new tree like this one whose observations are stored as frames."""
    specs = tree.apply(lambda leaf: leaf.spec.changed(**options))

    def frames_of(spec: ArraySpec) -> FrameSpec:
        stack, *shape = spec.feature_shape
        window = spec.padding, spec.full_size
        return FrameSpec.of(spec.batch_shape, spec.dtype, shape, *window, stack=stack, fill=fill)  # type: ignore[arg-type]

    specs["observation"] = dict_map(frames_of, specs["observation"])
    return allocate_tree(specs, storage)


def make_tree(make_env: Callable[..., Any], agent: Any, n_envs: int = B) -> ArrayDict:
    example = build_example(make_env, storage="local")
    return build_sample_tree(example, agent, batch_shape=(T, n_envs))


def make_cages(
    make_env: Callable[..., Any],
    sizes: Sequence[int],
    kind: type[SerialCage | ProcessCage] = SerialCage,
) -> list[Cage]:
    return [kind(make_env, n_envs=size, seed=size) for size in sizes]


def collect(sampler: Any, n_batches: int) -> Iterator[dict[str, Any]]:
    """Yield what the tree holds after each batch, and the observation after it."""
    for _ in range(n_batches):
        samples, completed = sampler.collect_batch()
        batch = {
            path: leaf[0 : T + min(leaf.padding, 1)].to_ndarray().copy()
            for path, leaf in leaves(samples).items()
        }
        yield {**batch, "completed": sorted(each.episode_return for each in completed)}


def assert_batches_are_equal(
    found: Iterator[dict[str, Any]], expected: Sequence[dict[str, Any]]
) -> None:
    n_first = 0
    for batch, right in zip(found, expected, strict=True):
        assert batch.keys() == right.keys()
        for name, values in batch.items():
            assert_array_equal(values, right[name], err_msg=name)
        n_first += int((right["terminated"] | right["truncated"]).sum())
    assert n_first > T


WINDOWS: tuple[dict[str, int], ...] = ({}, {"full_size": 2 * T}, {"padding": 2, "full_size": 3 * T})


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sizes", [(B,), (1, 3)])
@pytest.mark.parametrize("fill", ["first", "zero"])
def test_batches_are_those_of_whole_stacks(
    window: dict[str, int], sizes: Sequence[int], fill: str
) -> None:
    make_env = functools.partial(make_film, fill)
    dense = make_tree(make_env, Viewer()).new_array(**window)
    expected = list(collect(BasicSampler(make_cages(make_env, sizes), Viewer(), dense), 5))
    samples = with_frames(dense, fill, "shared")
    assert isinstance(samples["observation"], FrameArray)
    sampler = BasicSampler(make_cages(make_env, sizes), Viewer(), samples)
    assert_batches_are_equal(collect(sampler, 5), expected)
    samples.close()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("fill", ["first", "zero"])
def test_batches_on_a_device_are_those_of_whole_stacks(
    window: dict[str, int], fill: str, cuda_device: torch.device
) -> None:
    make_env = functools.partial(make_film, fill)
    dense = make_tree(make_env, Viewer()).new_array(**window)
    expected = list(collect(BasicSampler(make_cages(make_env, (1, 3)), Viewer(), dense), 5))
    samples = with_frames(dense, fill, "device")
    sampler = BasicSampler(make_cages(make_env, (1, 3)), Viewer(), samples)
    assert_batches_are_equal(collect(sampler, 5), expected)
    sampler.close()
    samples.close()


@pytest.mark.parametrize("kind", ["device", "pinned", "managed"])
def test_observations_may_be_trees_of_frames(kind: str, cuda_device: torch.device) -> None:
    make_env = functools.partial(make_film, "first", FilmWithSound)
    dense = make_tree(make_env, ViewerOfTrees())
    expected = list(collect(BasicSampler(make_cages(make_env, (B,)), ViewerOfTrees(), dense), 4))
    samples = with_frames(dense, "first", kind)
    sampler = BasicSampler(make_cages(make_env, (B,)), ViewerOfTrees(), samples)
    assert_batches_are_equal(collect(sampler, 4), expected)
    sampler.close()
    samples.close()


@pytest.mark.parametrize("kind", ["local", "device"])
def test_taking_turns_gives_the_same_batches(kind: str, cuda_device: torch.device) -> None:
    dense = make_tree(make_film, Viewer())
    expected = list(collect(BasicSampler(make_cages(make_film, (1, 3)), Viewer(), dense), 4))
    samples = with_frames(dense, "first", kind)
    sampler = AlternatingSampler(make_cages(make_film, (1, 3)), Viewer(), samples)
    assert_batches_are_equal(collect(sampler, 4), expected)
    sampler.close()
    samples.close()


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        # In the short run each kind, and each window once.
        pytest.param(kind, window, marks=[pytest.mark.long] if number and kind != "shared" else [])
        for kind in ("local", "shared", "pinned", "device")
        for number, window in enumerate(WINDOWS)
    ],
)
def test_workers_write_frames_too(
    kind: str, window: dict[str, int], cuda_device: torch.device
) -> None:
    make_env = functools.partial(make_film, "zero", FilmWithSound)
    dense = make_tree(make_env, ViewerOfTrees()).new_array(**window)
    expected = list(collect(BasicSampler(make_cages(make_env, (1, 3)), ViewerOfTrees(), dense), 5))
    samples = with_frames(dense, "zero", kind)
    cages = make_cages(make_env, (1, 3), ProcessCage)
    sampler = BasicSampler(cages, ViewerOfTrees(), samples)
    assert_batches_are_equal(collect(sampler, 5), expected)
    sampler.close()
    for cage in cages:
        cage.close()
    samples.close()


@pytest.mark.parametrize("kind", ["local", "device"])
@pytest.mark.parametrize("fill", ["first", "zero"])
def test_a_batch_may_begin_within_episodes(kind: str, fill: str, cuda_device: torch.device) -> None:
    """Random steps after the reset: the first stacks have frames that no row has."""
    make_env = functools.partial(make_film, fill)
    options = {"max_steps_decorrelate": 20}
    dense = make_tree(make_env, Viewer())
    cages = make_cages(make_env, (B,))
    expected = list(collect(BasicSampler(cages, Viewer(), dense, **options), 4))
    stacks = expected[0]["observation"][0]
    assert not (stacks[:, -2:] == stacks[:, -1:]).all()
    samples = with_frames(dense, fill, kind)
    sampler = BasicSampler(make_cages(make_env, (B,)), Viewer(), samples, **options)
    assert_batches_are_equal(collect(sampler, 4), expected)
    sampler.close()
    samples.close()


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["local", "device"])
def test_vector_environments_write_frames_too(
    mode: AutoresetMode, kind: str, cuda_device: torch.device
) -> None:
    def make_vector_env() -> SyncVectorEnv:
        return SyncVectorEnv([make_film] * B, autoreset_mode=mode)

    dense = make_tree(make_film, Viewer())
    cages: list[Cage] = [VectorCage(make_vector_env, seed=2)]
    expected = list(collect(BasicSampler(cages, Viewer(), dense), 4))
    samples = with_frames(dense, "first", kind)
    cages = [VectorCage(make_vector_env, seed=2)]
    sampler = BasicSampler(cages, Viewer(), samples)
    assert_batches_are_equal(collect(sampler, 4), expected)
    sampler.close()
    samples.close()


@pytest.mark.parametrize("kind", ["local", "device"])
def test_evaluation_stores_frames_too(kind: str, cuda_device: torch.device) -> None:
    """In trees of T = 1, whose window moves at each step."""
    returns = []
    dense = make_tree(make_film, Viewer())
    for samples in (dense, with_frames(dense, "first", kind)):
        tree = build_eval_tree(samples, n_envs=3)
        sampler = EvalSampler(make_cages(make_film, (3,)), Viewer(), tree, n_episodes=12)
        returns.append([each.episode_return for each in sampler.collect_episodes()])
        sampler.close()
    assert isinstance(tree["observation"], FrameArray)
    assert returns[0] == returns[1]


def test_a_step_costs_a_launch_more_than_with_whole_stacks(cuda_device: torch.device) -> None:
    """The one that gathers the agent's stacks; one more is for the observation after the batch."""
    dense = make_tree(make_film, Viewer()).new_array(full_size=4 * T)
    counts = []
    for samples in (dense.to("device"), with_frames(dense, "first", "device")):
        sampler = BasicSampler(make_cages(make_film, (B,)), Viewer(), samples)
        sampler.collect_batch()
        before = copy.copy(cuda.counters)
        sampler.collect_batch()
        counts.append(cuda.counters.since(before).as_dict())
        sampler.close()
        samples.close()
    assert counts[1].pop("launches") - counts[0].pop("launches") == T + 1
    assert counts[0] == counts[1]


def test_a_staged_step_holds_one_frame_for_each_environment(cuda_device: torch.device) -> None:
    samples = with_frames(make_tree(make_film, Viewer()), "first", "device")
    sampler = BasicSampler(make_cages(make_film, (B,)), Viewer(), samples)
    group = sampler._groups[0]
    places = group.host_rows(0)["observation"]
    shapes = {name: leaf.shape for name, leaf in places.items()}
    assert shapes == {"frames": (B, *FRAME), "is_first": (B,), "last": (B, *FRAME)}
    to_tree = group.transfer._steps[0].to_tree[0].rows._table  # type: ignore[attr-defined]
    rows = zip(to_tree.names, to_tree.entries, strict=True)
    nbytes = {name: int(entry[-1]) for name, entry in rows}
    observed = {name: size for name, size in nbytes.items() if name.startswith("observation")}
    assert observed == {"observation.frames": 6, "observation.is_first": 1}
    sampler.close()
    samples.close()


# What cages refuse


class Cameras(gym.Env[NDArray[np.uint8], int]):
    """Its 3 images are no stack: they are those of cameras."""

    observation_space = spaces.Box(0, 255, (STACK, *FRAME), np.uint8)
    action_space = spaces.Discrete(7)  # as a Film's: Viewer takes that many

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._images(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._images(), 0.0, False, False, {}

    def _images(self) -> NDArray[np.uint8]:
        return self.np_random.integers(0, 255, (STACK, *FRAME), np.uint8)


@pytest.mark.parametrize("kind", ["local", "device"])
def test_an_observation_that_is_no_stack_is_refused(kind: str, cuda_device: torch.device) -> None:
    samples = with_frames(make_tree(Cameras, Viewer()), "first", kind)
    sampler = BasicSampler(make_cages(Cameras, (B,)), Viewer(), samples)
    with pytest.raises(ValueError, match="environment 0: it neither goes on with the one before"):
        sampler.collect_batch()
    sampler.close()
    samples.close()


def test_a_stack_that_is_filled_otherwise_is_refused() -> None:
    make_env = functools.partial(make_film, "zero")
    samples = with_frames(make_tree(make_env, Viewer()), "first", "local")
    sampler = BasicSampler(make_cages(make_env, (B,)), Viewer(), samples)
    with pytest.raises(ValueError, match="nor begins an episode as fill='first' has it"):
        list(collect(sampler, 10))


def test_a_stack_of_another_length_is_refused() -> None:
    array = FrameArray((2, 1), np.uint8, FRAME, stack=4)
    cage = SerialCage(make_film, n_envs=1, seed=0)
    with pytest.raises(ValueError, match="got 3 frames, expected stacks of 4"):
        cage.reset_async(out_obs=array[0, 0])


def test_a_cage_writes_frames_where_it_is_told_to() -> None:
    """Without a sampler, in memory of one process: rows [t, b] and [t] of an array."""
    for n_envs, row in ((1, (0, 1)), (2, 0)):
        array, dense = (
            FrameArray((1, 2), np.uint8, FRAME, stack=STACK, padding=1, full_size=20),
            Array((1, 2), np.uint8, feature_shape=(STACK, *FRAME), padding=1, full_size=20),
        )
        action = 0 if n_envs == 1 else [0, 0]
        for out in (array, dense):
            cage = SerialCage(make_film, n_envs=n_envs, seed=3)
            cage.reset_async(out_obs=out[row])
            for _ in range(19):
                cage.await_step()
                out.rotate()
                cage.step_async(action, out_obs=out[row])
            cage.await_step()
        assert_array_equal(array.full.to_ndarray(), dense.full.to_ndarray())


def test_frames_are_cast_like_other_observations() -> None:
    array = FrameArray((2, 1), np.float32, FRAME, stack=2, padding=1)
    write_column(places_of(array[0]).to_ndarray(), [np.ones((2, *FRAME), np.float64)])
    write_column(places_of(array[1]).to_ndarray(), [np.stack([np.ones(FRAME), np.zeros(FRAME)])])
    assert_array_equal(array[1, 0].to_ndarray()[:, 0, 0], [1, 0])


def test_zeros_of_both_signs_are_told_apart() -> None:
    """A frame of -0.0 is not what fills a stack, though it equals it."""
    array = FrameArray((4, 1), np.float32, (2,), stack=3, fill="zero")
    frames = np.array([0, 0, -0.0, -0.0, 1, -0.0], np.float32)[:, None].repeat(2, axis=1)
    stacks = np.array([frames[t : t + 3] for t in range(4)])
    for t, stack in enumerate(stacks):
        places = places_of(array[t])
        if t == 0:  # there is no frame before it to be compared with
            del places[PREVIOUS]
        write_column(places.to_ndarray(), [stack])
    assert array.to_ndarray().tobytes() == stacks.tobytes()


def places_of(row: FrameArray) -> ArrayDict:
    tree = as_tree(row)
    assert isinstance(tree, ArrayDict)
    return tree

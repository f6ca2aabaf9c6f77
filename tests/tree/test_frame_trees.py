"""Trees with frames as the builders make them: samples and replay are those of whole stacks."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_array_equal
from torch import Tensor

from films import FRAME, STACK, Film, make_film
from optional import needs
from parllel import Array, ArrayDict, FrameArray
from parllel.cages import Cage, SerialCage, VectorCage
from parllel.patterns import build_eval_tree, build_example, build_sample_tree, example_of
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from parllel.samplers import BasicSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.tree.leaves import as_tensor

T, B, FULL_SIZE = 5, 2, 20


class OneOfTwo(gym.ObservationWrapper[Any, Any, Any]):
    """Shows the stack beside numbers that are no stack."""

    def __init__(self) -> None:
        super().__init__(make_film())
        state = spaces.Box(-1, 1, (2, 2), np.float32)
        self.observation_space = spaces.Dict(
            {"image": self.env.observation_space, "body": spaces.Dict({"state": state})}
        )

    def observation(self, observation: Any) -> Any:
        state = np.full((2, 2), observation.sum(), np.float32)
        return {"image": observation, "body": {"state": state}}


class Viewer:
    """Acts on what all frames show."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        while isinstance(observation, ArrayDict):
            observation = observation["image"]
        return as_tensor(observation).flatten(1).sum(1) % 4, {}

    def value(self, observation: Any) -> Tensor:
        raise NotImplementedError


def make_serial(fill: str) -> list[Cage]:
    make_env = functools.partial(make_film, fill)
    return [SerialCage(make_env, n_envs=1, seed=seed) for seed in range(B)]


def make_atari(mode: AutoresetMode) -> list[Cage]:
    from ale_py import AtariVectorEnv

    size = {"img_height": 12, "img_width": 10, "stack_num": STACK}
    short = {"max_num_frames_per_episode": 28}
    kwargs = {"game": "breakout", "num_envs": B, "autoreset_mode": mode, **size, **short}
    return [VectorCage(AtariVectorEnv, kwargs, seed=7)]


CAGES: dict[str, tuple[Callable[[], list[Cage]], Any]] = {
    "first": (functools.partial(make_serial, "first"), "first"),
    "zero": (functools.partial(make_serial, "zero"), "zero"),
    "atari, next step": (functools.partial(make_atari, AutoresetMode.NEXT_STEP), "zero"),
    "atari, same step": (functools.partial(make_atari, AutoresetMode.SAME_STEP), "zero"),
    "a leaf of a tree": (lambda: [SerialCage(OneOfTwo, n_envs=B, seed=3)], {"image": "first"}),
}


def cases() -> Iterator[object]:
    """Yield each name with each kind of buffer.

    How rows are drawn does not ask who wrote them: by priority, Atari's are for the long run.
    """
    for name in CAGES:
        is_atari = name.startswith("atari")
        marks = [needs("ale_py")] if is_atari else []
        yield pytest.param(name, ReplayBuffer, marks=marks)
        marks += [pytest.mark.long] if is_atari else []
        yield pytest.param(name, PrioritizedReplayBuffer, marks=marks)


def transitions_of(minibatch: ArrayDict) -> dict[int, dict[str, Any]]:
    """Return the transitions of a minibatch by their index."""
    columns = {
        path: leaf.cpu().numpy() for path, leaf in leaves(minibatch).items() if path != "weight"
    }
    indices, first = np.unique(columns["index"], return_index=True)
    return {
        int(index): {path: column[row].copy() for path, column in columns.items()}
        for index, row in zip(indices, first, strict=True)
    }


def play(
    make_cages: Callable[[], list[Cage]], kind: type[ReplayBuffer], **options: Any
) -> tuple[ArrayDict, list[dict[str, Any]], list[dict[int, dict[str, Any]]]]:
    """Return a tree, and what it held after each batch, and the transitions drawn from it then."""
    cages = make_cages()
    samples = build_sample_tree(
        example_of(cages[0]), Viewer(), batch_shape=(T, B), full_size=FULL_SIZE, **options
    )
    replay = kind(samples, rng=np.random.default_rng(0), n_steps=2, n_final_obs=FULL_SIZE * B)
    sampler = BasicSampler(cages, Viewer(), samples, replay=replay)
    batches, drawn = [], []
    for _ in range(7):
        sampler.collect_batch()
        rows = samples.apply(lambda leaf: leaf[0 : T + leaf.padding].to_ndarray().copy())
        batches.append(leaves(rows))
        drawn.append(transitions_of(replay.sample(600)))
    sampler.close()
    for cage in cages:
        cage.close()
    return samples, batches, drawn


@pytest.mark.parametrize(("name", "kind"), list(cases()))
def test_samples_and_replay_are_those_of_whole_stacks(name: str, kind: type[ReplayBuffer]) -> None:
    make_cages, frames = CAGES[name]
    _, expected, stored = play(make_cages, kind, storage="local")
    samples, batches, drawn = play(make_cages, kind, storage="local", frames=frames)
    assert any(isinstance(leaf, FrameArray) for _, leaf in samples.walk())
    for batch, right in zip(batches, expected, strict=True):
        assert batch.keys() == right.keys()
        for path, values in batch.items():
            assert_array_equal(values, right[path], err_msg=path)
    n_ends = sum((batch["terminated"] | batch["truncated"]).sum() for batch in expected)
    assert n_ends >= 6
    for transitions, right in zip(drawn, stored, strict=True):
        assert len(transitions) >= len(right) - STACK * B  # overwritten frames cost some
        for index, columns in transitions.items():
            for path, value in columns.items():
                assert_array_equal(value, right[index][path], err_msg=path)


@pytest.mark.parametrize("name", ["first", "zero", "a leaf of a tree"])
def test_on_a_device_they_are_the_same(name: str, cuda_device: torch.device) -> None:
    make_cages, frames = CAGES[name]
    _, expected, stored = play(make_cages, ReplayBuffer, storage="local", frames=frames)
    _, batches, drawn = play(make_cages, ReplayBuffer, storage="device", frames=frames)
    for found, right in zip([*batches, *drawn], [*expected, *stored], strict=True):
        assert found.keys() == right.keys()
        for key, values in found.items():
            np.testing.assert_equal(values, right[key], err_msg=str(key))


def make_tree(make_env: Callable[..., gym.Env[Any, Any]], **options: Any) -> ArrayDict:
    example = build_example(make_env, storage="local")
    return build_sample_tree(example, Viewer(), batch_shape=(T, B), **options)


def test_only_the_leaf_that_is_named_has_frames() -> None:
    observation = make_tree(OneOfTwo, full_size=FULL_SIZE, frames={"image": "zero"})["observation"]
    image, state = observation["image"], observation["body"]["state"]
    assert isinstance(image, FrameArray)
    assert (image.stack, image.fill, image.frame_shape) == (STACK, "zero", FRAME)
    assert (image.shape, image.padding, image.full_size) == ((T, B, STACK, *FRAME), 1, FULL_SIZE)
    assert type(state) is Array
    assert list(observation) == ["body", "image"]


def test_leaves_may_be_named_at_any_depth() -> None:
    observation = make_tree(OneOfTwo, frames={"body": {"state": "first"}})["observation"]
    assert type(observation["image"]) is Array
    assert isinstance(observation["body"]["state"], FrameArray)


def test_a_tree_for_evaluation_has_frames_where_that_of_training_has() -> None:
    tree = build_eval_tree(make_tree(make_film, frames="first"), n_envs=1)
    assert isinstance(tree["observation"], FrameArray)


@pytest.mark.parametrize(
    ("make_env", "frames", "error", "message"),
    [
        (
            OneOfTwo,
            "zero",
            TypeError,
            r"frames: got 'zero' for observation, a tree of \['body', 'image'\]; name the leaves"
            r" that are stacks, as in \{'body': 'zero'\}",
        ),
        (
            OneOfTwo,
            {"body": "first"},
            TypeError,
            r"for observation.body, a tree of \['state'\]",
        ),
        (
            OneOfTwo,
            {"images": "first"},
            ValueError,
            r"got \['images'\], expected names of observation: \['body', 'image'\]",
        ),
        (
            make_film,
            {"image": "first"},
            ValueError,
            r"frames: got \{'image': 'first'\} for observation, expected \"first\" or \"zero\"",
        ),
        (make_film, "last", ValueError, "frames: got 'last' for observation, expected \"first\""),
        (make_film, 4, ValueError, 'frames: got 4 for observation, expected "first"'),
    ],
)
def test_frames_that_do_not_fit_are_refused(
    make_env: Callable[..., Any], frames: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_tree(make_env, frames=frames)


class Number(Film):
    observation_space = spaces.Discrete(4)

    def _frame(self) -> Any:
        return int(self.np_random.integers(4))


def test_a_number_is_no_stack() -> None:
    example = build_example(Number, storage="local")
    agent = Viewer()
    agent.step = lambda observation, deterministic=False: (np.zeros(1, int), {})  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="frames: observation is one number, expected a stack"):
        build_sample_tree(example, agent, batch_shape=(T, B), frames="first")

"""Frames that are stored once of agents in an axis: what is drawn is what whole stacks would be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_envs import Films
from numpy.typing import NDArray

from parllel import Array, ArrayDict, FrameArray
from parllel.cages import ParallelAgents, SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import (
    Minibatches,
    PrioritizedReplayBuffer,
    RandomShift,
    ReplayBuffer,
    SequenceReplayBuffer,
    episodes_of,
)
from parllel.samplers import BasicSampler
from parllel.testing.contracts.relay_rows import NAMES
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule

T, B, N, STACK = 5, 3, 4, 3
IMAGE = (5, 3)  # fewer columns than agents, who are no channels
STACKS = ("observation", "next_observation")


class Idle:
    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return np.zeros(observation.shape[:2], np.int64), {}


def collect(fill: str, frames: str | None, storage: str, n_batches: int = 4) -> ReplayBuffer:
    """Return a buffer of films, whose agents come and go, with the steps of some batches."""

    def make_env() -> ParallelAgents:
        return ParallelAgents(Films(fill), "axis")

    info = {name: {"step": 0.0} for name in NAMES}
    example = build_example(make_env, storage="local", info=info)
    samples = build_sample_tree(
        example, Idle(), batch_shape=(T, B), full_size=6 * T, frames=frames, storage=storage
    )
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0), n_steps=2)
    with SerialCage(make_env, n_envs=B, seed=3) as cage:
        sampler = BasicSampler([cage], Idle(), samples, replay=replay)
        for _ in range(n_batches):
            sampler.collect_batch()
        sampler.close()
    return replay


def on_host(tree: ArrayDict) -> dict[str, NDArray[Any]]:
    return {name: leaf.cpu().numpy().copy() for name, leaf in leaves(tree).items()}


def compare(found: dict[str, NDArray[Any]], whole: dict[str, NDArray[Any]]) -> None:
    """Compare minibatches; of agents that are not there any more, what follows has no meaning."""
    assert found.keys() == whole.keys()
    for name, rows in whole.items():
        is_meant: Any = ...
        if name == "next_observation":
            is_meant = whole["valid"] & ~whole["terminated"]
        np.testing.assert_array_equal(found[name][is_meant], rows[is_meant], err_msg=name)


@each_schedule
@pytest.mark.parametrize("fill", ["first", "zero"])
def test_a_device_draws_the_stacks_that_were_shown(fill: str, schedule: str, seed: int) -> None:
    whole = collect(fill, None, "local")
    expected = [on_host(whole.sample(16)) for _ in range(3)]
    assert 0 < expected[0]["valid"].mean() < 1
    with simulated_cuda(schedule, seed):
        replay = collect(fill, fill, "device")
        for right in expected:
            compare(on_host(replay.sample(16)), right)


def test_saved_frames_are_drawn_again(tmp_path: Path) -> None:
    replay = collect("zero", "zero", "local")
    replay.save(tmp_path / "replay")
    again = collect("zero", "zero", "local", n_batches=1)
    again.load(tmp_path / "replay")
    whole = collect("zero", None, "local")
    for _ in range(2):
        right = on_host(whole.sample(16))
        compare(on_host(replay.sample(16)), right)
        compare(on_host(again.sample(16)), right)


def make_trees(storage: str = "local") -> list[ArrayDict]:
    """Return a ring with whole stacks of images, and the same one with each frame once."""
    rng, trees = np.random.default_rng(0), []
    sizes: dict[str, Any] = {"full_size": 2 * T, "storage": storage}
    once = FrameArray((T, B, N), np.uint8, IMAGE, stack=STACK, padding=1, **sizes)
    shape = (N, STACK, *IMAGE)
    stacks = Array((T, B), np.uint8, feature_shape=shape, padding=1, **sizes)
    for observation in (stacks, once):
        flags = {
            name: Array((T, B), bool, feature_shape=(N,), **sizes)
            for name in ("terminated", "truncated", "valid")
        }
        flags["valid"].full[...] = True
        number = Array((T, B), np.int64, **sizes)
        number.full[...] = np.arange(2 * T * B).reshape(2 * T, B)
        reward = Array((T, B), np.float32, feature_shape=(N,), **sizes)
        branches = {"observation": observation, "reward": reward, "number": number, **flags}
        trees.append(ArrayDict(branches))
    for t in range(2 * T + 1):
        images = rng.integers(0, 256, (B, N, *IMAGE), np.uint8)
        once.full.write_frames(t, images, is_first=rng.random((B, N)) < 0.3 if t else True)
        stacks.full[t] = once.full[t].to_ndarray()
    # The first rotation, to row 0, copies the row behind the ring there: let it be the same.
    for tree in trees:
        tree["observation"].full[2 * T] = tree["observation"].full[0].to_ndarray()
    return trees


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_the_images_of_all_agents_are_shifted_alike(kind: type[ReplayBuffer]) -> None:
    drawn = []
    for tree in make_trees():
        replay = kind(tree, rng=np.random.default_rng(1), shift=RandomShift(1))
        replay.restart()
        for _ in range(2):
            replay.begin_batch()
            tree.rotate()
            replay.end_batch()
        drawn.append(on_host(replay.sample(24)))
    compare(drawn[1], drawn[0])
    assert len(np.unique(drawn[0]["observation"])) > 200


@each_schedule
@pytest.mark.parametrize("options", [{}, {"shift": RandomShift(1)}, {"whole_envs": True}])
def test_minibatches_are_those_of_whole_stacks(
    options: dict[str, Any], schedule: str, seed: int
) -> None:
    whole, _ = make_trees()

    def minibatches(tree: ArrayDict) -> list[dict[str, NDArray[Any]]]:
        parts = Minibatches(3, np.random.default_rng(2), **options).of(tree, n_passes=2)
        return [on_host(part) for part in parts]

    expected = minibatches(whole)
    with simulated_cuda(schedule, seed):
        found = minibatches(make_trees("device")[1])
    for part, right in zip(found, expected, strict=True):
        for name, rows in right.items():
            np.testing.assert_array_equal(part[name], rows, err_msg=name)


def test_rows_picked_of_a_tree_are_whole_stacks() -> None:
    whole, once = make_trees()
    rows, columns = np.array([3, 0, 4]), np.array([2, 1, 1])
    picked = [tree["observation"][rows, columns] for tree in (once, whole)]
    np.testing.assert_array_equal(picked[0].to_ndarray(), picked[1].to_ndarray())
    some = once["observation"][1:3, :, 1]
    np.testing.assert_array_equal(some.to_ndarray(), whole["observation"][1:3, :, 1].to_ndarray())
    with pytest.raises(ValueError, match="row_source: got a view with gaps"):
        once["observation"][1:2, :1, :1].row_source("host")


def test_steps_appended_by_hand_are_compared_with_each_agents_stack() -> None:
    _, tree = make_trees()
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    stacks = np.random.default_rng(4).integers(1, 9, (B, N, STACK, *IMAGE), np.uint8)
    stacks[:, :, :-1] = stacks[:, :, -1:]
    replay.reset(stacks)
    rows: dict[str, Any] = {
        "reward": np.zeros((B, N), np.float32),
        "number": np.arange(B),
        **{name: np.zeros((B, N), bool) for name in ("terminated", "truncated")},
        "valid": np.ones((B, N), bool),
    }
    after = np.concatenate([stacks[:, :, 1:], stacks[:, :, :1] + 1], axis=2)
    replay.append(after, **rows)
    following = np.concatenate([after[:, :, 1:], after[:, :, :1] + 5], axis=2)
    wrong = following.copy()
    wrong[2, 1, 0] += 1
    with pytest.raises(ValueError, match=r"next_observation: observation of environment 2: its st"):
        replay.append(wrong, **rows)
    # Of an agent that has ended before, the last stack is shown once more.
    rows["truncated"][0], rows["valid"][0, 1] = True, False
    final = following[0].copy()
    final[1] = after[0, 1]
    replay.append(following, final_obs={0: final}, **rows)
    later = np.concatenate([following[:, :, 1:], following[:, :, :1] + 9], axis=2)
    with pytest.raises(ValueError, match=r"final_obs: observation of environment 0: its stack"):
        replay.append(later, final_obs={0: final}, **rows)


@pytest.mark.parametrize("agents", [(1,), (STACK,), (2, 2)])
def test_episodes_and_cut_ones_have_the_stacks_that_were_shown(agents: tuple[int, ...]) -> None:
    """One reward, and stacks in axes behind B; some begin anew while the episode goes on."""
    rng, sizes = np.random.default_rng(0), {"full_size": 12}
    observation = FrameArray((1, 1, *agents), np.uint8, stack=STACK, padding=1, **sizes)
    tree = ArrayDict({"observation": observation, "reward": Array((1, 1), np.float32, **sizes)})
    for name in ("terminated", "truncated"):
        tree[name] = Array((1, 1), bool, **sizes)
    tree["number"] = Array((1, 1), np.int64, **sizes)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0), keep_terminated=True)

    def begin(shape: tuple[int, ...]) -> NDArray[Any]:
        return np.repeat(rng.integers(1, 256, (*shape, 1), np.uint8), STACK, axis=-1)

    shown, n_whole, n_drawn = [], 0, 0
    for number in range(60):
        if number % 7 == 0:
            now = begin(agents)
            replay.reset(now[None])
        newest = rng.integers(1, 256, (*agents, 1), np.uint8)
        after = np.concatenate([now[..., 1:], newest], axis=-1)
        is_end = number % 7 == 2
        if not is_end and rng.random() < 0.5:  # of an agent, or some
            after[0] = begin(agents[1:])
        shown.append((now, after))
        flags = {"terminated": [is_end and number % 2 == 0], "truncated": [is_end and number % 2]}
        flags = {name: np.array(each, bool) for name, each in flags.items()}
        now = begin(agents) if is_end else after
        final = {0: after} if is_end else {}
        replay.append(now[None], final_obs=final, reward=[0.0], number=[number], **flags)
        for episode in episodes_of(replay):
            numbers = episode.branches["number"].tolist()
            stacks = [*(shown[each][0] for each in numbers), shown[numbers[-1]][1]]
            np.testing.assert_array_equal(episode.observation, stacks)
            n_whole += episode.is_whole
        if len(replay) > STACK and number % 7 in (0, 5):  # behind a reset, which cuts an episode
            batch = on_host(replay.sample(16))
            for at, each in enumerate(batch["number"].tolist()):
                np.testing.assert_array_equal(batch["observation"][at], shown[each][0])
                if not batch["terminated"][at]:
                    n_drawn += 1
                    np.testing.assert_array_equal(batch["next_observation"][at], shown[each][1])
    assert n_whole > 20 < n_drawn


@pytest.mark.parametrize("n_shown", [2, 3])  # the axis of stacks may be another one
def test_agents_by_names_may_have_axes_of_their_own(n_shown: int) -> None:
    sizes: dict[str, Any] = {"full_size": 4}
    stacks = FrameArray((1, 1, n_shown), np.uint8, stack=2, padding=1, **sizes)
    dtypes = {"reward": np.float32, "terminated": bool, "truncated": bool, "valid": bool}
    rows = {
        name: ArrayDict({"team": Array((1, 1), dtype, feature_shape=(2,), **sizes)})
        for name, dtype in dtypes.items()
    }
    tree = ArrayDict({"observation": ArrayDict({"team": stacks}), **rows})
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    first = np.repeat(np.arange(1, n_shown + 1, dtype=np.uint8)[:, None], 2, axis=1)
    replay.reset({"team": first[None]})
    given = {name: {"team": np.zeros((1, 2), bool)} for name in dtypes}
    given["truncated"]["team"][...] = True
    after = np.stack([first[:, 1], first[:, 1] + 9], axis=1)
    wrong = after.copy()
    wrong[0, 0] += 1
    for alive, final, fits in (
        ([True, True], wrong, False),
        ([False, True], wrong, n_shown == 2),
        ([False, False], wrong, True),
        ([True, True], after, True),
    ):
        given["valid"]["team"][0] = alive
        step = {"final_obs": {0: {"team": final}}, **given}
        if fits:
            replay.append({"team": first[None]}, **step)
        else:
            with pytest.raises(ValueError, match=r"final_obs: observation.team of environment 0"):
                replay.append({"team": first[None]}, **step)


def test_an_axis_of_no_agent_is_refused() -> None:
    names = ("observation", "reward", "terminated", "truncated")
    dtypes = (np.uint8, np.float32, bool, bool)
    tree = ArrayDict(
        {
            name: Array((T, B), dtype, feature_shape=(0,), padding=1, full_size=2 * T)
            for name, dtype in zip(names, dtypes, strict=True)
        }
    )
    with pytest.raises(ValueError, match=r"reward: got shape \(5, 3, 0\) of no agent"):
        ReplayBuffer(tree, rng=np.random.default_rng(0))


def test_buffers_of_sequences_refuse_stacks_of_agents() -> None:
    _, tree = make_trees()
    with pytest.raises(ValueError, match=r"stacks of batch dimensions .* expected \(T, B\); store"):
        SequenceReplayBuffer(tree, rng=np.random.default_rng(0), length=2)

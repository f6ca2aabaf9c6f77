"""Steps of a loop of one's own, appended to a replay buffer: those of a sampler, or refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from films import make_film
from parllel import Array, ArrayDict, FrameArray
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import BasicSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk

B = 3


class Zeros:
    """An agent that takes action 0, and returns nothing else."""

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        return np.zeros(len(observation), np.int64), {}


def make_buffer(make_env: Any, batch_T: int, *, storage: str, **options: Any) -> ReplayBuffer:
    example = build_example(make_env, storage=storage)
    samples = build_sample_tree(example, Zeros(), batch_shape=(batch_T, B), full_size=24, **options)
    return ReplayBuffer(samples, rng=np.random.default_rng(0), n_steps=2)


def append_steps(replay: ReplayBuffer, make_env: Any, n_steps: int) -> None:
    """Do as a loop of one's own does, with the environments of a cage."""
    action = np.zeros(B, np.int64)
    with SerialCage(make_env, n_envs=B, seed=1) as cage:
        cage.reset_async()
        observation, _ = cage.await_step()
        replay.reset(observation)
        for _ in range(n_steps):
            cage.step_async(action)
            observation, reward, terminated, truncated, infos = cage.await_step()
            names = replay.samples["env_info"]
            env_info = {name: [info.get(name, 0) for info in infos] for name in names}
            replay.append(
                observation,
                action=action,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                **({"env_info": env_info} if env_info else {}),
                final_obs={n: x for n, x in cage.final_obs.items() if not terminated[n]},
            )


def draws(replay: ReplayBuffer) -> dict[str, Any]:
    minibatch = replay.sample(64)
    return {"/".join(path): leaf.cpu().numpy().copy() for path, leaf in minibatch.walk()}


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("batch_T", [1, 4])
@pytest.mark.parametrize("frames", [None, "first"])
def test_appended_steps_are_those_of_a_sampler(
    frames: str | None, batch_T: int, storage: str
) -> None:
    make_env: Any = Walk if frames is None else make_film
    options = {} if frames is None else {"frames": frames}
    n_steps = 36  # more than the ring holds
    with simulated_cuda("lazy"):
        replay = make_buffer(make_env, batch_T, storage=storage, **options)
        with SerialCage(make_env, n_envs=B, seed=1) as cage:
            sampler = BasicSampler([cage], Zeros(), replay.samples, replay=replay)
            for _ in range(n_steps // batch_T):
                sampler.collect_batch()
        other = make_buffer(make_env, batch_T, storage=storage, **options)
        append_steps(other, make_env, n_steps)
        assert len(other) == len(replay) > 0
        expected = draws(replay)
        for name, rows in draws(other).items():
            np.testing.assert_array_equal(rows, expected[name], err_msg=name)
        sampler.close()


def make_small(batch_T: int = 1) -> ReplayBuffer:
    samples = ArrayDict(
        {
            "observation": {
                "a": Array((batch_T, 2), np.float32, feature_shape=(3,), full_size=8, padding=1)
            },
            "action": Array((batch_T, 2), np.uint8, full_size=8),
            "reward": Array((batch_T, 2), np.float32, full_size=8),
            "terminated": Array((batch_T, 2), bool, full_size=8),
            "truncated": Array((batch_T, 2), bool, full_size=8),
            "env_info": {},
        }
    )
    return ReplayBuffer(samples, rng=np.random.default_rng(0))


STEP: dict[str, Any] = {
    "action": [0, 1],
    "reward": [1.0, 2.0],
    "terminated": [False, False],
    "truncated": [False, False],
}
OBSERVATION = {"a": np.ones((2, 3))}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"next_observation": {"a": np.ones(3)}}, r"observation.a: got \(3,\), float64, expected"),
        ({"next_observation": {"b": np.ones((2, 3))}}, r"observation: got \['b'\], expected bran"),
        ({"next_observation": np.ones((2, 3))}, r"observation: got a ndarray, expected branches"),
        ({"next_observation": {"a": np.full((2, 3), np.nan)}}, r"observation.a: got a NaN or an"),
        ({"reward": 1.0}, r"reward: got float 1.0, expected \(2,\), float32"),
        ({"reward": [1.0, np.inf]}, r"reward: got a NaN or an infinity"),
        ({"action": [0, 256]}, r"action: got .*, expected \(2,\), uint8"),
        ({"action": [0.5, 0]}, r"action: got .*, expected \(2,\), uint8"),
        ({"truncated": [True, False]}, r"final_obs: environments \[0\] are truncated, and got no"),
        ({"final_obs": {1: {"a": np.ones(3)}}}, r"got one for \[1\], whose episodes go on, exp"),
        (
            {"truncated": [True, False], "final_obs": {0: {"a": np.ones(4)}}},
            r"observation.a: got \(4,\), float64, expected \(3,\), float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    changes: Mapping[str, Any], match: str
) -> None:
    replay = make_small()
    replay.reset(OBSERVATION)
    replay.append(OBSERVATION, **STEP)
    before = replay.samples.apply(lambda leaf: leaf.full.to_ndarray().copy())
    with pytest.raises(ValueError, match=match):
        replay.append(**{"next_observation": OBSERVATION, **STEP, **changes})
    for path, leaf in replay.samples.walk():
        rows: Any = before
        for name in path:
            rows = rows[name]
        np.testing.assert_array_equal(leaf.full.to_ndarray(), rows)
    replay.append(OBSERVATION, **STEP)  # it goes on
    assert len(replay) == 2 * 2


def test_branches_are_those_of_the_tree() -> None:
    replay = make_small()
    replay.reset(OBSERVATION)
    with pytest.raises(TypeError, match=r"branches \['action'\] are missing and \['actoin'\] are"):
        replay.append(
            OBSERVATION, actoin=[0, 1], **{name: STEP[name] for name in STEP if name != "action"}
        )


def test_steps_need_a_first_observation() -> None:
    replay = make_small()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="call reset before"):
            replay.append(OBSERVATION, **STEP)
        replay.restart()  # as a sampler does, which then writes
    with pytest.raises(ValueError, match=r"observation.a: got \(2, 2\)"):
        replay.reset({"a": np.ones((2, 2))})


def test_a_batch_that_a_reset_cuts_short_is_not_taken() -> None:
    replay = make_small(batch_T=4)
    replay.reset(OBSERVATION)
    for _ in range(4 + 2):
        replay.append(OBSERVATION, **STEP)
    assert len(replay) == 4 * 2
    replay.reset(OBSERVATION)
    for _ in range(4):
        replay.append(OBSERVATION, **STEP)
    assert len(replay) == 8 * 2
    ends = replay.samples["truncated"].full.to_ndarray()
    assert ends.all(axis=1).tolist() == [number == 3 for number in range(8)]


def test_a_sampler_and_a_loop_do_not_write_the_same_batch() -> None:
    replay = make_buffer(Walk, 4, storage="local")
    observation = np.zeros((B, 3))
    names = ("action", "reward", "terminated", "truncated")
    step: dict[str, Any] = {name: np.zeros(B, replay.samples[name].dtype) for name in names}
    if len(replay.samples["env_info"]):
        step["env_info"] = {name: np.zeros(B) for name in replay.samples["env_info"]}
    with SerialCage(Walk, n_envs=B, seed=1) as cage:
        sampler = BasicSampler([cage], Zeros(), replay.samples, replay=replay)
        sampler.collect_batch()
        with pytest.raises(RuntimeError, match="call reset before"):
            replay.append(observation, **step)
        for n_appended in (0, 1, 4):
            replay.reset(observation)
            for _ in range(n_appended):
                replay.append(observation, **step)
            expected = replay.samples["observation"].full.to_ndarray().copy()
            with pytest.raises(RuntimeError, match="steps are being appended"):
                sampler.collect_batch()
            np.testing.assert_array_equal(replay.samples["observation"].full.to_ndarray(), expected)
            sampler.collect_batch()  # which resets all environments, as the last one failed


def test_steps_go_on_only_after_a_reset_where_a_buffer_was_loaded(tmp_path: Path) -> None:
    replay = make_small()
    replay.reset(OBSERVATION)
    replay.append(OBSERVATION, **STEP)
    replay.save(tmp_path)
    replay.load(tmp_path)
    with pytest.raises(RuntimeError, match="call reset before"):
        replay.append(OBSERVATION, **STEP)


@pytest.mark.parametrize(
    ("name", "value"),
    [("reward", np.float64([1, 2])), ("action", np.float32([0.5, 1])), ("terminated", [0.5, 0])],
)
def test_values_on_a_device_are_of_a_dtype_that_loses_nothing(name: str, value: Any) -> None:
    replay = make_small()
    replay.reset(OBSERVATION)
    with simulated_cuda("lazy"):
        given = Array.from_numpy(np.asarray(value), storage="device", force_32bit=False)
        with pytest.raises(ValueError, match=rf"{name}: got \(2,\), float\d\d on a device, expec"):
            replay.append(OBSERVATION, **{**STEP, name: given})
        reward = Array.from_numpy(np.float32([1, 2]), storage="device")
        replay.append(OBSERVATION, **{**STEP, "reward": reward})
    assert replay.samples["reward"].to_ndarray().tolist() == [[1, 2]]


# Stacks of frames


STACKED = 3  # frames of a stack


def make_stacked(batch_T: int, storage: str, fill: str = "first") -> ReplayBuffer:
    ring: dict[str, Any] = {"full_size": 12, "storage": storage}
    samples = ArrayDict(
        {
            "observation": {
                "number": Array((batch_T, 2), np.float32, padding=1, **ring),
                "image": FrameArray(
                    (batch_T, 2), np.uint8, (2,), stack=STACKED, fill=fill, padding=1, **ring
                ),
            },
            "reward": Array((batch_T, 2), np.float32, **ring),
            "terminated": Array((batch_T, 2), bool, **ring),
            "truncated": Array((batch_T, 2), bool, **ring),
        }
    )
    return ReplayBuffer(samples, rng=np.random.default_rng(0))


def stacked(*frames: int) -> Any:
    """Return an observation of two environments: stacks of frames of one number each."""
    stacks = np.array([[frame, frame] for frame in frames], np.uint8)
    return {"number": [0.0, 0.0], "image": np.stack([stacks, stacks + 100])}


def memory_of(replay: ReplayBuffer) -> list[Any]:
    """Return all that an append might change."""
    parts = []
    for path, leaf in replay.samples.walk():
        is_stacked = path[-1] == "image"
        rows = (leaf.full.frames, leaf.full.is_first) if is_stacked else (leaf.full,)
        parts += [leaf.window_begin, *(part.to_ndarray().tolist() for part in rows)]
    table = replay.final_obs
    return [*parts, len(replay), table.n_added, table.owner.tolist()]


GOES_ON: dict[str, Any] = {
    "reward": [0.0, 0.0],
    "terminated": [False, False],
    "truncated": [False, False],
}
FINAL: dict[str, Any] = {"number": 0.0, "image": np.uint8([[5, 5], [6, 6], [7, 7]])}
CUT: dict[str, Any] = {
    "next_observation": {
        **stacked(5, 6, 7),
        "image": np.uint8([[[9, 9]] * 3, FINAL["image"] + 100]),
    },
    "truncated": [True, False],
    "final_obs": {0: FINAL},
}


def append_until_6(replay: ReplayBuffer, n_steps: int) -> None:
    """Append steps whose last stack has the frames 4, 5 and 6, from the middle of an episode on."""
    frames = range(4 - n_steps, 7)
    replay.reset(stacked(*frames[:STACKED]))
    for n in range(1, n_steps + 1):
        replay.append(stacked(*frames[n : n + STACKED]), **GOES_ON)


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("batch_T", [1, 3])
@pytest.mark.parametrize("n_before", range(4))
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"next_observation": stacked(4, 4, 6)}, "next_observation: observation.image of .* 0"),
        ({"next_observation": stacked(8, 8, 9)}, "neither goes on with the one before nor begins"),
        (
            {**CUT, "next_observation": stacked(7, 9, 9)},
            "next_observation: observation.image of environment 0: its stack of frames neither",
        ),
        (
            {**CUT, "final_obs": {0: {**FINAL, "image": FINAL["image"] + 1}}},
            "final_obs: observation.image of environment 0: its stack of frames does not go on",
        ),
        (
            {**CUT, "final_obs": {0: {**FINAL, "image": np.full((3, 2), 7, np.uint8)}}},
            "final_obs: observation.image of environment 0",
        ),
        (
            {**CUT, "truncated": [True, True], "final_obs": {0: FINAL, 1: FINAL}},
            "final_obs: observation.image of environment 1",
        ),
    ],
)
def test_a_stack_that_does_not_follow_is_refused_and_changes_nothing(
    changes: Mapping[str, Any], match: str, n_before: int, batch_T: int, storage: str
) -> None:
    with simulated_cuda("lazy"):
        replay = make_stacked(batch_T, storage)
        append_until_6(replay, n_before)
        before = memory_of(replay)
        with pytest.raises(ValueError, match=match):
            replay.append(**{**GOES_ON, **changes})
        assert memory_of(replay) == before
        replay.append(**{**GOES_ON, **CUT})  # it goes on
        assert memory_of(replay) != before


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("fill", ["first", "zero"])
def test_stacks_from_the_middle_of_an_episode_are_stored_whole(fill: str, storage: str) -> None:
    blank = 9 if fill == "first" else 0
    after = np.uint8([[[blank] * 2, [blank] * 2, [9, 9]], FINAL["image"] + 100])
    with simulated_cuda("lazy"):
        replay = make_stacked(1, storage, fill)
        append_until_6(replay, 3)
        replay.append(
            **{**GOES_ON, **CUT, "next_observation": {**stacked(0, 0, 0), "image": after}}
        )
        minibatch = replay.sample(200)
        seen = set()
        for name in ("observation", "next_observation"):
            images = minibatch[name]["image"].cpu().numpy()
            assert (images[..., 0] == images[..., 1]).all()
            seen |= {(name, *map(int, stack)) for stack in images[..., 0]}
    stacks = [(n, n + 1, n + 2) for n in range(1, 6)]
    stacks += [tuple(100 + number for number in stack) for stack in stacks]
    expected = {("observation", *stack) for stack in stacks if stack[0] % 100 != 5}
    assert seen == expected | {
        ("next_observation", *stack) for stack in stacks if stack[0] % 100 > 1
    }


def test_a_number_that_is_not_finite_is_refused_where_it_comes_from_a_device() -> None:
    replay = make_small()
    replay.reset(OBSERVATION)
    replay.append(OBSERVATION, **STEP)
    before = [leaf.full.to_ndarray().tolist() for _, leaf in replay.samples.walk()]
    with simulated_cuda("lazy"):
        reward = Array.from_numpy(np.float32([1, np.nan]), storage="device")
        with pytest.raises(ValueError, match="reward: got a NaN or an infinity"):
            replay.append(OBSERVATION, **{**STEP, "reward": reward})
    assert [leaf.full.to_ndarray().tolist() for _, leaf in replay.samples.walk()] == before
    replay.append(OBSERVATION, **STEP)


class Skipping(gym.Env[Any, Any]):
    """Shows stacks of frames, of which the last one of an episode lacks a frame."""

    observation_space = spaces.Box(0, 255, (STACKED, 2), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.number = 1
        return np.full((STACKED, 2), 1, np.uint8), {}

    def step(self, action: Any) -> Any:
        self.number += 1
        is_end = self.number == 5
        newest = self.number + is_end
        frames = np.maximum(np.arange(newest - STACKED + 1, newest + 1), 1)
        return np.uint8([frames, frames]).T, 0.0, False, is_end, {}


def test_a_sampler_refuses_a_last_stack_that_does_not_go_on() -> None:
    replay = make_buffer(Skipping, 4, storage="local", frames="first")
    with SerialCage(Skipping, n_envs=B) as cage:
        sampler = BasicSampler([cage], Zeros(), replay.samples, replay=replay)
        with pytest.raises(ValueError, match="final_obs: observation of environment 0: its stack"):
            sampler.collect_batch()


def test_what_follows_a_termination_may_be_any_stack() -> None:
    replay = make_stacked(1, "local")
    append_until_6(replay, 1)
    replay.restart()
    replay.begin_batch()
    replay.samples.rotate()
    odd = {"image": FINAL["image"][::-1], "number": FINAL["number"]}
    with pytest.raises(ValueError, match="does not go on with the one before"):
        replay.add_final_obs(0, {0: odd})
    replay.samples["terminated"][0, 0] = True
    replay.add_final_obs(0, {0: odd})  # no value of it counts
    assert replay.final_obs.n_added == 1


def test_a_last_observation_that_is_a_tree_is_looked_at_for_nan() -> None:
    replay = make_stacked(1, "local")
    append_until_6(replay, 1)
    replay.restart()
    replay.begin_batch()
    replay.samples.rotate()
    with pytest.raises(
        ValueError, match=r"batch: observation.number is not finite behind row t = 0"
    ):
        replay.add_final_obs(0, {0: {"image": FINAL["image"], "number": np.nan}})

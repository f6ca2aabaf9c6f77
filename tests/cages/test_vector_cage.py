"""VectorCage against the contract of all cages in each autoreset mode, and against SerialCage.

What is compared are transitions: observation, action, reward, flags, info, and the observation
after the step and before any reset. They must not depend on the mode, nor on which side resets.
"""

import functools
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorEnv,
    VectorWrapper,
)
from gymnasium.wrappers import TransformAction
from gymnasium.wrappers.vector import DictInfoToList

from long_run import all_but_first
from optional import needs
from parllel import Array, ArrayDict
from parllel.cages import Cage, Seed, SerialCage, TrajInfo, VectorCage
from parllel.patterns import build_eval_tree, build_example, build_sample_tree, example_of
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing import simulated_cuda
from parllel.testing.contracts.cage_calls import DiaryInfo, assert_same, random_step, reset, step
from parllel.testing.contracts.cage_contract import CageContract
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Clock, Echo, Walk
from schedules import each_schedule

try:
    from ale_py import AtariVectorEnv
except ModuleNotFoundError:
    AtariVectorEnv = None  # and the tests that need it are skipped

NEXT_STEP, SAME_STEP, DISABLED = (
    AutoresetMode.NEXT_STEP,
    AutoresetMode.SAME_STEP,
    AutoresetMode.DISABLED,
)
any_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)

# The contract


def make_with_arrays(make_env: Callable[..., gym.Env], kwargs: Mapping[str, Any]) -> gym.Env:
    """Make an environment, and give it arrays where gymnasium's vectors give plain numbers."""
    env = make_env(**kwargs)
    if isinstance(env.action_space, spaces.Box) and env.action_space.shape == ():
        return TransformAction(env, np.asarray, env.action_space)
    return env


class OverSyncVectorEnv(CageContract):
    makes_envs = False
    mode: ClassVar[AutoresetMode]

    def make_cage(
        self,
        make_env: Callable[..., gym.Env],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> Cage:
        env_fns = [functools.partial(make_with_arrays, make_env, env_kwargs or {})] * n_envs
        kwargs = {"env_fns": env_fns, "autoreset_mode": self.mode}
        return VectorCage(SyncVectorEnv, kwargs, make_traj_info, seed=seed)


class TestNextStep(OverSyncVectorEnv):
    mode = NEXT_STEP


class TestSameStep(OverSyncVectorEnv):
    mode = SAME_STEP


class TestDisabled(OverSyncVectorEnv):
    mode = DISABLED


@pytest.mark.long
class TestDisabledInSharedMemory(TestDisabled):
    storage = "shared"


def test_a_vector_cage_saves_no_states() -> None:
    with VectorCage(SyncVectorEnv, {"env_fns": [Walk]}) as cage:
        for method in (cage.check_state, cage.get_state, lambda: cage.set_state([])):
            with pytest.raises(NotImplementedError, match="VectorCage"):
                method()


# Transitions


Transitions = list[list[tuple[Any, ...]]]


class Native(VectorEnv):
    """A vector environment of no known class, which can't be reset one by one.

    Its environments take their own seeds: it is seeded by one number, and uses it for nothing.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], **kwargs: Any) -> None:
        self._envs = SyncVectorEnv(env_fns, copy=False, **kwargs)
        self.metadata = self._envs.metadata
        self.num_envs = self._envs.num_envs
        for name in ("observation_space", "action_space"):
            for prefix in ("", "single_"):
                setattr(self, prefix + name, getattr(self._envs, prefix + name))
        self.seeds: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert options is None
        if seed is not None:
            self.seeds.append(seed)
        return self._envs.reset()

    def step(self, actions: Any) -> Any:
        return self._envs.step(actions)


class OwnSeed(gym.Wrapper):
    """Take one's own seed at the first reset, and none later."""

    def __init__(self, seed: int) -> None:
        super().__init__(Walk())
        self._seeds = [seed]

    def reset(self, **_: Any) -> Any:
        return super().reset(seed=self._seeds.pop() if self._seeds else None)


def own_seeds(n_envs: int) -> list[Callable[[], gym.Env]]:
    return [functools.partial(OwnSeed, 100 + number) for number in range(n_envs)]


def play(cage: Cage, n_steps: int, action: Any) -> Transitions:
    """Return the transitions of each environment; it always takes the same action."""
    shown, _ = reset(cage)
    lived: Transitions = [[] for _ in range(cage.n_envs)]
    for _ in range(n_steps):
        after, reward, terminated, truncated, info = step(cage, action)
        for number in range(cage.n_envs):
            row = (action[number], reward[number], terminated[number], truncated[number])
            if number in cage.invalid:
                assert row[1:] == (0, False, True)
                assert number not in cage.final_obs
                continue
            true_after = cage.final_obs.get(number, after[number])
            assert (number in cage.final_obs) == (terminated[number] or truncated[number])
            lived[number].append((shown[number], *row, info[number], true_after))
        shown = after
    return lived


def assert_same_transitions(got: Transitions, expected: Transitions, at_least: int) -> None:
    """Compare as many as both have: rows that are no transitions make one of them shorter."""
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert min(len(ours), len(theirs)) >= at_least
        for one, other in zip(ours, theirs, strict=False):
            *values, info, after = one
            *expected_values, expected_info, expected_after = other
            assert info == expected_info
            np.testing.assert_array_equal(after, expected_after)
            for value, wanted in zip(values, expected_values, strict=True):
                np.testing.assert_array_equal(value, wanted)


def n_invalid(cage: Cage, n_steps: int, action: Any) -> int:
    reset(cage)
    return sum(len(cage.invalid) for _ in range(n_steps) if step(cage, action))


@any_mode
@pytest.mark.parametrize(
    ("make_vector_env", "kwargs"),
    [
        (SyncVectorEnv, {"copy": True}),
        (SyncVectorEnv, {"copy": False}),
        (AsyncVectorEnv, {"copy": False}),
        (AsyncVectorEnv, {"shared_memory": False}),
    ],
    ids=str,
)
def test_transitions_are_those_of_a_serial_cage(
    make_vector_env: Any, kwargs: dict[str, Any], mode: AutoresetMode
) -> None:
    action = np.array([0, 3, 1])
    with SerialCage(Walk, n_envs=3, seed=4) as serial:
        expected = play(serial, 60, action)
    kwargs = {"env_fns": [Walk] * 3, "autoreset_mode": mode, **kwargs}
    with VectorCage(make_vector_env, kwargs, seed=4) as cage:
        got = play(cage, 60, action)
        has_invalid = n_invalid(cage, 20, action) > 0
    assert_same_transitions(got, expected, at_least=40)
    assert has_invalid == ("shared_memory" in kwargs and mode is NEXT_STEP)


def test_transitions_of_an_unknown_class_are_those_of_a_serial_cage() -> None:
    action = np.array([2, 0])
    make_envs = iter(own_seeds(2))
    with SerialCage(lambda: next(make_envs)(), n_envs=2) as serial:
        expected = play(serial, 60, action)
    with VectorCage(Native, {"env_fns": own_seeds(2)}) as cage:
        assert_same_transitions(play(cage, 60, action), expected, at_least=40)


def test_an_unknown_class_is_seeded_with_one_number_and_once() -> None:
    envs: list[Native] = []

    def make_vector_env() -> VectorEnv:
        envs.append(Native([Clock, Clock]))
        return envs[-1]

    for seed in (5, 5, 6):
        with VectorCage(make_vector_env, seed=seed) as cage:
            reset(cage)
            reset(cage)
    (first,), (again,), (other,) = (env.seeds for env in envs)
    assert first == again != other


# Rows of a step that was spent on a reset


def test_a_step_spent_on_a_reset_is_in_invalid() -> None:
    kwargs = {"env_fns": [functools.partial(Clock, 2, end="both"), functools.partial(Clock, 3)]}
    n_steps = 7
    outputs = ArrayDict(
        {
            "out_obs": Array((n_steps, 2), np.float32, feature_shape=(2,)),
            "out_reward": Array((n_steps, 2), np.float32),
            "out_terminated": Array((n_steps, 2), bool),
            "out_truncated": Array((n_steps, 2), bool),
            "out_info": {"step": Array((n_steps, 2), np.int32)},
        }
    )
    invalid, finals = [], []
    with VectorCage(Native, kwargs) as cage:
        reset(cage)
        for t in range(n_steps):
            step(cage, np.zeros(2, int), **outputs[t])
            invalid.append(list(cage.invalid))
            finals.append({number: obs.tolist() for number, obs in cage.final_obs.items()})
        completed = [(traj.length, traj.episode_return) for traj in cage.take_completed()]
        reset(cage)
        assert list(cage.invalid) == []
    # Of one environment, steps 2 and 5 end an episode, and steps 3 and 6 are spent on resets.
    short, long = (
        {
            "out_obs": [[0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]],
            "out_reward": [1, 2, 0, 1, 2, 0, 1],
            "out_terminated": [0, 1, 0, 0, 1, 0, 0],
            "out_truncated": [0, 1, 1, 0, 1, 1, 0],
            "out_info.step": [1, 2, 0, 1, 2, 0, 1],
        },
        {
            "out_obs": [[0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]],
            "out_reward": [1, 2, 3, 0, 1, 2, 3],
            "out_terminated": [0, 0, 1, 0, 0, 0, 1],
            "out_truncated": [0, 0, 0, 1, 0, 0, 0],
            "out_info.step": [1, 2, 3, 0, 1, 2, 3],
        },
    )
    for path, leaf in leaves(outputs).items():
        for number, expected in enumerate((short, long)):
            np.testing.assert_array_equal(leaf[:, number], expected[path], err_msg=path)
    assert invalid == [[], [], [0], [1], [], [0], []]
    assert finals == [{}, {0: [0, 2]}, {1: [0, 3]}, {}, {0: [1, 2]}, {}, {1: [1, 3]}]
    assert completed == [(2, 3), (3, 6), (2, 3), (3, 6)]


def test_a_trajectory_is_not_told_of_a_step_spent_on_a_reset() -> None:
    with VectorCage(Native, {"env_fns": [functools.partial(Clock, 2)] * 2}, DiaryInfo) as cage:
        reset(cage)
        for _ in range(5):
            step(cage, np.array([1, 0]))
        diaries = [traj.entries for traj in cage.take_completed() if isinstance(traj, DiaryInfo)]
    assert diaries == [
        [([episode, 1], action, 1, False, False, 1), ([episode, 2], action, 2, True, False, 2)]
        for episode in (0, 1)
        for action in (1, 0)
    ]


class Untidy(Native):
    """Return anything in the rows of a step that was spent on a reset."""

    _ended: Any = np.zeros(2, bool)

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        reward[self._ended], terminated[self._ended] = 99, True
        self._ended = (terminated | truncated) & ~self._ended
        return observation, reward, terminated, truncated, info


def test_what_an_environment_returns_for_a_step_spent_on_a_reset_does_not_count() -> None:
    kwargs = {"env_fns": [functools.partial(Clock, 2)] * 2}
    with VectorCage(Untidy, kwargs) as cage:
        first, second = play(cage, 6, np.zeros(2, int))
        assert [traj.episode_return for traj in cage.take_completed()] == [1 + 2] * 4
    assert [row[2] for row in first] == [row[2] for row in second] == [1, 2, 1, 2]


def test_a_wrapper_is_never_passed_by() -> None:
    def make_vector_env() -> VectorEnv:
        return VectorWrapper(SyncVectorEnv([functools.partial(Clock, 2)] * 2))

    with VectorCage(make_vector_env) as cage:
        reset(cage)
        rows = [step(cage, np.zeros(2, int))[0][0].tolist() for _ in range(4)]
        assert list(cage.invalid) == []
    assert rows == [[0, 1], [0, 2], [1, 0], [1, 1]]  # the third step was spent on the reset


def test_an_environment_that_keeps_resets_through_one_of_all_is_not_seeded_anew() -> None:
    def make_env() -> gym.Env[Any, Any]:
        return Clock()

    with (
        VectorCage(AsyncVectorEnv, {"env_fns": [make_env], "shared_memory": False}) as cage,
        pytest.raises(NotImplementedError, match="reseed: AsyncVectorEnv"),
    ):
        cage.reseed(1)


def test_without_shared_memory_a_reset_of_all_leaves_the_reset_of_the_next_step() -> None:
    make_env = functools.partial(Clock, 2)
    kwargs = {"env_fns": [make_env, make_env], "shared_memory": False}
    with VectorCage(AsyncVectorEnv, kwargs) as cage:
        reset(cage)
        step(cage, np.zeros(2, int))
        step(cage, np.zeros(2, int))
        assert reset(cage)[0].tolist() == [[1, 0], [1, 0]]
        assert step(cage, np.zeros(2, int))[0].tolist() == [[2, 0], [2, 0]]
        assert list(cage.invalid) == [0, 1]
        assert step(cage, np.zeros(2, int))[0].tolist() == [[2, 1], [2, 1]]
        assert list(cage.invalid) == []


# Natively vectorized environments


def seed_numbers(seed: int, n_envs: int) -> list[int]:
    """Return the numbers that a cage seeds environments with."""
    children = np.random.SeedSequence(seed).spawn(n_envs)
    return [int(child.generate_state(2)[0]) for child in children]


def play_bare(env: VectorEnv, seed: Any, n_steps: int, action: Any) -> Transitions:
    """Return the transitions of a vector environment that resets in the next step."""
    shown, _ = env.reset(seed=seed)
    lived: Transitions = [[] for _ in range(env.num_envs)]
    is_reset = np.zeros(env.num_envs, bool)
    for _ in range(n_steps):
        after, reward, terminated, truncated, info = env.step(action)
        for number in np.flatnonzero(~is_reset):
            row = (action[number], reward[number], terminated[number], truncated[number])
            own_info = {name: values[number] for name, values in info.items()}
            lived[number].append((shown[number], *row, own_info, after[number].copy()))
        shown, is_reset = after.copy(), terminated | truncated
    return lived


def test_cartpole_vector_env_gives_its_own_transitions() -> None:
    kwargs, action = {"num_envs": 4, "max_episode_steps": 9}, np.array([0, 1, 1, 0])
    (seed, *_) = seed_numbers(3, 4)
    expected = play_bare(CartPoleVectorEnv(**kwargs), seed, 80, action)
    with VectorCage(CartPoleVectorEnv, kwargs, seed=3) as cage:
        got = play(cage, 80, action)
        assert len(cage.take_completed()) > 20
    assert_same_transitions(got, expected, at_least=60)


# Making one and seeding it takes 0.3 seconds for each environment: it reads its game twice.
ATARI = {"game": "breakout", "num_envs": 2, "max_num_frames_per_episode": 28}


@functools.cache
def atari_transitions(n_steps: int) -> Transitions:
    seed = np.array(seed_numbers(7, 2)) >> 1
    return play_bare(AtariVectorEnv(**ATARI), seed, n_steps, np.array([1, 2]))


@needs("ale_py")
@pytest.mark.parametrize("mode", all_but_first([SAME_STEP, NEXT_STEP]), ids=lambda mode: mode.name)
def test_atari_vector_env_gives_its_own_transitions(mode: AutoresetMode) -> None:
    expected = atari_transitions(17)
    assert sum(row[4] for row in expected[0]) == 2  # truncated
    with VectorCage(AtariVectorEnv, {**ATARI, "autoreset_mode": mode}, seed=7) as cage:
        got = play(cage, 17, np.array([1, 2]))
        assert [len(lived) for lived in got] == [17, 17]
    if mode is SAME_STEP:  # with the end of an episode comes info of the reset
        got, expected = (
            [[(*row[:5], None if row[4] else row[5], row[6]) for row in lived] for lived in side]
            for side in (got, expected)
        )
    assert_same_transitions(got, expected, at_least=15)


@needs("ale_py")
def test_rows_of_atari_are_written_to_their_places() -> None:
    images = Array((4, 2), np.uint8, feature_shape=(4, 84, 84), storage="shared")
    info = ArrayDict({"lives": Array((4, 2), np.int32), "frame_number": Array((4, 2), np.int32)})
    with VectorCage(AtariVectorEnv, {**ATARI, "autoreset_mode": SAME_STEP}, seed=0) as cage:
        reset(cage, out_obs=images[0], out_info=info[0])
        for t in (1, 2, 3):
            step(cage, np.zeros(2, int), out_obs=images[t], out_info=info[t])
        shown, *_, infos = step(cage, np.zeros(2, int))
    # Four frames are stacked, the newest one last.
    for t in (0, 1, 2):
        np.testing.assert_array_equal(images[t].to_ndarray()[:, 1:], images[t + 1][:, :3])
    np.testing.assert_array_equal(images[3].to_ndarray()[:, 1:], shown[:, :3])
    assert shown.any(axis=(2, 3)).all()
    frames = np.array([one["frame_number"] for one in infos])
    np.testing.assert_array_equal(info["frame_number"], frames - 4 * np.arange(4, 0, -1)[:, None])
    np.testing.assert_array_equal(info["lives"], np.full((4, 2), 5))


@needs("ale_py")
def test_a_closed_cage_leaves_no_thread_of_atari() -> None:
    before = len(os.listdir("/proc/self/task"))
    cage = VectorCage(AtariVectorEnv, {**ATARI, "num_envs": 1})
    assert len(os.listdir("/proc/self/task")) == before + 1
    cage.close()
    assert len(os.listdir("/proc/self/task")) == before
    cage.close()
    with pytest.raises(RuntimeError, match="the cage is closed"):
        cage.random_step_async()


class Thrifty(VectorEnv):
    """Return the same arrays each time; a reset of some environments writes to all of them.

    Environment b ends its episodes after b + 2 steps, and shows the number of the step.
    """

    metadata: ClassVar = {"autoreset_mode": DISABLED}
    num_envs = 3
    single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    single_action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._steps = np.zeros(3)
        self._shown, self._reward = np.zeros((3, 1)), np.zeros(3)
        self._terminated, self._truncated = np.zeros((2, 3), bool)
        self._info = {"step": np.zeros(3)}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = np.ones(3, bool) if options is None else options["reset_mask"]
        self._steps[mask] = 0
        for array in (self._shown, self._reward, self._info["step"]):
            array[...] = np.nan
        self._shown[mask] = 0
        self._terminated[...] = self._truncated[...] = True
        return self._shown, self._info

    def step(self, actions: Any) -> Any:
        self._steps += 1
        self._shown[:, 0] = self._reward[:] = self._info["step"][:] = self._steps
        self._terminated[:] = self._steps == [2, 3, 4]
        self._truncated[:] = False
        return self._shown, self._reward, self._terminated, self._truncated, self._info


def test_a_reset_may_write_to_all_arrays_of_the_environment() -> None:
    outputs = {name: np.zeros((6, 3)) for name in ("out_reward", "out_terminated", "out_truncated")}
    shown, told = np.zeros((6, 3, 1)), np.zeros((6, 3))
    with VectorCage(Thrifty) as cage:
        reset(cage)
        for t in range(6):
            own = {name: output[t] for name, output in outputs.items()}
            step(cage, np.zeros(3, int), out_obs=shown[t], out_info={"step": told[t]}, **own)
            assert {number: obs.tolist() for number, obs in cage.final_obs.items()} == {
                number: [number + 2] for number in range(3) if (t + 1) % (number + 2) == 0
            }
        returns = [traj.episode_return for traj in cage.take_completed()]
    assert returns == [1 + 2, 1 + 2 + 3, 1 + 2, 1 + 2 + 3 + 4, 1 + 2, 1 + 2 + 3]
    numbers = np.arange(1, 7)[:, None] % [2, 3, 4]
    steps = np.where(numbers, numbers, [2, 3, 4])
    np.testing.assert_array_equal(shown[:, :, 0], numbers)
    np.testing.assert_array_equal(outputs["out_reward"], steps)
    np.testing.assert_array_equal(told, steps)
    np.testing.assert_array_equal(outputs["out_terminated"], numbers == 0)
    np.testing.assert_array_equal(outputs["out_truncated"], np.zeros((6, 3)))


# Steps under way


@pytest.mark.parametrize(
    ("make_vector_env", "kwargs", "names"),
    [
        (AsyncVectorEnv, {"env_fns": [Clock] * 2}, ("step_async", "step_wait")),
        pytest.param(AtariVectorEnv, ATARI, ("send", "recv"), marks=needs("ale_py")),
    ],
)
def test_a_step_goes_on_while_the_caller_does_something_else(
    make_vector_env: Any, kwargs: dict[str, Any], names: tuple[str, str]
) -> None:
    calls: list[str] = []

    def make_watched() -> VectorEnv:
        env = make_vector_env(**kwargs)
        for name in names:
            setattr(env, name, functools.partial(note, name, getattr(env, name)))
        return env

    def note(name: str, method: Callable[..., Any], *args: Any) -> Any:
        calls.append(name)
        return method(*args)

    with VectorCage(make_watched, seed=0) as cage:
        reset(cage)
        cage.step_async(np.zeros(2, int))
        assert calls == [names[0]]
        cage.await_step()
        assert calls == list(names)


@pytest.mark.parametrize("make_vector_env", [SyncVectorEnv, AsyncVectorEnv])
def test_a_cage_tells_when_its_environments_were_busy(make_vector_env: Any) -> None:
    with VectorCage(make_vector_env, {"env_fns": [Clock] * 2}) as cage:
        assert cage.busy_span is None
        for start in (cage.reset_async, cage.random_step_async):
            before = time.perf_counter()
            start()
            started = time.perf_counter()
            cage.await_step()
            assert cage.busy_span is not None
            begin_s, end_s = cage.busy_span
            assert before <= begin_s <= end_s <= time.perf_counter()
            goes_on = make_vector_env is AsyncVectorEnv and start == cage.random_step_async
            assert (end_s > started) == goes_on


def test_starting_the_next_step_waits_for_the_one_under_way() -> None:
    first, second = np.zeros((2, 2, 2), np.float32)
    with VectorCage(AsyncVectorEnv, {"env_fns": [Clock] * 2}) as cage:
        reset(cage)
        cage.step_async(np.zeros(2, int), out_obs=first)
        cage.step_async(np.zeros(2, int), out_obs=second)
        cage.reset_async()
        assert cage.await_step()[0].tolist() == [[1, 0], [1, 0]]
    assert (first.tolist(), second.tolist()) == ([[0, 1]] * 2, [[0, 2]] * 2)


def test_starting_the_next_command_drops_the_results_of_the_last() -> None:
    with VectorCage(SyncVectorEnv, {"env_fns": [Clock] * 2}) as cage:
        cage.reset_async()
        cage.step_async(np.zeros(2, int))
        assert len(cage.await_step()) == 5
        assert cage.await_step() is None


def test_a_cage_can_be_closed_with_a_step_under_way() -> None:
    with VectorCage(AsyncVectorEnv, {"env_fns": [Clock] * 2}) as cage:
        reset(cage)
        cage.step_async(np.zeros(2, int))


class Faulty(Clock):
    def step(self, action: Any) -> Any:
        raise ZeroDivisionError("in the environment")


def test_an_error_in_an_environment_comes_through_and_the_cage_can_be_closed() -> None:
    with VectorCage(SyncVectorEnv, {"env_fns": [Clock, Faulty]}) as cage:
        reset(cage)
        with pytest.raises(ZeroDivisionError, match="in the environment"):
            step(cage, np.zeros(2, int))


# Info


class Told(VectorEnv):
    """Return an info dictionary of one's own making."""

    metadata: ClassVar = {"autoreset_mode": SAME_STEP}
    num_envs = 3
    single_observation_space = spaces.Discrete(9)
    single_action_space = spaces.Discrete(2)

    def __init__(self, info: Any, ends: Sequence[bool] = (False,) * 3) -> None:
        self._info, self._ends = info, np.array(ends)

    def reset(self, **_: Any) -> Any:
        return np.zeros(3, int), {} if isinstance(self._info, dict) else self._info

    def step(self, actions: Any) -> Any:
        return np.full(3, 7), np.ones(3, np.int8), self._ends, np.zeros(3, bool), self._info


def told_infos(info: Any, ends: Sequence[bool] = (False,) * 3, **outputs: Any) -> Any:
    """Return what a cage makes of an info dictionary."""
    with VectorCage(Told, {"info": info, "ends": ends}) as cage:
        reset(cage)
        return step(cage, np.zeros(3, int), **outputs)[-1]


MASKED = {
    "all": np.array([1, 2, 3]),
    "some": np.array([4, 5, 6]),  # of the second environment, it is anything
    "_some": np.array([True, False, True]),
    "deep": {"leaf": np.array([[7, 7], [8, 8], [9, 9]]), "_leaf": np.array([True, True, False])},
    "_deep": np.array([False, True, True]),
    "ragged": np.array([[1], None, [2]], object),
    "_ragged": np.array([True, False, True]),
    "one": 5,
}


def test_info_has_the_entries_that_masks_tell() -> None:
    first, second, third = told_infos(MASKED)
    assert first == {"all": 1, "some": 4, "ragged": [1], "one": 5}
    assert second["deep"]["leaf"].tolist() == [8, 8]
    assert second.keys() == {"all", "deep", "one"}
    assert third == {"all": 3, "some": 6, "deep": {}, "ragged": [2], "one": 5}


def test_info_that_was_returned_never_changes() -> None:
    info = {"leaf": np.zeros((3, 2)), "deep": {"leaf": np.zeros((3, 2))}}
    (first, *_) = told_infos(info)
    info["leaf"][...] = info["deep"]["leaf"][...] = 1
    assert not first["leaf"].any()
    assert not first["deep"]["leaf"].any()


def test_of_info_what_masks_leave_out_is_written_as_0() -> None:
    outputs = ArrayDict(
        {
            **{name: np.full(3, -1.0) for name in ("all", "some", "one", "none")},
            "ragged": np.full((3, 1), -1),
            "deep": {"leaf": np.full((3, 2), -1), "none": np.full(3, -1)},
        }
    )
    assert told_infos(MASKED, out_info=outputs) is outputs
    assert {path: leaf.tolist() for path, leaf in leaves(outputs).items()} == {
        "all": [1, 2, 3],
        "some": [4, 0, 6],
        "one": [5, 5, 5],
        "none": [0, 0, 0],
        "ragged": [[1], [0], [2]],
        "deep.leaf": [[0, 0], [8, 8], [0, 0]],
        "deep.none": [0, 0, 0],
    }


def test_info_of_a_step_that_ended_an_episode_is_not_that_of_the_reset() -> None:
    info = {
        "step": np.array([1, 0, 3]),
        "luck": np.array([0.5, 0.5, 0.5]),
        "final_obs": np.array([None, 8, None], object),
        "_final_obs": np.array([False, True, False]),
        "final_info": {"step": np.array([0, 2, 0]), "_step": np.array([False, True, False])},
        "_final_info": np.array([False, True, False]),
    }
    ends = (False, True, False)
    assert told_infos(info, ends) == [
        {"step": 1, "luck": 0.5},
        {"step": 2},
        {"step": 3, "luck": 0.5},
    ]
    outputs = ArrayDict({"step": np.zeros(3), "luck": np.zeros(3)})
    told_infos(info, ends, out_info=outputs)
    assert outputs["step"].tolist() == [1, 2, 3]
    assert outputs["luck"].tolist() == [0.5, 0, 0.5]


def test_final_observations_may_be_dense_and_are_no_part_of_info() -> None:
    info = {"step": np.arange(3), "final_obs": np.array([-1, 8, -1])}  # -1: anything
    with VectorCage(Told, {"info": info, "ends": (False, True, False)}) as cage:
        reset(cage)
        *_, infos = step(cage, np.zeros(3, int))
        assert dict(cage.final_obs) == {1: 8}
    assert infos == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "info", [{}, {"final_obs": np.array([8, None, None], object)}], ids=["none", "another's"]
)
def test_an_end_without_a_final_observation_is_an_error(info: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r"final_obs.*: got nothing for environment 1, expected"):
        told_infos(info, (False, True, False))


# Episodes


@pytest.mark.parametrize("discount", [1.0, 0.9])
@any_mode
def test_summaries_have_the_bits_of_a_serial_cage(mode: AutoresetMode, discount: float) -> None:
    make_traj_info = functools.partial(TrajInfo, discount=discount)
    kwargs = {"env_fns": [Walk] * 3, "autoreset_mode": mode}
    completed = []
    for cage in (
        SerialCage(Walk, {}, make_traj_info, n_envs=3, seed=2),
        VectorCage(SyncVectorEnv, kwargs, make_traj_info, seed=2),
    ):
        with cage:
            for _ in range(50):
                random_step(cage)
            completed.append(cage.take_completed())
    assert completed[0] == completed[1]
    assert len({traj.discounted_return for traj in completed[0]}) == len(completed[0]) > 20


def test_summaries_may_have_different_discounts() -> None:
    completed = []
    for make_cage in (
        functools.partial(SerialCage, Walk, {}, n_envs=2),
        functools.partial(VectorCage, SyncVectorEnv, {"env_fns": [Walk] * 2}),
    ):
        discounts = iter([1.0] * 4 + [0.5, 1.0, 0.25] + [1.0] * 99)  # the first 4 take no step
        with make_cage(make_traj_info=lambda left=discounts: TrajInfo(next(left)), seed=3) as cage:
            for _ in range(50):
                random_step(cage)
            completed.append(cage.take_completed())
    assert completed[0] == completed[1]
    assert len({traj.discount for traj in completed[0]}) == 3


class Remembering(TrajInfo):
    """Remember the last observation, action and info."""

    def step(self, observation: Any, action: Any, *rest: Any) -> None:
        super().step(observation, action, *rest)
        self.last = (observation, action, rest[-1])


@any_mode
def test_a_trajectory_is_told_members_of_the_spaces(mode: AutoresetMode) -> None:
    space = spaces.Dict({"a": spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (2,))))})
    env_fns = [functools.partial(Echo, space, length=2)] * 2
    kwargs = {"env_fns": env_fns, "autoreset_mode": mode}
    with VectorCage(SyncVectorEnv, kwargs, Remembering, seed=0) as cage:
        random_step(cage)
        actions, *_ = random_step(cage)
        completed = cage.take_completed()
    assert len(completed) == 2
    for number, traj in enumerate(completed):
        assert isinstance(traj, Remembering)
        observation, action, info = traj.last
        assert space.contains(observation)
        assert space.contains(action)
        assert_same(observation, action)
        assert_same(action, actions[number])
        assert info == {}


# Random steps after a reset


@any_mode
def test_environments_take_as_many_random_steps_as_with_a_serial_cage(mode: AutoresetMode) -> None:
    kwargs = {"env_fns": [functools.partial(Clock, 20)] * 4, "autoreset_mode": mode}
    shown = []
    for cage in (
        SerialCage(Clock, {"length": 20}, n_envs=4, seed=1),
        VectorCage(SyncVectorEnv, kwargs, seed=1),
    ):
        with cage:
            observation, info = reset(cage, max_random_steps=9)
            assert [one["step"] for one in info] == [0] * 4
            shown.append(observation[:, 1])
            for _ in range(20):
                step(cage, np.zeros(4, int))
            completed = cage.take_completed()
            assert [(traj.length, traj.episode_return) for traj in completed] == [(20, 210)] * 4
    np.testing.assert_array_equal(shown[0], shown[1])
    assert len(set(shown[0])) == 4


def test_what_ends_in_random_steps_after_a_reset_is_not_told() -> None:
    for make_vector_env in (SyncVectorEnv, Native):
        with VectorCage(make_vector_env, {"env_fns": [functools.partial(Clock, 2)] * 2}) as cage:
            reset(cage, max_random_steps=50)
            assert cage.take_completed() == []
            assert dict(cage.final_obs) == {}
            assert list(cage.invalid) == []


def test_what_ended_before_a_reset_with_random_steps_is_told() -> None:
    for make_vector_env in (SyncVectorEnv, Native):
        with VectorCage(make_vector_env, {"env_fns": [functools.partial(Clock, 2)] * 2}) as cage:
            reset(cage)
            for _ in range(2):
                step(cage, np.zeros(2, int))
            reset(cage, max_random_steps=50)
            assert [traj.length for traj in cage.take_completed()] == [2, 2]


def test_environments_that_are_not_reset_alone_take_all_random_steps() -> None:
    seeds = np.random.SeedSequence(0).spawn(3)
    counts = [int(np.random.default_rng(seed).integers(10)) for seed in seeds]
    with VectorCage(
        Native, {"env_fns": [Clock, functools.partial(Clock, 99), Clock]}, seed=seeds
    ) as cage:
        observation, _ = reset(cage, max_random_steps=9)
    assert observation[1].tolist() == [0, max(counts)]


# Samplers

T = 8


class ArithmeticAgent:
    """Choose actions and values by arithmetic."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first = np.array(observation)[:, 0]
        return np.floor(np.abs(first) * 64).astype(np.int64) % 4, {"value": first * 2}

    def value(self, observation: Any) -> Any:
        return np.array(observation)[:, 0] * 2


@pytest.mark.parametrize("n_envs", [1, 3])
def test_an_example_of_a_cage_is_that_of_one_of_its_environments(n_envs: int) -> None:
    expected = build_example(Clock)
    with VectorCage(SyncVectorEnv, {"env_fns": [Clock] * n_envs}) as cage:
        example = example_of(cage)
        assert step(cage, np.zeros(n_envs, int) if n_envs > 1 else 0)[1] == pytest.approx(2)
    expected["action"][...] = example["action"]
    assert_same(example.to_ndarray(), expected.to_ndarray())


def make_samples(n_envs: int) -> ArrayDict:
    example = build_example(Walk, storage="local")
    tree = build_sample_tree(example, ArithmeticAgent(), batch_shape=(T, n_envs))
    return ArrayDict({**tree, "valid": Array((T, n_envs), bool)})


def collect(cage: Cage, n_batches: int) -> tuple[dict[str, Any], list[TrajInfo]]:
    """Return leaves of batches one behind the other, without what they leave undefined."""
    samples = make_samples(cage.n_envs)
    sampler = BasicSampler([cage], ArithmeticAgent(), samples)
    batches, completed = [], []
    for _ in range(n_batches):
        batch, trajs = sampler.collect_batch()
        batch = batch.to_ndarray().apply(np.copy)
        is_cut = batch["truncated"] & ~batch["terminated"]
        batch["final_value"][~is_cut] = 0
        batches.append(batch)
        completed += trajs
    joined = {
        path: np.concatenate([leaves(batch)[path] for batch in batches])
        for path, _ in leaves(batches[0]).items()
    }
    return joined, completed


@any_mode
def test_batches_are_those_of_a_serial_cage(mode: AutoresetMode) -> None:
    with SerialCage(Walk, n_envs=3, seed=5) as serial:
        expected, expected_completed = collect(serial, 6)
    kwargs = {"env_fns": [Walk] * 3, "autoreset_mode": mode}
    with VectorCage(SyncVectorEnv, kwargs, seed=5) as cage:
        batches, completed = collect(cage, 6)
    assert_same(batches, expected)
    assert completed == expected_completed
    assert expected["final_value"].any()


def test_valid_rows_of_batches_are_those_of_a_serial_cage() -> None:
    make_envs = iter(own_seeds(3))
    with SerialCage(lambda: next(make_envs)(), n_envs=3) as serial:
        expected, expected_completed = collect(serial, 10)
    assert expected["valid"].all()
    with VectorCage(Native, {"env_fns": own_seeds(3)}) as cage:
        batches, completed = collect(cage, 10)
    valid = batches["valid"]
    for number in range(3):
        is_valid = valid[:, number]
        n_valid = int(is_valid.sum())
        assert 50 < n_valid < 10 * T
        for path, leaf in batches.items():
            wanted = expected[path][:n_valid, number]
            np.testing.assert_array_equal(leaf[is_valid, number], wanted, err_msg=path)
        # An episode begins with the row after an invalid one.
        begins = np.flatnonzero(~is_valid)[:-1] + 1
        assert is_valid[begins].all()
    lengths = [traj.length for traj in expected_completed]
    assert 20 < len(completed) <= len(lengths)


class TensorAgent(ArithmeticAgent):
    """Do the same where the tree is."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first = observation.to_torch()[:, 0]
        return (first.abs() * 64).floor().long() % 4, {"value": first * 2}

    def value(self, observation: Any) -> Any:
        return observation.to_torch()[:, 0] * 2


@each_schedule
@pytest.mark.parametrize("make_vector_env", [AsyncVectorEnv, Native])
def test_batches_on_the_device_are_those_of_host_memory(
    make_vector_env: Any, schedule: str, seed: int
) -> None:
    batches = []
    with simulated_cuda(schedule, seed):
        for storage, agent in (("local", ArithmeticAgent()), ("device", TensorAgent())):
            samples = make_samples(2).to(storage)
            with VectorCage(make_vector_env, {"env_fns": own_seeds(2)}) as cage:
                sampler = BasicSampler([cage], agent, samples)
                for _ in range(4):
                    sampler.collect_batch()
                del samples["final_value"]  # what was never written may differ
                batches.append(samples.to_ndarray().apply(np.copy))
                sampler.close()
    assert_same(*batches)


@any_mode
def test_an_evaluation_is_that_of_a_serial_cage(mode: AutoresetMode) -> None:
    finished = []
    kwargs = {"env_fns": [Walk] * 3, "autoreset_mode": mode}
    for cage in (SerialCage(Walk, n_envs=3, seed=5), VectorCage(SyncVectorEnv, kwargs, seed=5)):
        with cage:
            tree = build_eval_tree(make_samples(1), n_envs=3)
            sampler = EvalSampler([cage], ArithmeticAgent(), tree, n_episodes=9)
            finished.append(sampler.collect_episodes())
    assert finished[0] == finished[1]


def test_an_evaluation_plays_its_share_though_steps_are_spent_on_resets() -> None:
    env_fns = [functools.partial(Clock, length) for length in (2, 5, 9)]
    with VectorCage(Native, {"env_fns": env_fns}) as cage:
        tree = build_eval_tree(make_samples_of_clocks(), n_envs=3)
        sampler = EvalSampler([cage], ArithmeticAgent(), tree, n_episodes=6)
        lengths = [traj.length for traj in sampler.collect_episodes()]
    assert sorted(lengths) == [2, 2, 5, 5, 9, 9]


def make_samples_of_clocks() -> ArrayDict:
    return build_sample_tree(build_example(Clock), ArithmeticAgent(), batch_shape=(T, 1))


# Mistakes


class Undeclared(Told):
    metadata = VectorEnv.metadata

    def __init__(self) -> None:
        super().__init__({})


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": None}, {"autoreset_mode": "Later"}])
def test_an_unknown_autoreset_mode_is_refused(metadata: dict[str, Any]) -> None:
    closed = []

    class Odd(Undeclared):
        def close_extras(self, **_: Any) -> None:
            closed.append(self)

    Odd.metadata = metadata
    with pytest.raises(ValueError, match=r"autoreset_mode: got .* expected one of"):
        VectorCage(Odd)
    assert len(closed) == 1


@needs("ale_py")
def test_the_mode_of_another_environment_is_not_taken_for_ones_own() -> None:
    AtariVectorEnv(
        game="breakout", num_envs=1
    )  # it writes its mode to the dictionary that all classes share
    assert "autoreset_mode" in VectorEnv.metadata
    with pytest.raises(ValueError, match="autoreset_mode: got None"):
        VectorCage(Undeclared)


def test_the_mode_may_be_declared_by_its_name() -> None:
    class Named(Undeclared):
        metadata: ClassVar = {"autoreset_mode": "SameStep"}

    with VectorCage(Named) as cage:
        assert cage.n_envs == 3


@pytest.mark.parametrize("wrap", [lambda env: env, VectorWrapper])
def test_an_environment_with_processes_of_its_own_is_refused_in_a_forked_child(wrap: Any) -> None:
    """Otherwise the child would step, and end, the environments of its parent."""

    def refuses(call: Callable[[], object]) -> bool:
        try:
            call()
        except RuntimeError as error:
            return "and this is a forked child" in str(error)
        return False

    with VectorCage(lambda: wrap(AsyncVectorEnv([Clock] * 2)), seed=0) as cage:
        reset(cage)
        for n_steps in (1, 2):
            cage.step_async(np.zeros(2, np.int64))
            child = os.fork()
            if child == 0:
                is_right = False
                try:
                    is_told = not cage._stepper.goes_on or refuses(cage.await_step)
                    calls = (lambda: step(cage, np.zeros(2)), cage.reset_async)
                    is_told &= all(map(refuses, calls))
                    cage.close()
                    gc.collect()
                    is_right = is_told
                finally:
                    os._exit(0 if is_right else 1)
            assert os.waitpid(child, 0)[1] == 0
            observation, *_ = cage.await_step()
            np.testing.assert_array_equal(observation[:, 1], n_steps)


@pytest.mark.parametrize("make_env", [Clock, object])
def test_what_is_no_vector_environment_is_refused(make_env: Any) -> None:
    with pytest.raises(TypeError, match=r"make_vector_env: got a \w+, expected a gymnasium.vector"):
        VectorCage(make_env)


def test_a_part_of_the_environments_at_a_time_is_refused() -> None:
    class Partial(Told):  # as AtariVectorEnv says it
        batch_size = 2

    with pytest.raises(ValueError, match="batch_size: got 2, expected 3 = num_envs"):
        VectorCage(Partial, {"info": {}})


def test_info_in_another_form_is_refused() -> None:
    with (
        VectorCage(lambda: DictInfoToList(SyncVectorEnv([Clock] * 2))) as cage,
        pytest.raises(TypeError, match="info: got a list, expected a dictionary of arrays"),
    ):
        reset(cage)


@pytest.mark.parametrize(("vector", "goes_on"), [(SyncVectorEnv, False), (AsyncVectorEnv, True)])
def test_it_says_whether_a_step_goes_on_in_workers(vector: Any, goes_on: bool) -> None:
    with VectorCage(vector, {"env_fns": [Clock] * 2}) as cage:
        assert cage.goes_on is goes_on

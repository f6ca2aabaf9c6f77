"""States of environments in wrappers: what they consist of, and what is refused."""

import enum
import json
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import (
    DelayObservation,
    FrameStackObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    StickyAction,
    TimeAwareObservation,
    TimeLimit,
    TransformReward,
)

from long_run import all_but_first
from optional import needs
from parllel.cages import MaskInObservation, SerialCage
from parllel.cages.states.attributes import attributes_of, set_attributes
from parllel.cages.states.env_states import check_env_state, env_state, set_env_state
from parllel.runners.state_data import from_data, to_data
from parllel.testing.contracts.cage_calls import assert_same, random_step, reset
from parllel.testing.contracts.cage_states_contract import go_on
from parllel.testing.toy_envs import Clock, Walk


def in_file(state: object) -> Any:
    """Return a state as a file gives it back."""
    data, tensors = to_data(state)
    return from_data(json.loads(json.dumps(data)), tensors)


def assert_goes_on(make_env: Callable[[], gym.Env], n_before: int = 9, n_steps: int = 40) -> None:
    with SerialCage(make_env, n_envs=2, seed=1) as cage, SerialCage(make_env, n_envs=2) as other:
        cage.check_state()
        reset(cage)
        go_on(cage, n_before)
        states = in_file(cage.get_state())
        expected, _ = go_on(cage, n_steps)
        for each in (other, cage):
            each.set_state(states)
            assert_same(go_on(each, n_steps)[0], expected)


# Wrappers


def make_wrapped_walk() -> gym.Env:
    walk = RecordEpisodeStatistics(NormalizeObservation(TimeLimit(Walk(), 5)))
    return TransformReward(FrameStackObservation(walk, 3), lambda reward: reward / 2)


def make_delayed() -> gym.Env:
    return DelayObservation(StickyAction(TimeAwareObservation(gym.make("MountainCar-v0")), 0.5), 2)


class WithGenerators(gym.Wrapper):
    """Draws from a generator of its own, from an old one and from its own space."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._rng, self._old = np.random.default_rng(), np.random.RandomState()
        self.noise = spaces.Dict({"a": spaces.Box(0, 1), "b": spaces.Tuple((spaces.Discrete(9),))})

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        noise = self.noise.sample()
        reward = reward + noise["a"].item() + noise["b"][0] + self._rng.random() + self._old.rand()
        return observation, reward, *rest


@pytest.mark.parametrize(
    "make_env",
    [
        make_wrapped_walk,
        make_delayed,
        lambda: WithGenerators(Walk()),
        lambda: gym.make("CartPole-v1"),
        lambda: gym.make("Acrobot-v1"),
    ],
)
def test_wrapped_environments_go_on_with_the_same_bits(make_env: Callable[[], gym.Env]) -> None:
    assert_goes_on(make_env)


@needs("ale_py")
@pytest.mark.parametrize("frameskip", [4, pytest.param((2, 5), marks=pytest.mark.long)])
def test_atari_games_go_on_with_sticky_actions(frameskip: Any) -> None:
    import ale_py

    gym.register_envs(ale_py)

    def make_env() -> gym.Env:
        options = {"repeat_action_probability": 0.9, "frameskip": frameskip, "obs_type": "ram"}
        return FrameStackObservation(gym.make("ALE/Breakout-v5", **options), 2)

    assert_goes_on(make_env)


@needs("mujoco")
@pytest.mark.parametrize(
    "name", all_but_first(["Ant-v5", "Hopper-v5", "HumanoidStandup-v5", "Pusher-v5", "Reacher-v5"])
)
def test_mujoco_goes_on_with_the_same_bits(name: str) -> None:
    assert_goes_on(lambda: gym.make(name), n_before=30, n_steps=60)


@needs("mujoco")
def test_a_mujoco_state_of_another_model_is_refused() -> None:
    light, heavy = (gym.make("InvertedPendulum-v5") for _ in range(2))
    heavy.unwrapped.model.body_mass[2] += 1
    for env in (light, heavy):
        env.reset(seed=0)
    with pytest.raises(ValueError, match="its MuJoCo model is another one"):
        set_env_state(light, env_state(heavy))
    state = env_state(light)
    state["own"]["physics"] = state["own"]["physics"][:-1]
    with pytest.raises(ValueError, match=r"got a state of shape \(\d+,\), expected \(\d+,\)"):
        set_env_state(light, state)


class Spring(gym.Env):
    """Says that its attributes are its state; they are data, a list that grows, a generator."""

    attributes_are_state = True
    observation_space, action_space = spaces.Box(-99, 99, (1,)), spaces.Discrete(2)

    def __init__(self, friction: object = 0.5) -> None:
        self._friction, self._noise = friction, np.random.default_rng(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._places = [self.np_random.random()]
        return np.float32(self._places), {}

    def step(self, action: Any) -> Any:
        place = -self._friction * self._places[-1] + self._noise.random() + self.np_random.random()
        self._places.append(place)
        return np.float32([place]), sum(self._places), len(self._places) > 12, False, {}


def test_attributes_are_the_state_of_an_environment_that_says_so() -> None:
    assert_goes_on(lambda: TimeLimit(Spring(), 10))
    with pytest.raises(TypeError, match="_friction: got a Fraction, expected numbers"):
        check_env_state(Spring(Fraction(1, 2)))


@needs("ale_py")
def test_a_state_that_a_game_did_not_write_is_refused() -> None:
    import ale_py

    gym.register_envs(ale_py)
    games = ("Breakout", "Pong")
    env, other = (gym.make(f"ALE/{game}-v5", obs_type="ram").unwrapped for game in games)
    for each in (env, other):
        each.reset(seed=0)
    state, foreign = env_state(env), env_state(other)["own"]
    own = state["own"]
    for wrong, message in (
        (b"", r"got 0 bytes, expected about 14,\d\d\d bytes of ALE's state"),
        (b"x" * 100_000, "got 100,000 bytes, expected about"),
        (own.hex(), "got a str, expected about"),
        (foreign, "ALE can't read the state"),
        (own[:-2000], "ALE can't read the state"),
        (own + b"x", "none that this game wrote: ALE makes other bytes of it"),
        (own[:-1], "none that this game wrote"),
    ):
        with pytest.raises(ValueError, match=message):
            set_env_state(env, {**state, "own": wrong})
    set_env_state(env, state)
    assert env_state(env)["own"] == own


def test_a_wrapper_may_save_all_that_is_below() -> None:
    class Saving(gym.Wrapper):
        n_steps = 0

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            return self.env.step(action)

        def get_state(self) -> Any:
            return [self.n_steps, self.env.unwrapped._step]  # type: ignore[attr-defined]

        def set_state(self, state: Any) -> None:
            self.n_steps, self.env.unwrapped._step = state  # type: ignore[attr-defined]

    envs = [TimeLimit(Saving(Clock()), 10) for _ in range(2)]
    for env in envs:
        check_env_state(env)
        env.reset()
    envs[0].step(0)
    set_env_state(envs[1], in_file(env_state(envs[0])))
    assert envs[1].env.n_steps == 1  # type: ignore[attr-defined]
    assert envs[1]._elapsed_steps == 1
    assert envs[1].step(0)[0][1] == 2


class OneAllowed(gym.Env):
    """It allows one action in each step, and fails when it is given another one."""

    observation_space = spaces.Box(0, 9, dtype=np.float32)
    action_space = spaces.Discrete(9)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._begin_step()

    def _begin_step(self) -> Any:
        self._allowed = int(self.np_random.integers(9))
        mask = np.arange(9) == self._allowed
        return np.zeros(1, np.float32), {"action_mask": mask}

    def step(self, action: Any) -> Any:
        assert action == self._allowed
        observation, info = self._begin_step()
        return observation, 1.0, self._allowed == 0, False, info

    def get_state(self) -> Any:
        return {"allowed": self._allowed, "generator": self.np_random.bit_generator.state}

    def set_state(self, state: Any) -> None:
        self._allowed = state["allowed"]
        self.np_random.bit_generator.state = state["generator"]


class OfTwoParts(gym.Wrapper):
    """Its actions have a second part, whose mask is the other array of a tuple."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.MultiDiscrete([9, 2])

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation, {"action_mask": (info["action_mask"], np.array([0, 1]))}

    def step(self, action: Any) -> Any:
        assert action[1] == 1
        *result, info = self.env.step(action[0])
        return *result, {"action_mask": (info["action_mask"], np.array([0, 1]))}


@pytest.mark.parametrize("make_env", [OneAllowed, lambda: OfTwoParts(OneAllowed())])
def test_random_actions_go_on_with_the_mask_that_was_saved(
    make_env: Callable[[], gym.Env],
) -> None:
    assert_goes_on(make_env)


def test_random_actions_go_on_with_a_mask_in_the_observation() -> None:
    def make_env() -> gym.Env:
        return MaskInObservation(OneAllowed())

    with SerialCage(make_env, seed=1) as cage, SerialCage(make_env) as other:
        reset(cage)
        states = in_file(cage.get_state())
        expected = [random_step(cage)[0] for _ in range(20)]
        other.set_state(states)
        assert [random_step(other)[0] for _ in range(20)] == expected


class WithObject(gym.Wrapper):
    """Keeps what is no plain data."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.log = {"last": [object()]}


def test_an_environment_or_a_wrapper_that_can_not_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match=r"Clock can't save its state.*\(saves_envs=False\)"):
        check_env_state(TimeLimit(Clock(), 3))
    match = r"the wrapper WithObject can't be saved with it: log\.last\.0: got a object, expected"
    with pytest.raises(TypeError, match=match):
        check_env_state(TimeLimit(WithObject(Walk()), 3))


def test_a_state_is_of_the_same_wrappers() -> None:
    env, other = Walk(), TimeLimit(Walk(), 3)
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match=r"got the wrappers \['TimeLimit'\], expected \[\]"):
        set_env_state(other, env_state(env))


def test_a_state_is_a_copy() -> None:
    env = Walk()
    env.reset(seed=0)
    state = env_state(env)
    before = state["own"]["position"].copy()
    env.step(1)
    set_env_state(env, state)
    env._position[...] = 7
    np.testing.assert_array_equal(state["own"]["position"], before)


# Attributes


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Holder:
    """Has the attributes that it is given."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def test_attributes_come_back_with_their_kinds() -> None:
    values = {
        "numbers": (1, 2.5, True, None, b"\0", "a", np.float32(3)),
        "queue": deque([np.arange(3), [deque()]], maxlen=4),
        "named": {"a": {1: [2]}, "generator": {"dict": 3}},
        "color": Color.BLUE,
        "function": len,
    }
    other = Holder(queue=None, color=Color.RED, function=len)
    set_attributes(other, in_file(attributes_of(Holder(**values))))
    assert {**vars(other), "queue": 0} == {**values, "queue": 0}
    assert other.queue.maxlen == 4  # type: ignore[attr-defined]
    first, second = other.queue  # type: ignore[attr-defined]
    np.testing.assert_array_equal(first, np.arange(3), strict=True)
    assert second == [deque()]


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, {(1, 2): 3}, np.array([None]), np.array(["a"]), np.ma.array([1]), Walk()],
)
def test_attributes_of_other_kinds_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^a\.1: got a {type(value).__name__}, expected numbers"):
        attributes_of(Holder(a=(0, value)))


def test_attributes_must_fit_those_that_were_saved() -> None:
    data = attributes_of(Holder(rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"nothing was saved of its attributes \['other'\]"):
        set_attributes(Holder(rng=np.random.default_rng(1), other=2), data)
    with pytest.raises(ValueError, match="rng: got a int, expected the generator that was saved"):
        set_attributes(Holder(rng=3), data)
    with pytest.raises(ValueError, match="f: got a NoneType, expected the constant that was saved"):
        set_attributes(Holder(f=None), attributes_of(Holder(f=len)))

"""HindsightReplayBuffer: goals of transitions, held against a plain list of steps."""

import copy
import re
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from goal_list import (
    STRATEGIES,
    assert_untouched,
    compute_reward,
    compute_terminated,
    count_pairs,
    goals_of,
    make_hindsight,
    make_model,
    read_goals,
)
from long_run import all_but_first
from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.cages import SerialCage
from parllel.kernels import hindsight
from parllel.kernels.targets import Axes, launch_plainly
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import HindsightReplayBuffer, Prefetcher, RandomShift, ReplayBuffer
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.operators import ReplayDraw
from parllel.tree.saved_json import from_data, to_data
from profiles import fewer_examples
from schedules import each_schedule
from step_list import Chances, Model, Shape, chances, shapes

FUNCTIONS: dict[str, Any] = {
    "compute_reward": compute_reward,
    "compute_terminated": compute_terminated,
}
SELDOM = Chances(terminated=1, truncated=1)
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def filled_model(shape: Shape, seed: int = 0, chances: Chances = SELDOM, **settings: Any) -> Model:
    model = make_model(shape, chances, seed=seed, **settings)
    for _ in range(shape.n_windows + 1):
        model.write_batch()
    return model


def values(minibatch: ArrayDict) -> dict[str, Any]:
    return {path: leaf.tolist() for path, leaf in leaves(minibatch).items()}


# What is drawn


def assert_holds_the_list(model: Model) -> None:
    """Draw so many that each goal of each transition comes; each has to be the list's."""
    expected = goals_of(model, model.replay.strategy)
    if not expected:
        with pytest.raises(RuntimeError, match=r"replay: (\d+ steps of each|no transition)"):
            model.replay.sample(4)
        return
    # 60 transitions and 1,200 goals at most: one is missing with a probability below
    # 1200 * exp(-40_000 / 1200) = 4e-12.
    n = 40_000
    minibatch = model.replay.sample(n + 100)
    found = count_pairs(read_goals(minibatch, n))
    assert found.keys() == {(index, goal) for index in expected for goal in expected[index]}
    assert_untouched(minibatch, n, model)


@fewer_examples(4)
@given(shape=shapes, chances=chances, seed=st.integers(0, 99), strategy=st.sampled_from(STRATEGIES))
@example(  # the table forgets most of the ring
    shape=Shape(T=4, B=3, n_windows=5, n_final_obs=3),
    chances=Chances(terminated=0, truncated=3),
    seed=0,
    strategy=STRATEGIES[0],
)
def test_goals_are_those_that_the_list_has(
    shape: Shape, chances: Chances, seed: int, strategy: str
) -> None:
    settings = {"strategy": strategy, "fraction": 40_000 / 40_100}
    shape = shape._replace(has_clouds=False)  # thousands of clouds take minutes to compare
    model = make_model(shape, chances, seed=seed, **settings)
    assert_holds_the_list(model)
    for _ in range(2 * shape.n_windows + 1):
        if model.rng.integers(10) < chances.reset:
            model.reset()
        model.write_batch()
        assert_holds_the_list(model)


@each_strategy
def test_goals_are_drawn_beside_elements_of_different_length(strategy: str) -> None:
    shape = Shape(has_clouds=True)
    model = make_model(shape, Chances(), seed=0, strategy=strategy, fraction=0.5)
    for _ in range(2 * shape.n_windows):
        model.write_batch()
        minibatch = model.replay.sample(60)  # the first half with other goals
        read_goals(minibatch, 30)
        assert_untouched(minibatch, 30, model)


@each_strategy
def test_goals_of_long_episodes_are_those_that_the_list_has(strategy: str) -> None:
    shape = Shape(T=35, B=1, n_windows=5)  # 175 rows: bits in two integers, and a half
    model = make_model(shape, Chances(terminated=0, truncated=0), seed=1, strategy=strategy)
    for number in range(8):
        if number % 3 == 2:
            model.reset()
        model.write_batch()
        goals = goals_of(model, strategy)
        assert max(map(len, goals.values())) > 64 or number % 3 != 1 or strategy == "final"
        found = read_goals(model.replay.sample(1000), 800)
        assert all(goal in goals[index] for index, goal in found.tolist())


def test_steps_that_are_being_overwritten_give_no_goals() -> None:
    model = filled_model(
        Shape(T=3, n_windows=4), seed=1, fraction=40_000 / 40_100, strategy="episode"
    )
    model.replay.begin_batch()
    model.first = len(model.steps[0]) + 3 - 12 + 1  # and the step behind which the batch ends
    assert_holds_the_list(model)


def assert_even(pairs: NDArray[np.int64], shares: dict[Any, float]) -> None:
    """Compare pairs of numbers with what their shares of 1 let expect, by a chi-square."""
    n, counts = len(pairs), Counter(count_pairs(pairs))
    assert counts.keys() <= shares.keys()
    chi_square = sum(
        (counts[each] - n * share) ** 2 / (n * share) for each, share in shares.items()
    )
    # Mean and standard deviation of chi-square are its degrees of freedom and the root of twice.
    freedom = len(shares) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@each_strategy
def test_all_goals_of_a_transition_come_equally_often(strategy: str) -> None:
    model = filled_model(Shape(T=8, B=4, n_windows=2), strategy=strategy, fraction=1)
    goals = goals_of(model, strategy)
    shares = {
        (index, goal): 1 / len(goals) / len(own) for index, own in goals.items() for goal in own
    }
    assert len(shares) > len(goals) or strategy == "final"
    assert_even(read_goals(model.replay.sample(200_000), 200_000), shares)


def test_goals_depend_on_nothing_else_that_is_drawn() -> None:
    """Neither on the transitions of the same minibatch nor on those of the next one."""
    chances = Chances(terminated=0, truncated=0)
    shape = Shape(T=6, B=1, n_windows=1)
    model = make_model(shape, chances, seed=0, strategy="episode", fraction=1)
    model.write_batch()
    n, goals = 60_000, goals_of(model, "episode")[0]
    first, second = (read_goals(model.replay.sample(n), n) for _ in range(2))
    shares = {(goal, index): 1 / 36 for goal in goals for index in range(6)}
    assert_even(np.stack([first[:, 1], second[:, 0]], 1), shares)
    shares = {(goal, other): 1 / 36 for goal in goals for other in goals}
    assert_even(np.stack([first[:, 1], second[:, 1]], 1), shares)
    assert_even(np.stack([first[:-1, 1], first[1:, 1]], 1), shares)


def test_the_rest_is_what_a_replay_buffer_draws() -> None:
    """Which transitions are drawn does not depend on goals; a fraction of 0 leaves all as it is."""
    model = filled_model(Shape(T=4, n_windows=3), chances=Chances(terminated=0), fraction=0.3)
    rng = np.random.default_rng(0)
    plain = ReplayBuffer(model.tree, rng=rng, discount=0.5, n_final_obs=50)
    plain._set_state(model.replay._state())
    plain.final_obs, plain._sources = model.replay.final_obs, model.replay._sources
    plain._bind_table()
    none = make_hindsight(
        model.tree, rng=np.random.default_rng(0), discount=0.5, n_final_obs=50, fraction=0
    )
    none._set_state(model.replay._state())
    none.final_obs, none._sources = model.replay.final_obs, model.replay._sources
    none._bind_table()
    for _ in range(2):
        expected, found = values(plain.sample(10)), values(model.replay.sample(10))
        assert values(none.sample(10)) == expected
        assert found["index"] == expected["index"]
        assert {name: each[3:] for name, each in found.items()} == {
            name: each[3:] for name, each in expected.items()
        }
        assert found["reward"][:3] != expected["reward"][:3]


def test_a_fraction_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match=r"fraction: got '0\.5', expected a number"):
        filled_model(Shape(T=4, n_windows=3), chances=Chances(terminated=0), fraction="0.5")


@pytest.mark.parametrize(("fraction", "n"), [(0.8, 8), (1.0, 10), (0.04, None), (0.06, 1)])
def test_the_first_part_of_a_minibatch_gets_other_goals(fraction: float, n: int | None) -> None:
    model = filled_model(Shape(), fraction=fraction)
    if n is None:
        with pytest.raises(ValueError, match=r"batch_size: got 10, of which a fraction of 0\.04"):
            model.replay.sample(10)
        return
    minibatch = model.replay.sample(10)
    read_goals(minibatch, n)
    assert_untouched(minibatch, n, model)


def test_without_compute_terminated_flags_stay() -> None:
    model = filled_model(Shape(), fraction=1, compute_terminated=None, chances=Chances())
    minibatch = model.replay.sample(200)
    plain = {name: minibatch[name].clone() for name in ("terminated", "n_step_discount")}
    read = dict(model.transitions())
    for number, index in enumerate(minibatch["index"].tolist()):
        assert plain["terminated"][number] == read[index].terminated
        assert plain["n_step_discount"][number] == read[index].n_step_discount
    assert plain["terminated"].any()
    after, goal = minibatch["next_observation"]["achieved_goal"], minibatch["observation"]
    assert (minibatch["reward"] == compute_reward(after, goal["desired_goal"])).all()


# Final observations of episodes that terminated


class Countdown(gym.Env[Any, Any]):
    """Shows the step as the goal that is achieved, and ends with step `length`, in either way."""

    observation_space = spaces.Dict(
        {
            name: spaces.Box(-99, 99, (1,), np.float32)
            for name in ("observation", "achieved_goal", "desired_goal")
        }
    )
    action_space = spaces.Discrete(2)

    def __init__(self, length: int, end: str) -> None:
        self._length, self._end, self._n_steps = length, end, 0

    def _show(self) -> dict[str, Any]:
        at = np.array([self._n_steps], np.float32)
        return {"observation": at, "achieved_goal": at, "desired_goal": -at}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self._n_steps = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        is_over = self._n_steps == self._length
        flags = (is_over and self._end == end for end in ("terminated", "truncated"))
        return (self._show(), 0.0, *flags, {})


class Still:
    """Return actions and values."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n = len(observation["observation"])
        return torch.zeros(n, dtype=torch.int64), {"value": torch.zeros(n)}

    def value(self, observation: Any) -> Any:
        return np.full(len(observation["observation"]), 7, np.float32)


def distance(achieved: Any, desired: Any) -> Tensor:
    return (desired - achieved)[:, 0]


def make_sampler(kind: type[BasicSampler], storage: str) -> BasicSampler:
    example = build_example(Countdown, env_kwargs={"length": 3, "end": "truncated"})
    samples = build_sample_tree(example, Still(), batch_shape=(4, 4), full_size=16, storage=storage)
    cages = [
        SerialCage(Countdown, {"length": 3, "end": "truncated"}, n_envs=2),
        SerialCage(Countdown, {"length": 5, "end": "terminated"}, n_envs=2),
    ]
    replay = HindsightReplayBuffer(
        samples,
        rng=np.random.default_rng(0),
        compute_reward=distance,
        compute_terminated=None,
        fraction=1,
        strategy="final",
    )
    return kind(cages, Still(), samples, replay=replay)


@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
def test_a_sampler_gives_what_terminated_episodes_have_achieved(
    kind: type[BasicSampler], cuda_device: torch.device
) -> None:
    for storage in ("local", "device"):
        sampler = make_sampler(kind, storage)
        replay: Any = sampler.replay
        for number in range(8):
            if number == 5:
                sampler.reset()
            sampler.collect_batch()
            minibatch = replay.sample(200)
            rows = {path: leaf.cpu() for path, leaf in leaves(minibatch).items()}
            goal, after = rows["observation.desired_goal"], rows["next_observation.achieved_goal"]
            assert (after == rows["observation.achieved_goal"] + 1).all()
            lengths = torch.tensor([3, 3, 5, 5])[rows["index"] % 4]
            assert (goal[:, 0] <= lengths).all()
            assert (goal >= after).all()
            assert (rows["reward"] == (goal - after)[:, 0]).all()
            ended = rows["terminated"]
            assert ended.any() == (number > 0)
            assert (after[:, 0] == lengths)[ended].all()
        # Values for learning are those of truncated episodes alone.
        final_value = sampler.samples["final_value"].to_ndarray()
        assert (final_value[:, :2] == 7).any()
        assert not final_value[:, 2:].any()


def test_a_recorder_that_asks_for_nothing_gets_no_terminated_episodes() -> None:
    sampler = make_sampler(BasicSampler, "local")
    replay: Any = ReplayBuffer(sampler.samples, rng=np.random.default_rng(0))
    sampler = BasicSampler(sampler.cages, Still(), sampler.samples, replay=replay)
    for _ in range(4):
        sampler.collect_batch()
    owners = replay.final_obs.place.to_ndarray()[: replay.final_obs.n_added]
    assert len(owners)
    assert (owners % 4 < 2).all()


def append_step(replay: Any, *, number: int, **flags: bool) -> None:
    ended = any(flags.values())
    shown = {"achieved_goal": [number], "desired_goal": [9]}
    branches: dict[str, Any] = {name: [flags.get(name, False)] for name in FLAGS}
    final_obs = {0: {name: each[0] for name, each in shown.items()}} if ended else None
    replay.append(shown, reward=[0], final_obs=final_obs, **branches)


FLAGS = ("terminated", "truncated")


def make_small(**settings: Any) -> Any:
    goal: Any = {"padding": 1, "full_size": settings.pop("full_size", 8)}
    samples = ArrayDict(
        {
            "observation": {
                "achieved_goal": Array((1, 1), np.float32, **goal),
                "desired_goal": Array((1, 1), np.float32, **goal),
            },
            "reward": Array((1, 1), np.float32, full_size=goal["full_size"]),
            **{name: Array((1, 1), bool, full_size=goal["full_size"]) for name in FLAGS},
        }
    )
    functions: Any = {"compute_reward": lambda achieved, desired: desired - achieved}
    return HindsightReplayBuffer(
        samples,
        **{
            "rng": np.random.default_rng(0),
            "fraction": 1,
            "compute_terminated": None,
            **functions,
            **settings,
        },
    )


def test_append_demands_the_final_observation_of_a_terminated_episode() -> None:
    replay = make_small()
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    with pytest.raises(
        ValueError, match=r"final_obs: environments \[0\] are at an end, and got no"
    ):
        replay.append(
            {"achieved_goal": [1], "desired_goal": [9]},
            reward=[0],
            terminated=[True],
            truncated=[False],
        )
    append_step(replay, number=1, terminated=True)
    assert replay.sample(9)["observation"]["desired_goal"].tolist() == [1] * 9


def test_a_terminated_step_without_its_final_observation_is_not_drawn() -> None:
    replay = make_small()
    samples = replay.samples
    replay.restart()
    for number, is_over in enumerate([False, True]):
        replay.begin_batch()
        samples.rotate()
        samples["observation"]["achieved_goal"][1] = number + 1
        samples["terminated"][0] = is_over
        replay.end_batch()
    minibatch = replay.sample(20)
    assert minibatch["index"].unique().tolist() == [0]
    assert minibatch["observation"]["desired_goal"].unique().tolist() == [1]
    replay.restart()
    replay.begin_batch()
    samples.rotate()
    replay.end_batch()
    samples["terminated"].full[0] = True  # and so are all others
    samples["terminated"].full[2] = True
    replay.final_obs.slot.full[...] = -2
    with pytest.raises(RuntimeError, match="that of a termination too"):
        replay.sample(20)


def test_the_table_grows_for_episodes_that_all_end_at_once() -> None:
    replay = make_small(full_size=64)
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    n_slots = len(replay.final_obs.owner)
    for number in range(1, 200):
        append_step(replay, number=number, terminated=True)
    assert len(replay.final_obs.owner) > n_slots
    assert len(replay) == 63 or len(replay) == 64
    minibatch = replay.sample(2000)
    goal = minibatch["observation"]["desired_goal"]
    assert (goal == minibatch["index"] + 1).all()
    assert len(goal.unique()) == len(replay)


def test_stacks_of_terminated_episodes_have_to_go_on() -> None:
    """Where the goal decides on the end, the final observation is learned from."""
    model = make_model(Shape(T=1, B=1, stack=3), SELDOM, seed=0)
    model.replay.begin_batch()
    model.tree.rotate()
    model.tree["terminated"][...] = True
    shown = model.show(model.now[0])
    shown["camera"] = np.array([[5], [6], [7]], np.int32)
    with pytest.raises(ValueError, match=r"final_obs: observation\.camera of environment 0"):
        model.replay.add_final_obs(0, {0: shown})


# What functions return


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (
            lambda a, d: (d - a)[:, None],
            ValueError,
            r"compute_reward: it returned .*\(4, 1\).*, exp",
        ),
        (lambda a, d: (d - a).double(), ValueError, r"float64, \(4,\).*expected .*float32, \(4,\)"),
        (lambda a, d: d > a, ValueError, r"compute_reward: it returned .*torch\.bool"),
        (lambda a, d: (d - a).sum(), ValueError, r"compute_reward: it returned .*\(\)"),
        (lambda a, d: (d - a)[:1], ValueError, r"compute_reward: it returned .*\(1,\)"),
        (lambda a, d: (d - a) / 0, ValueError, "compute_reward: it returned a NaN or an inf"),
        (lambda a, d: (d - a).numpy(), TypeError, "compute_reward: it returned a ndarray, exp"),
        (lambda a, d: 0.0, TypeError, "compute_reward: it returned a float, expected a torch"),
    ],
)
def test_rewards_of_another_form_are_refused(result: Any, error: Any, message: str) -> None:
    replay = make_small(compute_reward=result)
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    append_step(replay, number=1)
    with pytest.raises(error, match=message):
        replay.sample(4)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda a, d: d - a, r"compute_terminated: it returned .*float32.*, expected .*bool"),
        (lambda a, d: (d == a)[:, None], r"compute_terminated: it returned .*\(4, 1\)"),
    ],
)
def test_ends_of_another_form_are_refused(result: Any, message: str) -> None:
    replay = make_small(compute_terminated=result)
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    append_step(replay, number=1)
    with pytest.raises(ValueError, match=message):
        replay.sample(4)


@pytest.mark.parametrize("name", ["compute_reward", "compute_terminated"])
@pytest.mark.parametrize("write", [lambda a, d: a.sub_(d), lambda a, d: d[:1].zero_()])
def test_functions_that_write_to_goals_are_refused(name: str, write: Any) -> None:
    """The minibatch would have what they wrote, in `next_observation` alone."""

    def function(achieved: Tensor, desired: Tensor) -> Tensor:
        write(achieved, desired)
        distance = desired - achieved
        return distance if name == "compute_reward" else distance > 0

    replay = make_small(**{name: function})
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    append_step(replay, number=1)
    with pytest.raises(ValueError, match=f"{name}: it has written to the goals that it was given"):
        replay.sample(4)


def test_a_first_minibatch_may_be_drawn_in_inference_mode() -> None:
    """Torch does not count there how often a tensor was written."""
    replay = make_small()
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    append_step(replay, number=1)
    with torch.inference_mode():
        assert replay.sample(4)["reward"].tolist() == [0] * 4


def test_functions_need_no_gradients() -> None:
    """Those of a learned reward have some, of its parameters."""
    weight = torch.ones(1, requires_grad=True)
    replay = make_small(compute_reward=lambda achieved, desired: weight * (desired - achieved))
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    append_step(replay, number=1)
    assert not replay.sample(4)["reward"].requires_grad


# What is refused


def goals_tree(**observation: Any) -> ArrayDict:
    floats = Array((2, 1), np.float32, padding=1)
    given = {"achieved_goal": floats, "desired_goal": floats, **observation}
    given = {name: each for name, each in given.items() if each is not None}
    return ArrayDict(
        {
            "observation": given,
            "reward": Array((2, 1), np.float32),
            **{name: Array((2, 1), bool) for name in FLAGS},
        }
    )


def frames_of(dtype: Any) -> FrameArray:
    return FrameArray((2, 1), dtype, (8, 8), stack=2, padding=1)


IMAGES = Array((2, 1), np.uint8, feature_shape=(1, 8, 8), padding=1)
PAIR = Array((2, 1), np.float32, feature_shape=(2,), padding=1)


@pytest.mark.parametrize(
    ("tree", "settings", "message"),
    [
        ({"desired_goal": None}, {}, r"observation: branches \['desired_goal'\] are missing"),
        ({"desired_goal": PAIR}, {}, r"observation\.desired_goal: got float32 \(2,\), expected fl"),
        (
            {"desired_goal": {"x": PAIR}},
            {},
            r"desired_goal: got x float32 \(2,\), expected float32",
        ),
        (
            {"desired_goal": frames_of("u1"), "achieved_goal": frames_of("u1")},
            {},
            r"observation\.achieved_goal: got stacks of frames, expected an Array",
        ),
        (
            {"desired_goal": IMAGES, "achieved_goal": IMAGES},
            {"shift": RandomShift(1)},
            r"observation\.achieved_goal: got images that shift= would move",
        ),
        ({}, {"fraction": 1.1}, r"fraction: got 1\.1, expected a number in \[0, 1\]"),
        ({}, {"fraction": float("nan")}, "fraction: got nan"),
        ({}, {"strategy": "past"}, r"strategy: got 'past', expected one of \['future', 'final'"),
        ({}, {"discount": 2}, "discount: got 2"),
    ],
)
def test_what_has_no_goals_is_refused(tree: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_hindsight(goals_tree(**tree), rng=np.random.default_rng(0), **settings)


def test_an_observation_that_is_no_tree_is_refused() -> None:
    tree = goals_tree()
    tree["observation"] = PAIR
    with pytest.raises(
        ValueError, match=r"'achieved_goal', 'desired_goal'\] are missing.* a single"
    ):
        make_hindsight(tree, rng=np.random.default_rng(0))


@pytest.mark.parametrize("name", ["compute_reward", "compute_terminated"])
def test_functions_have_to_be_called(name: str) -> None:
    settings: Any = {**FUNCTIONS, name: "distance"}
    with pytest.raises(TypeError, match=f"{name}: got a str, expected a function"):
        HindsightReplayBuffer(goals_tree(), rng=np.random.default_rng(0), **settings)
    if name == "compute_reward":
        with pytest.raises(TypeError, match="compute_reward: got a NoneType"):
            HindsightReplayBuffer(
                goals_tree(), rng=np.random.default_rng(0), **{**settings, name: None}
            )


def test_images_beside_goals_are_shifted() -> None:
    tree = goals_tree(camera=IMAGES)
    replay = make_small_of(tree, shift=RandomShift(2))
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    tree["observation"]["camera"][:3] = np.arange(64, dtype=np.uint8).reshape(1, 1, 1, 8, 8)
    replay.end_batch()
    images = replay.sample(50)["observation"]["camera"]
    assert len({image.numpy().tobytes() for image in images}) > 10


def make_small_of(tree: ArrayDict, **settings: Any) -> HindsightReplayBuffer:
    return HindsightReplayBuffer(
        tree,
        rng=np.random.default_rng(0),
        compute_reward=lambda achieved, desired: desired - achieved,
        compute_terminated=None,
        **settings,
    )


# On a device, in a thread, in a graph


def drawn(storage: str, strategy: str = "future", **settings: Any) -> list[dict[str, Any]]:
    shape = Shape(T=3, B=3, n_windows=3, stack=2, has_valid=True, n_final_obs=None)
    chances = Chances(terminated=2, truncated=2, invalid=1, not_given=2, reset=2)
    model = make_model(shape, chances, seed=5, storage=storage, strategy=strategy, **settings)
    found = []
    for number in range(7):
        if number == 4:
            model.reset()
        model.write_batch()
        found.append(values(model.replay.sample(30 + number // 3)))
    return found


@each_schedule
@each_strategy
def test_a_device_draws_the_same(schedule: str, seed: int, strategy: str) -> None:
    expected = drawn("local", strategy)
    with simulated_cuda(schedule, seed):
        assert drawn("device", strategy) == expected


def test_a_gpu_draws_the_same(cuda_device: torch.device) -> None:
    assert drawn("device") == drawn("local")


def test_nothing_to_sample_on_a_device_shows_as_nan(cuda_device: torch.device) -> None:
    """Also where all goals are computed anew: what nothing was drawn for is not learned from."""
    model = make_model(
        Shape(has_valid=True), Chances(invalid=10), seed=0, storage="device", fraction=1
    )
    model.write_batch()
    minibatch = model.replay.sample(3)
    assert torch.isnan(minibatch["n_step_return"]).all()
    assert torch.isnan(minibatch["n_step_discount"]).all()


@each_schedule
def test_nothing_is_left_on_the_device(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = filled_model(Shape(), storage="device")
        model.replay.sample(8)
        model.replay.close()
        model.tree.close()
        del model
        simulation.assert_no_leaks()


@each_schedule
@pytest.mark.simulation("it launches a captured graph of the simulation")
def test_a_captured_draw_is_what_the_next_call_would_draw(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed):
        model = filled_model(Shape(), storage="device")
        expected = []
        for _ in range(4):
            expected.append(values(model.replay.sample(8)))
            model.write_batch()
    with simulated_cuda(schedule, seed) as simulation:
        model = filled_model(Shape(), storage="device")
        minibatch = model.replay.sample(8)
        found = [values(minibatch)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert model.replay.sample(8) is minibatch
        for _ in range(3):
            model.write_batch()
            before = simulation.counters.launches
            graph.replay()
            assert simulation.counters.launches == before
            cuda.synchronize()
            found.append(values(minibatch))
        assert found == expected
        assert model.replay._n_drawn == 4


def test_an_operator_of_torch_draws_the_same() -> None:
    model, other = (filled_model(Shape()) for _ in range(2))
    draw = ReplayDraw(other.replay, 8)
    for _ in range(3):
        assert values(draw.sample()) == values(model.replay.sample(8))


def test_a_prefetcher_draws_the_same_one_ahead() -> None:
    model, other = (filled_model(Shape(n_final_obs=None)) for _ in range(2))
    ahead = [values(model.replay.sample(8))]
    with Prefetcher(other.replay, 8) as prefetcher:
        for number in range(6):
            ahead.append(values(model.replay.sample(8)))
            assert values(prefetcher.next()) == ahead.pop(0)
            if number % 2:
                for each in (model, other):
                    each.write_batch()


@each_schedule
def test_a_prefetcher_brings_goals_to_a_device(schedule: str, seed: int) -> None:
    model = filled_model(Shape())
    expected = [values(model.replay.sample(8)) for _ in range(4)]
    with simulated_cuda(schedule, seed):
        model = filled_model(Shape())
        with Prefetcher(model.replay, 8, storage="device") as prefetcher:
            assert [values(prefetcher.next()) for _ in range(4)] == expected


def test_what_a_function_raises_comes_through_a_prefetcher() -> None:
    replay = make_small(compute_reward=lambda achieved, desired: 0.0)
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    append_step(replay, number=1)
    with (
        Prefetcher(replay, 4) as prefetcher,
        pytest.raises(TypeError, match="compute_reward: it returned a float"),
    ):
        prefetcher.next()


@fewer_examples(3)
@given(
    grid=st.integers(1, 3),
    block=st.integers(1, 4),
    strategy=st.sampled_from(STRATEGIES),
    n=st.integers(1, 9),
)
def test_a_grid_of_any_shape_draws_the_same(grid: int, block: int, strategy: str, n: int) -> None:
    model = filled_model(Shape(), seed=n, strategy=strategy, fraction=1)
    model.replay.sample(n)
    outputs, replay = model.replay._outputs, model.replay
    before = replay._ring.argument, *replay._draws.arguments, STRATEGIES.index(strategy), n
    codes = outputs.code.copy()
    outputs.code[:] = 77
    arguments = *before, outputs.identity.ctypes.data, outputs.code.ctypes.data
    launch_plainly(hindsight.DEVICE, arguments, grid=Axes(grid, 1), block=Axes(block, 1))
    assert outputs.code.tolist() == codes.tolist()


# Saved and resumed


def train(model: Model, n_batches: int) -> list[Any]:
    results = []
    for _ in range(n_batches):
        if model.rng.integers(10) < model.chances.reset:
            model.reset()
        model.write_batch()
        results += [values(model.replay.sample(9)) for _ in range(2)]
    return results


def with_buffer(model: Model, replay: Any) -> Model:
    """Return a model whose lists go on where another one's are, with a buffer of its own."""
    other = copy.copy(model)
    for name in vars(model).keys() - {"replay", "tree"}:
        setattr(other, name, copy.deepcopy(getattr(model, name)))
    other.replay, other.tree = replay, replay.samples
    return other


SAVED = Shape(T=3, B=2, n_windows=3, n_final_obs=None, stack=2)


@pytest.mark.parametrize("strategy", all_but_first(STRATEGIES))
@pytest.mark.parametrize("n_batches", [1, 7])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    tmp_path: Path, n_batches: int, strategy: str
) -> None:
    often = Chances(terminated=3, truncated=3, reset=2)
    model = make_model(SAVED, often, seed=0, strategy=strategy)
    train(model, n_batches)
    model.replay.save(tmp_path)
    fresh = make_model(SAVED, often, seed=1, strategy=strategy)
    fresh.write_batch()  # whatever it holds
    fresh.replay.load(tmp_path)
    opened = HindsightReplayBuffer.open(tmp_path, **FUNCTIONS)
    assert (opened.strategy, opened.fraction) == (strategy, 0.8)
    resumed = [with_buffer(model, replay) for replay in (fresh.replay, opened)]
    expected = train(model, 6)
    for each in resumed:
        assert train(each, 6) == expected


def test_a_terminated_step_is_refused_after_a_load_too(tmp_path: Path) -> None:
    """The table that a load makes anew knows that such steps need a final observation."""
    replay = make_small(full_size=64)
    replay.reset({"achieved_goal": [0], "desired_goal": [9]})
    for number in range(1, 40):
        append_step(replay, number=number, terminated=True)
    replay.save(tmp_path)
    functions = {"compute_reward": replay._functions.compute_reward, "compute_terminated": None}
    loaded = make_small(full_size=64)
    loaded.load(tmp_path)
    for each in (loaded, HindsightReplayBuffer.open(tmp_path, **functions)):
        each.restart()
        each.begin_batch()
        each.samples.rotate()
        each.samples["terminated"][...] = True
        each.end_batch()
        assert each.final_obs.slot[(each._stop - 1) % 64].to_ndarray().tolist() == [-2]


@pytest.mark.parametrize(
    "settings", [{"strategy": "final"}, {"fraction": 0.5}, {"compute_terminated": None}]
)
def test_a_save_of_other_settings_is_refused(tmp_path: Path, settings: Any) -> None:
    model = filled_model(Shape())
    model.replay.save(tmp_path)
    other = make_model(Shape(), SELDOM, seed=0, **settings)
    with pytest.raises(ValueError, match=r"saved with .*, expected .* as of this HindsightReplay"):
        other.replay.load(tmp_path)


def test_a_save_is_opened_with_the_functions_that_it_had(tmp_path: Path) -> None:
    model = filled_model(Shape())
    model.replay.save(tmp_path)
    message = "'has_compute_terminated': 1.*, expected .*'has_compute_terminated': 0"
    with pytest.raises(ValueError, match=message):
        HindsightReplayBuffer.open(tmp_path, compute_reward=compute_reward, compute_terminated=None)
    expected = re.escape("settings ['discount', 'fraction', 'has_compute_terminated'")
    with pytest.raises(ValueError, match=f"saved with {expected}.* of a ReplayBuffer"):
        ReplayBuffer.open(tmp_path)


@pytest.mark.parametrize("value", [3, 0.5, -1, "final", None])
def test_a_strategy_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    model = filled_model(Shape())
    model.replay.save(tmp_path)
    content = from_data((tmp_path / "tree.json").read_bytes())
    content["numbers"]["settings"]["strategy"] = value
    (tmp_path / "tree.json").write_bytes(to_data(content))
    with pytest.raises(ValueError, match=r"tree\.json: (no tree of a buffer|numbers\.settings)"):
        HindsightReplayBuffer.open(tmp_path, **FUNCTIONS)

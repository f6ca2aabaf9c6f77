"""What environments give is compared with what they declare: nothing is broadcast or cut off."""

import ast
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from misfit_envs import Misfit, Returns, Shown, Still
from parllel import Array, FrameArray
from parllel.cages import MisfitError, ProcessCage, SerialCage, VectorCage, WorkerError
from parllel.cages.seeds import seed_words, spawn_seeds
from parllel.patterns import build_cages, build_example, build_sample_tree, example_of
from parllel.samplers import BasicSampler
from parllel.testing.contracts.cage_calls import idle, reset, step
from parllel.testing.toy_envs import Clock
from parllel.tree.fitting import fit, put_batch, put_column

IMAGE, ICON = (60, 20, 3), (4, 4, 3)
WRONG: dict[str, dict[str, Any]] = {
    "scalar for a vector": {"place": 5.0},
    "(1, 2) for (2,)": {"place": np.zeros((1, 2), np.float32)},
    "(1,) for (2,)": {"place": np.zeros(1, np.float32)},
    "gray image": {"image": np.zeros((60, 20, 1), np.uint8)},
    "gray icon": {"icon": np.zeros((4, 4, 1), np.uint8)},
    "floats for an image": {"image": np.full(IMAGE, 0.6, np.float32)},
    "floats for an icon": {"icon": np.full(ICON, 0.6)},
    "negative image": {"image": np.full(IMAGE, -1)},
    "negative icon": {"icon": np.full(ICON, -1)},
    "300 in an image": {"image": np.full(IMAGE, 300)},
    "300 in an icon": {"icon": np.full(ICON, 300)},
    "float for Discrete": {"kind": 1.7},
    "vector for Discrete": {"kind": np.array([1, 2])},
    "(1,) for Discrete": {"kind": np.array([1])},
    "too large for Discrete": {"kind": 2**40},
    "text for Discrete": {"kind": "1"},
    "None for Discrete": {"kind": None},
    "None for a vector": {"place": None},
    "text for a vector": {"place": np.array(["1", "2"])},
    "complex for a vector": {"place": np.ones(2, np.complex64)},
    "too large for float32": {"place": np.full(2, 1e200)},
    "ragged": {"place": [[1.0], [1.0, 2.0]]},
    "missing key": {"icon": ...},
}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_observation_that_does_not_fit_is_refused(wrong: dict[str, Any], n_envs: int) -> None:
    samples = build_sample_tree(
        build_example(Misfit, storage="local"), Still(), batch_shape=(4, n_envs)
    )
    makers = iter([Misfit] * (n_envs - 1) + [lambda: Misfit(wrong)])
    cage = SerialCage(lambda: next(makers)(), n_envs=n_envs, seed=7)
    with pytest.raises(MisfitError, match="expected") as caught:
        BasicSampler([cage], Still(), samples).collect_batch()
    (name,) = wrong
    error = caught.value
    assert error.environment == n_envs - 1
    assert error.path == ("observation", name)
    seed, _ = seed_words(spawn_seeds(7, n_envs)[n_envs - 1])
    assert f"observation.{name}: environment {n_envs - 1} of this cage gave" in str(error)
    assert "output" not in str(error)  # that is right
    assert str(seed) in str(error)


@pytest.mark.parametrize("kind", [SerialCage, ProcessCage])
def test_an_output_of_another_shape_than_the_space_is_told(kind: Any) -> None:
    with kind(Shown, {"space": BATCH_SPACE, "values": [np.zeros(ICON, np.uint8)]}) as cage:
        out = Array((1,), np.uint8, feature_shape=ICON, storage="shared")
        with pytest.raises((MisfitError, WorkerError), match=r"output has another shape.*no axis"):
            reset(cage, out_obs=out)  # a row for each environment, of which there is one
        reset(cage, out_obs=out[0])


@pytest.mark.parametrize("wrong", ["gray icon", "missing key", "None for Discrete"])
def test_a_worker_names_environment_leaf_and_seed(wrong: str) -> None:
    samples = build_sample_tree(
        build_example(Misfit, storage="shared"), Still(), batch_shape=(4, 2)
    )
    with (
        ProcessCage(Misfit, {"wrong": WRONG[wrong]}, n_envs=2, seed=7, first_env=4) as cage,
        pytest.raises(WorkerError) as caught,
    ):
        BasicSampler([cage], Still(), samples).collect_batch()
    (name,) = WRONG[wrong]
    error = caught.value
    assert error.environment == 4
    assert error.seed == seed_words(spawn_seeds(7, 2)[0])[0]
    assert f"observation.{name}" in str(error)
    assert isinstance(error.__cause__, MisfitError)


RESULTS = {
    "reward of shape (1,)": ("reward", np.ones(1)),
    "no reward": ("reward", None),
    "text": ("reward", "1.0"),
    "complex": ("reward", 1j),
    "flag that is a number": ("terminated", 2),
    "no flag": ("truncated", None),
}


# NumPy's word, up to 2.3: what makes a number of such a reward, before it is written and refused.
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
@pytest.mark.parametrize("at", [1, 2], ids=["first step", "later"])
@pytest.mark.parametrize(("name", "value"), RESULTS.values(), ids=RESULTS)
def test_a_reward_or_flag_that_does_not_fit_is_refused(name: str, value: Any, at: int) -> None:
    samples = build_sample_tree(build_example(Misfit, storage="local"), Still(), batch_shape=(4, 1))
    cage = SerialCage(Misfit, {"result": {name: value}, "at": at}, seed=7)
    with pytest.raises(MisfitError, match=f"{name}: environment 0"):
        BasicSampler([cage], Still(), samples).collect_batch()


@pytest.mark.parametrize(
    "reward_type", [float, int, bool, np.float64, np.float32, np.int8, np.array]
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_all_kinds_of_single_numbers_are_rewards(
    reward_type: Callable[[int], Any], n_envs: int
) -> None:
    env_kwargs = {"length": 1, "reward_type": reward_type}
    reward = np.zeros(n_envs, np.float32)
    with SerialCage(Clock, env_kwargs, n_envs=n_envs) as cage:
        cage.random_step_async(out_reward=reward if n_envs > 1 else reward[0, ...])
        cage.await_step()
    assert reward.tolist() == [1.0] * n_envs


BATCH_SPACE = spaces.Box(0, 255, ICON, np.uint8)


@pytest.mark.parametrize("value", [np.full(ICON, 300), np.full(ICON, 0.5), np.full(ICON, -1)])
def test_a_batch_of_a_vector_environment_is_compared(value: Any) -> None:
    class Wrong(gym.vector.VectorEnv):
        num_envs = 2
        single_observation_space = BATCH_SPACE
        single_action_space = spaces.Discrete(2)
        metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

        def reset(self, **_: Any) -> Any:
            return np.zeros((2, *ICON), np.uint8), {}

        def step(self, actions: Any) -> Any:
            observation = np.stack([np.zeros_like(value), value])
            flags = np.zeros((2, 2), np.bool_)
            return observation, np.zeros(2), *flags, {}

        def close(self) -> None:
            pass

    out = np.zeros((2, *ICON), np.uint8)
    with VectorCage(Wrong, seed=3) as cage:
        cage.reset_async()
        cage.await_step()
        cage.step_async(np.zeros(2, np.int64), out_obs=out)
        with pytest.raises(MisfitError, match="observation: environment 1") as caught:
            cage.await_step()
    assert caught.value.seed == seed_words(spawn_seeds(3, 2)[1])[0]


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_the_reset_after_one_that_failed_is_seeded_too(kind: str) -> None:
    seeds: list[Any] = []

    class FailsOnce(Clock):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            seeds.append(seed)
            if len(seeds) == 2:  # of two environments, the second one's first reset
                raise OSError("the simulator is not up yet")
            return super().reset(seed=seed, options=options)

    def make_vector() -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.vector.SyncVectorEnv([FailsOnce] * 2)

    cage = (
        SerialCage(FailsOnce, n_envs=2, seed=3)
        if kind == "serial"
        else VectorCage(make_vector, seed=3)
    )
    with cage:
        with pytest.raises(OSError, match="not up yet"):
            reset(cage)
        with pytest.raises(RuntimeError, match="step before reset"):
            step(cage, idle(2))
        reset(cage)
    assert None not in seeds
    assert seeds[2:] == seeds[:2]


@pytest.mark.parametrize("kind", ["serial", "process"])
@pytest.mark.parametrize(
    "result",
    [
        np.zeros(4, np.float32),
        [np.zeros(4, np.float32), {}],
        {"observation": 1, "info": 2},
        None,
        (np.zeros(4, np.float32), None),
    ],
)
def test_a_reset_of_another_api_is_shown(kind: str, result: Any) -> None:
    make_cage = SerialCage if kind == "serial" else ProcessCage

    with (
        make_cage(Returns, {"reset": result}) as cage,
        pytest.raises((MisfitError, WorkerError), match=r"reset: environment 0.*info") as caught,
    ):
        reset(cage)
    assert "returned" in str(caught.value)


def test_a_step_of_another_api_is_shown() -> None:
    result = (np.zeros(4, np.float32), 1.0, False, {})
    with SerialCage(Returns, {"reset": (result[0], {}), "step": result}) as cage:
        cage.reset_async()
        cage.await_step()
        with pytest.raises(MisfitError, match=r"step: environment 0 .*a tuple of 4"):
            cage.step_async(0)


def test_what_an_environment_raises_has_a_note_with_its_seed() -> None:
    class Raises(Clock):
        def step(self, action: Any) -> Any:
            raise LookupError("no ball")

    with SerialCage(Raises, n_envs=2, seed=1) as cage:
        cage.reset_async()
        with pytest.raises(LookupError) as caught:
            cage.step_async(np.zeros(2, np.int64))
    (note,) = caught.value.__notes__
    assert note.startswith("environment 0")
    assert str(seed_words(spawn_seeds(1, 2)[0])[0]) in note


@pytest.mark.parametrize(
    ("surplus", "match"),
    [
        ({"smell": 1.0}, r"observation: environment 0 .* the members \['smell'\] beside those of"),
        ({"pair": (1, 2, 3)}, r"observation.pair: environment 0 .* the members \['2'\] beside"),
        ({"inner": {"a": 1, "b": 2}}, r"observation.inner: environment 0 .* the members \['b'\]"),
    ],
)
def test_members_that_no_space_declares_are_refused(surplus: dict[str, Any], match: str) -> None:
    number = spaces.Discrete(9)

    class Rich(Misfit):
        observation_space = spaces.Dict(
            {
                **Misfit.observation_space.spaces,
                "pair": spaces.Tuple([number, number]),
                "inner": spaces.Dict({"a": number}),
            }
        )

        def _observe(self) -> dict[str, Any]:
            return {**super()._observe(), "pair": (1, 2), "inner": {"a": 1}, **self._wrong}

    with SerialCage(Rich, n_envs=2) as cage:
        reset(cage)
    with (
        SerialCage(Rich, {"wrong": surplus}, n_envs=2, seed=0) as cage,
        pytest.raises(MisfitError, match=match),
    ):
        reset(cage)


def test_a_final_observation_is_compared_too() -> None:
    class Ends(Misfit):
        def step(self, action: Any) -> Any:
            observation, reward, _, _, info = super().step(action)
            return observation, reward, False, self._step == 2, info

    samples = build_sample_tree(build_example(Misfit, storage="local"), Still(), batch_shape=(4, 1))
    cage = SerialCage(Ends, {"wrong": {"icon": np.zeros((4, 4, 1), np.uint8)}}, seed=7)
    with pytest.raises(MisfitError, match=r"observation\.icon: environment 0"):
        BasicSampler([cage], Still(), samples).collect_batch()


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 3), (3, 2, 3)])
def test_a_stack_of_frames_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    array = FrameArray((3, 2), "uint8", (2, 3), stack=2)
    space = spaces.Box(0, 255, (2, 2, 3), np.uint8)
    values = [np.zeros((2, 2, 3), np.uint8), np.zeros(shape, np.uint8)]
    with SerialCage(Shown, {"space": space, "values": values}, n_envs=2) as cage:
        cage.reset_async()
        cage.await_step()
        with pytest.raises(ValueError, match=r"observation.* environment 0"):
            cage.step_async(np.zeros(2, np.int64), out_obs=array[0])


@given(st.data())
def test_integers_are_kept_exactly_or_refused(data: st.DataObject) -> None:
    source = data.draw(
        hnp.integer_dtypes(endianness="=") | hnp.unsigned_integer_dtypes(endianness="=")
    )
    target = data.draw(
        hnp.integer_dtypes(endianness="=")
        | hnp.unsigned_integer_dtypes(endianness="=")
        | hnp.floating_dtypes(endianness="=", sizes=(32, 64))
        | hnp.boolean_dtypes()
    )
    values = data.draw(hnp.arrays(source, (2, 3)))
    out = np.zeros((2, 3), target)
    try:
        put_batch(out, values)
    except MisfitError:
        limits = [int(value) for value in values.ravel()]
        with np.errstate(all="ignore"):
            wrapped = [int(value) for value in values.astype(target).ravel()]
        assert wrapped != limits
    else:
        assert [int(value) for value in out.ravel()] == [int(value) for value in values.ravel()]


@pytest.mark.parametrize("n_values", [1, 3])
def test_integers_that_float32_would_round_are_refused_in_short_lists(n_values: int) -> None:
    out = np.zeros(n_values, np.float32)
    for number in (2**24 - 1, 2**24, -(2**24)):
        put_column(out, [0] * (n_values - 1) + [number])
        assert out[-1] == number
    for number in (2**24 + 1, -(2**24) - 1, 2**25 - 1):
        with pytest.raises(MisfitError, match=str(number)):
            put_column(out, [0] * (n_values - 1) + [number])


@given(st.lists(st.floats(width=64), min_size=1, max_size=4))
def test_floats_are_rounded_and_never_become_infinite(values: list[float]) -> None:
    out = np.zeros(len(values), np.float32)
    with np.errstate(over="ignore"):
        expected = np.array(values).astype(np.float32)
    is_lost = (np.isinf(expected) & np.isfinite(values)).any()
    try:
        put_column(out, values)
    except MisfitError:
        assert is_lost
    else:
        assert not is_lost
        assert_array_equal(out, expected)


def test_an_error_survives_a_process() -> None:
    with pytest.raises(MisfitError) as caught:
        fit([1.5], (1,), np.dtype(np.uint8), environment=2)
    caught.value.path = ("observation",)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.environment == 2


# What make_env may not be.


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_make_env_has_to_be_a_function(make_cage: Any) -> None:
    with pytest.raises(TypeError, match=r"gym\.make"):
        make_cage("CartPole-v1")
    with pytest.raises(TypeError, match="which is an environment itself"):
        make_cage(Clock())
    with pytest.raises(TypeError, match="got a int"):
        make_cage(3)


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_make_env_has_to_make_a_single_environment(make_cage: Any) -> None:
    with pytest.raises(TypeError, match="VectorCage"):
        make_cage(lambda: SyncVectorEnv([Clock]))
    with pytest.raises(TypeError, match="NoneType, which has no observation_space"):
        make_cage(lambda: None)


def test_make_env_has_to_make_a_new_environment_each_time() -> None:
    env = Clock()
    with pytest.raises(ValueError, match="the same Clock twice"):
        SerialCage(lambda: env, n_envs=2)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(TypeError, match="observation: got Dict"):
        SerialCage(Shown, {"space": spaces.Dict({}), "values": [{}]})


def test_a_timeout_has_to_be_a_number() -> None:
    with pytest.raises(ValueError, match="timeout_s: got None"):
        ProcessCage(Clock, timeout_s=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_builders_take_the_id_of_an_environment(n_workers: int) -> None:
    example = build_example("CartPole-v1", storage="shared")
    assert example["observation"].shape == (1, 4)
    cages = build_cages("CartPole-v1", 2, n_workers=n_workers, seed=0)
    for cage in cages:
        with cage:
            cage.reset_async()
            observation, _ = cage.await_step()
            assert observation.shape == (2, 4)


# Spaces decide on the form of an example.

FORMS: dict[str, tuple[spaces.Space[Any], Any, str]] = {
    "integers first": (spaces.Box(-10, 10, (2,), np.float32), np.array([0, 1]), "float32"),
    "float64": (spaces.Box(-1, 1, (2,), np.float64), np.zeros(2), "float32"),
    "unbounded": (spaces.Box(-np.inf, np.inf, (2,), np.float64), np.zeros(2), "float32"),
    "beyond float32": (spaces.Box(0, 1e300, (1,), np.float64), np.array([1e200]), "float64"),
    "float16": (spaces.Box(-1, 1, (2,), np.float16), np.zeros(2, np.float16), "float16"),
    "int64": (spaces.Box(0, 5, (1,), np.int64), np.array([1]), "int32"),
    "beyond int32": (spaces.Box(0, 2**62, (1,), np.int64), np.array([2**40]), "int64"),
    "uint32": (spaces.Box(0, 2**32 - 1, (1,), np.uint32), np.array([2**31], np.uint32), "uint32"),
    "uint64": (spaces.Box(0, 2**62, (1,), np.uint64), np.array([2**40], np.uint64), "uint64"),
    "Discrete": (spaces.Discrete(5), 4, "int32"),
    "large Discrete": (spaces.Discrete(2**40), 2**33 + 5, "int64"),
    "start of Discrete": (spaces.Discrete(3, start=2**31), 2**31 + 1, "int64"),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 4]), np.array([2, 3]), "int32"),
    "MultiBinary": (spaces.MultiBinary(3), np.array([0, 1, 1], np.int8), "int8"),
}


@pytest.mark.parametrize(("space", "value", "dtype"), FORMS.values(), ids=FORMS)
def test_the_space_decides_on_dtype_and_shape(
    space: spaces.Space[Any], value: Any, dtype: str
) -> None:
    example = build_example(Shown, env_kwargs={"space": space, "values": [value]}, storage="local")
    observation = example["observation"]
    assert observation.dtype == dtype
    assert observation.shape == (1, *(space.shape or ()))
    assert_array_equal(observation[0].to_ndarray(), value)


@pytest.mark.parametrize(
    ("dtype", "value", "lost"),
    [
        (np.uint8, np.array([1, 300]), "300"),
        (np.uint8, np.array([-1, 300]), "-1"),
        (np.uint8, np.array([1, 0.5]), "0.5"),
        (np.float32, np.array([0.1, 1e300]), "1e+300"),
        (np.int32, np.array([[0, 2**31]]), "2147483648"),
        (np.bool_, np.array([0, 2]), "2"),
        (np.float32, np.array(["1", "x"]), "1"),
    ],
)
def test_the_number_that_would_be_lost_is_named(dtype: Any, value: Any, lost: str) -> None:
    with pytest.raises(MisfitError, match=rf" with {re.escape(lost)}, expected"):
        fit(value, value.shape, np.dtype(dtype))
    rows = np.zeros((1, *value.shape), dtype)
    with pytest.raises(MisfitError, match=rf"{value.dtype} with {re.escape(lost)}, expected"):
        put_column(rows, [value])
    number = value.ravel()[-1]
    with pytest.raises(MisfitError, match=rf", {re.escape(str(number))}, expected"):
        fit(number, (), np.dtype(np.bool_))


def test_an_example_is_compared_with_the_space() -> None:
    env_kwargs = {"space": spaces.Discrete(3), "values": [np.zeros(2)]}
    with pytest.raises(MisfitError, match="observation: environment 0"):
        build_example(Shown, env_kwargs=env_kwargs, storage="local")


# Infos.

SPACE = spaces.Box(-1, 1, (1,), np.float32)
ZERO = [np.zeros(1, np.float32)]


def collect(
    infos: list[dict[str, Any]],
    *,
    make_cage: Any = SerialCage,
    T: int = 3,
    **example_kwargs: Any,
) -> Any:
    env_kwargs = {"space": SPACE, "values": ZERO, "infos": infos}
    example = build_example(Shown, env_kwargs=env_kwargs, storage="shared", **example_kwargs)
    samples = build_sample_tree(example, Still(), batch_shape=(T, 2))
    with make_cage(Shown, env_kwargs, n_envs=2) as cage:
        batch, _ = BasicSampler([cage], Still(), samples).collect_batch()
    return batch["env_info"]


@pytest.mark.parametrize("first", [0, False, np.int64(0), np.uint8(0), np.bool_(False)])
def test_a_whole_number_leaves_room_for_fractions(first: Any) -> None:
    infos = [{"x": first}, {"x": 0.75}, {"x": np.int64(2**33 + 1)}]
    assert collect(infos)["x"].to_ndarray()[:, 0].tolist() == [0, 0.75, 2**33 + 1]


def test_a_number_that_the_rows_can_not_hold_is_refused_with_the_way_to_declare_it() -> None:
    with pytest.raises(MisfitError, match=r"env_info\.x: environment 0.*info=\{'x': \.\.\.\}"):
        collect([{"x": np.zeros(2, np.int32)}, {"x": np.full(2, 0.5)}])
    with pytest.raises(MisfitError, match=r"env_info\.x"):
        collect([{"x": 0.5}, {"x": 2**33 + 5}])
    with pytest.raises(MisfitError, match=r"env_info\.a\.x"):
        collect([{"a": {"x": 1}}, {"a": {"x": np.ones(2)}}])


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_declared_entries_are_stored(make_cage: Any) -> None:
    infos = [{}, {"is_success": True, "episode": {"r": 1.5, "l": 2**40}}, {}]
    declared = {
        "is_success": False,
        "episode": {"r": 0.0, "l": 0},
        "mask": np.zeros(3, np.int8),
    }
    found = collect(infos, make_cage=make_cage, info=declared)
    assert found["is_success"].to_ndarray()[:, 0].tolist() == [False, True, False]
    assert found["is_success"].dtype == np.bool_
    assert found["episode"]["r"].dtype == np.float32
    assert found["episode"]["r"].to_ndarray()[:, 0].tolist() == [0, 1.5, 0]
    assert found["episode"]["l"].to_ndarray()[:, 0].tolist() == [0, 2**40, 0]
    assert not found["mask"].to_ndarray().any()


def test_a_declaration_decides_where_the_step_has_the_entry_too() -> None:
    found = collect([{"x": 1}, {"x": 2}], info={"x": np.int16(0)})
    assert found["x"].dtype == np.int16
    assert found["x"].to_ndarray()[:, 0].tolist() == [1, 2, 1]
    with pytest.raises(TypeError, match="info: got 'yes' for x"):
        collect([{}], info={"x": "yes"})


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_an_entry_that_appears_later_is_told_once(make_cage: Any) -> None:
    infos = [{"x": 1.0}, {"x": 1.0, "is_success": True, "text": "no number"}, {"x": 1.0}]
    with pytest.warns(UserWarning, match=r"info=\{'is_success': 0\.0\}") as caught:
        collect(infos, make_cage=make_cage, T=6)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"'a\.late'"):
        collect([{"a": {"x": 1.0}}, {"a": {"x": 1.0, "late": 2.0}}], make_cage=make_cage)


NESTED = {"episode": {"r": 1.5, "l": 3, "text": "no number"}}


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_the_told_way_to_declare_an_entry_works(make_cage: Any) -> None:
    infos = [{}, NESTED, {}]
    with pytest.warns(UserWarning, match=r"'episode\.l', 'episode\.r'") as caught:
        collect(infos, make_cage=make_cage)
    told = re.search(r"info=(\{.*\})\)", str(caught[0].message))
    assert told is not None
    declared = ast.literal_eval(told[1])
    found = collect(infos, make_cage=make_cage, info=declared)
    assert [found["episode"][name][1, 0].item() for name in ("l", "r")] == [3, 1.5]


def test_an_entry_of_another_kind_is_refused_with_the_names_around_it() -> None:
    with pytest.raises(MisfitError, match=r"env_info\.a\.x.*info=\{'a': \{'x': \.\.\.\}\}"):
        collect([{"a": {"x": 1}}, {"a": {"x": np.ones(2)}}])


def test_a_worker_tells_of_a_late_entry_before_an_episode_ends() -> None:
    action = np.zeros(2, np.int64)
    env_kwargs = {"space": SPACE, "values": ZERO, "infos": [{}, NESTED, {}, {}, {}]}
    out = np.zeros((2, 1), np.float32)
    with ProcessCage(Shown, env_kwargs, n_envs=2) as cage:
        cage.reset_async()
        cage.await_step()
        outputs = cage.prepare_step(
            action,
            out_obs=out,
            out_reward=np.zeros(2, np.float32),
            out_terminated=np.zeros(2, np.bool_),
            out_truncated=np.zeros(2, np.bool_),
            out_info={},
        )
        told = []
        for _ in range(4):
            cage.start_command(outputs)
            cage.await_step()
            assert not cage.final_obs
            told.append(cage.take_left_out())
    assert told == [[], [("episode", "l"), ("episode", "r")], [], []]


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_names_that_are_no_strings_are_left_out(make_cage: Any) -> None:
    infos = [{0: 1.0, "a": {1: 2.0, "x": 3.0}}, {2: 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect(infos, make_cage=make_cage)
    assert [path for path, _ in found.walk()] == [("a", "x")]


class Locked(Clock):
    """Have a lock in the info, as handles of simulators have."""

    def step(self, action: Any) -> Any:
        *results, info = super().step(action)
        return (*results, {**info, "engine": {"handle": threading.Lock()}})


@pytest.mark.parametrize("n_envs", [1, 2])
def test_an_info_that_can_not_be_sent_is_named(n_envs: int) -> None:
    action = np.zeros(n_envs, np.int64) if n_envs > 1 else 0
    with ProcessCage(Locked, n_envs=n_envs) as cage:
        cage.reset_async()
        cage.await_step()
        cage.step_async(action)
        with pytest.raises(WorkerError, match=r"info\.engine\.handle: environment 0.* a lock"):
            cage.await_step()
        out = np.zeros(cage.n_envs, np.float32)
        cage.step_async(action, out_reward=out if n_envs > 1 else out[0, ...], out_info={})
        cage.await_step()
        assert out.all()


def test_a_vector_environment_tells_of_late_entries_too() -> None:
    infos = [{"x": 1.0}, {"x": 1.0, "is_success": True}]
    env_kwargs = {"space": SPACE, "values": ZERO, "infos": infos}
    with VectorCage(lambda: SyncVectorEnv([lambda: Shown(**env_kwargs)] * 2)) as cage:
        example = example_of(cage, storage="local")
        cage.reset_async()
        samples = build_sample_tree(example, Still(), batch_shape=(3, 2))
        with pytest.warns(UserWarning, match="'is_success'") as caught:
            BasicSampler([cage], Still(), samples).collect_batch()
    assert len(caught) == 1


def test_a_number_in_the_place_of_a_dictionary_is_refused_of_a_vector_environment_too() -> None:
    infos = [{"x": {"a": 1.0}}, {"x": 3.0}]
    env_kwargs = {"space": SPACE, "values": ZERO, "infos": infos}
    with VectorCage(lambda: SyncVectorEnv([lambda: Shown(**env_kwargs)] * 2)) as cage:
        example = example_of(cage, storage="local")
        cage.reset_async()
        samples = build_sample_tree(example, Still(), batch_shape=(3, 2))
        with pytest.raises(MisfitError, match=r"env_info\.x: environment 0 .* 3\.0"):
            BasicSampler([cage], Still(), samples).collect_batch()


def test_outputs_of_other_dtypes_are_written() -> None:
    out = Array((2,), np.float64, feature_shape=(2,), storage="local")
    with SerialCage(Clock, n_envs=2) as cage:
        cage.reset_async(out_obs=out)
        cage.await_step()
    assert out.to_ndarray().tolist() == [[0, 0], [0, 0]]

"""CageResultsContract: the tests of cages that look at single calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import DTypeLike

from parllel.arrays import Array
from parllel.cages import AnyEnv, Cage, Seed, TrajInfo
from parllel.testing.contracts.cage_calls import (
    assert_rows,
    assert_same,
    floats,
    idle,
    random_step,
    reset,
    step,
)
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Clock, Echo
from parllel.tree import ArrayDict, dict_map

SPACES = (
    spaces.Box(-2, 2, (), np.float64),
    spaces.Box(-2, 2, (3, 2), np.float32),
    spaces.Box(0, 255, (2, 2), np.uint8),
    spaces.Discrete(5),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiDiscrete(np.array([[3, 4], [5, 6]])),
    spaces.MultiBinary(4),
    spaces.Dict({"z": spaces.Discrete(3), "a": spaces.Box(-1, 1, (2,))}),
    spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))),
    spaces.Dict({"inner": spaces.Tuple((spaces.Dict({"x": spaces.Discrete(2)}),))}),
)
PLACES = ("out_obs", "out_reward", "out_terminated", "out_truncated", "out_info")

any_number = pytest.mark.parametrize("n_envs", [1, 3])
any_space = pytest.mark.parametrize("space", SPACES, ids=str)


class CageResultsContract(ABC):
    """The promises of a cage for each call: its results, its outputs, and what stays untouched."""

    storage: ClassVar[str] = "local"
    """Kind of the memory that the cage is given to write to."""

    @abstractmethod
    def make_cage(
        self,
        make_env: Callable[..., AnyEnv],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> Cage:
        """Return a new cage, which the test closes."""

    def array(
        self, n_envs: int, feature_shape: Sequence[int] = (), dtype: DTypeLike = "f4"
    ) -> Array:
        """Return an Array of four rows of the environments: [4, ...] of one, [4, n, ...] of n."""
        batch_shape = (4,) if n_envs == 1 else (4, n_envs)
        return Array(batch_shape, dtype, feature_shape=feature_shape, storage=self.storage)

    def places(self, n_envs: int) -> ArrayDict:
        """Return outputs for all results of a `Clock`, under the names of the arguments."""
        info = {"step": self.array(n_envs), "nested": {"double": self.array(n_envs)}}
        return ArrayDict(
            {
                "out_obs": self.array(n_envs, (2,)),
                "out_reward": self.array(n_envs),
                "out_terminated": self.array(n_envs, dtype=bool),
                "out_truncated": self.array(n_envs, dtype=bool),
                "out_info": info,
            }
        )

    # Results and outputs of a call

    @any_number
    def test_reset_returns_observation_and_info(self, n_envs: int) -> None:
        with self.make_cage(Clock, n_envs=n_envs) as cage:
            observation, info = reset(cage)
        assert_rows(observation, floats(0, 0), n_envs)
        expected = {"step": 0, "nested": {"double": 0}}
        assert info == (expected if n_envs == 1 else [expected] * n_envs)

    @any_number
    def test_step_returns_five_results(self, n_envs: int) -> None:
        with self.make_cage(Clock, {"length": 2}, n_envs=n_envs) as cage:
            reset(cage)
            for number, is_end in ((1, False), (2, True)):
                observation, reward, terminated, truncated, info = step(cage, idle(n_envs))
                shown = floats(1, 0) if is_end else floats(0, number)
                assert_rows(observation, shown, n_envs)
                assert_rows(reward, number, n_envs)
                assert_rows(terminated, is_end, n_envs)
                assert_rows(truncated, False, n_envs)
                assert (info if n_envs == 1 else info[-1])["nested"] == {"double": 2 * number}

    @any_number
    def test_a_random_step_resets_first_and_returns_the_action_too(self, n_envs: int) -> None:
        with self.make_cage(Clock, n_envs=n_envs) as cage:
            for number in (1, 2):
                action, observation, reward, _, _, _ = random_step(cage)
                rows = [action] if n_envs == 1 else list(action)
                assert len(rows) == n_envs
                assert all(cage.action_space.contains(row) for row in rows)
                assert_rows(observation, floats(0, number), n_envs)
                assert_rows(reward, number, n_envs)

    def test_nothing_comes_where_nothing_was_started(self) -> None:
        with self.make_cage(Clock) as cage:
            assert cage.await_step() is None
            reset(cage)
            assert cage.await_step() is None

    @any_number
    def test_results_are_written_to_the_places_given_and_nowhere_else(self, n_envs: int) -> None:
        places = self.places(n_envs)
        with self.make_cage(Clock, {"end": "both"}, n_envs=n_envs) as cage:
            reset(cage, out_obs=places["out_obs"][0], out_info=places["out_info"][0])
            for t in range(3):
                row = places[t + 1]
                results = step(cage, idle(n_envs), **row)
                assert all(
                    result is row[name] for name, result in zip(PLACES, results, strict=True)
                )
        expected: dict[str, list[Any]] = {
            "out_obs": [[0, 0], [0, 1], [0, 2], [1, 0]],
            "out_reward": [0, 1, 2, 3],
            "out_terminated": [False, False, False, True],
            "out_truncated": [False, False, False, True],
            "out_info.step": [0, 1, 2, 3],
            "out_info.nested.double": [0, 2, 4, 6],
        }
        for path, leaf in leaves(places).items():
            for t in range(4):
                assert_rows(leaf[t], leaf.dtype.type(expected[path][t]), n_envs)

    def test_arrays_of_numpy_are_places_too(self) -> None:
        observation, reward = np.full((2, 3, 2), -1.0), np.full((2, 3), -1.0)
        with self.make_cage(Clock, n_envs=3) as cage:
            reset(cage)
            step(cage, idle(3), out_obs=observation[1], out_reward=reward[1])
        np.testing.assert_array_equal(observation, [[[-1, -1]] * 3, [[0, 1]] * 3])
        np.testing.assert_array_equal(reward, [[-1] * 3, [1] * 3])

    @any_number
    def test_a_bound_step_reads_its_action_at_each_start(self, n_envs: int) -> None:
        kwargs = {"space": spaces.Box(0, 9, (2,))}
        stored, places = self.array(n_envs, (2,)), self.places(n_envs)
        places["out_info"] = ArrayDict()
        with self.make_cage(Echo, kwargs, n_envs=n_envs) as cage:
            reset(cage)
            command = cage.prepare_step(stored[2], **places[1])
            for number in (3, 5):
                stored[2] = number
                cage.start_command(command)
                cage.await_step()
                assert_same(places["out_obs"][1], stored[2])
        np.testing.assert_array_equal(places["out_obs"][0], 0)

    @any_number
    def test_what_has_no_place_is_returned(self, n_envs: int) -> None:
        place, action = self.array(n_envs)[2], self.array(n_envs, dtype="i8")[1]
        with self.make_cage(Clock, n_envs=n_envs) as cage:
            results = random_step(cage, out_action=action, out_reward=place)
        assert results[0] is action
        assert results[2] is place
        assert_rows(results[1], floats(0, 1), n_envs)
        assert_rows(place, np.float32(1), n_envs)
        assert_rows(results[3], False, n_envs)

    @any_number
    def test_what_was_returned_never_changes(self, n_envs: int) -> None:
        kwargs = {"reuses_buffer": True, "length": 2}
        with self.make_cage(Clock, kwargs, n_envs=n_envs) as cage:
            kept = [reset(cage)[0]] + [step(cage, idle(n_envs))[0] for _ in range(3)]
        for observation, expected in zip(kept, ([0, 0], [0, 1], [1, 0], [1, 1]), strict=True):
            assert_rows(observation, floats(*expected), n_envs)

    # Kinds of values

    @any_space
    @any_number
    def test_a_member_of_any_space_comes_through(
        self, space: spaces.Space[Any], n_envs: int
    ) -> None:
        with self.make_cage(Echo, {"space": space}, n_envs=n_envs, seed=1) as cage:
            action, observation, *_ = random_step(cage)
            assert_same(observation, action)
            stored, observed = (
                dict_map(
                    Array.from_numpy,
                    action,
                    batch_shape=(3,),
                    storage=self.storage,
                    force_32bit=False,
                )
                for _ in range(2)
            )
            stored[1] = action
            step(cage, stored[1], out_obs=observed[1])
            assert_same(observed[1], action)
            random_step(cage, out_action=stored[2], out_obs=observed[2])
            assert_same(observed, stored)

    @any_space
    def test_the_spaces_are_those_of_one_environment(self, space: spaces.Space[Any]) -> None:
        with self.make_cage(Echo, {"space": space}, n_envs=2) as cage:
            assert cage.n_envs == 2
            assert cage.observation_space == space
            assert cage.action_space == space

    @any_number
    @pytest.mark.parametrize("reward_type", [int, float, np.float32, np.float64, np.int8, np.array])
    def test_a_reward_may_be_of_any_type(
        self, reward_type: Callable[[int], object], n_envs: int
    ) -> None:
        place = self.array(n_envs)
        with self.make_cage(Clock, {"reward_type": reward_type}, n_envs=n_envs) as cage:
            reset(cage)
            assert_rows(step(cage, idle(n_envs))[1], 1, n_envs)
            for t in (0, 1):
                step(cage, idle(n_envs), out_reward=place[t])
            (traj, *_) = cage.take_completed()
        assert_rows(place[0], np.float32(2), n_envs)
        assert_rows(place[1], np.float32(3), n_envs)
        assert traj.episode_return == 1 + 2 + 3

    @any_number
    def test_an_environment_may_overwrite_its_action(self, n_envs: int) -> None:
        kwargs = {"space": spaces.Box(1, 2, (2,)), "overwrites_action": True}
        stored = self.array(n_envs, (2,))
        with self.make_cage(Echo, kwargs, n_envs=n_envs, seed=0) as cage:
            reset(cage)
            stored[1] = 1.5
            step(cage, stored[1])
            random_step(cage, out_action=stored[2])
            action, observation, *_ = random_step(cage)
        assert_rows(stored[1], floats(1.5, 1.5), n_envs)
        assert np.min(stored[2]) >= 1
        assert_same(action, observation)

    @any_number
    def test_of_info_branches_count_and_what_is_missing_is_0(self, n_envs: int) -> None:
        nested = {"double": self.array(n_envs), "none": self.array(n_envs)}
        places = ArrayDict({"odd": self.array(n_envs), "nested": nested})  # `step` is dropped
        places[...] = 99
        with self.make_cage(Clock, {"length": 9}, n_envs=n_envs) as cage:
            reset(cage, out_info=places[0])
            for t in (1, 2, 3):
                step(cage, idle(n_envs), out_info=places[t])
        for path, expected in {
            "odd": [0, 1, 0, 3],
            "nested.double": [0, 2, 4, 6],
            "nested.none": [0, 0, 0, 0],
        }.items():
            for t in range(4):
                assert_rows(leaves(places)[path][t], np.float32(expected[t]), n_envs)

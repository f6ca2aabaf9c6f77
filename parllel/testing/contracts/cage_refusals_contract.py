"""CageRefusalsContract: the tests of cages about values that misfit, errors, and the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from parllel.cages import Cage, MisfitError, SerialCage, TrajInfo, WorkerError
from parllel.testing.contracts.cage_calls import idle, random_step, reset, step
from parllel.testing.contracts.cage_results_contract import CageResultsContract, any_number
from parllel.testing.toy_envs import Clock, Echo, Turns, Walk

REFUSED = MisfitError, WorkerError  # the second one from a cage whose environments are elsewhere


class CageRefusalsContract(CageResultsContract):
    """The promises of a cage that nothing is lost unsaid."""

    # Values and their places

    @any_number
    @pytest.mark.parametrize("feature_shape", [(3,), (1, 1), ()], ids=str)
    def test_an_observation_is_not_broadcast_to_its_place(
        self, feature_shape: tuple[int, ...], n_envs: int
    ) -> None:
        kwargs = {"space": spaces.Box(0, 1, (1,))}
        place = self.array(n_envs, feature_shape)
        with self.make_cage(Echo, kwargs, n_envs=n_envs, seed=0) as cage:
            reset(cage)
            with pytest.raises(REFUSED, match="observation"):
                random_step(cage, out_obs=place[1])

    @any_number
    def test_a_number_is_not_broadcast_to_its_place(self, n_envs: int) -> None:
        place = self.array(n_envs, (2,))
        with self.make_cage(Clock, n_envs=n_envs) as cage:
            reset(cage)
            with pytest.raises(REFUSED, match="reward"):
                step(cage, idle(n_envs), out_reward=place[1])

    @any_number
    def test_a_place_that_can_not_hold_a_value_is_refused(self, n_envs: int) -> None:
        kwargs = {"space": spaces.Box(0.25, 0.75, (2,))}
        place = self.array(n_envs, (2,), np.uint8)
        with self.make_cage(Echo, kwargs, n_envs=n_envs, seed=0) as cage:
            reset(cage)
            with pytest.raises(REFUSED, match="observation"):
                random_step(cage, out_obs=place[1])

    # Environments

    @any_number
    def test_what_an_environment_raises_comes_out(self, n_envs: int) -> None:
        right = np.full((n_envs, 2), 0.5, np.float32)
        wrong = right.copy()
        wrong[-1] = 7
        with self.make_cage(Echo, {"space": spaces.Box(0, 1, (2,))}, n_envs=n_envs) as cage:
            reset(cage)
            with pytest.raises(Exception, match=r"got array.*, expected a member of"):
                step(cage, wrong if n_envs > 1 else wrong[0])
            reset(cage)  # and the cage goes on
            observation, *_ = step(cage, right if n_envs > 1 else right[0])
            np.testing.assert_array_equal(np.reshape(observation, right.shape), right)

    @any_number
    def test_random_steps_keep_to_masks_of_actions(self, n_envs: int) -> None:
        with self.make_cage(Turns, n_envs=n_envs, seed=1) as cage:
            for number in range(9):
                action, *_ = random_step(cage)
                np.testing.assert_array_equal(action, np.full_like(action, number % 3))

    # What is told beside the results

    @any_number
    def test_episodes_are_those_of_a_serial_cage_in_their_order(self, n_envs: int) -> None:
        make_traj_info = functools.partial(TrajInfo, discount=0.5)
        with self.make_cage(Walk, None, make_traj_info, n_envs=n_envs, seed=7) as cage:
            each, all_of_them = episodes_of(cage)
        with SerialCage(Walk, None, make_traj_info, n_envs=n_envs, seed=7) as serial:
            assert (each, all_of_them) == episodes_of(serial)
        assert len(all_of_them) > 3

    @any_number
    def test_what_infos_have_and_no_place_takes_is_told_once(self, n_envs: int) -> None:
        place = {"odd": self.array(n_envs)[1]}
        with self.make_cage(Clock, n_envs=n_envs) as cage:
            if type(cage).take_left_out is Cage.take_left_out:
                pytest.skip("the cage tells of nothing that it leaves out")
            told = []
            for _ in range(2):
                reset(cage, out_info=place)
                for _ in range(4):  # to the end of an episode, and on
                    step(cage, idle(n_envs), out_info=place)
                told.append(cage.take_left_out())
        assert sorted(told[0]) == [("nested", "double"), ("step",)]
        assert told[1] == []

    # The end

    @pytest.mark.parametrize(
        "call",
        [reset, random_step, lambda cage: step(cage, idle(2))],
        ids=["reset", "random step", "step"],
    )
    def test_a_closed_cage_says_so(self, call: Callable[[Cage], Any]) -> None:
        cage = self.make_cage(Clock, n_envs=2)
        reset(cage)
        cage.close()
        with pytest.raises(RuntimeError, match="closed"):
            call(cage)


def episodes_of(cage: Cage) -> tuple[list[list[TrajInfo]], list[TrajInfo]]:
    """Return the episodes of random steps: those of each step, and those of many at once."""
    each = []
    for _ in range(30):
        random_step(cage)
        each.append(cage.take_completed())
    for _ in range(30):
        random_step(cage)
    return each, cage.take_completed()

"""CageStatesContract: the tests of cages that can save the states of their environments."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from parllel.cages import Cage, SerialCage, TrajInfo
from parllel.testing.contracts.cage_calls import (
    DiaryInfo,
    assert_same,
    idle,
    random_step,
    reset,
    step,
)
from parllel.testing.contracts.cage_results_contract import CageResultsContract, any_number
from parllel.testing.toy_envs import Clock, Echo, Walk
from parllel.tree import ArrayDict


class CageStatesContract(CageResultsContract):
    """The promises of a cage that goes on from a saved state. Subclass it beside `CageContract`."""

    @any_number
    def test_a_cage_goes_on_from_a_state_with_the_same_bits(self, n_envs: int) -> None:
        make_traj_info = functools.partial(TrajInfo, discount=0.5)
        with (
            self.make_cage(Walk, None, make_traj_info, n_envs=n_envs, seed=1) as cage,
            self.make_cage(Walk, None, make_traj_info, n_envs=n_envs, seed=2) as other,
            SerialCage(Walk, None, make_traj_info, n_envs=n_envs, seed=3) as serial,
        ):
            cage.check_state()
            reset(cage)
            go_on(cage, 7)
            cage.random_step_async()  # not waited for
            states = cage.get_state()
            cage.take_completed()
            reset(other)  # the others were never reset, or are in the midst of another episode
            go_on(other, 5)
            expected = go_on(cage)
            assert len(expected[1]) > 3
            for each in (other, cage, serial):
                each.set_state(states)
                results, episodes = go_on(each)
                assert_same(results, expected[0])
                assert episodes == expected[1]

    def test_a_state_goes_from_a_serial_cage_to_any(self) -> None:
        with SerialCage(Walk, n_envs=2, seed=1) as serial:
            reset(serial)
            go_on(serial, 7)
            states = serial.get_state()
            expected = go_on(serial)
        with self.make_cage(Walk, n_envs=2, seed=2) as cage:
            cage.set_state(states)
            results, episodes = go_on(cage)
        assert_same(results, expected[0])
        assert episodes == expected[1]

    def test_states_of_two_cages_are_those_of_one(self) -> None:
        with self.make_cage(Walk, n_envs=3, seed=1) as cage:
            reset(cage)
            go_on(cage, 7)
            states = cage.get_state()
            observation, *_ = step(cage, idle(3))
        found = []
        for own in (states[:1], states[1:]):
            with self.make_cage(Walk, n_envs=len(own), seed=2) as cage:
                cage.set_state(own)
                found.append(np.reshape(step(cage, idle(len(own)))[0], (len(own), 3)))
        np.testing.assert_array_equal(np.concatenate(found), observation)

    def test_a_summary_of_a_class_of_its_own_goes_on(self) -> None:
        with (
            self.make_cage(Clock, None, DiaryInfo) as cage,
            pytest.raises(TypeError, match=r"Clock can't save its state, expected methods get_st"),
        ):
            cage.check_state()
        with self.make_cage(WalkWithStep, None, DiaryInfo, seed=1) as cage:
            reset(cage)
            go_on(cage, 9)
            states = cage.get_state()
            cage.take_completed()
            _, expected = go_on(cage)
            cage.set_state(states)
            _, episodes = go_on(cage)
            assert episodes == expected
            assert any(len(episode.entries) > 1 for episode in episodes)

    def test_states_and_cages_must_fit(self) -> None:
        with self.make_cage(Walk, n_envs=2, seed=1) as cage:
            with pytest.raises(RuntimeError, match="get_state before reset"):
                cage.get_state()
            reset(cage)
            states = cage.get_state()
            with pytest.raises(ValueError, match="state: got 1 environments, expected 2"):
                cage.set_state(states[:1])
            states[1]["env"]["wrappers"] = [("TimeLimit", {})]
            with pytest.raises(
                ValueError, match=r"got the wrappers \[\], expected \['TimeLimit'\]"
            ):
                cage.set_state(states)
            with pytest.raises(RuntimeError, match="step before reset"):
                step(cage, idle(2))
            reset(cage)
            step(cage, idle(2))

    def test_an_environment_without_a_state_is_refused(self) -> None:
        kwargs = {"space": spaces.Discrete(3)}
        with self.make_cage(Echo, kwargs, n_envs=2, seed=1) as cage:
            reset(cage)
            with pytest.raises(TypeError, match="Echo can't save its state"):
                cage.get_state()
            step(cage, idle(2))


class WalkWithStep(Walk):
    """A `Walk` whose info has a `step`, which `DiaryInfo` notes."""

    def step(self, action: int) -> Any:
        """Move."""
        *result, info = super().step(action)
        return (*result, {**info, "step": info["luck"]})


def go_on(cage: Cage, n_steps: int = 40) -> tuple[ArrayDict, list[Any]]:
    """Return the results of random steps, and the episodes that ended."""
    steps = [random_step(cage)[:5] for _ in range(n_steps)]
    names = ("action", "observation", "reward", "terminated", "truncated")
    columns = map(np.array, zip(*steps, strict=True))
    return ArrayDict(zip(names, columns, strict=True)), cage.take_completed()

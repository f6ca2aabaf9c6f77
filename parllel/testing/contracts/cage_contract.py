"""CageContract: the tests that every cage must pass. They need pytest."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from gymnasium import spaces

from parllel.cages import SerialCage, TrajInfo
from parllel.testing.contracts.cage_calls import (
    DiaryInfo,
    assert_rows,
    assert_same,
    floats,
    idle,
    random_step,
    reset,
    rollout,
    step,
)
from parllel.testing.contracts.cage_refusals_contract import CageRefusalsContract
from parllel.testing.contracts.cage_results_contract import any_number
from parllel.testing.toy_envs import Clock, Echo, Ledger, Walk
from parllel.tree import dict_map


class CageContract(CageRefusalsContract):
    """The promises of a cage about single calls, seeds, episodes, mistakes and its end.

    To test a cage, subclass it in a test module, under a name that begins with `Test`, and give
    it `make_cage`. The environments it uses are those of `parllel.testing.toy_envs`.
    """

    makes_envs: ClassVar[bool] = True
    """Whether the cage makes single environments. Where it is given a vector of them, that alone
    knows what to do if there is none, or if one can't be made."""

    # Seeds

    def test_the_same_seed_gives_the_same_bits_and_another_seed_others(self) -> None:
        rollouts = []
        for seed in (1, 1, 2):
            with self.make_cage(Walk, n_envs=3, seed=seed) as cage:
                rollouts.append(rollout([cage], storage=self.storage))
        assert_same(rollouts[1], rollouts[0])
        assert len(rollouts[0]["final_obs"]) > 3
        for name in ("observation", "action", "reward"):
            assert (rollouts[2][name] != rollouts[0][name]).any(), name

    def test_environments_of_one_seed_differ(self) -> None:
        with self.make_cage(Walk, n_envs=4, seed=1) as cage:
            samples = rollout([cage], storage=self.storage)
        for name in ("observation", "action"):
            assert len({leaf.tobytes() for leaf in samples[name].swapaxes(0, 1)}) == 4, name

    def test_only_the_first_reset_seeds(self) -> None:
        with self.make_cage(Walk, n_envs=2, seed=1) as cage:
            assert (reset(cage)[0] != reset(cage)[0]).all()

    @pytest.mark.parametrize("n_envs", [1, 3])
    def test_a_new_seed_gives_the_bits_of_a_new_cage(self, n_envs: int) -> None:
        with self.make_cage(Walk, n_envs=n_envs, seed=2) as cage:
            expected = rollout([cage], storage=self.storage)
        with self.make_cage(Walk, n_envs=n_envs, seed=1) as cage:
            rollout([cage], storage=self.storage)
            cage.step_async(idle(n_envs))  # not waited for
            cage.reseed(2)
            cage.take_completed()
            with pytest.raises(RuntimeError, match="step before reset"):
                step(cage, idle(n_envs))
            assert_same(rollout([cage], storage=self.storage), expected)

    def test_a_new_seed_must_fit(self) -> None:
        with self.make_cage(Walk, n_envs=2, seed=1) as cage:
            with pytest.raises(ValueError, match=r"got 3 SeedSequences, expected 2 = n_envs"):
                cage.reseed(np.random.SeedSequence(0).spawn(3))
            with pytest.raises(TypeError, match="seed"):
                cage.reseed("0")

    @pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (3, 1), (1, 3)])
    def test_grouping_changes_no_bit(self, sizes: tuple[int, ...]) -> None:
        with self.make_cage(Walk, n_envs=4, seed=np.random.SeedSequence(5).spawn(4)) as cage:
            together = rollout([cage], storage=self.storage)
        seeds = np.random.SeedSequence(5).spawn(4)
        with ExitStack() as stack:
            cages = []
            for size in sizes:
                own, seeds = seeds[:size], seeds[size:]
                cages.append(stack.enter_context(self.make_cage(Walk, n_envs=size, seed=own)))
            assert_same(rollout(cages, storage=self.storage), together)

    def test_one_seed_is_a_child_for_each_environment(self) -> None:
        with self.make_cage(Walk, n_envs=2, seed=9) as cage:
            expected = rollout([cage], storage=self.storage)
        children = np.random.SeedSequence(9).spawn(2)
        with self.make_cage(Walk, n_envs=2, seed=children) as cage:
            assert_same(rollout([cage], storage=self.storage), expected)

    @any_number
    def test_results_are_those_of_a_serial_cage(self, n_envs: int) -> None:
        with self.make_cage(Walk, n_envs=n_envs, seed=7) as cage:
            samples = rollout([cage], storage=self.storage)
        with SerialCage(Walk, n_envs=n_envs, seed=7) as serial:
            assert_same(samples, rollout([serial]))

    # Random steps after a reset

    def test_a_reset_may_be_followed_by_random_steps(self) -> None:
        with self.make_cage(Clock, {"length": 10**9}, n_envs=8, seed=3) as cage:
            observation, _ = reset(cage, max_random_steps=6)
            first = observation[:, 1].astype(int)
            assert set(first.tolist()) <= set(range(7))
            assert len(set(first.tolist())) > 1
            observation, *_ = step(cage, idle(8))
            np.testing.assert_array_equal(observation[:, 1], first + 1)
            observation, _ = reset(cage)
            np.testing.assert_array_equal(observation[:, 1], np.zeros(8))

    @any_number
    def test_episodes_that_end_in_random_steps_are_not_reported(self, n_envs: int) -> None:
        with self.make_cage(Clock, {"length": 2}, n_envs=n_envs, seed=3) as cage:
            observation, _ = reset(cage, max_random_steps=9)
            assert set(np.atleast_2d(observation)[:, 1].tolist()) <= {0, 1}
            assert cage.take_completed() == []
            assert dict(cage.final_obs) == {}
            places = {"out_obs": np.empty_like(observation)}
            reset(cage, max_random_steps=9, **places)
            assert set(np.atleast_2d(places["out_obs"])[:, 1].tolist()) <= {0, 1}

    def test_the_number_of_random_steps_is_not_negative(self) -> None:
        with (
            self.make_cage(Clock) as cage,
            pytest.raises(ValueError, match="max_random_steps: got -1, expected 0 or more"),
        ):
            cage.reset_async(max_random_steps=-1)

    # Ends of episodes

    @any_number
    @pytest.mark.parametrize("end", ["terminated", "truncated", "both"])
    @pytest.mark.parametrize("length", [1, 3])
    @pytest.mark.parametrize("reuses_buffer", [False, True])
    def test_a_step_that_ends_an_episode_resets(
        self, length: int, end: str, reuses_buffer: bool, n_envs: int
    ) -> None:
        kwargs = {"length": length, "end": end, "reuses_buffer": reuses_buffer}
        with self.make_cage(Clock, kwargs, n_envs=n_envs) as cage:
            reset(cage)
            for count in range(1, 3 * length + 1):
                observation, reward, terminated, truncated, _ = step(cage, idle(n_envs))
                n_ended, number = divmod(count, length)
                is_end = number == 0
                assert_rows(observation, floats(n_ended, number), n_envs)
                assert_rows(reward, length if is_end else number, n_envs)
                assert_rows(terminated, is_end and end != "truncated", n_envs)
                assert_rows(truncated, is_end and end != "terminated", n_envs)
                assert sorted(cage.final_obs) == (list(range(n_envs)) if is_end else [])
                assert list(cage.invalid) == []
                for final_obs in cage.final_obs.values():
                    assert_rows(final_obs, floats(n_ended - 1, length), 1)

    def test_a_final_observation_is_kept_only_for_the_step_that_gave_it(self) -> None:
        with self.make_cage(Clock, {"length": 2}) as cage:
            reset(cage)
            for expected in ([], [0], [], [0]):
                step(cage, idle(1))
                assert list(cage.final_obs) == expected
            reset(cage)
            assert dict(cage.final_obs) == {}

    @any_number
    def test_a_final_observation_is_a_tree_where_observations_are(self, n_envs: int) -> None:
        space = spaces.Dict({"inner": spaces.Tuple((spaces.Discrete(9), spaces.Discrete(5)))})
        kwargs = {"space": space, "length": 1}
        with self.make_cage(Echo, kwargs, n_envs=n_envs, seed=3) as cage:
            reset(cage)
            action, *_ = random_step(cage)
            rows = dict_map(np.reshape, action, (n_envs,))
            for number in range(n_envs):
                assert_same(cage.final_obs[number], dict_map(np.asarray, rows[number]))

    # Episodes

    @any_number
    def test_episodes_are_summed_up_in_the_order_of_their_ends(self, n_envs: int) -> None:
        make_traj_info = functools.partial(TrajInfo, discount=0.5)
        with self.make_cage(Clock, {"length": 3}, make_traj_info, n_envs=n_envs) as cage:
            reset(cage)
            assert cage.take_completed() == []
            for _ in range(7):
                step(cage, idle(n_envs))
            completed = cage.take_completed()
            assert cage.take_completed() == []
        assert len(completed) == 2 * n_envs
        for traj in completed:
            assert (traj.length, traj.episode_return) == (3, 1 + 2 + 3)
            assert traj.discounted_return == 1 + 0.5 * 2 + 0.25 * 3

    def test_episodes_that_never_took_a_step_or_were_given_up_are_not_reported(self) -> None:
        with self.make_cage(Clock, {"length": 3}, n_envs=2) as cage:
            for n_steps in (0, 0, 2, 3):  # the last ones are whole
                reset(cage)
                for _ in range(n_steps):
                    step(cage, idle(2))
            assert [traj.length for traj in cage.take_completed()] == [3, 3]
            reset(cage)
            assert cage.take_completed() == []

    def test_a_trajectory_is_told_what_the_environment_returned(self) -> None:
        kwargs = {"length": 2, "end": "both", "reuses_buffer": True}
        with self.make_cage(Clock, kwargs, DiaryInfo) as cage:
            reset(cage)
            for action in (1, 0, 1, 0):
                step(cage, np.int64(action))
            completed = cage.take_completed()
        assert [traj.entries for traj in completed if isinstance(traj, DiaryInfo)] == [
            [
                ([episode, 1], 1, 1, False, False, 1),
                ([episode, 2], 0, 2, True, True, 2),
            ]
            for episode in (0, 1)
        ]

    # Mistakes, and the end

    def test_a_step_before_the_first_reset_is_an_error(self) -> None:
        with (
            self.make_cage(Clock) as cage,
            pytest.raises(RuntimeError, match="reset"),
        ):
            step(cage, idle(1))

    @pytest.mark.parametrize("n_actions", [2, 4])
    def test_another_number_of_actions_is_an_error(self, n_actions: int) -> None:
        with self.make_cage(Clock, n_envs=3) as cage:
            reset(cage)
            with pytest.raises(ValueError, match=f"action: got {n_actions} rows, expected 3"):
                step(cage, idle(n_actions))

    def test_there_must_be_an_environment(self) -> None:
        expected = ValueError if self.makes_envs else Exception
        with pytest.raises(expected, match="n_envs: got 0" if self.makes_envs else None):
            self.make_cage(Clock, n_envs=0)

    def test_the_number_of_seeds_must_fit(self) -> None:
        with pytest.raises(ValueError, match=r"seed: got 2 .* expected 3"):
            self.make_cage(Clock, n_envs=3, seed=np.random.SeedSequence(0).spawn(2))

    def test_an_environment_that_cannot_be_made_closes_those_before(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="environment 3 can't be made"):
            self.make_cage(Ledger, {"folder": tmp_path, "fail_at": 3}, n_envs=4)
        if self.makes_envs:
            assert {path.name for path in tmp_path.iterdir()} == {
                f"{what}_{number}" for what in ("made", "closed") for number in (1, 2)
            }

    def test_a_space_that_cannot_be_stored_is_an_error(self, tmp_path: Path) -> None:
        space = spaces.Dict({"hand": spaces.Tuple((spaces.Discrete(2), spaces.Text(3)))})
        with pytest.raises(TypeError, match=r"^action\.hand\.1: got Text"):
            self.make_cage(Ledger, {"folder": tmp_path, "action_space": space}, n_envs=2)
        assert len(list(tmp_path.glob("closed_*"))) == 2

    def test_close_closes_each_environment_once(self, tmp_path: Path) -> None:
        cage = self.make_cage(Ledger, {"folder": tmp_path}, n_envs=2)
        assert not list(tmp_path.glob("closed_*"))
        cage.close()
        assert len(list(tmp_path.glob("closed_*"))) == 2
        cage.close()

    def test_leaving_a_with_block_closes(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ZeroDivisionError),
            self.make_cage(Ledger, {"folder": tmp_path}, n_envs=2),
        ):
            raise ZeroDivisionError
        assert len(list(tmp_path.glob("closed_*"))) == 2

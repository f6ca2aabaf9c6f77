"""CageAgentsContract: the tests of cages whose environments have several agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parllel.cages import Cage, SerialCage
from parllel.testing.contracts.cage_calls import Told, assert_same, idle, random_step, reset, step
from parllel.testing.contracts.cage_results_contract import CageResultsContract, any_number
from parllel.testing.contracts.relay_rows import NAMES, compare, play
from parllel.testing.toy_agents import Masked, Relay, Team
from parllel.testing.toy_envs import Clock
from parllel.tree import ArrayDict

N_STEPS = 14

any_form = pytest.mark.parametrize("differ", [False, True], ids=["axis", "dictionary"])


class CageAgentsContract(CageResultsContract):
    """The promises of a cage to several agents. Subclass it beside `CageContract`."""

    @any_form
    @any_number
    def test_agents_come_and_go_as_in_a_loop_by_hand(self, n_envs: int, differ: bool) -> None:
        kwargs = {"is_random": True, "differ": differ, "reuses_buffer": True}
        rows = play(kwargs, 3, n_envs, N_STEPS)
        assert sum(row.is_end for column in rows for row in column) > 1
        with self.make_cage(Relay, kwargs, n_envs=n_envs, seed=3) as cage:
            assert cage.agents is not None
            assert cage.agents.names == NAMES
            assert cage.agents.is_axis is not differ
            compare(cage, rows, self.storage)

    @any_form
    @any_number
    def test_what_agents_get_is_returned_in_their_form(self, n_envs: int, differ: bool) -> None:
        with self.make_cage(Relay, {"differ": differ}, n_envs=n_envs, seed=1) as cage:
            reset(cage)
            action, observation, *results, info = random_step(cage)
        single = (info if n_envs == 1 else info[-1]).items()
        assert dict(single) == {name: {"step": 1} for name in ("ada", "bob")}
        leading = () if n_envs == 1 else (n_envs,)
        for result in results:
            if differ:
                assert list(result) == list(NAMES)
                assert all(np.shape(result[name]) == leading for name in NAMES)
            else:
                assert result.shape == (*leading, 3)
        own = action["cyd"] if differ else action[..., 2]
        assert np.shape(own) == leading
        shown = observation["bob"] if differ else observation[..., 1, :]
        assert shown.shape == (*leading, 4 if differ else 3)

    @any_form
    def test_random_steps_are_those_of_a_serial_cage(self, differ: bool) -> None:
        kwargs = {"is_random": True, "differ": differ}
        found = []
        for make_cage in (self.make_cage, SerialCage):
            with make_cage(Relay, kwargs, n_envs=3, seed=5) as cage:
                first, _ = reset(cage, max_random_steps=6)
                steps = [random_step(cage) for _ in range(N_STEPS)]
                found.append((first, steps, cage.take_completed()))
        (first, steps, episodes), expected = found
        assert_same(first, expected[0])
        for results, others in zip(steps, expected[1], strict=True):
            for result, other in zip(results[:-1], others[:-1], strict=True):
                assert_same(result, other)
            assert results[-1] == others[-1]
        assert episodes == expected[2]
        assert [traj.returns for traj in episodes] == [traj.returns for traj in expected[2]]

    @any_form
    def test_a_summary_of_a_class_of_its_own_is_told_the_rewards_of_agents(
        self, differ: bool
    ) -> None:
        kwargs = {"differ": differ}
        with self.make_cage(Relay, kwargs, make_traj_info=Told, seed=1) as cage:
            reset(cage)
            for _ in range(6):
                random_step(cage)
            (traj,) = cage.take_completed()
        assert isinstance(traj, Told)
        rewards, flags = traj.rewards, traj.flags
        if differ:
            rewards = [list(reward.values()) for reward in rewards]
            flags = [list(flag.values()) for flag in flags]
        expected = list(traj.returns.values())
        np.testing.assert_allclose(np.sum(rewards, axis=0), expected)
        assert np.array(flags)[:, 0].tolist() == [False, True, *[False] * 4]

    @any_form
    def test_random_actions_are_those_that_each_agent_may_take(self, differ: bool) -> None:
        with self.make_cage(Masked, {"differ": differ}, n_envs=2, seed=1) as cage:
            for _ in range(12):  # the environment refuses all others
                random_step(cage)
            reset(cage, max_random_steps=9)

    @any_form
    def test_agents_go_on_from_a_state(self, differ: bool) -> None:
        kwargs = {"is_random": True, "differ": differ}
        with (
            self.make_cage(Relay, kwargs, n_envs=2, seed=1) as cage,
            self.make_cage(Relay, kwargs, n_envs=2, seed=2) as other,
            SerialCage(Relay, kwargs, n_envs=2, seed=3) as serial,
        ):
            cage.check_state()
            reset(cage)
            _go_on(cage, 8)
            states = cage.get_state()
            expected = _go_on(cage)
            for each in (other, cage, serial):
                each.set_state(states)
                results, episodes, returns = _go_on(each)
                assert_same(results, expected[0])
                assert (episodes, returns) == expected[1:]

    def test_masked_agents_go_on_from_a_state(self) -> None:
        with self.make_cage(Masked, {"differ": True}, n_envs=2, seed=1) as cage:
            reset(cage)
            random_step(cage)
            states = cage.get_state()
            for _ in range(3):
                cage.set_state(states)
                random_step(cage)  # drawn by the masks that were saved

    def test_agents_whose_environment_has_no_state_are_refused(self) -> None:
        with (
            self.make_cage(Masked, {"saves": False}) as cage,
            pytest.raises(TypeError, match="Masked can't save its state"),
        ):
            cage.check_state()

    @any_number
    @pytest.mark.parametrize("is_axis", [False, True])
    @pytest.mark.parametrize("end", ["terminated", "truncated"])
    def test_a_team_has_a_reward_for_each_and_one_flag(
        self, end: str, is_axis: bool, n_envs: int
    ) -> None:
        kwargs = {"is_axis": is_axis, "length": 2, "end": end}
        with self.make_cage(Team, kwargs, n_envs=n_envs) as cage:
            assert cage.agents is not None
            assert cage.agents.names == ("left", "right")
            reset(cage)
            for t in range(1, 5):
                action = np.zeros((2,) if n_envs == 1 else (n_envs, 2), np.int64)
                _, reward, terminated, truncated, _ = step(cage, action)
                number = 1 if t % 2 else 2
                for agent, expected in enumerate((number, -2 * number)):
                    own = reward[..., agent] if is_axis else list(reward.values())[agent]
                    np.testing.assert_array_equal(own, np.full((n_envs,), expected).squeeze())
                is_end = t % 2 == 0
                for flag, name in ((terminated, "terminated"), (truncated, "truncated")):
                    assert np.shape(flag) == (() if n_envs == 1 else (n_envs,))
                    assert np.all(np.equal(flag, is_end and name == end))
                assert len(cage.final_obs) == (n_envs if is_end else 0)
            episodes = cage.take_completed()
        assert [traj.returns for traj in episodes] == [{"left": 3.0, "right": -6.0}] * 2 * n_envs
        assert {traj.episode_return for traj in episodes} == {-1.5}

    def test_only_agents_that_come_and_go_have_valid(self) -> None:
        for make_env, action in ((Clock, idle(1)), (Team, np.zeros(2, np.int64))):
            with self.make_cage(make_env) as cage:
                reset(cage)
                with pytest.raises(ValueError, match="no agents that come and go"):
                    cage.prepare_step(action, out_valid=np.zeros((), np.bool_))


def _go_on(cage: Cage, n_steps: int = 20) -> tuple[ArrayDict, list[Any], list[Any]]:
    """Return the results of random steps, the episodes that ended, and their agents' returns."""
    cage.take_completed()
    steps = [random_step(cage)[:5] for _ in range(n_steps)]
    results = ArrayDict({str(t): ArrayDict(_named(each)) for t, each in enumerate(steps)})
    episodes = cage.take_completed()
    return results, episodes, [traj.returns for traj in episodes]


def _named(results: Any) -> dict[str, Any]:
    names = ("action", "observation", "reward", "terminated", "truncated")
    return dict(zip(names, results, strict=True))

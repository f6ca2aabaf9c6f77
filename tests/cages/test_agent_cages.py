"""Cages of several agents: ParallelAgents against loops by hand, and environments that lie."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from agent_envs import LIES, Liar, make_one_liar
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from optional import needs
from parllel.cages import MisfitError, ParallelAgents, ProcessCage, SerialCage, WorkerError
from parllel.testing.contracts.cage_calls import random_step, reset, step
from parllel.testing.contracts.relay_rows import NAMES, compare, lives, play
from parllel.testing.toy_agents import Life, Masked, Relay
from profiles import fewer_examples


@fewer_examples(2)
@given(found=lives(), differ=st.booleans(), form=st.sampled_from([None, "dictionary"]))
def test_agents_may_come_and_go_at_any_time(
    found: dict[str, Life], differ: bool, form: Any
) -> None:
    kwargs = {"lives": found, "differ": differ}
    rows = play(kwargs, 0, n_envs=2, n_steps=9)
    with SerialCage(lambda: ParallelAgents(Relay(**kwargs), form), n_envs=2, seed=0) as cage:
        assert cage.agents is not None
        assert cage.agents.is_axis is (form is None and not differ)
        compare(cage, rows)


@pytest.mark.parametrize("differ", [False, True], ids=["axis", "dictionary"])
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_an_error_that_names_environment_agent_and_seed(lie: str, differ: bool) -> None:
    if lie == "an observation of another shape" and differ:
        return  # it is the shape that bob declares
    with SerialCage(make_one_liar(lie, differ), n_envs=2, seed=3) as cage:
        with pytest.raises(MisfitError, match=LIES[lie].match) as caught:
            _play(cage, LIES[lie].step)
        assert caught.value.environment == 1
        assert caught.value.seed is not None
        assert "the seed of its first reset is" in str(caught.value)


@pytest.mark.parametrize("on_worker_error", ["raise", "restart"])
def test_a_lie_in_a_worker_is_an_error_however_workers_fail(on_worker_error: Any) -> None:
    lie = "a reward of the dead"
    with (
        ProcessCage(Liar, {"lie": lie}, n_envs=2, seed=3, on_worker_error=on_worker_error) as cage,
        pytest.raises(WorkerError, match=r"reward\.ada: environment 0") as caught,
    ):
        _play(cage, LIES[lie].step)
    assert isinstance(caught.value.__cause__, MisfitError)


def _play(cage: Any, n_steps: int) -> None:
    reset(cage)
    for _ in range(n_steps):
        random_step(cage)


# What an environment is, and what it is not


def test_turns_and_missing_agents_are_refused() -> None:
    class OfTurns(Relay):
        agent_selection = "ada"

    class Unnamed(Relay):
        def __init__(self) -> None:
            super().__init__()
            del self.possible_agents

    with pytest.raises(TypeError, match=r"act one after the other, .*aec_to_parallel makes one"):
        SerialCage(OfTurns)
    with pytest.raises(TypeError, match="a Unnamed, expected a PettingZoo parallel environment"):
        SerialCage(Unnamed)


def test_agents_need_different_names() -> None:
    class Twins(Masked):
        possible_agents: Any = (0, "0")

    with pytest.raises(ValueError, match=r"agents: got \['0', '0'\], expected 2 different"):
        SerialCage(Twins)


def test_one_parallel_environment_is_not_two() -> None:
    env = Relay()
    with pytest.raises(ValueError, match="the same Relay twice"):
        SerialCage(lambda: env, n_envs=2)


def test_environments_of_a_cage_have_the_same_agents() -> None:
    forms = iter(["axis", "dictionary"])
    with pytest.raises(ValueError, match="environment 1 has the agents"):
        SerialCage(lambda: ParallelAgents(Relay(), next(forms)), n_envs=2)


def test_an_axis_needs_equal_spaces() -> None:
    with pytest.raises(TypeError, match=r'form: got "axis" for agents .* use "dictionary"'):
        ParallelAgents(Relay(differ=True), "axis")
    with pytest.raises(ValueError, match="form: got 'list'"):
        ParallelAgents(Relay(), "list")  # type: ignore[arg-type]


# Masks


@pytest.mark.parametrize("differ", [False, True], ids=["axis", "dictionary"])
def test_masks_of_infos_go_to_observations(differ: bool) -> None:
    def make_env() -> ParallelAgents:
        return ParallelAgents(Masked(differ, in_info=True), info_mask="action_mask")

    with SerialCage(make_env, seed=1) as cage:
        observation, info = reset(cage)
        assert info == {}
        mask = observation["1"] if differ else observation
        expected = [0, 1, 0] if differ else [[1, 0, 0], [0, 1, 0]]
        assert mask["action_mask"].tolist() == expected
        for _ in range(12):
            random_step(cage)


def test_a_mask_that_is_missing_names_its_agent() -> None:
    with (
        SerialCage(lambda: ParallelAgents(Masked(), info_mask="legal"), seed=1) as cage,
        pytest.raises(MisfitError, match=r"observation\.0: .* an info without 'legal'"),
    ):
        reset(cage)


@pytest.mark.parametrize("differ", [False, True], ids=["axis", "dictionary"])
def test_masks_of_empty_slots_allow_all(differ: bool) -> None:
    with SerialCage(Masked, {"differ": differ}, seed=1) as cage:
        for t in range(1, 4):
            observation = random_step(cage)[1]
            mask = (observation["0"] if differ else observation)["action_mask"]
            first = mask if differ else mask[0]
            assert first.tolist() == ([0, 1, 0] if t == 1 else [1, 1, 1])


# Actions


def test_actions_of_empty_slots_go_nowhere() -> None:
    with SerialCage(Relay, seed=1) as cage:
        reset(cage)
        step(cage, np.array([0, 0, 99]))  # cyd is not there; the environment checks the others
        with pytest.raises(ValueError, match="99"):
            step(cage, np.array([0, 0, 99]))


def test_each_agent_gets_an_action_of_its_own_kind() -> None:
    kinds: list[Any] = []

    class Nested(Relay):
        def action_space(self, agent: str) -> Any:
            return spaces.Dict(
                gear=spaces.Discrete(3, start=1), push=spaces.Tuple((spaces.Box(-1, 1, (2,)),))
            )

        def step(self, actions: Any) -> Any:
            kinds.append(actions)
            nothing = dict.fromkeys(self.agents, 0)
            return {name: np.zeros(3) for name in self.agents}, nothing, nothing, nothing, {}

    with SerialCage(Nested, seed=1) as cage:
        action, *_ = random_step(cage)
    space = Nested().action_space("")
    assert list(kinds[0]) == ["ada", "bob"]
    for slot, own in enumerate(kinds[0].values()):
        assert space.contains(own)
        assert own["gear"] == action["gear"][slot]
        np.testing.assert_array_equal(own["push"][0], action["push"]["0"][slot])


# States


def test_final_graphs_of_agents_who_have_ended_are_those_of_a_saved_state() -> None:
    class Graphs(Relay):
        def observation_space(self, agent: str) -> Any:
            if not hasattr(self, "_buffers"):  # it is being made, by the size of what it shows
                return super().observation_space(agent)
            graph = spaces.Graph(spaces.Box(-np.inf, np.inf, (1,)), None)
            return spaces.Dict(map=spaces.Tuple((graph,)))

        def _observe(self, name: str, action: Any) -> Any:
            nodes = np.full((1 + self._step, 1), self._step, np.float32)
            return {"map": (spaces.GraphInstance(nodes, None, np.zeros((0, 2), np.int64)),)}

    envs = [ParallelAgents(Graphs(), "dictionary") for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    for _ in range(3):
        envs[0].step(dict.fromkeys(NAMES, 0))
    state = envs[0].get_state()
    # A file has tuples and dictionaries, and no other types.
    state["last"] = {
        slot: {"map": (tuple(shown["map"][0]),)} for slot, shown in state["last"].items()
    }
    assert list(state["last"]) == [0]  # ada
    envs[1].set_state(state)
    for env in envs:
        for _ in range(3):
            shown = env.step(dict.fromkeys(NAMES, 0))[0]
        for name, last in zip(NAMES, (2, 4, 6), strict=True):
            graph = shown[name]["map"][0]
            assert isinstance(graph, spaces.GraphInstance)
            np.testing.assert_array_equal(graph.nodes, np.full((1 + last, 1), last))


# Wrappers


class Doubled(gym.Wrapper[Any, Any, Any, Any]):
    """Show twice what agents are shown."""

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        return 2 * observation, info

    def step(self, action: Any) -> Any:
        observation, *others = self.env.step(action)
        return 2 * observation, *others


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
def test_wrappers_are_looked_through(make_cage: Any) -> None:
    with (
        make_cage(lambda: Doubled(ParallelAgents(Relay())), seed=1) as cage,
        SerialCage(Relay, seed=1) as plain,
    ):
        assert cage.agents == plain.agents
        reset(cage)
        reset(plain)
        states, plain_states = cage.get_state(), plain.get_state()
        for _ in range(7):
            found, expected = random_step(cage), random_step(plain)
            np.testing.assert_array_equal(found[1], 2 * expected[1])
            np.testing.assert_array_equal(found[2], expected[2])
        cage.set_state(states)
        plain.set_state(plain_states)
        assert random_step(cage)[2].tolist() == random_step(plain)[2].tolist()


def test_a_wrapper_with_one_flag_is_refused() -> None:
    with SerialCage(lambda: gym.wrappers.TimeLimit(ParallelAgents(Relay()), 2), seed=1) as cage:
        reset(cage)
        random_step(cage)
        message = r"truncated: environment 0 of this cage gave bool True, expected numbers of shape"
        with pytest.raises(MisfitError, match=message):
            random_step(cage)


@needs("pettingzoo")
def test_wrappers_of_pettingzoo_are_parallel_environments() -> None:
    from pettingzoo.utils import BaseParallelWrapper

    def make_env() -> Any:
        return BaseParallelWrapper(Relay(is_random=True))

    rows = play({"is_random": True}, 2, n_envs=2, n_steps=9)
    with SerialCage(make_env, n_envs=2, seed=2) as cage:
        cage.check_state()
        compare(cage, rows)

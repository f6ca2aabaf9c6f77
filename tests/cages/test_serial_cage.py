"""SerialCage against the contract of all cages, and what is said of it and TrajInfo alone."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from torch.nn import Linear

from parllel import Array, ArrayDict, dict_map
from parllel.cages import Cage, ProcessCage, Seed, SerialCage, TrajInfo
from parllel.testing.contracts.cage_agents_contract import CageAgentsContract
from parllel.testing.contracts.cage_calls import random_step, reset, rollout, step
from parllel.testing.contracts.cage_contract import CageContract
from parllel.testing.contracts.cage_states_contract import CageStatesContract
from parllel.testing.toy_envs import Clock, Walk
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.distributions import Categorical, DistParams
from parllel.tree.fitting import MisfitError


class TestSerialCage(CageContract, CageStatesContract, CageAgentsContract):
    def make_cage(
        self,
        make_env: Callable[..., gym.Env],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> Cage:
        return SerialCage(make_env, env_kwargs, make_traj_info, n_envs=n_envs, seed=seed)


class TestSerialCageInSharedMemory(TestSerialCage):
    storage = "shared"


# What the notebook's sampling cell shows


@pytest.fixture
def plain_reset(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Seed CartPole's resets with 0, 1, 2, ... in their order; return the method as it was."""
    original = CartPoleEnv.reset
    seeds = itertools.count()

    def seeded_reset(self: CartPoleEnv, *, seed: int | None = None, **options: Any) -> Any:
        return original(self, seed=next(seeds), **options)

    monkeypatch.setattr(CartPoleEnv, "reset", seeded_reset)
    return original


def run_the_descriptions_cell() -> dict[str, Any]:
    """Run the cell as it is written, and return its names. An indent is all that was added."""
    batch_T, batch_B = 10, 5

    # create environments
    envs = [SerialCage(CartPoleEnv, {}, TrajInfo) for _ in range(batch_B)]

    # get example action and observation from environment step
    envs[0].random_step_async()
    action, observation, _, _, _, _ = envs[0].await_step()

    # allocate Arrays to store samples based on examples
    action = dict_map(Array.from_numpy, action, batch_shape=(batch_T, batch_B))
    observation = dict_map(Array.from_numpy, observation, batch_shape=(batch_T, batch_B), padding=1)
    reward = Array(batch_shape=(batch_T, batch_B), dtype=np.float32)
    terminated = Array(batch_shape=(batch_T, batch_B), dtype=bool)
    truncated = Array(batch_shape=(batch_T, batch_B), dtype=bool)
    env_info = ArrayDict()

    # define a model with the correct output for a Categorical distribution
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pi = Linear(4, 2)
            self.value = Linear(4, 1)

        def forward(self, observation):
            probs = self.pi(observation).softmax(dim=-1)
            value = self.value(observation).squeeze(-1)
            return ModelOutputs(dist_params=DistParams(probs=probs), value=value)

    # instantiate an agent, which requires a model and a distribution
    agent = CategoricalPgAgent(
        model=Model(),
        distribution=Categorical(dim=2),
        example_obs=observation[0],
    )

    # reset all environments and write reset observation to 0th position
    for b, env in enumerate(envs):
        env.reset_async(
            out_obs=observation[0, b],
            out_info=env_info[0, b],
        )

    for t in range(batch_T):
        # get new actions from agent
        action[t], _ = agent.step(observation[t])

        # rollout actions and get new observations, etc.
        for b, env in enumerate(envs):
            env.step_async(
                action[t, b],
                out_obs=observation[t + 1, b],
                out_reward=reward[t, b],
                out_terminated=terminated[t, b],
                out_truncated=truncated[t, b],
                out_info=env_info[t, b],
            )

            for b, env in enumerate(envs):  # noqa: B007
                env.await_step()

    # print results
    print(
        ArrayDict(
            {
                "action": action,
                "observation": observation,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
            }
        )
    )
    return locals()


def test_the_descriptions_cell_stores_what_its_actions_cause(
    plain_reset: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    names = run_the_descriptions_cell()
    action, observation = names["action"].to_ndarray(), names["observation"]
    assert (action.shape, action.dtype) == ((10, 5), np.int32)
    assert set(np.unique(action)) == {0, 1}
    assert (observation.shape, observation.dtype) == ((10, 5, 4), np.float32)
    n_compared = 0
    for b in range(5):
        env = CartPoleEnv()
        shown, _ = plain_reset(env, seed=1 + b)  # the random step in the beginning took seed 0
        for t in range(10):
            np.testing.assert_array_equal(observation[t, b], shown)
            shown, reward, terminated, _, _ = env.step(int(action[t, b]))
            assert names["reward"][t, b].item() == reward == 1
            assert names["terminated"][t, b].item() == terminated
            n_compared += 1
            if terminated:  # what follows is an episode with another seed
                break
    assert n_compared > 40
    assert not names["truncated"].to_ndarray().any()
    printed = capsys.readouterr().out
    for name in ("action", "observation", "reward", "terminated", "truncated"):
        assert f"'{name}': Array(" in printed


def test_the_next_row_of_the_last_step_is_in_the_padding(plain_reset: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    observation = run_the_descriptions_cell()["observation"]
    after = observation[observation.last + 1].to_ndarray().copy()
    assert after.any(axis=1).all()
    observation.rotate()
    np.testing.assert_array_equal(observation[0], after)


# What is stored is what the environments returned


class Logged(gym.Wrapper):
    """Keep every call and what it returned."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.log: list[tuple[Any, Any]] = []

    def reset(self, **options: Any) -> Any:
        self.log.append((None, super().reset(**options)))
        return self.log[-1][1]

    def step(self, action: Any) -> Any:
        self.log.append((action, super().step(action)))
        return self.log[-1][1]


def expected_rollout(log: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return the columns of one environment, as its own log has them."""
    columns: dict[str, Any] = {"observation": [log[0][1][0]], "final_obs": {}}
    for name in ("action", "reward", "terminated", "truncated", "luck"):
        columns[name] = []
    for number, (action, result) in enumerate(log):
        if action is None:
            continue
        shown, reward, terminated, truncated, info = result
        if terminated or truncated:
            columns["final_obs"][len(columns["reward"])] = shown
            (_, (shown, _)) = log[number + 1]
        columns["observation"].append(shown)
        for name, value in (
            ("action", action),
            ("reward", reward),
            ("terminated", terminated),
            ("truncated", truncated),
            ("luck", info["luck"]),
        ):
            columns[name].append(value)
    return columns


def test_what_is_stored_is_what_the_environments_returned() -> None:
    envs: list[Logged] = []

    def make_env() -> gym.Env:
        envs.append(Logged(Walk()))
        return envs[-1]

    with SerialCage(make_env, n_envs=3, seed=4) as cage:
        samples = rollout([cage], 60)
    columns = [expected_rollout(env.log) for env in envs]
    samples["luck"] = samples["info"]["luck"]
    for name in ("observation", "action", "reward", "terminated", "truncated", "luck"):
        expected = np.stack([column[name] for column in columns], axis=1)
        np.testing.assert_array_equal(samples[name], expected, err_msg=name)
    finals = {
        f"{t},{b}": obs
        for b, column in enumerate(columns)
        for t, obs in column["final_obs"].items()
    }
    assert len(finals) > 20
    assert finals.keys() == samples["final_obs"].keys()
    for name, obs in finals.items():
        np.testing.assert_array_equal(samples["final_obs"][name], obs)


def test_a_time_limit_of_gymnasium_is_a_truncation() -> None:
    kwargs = {"id": "CartPole-v1", "max_episode_steps": 4}
    with SerialCage(gym.make, kwargs, n_envs=2, seed=0) as cage:
        reset(cage)
        flags = [step(cage, np.array([0, 1]))[2:4] for _ in range(4)]
        assert len(cage.take_completed()) == 2
    assert [list(truncated) for _, truncated in flags] == [[False, False]] * 3 + [[True, True]]
    assert not any(terminated.any() for terminated, _ in flags)


def test_without_a_seed_results_differ() -> None:
    observations = []
    for _ in range(2):
        with SerialCage(Walk) as cage:
            observations.append(reset(cage)[0])
    assert (observations[0] != observations[1]).all()


def test_a_cage_leaves_the_global_generators_alone() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    with SerialCage(Walk, n_envs=2, seed=1) as cage:
        random_step(cage)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_an_error_in_an_environment_comes_through_and_the_cage_can_be_closed() -> None:
    closed: list[gym.Env] = []

    class Faulty(Clock):
        def step(self, action: Any) -> Any:
            if action == 1:
                raise ZeroDivisionError("in the environment")
            return super().step(action)

        def close(self) -> None:
            closed.append(self)

    with SerialCage(Faulty, n_envs=2) as cage:
        reset(cage)
        step(cage, np.array([0, 0]))
        with pytest.raises(ZeroDivisionError, match="in the environment"):
            step(cage, np.array([0, 1]))
    assert len(closed) == 2


def test_a_flag_that_is_an_array_is_told_with_its_environment() -> None:
    class Flagged(Clock):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            flag = np.zeros(2, bool) if action == 1 else terminated
            return observation, reward, flag, truncated, info

    with SerialCage(Flagged, n_envs=3, seed=0) as cage:
        reset(cage)
        step(cage, np.array([0, 0, 0]))
        with pytest.raises(MisfitError, match=r"terminated: environment 1 of .* gave \(2,\), bool"):
            step(cage, np.array([0, 1, 0]))


@pytest.mark.parametrize("make_cage", [SerialCage, ProcessCage])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_outputs_have_a_row_for_each_environment(make_cage: Any, n_rows: int) -> None:
    message = rf"output of reward: got {n_rows} rows, expected 2, one for each environment"
    with make_cage(Clock, n_envs=2) as cage:
        reset(cage)
        with pytest.raises(ValueError, match=message):
            cage.step_async(np.zeros(2, int), out_reward=np.zeros(n_rows, np.float32))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_envs": "2"}, TypeError, "n_envs: got '2', expected an integer"),
        ({"n_envs": None}, TypeError, "n_envs: got None, expected an integer"),
        ({"n_envs": 1.0}, TypeError, "n_envs: got 1.0, expected an integer"),
        ({"seed": -1}, ValueError, "seed: got -1, expected 0 or more"),
    ],
)
def test_numbers_of_a_cage_are_named_where_they_are_none(
    options: Any, error: type[Exception], message: str
) -> None:
    for kind in (SerialCage, ProcessCage):
        with pytest.raises(error, match=message):
            kind(Clock, **options)


class Unclosable(Clock):
    """An environment that can't be closed where its number is among some."""

    numbers: ClassVar[list[int]] = []  # of those that were closed, or should have been

    def __init__(self, counter: Iterator[int], bad: Sequence[int], n_made: int = 9) -> None:
        self.number = next(counter)
        if self.number == n_made:
            raise LookupError("no more")
        super().__init__()
        self.bad = bad

    def close(self) -> None:
        self.numbers.append(self.number)
        if self.number in self.bad:
            raise ZeroDivisionError(f"in the end of {self.number}")


def test_an_environment_that_cannot_be_closed_leaves_no_other_open() -> None:
    Unclosable.numbers.clear()
    cage = SerialCage(Unclosable, {"counter": itertools.count(), "bad": [1]}, n_envs=3, seed=0)
    with pytest.raises(ZeroDivisionError, match="in the end of 1") as caught:
        cage.close()
    assert sorted(Unclosable.numbers) == [0, 1, 2]
    assert any("environment 1 of this cage" in note for note in caught.value.__notes__)
    cage.close()
    assert len(Unclosable.numbers) == 3


def test_why_an_environment_cannot_be_made_is_told_though_others_cannot_be_closed() -> None:
    Unclosable.numbers.clear()
    kwargs = {"counter": itertools.count(), "bad": [0, 1], "n_made": 2}
    with pytest.raises(LookupError, match="no more") as caught:
        SerialCage(Unclosable, kwargs, n_envs=3)
    assert sorted(Unclosable.numbers) == [0, 1]
    assert any("in the end of" in note for note in caught.value.__notes__)


# TrajInfo


def tell(traj: TrajInfo, *rewards: Any) -> TrajInfo:
    for reward in rewards:
        traj.step(np.zeros(2), 0, reward, False, False, {})
    return traj


def test_returns_are_sums_of_rewards() -> None:
    traj = tell(TrajInfo(discount=0.9), 1.0, 2.0, -4.0)
    assert traj.length == 3
    assert traj.episode_return == -1
    assert traj.discounted_return == pytest.approx(1 + 0.9 * 2 - 0.81 * 4, rel=1e-15)
    assert traj.metrics() == {
        "episode_length": 3,
        "episode_return": -1,
        "episode_discounted_return": traj.discounted_return,
    }


def test_without_a_discount_both_returns_are_the_same() -> None:
    traj = tell(TrajInfo(), 0.5, 0.25)
    assert traj.episode_return == traj.discounted_return == 0.75
    assert traj.metrics() == {"episode_length": 2, "episode_return": 0.75}


def test_an_episode_begins_at_zero() -> None:
    assert attrgetter("length", "episode_return", "discounted_return")(TrajInfo()) == (0, 0, 0)


@pytest.mark.parametrize("kind", [np.float32, np.float16, lambda x: np.array(x, np.float32)])
def test_returns_are_summed_in_double_precision(kind: Callable[[float], Any]) -> None:
    reward = kind(0.1)
    traj = tell(TrajInfo(), *[reward] * 3000)
    # 3000 additions, each rounded by at most half a unit in the last place of at most 300.
    bound = 3000 * np.spacing(300.0)
    assert abs(traj.episode_return - 3000 * float(reward)) <= bound
    assert abs(traj.discounted_return - 3000 * float(reward)) <= bound


def test_summaries_are_plain_numbers() -> None:
    numbers = tell(TrajInfo(), np.float32(1), np.array(2.0)).metrics()
    assert all(type(number) is float for number in numbers.values())


class InfoInPlace(Clock):
    """An environment whose info and reward are always the same objects, also after a reset."""

    def __init__(self) -> None:
        super().__init__(length=2)
        self._same_info = {"at": np.zeros(()), "deep": {"at": np.zeros(2)}}
        self._reward = np.zeros(())

    def _update(self, number: float) -> None:
        self._same_info["at"][...] = self._same_info["deep"]["at"][...] = self._reward[...] = number

    def reset(self, **kwargs: Any) -> Any:
        observation, _ = super().reset(**kwargs)
        self._update(-1)
        return observation, self._same_info

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, _ = super().step(action)
        self._update(observation[-1])
        return observation, self._reward, terminated, truncated, self._same_info


@pytest.mark.parametrize("n_envs", [1, 2])
def test_info_and_reward_of_a_step_that_ends_an_episode_are_not_those_of_the_reset(
    n_envs: int,
) -> None:
    kept = []
    with SerialCage(InfoInPlace, n_envs=n_envs) as cage:
        cage.reset_async()
        cage.await_step()
        for _ in range(3):
            cage.step_async(np.zeros(n_envs, int) if n_envs > 1 else 0)
            _, reward, _, _, info = cage.await_step()
            kept.append((np.ravel(reward)[0], info if n_envs == 1 else info[0]))
    assert [float(reward) for reward, _ in kept] == [1, 2, 1]
    assert [float(info["at"]) for _, info in kept] == [1, 2, 1]
    assert [info["deep"]["at"].tolist() for _, info in kept] == [[1, 1], [2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("output", "error"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), TypeError),
        ([0.0, 0.0], TypeError),
        (Array((4,), np.float32)[[0, 1]], ValueError),
        (np.broadcast_to(np.float32(0), 2), ValueError),
    ],
)
def test_a_place_that_is_not_written_in_place_is_an_error(
    output: Any, error: type[Exception]
) -> None:
    with SerialCage(Clock) as cage:
        cage.reset_async()
        with pytest.raises(error, match=r"out: got .* expected"):
            cage.step_async(0, out_obs=output)


def test_wrong_actions_and_seeds_are_errors_that_say_what_is_expected() -> None:
    with SerialCage(Clock, n_envs=2) as cage:
        cage.reset_async()
        with pytest.raises(TypeError, match="action: got None, expected a row"):
            cage.step_async(None)
        with pytest.raises(ValueError, match="action: got 1 rows, expected 2"):
            cage.step_async(0)
    for seed in (1.5, [1, 2], "1"):
        with pytest.raises(TypeError, match=r"seed: got .* expected an integer"):
            SerialCage(Clock, n_envs=2, seed=seed)


@pytest.mark.parametrize("command", ["reset_async", "random_step_async"])
def test_a_closed_cage_is_an_error(command: str) -> None:
    cage = SerialCage(Clock)
    cage.close()
    with pytest.raises(RuntimeError, match="the cage is closed"):
        getattr(cage, command)()


def test_rows_of_actions_may_be_a_tuple() -> None:
    with SerialCage(Clock, n_envs=2) as cage:
        cage.reset_async()
        cage.step_async((0, 0))
        _, reward, *_ = cage.await_step()
    assert reward.shape == (2,)


def test_random_steps_after_a_reset_are_from_none_to_the_most() -> None:
    with SerialCage(Clock, {"length": 10**9}, n_envs=64, seed=0) as cage:
        observation, _ = reset(cage, max_random_steps=3)
        assert set(observation[:, 1].tolist()) == {0, 1, 2, 3}

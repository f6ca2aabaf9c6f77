"""Samplers against loops that are written by hand in plain NumPy, step for step and bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from torch import nn

from parllel import Array, ArrayDict
from parllel.cages import Cage, SerialCage, spawn_seeds
from parllel.patterns import build_cages, build_eval_tree, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler, Sampler
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Clock, Echo, Walk
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.distributions import Categorical, DistParams

T = 8


class NumpyAgent:
    """Choose actions and values by arithmetic; remember every call."""

    def __init__(self, n_actions: int = 4) -> None:
        self._n_actions = n_actions
        self.deterministic: list[bool] = []
        self.valued: list[Any] = []

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self.deterministic.append(deterministic)
        first = np.array(observation)[:, 0]
        action = np.floor(np.abs(first) * 64).astype(np.int64) % self._n_actions
        return action, {"value": first * 2, "extra": {"square": first * first}}

    def value(self, observation: Any) -> Any:
        self.valued.append(np.array(observation))
        return self.valued[-1][:, 0] * 2


class OwnSeed(gym.Wrapper):
    """Take one's own seed at the first reset, and none later."""

    def __init__(self, env: gym.Env, seed: int) -> None:
        super().__init__(env)
        self._seeds = [seed]

    def reset(self, **_: Any) -> Any:
        return super().reset(seed=self._seeds.pop() if self._seeds else None)


def numbered(make_env: Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    """Return a factory whose environments are seeded with 100, 101, ... in their order."""
    seeds = iter(range(100, 200))
    return lambda: OwnSeed(make_env(), next(seeds))


def play_by_hand(envs: Sequence[gym.Env], agent: Any, n_batches: int) -> list[dict[str, Any]]:
    """Collect batches as a reader of the documents would: one loop, lists and NumPy.

    `completed` holds (length, return) of the episodes that ended in the batch.
    """
    sums = [[0, 0.0] for _ in envs]
    shown = np.array([env.reset()[0] for env in envs], np.float32)
    batches = []
    for _ in range(n_batches):
        rows: dict[str, Any] = {"observation": [shown], "final_value": {}, "completed": []}
        for t in range(T):
            action, agent_info = agent.step(shown)
            action = np.asarray(action)
            results = [env.step(act) for env, act in zip(envs, action, strict=True)]
            shown, finals = np.empty_like(shown), {}
            for b, (obs, reward, terminated, truncated, _) in enumerate(results):
                sums[b] = [sums[b][0] + 1, sums[b][1] + reward]
                if terminated or truncated:
                    rows["completed"].append(tuple(sums[b]))
                    sums[b] = [0, 0.0]
                    if not terminated:
                        finals[b] = obs
                    obs = envs[b].reset()[0]
                shown[b] = obs
            if finals:
                values = agent.value(np.array(list(finals.values()), np.float32))
                for b, value in zip(finals, np.asarray(values), strict=True):
                    rows["final_value"][t, b] = value
            rows["observation"].append(shown)
            for name, column in (
                ("action", action),
                ("reward", [result[1] for result in results]),
                ("terminated", [result[2] for result in results]),
                ("truncated", [result[3] for result in results]),
                ("value", np.asarray(agent_info["value"])),
            ):
                rows.setdefault(name, []).append(column)
        rows["value"].append(np.asarray(agent.value(shown)))
        batches.append(rows)
    return batches


def assert_batch(samples: ArrayDict, rows: dict[str, Any], rtol: float = 0) -> None:
    """Compare the window of a sample tree with what the loop collected."""
    observation, value = samples["observation"], samples["agent_info"]["value"]
    np.testing.assert_array_equal(observation[: T + 1], np.float32(rows["observation"]))
    for name in ("action", "reward", "terminated", "truncated"):
        got = samples[name].to_ndarray()
        np.testing.assert_array_equal(got, np.array(rows[name], got.dtype), err_msg=name)
    np.testing.assert_allclose(value[: T + 1], np.float32(rows["value"]), rtol=rtol)
    for place, final_value in rows["final_value"].items():
        np.testing.assert_allclose(samples["final_value"][place], final_value, rtol=rtol)


def summaries(completed: Sequence[Any]) -> list[tuple[int, float]]:
    return [(traj.length, traj.episode_return) for traj in completed]


def make_samples(make_env: Callable[[], gym.Env], n_envs: int, agent: Any, **window: Any) -> Any:
    tree = build_sample_tree(build_example(make_env), agent, batch_shape=(T, n_envs))
    return tree.new_array(**window) if window else tree


# Against the loop


@pytest.mark.parametrize("window", [{}, {"full_size": 3 * T}, {"padding": 3, "full_size": 2 * T}])
def test_batches_are_those_of_a_hand_written_loop(window: dict[str, int]) -> None:
    envs = [OwnSeed(Walk(), 100 + b) for b in range(4)]
    expected = play_by_hand(envs, NumpyAgent(), 5)
    agent = NumpyAgent()
    samples = make_samples(Walk, 4, agent, **window)
    with SerialCage(numbered(Walk), n_envs=4) as cage:
        sampler = BasicSampler([cage], agent, samples)
        for rows in expected:
            batch, completed = sampler.collect_batch()
            assert batch is samples
            assert_batch(batch, rows)
            assert summaries(completed) == rows["completed"]
    assert sum(len(rows["completed"]) for rows in expected) > 20
    assert sum(len(rows["final_value"]) for rows in expected) > 10


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
        self.pi, self.critic = nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, observation: torch.Tensor) -> ModelOutputs:
        features = self.body(observation)
        dist_params = DistParams(logits=self.pi(features))
        return ModelOutputs(dist_params=dist_params, value=self.critic(features).squeeze(-1))


def make_cartpole() -> gym.Env:
    return gym.make("CartPole-v1", max_episode_steps=12, disable_env_checker=True)


def test_batches_of_cartpole_are_those_of_a_hand_written_loop() -> None:
    torch.manual_seed(0)
    model, n_envs, example = ActorCritic(), 5, build_example(make_cartpole)

    def make_agent() -> CategoricalPgAgent:
        generator = torch.Generator().manual_seed(7)
        return CategoricalPgAgent(model, Categorical(2), example["observation"], generator)

    envs = [OwnSeed(make_cartpole(), 100 + b) for b in range(n_envs)]
    expected = play_by_hand(envs, make_agent(), 4)
    samples = make_samples(make_cartpole, n_envs, make_agent())
    with SerialCage(numbered(make_cartpole), n_envs=n_envs) as cage:
        sampler = BasicSampler([cage], make_agent(), samples)
        for rows in expected:
            batch, completed = sampler.collect_batch()
            # Matrix products may round differently for other memory alignments: some units in
            # the last place of values that are sums of 16 products of about 1.
            assert_batch(batch, rows, rtol=1e-5)
            assert summaries(completed) == rows["completed"]
    assert sum(len(rows["final_value"]) for rows in expected) >= n_envs


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (3, 1), (1, 3)])
def test_environments_split_over_cages_give_the_same_bits(sizes: tuple[int, ...]) -> None:
    def collect(sizes: tuple[int, ...]) -> tuple[list[ArrayDict], list[Any]]:
        seeds, agent, batches, completed = np.random.SeedSequence(3).spawn(4), NumpyAgent(), [], []
        cages: list[Cage] = []
        for size in sizes:
            own, seeds = seeds[:size], seeds[size:]
            cages.append(SerialCage(Walk, n_envs=size, seed=own))
        sampler = BasicSampler(cages, agent, make_samples(Walk, 4, agent))
        for _ in range(4):
            batch, ended = sampler.collect_batch()
            batches.append(batch.apply(np.array))
            completed += summaries(ended)
        for cage in cages:
            cage.close()
        return batches, sorted(completed)

    together, completed_together = collect((4,))
    split, completed_split = collect(sizes)
    for batch, other in zip(together, split, strict=True):
        expected = leaves(other)
        for path, leaf in leaves(batch).items():
            if path != "final_value":  # only the rows of truncated episodes are written there
                np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
        is_used = batch["truncated"] & ~batch["terminated"]
        np.testing.assert_array_equal(
            batch["final_value"][is_used], expected["final_value"][is_used]
        )
    assert completed_split == completed_together
    assert len(completed_together) > 10


def test_observation_t_is_what_action_t_was_chosen_for() -> None:
    agent = NumpyAgent()
    samples = make_samples(Walk, 3, agent)
    with SerialCage(Walk, n_envs=3, seed=0) as cage:
        sampler = BasicSampler([cage], agent, samples)
        for _ in range(3):
            sampler.collect_batch()
            flat = samples["observation"].to_ndarray().reshape(T * 3, 3)
            action, agent_info = NumpyAgent().step(flat)
            np.testing.assert_array_equal(samples["action"].to_ndarray().ravel(), action)
            stored = samples["agent_info"].to_ndarray()
            np.testing.assert_array_equal(stored["value"].ravel(), agent_info["value"])
            square = agent_info["extra"]["square"]
            np.testing.assert_array_equal(stored["extra"]["square"].ravel(), square)


def test_env_info_is_stored_for_each_step() -> None:
    agent = NumpyAgent()
    samples = make_samples(Clock, 2, agent)
    with SerialCage(Clock, {"length": 5}, n_envs=2) as cage:
        BasicSampler([cage], agent, samples).collect_batch()
    info = samples["env_info"].to_ndarray()
    steps = np.array([1, 2, 3, 4, 5, 1, 2, 3])[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(info["step"], steps)
    np.testing.assert_array_equal(info["nested"]["double"], 2 * steps)
    np.testing.assert_array_equal(info["odd"], np.where(steps % 2, steps, 0))


# Windows


def test_the_padding_carries_on_from_batch_to_batch() -> None:
    agent = NumpyAgent()
    samples = make_samples(Walk, 2, agent)
    with SerialCage(Walk, n_envs=2, seed=0) as cage:
        sampler = BasicSampler([cage], agent, samples)
        sampler.collect_batch()
        for _ in range(3):
            last_two = samples["observation"][T - 1 : T + 1].to_ndarray().copy()
            sampler.collect_batch()
            np.testing.assert_array_equal(samples["observation"][-1], last_two[0])
            np.testing.assert_array_equal(samples["observation"][0], last_two[1])


def test_a_ring_keeps_the_last_batches() -> None:
    agent = NumpyAgent()
    samples = make_samples(Walk, 2, agent, full_size=3 * T)
    with SerialCage(Walk, n_envs=2, seed=0) as cage:
        sampler = BasicSampler([cage], agent, samples)
        batches = [sampler.collect_batch()[0].apply(np.array) for _ in range(5)]
    for name in ("observation", "action", "reward", "terminated", "truncated"):
        expected = np.concatenate([batches[number][name] for number in (3, 4, 2)])
        if name == "observation":  # each is stored once: that after batch 4 begins the next one
            expected[2 * T] = samples[name][T]
        np.testing.assert_array_equal(samples[name].full, expected, err_msg=name)


def test_leaves_may_have_rings_of_different_sizes() -> None:
    agent = NumpyAgent()
    plain = make_samples(Walk, 2, agent)
    mixed = ArrayDict({**plain.new_array()})
    mixed["observation"] = plain["observation"].new_array(full_size=2 * T)
    batches = []
    for samples in (plain, mixed):
        with SerialCage(Walk, n_envs=2, seed=0) as cage:
            sampler = BasicSampler([cage], agent, samples)
            batches.append([sampler.collect_batch()[0].apply(np.array) for _ in range(3)])
    for batch, other in zip(*batches, strict=True):
        for name in ("observation", "action", "reward"):
            np.testing.assert_array_equal(other[name], batch[name], err_msg=name)


def test_reset_begins_anew_at_the_beginning_of_the_ring() -> None:
    agent = NumpyAgent(n_actions=2)
    samples = make_samples(Clock, 2, agent, full_size=3 * T)
    with SerialCage(Clock, {"length": 100}, n_envs=2) as cage:
        sampler = BasicSampler([cage], agent, samples)
        sampler.collect_batch()
        sampler.reset()
        _, completed = sampler.collect_batch()
    assert completed == []
    steps = samples["observation"].full.to_ndarray()[:T, 0]
    np.testing.assert_array_equal(steps, [[1, step] for step in range(T)])  # of episode 1
    np.testing.assert_array_equal(samples["observation"][0], samples["observation"].full[0])


def test_a_second_sampler_may_use_cages_that_were_used_before() -> None:
    agent = NumpyAgent()
    with SerialCage(Clock, {"length": 3}, n_envs=1) as cage:
        for episode in (0, 3):  # each sampler plays 0, 1, and a part of 2
            samples = make_samples(Clock, 1, agent)
            _, completed = BasicSampler([cage], agent, samples).collect_batch()
            assert [traj.length for traj in completed] == [3, 3]
            np.testing.assert_array_equal(samples["observation"][0, 0], [episode, 0])


def test_cages_that_another_sampler_has_reset_are_refused() -> None:
    agent = NumpyAgent()
    with SerialCage(Clock, {"length": 4}, n_envs=1) as cage:
        sampler = BasicSampler([cage], agent, make_samples(Clock, 1, agent))
        sampler.collect_batch()
        EvalSampler([cage], agent, n_episodes=1, storage="local").collect_episodes()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"another sampler has reset .* cages \[0\]"):
                sampler.collect_batch()
        sampler.reset()
        batch, _ = sampler.collect_batch()
        assert batch["observation"][0, 0, 1].to_ndarray() == 0  # an episode begins


class FailsAt(NumpyAgent):
    """Fail in one of the calls of `step`."""

    def __init__(self, n_calls: int, error: BaseException) -> None:
        super().__init__(n_actions=2)
        self._n_left, self._error = n_calls, error

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self._n_left -= 1
        if self._n_left == 0:
            raise self._error
        return super().step(observation, deterministic=deterministic)


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
@pytest.mark.parametrize("make_sampler", [BasicSampler, AlternatingSampler])
def test_after_a_batch_that_was_cut_short_environments_begin_anew(
    make_sampler: type[BasicSampler], error: BaseException
) -> None:
    samples = make_samples(Clock, 2, NumpyAgent(n_actions=2), full_size=3 * T)
    n_calls = (T + 3) * (2 if make_sampler is AlternatingSampler else 1)
    agent = FailsAt(n_calls, error)
    cages = [SerialCage(Clock, {"length": 100}) for _ in range(2)]
    sampler = make_sampler(cages, agent, samples)
    sampler.collect_batch()
    with pytest.raises(type(error)):
        sampler.collect_batch()
    for first in (0, T):  # it is done once
        _, completed = sampler.collect_batch()
        assert completed == []
        shown = samples["observation"][: T + 1].to_ndarray()[:, 1]
        np.testing.assert_array_equal(shown, [[1, first + step] for step in range(T + 1)])


def test_after_a_reset_that_failed_environments_are_reset_again() -> None:
    agent = NumpyAgent(n_actions=2)
    samples = make_samples(Clock, 1, agent)
    with SerialCage(FailsInReset) as cage:
        sampler = BasicSampler([cage], agent, samples)
        sampler.collect_batch()
        with pytest.raises(OSError, match="no camera"):
            sampler.reset()
        sampler.collect_batch()
        np.testing.assert_array_equal(samples["observation"][0, 0], [2, 0])


class FailsInReset(Clock):
    """Fail in the second reset."""

    def __init__(self) -> None:
        super().__init__(length=100)
        self._n_resets = 0

    def reset(self, **kwargs: Any) -> Any:
        self._n_resets += 1
        result = super().reset(**kwargs)
        if self._n_resets == 2:
            raise OSError("no camera")
        return result


# Values for learning


@pytest.mark.parametrize(
    ("end", "n_calls"), [("terminated", 0), ("both", 0), ("truncated", 2 * 4 // 2)]
)
def test_value_is_called_once_a_batch_and_once_for_each_step_with_a_truncation(
    end: str, n_calls: int
) -> None:
    agent = NumpyAgent(n_actions=2)
    samples = make_samples(Clock, 3, agent)
    with SerialCage(Clock, {"length": 4, "end": end}, n_envs=3) as cage:
        sampler = BasicSampler([cage], agent, samples)
        agent.valued.clear()
        for _ in range(2):
            sampler.collect_batch()
            np.testing.assert_array_equal(agent.valued[-1], samples["observation"][T])
    assert len(agent.valued) == 2 + n_calls
    assert all(rows.shape == (3, 2) for rows in agent.valued)


def test_value_is_asked_for_the_true_final_observations_only() -> None:
    agent = NumpyAgent()
    samples = make_samples(Walk, 6, agent)
    expected = play_by_hand([OwnSeed(Walk(), 100 + b) for b in range(6)], hand := NumpyAgent(), 6)
    with SerialCage(numbered(Walk), n_envs=6) as cage:
        sampler = BasicSampler([cage], agent, samples)
        agent.valued.clear()
        n_calls = 0
        for rows in expected:
            batch, _ = sampler.collect_batch()
            is_cut = batch["truncated"].to_ndarray() & ~batch["terminated"].to_ndarray()
            n_calls += 1 + int(is_cut.any(axis=1).sum())
            assert set(zip(*is_cut.nonzero(), strict=True)) == rows["final_value"].keys()
    assert len(agent.valued) == n_calls
    assert any(1 < len(rows) < 6 for rows in agent.valued)
    for rows, by_hand in zip(agent.valued, hand.valued, strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, by_hand)


def test_without_final_value_no_value_is_asked_for() -> None:
    agent = NumpyAgent(n_actions=2)
    samples = make_samples(Clock, 2, agent)
    del samples["final_value"]
    with SerialCage(Clock, {"length": 2, "end": "truncated"}, n_envs=2) as cage:
        BasicSampler([cage], agent, samples).collect_batch()
    assert agent.valued == []


def test_an_agent_may_keep_nothing_for_learning() -> None:
    class Idle:
        def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
            return np.ones(len(observation), np.int64), {}

    agent: Any = Idle()
    samples = make_samples(Clock, 2, agent)
    assert "final_value" not in samples
    with SerialCage(Clock, {"length": 3}, n_envs=2) as cage:
        batch, completed = BasicSampler([cage], agent, samples).collect_batch()
    assert batch["action"].to_ndarray().all()
    assert len(completed) == 2 * (T // 3)


SPACE = spaces.Dict(
    {
        "move": spaces.Tuple((spaces.Discrete(5), spaces.Box(-1, 1, (2,)))),
        "talk": spaces.MultiBinary(3),
    }
)


class TreeAgent:
    """Draw actions of `SPACE`, and value an observation by what it contains."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n, rng = len(observation["talk"]), self._rng
        move = {"0": rng.integers(0, 5, n), "1": rng.uniform(-1, 1, (n, 2)).astype(np.float32)}
        return {"move": move, "talk": rng.integers(0, 2, (n, 3))}, {
            "value": self.value(observation)
        }

    def value(self, observation: Any) -> Any:
        return np.asarray(observation["move"]["0"]) + np.asarray(observation["talk"]).sum(axis=1)


@pytest.mark.parametrize("sizes", [(4,), (1, 3)])
def test_trees_of_observations_and_actions_come_through(sizes: tuple[int, ...]) -> None:
    def make_env() -> gym.Env:
        return TimeLimit(Echo(SPACE), 3)

    agent = TreeAgent()
    samples = build_sample_tree(build_example(make_env), agent, batch_shape=(T, 4))
    cages = [SerialCage(make_env, n_envs=size, seed=size) for size in sizes]
    BasicSampler(cages, agent, samples).collect_batch()
    action, observation = samples["action"].to_ndarray(), samples["observation"]
    assert action["move"]["1"].dtype == np.float32
    goes_on = ~samples["truncated"].to_ndarray()
    assert (~goes_on).sum() == 2 * 4
    shown = observation[1 : T + 1].to_ndarray()
    for path, leaf in leaves(action).items():
        np.testing.assert_array_equal(leaf[goes_on], leaves(shown)[path][goes_on])
    # The environment shows the action: its last observation is what the last action says.
    np.testing.assert_array_equal(
        samples["final_value"].to_ndarray()[~goes_on],
        (action["move"]["0"] + action["talk"].sum(axis=2))[~goes_on],
    )
    for cage in cages:
        cage.close()


# Taking turns


class Order:
    """Cages that note when they are started and awaited, together with an agent that acts."""

    def __init__(self, n_cages: int) -> None:
        self.notes: list[str] = []
        self.cages = [self._spy(number) for number in range(n_cages)]

    def _spy(self, number: int) -> SerialCage:
        notes = self.notes

        class Spy(SerialCage):
            def start_command(self, command: Any) -> None:
                notes.append(f"start {number}" if command.kind == "step" else "reset")
                super().start_command(command)

            def await_step(self) -> Any:
                notes.append(f"await {number}")
                return super().await_step()

        return Spy(Clock, n_envs=1)

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self.notes.append("act")
        return np.zeros(len(observation), np.int64), {}


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (2, 1, 1), (1, 1, 1, 2, 3)])
@pytest.mark.parametrize("window", [{}, {"full_size": 3 * T}])
def test_taking_turns_gives_the_batches_of_not_taking_turns(
    sizes: tuple[int, ...], window: dict[str, int]
) -> None:
    collected = []
    for kind in (BasicSampler, AlternatingSampler):
        cages = [SerialCage(Walk, n_envs=size, seed=number) for number, size in enumerate(sizes)]
        agent = NumpyAgent()
        sampler = kind(cages, agent, make_samples(Walk, sum(sizes), agent, **window))
        batches = []
        for _ in range(4):
            samples, completed = sampler.collect_batch()
            batches.append(
                (
                    samples.apply(np.array).apply(np.ndarray.tolist),
                    samples["observation"][T].to_ndarray().tolist(),
                    sorted(summaries(completed)),
                )
            )
        collected.append([(leaves(tree), last, sums) for tree, last, sums in batches])
    assert collected[0] == collected[1]


def test_one_half_steps_while_the_agent_acts_for_the_other() -> None:
    order = Order(2)
    samples = make_samples(Clock, 2, NumpyAgent())
    del samples["agent_info"], samples["final_value"]
    sampler = AlternatingSampler(order.cages, order, samples.new_array(batch_shape=(2, 2)))
    sampler.collect_batch()
    order.notes.clear()
    sampler.collect_batch()
    assert order.notes == [
        "act", "start 0",
        "act", "start 1",
        "await 0", "act", "start 0",
        "await 1", "act", "start 1",
        "await 0",
        "await 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "middle"), [((1, 1), 1), ((1, 3), 1), ((3, 1), 3), ((2, 1, 1), 2), ((1, 1, 1, 5), 3)]
)
def test_the_halves_are_as_equal_as_the_cages_allow(sizes: tuple[int, ...], middle: int) -> None:
    agent, n_envs = NumpyAgent(), sum(sizes)
    cages = [SerialCage(Walk, n_envs=size) for size in sizes]
    sampler = AlternatingSampler(cages, agent, make_samples(Walk, n_envs, agent))
    columns = [group.columns for group in sampler._groups]
    assert columns == [range(middle), range(middle, n_envs)]


def test_one_cage_cannot_take_turns() -> None:
    agent = NumpyAgent()
    with pytest.raises(ValueError, match=r"cages: got 1, expected 2 or more, to take turns"):
        AlternatingSampler([SerialCage(Walk, n_envs=4)], agent, make_samples(Walk, 4, agent))


# Evaluation


def of_lengths(*lengths: int) -> Callable[[], gym.Env]:
    """Return a factory of clocks whose episodes have these lengths, one after the other."""
    left = iter(lengths)
    return lambda: Clock(next(left))


def make_eval_sampler(
    cages: Sequence[Cage], agent: Any, *, batch_T: int = 1, **kwargs: Any
) -> EvalSampler:
    n_envs = sum(cage.n_envs for cage in cages)
    tree = build_eval_tree(make_samples(Clock, 1, agent), n_envs=n_envs)
    return EvalSampler(cages, agent, tree.new_array(batch_shape=(batch_T, n_envs)), **kwargs)


@pytest.mark.parametrize("batch_T", [1, 4])
@pytest.mark.parametrize("sizes", [(3,), (1, 1, 1), (2, 1)])
def test_each_environment_plays_exactly_its_share(sizes: tuple[int, ...], batch_T: int) -> None:
    make_env = of_lengths(2, 5, 9)
    cages = [SerialCage(make_env, n_envs=size) for size in sizes]
    agent = NumpyAgent(n_actions=2)
    sampler = make_eval_sampler(cages, agent, batch_T=batch_T, n_episodes=6)
    for _ in range(2):
        agent.deterministic.clear()
        episodes = sampler.collect_episodes()
        # Taking the first six to end would give (2, 2, 5, 2, 2, 9): too many short ones.
        assert sorted(traj.length for traj in episodes) == [2, 2, 5, 5, 9, 9]
        assert len(agent.deterministic) == 2 * 9  # not a step more than the longest share takes
    for cage in cages:
        cage.close()


def test_an_evaluation_begins_with_new_episodes() -> None:
    agent = NumpyAgent(n_actions=2)
    with SerialCage(Clock, {"length": 7}) as cage:
        sampler = make_eval_sampler([cage], agent, n_episodes=1)
        reset_and_step(cage, 3)
        assert [traj.length for traj in sampler.collect_episodes()] == [7]
        assert sampler.samples["observation"][1, 0].to_ndarray()[1] == 0  # of the next episode
        assert [traj.length for traj in sampler.collect_episodes()] == [7]


def reset_and_step(cage: Cage, n_steps: int) -> None:
    cage.reset_async()
    cage.await_step()
    for _ in range(n_steps):
        cage.step_async(np.int64(0))
        cage.await_step()


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_agent_is_told_whether_to_be_deterministic(deterministic: bool) -> None:
    agent = NumpyAgent(n_actions=2)
    with SerialCage(Clock, {"length": 3}) as cage:
        sampler = make_eval_sampler([cage], agent, n_episodes=2, deterministic=deterministic)
        agent.deterministic.clear()
        sampler.collect_episodes()
    assert agent.deterministic == [deterministic] * 6


def test_training_is_not_deterministic_and_evaluation_is_by_default() -> None:
    agent = NumpyAgent(n_actions=2)
    with SerialCage(Clock, {"length": 3}) as cage:
        samples = make_samples(Clock, 1, agent)
        agent.deterministic.clear()
        BasicSampler([cage], agent, samples).collect_batch()
        assert agent.deterministic == [False] * T
        agent.deterministic.clear()
        sampler = EvalSampler([cage], agent, build_eval_tree(samples, n_envs=1), n_episodes=1)
        sampler.collect_episodes()
        assert agent.deterministic == [True] * 3


def test_after_max_steps_unfinished_episodes_are_given_up() -> None:
    agent = NumpyAgent(n_actions=2)
    with SerialCage(of_lengths(4, 100), n_envs=2) as cage:
        sampler = make_eval_sampler([cage], agent, n_episodes=4, max_steps=10)
        agent.deterministic.clear()
        assert [traj.length for traj in sampler.collect_episodes()] == [4, 4]
    assert len(agent.deterministic) == 10


def test_an_evaluation_asks_for_no_values_and_leaves_the_training_tree_alone() -> None:
    agent = NumpyAgent()
    samples = make_samples(Walk, 2, agent)
    with (
        SerialCage(Walk, n_envs=2, seed=0) as cage,
        SerialCage(Walk, n_envs=3, seed=1) as eval_cage,
    ):
        BasicSampler([cage], agent, samples).collect_batch()
        before = samples.apply(np.array)
        agent.valued.clear()
        tree = build_eval_tree(samples, n_envs=3)
        assert len(EvalSampler([eval_cage], agent, tree, n_episodes=3).collect_episodes()) == 3
    assert agent.valued == []
    for path, leaf in leaves(samples).items():
        np.testing.assert_array_equal(leaf, leaves(before)[path], err_msg=path)


def test_with_a_seed_each_evaluation_has_the_same_episodes_in_a_tree_of_its_own() -> None:
    agent = NumpyAgent(n_actions=2)
    returns: dict[int | None, list[list[float]]] = {}
    for seed in (None, 5):
        with SerialCage(Walk, n_envs=3, seed=1) as cage:
            sampler = EvalSampler([cage], agent, n_episodes=6, seed=seed, storage="local")
            both = [sampler.collect_episodes() for _ in range(2)]
            sampler.close()
            with pytest.raises(ValueError, match="the Array is closed"):
                sampler.samples["reward"].to_ndarray()
        returns[seed] = [[traj.episode_return for traj in episodes] for episodes in both]
    assert returns[None][0] != returns[None][1]
    assert returns[5][0] == returns[5][1]


def test_a_tree_of_the_caller_has_its_own_memory() -> None:
    agent = NumpyAgent(n_actions=2)
    with SerialCage(Walk, n_envs=3) as cage:
        tree = build_eval_tree(make_samples(Walk, 3, agent), n_envs=3)
        with pytest.raises(ValueError, match="storage: got 'local' beside samples"):
            EvalSampler([cage], agent, tree, n_episodes=3, storage="local")
        EvalSampler([cage], agent, tree, n_episodes=3).close()
        assert tree["reward"].to_ndarray().shape == (1, 3)


@pytest.mark.parametrize("sizes", [(3,), (2, 1)])
def test_a_new_seed_begins_a_batch_as_new_cages_do(sizes: tuple[int, ...]) -> None:
    agent, batches = NumpyAgent(n_actions=2), []
    for seed, n_batches in ((7, 0), (1, 2)):
        with ExitStack() as stack:
            seeds = spawn_seeds(seed, 3)
            cages = [
                stack.enter_context(SerialCage(Walk, n_envs=size, seed=seeds[first : first + size]))
                for first, size in zip((0, sizes[0]), sizes, strict=False)
            ]
            sampler = BasicSampler(cages, agent, make_samples(Walk, 3, agent))
            for _ in range(n_batches):
                sampler.collect_batch()
            sampler.reseed(7)
            batch, _ = sampler.collect_batch()
            batches.append(batch["observation"].to_ndarray().copy())
    np.testing.assert_array_equal(batches[1], batches[0])


# Mistakes are found at construction


@pytest.mark.parametrize(
    "name", ["observation", "action", "reward", "terminated", "truncated", "env_info"]
)
def test_a_missing_branch_is_an_error(name: str) -> None:
    samples = make_samples(Clock, 1, NumpyAgent())
    del samples[name]
    with SerialCage(Clock) as cage, pytest.raises(ValueError, match=rf"\['{name}'\] are missing"):
        BasicSampler([cage], NumpyAgent(), samples)


def test_another_number_of_environments_is_an_error() -> None:
    samples = make_samples(Clock, 3, NumpyAgent())
    with (
        SerialCage(Clock) as one,
        SerialCage(Clock, n_envs=3) as three,
        pytest.raises(ValueError, match="got B = 3, expected 4"),
    ):
        BasicSampler([one, three], NumpyAgent(), samples)


def test_observations_without_padding_are_an_error() -> None:
    samples = make_samples(Clock, 1, NumpyAgent())
    samples["observation"] = {"camera": {"left": Array((T, 1), np.float32)}}
    with (
        SerialCage(Clock) as cage,
        pytest.raises(ValueError, match=r"^observation\.camera\.left: got padding 0"),
    ):
        Sampler([cage], NumpyAgent(), samples)


@pytest.mark.parametrize("n_episodes", [0, -3, 2, 4])
def test_episodes_that_cannot_be_shared_are_an_error(n_episodes: int) -> None:
    (cage,) = build_cages(Clock, 3, n_workers=0)
    with cage, pytest.raises(ValueError, match=rf"n_episodes: got {n_episodes}, .* of 3,"):
        make_eval_sampler([cage], NumpyAgent(), n_episodes=n_episodes)


def test_an_evaluation_of_no_steps_is_an_error() -> None:
    with SerialCage(Clock) as cage, pytest.raises(ValueError, match="max_steps: got 0"):
        make_eval_sampler([cage], NumpyAgent(), n_episodes=1, max_steps=0)


@pytest.mark.parametrize("lack", ["branch", "padding"])
def test_a_final_value_without_a_padded_value_is_an_error(lack: str) -> None:
    samples = make_samples(Walk, 2, NumpyAgent())
    value = samples["agent_info"].pop("value")
    if lack == "padding":
        samples["agent_info"]["value"] = value.new_array(padding=0)
    with (
        SerialCage(Walk, n_envs=2) as cage,
        pytest.raises(ValueError, match=r"^agent_info\.value: got .* expected padding"),
    ):
        BasicSampler([cage], NumpyAgent(), samples)


def test_an_agent_may_be_told_when_it_acts() -> None:
    class ActingAgent(NumpyAgent):
        n_entered = 0
        is_acting = False

        @contextmanager
        def acting(self) -> Iterator[None]:
            self.n_entered, self.is_acting = self.n_entered + 1, True
            yield
            self.is_acting = False

        def step(self, observation: Any, *, deterministic: bool = False) -> Any:
            assert self.is_acting
            return super().step(observation, deterministic=deterministic)

        def value(self, observation: Any) -> Any:
            assert self.is_acting
            return super().value(observation)

    agent = ActingAgent()
    samples = make_samples(Walk, 2, NumpyAgent())
    with SerialCage(Walk, n_envs=2) as cage:
        sampler = BasicSampler([cage], agent, samples)
        for _ in range(3):
            sampler.collect_batch()
    assert (agent.n_entered, agent.is_acting) == (3, False)

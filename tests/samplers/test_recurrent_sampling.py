"""RecurrentSampler against a loop that carries the state of each environment by hand."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from parllel.cages import Cage, Command, SerialCage
from parllel.patterns import build_cages, build_eval_tree, build_example, build_sample_tree
from parllel.samplers import (
    AlternatingSampler,
    BasicSampler,
    EvalSampler,
    RecurrentActor,
    RecurrentAgent,
    RecurrentSampler,
)
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Clock, Walk
from parllel.tree.leaves import as_tensor
from schedules import each_schedule

T, B = 7, 3


class Summing:
    """Keep the sum of the first elements of what was seen in an episode, and a count of it."""

    def __init__(self) -> None:
        self.rnn_state: Any = None

    def begin(self, n_envs: int) -> None:
        self.rnn_state = {"sum": torch.zeros(n_envs), "count": torch.zeros(n_envs, 1)}

    def reset_state(self, columns: Sequence[int]) -> None:
        kept = torch.ones(len(self.rnn_state["sum"]))
        kept[list(columns)] = 0
        total, count = self.rnn_state["sum"] * kept, self.rnn_state["count"] * kept[:, None]
        self.rnn_state = {"sum": total, "count": count}

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        first, state = as_tensor(observation)[:, 0], self.rnn_state
        self.rnn_state = {"sum": state["sum"] + first, "count": state["count"] + 1}
        action = (self.rnn_state["sum"].abs() * 8).floor().long() % 4
        return action, {"value": self.rnn_state["sum"] * 2}

    def value(self, observation: Any, *, columns: Sequence[int] | None = None) -> Tensor:
        state = self.rnn_state["sum"] if columns is None else self.rnn_state["sum"][list(columns)]
        return state + as_tensor(observation)[:, 0]


def make_sampler(agent: Any, sizes: Sequence[int] = (B,), **window: Any) -> RecurrentSampler:
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, sum(sizes)), **window)
    return RecurrentSampler(make_cages(sizes), agent, samples)


def make_cages(sizes: Sequence[int]) -> list[Cage]:
    seeds = np.random.SeedSequence(0).spawn(sum(sizes))
    cages: list[Cage] = []
    for size in sizes:
        cages.append(SerialCage(Walk, n_envs=size, seed=[seeds.pop(0) for _ in range(size)]))
    return cages


def test_the_tree_has_what_a_recurrent_batch_needs() -> None:
    sampler = make_sampler(Summing())
    assert {path: leaf.shape for path, leaf in leaves(sampler.samples).items()} == {
        "observation": (T, B, 3),
        "action": (T, B),
        "reward": (T, B),
        "terminated": (T, B),
        "truncated": (T, B),
        "env_info.luck": (T, B),
        "agent_info.value": (T, B),
        "final_value": (T, B),
        "valid": (T, B),
        "initial_rnn_state.sum": (B,),
        "initial_rnn_state.count": (B, 1),
        "bootstrap_value": (B,),
    }
    assert sampler.samples["valid"].dtype == bool


@pytest.mark.parametrize("sizes", [(B,), (1, 2)])
def test_states_and_values_are_those_of_a_hand_written_loop(sizes: Sequence[int]) -> None:
    sampler = make_sampler(Summing(), sizes)
    total, count, n_ends = np.zeros(B, np.float32), np.zeros(B, np.float32), 0
    for _ in range(5):
        samples, _ = sampler.collect_batch()
        tree = {path: leaf.to_ndarray() for path, leaf in leaves(samples).items()}
        np.testing.assert_array_equal(tree["initial_rnn_state.sum"], total)
        np.testing.assert_array_equal(tree["initial_rnn_state.count"][:, 0], count)
        assert tree["valid"].all()
        for t in range(T):
            total, count = total + tree["observation"][t, :, 0], count + 1
            np.testing.assert_array_equal(tree["agent_info.value"][t], total * 2)
            action = np.floor(np.abs(total) * 8).astype(np.int64) % 4
            np.testing.assert_array_equal(tree["action"][t], action)
            done = tree["terminated"][t] | tree["truncated"][t]
            total, count = np.where(done, 0, total), np.where(done, 0, count)
            n_ends += int(done.sum())
        last = samples["observation"][T].to_ndarray()[:, 0]
        np.testing.assert_array_equal(tree["bootstrap_value"], total + last)
        after = samples["agent_info"]["value"][T].to_ndarray()
        np.testing.assert_array_equal(after, total + last)
    assert n_ends > 5


def test_a_final_observation_is_valued_with_the_state_of_its_episode() -> None:
    """A clock shows (episode, step), so the state is the episode's number for each step."""
    agent = Summing()
    example = build_example(Clock)
    samples = build_sample_tree(example, agent, batch_shape=(6, 1))
    cages = build_cages(Clock, 1, env_kwargs={"length": 3, "end": "truncated"})
    sampler = RecurrentSampler(cages, agent, samples)
    sampler.collect_batch()
    final_value = sampler.collect_batch()[0]["final_value"].to_ndarray()[:, 0]
    # Episodes 2 and 3: three observations each were seen, and the final one shows the number too.
    assert final_value[[2, 5]].tolist() == [2 * 3 + 2, 3 * 3 + 3]


@each_schedule
def test_on_the_device_batches_are_the_same(schedule: str, seed: int) -> None:
    def collect(storage: str) -> list[dict[str, Any]]:
        sampler = make_sampler(Summing(), full_size=2 * T, storage=storage)
        batches = []
        for _ in range(4):
            samples, _ = sampler.collect_batch()
            batches.append(
                {path: leaf.to_ndarray().tolist() for path, leaf in leaves(samples).items()}
            )
        return batches

    expected = collect("local")
    with simulated_cuda(schedule, seed):
        assert collect("device") == expected


class Doubtful(SerialCage):
    """Calls every third step of its first environment invalid."""

    n_steps = 0

    def start_command(self, command: Command) -> None:
        self.n_steps += command.kind == "step"
        super().start_command(command)

    @property
    def invalid(self) -> Sequence[int]:
        return (0,) if self.n_steps % 3 == 0 else ()


class Still:
    """An agent without a state: it always takes action 0."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return torch.zeros(len(observation), dtype=torch.long), {}


@pytest.mark.parametrize("kind", [BasicSampler, RecurrentSampler])
def test_rows_that_cages_call_invalid_are_marked(kind: Any) -> None:
    agent: Any = Summing() if kind is RecurrentSampler else Still()
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, B))
    sampler = kind([SerialCage(Walk, n_envs=1), Doubtful(Walk, n_envs=2)], agent, samples)
    sampler.collect_batch()
    for step in range(T, 3 * T, T):
        valid = sampler.collect_batch()[0]["valid"].to_ndarray()
        expected = np.ones((T, B), bool)
        expected[:, 1] = (np.arange(step, step + T) + 1) % 3 != 0
        np.testing.assert_array_equal(valid, expected)


def test_a_state_is_put_back_behind_a_row_that_is_no_transition() -> None:
    samples = build_sample_tree(build_example(Walk), Summing(), batch_shape=(T, B))
    sampler = RecurrentSampler([Doubtful(Walk, n_envs=B, seed=0)], Summing(), samples)
    total, n_put_back = np.zeros(B, np.float32), 0
    for _ in range(3):
        tree = sampler.collect_batch()[0].to_ndarray()
        np.testing.assert_array_equal(tree["initial_rnn_state"]["sum"], total)
        for t in range(T):
            total = total + tree["observation"][t, :, 0]
            np.testing.assert_array_equal(tree["agent_info"]["value"][t], total * 2)
            done = tree["terminated"][t] | tree["truncated"][t]
            n_put_back += int((~tree["valid"][t] & ~done).sum())
            total = np.where(done | ~tree["valid"][t], 0, total)
    assert n_put_back > 2


def test_the_branch_valid_is_added_where_the_window_is() -> None:
    samples = build_sample_tree(build_example(Walk), Still(), batch_shape=(T, B), full_size=4 * T)
    assert "valid" not in samples  # it was made for other cages
    for _ in range(3):
        samples.rotate()
    begin = samples["reward"].window_begin
    assert begin > 0
    sampler = BasicSampler([Doubtful(Walk, n_envs=B)], Still(), samples)
    assert samples["valid"].window_begin == begin
    sampler.reset()
    sampler.collect_batch()
    assert samples["valid"].window_begin == samples["reward"].window_begin


def test_a_tree_without_a_state_is_refused() -> None:
    agent = Summing()
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, B))
    del samples["initial_rnn_state"]
    with pytest.raises(ValueError, match=r"there is no initial_rnn_state; patterns\.build_sample"):
        RecurrentSampler(make_cages((B,)), agent, samples)


def test_a_sampler_that_carries_no_state_refuses_such_agents_and_trees() -> None:
    agent = Summing()
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, B))
    for kind in (BasicSampler, AlternatingSampler):
        with pytest.raises(TypeError, match=f"{kind.__name__} doesn't carry.* RecurrentSampler"):
            kind(make_cages((1, 2)), agent, samples)
        with pytest.raises(ValueError, match="the tree is one for an agent with a state"):
            kind(make_cages((1, 2)), Still(), samples)
    with pytest.raises(TypeError, match=r"Still keeps no state, .* begin and reset_state"):
        RecurrentSampler(make_cages((B,)), Still(), samples)  # type: ignore[arg-type]


class Late:
    """A recurrent agent that has no state, not even None, before `begin`; and no values."""

    def begin(self, n_envs: int) -> None:
        self.rnn_state = torch.zeros(n_envs)

    def reset_state(self, columns: Sequence[int]) -> None:
        self.rnn_state[list(columns)] = 0

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self.rnn_state = self.rnn_state + 1
        return torch.zeros(len(observation), dtype=torch.long), {}


def test_a_recurrent_agent_is_known_by_its_methods() -> None:
    agent = Late()
    assert isinstance(agent, RecurrentActor)
    assert not isinstance(agent, RecurrentAgent)
    assert isinstance(Summing(), RecurrentAgent)
    assert not isinstance(Still(), RecurrentActor)
    cages = make_cages((B,))
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, B))
    eval_sampler = EvalSampler(cages, Late(), build_eval_tree(samples, n_envs=B), n_episodes=B)
    assert len(eval_sampler.collect_episodes()) == B
    batch, _ = RecurrentSampler(make_cages((B,)), agent, samples).collect_batch()
    assert batch["initial_rnn_state"].to_ndarray().tolist() == [0] * B
    assert agent.rnn_state.max() > 0


class Tupled(Summing):
    """Keep the state in a tuple, as torch's LSTM does."""

    def begin(self, n_envs: int) -> None:
        self.rnn_state = (torch.zeros(n_envs), torch.zeros(n_envs, 1))

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        total, count = self.rnn_state
        self.rnn_state = (total + as_tensor(observation)[:, 0], count + 1)
        return torch.zeros(len(total), dtype=torch.long), {}

    def reset_state(self, columns: Sequence[int]) -> None:
        for part in self.rnn_state:
            part[list(columns)] = 0


def test_a_state_may_be_a_tuple() -> None:
    agent = Tupled()
    sampler = make_sampler(agent)
    sampler.collect_batch()
    total, count = agent.rnn_state
    samples, _ = sampler.collect_batch()
    state = samples["initial_rnn_state"].to_ndarray()
    np.testing.assert_array_equal(state["0"], total)
    np.testing.assert_array_equal(state["1"], count)
    assert count.sum() > 0


def test_branches_for_values_may_be_left_out() -> None:
    agent = Summing()
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, B))
    for name in ("valid", "bootstrap_value", "final_value"):
        del samples[name]
    batch, _ = RecurrentSampler(make_cages((B,)), agent, samples).collect_batch()
    assert batch["initial_rnn_state"]["sum"].to_ndarray().tolist() == [0, 0, 0]


# Evaluation


def test_an_evaluation_has_a_state_of_its_own_and_leaves_the_training_one() -> None:
    agent = Summing()
    sampler = make_sampler(agent)
    sampler.collect_batch()
    state = {name: leaf.tolist() for name, leaf in agent.rnn_state.items()}
    seen: list[list[float]] = []

    class Watching(Clock):
        def step(self, action: Any) -> Any:
            seen.append(agent.rnn_state["count"][:, 0].tolist())
            return super().step(action)

    example = build_example(Clock)
    tree = build_sample_tree(example, Summing(), batch_shape=(T, 1))
    eval_sampler = EvalSampler(
        build_cages(Watching, 1, env_kwargs={"length": 2}),
        agent,
        build_eval_tree(tree, n_envs=1),
        n_episodes=3,
    )
    assert len(eval_sampler.collect_episodes()) == 3
    assert seen == [[1], [2]] * 3  # steps of the episode, the one under way included
    assert {name: leaf.tolist() for name, leaf in agent.rnn_state.items()} == state


# Episodes that do not go in step


class Phase(gym.Env[Any, Any]):
    """An endless environment that shows its number of steps since the reset."""

    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 10**9) -> None:
        self._length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self._step = 0
        return np.float32([0]), {}

    def step(self, action: Any) -> Any:
        self._step += 1
        return np.float32([self._step]), 1.0, self._step >= self._length, False, {}


class Nothing:
    """Acts, and keeps nothing."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return np.zeros(len(observation), np.int64), {}

    def value(self, observation: Any) -> Any:
        raise AssertionError("there is no final_value")


def phases(max_steps: int, *, length: int = 10**9, seed: int = 0) -> tuple[list[float], list[Any]]:
    """Return what the first row of the first batch shows, and the episodes that the batch ended."""
    samples = build_sample_tree(build_example(Phase), Nothing(), batch_shape=(2, 64))
    cages = build_cages(Phase, 64, env_kwargs={"length": length}, seed=seed)
    sampler = BasicSampler(cages, Nothing(), samples, max_steps_decorrelate=max_steps)
    batch, completed = sampler.collect_batch()
    return batch["observation"][0, :, 0].to_ndarray().tolist(), completed


def test_environments_begin_at_random_steps() -> None:
    assert phases(0)[0] == [0] * 64
    shown, _ = phases(10)
    assert set(shown) <= set(range(11))
    assert len(set(shown)) > 8
    assert phases(10)[0] == shown
    assert phases(10, seed=1)[0] != shown


def test_episodes_that_end_before_the_first_batch_are_not_reported() -> None:
    shown, completed = phases(10, length=4)
    assert set(shown) == {0, 1, 2, 3}
    assert len(completed) == shown.count(2) + shown.count(3)  # two steps more end these


def test_a_negative_number_of_random_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_steps_decorrelate: got -1, expected 0 or more"):
        phases(-1)
    with SerialCage(Phase) as cage, pytest.raises(ValueError, match="max_random_steps: got -1"):
        cage.reset_async(max_random_steps=-1)

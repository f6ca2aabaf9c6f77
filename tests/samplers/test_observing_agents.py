"""What samplers tell an agent that learns of observations: each one once, final ones too."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from long_run import all_but_first
from parllel import Array, cuda
from parllel.cages import Cage, ProcessCage, SerialCage, VectorCage
from parllel.patterns import build_example, build_sample_tree, example_of
from parllel.replays import ReplayBuffer
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler, RecurrentSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from schedules import each_schedule

T, B = 7, 4


class Keeping:
    """An agent that keeps what it acted on and what it was told, in the order of the calls."""

    observes = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.acted_on: list[np.ndarray] = []  # of each step [n, 3]
        self.told: list[dict[str, Any]] = []

    def begin_batch(self) -> None:
        self.calls.append("begin")

    def observe(self, observation: Any, *, valid: Any = None, final_obs: Any = None) -> None:
        self.calls.append("observe")
        rows = to_host(observation)
        told = {"rows": rows, "valid": None if valid is None else valid.copy()}
        self.told.append({**told, "final": None if final_obs is None else to_host(final_obs)})
        if not np.isfinite(rows).all():
            raise ValueError("an observation is NaN")

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self.calls.append("step")
        self.acted_on.append(to_host(observation))
        return np.zeros(len(observation), np.int64), {}

    def counted(self) -> list[np.ndarray]:
        """Return the observations that were told of, [n, 3] of each batch."""
        batches = []
        for told in self.told:
            rows = told["rows"] if told["valid"] is None else told["rows"][told["valid"]]
            final = np.zeros((0, 3), np.float32) if told["final"] is None else told["final"]
            batches.append(np.concatenate([rows.reshape(-1, 3), final]))
        return batches


def to_host(rows: Array) -> np.ndarray:
    return cuda.to_host(rows.to_cupy()) if rows.side == "gpu" else rows.to_ndarray().copy()


def seeds(n: int = B) -> list[np.random.SeedSequence]:
    return np.random.SeedSequence(3).spawn(n)


def make_cages(kind: str) -> list[Cage]:
    own = seeds()
    if kind == "one":
        return [SerialCage(Walk, n_envs=B, seed=own)]
    if kind == "four":
        return [SerialCage(Walk, n_envs=1, seed=[seed]) for seed in own]
    if kind == "workers":
        return [
            ProcessCage(Walk, n_envs=2, seed=own[:2]),
            ProcessCage(Walk, seed=own[2:], n_envs=2),
        ]
    mode = AutoresetMode[kind]
    return [VectorCage(make_vector_env, {"mode": mode}, seed=own)]


def make_vector_env(mode: AutoresetMode) -> gym.vector.VectorEnv:
    env = SyncVectorEnv([Walk] * B, autoreset_mode=mode)
    # In a wrapper, a cage can't reset environments one by one: steps are spent on resets.
    return gym.wrappers.vector.TransformReward(env, float32_of)


def float32_of(reward: Any) -> Any:
    return np.asarray(reward, np.float32)


def collect(
    kind: str,
    n_batches: int,
    make_sampler: Any = BasicSampler,
    *,
    storage: str = "local",
    with_replay: bool = False,
) -> tuple[Keeping, list[Any]]:
    """Return the agent, and the batches' rows T, which were not acted on yet."""
    agent, cages, last = Keeping(), make_cages(kind), []
    example = example_of(make_cages("one")[0], storage=storage)
    options: dict[str, Any] = {"full_size": 10 * T} if with_replay else {}
    samples = build_sample_tree(example, agent, batch_shape=(T, B), storage=storage, **options)
    agent.acted_on.clear()
    agent.calls.clear()
    if with_replay:
        options = {"replay": ReplayBuffer(samples, rng=np.random.default_rng(0))}
    sampler = make_sampler(cages, agent, samples, **options)
    for _ in range(n_batches):
        batch, _ = sampler.collect_batch()
        last.append(to_host(batch["observation"][T]))
    sampler.close()
    for cage in cages:
        cage.close()
    return agent, last


def by_hand(n_steps: int) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """Return all observations that are acted on, [n_steps, B, 3], and final ones by their step."""
    rows, final = np.zeros((n_steps, B, 3), np.float32), {}
    for column, seed in enumerate(seeds()):
        with SerialCage(Walk, seed=[seed]) as cage:
            cage.reset_async()
            observation, _ = cage.await_step()
            for t in range(n_steps):
                rows[t, column] = observation
                cage.step_async(np.int64(0))
                observation, *_ = cage.await_step()
                if cage.final_obs:
                    final[t, column] = np.asarray(cage.final_obs[0], np.float32)
    return rows, final


@pytest.mark.parametrize(
    ("kind", "make_sampler"),
    [
        ("one", BasicSampler),
        ("four", AlternatingSampler),
        ("SAME_STEP", BasicSampler),
        pytest.param("four", BasicSampler, marks=pytest.mark.long),
        pytest.param("workers", BasicSampler, marks=pytest.mark.long),
    ],
)
def test_all_observations_are_told_once_and_final_ones_in_their_order(
    kind: str, make_sampler: Any
) -> None:
    agent, _ = collect(kind, 3, make_sampler)
    rows, final = by_hand(3 * T)
    assert any(t // T == number for number in range(3) for t, _ in final)
    for number, told in enumerate(agent.told):
        assert told["valid"] is None
        assert told["rows"].tobytes() == rows[number * T : (number + 1) * T].tobytes()
        own = [final[key] for key in sorted(final) if key[0] // T == number]
        assert (told["final"] == np.array(own)).all()


def test_a_row_that_is_a_reset_is_left_out_and_its_observation_told_once() -> None:
    """It shows the final observation of the episode before, which is told as such."""
    for with_replay in (False, True):
        agent, _ = collect("NEXT_STEP", 4, with_replay=with_replay)
        acted_on = np.stack(agent.acted_on).reshape(4, T, B, 3)
        n_lost = 0
        for told, rows in zip(agent.told, acted_on, strict=True):
            assert told["rows"].tobytes() == rows.tobytes()
            if told["valid"] is not None:
                n_lost += (~told["valid"]).sum()
        counted = np.concatenate(agent.counted())
        assert n_lost > 4
        assert len(np.unique(counted, axis=0)) == len(counted)  # Walk never shows one twice
        everything = {row.tobytes() for row in acted_on.reshape(-1, 3)}
        assert everything <= {row.tobytes() for row in counted}


def test_the_calls_stand_around_the_steps_of_a_batch() -> None:
    agent, _ = collect("one", 2)
    assert agent.calls == 2 * ["begin", *T * ["step"], "observe"]


@each_schedule
@pytest.mark.parametrize("kind", all_but_first(["device", "managed", "pinned"]))
def test_memory_of_a_gpu_tells_the_same(kind: str, schedule: str, seed: int) -> None:
    expected, _ = collect("four", 2)
    with simulated_cuda(schedule, seed):
        agent, _ = collect("four", 2, storage=kind)
    for one, other in zip(agent.told, expected.told, strict=True):
        assert all((one[name] == other[name]).all() for name in ("rows", "final"))


def test_evaluations_tell_nothing() -> None:
    agent = Keeping()
    with (
        SerialCage(Walk, n_envs=2, seed=1) as cage,
        closing(EvalSampler([cage], agent, n_episodes=4, storage="local")) as sampler,
    ):
        sampler.collect_episodes()
    assert set(agent.calls) == {"step"}


class Recurrent(Keeping):
    """One that keeps a state, too."""

    def begin(self, n_envs: int) -> None:
        self.rnn_state = np.zeros(n_envs, np.float32)

    def reset_state(self, columns: Sequence[int]) -> None:
        self.rnn_state[list(columns)] = 0


def test_a_recurrent_sampler_tells_as_well() -> None:
    agent = Recurrent()
    with SerialCage(Walk, n_envs=B, seed=seeds()) as cage:
        samples = build_sample_tree(build_example(Walk, storage="local"), agent, batch_shape=(T, B))
        RecurrentSampler([cage], agent, samples).collect_batch()
    rows, final = by_hand(T)
    assert agent.told[-1]["rows"].tobytes() == rows.tobytes()
    assert len(agent.told[-1]["final"]) == len(final)


def test_an_agent_may_stop_to_observe() -> None:
    agent = Keeping()
    with SerialCage(Walk, n_envs=B, seed=1) as cage:
        samples = build_sample_tree(build_example(Walk, storage="local"), agent, batch_shape=(T, B))
        sampler = BasicSampler([cage], agent, samples)
        agent.observes = False
        agent.calls.clear()
        sampler.collect_batch()
        assert set(agent.calls) == {"step"}
        agent.observes = True
        sampler.collect_traced()
        assert agent.calls[T:] == ["begin", *T * ["step"], "observe"]


class Spoiled(Walk):
    """Shows NaN in its third step."""

    def reset(self, **options: Any) -> Any:
        self.n_steps = 0
        return super().reset(**options)

    def step(self, action: int) -> Any:
        self.n_steps += 1
        observation, reward, *_, info = super().step(action)
        if self.n_steps == 3:
            observation[1] = np.nan
        return observation, reward, False, False, info


def test_a_batch_that_an_agent_refuses_is_followed_by_a_reset() -> None:
    agent = Keeping()
    with SerialCage(Spoiled, n_envs=2, seed=1) as cage:
        example = build_example(Spoiled, storage="local")
        ring = {"batch_shape": (T, 2), "full_size": 4 * T}
        samples = build_sample_tree(example, agent, **ring)
        replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
        sampler = BasicSampler([cage], agent, samples, replay=replay)
        for _ in range(2):
            with pytest.raises(ValueError, match="an observation is NaN"):
                sampler.collect_batch()
            assert len(replay) == 0
        assert sampler.began_with_reset

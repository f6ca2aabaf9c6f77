"""Samplers of several agents: batches against loops by hand, in all cages and kinds of memory."""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_envs import Deadly, Films, Fragile, make_knights, make_spread
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from long_run import all_but, all_but_first
from optional import needs
from parllel import Array, ArrayDict
from parllel.cages import Cage, ParallelAgents, SerialCage
from parllel.patterns import build_cages, build_eval_tree, build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import AlternatingSampler, BasicSampler, EvalSampler, RecurrentSampler
from parllel.testing.contracts.relay_rows import (
    NAMES,
    Row,
    act,
    compare_rows,
    leaf,
    lives,
    play,
    table,
    value_of,
)
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_agents import Life, Masked, Relay, Team
from parllel.tree.leaves import as_tensor
from profiles import fewer_examples
from schedules import each_schedule

T, B = 5, 4
INFO = {name: {"step": 0.0} for name in NAMES}
any_form = pytest.mark.parametrize("differ", [False, True], ids=["axis", "dictionary"])
Kwargs = Mapping[str, Any]


class Agents:
    """Choose actions by what each agent is shown, and value it by that, too."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action = _map(observation, lambda shown, slot: act(shown, slot).long())
        return action, {"value": self.value(observation)}

    def value(self, observation: Any) -> Any:
        return _map(observation, lambda shown, slot: value_of(shown))


def _map(observation: Any, function: Callable[[Any, int], Any]) -> Any:
    """Apply a function to what each agent is shown, and its slot, in the observation's form."""
    if isinstance(observation, Mapping):
        shown = enumerate(observation.items())
        return {name: function(as_tensor(own), slot) for slot, (name, own) in shown}
    shown = as_tensor(observation)
    return torch.stack([function(shown[:, slot], slot) for slot in range(len(NAMES))], dim=1)


class Queued:
    """Queue all work and read nothing back: actions come from a table, values from observations.

    Operations of torch would run a simulated stream, which hides waits that are missing.
    """

    def __init__(self, kind: str, differ: bool) -> None:
        numbers = np.random.default_rng(0).integers(0, 4, (97, B, len(NAMES)))
        parts = dict(zip(NAMES, np.moveaxis(numbers, 2, 0), strict=True))
        tree = ArrayDict(parts) if differ else numbers
        self._actions: Any = (
            tree.apply(lambda part: Array.from_numpy(part, storage=kind))
            if differ
            else Array.from_numpy(numbers, storage=kind)
        )
        self._differ, self._n_calls = differ, 0

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n_rows = len(observation["ada"] if self._differ else observation)
        action = self._actions[self._n_calls % 97, :n_rows]
        self._n_calls += 1
        return action, {"value": self.value(observation)}

    def value(self, observation: Any) -> Any:
        if self._differ:
            return {name: observation[name][:, 1] for name in NAMES}
        return observation[:, :, 1]

    def close(self) -> None:
        self._actions.close()


def make_tree(kwargs: Kwargs, agent: Any, n_envs: int = B, **options: Any) -> ArrayDict:
    example = build_example(Relay, env_kwargs=kwargs, storage="local", info=INFO)
    return build_sample_tree(example, agent, batch_shape=(T, n_envs), **options)


@contextmanager
def cages_of(n_workers: int, kwargs: Kwargs, n_envs: int = B) -> Iterator[list[Cage]]:
    cages = build_cages(Relay, n_envs, env_kwargs=kwargs, n_workers=n_workers, seed=3)
    try:
        yield cages
    finally:
        for cage in cages:
            cage.close()


# Against a loop by hand


def check_batches(kwargs: Kwargs, n_batches: int = 3, n_envs: int = B, n_workers: int = 0) -> None:
    """Collect batches, and compare them with a loop by hand, with the episodes in them."""
    rows = play(kwargs, 3, n_envs, n_batches * T)
    samples = make_tree(kwargs, Agents(), n_envs)
    with cages_of(n_workers, kwargs, n_envs) as cages:
        sampler = BasicSampler(cages, Agents(), samples)
        for n in range(n_batches):
            batch, episodes = sampler.collect_batch()
            own = [column[n * T : n * T + T + 1] for column in rows]
            check_batch(batch, own)
            ended = [column[t] for column in own for t in range(T) if column[t].is_end]
            order = operator.methodcaller("items")
            found = sorted(tuple(order(traj.returns)) for traj in episodes)
            assert found == sorted(tuple(order(row.returns)) for row in ended)


def check_batch(batch: ArrayDict, rows: list[list[Row]]) -> None:
    """Compare a batch with its part of a loop by hand, of which the last row is behind it."""
    compare_rows(batch, rows)
    value = batch["agent_info"]["value"]
    for slot, name in enumerate(NAMES):
        shown = leaf(batch["observation"], name)
        np.testing.assert_array_equal(leaf(batch["action"], name), act(shown, slot))
        np.testing.assert_array_equal(leaf(value, name), value_of(shown))
        flags = (table(rows, operator.attrgetter(field), name) for field in Row._fields[2:5])
        terminated, truncated, valid = flags
        final_value = leaf(batch["final_value"], name)
        for t, b in np.argwhere(truncated & ~terminated & valid):
            assert final_value[t, b] == value_of(rows[b][t].after[name]), (name, t, b)
        behind = leaf(value[T : T + 1], name)[0]
        for column, own in zip(rows, behind, strict=True):
            shown = column[T].observation[name]
            assert own == (0 if shown is None else value_of(shown))


@any_form
@pytest.mark.parametrize("n_workers", [0, 2])
def test_batches_are_those_of_a_loop_by_hand(n_workers: int, differ: bool) -> None:
    kwargs = {"is_random": True, "differ": differ, "reuses_buffer": True}
    check_batches(kwargs, n_batches=5, n_workers=n_workers)


@fewer_examples(8)
@given(found=lives(), differ=st.booleans(), n_envs=st.integers(1, 2))
def test_agents_may_come_and_go_at_any_time(
    found: dict[str, Life], differ: bool, n_envs: int
) -> None:
    check_batches({"lives": found, "differ": differ}, n_envs=n_envs)


def test_an_agent_truncated_in_the_last_step_of_a_batch_has_its_own_final_value() -> None:
    found = {"ada": Life(1, T, "truncated"), "bob": Life(1, T + 3, "terminated")}
    check_batches({"lives": {**found, "cyd": Life(1, 1, "both")}}, n_batches=2)


@any_form
def test_agents_who_take_over_from_all_others_end_no_episode(differ: bool) -> None:
    """Replays sample steps between them, too: the next row has their final observations."""
    ends = ["truncated", "truncated", "terminated"]
    found = {name: Life(2 * i + 1, 2 * i + 2, ends[i]) for i, name in enumerate(NAMES)}
    kwargs = {"lives": found, "differ": differ}
    check_batches(kwargs, n_envs=1)
    samples = make_tree(kwargs, Agents(), 1, full_size=4 * T)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    with cages_of(0, kwargs, 1) as cages:
        sampler = BasicSampler(cages, Agents(), samples, replay=replay)
        for _ in range(3):
            sampler.collect_batch()
    drawn = replay.sample(500)
    assert set(drawn["index"].tolist()) == set(range(3 * T))
    for slot, name in enumerate(NAMES):
        shown, after, valid, terminated = (
            drawn[branch][name] if differ else drawn[branch][:, slot]
            for branch in ("observation", "next_observation", "valid", "terminated")
        )
        steps = shown[:, 1]
        assert set(steps[valid].tolist()) == {2 * slot, 2 * slot + 1}
        has_next = valid & ~terminated
        torch.testing.assert_close(after[has_next][:, 1], steps[has_next] + 1)


class Stacks(Relay):
    """Show the last three frames of the numbers that a relay shows, the first one repeated."""

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (3, 3), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._stacks: dict[str, list[Any]] = {}
        return super().reset(seed, options)

    def _observe(self, name: str, action: Any) -> Any:
        frame = np.float32([self._episode, self._step, action])
        self._stacks[name] = [*self._stacks.get(name, [frame] * 3), frame][-3:]
        return np.stack(self._stacks[name])


@pytest.mark.parametrize("form", ["axis", "dictionary"])
def test_frames_of_agents_who_end_before_others_are_stored_once(form: Any) -> None:
    """Where the environment is cut off, who had ended before is shown its last stack once more."""
    found = {"ada": Life(1, 2, "truncated"), "bob": Life(1, 4, "terminated")}
    kwargs = {"lives": {**found, "cyd": Life(2, 5, "truncated")}}

    def make_env() -> ParallelAgents:
        return ParallelAgents(Stacks(**kwargs), form)

    example = build_example(make_env, storage="local", info=INFO)
    frames: Any = "first" if form == "axis" else dict.fromkeys(NAMES, "first")
    samples = build_sample_tree(example, Idle(), batch_shape=(T, 1), full_size=15, frames=frames)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    with SerialCage(make_env, {}) as cage:
        sampler = BasicSampler([cage], Idle(), samples, replay=replay)
        for _ in range(3):
            sampler.collect_batch()
    drawn, env = replay.sample(400), Stacks(**kwargs)
    stacks: dict[tuple[str, int], Any] = {}
    for episode in range(3):
        shown = env.reset()[0]
        for step in range(6):
            stacks |= {(name, episode * 6 + step): each for name, each in shown.items()}
            shown = env.step(dict.fromkeys(env.agents, 0))[0] if step < 5 else {}
    for slot, name in enumerate(NAMES):
        own = {
            branch: rows[name] if form == "dictionary" else rows[:, slot]
            for branch, rows in drawn.items()
            if branch in ("observation", "next_observation", "valid", "terminated")
        }
        valid, terminated = own["valid"], own["terminated"]
        assert valid.any()
        for i in np.flatnonzero(valid):
            number = int(drawn["index"][i])
            number += number // T  # of observations: an episode has one more than steps
            assert (own["observation"][i].numpy() == stacks[name, number]).all()
            after = own["next_observation"][i].numpy()
            assert terminated[i] or (after == stacks[name, number + 1]).all()


# The same bits in all cages and kinds of memory


def collect(
    make_sampler: Callable[..., BasicSampler], kwargs: Kwargs, n_workers: int, storage: str
) -> list[dict[str, Any]]:
    """Return all leaves of three batches, and the returns of episodes."""
    differ = kwargs["differ"]
    agent = Queued(storage, differ)
    samples = make_tree(kwargs, Queued("local", differ)).to(storage)
    found: list[dict[str, Any]] = []
    with cages_of(n_workers, kwargs) as cages:
        sampler = make_sampler(cages, agent, samples)
        for _ in range(3):
            batch, episodes = sampler.collect_batch()
            returns = np.array(sorted([*traj.returns.values()] for traj in episodes))
            copied = {path: np.array(leaf.to_ndarray()) for path, leaf in leaves(batch).items()}
            found.append({**copied, "returns": returns})
        sampler.close()
    agent.close()
    samples.close()
    return found


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for path, values in batch.items():
            np.testing.assert_array_equal(values, other[path], err_msg=path, strict=True)


@any_form
@each_schedule
@pytest.mark.parametrize("n_workers", [0, 2])
def test_device_memory_holds_the_same(
    schedule: str, seed: int, n_workers: int, differ: bool
) -> None:
    kwargs = {"is_random": True, "differ": differ}
    expected = collect(BasicSampler, kwargs, 0, "local")
    with simulated_cuda(schedule, seed=seed):
        compare(collect(BasicSampler, kwargs, n_workers, "device"), expected)


@pytest.mark.parametrize(
    ("storage", "differ"),
    all_but(
        [(storage, differ) for storage in ("local", "shared") for differ in (False, True)],
        [("local", True), ("shared", False)],
    ),
)
def test_workers_write_the_same(storage: str, differ: bool) -> None:
    kwargs = {"is_random": True, "differ": differ}
    expected = collect(BasicSampler, kwargs, 0, "local")
    compare(collect(BasicSampler, kwargs, 2, storage), expected)


@any_form
@each_schedule
def test_groups_that_take_turns_collect_the_same(schedule: str, seed: int, differ: bool) -> None:
    kwargs = {"is_random": True, "differ": differ}
    expected = collect(AlternatingSampler, kwargs, 2, "local")
    check_batches_of_turns(differ)
    with simulated_cuda(schedule, seed=seed):
        compare(collect(AlternatingSampler, kwargs, 2, "device"), expected)


def check_batches_of_turns(differ: bool) -> None:
    kwargs = {"differ": differ}  # agents of both groups are cut off in the same step
    rows = play(kwargs, 3, B, T)
    with cages_of(2, kwargs) as cages:
        batch, _ = AlternatingSampler(cages, Agents(), make_tree(kwargs, Agents())).collect_batch()
        check_batch(batch, rows)


# Other samplers


class Counting(Agents):
    """An agent whose state, and value, is the number of steps since the environment's reset."""

    def begin(self, n_envs: int) -> None:
        self.rnn_state = np.zeros(n_envs, np.float32)

    def reset_state(self, columns: Any) -> None:
        self.rnn_state[columns] = 0

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, _ = super().step(observation)
        value = self.value(observation)
        self.rnn_state += 1
        return action, {"value": value}

    def value(self, observation: Any, *, columns: Any = None) -> Any:
        own = self.rnn_state if columns is None else self.rnn_state[columns]
        state = torch.as_tensor(own.copy())
        return _map(observation, lambda shown, slot: state.clone())


@any_form
def test_a_state_goes_on_until_all_agents_have_ended(differ: bool) -> None:
    kwargs = {"is_random": True, "differ": differ}
    rows = play(kwargs, 3, B, T)
    samples = make_tree(kwargs, Counting())
    with cages_of(0, kwargs) as cages:
        batch, _ = RecurrentSampler(cages, Counting(), samples).collect_batch()
    compare_rows(batch, rows)
    for b, column in enumerate(rows):
        n = 0
        for t in range(T):
            for name in NAMES:
                assert leaf(batch["agent_info"]["value"], name)[t, b] == n
                row = column[t]
                if row.truncated[name] and not row.terminated[name] and row.valid[name]:
                    assert leaf(batch["final_value"], name)[t, b] == n + 1
            n = 0 if column[t].is_end else n + 1
        bootstrap = batch["bootstrap_value"]
        own = bootstrap["ada"] if differ else bootstrap[:, 0]
        assert own.to_ndarray()[b] == n


@any_form
@pytest.mark.parametrize("has_tree", [False, True])
def test_evaluations_tell_the_return_of_each_agent(has_tree: bool, differ: bool) -> None:
    kwargs = {"is_random": True, "differ": differ}
    rows = play(kwargs, 3, B, 30)
    expected = [row.returns for column in rows for row in column if row.is_end]
    tree = build_eval_tree(make_tree(kwargs, Agents()), n_envs=B) if has_tree else None
    storage = None if has_tree else "local"
    with cages_of(0, kwargs) as cages:
        sampler = EvalSampler(cages, Agents(), tree, n_episodes=2 * B, storage=storage)
        episodes = sampler.collect_episodes()
        sampler.close()
    assert len(episodes) == 2 * B
    assert all(traj.returns in expected for traj in episodes)
    assert set(episodes[0].metrics()) == {
        "episode_length",
        "episode_return",
        *(f"episode_return.{name}" for name in NAMES),
    }


@any_form
def test_a_run_goes_on_from_the_states_of_agents(differ: bool) -> None:
    kwargs = {"is_random": True, "differ": differ}
    samples = make_tree(kwargs, Agents())
    with cages_of(0, kwargs) as cages, cages_of(2, kwargs) as others:
        sampler = BasicSampler(cages, Agents(), samples)
        sampler.check_state()
        sampler.collect_batch()
        state = sampler.state_dict()
        other = make_tree(kwargs, Agents())
        for name, branch in other.items():
            branch[...] = samples[name]
        last = samples["observation"][T].to_ndarray()
        other["observation"][T] = last
        expected, episodes = sampler.collect_batch()
        sampler = BasicSampler(others, Agents(), other)
        sampler.load_state_dict(state)
        found, others_episodes = sampler.collect_batch()
        for path, values in leaves(found).items():
            np.testing.assert_array_equal(
                values.to_ndarray(), leaves(expected)[path].to_ndarray(), err_msg=path
            )
        key = operator.attrgetter("episode_return")
        assert sorted(others_episodes, key=key) == sorted(episodes, key=key)


# Rows that are no transitions


@any_form
def test_of_an_environment_made_anew_no_agent_is_learned_from(differ: bool) -> None:
    kwargs = {"differ": differ}
    cages = build_cages(
        Fragile, 2, env_kwargs=kwargs, n_workers=1, seed=3, on_worker_error="restart"
    )
    batch, episodes = BasicSampler(cages, Agents(), make_tree(kwargs, Agents(), 2)).collect_batch()
    for cage in cages:
        cage.close()
    for name in NAMES:
        valid = leaf(batch["valid"], name)
        assert not valid[2].any()
        assert not leaf(batch["reward"], name)[2].any()
        assert not leaf(batch["terminated"], name)[2].any()
        assert leaf(batch["truncated"], name)[2].all()
        assert leaf(batch["observation"], name)[3, :, :2].tolist() == [[0, 0]] * 2
        final, value = leaf(batch["final_value"], name), leaf(batch["agent_info"]["value"], name)
        assert final[2].tolist() == value[2].tolist()
        assert valid[3].all() == (name != "cyd")
    assert episodes == []


@any_form
def test_of_a_lost_worker_no_agent_is_learned_from(differ: bool, tmp_path: Path) -> None:
    kwargs = {"differ": differ, "file": str(tmp_path / "dead")}
    cages = build_cages(
        Deadly, 2, env_kwargs=kwargs, n_workers=1, seed=3, on_worker_error="restart"
    )
    samples = make_tree({"differ": differ}, Agents(), 2)
    batch, episodes = BasicSampler(cages, Agents(), samples).collect_batch()
    for cage in cages:
        cage.close()
    for name in NAMES:
        assert not leaf(batch["valid"], name)[2].any()
        assert leaf(batch["truncated"], name)[2].all()
        assert leaf(batch["valid"], name)[3].all() == (name != "cyd")
    assert episodes == []


# Frames


class Idle:
    """Agents of both forms that do nothing."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        if isinstance(observation, ArrayDict):
            n = len(observation["ada"])
            return {name: np.zeros(n, np.int64) for name in NAMES}, {}
        return np.zeros(observation.shape[:2], np.int64), {}


def collect_films(form: Any, fill: str, n_workers: int, storage: str, frames: Any) -> Any:
    """Return the observations of four batches, each agent's by its name, with their padding."""

    def make_env() -> Any:
        return ParallelAgents(Films(fill), form)

    example = build_example(make_env, storage="local", info=INFO)
    samples = build_sample_tree(
        example, Idle(), batch_shape=(T, B), frames=frames, storage=storage, full_size=2 * T
    )
    cages = build_cages(make_env, B, n_workers=n_workers, seed=3)
    sampler, found = BasicSampler(cages, Idle(), samples), []
    for _ in range(4):
        observation = sampler.collect_batch()[0]["observation"][: T + 1].to_ndarray()
        found.append(
            np.array(observation)
            if form == "axis"
            else np.stack([observation[name] for name in NAMES], 2)
        )
    sampler.close()
    for cage in cages:
        cage.close()
    samples.close()
    return np.array(found)


FILMS = all_but(
    [
        (form, fill, n, storage)
        for form in ("axis", "dictionary")
        for fill in ("zero", "first")
        for n in (0, 2)
        for storage in ("local", "device")
    ],
    [
        ("dictionary", "zero", 0, "local"),
        ("dictionary", "first", 2, "local"),
        ("axis", "first", 0, "local"),
        ("axis", "zero", 2, "local"),
        ("axis", "first", 0, "device"),
    ],
)


@pytest.mark.parametrize(("form", "fill", "n_workers", "storage"), FILMS)
def test_frames_of_each_agent_are_stored_once(
    form: Any, fill: str, n_workers: int, storage: str, cuda_device: Any
) -> None:
    frames = fill if form == "axis" else dict.fromkeys(NAMES, fill)
    whole = collect_films(form, fill, n_workers, "local", None)
    once = collect_films(form, fill, n_workers, storage, frames)
    np.testing.assert_array_equal(once, whole)
    assert (whole > 0).any()


def test_frames_of_an_axis_of_agents_are_as_small_as_frames() -> None:
    example = build_example(lambda: Films("zero"), storage="local", info=INFO)
    once, whole = (
        build_sample_tree(example, Idle(), batch_shape=(30, B), frames=frames)["observation"]
        for frames in ("zero", None)
    )
    assert once.shape == whole.shape
    assert once.allocated_nbytes < whole.allocated_nbytes / 2


def test_numbers_of_agents_are_no_frames() -> None:
    example = build_example(Relay, storage="local", info=INFO)
    example["observation"] = Array((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"frames: observation is one number of each agent, exp"):
        build_sample_tree(example, Idle(), batch_shape=(T, B), frames="zero")


# What does not fit


def test_a_tree_of_another_form_is_refused() -> None:
    samples = make_tree({"differ": True}, Agents())
    samples["action"] = Array((T, B), np.int32, feature_shape=(3,))
    message = r"expected reward \[T, B, 3\], as the environments' agents have it"
    with cages_of(0, {}) as cages, pytest.raises(ValueError, match=message):
        BasicSampler(cages, Agents(), samples)


def test_agents_of_all_cages_are_the_same() -> None:
    samples = make_tree({}, Agents(), n_envs=2)
    others = {name: Life(1, 2, "both") for name in ("dan", "eve", "fay")}
    cages = [SerialCage(Relay), SerialCage(Relay, {"lives": others})]
    with pytest.raises(ValueError, match=r"cages: got the agents .*ada.* and .*dan"):
        BasicSampler(cages, Agents(), samples)


def test_a_tree_without_valid_gets_it() -> None:
    for differ in (False, True):
        samples = make_tree({"differ": differ}, Agents(), n_envs=1)
        del samples["valid"]
        with cages_of(0, {"differ": differ}, n_envs=1) as cages:
            batch, _ = BasicSampler(cages, Agents(), samples).collect_batch()
        assert leaf(batch["valid"], "cyd")[:, 0].tolist() == [False, True, True, True, True]


def test_a_replay_needs_a_tree_with_valid() -> None:
    samples = make_tree({}, Agents(), n_envs=1)
    del samples["valid"]

    class Replay:
        pass

    replay: Any = Replay()
    replay.samples = samples
    with (
        cages_of(0, {}, n_envs=1) as cages,
        pytest.raises(ValueError, match="there is no valid, and agents come and go"),
    ):
        BasicSampler(cages, Agents(), samples, replay=replay)


@any_form
def test_a_wrong_action_names_its_agent(differ: bool) -> None:
    class Wrong(Agents):
        def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
            action, agent_info = super().step(observation)
            own = action["bob"] if differ else action[:, 1]
            own[2] = 9
            return action, agent_info

    match = r"action\.bob: got .*9.* environment 2" if differ else r"9.* for agent bob in env.* 2"
    kwargs = {"differ": differ}
    samples = make_tree(kwargs, Agents())
    with cages_of(0, kwargs) as cages, pytest.raises(ValueError, match=match):
        BasicSampler(cages, Wrong(), samples).collect_batch()


@any_form
def test_agents_that_observe_are_told_who_acted(differ: bool) -> None:
    told: list[Any] = []

    class Watching(Agents):
        observes = True

        def begin_batch(self) -> None:
            pass

        def observe(self, observation: Any, *, valid: Any, final_obs: Any) -> None:
            told.append(valid)

    kwargs = {"differ": differ}
    with cages_of(2, kwargs) as cages:
        samples = make_tree(kwargs, Watching())
        batch, _ = AlternatingSampler(cages, Watching(), samples).collect_batch()
    for name in NAMES:
        np.testing.assert_array_equal(leaf(told[0], name), leaf(batch["valid"], name))


def test_masks_in_infos_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"ParallelAgents\(env, info_mask='action_mask'\)"):
        build_example(lambda: Masked(in_info=True), storage="local")


@pytest.mark.parametrize("is_axis", [False, True])
def test_a_team_is_sampled_with_one_flag(is_axis: bool) -> None:
    class Idle:
        def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
            n = len(observation)
            return np.zeros((n, 2), np.int64), {"value": self.value(observation)}

        def value(self, observation: Any) -> Any:
            own = as_tensor(observation)[:, 1]
            return torch.stack([own, -own], 1) if is_axis else {"left": own, "right": -own}

    kwargs = {"is_axis": is_axis, "end": "truncated"}
    example = build_example(Team, env_kwargs=kwargs, storage="local")
    samples = build_sample_tree(example, Idle(), batch_shape=(4, 2))
    cages = build_cages(Team, 2, env_kwargs=kwargs, n_workers=0)
    batch, episodes = BasicSampler(cages, Idle(), samples).collect_batch()
    assert "valid" not in batch
    assert batch["truncated"].to_ndarray()[:, 1].tolist() == [False, False, True, False]
    for name, sign in (("left", 1), ("right", -1)):
        slot = 0 if name == "left" else 1
        reward = batch["reward"][name] if not is_axis else batch["reward"][:, :, slot]
        scale = 1 if name == "left" else -2
        assert reward.to_ndarray()[:, 0].tolist() == [scale * t for t in (1, 2, 3, 1)]
        final = batch["final_value"][name] if not is_axis else batch["final_value"][:, :, slot]
        assert final.to_ndarray()[2].tolist() == [3 * sign] * 2
    assert [traj.returns for traj in episodes] == [{"left": 6.0, "right": -12.0}] * 2


# Environments of others


class Drawing:
    """Draw actions of a space for each agent."""

    def __init__(self, n_agents: int, n_actions: int) -> None:
        self._rng, self._shape = np.random.default_rng(0), (n_agents, n_actions)

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n_agents, n_actions = self._shape
        action = self._rng.integers(0, n_actions, (len(observation), n_agents))
        return action, {"value": self.value(observation)}

    def value(self, observation: Any) -> Any:
        shown = np.asarray(observation.to_ndarray())
        return shown.reshape(*shown.shape[:2], -1).sum(axis=2, dtype=np.float32)


@needs("mpe2")
@pytest.mark.parametrize("n_workers", all_but_first([0, 2]))
def test_simple_spread_is_cut_off_for_all_agents_together(n_workers: int) -> None:
    agent = Drawing(3, 5)
    samples = build_sample_tree(
        build_example(make_spread, storage="shared"), agent, batch_shape=(9, 2)
    )
    cages = build_cages(make_spread, 2, n_workers=n_workers, seed=0)
    batch, episodes = BasicSampler(cages, agent, samples).collect_batch()
    for cage in cages:
        cage.close()
    assert batch["valid"].to_ndarray().all()
    assert batch["truncated"].to_ndarray().tolist() == [[[t == 6] * 3] * 2 for t in range(9)]
    assert [traj.length for traj in episodes] == [7, 7]
    rewards = batch["reward"].to_ndarray()[:7].sum(axis=0, dtype=np.float64)
    found = np.array([[*traj.returns.values()] for traj in episodes])
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(rewards, axis=0), rtol=1e-5)


@needs("pettingzoo", "pygame")
def test_knights_and_archers_die_one_after_the_other() -> None:
    agent = Drawing(4, 6)
    example = build_example(make_knights, storage="local")
    samples = build_sample_tree(example, agent, batch_shape=(150, 1))
    with SerialCage(make_knights, seed=4) as cage:
        batch, episodes = BasicSampler([cage], agent, samples).collect_batch()
    valid = batch["valid"].to_ndarray()[:, 0]
    assert len(episodes) >= 1
    begin = 0
    for length in [traj.length for traj in episodes]:
        n_alive = valid[begin : begin + length].sum(axis=1)
        assert n_alive[0] == 4
        assert (np.diff(n_alive) <= 0).all()
        assert n_alive[-1] > 0
        begin += length
    assert not valid.all()
    assert not batch["reward"].to_ndarray()[:, 0][~valid].any()

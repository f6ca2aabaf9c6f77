"""Batches of environments whose results stay on a device are those of a SerialCage."""

import copy
import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from device_cages import DIALECTS, make_device_cage
from long_run import all_but_first
from parllel import ArrayDict, FrameArray, cuda
from parllel.cages import DeviceCage, DeviceStep, Dialect, MisfitError, SerialCage, TrajInfo
from parllel.cages.device.maniskill import ManiSkill
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.samplers import BasicSampler
from parllel.samplers.device_group import DeviceGroup
from parllel.testing import simulated_cuda
from parllel.testing.device_envs import (
    Fake,
    FakeFunctional,
    FakeIsaacLab,
    FakeManiSkill,
    FakeMjlab,
    put_tensor,
)
from parllel.testing.toy_envs import Clock, Echo, Walk
from schedules import each_schedule

T, B = 6, 4
on_a_device = pytest.mark.usefixtures("cuda_device")


first_fake = pytest.mark.parametrize(  # and the others in the long run
    "fake", all_but_first(list(DIALECTS)), ids=lambda fake: fake.__name__
)
each_fake = pytest.mark.parametrize("fake", DIALECTS, ids=lambda fake: fake.__name__)


class Agent:
    """Acts by a table, and values an observation by the sum of its numbers."""

    n_actions = 4

    def __init__(self, side: str) -> None:
        self._side, self._n_steps, self.n_valued = side, 0, []

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        self._n_steps += 1
        action = (np.arange(B) * 7 + self._n_steps) % self.n_actions
        rows = value_of(observation)
        return put_tensor(action, self._side), {"value": put_tensor(rows, self._side)}

    def value(self, observation: Any) -> Any:
        self.n_valued.append(len(observation))
        return put_tensor(value_of(observation), self._side)


def value_of(observation: Any) -> Any:
    return observation.to_ndarray().sum(-1).astype(np.float32)


def make_tree(
    agent: Any, storage: str, make_env: Any = Walk, info: Any = None, **window: int
) -> ArrayDict:
    info = {"luck": 0.0} if info is None else info
    example = build_example(make_env, storage="local", info=info)
    samples = build_sample_tree(example, agent, batch_shape=(T, B), storage="local", **window)
    return samples.new_array(storage=storage)


def make_sampler(
    fake: type[Fake],
    side: str,
    make_env: Any = Walk,
    info: Any = None,
    *,
    fake_options: Any = None,
    **window: int,
) -> BasicSampler:
    make_traj_info = functools.partial(TrajInfo, discount=0.5)
    options = {"n_envs": B, "seed": 3, "side": side, **(fake_options or {})}
    cage = make_device_cage(fake, make_env, None, make_traj_info, **options)
    storage = "device" if side == "gpu" else "local"
    samples = make_tree(Agent("host"), storage, make_env, info, **window)
    return BasicSampler([cage], Agent(side), samples)


def make_serial(make_env: Any = Walk, info: Any = None, **window: int) -> BasicSampler:
    make_traj_info = functools.partial(TrajInfo, discount=0.5)
    cage = SerialCage(make_env, None, make_traj_info, n_envs=B, seed=3)
    return BasicSampler(
        [cage], Agent("host"), make_tree(Agent("host"), "local", make_env, info, **window)
    )


def approximately(episode: TrajInfo) -> tuple[Any, ...]:
    numbers = episode.episode_return, episode.discounted_return
    return episode.length, *(round(number, 3) for number in numbers)


def batches_of(sampler: BasicSampler, n_batches: int = 4) -> list[Any]:
    found = []
    for _ in range(n_batches):
        samples, episodes = sampler.collect_batch()
        tree = {name: samples[name] for name in samples if name != "final_value"}
        found.append(
            {str(path): leaf.to_ndarray().tolist() for path, leaf in ArrayDict(tree).walk()}
        )
        last = samples["observation"][T].to_ndarray()
        found.append(last.tolist())
        cut = samples["truncated"].to_ndarray() & ~samples["terminated"].to_ndarray()
        found.append(samples["final_value"].to_ndarray()[cut].tolist())
        # Rewards of the tree are float32, those of a SerialCage's summaries were not rounded.
        found.append([approximately(episode) for episode in episodes])
    return found


@on_a_device
@each_fake
@pytest.mark.parametrize("window", all_but_first([{"full_size": 3 * T}, {}]))
def test_batches_are_those_of_a_serial_cage(fake: type[Fake], window: dict[str, int]) -> None:
    sampler = make_sampler(fake, "gpu", **window)
    assert isinstance(sampler._groups[0], DeviceGroup)
    expected = batches_of(make_serial(**window))
    assert sum(len(each) for each in expected[2::4]) > 3  # truncated ends
    assert batches_of(sampler) == expected


@on_a_device
def test_environments_that_are_reset_by_numbers_give_the_same() -> None:
    sampler = make_sampler(FakeManiSkill, "gpu", fake_options={"auto_reset": False})
    assert batches_of(sampler) == batches_of(make_serial())


@first_fake
def test_batches_on_the_host_are_those_of_a_serial_cage(fake: type[Fake]) -> None:
    sampler = make_sampler(fake, "host")
    assert isinstance(sampler._groups[0], DeviceGroup)
    assert batches_of(sampler) == batches_of(make_serial())


@on_a_device
@first_fake
def test_infos_that_come_and_go_are_those_of_a_serial_cage(
    fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = {"odd": 0.0, "nested": {"double": 0.0, "other": 0.0}}
    found = []
    monkeypatch.setattr(Agent, "n_actions", 2)
    for side in ("gpu", None):
        sampler = (
            make_serial(Clock, info) if side is None else make_sampler(fake, side, Clock, info)
        )
        found.append(batches_of(sampler, 2))
    assert found[0] == found[1]
    assert sum(map(sum, found[1][0]["('env_info', 'odd')"])) > 0


@on_a_device
@first_fake
def test_numbers_of_infos_that_are_not_stored_are_said_once(fake: type[Fake]) -> None:
    samples = make_tree(Agent("host"), "device")
    samples["env_info"] = ArrayDict()
    cage = make_device_cage(fake, Walk, n_envs=B, side="gpu")
    sampler = BasicSampler([cage], Agent("gpu"), samples)
    with pytest.warns(UserWarning, match="env_info: the tree has no branch for 'luck' of the env"):
        sampler.collect_batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.collect_batch()


# Truncated ends


@on_a_device
def test_values_of_truncated_ends_are_asked_for_once_in_a_batch() -> None:
    sampler = make_sampler(FakeManiSkill, "gpu")
    for _ in range(5):
        sampler.agent.n_valued.clear()
        samples, _ = sampler.collect_batch()
        cut = samples["truncated"].to_ndarray() & ~samples["terminated"].to_ndarray()
        assert sampler.agent.n_valued == ([int(cut.sum())] if cut.any() else []) + [B]


LOST = [(FakeIsaacLab, {"compute_final_obs": False}), (FakeMjlab, {"auto_reset": True})]


@on_a_device
@pytest.mark.parametrize(("fake", "options"), LOST, ids=["Isaac Lab", "mjlab"])
def test_the_observation_before_stands_for_a_lost_one(fake: Any, options: Any) -> None:
    with pytest.warns(UserWarning, match="are lost"):
        sampler = make_sampler(
            fake, "gpu", fake_options={**options, "cage_options": {"lost_final_obs": "previous"}}
        )
    n_cut = 0
    for _ in range(3):
        samples, _ = sampler.collect_batch()
        cut = samples["truncated"].to_ndarray() & ~samples["terminated"].to_ndarray()
        value = samples["agent_info"]["value"].to_ndarray()
        np.testing.assert_array_equal(samples["final_value"].to_ndarray()[cut], value[cut])
        n_cut += int(cut.sum())
    assert n_cut > 3


class Wrong(ManiSkill):
    """Changes what a step returns."""

    change: Callable[[DeviceStep], DeviceStep]

    def step(self, action: Any) -> DeviceStep:
        return type(self).change(super().step(action))


def wrong(change: Callable[[DeviceStep], DeviceStep]) -> dict[str, Any]:
    dialect = type("Changed", (Wrong,), {"change": staticmethod(change)})
    return {"cage_options": {"make_dialect": dialect}}


def without_final(step: DeviceStep) -> DeviceStep:
    return step._replace(final_obs=None, has_final=None)


def with_inverted_mask(step: DeviceStep) -> DeviceStep:
    return step if step.final_obs is None else step._replace(has_final=~step.has_final)


@on_a_device
@pytest.mark.parametrize("side", all_but_first(["gpu", "host"]))
@pytest.mark.parametrize("change", [without_final, with_inverted_mask])
def test_an_end_without_a_last_observation_is_found(side: str, change: Any) -> None:
    sampler = make_sampler(FakeManiSkill, side, fake_options=wrong(change))
    message = r"got nothing for environment \d at step \d of the batch"
    with pytest.raises(RuntimeError, match=message):
        batches_of(sampler)


@pytest.mark.parametrize("change", [without_final, with_inverted_mask])
def test_last_observations_of_the_batch_before_do_not_count(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Agent, "n_actions", 2)
    n_steps = itertools.count()

    def change_late(step: DeviceStep) -> DeviceStep:
        return step if next(n_steps) < 2 * T else change(step)

    make_env = functools.partial(Clock, length=T, end="truncated")  # each batch ends at its end
    sampler = make_sampler(FakeManiSkill, "host", make_env, fake_options=wrong(change_late))
    batches_of(sampler, 2)
    with pytest.raises(RuntimeError, match="got nothing for environment 0 at step 5 of the batch"):
        sampler.collect_batch()


@on_a_device
@pytest.mark.parametrize("side", all_but_first(["gpu", "host"]))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda step: step._replace(reward=step.reward[:, None]),
            r"reward: got shape \(4, 1\), exp",
        ),
        (lambda step: step._replace(reward=step.reward[:1]), r"reward: got shape \(1,\), expected"),
        (
            lambda step: step._replace(terminated=step.reward),
            r"terminated: got float64, expected bool, as the tree",
        ),
        (
            lambda step: step._replace(observation={"x": step.observation}),
            r"observation: got \['observation.x'\], expected",
        ),
        (lambda step: step._replace(reward=1.0), r"reward: got .*, expected shape \(4,\)"),
    ],
    ids=["an axis more", "a row", "another kind", "a branch", "no array"],
)
def test_results_that_do_not_fit_are_refused(side: str, change: Any, message: str) -> None:
    sampler = make_sampler(FakeManiSkill, side, fake_options=wrong(change))
    with pytest.raises(MisfitError, match=message):
        sampler.collect_batch()


# What else a sampler tells


@on_a_device
@pytest.mark.parametrize("side", all_but_first(["gpu", "host"]))
def test_a_replay_is_told_of_the_same_ends(side: str) -> None:
    found = []
    for fake in (FakeManiSkill, None):
        where = side if fake else "host"
        storage = "device" if where == "gpu" else "local"
        samples = make_tree(Agent("host"), storage, full_size=3 * T)
        replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
        cage = (
            make_device_cage(fake, Walk, n_envs=B, seed=3, side=side)
            if fake
            else SerialCage(Walk, n_envs=B, seed=3)
        )
        sampler = BasicSampler([cage], Agent(where), samples, replay=replay)
        for _ in range(5):
            sampler.collect_batch()
        batch = replay.sample(256)
        assert int((batch["truncated"] & ~batch["terminated"]).sum()) > 9
        found.append({str(path): leaf.tolist() for path, leaf in batch.walk()})
    assert found[0] == found[1]


class Observer(Agent):
    """Notes what a sampler shows to agents that learn of observations."""

    observes = True

    def begin_batch(self) -> None:
        self.seen: list[Any] = []

    def observe(self, rows: Any, *, valid: Any, final_obs: Any) -> None:
        assert valid is None
        final = [] if final_obs is None else final_obs.to_ndarray().tolist()
        self.seen = [rows.to_ndarray().tolist(), sorted(final)]


@on_a_device
@pytest.mark.parametrize("side", all_but_first(["gpu", "host"]))
def test_an_agent_that_observes_sees_the_same(side: str) -> None:
    found = []
    for sampler in (make_sampler(FakeIsaacLab, side), make_serial()):
        sampler.agent = Observer(sampler.agent._side)
        seen = []
        for _ in range(3):
            sampler.collect_batch()
            seen.append(sampler.agent.seen)
        found.append(seen)
    assert found[0] == found[1]
    assert len(found[0][0][1]) > 1


class OwnStep(TrajInfo):
    def step(self, *args: Any) -> None:
        super().step(*args)


def test_a_summary_that_asks_for_each_step_is_refused() -> None:
    cage = make_device_cage(FakeManiSkill, Walk, None, OwnStep, n_envs=B)
    with pytest.raises(TypeError, match="make_traj_info: OwnStep has a step of its own"):
        BasicSampler([cage], Agent("host"), make_tree(Agent("host"), "local"))


@on_a_device
def test_a_tree_on_the_other_side_is_filled_through_the_host() -> None:
    for side, storage in (("gpu", "local"), ("host", "device")):
        cage = make_device_cage(FakeManiSkill, Walk, n_envs=B, seed=3, side=side)
        samples = make_tree(Agent("host"), storage)
        sampler = BasicSampler([cage], Agent("host"), samples)
        assert not isinstance(sampler._groups[0], DeviceGroup)
        assert batches_of(sampler)[0] == batches_of(make_serial())[0]


@on_a_device
@pytest.mark.parametrize("form", all_but_first([np.ndarray.tolist, np.array, np.int32]))
def test_actions_of_the_host_come_to_the_device(form: Any) -> None:
    sampler = make_sampler(FakeManiSkill, "gpu")
    sampler.agent = OtherForm(form)
    assert batches_of(sampler) == batches_of(make_serial())


class OtherForm(Agent):
    """Acts by values of the host, or of another dtype."""

    def __init__(self, form: Any) -> None:
        super().__init__("host")
        self._form = form

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, info = super().step(observation)
        return self._form(action.numpy()), {"value": info["value"].numpy()}


@on_a_device
@first_fake
def test_all_steps_may_be_traced_and_the_host_may_look_in_between(fake: type[Fake]) -> None:
    sampler, serial = make_sampler(fake, "gpu"), make_serial()
    for _ in range(2):
        samples, _, _ = sampler.collect_traced()
        expected, _ = serial.collect_batch()
    (cage,) = sampler.cages
    cage.random_step_async()
    _, observation, *_ = cage.await_step()
    assert observation.shape == (B, 3)
    for name in ("observation", "reward", "action"):
        assert samples[name].to_ndarray().tolist() == expected[name].to_ndarray().tolist()


@on_a_device
def test_stacks_that_are_stored_in_parts_are_refused() -> None:
    samples = make_tree(Agent("host"), "device")
    samples["observation"] = FrameArray((T, B), "f4", (), stack=3, padding=1, storage="device")
    cage = make_device_cage(FakeManiSkill, Walk, n_envs=B, side="gpu")
    with pytest.raises(ValueError, match="samples: observation is a FrameArray, whose rows"):
        BasicSampler([cage], Agent("gpu"), samples)


def test_a_batch_that_was_cut_short_is_forgotten() -> None:
    with simulated_cuda("lazy"):
        sampler = make_sampler(FakeManiSkill, "gpu")
        agent, step = sampler.agent, sampler.agent.step
        sampler.collect_batch()

        def fail(*_: Any, **__: Any) -> Any:
            if agent._n_steps % T == 3:
                agent._n_steps += 1
                raise KeyboardInterrupt
            return step(*_, **__)

        agent.step = fail
        with pytest.raises(KeyboardInterrupt):
            sampler.collect_batch()
        agent.step = step
        samples, episodes = sampler.collect_batch()
        assert np.isfinite(samples["reward"].to_ndarray()).all()
        assert all(episode.length <= T for episode in episodes)
        sampler.close()
        sampler.close()


# Without a wait


class Prepared(Dialect):
    """Returns arrays of the device that were made before, so that no step of it waits."""

    def __init__(self, env: Any) -> None:
        space = Walk.observation_space
        super().__init__(env, B, space, Walk.action_space, "gpu")
        rng = np.random.default_rng(0)
        self.rows = [rng.normal(size=(B, 3)).astype(np.float32) for _ in range(4 * T)]
        self.flags = [rng.random(B) < 0.3 for _ in self.rows]
        self._steps = [
            DeviceStep(*map(cuda.to_device, (rows, rows[:, 0], ~flags, flags)), {}, None)
            for rows, flags in zip(self.rows, self.flags, strict=True)
        ]
        self._n_steps = 0

    def reset(self, seeds: Any) -> Any:
        return self._steps[0].observation, {}

    def step(self, action: Any) -> DeviceStep:
        step = self._steps[self._n_steps]
        self._n_steps += 1
        return step._replace(final_obs=step.observation[::-1].copy())

    def to_action(self, action: Any) -> Any:
        return action

    def close(self) -> None:
        pass


class PreparedAgent:
    def __init__(self) -> None:
        self.actions = [np.random.default_rng(n).integers(0, 4, B) for n in range(4 * T)]
        self._given = [
            (cuda.to_device(each), {"value": cuda.to_device(each.astype(np.float32))})
            for each in self.actions
        ]
        self._n_steps = 0

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        self._n_steps += 1
        return self._given[self._n_steps - 1]

    def value(self, observation: Any) -> Any:
        return np.zeros(len(observation), np.float32)


@each_schedule
def test_no_step_waits_or_takes_the_table_of_another(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed):
        samples = make_tree(Agent("host"), "device")
        cage = DeviceCage(Walk, make_dialect=Prepared)
        agent = PreparedAgent()
        sampler = BasicSampler([cage], agent, samples)
        for number in range(3):
            before = copy.copy(cuda.counters)
            sampler.collect_batch()
            counts = cuda.counters.since(before)
            if number:
                assert (counts.event_synchronizations, counts.copies_to_host) == (1, 1)
                assert counts.stream_synchronizations == 0
            steps = slice(number * T, (number + 1) * T)
            for name, expected in (
                ("reward", [rows[:, 0] for rows in cage._dialect.rows[steps]]),
                ("truncated", cage._dialect.flags[steps]),
                ("action", agent.actions[steps]),
            ):
                assert samples[name].to_ndarray().tolist() == np.array(expected).tolist(), name


class EchoAgent:
    """Acts at random in a space of parts, with results on a side or in plain lists."""

    def __init__(self, side: str, n_envs: int, as_leaf: Any = None) -> None:
        self._rng, self._n_envs = np.random.default_rng(5), n_envs
        self._as_leaf = as_leaf or (lambda values: put_tensor(values, side))

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        first, second = (self._rng.integers(0, n, self._n_envs) for n in (3, 4))
        return {"0": self._as_leaf(first), "1": {"x": self._as_leaf(second)}}, {}


@on_a_device
@pytest.mark.parametrize("n_envs", all_but_first([3, 1]))
@pytest.mark.parametrize("as_leaf", [None, np.ndarray.tolist], ids=["tensors", "lists"])
def test_actions_of_parts_come_in_the_spaces_own_form(n_envs: int, as_leaf: Any) -> None:
    parts = spaces.Tuple((spaces.Discrete(3), spaces.Dict({"x": spaces.Discrete(4)})))
    make_env = functools.partial(Echo, parts, length=4)
    example, found = build_example(make_env, storage="local"), []
    for fake, side in ((FakeManiSkill, "gpu"), (FakeFunctional, "host"), (None, "host")):
        agent = EchoAgent(side, n_envs, as_leaf)
        cage = (
            make_device_cage(fake, make_env, n_envs=n_envs, seed=2, side=side)
            if fake
            else SerialCage(make_env, n_envs=n_envs, seed=2)
        )
        tree = build_sample_tree(example, EchoAgent("host", 1), batch_shape=(T, n_envs))
        samples = tree.new_array(storage="device" if side == "gpu" else "local")
        sampler = BasicSampler([cage], agent, samples)
        assert isinstance(sampler._groups[0], DeviceGroup) == bool(fake)
        for _ in range(2):
            sampler.collect_batch()
        found.append({str(path): leaf.to_ndarray().tolist() for path, leaf in samples.walk()})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_environments_get_numbers_for_masks(dtype: Any) -> None:
    given = []

    class Reads(FakeManiSkill):
        def step(self, actions: Any) -> Any:
            given.append((str(actions.dtype), actions.tolist()))
            return super().step(actions)

    class Masks(Agent):
        def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
            _, info = super().step(observation)
            return put_tensor((np.arange(B) % 2).astype(dtype), self._side), info

    cage = make_device_cage(Reads, Walk, n_envs=B, seed=3, side="host")
    samples = make_tree(Agent("host"), "local")
    BasicSampler([cage], Masks("host"), samples).collect_batch()
    assert given == [(f"torch.{samples['action'].dtype}", [0, 1, 0, 1])] * T
    assert samples["action"][0].to_ndarray().tolist() == [0, 1, 0, 1]

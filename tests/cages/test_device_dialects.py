"""What a DeviceCage refuses, what it says of what is lost, and what each dialect does with it."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from device_cages import DIALECTS, make_device_cage
from parllel.cages import DeviceCage, DeviceStep, MisfitError
from parllel.cages.device.functional import Functional
from parllel.cages.device.isaac_lab import IsaacLab, Mjlab, as_gymnasium
from parllel.cages.device.known_dialects import dialect_of
from parllel.cages.device.maniskill import ManiSkill
from parllel.cages.device.tensors import refuse_shared_memory
from parllel.testing.contracts.cage_calls import idle, reset, step
from parllel.testing.device_envs import (
    FakeFunctional,
    FakeIsaacLab,
    FakeManiSkill,
    FakeMjlab,
)
from parllel.testing.toy_envs import Clock

B = 3
each_fake = pytest.mark.parametrize("fake", DIALECTS, ids=lambda fake: fake.__name__)
LOST = [(FakeIsaacLab, {"compute_final_obs": False}), (FakeMjlab, {"auto_reset": True})]
each_loss = pytest.mark.parametrize(("fake", "options"), LOST, ids=["Isaac Lab", "mjlab"])


# Which one it is


def test_the_class_tells_the_dialect() -> None:
    found = [
        type(dialect_of(fake([Clock] * B)))
        for fake in (FakeManiSkill, FakeIsaacLab, FakeMjlab, FakeFunctional)
    ]
    assert found == [ManiSkill, IsaacLab, Mjlab, Functional]


class Unknown(Clock):
    num_envs = 4

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_an_unknown_environment_is_refused_by_what_it_lacks() -> None:
    env = Unknown()
    with pytest.raises(
        TypeError, match=r"Unknown with num_envs = 4.*no VectorEnv.*no is_vector_en"
    ):
        DeviceCage(lambda: env)
    assert env.is_closed
    with pytest.raises(TypeError, match=r"Clock, which has no num_envs.*SerialCage"):
        DeviceCage(Clock)
    env.is_vector_env = True
    with pytest.raises(
        TypeError, match="Unknown with is_vector_env, which has no device, cfg, sin"
    ):
        DeviceCage(lambda: env)


def test_a_reset_in_the_next_step_is_refused() -> None:
    with pytest.raises(ValueError, match="autoreset_mode: got NEXT_STEP, expected SAME_STEP or DI"):
        DeviceCage(SyncVectorEnv, {"env_fns": [Clock] * 2})


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_gymnasiums_own_keys_are_known(mode: AutoresetMode) -> None:
    class Tensors(FakeManiSkill):
        def __init__(self) -> None:
            super().__init__([Clock] * 2, auto_reset=mode is AutoresetMode.SAME_STEP)
            self.metadata = {"autoreset_mode": mode}

        def step(self, actions: Any) -> Any:
            *results, info = super().step(actions)
            for name in ("final_obs", "_final_obs"):
                old = name.replace("final_obs", "final_observation")
                if old in info:
                    info[name] = info.pop(old)
            return *results, info

    with DeviceCage(Tensors) as cage:
        reset(cage)
        for _ in range(3):
            step(cage, idle(2))
        assert {key: value.tolist() for key, value in cage.final_obs.items()} == {
            0: [0, 3],
            1: [0, 3],
        }


# Last observations


@each_loss
def test_lost_observations_are_refused_or_said_once(fake: Any, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match=r"final_obs: .* lost: .*(compute_final_obs|auto_reset)"):
        make_device_cage(fake, Clock, n_envs=B, **options)
    with pytest.warns(UserWarning, match="are lost: ") as said:
        cage = make_device_cage(
            fake, Clock, n_envs=B, cage_options={"lost_final_obs": "previous"}, **options
        )
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reset(cage)
        for _ in range(3):
            step(cage, idle(B))
    # The observation that the last action followed stands for the lost one.
    assert [each.tolist() for each in cage.final_obs.values()] == [[0, 2]] * B


def test_the_word_for_lost_observations_is_one_of_two() -> None:
    with pytest.raises(
        ValueError, match=r"lost_final_obs: got 'value', expected .raise. or .previous."
    ):
        make_device_cage(FakeIsaacLab, Clock, cage_options={"lost_final_obs": "value"})


def test_a_final_observation_in_the_memory_of_the_next_one_is_found() -> None:
    with make_device_cage(FakeManiSkill, Clock, n_envs=B, is_aliased=True) as cage:
        reset(cage)
        step(cage, idle(B))
        step(cage, idle(B))
        with pytest.raises(RuntimeError, match=r"final_observation'\]: it has the memory .* 828"):
            step(cage, idle(B))


@pytest.mark.parametrize("as_library", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("kept", "overwritten", "is_shared"),
    [
        (np.s_[0:3], np.s_[0:3], True),
        (np.s_[0:3], np.s_[2:4], True),  # one row of it, which is not the first
        (np.s_[2:4], np.s_[0:3], True),
        (np.s_[0:2], np.s_[2:4], False),
        (np.s_[:, 0], np.s_[:, 1], False),  # columns of one buffer, side by side
        (np.s_[:, 0:2], np.s_[:, 1], True),
        (np.s_[0:0], np.s_[0:3], False),
    ],
)
def test_memory_in_common_is_found_wherever_it_begins(
    as_library: Callable[[Any], Any], kept: Any, overwritten: Any, is_shared: bool
) -> None:
    memory = np.zeros((4, 3), np.float32)
    trees = {"a": np.ones(4), "b": as_library(memory)[kept]}, (as_library(memory)[overwritten],)
    refused = pytest.raises(RuntimeError, match=r"final.*b.*: it has the memory")
    told = refused if is_shared else nullcontext()
    with told:
        refuse_shared_memory(*trees, "final", "clone it")


class Forgetful(ManiSkill):
    """Leaves out last observations, or says that it has them where it has not."""

    def __init__(self, env: Any, *, inverts: bool) -> None:
        super().__init__(env)
        self._inverts = inverts

    def step(self, action: Any) -> DeviceStep:
        step = super().step(action)
        if step.final_obs is None:
            return step
        if self._inverts:
            return step._replace(has_final=~step.has_final)
        return step._replace(final_obs=None, has_final=None)


@pytest.mark.parametrize("inverts", [False, True])
def test_an_end_without_a_last_observation_is_found(inverts: bool) -> None:
    options = {"make_dialect": lambda env: Forgetful(env, inverts=inverts)}
    with make_device_cage(FakeManiSkill, Clock, n_envs=B, cage_options=options) as cage:
        reset(cage)
        step(cage, idle(B))
        step(cage, idle(B))
        with pytest.raises(
            RuntimeError, match="final_obs: got nothing for environment 0, expected"
        ):
            step(cage, idle(B))


# Their own words


def test_infos_of_all_environments_are_left_out() -> None:
    class Logs(FakeIsaacLab):
        def step(self, action: Any) -> Any:
            *results, extras = super().step(action)
            return *results, extras | {"log": {"mean": torch.tensor(3.0)}, "n": 5}

    with DeviceCage(Logs, {"env_fns": [Clock] * 2}) as cage:
        reset(cage)
        *_, infos = step(cage, idle(2))
    assert set(infos[0]) == {"step", "nested", "odd"}


def test_observation_groups_are_branches() -> None:
    with DeviceCage(FakeMjlab, {"env_fns": [Clock] * 2}) as cage:
        observation, _ = reset(cage)
        assert cage.observation_space == spaces.Dict({"policy": Clock.observation_space})
    assert observation["policy"].tolist() == [[0, 0]] * 2


def test_spaces_of_mjlab_become_gymnasiums() -> None:
    box = SimpleNamespace(low=-1.0, high=2.0, shape=(3,))
    space = as_gymnasium(SimpleNamespace(spaces={"actor": box}))
    assert space == spaces.Dict({"actor": spaces.Box(-1, 2, (3,))})


def test_isaac_lab_takes_the_first_seed_as_one_with_a_sign() -> None:
    class Seeds(FakeIsaacLab):
        def reset(self, *, seed: Any = None, **kwargs: Any) -> Any:
            self.seed = seed
            return super().reset(**kwargs)

    env = Seeds([Clock] * 2)
    dialect = IsaacLab(env)
    dialect.reset([2**32 - 1, 5])
    assert env.seed == 2**31 - 1
    dialect.reset(None)
    assert env.seed is None


@each_fake
def test_a_closed_cage_says_so(fake: Any) -> None:
    cage = make_device_cage(fake, Clock, n_envs=2)
    reset(cage)
    cage.close()
    cage.close()
    with pytest.raises(RuntimeError, match="the cage is closed"):
        cage.start_on_device(torch.zeros(2, dtype=torch.int64))


@each_fake
def test_a_step_on_the_device_needs_a_reset(fake: Any) -> None:
    with (
        make_device_cage(fake, Clock, n_envs=2) as cage,
        pytest.raises(RuntimeError, match="step before reset"),
    ):
        cage.start_on_device(torch.zeros(2, dtype=torch.int64))


# Results that are not what a batch is


def change_result(index: int, change: Callable[[Any], Any], **options: Any) -> DeviceCage:
    class Changed(FakeManiSkill):
        def step(self, actions: Any) -> Any:
            results = list(super().step(actions))
            results[index] = change(results[index])
            return tuple(results)

    return make_device_cage(Changed, Clock, {"length": 3}, n_envs=B, **options)


@pytest.mark.parametrize("auto_reset", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("reward", lambda values: values.sum()),
        ("reward", lambda values: values[:1]),
        ("reward", lambda values: values[:, None]),
        ("terminated", lambda values: values[:, None]),
        ("truncated", lambda values: values[:1]),
    ],
)
def test_numbers_that_only_broadcast_are_refused(
    name: str, change: Callable[[Any], Any], auto_reset: bool
) -> None:
    index = ["observation", "reward", "terminated", "truncated"].index(name)
    with change_result(index, change, auto_reset=auto_reset) as cage:
        reset(cage)
        with pytest.raises(MisfitError, match=rf"{name}: got .*\(.*\), expected .*\({B},\)"):
            step(cage, idle(B))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_flags_that_are_no_bool_can_not_choose_what_is_reset(dtype: torch.dtype) -> None:
    with change_result(2, lambda flags: flags.to(dtype), auto_reset=False) as cage:
        reset(cage)
        with pytest.raises(
            MisfitError, match=r"terminated: got torch\.\w+ \(3,\), expected a tensor of torch.bool"
        ):
            step(cage, idle(B))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda rows: rows[:1], r"shape \(1, 2\)"),
        (lambda rows: rows[:, :1], r"shape \(3, 1\)"),
        (lambda rows: {"surplus": rows}, "no such member"),
    ],
)
def test_rows_of_a_partial_reset_are_not_broadcast(change: Callable[[Any], Any], got: str) -> None:
    class Changed(FakeManiSkill):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            observation, info = super().reset(seed=seed, options=options)
            return (observation if options is None else change(observation)), info

    cage = make_device_cage(Changed, Clock, {"length": 1}, n_envs=B, auto_reset=False)
    with cage:
        reset(cage)
        with pytest.raises(MisfitError, match=rf"observation: got {got} of a reset, expected"):
            step(cage, idle(B))


def test_first_observations_have_a_row_for_each_environment() -> None:
    class OneRow(FakeManiSkill):
        def reset(self, **options: Any) -> Any:
            observation, info = super().reset(**options)
            return observation[:1], info

    with make_device_cage(OneRow, Clock, n_envs=B) as cage:
        with pytest.raises(MisfitError, match=r"observation: got shape \(1, 2\), expected 3 rows"):
            reset(cage)
        with pytest.raises(RuntimeError, match="step before reset"):
            step(cage, idle(B))


def test_the_observation_before_is_that_of_the_last_step_on_the_device() -> None:
    options = {"compute_final_obs": False, "cage_options": {"lost_final_obs": "previous"}}
    with pytest.warns(UserWarning, match="final_obs"):
        cage = make_device_cage(FakeIsaacLab, Clock, {"length": 3}, n_envs=2, **options)
    with cage:
        reset(cage)
        for _ in range(2):
            cage.start_on_device(torch.zeros(2, dtype=torch.int64))
            cage.await_on_device()
        step(cage, idle(2))  # which ends the episodes, and is asked for by the host
        assert cage.final_obs[0].tolist() == [0, 2]

"""DeviceCage against the contract of all cages, over fakes of each dialect."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformAction

from parllel.cages import Cage, DeviceCage, Seed, TrajInfo
from parllel.cages.device.isaac_lab import IsaacLab, Mjlab
from parllel.cages.device.known_dialects import dialect_of
from parllel.testing.contracts.cage_contract import CageContract
from parllel.testing.device_envs import (
    Fake,
    FakeFunctional,
    FakeIsaacLab,
    FakeManiSkill,
    FakeMjlab,
)


class SeedsEach:
    """Gives the fake, whose environments are to equal those of a SerialCage, a seed for each."""

    def _seed_of(self, seeds: Any) -> Any:
        return list(seeds)


class SeededIsaacLab(SeedsEach, IsaacLab):
    pass


class SeededMjlab(SeedsEach, Mjlab):
    pass


DIALECTS: dict[type[Fake], Any] = {
    FakeManiSkill: dialect_of,
    FakeIsaacLab: SeededIsaacLab,
    FakeMjlab: SeededMjlab,
    FakeFunctional: dialect_of,
}


def make_with_arrays(make_env: Callable[..., gym.Env], kwargs: Mapping[str, Any]) -> gym.Env:
    """Make an environment, and give it arrays where gymnasium's vectors give plain numbers."""
    env = make_env(**kwargs)
    if isinstance(env.action_space, spaces.Box) and env.action_space.shape == ():
        return TransformAction(env, np.asarray, env.action_space)
    return env


def make_device_cage(
    fake: type[Fake],
    make_env: Callable[..., gym.Env],
    env_kwargs: Mapping[str, Any] | None = None,
    make_traj_info: Callable[[], TrajInfo] = TrajInfo,
    *,
    n_envs: int = 1,
    seed: Seed = None,
    **options: Any,
) -> DeviceCage:
    env_fns = [functools.partial(make_with_arrays, make_env, env_kwargs or {})] * n_envs
    kwargs = {"env_fns": env_fns, **options}
    make_dialect = DIALECTS[fake]
    return DeviceCage(fake, kwargs, make_traj_info, seed=seed, make_dialect=make_dialect)


class OverFake(CageContract):
    makes_envs = False
    fake: ClassVar[type[Fake]]
    side: ClassVar[str] = "gpu"

    @pytest.fixture(autouse=True)
    def on_a_device(self, cuda_device: torch.device) -> None:
        return

    def make_cage(
        self,
        make_env: Callable[..., gym.Env],
        env_kwargs: Mapping[str, Any] | None = None,
        make_traj_info: Callable[[], TrajInfo] = TrajInfo,
        *,
        n_envs: int = 1,
        seed: Seed = None,
    ) -> Cage:
        options = {"side": self.side}
        if issubclass(self.fake, FakeIsaacLab):
            options["group"] = None
        return make_device_cage(
            self.fake, make_env, env_kwargs, make_traj_info, n_envs=n_envs, seed=seed, **options
        )


@pytest.mark.long
class TestManiSkill(OverFake):
    fake = FakeManiSkill


@pytest.mark.long
class TestIsaacLab(OverFake):
    fake = FakeIsaacLab


@pytest.mark.long
class TestMjlab(OverFake):
    fake = FakeMjlab


@pytest.mark.long
class TestFunctional(OverFake):
    fake = FakeFunctional


class TestOnTheHost(OverFake):
    fake = FakeManiSkill
    side = "host"

    @pytest.fixture(autouse=True)
    def on_a_device(self) -> None:
        return

"""DeviceCage against the contract of all cages, over fakes of each dialect."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import pytest
import torch

from device_cages import make_device_cage
from parllel.cages import Cage, Seed, TrajInfo
from parllel.testing.contracts.cage_contract import CageContract
from parllel.testing.device_envs import (
    Fake,
    FakeFunctional,
    FakeIsaacLab,
    FakeManiSkill,
    FakeMjlab,
)


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
        kwargs: dict[str, Any] = {"n_envs": n_envs, "seed": seed, "side": self.side}
        return make_device_cage(self.fake, make_env, env_kwargs, make_traj_info, **kwargs)


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


@pytest.mark.long
class TestOnTheHost(OverFake):
    fake = FakeManiSkill
    side = "host"

    @pytest.fixture(autouse=True)
    def on_a_device(self) -> None:
        return

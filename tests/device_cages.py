"""Cages over fakes of environments on a device, one of each dialect, with seeds as SerialCage's."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction

from parllel.cages import DeviceCage, Seed, TrajInfo
from parllel.cages.device.isaac_lab import IsaacLab, Mjlab
from parllel.cages.device.known_dialects import dialect_of
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
    cage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> DeviceCage:
    """Return a cage over a fake; `options` are those of the fake."""
    env_fns = [functools.partial(make_with_arrays, make_env, env_kwargs or {})] * n_envs
    kwargs = {"env_fns": env_fns, **options}
    if issubclass(fake, FakeIsaacLab):
        kwargs.setdefault("group", None)  # so that the tree is that of the environments themselves
    known = next(each for each in fake.__mro__ if each in DIALECTS)
    given = {"make_dialect": DIALECTS[known], **(cage_options or {})}
    return DeviceCage(fake, kwargs, make_traj_info, seed=seed, **given)

"""Seeds of environments: one SeedSequence for each, of which all of its random numbers come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from parllel.ranks import rank

Seed = int | np.random.SeedSequence | Sequence[np.random.SeedSequence] | None
"""One seed for all environments of a cage, or a SeedSequence for each; None for random ones."""


def seed_spaces(
    seeds: Sequence[np.random.SeedSequence], spaces: Sequence[gym.Space[Any]]
) -> list[int]:
    """Return a seed for each environment, and seed their action spaces with another."""
    words = [seed_words(seed) for seed in seeds]
    for space, (_, action_seed) in zip(spaces, words, strict=True):
        space.seed(action_seed)
    return [env_seed for env_seed, _ in words]


def spawn_seeds(seed: Seed, n_envs: int) -> list[np.random.SeedSequence]:
    """Return one SeedSequence for each environment.

    Of several ranks, each has others: with n environments each, rank r has those numbered from
    r * n on, as if one process had all. A SeedSequence for each environment is taken as it is.
    """
    if not isinstance(n_envs, int | np.integer):
        raise TypeError(f"n_envs: got {n_envs!r}, expected an integer")
    if n_envs < 1:
        raise ValueError(f"n_envs: got {n_envs}, expected 1 or more")
    if seed is None or isinstance(seed, int | np.integer):
        if seed is not None and seed < 0:
            raise ValueError(f"seed: got {seed}, expected 0 or more")
        seed = np.random.SeedSequence(None if seed is None else int(seed))
    if isinstance(seed, np.random.SeedSequence):
        first = rank() * n_envs
        return [_child(seed, first + number) for number in range(n_envs)]
    if not _are_sequences(seed):
        raise TypeError(f"seed: got {seed!r}, expected an integer, a SeedSequence, or one for each")
    if len(seed) != n_envs:
        raise ValueError(f"seed: got {len(seed)} SeedSequences, expected {n_envs} = n_envs")
    return list(seed)


def seed_data(seed: np.random.SeedSequence) -> dict[str, Any]:
    """Return a seed as plain data."""
    entropy: Any = seed.entropy
    words = [int(word) for word in entropy] if isinstance(entropy, Sequence) else entropy
    return {"entropy": words, "spawn_key": list(seed.spawn_key), "pool_size": seed.pool_size}


def seed_of(data: Mapping[str, Any]) -> np.random.SeedSequence:
    """Return the seed that `seed_data` was given."""
    return np.random.SeedSequence(
        data["entropy"], spawn_key=data["spawn_key"], pool_size=data["pool_size"]
    )


def seed_words(seed: np.random.SeedSequence) -> tuple[int, int]:
    """Return the seed of an environment's first reset, and the seed of its action space."""
    env_seed, action_seed = seed.generate_state(2)
    return int(env_seed), int(action_seed)


def restart_seed(seed: np.random.SeedSequence) -> np.random.SeedSequence:
    """Return the seed of an environment that replaces one with this seed."""
    return _child(seed, 0)


def _are_sequences(seed: Sequence[Any]) -> bool:
    is_list = isinstance(seed, Sequence)
    return is_list and all(isinstance(each, np.random.SeedSequence) for each in seed)


def _child(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """Return what a fresh `seed.spawn` gives, without using up the caller's SeedSequence."""
    return np.random.SeedSequence(
        seed.entropy, spawn_key=(*seed.spawn_key, number), pool_size=seed.pool_size
    )

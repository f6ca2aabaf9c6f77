"""Dialect: what a cage asks of vectorized environments with tensors; each library has its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from parllel.cages.device.tensors import Tensor, Tensors, as_torch, map_tensors, walk_tensors
from parllel.storages import Side
from parllel.tree.fitting import MisfitError


class DeviceStep(NamedTuple):
    """The results of one step of n environments: their own tensors, which the next one may change.

    >>> DeviceStep("o", "r", "t", "u", {}).final_obs is None
    True

    Args:
        observation: tree of tensors [n, ...]; of the environments whose episode ended, the first
            observation of the next one.
        reward: tensor [n].
        terminated, truncated: bool tensors [n].
        info: the infos of the step itself, with tensors [n, ...] and other things.
        final_obs: tree of tensors [n, ...], the observations before any reset. Only the rows of
            environments whose episode ended mean anything. None where the host knows that no
            episode ended, and where they are lost.
        has_final: bool tensor [n], which rows of `final_obs` mean something; None where the
            environment does not say so.
    """

    observation: Tensors
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: Mapping[str, Any]
    final_obs: Tensors = None
    has_final: Tensor = None


class Dialect(ABC):
    """Vectorized environments, behind the few words that a `DeviceCage` uses.

    Subclass it for a library that parllel does not know, and give the class to the cage as
    `make_dialect`. Nothing here may wait for a device unless its docstring says so.

    Args:
        env: the library's environment.
        n_envs: number of environments.
        observation_space, action_space: gymnasium's spaces of a single environment.
        side: where its tensors are, "gpu" or "host".

    Attributes:
        loses_final_obs: empty; or why true last observations are lost, and how to get them.
        resets_some: whether `reset_some` works.

    Example:
        >>> from parllel.testing.device_envs import FakeManiSkill
        >>> from parllel.testing.toy_envs import Clock
        >>> from parllel.cages.device.known_dialects import dialect_of
        >>> dialect = dialect_of(FakeManiSkill([Clock] * 2))
        >>> type(dialect).__name__, dialect.n_envs, dialect.side, dialect.resets_some
        ('ManiSkill', 2, 'host', True)
    """

    loses_final_obs: str = ""
    resets_some: bool = False

    def __init__(
        self,
        env: Any,  # Any: libraries have no class in common
        n_envs: int,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        side: Side,
    ) -> None:
        self.env = env
        self.n_envs = n_envs
        self.observation_space = observation_space
        self.action_space = action_space
        self.side = side

    @abstractmethod
    def reset(self, seeds: Sequence[int] | None) -> tuple[Tensors, Mapping[str, Any]]:
        """Reset all environments; return their first observations and infos.

        Args:
            seeds: one for each environment, of 32 bits; None where they were seeded before. A
                library that takes a single one for all is given the first.
        """

    @abstractmethod
    def step(self, action: Tensors) -> DeviceStep:
        """Step all environments, and reset those whose episode ended.

        Args:
            action: what `to_action` returned.
        """

    def reset_some(self, chosen: Tensor) -> Tensors:
        """Reset some environments; return observations whose rows of these are first ones.

        Args:
            chosen: bool tensor [n], in the library's own form. The host may wait for it.
        """
        raise NotImplementedError(f"{type(self).__name__}: it resets all environments or none")

    def to_action(self, action: Tensors) -> Tensors:
        """Return actions as the library takes them: here tensors of torch, on its own side.

        Args:
            action: n rows: arrays of NumPy or CuPy, Arrays or tensors, or a tree of these. What is
                on the environment's side and not NumPy's is not copied.
        """
        return map_tensors(lambda leaf: as_torch(leaf, self.side), action)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


def side_of_device(device: object) -> Side:
    """Return the side of a device as torch's libraries name it: "cuda:0", or an object of torch.

    >>> side_of_device("cuda:0"), side_of_device("cpu")
    ('gpu', 'host')
    """
    return "gpu" if str(device).startswith("cuda") else "host"


def select_rows(chosen: Tensor, rows: Tensors, others: Tensors) -> Tensors:
    """Return new tensors with some rows of one tree and all else of another; torch's tensors.

    Args:
        chosen: bool tensor [n].
        rows, others: trees of tensors [n, ...] of the same form.

    Raises:
        MisfitError: they have other members or shapes; nothing is broadcast.
    """
    import torch

    found, expected = dict(walk_tensors(rows)), dict(walk_tensors(others))
    for path in [*expected, *(found.keys() - expected.keys())]:
        shapes = [tuple(each[path].shape) if path in each else None for each in (found, expected)]
        if shapes[0] != shapes[1]:
            got, wanted = ("no such member" if s is None else f"shape {s}" for s in shapes)
            raise MisfitError(
                f"{got} of a reset", f"{wanted}, as of a step", path=("observation", *path)
            )

    def select(row: Any, other: Any) -> Any:
        return torch.where(chosen.reshape(-1, *[1] * (row.ndim - 1)), row, other)

    return map_tensors(select, rows, others)

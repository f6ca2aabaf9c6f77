"""Calls of cages that wait for the results, and comparisons of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.cages import Cage, TrajInfo, as_tree
from parllel.cages.values.env_rows import Value
from parllel.tree import ArrayDict, leaves_of, path_text


@dataclass(slots=True)
class DiaryInfo(TrajInfo):
    """A TrajInfo that keeps the arguments of each step."""

    entries: list[tuple[Any, ...]] = field(default_factory=list, init=False)

    def step(
        self,
        observation: Value,
        action: Value,
        reward: SupportsFloat,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
    ) -> None:
        """Take in one step."""
        TrajInfo.step(self, observation, action, reward, terminated, truncated, info)
        told = (
            np.asarray(observation).tolist(),
            int(np.asarray(action)),
            float(reward),
            terminated,
            truncated,
            info["step"],
        )
        self.entries.append(told)


@dataclass
class Told(TrajInfo):
    """A TrajInfo that keeps rewards and flags as it is told them."""

    rewards: list[Any] = field(default_factory=list, init=False)
    flags: list[Any] = field(default_factory=list, init=False)

    def step(self, *told: Any) -> None:
        """Take in one step."""
        TrajInfo.step(self, *told)
        self.rewards.append(told[2])
        self.flags.append(told[3])


def reset(cage: Cage, **outputs: Any) -> Any:
    """Reset and wait."""
    cage.reset_async(**outputs)
    return cage.await_step()


def step(cage: Cage, action: Value, **outputs: Any) -> Any:
    """Step and wait."""
    cage.step_async(action, **outputs)
    return cage.await_step()


def random_step(cage: Cage, **outputs: Any) -> Any:
    """Take a random step and wait."""
    cage.random_step_async(**outputs)
    return cage.await_step()


def idle(n_envs: int) -> Any:
    """Return actions that every `Discrete` space has, as a cage of so many takes them."""
    return np.zeros(n_envs, np.int64) if n_envs > 1 else np.int64(0)


def floats(*values: float) -> NDArray[np.float32]:
    """Return an observation of a `Clock`, or anything else in float32."""
    return np.array(values, np.float32)


def assert_rows(value: object, row: object, n_envs: int) -> None:
    """Check that a result is this row, or this row for each of several environments.

    A row of NumPy says the dtype too.
    """
    expected = np.asarray(row) if n_envs == 1 else np.stack([np.asarray(row)] * n_envs)
    has_dtype = isinstance(row, np.generic | np.ndarray)
    assert np.asarray(value).shape == expected.shape
    np.testing.assert_array_equal(np.asarray(value), expected, strict=has_dtype)


def flat(value: object) -> dict[str, NDArray[Any]]:
    """Return the leaves of an array, a tree or a tuple by the text of their paths."""
    return {path_text(path): np.asarray(leaf) for path, leaf in leaves_of(as_tree(value))}


def assert_same(value: object, expected: object) -> None:
    """Check that two values have the same form, dtypes and bits."""
    got, wanted = flat(value), flat(expected)
    assert got.keys() == wanted.keys()
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path, strict=True)


def rollout(cages: Sequence[Cage], n_steps: int = 40, storage: str = "local") -> ArrayDict:
    """Return the outputs of a reset and random steps of `Walk` environments, cages side by side.

    The branches are [n_steps, B, ...]; `observation` has a row more, and `final_obs` has a branch
    for each true final observation, named by step and column.
    """
    T, B = n_steps, sum(cage.n_envs for cage in cages)
    samples = ArrayDict(
        {
            "observation": Array((T + 1, B), np.float64, feature_shape=(3,), storage=storage),
            "action": Array((T, B), np.int64, storage=storage),
            "reward": Array((T, B), np.float64, storage=storage),
            "terminated": Array((T, B), bool, storage=storage),
            "truncated": Array((T, B), bool, storage=storage),
            "info": {"luck": Array((T, B), np.float64, storage=storage)},
        }
    )
    columns = _columns_of(cages)
    for cage, own in zip(cages, columns, strict=True):
        reset(cage, out_obs=samples["observation"][0, own])
    final_obs = {}
    for t in range(T):
        for cage, own in zip(cages, columns, strict=True):
            cage.random_step_async(
                out_action=samples["action"][t, own],
                out_obs=samples["observation"][t + 1, own],
                out_reward=samples["reward"][t, own],
                out_terminated=samples["terminated"][t, own],
                out_truncated=samples["truncated"][t, own],
                out_info=samples["info"][t, own],
            )
        for cage, own in zip(cages, columns, strict=True):
            cage.await_step()
            first = own if isinstance(own, int) else own.start
            for number, observation in cage.final_obs.items():
                final_obs[f"{t},{first + number}"] = np.array(observation)
    return ArrayDict({**samples.to_ndarray(), "final_obs": final_obs})


def _columns_of(cages: Sequence[Cage]) -> list[int | slice]:
    columns: list[int | slice] = []
    first = 0
    for cage in cages:
        columns.append(first if cage.n_envs == 1 else slice(first, first + cage.n_envs))
        first += cage.n_envs
    return columns

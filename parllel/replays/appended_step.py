"""AppendedStep: what a loop of one's own gives for one step, checked before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from parllel.arrays import Array
from parllel.arrays.interop import side_of, to_host
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.fitting import MisfitError, fit

_FINITE = ("observation", "reward")  # branches in which a NaN would spoil what is learned


class AppendedStep(NamedTuple):
    """One step of B environments, in the form of the rows that it is written to.

    Args:
        rows: a row of each branch of the sample tree but `observation`.
        observation: the observations after the step.
        final_obs: the true final observations of episodes that were truncated, by column.

    >>> samples = ArrayDict({name: Array((1, 2), np.float32) for name in ("observation", "reward")})
    >>> for name in ("terminated", "truncated"):
    ...     samples[name] = Array((1, 2), bool)
    >>> branches = {"reward": [1, 2], "terminated": [True, False], "truncated": [False, False]}
    >>> AppendedStep.of(samples, [0.5, 0.7], branches, {}).rows["reward"]
    array([1., 2.], dtype=float32)
    """

    rows: dict[str, Any]
    observation: Any
    final_obs: dict[int, Any]

    @classmethod
    def of(
        cls,
        samples: ArrayDict,
        observation: object,
        branches: Mapping[str, object],
        final_obs: Mapping[int, object],
    ) -> AppendedStep:
        """Check what was given for a step; nothing is broadcast, wrapped or cut off.

        Raises:
            TypeError: a branch is missing, or is none of the tree.
            ValueError: a value does not fit its rows, an observation or a reward is NaN or
                infinite, or the final observations are not those of truncated episodes.
        """
        needed = {name for name, branch in samples.items() if _has_leaves(branch)}
        needed -= {"observation"}
        if branches.keys() != needed:
            missing, unknown = sorted(needed - branches.keys()), sorted(branches.keys() - needed)
            raise TypeError(
                f"append: branches {missing} are missing and {unknown} are none of the tree,"
                f" expected {sorted(needed)}"
            )
        rows = {name: fitted((name,), samples[name], branches[name]) for name in branches}
        after = fitted(("observation",), samples["observation"], observation)
        _check_ended(rows, final_obs)
        final = {
            column: fitted(("observation",), samples["observation"], each, n_lead=2)
            for column, each in final_obs.items()
        }
        return cls(rows, after, final)


def fitted(path: TreePath, rows: Any, value: Any, *, n_lead: int = 1) -> Any:
    """Return a value in the form of rows of a tree.

    Values in host memory are copied where their dtype is another one; those on a device are not
    looked at, but for their shapes and dtypes.

    Args:
        path: names of the leaf or branch.
        rows: Array [T, B, ...], or a tree of such.
        value: [B, ...], or a tree of such; with n_lead = 2, the value of one environment.
        n_lead: number of leading dimensions of `rows` that the value has not.

    Raises:
        ValueError: it has another shape, would lose something, lacks a branch, or is not finite.
    """
    if isinstance(rows, ArrayDict):
        if not isinstance(value, Mapping) or value.keys() != rows.keys():
            got = sorted(value) if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise ValueError(f"{path_text(path)}: got {got}, expected branches {sorted(rows)}")
        return {
            name: fitted((*path, name), branch, value[name], n_lead=n_lead)
            for name, branch in rows.items()
        }
    shape = rows.shape[n_lead:]
    if n_lead == 1 and hasattr(value, "shape") and side_of(value) == "gpu":
        _check_form(path, value, shape, rows.dtype)
        return value
    try:
        array = fit(to_host(value), shape, rows.dtype)
    except MisfitError as error:
        error.path = path
        raise
    if path[0] in _FINITE and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{path_text(path)}: got a NaN or an infinity, expected finite numbers")
    return array


def _check_form(path: TreePath, value: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Compare shape and dtype of a value on a device, whose numbers nothing looks at."""
    given = str(value.dtype).removeprefix("torch.")
    try:
        is_safe = np.can_cast(np.dtype(given), dtype, "safe")
    except TypeError:  # NumPy has no such dtype
        is_safe = False
    if tuple(value.shape) != shape or not is_safe:
        raise ValueError(
            f"{path_text(path)}: got {tuple(value.shape)}, {given} on a device, expected {shape},"
            f" {dtype}, or a dtype that it holds exactly; convert it before"
        )


def _has_leaves(branch: Array | ArrayDict) -> bool:
    return not isinstance(branch, ArrayDict) or any(True for _ in branch.walk())


def _check_ended(rows: Mapping[str, Any], final_obs: Mapping[int, object]) -> None:
    """Raise unless there is a final observation for each episode that was cut off, and no other."""
    terminated, truncated = (
        np.asarray(to_host(rows[name])).astype(bool) for name in ("terminated", "truncated")
    )
    cut = set(np.flatnonzero(truncated & ~terminated).tolist())
    ended = set(np.flatnonzero(truncated | terminated).tolist())
    if missing := sorted(cut - final_obs.keys()):
        raise ValueError(
            f"final_obs: environments {missing} are truncated, and got no final observation,"
            " expected the true last one of each: next_observation is the first one of its next"
            " episode"
        )
    if surplus := sorted(final_obs.keys() - ended):
        raise ValueError(
            f"final_obs: got one for {surplus}, whose episodes go on, expected columns of"
            f" {sorted(ended)}"
        )

"""AppendedStep: what a loop of one's own gives for one step, checked before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel.arrays import Array, Jagged
from parllel.arrays.interop import side_of, to_host
from parllel.replays.agent_ends import as_flags, ends_of_rows
from parllel.tree import ArrayDict, TreePath, leaves_of, path_text
from parllel.tree.fitting import MisfitError, fit

_FINITE = ("observation", "reward")  # branches in which a NaN would spoil what is learned


class AppendedStep(NamedTuple):
    """One step of B environments, in the form of the rows that it is written to.

    Args:
        rows: a row of each branch of the sample tree but `observation`.
        observation: the observations after the step.
        final_obs: the true final observations of episodes that ended, by column.

    >>> samples = ArrayDict({name: Array((1, 2), np.float32) for name in ("observation", "reward")})
    >>> for name in ("terminated", "truncated"):
    ...     samples[name] = Array((1, 2), bool)
    >>> branches = {"reward": [1, 2], "terminated": [True, False], "truncated": [False, False]}
    >>> AppendedStep.of(samples, 0, [0.5, 0.7], branches, {}).rows["reward"]
    array([1., 2.], dtype=float32)
    """

    rows: dict[str, Any]
    observation: Any
    final_obs: dict[int, Any]

    @classmethod
    def of(
        cls,
        samples: ArrayDict,
        row: int,
        observation: object,
        branches: Mapping[str, object],
        final_obs: Mapping[int, object],
        *,
        needs_terminated: bool = False,
    ) -> AppendedStep:
        """Check what was given for a step; nothing is broadcast, wrapped or cut off.

        Args:
            samples: the sample tree.
            row: the row of its window that has the observations before the step.
            observation, branches, final_obs: as for `ReplayBuffer.append`.
            needs_terminated: whether episodes that terminated need a final observation, too.

        Raises:
            TypeError: a branch is missing, or is none of the tree.
            ValueError: a value does not fit its rows, an observation or a reward is NaN or
                infinite, the final observations are not those of the episodes that need one, or a
                stack of frames does not follow on the one before.
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
        _check_ended(rows, final_obs, needs_terminated=needs_terminated)
        final = {
            column: fitted(("observation",), samples["observation"], each, n_lead=2)
            for column, each in final_obs.items()
        }
        before = samples["observation"][row]
        _check_follows(before, after, "next_observation")
        check_final_obs(before, final, rows.get("valid"))
        return cls(rows, after, final)


def fitted(path: TreePath, rows: Any, value: Any, *, n_lead: int = 1) -> Any:
    """Return a value in the form of rows of a tree.

    Values in host memory are copied where their dtype is another one, and so are those that go
    there from a device. Those that stay on a device are not looked at, but for their shapes and
    dtypes.

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
    elements = _fitted_elements(path, rows[(0,) * n_lead], value)
    if elements is not None:
        return elements
    shape = rows.shape[n_lead:]
    if n_lead == 1 and hasattr(value, "shape") and side_of(value) == "gpu":
        _check_form(path, value, shape, rows.dtype)
        if not rows.is_on_host:
            return value
    try:
        array = fit(to_host(value), shape, rows.dtype)
    except MisfitError as error:
        error.path = path
        raise
    if path[0] in _FINITE and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{path_text(path)}: got a NaN or an infinity, expected finite numbers")
    return array


def _fitted_elements(path: TreePath, rows: Array, value: Any) -> Any:
    """Return elements of different lengths for rows that take such; None for any other rows.

    Args:
        path: names of the leaf.
        rows: [B, ...]; or those of one environment, for its own element.
        value: a Jagged or a list of B elements [n, ...]; or one element.

    Raises:
        ValueError: as for `fitted`.
    """
    try:
        if not rows.check_values(value):  # rows of one shape do not look at it
            return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path_text(path)}: {error}") from error
    host = to_host(value)
    if rows.batch_shape and isinstance(host, np.ndarray) and host.ndim < len(rows.shape):
        raise ValueError(
            f"{path_text(path)}: got one array of shape {host.shape}, expected a Jagged or a list"
            f" of {len(rows)} elements, one for each environment"
        )
    packed = host.packed().values if isinstance(host, Jagged) else host
    given = packed if isinstance(packed, list | tuple) else [packed]
    arrays = (np.asarray(to_host(each)) for each in given)
    if path[0] in _FINITE and not all(map(_is_finite, arrays)):
        raise ValueError(f"{path_text(path)}: got a NaN or an infinity, expected finite numbers")
    return host


def _is_finite(array: Any) -> bool:  # Any: of NumPy
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_final_obs(
    before: Array | ArrayDict, final_obs: Mapping[int, Any], valid: Any = None
) -> None:
    """Refuse final observations that can't be stored behind those that were acted on.

    Agents that had ended before show once more what they saw last, which goes on with nothing.

    Args:
        before: rows [B, ...] of the observations that were acted on.
        final_obs: values of single environments, by their numbers.
        valid: rows of the branch `valid`, bool [B] or those of agents; None where there is none.

    Raises:
        ValueError: a stack of frames does not go on with the one before.
    """
    if any(leaf.row_writer is not None for _, leaf in leaves_of(before)):
        alive = None if valid is None else as_flags(valid)
        for column, value in final_obs.items():
            gone: Any = None
            if isinstance(alive, Mapping):
                gone = {name: _are_gone(rows, column) for name, rows in alive.items()}
            elif alive is not None:
                gone = _are_gone(alive, column)
            _check_follows(before, value, "final_obs", column=column, gone=gone)


def _are_gone(alive: Any, column: int) -> NDArray[np.bool_]:  # Any: flags of the host, or a tree
    """Return which agents of an environment are not alive: [N], or [] of one, or of a tree."""
    if isinstance(alive, Mapping):
        return np.array(not any(rows[column].any() for _, rows in leaves_of(alive)))
    return ~np.asarray(alive[column])


def follows(before: Array | ArrayDict, column: int, observation: Any, valid: Any) -> bool:
    """Return whether `check_final_obs` takes the final observation of an environment."""
    try:
        check_final_obs(before, {column: observation}, valid)
    except ValueError:
        return False
    return True


def _check_follows(
    before: Array | ArrayDict,
    after: Any,
    what: str,
    *,
    column: int | None = None,
    gone: Mapping[str, NDArray[np.bool_]] | NDArray[np.bool_] | None = None,
) -> None:
    """Refuse stacks of frames that can't be stored by their newest frames alone.

    Args:
        before: rows [B, ...] of the observations one step before.
        after: rows [B, ...] of observations, a tree where `before` is one.
        what: what these are, for errors.
        column: given, `after` is the last observation of this environment's episode alone, and so
            does not begin one.
        gone: whose stacks are not looked at: bool [N] of an axis of agents, or by agents' names
            bool [], or [N] where these are an axis.

    Raises:
        ValueError: a stack neither goes on with the one before nor begins an episode.
    """
    begins = " nor begins an episode" if column is None else ""
    for path, leaf in leaves_of(before):
        if (writer := leaf.row_writer) is None:
            continue
        old, new = leaf, to_host(value_at(after, path))
        if column is not None:
            old = leaf[column : column + 1]
            new = new[None] if isinstance(new, np.ndarray) else [new]  # a list is an element, too
        fits = writer.follow(old.to_ndarray(), new, may_begin=column is None)
        is_named = isinstance(gone, Mapping)
        own = gone.get(path[0] if path else "") if isinstance(gone, Mapping) else gone
        if own is not None and (is_named or fits.ndim > 1):
            # Axes that are none of the agents' may lie there, too.
            fits = fits | (own if own.shape == fits.shape[1:] else own.all())
        fits = fits.reshape(len(fits), -1).all(axis=1)
        if not fits.all():
            number = int(fits.argmin()) if column is None else column
            raise ValueError(
                f"{what}: {path_text(('observation', *path))} of environment {number}: its stack"
                " of frames"
                f" {'neither goes' if begins else 'does not go'} on with the one before{begins};"
                " frames are stored once, so a stack has the frames of the one before, less the"
                " oldest, and a new one; use an Array for others"
            )


def value_at(tree: Any, path: TreePath) -> Any:
    """Return the value of a tree of dictionaries and tuples at a path."""
    for name in path:
        tree = tree[int(name)] if isinstance(tree, tuple) else tree[name]
    return tree


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


def _check_ended(
    rows: Mapping[str, Any], final_obs: Mapping[int, object], *, needs_terminated: bool
) -> None:
    """Raise unless there is a final observation for each episode that needs it, all of them ended.

    Args:
        rows: a row of each branch.
        final_obs: by column.
        needs_terminated: whether they are needed where an episode terminated, too.
    """
    terminated, truncated = ends_of_rows(rows)
    cut = set(np.flatnonzero(truncated & ~terminated).tolist())
    ended = set(np.flatnonzero(truncated | terminated).tolist())
    needed, how = (ended, "at an end") if needs_terminated else (cut, "truncated")
    if missing := sorted(needed - final_obs.keys()):
        raise ValueError(
            f"final_obs: environments {missing} are {how}, and got no final observation,"
            " expected the true last one of each: next_observation is the first one of its next"
            " episode"
        )
    if surplus := sorted(final_obs.keys() - ended):
        raise ValueError(
            f"final_obs: got one for {surplus}, whose episodes go on, expected columns of"
            f" {sorted(ended)}"
        )

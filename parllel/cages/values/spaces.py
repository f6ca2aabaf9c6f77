"""How the values of spaces are stored: dtypes, empty rows, and actions made of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from parllel.cages.point_cloud import PointCloud
from parllel.cages.values.jagged_spaces import check_jagged, is_jagged
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.fitting import MisfitError

ACTION_MASK = "action_mask"
"""The name of the member of an observation, or of the entry of an info, that masks actions."""


def check_space(path: TreePath, space: spaces.Space[Any]) -> None:
    """Refuse a space whose values are no arrays, or of observations no arrays [n, ...].

    Raises:
        TypeError: a part of the space can't be stored; the message has its path.
    """
    if is_jagged(space):
        check_jagged(space, path)
        return
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = list(space.items() if isinstance(space, spaces.Dict) else enumerate(space))
        for name, part in parts:
            check_space((*path, str(name)), part)
        is_stored = bool(parts)
    else:
        is_space = isinstance(space, spaces.Space)
        is_stored = is_space and space.dtype is not None and space.shape is not None
    if not is_stored:
        raise TypeError(
            f"{path_text(path)}: got {space}, expected Box, Discrete, MultiDiscrete, MultiBinary,"
            " or a Dict or Tuple of these: values of one shape and dtype; for observations also"
            " PointCloud, Graph or Sequence; wrap the environment"
        )


def stored_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """Return the dtype in which values of a space are stored: 32 bits where those can hold them.

    >>> stored_dtype(spaces.Discrete(4)), stored_dtype(spaces.Discrete(2**40))
    (dtype('int32'), dtype('int64'))

    Args:
        space: a space of arrays. 64-bit floats are rounded, unless a finite bound is beyond what
            float32 has. 64-bit integers stay what they are if a bound is beyond 32 bits.
    """
    dtype: np.dtype[Any] = np.dtype(space.dtype)
    if dtype.kind not in "iuf" or dtype.itemsize <= 4:
        return np.dtype(np.complex64) if dtype == np.complex128 else dtype
    low, high = bounds_of(space)
    if dtype.kind == "f":
        most = np.finfo(np.float32).max
        is_wide = (np.isfinite(low) & (low < -most)) | (np.isfinite(high) & (high > most))
        return dtype if is_wide.any() else np.dtype(np.float32)
    narrow = np.dtype(np.int32 if dtype.kind == "i" else np.uint32)
    limits = np.iinfo(narrow)
    is_wide = (low < limits.min) | (high > limits.max)
    return dtype if is_wide.any() else narrow


def check_members(space: spaces.Space[Any], value: object, path: TreePath) -> None:
    """Refuse a value of a Dict or Tuple with members that its space does not declare.

    Nothing would store them. Members that are missing are told of where they are to be written.

    >>> check_members(spaces.Tuple([spaces.Discrete(2)]), (0, 1), ("observation",))
    Traceback (most recent call last):
    parllel.tree.fitting.MisfitError: observation: got the members ['1'] beside those of its ...

    Raises:
        MisfitError: there are such members.
    """
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping):
        parts: dict[Any, Any] = dict(space.items())
        found: Mapping[Any, Any] = value
    elif isinstance(space, spaces.Tuple) and isinstance(value, tuple):
        parts, found = dict(enumerate(space)), dict(enumerate(value))
    else:
        return
    if surplus := sorted(str(name) for name in found.keys() - parts.keys()):
        raise MisfitError(
            f"the members {surplus} beside those of its space",
            f"no others than {list(parts)}",
            path=path,
            way_out="declare them in the environment's space, or leave them out",
        )
    for name in found.keys() & parts.keys():
        check_members(parts[name], found[name], (*path, str(name)))


def empty_rows(space: spaces.Space[Any], batch_shape: tuple[int, ...]) -> Any:
    """Return rows of zeros for values of a space: an array [*batch_shape, ...], or a tree of such.

    >>> empty_rows(spaces.MultiBinary(3), (2,)).shape
    (2, 3)

    Raises:
        TypeError: values of a part of the space are no arrays of one shape.
    """
    if isinstance(space, spaces.Dict):
        parts = {name: empty_rows(part, batch_shape) for name, part in space.items()}
        return ArrayDict(parts)
    if isinstance(space, spaces.Tuple):
        numbered = enumerate(space)
        return ArrayDict({str(number): empty_rows(part, batch_shape) for number, part in numbered})
    if space.shape is None:
        raise TypeError(f"got {space}, expected a space of arrays of one shape, or a tree of such")
    return np.zeros((*batch_shape, *space.shape), stored_dtype(space))


def most_nbytes(space: spaces.Space[Any]) -> int:
    """Return the bytes that the arrays of a value take, at 8 bytes or more for each number.

    Graphs and sequences, which may have any length, are not counted.

    >>> most_nbytes(spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(3))))
    32
    """
    if isinstance(space, PointCloud):
        return space.max_points * most_nbytes(space.point_space)
    if is_jagged(space):
        return 0
    if isinstance(space, spaces.Dict):
        return sum(most_nbytes(part) for part in space.values())
    if isinstance(space, spaces.Tuple):
        return sum(map(most_nbytes, space))
    assert space.shape is not None
    assert space.dtype is not None
    return int(np.prod(space.shape)) * max(space.dtype.itemsize, 8)


def sample_action(
    space: spaces.Space[Any], observation: object, info: Mapping[str, Any] | None = None
) -> Any:
    """Draw an action that an observation allows.

    >>> observation = {"position": 3, "action_mask": np.array([False, True, False])}
    >>> sample_action(spaces.Discrete(3), observation)
    np.int64(1)

    Args:
        space: the action space, whose generator draws. Of a Discrete, MultiDiscrete or MultiBinary
            space, `action_mask` tells which actions are possible, as `MaskInObservation` has it.
        observation: what the action follows; its member `action_mask` counts, if it has one.
        info: the info that came with the observation; its `action_mask` counts where the
            observation has none.

    Raises:
        ValueError: the mask has another size than the space, or it allows no action.
    """
    mask = find_mask(space, observation, info)
    if mask is None:
        return space.sample()
    parts = _parts_of_mask(space, mask)
    if isinstance(space, spaces.Discrete):
        return space.sample(mask=parts[0])
    if isinstance(space, spaces.MultiDiscrete):
        return space.sample(mask=_nested(iter(parts), space.nvec.shape))
    shape = space.shape or ()
    is_one_allowed = np.reshape([part[1] for part in parts], shape)
    is_free = np.reshape([part.all() for part in parts], shape)
    return space.sample(mask=np.where(is_free, 2, is_one_allowed).astype(np.int8))


def find_mask(
    space: spaces.Space[Any], observation: object, info: Mapping[str, Any] | None = None
) -> Any:  # Any: a mask of the environment's, which nothing has looked at
    """Return the mask that `sample_action` draws by, with the same arguments; None for none.

    >>> find_mask(spaces.Discrete(3), observation=7, info={"action_mask": [1, 0, 1]})
    [1, 0, 1]
    """
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return None
    mask = observation.get(ACTION_MASK) if isinstance(observation, Mapping) else None
    return (info or {}).get(ACTION_MASK) if mask is None else mask


def flat_mask(mask: Any) -> NDArray[Any]:  # Any: a mask of the environment's
    """Return a mask's entries as one vector; gymnasium's of several choices are tuples of arrays.

    >>> flat_mask((np.array([1, 0, 1]), np.array([0, 1])))
    array([1, 0, 1, 0, 1])
    """
    if isinstance(mask, list | tuple) and mask and not np.isscalar(mask[0]):
        return np.concatenate([flat_mask(part) for part in mask])
    return np.ravel(mask)


def n_choices(space: spaces.Space[Any]) -> list[int]:
    """Return the number of possible values of each choice of an action, in the order of a mask.

    >>> n_choices(spaces.MultiDiscrete([3, 2])), n_choices(spaces.MultiBinary(2))
    ([3, 2], [2, 2])

    Raises:
        TypeError: there is no mask of actions of such a space.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(number) for number in space.nvec.ravel()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    raise TypeError(
        f"action space: got {space}, expected Discrete, MultiDiscrete or MultiBinary: there is no"
        " mask of other actions"
    )


def _parts_of_mask(space: spaces.Space[Any], mask: Any) -> list[NDArray[np.int8]]:
    """Return which values each choice of an action may have, 0 or 1."""
    counts = n_choices(space)
    flat = flat_mask(mask)
    if flat.size != sum(counts):
        raise ValueError(
            f"{ACTION_MASK}: got {flat.size} entries, expected {sum(counts)}, one for each action"
            f" of {space}"
        )
    parts = np.split(flat.astype(bool).astype(np.int8), np.cumsum(counts)[:-1])
    if not all(part.any() for part in parts):
        raise ValueError(
            f"{ACTION_MASK}: got {flat.tolist()}, which allows no action of {space}, expected one"
            " or more of each choice"
        )
    return parts


def _nested(parts: Iterator[NDArray[np.int8]], shape: tuple[int, ...]) -> Any:
    """Return the parts of a mask in tuples of tuples, as gymnasium wants those of such a shape."""
    return tuple(_nested(parts, shape[1:]) for _ in range(shape[0])) if shape else next(parts)


def to_actions(rows: Any, space: spaces.Space[Any]) -> list[Any]:
    """Return the actions of n environments, each like the space's own samples.

    >>> to_actions(np.array([0.0, 1.0]), spaces.Discrete(2))
    [np.int64(0), np.int64(1)]

    Args:
        rows: n rows, an array or a tree. They are copied, since an environment may keep or
            overwrite its action.
        space: the space of a single environment's actions.
    """
    if isinstance(space, spaces.Discrete):  # scalars; an Ellipsis would make arrays of them
        return list(rows.astype(space.dtype))
    if isinstance(space, spaces.Dict):
        parts = [to_actions(rows[name], part) for name, part in space.items()]
        return [dict(zip(space, members, strict=True)) for members in zip(*parts, strict=True)]
    if isinstance(space, spaces.Tuple):
        parts = [to_actions(rows[str(number)], part) for number, part in enumerate(space)]
        return list(zip(*parts, strict=True))
    owned = _owned(rows, space)
    return [owned[row, ...] for row in range(len(owned))]


def to_action_batch(rows: Any, space: spaces.Space[Any]) -> Any:
    """Return the actions of n environments as vector environments take them.

    Args:
        rows: n rows, an array or a tree. They are copied, since environments may overwrite their
            actions.
        space: the space of a single environment's actions.
    """
    if isinstance(space, spaces.Dict):
        return {name: to_action_batch(rows[name], part) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(to_action_batch(rows[str(number)], part) for number, part in enumerate(space))
    return _owned(rows, space)


def _owned(rows: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """Return a copy of rows in a space's own dtype.

    A bound of 64 bits that was rounded to the rows' 32 may lie outside of the space; it becomes the
    bound itself.
    """
    owned = rows.astype(space.dtype)
    if isinstance(space, spaces.Box) and rows.dtype.kind == "f" and rows.dtype != owned.dtype:
        for bound in (space.low, space.high):
            np.copyto(owned, bound, where=rows == bound.astype(rows.dtype))
    return owned


def bounds_of(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """Return the smallest and the largest values of a space of numbers."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return np.array(space.start), np.array(int(space.start) + int(space.n) - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return np.array(0), np.array(1)
    dtype = np.dtype(space.dtype)  # a space of the user's own: its bounds are unknown
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(np.float32)
    return np.array(limits.min), np.array(limits.max)

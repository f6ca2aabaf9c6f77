"""Trees of tensors of any library: on which side they are, and how values get to the other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from parllel import cuda
from parllel.arrays import Array
from parllel.arrays.interop import is_tensor, side_of, to_host
from parllel.storages import Side
from parllel.tree import TreePath, path_text

Tensor = Any
"""An array of torch, JAX, CuPy or NumPy: none of these has to be installed."""

Tensors = Any
"""A tensor [n, ...], or mappings and tuples of these."""


def map_tensors(function: Callable[..., Any], tree: Tensors, *others: Tensors) -> Tensors:
    """Return a tree of the same form with what a function makes of each leaf.

    >>> map_tensors(lambda a, b: a + b, {"x": (1, 2)}, {"x": (10, 20)})
    {'x': (11, 22)}

    Args:
        function: called with a leaf of each tree.
        tree: mappings and tuples of leaves; a single leaf is a tree, too.
        others: trees of the same form.
    """
    if isinstance(tree, Mapping):
        return {
            name: map_tensors(function, branch, *(other[name] for other in others))
            for name, branch in tree.items()
        }
    if isinstance(tree, tuple):
        return tuple(map_tensors(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def walk_tensors(tree: Tensors, path: TreePath = ()) -> Iterator[tuple[TreePath, Tensor]]:
    """Yield the leaves of a tree with their paths; members of a tuple are "0", "1", ..."""
    if isinstance(tree, tuple):
        tree = {str(number): member for number, member in enumerate(tree)}
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, branch in tree.items():
        yield from walk_tensors(branch, (*path, str(name)))


def as_action_form(tree: Tensors, space: gym.Space[Any]) -> Tensors:
    """Return rows of actions in the form that environments of a space take: tuples for Tuple.

    >>> space = gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Discrete(3)))
    >>> as_action_form({"0": [1, 0], "1": [2, 2]}, space)
    ([1, 0], [2, 2])
    """
    if isinstance(space, gym.spaces.Dict):
        return {name: as_action_form(tree[name], part) for name, part in space.items()}
    if isinstance(space, gym.spaces.Tuple) and isinstance(tree, Mapping):
        return tuple(as_action_form(tree[str(number)], part) for number, part in enumerate(space))
    return tree


def is_rows(value: object, n_envs: int) -> bool:
    """Whether a value is an array of numbers with a row for each environment."""
    shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
    is_object = isinstance(value, np.ndarray) and value.dtype.kind not in "biuf"
    return shape[:1] == (n_envs,) and hasattr(value, "dtype") and not is_object


def to_numpy(value: Tensor) -> Any:
    """Return a leaf as an array of the host; memory of the host is shared, and not copied.

    The host waits for a value that is on a device. What is no array is returned as it is.
    """
    is_array = hasattr(value, "dtype") and not isinstance(value, np.ndarray | np.generic)
    return np.asarray(to_host(value)) if is_array else value


def as_torch(value: Any, side: Side) -> Any:
    """Return a value as a tensor of torch on a side. What is there already is not copied.

    An array of NumPy is copied in any case, as environments may overwrite what they are given.

    Args:
        value: array of NumPy or CuPy, Array, or tensor.
        side: "gpu" for the current device, or "host".
    """
    import torch

    if isinstance(value, Array):
        return value.to_torch()
    if is_tensor(value):
        return value.detach()
    if cuda.is_device_array(value):
        return cuda.tensor_over(value)
    if side == "gpu":
        return cuda.tensor_over(cuda.to_device(np.asarray(value)))
    return torch.from_numpy(np.array(value))


def refuse_shared_memory(kept: Tensors, overwritten: Tensors, what: str, way_out: str) -> None:
    """Refuse tensors that have bytes in common with others, which the next step writes.

    Raises:
        RuntimeError: a leaf of the one has a byte in which a leaf of the other lies, too.
    """
    others = [place for _, leaf in walk_tensors(overwritten) if (place := _place_of(leaf))]
    for path, leaf in walk_tensors(kept):
        own = _place_of(leaf)
        if own is not None and any(own.meets(other) for other in others):
            raise RuntimeError(
                f"{path_text((what, *path))}: it has the memory of the next observation, expected"
                f" memory of its own: it is overwritten before anyone reads it; {way_out}"
            )


def side_of_tensor(value: Tensor) -> Side:
    """Return where the memory of a leaf is."""
    if is_tensor(value):
        return "gpu" if value.is_cuda else "host"
    device = getattr(value, "__dlpack_device__", None)
    if device is None or isinstance(value, np.ndarray) or cuda.is_device_array(value):
        return side_of(value)
    kind, _ = device()
    return "host" if int(kind) == _DLPACK_CPU else "gpu"


_DLPACK_CPU = 1  # kDLCPU


class _Place:
    """The bytes in which a tensor lies, on whatever device; nothing reads them.

    Args:
        address: where the first element lies.
        shape: lengths of the axes, none of them 0.
        strides: bytes from one element to the next, on each axis.
        itemsize: bytes of an element.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
    ) -> None:
        self.__array_interface__ = {
            "data": (address, True),
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{itemsize}",
            "version": 3,
        }
        reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
        self._begin = address + sum(step for step in reach if step < 0)
        self._end = address + sum(step for step in reach if step > 0) + itemsize

    def meets(self, other: _Place) -> bool:
        """Whether a byte belongs to both."""
        if self._end <= other._begin or other._end <= self._begin:  # most: apart as a whole
            return False
        try:
            return np.shares_memory(self, other, max_work=_MOST_WORK)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:  # strides that can't be told apart: rather refused
            return True


_MOST_WORK = 10_000  # candidates that are looked at for a byte in common


def _place_of(leaf: Tensor) -> _Place | None:
    """Return where a leaf lies; None for one without elements, and for JAX's arrays.

    These are never overwritten.
    """
    if is_tensor(leaf):
        itemsize, shape = leaf.element_size(), tuple(leaf.shape)
        strides = tuple(step * itemsize for step in leaf.stride())
        return _Place(leaf.data_ptr(), shape, strides, itemsize) if leaf.numel() else None
    if isinstance(leaf, np.ndarray):
        address = int(leaf.ctypes.data)
    elif cuda.is_device_array(leaf):
        address = int(leaf.data.ptr)
    else:
        return None
    return _Place(address, leaf.shape, leaf.strides, leaf.itemsize) if leaf.size else None

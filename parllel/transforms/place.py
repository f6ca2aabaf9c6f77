"""Where a transform works: the one place that decides between the kernels and their twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.kernels.advantage import estimate_advantage
from parllel.kernels.moments import update_moments
from parllel.kernels.normalize import normalize
from parllel.ops.on_device import (
    estimate_advantage_on_device,
    normalize_on_device,
    update_moments_on_device,
)


class Place(NamedTuple):
    """The same functions for one side: same arguments, same numbers.

    Args:
        name: for errors.
        scratch: kind of the memory that nobody else sees.
        share: returns an Array's elements over the same memory, as an array of NumPy or CuPy.
        to_host: copies an Array's elements to the host, which waits for them.
        write: writes host values into the whole of a contiguous Array.
        estimate_advantage, update_moments, normalize: of `parllel.kernels`, or their launches.
    """

    name: str
    scratch: str
    share: Callable[[Array], Any]
    to_host: Callable[[Array], NDArray[Any]]
    write: Callable[[Array, NDArray[Any]], None]
    estimate_advantage: Callable[..., None]
    update_moments: Callable[..., None]
    normalize: Callable[..., None]

    def read(self, array: Array) -> Any:
        """Return an Array's elements C-contiguous: over the same memory where they are that."""
        values = self.share(array)
        return values if values.flags.c_contiguous else values.copy()


def place_of(**leaves: Array) -> Place:
    """Return where leaves are worked on: on the device if that is where their memory is.

    Managed memory counts as the device's: who learns from the batch does it there.

    Raises:
        ValueError: some leaves live on the host and others on the device.
    """
    places = {name: DEVICE if leaf.side == "gpu" else HOST for name, leaf in leaves.items()}
    first, *others = places.values()
    if any(other != first for other in others):
        kinds = {name: leaf.storage for name, leaf in leaves.items()}
        raise ValueError(
            f"leaves live in {kinds}, expected all on the host or all on the device; move a tree"
            ' with tree.to("device")'
        )
    return first


def _copy_to_host(array: Array) -> NDArray[Any]:
    return np.array(array.to_ndarray())


def _copy_from_device(array: Array) -> NDArray[Any]:
    return cuda.to_host(array.to_cupy())


def _write_on_host(array: Array, values: NDArray[Any]) -> None:
    array[...] = values


def _write_on_device(array: Array, values: NDArray[Any]) -> None:
    cuda.copy_to_device(values, out_device=array.to_cupy())


HOST = Place(
    "host memory",
    "local",
    Array.to_ndarray,
    _copy_to_host,
    _write_on_host,
    estimate_advantage,
    update_moments,
    normalize,
)
DEVICE = Place(
    "device memory",
    "device",
    Array.to_cupy,
    _copy_from_device,
    _write_on_device,
    estimate_advantage_on_device,
    update_moments_on_device,
    normalize_on_device,
)

"""ArrayCase: how contracts make Arrays in memory of one kind, and how they read them."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from numpy.testing import assert_array_equal
from numpy.typing import DTypeLike, NDArray

from parllel import cuda
from parllel.arrays import Array
from parllel.storages import allocate

COMPUTABLE_DTYPES = ("f4", "i8", "?", "u1", "c8", "f2")
OTHER_DTYPES = ("M8[s]", "m8[s]", "S3", "U2", ">i4", "f4,i2")


class ArrayCase:
    """Arrays in memory of one kind.

    Subclasses of a contract set the attributes below where their memory differs from `local`.
    """

    storage: ClassVar[str] = "local"
    """Kind of the memory: a name in `parllel.storages.KINDS`."""

    sends: ClassVar[Literal["values", "memory", "nothing"]] = "values"
    """What the pickle of an Array carries: a copy of its values; its memory, so that the process
    that made it gets the same one back; or nothing, and pickling raises."""

    dtypes: ClassVar[Sequence[str]] = COMPUTABLE_DTYPES + OTHER_DTYPES
    """Which of the dtypes that tests use the memory can hold. Others raise TypeError."""

    n_examples: ClassVar[int] = 100
    """On how many examples each law is tried."""

    @functools.cached_property
    def is_on_host(self) -> bool:
        """Whether NumPy can use the memory."""
        return allocate(self.storage, 0).is_on_host

    @functools.cached_property
    def is_for_gpu(self) -> bool:
        """Whether a GPU can use the memory."""
        return allocate(self.storage, 0).is_for_gpu

    def array(
        self, batch_shape: Sequence[int], dtype: DTypeLike = np.float32, **options: Any
    ) -> Array:
        """Return a new Array in the memory; options as for `Array`."""
        return Array(batch_shape, dtype, storage=self.storage, **options)

    def counted(self, T: int = 5, B: int = 4, **options: Any) -> Array:
        """Return a float32 Array of which each element is its place: 0, 1, 2, ..."""
        array = self.array((T, B), **options)
        array[...] = np.arange(T * B).reshape(T, B)
        return array

    @property
    def copiers(self) -> list[Callable[[Array], Array]]:
        """The ways to get an Array with memory of its own, of the same kind."""
        ways: list[Callable[[Array], Array]] = [copy.deepcopy, lambda view: view.to(self.storage)]
        return [*ways, clone] if self.sends == "values" else ways

    def settle(self) -> None:
        """Wait for the device, so that the host may read and write memory that both use."""
        if self.is_for_gpu:
            cuda.synchronize()

    def read(self, array: Array) -> NDArray[Any]:
        """Return what an Array shows, after the work that writes it."""
        self.settle()
        return array.to_ndarray()

    def assert_shows(self, array: Array, expected: Any) -> None:
        """Check what an Array shows, and that its shape is that of what it shows."""
        values = self.read(array)
        assert array.shape == values.shape
        assert_array_equal(
            values, expected.to_ndarray() if isinstance(expected, Array) else expected
        )

    def hold(self, law: Callable[..., None], *examples: SearchStrategy[Any]) -> None:
        """Try a law on examples, the same ones each time."""
        tried = settings(
            max_examples=self.n_examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        tried(given(*examples)(law))()


def values_of(array: Any) -> NDArray[Any]:
    """Return the values of a NumPy array, or of a tensor of any device."""
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def clone(value: Any) -> Any:
    """Return what another process would receive."""
    return pickle.loads(pickle.dumps(value))


def whole(array: Array) -> Array:
    """Return a view of the whole base buffer of an Array, wherever its window is."""
    full = array.full
    return full[-array.padding : full.last + 1 + array.padding]

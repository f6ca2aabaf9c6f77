"""ArrayCase: how contracts make Arrays in memory of one kind, and how they read them."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from numpy.testing import assert_array_equal
from numpy.typing import DTypeLike, NDArray

from parllel import cuda
from parllel.arrays import Array, ArraySpec
from parllel.storages import allocate

_Value = TypeVar("_Value")

COMPUTABLE_DTYPES = ("f4", "i8", "?", "u1", "c8", "f2")
OTHER_DTYPES = ("M8[s]", "m8[s]", "S3", "U2", ">i4", "f4,i2")


class ArrayCase:
    """Arrays of one kind, in memory of one kind.

    Subclasses of a contract set the attributes below where their memory differs from `local`, and
    override `spec` for a kind of Array that is not plain.
    """

    storage: ClassVar[str] = "local"
    """Kind of the memory: a name in `parllel.storages.KINDS`."""

    sends: ClassVar[Literal["values", "memory", "nothing"]] = "values"
    """The content of an Array's pickle: a copy of its values; its memory, so that the process
    that made it gets the same memory back; or nothing, and pickling raises an error."""

    dtypes: ClassVar[Sequence[str]] = COMPUTABLE_DTYPES + OTHER_DTYPES
    """The dtypes, among those of the tests, that the memory can hold. Others raise TypeError."""

    indexes_features: ClassVar[bool] = True
    """Whether the dimensions behind the batch dimensions are indexed, too."""

    n_examples: ClassVar[int] = 100
    """Number of examples on which each law is tried."""

    @functools.cached_property
    def is_on_host(self) -> bool:
        """Whether NumPy can use the memory."""
        return allocate(self.storage, 0).is_on_host

    @functools.cached_property
    def is_for_gpu(self) -> bool:
        """Whether a GPU can use the memory."""
        return allocate(self.storage, 0).is_for_gpu

    def spec(
        self, batch_shape: Sequence[int], dtype: DTypeLike = np.float32, **options: Any
    ) -> ArraySpec:
        """Return the spec of an Array of the kind that is tested; options as for `ArraySpec.of`."""
        return ArraySpec.of(batch_shape, dtype, **options)

    def array(
        self, batch_shape: Sequence[int], dtype: DTypeLike = np.float32, **options: Any
    ) -> Array:
        """Return a new Array in the memory; options as for `spec`."""
        return Array.from_spec(self.spec(batch_shape, dtype, **options), self.storage)

    def counted(self, T: int = 5, B: int = 4, **options: Any) -> Array:
        """Return a float32 Array whose elements count up: 0, 1, 2, ..."""
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
        """Return the values of an Array, after the work that writes them."""
        self.settle()
        return array.to_ndarray()

    def assert_shows(self, array: Array, expected: object) -> None:
        """Check the values of an Array, and that it says the shape that they have."""
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


def values_of(array: object) -> NDArray[Any]:
    """Return the values of a NumPy array, or of a tensor of any device."""
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def clone(value: _Value) -> _Value:
    """Return the object that another process would receive."""
    copy_of_value: _Value = pickle.loads(pickle.dumps(value))
    return copy_of_value


def whole(array: Array) -> Array:
    """Return a view of the whole base buffer of an Array, wherever its window is."""
    full = array.full
    return full[-array.padding : full.last + 1 + array.padding]

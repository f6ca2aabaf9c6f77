"""Jagged: elements of different length as they are read: values, and where each element lies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from parllel import cuda
from parllel.arrays.interop import is_tensor, to_host, to_tensor
from parllel.arrays.jagged_writer import fit_dtype

if TYPE_CHECKING:
    import torch

# Arrays of NumPy, torch or CuPy: all arrays of a Jagged belong to one of them.
_Values = Any


@dataclass(frozen=True, eq=False, slots=True)
class Jagged:
    """Elements of different length, [n, *feature_shape] each, over memory of NumPy, torch or CuPy.

    >>> cloud = Jagged.of([np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 5)], "float32")
    >>> len(cloud), cloud.offsets.tolist(), cloud[2].tolist()
    (3, [0, 2, 2, 3], [[5.0, 5.0, 5.0]])
    >>> rows, mask = cloud.padded()
    >>> rows.shape, mask.tolist()
    ((3, 2, 3), [[True, True], [False, False], [True, False]])

    Element i has the rows of `values` from `offsets[i]` on. A *packed* Jagged has `lengths=None`,
    and element i ends where element i + 1 begins. Otherwise there may be rows between elements
    that belong to none of them, as in memory that has room for longer elements. What these rows
    hold has no meaning: read them by the methods, which leave them out, or by `packed().values`.

    A Jagged is a description of memory, and never changes. Elements, and a Jagged of neighbours
    that an index leads to, are views of the same memory; other elements that an index picks are
    copied.

    Where only a device knows where the last element ends, as in a CUDA graph and in a compiled
    program, a Jagged has a `capacity`: its values have room for k elements of so many rows, and
    all shapes are fixed. `padded` and `segment_ids` wait for nothing then, and nothing else reads
    the elements.

    With memory of a device, `len`, slices, `nested` and `to_torch` wait for nothing. Integers,
    iteration, `packed` where it copies, `padded` and `segment_ids` read lengths, so that they wait
    for the current stream. CuPy can't do what they do, so that their results are torch tensors.

    Args:
        values: [n_rows, *feature_shape].
        offsets: int64 [k + 1]. Where each of k elements begins, counted in rows of `values`; and
            last, the end of the last element (or of its room, if there are lengths).
        lengths: int64 [k], the number of rows of each element; None if they are packed.
        batch_shape: shape of the batch of elements, whose product is k; elements lie in C order.
            By default (k,).
        capacity: the most rows of an element, where `values` have [k * capacity] rows, and those
            behind the last element have no meaning; None where they end with it. What the offsets
            are is not looked at then.

    Raises:
        TypeError: offsets or lengths are no int64, or the arrays are of different libraries.
        ValueError: shapes disagree, or there are both lengths and a capacity; or, where the host
            can read them at once, an offset or a length is negative or reaches beyond `values`, or
            offsets without lengths decrease.
    """

    values: _Values
    offsets: _Values
    lengths: _Values = None
    batch_shape: tuple[int, ...] = ()
    capacity: int | None = None

    def __post_init__(self) -> None:
        _check_forms(self)
        n_elements = len(self.offsets) - 1
        shape = tuple(map(int, self.batch_shape)) or (n_elements,)
        if math.prod(shape) != n_elements or min(shape) < 0:
            raise ValueError(
                f"batch_shape: got {shape}, expected a shape of {n_elements} elements in all"
            )
        object.__setattr__(self, "batch_shape", shape)
        if self.capacity is None:
            _check_contents(self)
        elif self.lengths is not None or len(self.values) != n_elements * self.capacity:
            raise ValueError(
                f"capacity: got {self.capacity} with {len(self.values)} rows of values, expected"
                f" {n_elements * self.capacity} for {n_elements} elements, and no lengths"
            )

    @classmethod
    def of(cls, elements: Sequence[Any], dtype: DTypeLike | None = None) -> Jagged:
        """Pack arrays of any library, and return them as a Jagged over new memory of NumPy.

        Args:
            elements: arrays [n, *feature_shape], at least one, of one feature shape; an empty list
                is an element without rows.
            dtype: type of the values, for which floats may be rounded, and nothing else is lost; by
                default NumPy's common type of the elements.

        Raises:
            ValueError: there is no element; or an element is a single number, has another feature
                shape than the first one, or a number that the dtype can't hold.
        """
        arrays = [np.asarray(to_host(element)) for element in elements]
        if not arrays:
            raise ValueError("elements: got none, expected at least one, which tells the features")
        # NumPy gives an empty list the dtype float64, which says nothing of the others.
        is_bare = [isinstance(each, list | tuple) and not len(each) for each in elements]
        given = [array for array, bare in zip(arrays, is_bare, strict=True) if not bare] or arrays
        features = given[0].shape[1:]
        kind = np.result_type(*given) if dtype is None else np.dtype(dtype)
        for number, (array, bare) in enumerate(zip(arrays, is_bare, strict=True)):
            if bare:
                arrays[number] = np.empty((0, *features), kind)
            elif array.ndim == 0 or array.shape[1:] != features:
                raise ValueError(
                    f"element {number}: got shape {array.shape}, expected (n, *{features})"
                )
            else:
                arrays[number] = fit_dtype(array, kind, f"element {number}")
        ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        return cls(np.concatenate(arrays), np.concatenate([[0], ends]))

    # What it looks like

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one row of an element."""
        return tuple(self.values.shape[1:])

    @property
    def dtype(self) -> Any:  # Any: a dtype of NumPy or of torch
        """Type of the values, as their library names it."""
        return self.values.dtype

    @property
    def is_packed(self) -> bool:
        """Whether elements lie one after the other, without rows between them."""
        return self.lengths is None

    @property
    def counts(self) -> _Values:
        """The number of rows of each element, int64 [k], whether they are packed or not."""
        if self.lengths is not None:
            return self.lengths
        offsets = self.offsets
        if cuda.is_device_array(offsets):
            offsets = cuda.tensor_over(offsets)
        return offsets[1:] - offsets[:-1]

    def __len__(self) -> int:
        return self.batch_shape[0]

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "a Jagged is no single array, as its elements have different lengths: packed().values"
            " has all their rows, padded() gives them one length, and jagged[i] is one of them"
        )

    def __repr__(self) -> str:
        kind = "packed" if self.is_packed else "with gaps"
        kind += "" if self.capacity is None else f", capacity={self.capacity}"
        return (
            f"Jagged(elements of shape (n, {', '.join(map(str, self.feature_shape))}),"
            f" batch_shape={self.batch_shape}, {self.dtype}, {kind})"
        )

    @property
    def device(self) -> Any:  # Any: torch's, or CuPy's; NumPy's is "cpu"
        """The device of the arrays, as their library names it."""
        return self.values.device

    # The dimensions of the batch, by torch's names

    def flatten(self, start_dim: int, end_dim: int) -> Jagged:
        """Return the same elements with some dimensions of the batch as one.

        >>> steps = Jagged.of([[1, 2], [3], [], [4]]).unflatten(0, (2, 2))
        >>> steps.flatten(0, 1).batch_shape
        (4,)

        Args:
            start_dim, end_dim: the first and the last of these dimensions, counted from 0.
        """
        shape = self.batch_shape
        if not 0 <= start_dim <= end_dim < len(shape):
            raise ValueError(
                f"flatten: got dimensions {start_dim} to {end_dim}, expected some of batch_shape"
                f" {shape}"
            )
        one = math.prod(shape[start_dim : end_dim + 1])
        return self._shaped((*shape[:start_dim], one, *shape[end_dim + 1 :]))

    def unsqueeze(self, dim: int) -> Jagged:
        """Return the same elements with one more dimension of the batch, of length 1.

        Args:
            dim: where it is, from 0 to the number of dimensions.
        """
        shape = self.batch_shape
        if not 0 <= dim <= len(shape):
            raise ValueError(f"unsqueeze: got dimension {dim}, expected 0 to {len(shape)}")
        return self._shaped((*shape[:dim], 1, *shape[dim:]))

    def _shaped(self, batch_shape: tuple[int, ...]) -> Jagged:
        return replace(self, batch_shape=batch_shape)

    # Elements

    def __getitem__(self, index: Any) -> Any:
        """Return an element [n, *feature_shape], or a Jagged of some elements.

        Both are views, but where elements that are not neighbours, in order, are picked: these are
        packed, as NumPy's indexing copies.

        Args:
            index: index of the batch, as NumPy has it: integers, slices, integer arrays, masks.
        """
        self._need_end("an index")
        n_elements = len(self.offsets) - 1
        found = np.arange(n_elements).reshape(self.batch_shape)[index]
        if np.ndim(found) == 0:
            at = int(found)
            begin = int(self.offsets[at])
            end = int(self.offsets[at + 1]) if self.is_packed else begin + int(self.lengths[at])
            return self.values[begin:end]
        numbers = found.ravel()
        first = int(numbers[0]) if len(numbers) else 0
        if (numbers == np.arange(first, first + len(numbers))).all():  # neighbours, in order
            offsets = self.offsets[first : first + len(numbers) + 1]
            lengths = None if self.is_packed else self.lengths[first : first + len(numbers)]
            return Jagged(self.values, offsets, lengths, found.shape)
        source = self.to_torch() if cuda.is_device_array(self.values) else self
        picked = _numbers_like(source.offsets, numbers)
        lengths, begins = source.counts[picked], source.offsets[picked]
        offsets = _concatenate([begins, (begins + lengths)[-1:]])
        # A copy: lengths that are read now, and rows that are written later, would not agree.
        return Jagged(source.values, offsets, lengths, found.shape).packed()

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    # Other forms

    def packed(self) -> Jagged:
        """Return the same elements without rows between them, and with the first one at row 0.

        It is this Jagged itself where it is so already, and otherwise a copy.

        Raises:
            RuntimeError: there is a `capacity`: where the last element ends is not known here.
        """
        self._need_end("packed()")
        if cuda.is_device_array(self.values):
            return self.to_torch().packed()
        is_at_beginning = self.is_packed and int(self.offsets[0]) == 0
        if is_at_beginning and int(self.offsets[-1]) == len(self.values):
            return self
        counts = self.counts
        ends = counts.cumsum(0)
        offsets = _concatenate([ends[:1] * 0, ends]) if len(counts) else self.offsets * 0
        if self.is_packed:
            rows = self.values[int(self.offsets[0]) : int(self.offsets[-1])]
            return Jagged(rows, offsets, None, self.batch_shape)
        moves = _repeat(self.offsets[:-1] - offsets[:-1], counts)
        rows = self.values[_numbers_like(counts, np.arange(len(moves))) + moves]
        return Jagged(rows, offsets, None, self.batch_shape)

    def padded(self, longest: int | None = None, fill: float = 0) -> tuple[_Values, _Values]:
        """Return all elements at one length, and which of these rows are their own; both are new.

        Args:
            longest: the length; by default that of the longest element, or the `capacity`.
            fill: number that the other rows are filled with.

        Returns:
            The rows [*batch_shape, longest, *feature_shape], and the mask, bool
            [*batch_shape, longest], True where a row is an element's own.

        Raises:
            ValueError: an element is longer than `longest`, or the dtype can't hold `fill`.
        """
        if cuda.is_device_array(self.values):
            return self.to_torch().padded(longest, fill)
        if fill:  # each dtype has 0
            _check_fill(fill, self.dtype)
        counts = self.counts
        longest_of_all = int(counts.max()) if self.capacity is None and len(counts) else 0
        most = longest_of_all if self.capacity is None else self.capacity
        if longest is None:
            longest = most
        elif longest < most:
            raise ValueError(
                f"longest: got {longest}, expected at least {most}, the longest element's length"
            )
        steps = _count_to(longest, counts)
        mask = steps < counts[:, None]
        places = (self.offsets[:-1, None] + steps) * mask
        if len(self.values):
            rows = self.values[places]
        else:  # no row could be read, not even as one that is left out
            rows = _zeros(self.values, (len(counts), longest, *self.feature_shape))
        shown = mask.reshape(*mask.shape, *(1,) * len(self.feature_shape))
        rows = _where(shown, rows, fill)
        shape = (*self.batch_shape, longest)
        return rows.reshape(*shape, *self.feature_shape), mask.reshape(shape)

    def segment_ids(self) -> _Values:
        """Return the number of the element that each row of `packed().values` belongs to, int64.

        torch-geometric calls it `batch`. With a `capacity` it is that of each row of `values`, and
        k of the rows behind the last of k elements: sums by these numbers have k + 1 rows, the
        last of which is left out.
        """
        if cuda.is_device_array(self.values):
            return self.to_torch().segment_ids()
        counts = self.counts
        if self.capacity is not None:
            return _number_rows(self.offsets[1:], len(self.values))
        return _repeat(_numbers_like(counts, np.arange(len(counts))), counts)

    def nested(self, *, copy: bool | None = None) -> torch.Tensor:
        """Return a nested tensor of torch, layout jagged, of shape [k, n, *feature_shape].

        Args:
            copy: by default, there is none where the elements are packed, and one otherwise: torch
                2.13 computes some results, such as `sum()`, of the rows between elements, too.
                False: there is none, and what torch can't do it refuses or does with these rows.
        """
        import torch

        self._need_end("nested()")
        source = self.to_torch()
        if copy is None and not source.is_packed:
            source = source.packed()
        elif copy:
            packed = source.packed()
            source = Jagged(packed.values.clone(), packed.offsets, None, self.batch_shape)
        return torch.nested.nested_tensor_from_jagged(source.values, source.offsets, source.lengths)

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> Jagged:
        """Return the same elements with one batch dimension as several, as `torch.unflatten` does.

        Args:
            dim: 0, the only batch dimension.
            sizes: what becomes of it.
        """
        if dim != 0 or len(self.batch_shape) != 1:
            raise ValueError(
                f"unflatten: got dimension {dim} of batch_shape {self.batch_shape}, expected 0 of"
                " one dimension"
            )
        return self._shaped(sizes)

    def to_torch(self) -> Jagged:
        """Return the same elements over the same memory as tensors of torch."""
        return self._as(_to_tensor)

    def to_ndarray(self) -> Jagged:
        """Return the same elements as arrays of NumPy, over the same memory if it is the host's.

        The host waits for a copy from a device.
        """
        return self._as(to_host)

    def _as(self, convert: Any) -> Jagged:  # Any: a function of an array of any library
        lengths = None if self.lengths is None else convert(self.lengths)
        arrays = convert(self.values), convert(self.offsets), lengths
        return Jagged(*arrays, self.batch_shape, self.capacity)

    def _need_end(self, what: str) -> None:
        """Raise where the rows of the elements can't be told from those behind them."""
        if self.capacity is not None:
            raise RuntimeError(
                f"{what} of elements of different length: in a CUDA graph or a compiled program the"
                " host does not know how many rows they have; use padded(), or values with"
                " segment_ids(), whose shapes are fixed"
            )


def _check_forms(jagged: Jagged) -> None:
    arrays = {"values": jagged.values, "offsets": jagged.offsets}
    if jagged.lengths is not None:
        arrays["lengths"] = jagged.lengths
    libraries = {name: _library(name, array) for name, array in arrays.items()}
    if len(set(libraries.values())) > 1:
        raise TypeError(f"arrays of a Jagged: got {libraries}, expected those of one library")
    if jagged.values.ndim < 1:
        raise ValueError("values: got a single number, expected [n_rows, *feature_shape]")
    for name in list(arrays)[1:]:
        array = arrays[name]
        if not str(array.dtype).endswith("int64") or "u" in str(array.dtype):
            raise TypeError(f"{name}: got {array.dtype}, expected int64")
        if array.ndim != 1:
            raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected one dimension")
    if not len(jagged.offsets):
        raise ValueError("offsets: got none, expected k + 1 for k elements, so at least one")
    if jagged.lengths is not None and len(jagged.lengths) != len(jagged.offsets) - 1:
        raise ValueError(
            f"lengths: got {len(jagged.lengths)}, expected {len(jagged.offsets) - 1}, one less"
            " than offsets"
        )


def _check_contents(jagged: Jagged) -> None:
    """Raise where an element would lie outside the values; nothing is asked of a device."""
    if not isinstance(jagged.offsets, np.ndarray):
        if not is_tensor(jagged.offsets) or jagged.offsets.device.type != "cpu":
            return
        try:
            offsets = jagged.offsets.numpy()
            lengths = None if jagged.lengths is None else jagged.lengths.numpy()
        except TypeError:  # they stand for those of a device, in a simulation of one
            return
    else:
        offsets, lengths = jagged.offsets, jagged.lengths
    begins = offsets[:-1]
    counts = np.diff(offsets) if lengths is None else lengths
    wrong = (counts < 0) | (begins < 0) | (begins + counts > len(jagged.values))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"element {at}: got {counts[at]} rows from row {begins[at]} on, expected 0 or more,"
            f" inside the {len(jagged.values)} rows of values"
        )


def _library(name: str, array: Any) -> str:
    if isinstance(array, np.ndarray):
        return "numpy"
    if is_tensor(array):
        return "torch"
    if cuda.is_device_array(array):
        return "cupy"
    raise TypeError(
        f"{name}: got {type(array).__name__}, expected an array of NumPy, torch or CuPy"
    )


def _to_tensor(array: _Values) -> _Values:
    if is_tensor(array):
        return array
    return to_tensor(array) if isinstance(array, np.ndarray) else cuda.tensor_over(array)


def _count_to(stop: int, like: _Values) -> _Values:
    """Return int64 numbers from 0 to stop - 1 in the memory of another array; nothing is copied."""
    if isinstance(like, np.ndarray):
        return np.arange(stop)
    return like.new_ones(stop).cumsum(0) - 1


def _number_rows(ends: _Values, n_rows: int) -> _Values:
    """Return for each of some rows the number of elements that end at it or before, int64."""
    rows = _count_to(n_rows, ends)
    if isinstance(ends, np.ndarray):
        return np.searchsorted(ends, rows, side="right")
    import torch

    return torch.searchsorted(ends, rows, right=True)


def _numbers_like(array: _Values, numbers: Any) -> _Values:
    """Return int64 numbers of the host in the memory of another array."""
    if isinstance(array, np.ndarray):
        return numbers
    import torch

    return array.new_empty(numbers.shape, dtype=torch.int64).copy_(torch.from_numpy(numbers))


def _concatenate(arrays: list[_Values]) -> _Values:
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays)
    import torch

    return torch.cat(arrays)


def _repeat(array: _Values, counts: _Values) -> _Values:
    return (
        array.repeat(counts) if isinstance(array, np.ndarray) else array.repeat_interleave(counts)
    )


def _check_fill(fill: float, dtype: Any) -> None:
    """Raise where a dtype of NumPy or torch would hold another number."""
    try:
        kind = np.dtype(str(dtype).removeprefix("torch."))
    except TypeError:  # NumPy has no such dtype
        return
    fit_dtype(np.array([fill]), kind, "fill")


def _where(mask: _Values, rows: _Values, fill: float) -> _Values:
    if isinstance(rows, np.ndarray):
        return np.where(mask, rows, rows.dtype.type(fill))
    return rows.masked_fill(~mask, fill)


def _zeros(like: _Values, shape: tuple[int, ...]) -> _Values:
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)

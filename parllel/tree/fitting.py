"""How values are written to rows that can hold them, and how others are refused: MisfitError."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parllel.tree.path import TreePath, path_text

# Samples of at most so many bytes are joined by one call and written by another. That takes half
# the time of a look at each of them, but copies twice.
_SMALL_NBYTES = 2048

# float32 holds each integer below this bound, so numbers below it lose nothing but digits.
_EXACT_IN_FLOAT32 = 1 << 24

# What Python and NumPy raise for arrays, texts and other values that are no numbers.
_NO_NUMBERS = (ValueError, TypeError, AttributeError, OverflowError, RuntimeError)

_FLOATS = "fdg"  # codes of the floats of at least 32 bits

_FEW = 256  # numbers that Python's own functions read as fast as NumPy does

_MOST_TEXT = 100  # characters of a value's text in a message


class MisfitError(TypeError, ValueError):
    """An environment gave a value that its place in the samples can't hold.

    >>> print(MisfitError("(3,), float32", "(4,), float32", environment=1, path=("observation",)))
    observation: environment 1 of this cage gave (3,), float32, expected (4,), float32

    Args:
        got, expected: what the environment gave, and what its place holds.
        environment: number of the environment in its cage.
        path: names of the leaf: first the result, such as "observation", then those of branches.
        seed: the seed of the environment's first reset.
        way_out: what the reader can do.
    """

    def __init__(
        self,
        got: str,
        expected: str,
        *,
        environment: int | None = None,
        path: TreePath = (),
        seed: int | None = None,
        way_out: str = "",
    ) -> None:
        super().__init__(got, expected)
        self.got = got
        self.expected = expected
        self.environment = environment
        self.path = path
        self.seed = seed
        self.way_out = way_out

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__

    def __str__(self) -> str:
        origin = "got"
        if self.environment is not None:
            origin = f"environment {self.environment} of this cage gave"
        text = f"{path_text(self.path) or 'value'}: {origin} {self.got}, expected {self.expected}"
        if self.seed is not None:
            text += f"; the seed of its first reset is {self.seed}"
        return f"{text}; {self.way_out}" if self.way_out else text


def put_column(out: NDArray[Any], values: Sequence[Any]) -> None:
    """Write n values to n rows of a leaf; nothing is broadcast, wrapped or cut off.

    64-bit floats are rounded to a leaf of 32 bits.

    >>> rows = np.zeros((2, 3), np.uint8)
    >>> put_column(rows, [np.array([1, 2, 3]), [4, 5, 6]])
    >>> rows.tolist()
    [[1, 2, 3], [4, 5, 6]]

    Args:
        out: [n, ...], overwritten.
        values: a list or tuple of n values.

    Raises:
        MisfitError: a value has another shape, is no number, or would lose something.
    """
    if out.ndim == 1:
        code = out.dtype.char
        try:  # Python's own functions read a short list faster than NumPy makes an array of it
            if code == "?":
                n_false = values.count(False)
                if n_false == len(out):
                    out.fill(False)
                    return
                if n_false + values.count(True) == len(out):
                    out[:] = values
                    return
            elif code in _FLOATS and math.hypot(*values) < _EXACT_IN_FLOAT32:  # so all are
                out[:] = values
                return
        except _NO_NUMBERS:
            pass
    elif out[0].nbytes > _SMALL_NBYTES:
        shape, dtype = out.shape[1:], out.dtype
        for row, value in enumerate(values):
            is_alike = has_form(value, shape, dtype)
            out[row] = value if is_alike else fit(value, shape, dtype, environment=row)
        return
    try:
        column = np.array(values)
    except _NO_NUMBERS:  # the values are not alike
        column = np.array(None)
    if column.shape != out.shape or not _put_exactly(out, column):
        for row, value in enumerate(values):
            out[row] = fit(value, out.shape[1:], out.dtype, environment=row)


def put_batch(out: NDArray[Any], batch: Any, index: Any = ...) -> None:
    """Write an array [n, ...] of n environments to rows of a leaf, as `put_column` does.

    Args:
        out: rows, overwritten.
        batch: as many rows as `index` picks. One row where `index` is an integer.
        index: those rows of `out` that are written: bool [n], an integer, or all of them.
    """
    # Most batches first: after environments have stepped, each call takes microseconds
    # (bench/bench_vector.py).
    is_array = index is Ellipsis and isinstance(batch, np.ndarray)
    if is_array and (
        (batch.dtype == out.dtype and batch.shape == out.shape) or _are_small(out, batch)
    ):
        out[...] = batch
        return
    values = np.asarray(batch)
    target: Any = out[index]
    if values.dtype == out.dtype and values.shape == target.shape:
        out[index] = values
        return
    written: NDArray[Any] = np.empty_like(target)
    if values.shape == target.shape and _put_exactly(written, values):
        out[index] = written
    elif isinstance(index, int):
        out[index] = fit(batch, target.shape, out.dtype, environment=index)
    elif values.ndim and len(values) == len(target):
        put_column(target, list(values))
        raise AssertionError("a batch fits if all of its rows do")
    else:
        raise MisfitError(describe(batch), f"{target.shape}, {out.dtype}")


def _are_small(out: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether rows of floats take a few numbers, as rewards are: none loses more than digits."""
    is_alike = values.ndim == 1 == out.ndim and len(values) == len(out) <= _FEW
    return (
        is_alike
        and out.dtype.char in _FLOATS
        and values.dtype.kind in "biuf"
        and math.hypot(*values.tolist()) < _EXACT_IN_FLOAT32
    )


def has_form(value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether a value is a NumPy array of exactly this shape and dtype: it fits as it is."""
    return type(value) is np.ndarray and value.dtype == dtype and value.shape == shape


def fit(
    value: object,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    environment: int | None = None,
) -> NDArray[Any]:
    """Return a value as an array of this shape and dtype, with nothing lost.

    Args:
        value: anything that NumPy can make an array of.
        shape, dtype: those of the result.
        environment: the number of the environment that gave the value, for the error.

    Raises:
        MisfitError: it has another shape, is no number, or would lose something.
    """
    try:
        array: NDArray[Any] | None = None if value is None else np.asarray(value)
    except _NO_NUMBERS:  # ragged, or no array at all
        array = None
    fitted = np.empty(shape, dtype)
    if array is None or array.shape != shape:
        raise MisfitError(describe(value), f"{shape}, {dtype}", environment=environment)
    if not _put_exactly(fitted, array):
        got = describe(value)
        if array.ndim and array.size:  # of others with this shape and dtype, nothing may be lost
            got += f" with {next(_lost(array, dtype))}"
        raise MisfitError(got, f"{shape}, {dtype}", environment=environment)
    return fitted


def _lost(values: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[object]:
    """Yield the text of those elements that another dtype can't hold."""
    out = np.empty((), dtype)
    return (str(each) for each in values.flat if not _put_exactly(out, np.asarray(each)))


def describe(value: object) -> str:
    """Return the shape and the dtype of an array, or the type of another value and its text.

    >>> describe(np.zeros((4, 4), np.uint8)), describe(0.5), describe(None)
    ('(4, 4), uint8', 'float 0.5', 'None')
    >>> describe(np.float64(0.5))
    '(), float64, 0.5'
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if value is None or (shape is None or dtype is None):
        text = repr(value)
        text = text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "..."
        return text if value is None else f"{type(value).__name__} {text}"
    number = f", {value}" if isinstance(value, np.ndarray | np.generic) and not value.ndim else ""
    return f"{tuple(shape)}, {dtype}{number}"


def _put_exactly(out: NDArray[Any], values: NDArray[Any]) -> bool:
    """Write an array of the same shape; return whether nothing was lost."""
    source, target = values.dtype, out.dtype
    if source == target or _is_safe(source, target):
        out[...] = values
        return True
    kinds = source.kind + target.kind
    if source.kind not in "biufc" or (source.kind == "c" and target.kind != "c"):
        return False
    with np.errstate(all="ignore"):
        out[...] = values
        if kinds in ("ff", "cc"):  # rounding is right, a number beyond the leaf's is not
            return bool((np.isfinite(out) | ~np.isfinite(values)).all())
        is_same = out.astype(source) == values
        if "b" not in kinds and "u" in kinds:  # -1 and the largest number may have the same bits
            is_same &= (out < 0) == (values < 0)
        return bool(is_same.all())


@functools.lru_cache(maxsize=256)
def _is_safe(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether each number of one dtype is exact in another."""
    if source.kind in "iu" and source.itemsize == 8 and target.kind in "fc":
        return False  # NumPy counts it as safe, but beyond 2**53 it rounds
    return source.kind in "biufc" and np.can_cast(source, target, "safe")

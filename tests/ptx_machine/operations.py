"""What instructions compute: functions on arrays, with an element for each thread, by opcode.

Each instruction is rounded by itself. A driver may fuse a product and a sum that are written
without a direction of rounding; compilers write `fma` where they want that.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ptx_machine import floats
from ptx_machine.faults import UndefinedError
from ptx_machine.number_types import DTYPES

Values: TypeAlias = npt.NDArray[Any]
Function: TypeAlias = Callable[..., Values]


class Operation(NamedTuple):
    """What an instruction without access to memory does."""

    function: Function
    result: np.dtype
    operands: tuple[np.dtype, ...]


_F32, _S32, _U32, _PRED = (DTYPES[name] for name in ("f32", "s32", "u32", "pred"))
_INTEGERS = [f"{kind}{bits}" for kind in "us" for bits in (16, 32, 64)]
_BITS = ["b16", "b32", "b64"]


def find_operations() -> dict[str, Operation]:
    """Return all operations by their opcodes, as the text has them with all that follows dots."""
    parts = (
        _integers(),
        _bits(),
        _comparisons(),
        _floats(),
        _conversions(),
        _conversions_of_floats(),
    )
    return dict(itertools.chain(*parts))


Named: TypeAlias = Iterator[tuple[str, Operation]]


def _same(name: str, function: Function, kind: str, n: int) -> tuple[str, Operation]:
    """Return an operation whose operands and result are of one type."""
    return f"{name}.{kind}", Operation(function, DTYPES[kind], (DTYPES[kind],) * n)


# Integers


def _integers() -> Named:
    for kind in _INTEGERS:
        yield _same("add", np.add, kind, 2)
        yield _same("sub", np.subtract, kind, 2)
        yield _same("mul.lo", np.multiply, kind, 2)
        yield _same("mad.lo", lambda a, b, c: a * b + c, kind, 3)
        yield _same("div", _divide, kind, 2)
        yield _same("rem", lambda a, b: a - _divide(a, b) * b, kind, 2)
        yield _same("min", np.minimum, kind, 2)
        yield _same("max", np.maximum, kind, 2)
        shift = Operation(_shift_right, DTYPES[kind], (DTYPES[kind], _U32))
        yield f"shr.{kind}", shift
        if kind[0] == "s":
            yield _same("neg", np.negative, kind, 1)
            yield _same("abs", np.abs, kind, 1)
    for kind, bits in itertools.product("us", (16, 32)):
        narrow, wide = DTYPES[f"{kind}{bits}"], DTYPES[f"{kind}{2 * bits}"]
        yield f"mul.wide.{kind}{bits}", Operation(_widen(wide), wide, (narrow, narrow))
        high = _take_high(wide, narrow, bits)
        yield f"mul.hi.{kind}{bits}", Operation(high, narrow, (narrow, narrow))


def _widen(wide: np.dtype) -> Function:
    return lambda a, b: a.astype(wide) * b.astype(wide)


def _take_high(wide: np.dtype, narrow: np.dtype, bits: int) -> Function:
    return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> bits).astype(narrow)


def _divide(a: Values, b: Values) -> Values:
    """Return the quotient towards 0, of magnitudes: the smallest integer's is right as unsigned."""
    if (b == 0).any():
        raise UndefinedError("a division by 0")
    unsigned = f"u{a.itemsize}"
    quotient = np.abs(a).view(unsigned) // np.abs(b).view(unsigned)
    return np.where((a < 0) != (b < 0), -quotient.view(a.dtype), quotient.view(a.dtype))


# Bits


def _bits() -> Named:
    for kind in (*_BITS, "pred"):
        yield _same("and", np.bitwise_and, kind, 2)
        yield _same("or", np.bitwise_or, kind, 2)
        yield _same("xor", np.bitwise_xor, kind, 2)
        yield _same("not", np.invert, kind, 1)
    for kind in _BITS:
        yield f"shl.{kind}", Operation(_shift_left, DTYPES[kind], (DTYPES[kind], _U32))
        yield f"shr.{kind}", Operation(_shift_right, DTYPES[kind], (DTYPES[kind], _U32))
    for kind in ("b32", "b64"):
        whole = DTYPES[kind]
        yield f"bfi.{kind}", Operation(_insert_field, whole, (whole, whole, _U32, _U32))
        yield f"clz.{kind}", Operation(_count_high_zeros, _U32, (whole,))
        yield f"popc.{kind}", Operation(_count_ones, _U32, (whole,))
    for kind in (*_BITS, *_INTEGERS, "f32"):
        select = Operation(_select, DTYPES[kind], (DTYPES[kind], DTYPES[kind], _PRED))
        yield f"selp.{kind}", select
    for kind in (*_BITS, *_INTEGERS, "f32", "pred"):
        yield _same("mov", lambda a: a, kind, 1)
    yield _same("cvta.to.global", lambda a: a, "u64", 1)  # there is one kind of address here


def _shift_left(a: Values, n: Values) -> Values:
    return np.where(
        n < 8 * a.itemsize, a << (n % (8 * a.itemsize)).astype(a.dtype), a.dtype.type(0)
    )


def _shift_right(a: Values, n: Values) -> Values:
    """Shift by any number of places: beyond the last there are signs, or zeros."""
    most = 8 * a.itemsize - 1
    shifted = a >> np.minimum(n, most).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(n > most, a.dtype.type(0), shifted)


def _insert_field(a: Values, b: Values, position: Values, length: Values) -> Values:
    """Return b with the lowest bits of a in a field of it."""
    one = np.array([1], a.dtype)
    mask = _shift_left(_shift_left(one, length & 0xFF) - one, position & 0xFF)
    return (b & ~mask) | (_shift_left(a, position & 0xFF) & mask)


def _count_high_zeros(a: Values) -> Values:
    return (_bits_of(a).cumsum(-1) == 0).sum(-1).astype(np.uint32)


def _count_ones(a: Values) -> Values:
    return _bits_of(a).sum(-1).astype(np.uint32)


def _bits_of(a: Values) -> Values:
    """Return the bits of each integer, the highest first."""
    numbers = np.ascontiguousarray(a).astype(f">u{a.itemsize}")
    return np.unpackbits(numbers[..., None].view(np.uint8), axis=-1)


def _select(a: Values, b: Values, is_first: Values) -> Values:
    return np.where(is_first, a, b)


# Comparisons

_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _comparisons() -> Named:
    for kind in (*_INTEGERS, *_BITS):
        for name, function in _COMPARISONS.items():
            if kind[0] != "b" or name in ("eq", "ne"):  # bits have no order
                yield f"setp.{name}.{kind}", _compare(function, kind)
    for name, function in _COMPARISONS.items():
        yield f"setp.{name}.f32", _compare(_ordered(function), "f32")
        yield f"setp.{name}u.f32", _compare(_unordered(function), "f32")
    yield "setp.num.f32", _compare(lambda a, b: ~(np.isnan(a) | np.isnan(b)), "f32")
    yield "setp.nan.f32", _compare(lambda a, b: np.isnan(a) | np.isnan(b), "f32")


def _compare(function: Function, kind: str) -> Operation:
    return Operation(function, _PRED, (DTYPES[kind], DTYPES[kind]))


def _ordered(function: Function) -> Function:
    return lambda a, b: function(a, b) & ~(np.isnan(a) | np.isnan(b))


def _unordered(function: Function) -> Function:
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


# Floats


def _floats() -> Named:
    for rounding in floats.ROUNDINGS:
        dot = f".{rounding}"
        yield _same(f"add{dot}", _rounded(floats.add, rounding), "f32", 2)
        yield _same(f"sub{dot}", _rounded(lambda a, b, r: floats.add(a, -b, r), rounding), "f32", 2)
        yield _same(f"mul{dot}", _rounded(floats.multiply, rounding), "f32", 2)
        yield _same(f"fma{dot}", _rounded(floats.multiply_add, rounding), "f32", 3)
    yield _same("add", np.add, "f32", 2)
    yield _same("sub", np.subtract, "f32", 2)
    yield _same("mul", np.multiply, "f32", 2)
    yield _same("div.rn", np.divide, "f32", 2)
    yield _same("sqrt.rn", np.sqrt, "f32", 1)
    yield _same("rcp.rn", np.reciprocal, "f32", 1)
    yield _same("rcp.approx.ftz", _reciprocal_without_subnormals, "f32", 1)
    yield _same("neg", np.negative, "f32", 1)
    yield _same("abs", np.abs, "f32", 1)
    yield _same("min", np.fmin, "f32", 2)
    yield _same("max", np.fmax, "f32", 2)


def _rounded(function: Function, rounding: str) -> Function:
    return lambda *operands: function(*operands, rounding)


def _reciprocal_without_subnormals(a: Values) -> Values:
    """Return 1 / a; a GPU's own may be off by one unit in the last place."""
    return _flush(np.reciprocal(_flush(a)))


def _flush(a: Values) -> Values:
    return np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a)


# Conversions


def _conversions() -> Named:
    kinds = [f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64)]
    for result, operand in itertools.product(kinds, kinds):
        convert = Operation(_cast(DTYPES[result]), DTYPES[result], (DTYPES[operand],))
        yield f"cvt.{result}.{operand}", convert
    for operand in _INTEGERS:
        yield f"cvt.rn.f32.{operand}", Operation(_cast(_F32), _F32, (DTYPES[operand],))


def _cast(dtype: np.dtype) -> Function:
    return lambda a: a.astype(dtype)


_TO_INTEGERS: dict[str, Function] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def _conversions_of_floats() -> Named:
    for name, function in _TO_INTEGERS.items():
        yield f"cvt.{name}.f32.f32", Operation(function, _F32, (_F32,))
        for result in ("s32", "u32", "s64", "u64"):
            convert = _saturate(function, DTYPES[result])
            yield f"cvt.{name}.{result}.f32", Operation(convert, DTYPES[result], (_F32,))


def _saturate(function: Function, dtype: np.dtype) -> Function:
    """Return a conversion that ends at the least and the largest integer, and has 0 for NaN."""
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max

    def convert(a: Values) -> Values:
        whole = function(np.nan_to_num(a.astype(np.float64), nan=0.0))
        is_low, is_high = whole <= float(least), whole >= float(most)
        inside = np.where(is_low | is_high, 0.0, whole).astype(dtype)
        return np.where(is_low, dtype.type(least), np.where(is_high, dtype.type(most), inside))

    return convert

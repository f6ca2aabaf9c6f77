"""PTX's types as NumPy's, and literals: the bits of registers, numbers and memory."""

import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from ptx_machine.faults import UnknownTextError

# Named by what PTX calls bits without a meaning, and numbers of each size.
DTYPES: dict[str, np.dtype] = {
    "pred": np.dtype(np.bool_),
    "f32": np.dtype(np.float32),
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
}
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)")


def as_type(values: npt.NDArray[Any], dtype: np.dtype) -> npt.NDArray[Any]:
    """Return registers' values as another type has them: the same bits, or the lower ones."""
    if values.dtype == dtype:
        return values
    if values.dtype == np.bool_ or values.dtype.itemsize < dtype.itemsize:
        raise UnknownTextError(f"a register of {values.dtype} where {dtype} is expected")
    if values.dtype.itemsize > dtype.itemsize:
        values = values.astype(f"u{dtype.itemsize}")
    return values.view(dtype)


def is_literal(text: str) -> bool:
    """Tell whether an operand is a number."""
    return bool(_FLOAT.fullmatch(text) or _INTEGER.fullmatch(text))


def read_literal(text: str, dtype: np.dtype) -> npt.NDArray[Any]:
    """Return a number of the text as one element of a type.

    An array, and no scalar: arithmetic of NumPy's scalars warns where it wraps.
    """
    if found := _FLOAT.fullmatch(text):
        bits = np.array([struct.unpack(">I", bytes.fromhex(found[1]))[0]], np.uint32)
        return as_type(bits, dtype)
    if _INTEGER.fullmatch(text) is None:
        raise UnknownTextError(f"operand {text}")
    number = int(text, 0)
    if dtype == np.bool_:
        return np.array([number != 0])
    n_bits = dtype.itemsize * 8
    if dtype.kind == "f" or not -(1 << n_bits - 1) <= number < 1 << n_bits:
        raise UnknownTextError(f"{text}: no number of {dtype}")
    return np.array([number % (1 << n_bits)], f"u{dtype.itemsize}").view(dtype)

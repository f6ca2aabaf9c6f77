"""Single numbers by address: loads, stores and changes that several threads may make at once.

As in `memory`, these are plain Python, and a target puts its own in their place
(`scalar_intrinsics`). Addresses are multiples of the numbers' size.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from parllel.kernels.memory import load_int64


def load_int32(address: int) -> int:
    """Return an integer of 32 bits."""
    return ctypes.c_int32.from_address(address).value


def load_float32(address: int) -> np.float32:
    """Return a float."""
    return np.float32(ctypes.c_float.from_address(address).value)


def store_int64(address: int, value: int) -> None:
    """Write an integer of 64 bits."""
    ctypes.c_int64.from_address(address).value = value


def store_uint8(address: int, value: int) -> None:
    """Write a byte."""
    ctypes.c_uint8.from_address(address).value = value


def store_float32(address: int, value: np.float32) -> None:
    """Write a float."""
    ctypes.c_float.from_address(address).value = float(value)


def exchange_int64(address: int, value: int) -> int:
    """Store an integer and return what was there. Threads take turns."""
    former = load_int64(address)
    store_int64(address, value)
    return former


def add_int64(address: int, value: int) -> int:
    """Add to an integer and return what was there. Threads take turns."""
    return exchange_int64(address, load_int64(address) + value)


def raise_int64(address: int, value: int) -> int:
    """Let an integer be at least this, and return what was there. Threads take turns."""
    return exchange_int64(address, max(load_int64(address), value))


def scalar_intrinsics(
    intrinsic: Callable[..., Any],  # Any: Numba's decorator is untyped
    *,
    address_space: int,
    has_threads: bool,
) -> dict[str, object]:
    """Return a target's functions by the names of the plain ones.

    Args:
        intrinsic: the target's own decorator, as a CPU's and a GPU's differ.
        address_space: LLVM's number for the memory; 0 on a CPU, 1 for a GPU's global memory.
        has_threads: several may change the same number. A CPU's twin is one thread.
    """
    from llvmlite import ir
    from numba import types

    def pointer(element: Any) -> Any:  # Any: llvmlite is untyped
        return ir.PointerType(element, addrspace=address_space)

    whole, half, byte = (pointer(ir.IntType(bits)) for bits in (64, 32, 8))
    single = pointer(ir.FloatType())
    return {
        "load_int32": _load(intrinsic, half, types.int32, types.int64),
        "load_float32": _load(intrinsic, single, types.float32, types.float32),
        "store_int64": _store(intrinsic, whole, types.int64, types.int64),
        "store_uint8": _store(intrinsic, byte, types.int64, types.uint8),
        "store_float32": _store(intrinsic, single, types.float32, types.float32),
        "exchange_int64": _change(intrinsic, whole, "xchg", has_threads),
        "add_int64": _change(intrinsic, whole, "add", has_threads),
        "raise_int64": _change(intrinsic, whole, "max", has_threads),
    }


# Numba's protocol: an intrinsic is an untyped function that returns a signature and a generator.


def _load(intrinsic: Callable[..., Any], pointer: Any, stored: Any, given: Any) -> object:
    from numba import types

    @intrinsic
    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = builder.load(builder.inttoptr(arguments[0], pointer))
            return context.cast(builder, value, stored, given)

        return given(types.int64), generate

    return load


def _store(intrinsic: Callable[..., Any], pointer: Any, given: Any, stored: Any) -> object:
    from numba import types

    @intrinsic
    def store(typing_context, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = context.cast(builder, arguments[1], given, stored)
            builder.store(value, builder.inttoptr(arguments[0], pointer))
            return context.get_dummy_value()

        return types.void(types.int64, given), generate

    return store


def _change(
    intrinsic: Callable[..., Any], pointer: Any, operation: str, has_threads: bool
) -> object:
    from numba import types

    @intrinsic
    def change(typing_context, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            place, value = builder.inttoptr(arguments[0], pointer), arguments[1]
            if has_threads:
                return builder.atomic_rmw(operation, place, value, "monotonic")
            former = builder.load(place)
            if operation == "add":
                value = builder.add(former, value)
            elif operation == "max":
                is_larger = builder.icmp_signed(">", former, value)
                value = builder.select(is_larger, former, value)
            builder.store(value, place)
            return former

        return types.int64(types.int64, types.int64), generate

    return change

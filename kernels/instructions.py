"""Machine instructions that Python has no words for: about an integer's bits, and memory ahead.

Here they are plain Python; `instruction_intrinsics` has a target's own, as `addresses` has loads
and stores.
"""

from collections.abc import Callable
from typing import Any

from parllel.kernels.addresses import Builder, Value

N_BITS = 64


def count_low_zeros(number: int) -> int:
    """Return how many bits below the lowest that is set are 0; 64 where none is set."""
    return (number & -number).bit_length() - 1 if number else N_BITS


def count_high_zeros(number: int) -> int:
    """Return how many bits above the highest that is set are 0; 64 where none is set."""
    return N_BITS - (number & ((1 << N_BITS) - 1)).bit_length()


def prefetch(address: int) -> None:
    """Let a CPU bring a line of memory that is read soon. There need not be any."""


def instruction_intrinsics(
    intrinsic: Callable[..., Any],  # Any: Numba's decorator is untyped
) -> dict[str, object]:
    """Return a target's functions by the names of the plain ones.

    Args:
        intrinsic: the target's own decorator, as a CPU's and a GPU's differ.
    """
    return {
        "count_low_zeros": _count(intrinsic, lambda builder: builder.cttz),
        "count_high_zeros": _count(intrinsic, lambda builder: builder.ctlz),
        "prefetch": _prefetch(intrinsic),
    }


def _count(intrinsic: Callable[..., Any], instruction: Callable[[Builder], Any]) -> object:
    from llvmlite import ir
    from numba import types

    @intrinsic
    def count(typing_context, number):  # type: ignore[no-untyped-def]  # Numba's own protocol
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            of_zero_too = ir.IntType(1)(0)
            value: Value = instruction(builder)(arguments[0], of_zero_too)
            return value

        return types.int64(types.int64), generate

    return count


def _prefetch(intrinsic: Callable[..., Any]) -> object:
    from llvmlite import ir
    from numba import types

    @intrinsic
    def prefetch(typing_context, address):  # type: ignore[no-untyped-def]  # as above
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer, half = ir.PointerType(ir.IntType(8)), ir.IntType(32)
            form = ir.FunctionType(ir.VoidType(), [pointer, half, half, half])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], form)
            place = builder.inttoptr(arguments[0], pointer)
            # To be read, for all levels of caches, as data.
            builder.call(function, [place, half(0), half(3), half(1)])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return prefetch

"""Loads and copies by address: plain Python here, and what makes machine instructions of them.

A kernel that moves bytes of any dtype knows addresses, as integers, and no arrays. It calls these
functions by name; a target puts its own in their place (`memory_intrinsics`).
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

WORDS_AT_ONCE = 4


def load_int64(address: int) -> int:
    """Return the integer at a multiple of 8."""
    return ctypes.c_int64.from_address(address).value


def load_byte(address: int) -> int:
    """Return the byte at an address, from 0 to 255."""
    return ctypes.c_uint8.from_address(address).value


def copy_1(destination: int, source: int) -> None:
    """Copy 1 byte."""
    ctypes.memmove(destination, source, 1)


def copy_4(destination: int, source: int) -> None:
    """Copy 4 bytes; on a GPU both addresses are multiples of 4."""
    ctypes.memmove(destination, source, 4)


def copy_8(destination: int, source: int) -> None:
    """Copy 8 bytes; on a GPU both addresses are multiples of 8."""
    ctypes.memmove(destination, source, 8)


def copy_16(destination: int, source: int) -> None:
    """Copy 16 bytes; on a GPU both addresses are multiples of 16."""
    ctypes.memmove(destination, source, 16)


def copy_4_of_16(destination: int, source: int, step: int) -> None:
    """Copy 4 words of 16 bytes, `step` bytes from one to the next, on both sides.

    All four are read before the first is written: nobody waits four times for memory. A compiler
    may not do that by itself, because it cannot know that a write leaves the next word alone.
    """
    for word in range(WORDS_AT_ONCE):
        copy_16(destination + word * step, source + word * step)


def memory_intrinsics(
    intrinsic: Callable[..., Any],  # Any: Numba's decorator is untyped
    *,
    address_space: int,
    is_aligned: bool,
    joins_words: bool,
) -> dict[str, object]:
    """Return a target's functions by the names of the plain ones.

    Args:
        intrinsic: the target's own decorator, as a CPU's and a GPU's differ.
        address_space: LLVM's number for the memory; 0 on a CPU, 1 for a GPU's global memory.
        is_aligned: addresses are multiples of the words' size. Otherwise they may be anything,
            which costs nothing on the CPUs of today.
        joins_words: `copy_4_of_16` copies 64 bytes at once where the words are neighbours. Whole
            cache lines need not be read before they are written: 5 % less time for long rows.
    """
    from llvmlite import ir

    def access(n_bits: int, n_elements: int = 1) -> _Access:
        element = ir.IntType(n_bits)
        element = ir.VectorType(element, n_elements) if n_elements > 1 else element
        pointer = ir.PointerType(element, addrspace=address_space)
        return _Access(pointer, n_bits // 8 * n_elements if is_aligned else 1)

    word = access(32, 4)  # the type that becomes one access of 128 bits on a GPU
    line = access(32, 16) if joins_words else None
    return {
        "load_int64": _load_intrinsic(intrinsic, access(64)),
        "load_byte": _load_intrinsic(intrinsic, access(8)),
        "copy_1": _copy_intrinsic(intrinsic, access(8)),
        "copy_4": _copy_intrinsic(intrinsic, access(32)),
        "copy_8": _copy_intrinsic(intrinsic, access(64)),
        "copy_16": _copy_intrinsic(intrinsic, word),
        "copy_4_of_16": _copy_words_intrinsic(intrinsic, word, line),
    }


class _Access(NamedTuple):
    """Loads and stores of one type; addresses are integers. `Any`: llvmlite is untyped."""

    pointer: Any
    alignment: int

    def load(self, builder: Any, address: Any) -> Any:
        value = builder.load(builder.inttoptr(address, self.pointer))
        value.align = self.alignment
        return value

    def store(self, builder: Any, address: Any, value: Any) -> None:
        builder.store(value, builder.inttoptr(address, self.pointer)).align = self.alignment

    def copy(self, builder: Any, destination: Any, source: Any) -> None:
        self.store(builder, destination, self.load(builder, source))


# Numba's protocol: an intrinsic is an untyped function that returns a signature and a generator.


def _load_intrinsic(intrinsic: Callable[..., Any], access: _Access) -> object:
    """Return a load of an integer, which becomes an int64; a shorter one has no sign."""
    from llvmlite import ir
    from numba import types

    @intrinsic
    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.zext(access.load(builder, *arguments), ir.IntType(64))

        return types.int64(types.int64), generate

    return load


def _copy_intrinsic(intrinsic: Callable[..., Any], access: _Access) -> object:
    from numba import types

    @intrinsic
    def copy(typing_context, destination, source):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            access.copy(builder, *arguments)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return copy


def _copy_words_intrinsic(
    intrinsic: Callable[..., Any], word: _Access, line: _Access | None
) -> object:
    from numba import types

    @intrinsic
    def copy_4_of_16(typing_context, destination, source, step):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _copy_words(builder, word, line, *arguments)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return copy_4_of_16


def _copy_words(
    builder: Any, word: _Access, line: _Access | None, destination: Any, source: Any, step: Any
) -> None:
    """Generate the copy of 4 words that lie a step apart, or of the line that they make up."""
    if line is not None:
        are_neighbours = builder.icmp_signed("==", step, step.type(16))
        with builder.if_else(are_neighbours) as (joined, apart):
            with joined:
                line.copy(builder, destination, source)
            with apart:
                _copy_words(builder, word, None, destination, source, step)
        return
    offsets = [builder.mul(step, step.type(number)) for number in range(WORDS_AT_ONCE)]
    values = [word.load(builder, builder.add(source, offset)) for offset in offsets]
    for offset, value in zip(offsets, values, strict=True):
        word.store(builder, builder.add(destination, offset), value)

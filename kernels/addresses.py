"""Memory by address: loads, stores, copies, and changes that several threads may make at once.

A kernel that moves bytes of any dtype knows addresses, as integers, and no arrays. It calls these
functions by name. Here they are plain Python; each target puts its own machine instructions in
their place (`memory_intrinsics`, `scalar_intrinsics`). Addresses of single numbers are multiples
of the numbers' size.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# llvmlite and Numba's types are not typed, so these are Any to a type checker.
Builder: TypeAlias = Any  # llvmlite.ir.IRBuilder, which writes instructions
Value: TypeAlias = Any  # llvmlite.ir.Value, the result of an instruction
LlvmType: TypeAlias = Any  # llvmlite.ir.Type
NumbaType: TypeAlias = Any  # of numba.types

WORDS_AT_ONCE = 4


def load_int64(address: int) -> int:
    """Return the integer at a multiple of 8."""
    return ctypes.c_int64.from_address(address).value


def load_two_int64(address: int) -> tuple[int, int]:
    """Return the integers at an address and 8 bytes after it; on a GPU at a multiple of 16."""
    return load_int64(address), load_int64(address + 8)


def load_byte(address: int) -> int:
    """Return the byte at an address, from 0 to 255."""
    return ctypes.c_uint8.from_address(address).value


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

    All four are read before the first is written, so that memory is waited for once and not four
    times. A compiler may not do that by itself, because it cannot know that a write leaves the
    next word alone.
    """
    for word in range(WORDS_AT_ONCE):
        copy_16(destination + word * step, source + word * step)


def copy_up_to_4_of_1(destination: int, source: int, at: int, step: int, end: int) -> None:
    """Copy up to 4 bytes at once, as `copy_up_to_8_of_16` copies words."""
    _copy_plainly(copy_1, 4, destination, source, at, step, end)


def copy_up_to_4_of_16(destination: int, source: int, at: int, step: int, end: int) -> None:
    """Copy up to 4 words of 16 bytes at once, as `copy_up_to_8_of_16`."""
    _copy_plainly(copy_16, 4, destination, source, at, step, end)


def copy_up_to_8_of_16(destination: int, source: int, at: int, step: int, end: int) -> None:
    """Copy the words of 16 bytes at the offsets at, at + step, ... that are below `end`: up to 8.

    All are read before the first is written, so that memory is waited for once. A word that is
    not there costs nothing but a load of the last one: the loads need no branches.

    Args:
        destination, source: addresses of offset 0; multiples of 16 on a GPU.
        at, step, end: offsets, multiples of 16; `at` is below `end`, and the step is above 0.
    """
    _copy_plainly(copy_16, 8, destination, source, at, step, end)


def _copy_plainly(
    copy: Callable[[int, int], None],
    most: int,
    destination: int,
    source: int,
    at: int,
    step: int,
    end: int,
) -> None:
    for offset in range(at, min(end, at + most * step), step):
        copy(destination + offset, source + offset)


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
        nbytes = n_bits // 8 * n_elements
        return _Access(pointer, nbytes if is_aligned else 1, nbytes)

    word = access(32, 4)  # the type that becomes one access of 128 bits on a GPU
    line = access(32, 16) if joins_words else None
    return {
        "load_int64": _load_intrinsic(intrinsic, access(64)),
        "load_two_int64": _load_two_intrinsic(intrinsic, access(64, 2)),
        "load_byte": _load_intrinsic(intrinsic, access(8)),
        "copy_1": _copy_intrinsic(intrinsic, access(8)),
        "copy_4": _copy_intrinsic(intrinsic, access(32)),
        "copy_8": _copy_intrinsic(intrinsic, access(64)),
        "copy_16": _copy_intrinsic(intrinsic, word),
        "copy_4_of_16": _copy_words_intrinsic(intrinsic, word, line),
        "copy_up_to_4_of_1": _copy_batch_intrinsic(intrinsic, access(8), 4),
        "copy_up_to_4_of_16": _copy_batch_intrinsic(intrinsic, word, 4),
        "copy_up_to_8_of_16": _copy_batch_intrinsic(intrinsic, word, 8),
    }


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

    def pointer(element: LlvmType) -> LlvmType:
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


class _Access(NamedTuple):
    """Loads and stores of one type; addresses are integers."""

    pointer: LlvmType
    alignment: int
    nbytes: int

    def load(self, builder: Builder, address: Value) -> Value:
        value = builder.load(builder.inttoptr(address, self.pointer))
        value.align = self.alignment
        return value

    def store(self, builder: Builder, address: Value, value: Value) -> None:
        builder.store(value, builder.inttoptr(address, self.pointer)).align = self.alignment

    def copy(self, builder: Builder, destination: Value, source: Value) -> None:
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


def _load_two_intrinsic(intrinsic: Callable[..., Any], access: _Access) -> object:
    """Return a load of two integers at once."""
    from llvmlite import ir
    from numba import types

    @intrinsic
    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            both = access.load(builder, *arguments)
            halves = [builder.extract_element(both, ir.IntType(32)(at)) for at in range(2)]
            return context.make_tuple(builder, signature.return_type, halves)

        two = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]  # Numba's gap
        return two(types.int64), generate

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
    builder: Builder,
    word: _Access,
    line: _Access | None,
    destination: Value,
    source: Value,
    step: Value,
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


def _copy_batch_intrinsic(intrinsic: Callable[..., Any], access: _Access, most: int) -> object:
    """Return a copy of up to `most` words that lie a step apart."""
    from numba import types

    @intrinsic
    def copy_up_to(typing_context, destination, source, at, step, end):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _copy_batch(builder, access, most, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return copy_up_to


def _copy_batch(
    builder: Builder,
    access: _Access,
    most: int,
    destination: Value,
    source: Value,
    at: Value,
    step: Value,
    end: Value,
) -> None:
    """Generate loads of all words, of the last one in the place of those that are not there."""
    last = builder.sub(end, at.type(access.nbytes))
    offsets = [builder.add(at, builder.mul(step, at.type(number))) for number in range(most)]
    are_there = [builder.icmp_signed("<", offset, end) for offset in offsets]
    values = []
    for offset, is_there in zip(offsets, are_there, strict=True):
        place = builder.select(is_there, offset, last)
        values.append(access.load(builder, builder.add(source, place)))
    for offset, is_there, value in zip(offsets, are_there, values, strict=True):
        with builder.if_then(is_there):
            access.store(builder, builder.add(destination, offset), value)


def _load(
    intrinsic: Callable[..., Any], pointer: LlvmType, stored: NumbaType, given: NumbaType
) -> object:
    from numba import types

    @intrinsic
    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = builder.load(builder.inttoptr(arguments[0], pointer))
            return context.cast(builder, value, stored, given)

        return given(types.int64), generate

    return load


def _store(
    intrinsic: Callable[..., Any], pointer: LlvmType, given: NumbaType, stored: NumbaType
) -> object:
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
    intrinsic: Callable[..., Any], pointer: LlvmType, operation: str, has_threads: bool
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

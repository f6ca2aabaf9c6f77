"""Words of 16 bytes that a GPU loads from anywhere, changes and stores: what shifted rows take.

A kernel calls these functions by name and passes words from one to the next, without looking into
them. Here a word is bytes; each target has machine instructions in their place
(`word_intrinsics`), and two integers of 64 bits for a word.
"""

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from parllel.kernels.addresses import Builder, NumbaType, Value

WORD_NBYTES = 16

_SHUFFLE, _DOWN = "llvm.nvvm.shfl.sync.i32", 2  # NVVM's name, and its number of the direction

Word: TypeAlias = Any  # bytes here; a tuple of integers to a compiler
Halves: TypeAlias = list[Value]  # of a word, the low one first
Quarters: TypeAlias = list[Value]  # of one word or of two


def no_word() -> Word:
    """Return a word whose bytes are 0."""
    return bytes(WORD_NBYTES)


def load_around(address: int) -> Word:
    """Load what `word_at` makes a word of: the aligned words in which its bytes lie.

    Those are one or two, and bytes of theirs beside the 16 are read, too. Apart from `word_at`, so
    that several words are loaded before the first of them is waited for.
    """
    return ctypes.string_at(address, WORD_NBYTES)


def is_handed(address: int, mates: int) -> bool:
    """Return whether the next lane of a warp loads the second word that `load_around` would load.

    Neighbouring lanes mostly load neighbouring words: the second of the aligned words in which a
    lane's bytes lie is the first one of the next lane. It is not for the last lane.

    All lanes that `mates` names must call this together, with the same `mates`: each waits for all
    of them, and for ever if one does not come.

    Args:
        address: of 16 bytes. Lanes that follow each other have addresses less than 2 GiB apart.
        mates: bits of those lanes of the warp; they follow each other, and this one is among them.
    """
    del address, mates
    return False  # plain Python has no lanes


def load_own(address: int, is_handed: bool) -> Word:
    """Load what `load_around` would load, without the second word if that is handed over."""
    del is_handed
    return ctypes.string_at(address, WORD_NBYTES)


def take_around(own: Word, mates: int) -> Word:
    """Return what `load_around` would have loaded, of what `load_own` returned.

    All lanes that `mates` names must call this together, as `is_handed`.
    """
    del mates
    return own


def word_at(around: Word, address: int) -> Word:
    """Return the word at an address, of what `load_around` returned for the same address."""
    del address  # plain Python loads from anywhere
    return around


def move_word(word: Word, count: int) -> Word:
    """Move bytes by `count` places, to higher ones if it is above 0; others become 0.

    Args:
        word: 16 bytes.
        count: from -16 to 16.
    """
    nothing = bytes(WORD_NBYTES)
    moved: bytes = (nothing + word + nothing)[WORD_NBYTES - count :][:WORD_NBYTES]
    return moved


def fill_word(
    word: Word, pixels: Word, begin: int, end: int, pixel_at: int, phase: int, pixel_nbytes: int
) -> Word:
    """Fill the bytes from `begin` to `end` with one pixel, again and again.

    Args:
        word: 16 bytes.
        pixels: 16 bytes, which have the pixel somewhere.
        begin, end: from 0 to 16; nothing is filled where the end is not above.
        pixel_at: where the pixel begins among `pixels`; 0 to 16 - pixel_nbytes.
        phase: byte of the pixel that would come first, at the word's byte 0.
        pixel_nbytes: bytes of a pixel, 1 to 16.
    """
    pixel = pixels[pixel_at : pixel_at + pixel_nbytes]
    filling = (pixel * (2 * WORD_NBYTES))[phase:]
    filled: bytes = word[:begin] + filling[begin:end] + word[max(begin, end) :]
    return filled


def merge_words(first: Word, second: Word, count: int) -> Word:
    """Return the first `count` bytes of a word, 0 to 16, followed by the others of another."""
    merged: bytes = first[:count] + second[count:]
    return merged


def store_word(address: int, word: Word) -> None:
    """Write a word to a multiple of 16."""
    ctypes.memmove(address, word, WORD_NBYTES)


def store_8(address: int, value: int) -> None:
    """Write the low 64 bits of an integer to anywhere, on a CPU."""
    ctypes.c_int64.from_address(address).value = value


def word_intrinsics(
    intrinsic: Callable[..., Any],  # Any: Numba's decorator is untyped
    *,
    address_space: int,
    has_lanes: bool,
) -> dict[str, object]:
    """Return a target's functions by the names of the plain ones.

    Args:
        intrinsic, address_space: as of `addresses`.
        has_lanes: threads hand words to each other. A CPU's twin is one thread.
    """
    from llvmlite import ir
    from numba import types

    number = types.int64
    word: NumbaType = types.UniTuple(number, 2)  # type: ignore[no-untyped-call]  # Numba's gap
    around: NumbaType = types.UniTuple(types.int32, 8)  # type: ignore[no-untyped-call]
    own: NumbaType = types.UniTuple(types.int32, 9)  # type: ignore[no-untyped-call]
    pointer = ir.PointerType(ir.VectorType(ir.IntType(64), 2), addrspace=address_space)
    loads = _Loads(address_space, has_lanes)

    def store_word(builder: Builder, address: Value, stored: Halves) -> None:
        both = pointer.pointee(None)
        for at, half in enumerate(stored):
            both = builder.insert_element(both, half, ir.IntType(32)(at))
        builder.store(both, builder.inttoptr(address, pointer), align=WORD_NBYTES)

    def store_8(builder: Builder, address: Value, value: Value) -> None:
        place = builder.inttoptr(address, ir.PointerType(value.type, addrspace=address_space))
        builder.store(value, place, align=1)

    def make(given: list[NumbaType], returned: NumbaType, generate: Callable[..., Any]) -> object:
        return _make_intrinsic(intrinsic, returned(*given), generate)

    return {
        "store_8": make([number, number], types.void, store_8),
        "no_word": make([], word, _no_word),
        "load_around": make([number], around, loads.load_around),
        "is_handed": make([number, number], types.boolean, loads.is_handed),
        "load_own": make([number, types.boolean], own, loads.load_own),
        "take_around": make([own, number], around, loads.take_around),
        "word_at": make([around, number], word, _word_at),
        "move_word": make([word, number], word, _move_word),
        "fill_word": make([word, word, *[number] * 5], word, _fill_word),
        "merge_words": make([word, word, number], word, _merge_words),
        "store_word": make([number, word], types.void, store_word),
    }


class _Loads(NamedTuple):
    """Loads of the aligned words in which 16 bytes lie."""

    address_space: int
    has_lanes: bool

    def load(self, builder: Builder, address: Value) -> Quarters:
        from llvmlite import ir

        part = ir.IntType(32)
        pointer = ir.PointerType(ir.VectorType(part, 4), addrspace=self.address_space)
        loaded = builder.load(builder.inttoptr(address, pointer), align=WORD_NBYTES)
        return [builder.extract_element(loaded, part(at)) for at in range(4)]

    def load_around(self, builder: Builder, address: Value) -> Quarters:
        places = _places_around(builder, address)
        return [part for place in places for part in self.load(builder, place)]

    def is_handed(self, builder: Builder, address: Value, mates: Value) -> Value:
        from llvmlite import ir

        part = ir.IntType(32)
        if not self.has_lanes:
            return ir.IntType(1)(0)
        first = builder.and_(builder.trunc(address, part), part(-WORD_NBYTES))
        second = builder.add(first, part(WORD_NBYTES))
        return builder.icmp_unsigned("==", _of_next_lane(builder, first, mates), second)

    def load_own(self, builder: Builder, address: Value, is_handed: Value) -> Quarters:
        first, second = _places_around(builder, address)
        loaded = self.load(builder, first)
        nothing, before = loaded[0].type(0), builder.block
        is_needed = builder.icmp_unsigned("!=", first, second)
        with builder.if_then(builder.and_(is_needed, builder.not_(is_handed))):
            behind, inside = self.load(builder, second), builder.block
        both = [builder.phi(nothing.type) for _ in behind]
        for each, value in zip(both, behind, strict=True):
            each.add_incoming(nothing, before)
            each.add_incoming(value, inside)
        return [*loaded, *both, builder.zext(is_handed, nothing.type)]

    def take_around(self, builder: Builder, own: Quarters, mates: Value) -> Quarters:
        loaded, second = own[:4], own[4:8]
        if self.has_lanes:
            theirs = [_of_next_lane(builder, each, mates) for each in loaded]
            is_handed = builder.icmp_unsigned("!=", own[8], own[8].type(0))
            pairs = zip(theirs, second, strict=True)
            second = [builder.select(is_handed, *pair) for pair in pairs]
        return [*loaded, *second]


def _places_around(builder: Builder, address: Value) -> tuple[Value, Value]:
    # Twice the same word where the address is a multiple of 16: the next one may not be there.
    behind = builder.add(address, address.type(WORD_NBYTES - 1))
    first, second = (builder.and_(at, at.type(-WORD_NBYTES)) for at in (address, behind))
    return first, second


def _make_intrinsic(
    intrinsic: Callable[..., Any],
    signature: Any,  # Any: of Numba, untyped
    generate: Callable[..., Any],
) -> object:
    """Return a function that is generated from integers: two for a word, its low and high half."""

    def lower(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        made = generate(builder, *(_halves_of(builder, each) for each in arguments))
        if made is None:
            return context.get_dummy_value()
        if not isinstance(made, list):
            return made
        return context.make_tuple(builder, signature.return_type, made)

    # Numba counts the arguments of what it is given, and knows no `*arguments`.
    def of_none(typing_context):  # type: ignore[no-untyped-def]
        return signature, lower

    def of_one(typing_context, a):  # type: ignore[no-untyped-def]
        return signature, lower

    def of_two(typing_context, a, b):  # type: ignore[no-untyped-def]
        return signature, lower

    def of_three(typing_context, a, b, c):  # type: ignore[no-untyped-def]
        return signature, lower

    def of_seven(typing_context, a, b, c, d, e, f, g):  # type: ignore[no-untyped-def]
        return signature, lower

    functions = {0: of_none, 1: of_one, 2: of_two, 3: of_three, 7: of_seven}
    made: object = intrinsic(functions[len(signature.args)])
    return made


def _halves_of(builder: Builder, value: Value) -> Any:  # Any: as `generate` takes it
    """Return an argument's numbers: one, or the halves of a word, or of the two of `around`."""
    from llvmlite import ir

    if isinstance(value.type, ir.IntType):
        return value
    return [builder.extract_value(value, at) for at in range(value.type.count)]


def _shift(builder: Builder, word: Halves, n_bytes: Value, *, towards: str) -> Halves:
    """Move a word's bytes by 0 to 16 places and more, to "higher" or "lower" ones."""
    from llvmlite import ir

    low, high = word
    short = ir.IntType(32)  # half as many registers
    n_bits = builder.shl(builder.trunc(n_bytes, short), short(3))

    def move(half: Value, bits: Value, *, back: bool = False) -> Value:
        is_higher = (towards == "higher") != back
        amount = builder.zext(builder.and_(bits, short(63)), half.type)
        return (builder.shl if is_higher else builder.lshr)(half, amount)

    # `near` moves within the word's halves, `far` from the one to the other.
    near, far = (low, high) if towards == "higher" else (high, low)
    nothing = low.type(0)
    is_short = builder.icmp_unsigned("<", n_bits, short(64))
    is_there = builder.icmp_unsigned("<", n_bits, short(128))
    is_still = builder.icmp_unsigned("==", builder.and_(n_bits, short(63)), short(0))
    moved = move(near, n_bits)
    carried = move(near, builder.neg(n_bits), back=True)  # 0 bits would be 64
    carried = builder.select(is_still, nothing, carried)
    behind = builder.select(is_short, builder.or_(move(far, n_bits), carried), moved)
    behind = builder.select(is_there, behind, nothing)
    moved = builder.select(is_short, moved, nothing)
    return [moved, behind] if towards == "higher" else [behind, moved]


def _no_word(builder: Builder) -> Halves:
    from llvmlite import ir

    return [ir.IntType(64)(0)] * 2


def _of_next_lane(builder: Builder, value: Value, mates: Value) -> Value:
    """Return the 32 bits that the next lane has; of the last one of `mates` its own."""
    from llvmlite import ir

    part = ir.IntType(32)
    form = ir.FunctionType(ir.LiteralStructType((part, ir.IntType(1))), [part] * 5)
    function = builder.module.globals.get(_SHUFFLE) or ir.Function(builder.module, form, _SHUFFLE)
    mask = builder.trunc(mates, part)
    last = builder.sub(part(31), builder.ctlz(mask, ir.IntType(1)(0)))
    handed = builder.call(function, [mask, part(_DOWN), value, part(1), last])
    return builder.extract_value(handed, 0)


def _word_at(builder: Builder, around: Quarters, address: Value) -> Halves:
    from llvmlite import ir

    half, whole = ir.IntType(32), ir.IntType(64)
    parts, shift = around, builder.trunc(address, half)
    for n_parts in (2, 1):  # the address' bits 3 and 2 say by how many parts
        bit = builder.and_(shift, half(4 * n_parts))
        is_set = builder.icmp_unsigned("!=", bit, half(0))
        pairs = zip(parts[n_parts:], parts, strict=False)
        parts = [builder.select(is_set, later, part) for later, part in pairs]
    n_bits = builder.zext(builder.mul(builder.and_(shift, half(3)), half(8)), whole)

    def join(low: Value, high: Value) -> Value:
        high = builder.shl(builder.zext(high, whole), whole(32))
        return builder.or_(high, builder.zext(low, whole))

    moved = [builder.lshr(join(*parts[at : at + 2]), n_bits) for at in range(4)]
    low, second, third, high = (builder.trunc(each, half) for each in moved)
    return [join(low, second), join(third, high)]


def _move_word(builder: Builder, word: Halves, count: Value) -> Halves:
    higher = _shift(builder, word, count, towards="higher")
    lower = _shift(builder, word, builder.neg(count), towards="lower")
    is_higher = builder.icmp_signed(">", count, count.type(0))
    return [builder.select(is_higher, *each) for each in zip(higher, lower, strict=True)]


def _fill_word(
    builder: Builder,
    word: Halves,
    pixels: Halves,
    begin: Value,
    end: Value,
    pixel_at: Value,
    phase: Value,
    pixel_nbytes: Value,
) -> Halves:
    # The pixel, then twice as often as before, until it fills the word from byte 0 on.
    filling = _shift(builder, pixels, pixel_at, towards="lower")
    beside = _from_byte(builder, pixel_nbytes)
    filling = _each(builder.and_, filling, map(builder.not_, beside))
    for times in (1, 2, 4, 8):
        places = builder.mul(pixel_nbytes, pixel_nbytes.type(times))
        filling = _each(builder.or_, filling, _shift(builder, filling, places, towards="higher"))
    # What would come first is not byte 0 of the pixel, but a later one: two such words, moved.
    early = _shift(builder, filling, phase, towards="lower")
    rest = builder.sub(pixel_nbytes, phase)
    filling = _each(builder.or_, early, _shift(builder, filling, rest, towards="higher"))
    after = map(builder.not_, _from_byte(builder, end))
    is_filled = _each(builder.and_, _from_byte(builder, begin), after)
    return _choose(builder, is_filled, filling, word)


def _merge_words(builder: Builder, first: Halves, second: Halves, count: Value) -> Halves:
    return _choose(builder, _from_byte(builder, count), second, first)


def _each(
    operation: Callable[[Value, Value], Value], some: Iterable[Value], others: Iterable[Value]
) -> Halves:
    return [operation(*pair) for pair in zip(some, others, strict=True)]


def _from_byte(builder: Builder, begin: Value) -> Halves:
    """Return a word whose bytes are 255 from one on, and 0 before."""
    return _shift(builder, [begin.type(-1)] * 2, begin, towards="higher")


def _choose(builder: Builder, bits: Halves, where_set: Halves, elsewhere: Halves) -> Halves:
    chosen = _each(builder.and_, bits, where_set)
    kept = _each(builder.and_, map(builder.not_, bits), elsewhere)
    return _each(builder.or_, chosen, kept)

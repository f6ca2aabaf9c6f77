"""The machine that executes PTX: its arithmetic, its text, and what it refuses."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptx_machine import floats
from ptx_machine.faults import (
    DivergedError,
    EndlessError,
    MisalignedError,
    OutOfBoundsError,
    PtxError,
    RaceError,
    UndefinedError,
    UnknownTextError,
)
from ptx_machine.machine import Machine
from ptx_machine.memory import CHANGE, READ, Block, DeviceMemory, Shared
from ptx_machine.operations import find_operations

HEADER = ".version 6.3\n.target sm_75\n.address_size 64\n\n"
OPERATIONS = find_operations()

singles = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-4, 4, width=32)
wholes = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20)


def module(body: str, *, parameters: str = "u64") -> str:
    """Return a module with the entry `f`, whose parameters are p0, p1, ..."""
    kinds = parameters.split()
    names = ",\n".join(f"\t.param .{kind} p{number}" for number, kind in enumerate(kinds))
    registers = "".join(
        f"\t.reg .{kind} \t%{name}<99>;\n"
        for kind, name in (("pred", "p"), ("b16", "rs"), ("b32", "r"), ("b64", "rd"), ("f32", "f"))
    )
    lines = "".join(f"\t{line.strip()}\n" for line in body.strip().splitlines())
    return f"{HEADER}.visible .entry f(\n{names}\n)\n{{\n{registers}\n{lines}\n}}\n"


def launch(
    body: str, data: npt.NDArray[Any], *, threads: int = 4, seed: int = 0, **allowed: Any
) -> None:
    """Execute a body that is given the address of some data: 64 bytes lie unused on both sides."""
    around = np.zeros(data.nbytes + 192, np.uint8)
    start = 64 + -(around.ctypes.data + 64) % 64
    inside = around[start : start + data.nbytes]
    inside[:] = data.reshape(-1).view(np.uint8)
    address = inside.ctypes.data
    memory = DeviceMemory([Block(address, inside, "the data")], **allowed)
    text = module("ld.param.u64 %rd1, [p0];\nmov.u32 %r1, %tid.x;\ncvt.u64.u32 %rd2, %r1;\n" + body)
    Machine(text).launch(
        "f", (1,), (threads,), [np.int64(address)], memory, seed=seed, most_steps=200
    )
    data.reshape(-1).view(np.uint8)[:] = inside


# Floats, beside exact fractions


def round_exactly(exact: Fraction, rounding: str) -> np.float32:
    """Return the float32 on the side that a direction asks for, found by comparing fractions."""
    below = np.float32(float(exact))
    while np.isinf(below) or Fraction(float(below)) > exact:
        below = np.nextafter(below, np.float32(-np.inf))
        if below == -np.inf:
            break
    above = below
    if below == -np.inf or Fraction(float(below)) != exact:
        above = np.nextafter(below, np.float32(np.inf))
    if rounding == "rz":
        rounding = "rm" if exact > 0 else "rp"
    return below if rounding == "rm" else above


@given(a=singles, b=singles, c=singles)
@pytest.mark.parametrize("rounding", ["rz", "rm", "rp"])
def test_sums_and_products_are_rounded_in_each_direction(
    a: float, b: float, c: float, rounding: str
) -> None:
    x, y, z = (np.array([each], np.float32) for each in (a, b, c))
    exact_sum, product = Fraction(a) + Fraction(b), Fraction(a) * Fraction(b)
    with np.errstate(over="ignore", under="ignore"):
        results = [
            (floats.add(x, y, rounding), exact_sum),
            (floats.multiply(x, y, rounding), product),
            (floats.multiply_add(x, y, z, rounding), product + Fraction(c)),
        ]
        for got, exact in results:
            assert got[0] == round_exactly(exact, rounding)


@given(a=singles, b=singles, c=singles)
def test_a_product_and_sum_are_rounded_once_to_nearest(a: float, b: float, c: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        got = floats.multiply_add(*(np.array([each], np.float32) for each in (a, b, c)))[0]
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        around = [np.nextafter(got, np.float32(side)) for side in (-np.inf, np.inf)]
    if np.isfinite([got, *around]).all():
        error, *others = (abs(Fraction(float(each)) - exact) for each in (got, *around))
        assert error <= min(others)
        if error in others:
            assert got.view(np.int32) % 2 == 0


def compute(opcode: str, *operands: float) -> Any:
    """Return what an instruction makes of single numbers."""
    operation = OPERATIONS[opcode]
    typed = [
        np.array([operand]).astype(dtype)
        for operand, dtype in zip(operands, operation.operands, strict=True)
    ]
    with np.errstate(all="ignore"):
        return operation.function(*typed).astype(operation.result)[0]


# Integers, beside Python's


@given(a=wholes, b=wholes)
def test_integers_wrap_and_divide_towards_zero(a: int, b: int) -> None:
    def wrapped(number: int) -> int:
        return (number + 2**63) % 2**64 - 2**63

    assert compute("add.s64", a, b) == wrapped(a + b)
    assert compute("sub.s64", a, b) == wrapped(a - b)
    assert compute("mul.lo.s64", a, b) == wrapped(a * b)
    assert compute("max.s64", a, b) == max(a, b)
    if b != 0:
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        assert compute("div.s64", a, b) == wrapped(quotient)
        assert compute("rem.s64", a, b) == a - quotient * b


@given(a=st.integers(0, 2**64 - 1), b=st.integers(0, 2**64 - 1), n=st.integers(0, 200))
def test_bits_are_shifted_and_inserted(a: int, b: int, n: int) -> None:
    assert compute("shl.b64", a, n) == (a << n) % 2**64
    assert compute("shr.u64", a, n) == a >> n
    assert compute("shr.s64", a - 2**63, n) == (a - 2**63) >> n
    position, length = n % 64, (n * 7) % 65
    mask = ((1 << length) - 1) << position
    assert (
        compute("bfi.b64", a, b, position, length) == (b & ~mask | (a << position) & mask) % 2**64
    )
    short = a >> n % 65  # with zeros at its upper end
    for bits in (32, 64):
        digits = f"{short % 2**bits:0{bits}b}"
        assert compute(f"clz.b{bits}", short % 2**bits) == len(digits) - len(digits.lstrip("0"))
        assert compute(f"popc.b{bits}", short % 2**bits) == digits.count("1")


@pytest.mark.parametrize(
    ("opcode", "operands", "expected"),
    [
        ("mul.wide.s32", (-(2**31), 2**31 - 1), -(2**31) * (2**31 - 1)),
        ("mul.hi.u32", (2**32 - 1, 2**32 - 1), 2**32 - 2),
        ("cvt.s64.s32", (-5,), -5),
        ("cvt.u64.u32", (2**32 - 5,), 2**32 - 5),
        ("cvt.u32.u64", (2**32 + 7,), 7),
        ("cvt.rn.f32.s64", (2**24 + 1,), 2**24),
        ("cvt.rzi.s64.f32", (-2.75,), -2),
        ("cvt.rzi.s64.f32", (1e30,), 2**63 - 1),
        ("cvt.rzi.s32.f32", (-1e30,), -(2**31)),
        ("cvt.rzi.s64.f32", (np.nan,), 0),
        ("cvt.rni.f32.f32", (2.5,), 2),
        ("cvt.rmi.f32.f32", (-2.5,), -3),
        ("setp.gt.f32", (np.nan, 0), False),
        ("setp.ne.f32", (np.nan, 0), False),
        ("setp.gtu.f32", (np.nan, 0), True),
        ("setp.neu.f32", (np.nan, np.nan), True),
        ("rcp.approx.ftz.f32", (1e-39,), np.inf),
        ("selp.b64", (3, 4, 1), 3),
    ],
)
def test_an_instruction_gives_what_ptx_says(
    opcode: str, operands: Sequence[float], expected: float
) -> None:
    assert compute(opcode, *operands) == expected


# Threads


def test_each_thread_goes_its_own_way() -> None:
    """Thread i writes the number of its loops, 3 * i, and the last one ends early."""
    data = np.full(5, 7, np.uint64)
    body = """
        setp.eq.s64 %p1, %rd2, 4;
        @%p1 ret;
        mul.lo.s64 %rd3, %rd2, 3;
        mov.u64 %rd4, 0;
        $loop:
        setp.ge.s64 %p2, %rd4, %rd3;
        @%p2 bra $done;
        add.s64 %rd4, %rd4, 1;
        bra.uni $loop;
        $done:
        shl.b64 %rd5, %rd2, 3;
        add.s64 %rd6, %rd1, %rd5;
        st.global.u64 [%rd6], %rd4;
        ret;
    """
    launch(body, data, threads=5)
    assert data.tolist() == [0, 3, 6, 9, 7]


def test_positions_have_up_to_three_axes() -> None:
    data = np.zeros(2 * 3 * 4 * 5, np.int32)
    memory = DeviceMemory([Block(data.ctypes.data, data.view(np.uint8), "")])
    body = """
        ld.param.u64 %rd1, [p0];
        mov.u32 %r1, %ctaid.x;
        mov.u32 %r2, %ctaid.y;
        mov.u32 %r3, %tid.x;
        mov.u32 %r4, %tid.y;
        mov.u32 %r5, %nctaid.x;
        mov.u32 %r6, %ntid.x;
        mad.lo.s32 %r7, %r2, %r5, %r1;
        mul.lo.s32 %r7, %r7, 20;
        mad.lo.s32 %r8, %r4, %r6, %r3;
        add.s32 %r9, %r7, %r8;
        mul.wide.s32 %rd2, %r9, 4;
        add.s64 %rd3, %rd1, %rd2;
        add.s32 %r9, %r9, 1;
        st.global.u32 [%rd3], %r9;
        ret;
    """
    Machine(module(body)).launch("f", (2, 3), (4, 5), [np.int64(data.ctypes.data)], memory)
    assert data.tolist() == list(range(1, 121))


def test_atomics_take_turns() -> None:
    """Whoever comes first has the sum before all others; which one that is depends on the seed."""
    former = set()
    for seed in range(8):
        data = np.zeros(5, np.uint64)
        body = """
            atom.global.add.u64 %rd3, [%rd1], 5;
            shl.b64 %rd4, %rd2, 3;
            add.s64 %rd5, %rd1, %rd4;
            st.global.u64 [%rd5+8], %rd3;
            ret;
        """
        launch(body, data, seed=seed)
        assert data[0] == 20
        assert sorted(data[1:].tolist()) == [0, 5, 10, 15]
        former.add(tuple(data[1:].tolist()))
    assert len(former) > 1


STORE = """
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    st.global.u32 [%rd4], %r2;
    ret;
"""


@pytest.mark.parametrize(("delta", "last"), [(1, 31), (2, 31), (1, 3), (31, 31), (0, 31)])
def test_lanes_hand_values_down(delta: int, last: int) -> None:
    """Two warps, one of 8 threads; those that have no lane to get one from keep their own."""
    data = np.zeros(40, np.uint32)
    body = f"""
        mov.u32 %r5, -1;
        setp.ge.u32 %p1, %r1, 32;
        @%p1 mov.u32 %r5, 255;
        add.s32 %r3, %r1, 100;
        shfl.sync.down.b32 %r2|%p2, %r3, {delta}, {min(last, 7)}, %r5;
        @%p2 add.s32 %r2, %r2, 1000;
    """
    launch(body + STORE, data, threads=40)
    lanes = [number % 32 for number in range(40)]
    are_handed = [lane + delta <= min(last, 7) for lane in lanes]
    assert data.tolist() == [
        number + 100 + (delta + 1000) * is_handed for number, is_handed in enumerate(are_handed)
    ]


# Odd lanes go another way, which is later in the text, and come back.
DETOUR = """
    and.b32 %r3, %r1, 1;
    setp.eq.s32 %p1, %r3, 1;
    mov.u32 %r4, %r1;
    @%p1 bra $other;
    $back:
    shfl.sync.down.b32 %r2, %r4, 1, 7, 255;
    bra.uni $end;
    $other:
    add.s32 %r4, %r4, 50;
    bra.uni $back;
    $end:
"""


def test_lanes_wait_for_those_that_come_later() -> None:
    data = np.zeros(8, np.uint32)
    launch(DETOUR + STORE, data, threads=8)
    assert data.tolist() == [51, 2, 53, 4, 55, 6, 57, 57]


def test_lanes_of_each_mask_exchange_apart() -> None:
    """The lanes from 4 on do so twice as often."""
    data = np.zeros(8, np.uint32)
    body = """
        setp.lt.u32 %p1, %r1, 4;
        mov.u32 %r2, %r1;
        @%p1 bra $low;
        shfl.sync.down.b32 %r2, %r2, 1, 7, 240;
        shfl.sync.down.b32 %r2, %r2, 1, 7, 240;
        bra.uni $end;
        $low:
        shfl.sync.down.b32 %r2, %r2, 1, 3, 15;
        $end:
    """
    launch(body + STORE, data, threads=8)
    assert data.tolist() == [1, 2, 3, 3, 6, 7, 7, 7]


SAME_BYTES = """
    st.global.u64 [%rd1], %rd2;
    ret;
"""
READ_OF_A_NEIGHBOURS = """
    shl.b64 %rd3, %rd2, 3;
    add.s64 %rd4, %rd1, %rd3;
    st.global.u64 [%rd4], %rd2;
    ld.global.u64 %rd5, [%rd1];
    ret;
"""
WRITE_BEHIND_A_READ = """
    ld.global.u64 %rd5, [%rd1];
    shl.b64 %rd3, %rd2, 3;
    add.s64 %rd4, %rd1, %rd3;
    st.global.u64 [%rd4], %rd2;
    ret;
"""
READ_BESIDE_AN_ATOMIC = """
    atom.global.add.u64 %rd3, [%rd1], 1;
    ld.global.u64 %rd4, [%rd1];
    ret;
"""


IS_LAST = "setp.eq.u32 %p1, %r1, 3;\n"
HAND_DOWN = "shfl.sync.down.b32 %r2, %r1, 1, 3, 15;"


@pytest.mark.parametrize(
    ("body", "fault", "message"),
    [
        (SAME_BYTES, RaceError, "thread 0.*write beside a write"),
        (READ_OF_A_NEIGHBOURS, RaceError, "thread 1.*read beside a write"),
        (WRITE_BEHIND_A_READ, RaceError, "write beside a read"),
        (READ_BESIDE_AN_ATOMIC, RaceError, "read beside an atomic"),
        ("ld.global.u32 %r2, [%rd1+30];\nret;", MisalignedError, "no multiple of 4"),
        (
            "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+8];\nret;",
            MisalignedError,
            "multiple of 16",
        ),
        ("ld.global.u64 %rd3, [%rd1+32];\nret;", OutOfBoundsError, "8 bytes.*the data"),
        ("ld.global.u64 %rd3, [%rd1+-8];\nret;", OutOfBoundsError, "8 bytes.*the data"),
        ("mov.u64 %rd3, 0;\nst.global.u8 [%rd3], %rd3;\nret;", OutOfBoundsError, "address 0x0"),
        ("$l:\nbra.uni $l;", EndlessError, "not done after 200 steps"),
        ("add.s64 %rd3, %rd4, 1;\nret;", UndefinedError, "%rd4 is read before it is written"),
        ("div.s64 %rd3, %rd1, 0;\nret;", UndefinedError, "a division by 0"),
        # Of 4 lanes: one of 5 is not there, one is gone, one waits elsewhere, one has another mask.
        ("shfl.sync.down.b32 %r2, %r1, 1, 31, 31;\nret;", DivergedError, "waits for lanes"),
        (f"{IS_LAST}@%p1 ret;\n{HAND_DOWN}\nret;", DivergedError, "thread 0: waits for lanes"),
        (
            f"{IS_LAST}@%p1 bra $l;\n{HAND_DOWN}\nret;\n$l:\n{HAND_DOWN}\nret;",
            DivergedError,
            "waits for lanes",
        ),
        (
            f"{IS_LAST}selp.b32 %r3, 8, 15, %p1;\nshfl.sync.down.b32 %r2, %r1, 1, 3, %r3;\nret;",
            DivergedError,
            "waits for lanes",
        ),
        ("shfl.sync.down.b32 %r2, %r1, 1, 31, 1;\nret;", UndefinedError, "not in its own mask"),
        ("shfl.sync.down.b32 %r2, %r1, 1, 31, 15;\nret;", UndefinedError, "not in the mask"),
    ],
)
def test_a_launch_that_does_what_it_must_not_is_stopped(
    body: str, fault: type[PtxError], message: str
) -> None:
    with pytest.raises(fault, match=message) as found:
        launch(body, np.zeros(4, np.uint64))
    assert type(found.value) is fault


def test_nothing_is_found_where_nothing_is_allocated() -> None:
    body = "ld.param.u64 %rd1, [p0];\nld.global.u64 %rd2, [%rd1];\nret;"
    with pytest.raises(OutOfBoundsError, match="nothing is allocated"):
        Machine(module(body)).launch("f", (1,), (1,), [np.int64(64)], DeviceMemory([]))


def test_what_is_allowed_may_be_shared() -> None:
    launch(READ_BESIDE_AN_ATOMIC, np.zeros(4, np.uint64), allowed=[Shared(READ, CHANGE)])
    for body, allowed in (
        (SAME_BYTES, Shared(READ, CHANGE)),
        (READ_BESIDE_AN_ATOMIC, Shared(READ, CHANGE, address=8)),
    ):
        with pytest.raises(RaceError):
            launch(body, np.zeros(4, np.uint64), allowed=[allowed])


def test_all_threads_may_read_the_same_and_each_its_own_writes() -> None:
    data = np.arange(4, dtype=np.uint64)
    body = """
        shl.b64 %rd3, %rd2, 3;
        add.s64 %rd4, %rd1, %rd3;
        ld.global.u64 %rd5, [%rd4];
        add.s64 %rd5, %rd5, 10;
        st.global.u64 [%rd4], %rd5;
        ld.global.u64 %rd6, [%rd4];
        add.s64 %rd6, %rd6, 10;
        st.global.u64 [%rd4], %rd6;
        ret;
    """
    launch(body, data)
    assert data.tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frob.u64 %rd3, %rd1, %rd2;", "no instruction that the machine knows"),
        ("add.sat.s32 %r2, %r1, %r1;", "no instruction that the machine knows"),
        ("add.s64 %rd3, %rd1;", "2 operands, expected 3"),
        ("add.s64 %rd3, %rd1, x;", "operand x"),
        ("ld.global.nc.u64 %rd3, [%rd1];", "no access that the machine knows"),
        ("ld.global.v2.u64 {%rd3}, [%rd1];", "1 operands, expected 2"),
        ("ld.global.u64 %rd3, [%rd1+%rd2];", "address"),
        ("ld.param.f32 %f1, [p0];", "no parameter"),
        ("atom.global.min.s64 %rd3, [%rd1], %rd2;", "no atomic that the machine knows"),
        ("bra.uni $nowhere;", "no label"),
        ("bar.sync 0;", "runs each warp apart"),
        ("ld.shared.u64 %rd3, [%rd1];", "runs each warp apart"),
        ("vote.sync.any.pred %p1, %p1, -1;", "runs each warp apart"),
        ("shfl.sync.idx.b32 %r2, %r1, 0, 31, -1;", "no exchange that the machine knows"),
        ("shfl.down.b32 %r2, %r1, 0, 31;", "no exchange that the machine knows"),
        ("@%p1 shfl.sync.down.b32 %r2, %r1, 0, 31, -1;", "no exchange that the machine knows"),
        ("add.s64 %q3, %rd1, %rd2;", "no register is declared so"),
        ("add.s64 %r3, %rd1, %rd2;", "the register has"),
        ("add.s64 %rd3, %r1, %rd2;", "where int64 is expected"),
    ],
)
def test_text_that_is_not_known_is_an_error(line: str, message: str) -> None:
    with pytest.raises(UnknownTextError, match=message):
        launch(line + "\nret;", np.zeros(4, np.uint64))


@pytest.mark.parametrize("stray", [".const .u64 x;", ".func g() { ret; }", "hello"])
def test_nothing_but_entries_may_be_in_a_module(stray: str) -> None:
    with pytest.raises(UnknownTextError, match=r"line 5.*expected entries, and nothing else"):
        Machine(HEADER + stray + "\n\n" + module("ret;").removeprefix(HEADER))


def test_arguments_have_the_types_of_the_parameters() -> None:
    machine = Machine(module("ret;", parameters="u64 f32"))
    machine.launch("f", (1,), (1,), [np.int64(0), np.float32(1)], DeviceMemory([]))
    for wrong in ([np.int32(0), np.float32(1)], [np.int64(0), np.int32(1)]):
        with pytest.raises(PtxError, match=r"p[01]: .* expected"):
            machine.launch("f", (1,), (1,), wrong, DeviceMemory([]))
    with pytest.raises(PtxError, match="1 arguments, expected 2"):
        machine.launch("f", (1,), (1,), [np.int64(0)], DeviceMemory([]))

"""Faults that are planted in the shipped PTX's text are found, and each in the way it must be."""

import re
from typing import NamedTuple

import numpy as np
import pytest

from long_run import all_but_first
from parllel.cuda.launches import PTX
from ptx_cases import computations, copies, draws, priorities
from ptx_cases.table import Run
from ptx_machine.device import device_of
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

MOST_STEPS = 3000  # of threads that never end; the cases here need 600
N_CASES = 50


class Planted(NamedTuple):
    """A change of an entry's text, and the fault that it must be found as."""

    entry: str
    pattern: str
    replacement: str
    run: Run
    found_as: type[Exception]
    where: slice = slice(1)  # of the places that the pattern finds: the first, by default


LAST, ALL = slice(-1, None), slice(None)

# AssertionError: what was written differs from the reference.
PLANTED = {
    "offset in a table": Planted(
        "rows", r"(\[%rd\d+)\+8\]", r"\1+16]", copies.copy_rows, OutOfBoundsError
    ),
    "offset in a row": Planted(
        "rows", r"(st\.global\.u8\s+\[%rd\d+)\]", r"\1+1]", copies.copy_rows, RaceError
    ),
    "offset in a sum": Planted(
        "draw_by_priority",
        r"(ld\.global\.u64\s+%rd\d+, \[%rd\d+)\+24\]",
        r"\1+32]",
        priorities.draw_shares,
        AssertionError,
        LAST,
    ),
    "dropped guard": Planted(
        "draw_transitions", r"@%p\d+ bra\s+[^;]+;", "", draws.draw_evenly, OutOfBoundsError
    ),
    "negated guard": Planted(
        "refresh_priorities", r"@(%p\d+ bra)", r"@!\1", priorities.refresh_leaves, RaceError, LAST
    ),
    "bound that is one too high": Planted(
        "draw_by_priority",
        r"setp\.ge\.s64",
        "setp.gt.s64",
        priorities.draw_shares,
        OutOfBoundsError,
    ),
    "loop that goes on once more": Planted(
        "moments",
        r"setp\.lt\.s64",
        "setp.le.s64",
        computations.measure,
        OutOfBoundsError,
        slice(-3, -1),
    ),
    "threads that stop where the grid ends": Planted(
        "normalize",
        r"@%p\d+ bra\s+[^;]+;",
        "",
        computations.scale_values,
        AssertionError,
        LAST,
    ),
    "loop that does not go on": Planted(
        "draw_transitions",
        r"add\.s64\s+(%rd\d+), \1, %rd\d+;(?=\s+setp\.lt\.s64\s+%p\d+, \1, %rd\d+;)",
        "",
        draws.draw_evenly,
        EndlessError,
        LAST,
    ),
    "product and sum that are rounded to zero": Planted(
        "advantage", r"fma\.rn", "fma.rz", computations.walk_steps, AssertionError
    ),
    "carry that is rounded to zero": Planted(
        "advantage_carries", r"fma\.rn", "fma.rz", computations.walk_spans, AssertionError, ALL
    ),
    "return that is rounded up": Planted(
        "draw_transitions", r"fma\.rn", "fma.rp", draws.draw_evenly, AssertionError
    ),
    "priority that is rounded to nearest": Planted(
        "update_priorities",
        r"cvt\.rzi\.s64\.f32(?=[^;]*;\s+max)",
        "cvt.rni.s64.f32",
        priorities.update_leaves,
        AssertionError,
    ),
    "store of four bytes for one": Planted(
        "draw_transitions",
        r"st\.global\.u8(\s+\[%rd\d+)\], %rs\d+",
        r"st.global.u32\1+1], 0",
        draws.draw_evenly,
        MisalignedError,
    ),
    "store of two bytes for one": Planted(
        "rows", r"st\.global\.u8", "st.global.u16", copies.copy_rows, MisalignedError
    ),
    "store behind the last number": Planted(
        "advantage",
        r"st\.global\.f32(\s+\[%rd\d+)\]",
        r"st.global.f32\1+4]",
        computations.walk_steps,
        OutOfBoundsError,
    ),
    "words at addresses that are no multiples": Planted(
        "rows", r"(and\.b64\s+%rd\d+, %rd\d+), 15", r"\1, 7", copies.copy_rows, MisalignedError
    ),
    "words in another order": Planted(
        "rows",
        r"(st\.global\.v4\.u32\s+\[%rd\d+\]), \{(%r\d+), (%r\d+)",
        r"\1, {\3, \2",
        copies.copy_rows,
        AssertionError,
    ),
    "word that is not written": Planted(
        "frames", r"st\.global\.v4\.u32[^;]*;", "", copies.gather_stacks, AssertionError
    ),
    "words of the lane after the next": Planted(
        "rows",
        r"(shfl\.sync\.down\.b32\s+%r\d+\|%p\d+, %r\d+), %r\d+",
        r"\1, 2",
        copies.copy_rows,
        AssertionError,
        slice(1, None),  # behind the first, which tells whether there is a next lane
    ),
    "word that the last lane does not load": Planted(
        "rows",
        r"(bra\s+\$L__BB\d+_\d+;\s+)ld\.global\.v4\.u32[^;]*;(?=\s+\$L\w+:[^$]*shfl)",
        r"\1",
        copies.copy_rows,
        AssertionError,
        ALL,
    ),
    "lanes that wait for the whole warp": Planted(
        "rows",
        r"(shfl\.sync\.down\.b32[^;]*), %r\d+;",
        r"\1, -1;",
        copies.copy_rows,
        DivergedError,
        ALL,
    ),
    "last lane of another row": Planted(
        "frames",
        r"(shfl\.sync\.down\.b32[^;]*), %r\d+(, %r\d+;)",
        r"\1, 31\2",
        copies.gather_stacks,
        UndefinedError,
        ALL,
    ),
    "lane that hands nothing over": Planted(
        "shifted_frames",
        r"shfl\.sync\.down\.b32\s+(%r\d+)\|%p\d+, (%r\d+)[^;]*;",
        r"mov.u32 \1, \2;",
        copies.gather_shifted,
        AssertionError,
        LAST,
    ),
    "sum without an atomic": Planted(
        "update_priorities",
        r"atom\.global\.add\.u64\s+(%rd\d+), (\[%rd\d+\]), (%rd\d+);",
        r"ld.global.u64 \1, \2; add.s64 \1, \1, \3; st.global.u64 \2, \1;",
        priorities.update_leaves,
        RaceError,
        ALL,
    ),
    "exchange without an atomic": Planted(
        "update_priorities",
        r"atom\.global\.exch\.b64\s+(%rd\d+), (\[%rd\d+\]), (%rd\d+);",
        r"ld.global.u64 \1, \2; st.global.u64 \2, \3;",
        priorities.update_leaves,
        RaceError,
        ALL,
    ),
    "count without an atomic": Planted(
        "draw_transitions",
        r"atom\.global\.add\.u64\s+(%rd\d+), (\[%rd\d+(?:\+\d+)?\]), (%rd\d+|\d+);",
        r"ld.global.u64 \1, \2; add.s64 \1, \1, \3; st.global.u64 \2, \1;",
        draws.draw_evenly,
        RaceError,
        ALL,
    ),
    "reading beside an atomic": Planted(
        "refresh_priorities",
        r"atom\.global\.add\.u64\s+%rd\d+, (\[%rd\d+\]), (%rd\d+);",
        r"\g<0> ld.global.u64 \2, \1;",
        priorities.refresh_leaves,
        RaceError,
        ALL,
    ),
    "blocks that all do the same": Planted(
        "advantage", r"%ctaid\.x", "%tid.y", computations.walk_steps, RaceError
    ),
    "number that is no number": Planted(
        "update_priorities",
        r"setp\.gtu\.f32",
        "setp.gt.f32",
        priorities.update_leaves,
        AssertionError,
    ),
    "constant of the random numbers": Planted(
        "draw_transitions", r"3528531795", "3528531797", draws.draw_evenly, AssertionError
    ),
    "moments that nothing is written to": Planted(
        "moments", r"st\.global\.f32[^;]*;", "", computations.measure, AssertionError, LAST
    ),
    "division by 0": Planted(
        "advantage_spans",
        r"(div\.u32\s+%r\d+, %r\d+), %r\d+",
        r"\1, 0",
        computations.walk_spans,
        UndefinedError,
        ALL,
    ),
    "register that nothing is written to": Planted(
        "normalize", r"mov\.u32\s+%r\d+, %ntid\.x;", "", computations.scale_values, UndefinedError
    ),
    "instruction that is not known": Planted(
        "normalize", r"mul\.f32", "mul.sat.f32", computations.scale_values, UnknownTextError
    ),
    "barrier": Planted(
        "moments", r"\tret;", "\tbar.sync 0; ret;", computations.measure, UnknownTextError
    ),
}


def plant(planted: Planted) -> str:
    """Return the module's text with the change."""
    text = PTX.read_text()
    begin = text.index(f".entry {planted.entry}(")
    end = text.index("\n}", begin)
    places = list(re.finditer(planted.pattern, text[begin:end]))[planted.where]
    assert places, "the pattern finds nothing: the text is another one by now"
    for place in reversed(places):
        change = place.expand(planted.replacement)
        text = text[: begin + place.start()] + change + text[begin + place.end() :]
    return text


def run_cases(text: str, run: Run) -> None:
    machine = Machine(text)
    for seed in range(N_CASES):
        with device_of(machine, seed, most_steps=MOST_STEPS):
            run(np.random.default_rng(seed))


@pytest.mark.parametrize("name", all_but_first(PLANTED, 2))
def test_a_planted_fault_is_found(name: str) -> None:
    planted = PLANTED[name]
    text = plant(planted)
    with pytest.raises((PtxError, AssertionError)) as found:
        run_cases(text, planted.run)
    assert type(found.value) is planted.found_as, found.value

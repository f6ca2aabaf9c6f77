"""The shipped PTX, executed on a CPU as the library launches it, against plain references."""

import numpy as np
import pytest

from long_run import marked
from parllel.cuda.launches import PTX
from ptx_cases.table import CASES
from ptx_machine.device import device_of
from ptx_machine.machine import Machine

ENTRIES = sorted(Machine(PTX.read_text()).kernels)

# Accesses to memory that no launch comes to: the compiler makes code of its own for spans of 0
# steps, for rows of 0 numbers, and for rings of 0 columns. Beside an image, rows have too many
# lanes for one of them to copy a third byte of an end, or for the last one to copy their last word.
UNUSED = {"advantage_carries": 21, "mark_breaks": 8, "moments": 16, "shifted_frames": 5}

# Their cases take seconds each: the long run alone has them.
SLOW = {
    "draw_transitions",
    "draw_windows",
    "draw_windows_by_priority",
    "frames",
    "gather_windows",
    "shifted_frames",
}


def test_there_are_cases_of_entries_alone() -> None:
    assert CASES.keys() <= set(ENTRIES)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        *((entry, 8) for entry in ENTRIES if entry not in SLOW),  # one case of eight
        *(marked((entry, 1)) for entry in ENTRIES),
    ],
)
def test_an_entry_does_what_its_reference_does(entry: str, part: int) -> None:
    """And all cases come to all accesses to memory: a fault elsewhere would stay hidden."""
    assert entry in CASES, (
        f"{entry}: write a case for it in tests/ptx_cases, and name it in table.py"
    )
    machine = Machine(PTX.read_text())
    launched: list[str] = []
    for case in CASES[entry]:
        for seed in range(0, case.n, part):
            with device_of(machine, seed) as names:
                case.run(np.random.default_rng(seed))
            launched += names
    assert entry in launched
    unused = [
        instruction
        for instruction in machine.kernels[entry].entry.instructions
        if instruction.is_access and instruction.line not in machine.executed[entry]
    ]
    assert part > 1 or len(unused) <= UNUSED.get(entry, 0), unused

"""Bits of the steps at which episodes break off: held against plain lists of flags."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parllel.kernels import breaks
from parllel.kernels.breaks import count_integers, count_open, count_open_before, is_break
from parllel.kernels.targets import Axes, launch_plainly
from parllel.kernels.transitions import RingTable
from parllel.ops.breaks import mark_breaks
from parllel.ops.transitions import SampledRing


class Case(NamedTuple):
    """A ring, and where breaks are looked for."""

    n_rows: int
    width: int
    row: int
    column: int
    most: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_rows = draw(st.integers(1, 70) | st.sampled_from([63, 64, 65, 127, 128, 129, 200]))
    width = draw(st.integers(1, 3))
    row, column = draw(st.integers(0, n_rows - 1)), draw(st.integers(0, width - 1))
    return Case(n_rows, width, row, column, draw(st.integers(0, n_rows)), draw(st.integers(0, 99)))


def make_ring(case: Case) -> tuple[SampledRing, dict[str, NDArray[Any]]]:
    """Return a ring of random flags, most of them of long episodes, and marks of all but zeros."""
    rng, n = np.random.default_rng(case.seed), case.n_rows * case.width
    chance = rng.choice([0, 0.01, 0.1, 0.5])
    leaves: dict[str, NDArray[Any]] = {
        name: rng.random(n) < chance for name in ("terminated", "truncated")
    }
    leaves["valid"] = rng.random(n) >= chance
    leaves["reward"], leaves["final_slot"] = np.zeros(n, np.float32), np.zeros(n, np.int32)
    n_integers = count_integers(case.n_rows) * case.width
    leaves["breaks"] = rng.integers(-(2**63), 2**63, n_integers)
    return SampledRing(**leaves, width=case.width, n_steps=1), leaves


def broken(case: Case, leaves: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Return where episodes break off, [n_rows, width]."""
    is_break = leaves["terminated"] | leaves["truncated"] | ~leaves["valid"]
    return is_break.reshape(case.n_rows, case.width)


def table_of(ring: SampledRing) -> RingTable:
    return RingTable(*ring._table.tolist())


@given(cases())
def test_steps_up_to_the_next_break_are_those_of_the_flags(case: Case) -> None:
    ring, leaves = make_ring(case)
    mark_breaks(ring, 0, case.n_rows)
    table, column = table_of(ring), broken(case, leaves)[:, case.column].tolist()
    assert is_break(table, case.row, case.column) == column[case.row]
    later = column[case.row :] + column[: case.row]
    n_open = (*later, True).index(True)
    assert count_open(table, case.row, case.column, case.most) == min(n_open, case.most)
    n_open = (*later[::-1], True).index(True)
    assert count_open_before(table, case.row, case.column, case.most) == min(n_open, case.most)


@given(case=cases(), n_threads=st.sampled_from([None, 1, 3]))
def test_rows_that_are_not_marked_keep_their_bits(case: Case, n_threads: int | None) -> None:
    """Compiled, and as plain Python on a grid of any size."""
    begin, end = sorted((case.row, case.most or case.row + 1))
    end = max(end, begin + 1)
    ring, leaves = make_ring(case)
    before = bits_of(case, leaves)
    if n_threads is None:
        mark_breaks(ring, begin, end)
    else:
        n_items = (count_integers(end) - begin // 64) * case.width
        arguments = ring.argument, begin, end, n_items
        one = Axes(1, 1)
        launch_plainly(breaks.DEVICE, arguments, grid=one, block=Axes(n_threads, 1))
    before[begin:end] = broken(case, leaves)[begin:end]
    assert (bits_of(case, leaves) == before).all()


def bits_of(case: Case, leaves: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Return the bits of all rows, those behind the last one too: [integers * 64, width]."""
    integers = leaves["breaks"].reshape(-1, 1, case.width)
    shifts = np.arange(64)[None, :, None]
    return ((integers >> shifts) & 1).reshape(-1, case.width).astype(bool)


def test_a_ring_without_memory_for_marks_is_refused() -> None:
    ring, leaves = make_ring(Case(3, 2, 0, 0, 0, 0))
    ring = SampledRing(**{**leaves, "breaks": None}, width=2, n_steps=1)
    with pytest.raises(ValueError, match="got no breaks, expected memory for the marks"):
        mark_breaks(ring, 0, 3)

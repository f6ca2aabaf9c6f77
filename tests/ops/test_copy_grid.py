"""The grids of copies: enough threads for every leaf, and no blocks for those that need few."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parllel import cuda
from parllel.ops import launching
from parllel.ops.copy_grid import CopyGrid, count_lanes, split_row
from parllel.ops.launching import MOST_BLOCKS
from parllel.ops.row_copy import RowCopy
from parllel.ops.stack_gather import RowSource, StackGather

Launch = tuple[int, int]  # blocks, threads of a block


@pytest.fixture
def launches(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What is launched, as the launch itself is told."""
    launched: list[Launch] = []
    launch = cuda.launch

    def note(
        name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, stream: Any
    ) -> Any:
        launched.append((grid[0], block[0]))
        assert len(grid) == len(block) == 1
        return launch(name, grid, block, args, stream=stream)

    monkeypatch.setattr(cuda, "launch", note)
    return launched


def rows_of(*leaves: int, n: int) -> list[Any]:
    return [cuda.to_device(np.zeros((n, nbytes), np.uint8)) for nbytes in leaves]


@pytest.mark.parametrize(
    ("n_rows", "leaves", "expected"),
    [
        # 2 parts of 882 words: 7 words for each of 128 lanes, in one round trip.
        (256, [28_224], (512, 128)),
        # 441 words: 7 for each of 64 lanes. Two rows would fit into a block of 128 threads, but
        # few rows are spread: as many blocks as there are rows.
        (8, [7_056], (8, 64)),
        (256, [7_056], (128, 128)),
        # One warp of each block has the small leaves; there is no block more.
        (256, [28_224, 4, 1, 1], (512, 128 + 32)),
        (8, [7_056, 4, 1, 1], (8, 64 + 32)),
        # A lane for each row; leaves alike.
        (1000, [16] * 6, (94, 64)),
        (4, [1], (1, 32)),
        # Odd addresses: the lanes of words of 16 bytes where there are enough, or lanes of bytes.
        (256, [28_225], (512, 128)),
        (512, [33], (128, 128)),
    ],
)
def test_rows_are_launched_with_the_lanes_of_each_leaf(
    n_rows: int, leaves: list[int], expected: Launch, launches: list[Launch]
) -> None:
    copy = RowCopy(rows_of(*leaves, n=n_rows), rows_of(*leaves, n=n_rows))
    copy.run(range(n_rows), range(n_rows))
    assert launches == [expected]


def test_leaves_of_all_sizes_arrive_whatever_their_order(launches: list[Launch]) -> None:
    """Long rows in parts, narrow leaves by riders, odd addresses shifted: one launch."""
    rng = np.random.default_rng(0)
    sizes = (1, 40_001, 4, 28_224, 100, 28_225, 16)
    sources = [rng.integers(0, 256, (6, nbytes), np.uint8) for nbytes in sizes]
    written = rows_of(*sizes, n=6)
    index = np.array([5, 0, 3])
    RowCopy(written, [cuda.to_device(source) for source in sources]).run(range(2, 5), index)
    for output, source in zip(written, sources, strict=True):
        np.testing.assert_array_equal(cuda.to_host(output)[2:5], source[index])
        assert not cuda.to_host(output)[[0, 1, 5]].any()
    assert len(launches) == 1


def test_the_tables_have_wide_leaves_first(launches: list[Launch]) -> None:
    copy = RowCopy(rows_of(4, 28_224, 1, n=3), rows_of(4, 28_224, 1, n=3))
    assert cuda.to_host(copy._device_table)[:, -1].tolist() == [14_112, 14_112, 4, 1]
    sources = [RowSource(leaf) for leaf in rows_of(4, 7_056, 1, n=3)]
    gather = StackGather(sources, rows_of(4, 7_056, 1, n=3))
    assert cuda.to_host(gather._device_table)[:, 3].tolist() == [7_056, 4, 1]


def test_each_run_is_launched_for_its_own_rows_and_sizes(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RowCopy(rows_of(7_056, n=300), rows_of(7_056, n=300))
    for n_rows in (8, 8, 300):
        copy.run(range(n_rows), range(n_rows))
    monkeypatch.setattr(launching, "SIZES", launching.SIZES._replace(copy_threads=64))
    copy.run(range(300), range(300))
    assert launches == [(8, 64), (8, 64), (150, 128), (300, 64)]


def test_frames_are_launched_with_64_lanes_each(launches: list[Launch]) -> None:
    frames, flags = rows_of(7_056, n=40)[0], cuda.to_device(np.zeros(40, bool))
    (reward,) = rows_of(4, n=37)
    sources = [RowSource(frames[3:], flags[3:], stack=4), RowSource(reward)]
    outputs = [cuda.to_device(np.zeros((32, 4, 7_056), np.uint8)), *rows_of(4, n=32)]
    StackGather(sources[:1], outputs[:1]).run(range(32))
    StackGather(sources, outputs).run(range(32))
    assert launches == [(128, 64), (128, 64 + 32)]


@pytest.mark.parametrize(
    ("nbytes", "bits", "lanes"),
    [
        (0, 16, 1),
        (1, 1, 1),
        (16, 16, 1),
        (17, 16, 2),
        (16, 8, 2),
        (12, 4, 4),
        (512, 16, 32),  # neighbours have neighbouring words as long as there is one for each
        (4_096, 16, 32),  # 8 words for each, which are under way together
        (4_097, 16, 64),
        (16_384, 16, 128),
        (10**9, 16, 128),
        (100, 4, 32),
        (127, 1, 32),
        (128, 1, 8),  # shifted: words of 16 bytes wherever they lie
    ],
)
def test_a_row_has_lanes_for_its_words(nbytes: int, bits: int, lanes: int) -> None:
    assert count_lanes(nbytes, bits) == lanes


@given(nbytes=st.integers(0, 2**40))
def test_the_parts_of_a_row_make_up_the_row(nbytes: int) -> None:
    nbytes %= 2**20 if nbytes % 2 else 2**14
    parts = split_row(nbytes)
    ends = [at + length for at, length in parts]
    assert [at for at, _ in parts] == [0, *ends[:-1]]
    assert ends[-1] == nbytes
    assert all(at % 32 == 0 for at, _ in parts)
    assert max(length for _, length in parts) <= launching.SIZES.part_nbytes
    assert len(parts) == max(1, -(-nbytes // launching.SIZES.part_nbytes))


@given(
    lanes=st.lists(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]), min_size=1, max_size=9),
    n_rows=st.one_of(st.integers(1, 500), st.integers(1, 2**40)),
    threads=st.sampled_from([32, 64, 128, 256, 512]),
)
def test_every_grid_is_allowed_and_has_no_idle_block(
    lanes: list[int], n_rows: int, threads: int
) -> None:
    kept = launching.SIZES
    launching.SIZES = kept._replace(copy_threads=threads)
    try:
        grid = CopyGrid(lanes)
        n_blocks, n_threads, teams = grid.shape(n_rows)
    finally:
        launching.SIZES = kept
    assert sorted(grid.order) == list(range(len(lanes)))
    widest = max(lanes)
    assert 1 <= n_blocks <= MOST_BLOCKS
    assert n_threads <= max(threads, widest) + kept.most_rider_threads <= 1024
    assert 1 << teams.wide_bits == widest
    wide, narrow = (grid.order[: teams.n_wide], grid.order[teams.n_wide :])
    assert len(narrow) == teams.n_narrow
    assert all(lanes[leaf] * kept.rider_ratio > widest for leaf in wide)
    assert all(
        lanes[leaf] <= 1 << teams.narrow_bits <= widest // kept.rider_ratio for leaf in narrow
    )
    assert bool(narrow) == bool(teams.n_riders)
    rows_of_block = (n_threads - teams.n_riders) >> teams.wide_bits
    assert (n_blocks - 1) * rows_of_block < teams.n_wide * n_rows

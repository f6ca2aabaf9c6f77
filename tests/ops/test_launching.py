"""The grids of launches: large enough for all work, and no larger than every GPU allows."""

from collections.abc import Callable
from typing import Any

import pytest

from parllel import cuda
from parllel.ops import launching
from parllel.ops.launching import MOST_BLOCKS, SIZES, WARP

MANY = 2**40
LAUNCHES: dict[str, tuple[Callable[[int], None], int]] = {
    "lines": (lambda n: launching.launch_lines("k", n, 1, []), SIZES.line_threads // WARP),
    "lanes": (lambda n: launching.launch_lines("k", 1, n, []), SIZES.line_threads),
    "serial": (lambda n: launching.launch_serial("k", n, []), SIZES.serial_threads),
    "items": (lambda n: launching.launch_items("k", n, []), SIZES.item_threads),
}


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    launched: list[tuple[int, ...]] = []

    def launch(name: str, grid: tuple[int, ...], *_: Any) -> None:
        launched.append(grid)

    monkeypatch.setattr(cuda, "launch", launch)
    return launched


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_grid_is_as_large_as_the_work_and_never_larger_than_the_most(
    name: str, grids: list[tuple[int, ...]]
) -> None:
    launch, per_block = LAUNCHES[name]
    axis = 1 if name == "lanes" else 0
    most = MOST_BLOCKS * per_block
    for n in (1, per_block, per_block + 1, most - per_block, most, most + 1, MANY):
        launch(n)
        assert grids[-1][axis] == min(-(-n // per_block), MOST_BLOCKS)
        assert max(grids[-1]) <= MOST_BLOCKS
    assert MOST_BLOCKS == 2**16 - 1  # the limit of CUDA for the second axis and the third

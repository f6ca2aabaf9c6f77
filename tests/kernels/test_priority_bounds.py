"""Shares of all priorities: each item of a minibatch draws from its own, and none is left out."""

from itertools import pairwise

import pytest

from parllel.kernels.priorities import find_bound


@pytest.mark.parametrize("n_items", [1, 2, 3, 7, 256])
@pytest.mark.parametrize("total", [1, 2, 255, 256, 1_000_003, 2**62 - 1])
def test_shares_are_equal_and_together_they_are_all(total: int, n_items: int) -> None:
    bounds = [find_bound(total, n_items, item) for item in range(n_items + 1)]
    assert (bounds[0], bounds[-1]) == (0, total)
    sizes = {end - begin for begin, end in pairwise(bounds)}
    assert sizes <= {total // n_items, -(-total // n_items)}

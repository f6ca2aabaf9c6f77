"""Trees whose rows the benches copy: what their leaves look like, and their bytes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape of a row


class Tree(NamedTuple):
    """Leaves of `n_rows` rows, of which a minibatch has `n_picked`."""

    title: str
    shapes: Shapes
    n_rows: int
    n_picked: int

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row of all leaves."""
        return sum(leaf.nbytes for leaf in random_leaves(self.shapes, 1))

    def __str__(self) -> str:
        n_leaves = len(self.shapes)
        leaves = "1 leaf" if n_leaves == 1 else f"{n_leaves} leaves"
        rows = f"{self.n_picked:,} of {self.n_rows:,} rows of {self.row_nbytes:,} bytes"
        return f"{self.title}: {rows} in {leaves}"


FRAMES: Shapes = {"observation": ("u1", (84, 84, 4))}
ODD_FRAMES: Shapes = {"observation": ("u1", (33, 33))}
SMALL: Shapes = {
    "observation": ("f4", (4,)),
    "action": ("i8", ()),
    "reward": ("f4", ()),
    "terminated": ("?", ()),
    "truncated": ("?", ()),
    "hidden": ("f4", (16,)),
}
MEDIUM: Shapes = {
    "observation": ("f4", (4,)),
    "action": ("i8", ()),
    "reward": ("f4", ()),
    "value": ("f4", ()),
    "position": ("f4", (2,)),
}


def random_leaves(shapes: Shapes, n_rows: int, *, seed: int = 0) -> list[NDArray[Any]]:
    """Return a tree's leaves full of random bytes; the same ones for each contestant."""
    rng = np.random.default_rng(seed)
    leaves = []
    for dtype, shape in shapes.values():
        leaf = np.empty((n_rows, *shape), dtype)
        raw = leaf.reshape(-1).view(np.uint8)
        raw[:] = rng.integers(0, 2 if dtype == "?" else 256, raw.shape, np.uint8)
        leaves.append(leaf)
    return leaves

"""Cases of marks of the steps at which episodes break off: of some rows, beside what was marked."""

import numpy as np

from parllel import cuda
from parllel.ops.breaks import mark_breaks
from ptx_cases.comparing import assert_bits
from ptx_cases.draws import Ring


def mark(rng: np.random.Generator) -> None:
    """Rows within one integer, over the end of one, and up to the last of the ring."""
    ring = Ring(rng, 1, tuple(rng.choice([0, 0.1, 0.5], 3).tolist()))
    expected, marked = ring.bits(), cuda.to_host(ring.breaks).copy()
    rows = np.zeros((-(-ring.n_rows // 64), 64), bool)
    begin = int(rng.integers(ring.n_rows))
    end = int(rng.choice([begin + 1, ring.n_rows, rng.integers(begin, ring.n_rows) + 1]))
    rows.reshape(-1)[begin:end] = True
    is_new = np.packbits(rows, axis=1, bitorder="little").view(np.int64)
    former = rng.integers(-(2**63), 2**63, marked.shape)
    ring.breaks[...] = cuda.to_device(former)
    mark_breaks(ring.on_device, begin, end)
    is_new = np.broadcast_to(is_new, (len(is_new), ring.width)).reshape(-1)
    assert_bits("breaks", ring.breaks, (former & ~is_new) | (expected & is_new))

"""Marks of the steps of a ring at which episodes break off: in memory of NumPy or CuPy."""

from __future__ import annotations

from parllel.kernels import breaks as kernel
from parllel.kernels.instructions import N_BITS
from parllel.ops.launching import launch_items
from parllel.ops.transitions import SampledRing


def mark_breaks(ring: SampledRing, begin: int, end: int) -> None:
    """Mark anew which steps of some rows are breaks, after their flags were written.

    A draw of windows or of goals finds the ends of episodes by these marks. On a GPU it is one
    launch in the caller's current stream, and nothing waits for it.

    Args:
        ring: its flags are read, and its `breaks` written.
        begin, end: rows of the ring, `end` being the one behind the last.

    Raises:
        ValueError: the ring has no memory for marks.
    """
    check_breaks(ring)
    n_integers = kernel.count_integers(end) - begin // N_BITS
    arguments = ring.argument, begin, end, n_integers * ring.width
    if ring.side == "gpu":
        launch_items(kernel.DEVICE.name, n_integers * ring.width, arguments)
    else:
        kernel.ON_CPU.compiled(*arguments)


def check_breaks(ring: SampledRing) -> None:
    """Raise ValueError unless a ring has memory for the marks of steps."""
    if not ring.has_breaks:
        raise ValueError(
            "ring: got no breaks, expected memory for the marks of its steps, by which ends of"
            " episodes are found; give SampledRing the argument breaks, and call mark_breaks"
        )

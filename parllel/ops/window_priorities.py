"""Priorities of windows of steps, and draws that follow them: of NumPy or CuPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels import sequence_priorities as kernel
from parllel.ops.launching import launch_items
from parllel.ops.priorities import Priorities
from parllel.ops.sequences import DrawnWindows, SampledWindows
from parllel.ops.sides import as_argument
from parllel.ops.transitions import DrawState
from parllel.storages import Side


class ErrorFormula(NamedTuple):
    """How the errors of a window become its priority: (mixed + epsilon) ** alpha.

    mixed = max_share * max_t abs(error[t]) + (1 - max_share) * mean_t abs(error[t])

    Source: Kapturowski et al. 2019 (R2D2), section 2.3, with `max_share` for its eta.
    """

    alpha: np.float32
    epsilon: np.float32
    max_share: np.float32


def refresh_windows(
    windows: SampledWindows, state: DrawState, priorities: Priorities, begin: int, n_steps: int
) -> None:
    """Let steps have a priority if and only if they name a window that can be sampled now.

    Args:
        windows, state: what can be sampled.
        priorities, begin, n_steps: as for `ops.priorities.refresh_priorities`.
    """
    n_items = n_steps * windows.ring.width
    if n_items > 0:
        before = (windows.ring.argument, *state.arguments, windows.argument, priorities.argument)
        _run(kernel.REFRESH.name, windows.side, n_items, (*before, begin, n_items))


def update_windows(
    windows: SampledWindows,
    state: DrawState,
    priorities: Priorities,
    by: ErrorFormula,
    *,
    index: AnyArray,
    error: AnyArray,
    mask: AnyArray,
) -> None:
    """Give windows the priorities of their errors.

    Args:
        windows, state: what can be sampled; a window that can't be keeps having no priority.
        priorities: the priorities of all steps of the ring, updated.
        by: how errors become priorities.
        index: int64 [n], C-contiguous, the windows to update, by their identity.
        error: float32 [rows, n], C-contiguous, of any sign.
        mask: bool [rows, n], C-contiguous, the errors that count. A window with an error that is
            NaN or infinite, or with none, keeps its priority.
    """
    formula = by.alpha, by.epsilon, priorities.limit, by.max_share
    arrays = as_argument(index), as_argument(error), as_argument(mask)
    before = (windows.ring.argument, *state.arguments, priorities.argument, *formula, *arrays)
    _run(kernel.UPDATE.name, windows.side, len(index), (*before, len(error), len(index)))


def draw_windows_by_priority(
    windows: SampledWindows, state: DrawState, priorities: Priorities, out: DrawnWindows
) -> int:
    """Draw windows in proportion to their priorities, one from each of equal shares of all.

    Args:
        windows, state: what to draw from; one step at least.
        priorities: the priorities of all steps of the ring.
        out: what is overwritten, on the same side; its scratch with the priorities drawn.

    Returns:
        For how many there was no window that can be sampled, all or none of them. On a GPU 0: the
        host does not wait to know.
    """
    before = (windows.ring.argument, *state.arguments, windows.argument, priorities.argument)
    arguments = (*before, out.n_items, out.argument, out.scratch_argument)
    _run(kernel.DRAW.name, windows.side, out.n_items, arguments)
    return out.n_items if windows.side == "host" and not out.scratch[0] else 0


def _run(
    name: str, side: Side, n_items: int, arguments: Sequence[int | np.generic | DeviceArray]
) -> None:
    """Launch a kernel with a thread for each item, or run its twin."""
    if side == "gpu":
        launch_items(name, n_items, arguments)
    else:
        kernel.compiled(name)(*arguments)

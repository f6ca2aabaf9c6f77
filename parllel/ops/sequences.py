"""Random draws of windows from a ring of samples, and gathers of them: of NumPy or CuPy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parllel.cuda import AnyArray, DeviceArray
from parllel.kernels import sequences as kernel
from parllel.kernels import windows as gather
from parllel.kernels.sequences import Windows
from parllel.kernels.window_search import WindowTable
from parllel.kernels.windows import WindowLeaf, WindowRows, leaf_bits
from parllel.ops.breaks import check_breaks
from parllel.ops.copy_grid import CopyGrid, count_lanes
from parllel.ops.launching import launch_items
from parllel.ops.sides import address_of, as_argument, common_side, make_table, to_side
from parllel.ops.stack_gather import RowSource
from parllel.ops.transitions import DrawState, SampledRing


class SampledWindows:
    """A ring of samples with the form of the windows that are drawn from it, as kernels read it.

    Args:
        ring: the leaves of the ring; it has `breaks`; its `n_steps` does not matter here.
        form: the form of all windows (`kernels.window_search.WindowTable`).

    Attributes:
        side: "host" or "gpu", which of them draws.
        ring, form: as given.
        argument: what kernels are given for the form.
    """

    def __init__(self, ring: SampledRing, form: WindowTable) -> None:
        check_breaks(ring)
        self.side, self.ring, self.form = ring.side, ring, form
        self._table = make_table(form, ring.side)
        self.argument = as_argument(self._table)


class DrawnWindows:
    """Memory that windows are drawn into, again and again; `kernels.sequences.Windows` has more.

    Args:
        identity: int64 [n], written with numbers that name a window for ever, -1 for no window.
        observed: int64 [n_older + rows + 1, n], written with codes of observations.
        steps: int64 [rows, n], written with codes of all other leaves.
        initial: int64 [n], written with the place of each window's first step.
        is_first: bool [rows + 1, n], written.
        mask: bool [rows, n], written.
        scratch: int64 [n], overwritten by draws by priority.
        weight: float32 [n], written by `weigh_priorities`; None where there are no weights.

    Attributes:
        n_items: number of windows, n.
        scratch: as given. After a draw by priority it holds the windows' priorities.
        argument, scratch_argument, weight_argument: what kernels are given for the arrays.
    """

    def __init__(
        self,
        *,
        identity: AnyArray,
        observed: AnyArray,
        steps: AnyArray,
        initial: AnyArray,
        is_first: AnyArray,
        mask: AnyArray,
        scratch: AnyArray,
        weight: AnyArray | None = None,
    ) -> None:
        self.n_items, self.scratch = len(identity), scratch
        written = (identity, observed, steps, initial, is_first, mask)
        self._arrays = (*written, weight)  # kept alive
        side = common_side("windows", (*written, scratch))
        self._table = make_table(Windows(*map(address_of, written)), side)
        self.argument, self.scratch_argument = as_argument(self._table), as_argument(scratch)
        self.weight_argument = None if weight is None else as_argument(weight)


def draw_windows(windows: SampledWindows, state: DrawState, out: DrawnWindows) -> int:
    """Draw windows that can be sampled, each with the same probability.

    On a GPU it is one launch in the caller's current stream, and nothing waits for it.

    Args:
        windows: what to draw from.
        state: which of its steps are there, one at least, and the number of the minibatch, which
            is counted up.
        out: what is overwritten, on the same side.

    Returns:
        For how many there was no window that can be sampled; these have no step, and their
        identity is -1. On a GPU 0: the host does not wait to know.
    """
    before = (windows.ring.argument, *state.arguments, windows.argument)
    arguments = (*before, out.n_items, out.argument)
    if windows.side == "gpu":
        launch_items(kernel.DEVICE.name, out.n_items, arguments)
        return 0
    return kernel.ON_CPU.compiled(*arguments, out.scratch)


@dataclass(frozen=True, slots=True)
class WindowSource:
    """The rows of one leaf that windows are gathered from, and where they are written.

    Args:
        ring: the leaf's rows in the ring, with T and B as one dimension; of stacks, the frames.
        beside: [m, ...], C-contiguous. Rows, or frames, beside the ring: a code -1 - s names row s.
        codes: int64 [n], C-contiguous: the rows to gather, as a draw writes them.
        output: [n, ...], C-contiguous, overwritten with rows, or with frames.
    """

    ring: RowSource
    beside: AnyArray
    codes: AnyArray
    output: AnyArray

    @property
    def arrays(self) -> list[AnyArray]:
        """All arrays."""
        return [*self.ring.arrays, self.beside, self.codes, self.output]

    def locate(self) -> WindowLeaf:
        """Return where all of it lies.

        Raises:
            ValueError: the output has another dtype or other rows than the ring.
        """
        frames, shape = self.ring.frames, self.ring.frames.shape[1:]
        for name, array in (("beside", self.beside), ("output", self.output)):
            if array.dtype != frames.dtype or array.shape[1:] != shape:
                raise ValueError(
                    f"windows: got {name} of dtype {array.dtype} and rows of shape"
                    f" {array.shape[1:]}, expected {frames.dtype} and {shape}"
                )
        if len(self.codes) != len(self.output):
            raise ValueError(
                f"windows: got {len(self.codes)} codes and {len(self.output)} rows to write,"
                " expected as many"
            )
        nbytes = frames.itemsize * math.prod(shape)
        return WindowLeaf(
            address_of(self.output),
            address_of(frames),
            nbytes if frames.flags.c_contiguous else frames.strides[0],
            nbytes,
            self.ring.stack,
            self.ring.n_columns,
            address_of(self.ring.is_first),
            address_of(self.ring.blank),
            address_of(self.codes),
            address_of(self.beside),
            len(self.output),
        )


class WindowGather:
    """A gather of all leaves of windows by the codes of a draw, prepared once and run many times.

    Of arrays of NumPy, all is there when `run` returns. Of arrays of CuPy, each run is one launch
    in the caller's current stream. The constructor copies a table of the leaves to the device in
    the stream that is current: a run in another stream must wait for that copy. Codes are not
    checked.

    >>> import numpy as np
    >>> ring, beside = np.arange(4.0), np.array([-1.0])
    >>> codes, output = np.array([2, -1, 0]), np.zeros(3)
    >>> WindowGather([WindowSource(RowSource(ring), beside, codes, output)]).run()
    >>> output
    array([ 2., -1.,  0.])

    Args:
        leaves: for each leaf what is read and written; at least one.

    Raises:
        TypeError: some arrays are NumPy's and some are CuPy's.
        ValueError: an output does not fit its leaf.
    """

    def __init__(self, leaves: Sequence[WindowSource]) -> None:
        self._arrays = [array for leaf in leaves for array in leaf.arrays]  # kept alive
        side = common_side("windows", self._arrays)
        entries = [leaf.locate() for leaf in leaves]
        self._table = WindowRows(entries)
        self._n_leaves = len(entries)
        self._device_table: DeviceArray | None = None  # None for arrays of NumPy
        if side == "gpu":
            self._grid = CopyGrid([count_lanes(leaf.nbytes, leaf_bits(leaf)) for leaf in entries])
            self._device_table = to_side(self._table.entries[self._grid.order], side)
            self._most_rows = max(leaf.n_rows for leaf in entries)

    def run(self) -> None:
        """Gather all rows of all leaves."""
        if self._device_table is None:
            gather.ON_CPU.compiled(address_of(self._table.entries), self._n_leaves)
        else:
            self._grid.launch(gather.DEVICE.name, self._most_rows, [self._device_table])

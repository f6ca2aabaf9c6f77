"""Copies of rows in captured CUDA graphs: launches write the table, and memory beside it stays."""

import numpy as np
import pytest

from parllel import cuda
from parllel.cuda import DeviceArray
from parllel.kernels.row_entry import DEVICE
from parllel.kernels.targets import Axes, launch_plainly
from parllel.ops.row_copy import RowCopy
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule

pytestmark = pytest.mark.simulation("they launch captured graphs of the simulation")


@each_schedule
def test_a_replay_writes_its_table_anew(schedule: str, seed: int) -> None:
    """The table's memory may be others' between replays, as that of a graph's own pool is."""
    rng = np.random.default_rng(0)
    leaves = [rng.integers(0, 99, (2, 5, *shape)) for shape in ((), (3,), (4000,))]
    with simulated_cuda(schedule, seed) as simulation:
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            source = [cuda.to_device(leaf[0]) for leaf in leaves]
            written = [cuda.to_device(np.zeros_like(leaf[0])) for leaf in leaves]
            index, table = cuda.to_device(np.arange(5)), cuda.library().empty(99, np.int64)
            sizes = []

            def allocate(n: int) -> DeviceArray:
                sizes.append(n)
                return table[:n]

            stream.begin_capture()
            RowCopy(written, source, allocate=allocate).run(range(5), index)
            graph = stream.end_capture()
            for number in range(2):
                for array, leaf in zip(source, leaves, strict=True):
                    cuda.copy_to_device(leaf[number], out_device=array)
                rows = rng.permutation(5)
                cuda.copy_to_device(rows, out_device=index)
                cuda.copy_to_device(np.full(99, 7), out_device=table)
                graph.launch()
                for array, leaf in zip(written, leaves, strict=True):
                    assert cuda.to_host(array).tolist() == leaf[number][rows].tolist()
            assert sizes == [5 * 4]  # the longest rows are two parts
            assert cuda.to_host(table)[20:].tolist() == [7] * 79
        assert simulation.counters.graph_launches == 2


def test_a_table_that_the_host_copies_is_not_captured() -> None:
    with simulated_cuda("lazy"):
        stream = cuda.new_stream()
        with cuda.use_stream(stream):
            rows = [cuda.to_device(np.zeros((2, 3))) for _ in range(2)]
            stream.begin_capture()
            with pytest.raises(RuntimeError, match="a copy from the host can't be captured"):
                RowCopy(rows[:1], rows[1:])
            stream.end_capture()


def test_one_thread_of_any_grid_writes_an_entry() -> None:
    table = np.zeros((3, 5), np.int64)
    arguments = table.ctypes.data, 1, 11, 12, 13, 14, 15
    launch_plainly(DEVICE, arguments, grid=Axes(2, 1), block=Axes(3, 1))
    assert table.tolist() == [[0] * 5, [11, 12, 13, 14, 15], [0] * 5]

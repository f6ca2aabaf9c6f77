"""Storages of the host: what is left behind, and what real processes see of their memory.

What memory of every kind promises is in parllel.testing's StorageContract.

All processes here are real, and every wait for one is bounded.
"""

from __future__ import annotations

import errno
import gc
import mmap
import multiprocessing as mp
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_sharer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from long_run import all_but, all_but_first
from parllel import Array
from parllel.storages import Memory, allocate, host_memory

pytestmark = [
    pytest.mark.usefixtures("quick_collections"),
    # Python 3.12 and later warn of every fork beside threads; NumPy's own are enough for it.
    pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning"),
]

TIMEOUT_S = 60
METHODS = ("fork", "spawn", "forkserver")
KINDS = ("local", "shared", "inherited")  # those that need no GPU
each_kind = pytest.mark.parametrize("kind", KINDS)
each_method = pytest.mark.parametrize("method", all_but_first(METHODS, 2))
each_way = pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("inherited", "fork"),
        *all_but_first([("shared", method) for method in METHODS], 2),
    ],
)


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_sharing_thread() -> Iterator[None]:
    """End the thread that hands descriptors to other processes: other modules fork, too."""
    yield
    resource_sharer.stop(timeout=TIMEOUT_S)


# Other processes


class Child:
    """A process that calls what it is asked to call, and answers with the result."""

    def __init__(self, method: str) -> None:
        context = mp.get_context(method)
        self._connection, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end,), daemon=True)
        self.process.start()
        end.close()

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        self._connection.send((function, args))
        if not self._connection.poll(TIMEOUT_S):
            raise TimeoutError(f"no answer to {function}")
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self, *, kill: bool = False) -> int:
        if kill:
            self.process.kill()
        else:  # a forked child holds this end too, and would never see it closed
            self._connection.send(None)
        self._connection.close()
        return finish(self.process)


def serve(connection: Connection) -> None:
    """Answer calls until None comes."""
    while True:
        try:
            call = connection.recv()
            if call is None:
                return
            function, args = call
            answer = function(*args)
        except Exception as error:
            answer = error
        connection.send(answer)


@contextmanager
def child_of(method: str) -> Iterator[Child]:
    child = Child(method)
    try:
        yield child
    finally:
        child.end()


def finish(process: Any) -> int:
    """Wait for a process, release it and return its exit code."""
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        process.join(TIMEOUT_S)
        raise TimeoutError(f"{process} did not end")
    exit_code: int = process.exitcode
    process.close()
    return exit_code


def call_in_process(method: str, function: Callable[..., Any], *args: Any) -> int:
    """Call a function with these arguments in a new process; return the exit code."""
    process = mp.get_context(method).Process(target=function, args=args)
    process.start()
    return finish(process)


def run_script(script: str, *args: str, folder: Path) -> str:
    """Run a script with every warning an error; return what it printed on both streams."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    ignore_fork = "ignore:This process:DeprecationWarning"  # see pytestmark
    command = [sys.executable, "-W", "error", "-W", ignore_fork, str(path), *args]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False, env=SCRIPT_ENV
    )
    return f"{run.stdout}{run.stderr}exit {run.returncode}"


ROOT = str(Path(__file__).resolve().parents[2])
SCRIPT_ENV = os.environ | {"PYTHONPATH": ROOT, "OPENBLAS_NUM_THREADS": "1"}

# What a Child is asked to call

received: list[Any] = []


def keep(*values: Any) -> None:
    received.extend(values)


def close_all() -> None:
    while received:
        received.pop().close()


def close_and_keep(array: Array) -> None:
    array.close()
    received.append(array)


def keep_a_new_one(kind: str) -> None:
    received.append(Array((5, 4), np.int32, storage=kind))


def as_list(array: Array) -> Any:
    return array.to_ndarray().tolist()


def read_kept() -> list[Any]:
    return [as_list(array) for array in received]


def rotate_and_write(array: Array, value: int) -> Any:
    before = as_list(array)
    array.rotate()
    array[...] = value
    return before


def place_and_write(block: Memory, value: int) -> None:
    with Array((4,), np.int32, storage=block) as array:
        array[...] = value


def bounce(value: Any) -> Any:
    return value


def count_blocks() -> int:
    """Count the maps of this process that shared and inherited blocks have."""
    maps = Path("/proc/self/maps").read_text()
    return maps.count("/memfd:parllel") + maps.count("/dev/zero")


def n_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def counted(kind: str | Memory, **kwargs: Any) -> Array:
    array = Array((5, 4), np.int32, storage=kind, **kwargs)
    array[...] = np.arange(20).reshape(5, 4)
    return array


# One block


@each_kind
def test_a_block_that_nobody_closes_goes_with_its_last_reference(kind: str) -> None:
    before = n_descriptors(), count_blocks()
    array = counted(kind)
    view = array[1]
    del array
    gc.collect()
    assert_array_equal(view, [4, 5, 6, 7])  # the view still needs it
    assert kind == "local" or count_blocks() == before[1] + 1
    del view
    assert (n_descriptors(), count_blocks()) == before


@each_kind
def test_close_gives_the_memory_back_while_closed_arrays_live_on(kind: str) -> None:
    before = n_descriptors(), count_blocks()
    array = counted(kind)
    view = array[1:3]
    assert kind == "local" or count_blocks() == before[1] + 1
    array.close()
    assert (n_descriptors(), count_blocks()) == before
    assert (array.shape, view.shape) == ((5, 4), (2, 4))


@each_kind
def test_a_closed_block_keeps_nothing_while_it_is_referred_to(kind: str) -> None:
    before = n_descriptors(), count_blocks()
    memory = allocate(kind, 4096)
    Array((16,), np.float32, storage=memory).close()
    assert memory.is_closed
    assert (n_descriptors(), count_blocks()) == before


# Too little memory


@each_kind
def test_too_little_memory_is_an_error_before_anything_is_allocated(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "available_nbytes", lambda: 4096)
    n_before = n_descriptors()
    with pytest.raises(MemoryError, match=f"{kind} memory: 8,192 bytes wanted, 4,096 free"):
        Array((1024, 2), np.float32, storage=kind)
    assert n_descriptors() == n_before
    Array((1024,), np.float32, storage=kind).close()  # exactly what is free


@each_kind
def test_an_address_space_that_is_too_small_is_a_memory_error(kind: str, tmp_path: Path) -> None:
    script = """
        import os, resource, sys
        from pathlib import Path
        from parllel import Array

        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = n_pages * resource.getpagesize() + 2**25
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        n_descriptors = len(os.listdir("/proc/self/fd"))
        try:
            Array((2**27,), "u1", storage=sys.argv[1])
        except MemoryError as error:
            print(error)
        assert len(os.listdir("/proc/self/fd")) == n_descriptors
    """
    output = run_script(script, kind, folder=tmp_path)
    assert re.match(rf"{kind} memory: 134,217,728 bytes wanted.*\nexit 0$", output), output


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("shared", os, "posix_fallocate"), ("shared", mmap, "mmap"), ("inherited", mmap, "mmap")],
)
def test_what_the_system_refuses_is_a_memory_error_and_leaves_nothing(
    kind: str, module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = n_descriptors(), count_blocks()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, refuse)
        with pytest.raises(MemoryError) as caught:
            Array((1024, 2), np.float32, storage=kind)
    assert str(caught.value) == (
        f"{kind} memory: 8,192 bytes wanted, and the system refused: No space left on device"
    )
    assert (n_descriptors(), count_blocks()) == before  # while the error is held


def test_available_memory_is_the_least_that_the_system_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    assert host_memory.available_nbytes() is None
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 1900\ninactive_file 100\nactive_file 7\n")
    assert host_memory.available_nbytes() == 3100  # files that were read go when memory is wanted
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    2 kB\n")
    assert host_memory.available_nbytes() == 2048
    (tmp_path / "memory.current").write_text("6000\n")
    assert host_memory.available_nbytes() == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory.available_nbytes() == 2048


def test_where_nothing_is_known_of_free_memory_small_blocks_are_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_memory, "available_nbytes", lambda: None)
    for kind in KINDS:
        counted(kind).close()


def test_shared_memory_is_reserved_at_once() -> None:
    links = Path("/proc/self/fd")
    before = {link.name for link in links.iterdir()}
    with Array((1000, 1000), np.uint8, storage="shared"):
        new = [link for link in links.iterdir() if link.name not in before and link.exists()]
        files = [os.stat(link) for link in new if "memfd:parllel" in os.readlink(link)]
        assert {file.st_ino for file in files} == {files[0].st_ino}
        assert all(file.st_blocks * 512 >= 1_000_000 for file in files)


def test_inherited_memory_is_reserved_at_once() -> None:
    with Array((1000, 1000), np.uint8, storage="inherited") as array:
        first = array.to_ndarray().ctypes.data
        resident_nbytes, is_inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                is_inside = int(bounds[1], 16) <= first < int(bounds[2], 16)
            elif is_inside and line.startswith("Rss:"):
                resident_nbytes = 1024 * int(line.split()[1])
        assert resident_nbytes >= 1_000_000


# Sent to other processes


@each_way
def test_a_subarray_sent_to_a_process_writes_the_parents_memory(kind: str, method: str) -> None:
    array = Array(batch_shape=(5, 4), dtype=np.int32, storage=kind)
    subarray = array[np.array([1, 3]), np.array([0, 2])]
    assert call_in_process(method, operator.setitem, subarray, ..., 42) == 0
    expected = np.zeros((5, 4))
    expected[1, 0] = expected[3, 2] = 42
    assert_array_equal(array, expected)
    array.close()


@each_way
def test_roots_and_views_are_written_through_a_pipe(kind: str, method: str) -> None:
    with counted(kind, padding=1, full_size=10) as array, child_of(method) as child:
        for value, view in enumerate((array, array[1:3], array[:, ::-2], array[2, 3], array[-1])):
            child.ask(operator.setitem, view, ..., value)
            assert_array_equal(view, np.full(view.shape, value))
        child.ask(operator.setitem, array[[0, 4], [1, 2]], ..., [7, 8])
        assert (array[0, 1].item(), array[4, 2].item()) == (7, 8)
        child.ask(operator.setitem, array.full, 9, 10)
        assert_array_equal(array.full[9], [10] * 4)
        array[...] = np.arange(20).reshape(5, 4)
        assert child.ask(as_list, array[3].next) == [16, 17, 18, 19]


def write_from(queue: Any, value: int) -> None:
    queue.get(timeout=TIMEOUT_S)[...] = value


@each_way
def test_views_are_written_through_a_queue(kind: str, method: str) -> None:
    queue = mp.get_context(method).Queue()
    with counted(kind) as array:
        queue.put(array[1:3, 0])
        assert call_in_process(method, write_from, queue, -1) == 0
        assert_array_equal(array[:, 0], [0, -1, -1, 12, 16])
    queue.close()
    queue.join_thread()


LONG_TMPDIR = """
import multiprocessing, tempfile
from multiprocessing import resource_sharer, util
from pathlib import Path
from parllel import Array

before = tempfile.gettempdir()
queue = multiprocessing.get_context("spawn").Queue()
queue.put(Array((3,), "f4", storage="shared"))
print(queue.get(timeout=30))
assert tempfile.gettempdir() == before
assert not list(Path(before).iterdir())
print(util.get_temp_dir())
resource_sharer.stop(timeout=60)
"""
FOLDER_OF_ANOTHER = """
import pickle
from multiprocessing import util
from parllel import Array

util.get_temp_dir()
pickle.dumps(Array((3,), "f4", storage="shared"))
"""


def run_with_long_tmpdir(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"TMPDIR": str(folder / ("x" * (130 - len(str(folder)))))}
    Path(variables["TMPDIR"]).mkdir()
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_a_queue_carries_arrays_though_the_path_of_tmpdir_is_long(tmp_path: Path) -> None:
    run = run_with_long_tmpdir(LONG_TMPDIR, tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    array, folder = run.stdout.splitlines()
    assert array.startswith("Array(")
    assert Path(folder).parent == Path("/tmp")
    assert not Path(folder).exists()  # multiprocessing removes it


def test_a_path_that_is_too_long_for_a_socket_is_told_at_once(tmp_path: Path) -> None:
    run = run_with_long_tmpdir(FOLDER_OF_ANOTHER, tmp_path)
    expected = r"shared memory can't be sent: got a path of \d+ bytes .* expected \d+ .* set TMPDIR"
    assert re.search(expected, run.stderr)


@each_way
def test_the_child_sees_what_the_parent_writes_later(kind: str, method: str) -> None:
    with counted(kind) as array, child_of(method) as child:
        child.ask(keep, array[1], array[[0, 2], [0, 1]])
        array[...] = np.arange(20).reshape(5, 4) * 2
        assert child.ask(read_kept) == [[8, 10, 12, 14], [0, 18]]


@each_way
def test_a_rotated_root_arrives_rotated(kind: str, method: str) -> None:
    with Array((2,), np.int32, storage=kind, padding=1, full_size=6) as array:
        array.full[...] = np.arange(6)
        array.rotate()
        with child_of(method) as child:
            assert child.ask(rotate_and_write, array, -1) == [2, 3]
        assert_array_equal(array.full, [0, 1, 2, 3, -1, -1])
        assert_array_equal(array, [2, 3])  # the child's window is its own
        assert_array_equal(array[-1:3], [1, 2, 3, -1])


@each_way
def test_a_view_that_comes_back_is_the_parents_own_memory(kind: str, method: str) -> None:
    with counted(kind) as array, child_of(method) as child:
        back = child.ask(bounce, array[1:3])
        assert np.shares_memory(back.to_ndarray(), array.to_ndarray())
        back[...] = -1
        assert_array_equal(array[1:3], np.full((2, 4), -1))


@each_way
def test_the_child_closes_its_own_and_the_parent_keeps_the_memory(kind: str, method: str) -> None:
    with counted(kind) as array:
        with child_of(method) as child:
            child.ask(keep, array, array[1])
            child.ask(close_all)
            child.ask(operator.setitem, array[0], ..., 5)  # it can receive it again
        assert_array_equal(array[:2], [[5] * 4, [4, 5, 6, 7]])


def test_a_block_that_was_closed_can_be_received_again() -> None:
    array = counted("shared")
    with child_of("spawn") as child:
        child.ask(close_and_keep, array)
        assert child.ask(as_list, array[1]) == [4, 5, 6, 7]


def test_a_parent_that_closes_leaves_the_memory_to_the_child() -> None:
    with child_of("spawn") as child:
        array = counted("shared")
        child.ask(keep, array[4])
        array.close()
        del array
        assert child.ask(read_kept) == [[16, 17, 18, 19]]


@pytest.mark.parametrize("method", all_but_first(["spawn", "forkserver"]))
def test_a_block_that_is_received_twice_is_mapped_once(method: str) -> None:
    block = allocate("shared", 4096)
    one, other, apart = counted(block), counted(block), counted("shared")
    with child_of(method) as child:
        child.ask(keep, one[1])
        assert child.ask(count_blocks) == 1
        n_before = child.ask(n_descriptors)
        child.ask(keep, one, other[2], [one[1], other])
        child.ask(keep, other)
        assert (child.ask(count_blocks), child.ask(n_descriptors)) == (1, n_before)
        child.ask(keep, apart)
        assert child.ask(count_blocks) == 2


def test_a_block_that_was_inherited_is_not_mapped_again() -> None:
    array = counted("shared")
    with child_of("fork") as child:
        n_before = child.ask(count_blocks)
        child.ask(keep, array[1], array)
        assert child.ask(count_blocks) == n_before


def test_a_block_can_be_sent_and_its_taken_part_stays_taken() -> None:
    block = allocate("shared", 4096)
    array = counted(block)
    with child_of("spawn") as child:
        child.ask(place_and_write, block, 7)
    assert_array_equal(array, np.arange(20).reshape(5, 4))


@each_method
def test_a_local_array_is_sent_as_a_copy(method: str) -> None:
    array = counted("local", padding=1)
    with child_of(method) as child:
        assert child.ask(as_list, array[1]) == [4, 5, 6, 7]
        assert child.ask(rotate_and_write, array, -1) == array.to_ndarray().tolist()
        child.ask(operator.setitem, array[1], ..., -1)
    assert_array_equal(array, np.arange(20).reshape(5, 4))


# What `inherited` memory cannot do


@pytest.mark.parametrize("method", all_but_first(["spawn", "forkserver"]))
def test_inherited_memory_is_refused_to_processes_that_inherit_nothing(method: str) -> None:
    array = counted("inherited")
    process = mp.get_context(method).Process(target=operator.setitem, args=(array[0], ..., 1))
    with pytest.raises(
        ValueError, match=r'start it with the "fork" method, or use storage="shared"'
    ):
        process.start()
    with child_of(method) as child:
        with pytest.raises(ValueError, match=r'did not inherit the block.*storage="shared"'):
            child.ask(as_list, array[0])
        assert child.ask(as_list, counted("shared")[0]) == [0, 1, 2, 3]  # it lives on


def test_inherited_memory_is_refused_to_a_child_that_was_forked_before() -> None:
    with child_of("fork") as child:
        child.ask(keep_a_new_one, "inherited")  # which must not be taken for the parent's
        array = counted("inherited")
        with pytest.raises(ValueError, match="started before the allocation"):
            child.ask(as_list, array[0])


def test_inherited_memory_reaches_a_child_of_a_child() -> None:
    array = counted("inherited")
    assert call_in_process("fork", call_in_process, "fork", operator.setitem, array, 1, -1) == 0
    assert_array_equal(array[1], [-1] * 4)


# Nothing is left behind


@pytest.mark.long
def test_a_script_leaves_no_word_on_stderr_and_touches_no_file(tmp_path: Path) -> None:
    script = """
        import multiprocessing as mp, os
        from operator import setitem
        from pathlib import Path
        import numpy as np
        from parllel import Array

        def places():
            links = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(99)
                     if os.path.exists(f"/proc/self/fd/{fd}")]
            lines = Path("/proc/self/maps").read_text().splitlines()
            return [line for line in lines + links if "/dev/shm" in line]

        def receive(connection):
            connection.recv()[...] = 42
            connection.send(places())

        if __name__ == "__main__":
            kept = []  # some are closed, some are dropped, some live until the end
            for kind, method in [("inherited", "fork"), ("shared", "fork"),
                                 ("shared", "spawn"), ("shared", "forkserver")]:
                context = mp.get_context(method)
                array = Array((5, 4), np.int32, storage=kind)
                kept.append(Array((5, 4), np.int32, storage=kind)[1])
                process = context.Process(target=setitem, args=(array[1:, [0, 2]], ..., 42))
                process.start()
                process.join(60)
                assert process.exitcode == 0 and (array[1:, 2].to_ndarray() == 42).all()
                here, there = context.Pipe()
                process = context.Process(target=receive, args=(there,))
                process.start()
                here.send(array[0])
                assert here.poll(60) and here.recv() == [] and places() == []
                process.join(60)
                assert process.exitcode == 0 and (array[0].to_ndarray() == 42).all()
                if method == "fork":
                    array.close()
            print("done")
    """
    assert run_script(script, folder=tmp_path) == "done\nexit 0"


CYCLES = """
    import gc, multiprocessing as mp, os, sys
    from pathlib import Path
    import numpy as np
    from parllel import Array

    kind, way = sys.argv[1:]

    def answer(connection):
        while (view := connection.recv()) is not None:
            view[...] = 42
            del view
            connection.send(None)

    def count():
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        # Private and anonymous ones are Python's heap, which may grow by an arena at any time.
        blocks = [line for line in maps if " rw-p 00000000 00:00 0" not in line]
        return len(os.listdir("/proc/self/fd")), len(blocks)

    def cycle(number):
        array = Array((64, 4), np.float32, storage=kind, padding=1)
        array[number % 64] = 1
        if number % 3 == 0:
            views = [array[1:3], array[[0, 1]], array[number % 64, 2].next]
            read = [view.to_ndarray() for view in views]
        if kind == "shared" and number % 10 == 0:
            connection.send(array[5:7] if number % 20 else array)
            assert connection.poll(60)
            connection.recv()
            assert (array[5:7].to_ndarray() == 42).all()
        if way == "close":
            array.close()

    if __name__ == "__main__":
        context = mp.get_context("fork")
        connection, end = context.Pipe()
        process = context.Process(target=answer, args=(end,), daemon=True)
        process.start()
        end.close()
        for number in range(100):  # the thread that hands out descriptors starts in here
            cycle(number)
        before = count()
        for number in range(1000):
            cycle(number)
        after = count()
        print("same" if before == after else f"{before} {after}")
        if kind == "shared":
            child = f"/proc/{process.pid}"
            n_maps = Path(f"{child}/maps").read_text().count("memfd:parllel")
            links = [os.readlink(f"{child}/fd/{fd}") for fd in os.listdir(f"{child}/fd")]
            print(n_maps, sum("memfd:parllel" in link for link in links))
        connection.send(None)
        process.join(60)
"""


@pytest.mark.parametrize(
    ("kind", "way"),
    all_but([(kind, way) for kind in KINDS for way in ("drop", "close")], [("shared", "drop")]),
)
def test_a_thousand_arrays_leave_no_descriptor_and_no_map(
    kind: str, way: str, tmp_path: Path
) -> None:
    in_child = "0 0\n" if kind == "shared" else ""
    assert run_script(CYCLES, kind, way, folder=tmp_path) == f"same\n{in_child}exit 0"


@pytest.mark.parametrize("kind", ["shared", "inherited"])
def test_after_the_child_is_killed_the_parent_reads_on_and_leaks_nothing(kind: str) -> None:
    counts = []
    for _ in range(3):  # the first one starts the thread that hands out descriptors
        array = counted(kind)
        child = Child("fork")
        child.ask(keep, array[1])
        child.ask(operator.setitem, array[0], ..., -1)
        assert child.end(kill=True) == -signal.SIGKILL
        assert_array_equal(array[:2], [[-1] * 4, [4, 5, 6, 7]])
        array[1] = 3
        assert_array_equal(array[1], [3] * 4)
        array.close()
        counts.append(n_descriptors())
    assert counts[1] == counts[2]


OWNER = """
    import multiprocessing as mp, sys, time
    from pathlib import Path
    import numpy as np
    from parllel import Array

    def outlive(connection):
        array = connection.recv()
        maps = Path("/proc/self/maps").read_text().splitlines()
        print("inode", next(line.split()[4] for line in maps if "/memfd:" in line), flush=True)
        mp.parent_process().join(60)
        print("dead", not mp.parent_process().is_alive(), array.to_ndarray().tolist(), flush=True)
        array[...] = 5  # it can be written, too
        print(array.to_ndarray().tolist(), flush=True)

    if __name__ == "__main__":
        context = mp.get_context(sys.argv[1])
        array = Array((5, 4), np.int32, storage="shared")
        array[...] = np.arange(20).reshape(5, 4)
        here, there = context.Pipe()
        process = context.Process(target=outlive, args=(there,))
        process.start()
        here.send(array[2])
        time.sleep(600)
"""


def holders(inode: str) -> list[str]:
    """List the processes that map the file with this inode or hold a descriptor of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps = (process / "maps").read_text()
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            inodes = {line.split()[4] for line in maps.splitlines() if "/memfd:parllel" in line}
            inodes |= {
                str(os.stat(link).st_ino)
                for link, name in zip((process / "fd").iterdir(), links, strict=False)
                if "memfd:parllel" in name
            }
        except OSError:
            continue  # it ended just now, or it is another user's
        if inode in inodes:
            found.append(process.name)
    return found


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@each_method
def test_after_the_owner_is_killed_the_child_reads_on_and_the_memory_goes_with_it(
    method: str, tmp_path: Path
) -> None:
    path = tmp_path / "owner.py"
    path.write_text(textwrap.dedent(OWNER))
    output = tmp_path / "output"
    # A process that is killed leaves the folder of its sockets behind: here it is ours to remove.
    # Its name is short, because a socket's path is.
    sockets = tempfile.TemporaryDirectory()
    with output.open("w") as stream:
        owner = subprocess.Popen(
            [sys.executable, str(path), method],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=SCRIPT_ENV | {"TMPDIR": sockets.name},
        )
    try:
        assert wait_until(lambda: "inode " in output.read_text()), output.read_text()
        found = re.match(r"inode (\d+)\n", output.read_text())
        assert found, output.read_text()
        inode = found[1]
        assert str(owner.pid) in holders(inode)
    finally:
        owner.kill()
        owner.wait(TIMEOUT_S)
        sockets.cleanup()
    assert wait_until(lambda: "[5, 5, 5, 5]" in output.read_text()), output.read_text()
    assert "dead True [8, 9, 10, 11]" in output.read_text()
    assert wait_until(lambda: holders(inode) == [])


class PickledApart:
    """Pickles an Array by itself, as wrappers of functions for other processes do."""

    def __init__(self, array: Array) -> None:
        self.pickled: Any = array

    def __getstate__(self) -> bytes:
        return pickle.dumps(self.pickled)

    def __setstate__(self, pickled: bytes) -> None:
        self.pickled = pickle.loads(pickled)


def write_both(apart: PickledApart, array: Array) -> None:
    apart.pickled[...] = 5
    array[0] = 6


@each_method
def test_an_array_is_sent_twice_in_two_pickles(method: Any) -> None:
    array = Array((4, 2), np.int32, storage="shared")
    process = mp.get_context(method).Process(
        target=write_both, args=(PickledApart(array[1:3]), array)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert array.to_ndarray().tolist() == [[6, 6], [5, 5], [5, 5], [0, 0]]


def test_memory_goes_when_the_last_view_is_closed_or_dropped() -> None:
    before = n_descriptors()
    array = Array((4,), np.float32, storage="shared")
    view = array[1:3]
    del array
    view.close()
    assert len(os.listdir("/proc/self/fd")) == before  # without a collection


def test_what_files_hold_in_a_container_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4900\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 3000\nactive_file 1000\n")
    assert host_memory.available_nbytes() == 3100

"""A zoo of faults: programs that others wrote, in their smallest form, beside what is right.

Each was reported by users of another library; its name says what the right program does. Each
asserts its own result. On a GPU, the wrong ones give wrong data on some days.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from parllel import cuda

Fault = Callable[[bool], None]


def wait_for_the_copy_before_a_pinned_buffer_is_written(is_right: bool) -> None:
    """pytorch #127612: a pinned buffer was reused while its last copy to the device was queued."""
    buffer = np.zeros(4, np.int64)
    lock = cuda.PageLock(buffer.view(np.uint8))
    steps = cuda.to_device(np.zeros((2, 4), np.int64))
    for step in range(2):
        buffer[...] = step + 1
        cuda.copy_to_device(buffer, out_device=steps[step])
        if is_right:
            cuda.Event().record().synchronize()
    found = cuda.to_host(steps).tolist()
    lock.release()
    assert found == [[1] * 4, [2] * 4]


def wait_for_the_copy_before_the_host_reads(is_right: bool) -> None:
    """tensordict #725: a copy to the host that does not block was read before it had ended."""
    host = np.zeros(4, np.int64)
    lock = cuda.PageLock(host.view(np.uint8))
    cuda.copy_to_host(cuda.to_device(np.arange(4)), out_host=host)
    if is_right:
        cuda.synchronize()
    seen = host.tolist()
    cuda.synchronize()
    lock.release()
    assert seen == [0, 1, 2, 3]


def ask_for_the_current_stream_at_each_call(is_right: bool) -> None:
    """Helion #2817: a launcher kept the stream of its first call, and left a capture's graph empty.

    The stream that it kept is not the one that is captured: its work runs once, while the graph is
    recorded, and in no replay.
    """
    usual, recorded = (cuda.library().cuda.Stream(non_blocking=True) for _ in range(2))
    with recorded:
        counter = cuda.to_device(np.zeros(1, np.int64))
    cuda.synchronize(recorded)

    def add_one() -> None:
        with cuda.use_stream(cuda.current_stream() if is_right else usual):
            cuda.launch("zoo_add", (1,), (1,), [counter, np.int64(1)])

    with recorded:
        recorded.begin_capture()
        add_one()
        graph = recorded.end_capture()
    for _ in range(3):
        graph.launch(recorded)
    cuda.synchronize(usual)
    assert cuda.to_host(counter, stream=recorded).tolist() == [3]


def copy_the_final_observation_before_the_reset(is_right: bool) -> None:
    """ManiSkill #828: the final observation was the tensor that the reset writes into."""
    observation = cuda.to_device(np.zeros(4, np.int64))
    observation.fill(7)  # the last step of an episode
    final_observation = observation.copy() if is_right else observation
    observation.fill(0)  # the reset, in the same step
    assert cuda.to_host(final_observation).tolist() == [7] * 4


def keep_the_number_of_the_draw_on_the_device(is_right: bool) -> None:
    """pytorch/rl #3002: a captured policy drew the same random numbers at each replay."""
    stream = cuda.library().cuda.Stream(non_blocking=True)
    with stream:
        number, drawn = (cuda.to_device(np.zeros(1, np.int64)) for _ in range(2))
    with stream:
        stream.begin_capture()
        if is_right:
            cuda.launch("zoo_add", (1,), (1,), [number, np.int64(1)])
            cuda.launch("zoo_draw_of", (1,), (1,), [drawn, number])
        else:
            cuda.launch("zoo_draw", (1,), (1,), [drawn, np.int64(1)])
        graph = stream.end_capture()
    found = set()
    for _ in range(4):
        graph.launch(stream)
        found |= set(cuda.to_host(drawn, stream=stream).tolist())
    assert len(found) == 4


def _add(grid: Any, block: Any, target: Any, number: Any) -> None:
    target += number


def _draw(grid: Any, block: Any, out: Any, number: Any) -> None:
    out[...] = np.random.default_rng(int(np.asarray(number).item())).integers(2**40)


KERNELS = {"zoo_add": _add, "zoo_draw": _draw, "zoo_draw_of": _draw}

ALWAYS_WRONG: list[Fault] = [
    ask_for_the_current_stream_at_each_call,
    copy_the_final_observation_before_the_reset,
    keep_the_number_of_the_draw_on_the_device,
]
"""The faults that give wrong data under every schedule."""

FAULTS: list[Fault] = [
    wait_for_the_copy_before_a_pinned_buffer_is_written,
    wait_for_the_copy_before_the_host_reads,
    *ALWAYS_WRONG,
]

"""Time of advantage estimation against plain Numba loops and a copy of as many bytes."""

import functools
from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt
from timing import interleave, print_table, print_target, print_title, ratio

from parllel.kernels.advantage import estimate_advantage

SIZES = ((128, 16), (128, 1024), (2048, 16), (512, 4096))
REPEATS = 31
END_RATE = 0.01  # for terminated and for truncated: episodes of about 50 steps
DISCOUNT, TRACE = 0.99, 0.95

OURS, PLAIN, PLAIN_ROWS = "parllel", "Numba, plain loop", "Numba, plain loop, time outermost"
NUMPY, COPY, COPY_INPUTS = "NumPy, loop over time", "copy", "copy of the inputs"

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Batch = tuple[Floats, Floats, Bools, Bools, Floats, Floats, Floats]


@numba.njit(fastmath={"contract"})
def plain_loop(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    out_advantage: Floats,
    out_return: Floats,
    discount: np.float32,
    decay: np.float32,
) -> None:
    """Do what anybody would write: environment by environment, backwards, with branches."""
    steps, width = reward.shape
    for b in range(width):
        advantage = np.float32(0)
        for t in range(steps - 1, -1, -1):
            if terminated[t, b]:
                delta = reward[t, b] - value[t, b]
                advantage = delta
            elif truncated[t, b]:
                delta = reward[t, b] + discount * final_value[t, b] - value[t, b]
                advantage = delta
            else:
                delta = reward[t, b] + discount * value[t + 1, b] - value[t, b]
                advantage = delta + decay * advantage
            out_advantage[t, b] = advantage
            out_return[t, b] = advantage + value[t, b]


@numba.njit(fastmath={"contract"})
def plain_rows(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    out_advantage: Floats,
    out_return: Floats,
    discount: np.float32,
    decay: np.float32,
) -> None:
    """Do the same row by row, which walks memory in order."""
    steps, width = reward.shape
    carry = np.zeros(width, np.float32)
    for t in range(steps - 1, -1, -1):
        for b in range(width):
            if terminated[t, b]:
                carry[b] = reward[t, b] - value[t, b]
            elif truncated[t, b]:
                carry[b] = reward[t, b] + discount * final_value[t, b] - value[t, b]
            else:
                delta = reward[t, b] + discount * value[t + 1, b] - value[t, b]
                carry[b] = delta + decay * carry[b]
            out_advantage[t, b] = carry[b]
            out_return[t, b] = carry[b] + value[t, b]


def numpy_loop(
    reward: Floats,
    value: Floats,
    terminated: Bools,
    truncated: Bools,
    final_value: Floats,
    out_advantage: Floats,
    out_return: Floats,
    discount: np.float32,
    decay: np.float32,
) -> None:
    """Do the same with a few NumPy calls for each row."""
    carry = np.zeros(reward.shape[1], np.float32)
    for t in range(len(reward) - 1, -1, -1):
        bootstrap = np.where(truncated[t], final_value[t], value[t + 1])
        bootstrap[terminated[t]] = 0
        carry[terminated[t] | truncated[t]] = 0
        carry = reward[t] + discount * bootstrap - value[t] + decay * carry
        out_advantage[t] = carry
        np.add(carry, value[t], out=out_return[t])


def random_batch(steps: int, width: int) -> Batch:
    """Return inputs, then outputs; the outputs' pages have been touched."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((steps, width), np.float32),
        rng.standard_normal((steps + 1, width), np.float32),
        rng.random((steps, width)) < END_RATE,
        rng.random((steps, width)) < END_RATE,
        rng.standard_normal((steps, width), np.float32),
        np.zeros((steps, width), np.float32),
        np.zeros((steps, width), np.float32),
    )


def make_copy(nbytes: int) -> Callable[[], None]:
    """Return a function that copies `nbytes`, which reads as many and writes as many."""
    source = np.ones(nbytes, np.uint8)
    destination = np.ones_like(source)
    return lambda: np.copyto(destination, source)


def make_contestants(batches: dict[str, Batch]) -> dict[str, Callable[[], object]]:
    ours = batches[OURS]
    factors = np.float32(DISCOUNT), np.float32(DISCOUNT * TRACE)
    read = sum(array.nbytes for array in ours[:5])
    written = sum(array.nbytes for array in ours[5:])
    return {
        OURS: functools.partial(
            estimate_advantage,
            *ours[:5],
            discount=DISCOUNT,
            trace=TRACE,
            out_advantage=ours[5],
            out_return=ours[6],
        ),
        PLAIN: functools.partial(plain_loop, *batches[PLAIN], *factors),
        PLAIN_ROWS: functools.partial(plain_rows, *batches[PLAIN_ROWS], *factors),
        NUMPY: functools.partial(numpy_loop, *batches[NUMPY], *factors),
        COPY: make_copy((read + written) // 2),
        COPY_INPUTS: make_copy(read),
    }


def check_results(batches: dict[str, Batch]) -> None:
    """Let nobody win by computing something else; small differences are roundings."""
    for name, batch in batches.items():
        for ours, theirs in zip(batches[OURS][5:], batch[5:], strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4, err_msg=name)


def main() -> None:
    print_title("Generalized advantage estimation, CPU twin, no GPU: float32 [T, B], one thread")
    print(f"{REPEATS} interleaved rounds for each size; ratios are medians over the rounds.")
    print(f"'{COPY}' copies half of the bytes of all 5 inputs and 2 outputs, each array once: it")
    print("reads and writes together exactly as many bytes as the estimate reads and writes.")
    print(
        f"'{COPY_INPUTS}' copies as many bytes as the estimate reads: more traffic, more lenient."
    )
    print("Every contestant works on arrays of its own.")
    measured = {}
    for size in SIZES:
        batches = {name: random_batch(*size) for name in (OURS, PLAIN, PLAIN_ROWS, NUMPY)}
        measured[size] = interleave(make_contestants(batches), repeats=REPEATS)
        check_results(batches)
        print_table(f"(T, B) = {size}", measured[size], references=(COPY, PLAIN))
    print()
    large, small = measured[512, 4096], measured[128, 16]
    print_target("(512, 4096): time / time of the copy", ratio(large, OURS, COPY), 2.5)
    print_target("(128, 16): time / time of the plain loop", ratio(small, OURS, PLAIN), 1.0)
    print_target(
        "(128, 16): time / time of the one with time outermost", ratio(small, OURS, PLAIN_ROWS), 1.0
    )


if __name__ == "__main__":
    main()

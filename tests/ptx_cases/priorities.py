"""Cases of priorities, and of draws and weights that follow them: integers of Python and NumPy."""

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.cuda import DeviceArray
from parllel.kernels.sum_tree import ONE, lay_out
from parllel.kernels.transitions import SMALLEST, Seed
from parllel.ops import priorities as ops
from parllel.ops.priorities import Priorities
from ptx_cases.comparing import assert_bits, assert_floats, assert_near
from ptx_cases.draws import Ring, allocate, assert_found, draw_below, some_seed

_FAN_OUT = 16
_SEED = Seed(1, 2, 3)  # of what draws nothing

# Of a device's power function, beside float64: its own few units in the last place, and the
# rounding of what it is given.
_POWER_ERROR = 2.0**-20


class Tree:
    """Priorities of a ring's places, on the host and on the device."""

    def __init__(self, leaves: npt.NDArray[np.int64], largest: int) -> None:
        self.n_places = len(leaves)
        self.sums = cuda.to_device(_sum_up(leaves))
        self.largest = cuda.to_device(np.array([largest], np.int64))
        self.on_device = Priorities(self.sums, self.largest, self.n_places)

    def assert_leaves(self, leaves: npt.NDArray[np.int64]) -> None:
        assert_bits("priorities and their sums", self.sums, _sum_up(leaves))


def _sum_up(leaves: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return leaves, and the sums of 16 neighbours each, up to the sum of all."""
    offsets = lay_out(len(leaves))
    sums = np.zeros(offsets[-1], np.int64)
    sums[: len(leaves)] = leaves
    for begin, middle, end in zip(offsets, offsets[1:], offsets[2:], strict=False):
        above = sums[begin:middle].reshape(-1, _FAN_OUT).sum(axis=1)
        sums[middle:end][: len(above)] = above
    return sums


def _some_leaves(rng: np.random.Generator, ring: Ring) -> npt.NDArray[np.int64]:
    """Return priorities, above 0 where a transition that can be sampled begins."""
    leaves = np.zeros(ring.n_rows * ring.width, np.int64)
    rows = [each.row for each in ring.sampleable()]
    leaves[rows] = rng.integers(1, 2 ** int(rng.choice([3, 24, 40])), len(rows))
    return leaves


def _some_ring(rng: np.random.Generator) -> Ring:
    """Return a small ring, or a large one, over whose places there are up to six levels of sums."""
    chances, shape = tuple(rng.choice([0, 0.1, 0.4], 3).tolist()), None
    if rng.random() < 0.5:
        shape = int(rng.choice([500, 10_000, 210_000])), 5
    return Ring(rng, int(rng.integers(1, 4)), chances, shape=shape)


def draw_shares(rng: np.random.Generator) -> None:
    """Draws by priority, and their weights."""
    ring, seed = _some_ring(rng), some_seed(rng)
    leaves = _some_leaves(rng, ring) * int(rng.random() < 0.9)
    tree = Tree(leaves, 0)
    arrays, out = allocate(int(rng.choice([1, 7, 200])))
    beta = float(rng.choice([0, 0.4, 1]))
    state = ring.make_state(seed, beta=beta)
    ops.draw_by_priority(ring.on_device, state, tree.on_device, out)
    assert state.read_number() == seed.number + 1, "number: differs from the reference"
    total, below = int(leaves.sum()), np.cumsum(leaves)
    expected = []
    for item in range(out.n_items):
        begin, end = item * total // out.n_items, (item + 1) * total // out.n_items
        target = begin + draw_below(seed, item, 0, max(1, end - begin))
        leaf = int(np.searchsorted(below, target, side="right"))
        if total == 0:
            leaf = ring.steps.first % ring.n_rows * ring.width
        age = (leaf // ring.width - ring.steps.first) % ring.n_rows
        found = ring.find(ring.steps.first + age, leaf % ring.width)
        expected.append(found._replace(is_sampleable=total > 0))
    assert_found(arrays, expected)
    drawn = leaves[[each.row for each in expected]]
    assert_bits("priorities drawn", arrays["scratch"], drawn)
    tree.assert_leaves(leaves)
    ops.weigh_priorities(ring.on_device, state, out)
    _assert_weights(arrays["weight"], drawn, beta)


def _assert_weights(weights: DeviceArray, drawn: npt.NDArray[np.int64], beta: float) -> None:
    share = np.float32(drawn.min()) / np.maximum(1, drawn).astype(np.float32)
    expected = np.power(share.astype(np.float64), np.float64(np.float32(beta)))
    assert_near("weight", weights, expected, _POWER_ERROR * expected)
    if beta == 1:
        assert_floats("weight", weights, share)


def weigh(rng: np.random.Generator) -> None:
    """Weights of any priorities, of which the smallest lies anywhere."""
    ring, beta = Ring(rng, 1), float(rng.choice([0, 0.4, 1]))
    arrays, out = allocate(int(rng.choice([*range(1, 40), *[300, 900] * 4])))
    drawn = rng.integers(1, 2 ** int(rng.choice([10, 24])), out.n_items) << int(rng.choice([0, 16]))
    cuda.copy_to_device(drawn, out_device=arrays["scratch"])
    state = ring.make_state(_SEED, beta=beta)
    packed = pack(2, 0) | (2**30 - 1 - pack(0, int(drawn.min())))  # as the draw leaves it
    place = SMALLEST // 8
    cuda.copy_to_device(np.array([packed]), out_device=state.numbers[place : place + 1])
    ops.weigh_priorities(ring.on_device, state, out)
    _assert_weights(arrays["weight"], drawn, beta)


def pack(period: int, number: int) -> int:
    """Return what the largest priority of a period is kept as: its 24 highest binary digits."""
    exponent = max(0, number.bit_length() - 24)
    return (period << 6 | exponent) << 24 | number >> exponent


def _to_number(size: np.float32, limit: np.float32) -> int:
    scaled = size * np.float32(ONE)
    return max(1, int(scaled)) if scaled < limit else int(limit)


def update_leaves(rng: np.random.Generator) -> None:
    """Errors of some transitions, also of ones that are gone, and of some twice."""
    ring = _some_ring(rng)
    leaves, largest = _some_leaves(rng, ring), pack(2, 77)
    tree = Tree(leaves, largest)
    n = int(rng.choice([1, 20, 150]))
    steps = rng.integers(max(0, ring.steps.first - 2), ring.steps.stop + 2, n)
    identity = steps * ring.width + rng.integers(0, ring.width, n)
    scale = rng.choice([0, 1, 1e30], n, p=[0.1, 0.8, 0.1])
    error = (scale * rng.standard_normal(n)).astype(np.float32)
    error[rng.random(n) < 0.1] = rng.choice(np.array([0, np.nan, np.inf], np.float32))
    alpha, epsilon = np.float32(rng.choice([0, 1])), np.float32(rng.choice([0, 1e-3]))
    ops.update_priorities(
        ring.on_device,
        ring.make_state(_SEED),
        tree.on_device,
        index=cuda.to_device(identity),
        error=cuda.to_device(error),
        alpha=alpha,
        epsilon=epsilon,
    )
    may_be: dict[int, set[int]] = {}
    for number, size in zip(identity.tolist(), np.abs(error), strict=True):
        is_there = ring.steps.first <= number // ring.width < ring.steps.stop
        place = number % (ring.n_rows * ring.width)
        if is_there and leaves[place] > 0 and np.isfinite(size):
            priority = size + epsilon if alpha == 1 else np.float32(1)
            may_be.setdefault(place, set()).add(_to_number(priority, tree.on_device.limit))
    found = cuda.to_host(tree.sums)[: tree.n_places]
    for place, numbers in may_be.items():
        assert int(found[place]) in numbers, "priority: differs from the reference"
        leaves[place] = found[place]
    tree.assert_leaves(leaves)
    packed = [pack(ring.steps.stop, each) for numbers in may_be.values() for each in numbers]
    assert_bits("largest", tree.largest, np.array([max([largest, *packed])], np.int64))


def update_by_powers(rng: np.random.Generator) -> None:
    """Errors with an exponent that needs a power function: near float64, with exact sums."""
    ring = Ring(rng, 1)
    leaves = _some_leaves(rng, ring)
    tree, there = Tree(leaves, 0), ring.sampleable()
    picked = rng.permutation(len(there))[: int(rng.integers(1, len(there) + 1))]
    rows = np.array([there[each].row for each in picked])
    error = rng.exponential(1, len(picked)).astype(np.float32)
    alpha, epsilon = np.float32(rng.choice([0.6, 0.3])), np.float32(1e-3)
    ops.update_priorities(
        ring.on_device,
        ring.make_state(_SEED),
        tree.on_device,
        index=cuda.to_device(np.array([there[each].identity for each in picked], np.int64)),
        error=cuda.to_device(error),
        alpha=alpha,
        epsilon=epsilon,
    )
    found = cuda.to_host(tree.sums)[: tree.n_places].copy()
    expected = np.power((error + epsilon).astype(np.float64), np.float64(alpha)) * ONE
    is_near = np.abs(found[rows] - expected) <= _POWER_ERROR * expected + 1
    assert is_near.all(), "priority: off from the reference"
    leaves[rows] = found[rows]
    tree.assert_leaves(leaves)


def refresh_leaves(rng: np.random.Generator) -> None:
    """Steps that can be sampled from now on, no longer, and as before."""
    ring = _some_ring(rng)
    leaves = np.where(rng.random(ring.n_rows * ring.width) < 0.5, 0, _some_leaves(rng, ring))
    leaves[rng.random(len(leaves)) < 0.2] = 9
    number = int(rng.choice([1, 77, 2**24 - 1, 0b1011 << 30]))
    tree = Tree(leaves, pack(ring.steps.stop, number))
    begin = int(rng.integers(ring.steps.first, ring.steps.stop))
    n_steps = int(rng.integers(1, min(ring.n_rows, ring.steps.stop - begin + 2) + 1))
    ops.refresh_priorities(ring.on_device, ring.make_state(_SEED), tree.on_device, begin, n_steps)
    for step in range(begin, begin + n_steps):
        for column in range(ring.width):
            found = ring.find(step, column)
            kept = leaves[found.row] or number
            leaves[found.row] = kept if found.is_sampleable else 0
    tree.assert_leaves(leaves)

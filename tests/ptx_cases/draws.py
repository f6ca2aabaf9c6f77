"""Cases of draws from a ring of samples: in plain Python, one step at a time."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.kernels.transitions import N_TRIES, NOT_GIVEN, Seed
from parllel.ops.transitions import DrawnTransitions, DrawState, SampledRing, draw_transitions
from ptx_cases.comparing import assert_bits, assert_floats
from ptx_machine import floats

_WORD = 0xFFFFFFFF
_MOST_STEPS = 30  # that are there: references look at them one by one


# Random numbers


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Return the four words of Philox4x32-10, in Python's own integers.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 5.3.
    """
    a, b, c, d = counter
    key_a, key_b = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b = (second >> 32) ^ b ^ key_a, second & _WORD
        c, d = (first >> 32) ^ d ^ key_b, first & _WORD
        key_a, key_b = (key_a + 0x9E3779B9) & _WORD, (key_b + 0xBB67AE85) & _WORD
    return [a, b, c, d]


def draw_below(seed: Seed, item: int, tried: int, limit: int) -> int:
    counter = [item, tried, seed.number & _WORD, seed.number >> 32]
    a, b, *_ = philox(counter, [seed.key_a, seed.key_b])
    return ((a >> 1 << 31) | (b >> 1)) * limit >> 62


# Transitions


class _Steps(NamedTuple):
    """Which steps of a ring are there, and the discount of rewards."""

    first: int
    stop: int
    discount: np.float32


class Found(NamedTuple):
    """A transition as a minibatch has it."""

    is_sampleable: bool
    identity: int
    row: int
    next_row: int
    n_step_return: np.float32
    n_step_discount: np.float32
    terminated: bool
    truncated: bool


class Ring:
    """A ring of random steps, on the host and on the device.

    Args:
        rng: draws everything.
        n_steps: steps of a transition.
        chances: how often an episode terminates, is truncated, and a step is not valid.
        shape: steps of each environment, and environments; random ones by default.
        only: places of the steps that are valid, whatever their chance.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        n_steps: int,
        chances: tuple[float, ...] = (0, 0, 0),
        *,
        shape: tuple[int, int] | None = None,
        only: list[int] | None = None,
    ) -> None:
        # Bits of breaks: of a ring in one integer, or on both sides of the ends of some.
        n_rows = rng.integers(2, 30) if rng.random() < 0.6 else rng.choice([63, 64, 65, 80, 130])
        self.n_rows, self.width = shape or (int(n_rows), int(rng.integers(1, 6)))
        self.n_steps = n_steps
        n = self.n_rows * self.width
        self.reward = rng.standard_normal(n, np.float32)
        self.terminated, self.truncated = (rng.random(n) < chance for chance in chances[:2])
        self.valid = rng.random(n) >= chances[2] if rng.random() < 0.7 else None
        if only is not None:
            self.valid = np.isin(np.arange(n), only)
        self.final_slot = rng.integers(-2, 6, n).astype(np.int32)
        first = int(rng.choice([0, 3, 50, self.n_rows - 2, self.n_rows * 7 + 1]))
        most = min(self.n_rows, _MOST_STEPS)
        stop = first + (most if rng.random() < 0.3 else int(rng.integers(1, most + 1)))
        self.steps = _Steps(first, stop, np.float32(rng.choice([0, 0.9, 1])))
        optional = None if self.valid is None else cuda.to_device(self.valid)
        self.breaks = cuda.to_device(self.bits())
        self.on_device = SampledRing(
            reward=cuda.to_device(self.reward),
            terminated=cuda.to_device(self.terminated),
            truncated=cuda.to_device(self.truncated),
            valid=optional,
            final_slot=cuda.to_device(self.final_slot),
            breaks=self.breaks,
            width=self.width,
            n_steps=n_steps,
        )

    def bits(self) -> npt.NDArray[np.int64]:
        """Return the bits of breaks: a set one for each step, some behind the last row too."""
        is_break = self.terminated | self.truncated
        if self.valid is not None:
            is_break |= ~self.valid
        rows = np.ones((-(-self.n_rows // 64) * 64, self.width), np.uint8)
        rows[: self.n_rows] = is_break.reshape(self.n_rows, self.width)
        packed = np.packbits(rows.reshape(-1, 64, self.width), axis=1, bitorder="little")
        return np.ascontiguousarray(packed.swapaxes(1, 2)).view(np.int64).reshape(-1)

    def make_state(self, seed: Seed, *, beta: float = 1.0) -> DrawState:
        """Return what draws of the device are given beside the ring."""
        key = seed.key_a, seed.key_b
        state = DrawState("gpu", key=(0, 0), discount=float(self.steps.discount), beta=beta)
        state.write_steps(self.steps.first, self.steps.stop)
        state.write_seed(key, seed.number)
        return state

    @property
    def n_drawn_from(self) -> int:
        return (self.steps.stop - self.steps.first) * self.width

    def find(self, number: int, column: int) -> Found:
        """Return the transition that begins with a step."""
        begin = last = number % self.n_rows * self.width + column
        total, factor, is_ended, is_whole = np.float32(0), np.float32(1), False, True
        for step in range(number, number + self.n_steps):
            place = step % self.n_rows * self.width + column
            is_valid = self.valid is None or bool(self.valid[place])
            is_whole = number >= self.steps.first and step < self.steps.stop and is_valid
            if not is_whole:
                break
            last = place
            earned = np.array([factor]), self.reward[[place]], np.array([total])
            total = floats.multiply_add(*earned)[0]
            factor *= self.steps.discount
            is_ended = bool(self.terminated[place] or self.truncated[place])
            if is_ended:
                break
        terminated, truncated = bool(self.terminated[last]), bool(self.truncated[last])
        next_row, slot = last + self.width, int(self.final_slot[last])
        if is_ended:
            next_row = -1 - slot if slot >= 0 else last
            is_whole = is_whole and (slot >= 0 or (terminated and slot == NOT_GIVEN))
        discount = np.float32(0) if terminated else factor
        identity = number * self.width + column
        return Found(is_whole, identity, begin, next_row, total, discount, terminated, truncated)

    def draw(self, seed: Seed, item: int) -> Found:
        """Return what an item of a minibatch has to be."""
        limit = self.n_drawn_from
        drawn = draw_below(seed, item, 0, limit)
        for tried in range(1, N_TRIES + limit + 1):
            found = self.find(self.steps.first + drawn // self.width, drawn % self.width)
            if found.is_sampleable:
                break
            is_random = tried < N_TRIES
            drawn = draw_below(seed, item, tried, limit) if is_random else (drawn + 1) % limit
        return found

    def sampleable(self) -> list[Found]:
        numbers = range(self.steps.first, self.steps.stop)
        found = [self.find(number, column) for number in numbers for column in range(self.width)]
        return [each for each in found if each.is_sampleable]


_DTYPES = {
    "identity": np.int64,
    "row": np.int64,
    "next_row": np.int64,
    "n_step_return": np.float32,
    "n_step_discount": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "scratch": np.int64,
    "weight": np.float32,
}


def allocate(n: int) -> tuple[dict[str, Any], DrawnTransitions]:
    arrays = {name: cuda.library().empty(n, dtype) for name, dtype in _DTYPES.items()}
    return arrays, DrawnTransitions(**arrays)


def assert_found(arrays: dict[str, Any], expected: list[Found]) -> None:
    """Compare a minibatch; of nothing that can be sampled there are NaN and its own row."""
    plain = [
        each
        if each.is_sampleable
        else each._replace(
            next_row=each.row,
            n_step_return=np.float32(np.nan),
            n_step_discount=np.float32(np.nan),
        )
        for each in expected
    ]
    for name in Found._fields[1:]:
        values = np.array([getattr(each, name) for each in plain], _DTYPES[name])
        check = assert_floats if values.dtype == np.float32 else assert_bits
        check(name, arrays[name], values)


def some_seed(rng: np.random.Generator) -> Seed:
    key_a, key_b = rng.integers(0, 2**32, 2).tolist()
    return Seed(key_a, key_b, int(rng.choice([0, 5, 2**32 - 1, 2**40 + 3])))


def draw_evenly(rng: np.random.Generator) -> None:
    """Rings in which much can be sampled: two minibatches, one after the other."""
    chances = tuple(rng.choice([0, 0.1, 0.5], 3).tolist())
    ring, seed = Ring(rng, int(rng.integers(1, 5)), chances), some_seed(rng)
    n = int(rng.choice([1, 7, 130]))
    if ring.sampleable():
        _draw_and_compare(ring, seed, n, n_draws=2)


def draw_nothing(rng: np.random.Generator) -> None:
    """A ring in which nothing can be sampled: NaN, after each step was tried."""
    _draw_and_compare(Ring(rng, 1, only=[]), some_seed(rng), 3)


def draw_late(rng: np.random.Generator) -> None:
    """A large ring with one step that can be sampled, a few behind the last one that is drawn."""
    seed, shape = some_seed(rng), (4000, 5)
    n = shape[0] * shape[1]
    place = (draw_below(seed, 0, N_TRIES - 1, n) + int(rng.integers(1, 9))) % n
    ring = Ring(rng, 1, shape=shape, only=[place])
    ring.steps = _Steps(0, shape[0], np.float32(0.9))
    _draw_and_compare(ring, seed, 1)


def _draw_and_compare(ring: Ring, seed: Seed, n: int, *, n_draws: int = 1) -> None:
    arrays, out = allocate(n)
    state = ring.make_state(seed)
    for number in range(seed.number, seed.number + n_draws):
        draw_transitions(ring.on_device, state, out)
        assert_found(arrays, [ring.draw(seed._replace(number=number), item) for item in range(n)])
        assert state.read_number() == number + 1, "number: differs from the reference"

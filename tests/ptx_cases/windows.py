"""Cases of windows of steps: which are drawn, by lists of steps, and gathers of their rows."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.kernels.sequences import BACK_BITS, NO_STEP
from parllel.kernels.sum_tree import ONE
from parllel.kernels.transitions import N_TRIES, NOT_GIVEN, Seed
from parllel.kernels.window_search import CROSS, PAD, STOP, WindowTable
from parllel.ops.sequences import (
    DrawnWindows,
    SampledWindows,
    WindowGather,
    WindowSource,
    draw_windows,
)
from parllel.ops.window_priorities import (
    ErrorFormula,
    draw_windows_by_priority,
    refresh_windows,
    update_windows,
)
from ptx_cases.comparing import assert_bits
from ptx_cases.copies import Film, place
from ptx_cases.draws import Ring, draw_below, some_seed
from ptx_cases.priorities import Tree, pack


class Found(NamedTuple):
    """A window as codes: of observations from older frames on, and of steps."""

    identity: int
    observed: list[int]
    steps: list[int]
    initial: int
    is_first: list[bool]
    mask: list[bool]


class Episodes:
    """The windows of a ring of random steps.

    Args:
        ring: the steps.
        form: the windows.
    """

    def __init__(self, ring: Ring, form: WindowTable) -> None:
        self.ring, self.form = ring, form
        self.first, self.stop = ring.steps.first, ring.steps.stop

    def place(self, number: int, column: int) -> int:
        return number % self.ring.n_rows * self.ring.width + column

    def is_ended(self, place: int) -> bool:
        return bool(self.ring.terminated[place] or self.ring.truncated[place])

    def is_valid(self, place: int) -> bool:
        return self.ring.valid is None or bool(self.ring.valid[place])

    def is_break(self, number: int, column: int) -> bool:
        place = self.place(number, column)
        return self.is_ended(place) or not self.is_valid(place)

    def is_learnable(self, number: int, column: int) -> bool:
        place = self.place(number, column)
        slot = int(self.ring.final_slot[place])
        is_over = bool(self.ring.terminated[place])
        is_known = not self.is_ended(place) or slot >= 0 or (is_over and slot == NOT_GIVEN)
        return self.is_valid(place) and is_known

    def following(self, place: int) -> int:
        slot = int(self.ring.final_slot[place])
        if not self.is_ended(place):
            return place + self.ring.width
        return -1 - slot if slot >= 0 else place

    def find(self, number: int, column: int) -> Found | None:
        """Return the window that a step names; None where none can be sampled."""
        form, begin, steps = self.form, number, []
        while begin > self.first and not self.is_break(begin - 1, column):
            begin -= 1
        is_begun = begin > self.first or begin == 0
        begin = max(begin, number - form.burn_in)
        if begin == self.first and begin > 0:
            return None
        is_first = is_begun and (begin == 0 or self.is_break(begin - 1, column))
        for at in range(number, min(number + form.length, self.stop)):
            if self.is_learnable(at, column):
                steps.append(at)
            if self.is_break(at, column) or not self.is_learnable(at, column):
                break
        is_over = bool(steps) and self.is_break(steps[-1], column)
        last = number + len(steps)
        is_over = is_over or (last < self.stop and not self.is_learnable(last, column))
        is_named = number % form.stride == 0
        if form.ends != CROSS and begin == number:
            is_named = is_named or is_first
        if form.ends == STOP:
            is_named = is_named or (is_over and len(steps) == form.length)
        is_whole = len(steps) == form.length
        if form.ends == PAD:
            is_whole = bool(steps) and (is_whole or is_over)
        if form.ends == CROSS:
            second = form.length > form.n_older + 1 and number + 1 < self.stop
            second = second and self.is_learnable(number + 1, column)
            is_whole = number + form.length <= self.stop and (bool(steps) or second)
        if not is_named or not is_whole:
            return None
        return self.code(number, column, begin, is_first, len(steps), form.ends)

    def code(
        self, number: int, column: int, begin: int, is_first: bool, n_steps: int, ends: int
    ) -> Found:
        """Return what is written for a window of steps from `begin` on."""
        form, initial = self.form, self.place(begin, column)
        n_padding = form.burn_in - (number - begin)
        backs = range(form.n_older + n_padding, 0, -1)
        observed = [initial + (back << BACK_BITS) for back in backs]
        steps, flags = [NO_STEP] * n_padding, [False] * n_padding
        mask = [False] * form.burn_in
        for at in range(begin, number):
            observed.append(self.place(at, column))
            steps.append(observed[-1])
            flags.append(is_first and at == begin)
        if ends == CROSS:
            tail = self.code_crossing(number, column, is_first and begin == number)
        else:
            places = [self.place(number + age, column) for age in range(n_steps)]
            n_behind = form.length - n_steps
            after = [self.following([initial, *places][-1])] * (n_behind + 1)
            tail = (
                places + after,
                places + [NO_STEP] * n_behind,
                [is_first and begin == number] + [False] * form.length,
                [True] * n_steps + [False] * n_behind,
            )
        identity = number * self.ring.width + column
        return Found(
            identity, observed + tail[0], steps + tail[1], initial, flags + tail[2], mask + tail[3]
        )

    def code_crossing(
        self, number: int, column: int, is_first: bool
    ) -> tuple[list[int], list[int], list[bool], list[bool]]:
        length, n_older = self.form.length, self.form.n_older
        rows = []  # code of the observation and of the step, is_first, mask
        place = self.place(number, column)
        while len(rows) <= length:
            if len(rows) == length:
                rows.append((place, NO_STEP, is_first, False))
                break
            rows.append((place, place, is_first, self.is_learnable(number, column)))
            is_over, following = bool(self.ring.terminated[place]), self.following(place)
            if (self.is_ended(place) and len(rows) == length) or (following < 0 and not is_over):
                rows.append((following, NO_STEP, False, False))
            is_first = self.is_break(number, column)
            number += 1
            behind = place + self.ring.width
            place = self.place(number, column) if number < self.stop else behind
            if is_first:
                backs = range(n_older, 0, -1)
                rows += [(place + (back << BACK_BITS), NO_STEP, False, False) for back in backs]
        observed, steps, flags, mask = (list(each) for each in zip(*rows, strict=True))
        return observed[: length + 1], steps[:length], flags[: length + 1], mask[:length]

    def draw(self, seed: Seed, item: int) -> Found | None:
        limit = self.ring.n_drawn_from
        drawn = draw_below(seed, item, 0, limit)
        for tried in range(1, N_TRIES + limit + 1):
            found = self.find(self.first + drawn // self.ring.width, drawn % self.ring.width)
            if found is not None:
                return found
            is_random = tried < N_TRIES
            drawn = draw_below(seed, item, tried, limit) if is_random else (drawn + 1) % limit
        return None

    def nothing(self) -> Found:
        """Return what is written where there is no window."""
        found = self.code(self.first, 0, self.first, False, 0, PAD)
        return found._replace(identity=-1)


def some_form(rng: np.random.Generator, ring: Ring) -> WindowTable:
    """Return windows that are at most as long as the ring."""
    most = ring.n_rows - 1
    length = int(rng.integers(1, min(most, 12) + 1))
    burn_in = int(rng.integers(0, min(most - length, 7) + 1))
    ends, stride = int(rng.choice([STOP, PAD, CROSS, CROSS])), int(rng.choice([1, 1, 2, 3, 50]))
    return WindowTable(length, burn_in, stride, ends, int(rng.choice([0, 0, 1, 3])))


_DTYPES = {name: np.bool_ if name in ("is_first", "mask") else np.int64 for name in Found._fields}


def allocate(form: WindowTable, n: int) -> tuple[dict[str, Any], DrawnWindows]:
    n_rows = form.burn_in + form.length
    shapes: dict[str, tuple[int, ...]] = {
        "identity": (n,),
        "observed": (form.n_older + n_rows + 1, n),
        "steps": (n_rows, n),
        "initial": (n,),
        "is_first": (n_rows + 1, n),
        "mask": (n_rows, n),
        "scratch": (n,),
    }
    dtypes = {**_DTYPES, "scratch": np.int64}
    arrays = {name: cuda.library().empty(shapes[name], dtypes[name]) for name in shapes}
    return arrays, DrawnWindows(**arrays)


def assert_found(arrays: dict[str, Any], expected: list[Found]) -> None:
    for name in Found._fields:
        values = [getattr(each, name) for each in expected]
        assert_bits(name, arrays[name], np.ascontiguousarray(np.array(values, _DTYPES[name]).T))


def draw_evenly(rng: np.random.Generator) -> None:
    """Rings in which much can be sampled: two minibatches, one after the other."""
    chances = tuple(rng.choice([0, 0.1, 0.4], 3).tolist())
    ring = Ring(rng, 1, chances)
    episodes = Episodes(ring, some_form(rng, ring))
    columns, numbers = range(ring.width), range(episodes.first, episodes.stop)
    if any(episodes.find(number, column) for number in numbers for column in columns):
        _draw_and_compare(episodes, rng, int(rng.choice([1, 5, 33])), n_draws=2)


def draw_nothing(rng: np.random.Generator) -> None:
    """A ring in which nothing can be sampled, after each step was tried."""
    ring = Ring(rng, 1, shape=(5, 2), only=[])
    _draw_and_compare(Episodes(ring, some_form(rng, ring)), rng, 2, n_draws=1)


def _draw_and_compare(
    episodes: Episodes, rng: np.random.Generator, n: int, *, n_draws: int
) -> None:
    ring, form, seed = episodes.ring, episodes.form, some_seed(rng)
    arrays, out = allocate(form, n)
    state, windows = ring.make_state(seed), SampledWindows(ring.on_device, form)
    for number in range(seed.number, seed.number + n_draws):
        draw_windows(windows, state, out)
        drawn = [episodes.draw(seed._replace(number=number), item) for item in range(n)]
        assert_found(arrays, [each or episodes.nothing() for each in drawn])
        assert state.read_number() == number + 1, "number: differs from the reference"


def gather_rows(rng: np.random.Generator) -> None:
    """Frames and rows of several leaves, as many of each as codes name, and some from beside."""
    n_columns, n_steps = int(rng.integers(1, 5)), int(rng.integers(1, 12))
    leaves, films = [], []
    for _ in range(int(rng.integers(1, 5))):
        codes = rng.integers(0, n_columns * n_steps, int(rng.integers(1, 25)))
        backs = rng.integers(0, 9, len(codes)) * (rng.random(len(codes)) < 0.4)
        picked = codes + (backs << BACK_BITS)
        picked[rng.random(len(codes)) < 0.2] = -1 - rng.integers(0, 3)
        film = Film(rng, n_columns, n_steps, picked)
        source = film.to_device()
        output = np.full((len(codes) + 2, *film.frames.shape[1:]), 7, film.frames.dtype)
        films.append((film, output, place(output, film.out_offset)))
        leaves.append(
            WindowSource(source, source.beside, cuda.to_device(picked), films[-1][2][:-2])
        )
    WindowGather(leaves).run()
    for film, output, written in films:
        for number, code in enumerate(film.picked.tolist()):
            output[number] = _coded(film, code)
        assert_bits("windows", written, output)


def _coded(film: Film, code: int) -> npt.NDArray[Any]:
    """Return the frame that a code names."""
    if code < 0:
        return film.beside[-1 - code]
    row, back = code % (1 << BACK_BITS), code >> BACK_BITS
    stack = film.stack_at(row)
    return stack[-1 - min(back, film.stack - 1)] if film.is_stacked else stack


# By priority


def _some_episodes(rng: np.random.Generator) -> tuple[Episodes, npt.NDArray[np.int64]]:
    """Return a ring's windows, and priorities of its places: above 0 where a window can be drawn.

    Returns:
        The windows, and int64 [n_places].
    """
    chances, shape = tuple(rng.choice([0, 0.1, 0.4], 3).tolist()), None
    if rng.random() < 0.5:  # over whose places there are up to six levels of sums
        shape = int(rng.choice([500, 10_000, 210_000])), 5
    ring = Ring(rng, 1, chances, shape=shape)
    episodes = Episodes(ring, some_form(rng, ring))
    leaves = np.zeros(ring.n_rows * ring.width, np.int64)
    for number in range(episodes.first, episodes.stop):
        for column in range(ring.width):
            if episodes.find(number, column) is not None:
                place = episodes.place(number, column)
                leaves[place] = rng.integers(1, 2 ** int(rng.choice([3, 24, 40])))
    return episodes, leaves


def draw_shares(rng: np.random.Generator) -> None:
    """Draws by priority, of which some have nothing to draw from."""
    episodes, leaves = _some_episodes(rng)
    ring, form, seed = episodes.ring, episodes.form, some_seed(rng)
    leaves *= int(rng.random() < 0.9)
    tree, n = Tree(leaves, 0), int(rng.choice([1, 7, 60]))
    arrays, out = allocate(form, n)
    state, windows = ring.make_state(seed), SampledWindows(ring.on_device, form)
    draw_windows_by_priority(windows, state, tree.on_device, out)
    assert state.read_number() == seed.number + 1, "number: differs from the reference"
    total, below, expected, drawn = int(leaves.sum()), np.cumsum(leaves), [], []
    for item in range(n):
        begin, end = item * total // n, (item + 1) * total // n
        target = begin + draw_below(seed, item, 0, max(1, end - begin))
        leaf = int(np.searchsorted(below, target, side="right"))
        if total == 0:
            leaf = episodes.place(episodes.first, 0)
        age = (leaf // ring.width - episodes.first) % ring.n_rows
        found = episodes.find(episodes.first + age, leaf % ring.width)
        expected.append(found or episodes.nothing())
        drawn.append(0 if found is None else leaves[leaf])
    assert_found(arrays, expected)
    assert_bits("priorities drawn", arrays["scratch"], np.array(drawn, np.int64))
    tree.assert_leaves(leaves)


def refresh_leaves(rng: np.random.Generator) -> None:
    """Windows that can be drawn from now on, no longer, and as before."""
    episodes, there = _some_episodes(rng)
    ring = episodes.ring
    leaves = np.where(rng.random(len(there)) < 0.5, 0, there)
    leaves[rng.random(len(leaves)) < 0.2] = 9
    tree, number = Tree(leaves, pack(episodes.stop, 77)), 77
    begin = int(rng.integers(episodes.first, episodes.stop))
    n_steps = int(rng.integers(1, episodes.stop - begin + 1))
    windows = SampledWindows(ring.on_device, episodes.form)
    refresh_windows(windows, ring.make_state(Seed(1, 2, 3)), tree.on_device, begin, n_steps)
    for step in range(begin, begin + n_steps):
        for column in range(ring.width):
            place = episodes.place(step, column)
            leaves[place] = (leaves[place] or number) if there[place] else 0
    tree.assert_leaves(leaves)


def update_leaves(rng: np.random.Generator) -> None:
    """Errors of some windows, also of ones that are gone: near float64, with exact sums."""
    episodes, leaves = _some_episodes(rng)
    ring = episodes.ring
    tree = Tree(leaves, 0)
    most = (episodes.stop + 2 - max(0, episodes.first - 2)) * ring.width
    picked = rng.permutation(most)[: int(rng.integers(1, min(most, 40) + 1))]
    identity = picked + max(0, episodes.first - 2) * ring.width
    places = identity % (ring.n_rows * ring.width)
    identity = identity[np.unique(places, return_index=True)[1]]  # none shares its place
    n_rows, n = int(rng.integers(1, 9)), len(identity)
    error = rng.standard_normal((n_rows, n)).astype(np.float32)
    mask = rng.random((n_rows, n)) < 0.7
    error[rng.random((n_rows, n)) < 0.05] = rng.choice(np.array([np.nan, np.inf], np.float32))
    alpha, share = np.float32(rng.choice([0.6, 1])), np.float32(rng.choice([0, 0.9, 1]))
    update_windows(
        SampledWindows(ring.on_device, episodes.form),
        ring.make_state(Seed(1, 2, 3)),
        tree.on_device,
        ErrorFormula(alpha, np.float32(1e-3), share),
        index=cuda.to_device(identity),
        error=cuda.to_device(error),
        mask=cuda.to_device(mask),
    )
    found = cuda.to_host(tree.sums)[: len(leaves)].copy()
    for at, number in enumerate(identity.tolist()):
        place = number % (ring.n_rows * ring.width)
        is_there = episodes.first <= number // ring.width < episodes.stop and leaves[place] > 0
        sizes = np.abs(error[mask[:, at], at].astype(np.float64))
        if is_there and len(sizes) and np.isfinite(sizes).all():
            mixed = sizes.mean() + float(share) * (sizes.max() - sizes.mean())
            expected = (mixed + 1e-3) ** float(alpha) * ONE
            # Some roundings of float32, and those of a device's power function.
            assert abs(found[place] - expected) <= 2.0**-19 * expected + 1, "priority: is off"
            leaves[place] = found[place]
    tree.assert_leaves(leaves)

"""PrioritizedReplayBuffer: priorities, draws and weights, held against exact arithmetic."""

import copy
import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from parllel import Array, cuda
from parllel.cuda import launches
from parllel.kernels import priorities as kernel
from parllel.kernels.addresses import load_int64
from parllel.kernels.philox import Key, Words, draw_below, philox
from parllel.kernels.sum_tree import (
    FAN_OUT,
    ONE,
    SumTree,
    change_leaf,
    find_leaf,
    find_limit,
    lay_out,
    lower_smallest,
    pack_largest,
    read_smallest,
    read_total,
    to_number,
    unpack_largest,
)
from parllel.kernels.targets import Axes, DeviceEntry, find_entries, launch_plainly
from parllel.kernels.transitions import BETA, SMALLEST, STATE_NUMBERS
from parllel.ops.priorities import NO_UPDATE
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree import path_text
from profiles import fewer_examples
from schedules import each_schedule
from step_list import Chances, Model, Shape, chances, make_tree, read, shapes

OFTEN = Chances()


def make_model(
    shape: Shape,
    chances: Chances = OFTEN,
    *,
    seed: int,
    storage: str = "local",
    **settings: Any,
) -> Model:
    kind = PrioritizedReplayBuffer
    return Model(shape, chances, seed=seed, storage=storage, kind=kind, **settings)


def leaves_of(replay: Any) -> list[int]:
    """Return the number of each place of the ring, after a check of all sums above."""
    offsets = lay_out(replay.full_size * replay.batch_B)
    sums = replay.priorities["sums"].to_ndarray()
    levels = [sums[begin:end] for begin, end in itertools.pairwise(offsets)]
    for below, above in itertools.pairwise(levels):
        expected = below.reshape(-1, FAN_OUT).sum(axis=1)
        assert above[: len(expected)].tolist() == expected.tolist()
        assert not above[len(expected) :].any()
    return levels[0][: replay.full_size * replay.batch_B].tolist()


# The tree of sums


class Sums:
    """A tree of sums in host memory."""

    def __init__(self, n_leaves: int) -> None:
        offsets = lay_out(n_leaves)
        self.offsets, self.sums = offsets, np.zeros(offsets[-1], np.int64)
        self.largest = np.full(1, NO_UPDATE)
        addresses = self.sums.ctypes.data, offsets.ctypes.data
        self.tree = SumTree(*addresses, len(offsets) - 1, self.largest.ctypes.data)


@fewer_examples(2)
@given(
    n_leaves=st.sampled_from((1, 2, 16, 17, 256, 257, 300)),
    changes=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 2**40)), max_size=30),
)
def test_sums_are_exact_and_each_share_leads_to_its_leaf(
    n_leaves: int, changes: list[tuple[int, int]]
) -> None:
    sums, numbers = Sums(n_leaves), [0] * n_leaves
    for leaf, number in changes:
        change_leaf(sums.tree, leaf % n_leaves, number)
        numbers[leaf % n_leaves] = number
    assert read_total(sums.tree) == sum(numbers)
    assert sums.sums[:n_leaves].tolist() == numbers
    end = 0
    for leaf, number in enumerate(numbers):
        begin, end = end, end + number
        if number:
            assert find_leaf(sums.tree, begin) == find_leaf(sums.tree, end - 1) == leaf


@pytest.mark.parametrize("n_leaves", [1, 16, 17, 4096, 10**6])
def test_a_level_has_a_sixteenth_of_the_one_below(n_leaves: int) -> None:
    offsets = lay_out(n_leaves)
    sizes = np.diff(offsets)
    assert sizes[0] - FAN_OUT < n_leaves <= sizes[0]
    assert sizes[-1] == 1
    for below, above in itertools.pairwise(sizes[:-1]):
        assert above - FAN_OUT < below / FAN_OUT <= above


@given(priority=st.floats(width=32, min_value=0))
@example(priority=float("inf"))
@example(priority=0.0)
@example(priority=1.0)
def test_a_priority_is_rounded_down_between_one_and_the_limit(priority: float) -> None:
    limit = find_limit(10**6)
    with np.errstate(over="ignore"):
        number = to_number(np.float32(priority), limit)
    if priority * ONE < float(limit):
        assert number == max(1, int(priority * ONE))
    else:
        assert number == int(limit)
    assert number * 10**6 < 2**62


# Priorities


class Expected:
    """Priorities as the paper has them, in plain Python."""

    def __init__(self, alpha: float, epsilon: float) -> None:
        self.alpha, self.epsilon = alpha, epsilon
        self.largest, self.period = 1.0, 0
        self.by_index: dict[int, float] = {}

    def follow(self, model: Model) -> None:
        """Take up the transitions that can be sampled now; forget the others."""
        self.by_index = {
            index: self.by_index.get(index, self.largest) for index in model.whole_transitions()
        }

    def update(self, indices: list[int], errors: list[float], *, stop: int) -> None:
        """Give new priorities; `stop` is the number of steps that were written."""
        for index, error in zip(indices, errors, strict=True):
            if index in self.by_index:
                self.by_index[index] = (abs(error) + self.epsilon) ** self.alpha
                before = self.largest if self.period == stop else 0.0
                self.largest, self.period = max(before, self.by_index[index]), stop

    def check(self, model: Model) -> None:
        """Compare, within the bound of a float32's power and of the rounding down."""
        leaves, width = leaves_of(model.replay), model.shape.B
        found = {}
        for index in self.by_index:
            place = index // width % model.replay.full_size * width + index % width
            found[index], leaves[place] = leaves[place] / ONE, 0
        assert not any(leaves)  # what can't be sampled has no priority
        for index, priority in self.by_index.items():
            assert found[index] == pytest.approx(priority, rel=2e-6, abs=1 / ONE)


@fewer_examples(2)
@given(shape=shapes, chances=chances, seed=st.integers(0, 99), alpha=st.sampled_from((0, 0.6, 1)))
def test_what_can_be_sampled_has_its_priority_and_nothing_else_any(
    shape: Shape, chances: Chances, seed: int, alpha: float
) -> None:
    model = make_model(shape, chances, seed=seed, alpha=alpha, epsilon=0.125)
    expected = Expected(alpha, 0.125)
    for _ in range(3 * shape.n_windows):
        if model.rng.integers(10) < chances.reset:
            model.reset()
            expected.follow(model)
            expected.check(model)
        model.write_batch()
        expected.follow(model)
        expected.check(model)
        stop = len(model.steps[0]) * shape.B
        indices = model.rng.integers(max(0, stop - 40), stop, 6)  # some of them are not there
        errors = model.rng.standard_normal(6).astype(np.float32) * 10
        model.replay.update_priorities(indices, errors)
        expected.update(indices.tolist(), errors.tolist(), stop=len(model.steps[0]))
        expected.check(model)
        if model.transitions():
            minibatch = model.replay.sample(20)
            assert read(minibatch, model.frames).items() <= model.transitions().items()


def test_steps_that_are_being_overwritten_have_no_priority() -> None:
    model = make_model(Shape(T=2, n_windows=4, n_steps=2), seed=1)
    for _ in range(5):
        model.write_batch()
    model.replay.begin_batch()
    model.first = 10 + 2 - 8 + 1
    expected = Expected(0.6, 1e-6)
    expected.follow(model)
    expected.check(model)


def test_new_transitions_have_the_largest_priority_since_the_last_batch() -> None:
    model = make_model(Shape(n_windows=2), seed=2, alpha=1.0, epsilon=0.0)
    model.write_batch()
    index = model.replay.sample(1)["index"]
    for error in (20.0, 2.0):
        model.replay.update_priorities(index, torch.tensor([error]))
    assert max(leaves_of(model.replay)) == 2 * ONE
    model.write_batch()
    assert max(leaves_of(model.replay)) == 20 * ONE
    index = np.array(list(model.transitions()))
    model.replay.update_priorities(index, np.full(len(index), 3, np.float32))
    for _ in range(3):  # of which the latter two come without an update before them
        model.write_batch()
        assert max(leaves_of(model.replay)) == 3 * ONE


def test_of_two_errors_for_one_transition_the_later_counts() -> None:
    model = make_model(Shape(), seed=3, alpha=1.0, epsilon=0.0)
    model.write_batch()
    index = model.replay.sample(1)["index"].repeat(2)
    model.replay.update_priorities(index, torch.tensor([3.0, -5.0]))
    assert sorted(leaves_of(model.replay))[-1] == 5 * ONE


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("error", [np.nan, np.inf, -np.inf])
def test_an_error_that_is_no_number_changes_nothing(
    cuda_device: torch.device, caplog: pytest.LogCaptureFixture, error: float, storage: str
) -> None:
    model = make_model(Shape(n_windows=2), seed=4, alpha=1.0, epsilon=0.0, storage=storage)
    model.write_batch()
    index = np.repeat(model.replay.sample(1)["index"].cpu().numpy(), 2)
    model.replay.update_priorities(index, np.float32([3, error]))
    model.replay.update_priorities(index, np.float32([error, error]))
    leaves = leaves_of(model.replay)
    assert sorted({*leaves}) == [0, ONE, 3 * ONE]
    model.write_batch()
    assert max(leaves_of(model.replay)) == 3 * ONE
    told = [] if storage == "device" else ["update_priorities: 1 of 2 errors are NaN or infinite"]
    assert [record.message.partition(",")[0] for record in caplog.records] == told


@given(
    periods=st.lists(st.tuples(st.integers(0, 2**33 - 1), st.floats(0, width=32)), min_size=1),
    n_leaves=st.sampled_from((1, 2, 10**6)),
)
def test_the_largest_number_is_that_of_the_latest_period(
    periods: list[tuple[int, float]], n_leaves: int
) -> None:
    limit = find_limit(n_leaves)
    with np.errstate(over="ignore"):
        numbers = [(period, to_number(np.float32(each), limit)) for period, each in periods]
    packed = max(pack_largest(*each) for each in numbers)
    assert unpack_largest(packed) == max(numbers)[1]
    assert packed < 2**63


@given(
    periods=st.lists(st.tuples(st.integers(0, 2**33 - 1), st.floats(0, width=32)), min_size=1),
    n_leaves=st.sampled_from((1, 2, 10**6)),
)
def test_the_smallest_number_is_that_of_the_latest_period(
    periods: list[tuple[int, float]], n_leaves: int
) -> None:
    smallest, limit = np.zeros(1, np.int64), find_limit(n_leaves)
    with np.errstate(over="ignore"):
        numbers = [(period, to_number(np.float32(each), limit)) for period, each in periods]
    for each in numbers:
        lower_smallest(smallest.ctypes.data, *each)
    latest = max(period for period, _ in numbers)
    expected = min(number for period, number in numbers if period == latest)
    assert read_smallest(smallest.ctypes.data) == expected


def test_nothing_is_the_smallest_number_of_all() -> None:
    smallest = np.zeros(1, np.int64)
    address = smallest.ctypes.data
    for number in (5, 0, 7):
        lower_smallest(address, 3, number)
    assert read_smallest(address) == 0
    lower_smallest(address, 4, 7)
    assert read_smallest(address) == 7


# Draws


def place_of(model: Model, index: int) -> int:
    number, column = divmod(index, model.shape.B)
    return number % model.replay.full_size * model.shape.B + column


def filled_model(seed: int, **settings: Any) -> Model:
    """Return a model whose priorities all differ."""
    model = make_model(Shape(T=5, B=3, n_steps=2), seed=seed, **settings)
    for _ in range(4):
        model.write_batch()
    indices = np.array(list(model.transitions()))
    model.replay.update_priorities(indices, np.arange(1, len(indices) + 1, dtype=np.float32))
    return model


def test_draws_are_those_of_exact_arithmetic() -> None:
    model, n = filled_model(5), 64
    replay = model.replay
    leaves = leaves_of(replay)
    ends = list(itertools.accumulate(leaves))
    for _ in range(3):
        number, key = replay._n_drawn, Key(*replay._key)
        places = [place_of(model, index) for index in replay.sample(n)["index"].tolist()]
        for item, place in enumerate(places):
            begin, end = item * ends[-1] // n, (item + 1) * ends[-1] // n
            words = philox(Words(item, 0, number, 0), key)
            target = begin + draw_below(words, end - begin)
            assert place == next(leaf for leaf, limit in enumerate(ends) if target < limit)


def test_transitions_come_in_proportion_to_their_priorities() -> None:
    model, n = filled_model(6), 100_000
    leaves = leaves_of(model.replay)
    counts = Counter(place_of(model, index) for index in model.replay.sample(n)["index"].tolist())
    for place, number in enumerate(leaves):
        # Strata leave at most two of them to chance, for each priority.
        assert abs(counts[place] - n * number / sum(leaves)) <= 2


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_undo_what_priorities_do(beta: float) -> None:
    model = filled_model(7, beta=beta)
    leaves = leaves_of(model.replay)
    minibatch = model.replay.sample(50)
    chosen = [leaves[place_of(model, index)] for index in minibatch["index"].tolist()]
    n = len(model.transitions())
    weights = [(n * number / sum(leaves)) ** -beta for number in chosen]
    expected = [weight / max(weights) for weight in weights]
    assert minibatch["weight"].tolist() == pytest.approx(expected, rel=1e-6)
    assert minibatch["weight"].dtype == torch.float32
    assert minibatch["weight"].max() == 1


def test_beta_can_be_changed_in_training() -> None:
    model = filled_model(8, beta=1.0)
    assert model.replay.sample(9)["weight"].min() < 1
    model.replay.beta = 0.0
    assert model.replay.sample(9)["weight"].tolist() == [1.0] * 9


def test_beta_waits_for_minibatches_that_are_being_drawn() -> None:
    model = filled_model(8, beta=1.0)
    found = []

    class Drawing:
        def settle(self) -> None:
            found.append(model.replay.beta)

    watcher = Drawing()
    model.replay.watchers.add(watcher)
    model.replay.beta = np.float32(0.5)
    assert found == [1.0]
    assert model.replay.beta == 0.5


def test_without_alpha_all_come_equally_often() -> None:
    model = filled_model(9, alpha=0.0)
    assert len({*leaves_of(model.replay)} - {0}) == 1


def test_a_closed_buffer_is_not_used() -> None:
    """Its sums are gone, and kernels know only where they were."""
    model = filled_model(10)
    minibatch = model.replay.sample(3)
    model.replay.close()
    with pytest.raises(RuntimeError, match="replay: the buffer is closed"):
        model.replay.sample(3)
    with pytest.raises(RuntimeError, match="replay: the buffer is closed"):
        model.replay.update_priorities(minibatch["index"], minibatch["reward"])


def test_nothing_to_sample_is_an_error() -> None:
    model = make_model(Shape(has_valid=True), Chances(invalid=10), seed=0)
    model.write_batch()
    with pytest.raises(RuntimeError, match="replay: no transition can be sampled"):
        model.replay.sample(3)


# Refusals


@pytest.mark.parametrize("name", ["alpha", "beta", "epsilon"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    for number in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{name}: got {number}, expected a number of 0"):
            make_model(Shape(), seed=0, **{name: number})
    with pytest.raises(ValueError, match="beta: got -1, expected a number of 0"):
        make_model(Shape(), seed=0).replay.beta = -1


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (np.zeros(2, np.int64), np.zeros(3, np.float32), r"index \(2,\) and error \(3,\)"),
        (np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32), "expected vectors"),
        (np.zeros(2, np.int32), np.zeros(2, np.float32), "index int32 and error float32"),
        (np.zeros(2, np.int64), np.zeros(2), "index int64 and error float64"),
    ],
)
def test_updates_that_do_not_fit_are_refused(index: Any, error: Any, message: str) -> None:
    model = make_model(Shape(), seed=0)
    with pytest.raises(ValueError, match=message):
        model.replay.update_priorities(index, error)


def test_a_branch_that_is_called_weight_is_refused() -> None:
    tree = make_tree(Shape())
    tree["weight"] = Array((3, 2), np.float32, full_size=9)
    with pytest.raises(ValueError, match=r"minibatches have branches \['weight'\] of their own"):
        PrioritizedReplayBuffer(tree, rng=np.random.default_rng(0))


@pytest.mark.parametrize("storage", ["local", "device"])
def test_an_update_of_nothing_does_nothing(cuda_device: torch.device, storage: str) -> None:
    model = make_model(Shape(), seed=0, storage=storage)
    model.replay.update_priorities(np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert not any(leaves_of(model.replay))


def test_errors_may_come_with_gaps_and_gradients() -> None:
    model = make_model(Shape(), seed=0, alpha=1.0, epsilon=0.0)
    model.write_batch()
    indices = torch.arange(6)
    errors = torch.arange(12.0, requires_grad=True)[::2]
    model.replay.update_priorities(indices, errors)
    expected = [max(1, 2 * number * ONE) for number in range(6)]
    found = [leaves_of(model.replay)[place_of(model, index)] for index in model.transitions()]
    assert found == [expected[index] for index in model.transitions()]


# On a device


def play(storage: str) -> list[Any]:
    """Return minibatches and priorities, as lists, with updates between them."""
    shape = Shape(T=3, B=2, n_windows=3, n_steps=2, n_final_obs=5, has_valid=True)
    chances = Chances(invalid=1)
    model = make_model(shape, chances, seed=0, storage=storage, alpha=1.0, beta=1.0)
    results: list[Any] = []
    for number in range(7):
        if number == 4:
            model.reset()
        model.write_batch()
        if len(model.replay) < 2 * shape.B:
            continue
        minibatch = model.replay.sample(5)
        index = minibatch["index"].tolist()
        results.append({path: leaf.tolist() for path, leaf in leaves(minibatch).items()})
        errors = {number: np.float32(number % 7) for number in index}  # one for each
        model.replay.update_priorities(np.array(index), np.array([errors[i] for i in index]))
        results.append(model.replay.priorities["sums"].to_ndarray().tolist())
    return results


@pytest.mark.parametrize("storage", ["device", "managed"])
def test_every_memory_gives_the_same_minibatches(cuda_device: torch.device, storage: str) -> None:
    expected = play("local")
    assert len(expected) > 8
    assert play(storage) == expected


@each_schedule
def test_minibatches_updates_and_new_steps_take_few_launches(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = make_model(Shape(n_windows=2), seed=0, storage="device")
        model.write_batch()
        model.write_batch()
        model.replay.sample(7)  # allocates the outputs
        error = cuda.to_device(np.ones(7, np.float32))
        index = model.replay._outputs.tree["index"]
        before, n_before = copy.copy(cuda.counters), len(simulation.launches)
        model.replay.sample(7)
        model.replay.update_priorities(index, error)
        assert cuda.counters.since(before) == type(before)(launches=4)
        model.replay.begin_batch()
        model.tree.rotate()
        model.replay.end_batch()
        assert [launch.name for launch in simulation.launches[n_before:]] == [
            "draw_by_priority",
            "weigh_priorities",
            "frames",
            "update_priorities",
            "refresh_priorities",  # what is being overwritten
            "rows",  # of the rotation
            "refresh_priorities",  # what was written
        ]


@pytest.mark.parametrize("n_items", [1, 7, 64])
def test_a_weight_takes_two_numbers_whatever_the_minibatch(n_items: int) -> None:
    """On a grid of 12 threads, each of which loads the smallest one, too."""
    drawn = np.random.default_rng(0).integers(1, 2**24, n_items) << 9
    state, (weights, expected) = np.zeros(STATE_NUMBERS, np.int64), np.zeros((2, n_items), "f4")
    state.view(np.float32)[BETA // 4] = 0.5
    address, n_loads = state.ctypes.data, Counter[str]()
    for priority in drawn.tolist():
        lower_smallest(address + SMALLEST, 2, priority)

    def load(address: int) -> int:
        n_loads["int64"] += 1
        return load_int64(address)

    arguments = drawn.ctypes.data, n_items, address
    launch_plainly(
        kernel.WEIGH,
        [*arguments, weights.ctypes.data],
        grid=Axes(3, 1),
        block=Axes(4, 1),
        names={"load_int64": load},
    )
    kernel.compiled("weigh_priorities")(*arguments, expected.ctypes.data)
    assert weights.tolist() == expected.tolist()
    assert max(weights) == 1
    assert n_loads["int64"] == 12 + n_items


@pytest.mark.long
def test_ten_million_priorities_are_updated_by_one_launch() -> None:
    """And the device's sums are those of the twin, bit for bit."""
    shape, found = Shape(T=5_000, B=2_000, n_windows=1), []
    rng = np.random.default_rng(0)
    index, error = rng.permutation(10**7)[:1024], rng.random(1024).astype(np.float32)
    for storage in ("local", "device"):
        with simulated_cuda("lazy") as simulation:
            tree = make_tree(shape, storage=storage)
            replay = PrioritizedReplayBuffer(tree, rng=np.random.default_rng(0), alpha=1.0)
            replay.restart()
            replay.begin_batch()
            tree.rotate()
            replay.end_batch()
            convert = cuda.to_device if storage == "device" else np.asarray
            given = convert(index), convert(error)
            before, n_before = copy.copy(cuda.counters), len(simulation.launches)
            replay.update_priorities(*given)
            n_launches = len(simulation.launches) - n_before
            assert n_launches == (storage == "device")
            assert cuda.counters.since(before) == type(before)(launches=n_launches)
            found.append(replay.priorities["sums"].to_ndarray().copy())
            replay.close()
            tree.close()
    ours, twins = found
    assert lay_out(10**7)[1] == 10**7
    np.testing.assert_array_equal(ours, twins)
    assert len(np.unique(ours[: 10**7])) > 1000


def test_nothing_to_sample_on_a_device_shows_as_nan(cuda_device: torch.device) -> None:
    model = make_model(Shape(has_valid=True), Chances(invalid=10), seed=0, storage="device")
    model.write_batch()
    minibatch = model.replay.sample(3)
    assert torch.isnan(minibatch["n_step_return"]).all()
    assert torch.isnan(minibatch["n_step_discount"]).all()


@each_schedule
def test_nothing_is_left_on_the_device(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = make_model(Shape(), seed=0, storage="device")
        model.write_batch()
        assert model.replay.describe().nbytes < simulation.used_nbytes
        model.replay.sample(3)
        model.replay.close()
        model.tree.close()
        del model
        simulation.assert_no_leaks()


def test_closing_gives_the_sums_back() -> None:
    with simulated_cuda("lazy") as simulation:
        model = make_model(Shape(T=100, B=10), seed=0, storage="device")
        nbytes = model.replay.priorities.describe().nbytes
        assert nbytes > 8 * 3 * 100 * 10
        before = simulation.used_nbytes
        ReplayBuffer.close(model.replay)
        middle = simulation.used_nbytes
        model.replay.close()
        assert before - middle < nbytes
        assert middle - simulation.used_nbytes >= nbytes


# The kernels on a grid


def run_on_grid(entry: DeviceEntry, grid: int, block: int) -> Any:
    def run(*arguments: Any) -> None:
        launch_plainly(entry, arguments, grid=Axes(grid, 1), block=Axes(block, 1))

    return run


@fewer_examples(8)
@given(grid=st.integers(1, 3), block=st.integers(1, 4), seed=st.integers(0, 9))
def test_a_grid_of_any_shape_gives_the_same(grid: int, block: int, seed: int) -> None:
    def play_on(compiled: Any) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            if compiled is not None:
                patch.setattr(kernel, "compiled", compiled)
            model = filled_model(seed, alpha=1.0, beta=1.0, epsilon=0.0)
            minibatch = model.replay.sample(7)
            rows = [leaf.tolist() for _, leaf in minibatch.walk()]
            return [rows, model.replay.priorities["sums"].to_ndarray().tolist()]

    entries = find_entries()
    assert play_on(lambda name: run_on_grid(entries[name], grid, block)) == play_on(None)


def test_threads_of_a_gpu_change_sums_one_after_the_other() -> None:
    text = launches.PTX.read_text()
    for name in ("refresh_priorities", "update_priorities"):
        entry = text.partition(f".entry {name}(")[2].partition(".visible")[0]
        assert re.search(r"atom\.global\.exch\.b64", entry)
        assert re.search(r"atom\.global\.add\.u64", entry)
        has_maximum = re.search(r"atom\.global\.max\.s64", entry) is not None
        assert has_maximum == (name == "update_priorities")


def test_the_memory_of_priorities_is_described() -> None:
    tree = make_tree(Shape())
    replay = PrioritizedReplayBuffer(tree, rng=np.random.default_rng(0))
    paths = [path_text(leaf.path) for leaf in replay.describe().leaves]
    assert paths[-2:] == ["replay.priorities.sums", "replay.priorities.largest"]
    assert isinstance(replay.priorities["sums"], Array)

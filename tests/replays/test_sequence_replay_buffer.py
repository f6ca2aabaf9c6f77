"""SequenceReplayBuffer: the windows of a ring, held against a plain list of steps."""

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parllel import Array, ArrayDict, cuda
from parllel.kernels.sum_tree import ONE
from parllel.replays import (
    Prefetcher,
    PrioritizedSequenceReplayBuffer,
    SequenceReplayBuffer,
)
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.torch.operators import ReplayDraw
from profiles import fewer_examples
from schedules import each_schedule
from step_list import Chances, Model, Shape, chances, make_tree, shapes
from window_list import Form, assert_is, forms, in_ring, make_kind, read_windows, windows_of

KINDS = (SequenceReplayBuffer, PrioritizedSequenceReplayBuffer)
ENDS = ("stop", "pad", "cross")


def make_model(
    shape: Shape, form: Form, *, seed: int, kind: Any = SequenceReplayBuffer, **settings: Any
) -> Model:
    often = Chances(terminated=1, truncated=1, invalid=1)
    return Model(shape, often, seed=seed, kind=make_kind(form, kind), **settings)


def filled_model(shape: Shape, form: Form, *, seed: int = 0, **settings: Any) -> Model:
    model = make_model(shape, form, seed=seed, **settings)
    for _ in range(shape.n_windows + 1):
        model.write_batch()
    return model


def assert_holds_the_list(model: Model, form: Form) -> None:
    """Draw so many that each window comes; each has to be the list's."""
    expected = windows_of(model, form)
    if not expected:
        with pytest.raises(RuntimeError, match=r"replay: (\d+ steps of each|no window of)"):
            model.replay.sample(4)
        return
    # 60 windows at most: one of them is missing with a probability below 60 * exp(-25).
    assert len(expected) <= 60
    found = read_windows(model.replay.sample(1500), model, form)
    assert found.keys() == expected.keys()
    for index, rows in expected.items():
        assert_is(found[index], rows, model)


@fewer_examples(4)
@given(
    case=st.tuples(shapes, forms).map(in_ring),
    chances=chances,
    seed=st.integers(0, 99),
    kind=st.sampled_from(KINDS),
)
def test_what_is_sampled_is_what_the_list_has(
    case: tuple[Shape, Form], chances: Chances, seed: int, kind: Any
) -> None:
    """By priority too: so what can be drawn, and nothing else, has a priority."""
    shape, form = case
    model = Model(shape, chances, seed=seed, kind=make_kind(form, kind))
    assert_holds_the_list(model, form)
    for _ in range(3 * shape.n_windows):
        if model.rng.integers(10) < chances.reset:
            model.reset()
        model.write_batch()
        assert_holds_the_list(model, form)


@pytest.mark.parametrize("end", ENDS)
def test_steps_that_are_being_overwritten_are_not_sampled(end: str) -> None:
    form = Form(length=2, burn_in=1, episode_end=end)
    model = filled_model(Shape(T=3, n_windows=4), form, seed=1)
    model.replay.begin_batch()
    model.first = len(model.steps[0]) + 3 - 12 + 1  # and the step behind which the batch ends
    assert_holds_the_list(model, form)


@pytest.mark.parametrize("end", ENDS)
def test_breaks_are_found_over_the_ends_of_integers_that_have_their_bits(end: str) -> None:
    form = Form(length=70, burn_in=9, stride=7, episode_end=end)
    shape = Shape(T=45, B=1, n_windows=5)  # 225 rows: three integers, and a half
    chances = Chances(terminated=0, truncated=0, reset=3)
    model = Model(shape, chances, seed=2, kind=make_kind(form))
    for number in range(9):
        if number % 3 == 2:
            model.reset()
        model.write_batch()
        if number > 1:
            assert_holds_the_list(model, form)


@pytest.mark.parametrize(("end", "stride"), [("stop", 3), ("pad", 3), ("cross", 3)])
def test_all_windows_come_equally_often(end: str, stride: int) -> None:
    form = Form(length=4, burn_in=2, stride=stride, episode_end=end)
    model = filled_model(Shape(T=8, B=4, n_windows=3), form)
    expected, n = windows_of(model, form), 60_000
    assert len(expected) > 10
    counts = Counter(model.replay.sample(n)["index"].tolist())
    mean = n / len(expected)
    chi_square = sum((counts[index] - mean) ** 2 / mean for index in expected)
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_with_a_stride_of_its_length_each_step_is_learned_from_once() -> None:
    form = Form(length=4, burn_in=3, stride=4, episode_end="cross")
    model = filled_model(Shape(T=4, B=1, n_windows=8), form)
    found = read_windows(model.replay.sample(1500), model, form)
    learned = np.concatenate(
        [each["observation.deep.number"][:-1][each["mask"]] for each in found.values()]
    )
    assert len(set(learned.tolist())) == len(learned) > 8


def test_stacks_are_a_view_of_frames_that_are_there_once() -> None:
    form = Form(length=5, burn_in=2)
    model = filled_model(Shape(T=8, n_windows=3, stack=4), form)
    stacks = model.replay.sample(3)["observation"]["camera"]
    assert stacks.shape == (8, 3, 4, 1)
    assert stacks.untyped_storage().nbytes() < stacks.nbytes
    images = stacks.flatten(0, 1)
    assert images.data_ptr() == stacks.data_ptr()
    assert (stacks[1:, :, :-1] == stacks[:-1, :, 1:]).all()


def make_recurrent_tree(n_rows: int, *, state: Any = None) -> ArrayDict:
    """Return a tree of an agent with a memory; its state before a step is that step's number."""
    full = {"full_size": n_rows}
    tree = ArrayDict(
        {
            "observation": Array((2, 3), np.float32, padding=1, **full),
            "action": Array((2, 3), np.int64, **full),
            "agent_info": {
                "value": Array((2, 3), np.float32, padding=1, **full),
                "rnn_state": {"h": Array((2, 3), np.float32, feature_shape=(4,), **full)},
            },
            "initial_rnn_state": {"h": Array((3,), np.float32, feature_shape=(4,))},
            "bootstrap_value": Array((3,), np.float32),
        }
    )
    for name, dtype in (("reward", np.float32), ("terminated", bool), ("truncated", bool)):
        tree[name] = Array((2, 3), dtype, **full)
    return tree


def test_a_window_has_the_state_of_its_first_step_and_no_other() -> None:
    tree = make_recurrent_tree(8)
    replay = SequenceReplayBuffer(
        tree, rng=np.random.default_rng(0), length=2, burn_in=2, episode_end="pad"
    )
    replay.restart()
    for batch in range(3):
        replay.begin_batch()
        tree.rotate()
        numbers = 2 * batch + np.arange(2)[:, None] + 100 * np.arange(3)
        tree["agent_info"]["rnn_state"]["h"][...] = numbers[..., None]
        tree["agent_info"]["value"][...] = numbers
        tree["terminated"][...] = numbers % 100 == 3
        replay.end_batch()
    windows = replay.sample(200)
    assert set(windows["agent_info"]) == {"value"}
    assert "bootstrap_value" not in windows
    state = windows["initial_rnn_state"]["h"]
    assert state.shape == (200, 4)
    number, column = windows["index"] // 3, windows["index"] % 3
    begin = torch.where(number < 4, 0, 4)  # of the episode: step 3 ended one
    first = torch.maximum(begin, number - 2)
    assert (state == (first + 100 * column)[:, None]).all()
    assert {0, 1, 2, 3} <= set(number.tolist())


# Priorities


def place_of(model: Model, index: int) -> int:
    number, column = divmod(index, model.shape.B)
    return number % (model.shape.T * model.shape.n_windows) * model.shape.B + column


def priority_of(model: Model, index: int) -> float:
    return int(model.replay.priorities["sums"].to_ndarray()[place_of(model, index)]) / ONE


def test_a_priority_mixes_the_largest_and_the_mean_error() -> None:
    form = Form(length=4, burn_in=2, episode_end="pad")
    model = filled_model(
        Shape(T=8, n_windows=3),
        form,
        kind=PrioritizedSequenceReplayBuffer,
        alpha=0.7,
        epsilon=0.01,
        max_share=0.8,
    )
    windows = model.replay.sample(16)
    mask = windows["mask"].numpy()
    assert 0 < mask[2:].sum() < mask[2:].size
    error = np.random.default_rng(0).standard_normal(mask.shape).astype(np.float32)
    error[~mask] = np.nan  # of no step to learn from
    model.replay.update_priorities(windows["index"], error, windows["mask"])
    last = {index: at for at, index in enumerate(windows["index"].tolist())}
    for index, at in last.items():
        sizes = abs(error[mask[:, at], at].astype(np.float64))
        mixed = 0.8 * sizes.max() + 0.2 * sizes.mean()
        assert math.isclose(priority_of(model, index), (mixed + 0.01) ** 0.7, rel_tol=1e-5)
    # The rows behind the burn-in are enough.
    model.replay.update_priorities(windows["index"], 2 * error[2:], windows["mask"][2:])
    at = last[index := next(iter(last))]
    sizes = 2 * abs(error[mask[:, at], at])
    mixed = 0.8 * sizes.max() + 0.2 * sizes.mean()
    assert math.isclose(priority_of(model, index), (mixed + 0.01) ** 0.7, rel_tol=1e-5)


def test_windows_come_in_proportion_to_their_priorities_and_weights_undo_it() -> None:
    form = Form(length=3, episode_end="cross")
    model = filled_model(
        Shape(T=5, n_windows=3),
        form,
        kind=PrioritizedSequenceReplayBuffer,
        alpha=1.0,
        beta=1.0,
        epsilon=0.0,
    )
    expected = sorted(windows_of(model, form))
    error = np.arange(1, len(expected) + 1, dtype=np.float32)[None]
    mask = np.ones((1, len(expected)), bool)
    model.replay.update_priorities(np.array(expected), error, mask)
    windows, n = model.replay.sample(20_000), 20_000
    counts = Counter(windows["index"].tolist())
    total = error.sum()
    for index, size in zip(expected, error[0].tolist(), strict=True):
        assert abs(counts[index] - n * size / total) <= 2  # draws are stratified
    weights = dict(zip(windows["index"].tolist(), windows["weight"].tolist(), strict=True))
    for index, size in zip(expected, error[0].tolist(), strict=True):
        assert math.isclose(weights[index], 1 / size, rel_tol=1e-6)


@pytest.mark.parametrize("storage", ["local", "device"])
def test_errors_that_are_no_numbers_or_do_not_count_change_nothing(
    storage: str, cuda_device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    form = Form(length=2, episode_end="cross")
    model = filled_model(
        Shape(T=5, n_windows=3), form, kind=PrioritizedSequenceReplayBuffer, storage=storage
    )
    before = np.array(model.replay.priorities["sums"].to_ndarray())
    index = np.array(sorted(windows_of(model, form))[:2])
    mask = np.array([[True, False], [True, False]])
    convert = cuda.to_device if storage == "device" else np.asarray
    for wrong in (np.nan, np.inf):
        error = np.array([[wrong, 7], [1, 7]], np.float32)
        model.replay.update_priorities(*map(convert, (index, error, mask)))
    assert (model.replay.priorities["sums"].to_ndarray() == before).all()
    told = [record for record in caplog.records if "NaN or infinite" in record.message]
    assert len(told) == (storage == "local")


# Every memory


def play(storage: str, kind: Any, stack: int, end: str) -> list[dict[str, list[Any]]]:
    """Return minibatches between batches and updates, as lists."""
    form = Form(length=4, burn_in=2, stride=2, episode_end=end)
    shape = Shape(T=5, n_windows=3, stack=stack, has_valid=True, n_final_obs=None)
    # Powers other than 1 may be rounded otherwise on a GPU.
    exact = {"alpha": 1.0, "beta": 1.0} if kind is PrioritizedSequenceReplayBuffer else {}
    model, found = make_model(shape, form, seed=0, kind=kind, storage=storage, **exact), []
    for number in range(6):
        if number == 4:
            model.reset()
        model.write_batch()
        if number > 1:
            minibatch = model.replay.sample(5)
            found.append({path: leaf.cpu().tolist() for path, leaf in leaves(minibatch).items()})
            if kind is PrioritizedSequenceReplayBuffer:
                error = minibatch["reward"].clone()
                arguments = minibatch["index"], error, minibatch["mask"]
                model.replay.update_priorities(*arguments)
    return found


@pytest.mark.parametrize("storage", ["device", "managed", "pinned"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stack", "end"), [(0, "stop"), (3, "pad"), (3, "cross")])
def test_every_memory_gives_the_same_minibatches(
    cuda_device: torch.device, storage: str, kind: Any, stack: int, end: str
) -> None:
    assert play(storage, kind, stack, end) == play("local", kind, stack, end)


@each_schedule
@pytest.mark.parametrize("kind", KINDS)
def test_a_minibatch_takes_two_launches_or_three_by_priority(
    schedule: str, seed: int, kind: Any
) -> None:
    form = Form(length=4, burn_in=2, episode_end="cross")
    with simulated_cuda(schedule, seed) as simulation:
        model = filled_model(Shape(T=8, n_windows=3, stack=3), form, kind=kind, storage="device")
        model.replay.sample(5)
        before, before_all = copy.copy(cuda.counters), copy.copy(simulation.counters)
        n_before = len(simulation.launches)
        model.replay.sample(5)
        counted = cuda.counters.since(before)
        expected = ["draw_windows", "gather_windows"]
        if kind is PrioritizedSequenceReplayBuffer:
            expected = ["draw_windows_by_priority", "weigh_priorities", "gather_windows"]
        assert [launch.name for launch in simulation.launches[n_before:]] == expected
        assert simulation.counters.since(before_all) == counted
        assert counted == type(counted)(launches=len(expected))


def test_nothing_to_sample_on_a_device_has_no_mask(cuda_device: torch.device) -> None:
    shape, form = Shape(has_valid=True), Form(length=3)
    for kind in KINDS:
        model = Model(
            shape, Chances(invalid=10), seed=0, storage="device", kind=make_kind(form, kind)
        )
        model.write_batch()
        windows = model.replay.sample(4)
        assert not windows["mask"].any()
        assert windows["index"].tolist() == [-1] * 4
        assert not windows["reward"].any()


# Saved, prefetched, compiled


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_opened", [False, True])
def test_a_buffer_goes_on_where_it_was_saved(tmp_path: Path, kind: Any, is_opened: bool) -> None:
    shape, form = Shape(T=5, n_windows=3, stack=3, has_state=True), Form(4, 2, 2, "pad")
    model = filled_model(shape, form, kind=kind)
    model.replay.sample(3)
    model.replay.save(tmp_path)
    expected = [leaf.clone() for _, leaf in model.replay.sample(6).walk()]
    if is_opened:
        other = kind.open(tmp_path)
    else:
        other = make_model(shape, form, seed=5, kind=kind).replay
        other.load(tmp_path)
    windows = other.sample(6)
    found = [leaf for _, leaf in windows.walk()]
    assert all(map(torch.equal, found, expected))
    seen, is_first = windows["observation"]["deep"]["number"], windows["is_first"]
    begins = torch.where(is_first.any(0), is_first.int().argmax(0), 0)  # the first real row
    numbers = seen.gather(0, begins[None])[0].float()
    assert (windows["initial_rnn_state"]["h"] == numbers[:, None]).all()
    with pytest.raises(ValueError, match="saved with"):
        make_model(shape, form._replace(episode_end="stop"), seed=5, kind=kind).replay.load(
            tmp_path
        )


@pytest.mark.parametrize("storage", ["local", "device"])
def test_a_prefetcher_has_the_same_windows(cuda_device: torch.device, storage: str) -> None:
    shape, form = Shape(T=5, n_windows=3, stack=3), Form(4, 2, 1, "pad")
    plain, ahead = (filled_model(shape, form) for _ in range(2))
    with Prefetcher(ahead.replay, 4, storage=storage) as prefetcher:
        for _ in range(3):
            found = [leaf.cpu() for _, leaf in prefetcher.next().walk()]
            cuda.synchronize()
            expected = [leaf for _, leaf in plain.replay.sample(4).walk()]
            assert all(map(torch.equal, found, expected))


def test_an_operator_of_torch_draws_the_same_windows() -> None:
    shape, form = Shape(T=5, n_windows=3, stack=3), Form(4, 2, 1, "pad")
    plain, other = (filled_model(shape, form) for _ in range(2))
    draw = ReplayDraw(other.replay, 4)
    for _ in range(2):
        expected = dict(plain.replay.sample(4).walk())
        found = dict(draw.sample().walk())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[path], expected[path]) for path in expected)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length: got 0, expected 1 or more"),
        ({"length": 2, "burn_in": -1}, "burn_in: got -1, expected 0"),
        ({"length": 2, "stride": 0}, "stride: got 0"),
        ({"length": 2, "episode_end": "wrap"}, "episode_end: got 'wrap', expected one of"),
        ({"length": 8}, r"burn_in \+ length \+ 1: got 9, expected 1 to 8"),
        ({"length": 2, "n_final_obs": 0}, "n_final_obs: got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceReplayBuffer(make_tree(Shape()), rng=np.random.default_rng(0), **settings)


@pytest.mark.parametrize("name", ["mask", "is_first", "index"])
def test_branches_of_minibatches_are_refused_in_the_tree(name: str) -> None:
    tree = make_tree(Shape())
    tree[name] = Array((3, 2), np.int64, full_size=9)
    with pytest.raises(ValueError, match="minibatches have branches"):
        SequenceReplayBuffer(tree, rng=np.random.default_rng(0), length=2)


INDEX, ERROR, MASK = np.zeros(2, np.int64), np.zeros((3, 2), np.float32), np.ones((3, 2), bool)


@pytest.mark.parametrize(
    ("index", "error", "mask", "message"),
    [
        (INDEX, ERROR.T, MASK.T, r"index \(2,\) and error \(2, 3\)"),
        (INDEX, ERROR[0], MASK[0], r"expected \(n,\) and \(rows, n\)"),
        (INDEX, ERROR, MASK[1:], r"mask \(2, 2\) and error \(3, 2\), expected the same"),
        (INDEX, ERROR.astype(float), MASK, "int64, float64, bool"),
        (INDEX, ERROR, MASK.astype(np.float32), "expected int64, float32 and bool"),
    ],
)
def test_updates_that_do_not_fit_are_refused(
    index: Any, error: Any, mask: Any, message: str
) -> None:
    tree = make_tree(Shape())
    replay = PrioritizedSequenceReplayBuffer(tree, rng=np.random.default_rng(0), length=2)
    with pytest.raises(ValueError, match=message):
        replay.update_priorities(index, error, mask)


def test_a_share_that_is_none_is_refused() -> None:
    tree = make_tree(Shape())
    with pytest.raises(ValueError, match=r"max_share: got 1\.5, expected a number in"):
        PrioritizedSequenceReplayBuffer(tree, rng=np.random.default_rng(0), length=2, max_share=1.5)

"""ReplayBuffer: the transitions of a ring, held against a plain list of steps."""

import copy
import functools
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation
from hypothesis import example, given
from hypothesis import strategies as st

from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.arrays.buffer import Buffer
from parllel.arrays.location import Location
from parllel.arrays.window import Window
from parllel.cages import SerialCage
from parllel.kernels import transitions
from parllel.kernels.targets import Axes, launch_plainly
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import Prefetcher, ReplayBuffer, SequenceReplayBuffer, final_obs
from parllel.replays.transition_memory import DRAWN
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.storages import allocate
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Clock
from profiles import fewer_examples
from schedules import each_schedule
from step_list import DISCOUNT, Chances, Model, Shape, chances, make_tree, read, shapes, show

OFTEN, SELDOM = Chances(), Chances(terminated=0, truncated=0)


def assert_holds_the_list(model: Model) -> None:
    """Draw so many that each transition comes; each has to be the list's."""
    expected = model.transitions()
    if not expected:
        with pytest.raises(RuntimeError, match=r"replay: (\d+ steps of each|no transition)"):
            model.replay.sample(4)
        return
    # 60 transitions at most: one of them is missing with a probability below 60 * exp(-25).
    assert len(expected) <= 60
    assert read(model.replay.sample(1500), model.frames) == expected


@fewer_examples(3)
@given(shape=shapes, chances=chances, seed=st.integers(0, 99))
@example(  # a reset gives more final observations than the table has room for
    shape=Shape(T=2, B=2, n_windows=4, n_final_obs=3, stack=4),
    chances=Chances(terminated=0, truncated=2, reset=2),
    seed=24,
)
@example(  # a table that grows while all of its slots are needed
    shape=Shape(T=4, B=3, n_windows=5, n_final_obs=None),
    chances=Chances(terminated=0, truncated=3),
    seed=0,
)
def test_what_is_sampled_is_what_the_list_has(shape: Shape, chances: Chances, seed: int) -> None:
    model = Model(shape, chances, seed=seed)
    assert_holds_the_list(model)
    for _ in range(3 * shape.n_windows):
        if model.rng.integers(10) < chances.reset:
            model.reset()
        model.write_batch()
        assert len(model.replay) == (len(model.steps[0]) - model.first) * shape.B
        assert_holds_the_list(model)


def test_wide_padding_changes_nothing() -> None:
    shape = Shape(T=3, padding=3, n_steps=2)
    model = Model(shape, Chances(), seed=0)
    for _ in range(8):
        model.write_batch()
        assert_holds_the_list(model)


def test_steps_that_are_being_overwritten_are_not_sampled() -> None:
    model = Model(Shape(T=2, n_windows=4, n_steps=2), Chances(), seed=1)
    for _ in range(5):
        model.write_batch()
    model.replay.begin_batch()
    model.first = 10 + 2 - 8 + 1  # steps 10 and 11 lie where 2 and 3 were, and step 4 behind them
    assert_holds_the_list(model)


def test_all_transitions_come_equally_often() -> None:
    model = Model(Shape(T=5, B=4, n_steps=3), Chances(), seed=2)
    for _ in range(4):
        model.write_batch()
    expected, n = model.transitions(), 200_000
    counts = Counter(model.replay.sample(n)["index"].tolist())
    mean = n / len(expected)
    chi_square = sum((counts[index] - mean) ** 2 / mean for index in expected)
    # Mean and standard deviation of chi-square are its degrees of freedom and the root of twice.
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("place", [77_777, 77_778])
def test_the_only_transition_of_a_large_ring_is_found(place: int) -> None:
    """Tries at random miss it, so all places are gone through, from any place of either parity."""
    shape = Shape(T=1000, B=200, n_windows=1, has_valid=True)
    tree = make_tree(shape)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    tree["valid"][divmod(place, shape.B)] = True
    replay.end_batch()
    assert replay.sample(64)["index"].tolist() == [place] * 64


def test_each_minibatch_is_another_one_and_the_same_for_the_same_generator() -> None:
    def draw() -> list[list[int]]:
        model = Model(Shape(T=5, B=4), Chances(), seed=3)
        model.write_batch()
        return [model.replay.sample(16)["index"].tolist() for _ in range(5)]

    assert len({*map(tuple, draw())}) == 5
    assert draw() == draw()


def test_a_minibatch_overwrites_the_one_before() -> None:
    model = Model(Shape(), Chances(), seed=4)
    model.write_batch()
    first = model.replay.sample(8)
    second = model.replay.sample(8)
    assert first["reward"].data_ptr() == second["reward"].data_ptr()
    assert model.replay.sample(9)["reward"].shape == (9,)


def test_branches_of_the_tree_are_those_of_the_first_step() -> None:
    model = Model(Shape(n_steps=3), Chances(terminated=0, truncated=0), seed=5)
    for _ in range(3):
        model.write_batch()
    minibatch = model.replay.sample(50)
    for index, reward in zip(minibatch["index"], minibatch["reward"], strict=True):
        assert reward == model.steps[index % 2][index // 2].reward
    assert "valid" not in minibatch
    assert minibatch["terminated"].dtype == minibatch["truncated"].dtype == torch.bool
    assert minibatch["n_step_return"].dtype == torch.float32


def test_a_branch_may_be_called_almost_as_the_next_observation() -> None:
    tree = changed(next_observation_mask=Array((3, 2), np.int32, full_size=9))
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    tree["next_observation_mask"][...] = np.arange(6).reshape(3, 2)
    replay.end_batch()
    minibatch = replay.sample(50)
    assert minibatch["next_observation_mask"].tolist() == minibatch["index"].tolist()


@pytest.mark.parametrize("storage", ["local", "device"])
@pytest.mark.parametrize("is_tree", [False, True])
def test_a_caller_may_reuse_the_array_of_a_final_observation(
    storage: str, is_tree: bool, cuda_device: torch.device
) -> None:
    seen = Array((3, 2), np.float32, feature_shape=(5,), padding=1, full_size=9)
    tree = changed(observation={"camera": seen} if is_tree else seen).to(storage)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    tree["truncated"][...] = True
    final = np.zeros(5, np.float32)
    for t in range(3):
        final[...] = t + 1
        replay.add_final_obs(t, {0: {"camera": final} if is_tree else final})
    replay.end_batch()
    minibatch = {path: leaf.cpu().numpy() for path, leaf in leaves(replay.sample(50)).items()}
    after = minibatch["next_observation.camera" if is_tree else "next_observation"]
    assert (after == minibatch["index"][:, None] // 2 + 1).all()
    assert {*minibatch["index"].tolist()} == {0, 2, 4}


@pytest.mark.parametrize("storage", ["local", "device"])
def test_observations_may_be_those_of_several_agents(
    storage: str, cuda_device: torch.device
) -> None:
    seen = Array((3, 2, 4), np.float32, feature_shape=(5,), padding=1, full_size=9)
    tree = changed(observation=seen).to(storage)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    assert replay.final_obs.bytes_per_slot == 4 * 5 * 4 + 8
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    tree["observation"][...] = np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    tree["terminated"][1, 0] = True
    replay.add_final_obs(1, {0: np.full((4, 5), -7.0)})
    replay.end_batch()
    minibatch = {path: leaf.cpu().numpy() for path, leaf in leaves(replay.sample(50)).items()}
    index = minibatch["index"]
    rows = 20 * index[:, None, None] + np.arange(20).reshape(4, 5)
    assert (minibatch["observation"] == rows).all()
    following = np.where((index == 2)[:, None, None], -7, rows + 40)
    is_inside = index < 4  # what follows the others was not written
    assert (minibatch["next_observation"] == following)[is_inside].all()
    assert {0, 1, 2, 3} <= {*index.tolist()}


def test_a_closed_buffer_is_not_used(tmp_path: Path) -> None:
    model = Model(Shape(), Chances(), seed=9)
    model.write_batch()
    outputs = model.replay.make_memory(3)
    model.replay.close()
    model.replay.close()
    for use in (
        functools.partial(model.replay.sample, 3),
        functools.partial(model.replay.sample_into, outputs),
        functools.partial(model.replay.save, tmp_path),
        functools.partial(model.replay.add_final_obs, 0, {}),
        model.replay.restart,
        model.replay.begin_batch,
    ):
        with pytest.raises(RuntimeError, match="replay: the buffer is closed; make a new one"):
            use()


def test_a_table_that_is_too_small_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(Shape(T=4, n_final_obs=1), Chances(terminated=9), seed=6)
    for _ in range(3):
        model.write_batch()
    assert [record.message.partition(" are too few")[0] for record in caplog.records] == [
        "replay: 1 final observations"
    ]
    assert re.search(r"early, \d+% of the ring is left \(\d+ of 12 steps\); raise n_", caplog.text)
    assert "raise n_final_obs (24 bytes each)" in caplog.text


def test_what_is_told_to_be_left_is_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(Shape(T=10, B=1, n_windows=3, n_final_obs=2), SELDOM, seed=6)
    model.replay.begin_batch()
    model.tree.rotate()
    for t in (1, 4, 8):
        model.tree["truncated"][t] = True
        model.replay.add_final_obs(t, {0: show(t)})
    assert len(caplog.records) == 1
    told = "oldest 2 steps of each environment were forgotten early, 23% of the ring is left (7 of"
    assert told in caplog.text
    model.replay.end_batch()
    assert len(model.replay) == 8  # and the step after the last episode


def test_a_step_that_terminated_is_its_own_next_observation_and_takes_no_slot() -> None:
    tree = make_tree(Shape(n_windows=1))
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0), n_final_obs=1)
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    for t in range(4):
        for column in range(2):
            tree["observation"][t, column] = show(2 * t + column)
    tree["terminated"][:, 0] = True
    tree["truncated"][1] = True  # of column 0 too, which counts as terminated
    replay.end_batch()
    minibatch = replay.sample(200)
    numbers = minibatch["next_observation"]["deep"]["number"].tolist()
    following = dict(zip(minibatch["index"].tolist(), numbers, strict=True))
    assert following == {0: 0, 2: 2, 4: 4, 1: 3, 5: 7}
    assert set(minibatch["n_step_discount"][minibatch["terminated"]].tolist()) == {0.0}


@pytest.mark.parametrize(("nbytes", "share"), [(1024, 1), (1025, 4)])
def test_a_table_grows_up_to_a_share_of_the_ring(
    caplog: pytest.LogCaptureFixture, nbytes: int, share: int
) -> None:
    shape = {"feature_shape": (nbytes,), "full_size": 300}
    tree = changed(observation=Array((3, 2), np.uint8, padding=1, **shape))
    for name in ("action", "reward", "terminated", "truncated"):
        leaf = tree[name]
        tree[name] = Array((3, 2), leaf.dtype, full_size=300)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    outputs = replay.make_memory(64)
    replay.restart()
    lengths = []
    for _ in range(250):
        replay.begin_batch()
        tree.rotate()
        tree["truncated"][...] = True
        for t in range(3):
            number = replay._stop + t
            tree["observation"][t] = 0
            final_obs = {each: np.full(nbytes, (2 * number + each) % 251) for each in range(2)}
            replay.add_final_obs(t, final_obs)
        replay.end_batch()
        replay.sample_into(outputs)
        found = outputs.tensors["next_observation"][:, 0].tolist()
        assert found == [index % 251 for index in outputs.tensors["index"].tolist()]
        lengths.append(len(replay))
    assert len(replay.final_obs.owner) == 600 // share + (2 if share > 1 else 0)
    kept = 600 if share == 1 else len(replay.final_obs.owner)
    assert kept - 3 * 2 <= lengths[-1] <= kept
    assert len(caplog.records) == (share > 1)


def test_a_table_without_memory_to_grow_forgets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model(Shape(n_final_obs=None), Chances(truncated=9), seed=6)
    n_slots = len(model.replay.final_obs.owner)

    def allocate_nothing(*_: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(final_obs, "allocate_tree", allocate_nothing)
    model.shape = model.shape._replace(n_final_obs=n_slots)
    for _ in range(5):
        model.write_batch()
        assert_holds_the_list(model)
    assert len(model.replay.final_obs.owner) == n_slots
    assert len(caplog.records) == 1


def test_a_prefetcher_goes_on_when_the_table_has_grown() -> None:
    model = Model(Shape(n_final_obs=None), Chances(truncated=9), seed=6)
    model.write_batch()
    before = len(model.replay.final_obs.owner)
    with Prefetcher(model.replay, 400) as prefetcher:
        for _ in range(4):
            assert read(prefetcher.next()) == model.transitions()
            model.write_batch()
            prefetcher.discard()
    assert len(model.replay.final_obs.owner) > before


@pytest.mark.parametrize("stack", [0, 3])
@pytest.mark.parametrize("n_windows", [1, 2, 3])
def test_n_steps_as_long_as_the_ring_allows_are_there_after_each_batch(
    n_windows: int, stack: int
) -> None:
    shape = Shape(T=2, B=1, n_windows=n_windows, has_valid=True, stack=stack, n_steps=100)
    with pytest.raises(ValueError, match="n_steps: got 100, expected 1 to") as error:
        Model(shape, SELDOM, seed=0)
    most = int(str(error.value).partition("1 to ")[2].partition(":")[0])
    model = Model(shape._replace(n_steps=most), SELDOM, seed=0)
    for _ in range(3 * n_windows):
        model.write_batch()
        if len(model.steps[0]) >= 2 * n_windows:
            assert_holds_the_list(model)
            assert model.transitions()


def test_a_minibatch_that_could_not_be_drawn_counts_on_host_and_device(
    cuda_device: torch.device,
) -> None:
    def draw(storage: str) -> list[int]:
        model = Model(Shape(has_valid=True), Chances(invalid=10), seed=0, storage=storage)
        model.write_batch()
        with pytest.raises(RuntimeError, match="no tr") if storage == "local" else nullcontext():
            model.replay.sample(3)
        model.chances = SELDOM
        model.write_batch()
        drawn: list[int] = model.replay.sample(9)["index"].tolist()
        return drawn

    assert draw("local") == draw("device")


def test_a_batch_that_was_not_written_in_turn_is_refused() -> None:
    model = Model(Shape(), Chances(), seed=7)
    model.write_batch()
    model.replay.begin_batch()
    model.tree.rotate()
    model.tree.rotate()
    with pytest.raises(RuntimeError, match="the batch lies at row 6 of the ring, expected row 3"):
        model.replay.end_batch()


def test_a_batch_that_was_not_begun_is_refused() -> None:
    model = Model(Shape(), Chances(), seed=0)
    model.write_batch()
    model.tree.rotate()  # to the row where the next batch belongs
    with pytest.raises(RuntimeError, match="call begin_batch, then rotate"):
        model.replay.end_batch()


def test_final_observations_belong_to_a_step_of_the_batch() -> None:
    model = Model(Shape(), Chances(), seed=7)
    with pytest.raises(RuntimeError, match="no batch is being written; call begin_batch before"):
        model.replay.add_final_obs(0, {0: show(1)})
    model.replay.begin_batch()
    for t, column in ((3, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError, match=rf"got step {t} and columns \[{column}\], expected"):
            model.replay.add_final_obs(t, {column: show(1)})
    assert model.replay.final_obs.n_added == 0


def test_a_batch_that_failed_is_begun_anew_after_a_restart() -> None:
    model = Model(Shape(n_windows=2), Chances(), seed=8)
    for _ in range(3):
        model.write_batch()
    model.replay.begin_batch()
    model.tree.rotate()  # and then an environment raises
    model.first = 9 + 3 - 6
    model.reset()
    model.write_batch()
    assert_holds_the_list(model)


# Refusals


def changed(**branches: Any) -> ArrayDict:
    tree = make_tree(Shape())
    for name, branch in branches.items():
        tree[name] = branch
    return tree


@pytest.mark.parametrize(
    ("branches", "error", "message"),
    [
        ({"reward": Array((3, 2), np.float64, full_size=9)}, ValueError, "reward: got float64"),
        ({"truncated": Array((3, 2), np.uint8, full_size=9)}, ValueError, "truncated: got uint8"),
        ({"valid": Array((3, 2, 1), bool, full_size=9)}, ValueError, r"valid: got bool \(3, 2, 1"),
        ({"extra": Array((3, 2), bool)}, ValueError, "got .T, B, full_size. of .*expected the sam"),
        ({"extra": np.zeros((3, 2))}, TypeError, "extra: got a ndarray, expected an Array"),
        ({"index": Array((3, 2), bool, full_size=9)}, ValueError, r"\['index'\] of their own"),
        (
            {"next_observation": {"state": Array((3, 2), bool, full_size=9)}},
            ValueError,
            r"\['next_observation'\] of their own",
        ),
        (
            {"observation": Array((3, 2), bool, full_size=9)},
            ValueError,
            "observation: got padding 0, expected 1 or more",
        ),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(
    branches: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ReplayBuffer(changed(**branches), rng=np.random.default_rng(0))


class Gapped(Array):
    """An Array with gaps between its rows, which asks for no rows of its own to gather."""

    __slots__ = ()

    def _assemble(self, buffer: Buffer, location: Location, window: Window | None) -> None:
        data = np.zeros((*buffer.extents, 2), buffer.dtype)[..., 0]
        super()._assemble(Buffer(allocate("local", 0), data, 2), location, window)


def test_rows_that_would_be_copied_are_refused() -> None:
    """A copy would be sampled for ever after, whatever is written to the rows."""
    tree = ArrayDict({"reward": Array((9, 2), np.float32)})
    for name in ("terminated", "truncated"):
        tree[name] = Array((9, 2), bool)
    tree["observation"] = Array((9, 2), np.float32, padding=1)
    ReplayBuffer(tree, rng=np.random.default_rng(0))
    tree["extra"] = Gapped((9, 2), np.float32)
    with pytest.raises(ValueError, match="extra: got a Gapped whose rows are copied"):
        ReplayBuffer(tree, rng=np.random.default_rng(0))


def test_sequences_of_stacks_of_more_batch_dimensions_are_refused() -> None:
    camera = FrameArray((3, 2, 4), np.uint8, (5,), padding=1, full_size=9)
    tree, rng = changed(observation={"camera": camera}), np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"observation.camera: got stacks of batch dimensions \(3"):
        SequenceReplayBuffer(tree, rng=rng, length=2)


def test_a_tree_without_a_branch_is_refused() -> None:
    tree = make_tree(Shape())
    del tree["terminated"]
    with pytest.raises(ValueError, match=r"branches \['terminated'\] are missing"):
        ReplayBuffer(tree, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"n_steps": 0}, "n_steps: got 0, expected 1 to 8: as many of the 9 steps of the ring"),
        ({"n_steps": 9}, "n_steps: got 9, expected 1 to 8: as many of the 9 steps of the ring"),
        ({"discount": 1.5}, "discount: got 1.5"),
        ({"n_final_obs": 0}, "n_final_obs: got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(make_tree(Shape()), rng=np.random.default_rng(0), **numbers)


@pytest.mark.parametrize("discount", [0, 1])
def test_a_discount_may_be_either_end_of_its_range(discount: float) -> None:
    replay = ReplayBuffer(changed(), rng=np.random.default_rng(0), discount=discount)
    assert replay.discount == discount


def test_a_minibatch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size: got 0"):
        ReplayBuffer(make_tree(Shape()), rng=np.random.default_rng(0)).sample(0)


# On a device


def play(storage: str, stack: int, n_batches: int = 7) -> list[dict[str, list[Any]]]:
    """Return minibatches drawn between batches and resets, as lists."""
    shape = Shape(T=3, B=2, n_windows=3, n_steps=2, n_final_obs=5, has_valid=True, stack=stack)
    model = Model(shape, Chances(invalid=1), seed=0, storage=storage)
    drawn = []
    for number in range(n_batches):
        if number == 4:
            model.reset()
        model.write_batch()
        for size in (5, 5, 3):
            if len(model.replay) >= 2 * shape.B:
                minibatch = model.replay.sample(size)
                drawn.append({path: leaf.tolist() for path, leaf in leaves(minibatch).items()})
    return drawn


@pytest.mark.parametrize("stack", [0, 3])
@pytest.mark.parametrize("storage", ["device", "managed", "pinned"])
def test_every_memory_gives_the_same_minibatches(
    cuda_device: torch.device, storage: str, stack: int
) -> None:
    expected = play("local", stack)
    assert len(expected) > 10
    assert play(storage, stack) == expected


@each_schedule
@pytest.mark.parametrize("stack", [0, 4])
def test_a_minibatch_is_two_launches_and_nothing_else(schedule: str, seed: int, stack: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = Model(Shape(n_steps=2, stack=stack), OFTEN, seed=0, storage="device")
        model.write_batch()
        model.replay.sample(7)  # allocates the outputs
        before, before_all = copy.copy(cuda.counters), copy.copy(simulation.counters)
        n_before = len(simulation.launches)
        for _ in range(4):
            model.replay.sample(7)
        counted = cuda.counters.since(before)
        assert [launch.name for launch in simulation.launches[n_before:]] == [
            "draw_transitions",
            "frames",
        ] * 4
        assert simulation.counters.since(before_all) == counted
        assert counted == type(counted)(launches=8)


@each_schedule
@pytest.mark.parametrize(("chances", "launches", "copies"), [(SELDOM, 0, 2), (OFTEN, 1, 7)])
def test_a_batch_costs_the_same_whatever_its_size(
    schedule: str, seed: int, chances: Chances, launches: int, copies: int
) -> None:
    """Slots and step numbers are copied; where episodes ended, three leaves of the table, too."""
    with simulated_cuda(schedule, seed):
        for T in (2, 8):
            model = Model(Shape(T=T, B=3), chances, seed=0, storage="device")
            model.replay.begin_batch()
            for t in range(T if chances is OFTEN else 0):
                model.replay.add_final_obs(t, {0: show(t), 2: show(t)})
            model.tree.rotate()
            before = copy.copy(cuda.counters)
            model.replay.end_batch()
            counted = cuda.counters.since(before)
            assert (counted.launches, counted.copies_to_device) == (launches, copies)
            assert counted.copies_to_host == counted.stream_synchronizations == 0


def test_final_observations_are_sent_to_a_device_once() -> None:
    """What was sent once more by a later batch could overwrite what was loaded since."""
    with simulated_cuda():
        model = Model(Shape(), SELDOM, seed=0, storage="device")
        for n_given, n_copies in ((1, 7), (0, 2)):
            model.replay.begin_batch()
            for column in range(n_given):
                model.replay.add_final_obs(0, {column: show(0)})
            model.tree.rotate()
            before = copy.copy(cuda.counters)
            model.replay.end_batch()
            assert cuda.counters.since(before).copies_to_device == n_copies


def test_nothing_to_sample_on_a_device_shows_as_nan(cuda_device: torch.device) -> None:
    model = Model(Shape(has_valid=True), Chances(invalid=10), seed=0, storage="device")
    model.write_batch()
    minibatch = model.replay.sample(3)
    assert torch.isnan(minibatch["n_step_return"]).all()
    assert torch.isnan(minibatch["n_step_discount"]).all()


@each_schedule
def test_nothing_is_left_on_the_device(schedule: str, seed: int) -> None:
    with simulated_cuda(schedule, seed) as simulation:
        model = Model(Shape(), Chances(), seed=0, storage="device")
        model.write_batch()
        model.replay.sample(3)
        model.replay.close()
        model.tree.close()
        del model
        simulation.assert_no_leaks()


# The kernels on a grid


@fewer_examples(3)
@given(
    grid=st.integers(1, 3), block=st.integers(1, 4), n_steps=st.integers(1, 4), n=st.integers(1, 9)
)
def test_a_grid_of_any_shape_draws_the_same(grid: int, block: int, n_steps: int, n: int) -> None:
    model = Model(Shape(n_steps=n_steps), Chances(), seed=n)
    for _ in range(4):
        model.write_batch()
    outputs, replay = model.replay.make_memory(n), model.replay
    arguments = (replay._ring.argument, *replay._draws.arguments, n, outputs.drawn.argument)
    drawn = [outputs.tensors[name] for name in DRAWN]
    transitions.ON_CPU.compiled(*arguments, outputs.drawn.scratch)
    expected = [each.tolist() for each in drawn]
    for each in drawn:
        each[:] = 77
    replay._draws.write_seed(replay._key, 0)
    launch_plainly(transitions.DEVICE, arguments, grid=Axes(grid, 1), block=Axes(block, 1))
    assert [each.tolist() for each in drawn] == expected
    assert replay._n_drawn == 1  # counted by the last thread alone
    transitions.ON_CPU.compiled(*arguments, outputs.drawn.scratch)
    following = [each.tolist() for each in drawn]
    replay._draws.write_seed(replay._key, 1)
    launch_plainly(transitions.DEVICE, arguments, grid=Axes(grid, 1), block=Axes(block, 1))
    assert [each.tolist() for each in drawn] == following


# With a sampler


class Still:
    """Return actions and no values."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        return torch.zeros(len(observation), dtype=torch.int64), {}

    def value(self, observation: Any) -> Any:
        raise NotImplementedError


def make_sampler(
    storage: str = "local", n_steps: int = 1, kind: type[BasicSampler] = BasicSampler
) -> BasicSampler:
    example = build_example(Clock, storage="local")
    samples = build_sample_tree(example, Still(), batch_shape=(4, 4), full_size=16, storage=storage)
    cages = [
        SerialCage(Clock, {"length": 3, "end": "truncated"}, n_envs=2),
        SerialCage(Clock, {"length": 5, "end": "terminated"}, n_envs=2),
    ]
    rng = np.random.default_rng(0)
    replay = ReplayBuffer(samples, rng=rng, n_steps=n_steps, discount=DISCOUNT, n_final_obs=64)
    return kind(cages, Still(), samples, replay=replay)


def check_clocks(minibatch: ArrayDict, n_steps: int) -> None:
    """Clocks show (episode, step): a transition goes on in its episode, and never past its end."""
    columns = {path: leaf.tolist() for path, leaf in leaves(minibatch).items()}
    for number, (episode, step) in enumerate(columns["observation"]):
        length = 3 if columns["index"][number] % 4 < 2 else 5
        # After a termination, the observation of the last step itself stands there.
        last = columns["next_observation"][number][1] + columns["terminated"][number]
        assert columns["next_observation"][number][0] == episode
        was_cut = columns["truncated"][number] and last < length
        assert last == min(step + n_steps, length) or was_cut
        assert columns["truncated"][number] == (was_cut or (length == 3 and last == 3))
        assert columns["terminated"][number] == (length == 5 and last == 5)
        rewards = [DISCOUNT**k * (step + 1 + k) for k in range(int(last - step))]
        assert columns["n_step_return"][number] == sum(rewards)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
def test_a_sampler_feeds_the_buffer(n_steps: int, kind: type[BasicSampler]) -> None:
    sampler = make_sampler(n_steps=n_steps, kind=kind)
    replay: Any = sampler.replay
    for number in range(12):
        if number == 6:
            sampler.reset()
        sampler.collect_batch()
        check_clocks(replay.sample(64), n_steps)
    assert len(replay) == 4 * 16


def test_a_sampler_feeds_the_buffer_on_a_device(cuda_device: torch.device) -> None:
    sampler = make_sampler("device", n_steps=2)
    replay: Any = sampler.replay
    for number in range(8):
        if number == 6:
            sampler.reset()
        sampler.collect_batch()
        check_clocks(replay.sample(32), 2)


def test_a_sampler_refuses_the_buffer_of_another_tree() -> None:
    sampler = make_sampler()
    with pytest.raises(ValueError, match="replay: its tree is another one"):
        BasicSampler(sampler.cages, Still(), sampler.samples.new_array(), replay=sampler.replay)


# With a sampler, of frames

N_FRAMES = 3


def make_stacked_clock(length: int, end: str) -> gym.Env:
    return FrameStackObservation(Clock(length, end), N_FRAMES)


def make_frame_sampler(storage: str) -> BasicSampler:
    example = build_example(make_stacked_clock, env_kwargs={"length": 3, "end": "truncated"})
    samples = build_sample_tree(example, Still(), batch_shape=(4, 3), full_size=16)
    samples["observation"] = FrameArray(
        (4, 3), np.float32, (2,), stack=N_FRAMES, padding=1, full_size=16
    )
    samples = samples.to(storage)
    cages = [
        SerialCage(make_stacked_clock, {"length": length, "end": end}, seed=length)
        for length, end in ((3, "truncated"), (5, "terminated"), (7, "truncated"))
    ]
    rng = np.random.default_rng(0)
    replay = ReplayBuffer(samples, rng=rng, n_steps=2, discount=DISCOUNT, n_final_obs=99)
    return BasicSampler(cages, Still(), samples, replay=replay, max_steps_decorrelate=5)


def check_stacks(minibatch: ArrayDict) -> None:
    """Clocks show (episode, step): a stack holds the last steps, and none before the first."""
    back = torch.arange(N_FRAMES - 1, -1, -1)
    for name in ("observation", "next_observation"):
        stacks = minibatch[name].cpu()
        newest = stacks[:, -1]
        assert (stacks[:, :, 0] == newest[:, None, 0]).all()
        assert (stacks[:, :, 1] == (newest[:, 1, None] - back).clamp(min=0)).all()
    check_clocks_of(
        minibatch, minibatch["observation"][:, -1], minibatch["next_observation"][:, -1]
    )


def check_clocks_of(minibatch: ArrayDict, now: torch.Tensor, then: torch.Tensor) -> None:
    assert (now[:, 0] == then[:, 0]).all()
    lengths = torch.tensor([3, 5, 7])[minibatch["index"].cpu() % 3]
    steps = (now[:, 1] + 2).cpu().minimum(lengths)
    steps -= minibatch["terminated"].cpu().int()  # where the last observation stands twice
    was_cut = minibatch["truncated"].cpu() & (then[:, 1].cpu() < lengths)
    assert ((then[:, 1].cpu() == steps) | was_cut).all()


def test_a_sampler_feeds_a_buffer_of_frames(cuda_device: torch.device) -> None:
    for storage in ("local", "device"):
        sampler = make_frame_sampler(storage)
        replay: Any = sampler.replay
        for number in range(12):
            if number in (5, 6):
                sampler.reset()
            sampler.collect_batch()
            if len(replay) >= 2 * 3:
                check_stacks(replay.sample(200))
        sampler.close()


class TestNotFinite:
    """A batch with a NaN or an infinity is refused before it can be drawn."""

    T, B = 4, 2

    def make(self, *, valid: bool = False) -> tuple[ArrayDict, ReplayBuffer]:
        shape, full = (self.T, self.B), {"full_size": 2 * self.T}
        samples = ArrayDict(
            {
                "observation": {"x": Array(shape, np.float32, padding=1, **full)},
                "reward": Array(shape, np.float32, **full),
                "terminated": Array(shape, bool, **full),
                "truncated": Array(shape, bool, **full),
            }
        )
        if valid:
            samples["valid"] = Array(shape, bool, **full)
            samples["valid"][...] = True
        replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
        replay.restart()
        replay.begin_batch()
        samples.rotate()
        if valid:
            samples["valid"][...] = True
        return samples, replay

    @pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("row", [0, 3, 4])
    @pytest.mark.parametrize("valid", [False, True])
    def test_in_any_row_that_a_transition_reads(self, number: Any, row: int, valid: bool) -> None:
        samples, replay = self.make(valid=valid)
        samples["observation"]["x"][row, 1] = number
        message = rf"observation\.x is {number} in row t = {row} of environment 1"
        with pytest.raises(ValueError, match=message):
            replay.end_batch()
        assert len(replay) == 0
        samples["observation"]["x"][row, 1] = 0
        if row < self.T:
            samples["reward"][row, 0] = number
            with pytest.raises(ValueError, match=rf"reward is {number} in row t = {row} of env"):
                replay.end_batch()
            samples["reward"][row, 0] = 0
        replay.end_batch()
        assert len(replay) == self.T * self.B

    def test_in_a_row_that_is_no_transition_it_does_not_count(self) -> None:
        samples, replay = self.make(valid=True)
        samples["reward"][1, 1] = np.nan
        samples["valid"][1, 1] = False
        replay.end_batch()
        assert len(replay) == self.T * self.B

    @pytest.mark.parametrize("row", [1, 4])  # within the batch, and behind it
    def test_behind_a_step_that_goes_on_in_a_row_that_is_no_transition(self, row: int) -> None:
        samples, replay = self.make(valid=True)
        samples["observation"]["x"][row, 1] = np.nan
        if row < self.T:
            samples["valid"][row, 1] = False
        message = rf"observation\.x is nan in row t = {row} of environment 1"
        with pytest.raises(ValueError, match=message):
            replay.end_batch()
        samples["terminated"][row - 1, 1] = True  # now nothing follows that counts
        replay.end_batch()
        minibatch = replay.sample(200)
        assert minibatch["observation"]["x"].isfinite().all()
        assert minibatch["next_observation"]["x"].isfinite().all()

    def test_in_a_final_observation(self) -> None:
        _, replay = self.make()
        final_obs = ArrayDict({"x": np.float32(np.nan)})
        message = r"observation\.x is not finite behind row t = 2 of environment 1"
        with pytest.raises(ValueError, match=message):
            replay.add_final_obs(2, {1: final_obs})

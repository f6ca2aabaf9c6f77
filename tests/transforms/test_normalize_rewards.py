"""NormalizeRewards: against loops by hand, its resets, its state, and each kind of memory."""

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from long_run import all_but_first
from parllel import Array, ArrayDict, cuda
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.transforms import Moments, NormalizeRewards
from profiles import fewer_examples
from schedules import each_schedule

B = 3
DISCOUNT, EPSILON = 0.9, 1e-8


def make_batch(
    seed: int,
    steps: int = 8,
    shape: tuple[int, ...] = (B,),
    *,
    ends: float = 0.2,
    lost: float = 0.0,
    storage: str = "local",
    scale: float = 1.0,
) -> ArrayDict:
    """Return a batch; rows that are no transitions have rewards that nothing may read."""
    rng = np.random.default_rng(seed)
    batch = ArrayDict(
        {
            "reward": Array((steps, *shape), np.float32),
            "terminated": Array((steps, shape[0]), bool),
            "truncated": Array((steps, shape[0]), bool),
        }
    )
    batch["reward"][...] = scale * (rng.standard_normal((steps, *shape)) + 0.5)
    batch["terminated"][...] = rng.random((steps, shape[0])) < ends
    batch["truncated"][...] = rng.random((steps, shape[0])) < ends
    if lost:
        valid = rng.random((steps, shape[0])) >= lost
        batch["valid"] = Array((steps, shape[0]), bool)
        batch["valid"][...] = valid
        batch["reward"][np.nonzero(~valid)] = np.nan
    return batch.to(storage)


class ByHand:
    """What VecNormalize does, environment by environment and step by step, in double precision."""

    def __init__(self) -> None:
        self.returns = np.zeros(0)
        self.seen: list[float] = []

    def __call__(self, batch: ArrayDict, clip: float = 10.0) -> np.ndarray:
        reward = batch["reward"].to_ndarray().astype(np.float64)
        ended = batch["terminated"].to_ndarray() | batch["truncated"].to_ndarray()
        valid = batch["valid"].to_ndarray() if "valid" in batch else np.ones_like(ended)
        if not self.returns.size:
            self.returns = np.zeros(reward.shape[1:])
        for t, b in np.ndindex(ended.shape):
            self.returns[b] = self.returns[b] * DISCOUNT + reward[t, b]
            if valid[t, b]:
                self.seen += np.ravel(self.returns[b]).tolist()
            if ended[t, b] or not valid[t, b]:
                self.returns[b] = 0
        variance = np.var(self.seen) if self.seen else 0.0
        return np.clip(reward / np.sqrt(variance + EPSILON), -clip, clip)


def normalized(transform: NormalizeRewards, batch: ArrayDict) -> np.ndarray:
    return transform(batch)["reward"].to_ndarray().copy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """G has an error of (t + 1) * 2**-22, t <= 48, and the variance of 1e-3 of it, say."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@fewer_examples(4)
@given(
    steps=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    shape=st.sampled_from([(1,), (3,), (3, 2)]),
    ends=st.sampled_from([0.0, 0.2, 1.0]),
    lost=st.sampled_from([0.0, 0.3]),
    clip=st.sampled_from([0.5, 10.0, math.inf]),
    seed=st.integers(0, 2**31),
)
def test_rewards_are_those_of_a_loop_by_hand(
    steps: Sequence[int],
    shape: tuple[int, ...],
    ends: float,
    lost: float,
    clip: float,
    seed: int,
) -> None:
    transform, by_hand = NormalizeRewards(discount=DISCOUNT, clip=clip, per_agent=False), ByHand()
    for number, n in enumerate(steps):
        batch = make_batch(seed + number, n, shape, ends=ends, lost=lost)
        own = batch["reward"].to_ndarray().copy()
        found, expected = normalized(transform, batch), by_hand(batch, clip)
        count, mean, _ = transform.moments
        assert count == len(by_hand.seen)
        assert batch["reward"].to_ndarray().tobytes() == own.tobytes()
        if count > 1 and np.var(by_hand.seen) > 1e-3:
            assert_close(found, expected)
            assert mean == pytest.approx(np.mean(by_hand.seen), abs=1e-4)
            deviation = math.sqrt(np.var(by_hand.seen) + EPSILON)
            assert transform.deviation == pytest.approx(deviation, rel=1e-4)


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_a_return_begins_anew_behind_each_end(flag: str) -> None:
    """Episodes of 1 and 2 steps: G is 4, then 2 and 1 + 2; the variance is that of these."""
    batch = make_batch(0, 3, (1,), ends=0)
    batch["reward"][:, 0] = [4, 2, 2]
    batch[flag][0] = True
    transform = NormalizeRewards(discount=0.5)
    transform(batch)
    assert transform.moments.mean == np.mean([4, 2, 3])
    assert transform.moments.variance == pytest.approx(np.var([4, 2, 3]))
    batch["reward"][:, 0] = [0, 0, 0]
    batch[flag][0] = False
    transform(batch)  # the last episode goes on: 1.5, 0.75, 0.375
    assert transform.moments.mean == np.mean([4, 2, 3, 1.5, 0.75, 0.375])
    transform.restart()
    transform(batch)
    assert transform.moments.mean == pytest.approx(np.mean([4, 2, 3, 1.5, 0.75, 0.375, 0, 0, 0]))


def test_rewards_keep_their_sign_and_place() -> None:
    batch = make_batch(1, 20, (4,))
    found = normalized(NormalizeRewards(), batch)
    own = batch["reward"].to_ndarray()
    assert (np.sign(found) == np.sign(own)).all()
    assert np.corrcoef(found.ravel(), own.ravel())[0, 1] > 0.999


def test_rewards_that_never_differ_are_finite() -> None:
    batch = make_batch(0, 4, (2,))
    batch["reward"][...] = 0
    transform = NormalizeRewards()
    assert (normalized(transform, batch) == 0).all()
    assert transform.deviation == pytest.approx(1e-4)
    batch["reward"][...] = 1e-2
    for flag in ("terminated", "truncated"):
        batch[flag][...] = True
    constant = NormalizeRewards()
    assert (normalized(constant, batch) == 10).all()  # 1e-2 / 1e-4, clipped


@fewer_examples(4)
@given(parts=st.lists(st.integers(1, 3), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_moments_of_several_runs_merge_to_those_of_all(parts: list[int], seed: int) -> None:
    runs, seen = [], []
    for number, n_batches in enumerate(parts):
        run, by_hand = NormalizeRewards(discount=DISCOUNT), ByHand()
        for k in range(n_batches):
            batch = make_batch(seed + 10 * number + k, scale=1 + number)
            run(batch)
            by_hand(batch)
        runs.append(run)
        seen += by_hand.seen
    counts = [run.moments.count for run in runs]
    first, *others = runs
    first.merge(*others)
    assert first.moments.count == len(seen) == sum(counts)
    assert first.moments.mean == pytest.approx(np.mean(seen), rel=1e-5, abs=1e-5)
    assert first.moments.variance == pytest.approx(np.var(seen), rel=1e-4)
    assert [run.moments.count for run in others] == counts[1:]


@given(
    values=st.lists(st.floats(-1e6, 1e6), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    uses_torch=st.booleans(),
)
def test_merged_moments_are_those_of_all_numbers(
    values: list[float], cuts: list[int], uses_torch: bool
) -> None:
    def moments_of(numbers: np.ndarray) -> Moments:
        if not len(numbers):
            return Moments(as_own(0.0), as_own(0.0), as_own(0.0))
        m2 = np.sum((numbers - numbers.mean()) ** 2)
        return Moments(*map(as_own, (float(len(numbers)), numbers.mean(), m2)))

    def as_own(number: float) -> Any:
        return torch.tensor(number, dtype=torch.float64) if uses_torch else np.float64(number)

    everything = np.array(values)
    merged = moments_of(everything[:0])
    for part in np.split(everything, sorted(min(cut, len(values)) for cut in cuts)):
        merged = merged.merged(moments_of(part))
    assert float(merged.count) == len(values)
    size = 1 + abs(everything).max(initial=0)
    if len(values):
        assert float(merged.mean) == pytest.approx(everything.mean(), abs=1e-12 * size)
        assert float(merged.variance) == pytest.approx(everything.var(), abs=1e-12 * size**2)
    else:
        assert float(merged.variance) == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused_and_changes_nothing(wrong: float) -> None:
    transform, other = NormalizeRewards(), NormalizeRewards()
    for each in (transform, other):
        each(make_batch(0))
    spoiled = make_batch(1)
    spoiled["reward"][3, 1] = wrong
    with pytest.raises(ValueError, match=rf"reward is {wrong} in row t = 3 of environment 1;"):
        transform(spoiled)
    assert pickle.dumps(transform.state_dict()) == pickle.dumps(other.state_dict())
    batch = make_batch(2)
    assert normalized(transform, batch).tobytes() == normalized(other, batch).tobytes()


def test_returns_whose_squares_overflow_are_refused() -> None:
    batch = make_batch(0, scale=1e30)
    with pytest.raises(ValueError, match="the squares of returns overflow"):
        NormalizeRewards()(batch)


def test_a_batch_without_a_transition_changes_no_moment() -> None:
    transform = NormalizeRewards()
    transform(make_batch(0))
    before = transform.moments
    transform(make_batch(1, lost=1.0))
    assert transform.moments == before
    assert (np.array(transform.state_dict()["begin"]) == 0).all()  # what was before is lost


def test_a_frozen_one_scales_by_what_it_has_seen_and_sees_nothing() -> None:
    transform = NormalizeRewards()
    transform(make_batch(0, ends=0))
    before, deviation = transform.moments, transform.deviation
    transform.is_frozen = True
    batch = make_batch(1, scale=5)
    expected = np.clip(batch["reward"].to_ndarray() / deviation, -10, 10)
    np.testing.assert_allclose(normalized(transform, batch), expected, rtol=1e-6)
    assert transform.moments == before
    transform.is_frozen = False
    batch["reward"][...] = 0
    transform(batch)  # returns begin at 0
    assert transform.moments.mean == pytest.approx(before.mean * before.count / (2 * 8 * B))


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_a_saved_one_goes_on_bit_for_bit(lost: float) -> None:
    whole, cut = NormalizeRewards(), NormalizeRewards()
    for seed in range(4):
        if seed == 2:
            saved = pickle.loads(pickle.dumps(cut.state_dict()))
            cut(make_batch(9))  # and what was saved did not move
            cut = NormalizeRewards()
            cut.load_state_dict(saved)
        batch = make_batch(seed, lost=lost)
        assert normalized(whole, batch).tobytes() == normalized(cut, batch).tobytes()
    assert pickle.dumps(whole.state_dict()) == pickle.dumps(cut.state_dict())


@each_schedule
@pytest.mark.parametrize("kind", all_but_first(["device", "managed"]))
@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_memory_of_a_gpu_gives_the_hosts_bits(
    kind: str, lost: float, schedule: str, seed: int
) -> None:
    with simulated_cuda(schedule, seed):
        transform, on_host = NormalizeRewards(), NormalizeRewards()
        for number in range(4):
            if number == 2:  # one is resumed in the memory of the other
                states = transform.state_dict(), on_host.state_dict()
                transform, on_host = NormalizeRewards(), NormalizeRewards()
                on_host.load_state_dict(states[0])
                transform.load_state_dict(states[1])
            result = transform(make_batch(number, lost=lost, storage=kind))["reward"]
            assert result.storage == kind
            expected = normalized(on_host, make_batch(number, lost=lost))
            assert cuda.to_host(result.to_cupy()).tobytes() == expected.tobytes()
        spoiled = make_batch(9)
        spoiled["reward"][2, 0] = np.nan
        before = pickle.dumps(on_host.state_dict())
        with pytest.raises(ValueError, match="reward is nan in row t = 2 of environment 0"):
            transform(spoiled.to(kind))
        assert pickle.dumps(transform.state_dict()) == before


def test_a_frozen_one_is_captured_and_no_other() -> None:
    with simulated_cuda("lazy"):
        transform, stream = NormalizeRewards(), cuda.new_stream()
        with cuda.use_stream(stream):
            batch = make_batch(0, storage="device")
            transform(batch)
            transform.is_frozen = True
            transform(batch)
            stream.begin_capture()
            result = transform(batch)["reward"]
            transform.is_frozen = False
            with pytest.raises(RuntimeError, match="captured"):
                transform(batch)
            graph = stream.end_capture()
            batch["reward"][...] = 0.5
            graph.launch()
            expected = np.float32(0.5) * np.float32(1 / transform.deviation)
            assert (result.to_ndarray() == expected).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, r"discount: got 1.1, expected a number in \[0, 1\]"),
        ({"clip": 0}, "clip: got 0, expected more than 0"),
        ({"epsilon": 0}, "epsilon: got 0, expected more than 0"),
        ({"epsilon": math.nan}, "epsilon: got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormalizeRewards(**options)


def test_leaves_that_do_not_fit_are_refused() -> None:
    transform = NormalizeRewards()
    transform(make_batch(0))
    before = pickle.dumps(transform.state_dict())
    with pytest.raises(ValueError, match=r"reward: got 4 columns, expected 3 as in the batch bef"):
        transform(make_batch(1, shape=(4,)))
    batch = make_batch(1)
    with pytest.raises(ValueError, match="reward: dtype float64, expected float32"):
        transform(ArrayDict({**batch, "reward": Array((8, B), np.float64)}))
    with pytest.raises(ValueError, match=r"truncated: shape \(8, 1\), expected \(8, 3\)"):
        transform(ArrayDict({**batch, "truncated": Array((8, 1), bool)}))
    with pytest.raises(ValueError, match=r"valid: shape \(8, 1\), expected \(8, 3\)"):
        transform(ArrayDict({**batch, "valid": Array((8, 1), bool)}))
    assert pickle.dumps(transform.state_dict()) == before
    transform.restart()
    transform(make_batch(1, shape=(4,)))

"""Steps of a loop of one's own, with observations of different lengths."""

from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict, Jagged
from parllel.arrays import JaggedArray
from parllel.replays import ReplayBuffer

B, ROWS = 3, 8


def make_replay() -> ReplayBuffer:
    shape = {"batch_shape": (1, B), "full_size": ROWS}
    cloud = JaggedArray(
        **shape,
        dtype="float32",
        feature_shape=(2,),
        capacity=4,
        padding=1,  # type: ignore[arg-type]
    )
    samples = ArrayDict({"observation": cloud, "reward": Array(**shape, dtype="float32")})
    for name in ("terminated", "truncated"):
        samples[name] = Array(**shape, dtype=bool)
    return ReplayBuffer(samples, rng=np.random.default_rng(0))


def clouds_of(step: int) -> list[np.ndarray]:
    """Return clouds with numbers of points and values that tell step and environment."""
    return [np.full(((step + b) % 5, 2), 10 * step + b, np.float32) for b in range(B)]


def append(replay: ReplayBuffer, step: int, observation: Any, **options: Any) -> None:
    flags = {"terminated": np.zeros(B, bool), "truncated": np.zeros(B, bool), **options}
    reward = np.arange(B) + 100 * step
    replay.append(observation, reward=reward, **flags)


@pytest.mark.parametrize("form", [list, Jagged.of, tuple])
def test_steps_that_were_appended_are_drawn_with_their_clouds(form: Any) -> None:
    replay = make_replay()
    replay.reset(form(clouds_of(0)))
    for step in range(1, 20):
        truncated = np.arange(B) == step % 7
        final = {b: clouds_of(30 + step)[b] for b in range(B) if truncated[b]}
        append(replay, step, form(clouds_of(step)), truncated=truncated, final_obs=final)
    drawn = replay.sample(200)
    numbers = drawn["reward"].long()
    step, column = numbers // 100, numbers % 100
    n_cut = 0
    for row, (t, b) in enumerate(zip(step.tolist(), column.tolist(), strict=True)):
        np.testing.assert_array_equal(drawn["observation"][row], clouds_of(t - 1)[b])
        is_cut = b == t % 7
        following = clouds_of(30 + t if is_cut else t)[b]
        np.testing.assert_array_equal(drawn["next_observation"][row], following)
        n_cut += is_cut
    assert n_cut
    assert len(set(step.tolist())) > 4


@pytest.mark.parametrize("final", [[[7.0, 8.0]], [], torch.ones((2, 2), requires_grad=True)])
def test_lists_and_tensors_with_gradients_are_elements(final: Any) -> None:
    replay = make_replay()
    replay.reset([[], [[1, 2]], torch.zeros((1, 2), requires_grad=True)])
    truncated = np.array([True, False, False])
    tensors = [torch.full((n, 2), 3.0, requires_grad=True) for n in range(B)]
    append(replay, 1, tensors, truncated=truncated, final_obs={0: final})
    drawn = replay.sample(20)
    rows = {int(drawn["reward"][row]) - 100: row for row in range(20)}
    assert drawn["observation"][rows[1]].tolist() == [[1, 2]]
    assert drawn["next_observation"][rows[0]].tolist() == torch.as_tensor(final).tolist()
    assert drawn["next_observation"][rows[2]].tolist() == [[3, 3]] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([np.ones((5, 2))] * B, "observation: .*5 items, expected up to 4"),
        ([np.ones((2, 3))] * B, r"observation: .*\(2, 3\)"),
        ([np.ones((2, 2))] * (B - 1), "observation: "),
        (np.ones((2, 2), np.float32), "observation: got one array .* one for each environment"),
        ([np.full((2, 2), np.nan)] * B, "observation: got a NaN"),
        ([np.full((2, 2), 1e300)] * B, "observation: .*1e"),
        (None, "observation: "),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(wrong: Any, message: str) -> None:
    replay = make_replay()
    replay.reset(clouds_of(0))
    append(replay, 1, clouds_of(1))
    before = [cloud.copy() for cloud in replay.samples["observation"].full[:2].to_ndarray()[1]]
    with pytest.raises(ValueError, match=message):
        append(replay, 2, wrong)
    flags = {"truncated": np.ones(B, bool), "final_obs": dict.fromkeys(range(B), np.ones((9, 2)))}
    with pytest.raises(ValueError, match=r"observation: .*9 items"):
        append(replay, 2, clouds_of(2), **flags)
    after = replay.samples["observation"].full[:2].to_ndarray()[1]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)

"""Transforms of batches of several agents: both forms are N batches of one agent."""

from typing import Any

import numpy as np
import pytest
from agent_batches import FORMS, NAMES, Numbers, Shape, by_agent, make_batch, random_numbers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parllel import Array, ArrayDict, cuda
from parllel.runners.state_data import from_data, to_data
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.transforms import (
    ClipRewards,
    EstimateAdvantage,
    NormalizeAdvantage,
    NormalizeRewards,
    Transform,
)
from profiles import fewer_examples
from schedules import each_schedule

DISCOUNT, GAE_LAMBDA = 0.9, 0.8
each_form = pytest.mark.parametrize("form", FORMS)
shapes = st.builds(Shape, st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))


def make_transforms(*, per_agent: bool = True) -> list[Transform]:
    return [
        NormalizeRewards(discount=DISCOUNT, per_agent=per_agent),
        ClipRewards(-1.5, 2),
        EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA),
        NormalizeAdvantage(per_agent=per_agent),
    ]


def apply(transforms: list[Transform], batch: ArrayDict) -> ArrayDict:
    for transform in transforms:
        batch = transform(batch)
    return batch


def to_host(leaf: Array) -> NDArray[Any]:
    return cuda.to_host(leaf.to_cupy()) if leaf.side == "gpu" else leaf.to_ndarray()


def results(batch: ArrayDict) -> dict[str, NDArray[Any]]:
    return {name: by_agent(batch[name], to_host) for name in ("reward", "advantage", "return_")}


def loop_of_agent(numbers: Numbers, b: int, i: int) -> NDArray[np.float64]:
    """Return the advantages of one agent in one environment, step by step from the last one."""
    T = len(numbers["reward"])
    reward, value, final = (
        numbers[name][:, b, i].astype(np.float64) for name in ("reward", "value", "final_value")
    )
    advantage = np.zeros(T + 1)
    for t in reversed(range(T)):
        if not numbers["valid"][t, b, i]:
            advantage[t] = 0
        elif numbers["terminated"][t, b, i]:
            advantage[t] = reward[t] - value[t]
        elif numbers["truncated"][t, b, i]:
            advantage[t] = reward[t] + DISCOUNT * final[t] - value[t]
        else:
            delta = reward[t] + DISCOUNT * value[t + 1] - value[t]
            advantage[t] = delta + DISCOUNT * GAE_LAMBDA * advantage[t + 1]
    return advantage[:T]


@fewer_examples(4)
@given(seed=st.integers(0, 2**31), shape=shapes, form=st.sampled_from(FORMS))
def test_advantages_are_those_of_a_loop_for_each_agent(seed: int, shape: Shape, form: str) -> None:
    numbers = random_numbers(seed, shape)
    batch = EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA)(make_batch(numbers, form))
    found, returns = (by_agent(batch[name], to_host) for name in ("advantage", "return_"))
    alive = numbers["valid"]
    for b, i in np.ndindex(shape.B, shape.N):
        expected = loop_of_agent(numbers, b, i)
        np.testing.assert_allclose(found[:, b, i], expected, rtol=1e-4, atol=1e-5)
        value = np.where(alive[:, b, i], numbers["value"][:-1, b, i], 0)
        np.testing.assert_allclose(returns[:, b, i], expected + value, rtol=1e-4, atol=1e-5)
    assert (found[~alive] == 0).all()
    assert (returns[~alive] == 0).all()


@fewer_examples(4)
@given(seed=st.integers(0, 2**31), shape=shapes, form=st.sampled_from(FORMS), dies=st.booleans())
def test_both_forms_give_the_bits_of_batches_of_one_agent(
    seed: int, shape: Shape, form: str, dies: bool
) -> None:
    """But for moments of an axis whose agents are all alive: they are found at once."""
    together, alone = make_transforms(), [make_transforms() for _ in range(shape.N)]
    is_rounded = form == "axis" and not dies
    for number in range(2):  # the second batch overwrites the results of the first
        numbers = random_numbers(seed + number, shape, dies=dies)
        found = results(apply(together, make_batch(numbers, form)))
        for i in range(shape.N):
            expected = results(apply(alone[i], make_batch(numbers, str(i))))
            for name, values in expected.items():
                own = found[name][..., i]
                if is_rounded:
                    alive = numbers["valid"][..., i]
                    np.testing.assert_allclose(own[alive], values[alive], rtol=2e-4, atol=2e-4)
                else:
                    alive = numbers["valid"][..., i] if name == "reward" else ...
                    assert own[alive].tobytes() == values[alive].tobytes(), name


@each_form
def test_what_the_dead_hold_counts_for_nothing(form: str) -> None:
    found = []
    for poison in (np.nan, 1e30, 0.0):
        transforms = make_transforms(per_agent=False)
        for seed in (3, 4):
            numbers = random_numbers(seed, poison=poison)
            batch = apply(transforms, make_batch(numbers, form))
        kept = results(batch)
        rewards = kept.pop("reward")[numbers["valid"]]
        found.append([rewards.tobytes(), *(each.tobytes() for each in kept.values())])
        assert all(np.isfinite(each).all() for each in kept.values())
    assert found[0] == found[1] == found[2]


@each_form
def test_one_flag_for_all_agents_is_that_of_each(form: str) -> None:
    numbers = random_numbers(5, dies=False)
    transforms, others = make_transforms(), make_transforms()
    for _ in range(2):  # the second time, prepared arguments are used
        shared = results(apply(transforms, make_batch(numbers, form, shared=True)))
        own = {name: each for name, each in numbers.items() if name != "valid"}
        expected = results(apply(others, make_batch(own, form)))
        for name, values in expected.items():
            assert shared[name].tobytes() == values.tobytes(), name


def test_shared_flags_that_change_in_place_are_read_again() -> None:
    estimate = EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA)
    numbers = random_numbers(6, dies=False)
    batch = make_batch(numbers, "axis", shared=True)
    before = to_host(estimate(batch)["advantage"]).copy()
    batch["terminated"][...] = ~batch["terminated"].to_ndarray()
    after = to_host(estimate(batch)["advantage"])
    expected = EstimateAdvantage(discount=DISCOUNT, gae_lambda=GAE_LAMBDA)(batch)["advantage"]
    assert after.tobytes() == to_host(expected).tobytes() != before.tobytes()


@each_form
@pytest.mark.parametrize("dies", [True, False])
def test_each_agent_has_mean_0_and_deviation_1_or_all_have(form: str, dies: bool) -> None:
    numbers = random_numbers(7, Shape(20, 4, 3), dies=dies)
    numbers["reward"] *= np.float32([1, 10, 100])
    batch = EstimateAdvantage()(make_batch(numbers, form))
    own = by_agent(NormalizeAdvantage()(batch)["advantage"], to_host)
    for i in range(3):
        living = own[..., i][numbers["valid"][..., i]]
        assert abs(living.mean()) < 1e-5
        assert living.std() == pytest.approx(1, abs=1e-4)
    all_together = by_agent(NormalizeAdvantage(per_agent=False)(batch)["advantage"], to_host)
    living = all_together[numbers["valid"]]
    assert abs(living.mean()) < 1e-5
    assert living.std() == pytest.approx(1, abs=1e-4)
    assert all_together[..., 2].std() > 5 * all_together[..., 0].std()


@each_form
@pytest.mark.parametrize("dies", [True, False])
def test_rewards_are_divided_by_each_agents_deviation_or_by_that_of_all(
    form: str, dies: bool
) -> None:
    transform = NormalizeRewards(discount=0.0, clip=np.inf)  # G is the reward
    together = NormalizeRewards(discount=0.0, clip=np.inf, per_agent=False)
    numbers = random_numbers(8, Shape(20, 4, 3), dies=dies)
    numbers["reward"] *= np.float32([1, 10, 100])
    alive = numbers["valid"]
    batch = make_batch(numbers, form)
    found, of_all = (by_agent(each(batch)["reward"], to_host) for each in (transform, together))
    for i in range(3):
        rewards = numbers["reward"][..., i][alive[..., i]]
        np.testing.assert_allclose(found[..., i][alive[..., i]], rewards / rewards.std(), rtol=1e-4)
    living = numbers["reward"][alive]
    np.testing.assert_allclose(of_all[alive], living / living.std(), rtol=1e-4)
    assert together.moments.count == alive.sum()


@each_form
def test_a_state_goes_on_with_the_same_bits(form: str) -> None:
    batches = [make_batch(random_numbers(seed), form) for seed in range(4)]
    whole, first, second = (NormalizeRewards(discount=DISCOUNT) for _ in range(3))
    for batch in batches[:2]:
        first(batch)
    second.load_state_dict(from_data(*to_data(first.state_dict())))
    expected = [by_agent(whole(batch)["reward"], to_host).copy() for batch in batches]
    for batch, values in zip(batches[2:], expected[2:], strict=True):
        found = by_agent(second(batch)["reward"], to_host)
        assert np.array_equal(found, values, equal_nan=True)


@each_schedule
@each_form
@pytest.mark.parametrize("dies", [True, False])
def test_a_batch_on_the_device_gives_the_hosts_bits(
    form: str, dies: bool, schedule: str, seed: int
) -> None:
    expected = []
    on_host = make_transforms()
    for number in range(2):
        batch = make_batch(random_numbers(number, dies=dies), form, shared=not dies)
        expected.append(
            {name: each.copy() for name, each in results(apply(on_host, batch)).items()}
        )
    with simulated_cuda(schedule, seed=seed):
        transforms = make_transforms()
        for number in range(2):
            numbers = random_numbers(number, dies=dies)
            batch = make_batch(numbers, form, shared=not dies).to("device")
            for name, values in results(apply(transforms, batch)).items():
                assert np.array_equal(values, expected[number][name], equal_nan=True), name


def count_launches(form: str, *, shared: bool) -> list[int]:
    """Return the launches of each transform for a second batch at the same place."""
    counts = []
    with simulated_cuda("lazy") as simulation:
        numbers = random_numbers(1, dies=False)
        if not shared:
            del numbers["valid"]
        batch = make_batch(numbers, form, shared=shared).to("device")
        for transform in (ClipRewards(), EstimateAdvantage(), NormalizeAdvantage()):
            batch_before = batch
            batch = transform(batch_before)
            before = simulation.counters.launches
            transform(batch_before)
            counts.append(simulation.counters.launches - before)
    return counts


def test_launches_are_those_of_one_agent_for_each_leaf() -> None:
    one = count_launches("0", shared=False)
    assert count_launches("axis", shared=False) == one
    assert count_launches("axis", shared=True) == [one[0], one[1] + 1, one[2]]
    assert count_launches("dictionary", shared=False) == [len(NAMES) * each for each in one]


def test_agents_that_do_not_fit_are_refused() -> None:
    estimate = EstimateAdvantage()
    batch = make_batch(random_numbers(1), "dictionary")
    value = ArrayDict({name: batch["agent_info"]["value"][name] for name in NAMES[:2]})
    wrong = ArrayDict({**batch, "agent_info": {"value": value}})
    with pytest.raises(ValueError, match=r"agent_info.value: got agents \['pinky', 'inky'\], exp"):
        estimate(wrong)
    axis = make_batch(random_numbers(1), "axis")
    with pytest.raises(ValueError, match=r"final_value: shape \(7, 3\), expected the agents \(3,"):
        estimate(ArrayDict({**axis, "final_value": batch["final_value"]["inky"]}))
    two = make_batch(random_numbers(1, Shape(N=2)), "axis")["valid"]
    with pytest.raises(ValueError, match=r"valid: got agents \(2,\) behind T and B, expected \(3"):
        estimate(ArrayDict({**axis, "valid": two}))
    with pytest.raises(ValueError, match=r"final_value: got agents \['pinky', 'inky', 'clyde'\], "):
        estimate(ArrayDict({**axis, "final_value": batch["final_value"]}))

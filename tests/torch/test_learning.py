"""From a batch to a better agent: transforms, minibatches, distributions, agents and PPO."""

import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from linear_agent import B, Model, T, make_agent, parameters, ppo_batch
from parllel import Array, ArrayDict
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import Minibatches
from parllel.samplers import BasicSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Clock
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage
from parllel.tree.whole_files import CheckedWriter


def copied(tree: ArrayDict) -> dict[str, Any]:
    return leaves(tree.apply(np.array))


def assert_unchanged(tree: ArrayDict, before: dict[str, Any]) -> None:
    assert list(leaves(tree)) == list(before)
    for path, leaf in leaves(tree).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


# Transforms


def random_batch(seed: int = 0, **window: Any) -> ArrayDict:
    """Return a batch like that of a sampler, with ends everywhere."""
    rng = np.random.default_rng(seed)
    batch = ArrayDict(
        {
            "reward": Array((T, B), np.float32, **window),
            "terminated": Array((T, B), bool, **window),
            "truncated": Array((T, B), bool, **window),
            "final_value": Array((T, B), np.float32, **window),
            "agent_info": {"value": Array((T, B), np.float32, padding=1, **window)},
        }
    )
    batch.rotate()
    batch["reward"][...] = 3 * rng.standard_normal((T, B))
    batch["terminated"][...] = rng.random((T, B)) < 0.2
    batch["truncated"][...] = rng.random((T, B)) < 0.2
    batch["final_value"][...] = rng.standard_normal((T, B))
    batch["agent_info"]["value"][: T + 1] = rng.standard_normal((T + 1, B))
    return batch


def gae(batch: ArrayDict, discount: float, gae_lambda: float) -> np.ndarray:
    """Return the advantages of the formula in the kernel's docstring, in double precision."""
    value = batch["agent_info"]["value"][: T + 1].to_ndarray().astype(np.float64)
    reward, final_value = (
        batch[name].to_ndarray().astype(np.float64) for name in ("reward", "final_value")
    )
    terminated, truncated = batch["terminated"].to_ndarray(), batch["truncated"].to_ndarray()
    advantage = np.zeros((T + 1, B))
    for t in reversed(range(T)):
        for b in range(B):
            following = final_value[t, b] if truncated[t, b] else value[t + 1, b]
            delta = reward[t, b] - value[t, b]
            delta += 0 if terminated[t, b] else discount * following
            is_end = terminated[t, b] or truncated[t, b]
            advantage[t, b] = delta + (0 if is_end else discount * gae_lambda * advantage[t + 1, b])
    return advantage[:T]


@pytest.mark.parametrize("window", [{}, {"full_size": 3 * T}])
@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 0.95), (1, 1), (0.9, 0), (0, 0.5)])
def test_advantages_are_those_of_the_formula(
    discount: float, gae_lambda: float, window: dict[str, int]
) -> None:
    transform = EstimateAdvantage(discount=discount, gae_lambda=gae_lambda)
    for seed in (1, 2):  # the second call overwrites the first one's arrays
        batch = random_batch(seed, **window)
        result = transform(batch)
        expected = gae(batch, discount, gae_lambda)
        value = batch["agent_info"]["value"].to_ndarray()
        # The kernel's bound, (T + 1) * 2**-22 * M, where the magnitudes sum up to M < 100 here.
        atol = (T + 1) * 2**-22 * 100
        np.testing.assert_allclose(result["advantage"], expected, rtol=0, atol=atol)
        np.testing.assert_allclose(result["return_"], expected + value, rtol=0, atol=atol)
        assert result["advantage"].dtype == result["return_"].dtype == np.float32


class Constant:
    """An agent that values every observation at 10."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n = len(observation)
        return np.zeros(n, np.int64), {"value": np.full(n, 10, np.float32)}

    def value(self, observation: Any) -> Any:
        return np.full(len(observation), 10, np.float32)


@pytest.mark.parametrize(
    ("end", "at_end"),
    # reward 1 and value 10: with a value of 10 after it 1 + 0.99 * 10 - 10, without 1 - 10
    [("truncated", 0.9), ("terminated", -9.0), ("both", -9.0)],
)
def test_a_truncated_episode_is_bootstrapped_through_the_samplers_tree(
    end: str, at_end: float
) -> None:
    agent = Constant()
    kwargs = {"length": 4, "end": end, "reward_type": _always_1}
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B))
    transform = EstimateAdvantage(discount=0.99, gae_lambda=0.95)
    with SerialCage(Clock, kwargs, n_envs=B) as cage:
        sampler = BasicSampler([cage], agent, samples)
        for _ in range(3):
            samples["final_value"][...] = np.nan  # what no truncation fills is never read
            advantage = transform(sampler.collect_batch()[0])["advantage"].to_ndarray()
            is_end = np.arange(T) % 4 == 3
            np.testing.assert_allclose(advantage[is_end], at_end, rtol=1e-6)
            before = 0.9 + 0.99 * 0.95 * at_end
            np.testing.assert_allclose(advantage[:-1][is_end[1:]], before, rtol=1e-5)


def _always_1(_: int) -> float:
    return 1.0


def test_normalized_advantages_have_mean_0_and_deviation_1() -> None:
    batch = EstimateAdvantage()(random_batch())
    before = batch["advantage"].to_ndarray().copy()
    after = NormalizeAdvantage()(batch)["advantage"].to_ndarray()
    # float32: T * B = 60 values of about 1 are off by less than 60 roundings of 2**-24.
    assert abs(after.mean()) < 60 * 2**-24
    assert abs(after.std() - 1) < 60 * 2**-24
    expected = (before - before.mean(dtype=np.float64)) / before.std(dtype=np.float64)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)


def test_equal_advantages_are_normalized_to_zeros() -> None:
    batch = ArrayDict({"advantage": Array((T, B), np.float32)})
    batch["advantage"][...] = 0.3
    after = NormalizeAdvantage()(batch)["advantage"].to_ndarray()
    assert np.isfinite(after).all()
    assert abs(after).max() < 60 * 2**-24 * 0.3 / 1e-8


@pytest.mark.parametrize("bounds", [(-1, 1), (0, 0.5), (-math.inf, 2)])
def test_rewards_are_clipped(bounds: tuple[float, float]) -> None:
    batch = random_batch(full_size=2 * T)
    before = batch["reward"].to_ndarray().copy()
    clipped = ClipRewards(*bounds)(batch)["reward"]
    np.testing.assert_array_equal(clipped, np.minimum(np.maximum(before, bounds[0]), bounds[1]))
    assert (clipped.to_ndarray() != before).any()


@pytest.mark.parametrize(
    "transform", [EstimateAdvantage(), NormalizeAdvantage(), ClipRewards(-0.1, 0.1)]
)
def test_a_transform_leaves_the_batch_as_it_was(transform: Any) -> None:
    batch = ArrayDict({**random_batch(), "advantage": Array((T, B), np.float32)})
    batch["advantage"][...] = np.random.default_rng(0).random((T, B))
    items, before = dict(batch), copied(batch)
    results = [transform(batch), transform(batch)]
    assert_unchanged(batch, before)
    assert dict(batch).keys() == items.keys()
    assert all(batch[name] is item for name, item in items.items())
    for name in results[0]:  # new leaves live in the transform and are overwritten by its next call
        assert results[1][name] is results[0][name]
    assert results[0]["terminated"] is batch["terminated"]


def test_transforms_refuse_numbers_that_make_no_sense() -> None:
    for name in ("discount", "gae_lambda"):
        for number in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=f"^{name}: got {number}"):
                EstimateAdvantage(**{name: number})
    for bounds in ((1, 1), (2, 1), (math.nan, 1)):
        with pytest.raises(ValueError, match="low < high"):
            ClipRewards(*bounds)


# Minibatches


def aligned_batch() -> ArrayDict:
    """Return leaves of several kinds that tell their row's number, 0 to T * B - 1."""
    number = np.arange(T * B).reshape(T, B)
    batch = ArrayDict(
        {
            "number": Array((T, B), np.int64, padding=1, full_size=2 * T),
            "nested": {"wide": Array((T, B), np.float32, feature_shape=(2, 3))},
            "flag": Array((T, B), bool),
            "env_info": {},
        }
    )
    batch.rotate()
    batch["number"][...] = number
    batch["nested"]["wide"][...] = np.arange(6).reshape(2, 3) + 10 * number[:, :, None, None]
    batch["flag"][...] = number % 2 == 0
    return batch


def numbers_of(minibatches: Minibatches, batch: ArrayDict) -> list[list[int]]:
    """Return the rows' numbers in the minibatches of one pass."""
    return [part["number"].tolist() for part in minibatches.of(batch)]


@pytest.mark.parametrize("n_minibatches", [1, 2, 6, T * B])
def test_each_row_comes_once_in_each_pass(n_minibatches: int) -> None:
    minibatches = Minibatches(n_minibatches, np.random.default_rng(0))
    for _ in range(3):
        parts = numbers_of(minibatches, aligned_batch())
        assert [len(part) for part in parts] == [T * B // n_minibatches] * n_minibatches
        assert sorted(chain(*parts)) == list(range(T * B))


def test_rows_stay_together_over_all_leaves() -> None:
    for part in Minibatches(4, np.random.default_rng(0)).of(aligned_batch()):
        number = part["number"].numpy()
        expected = np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * number[:, None, None]
        np.testing.assert_array_equal(part["nested"]["wide"], expected)
        np.testing.assert_array_equal(part["flag"], number % 2 == 0)
        assert {path: leaf.dtype for path, leaf in leaves(part).items()} == {
            "number": torch.int64,
            "nested.wide": torch.float32,
            "flag": torch.bool,
        }


def test_a_remainder_is_left_out_and_differs_from_pass_to_pass() -> None:
    minibatches = Minibatches(7, np.random.default_rng(0))
    left_out = []
    for _ in range(5):
        parts = numbers_of(minibatches, aligned_batch())
        assert [len(part) for part in parts] == [8] * 7
        drawn = set(chain(*parts))
        assert len(drawn) == 56
        left_out.append(frozenset(range(T * B)) - drawn)
    assert len(set(left_out)) == 5


def test_the_order_is_the_generators() -> None:
    def two_passes(seed: int) -> list[list[list[int]]]:
        minibatches = Minibatches(4, np.random.default_rng(seed))
        return [numbers_of(minibatches, aligned_batch()) for _ in range(2)]

    assert two_passes(1) == two_passes(1)
    assert two_passes(1) != two_passes(2)
    assert two_passes(1)[0] != two_passes(1)[1]


def test_all_minibatches_are_in_the_same_memory() -> None:
    minibatches = Minibatches(3, np.random.default_rng(0))
    parts = [part for _ in range(2) for part in minibatches.of(aligned_batch())]
    for path in ("number", "flag"):
        assert len({part[path].data_ptr() for part in parts}) == 1


def test_batches_of_another_form_may_follow() -> None:
    minibatches = Minibatches(5, np.random.default_rng(0))
    batch = aligned_batch()
    for other in (batch, batch[:5], ArrayDict({"number": batch["number"]}), batch):
        parts = numbers_of(minibatches, other)
        assert sorted(chain(*parts)) == list(range(other["number"].size))
    for part in minibatches.of(batch):
        np.testing.assert_array_equal(part["flag"], part["number"].numpy() % 2 == 0)


def test_minibatches_leave_the_batch_as_it_was() -> None:
    batch = aligned_batch()
    before = copied(batch)
    for part in Minibatches(3, np.random.default_rng(0)).of(batch):
        part["number"][...] = -1
    assert_unchanged(batch, before)


@pytest.mark.parametrize("n_minibatches", [0, -1])
def test_a_number_of_minibatches_is_positive(n_minibatches: int) -> None:
    with pytest.raises(ValueError, match=f"n_minibatches: got {n_minibatches}, expected 1 or more"):
        Minibatches(n_minibatches, np.random.default_rng(0))


def test_more_minibatches_than_rows_are_an_error() -> None:
    minibatches = Minibatches(T * B + 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"got {T * B + 1}, expected at most {T * B}, the rows"):
        next(minibatches.of(aligned_batch()))


# Categorical


def both_kinds(probs: Tensor) -> list[DistParams]:
    """Return the same distribution as probabilities and as logits that are off by a constant."""
    return [DistParams(probs=probs), DistParams(logits=probs.log() + 3)]


@pytest.mark.parametrize("kind", [0, 1])
def test_actions_are_drawn_with_their_probabilities(kind: int) -> None:
    probs, n = torch.tensor([[0.7, 0.25, 0.05], [0.1, 0.1, 0.8]]), 40_000
    categorical = Categorical(3)
    log_probs = categorical.normalize(both_kinds(probs)[kind])
    rows = log_probs.repeat(n, 1, 1)
    action = categorical.sample(rows, torch.Generator().manual_seed(0))
    assert action.shape == (n, 2)
    assert action.dtype == torch.int64
    for row in range(2):
        counts = torch.bincount(action[:, row], minlength=3)
        chi_square = float(((counts - n * probs[row]) ** 2 / (n * probs[row])).sum())
        # With 2 degrees of freedom, P(chi_square > x) = exp(-x / 2): one in a million here.
        assert chi_square < 2 * math.log(1e6)
    # Rows and draws are independent: so often are both actions 0.
    both = float(((action == 0).all(dim=1)).float().mean())
    assert abs(both - 0.7 * 0.1) < 5 * math.sqrt(0.07 * 0.93 / n)


def test_the_generator_decides_the_actions() -> None:
    log_probs = Categorical(4).normalize(DistParams(logits=torch.zeros(100, 4)))
    draws = [
        Categorical(4).sample(log_probs, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(3)
    first = Categorical(4).sample(log_probs)
    torch.manual_seed(3)
    assert torch.equal(Categorical(4).sample(log_probs), first)


def test_an_action_of_probability_0_is_never_drawn() -> None:
    probs = torch.tensor([0.5, 0.0, 0.5]).expand(100_000, 3)
    for dist_params in both_kinds(probs):
        log_probs = Categorical(3).normalize(dist_params)
        action = Categorical(3).sample(log_probs, torch.Generator().manual_seed(0))
        assert set(action.unique().tolist()) == {0, 2}


@pytest.mark.parametrize("kind", [0, 1])
def test_log_probability_and_entropy_are_those_of_torch(kind: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 6, generator=generator)
    action = torch.randint(0, 6, (50,), generator=generator)
    reference = torch.distributions.Categorical(logits=logits)
    log_probs = Categorical(6).normalize(both_kinds(reference.probs)[kind])
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(
        Categorical(6).log_prob(log_probs, action), reference.log_prob(action), **close
    )
    torch.testing.assert_close(Categorical(6).entropy(log_probs), reference.entropy(), **close)
    assert torch.equal(Categorical(6).mode(log_probs), reference.mode)


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_probability_0_has_finite_entropy_and_gradients(kind: str) -> None:
    given = {"probs": [[0.0, 0.25, 0.75]], "logits": [[-math.inf, 0.0, math.log(3)]]}[kind]
    parameter = torch.tensor(given, requires_grad=True)
    categorical = Categorical(3)
    log_probs = categorical.normalize(DistParams(**{kind: parameter}))
    entropy = categorical.entropy(log_probs)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy.item() == pytest.approx(expected, rel=1e-5)
    loss = entropy.sum() + categorical.log_prob(log_probs, torch.tensor([2])).sum()
    loss.backward()
    assert parameter.grad is not None
    assert parameter.grad.isfinite().all()


def test_dist_params_are_either_probs_or_logits() -> None:
    for params in ({}, {"probs": torch.ones(1), "logits": torch.ones(1)}):
        with pytest.raises(TypeError, match="either probs or logits"):
            DistParams(**params)


def test_a_choice_needs_an_action() -> None:
    with pytest.raises(ValueError, match="dim: got 0"):
        Categorical(0)


# The agent


def test_a_step_gives_what_the_model_says() -> None:
    agent, observation = make_agent(), torch.randn(50, 3)
    action, agent_info = agent.step(observation)
    outputs = agent.model(observation)
    log_probs = outputs.dist_params.logits.detach().log_softmax(-1)
    assert action.shape == (50,)
    assert agent_info.keys() == {"value", "log_prob"}
    torch.testing.assert_close(agent_info["value"], outputs.value)
    torch.testing.assert_close(agent_info["log_prob"], log_probs[torch.arange(50), action])
    torch.testing.assert_close(agent.value(observation), outputs.value)
    assert not agent_info["value"].requires_grad
    assert not agent_info["log_prob"].requires_grad
    assert len(set(action.tolist())) == 4


def test_a_deterministic_step_takes_the_most_probable_action() -> None:
    agent, observation = make_agent(), torch.randn(50, 3)
    action, agent_info = agent.step(observation, deterministic=True)
    logits = agent.model(observation).dist_params.logits
    assert torch.equal(action, logits.argmax(-1))
    torch.testing.assert_close(agent_info["log_prob"], logits.log_softmax(-1).amax(-1))
    assert not torch.equal(agent.step(observation)[0], action)


def test_evaluate_has_gradients() -> None:
    agent, observation = make_agent(), torch.randn(8, 3)
    action, agent_info = agent.step(observation)
    evaluation = agent.evaluate(observation, action.clone())  # as from the tree: it copies
    torch.testing.assert_close(evaluation.log_prob, agent_info["log_prob"])
    torch.testing.assert_close(evaluation.value, agent_info["value"])
    (evaluation.log_prob + evaluation.entropy + evaluation.value).sum().backward()
    assert all(parameter.grad is not None for parameter in agent.model.parameters())


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_arrays_are_read_without_a_copy(storage: str) -> None:
    agent = make_agent()
    array = Array((4, 6), np.float32, feature_shape=(3,), storage=storage, padding=1)
    for call in (agent.step, agent.value, lambda rows: agent.evaluate(rows, torch.zeros(6).long())):
        for rows in (array[2], array[2].to_ndarray(), array[2].to_torch()):
            agent.model.seen.clear()
            call(rows)
            assert agent.model.seen == [array[2].to_ndarray().ctypes.data]


def test_trees_of_arrays_are_read_without_a_copy() -> None:
    seen = []

    def model(observation: Any) -> ModelOutputs:
        seen.append(observation["a"]["b"].data_ptr())
        rows = observation["a"]["b"] + observation["c"]
        return ModelOutputs(DistParams(logits=rows), rows.sum(-1))

    tree = ArrayDict({"a": {"b": Array((5, 2), np.float32)}, "c": Array((5, 2), np.float32)})
    agent = CategoricalPgAgent(model, Categorical(2), tree)
    action, _ = agent.step(tree)
    assert action.shape == (5,)
    assert set(seen) == {tree["a"]["b"].to_ndarray().ctypes.data}


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (lambda rows: (rows, rows), TypeError, "model: it returned a tuple, expected ModelOutputs"),
        (
            lambda rows: ModelOutputs(DistParams(logits=rows[:, :2]), rows[:, 0]),
            ValueError,
            r"model: dist_params has shape \(7, 2\), expected \(7, 3\) for 7 rows",
        ),
        (
            lambda rows: ModelOutputs(DistParams(probs=rows.softmax(-1)), rows[:, :1]),
            ValueError,
            r"model: value has shape \(7, 1\), expected \(7,\)",
        ),
    ],
)
def test_a_model_with_wrong_outputs_is_found_at_once(
    outputs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CategoricalPgAgent(outputs, Categorical(3), np.zeros((7, 3), np.float32))


def test_a_model_on_another_device_than_the_observations_is_found_at_once() -> None:
    with pytest.raises(ValueError, match=r"on meta, and the observations on cpu; move it with"):
        CategoricalPgAgent(Model().to("meta"), Categorical(3), np.zeros((7, 3), np.float32))


def test_making_an_agent_draws_no_random_number() -> None:
    torch.manual_seed(0)
    before, generator = torch.get_rng_state(), torch.Generator().manual_seed(1)
    state = generator.get_state()
    CategoricalPgAgent(Constant3(), Categorical(3), np.zeros((2, 3), np.float32), generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), state)


class Constant3:
    def __call__(self, observation: Tensor) -> ModelOutputs:
        return ModelOutputs(DistParams(logits=torch.zeros(len(observation), 3)), observation[:, 0])


def test_a_saved_agent_is_loaded(tmp_path: Path) -> None:
    agent, other = make_agent(0), make_agent(1)
    observation = torch.randn(20, 3)
    assert not torch.equal(agent.value(observation), other.value(observation))
    agent.save(tmp_path / "agent.safetensors")
    other.load(tmp_path / "agent.safetensors")
    assert torch.equal(agent.value(observation), other.value(observation))
    actions = [each.step(observation, deterministic=True)[0] for each in (agent, other)]
    assert torch.equal(*actions)


def test_a_save_that_breaks_off_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, path = make_agent(0), tmp_path / "agent.safetensors"
    agent.save(path)
    former = path.read_bytes()

    write = CheckedWriter.write

    def break_off(file: CheckedWriter, data: bytes) -> int:
        write(file, data[:10])
        raise OSError("the disk is full")

    monkeypatch.setattr(CheckedWriter, "write", break_off)
    with pytest.raises(OSError, match="the disk is full"):
        agent.save(path)
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_without_parameters_cannot_be_saved(tmp_path: Path) -> None:
    agent = CategoricalPgAgent(Constant3(), Categorical(3), np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match=r"model: got a Constant3, expected a torch\.nn\.Module"):
        agent.save(tmp_path / "agent.safetensors")


# PPO


def ppo_by_hand(agent: CategoricalPgAgent, batch: ArrayDict, settings: PPOSettings) -> Any:
    """Return the loss of a whole batch and its parts: eq. 7 and 9 of the paper, row by row."""
    rows = []
    for t in range(T):
        for b in range(B):
            outputs = agent.model(torch.tensor(batch["observation"][t, b].to_ndarray()))
            log_probs = outputs.dist_params.logits.log_softmax(-1)
            log_prob = log_probs[batch["action"][t, b].item()]
            log_ratio = log_prob - batch["agent_info"]["log_prob"][t, b].item()
            ratio, advantage = log_ratio.exp(), batch["advantage"][t, b].item()
            low, high = 1 - settings.clip, 1 + settings.clip
            is_clipped = not low <= ratio <= high
            bounded = torch.tensor(min(max(ratio.item(), low), high)) if is_clipped else ratio
            rows.append(
                {
                    "policy_loss": -torch.minimum(ratio * advantage, bounded * advantage),
                    "value_loss": (outputs.value - batch["return_"][t, b].item()) ** 2 / 2,
                    "entropy": -(log_probs.exp() * log_probs).sum(),
                    "kl": ratio.detach() - 1 - log_ratio.detach(),
                    "clip_fraction": torch.tensor(float(is_clipped)),
                }
            )
    means = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    loss = means["policy_loss"] + settings.value_coefficient * means["value_loss"]
    loss = loss - settings.entropy_coefficient * means["entropy"]
    return loss, {name: mean.item() for name, mean in means.items()}


class Counting(torch.optim.SGD):
    """Count the steps."""

    n_steps = 0

    def step(self, closure: Any = None) -> Any:
        self.n_steps += 1
        return super().step(closure)


def make_ppo(
    agent: CategoricalPgAgent, *, lr: float = 0.1, **settings: Any
) -> tuple[PPO, Counting]:
    optimizer = Counting(agent.model.parameters(), lr=lr)
    return PPO(agent, optimizer, PPOSettings(**settings), rng=np.random.default_rng(0)), optimizer


@pytest.mark.parametrize("clip", [0.05, 0.2])
@pytest.mark.parametrize("max_grad_norm", [1e9, 0.1])
def test_an_update_is_that_of_a_plain_reimplementation(clip: float, max_grad_norm: float) -> None:
    agent = make_agent()
    batch = ppo_batch(agent, off_policy=0.3)
    settings: dict[str, Any] = {
        "n_epochs": 1,
        "n_minibatches": 1,
        "clip": clip,
        "value_coefficient": 0.7,
        "entropy_coefficient": 0.03,
        "max_grad_norm": max_grad_norm,
    }
    loss, means = ppo_by_hand(agent, batch, PPOSettings(**settings))
    gradient = torch.cat(
        [part.flatten() for part in torch.autograd.grad(loss, agent.model.parameters())]
    )
    norm = float(gradient.norm())
    assert norm > 0.1
    before = parameters(agent)
    ppo, _ = make_ppo(agent, lr=1, **settings)
    numbers = ppo.optimize(batch)
    step = before - parameters(agent)
    # Sums of T * B = 60 float32 numbers of about 1, in another order: 60 roundings of 2**-24.
    expected = gradient * min(1, max_grad_norm / norm)
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=60 * 2**-24)
    assert 0 < means["clip_fraction"] < 1
    for name, mean in means.items():
        assert numbers[name] == pytest.approx(mean, rel=1e-4, abs=60 * 2**-24), name
    assert (numbers["n_updates"], numbers["learning_rate"]) == (1, 1)


def test_one_update_makes_good_actions_more_probable() -> None:
    agent = make_agent()
    batch = ppo_batch(agent)
    ppo, _ = make_ppo(agent, n_epochs=1, n_minibatches=1, value_coefficient=0)
    flat = batch.to_ndarray()
    rows, action = torch.tensor(flat["observation"]), torch.tensor(flat["action"]).long()
    advantage = torch.tensor(flat["advantage"])
    before = (agent.evaluate(rows, action).log_prob * advantage).mean().item()
    ppo.optimize(batch)
    assert (agent.evaluate(rows, action).log_prob * advantage).mean().item() > before


def test_each_epoch_takes_all_minibatches() -> None:
    agent = make_agent()
    ppo, optimizer = make_ppo(agent, n_epochs=3, n_minibatches=4)
    numbers = ppo.optimize(ppo_batch(agent))
    assert optimizer.n_steps == numbers["n_updates"] == 3 * 4
    assert all(math.isfinite(number) for number in numbers.values())


def test_without_a_limit_or_far_below_it_nothing_changes() -> None:
    results = []
    for limit in (None, 1e9):
        agent = make_agent()
        ppo, _ = make_ppo(agent, kl_limit=limit)
        numbers = ppo.optimize(ppo_batch(agent))
        results.append((numbers, parameters(agent)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_the_kl_limit_ends_the_updates_of_a_batch_and_of_that_batch_only() -> None:
    agent = make_agent()
    ppo, optimizer = make_ppo(agent, lr=0.5, n_epochs=50, n_minibatches=1, kl_limit=0.02)
    for seed in range(3):
        optimizer.n_steps = 0
        batch = ppo_batch(agent, seed=seed)
        numbers = ppo.optimize(batch)
        assert 0 < optimizer.n_steps < 50
        assert all(math.isfinite(number) for number in numbers.values())
        # The last update is the one that went over the limit: the next one is not made.
        _, means = ppo_by_hand(agent, batch, PPOSettings())
        assert means["kl"] > 0.02


def test_n_updates_counts_the_optimizers_steps_at_the_kl_limit_too() -> None:
    agent = make_agent()
    ppo, optimizer = make_ppo(agent, lr=0.5, n_epochs=50, n_minibatches=1, kl_limit=0.02)
    numbers = ppo.optimize(ppo_batch(agent))
    assert numbers["n_updates"] == optimizer.n_steps


def test_a_limit_that_the_first_minibatch_reaches_stops_everything_and_does_not_crash() -> None:
    agent = make_agent()
    optimizer = Counting(agent.model.parameters(), lr=0.5)
    settings = PPOSettings(kl_limit=1e-3)
    ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
    before = parameters(agent)
    numbers = ppo.optimize(ppo_batch(agent, off_policy=1.0))
    assert optimizer.n_steps == 0
    assert torch.equal(parameters(agent), before)
    assert numbers["kl"] > 1e-3
    assert all(math.isfinite(number) for number in numbers.values())


def test_learning_leaves_the_batch_as_it_was() -> None:
    agent = make_agent()
    batch = ppo_batch(agent)
    before = copied(batch)
    make_ppo(agent)[0].optimize(batch)
    assert_unchanged(batch, before)


def test_the_generator_decides_the_minibatches() -> None:
    results = []
    for seed in (0, 0, 1):
        agent = make_agent()
        optimizer = Counting(agent.model.parameters(), lr=0.1)
        ppo = PPO(agent, optimizer, rng=np.random.default_rng(seed))
        ppo.optimize(ppo_batch(agent))
        results.append(parameters(agent))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    "wrong",
    [{"n_epochs": 0}, {"n_minibatches": 0}, {"clip": 0}, {"max_grad_norm": -1}, {"kl_limit": 0}],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: got"):
        PPOSettings(**wrong)


def test_leaves_of_different_lengths_are_no_batch() -> None:
    minibatches = Minibatches(2, np.random.default_rng(0))
    batch = ArrayDict({"a": np.zeros((4, 2)), "b": np.zeros((2, 2))})
    for wrong in (batch, ArrayDict()):
        with pytest.raises(ValueError, match=r"batch: got leaves of .* expected as many in all"):
            next(minibatches.of(wrong))


def test_a_model_may_keep_what_it_makes_at_its_first_call() -> None:
    class Lazy(torch.nn.Linear):
        scale: torch.Tensor | None = None

        def forward(self, observation: torch.Tensor) -> ModelOutputs:
            if self.scale is None:
                self.scale = torch.ones(3)
            logits, value = (super().forward(observation) * self.scale).split([2, 1], dim=-1)
            return ModelOutputs(DistParams(logits=logits), value.squeeze(-1))

    agent = CategoricalPgAgent(Lazy(4, 3), Categorical(2), np.zeros((1, 4), np.float32))
    evaluation = agent.evaluate(torch.ones(5, 4), torch.zeros(5, dtype=torch.int64))
    evaluation.value.sum().backward()
    assert agent.model.weight.grad is not None


def test_a_transform_takes_batches_of_another_length() -> None:
    normalize = NormalizeAdvantage()
    for n_steps in (4, 6):
        batch = ArrayDict({"advantage": Array((n_steps, 2), np.float32)})
        batch["advantage"][...] = np.arange(2 * n_steps).reshape(n_steps, 2)
        normalized = normalize(batch)["advantage"].to_ndarray()
        assert normalized.shape == (n_steps, 2)
        assert abs(normalized.mean()) < 1e-6

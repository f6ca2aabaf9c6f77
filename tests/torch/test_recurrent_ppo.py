"""PPO of an agent with a state: minibatches of whole environments, and updates computed by hand."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from long_run import all_but_first
from parllel import Array, ArrayDict
from parllel.cages import Cage, Command, SerialCage
from parllel.metrics import Metrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import Minibatches
from parllel.runners import RLRunner, load_run, save_run
from parllel.samplers import RecurrentSampler
from parllel.schedules import linear
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import PreviousInputs, RecurrentPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic, Gru, Lstm, Mlp, RecurrentNetwork
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage
from schedules import each_schedule

T, B = 10, 4


class Doubtful(SerialCage):
    """Calls every third step of its first environment invalid."""

    n_steps = 0

    def start_command(self, command: Command) -> None:
        self.n_steps += command.kind == "step"
        super().start_command(command)

    @property
    def invalid(self) -> Any:
        return (0,) if self.n_steps % 3 == 0 else ()


def make_agent(*, kind: Any = Lstm, has_previous: bool = True) -> RecurrentPgAgent:
    torch.manual_seed(0)
    previous = PreviousInputs(Walk.action_space) if has_previous else None
    n_inputs = 6 + (0 if previous is None else previous.n_features)
    head = ActorCritic(nn.Identity(), 4, n_features=8, policy_gain=2.0)
    model = RecurrentNetwork(Mlp(3, [6]), kind(n_inputs, 8), head)
    generator = torch.Generator().manual_seed(0)
    return RecurrentPgAgent(model, Categorical(4), torch.zeros(1, 3), generator, previous=previous)


def make_sampler(agent: Any, *, storage: str = "local", **tree: Any) -> RecurrentSampler:
    example = build_example(Walk, storage=storage)
    samples = build_sample_tree(example, agent, batch_shape=(T, B), **tree)
    seeds = np.random.SeedSequence(0).spawn(B)
    cages: list[Cage] = [
        SerialCage(Walk, n_envs=2, seed=seeds[:2]),
        Doubtful(Walk, n_envs=2, seed=seeds[2:]),
    ]
    return RecurrentSampler(cages, agent, samples)


TRANSFORMS = [ClipRewards(-1, 1), EstimateAdvantage(), NormalizeAdvantage()]


def collect(sampler: RecurrentSampler, n_batches: int = 2) -> ArrayDict:
    for _ in range(n_batches):
        batch, _ = sampler.collect_batch()
    for transform in TRANSFORMS:
        batch = transform(batch)  # type: ignore[operator]
    return batch


def parameters(agent: RecurrentPgAgent) -> Tensor:
    return torch.cat([each.detach().flatten() for each in agent.model.parameters()])  # type: ignore[attr-defined]


def by_hand(
    agent: RecurrentPgAgent, batch: ArrayDict, envs: Any, settings: PPOSettings
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of some environments and its parts: step by step, each environment alone."""
    model: Any = agent.model
    flat = batch.to_ndarray()
    rows = []
    for env in envs:
        state = {
            name: torch.tensor(part[[env]]) for name, part in flat["initial_rnn_state"].items()
        }
        for t in range(T):
            previous = torch.tensor(flat["agent_info"]["previous"][t, [env]])[None]
            seen = torch.tensor(flat["observation"][t, [env]])[None]
            outputs, state = model(seen, state, None, previous)
            log_probs = outputs.dist_params.logits.log_softmax(-1)[0]
            log_prob = log_probs[int(flat["action"][t, env])]
            log_ratio = log_prob - float(flat["agent_info"]["log_prob"][t, env])
            ratio, advantage = log_ratio.exp(), float(flat["advantage"][t, env])
            bounded = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            is_over = flat["terminated"][t, env] or flat["truncated"][t, env]
            if is_over or not flat["valid"][t, env]:
                state = model.first_state(1)
            if not flat["valid"][t, env]:
                continue
            rows.append(
                {
                    "policy_loss": -torch.minimum(ratio * advantage, bounded * advantage),
                    "value_loss": (outputs.value[0] - float(flat["return_"][t, env])) ** 2 / 2,
                    "entropy": -(log_probs.exp() * log_probs).sum(),
                    "kl": ratio.detach() - 1 - log_ratio.detach(),
                    "clip_fraction": (ratio != bounded).float().detach(),
                }
            )
    means = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    loss = means["policy_loss"] + settings.value_coefficient * means["value_loss"]
    loss = loss - settings.entropy_coefficient * means["entropy"]
    return loss, {name: float(mean.detach()) for name, mean in means.items()}


@pytest.mark.parametrize("kind", all_but_first([Lstm, Gru]))
def test_an_update_is_that_of_a_loop_over_steps(kind: Any) -> None:
    agent = make_agent(kind=kind)
    batch = collect(make_sampler(agent))
    flat = batch.to_ndarray()
    assert 0 < (~flat["valid"]).sum() < T
    assert (flat["terminated"] | flat["truncated"])[:-1].any()
    noise = np.random.default_rng(0).normal(0, 0.3, (T, B)).astype(np.float32)
    batch["agent_info"]["log_prob"][...] = batch["agent_info"]["log_prob"].to_ndarray() + noise
    settings = PPOSettings(
        n_epochs=1, n_minibatches=1, entropy_coefficient=0.03, max_grad_norm=1e9, clip=0.1
    )
    loss, means = by_hand(agent, batch, range(B), settings)
    model: Any = agent.model
    gradient = torch.cat([x.flatten() for x in torch.autograd.grad(loss, model.parameters())])
    assert float(gradient.norm()) > 0.1
    before = parameters(agent)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    numbers = PPO(agent, optimizer, settings, rng=np.random.default_rng(0)).optimize(batch)
    # Sums of T * B = 40 numbers of about 1, in another order, through layers of 8: 1e-5 is far off.
    torch.testing.assert_close(before - parameters(agent), gradient, rtol=1e-3, atol=2e-5)
    assert 0 < means["clip_fraction"] < 1
    for name, mean in means.items():
        assert numbers[name] == pytest.approx(mean, rel=1e-4, abs=1e-5), name


def test_each_minibatch_divides_by_its_own_valid_steps() -> None:
    """Three of four environments have valid steps only: the means differ from one to the other."""
    agent = make_agent()
    batch = collect(make_sampler(agent))
    settings = PPOSettings(n_epochs=1, n_minibatches=B, learning_rate=0.0)
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=1.0)  # type: ignore[attr-defined]
    numbers = PPO(agent, optimizer, settings, rng=np.random.default_rng(0)).optimize(batch)
    each = [by_hand(agent, batch, [env], settings)[1] for env in range(B)]
    assert numbers["n_updates"] == B
    for name in each[0]:
        expected = np.mean([means[name] for means in each])
        assert numbers[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name
    # Of a policy that has not changed, each ratio is 1 but for rounding.
    assert numbers["kl"] < 1e-6
    assert numbers["clip_fraction"] == 0


def test_what_is_in_rows_that_are_no_transitions_changes_nothing() -> None:
    results = []
    for is_spoiled in (False, True):
        agent = make_agent()
        batch = collect(make_sampler(agent))
        if is_spoiled:
            places = np.nonzero(~batch["valid"].to_ndarray())
            batch["advantage"][places] = 1e6
            batch["return_"][places] = np.nan
            batch["agent_info"]["log_prob"][places] = -50
            batch["agent_info"]["value"][places] = np.nan
            batch["agent_info"]["previous"][places] = np.nan
            batch["observation"][places] = np.nan
        optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
        settings = PPOSettings(n_minibatches=2, value_clip=0.5)
        numbers = PPO(agent, optimizer, settings, rng=np.random.default_rng(0)).optimize(batch)
        results.append((numbers, parameters(agent)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_a_minibatch_without_a_valid_step_has_no_loss() -> None:
    agent = make_agent()
    batch = collect(make_sampler(agent))
    batch["valid"][:, 1] = False
    settings = PPOSettings(n_epochs=1, n_minibatches=B)
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    numbers = PPO(agent, optimizer, settings, rng=np.random.default_rng(0)).optimize(batch)
    assert all(np.isfinite(number) for number in numbers.values())


def test_batches_without_a_state_are_refused() -> None:
    agent = make_agent()
    batch = collect(make_sampler(agent))
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)  # type: ignore[attr-defined]
    ppo = PPO(agent, optimizer, rng=np.random.default_rng(0))
    del batch["initial_rnn_state"]
    with pytest.raises(
        ValueError, match=r"no initial_rnn_state, expected the batch of a Recurrent"
    ):
        ppo.optimize(batch)
    batch = collect(make_sampler(agent))
    del batch["agent_info"]["previous"]
    with pytest.raises(ValueError, match="previous: the sequences have none, and the agent takes"):
        ppo.optimize(batch)


# Minibatches of whole environments


def numbered_batch() -> ArrayDict:
    number = np.arange(T * 6).reshape(T, 6)
    batch = ArrayDict(
        {
            "number": Array((T, 6), np.int64, padding=1, full_size=2 * T),
            "observation": {"wide": Array((T, 6), np.float32, feature_shape=(2, 3))},
            "valid": Array((T, 6), bool),
            "initial_rnn_state": {
                "hidden": Array((6,), np.float32, feature_shape=(1, 2)),
                "flag": Array((6,), bool),
            },
        }
    )
    batch.rotate()
    batch["number"][...] = number
    batch["observation"]["wide"][...] = number[..., None, None]
    batch["valid"][...] = number % 5 > 0
    batch["initial_rnn_state"]["hidden"][...] = np.arange(6)[:, None, None]
    batch["initial_rnn_state"]["flag"][...] = np.arange(6) % 2 == 0
    return batch


def check_pass(parts: list[dict[str, Any]], n_minibatches: int) -> None:
    """Hold one pass to what was numbered."""
    n_envs, drawn = 6 // n_minibatches, []
    assert len(parts) == n_minibatches
    for part in parts:
        columns = part["number"][0]
        drawn += columns.tolist()
        expected = columns + 6 * np.arange(T)[:, None]
        np.testing.assert_array_equal(part["number"], expected)
        assert part["wide"].shape == (T, n_envs, 2, 3)
        assert (part["wide"] == expected[..., None, None]).all()
        np.testing.assert_array_equal(part["valid"], expected % 5 > 0)
        assert part["hidden"].shape == (n_envs, 1, 2)
        np.testing.assert_array_equal(part["hidden"][:, 0, 1], columns)
        np.testing.assert_array_equal(part["flag"], columns % 2 == 0)
    assert len(drawn) == len(set(drawn)) == n_envs * n_minibatches


def passes_of(minibatches: Minibatches, batch: ArrayDict, n_minibatches: int) -> list[Any]:
    """Return what is in the minibatches of two passes, copied before the next one is gathered."""
    parts = []
    for part in minibatches.of(batch, n_passes=2):
        flat = {**part, **part["observation"], **part["initial_rnn_state"]}
        names = ("number", "wide", "valid", "hidden", "flag")
        parts.append({name: flat[name].cpu().numpy().copy() for name in names})
    return [parts[:n_minibatches], parts[n_minibatches:]]


@pytest.mark.parametrize("n_minibatches", [1, 2, 4, 6])
def test_a_minibatch_has_all_steps_of_its_environments(n_minibatches: int) -> None:
    minibatches = Minibatches(n_minibatches, np.random.default_rng(0), whole_envs=True)
    first, second = passes_of(minibatches, numbered_batch(), n_minibatches)
    check_pass(first, n_minibatches)
    check_pass(second, n_minibatches)
    orders = [[part["number"][0].tolist() for part in each] for each in (first, second)]
    assert orders[0] != orders[1] or n_minibatches == 1


@each_schedule
def test_on_the_device_minibatches_are_the_same(schedule: str, seed: int) -> None:
    def gather(batch: ArrayDict) -> list[Any]:
        minibatches = Minibatches(3, np.random.default_rng(0), whole_envs=True)
        return [
            {name: x.tolist() for name, x in part.items()}
            for each in passes_of(minibatches, batch, 3)
            for part in each
        ]

    expected = gather(numbered_batch())
    with simulated_cuda(schedule, seed) as simulation:
        batch = numbered_batch().to("device")
        before = simulation.counters.launches
        assert gather(batch) == expected
        assert simulation.counters.launches - before == 2 * 3 * 2  # the steps, and the states


def test_without_a_state_all_branches_have_steps() -> None:
    batch = numbered_batch()
    del batch["initial_rnn_state"]
    parts = Minibatches(3, np.random.default_rng(0), whole_envs=True).of(batch)
    assert all(part["number"].shape == (T, 2) for part in parts)


def test_parts_that_can_not_be_cut_are_refused() -> None:
    batch = numbered_batch()
    with pytest.raises(ValueError, match="got 7, expected at most 6, the environments of the batc"):
        Minibatches(7, np.random.default_rng(0), whole_envs=True).bind(batch)
    batch["initial_rnn_state"]["flag"] = Array((5,), bool)
    with pytest.raises(ValueError, match=r"initial_rnn_state.flag: got 5 rows, expected 6"):
        Minibatches(2, np.random.default_rng(0), whole_envs=True).bind(batch)
    batch = ArrayDict({"a": np.zeros((4, 3)), "b": np.zeros((6, 2))})
    with pytest.raises(ValueError, match=r"batch: got leaves of .* expected one shape"):
        Minibatches(2, np.random.default_rng(0), whole_envs=True).bind(batch)
    parts = Minibatches(2, np.random.default_rng(0), whole_envs=True).bind(numbered_batch())
    parts.shuffle()
    with pytest.raises(IndexError, match="number: got 2, expected a part below 2"):
        parts.gather(2)


# Training


class Recall(gym.Env[Any, Any]):
    """Show a number in the first step, and pay for the action of that number in the last one."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 4) -> None:
        self._length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step, self._cue = 0, int(self.np_random.integers(2))
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        is_right = self._step == self._length - 1 and action == self._cue
        self._step += 1
        return self._look(), float(is_right), self._step == self._length, False, {}

    def _look(self) -> Any:
        seen = np.zeros(3, np.float32)
        if self._step == 0:
            seen[self._cue] = 1
        seen[2] = self._step == self._length - 1
        return seen


def train_recall(n_steps: int) -> float:
    """Return the mean reward of the last 100 episodes; 0.5 is that of guessing."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    example = build_example(Recall, storage="local")
    head = ActorCritic(nn.Identity(), 2, n_features=16)
    model = RecurrentNetwork(Mlp(3, [16]), Gru(16, 16), head)
    agent = RecurrentPgAgent(model, Categorical(2), example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(16, 16))
    cages = build_cages(Recall, 16, seed=0, n_workers=0)
    sampler = RecurrentSampler(cages, agent, samples)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    settings = PPOSettings(n_minibatches=2, entropy_coefficient=0.01)
    ppo = PPO(agent, optimizer, settings, rng=np.random.default_rng(0))
    transforms = [EstimateAdvantage(), NormalizeAdvantage()]
    runner = RLRunner(sampler, ppo, Metrics(), n_steps=n_steps, transforms=transforms)
    return runner.run().mean_return


@pytest.mark.long
def test_what_was_seen_at_the_beginning_is_recalled_at_the_end() -> None:
    assert train_recall(10_000) > 0.95


def make_run(storage: str = "local") -> tuple[RecurrentSampler, PPO]:
    agent = make_agent()
    sampler = make_sampler(agent, storage=storage, full_size=2 * T)
    optimizer = torch.optim.Adam(agent.model.parameters())  # type: ignore[attr-defined]
    settings = PPOSettings(n_epochs=2, n_minibatches=2, learning_rate=linear(0.01, 0.0))
    return sampler, PPO(agent, optimizer, settings, rng=np.random.default_rng(0))


def learn(sampler: RecurrentSampler, ppo: PPO, numbers: range) -> list[dict[str, float]]:
    results = []
    for number in numbers:
        ppo.set_progress(number / 4)
        results.append(ppo.optimize(collect(sampler, 1)))
    return results


@each_schedule
def test_on_the_device_losses_are_the_same(schedule: str, seed: int) -> None:
    run = make_run()
    expected = learn(*run, range(4)), parameters(run[0].agent).tolist()
    with simulated_cuda(schedule, seed):
        run = make_run("device")
        assert (learn(*run, range(4)), parameters(run[0].agent).tolist()) == expected


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    sampler, ppo = make_run()
    learn(sampler, ppo, range(2))
    parts = {"agent": sampler.agent, "ppo": ppo, "samples": sampler.samples, "sampler": sampler}
    save_run(tmp_path, **parts)
    expected = learn(sampler, ppo, range(2, 4))
    other, resumed = make_run()
    parts = {"agent": other.agent, "ppo": resumed, "samples": other.samples, "sampler": other}
    load_run(tmp_path, **parts)
    for cage, own in zip(other.cages, sampler.cages, strict=True):
        if isinstance(cage, Doubtful):
            assert isinstance(own, Doubtful)
            cage.n_steps = own.n_steps - 2 * T  # it counts for itself
    assert learn(other, resumed, range(2, 4)) == expected
    assert torch.equal(parameters(other.agent), parameters(sampler.agent))

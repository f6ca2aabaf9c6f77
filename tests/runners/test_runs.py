"""From nothing to a trained agent: the builders, the runner and the example."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parllel import ArrayDict
from parllel.cages import SerialCage, TrajInfo
from parllel.kernels import targets
from parllel.metrics import Metrics, MetricsSink
from parllel.patterns import build_cages, build_eval_tree, build_example, build_sample_tree
from parllel.runners import Evaluator, RLRunner, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Clock, Walk
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.algos import PPO
from parllel.torch.distributions import Categorical, DistParams
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage

T, B = 12, 5


class Constant:
    """An agent that always does the same and values every observation at 10."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n = len(observation)
        return np.zeros(n, np.int64), {"value": np.full(n, 10, np.float32)}

    def value(self, observation: Any) -> Any:
        return np.full(len(observation), 10, np.float32)


class Model(nn.Module):
    def __init__(self, n_inputs: int, n_actions: int) -> None:
        super().__init__()
        self.pi, self.critic = nn.Linear(n_inputs, n_actions), nn.Linear(n_inputs, 1)

    def forward(self, observation: Tensor) -> ModelOutputs:
        dist_params = DistParams(logits=self.pi(observation))
        return ModelOutputs(dist_params=dist_params, value=self.critic(observation).squeeze(-1))


def make_agent(seed: int = 0, n_inputs: int = 3, n_actions: int = 4) -> CategoricalPgAgent:
    torch.manual_seed(seed)
    example, generator = np.zeros((1, n_inputs), np.float32), torch.Generator().manual_seed(seed)
    return CategoricalPgAgent(
        Model(n_inputs, n_actions), Categorical(n_actions), example, generator
    )


def parameters(agent: CategoricalPgAgent) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.model.parameters()])


# Patterns


def test_build_cages_makes_the_environments_of_one_seed() -> None:
    kwargs: dict[str, Any] = {"length": 2}
    cages = build_cages(Clock, 3, env_kwargs=kwargs, make_traj_info=TrajInfo, seed=0)
    assert sum(cage.n_envs for cage in cages) == 3
    assert kwargs == {"length": 2}
    for cage in cages:
        cage.close()


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_seed_sequence_is_not_used_up(n_workers: int) -> None:
    seed = np.random.SeedSequence(3)
    first = []
    for _ in range(2):
        (cage,) = build_cages(Walk, 2, seed=seed, n_workers=n_workers)
        with cage:
            cage.reset_async()
            first.append(cage.await_step()[0])
    assert seed.n_children_spawned == 0
    np.testing.assert_array_equal(*first)


def test_an_example_is_one_row_of_a_step_in_32_bits() -> None:
    example = build_example(Walk)
    assert leaves(example.shape) == {
        "observation": (1, 3),
        "action": (1,),
        "reward": (1,),
        "terminated": (1,),
        "truncated": (1,),
        "env_info.luck": (1,),
    }
    assert {path: leaf.dtype.name for path, leaf in leaves(example).items()} == {
        "observation": "float32",
        "action": "int32",
        "reward": "float32",
        "terminated": "bool",
        "truncated": "bool",
        "env_info.luck": "float32",
    }
    assert example["observation"].to_ndarray().any()


def test_an_example_leaves_the_keyword_arguments_alone_and_closes_its_environment() -> None:
    made: list[gym.Env] = []
    closed: list[gym.Env] = []

    class Closing(Clock):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            made.append(self)

        def close(self) -> None:
            closed.append(self)

    kwargs = {"length": 1}
    assert build_example(Closing, env_kwargs=kwargs)["terminated"][0].item() is True
    assert kwargs == {"length": 1}
    assert len(made) == 1
    assert made == closed


@pytest.mark.parametrize("storage", ["local", "shared"])
def test_a_sample_tree_has_what_the_example_and_the_agent_give(storage: str) -> None:
    agent, example = make_agent(), build_example(Walk)
    before, random_state = leaves(example.apply(np.array)), torch.get_rng_state()
    tree = build_sample_tree(example, agent, batch_shape=(T, B), storage=storage, full_size=2 * T)
    for path, leaf in leaves(example).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {path: (leaf.shape, leaf.padding) for path, leaf in leaves(tree).items()} == {
        "observation": ((T, B, 3), 1),
        "action": ((T, B), 0),
        "reward": ((T, B), 0),
        "terminated": ((T, B), 0),
        "truncated": ((T, B), 0),
        "env_info.luck": ((T, B), 0),
        "agent_info.value": ((T, B), 1),
        "agent_info.log_prob": ((T, B), 0),
        "final_value": ((T, B), 0),
    }
    assert set(leaves(tree.full_size).values()) == {2 * T}
    assert set(leaves(tree.storage).values()) == {storage}
    tree.close()


def test_a_sample_tree_draws_no_action_from_the_agent() -> None:
    agents = [make_agent(), make_agent()]
    build_sample_tree(build_example(Walk), agents[0], batch_shape=(T, B))
    observation = torch.zeros(200, 3)
    assert torch.equal(*[agent.step(observation)[0] for agent in agents])


def test_an_eval_tree_has_one_step_and_only_what_an_evaluation_writes() -> None:
    samples = build_sample_tree(build_example(Walk), make_agent(), batch_shape=(T, B))
    wide = samples.new_array(padding=3, full_size=2 * T)
    narrow = samples.new_array(batch_shape=(1, B), full_size=4)
    for training in (samples, wide, narrow):
        before = leaves(training.spec)
        tree = build_eval_tree(training, n_envs=4)
        assert leaves(tree.shape) == {
            "observation": (1, 4, 3),
            "action": (1, 4),
            "reward": (1, 4),
            "terminated": (1, 4),
            "truncated": (1, 4),
            "env_info.luck": (1, 4),
        }
        assert tree["observation"].padding == 1
        assert set(leaves(tree.full_size).values()) == {1}
        assert leaves(tree.dtype) == {path: before[path].dtype for path in leaves(tree)}
        assert leaves(training.spec) == before


# The runner


class Recorder(MetricsSink):
    """Keep what was logged."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.logs.append((step, values))

    def _finish(self) -> None:
        self.is_finished = True

    def series(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.logs if name in values}


class Script:
    """An algorithm that counts its batches, notes their sums, and fails when it is told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.sums: list[float] = []
        self._fail_at = fail_at

    def optimize(self, batch: ArrayDict) -> Mapping[str, float]:
        self.sums.append(float(batch["reward"].to_ndarray().sum()))
        if len(self.sums) == self._fail_at:
            raise FloatingPointError("the loss is NaN")
        return {"n_batches": len(self.sums)}


def run(
    algorithm: Any = None,
    *,
    eval_lengths: int | None = None,
    eval_every: int = 1,
    after: Any = (),
    n_steps: int = 200,
    resume: Any = None,
    **options: Any,
) -> tuple[Recorder, Any]:
    """Run on five clocks of episodes of 6 steps, 60 steps in a batch."""
    agent = Constant()
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B))
    recorder = Recorder()
    with (
        SerialCage(Clock, {"length": 6}, n_envs=B) as cage,
        SerialCage(Clock, {"length": eval_lengths or 1}, n_envs=2) as eval_cage,
    ):
        if eval_lengths:
            eval_sampler = EvalSampler([eval_cage], agent, n_episodes=4)
            options["after_batch"] = [every(eval_every, Evaluator(eval_sampler, after=after))]
        runner = RLRunner(
            BasicSampler([cage], agent, samples),
            algorithm or Script(),
            recorder,
            n_steps=n_steps,
            **options,
        )
        return recorder, runner.run(resume=resume)


BATCH = T * B
RETURN = 1 + 2 + 3 + 4 + 5 + 6


def test_a_run_collects_whole_batches_until_its_steps_are_done() -> None:
    for n_steps, n_batches in ((1, 1), (60, 1), (61, 2), (200, 4)):
        algorithm = Script()
        recorder, summary = run(algorithm, n_steps=n_steps)
        assert len(algorithm.sums) == n_batches
        assert [step for step, _ in recorder.logs] == [BATCH * (k + 1) for k in range(n_batches)]
        assert summary.n_steps == BATCH * n_batches
        assert summary.n_episodes == 2 * B * n_batches
        assert summary.mean_return == RETURN
        assert summary.sample_s > 0
        assert summary.learn_s > 0


def test_seconds_of_compiling_are_not_seconds_of_learning() -> None:
    class Compiling(Script):
        compiled_s = 0.0

        def optimize(self, batch: ArrayDict) -> dict[str, float]:
            start = time.perf_counter()
            time.sleep(0.5)
            self.compiled_s = time.perf_counter() - start
            targets._spent.seconds += self.compiled_s
            return super().optimize(batch)

    algorithm = Compiling()
    recorder, summary = run(algorithm, n_steps=BATCH)
    assert 0 < summary.learn_s < algorithm.compiled_s
    assert recorder.logs[-1][1]["time/learn_s"] == summary.learn_s


def test_a_run_logs_means_of_episodes_and_what_was_learned() -> None:
    recorder, _ = run()
    for number, (_, values) in enumerate(recorder.logs, start=1):
        assert values["train/episode_return"] == RETURN
        assert values["train/episode_length"] == 6
        assert values["train/n_episodes"] == 2 * B * number
        assert values["algo/n_batches"] == number
        assert values["time/sample_s"] > 0
        assert values["time/learn_s"] > 0


def test_log_every_thins_out_the_logs_and_keeps_the_last_one() -> None:
    recorder, _ = run(n_steps=5 * BATCH, log_every=2 * BATCH)
    assert recorder.series("algo/n_batches") == {2 * BATCH: 2, 4 * BATCH: 4, 5 * BATCH: 5}


def test_the_mean_is_over_a_window_of_episodes() -> None:
    class Growing(Clock):
        """Episodes of 1, 2, 3, ... steps."""

        def reset(self, **options: Any) -> Any:
            self._length = self._episode + 2
            return super().reset(**options)

    agent, recorder = Constant(), Recorder()
    samples = build_sample_tree(build_example(Growing), agent, batch_shape=(28, 1))
    with SerialCage(Growing) as cage:
        sampler = BasicSampler([cage], agent, samples)
        summary = RLRunner(sampler, Script(), recorder, n_steps=28, window=3).run()
    # 1 + 2 + ... + 7 = 28 steps; an episode of n steps pays n (n + 1) / 2.
    assert summary.n_episodes == 7
    assert recorder.series("train/episode_length") == {28: (5 + 6 + 7) / 3}
    assert summary.mean_return == (15 + 21 + 28) / 3


def test_a_run_without_an_ended_episode_has_no_mean() -> None:
    agent, recorder = Constant(), Recorder()
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, 1))
    with SerialCage(Clock, {"length": 100}) as cage:
        sampler = BasicSampler([cage], agent, samples)
        summary = RLRunner(sampler, Script(), recorder, n_steps=1).run()
    assert math.isnan(summary.mean_return)
    assert "train/episode_return" not in recorder.logs[0][1]


def test_transforms_are_applied_in_their_order() -> None:
    calls = []

    def note(batch: ArrayDict) -> ArrayDict:
        calls.append(float(batch["reward"].to_ndarray().max()))
        return batch

    algorithm = Script()
    run(algorithm, n_steps=1, transforms=[note, ClipRewards(0, 2), note, ClipRewards(0, 1), note])
    assert calls == [6, 2, 1]
    assert algorithm.sums == [BATCH]


def test_evaluations_come_after_every_so_many_steps_and_at_the_end() -> None:
    found = []
    recorder, _ = run(
        n_steps=5 * BATCH,
        eval_lengths=3,
        eval_every=2 * BATCH - 1,
        after=[lambda run, means: found.append((run.n_steps, run.is_done, means))],
    )
    # Multiples of 119 are reached by steps 120, 240 and 300 (119, 238, 357): the last is the end.
    expected = dict.fromkeys((2 * BATCH, 4 * BATCH, 5 * BATCH), 1 + 2 + 3)
    assert recorder.series("eval/episode_return") == expected
    means = {"episode_length": 3.0, "episode_return": 6.0}
    assert found == [(step, step == 5 * BATCH, means) for step in expected]
    assert set(recorder.series("train/episode_return").values()) == {RETURN}


def test_it_is_told_once_where_an_evaluation_gives_episodes_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[Any] = []
    with SerialCage(Clock, {"length": 9}, n_envs=2) as cage:
        for max_steps, n_told in ((9, 0), (8, 1)):
            caplog.clear()
            sampler = EvalSampler([cage], Constant(), n_episodes=2, max_steps=max_steps)
            evaluation = Evaluator(sampler, after=[lambda _, means: found.append(len(means))])
            for _ in range(2):
                evaluation(SimpleNamespace(n_steps=1, metrics=Recorder()))  # type: ignore[arg-type]
            told = [each.message for each in caplog.records if "0 of 2 episodes" in each.message]
            assert len(told) == n_told
    assert found == [2, 2, 0, 0]


def test_training_draws_the_same_with_evaluations_and_without() -> None:
    class Drawing(Constant):
        def step(self, observation: Any, *, deterministic: bool = False) -> Any:
            torch.rand(3)
            np.random.rand()  # noqa: NPY002
            return super().step(observation, deterministic=deterministic)

    agent = Drawing()
    with SerialCage(Clock, n_envs=2) as cage:
        evaluation = Evaluator(EvalSampler([cage], agent, n_episodes=2))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        evaluation(SimpleNamespace(n_steps=1, metrics=Recorder()))  # type: ignore[arg-type]
        drawn = torch.rand(1).item(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), np.random.rand())  # noqa: NPY002


def test_hooks_see_the_run_after_each_batch_in_their_order() -> None:
    seen: list[Any] = []
    hooks = [
        lambda run: seen.append((run.n_steps, run.is_done, dict(run.learned), run.mean_return)),
        lambda run: seen.append(len(seen)),
    ]
    run(n_steps=3 * BATCH, after_batch=hooks)
    batches = [(n * BATCH, n == 3, {"n_batches": n}, RETURN) for n in (1, 2, 3)]
    assert seen == [each for n, batch in enumerate(batches) for each in (batch, 2 * n + 1)]


def test_a_run_ends_early_when_it_is_told_to() -> None:
    last = []
    recorder, summary = run(
        n_steps=9 * BATCH,
        log_every=99 * BATCH,
        stop_when=lambda run: run.learned["n_batches"] == 4,
        after_batch=[every(99 * BATCH, lambda run: last.append(run.n_steps))],
    )
    assert summary.n_steps == 4 * BATCH
    assert [step for step, _ in recorder.logs] == last == [4 * BATCH]


def test_a_run_that_was_done_goes_on_only_where_there_are_more_steps() -> None:
    states: list[Any] = []
    stop_when = lambda run: run.n_steps >= 2 * BATCH  # noqa: E731
    run(
        n_steps=4 * BATCH,
        stop_when=stop_when,
        after_batch=[lambda run: states.append(run.state_dict())],
    )
    assert [state["is_done"] for state in states] == [False, True]

    class Saved:
        def load(self, runner: Any) -> bool:
            runner.load_state_dict(states[-1])
            return True

    for n_steps, n_more in ((4 * BATCH, 0), (5 * BATCH, 3)):
        algorithm = Script()
        _, summary = run(algorithm, n_steps=n_steps, resume=Saved())
        assert len(algorithm.sums) == n_more
        assert summary.n_steps == (2 + n_more) * BATCH


def test_a_run_without_a_save_to_resume_logs_its_steps_once() -> None:
    class Nothing:
        def load(self, runner: Any) -> bool:
            return False

    class Rewound(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.logs.append((BATCH, {"left": 1.0}))  # by the run that was cut off

        def _rewind(self, step: int) -> None:
            self.logs = [log for log in self.logs if log[0] <= step]

    agent, recorder = Constant(), Rewound()
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B))
    with SerialCage(Clock, n_envs=B) as cage:
        runner = RLRunner(BasicSampler([cage], agent, samples), Script(), recorder, n_steps=BATCH)
        runner.run(resume=Nothing())
    assert [step for step, _ in recorder.logs] == [BATCH]
    assert "left" not in recorder.logs[0][1]


def test_learning_begins_after_some_steps() -> None:
    algorithm = Script()
    recorder, _ = run(algorithm, n_steps=4 * BATCH, learn_after=2 * BATCH)
    assert len(algorithm.sums) == 2
    assert recorder.series("algo/n_batches") == {3 * BATCH: 1, 4 * BATCH: 2}
    with pytest.raises(ValueError, match="learn_after: got 60, expected 0 or more, and less than"):
        run(n_steps=BATCH, learn_after=BATCH)


def test_an_algorithm_is_told_how_far_the_run_is() -> None:
    class Scheduled(Script):
        def __init__(self) -> None:
            super().__init__()
            self.progress: list[float] = []

        def set_progress(self, progress: float) -> None:
            self.progress.append(progress)

    algorithm = Scheduled()
    run(algorithm, n_steps=3 * BATCH + 1)
    n_steps = 3 * BATCH + 1
    assert algorithm.progress == [0, BATCH / n_steps, 2 * BATCH / n_steps, 3 * BATCH / n_steps]


def test_a_hook_may_save_the_trained_agent(tmp_path: Path) -> None:
    agent, path = make_agent(n_inputs=2, n_actions=2), tmp_path / "agent.pt"
    before = parameters(agent)
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B))
    optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
    ppo = PPO(agent, optimizer, rng=np.random.default_rng(0))
    with SerialCage(Clock, n_envs=B) as cage:
        sampler = BasicSampler([cage], agent, samples)
        transforms = [EstimateAdvantage(), NormalizeAdvantage()]
        save = every(999, lambda _: agent.save(path))
        options: dict[str, Any] = {"transforms": transforms, "after_batch": [save]}
        RLRunner(sampler, ppo, Recorder(), n_steps=100, **options).run()
    other = make_agent(seed=1, n_inputs=2, n_actions=2)
    other.load(path)
    assert torch.equal(parameters(other), parameters(agent))
    assert not torch.equal(parameters(other), before)


def test_after_an_exception_the_metrics_are_open_and_can_be_closed() -> None:
    agent, recorder = Constant(), Recorder()
    metrics = Metrics(recorder)
    samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B))
    with SerialCage(Clock, n_envs=B) as cage:
        runner = RLRunner(BasicSampler([cage], agent, samples), Script(3), metrics, n_steps=999)
        with pytest.raises(FloatingPointError, match="the loss is NaN"):
            runner.run()
    metrics.log(999, {"still": 1})
    assert not recorder.is_finished
    metrics.close()
    assert recorder.is_finished
    assert [step for step, _ in recorder.logs] == [BATCH, 2 * BATCH, 999]


@pytest.mark.parametrize("name", ["n_steps", "log_every", "window"])
def test_a_run_needs_positive_counts(name: str) -> None:
    for count in (0, math.nan):
        with pytest.raises(ValueError, match=f"^{name}: got {count}, expected 1 or more"):
            run(**{name: count})


def test_a_hook_comes_after_a_positive_number_of_steps() -> None:
    for n_steps in (0, math.nan):  # NaN would be reached at the end alone
        with pytest.raises(ValueError, match=f"every: got {n_steps} steps, expected 1 or more"):
            every(n_steps, print)  # type: ignore[arg-type]  # what is tested


def test_what_is_no_function_is_refused_before_the_first_step() -> None:
    algorithm = Script()
    for options in ({"after_batch": [None]}, {"transforms": ["clip"]}, {"stop_when": True}):
        with pytest.raises(TypeError, match=f"{next(iter(options))}: got .*, expected a function"):
            run(algorithm, **options)
    with pytest.raises(TypeError, match="after_batch: got a function, expected a list of functio"):
        run(algorithm, after_batch=lambda run: None)
    with pytest.raises(TypeError, match="every: got None, expected a function"):
        every(10, None)  # type: ignore[arg-type]  # what is tested
    assert not algorithm.sums


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        (None, "got a NoneType of optimize, expected a dictionary"),
        ({"loss": torch.ones(2)}, r"got tensor.* of optimize as 'loss', expected a number"),
        ({"rate": 1.0, "loss": "1"}, "got '1' of optimize as 'loss', expected a number"),
    ],
)
def test_what_is_no_number_of_the_algorithm_is_named(learned: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"algorithm: {message}"):
        run(SimpleNamespace(optimize=lambda batch: learned), n_steps=1)


def test_a_clock_that_stands_still_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parllel.runners.rl_runner._work_seconds", lambda: 5.0)
    recorder, summary = run()
    assert (summary.sample_s, summary.learn_s) == (0, 0)
    assert recorder.logs[-1][1]["time/learn_share"] == 1


# Numbers that are not finite


class Spoilt(Clock):
    """Give a number in the place of a reward, or of an observation's first one, in one step."""

    def __init__(self, name: str, number: float) -> None:
        super().__init__(length=4)
        self._name, self._number = name, number

    def step(self, action: Any) -> Any:
        observation, reward, *others = super().step(action)
        if reward == 3:
            if self._name == "reward":
                reward = self._number
            else:
                observation = observation.copy()
                observation[0] = self._number
        return (observation, reward, *others)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "row"), [("reward", 2), ("observation", 3)])
def test_no_algorithm_learns_from_what_is_not_finite(name: str, row: int, number: float) -> None:
    algorithm, agent = Script(), Constant()
    samples = build_sample_tree(build_example(Clock, storage="local"), agent, batch_shape=(4, 2))
    with SerialCage(Spoilt, {"name": name, "number": number}, n_envs=2) as cage:
        runner = RLRunner(BasicSampler([cage], agent, samples), algorithm, Recorder(), n_steps=8)
        with pytest.raises(ValueError, match=f"{name} is {number} in row t = {row} of environment"):
            runner.run()
    assert not algorithm.sums


def test_a_transform_may_replace_what_is_not_finite() -> None:
    algorithm, agent = Script(), Constant()
    samples = build_sample_tree(build_example(Clock, storage="local"), agent, batch_shape=(4, 2))
    with SerialCage(Spoilt, {"name": "reward", "number": math.inf}, n_envs=2) as cage:
        sampler = BasicSampler([cage], agent, samples)
        clip = ClipRewards(0, 9)
        RLRunner(sampler, algorithm, Recorder(), n_steps=8, transforms=[clip]).run()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_of_the_algorithm_that_is_not_finite_ends_the_run(number: float) -> None:
    class Diverging:
        def optimize(self, batch: ArrayDict) -> dict[str, float]:
            return {"rate": 0.1, "loss": number}

    with pytest.raises(ValueError, match=rf"algorithm: got {{'loss': {number}}}.* is finite"):
        run(Diverging(), n_steps=1)

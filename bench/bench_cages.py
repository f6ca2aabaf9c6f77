"""Steps of worker processes against gymnasium's, stable-baselines3's, and this process's own."""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import SubprocVecEnv

from parllel import Array, ArrayDict
from parllel.cages import Cage, Command
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.distributions import Categorical
from support.cartpole import cartpole_ppo
from support.idle_envs import Idle, make_cartpole
from support.report import Report, parse_out
from support.timing import interleave, ratio

B, T = 16, 128
N_WORKERS = 2
BURN_S = 0.001
NUMBERS_OF_ENVS = (1, 4, 16, 64, 256)
REPEATS = 31
SAMPLE_S = 0.01  # many steps: one alone depends on where the scheduler has left the workers
FLAT = 1.1  # "flat or falling": an environment step at one B costs no more than this at the last

N_HERE = 10  # of B, beside one worker: while it is woken, this process steps some more
SLOWER_S = (20e-6, 50e-6)  # steps of environments; CartPole's takes 5 us
LEAST_SPEEDS = {5e-6: 0.8, 20e-6: 1.2, 50e-6: 1.5}  # times that of SerialCage

SERIAL, WORKERS = "SerialCage", f"ProcessCage, {N_WORKERS} workers"
BOUND, TURNS = f"{WORKERS}, bound", f"{WORKERS}, AlternatingSampler"
SHARED = f"1 worker, {N_HERE} of {B} in this process"
GYMNASIUM, SB3 = "AsyncVectorEnv", "SubprocVecEnv of stable-baselines3"


def main(out: Path, repeats: int = REPEATS, numbers: Sequence[int] = NUMBERS_OF_ENVS) -> None:
    report = Report(
        "cages",
        "Stepping environments in worker processes",
        [
            f"{repeats} interleaved rounds; ratios are medians over the rounds. Cages write",
            "results into shared memory. 'AsyncVectorEnv' has a process for each environment, as",
            "'SubprocVecEnv' has. Rollouts have the same network, and one torch thread.",
        ],
    )
    step_idle(report, repeats)
    step_burning(report, repeats)
    collect_rollouts(report, repeats)
    collect_slower(report, repeats)
    curves = step_numbers(report, repeats, numbers)
    report.write(out)
    draw_numbers(curves, numbers, out / "cages_by_number_cpu.png")


def step_idle(report: Report, repeats: int) -> None:
    with ExitStack() as stack:
        steps = {name: stack.enter_context(step(name, B)) for name in (GYMNASIUM, SERIAL, WORKERS)}
        seconds = interleave(steps, repeats=repeats, sample_s=SAMPLE_S)
    report.add_table(f"a step of {B} environments that do nothing", seconds, references=[WORKERS])
    report.add_target(
        f"{B} idle environments: time / time of {GYMNASIUM} (5 times its speed)",
        ratio(seconds, WORKERS, GYMNASIUM),
        1 / 5,
    )


def step_burning(report: Report, repeats: int) -> None:
    with ExitStack() as stack:
        steps = {name: stack.enter_context(step(name, B, BURN_S)) for name in (SERIAL, WORKERS)}
        seconds = interleave(steps, repeats=repeats, sample_s=SAMPLE_S)
    heading = f"a step of {B} environments that burn {BURN_S * 1e3:g} ms each"
    report.add_table(heading, seconds, references=[SERIAL])
    report.add_target(
        f"{B} environments of {BURN_S * 1e3:g} ms: time / time of {SERIAL} (1.7 times its speed)",
        ratio(seconds, WORKERS, SERIAL),
        1 / 1.7,
    )


def collect_rollouts(report: Report, repeats: int) -> None:
    with ExitStack() as stack:
        rollouts = {
            SERIAL: stack.enter_context(rollout(n_workers=0)),
            WORKERS: stack.enter_context(rollout(n_workers=N_WORKERS)),
            BOUND: stack.enter_context(rollout(n_workers=N_WORKERS, bind_workers=True)),
            SHARED: stack.enter_context(rollout(n_workers=1, n_serial_envs=N_HERE)),
            TURNS: stack.enter_context(rollout(AlternatingSampler, n_workers=N_WORKERS)),
            SB3: stack.enter_context(rollout_of_sb3()),
        }
        seconds = interleave(rollouts, repeats=repeats)
    rates = {name: T * B / statistics.median(samples) for name, samples in seconds.items()}
    heading = f"a rollout of {B} CartPole-v1, T = {T}"
    references, columns = [SERIAL, WORKERS], {"steps/s": rates}
    report.add_table(heading, seconds, references=references, columns=columns)
    claim = f"{B} CartPole-v1, {N_WORKERS} workers: time / time of"
    report.add_target(f"{claim} {SERIAL}", ratio(seconds, WORKERS, SERIAL), 1)
    add_speed_target(report, f"{B} CartPole-v1, {SHARED}", ratio(seconds, SHARED, SERIAL), 5e-6)
    report.add_target(f"AlternatingSampler, {claim} {SERIAL}", ratio(seconds, TURNS, SERIAL), 1)
    times = ratio(seconds, WORKERS, SB3)
    report.add_target(f"{claim} {SB3} (5 times its speed)", times, 1 / 5)


def collect_slower(report: Report, repeats: int) -> None:
    for burn_s in SLOWER_S:
        make_env = partial(Idle, burn_s)
        with ExitStack() as stack:
            rollouts = {
                SERIAL: stack.enter_context(rollout(make_env=make_env, n_workers=0)),
                WORKERS: stack.enter_context(rollout(make_env=make_env, n_workers=N_WORKERS)),
                SHARED: stack.enter_context(
                    rollout(make_env=make_env, n_workers=1, n_serial_envs=N_HERE)
                ),
            }
            seconds = interleave(rollouts, repeats=repeats)
        each = f"{B} environments of {burn_s * 1e6:g} us"
        report.add_table(f"a rollout of {each}, T = {T}", seconds, references=[SERIAL, WORKERS])
        add_speed_target(report, f"{each}, {SHARED}", ratio(seconds, SHARED, SERIAL), burn_s)


def add_speed_target(report: Report, what: str, times: float, step_s: float) -> None:
    speed = LEAST_SPEEDS[step_s]
    claim = f"{what}: time / time of {SERIAL} ({speed:g} times its speed)"
    report.add_target(claim, times, 1 / speed)


def step_numbers(report: Report, repeats: int, numbers: Sequence[int]) -> dict[str, list[float]]:
    """Return the microseconds of an environment step, for each number of environments."""
    with ExitStack() as stack:
        steps = {
            (name, n_envs): stack.enter_context(step(name, n_envs))
            for name in (SERIAL, WORKERS)
            for n_envs in numbers
        }
        named = {f"{name}, B = {n_envs}": run for (name, n_envs), run in steps.items()}
        seconds = interleave(named, repeats=repeats, sample_s=SAMPLE_S)
    curves: dict[str, list[float]] = {SERIAL: [], WORKERS: []}
    each: dict[str, float] = {}
    for ((name, n_envs), label), samples in zip(
        zip(steps, named, strict=True), seconds.values(), strict=True
    ):
        each[label] = statistics.median(samples) / n_envs * 1e6
        curves[name].append(each[label])
    heading = "a step of B environments that do nothing"
    report.add_table(heading, seconds, columns={"us/env step": each})
    rise = max(after / before for before, after in pairwise(curves[WORKERS]))
    report.add_target("time of an environment step from one B to the next", rise, FLAT)
    return curves


def draw_numbers(curves: dict[str, list[float]], numbers: Sequence[int], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(numbers, curve, marker="o", label=name)
        axes.annotate(f"{curve[-1]:.1f}", (numbers[-1], curve[-1]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(numbers, [str(n_envs) for n_envs in numbers])
    axes.set_xlabel("environments")
    axes.set_ylabel("µs for each environment step")
    axes.set_title("Environments that do nothing: what stepping them costs", loc="left")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"and {path.name}")


# Contestants: each makes its environments, yields a function that does the work once, and closes


@contextmanager
def step(name: str, n_envs: int, burn_s: float = 0.0) -> Iterator[Callable[[], object]]:
    make_env = partial(Idle, burn_s)
    if name == GYMNASIUM:
        envs = AsyncVectorEnv([make_env] * n_envs)
        envs.reset(seed=0)
        yield partial(envs.step, np.zeros(n_envs, np.int64))
        envs.close()
        return
    cages = build_cages(make_env, n_envs, n_workers=0 if name == SERIAL else N_WORKERS, seed=0)
    commands = bind(cages)
    yield partial(step_cages, cages, commands)
    for cage in cages:
        cage.close()


def bind(cages: Sequence[Cage]) -> list[Command]:
    """Reset the environments, and return a command of each cage that steps it in place."""
    commands = []
    for cage in cages:
        batch_shape = () if cage.n_envs == 1 else (cage.n_envs,)
        space: Any = cage.observation_space
        make_array = partial(Array, (1, *batch_shape), storage="shared")
        places = {
            "out_obs": make_array(space.dtype, feature_shape=space.shape)[0],
            "out_reward": make_array(np.float32)[0],
            "out_terminated": make_array(bool)[0],
            "out_truncated": make_array(bool)[0],
            "out_info": ArrayDict(),
        }
        cage.reset_async()
        cage.await_step()
        commands.append(cage.prepare_step(make_array(np.int64)[0], **places))
    return commands


def step_cages(cages: Sequence[Cage], commands: Sequence[Command]) -> None:
    for cage, command in zip(cages, commands, strict=True):
        cage.start_command(command)
    for cage in cages:
        cage.await_step()


@contextmanager
def rollout(
    make_sampler: type[BasicSampler] = BasicSampler,
    make_env: Callable[[], gym.Env] = make_cartpole,
    **options: Any,
) -> Iterator[Callable[[], object]]:
    cages = build_cages(make_env, B, seed=0, **options)
    example = build_example(make_env, storage="local")
    torch.manual_seed(0)
    model = cartpole_ppo.ActorCritic(4, 2)
    agent = CategoricalPgAgent(model, Categorical(dim=2), example_obs=example["observation"])
    samples = build_sample_tree(example, agent, batch_shape=(T, B), storage="shared")
    yield make_sampler(cages, agent, samples).collect_batch
    for cage in cages:
        cage.close()


@contextmanager
def rollout_of_sb3() -> Iterator[Callable[[], object]]:
    envs = SubprocVecEnv([make_cartpole] * B)
    layers = {"pi": [64, 64], "vf": [64, 64]}  # as those of the other contestants
    ppo = PPO("MlpPolicy", envs, n_steps=T, policy_kwargs={"net_arch": layers}, device="cpu")
    _, callback = ppo._setup_learn(total_timesteps=sys.maxsize)
    callback.on_training_start(locals(), globals())
    yield partial(ppo.collect_rollouts, ppo.env, callback, ppo.rollout_buffer, n_rollout_steps=T)
    envs.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(parse_out(__doc__))

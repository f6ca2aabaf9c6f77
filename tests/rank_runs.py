"""Runs of two ranks: what they make together, how they resume, and how they end.

A program of its own: it imports torch once, and forks a process for each rank.
"""

import json
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # once, and not in each rank: optimizers import it
from torch import Tensor, nn

from continuous_envs import make_road
from parllel import Array, ArrayDict, ranks
from parllel.metrics import CsvMetrics
from parllel.patterns import build_cages, build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.runners import Checkpoints, Evaluator, RLRunner, RunConfig, RunFolder, every
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing.toy_envs import Walk
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs, QAgent, QPgAgent
from parllel.torch.algos import DQN, PPO, SAC, DQNSettings, PPOSettings, SACSettings
from parllel.torch.distributions import Categorical, DistParams, SquashedGaussian
from parllel.torch.models import NormalizeObservations, SoftActorCritic
from parllel.transforms import EstimateAdvantage, NormalizeAdvantage, NormalizeRewards

T, B = 8, 3
N_FEATURES, N_ACTIONS = 3, 4
SEED = 5
ROUNDING = 2.0**-24  # of float32


class ActorCritic(nn.Module):
    """A small model; with an example of observations, it normalizes these."""

    def __init__(self, example: Any = None) -> None:
        super().__init__()
        first = [] if example is None else [NormalizeObservations(example)]
        self.body = nn.Sequential(*first, nn.Linear(N_FEATURES, 16), nn.Tanh())
        self.policy, self.critic = nn.Linear(16, N_ACTIONS), nn.Linear(16, 1)

    def forward(self, observation: Tensor) -> ModelOutputs:
        features = self.body(observation)
        logits, value = self.policy(features), self.critic(features).squeeze(-1)
        return ModelOutputs(DistParams(logits=logits), value)


def run_ranks(
    n_ranks: int, function: Callable[[], Any], *, longest_s: float = 120, are_apart: bool = False
) -> list[dict[str, Any]]:
    """Return what a function returned in each of several ranks, or how these ended.

    Where they are apart, each is told of another place where they meet.

    Returns:
        By ranks: `result`, or `error` with its type and text; `status` of the process, and when it
        ended, `ended_at_s`.
    """
    ports = []
    for _ in range(n_ranks):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
    folder = Path(os.environ["RANKS_FOLDER"])
    numbers = [
        _fork(number, n_ranks, ports[number if are_apart else 0], function, folder)
        for number in range(n_ranks)
    ]
    begin_s, found = time.monotonic(), [dict[str, Any]() for _ in numbers]
    left = dict(enumerate(numbers))
    while left and time.monotonic() < begin_s + longest_s:
        for number, process in list(left.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del left[number]
                found[number] = {"status": status, "ended_at_s": time.monotonic()}
                path = folder / f"result-{number}.json"
                if path.exists():
                    found[number] |= json.loads(path.read_text())
                    path.unlink()
        time.sleep(0.005)
    for process in left.values():  # those that stopped, or wait for ever
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return found


def _fork(number: int, n_ranks: int, port: int, function: Callable[[], Any], folder: Path) -> int:
    process = os.fork()
    if process:
        return process
    given = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": n_ranks, "MASTER_PORT": port}
    os.environ.update({name: str(each) for name, each in given.items()}, MASTER_ADDR="127.0.0.1")
    status = 1
    try:
        try:
            result, status = {"result": function()}, 0
        except Exception as error:
            if not isinstance(error, ranks.RankError | ValueError):
                traceback.print_exc()
            result = {"error": [type(error).__name__, str(error)]}
        (folder / f"result-{number}.json").write_text(json.dumps(result))
    finally:
        sys.stderr.flush()
        os._exit(status)


def weights_of(model: nn.Module) -> list[float]:
    return torch.cat([each.detach().flatten() for each in model.parameters()]).tolist()


# One update


def make_batch(columns: slice) -> ArrayDict:
    """Return some environments of a batch of 2 * B, as sampler and transforms leave it."""
    rng, shape = np.random.default_rng(SEED), (T, 2 * B)
    numbers = {
        "observation": rng.normal(size=(*shape, N_FEATURES)).astype(np.float32),
        "action": rng.integers(N_ACTIONS, size=shape),
        "advantage": (5 + 3 * rng.normal(size=shape)).astype(np.float32),
        "return_": rng.normal(size=shape).astype(np.float32),
        "log_prob": np.full(shape, -np.log(N_ACTIONS), np.float32),
    }
    leaves = {}
    for name, each in numbers.items():
        rows = each[:, columns]
        leaves[name] = Array(rows.shape[:2], rows.dtype, feature_shape=rows.shape[2:])
        leaves[name][...] = rows
    agent_info = {"log_prob": leaves.pop("log_prob")}
    return ArrayDict({**leaves, "agent_info": agent_info})


def update(kl_limit: float | None = None, columns: slice | None = None) -> dict[str, Any]:
    """Make one update, of this rank's half of the batch; weights begin as those of rank 0."""
    torch.manual_seed(SEED)
    if columns is None:
        columns = slice(B * ranks.rank(), B * (ranks.rank() + 1))
    model = ActorCritic()
    nn.init.constant_(model.critic.bias, float(ranks.rank()))  # which becomes that of rank 0
    agent = CategoricalPgAgent(model, Categorical(N_ACTIONS), torch.zeros(1, N_FEATURES))
    settings = PPOSettings(
        n_epochs=1 if kl_limit is None else 40,
        n_minibatches=1,
        max_grad_norm=1e6,
        kl_limit=kl_limit,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    algorithm = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))
    batch = NormalizeAdvantage()(make_batch(columns))
    numbers = algorithm.optimize(batch)
    gradients = [torch.zeros(0)]
    gradients += [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return {
        "weights": weights_of(model),
        "gradient": torch.cat(gradients).tolist(),
        "numbers": numbers,
        "draws": torch.rand(2).tolist(),
    }


def size_of_gradients() -> np.ndarray[Any, Any]:
    """Return the mean over rows of each gradient's magnitude, of the model before the update."""
    torch.manual_seed(SEED)
    model, batch = ActorCritic().double(), NormalizeAdvantage()(make_batch(slice(0, 2 * B)))
    nn.init.zeros_(model.critic.bias)
    rows = {name: batch[name].to_torch().flatten(0, 1) for name in batch if name != "agent_info"}
    old = batch["agent_info"]["log_prob"].to_torch().flatten()
    total: Any = 0
    for row in range(T * 2 * B):
        outputs = model(rows["observation"][row].double())
        log_prob = outputs.dist_params.logits.log_softmax(-1)[rows["action"][row]]
        policy_loss = -(log_prob - old[row]).exp() * rows["advantage"][row]
        losses = policy_loss, 0.25 * (outputs.value - rows["return_"][row]) ** 2
        for loss in losses:  # each one's, as they may cancel each other
            found = torch.autograd.grad(
                loss, list(model.parameters()), retain_graph=True, allow_unused=True
            )
            flat = [
                torch.zeros(own.numel()) if each is None else each.flatten()
                for each, own in zip(found, model.parameters(), strict=True)
            ]
            total = total + torch.cat(flat).abs()
    return np.asarray(total) / (T * 2 * B)


def check_update() -> dict[str, Any]:
    """Compare an update of two ranks with one of a single process on both halves."""
    pair = run_ranks(2, update)
    one = update(columns=slice(0, 2 * B))
    # A mean of n terms is wrong by at most n roundings of the mean of their sizes. Each term has
    # some 100 operations itself, and advantages are scaled by moments of n terms.
    bound = 2 * (2 * T * 2 * B + 100) * ROUNDING * size_of_gradients()
    first, second = (each["result"] for each in pair)
    error = np.abs(np.subtract(first["gradient"], one["gradient"]))
    of_weights = np.abs(np.subtract(first["weights"], one["weights"]))
    alone = np.abs(np.subtract(update(columns=slice(0, B))["gradient"], one["gradient"]))
    # Each half alone ends at another update by this limit, and both together at a third one.
    limited = [each["result"]["numbers"] for each in run_ranks(2, partial(update, 0.03))]
    own = [update(0.03, slice(B * half, B * (half + 1)))["numbers"] for half in range(2)]
    return {
        "is gradient within bound": bool((error <= bound).all()),
        "is weight within bound": bool((of_weights <= 0.5 * bound + ROUNDING * 4).all()),
        "is half a batch outside": bool((alone > bound).any()),
        "share of bound": float((error / bound).max()),
        "are ranks equal": first["weights"] == second["weights"],
        "are numbers equal": first["numbers"] == second["numbers"],
        "do draws differ": first["draws"] != second["draws"],
        "limited updates": [each["n_updates"] for each in limited],
        "limited updates alone": [each["n_updates"] for each in own],
    }


# Whole runs


def make_run(kind: str) -> Any:
    """Return sampler, algorithm, parts and options of a small run."""
    torch.manual_seed(SEED)
    make_env: Any = make_road if kind == "sac" else Walk
    cages = build_cages(make_env, B, n_workers="serial", seed=SEED)
    example = build_example(make_env, storage="local")
    if kind == "ppo":
        model: nn.Module = ActorCritic(example["observation"])
        agent: Any = CategoricalPgAgent(model, Categorical(N_ACTIONS), example["observation"])
        samples = build_sample_tree(example, agent, batch_shape=(T, B))
        sampler = BasicSampler(cages, agent, samples)
        settings = PPOSettings(n_epochs=3, n_minibatches=3, kl_limit=0.02)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        algorithm: Any = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))
        parts = {"agent": agent, "algorithm": algorithm}
        transforms = [NormalizeRewards(), EstimateAdvantage(), NormalizeAdvantage()]
        return sampler, algorithm, parts, {"transforms": transforms}
    n_observed = int(np.prod(example["observation"].shape[1:]))
    if kind == "sac":
        n_actions = int(np.prod(cages[0].action_space.shape))
        model = SoftActorCritic(n_observed, n_actions=n_actions, sizes=(16,))
        agent = QPgAgent(model, SquashedGaussian(n_actions), example["observation"])
    else:
        model = nn.Linear(n_observed, N_ACTIONS)
        agent = QAgent(model, example["observation"], epsilon=0.3)
    samples = build_sample_tree(example, agent, batch_shape=(T, B), full_size=8 * T)
    replay = ReplayBuffer(samples, rng=np.random.default_rng(SEED))
    sampler = BasicSampler(cages, agent, samples, replay=replay)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    make, settings_of = (SAC, SACSettings) if kind == "sac" else (DQN, DQNSettings)
    settings = settings_of(batch_size=16, n_updates=2, target_period=5)  # type: ignore[operator]
    algorithm = make(agent, replay, optimizer, settings)  # type: ignore[operator]
    parts = {"agent": agent, "algorithm": algorithm, "replay": replay}
    return sampler, algorithm, parts, {"learn_after": 2 * T * B * ranks.n_ranks()}


def train(
    kind: str,
    out: Path,
    n_batches: int,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    fault: str = "",
) -> dict[str, Any]:
    """Train; the newest checkpoint is that of each second batch.

    Args:
        kind: "ppo", "dqn" or "sac".
        out: the run's folder.
        n_batches: number of batches.
        resume: whether to go on.
        stop_after: batch after which rank 1 alone stops the run.
        fault: what rank 1 does after the third batch: "killed", "stopped" or "raises".
    """
    if fault:
        ranks.join(timeout_s=3)
    run = RunFolder(RunConfig(seed=SEED, out=out, resume=resume), name="ranks")
    sampler, algorithm, parts, options = make_run(kind)
    per_batch = T * B * ranks.n_ranks()
    checkpoints = Checkpoints(run.checkpoints, sampler, seed=SEED, **parts)
    hooks: list[Any] = [every(2 * per_batch, checkpoints)]
    if kind == "ppo":
        cages = build_cages(Walk, 1, n_workers="serial", seed=SEED + 1)
        player = EvalSampler(cages, sampler.agent, n_episodes=1, seed=1, storage="local")
        hooks.insert(0, every(2 * per_batch, Evaluator(player)))
    if fault and ranks.rank() == 1:
        hooks.append(partial(_fail, fault, 3 * per_batch, out))
    if stop_after is not None:
        last = stop_after * per_batch
        options["stop_when"] = lambda runner: ranks.rank() == 1 and runner.n_steps >= last
    metrics = CsvMetrics(run.path / "metrics.csv")
    with metrics:
        runner = RLRunner(
            sampler, algorithm, metrics, n_steps=n_batches * per_batch, after_batch=hooks, **options
        )
        summary = runner.run(resume=checkpoints if resume else None)
    n_lines = len((run.path / "metrics.csv").read_text().splitlines())
    observed = sampler.samples["observation"].to_ndarray()
    return {
        "weights": weights_of(sampler.agent.model),
        "buffers": [each.tolist() for each in sampler.agent.model.buffers()],
        "n_steps": summary.n_steps,
        "n_episodes": summary.n_episodes,
        "mean_return": repr(summary.mean_return),
        "has numbers": n_lines > 1,
        "observed": float(np.asarray(observed, np.float64).sum()),
        "checkpoints": [path.name for path in run.checkpoints.iterdir()],
    }


def _fail(fault: str, n_steps: int, out: Path, run: Any) -> None:
    if run.n_steps == n_steps:
        (out / "failed_at_s").write_text(str(time.monotonic()))
        if fault == "raises":
            raise ValueError("the environment of rank 1 is broken")
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[fault])


def check_run(kind: str, folder: Path) -> dict[str, Any]:
    """Compare a run that was resumed with one that was not; of PPO with three ranks."""
    n, other = (3, 2) if kind == "ppo" else (2, 3)
    whole = [each["result"] for each in run_ranks(n, partial(train, kind, folder / "whole", 6))]
    half = run_ranks(n, partial(train, kind, folder / "halves", 4))
    go_on = partial(train, kind, folder / "halves", 6, resume=True)
    resumed = [each["result"] for each in run_ranks(n, go_on)]
    of_one = _error_of(partial(train, kind, folder / "halves", 8, resume=True))
    of_other = run_ranks(other, partial(train, kind, folder / "halves", 8, resume=True))
    names = "weights", "buffers", "n_steps", "n_episodes", "mean_return", "checkpoints"
    return {
        "n_ranks": [n, other],
        "are ranks equal": [whole[0][name] == each[name] for name in names for each in whole],
        "do samples differ": len({each["observed"] for each in whole}) == n,
        "n_steps": whole[0]["n_steps"],
        "have numbers": [each["has numbers"] for each in whole],
        "did learn": half[0]["result"]["weights"] != whole[0]["weights"],
        "is resumed as whole": resumed == whole,
        "resumed by one": of_one,
        "resumed by another number": [each["error"] for each in of_other],
    }


def _error_of(function: Callable[[], Any]) -> list[str]:
    try:
        function()
    except ValueError as error:
        return [type(error).__name__, str(error)]
    return []


# Ranks that do not go together


def differ(what: str) -> Any:
    """Begin a run of which rank 1 has another one."""
    torch.manual_seed(SEED)
    size = 5 if what == "model" and ranks.rank() else N_FEATURES
    model = nn.Linear(size, N_ACTIONS)
    agent = QAgent(model, torch.zeros(1, size), epsilon=0.1)
    cages = build_cages(Walk, B + (what == "environments" and ranks.rank()), n_workers="serial")
    tree = build_sample_tree(
        build_example(Walk, storage="local"),
        QAgent(nn.Linear(N_FEATURES, N_ACTIONS), torch.zeros(1, N_FEATURES), epsilon=0.1),
        batch_shape=(T, sum(cage.n_envs for cage in cages)),
        full_size=2 * T,
    )
    replay = ReplayBuffer(tree, rng=np.random.default_rng(SEED))
    settings = DQNSettings(batch_size=16 + 16 * (what == "settings") * ranks.rank())
    algorithm = DQN(agent, replay, torch.optim.Adam(model.parameters()), settings)
    sampler = BasicSampler(cages, agent, tree, replay=replay)
    from parllel.metrics import Metrics

    if what == "place" and ranks.rank():
        ranks.gather("something else", 0)
    RLRunner(sampler, algorithm, Metrics(), n_steps=4 * T * B, learn_after=T * B).run()


def check_differing() -> dict[str, Any]:
    cases = "model", "settings", "environments", "place"
    return {case: [each["error"] for each in run_ranks(2, partial(differ, case))] for case in cases}


def check_ends(folder: Path) -> dict[str, Any]:
    """Return how rank 0 ended, and when, where rank 1 did not go on."""
    found = {}
    for fault in ("killed", "raises", "stopped"):
        run = partial(train, "ppo", folder / fault, 50, fault=fault)
        first, second = run_ranks(2, run, longest_s=30)
        failed_at_s = float((folder / fault / "failed_at_s").read_text())
        waited_s = first.get("ended_at_s", math.inf) - failed_at_s
        found[fault] = [first.get("error"), waited_s, second.get("error")]
    begin_s = time.monotonic()
    pair = run_ranks(2, _meet_in_a_moment, longest_s=30, are_apart=True)
    found["apart"] = [[each.get("error"), each["ended_at_s"] - begin_s] for each in pair]
    return found


def _meet_in_a_moment() -> None:
    os.environ["PARLLEL_RANKS_TIMEOUT_S"] = "1"  # of the user, for a program that says nothing
    ranks.gather("something", 0)


def check_stop(folder: Path) -> dict[str, Any]:
    stopped = run_ranks(2, partial(train, "ppo", folder / "stop", 50, stop_after=3))
    return {"n_batches": [each["result"]["n_steps"] / (2 * T * B) for each in stopped]}


def main(names: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["RANKS_FOLDER"] = str(folder)
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "update": check_update,
        "differing": check_differing,
        "ends": partial(check_ends, folder),
        "stop": partial(check_stop, folder),
        **{kind: partial(check_run, kind, folder / kind) for kind in ("ppo", "dqn", "sac")},
    }
    print(json.dumps({name: checks[name]() for name in names}))


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))

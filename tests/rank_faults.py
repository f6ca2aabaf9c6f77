"""Runs of two ranks that differ in what is easily missed; a program of its own, as `rank_runs`."""

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rank_runs import (
    N_ACTIONS,
    N_FEATURES,
    ROUNDING,
    SEED,
    ActorCritic,
    B,
    T,
    make_batch,
    run_ranks,
    size_of_gradients,
    weights_of,
)
from torch import Tensor, nn

from parllel import Array, ArrayDict, ranks
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.algos import PPO, PPOSettings
from parllel.torch.algos.learner import Learner
from parllel.torch.distributions import Categorical
from parllel.torch.models import NormalizeObservations
from parllel.transforms import NormalizeAdvantage, NormalizeRewards

N_VALID = 5  # rows of rank 0; all those of rank 1 are valid


class Shifted(nn.Module):
    """A model with a buffer that is not saved, and a part that may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        self.register_buffer("shift", torch.randn(2), persistent=False)
        # Of dtypes that gloo does not know, and one that is stored once for all rows.
        self.register_buffer("places", torch.randint(9, (3, 2), dtype=torch.int16).t())
        self.register_buffer("small", torch.randn(3).to(torch.float8_e4m3fn))
        self.register_buffer("spread", torch.randn(1).expand(4))

    def forward(self, rows: Tensor) -> Any:
        return self.last(self.first(rows + self.get_buffer("shift")))


class Smallest(Learner[Any]):
    """Makes what a model returns for random rows as small as it can."""

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        loss = self._agent.model(torch.randn(4, 2)).square().mean()
        if self._settings.is_detached:
            loss = loss.detach()
        return {"norm": float(self._descend(loss, batch))}


def learn(what: str) -> dict[str, Any]:
    """Learn in three steps, with something that differs, or that begins to learn late."""
    torch.manual_seed(SEED + ranks.rank())
    model = Shifted()
    model.first.requires_grad_(what != "thawed")
    learning = model.last if what == "added" else model
    rate = 0.1 * (1 + ranks.rank()) if what == "rate" else 0.1
    optimizer = torch.optim.SGD(learning.parameters(), lr=rate)
    # A function that is no schedule, and an object that equals itself alone.
    own: dict[str, Any] = {
        "loss": nn.functional.mse_loss,
        "noise": torch.distributions.Normal(0.0, 1.0),
    }
    own["is_detached"] = what == "no gradient"
    settings = SimpleNamespace(learning_rate=None, max_grad_norm=math.inf, **own)
    generator = torch.Generator().manual_seed(SEED)
    members = {name: SimpleNamespace(generator=generator) for name in ("cat", "dog")}
    algorithm = Smallest(SimpleNamespace(model=model, agents=members), optimizer, settings)
    model.first.requires_grad_(True)
    if what == "added":
        optimizer.add_param_group({"params": list(model.first.parameters())})
    algorithm.set_progress(0.0)
    for _ in range(3):
        algorithm.optimize(ArrayDict())
    buffers = {name: each.double().tolist() for name, each in model.named_buffers()}
    draws = torch.rand(2, generator=generator).tolist()
    return {"alike": [weights_of(model), buffers], "draws": draws}


def check_beginnings() -> dict[str, Any]:
    cases = "nothing", "rate", "thawed", "added", "no gradient"
    return {case: run_ranks(2, partial(learn, case)) for case in cases}


def update(columns: slice | None = None) -> dict[str, Any]:
    """Make one update of a batch of which rank 0 has few valid rows, and rank 1 all."""
    torch.manual_seed(SEED)
    if columns is None:
        columns = slice(B * ranks.rank(), B * (ranks.rank() + 1))
    valid = np.ones((T, 2 * B), bool)
    valid[:, :B] = np.arange(T * B).reshape(T, B) < N_VALID
    branch = Array.from_numpy(valid[:, columns].copy())
    batch = NormalizeAdvantage()(make_batch(columns).with_branches({"valid": branch}))
    model = ActorCritic()
    agent = CategoricalPgAgent(model, Categorical(N_ACTIONS), torch.zeros(1, N_FEATURES))
    settings = PPOSettings(n_epochs=1, n_minibatches=1, max_grad_norm=1e6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    algorithm = PPO(agent, optimizer, settings, rng=np.random.default_rng(SEED))
    numbers = algorithm.optimize(batch)
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return {"gradient": torch.cat(gradients).tolist(), "numbers": numbers}


def normalize_batches(columns: slice) -> dict[str, Any]:
    """Normalize rewards and observations of three batches by moments of all that was seen."""
    rng, width = np.random.default_rng(SEED), columns.stop - columns.start
    model = NormalizeObservations(torch.zeros(1, N_FEATURES))
    transform, rewards = NormalizeRewards(clip=math.inf), []
    for _ in range(3):
        reward = (100 + 30 * rng.normal(size=(T, 2 * B))).astype(np.float32)
        observation = (5 + 2 * rng.normal(size=(T, 2 * B, N_FEATURES))).astype(np.float32)
        done = rng.random((T, 2 * B)) < 0.2
        batch = ArrayDict(
            {
                "observation": Array((T, width), np.float32, feature_shape=(N_FEATURES,)),
                "reward": Array((T, width), np.float32),
                "terminated": Array((T, width), bool),
                "truncated": Array((T, width), bool),
            }
        )
        batch["reward"][...], batch["terminated"][...] = reward[:, columns], done[:, columns]
        batch["observation"][...] = observation[:, columns]
        rewards.append(transform(batch)["reward"].to_ndarray().tolist())
        model.observe(batch["observation"])
        model.begin_batch()
    observed = model(torch.from_numpy(observation[:, columns])).tolist()
    found = [*model.moments(), *transform.moments]
    return {
        "rewards": rewards,
        "observations": observed,
        "ratio": max(  # of means and deviations
            float(np.max(np.abs(mean) / np.sqrt(m2 / count)))
            for count, mean, m2 in (map(np.asarray, found[:3]), map(np.asarray, found[3:]))
        ),
    }


def normalize(columns: slice | None = None) -> dict[str, Any]:
    """Return what all that normalize make of this rank's half of some batches."""
    if columns is None:
        columns = slice(B * ranks.rank(), B * (ranks.rank() + 1))
    return {"advantages": normalize_agents(columns), **normalize_batches(columns)}


def normalize_agents(columns: slice) -> list[Any]:
    """Normalize advantages of two agents, of which one of rank 1 dies."""
    advantage = np.random.default_rng(SEED).normal(size=(T, 2 * B, 2)).astype(np.float32)
    valid = np.ones(advantage.shape, bool)
    valid[2:, B:, 1] = False
    width = columns.stop - columns.start
    batch = ArrayDict(
        {
            "advantage": Array((T, width), np.float32, feature_shape=(2,)),
            "valid": Array((T, width), bool, feature_shape=(2,)),
        }
    )
    batch["advantage"][...], batch["valid"][...] = advantage[:, columns], valid[:, columns]
    rows = NormalizeAdvantage()(batch)["advantage"].to_ndarray()
    return [rows.tolist()]


def check_normalized() -> dict[str, Any]:
    """Compare what two ranks normalize with one process; in one of them all agents live."""
    pair = [each["result"] for each in run_ranks(2, normalize)]
    one, alone = normalize(slice(0, 2 * B)), normalize(slice(0, B))
    both = {
        name: np.concatenate([np.array(each[name]) for each in pair], axis=axis)
        for name, axis in (("advantages", 2), ("rewards", 2), ("observations", 1))
    }
    # A variance is within c * variance of the true one, and a mean within c * deviation and a
    # rounding of itself (`kernels.moments.update_moments`; its shift is a row, and so within some
    # 4 deviations of the mean). A merge adds both, twice at most, and there are two sides.
    c = (512 + math.sqrt(T * 2 * B) / 2 + 8 * 4 + one["ratio"]) * ROUNDING
    found: dict[str, Any] = {
        "largest difference": float(np.abs(both["advantages"] - one["advantages"]).max())
    }
    for name in ("rewards", "observations"):
        expected = np.array(one[name])
        bound = 4 * c * (1 + np.abs(expected))
        half = expected[:, :, :B] if name == "rewards" else expected[:, :B]
        half_bound = 4 * c * (1 + np.abs(half))
        found[name] = {
            "share of bound": float((np.abs(both[name] - expected) / bound).max()),
            "is half outside": bool((np.abs(np.array(alone[name]) - half) > half_bound).any()),
        }
    return found


def check_valid() -> dict[str, Any]:
    """Compare ranks with unlike numbers of valid rows with one process that has all rows."""
    pair = [each["result"] for each in run_ranks(2, update)]
    one = update(slice(0, 2 * B))
    n_rows = N_VALID + T * B
    # As in `rank_runs.check_update`, for fewer rows: a mean of magnitudes over the valid ones is
    # larger than that over all by this factor at most.
    share = 2 * T * B / n_rows
    bound = 2 * (2 * n_rows + 100) * ROUNDING * share * size_of_gradients()
    error = np.abs(np.subtract(pair[0]["gradient"], one["gradient"]))
    names = "policy_loss", "value_loss", "entropy", "kl", "clip_fraction"
    apart = [abs(pair[0]["numbers"][name] - one["numbers"][name]) for name in names]
    return {
        "is gradient within bound": bool((error <= bound).all()),
        "share of bound": float((error / bound).max()),
        "are numbers of both": max(apart) < 1e-5,
        "are ranks equal": pair[0] == pair[1],
    }


def main(names: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["RANKS_FOLDER"] = str(folder)
    checks = {"normalized": check_normalized, "beginnings": check_beginnings, "valid": check_valid}
    print(json.dumps({name: checks[name]() for name in names}))


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))

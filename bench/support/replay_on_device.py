"""Minibatches of replay buffers on a GPU, against plain loops of torch: draws, then gathers."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer
from support.device_report import DeviceReport, device_copy
from support.replay_contestants import B, Kind, make_ours

ALPHA, BETA = 0.6, 0.4  # of a PrioritizedReplayBuffer by default

OURS, TORCH, COPY = "parllel", "torch", "copy"
PRIORITIZED, TORCH_PRIORITIZED = "parllel, by priority", "torch, by priority"
UPDATED, TORCH_UPDATED = "parllel, update of priorities", "torch, update of priorities"

Minibatch = dict[str, torch.Tensor]


class Race(NamedTuple):
    """A full ring of transitions, and the transitions of a minibatch."""

    title: str
    kind: Kind
    n_rows: int
    n_picked: int

    def __str__(self) -> str:
        return f"{self.title}: {self.n_picked:,} of {self.n_rows:,} transitions"


class TorchReplay:
    """Transitions as programs of torch keep them: observations and next ones whole, side by side.

    Draws with replacement, and gathers each leaf into memory that it keeps. By priority, it sums
    all priorities up, and finds numbers drawn from parts of the sum, as `PrioritizedReplayBuffer`
    stratifies them.

    Args:
        replay: full buffer of the same transitions, in device memory.
        n_picked: transitions of a minibatch.
    """

    def __init__(self, replay: ReplayBuffer, n_picked: int) -> None:
        samples, n_steps = replay.samples, replay.full_size
        full = {name: leaf.full for name, leaf in samples.items()}
        observation = full["observation"]
        rings = {name: full[name][0:n_steps].to_torch() for name in ("action", "reward")}
        rings["done"] = full["terminated"][0:n_steps].to_torch()
        rings["observation"] = observation[0:n_steps].to_torch()
        rings["next_observation"] = observation[1 : n_steps + 1].to_torch()
        # A reshape of stacks that were gathered, or of rows that overlap: each has its own memory.
        self.rows = {name: ring.flatten(0, 1).clone() for name, ring in rings.items()}
        self.n_picked, self._device = n_picked, rings["reward"].device
        self.n_rows = n_steps * B
        self.outputs: Minibatch = {
            name: torch.empty((n_picked, *rows.shape[1:]), dtype=rows.dtype, device=self._device)
            for name, rows in self.rows.items()
        }
        self.priority = torch.ones(self.n_rows, device=self._device)
        self._strata = torch.arange(n_picked, device=self._device)

    def sample(self) -> Minibatch:
        """Return a minibatch that is drawn uniformly."""
        index = torch.randint(self.n_rows, (self.n_picked,), device=self._device)
        return self.gather(index) | {"index": index}

    def sample_by_priority(self) -> Minibatch:
        """Return a minibatch that is drawn by priority, with weights."""
        sums = torch.cumsum(self.priority, 0, dtype=torch.float64)
        # A double has bits enough to name each of a million steps.
        drawn = torch.rand(self.n_picked, dtype=torch.float64, device=self._device)
        drawn = (self._strata + drawn) / self.n_picked
        index = torch.searchsorted(sums, drawn * sums[-1]).clamp_(max=self.n_rows - 1)
        weight = (self.n_rows * self.priority[index] / sums[-1]) ** -BETA
        return self.gather(index) | {"index": index, "weight": (weight / weight.max()).float()}

    def gather(self, index: torch.Tensor) -> Minibatch:
        for name, rows in self.rows.items():
            torch.index_select(rows, 0, index, out=self.outputs[name])
        return dict(self.outputs)

    def update_priorities(self, index: torch.Tensor, error: torch.Tensor) -> None:
        self.priority[index] = (error.abs() + 1e-6) ** ALPHA


def race_replays(report: DeviceReport, races: Sequence[Race]) -> None:
    """Add a table for each race to a report: uniform draws, those by priority, and updates."""
    for race in races:
        uniform, _ = make_ours(race.kind, race.n_rows, ReplayBuffer, "device")
        prioritized, _ = make_ours(race.kind, race.n_rows, PrioritizedReplayBuffer, "device")
        torchs = TorchReplay(uniform, race.n_picked)
        calls = contestants(race, uniform, prioritized, torchs)
        check_results(calls, uniform)
        nbytes = sum(output.nbytes for output in torchs.outputs.values())
        report.race(
            str(race),
            {**calls, COPY: device_copy(nbytes)},
            nbytes=2 * nbytes,
            references=(TORCH, TORCH_PRIORITIZED, COPY),
        )
        race_updates(report, race, prioritized, torchs)
        for replay in (uniform, prioritized):
            replay.samples.close()
            replay.close()


def race_updates(
    report: DeviceReport, race: Race, replay: PrioritizedReplayBuffer, torchs: TorchReplay
) -> None:
    index = replay.sample(race.n_picked)["index"].clone()
    error = torch.linspace(0, 3, race.n_picked, device=index.device)
    rows = index % torchs.n_rows
    nbytes = index.nbytes + 2 * error.nbytes
    report.race(
        f"{race}: new priorities of a minibatch",
        {
            UPDATED: functools.partial(replay.update_priorities, index, error),
            TORCH_UPDATED: functools.partial(torchs.update_priorities, rows, error),
            COPY: device_copy(nbytes // 2),
        },
        nbytes=nbytes,
        references=(TORCH_UPDATED, COPY),
    )


def contestants(
    race: Race, uniform: ReplayBuffer, prioritized: PrioritizedReplayBuffer, torchs: TorchReplay
) -> dict[str, Callable[[], Any]]:
    return {
        OURS: lambda: uniform.sample(race.n_picked),
        TORCH: torchs.sample,
        PRIORITIZED: lambda: prioritized.sample(race.n_picked),
        TORCH_PRIORITIZED: torchs.sample_by_priority,
    }


def check_results(calls: dict[str, Callable[[], Any]], uniform: ReplayBuffer) -> None:
    """Refuse a contestant that gathers other transitions than it has drawn.

    Both buffers hold the same: their contents come from generators of the same seed.
    """
    n_steps = uniform.full_size
    ring = uniform.samples["observation"].full[0 : n_steps + 1].to_ndarray()
    rows = {
        name: uniform.samples[name].full[0:n_steps].to_ndarray() for name in ("action", "reward")
    }
    right = {"observation": ring[:-1], "next_observation": ring[1:], **rows}
    for name, call in calls.items():
        minibatch = {leaf: tensor.cpu().numpy() for leaf, tensor in call().items()}
        steps, columns = divmod(minibatch["index"], B)
        steps %= n_steps
        is_end = minibatch["done" if "done" in minibatch else "terminated"]
        for leaf, expected in right.items():
            # After an episode's end, buffers differ in what they give.
            kept = ~is_end if leaf == "next_observation" else slice(None)
            assert (minibatch[leaf][kept] == expected[steps, columns][kept]).all(), (name, leaf)

"""The arithmetic of docs/scaling.md, written into its tables: it measures nothing itself.

Bytes come from the library's own specs and models, times from the files in bench/results, and what
is neither is a constant here, with its source. `python bench/scaling.py` writes the tables anew.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from parllel.arrays import ArraySpec, FrameArray
from parllel.cages import row_specs
from parllel.torch.models import ActorCritic, NatureCnn
from parllel.tree import ArrayDict, leaves_of
from support.report import RESULTS

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

GIGA, PERCENT = 1e9, 100
GPU_NBYTES = 141 * GIGA  # NVIDIA H200: data sheet
CORES_OF_ONE = 16  # of a workstation with one GPU: an assumption
CORES_OF_EIGHT = 112  # NVIDIA DGX H200, two Xeon 8480C of 56 cores: data sheet
CAMERA_STEP_S = 3e-3  # of a simulator with a camera, on one core: an assumption
T, ENVS_PER_GPU, N_UPDATES = 128, 64, 16  # PPO: 4 epochs of 4 minibatches, as examples/atari_ppo.py
RING = 1_000_000  # steps of a replay buffer on one GPU


class Link(NamedTuple):
    """A link, and the GB/s that it has in one direction."""

    name: str
    rate: float
    source: str


PCIE_4 = Link(
    "PCIe 4.0 x16",
    16 * 16 * 128 / 130 / 8,
    "PCI-SIG, base specification 4.0: 16 GT/s a lane, 128b/130b",
)
PCIE_5 = Link(
    "PCIe 5.0 x16",
    32 * 16 * 128 / 130 / 8,
    "PCI-SIG, base specification 5.0: 32 GT/s a lane, 128b/130b",
)
NVLINK = Link("NVLink 4", 900 / 2, "NVIDIA, H200 data sheet: 900 GB/s, both directions together")
INFINIBAND = Link("InfiniBand NDR, a port", 400 / 8, "NVIDIA, ConnectX-7 data sheet: 400 Gb/s")
LINKS = (PCIE_4, PCIE_5, NVLINK, INFINIBAND)


class Task(NamedTuple):
    """What is trained.

    Args:
        rows: specs of what environments write in a step, of which all is copied to the GPU.
        action: specs of what they read.
        step_s: time of a step on one core.
        model: has the gradients.
    """

    name: str
    rows: ArrayDict
    action: Any
    step_s: float
    model: nn.Module

    @property
    def n_rows(self) -> int:
        return nbytes(self.rows)

    @property
    def n_action(self) -> int:
        return nbytes(self.action)

    @property
    def n_gradients(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.model.parameters())


class Cluster(NamedTuple):
    """GPUs, their cores, and the link that carries gradients."""

    n_gpus: int
    n_cores: int
    bus: Link
    between: Link | None


CLUSTERS = (
    Cluster(1, CORES_OF_ONE, PCIE_4, None),
    Cluster(8, CORES_OF_EIGHT, PCIE_5, NVLINK),
    Cluster(64, 8 * CORES_OF_EIGHT, PCIE_5, INFINIBAND),
)


def nbytes(specs: Any) -> int:
    return sum(spec.nbytes for _, spec in leaves_of(specs))


@functools.cache
def tasks() -> tuple[Task, ...]:
    flags = {name: ArraySpec.of((1,), np.bool_) for name in ("terminated", "truncated")}
    common = {"reward": ArraySpec.of((1,), np.float32), **flags}
    frames = FrameArray((2, 1), np.uint8, (84, 84), stack=4).row_writer.part_specs((1,))
    camera = gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (256, 256, 3), np.uint8),
            "joints": gym.spaces.Box(-1, 1, (32,)),
        }
    )
    with torch.device("meta"):  # their numbers of parameters count, not their values
        small = ActorCritic(NatureCnn((4, 84, 84)), 18)
        large = ActorCritic(NatureCnn((256, 256, 3), order="HWC"), 16)
    return (
        Task(
            "Atari",
            ArrayDict({"observation": ArrayDict(frames), **common}),
            row_specs(gym.spaces.Discrete(18), (1,)),
            atari_step_s(),
            small,
        ),
        Task(
            "camera",
            ArrayDict({"observation": row_specs(camera, (1,)), **common}),
            row_specs(gym.spaces.Box(-1, 1, (8,)), (1,)),
            CAMERA_STEP_S,
            large,
        ),
    )


# What was measured


def measured(file: str, heading: str, name: str) -> float:
    """Return the median of a contestant, in seconds."""
    content = json.loads((RESULTS / f"{file}.json").read_text())
    (table,) = (each for each in content["tables"] if each["heading"] == heading)
    return float(table["contestants"][name]["median_us"]) * 1e-6


def atari_step_s() -> float:
    """Return the time of a step on one core: 8 environments took 2 cores."""
    heading = "a step of 8 environments for stable-baselines3"
    return measured("pixels_cpu", heading, "AtariVectorEnv") * 2 / 8


# Tables


def bytes_table() -> str:
    rows = [
        (
            task.name,
            f"{task.n_rows:,}",
            f"{task.n_action}",
            f"{RING * (task.n_rows + task.n_action) / GIGA:.1f} GB",
            f"{GPU_NBYTES / (task.n_rows + task.n_action) / 1e6:.1f} million",
            f"{task.n_gradients / 1e6:.1f} MB",
        )
        for task in tasks()
    ]
    heads = ("to the GPU", "back", f"ring of {RING:,} steps", "steps in 141 GB", "gradients")
    return table(("a step of one environment", *heads), rows)


def links_table() -> str:
    rows = [(link.name, f"{link.rate:.1f}", link.source) for link in LINKS]
    return table(("link", "GB/s, one direction", "source"), rows)


def limits_table() -> str:
    rows = []
    for task in tasks():
        for cluster in CLUSTERS:
            supply = cluster.n_cores / task.step_s
            each = supply / cluster.n_gpus
            share = each * task.n_rows / (cluster.bus.rate * GIGA)
            reduce_s = all_reduce_s(task, cluster)
            updates = each * N_UPDATES / (T * ENVS_PER_GPU)
            rows.append(
                (
                    task.name,
                    f"{cluster.n_gpus}",
                    f"{cluster.n_cores}",
                    f"{supply:,.0f}",
                    f"{PERCENT * share:.2f} %",
                    f"{1 / share:,.0f}",
                    f"{reduce_s * 1e3:.2f} ms" if reduce_s else "none",
                    f"{PERCENT * reduce_s * updates:.2f} %" if reduce_s else "none",
                )
            )
    heads = ("task", "GPUs", "cores", "steps/s of these cores", "of each GPU's PCIe")
    heads += ("cores that would fill it, times", "an all-reduce", "of the time, in all-reduces")
    return table(heads, rows)


def all_reduce_s(task: Task, cluster: Cluster) -> float:
    """Return what bandwidth alone makes an all-reduce of gradients take, in a ring.

    Each GPU sends 2 (n - 1) / n of the bytes. Source: Patarasuk and Yuan 2009, "Bandwidth optimal
    all-reduce algorithms for clusters of workstations".
    """
    if cluster.between is None:
        return 0.0
    part = 2 * (cluster.n_gpus - 1) / cluster.n_gpus
    return part * task.n_gradients / (cluster.between.rate * GIGA)


def far_table() -> str:
    rows = []
    for task in tasks():
        most = INFINIBAND.rate * GIGA / task.n_rows
        rows.append((task.name, f"{most:,.0f}", f"{most * task.step_s:,.0f}"))
    return table(("task", "steps/s that one port brings", "cores that make them"), rows)


def measured_table() -> str:
    found = [
        ("a step of an Atari game on one core", "pixels_cpu", atari_step_s()),
        *(
            (f"{file.removesuffix('_cpu')}: {heading}, {name}", file, measured(file, heading, name))
            for file, heading, name in (
                (
                    "cages_cpu",
                    "a step of 16 environments that do nothing",
                    "ProcessCage, 2 workers",
                ),
                ("ray_cpu", "a step of 8 environments that do nothing", "ProcessCage, 2 workers"),
                ("ray_cpu", "a step of 8 environments that do nothing", "RayCage, 2 actors"),
                (
                    "ray_cpu",
                    "a step of 8 environments that show 256 x 256 images",
                    "RayCage, 2 actors",
                ),
            )
        ),
    ]
    rows = []
    for what, file, seconds in found:
        machine = json.loads((RESULTS / f"{file}.json").read_text())["machine"]
        rows.append((what, f"{seconds * 1e3:.2f} ms", machine["processor"], machine["load"]))
    return table(("what", "median", "processors", "load"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "bytes": bytes_table,
    "links": links_table,
    "limits": limits_table,
    "far": far_table,
    "measured": measured_table,
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def filled(text: str) -> str:
    """Return a document with its tables as they are now."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))

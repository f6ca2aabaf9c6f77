"""Train an example with several seeds, and draw the curves with the time and the machine beside.

Where an example trains others to compare with, in folders below its own, their curves are dashed.
"""

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from support.machine import describe_machine
from support.report import RESULTS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
COLORS = ("#1f5fa8", "#b45309", "#15803d", "#7c3aed", "#be123c")
KEYS = ("eval/episode_return", "train/episode_return")  # the first one that was logged is drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", help="name of a file in examples, without .py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps; the example's own by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and the PNG")
    parser.add_argument("--runs", type=Path, help="folder where the runs are kept, by their seeds")
    arguments = parser.parse_args()
    machine, begun = describe_machine(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder:
        kept = arguments.runs or Path(folder)
        runs = [
            train(arguments.example, seed, arguments.steps, kept / str(seed))
            for seed in arguments.seeds
        ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"learning_{arguments.example}_cpu.json"
    path.write_text(json.dumps({"begun": begun, "machine": machine, "runs": runs}, indent=1) + "\n")
    draw(path.with_suffix(".png"), arguments.example, runs, machine)
    print(f"written: {path} and {path.with_suffix('.png').name}")


def train(example: str, seed: int, steps: int | None, out: Path) -> dict[str, Any]:
    """Run an example as a program; return its score, its time in seconds and its curve."""
    command = [sys.executable, str(EXAMPLES / f"{example}.py")]
    command += ["--seed", str(seed), "--out", str(out)]
    if steps is not None:
        command += ["--steps", str(steps)]
    begin_s = time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = round(time.perf_counter() - begin_s, 1)
    name, score = result.stdout.splitlines()[-1].split()
    if name != "score":
        raise ValueError(f"{example}: the last line is {name!r}, expected a score")
    print(f"{example}, seed {seed}: score {score} after {seconds} s", flush=True)
    key, curve = read_curve(out / "metrics.csv")
    run = {"seed": seed, "score": float(score), "seconds": seconds, "key": key, "curve": curve}
    beside = {path.parent.name: read_curve(path)[1] for path in sorted(out.glob("*/metrics.csv"))}
    return run | ({"beside": beside} if beside else {})


def read_curve(path: Path) -> tuple[str, list[tuple[int, float]]]:
    """Return the key of the curve, and its points (steps, value)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    key = next(key for key in KEYS if any(row.get(key) for row in rows))
    return key, [(int(row["step"]), round(float(row[key]), 4)) for row in rows if row.get(key)]


def draw(path: Path, example: str, runs: list[dict[str, Any]], machine: dict[str, str]) -> None:
    """Write a PNG with a line for each seed."""
    figure = Figure(figsize=(8, 4), dpi=130, layout="constrained")
    axes = figure.subplots()
    for run, color in zip(runs, itertools.cycle(COLORS), strict=False):
        label = f"seed {run['seed']}: score {run['score']:g}, {run['seconds']:.0f} s"
        axes.plot(*zip(*run["curve"], strict=True), color=color, label=label)
        for name, curve in run.get("beside", {}).items():
            label = f"{name.replace('_', ' ')}: {curve[-1][1]:.0f} at the end"
            axes.plot(*zip(*curve, strict=True), color=color, linestyle="--", label=label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps")
    axes.set_ylabel(runs[0]["key"])
    axes.grid(axis="y", color="#d1d5db")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(
        f"examples/{example}.py\n{machine['processor']}, load {machine['load']} before, commit"
        f" {machine['commit']}",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    figure.savefig(path, facecolor="white")


if __name__ == "__main__":
    main()

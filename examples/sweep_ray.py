# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train,ray]"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Compare learning rates of cartpole_ppo.py over several seeds; each run is a Ray task."""

from dataclasses import dataclass, replace
from pathlib import Path

import cartpole_ppo
import numpy as np
import ray
import tyro

from parllel.evaluation import bootstrap_interval, interquartile_mean
from parllel.runners import RunFolder
from parllel.schedules import linear


@dataclass(frozen=True)
class Config:
    """Compare learning rates by the interquartile mean of their runs' scores."""

    learning_rates: tuple[float, ...] = (1e-4, 5e-4, 2e-3, 1e-2)
    n_seeds: int = 6
    steps: int = 40_000
    out: Path = Path("runs/sweep_ray")
    address: str = "local"  # "auto": the cluster that this machine is a node of


@ray.remote(num_cpus=1)
def train(learning_rate: float, seed: int, steps: int, out: Path) -> float:
    cartpole_ppo.SETTINGS = replace(cartpole_ppo.SETTINGS, learning_rate=linear(learning_rate, 0.0))
    config = cartpole_ppo.Config(seed, steps, out=out)
    run = RunFolder(config, name="cartpole_ppo")
    with run.open_metrics(steps) as metrics:
        return cartpole_ppo.train(config, run, metrics).mean_return


def main(config: Config) -> dict[float, float]:
    # The folder of this script goes to all machines; on these, parllel is installed.
    files = {"working_dir": str(Path(__file__).parent)}
    with ray.init(config.address, include_dashboard=False, runtime_env=files):
        runs = {}
        for rate in config.learning_rates:
            for seed in range(config.n_seeds):
                out = config.out.absolute() / f"{rate:g}" / str(seed)  # on disks that all share
                runs[train.remote(rate, seed, config.steps, out)] = rate
        scores: dict[float, list[float]] = {rate: [] for rate in config.learning_rates}
        waiting = list(runs)
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                scores[runs[done]].append(ray.get(done))
            except ray.exceptions.RayError as error:  # the others go on, and the table tells of it
                print(f"a run with learning rate {runs[done]:g} failed: {error}")
    return {rate: summarize(rate, found) for rate, found in scores.items()}


def summarize(rate: float, scores: list[float]) -> float:
    """Print a row of the table: the middle half of the runs, with an interval of 95 %."""
    if len(scores) < 2:
        print(f"{rate:8g}  too few runs: {scores}")
        return np.nan
    iqm = bootstrap_interval(interquartile_mean, np.array(scores)[:, np.newaxis], seed=0)
    print(f"{rate:8g}  {iqm.value:6.1f}  [{iqm.low:6.1f}, {iqm.high:6.1f}]  {len(scores)} runs")
    return float(iqm.value)


if __name__ == "__main__":
    main(tyro.cli(Config))

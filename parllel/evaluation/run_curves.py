"""read_curves: the curves of several runs, from the tables that they wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parllel.evaluation.scores import Floats
from parllel.metrics.csv_metrics import read_rows
from parllel.metrics.metrics_sink import STEP


def read_curves(
    runs: Sequence[str | os.PathLike[str]], key: str = "train/episode_return"
) -> tuple[NDArray[np.int64], Floats]:
    """Return the steps at which all runs logged a number, and these numbers.

    >>> import tempfile
    >>> rows = "step,loss", "10,0.5", "20,", "30,0.25"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "metrics.csv").write_text(chr(10).join(rows))
    ...     steps, curves = read_curves([folder, folder], "loss")
    >>> steps.tolist(), curves.shape
    ([10, 30], (2, 2, 1))

    Args:
        runs: folders of runs of one algorithm on one task, or their files metrics.csv.
        key: name of the number.

    Returns:
        steps, int64 [n_points]; and curves, float64 [n_points, n_runs, 1], as `bootstrap_interval`
        takes them. Those of several tasks are joined by np.concatenate(..., axis=-1).

    Raises:
        FileNotFoundError: a run has no table.
        ValueError: no run is given, or runs have no step in common at which they logged the key.
    """
    curves: list[dict[int, float]] = []
    for run in runs:
        path = Path(run)
        path = path / "metrics.csv" if path.is_dir() else path
        curves.append({int(row[STEP]): float(row[key]) for row in read_rows(path) if row.get(key)})
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        counts = ", ".join(f"{run}: {len(curve)}" for run, curve in zip(runs, curves, strict=True))
        raise ValueError(
            f"runs: got no step at which all of them logged {key!r} (numbers logged: {counts}),"
            " expected runs with the same settings"
        )
    values = np.array([[curve[step] for curve in curves] for step in steps], np.float64)
    return np.array(steps, np.int64), values[..., np.newaxis]

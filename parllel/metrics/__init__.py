"""Sinks: the displays and files that take the numbers of a run; not its text log.

A training loop is given one `MetricsSink` and calls `log(step, values)`. The displays and files
behind it are chosen where the program is put together:

    with Metrics(ConsoleMetrics(every=10), CsvMetrics("run/metrics.csv")) as metrics:
        metrics.log(2048, {"train/episode_return": 21.5, "train/loss": loss})

Leaving the `with` block closes every sink, after an error and after Ctrl-C too.
"""

from parllel.metrics.console_metrics import ConsoleMetrics
from parllel.metrics.csv_metrics import CsvMetrics
from parllel.metrics.learning_curve import LearningCurve
from parllel.metrics.metrics import Metrics
from parllel.metrics.metrics_sink import MetricsSink
from parllel.metrics.progress_bar import ProgressBar
from parllel.metrics.tensorboard_metrics import TensorBoardMetrics
from parllel.metrics.tracker_metrics import Tracker, TrackerMetrics

__all__ = [
    "ConsoleMetrics",
    "CsvMetrics",
    "LearningCurve",
    "Metrics",
    "MetricsSink",
    "ProgressBar",
    "TensorBoardMetrics",
    "Tracker",
    "TrackerMetrics",
]

"""TensorBoardMetrics: scalars in TensorBoard's event file, written without torch."""

import os
import socket
import time
from pathlib import Path

from parllel.metrics.metrics_sink import MetricsSink
from parllel.metrics.train_extra import import_from_train_extra


class TensorBoardMetrics(MetricsSink):
    """Append each log to an event file, which `tensorboard --logdir` shows while the run goes on.

    Values are float32 there. TensorBoard merges all event files of one folder, so a continued run
    may use its folder again; runs to compare need a folder each. No thread and no open file is
    kept between two logs, so nothing is lost when the run is killed or forks workers. After a log
    that could not be written whole, as on a full disk, the next one begins a new event file: what
    follows half an event is never read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with TensorBoardMetrics(folder) as metrics:
        ...         metrics.log(128, {"train/loss": 0.5})
        ...     [path.name.startswith("events.out.tfevents") for path in Path(folder).iterdir()]
        [True]
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        """Create the folder and in it a new event file.

        Args:
          log_dir: the folder, of one run.

        Raises:
          ModuleNotFoundError: tensorboard is not installed.
          OSError: the folder cannot be written.
        """
        name = type(self).__name__
        # Not torch's SummaryWriter: it would import torch, and starts a thread for each writer.
        self._event_pb2 = import_from_train_extra(
            "tensorboard.compat.proto.event_pb2", needed_by=name
        )
        self._record_writer = import_from_train_extra(
            "tensorboard.summary.writer.record_writer", needed_by=name
        )
        self._folder = Path(log_dir).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._begin_file()

    def _begin_file(self) -> None:
        self._path = self._folder / _event_file_name()
        self._is_whole = False
        self._append("xb", file_version="brain.Event:2")  # every event file begins with this

    def _write(self, step: int, values: dict[str, float]) -> None:
        if not self._is_whole:
            self._begin_file()
        scalars = [{"tag": key, "simple_value": value} for key, value in values.items()]
        self._append("ab", step=step, summary={"value": scalars})

    def _rewind(self, step: int) -> None:
        # TensorBoard forgets the events of a run from this step on that were written before.
        start = self._event_pb2.SessionLog(status=self._event_pb2.SessionLog.START)
        self._append("ab", step=step + 1, session_log=start)

    def _append(self, mode: str, **event: object) -> None:
        self._is_whole = False
        message = self._event_pb2.Event(wall_time=time.time(), **event)
        with self._path.open(mode) as file:
            self._record_writer.RecordWriter(file).write(message.SerializeToString())
        self._is_whole = True


def _event_file_name() -> str:
    """Name a new event file; TensorBoard wants "tfevents" in it, and reads in order of name."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    end = f"{socket.gethostname()}.{os.getpid()}.{nanoseconds:09d}"
    return f"events.out.tfevents.{seconds:010d}.{end}"

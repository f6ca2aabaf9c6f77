"""TrackerMetrics: the numbers of a run for wandb or trackio, which the caller sets up."""

import logging
from typing import Protocol

from parllel.metrics.metrics_sink import MetricsSink

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A run that `wandb.init` or `trackio.init` returned; or the module, which uses its last run.

    Example:
        >>> class Printed:
        ...     def log(self, values, *, step):
        ...         print(step, values)
        ...     def finish(self):
        ...         print("finished")
        >>> tracker: Tracker = Printed()
    """

    def log(self, values: dict[str, float], /, *, step: int) -> object:
        """Take numbers and the environment steps so far."""

    def finish(self) -> object:
        """Send what is left, and end the run."""


class TrackerMetrics(MetricsSink):
    """Pass each log on to a run of wandb or trackio, and finish it when closed.

        run = wandb.init(project="pong", config=asdict(settings))  # or trackio.init(...)
        metrics = Metrics(CsvMetrics("metrics.csv"), TrackerMetrics(run))

    parllel imports neither. An error of the tracker, such as a network that is down, does not end
    the training: the first one is logged as a warning, and later logs are tried all the same, so
    keep a sink on the disk beside it. wandb drops logs whose step is less than one before: a run
    that is resumed from a checkpoint needs a run of its own there, or wandb's `resume_from`.

    Example:
        >>> class Printed:
        ...     def log(self, values, *, step):
        ...         print(step, values)
        ...     def finish(self):
        ...         print("finished")
        >>> with TrackerMetrics(Printed()) as metrics:
        ...     metrics.log(128, {"train/loss": 0.5})
        128 {'train/loss': 0.5}
        finished
    """

    def __init__(self, tracker: Tracker) -> None:
        """Own the run: closing this finishes it.

        Args:
          tracker: a run, or the module after its `init`.

        Raises:
          TypeError: the tracker has no functions `log` and `finish`.
        """
        if not all(callable(getattr(tracker, name, None)) for name in ("log", "finish")):
            raise TypeError(
                f"tracker: got {tracker!r}, expected an object with log(values, step=) and"
                " finish(): what wandb.init(...) or trackio.init(...) returned"
            )
        self._tracker = tracker
        self._is_told = False

    def _write(self, step: int, values: dict[str, float]) -> None:
        try:
            self._tracker.log(values, step=step)
        except Exception as error:  # whatever: see the class
            self._tell(error)

    def _finish(self) -> None:
        try:
            self._tracker.finish()
        except Exception as error:  # as above
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._is_told:
            self._is_told = True
            _logger.warning(
                "the tracker %s failed; the run goes on, and this is told once: %s: %s",
                type(self._tracker).__name__,
                type(error).__name__,
                error,
                exc_info=error,
            )

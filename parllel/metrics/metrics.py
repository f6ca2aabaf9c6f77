"""Metrics: a sink that passes every call on to several others."""

from collections.abc import Callable, Sequence
from functools import partial

from parllel.metrics.metrics_sink import MetricsSink


class Metrics(MetricsSink):
    """Pass each log and the close on to all sinks, in the order given.

    A sink that fails does not stop the others: the error is raised after all were called. If
    several fail, the last error is raised and the others are its `__context__`.

    `Metrics()` is the null sink: it checks the numbers and keeps none.

    Example:
        >>> import sys
        >>> from parllel.metrics import ConsoleMetrics
        >>> with Metrics(ConsoleMetrics(keys=["loss"], stream=sys.stdout)) as metrics:
        ...     metrics.log(2048, {"loss": 0.25, "entropy": 0.5})
        step         2,048   loss       0.2500
    """

    def __init__(self, *sinks: MetricsSink) -> None:
        """Own the sinks: closing this closes them.

        Raises:
          TypeError: an argument is no MetricsSink.
        """
        for sink in sinks:
            if not isinstance(sink, MetricsSink):
                raise TypeError(
                    f"Metrics: got {sink!r}, expected sinks as separate arguments, "
                    "Metrics(a, b); a sink of your own is a subclass of MetricsSink"
                )
        self._sinks = sinks

    def _write(self, step: int, values: dict[str, float]) -> None:
        _call_all([partial(sink.log, step, values) for sink in self._sinks])

    def _rewind(self, step: int) -> None:
        _call_all([partial(sink.rewind, step) for sink in self._sinks])

    def _finish(self) -> None:
        _call_all([sink.close for sink in self._sinks])


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    """Make every call, whatever the others raise. An ExitStack would lose all errors but one."""
    if calls:
        try:
            calls[0]()
        finally:
            _call_all(calls[1:])

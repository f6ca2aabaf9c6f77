"""LearningCurve: a PNG of chosen metrics over the run, drawn when the run ends."""

import logging
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

from parllel.metrics.csv_metrics import read_rows
from parllel.metrics.metrics_sink import STEP, MetricsSink
from parllel.metrics.train_extra import import_from_train_extra

_logger = logging.getLogger(__name__)


class LearningCurve(MetricsSink):
    """Keep the points of a few metrics and draw them when closed, one panel for each metric.

    A panel shows each logged point and a centred moving mean. Memory: 16 bytes for each point.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with LearningCurve(f"{folder}/curve.png", y=["loss"]) as metrics:
        ...         metrics.log(128, {"loss": 0.5})
        ...         metrics.log(256, {"loss": 0.25})
        ...     Path(folder, "curve.png").exists()
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        x: str = STEP,
        y: Sequence[str] = ("train/episode_return",),
        *,
        smooth: int | None = None,
        title: str = "",
        history: str | os.PathLike[str] | None = None,
    ) -> None:
        """Choose the metrics to draw, and check that the picture can be written.

        Args:
          path: the PNG to write; an older file stays until the new picture is complete.
          x: "step" for environment steps, or a key that is logged together with the y keys.
          y: the keys to draw, from top to bottom.
          smooth: int >= 1, the number of points in the moving mean; a 20th of all by default.
          title: a line above the panels.
          history: the file of the run's CsvMetrics. After `rewind` the curve begins with its rows,
            so the picture of a resumed run has all of it.

        Raises:
          ModuleNotFoundError: matplotlib is not installed.
          OSError: the file cannot be written.
          ValueError: the path does not end in .png, `y` is empty, or `smooth` is less than 1.
        """
        self._path = Path(path).resolve()
        if self._path.suffix.lower() != ".png":
            raise ValueError(f"path: got {str(path)!r}, expected a file name that ends in .png")
        if not y or (smooth is not None and smooth < 1):
            raise ValueError(
                f"LearningCurve: got y={y!r}, smooth={smooth}; expected one key or more, and >= 1"
            )
        self._figure = import_from_train_extra(
            "parllel.metrics.curve_figure", needed_by=type(self).__name__
        )
        _check_writable(self._path)
        self._x = x
        self._points = {key: (array("d"), array("d")) for key in ([y] if isinstance(y, str) else y)}
        self._smooth = smooth
        self._title = title
        self._history = None if history is None else Path(history).resolve()

    def _write(self, step: int, values: dict[str, float]) -> None:
        x = float(step) if self._x == STEP else values.get(self._x)
        if x is None:
            return
        for key in values.keys() & self._points.keys():
            x_points, y_points = self._points[key]
            x_points.append(x)
            y_points.append(values[key])

    def _rewind(self, step: int) -> None:
        self._points = {key: (array("d"), array("d")) for key in self._points}
        if self._history is not None:
            self._read(self._history, step)

    def _read(self, path: Path, last_step: int) -> None:
        """Take the points of a run that is resumed from the table that it wrote."""
        for cells in read_rows(path):
            if (step := int(cells[STEP])) <= last_step:
                self._write(step, {key: float(cell) for key, cell in cells.items() if cell})

    def _finish(self) -> None:
        curves = {key: points for key, points in self._points.items() if points[0]}
        if missing := [key for key in self._points if key not in curves]:
            _logger.warning(
                "%s: nothing was logged for %s over %r, so %s drawn",
                self._path,
                ", ".join(map(repr, missing)),
                self._x,
                "the others are" if curves else "no picture is",
            )
        if curves:
            self._figure.draw_curves(
                self._path, curves, x_key=self._x, smooth=self._smooth, title=self._title
            )


def _check_writable(path: Path) -> None:
    """Raise OSError where the file could not be written; leave the folder as it would be then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    was_there = path.exists()
    with path.open("ab"):
        pass
    if not was_there:
        path.unlink()

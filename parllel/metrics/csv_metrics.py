"""CsvMetrics: one row for each log, in a file that is complete after every row."""

import csv
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from parllel.metrics.metrics_sink import STEP, MetricsSink

_logger = logging.getLogger(__name__)


class CsvMetrics(MetricsSink):
    """Append one row for each log to a CSV file: the step, then a column for each key.

    A new key widens the file, which is then written anew and put in place at once; rows without
    a value for a column have an empty cell there. NaN is `nan`; floats keep all their digits.
    The file is opened for each row and never held open, so it can be read at any moment, a killed
    run loses nothing, and worker processes inherit no handle.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CsvMetrics(f"{folder}/metrics.csv") as metrics:
        ...         metrics.log(128, {"loss": 0.5})
        ...         metrics.log(256, {"loss": 0.25, "entropy": 1.0})
        ...     print(Path(folder, "metrics.csv").read_text())
        step,loss,entropy
        128,0.5,
        256,0.25,1.0
        <BLANKLINE>
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the file and its folders, or continue the file of an earlier run.

        Args:
          path: the file to write.

        Raises:
          OSError: the file cannot be written.
          ValueError: the file exists, and CsvMetrics did not write it.
        """
        self._path = Path(path).resolve()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a"):
            pass  # raises here, not at the first log, where the file cannot be written
        self._columns = _read_header(self._path)
        _drop_unfinished_row(self._path)
        if not self._columns:
            self._columns = [STEP]
            self._append(self._columns)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if new := [key for key in values if key not in self._columns]:
            self._widen(new)
        self._append([step, *(values.get(key, "") for key in self._columns[1:])])

    def _append(self, cells: Sequence[str | float]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(line.getvalue())

    def _widen(self, new_columns: list[str]) -> None:
        columns = self._columns + new_columns
        wider = self._path.with_name(self._path.name + ".tmp")
        try:
            _copy_widened(self._path, wider, columns)
            wider.replace(self._path)
        finally:
            wider.unlink(missing_ok=True)
        self._columns = columns


def _read_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    if header and header[0] != STEP:
        raise ValueError(
            f"{path}: the first column is {header[0]!r}, expected {STEP!r}; "
            "this is no file of CsvMetrics, so choose another path"
        )
    return header


def _drop_unfinished_row(path: Path) -> None:
    """Cut off what follows the last line feed: a number in it may lack its last digits."""
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            _logger.warning("%s: dropped an unfinished last row: %r", path, content[end:])
            file.truncate(end)


def _copy_widened(source: Path, target: Path, columns: Sequence[str]) -> None:
    with (
        source.open(encoding="utf-8", newline="") as old,
        target.open("w", encoding="utf-8", newline="") as new,
    ):
        rows = csv.reader(old)
        next(rows)  # the old header
        writer = csv.writer(new, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row + [""] * (len(columns) - len(row)) for row in rows)

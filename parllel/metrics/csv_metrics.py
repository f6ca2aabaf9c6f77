"""CsvMetrics: one row for each log, in a file that is complete after every row."""

import contextlib
import csv
import io
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from parllel.metrics.metrics_sink import STEP, MetricsSink

_logger = logging.getLogger(__name__)


class CsvMetrics(MetricsSink):
    """Append one row for each log to a CSV file: the step, then a column for each key.

    A new key widens the file, which is then written anew and put in place at once; rows without
    a value for a column have an empty cell there. NaN is `nan`; floats keep all their digits.
    A row that can't be written whole, as on a full disk, raises OSError and leaves no part behind;
    later rows follow the last whole one. One run writes a file: where another one has written
    since, `log` raises RuntimeError.

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
          ValueError: the file exists, and CsvMetrics did not write it; or it is no file.
        """
        self._path = Path(path).resolve()
        if self._path.exists() and not (self._path.is_file() or self._path.is_dir()):
            raise ValueError(f"{path}: it is a FIFO or a device; choose another path")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a"):
            pass  # raises here, not at the first log, where the file cannot be written
        self._columns = _read_header(self._path)
        _drop_unfinished_row(self._path)
        self._size = self._path.stat().st_size  # as this run has left the file
        self._is_cut = False  # whether a row that did not fit may be left in it
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
        content = line.getvalue().encode()
        with self._path.open("ab", buffering=0) as file:  # or else close would write once more
            self._drop_cut_row()
            self._check_size(file.seek(0, os.SEEK_END))
            self._is_cut = True
            try:
                _write_all(file, content)
            except BaseException:
                with contextlib.suppress(OSError):  # the next row tries again
                    self._drop_cut_row()
                raise
            self._is_cut = False
            self._size += len(content)
            self._check_size(file.seek(0, os.SEEK_END))

    def _drop_cut_row(self) -> None:
        if self._is_cut:
            os.truncate(self._path, self._size)
            self._is_cut = False

    def _check_size(self, size: int) -> None:
        """Raise RuntimeError if the file is not as this run has left it."""
        if size != self._size:
            raise RuntimeError(
                f"{self._path}: it has {size} bytes, expected {self._size} as this run left it:"
                " another run or program writes it too; give each run a file of its own"
            )

    def _widen(self, new_columns: list[str]) -> None:
        for key in new_columns:
            if "\r" in key:
                raise ValueError(f"key {key!r}: a carriage return can't be read back; leave it out")
        self._drop_cut_row()
        self._check_size(self._path.stat().st_size)
        self._rewrite(self._columns + new_columns)

    def _rewind(self, step: int) -> None:
        self._drop_cut_row()
        self._check_size(self._path.stat().st_size)
        self._rewrite(self._columns, last_step=step)

    def _rewrite(self, columns: list[str], last_step: int | None = None) -> None:
        """Put a file with more columns, or without the rows of later steps, in place at once."""
        other = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            _copy_rows(self._path, other, columns, last_step)
            other.replace(self._path)
        finally:
            other.unlink(missing_ok=True)
        self._columns = columns
        self._size = self._path.stat().st_size


def _write_all(file: io.FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]


def _read_header(path: Path) -> list[str]:
    """Return the columns of a file, which is emptied if its header was not written to its end."""
    content = path.read_bytes()
    end = _end_of_header(content)
    try:
        header = next(csv.reader(io.StringIO(content[:end].decode(), newline="")), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no table that CsvMetrics wrote: {error}") from error
    first = header[0] if end else content.split(b",")[0].decode(errors="replace")
    if first != STEP if end else not STEP.startswith(first):
        raise ValueError(
            f"{path}: the first column is {first!r}, expected {STEP!r}; "
            "this is no file of CsvMetrics, so choose another path"
        )
    if len(set(header)) != len(header):
        raise ValueError(f"{path}: a column twice, among {header}; choose another path")
    if content and not end:
        _logger.warning("%s: dropped an unfinished header: %r", path, content)
        os.truncate(path, 0)
    return header


def _end_of_header(content: bytes) -> int:
    """Return the number of bytes of the first row, 0 where it has no end: keys may hold lines."""
    end = n_quotes = 0
    while end := content.find(b"\n", begin := end) + 1:
        n_quotes += content.count(b'"', begin, end)
        if n_quotes % 2 == 0:
            return end
    return 0


def _drop_unfinished_row(path: Path) -> None:
    """Cut off what follows the last line feed: a number in it may lack its last digits."""
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            _logger.warning("%s: dropped an unfinished last row: %r", path, content[end:])
            file.truncate(end)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the cells of each row of a file of CsvMetrics by their columns.

    Raises:
      ValueError: a row is none that CsvMetrics wrote; the message has its line and its column.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        try:
            columns = next(rows, [])
            for row in rows:
                yield _checked(row, columns)
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{path}: line {rows.line_num}: {error}; the table is damaged: put it back as the"
                " run wrote it, or take it away"
            ) from error


def _checked(row: list[str], columns: Sequence[str]) -> dict[str, str]:
    if len(row) != len(columns):
        raise ValueError(f"got {len(row)} cells, expected {len(columns)}, one for each column")
    cells = dict(zip(columns, row, strict=True))
    if not (cells[STEP].isascii() and cells[STEP].isdigit()):
        raise ValueError(f"{STEP}: got {cells[STEP]!r}, expected an integer")
    for key, cell in cells.items():
        try:
            float(cell or 0)
        except ValueError:
            raise ValueError(f"{key}: got {cell!r}, expected a number") from None
    return cells


def _copy_rows(source: Path, target: Path, columns: Sequence[str], last_step: int | None) -> None:
    with target.open("x", encoding="utf-8", newline="") as new:
        writer = csv.writer(new, lineterminator="\n")
        writer.writerow(columns)
        for cells in read_rows(source):
            if last_step is None or int(cells[STEP]) <= last_step:
                writer.writerow([cells.get(key, "") for key in columns])

"""ConsoleMetrics: the numbers as aligned text, above a progress bar if there is one."""

import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from parllel.metrics.metrics_sink import MetricsSink

_VALUE_WIDTH = 12  # fits -999,999,999 and every #.4g
_STEP_WIDTH = 13  # fits 9,999,999,999
_GAP = "   "


class ConsoleMetrics(MetricsSink):
    """Print the newest values, as many to a line as the terminal is wide.

    Example:
        >>> import sys
        >>> with ConsoleMetrics(every=2, stream=sys.stdout) as metrics:
        ...     metrics.log(2048, {"train/loss": 0.5})
        ...     metrics.log(4096, {"train/loss": 0.03125})
        step         4,096   train/loss      0.03125
    """

    def __init__(
        self, *, every: int = 1, keys: Sequence[str] | None = None, stream: TextIO | None = None
    ) -> None:
        """Choose what to print, and how often.

        Args:
          every: int >= 1, the number of logs from one print to the next. Values in between are not
            lost: the newest value of each key is printed, and `close` prints the rest.
          keys: the metrics to print, all by default.
          stream: the text stream to print to; by default `sys.stdout` at the time of printing. It
            is not closed.

        Raises:
          ValueError: `every` is less than 1.
        """
        if every < 1:
            raise ValueError(f"every: got {every}, expected >= 1; 1 prints at every log")
        self._every = every
        self._keys = keys
        self._stream = stream
        self._step = 0
        self._logs_waiting = 0
        self._newest: dict[str, float] = {}
        self._key_width = 0

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._step = step
        self._newest |= values if self._keys is None else _selected(values, self._keys)
        self._logs_waiting += 1
        if self._logs_waiting == self._every:
            self._print()

    def _finish(self) -> None:
        if self._logs_waiting:
            self._print()

    def _print(self) -> None:
        # Grows only: columns stay where they are when a long key is absent for a while.
        self._key_width = max([self._key_width, *map(len, self._newest)])
        cells = [
            f"{key:<{self._key_width}} {readable(value):>{_VALUE_WIDTH}}"
            for key, value in self._newest.items()
        ]
        _print_above_bars(_lines(f"step {self._step:>{_STEP_WIDTH},}", cells), self._stream)
        self._newest = {}
        self._logs_waiting = 0


def readable(value: float) -> str:
    """Format a number for people: four digits, thousands apart, whole numbers whole."""
    is_whole = value.is_integer() or abs(value) >= 1000
    return f"{value:,.0f}" if is_whole and abs(value) < 1e9 else f"{value:#.4g}"


def _selected(values: dict[str, float], keys: Sequence[str]) -> dict[str, float]:
    return {key: values[key] for key in keys if key in values}


def _lines(head: str, cells: Sequence[str]) -> str:
    """Lay cells of one width out in rows after the head; later rows begin below the first cell."""
    if not cells:
        return head
    room = shutil.get_terminal_size().columns - len(head)
    per_line = max(1, room // len(_GAP + cells[0]))
    rows = [cells[i : i + per_line] for i in range(0, len(cells), per_line)]
    heads = [head] + [" " * len(head)] * (len(rows) - 1)
    return "\n".join(_GAP.join([start, *row]) for start, row in zip(heads, rows, strict=True))


def _print_above_bars(text: str, stream: TextIO | None) -> None:
    tqdm = sys.modules.get("tqdm")  # no bar can be active where tqdm was never imported
    bars = list(tqdm.tqdm._instances) if tqdm is not None else []
    if bars:
        # The bar's own class, not tqdm.tqdm: see progress_bar.py for its lock.
        type(bars[0]).write(text, file=stream or sys.stdout)
    else:
        print(text, file=stream, flush=True)

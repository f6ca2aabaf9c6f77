"""ProgressBar: the progress and speed of a run and a few of its numbers, on one line."""

import threading
from collections.abc import Sequence
from typing import Any, TextIO

from parllel.metrics.console_metrics import readable
from parllel.metrics.metrics_sink import MetricsSink
from parllel.metrics.train_extra import import_from_train_extra

# What is shown of keys where a log has them, in this order: shares in [0, 1] as percentages.
_SHARES = {
    "time/envs_share": "envs",
    "time/policy_share": "policy",
    "time/transfer_share": "transfer",
    "time/learn_share": "learn",
    "gpu/utilization": "GPU",
}
_GPU_MEMORY = "gpu/memory_used_gb"


class ProgressBar(MetricsSink):
    """Show a tqdm bar of the environment steps and the newest values of the chosen metrics.

    The bar shows steps per second. Behind the chosen metrics it shows where the time goes, where
    logs have such numbers: the shares of environments, policy, transfer and learning
    (`time/envs_share` and so on), and of a GPU its utilization and the memory in use
    (`gpu/utilization`, `gpu/memory_used_gb`).

    Example:
        >>> import io
        >>> text = io.StringIO()
        >>> with ProgressBar(100, show=["loss"], stream=text, is_disabled=False) as metrics:
        ...     metrics.log(100, {"loss": 0.25})
        >>> "100%" in text.getvalue(), "loss 0.2500" in text.getvalue()
        (True, True)
    """

    def __init__(
        self,
        total_steps: int,
        show: Sequence[str] = ("train/episode_return",),
        *,
        initial_step: int = 0,
        is_disabled: bool | None = None,
        stream: TextIO | None = None,
    ) -> None:
        """Draw the empty bar.

        Args:
          total_steps: int >= 1, the environment steps of the whole run.
          show: keys of the metrics to show beside the bar.
          initial_step: the step at which a continued run goes on: its speed is counted from there.
          is_disabled: whether nothing is drawn; None draws if the stream is a terminal.
          stream: the text stream to draw on, `sys.stderr` by default. It is not closed.

        Raises:
          ModuleNotFoundError: tqdm is not installed.
          ValueError: `total_steps` is less than 1.
        """
        if total_steps < 1:
            raise ValueError(f"total_steps: got {total_steps}, expected >= 1")
        self._total_steps = total_steps
        self._show = (show,) if isinstance(show, str) else tuple(show)
        self._newest: dict[str, str] = {}
        self._usage: dict[str, str] = {}
        self._bar = _bar_class(import_from_train_extra("tqdm", needed_by=type(self).__name__).tqdm)(
            total=total_steps,
            initial=initial_step,
            disable=is_disabled,
            file=stream,
            unit=" steps",
            unit_scale=True,
            dynamic_ncols=True,
            miniters=1,  # else tqdm guesses how many steps to skip, and may freeze on big jumps
        )

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._newest |= {key: readable(values[key]) for key in self._show if key in values}
        self._usage |= {
            key: f"{name} {values[key]:.0%}" for key, name in _SHARES.items() if key in values
        }
        if _GPU_MEMORY in values:
            self._usage[_GPU_MEMORY] = f"{values[_GPU_MEMORY]:.1f} GB"
        shown = [f"{key} {text}" for key, text in self._newest.items()]
        if self._usage:
            order = [key for key in (*_SHARES, _GPU_MEMORY) if key in self._usage]
            shown.append(" ".join(self._usage[key] for key in order))
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        # The last batch often overshoots, and tqdm draws no bar beyond its total.
        self._bar.update(max(0, min(step, self._total_steps) - self._bar.n))

    def _rewind(self, step: int) -> None:
        self._bar.initial = min(step, self._total_steps)  # its speed is counted from there
        self._bar.reset()
        self._bar.n = self._bar.initial
        self._bar.refresh()

    def _finish(self) -> None:
        self._bar.close()


def _bar_class(tqdm: type) -> Any:  # Any: tqdm has no type information
    """Make a tqdm class that leaves the process as it is.

    tqdm's own lock fixes multiprocessing's start method for the whole process
    (`test_progress_bar_leaves_the_start_method_open`), and its monitor thread is one more thread
    to be forked with; with miniters=1 it has nothing to do.
    """
    bar_class: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
    bar_class.set_lock(threading.RLock())
    return bar_class

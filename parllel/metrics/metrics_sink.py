"""MetricsSink: the contract of every sink; it checks and converts the numbers, once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self, SupportsFloat, SupportsIndex, final

STEP = "step"
"""The name of the x axis in files and plots, so no metric may have it."""


class MetricsSink(ABC):
    """Take the numbers of a training run.

    A new sink implements `_write`, `_finish` if it has something to do at the end, and `_rewind` if
    it can forget the steps that a resumed run repeats. It is called from one thread of one process.

    Example:
        >>> class Printed(MetricsSink):
        ...     def _write(self, step, values):
        ...         print(step, values)
        >>> with Printed() as metrics:
        ...     metrics.log(128, {"train/loss": 0.5})
        128 {'train/loss': 0.5}
    """

    _is_closed = False  # here and not in __init__: a sink need not call super().__init__()

    @final
    def log(self, step: SupportsIndex, values: Mapping[str, SupportsFloat]) -> None:
        """Record the values that were measured at one step.

        Args:
          step: integer >= 0, the environment steps so far, over all environments.
          values: a number for each key: Python or NumPy scalars, 0-d arrays or tensors. NaN and
            infinities are recorded as they are. The host waits for a tensor on a GPU. Use `/` for
            groups, as in `train/loss`, and end a key in its unit, as in `train/update_s`.

        Raises:
          TypeError: the step is not an integer, a key not a string, or a value not a number.
          ValueError: the step is negative, or a key is empty or "step".
          RuntimeError: the sink is closed.
        """
        if self._is_closed:
            raise RuntimeError(
                f"{type(self).__name__}: log() after close(); log inside the `with` block"
            )
        floats = {_checked_key(key): _as_float(key, value) for key, value in values.items()}
        self._write(_as_step(step), floats)

    @final
    def rewind(self, step: SupportsIndex) -> None:
        """Go back to a step: a run that was cut off is resumed there, and logs what follows again.

        Values of later steps are forgotten where the output can forget.

        Args:
          step: integer >= 0, the last one that counts.

        Raises:
          TypeError, ValueError, RuntimeError: as for `log`.
        """
        if self._is_closed:
            raise RuntimeError(f"{type(self).__name__}: rewind() after close()")
        self._rewind(_as_step(step))

    @final
    def close(self) -> None:
        """Finish the output. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._finish()

    @abstractmethod
    def _write(self, step: int, values: dict[str, float]) -> None:
        """Record checked values; afterwards the dictionary belongs to the sink."""

    def _rewind(self, step: int) -> None:  # noqa: B027 - some outputs can't forget
        """Forget the values of all steps after one."""

    def _finish(self) -> None:  # noqa: B027 - most sinks have nothing to do here
        """Complete the output; called once, from `close`."""

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _as_step(step: SupportsIndex) -> int:
    if not hasattr(step, "__index__"):
        raise TypeError(
            f"step: got {step!r}, expected an integer, the number of environment steps so far"
        )
    if (number := step.__index__()) < 0:
        raise ValueError(f"step: got {number}, expected >= 0; count from the start of the run")
    return number


def _checked_key(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key {key!r}: got {type(key).__name__}, expected a str like 'train/loss'")
    if key in ("", STEP):
        raise ValueError(
            f"key {key!r}: empty and {STEP!r} are reserved; log(step, ...) has the step"
        )
    return key


def _as_float(key: str, value: SupportsFloat) -> float:
    shape = getattr(value, "shape", ())
    if tuple(shape) != ():
        raise TypeError(
            f"{key}: got an array of shape {tuple(shape)}, expected one number; "
            "reduce it first, for example with .mean()"
        )
    # NumPy strings have __float__ too.
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{key}: got {value!r} ({type(value).__name__}), expected one number")
    if getattr(value, "requires_grad", False):
        value = value.detach()  # type: ignore[attr-defined]  # float() of it warns: torch has a graph
    return float(value)

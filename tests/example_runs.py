"""Small runs of the examples, for the tests of each of them."""

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from parllel.metrics import Metrics, MetricsSink
from parllel.runners import RunFolder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class CutOffError(Exception):
    """The end of a run that is cut off."""


class Numbers(MetricsSink):
    """Keep what was logged, without times.

    Args:
        cut_after: number of steps; a log of a later step cuts the run off.
    """

    def __init__(self, cut_after: float = math.inf) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []
        self._cut_after = cut_after

    def _write(self, step: int, values: dict[str, float]) -> None:
        if step > self._cut_after:
            raise CutOffError
        kept = {name: x for name, x in values.items() if not name.startswith(("time/", "gpu/"))}
        self.logs.append((step, kept))

    def _rewind(self, step: int) -> None:
        self.logs = [log for log in self.logs if log[0] <= step]


def load(name: str) -> ModuleType:
    """Return an example as a module."""
    if name not in sys.modules:  # so that its functions can be sent to workers
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@contextmanager
def changed(module: ModuleType, constants: Mapping[str, Any]) -> Iterator[None]:
    """Change constants of a module in a `with` block."""
    with patch.multiple(module, **constants) if constants else nullcontext():
        yield


def train(
    module: ModuleType, out: Path, *, cut_after: float = math.inf, **config: Any
) -> tuple[list[Any], Any]:
    """Train in a folder; return what was logged, and what the example returns.

    A run that is cut off by the first log behind a step returns None.
    """
    arguments = module.Config(out=out, **config)
    numbers, result = Numbers(cut_after), None
    with suppress(CutOffError), Metrics(numbers) as metrics:
        result = module.train(arguments, RunFolder(arguments, name=module.__name__), metrics)
    return numbers.logs, result

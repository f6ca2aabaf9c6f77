"""Small runs of the examples, for the tests of each of them."""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from parllel.metrics import Metrics, MetricsSink
from parllel.runners import RunFolder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class Numbers(MetricsSink):
    """Keep what was logged, without times."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []

    def _write(self, step: int, values: dict[str, float]) -> None:
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
    with patch.multiple(module, **constants):
        yield


def train(module: ModuleType, out: Path, **config: Any) -> tuple[list[Any], Any]:
    """Train in a folder; return what was logged, and what the example returns."""
    arguments = module.Config(out=out, **config)
    numbers = Numbers()
    with Metrics(numbers) as metrics:
        result = module.train(arguments, RunFolder(arguments, name=module.__name__), metrics)
    return numbers.logs, result

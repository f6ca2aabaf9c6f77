"""The `>>>` examples of the package's docstrings run, and give what they show."""

import doctest
import importlib
import io
from pathlib import Path

import pytest

import parllel
from optional import needs

PACKAGE = Path(parllel.__file__).parent
NEEDED = {
    "parllel.metrics.learning_curve": "matplotlib",
    "parllel.metrics.progress_bar": "tqdm",
    "parllel.metrics.tensorboard_metrics": "tensorboard",
    "parllel.samplers.trace": "matplotlib",
}


def with_examples() -> list[object]:
    cases = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in path.read_text():
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            cases.append(pytest.param(name, marks=[needs(NEEDED[name])] if name in NEEDED else []))
    return cases


@pytest.mark.parametrize("module", with_examples())
def test_examples_give_what_they_show(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where examples write their files
    assert faults(importlib.import_module(module)) == ""


def faults(module: object, name: str | None = None) -> str:
    """Run a module's examples; return what doctest reports of those that fail."""
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=report.write)
    return report.getvalue()


def test_an_example_that_gives_something_else_or_raises_is_found() -> None:
    class Wrong:
        """Show what is not so.

        >>> 1 + 1
        3
        """

    class Raising:
        """Raise.

        >>> 1 / 0
        """

    class Right:
        """Show what is so.

        >>> 1 + 1
        2
        """

    assert "Got:\n    2" in faults(Wrong, "Wrong")
    assert "ZeroDivisionError" in faults(Raising, "Raising")
    assert faults(Right, "Right") == ""

"""The `>>>` examples of docstrings give what they show, and each public class has one."""

import doctest
import importlib
import inspect
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
# JAX starts threads: tests/cages/test_functional_envs.py runs these in a process of their own.
IN_A_CHILD = ("parllel.cages.device.functional",)


def with_examples() -> list[object]:
    cases = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in path.read_text():
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            if name in IN_A_CHILD:
                continue
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


# Public classes


def faces() -> list[str]:
    """List the packages whose `__init__.py` exports names."""
    paths = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
    return [".".join(path.relative_to(PACKAGE.parent).parts) for path in paths]


def classes_without_example(face: object) -> list[str]:
    """List the public classes of a face whose docstrings have no example."""
    public = [getattr(face, name) for name in getattr(face, "__all__", ())]
    classes = [each for each in public if inspect.isclass(each) and each is not Any]
    return [each.__qualname__ for each in classes if ">>>" not in (each.__doc__ or "")]


@pytest.mark.parametrize("face", faces())
def test_each_public_class_has_an_example(face: str) -> None:
    assert classes_without_example(importlib.import_module(face)) == []


def test_a_class_without_example_is_found() -> None:
    class Shown:
        """>>> 1"""

    class Told:
        """Say it in words."""

    face = SimpleNamespace(__all__=["Shown", "Told"], Shown=Shown, Told=Told)
    assert classes_without_example(face) == [Told.__qualname__]

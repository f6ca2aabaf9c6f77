"""What examples say for `uv run`: they name what they import, and the checkout that they are in."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from example_runs import EXAMPLES

HEADER = re.compile(r"\A# /// script\n((?:#.*\n)*?)# ///\n")
PYPROJECT = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
EXAMPLE_NAMES = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
PACKAGES = {"ale_py": "ale-py", "pygame": "pygame-ce"}  # that bring modules of other names


def metadata_of(source: str) -> dict[str, object]:
    """Return the script's metadata (PEP 723)."""
    found = HEADER.match(source)
    assert found is not None, "it does not begin with `# /// script`"
    return tomllib.loads(re.sub(r"^# ?", "", found[1], flags=re.MULTILINE))


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0]


def missing(source: str) -> list[str]:
    """List the modules that a script imports and its dependencies do not bring."""
    metadata = metadata_of(source)
    named = list(metadata["dependencies"])  # type: ignore[call-overload]
    own = next(each for each in named if name_of(each) == "parllel")
    extras = re.findall(r"[\w-]+", own.removeprefix("parllel"))
    brought = [*named, *PYPROJECT["dependencies"]]
    for extra in extras:
        brought += PYPROJECT["optional-dependencies"][extra]
    names = {name_of(each) for each in brought} | set(EXAMPLE_NAMES)
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    modules -= sys.stdlib_module_names
    return sorted(name for name in modules if PACKAGES.get(name, name) not in names)


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_an_example_names_what_it_imports_and_its_checkout(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    metadata = metadata_of(source)
    assert missing(source) == []
    assert metadata["requires-python"] == PYPROJECT["requires-python"]
    checkout = metadata["tool"]["uv"]["sources"]["parllel"]  # type: ignore[index]
    assert checkout == {"path": "..", "editable": True}
    assert (EXAMPLES / Path(checkout["path"]) / "pyproject.toml").exists()


def test_an_import_that_nothing_brings_is_found() -> None:
    header = '# /// script\n# dependencies = ["parllel[train]", "minigrid>=3"]\n# ///\n'
    source = header + "import os\nimport minigrid.wrappers\nimport ale_py\nfrom torch import nn\n"
    assert missing(source) == ["ale_py"]

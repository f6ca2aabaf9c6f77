"""The documents: the notebook shows what it does, the pages' code runs, what they name exists."""

import asyncio
import contextlib
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optional import needs

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
NOTEBOOK = ROOT / "docs" / "arrays_and_trees.ipynb"
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUN = (README, *PAGES)  # whose code is run
TEXTS = [README, ROOT / "CONTRIBUTING.md", *PAGES, NOTEBOOK]
each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)

TIMEOUT_S = 900  # about 30 s are needed on 2 idle cores, and many times that on busy ones
RANDOM = "random"  # the tag of cells whose output differs from run to run

FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_OUTPUT = re.compile(
    r"^```python\n([^`]*?)^```\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL
)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMENT = re.compile(r"#.*")
MAKE = re.compile(r"\bmake\b([^&;|\n]*)")
FIGURE = re.compile(r"([\d.,]*\d)(?: times)? <!-- measured: (.*?) -->")
PROVENANCE = re.compile(r"([\d.-]+) <!-- (begun|load): (\w+) -->")
TARGET = re.compile(r"^([\w-]+):(?!=)", re.MULTILINE)
# An address on the web has a letter or a dot before such a name.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|Users)/\S*")


def text_of(path: Path) -> str:
    """Return a document as Markdown: of a notebook, its prose."""
    if path.suffix == ".md":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


# Checkers: each returns what is wrong, as text


def unknown_targets(text: str, makefile: str) -> list[str]:
    """List the targets that the text's commands ask make for and the Makefile does not have."""
    code = [body for language, body in FENCE.findall(text) if language not in ("python", "text")]
    code += INLINE_CODE.findall(FENCE.sub("", text))
    given = [words for span in code for words in MAKE.findall(COMMENT.sub("", span))]
    named = [word for word in " ".join(given).split() if re.fullmatch(r"[a-z][\w-]*", word)]
    return [word for word in named if word not in TARGET.findall(makefile)]


def broken_links(text: str, folder: Path) -> list[str]:
    """List the relative links that lead to no file."""
    links = LINK.findall(FENCE.sub("", text))
    paths = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    return [path for path in paths if not (folder / path).exists()]


def machine_paths(text: str) -> list[str]:
    """List the paths that exist on the writer's machine only."""
    return MACHINE_PATH.findall(text)


def shown(cell: Any) -> dict[str, str]:
    """Return the text of each kind that a cell shows: streams, results, errors."""
    texts: dict[str, str] = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            texts[output.name] = texts.get(output.name, "") + output.text
        elif output.output_type == "error":
            texts["error"] = f"{output.ename}: {output.evalue}"
        else:
            texts |= output.data
    return texts


def output_faults(stored: Any, fresh: Any) -> list[str]:
    """List the cells that fail, write to stderr, or show something else than what is stored."""
    faults = []
    for number, (before, after) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        if before.cell_type != "code":
            continue
        name = f"cell {number} ({before.id})"
        texts = shown(after)
        faults += [f"{name}: {texts[kind]}" for kind in ("error", "stderr") if kind in texts]
        if RANDOM not in before.metadata.get("tags", []) and texts != shown(before):
            faults.append(f"{name}: stored {shown(before)}, got {texts}; execute it and save")
    return faults


def wrong_figures(text: str) -> list[str]:
    """List the figures that are not those of the file, table and contestant beside them.

    A comment behind a figure says where it was measured: `<!-- measured: BENCH / table / contestant
    / other contestant -->` for a ratio of times, or a column in the place of the other contestant.
    """
    faults = []
    for figure, place in FIGURE.findall(text):
        bench, heading, contestant, other = place.split(" / ")
        value = measured(bench, heading, contestant, other)
        decimals = len(figure.partition(".")[2])
        if f"{value:,.{decimals}f}" != figure:
            faults.append(f"{figure}: {value} is measured by {place}")
    for told, what, bench in PROVENANCE.findall(text):
        report = json.loads((RESULTS / f"{bench}_cpu.json").read_text())
        found = report["begun"] if what == "begun" else report["machine"]["load"]
        if not found.startswith(told):
            faults.append(f"{told}: {found} is told by {bench}")
    return faults


def measured(bench: str, heading: str, contestant: str, other: str) -> float:
    """Return a ratio of two contestants' times, or a number of one of them."""
    report = json.loads((RESULTS / f"{bench}_cpu.json").read_text())
    (table,) = (table for table in report["tables"] if table["heading"] == heading)
    row = table["contestants"][contestant]
    if other in row:
        return float(row[other])
    if other in row["times"]:
        return float(row["times"][other])
    return 1 / float(table["contestants"][other]["times"][contestant])


# The notebook


def execute(notebook: Any, folder: Path) -> None:
    """Execute a notebook in place, with this interpreter, up to the end whatever fails."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    config = Config()
    config.KernelSpecManager.kernel_dirs = []  # no kernel but that of this interpreter
    client = NotebookClient(
        notebook,
        config=config,
        allow_errors=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    asyncio.run(asyncio.wait_for(client.async_execute(), TIMEOUT_S))


@pytest.fixture
def private_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep the user's Jupyter and IPython out: neither read their settings nor write history."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    with open(os.devnull) as nothing:  # Jupyter asks stdin for its encoding: it may be closed
        monkeypatch.setattr(sys, "stdin", nothing)
        yield tmp_path


@pytest.mark.long
@needs("nbformat", "nbclient", "ipykernel")
def test_the_notebook_shows_what_it_does(private_jupyter: Path) -> None:
    import nbformat

    fresh = nbformat.read(NOTEBOOK, as_version=4)
    execute(fresh, private_jupyter)
    assert output_faults(nbformat.read(NOTEBOOK, as_version=4), fresh) == []


@pytest.mark.long
@needs("nbformat", "nbclient", "ipykernel")
def test_a_cell_that_fails_warns_or_differs_is_found(private_jupyter: Path) -> None:
    import nbformat

    sources = [
        "import sys; print(sys.executable)",
        "1 / 0",
        "import warnings; warnings.warn('careful')",
        "1 + 1",
        "id(object())",
    ]
    stored = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(sources)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    stored.cells[0].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"{sys.executable}\n")
    ]
    for cell in (stored.cells[1], stored.cells[2], stored.cells[4]):
        cell.metadata.tags = [RANDOM]
    fresh = copy.deepcopy(stored)
    execute(fresh, private_jupyter)
    expected = [r"cell 1 \(c1\): ZeroDivisionError", r"cell 2 \(c2\): .*careful", r"cell 3 \(c3\)"]
    faults = output_faults(stored, fresh)
    assert len(faults) == len(expected), faults
    for fault, pattern in zip(faults, expected, strict=True):
        assert re.match(pattern, fault, re.DOTALL)


@needs("nbformat", "nbclient", "ipykernel")
def test_the_notebook_was_executed_in_order_and_names_no_machine() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code_cells]
    assert counts == list(range(1, len(code_cells) + 1))
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


# The code of README and of all pages


def blocks_of(path: Path) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text()) if language == "python"]


def all_blocks() -> list[str]:
    return [block for path in RUN for block in blocks_of(path)]


def shown_beside() -> dict[str, str]:
    """Map the blocks that a page shows the output of, in a block of text behind, to that output."""
    return {block: shown for path in RUN for block, shown in WITH_OUTPUT.findall(path.read_text())}


def runs_of_blocks() -> list[object]:
    """All in one process, which imports torch once; and those that play games."""
    with_games, with_agents, with_data, plain = [], [], [], []
    for number, block in enumerate(all_blocks()):
        is_game, has_agents = "import AtariVectorEnv" in block, "from mpe2 import" in block
        chosen = with_games if is_game else with_agents if has_agents else plain
        (with_data if "minari" in block else chosen).append(number)
    return [
        pytest.param(plain, id="together"),
        pytest.param(with_games, marks=needs("ale_py"), id="with Atari"),
        pytest.param(with_agents, marks=needs("mpe2"), id="with mpe2"),
        pytest.param(with_data, marks=needs("minari", "h5py"), id="with Minari"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("numbers", runs_of_blocks())
def test_the_python_code_of_the_documents_runs(numbers: list[int], tmp_path: Path) -> None:
    run_blocks([all_blocks()[number] for number in numbers], tmp_path)


RUN_ALL = """
import contextlib, doctest, io, pathlib, runpy, sys
same = doctest.OutputChecker().check_output
for number in range(int(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()) as written:
        runpy.run_path(f"block_{number}.py", run_name="__main__")
    shown = pathlib.Path(f"block_{number}.txt")
    if shown.exists():
        assert same(shown.read_text(), written.getvalue(), doctest.ELLIPSIS), written.getvalue()
"""


def run_blocks(blocks: list[str], folder: Path) -> None:
    """Run programs one after the other in a new process; they have to end well and say no error.

    Where a page shows what a program writes, it has to write that; `...` stands for anything.
    """
    outputs = shown_beside()
    for number, block in enumerate(blocks):
        (folder / f"block_{number}.py").write_text(block)
        if block in outputs:
            (folder / f"block_{number}.txt").write_text(outputs[block])
    (folder / "run_all.py").write_text(RUN_ALL)
    command = [sys.executable, "run_all.py", str(len(blocks))]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=TIMEOUT_S, check=False
    )
    told = "parllel: compiling kernels"  # in a checkout where they are not compiled yet
    errors = [line for line in run.stderr.splitlines() if not line.startswith(told)]
    assert (run.returncode, errors) == (0, [])


@pytest.mark.long  # without the cache of `make check`, mypy reads all of torch and gymnasium
@needs("mypy")
def test_the_python_code_of_the_readme_is_typed_in_a_project_that_is_strict(tmp_path: Path) -> None:
    for number, block in enumerate(blocks_of(README)):
        (tmp_path / f"program_{number}.py").write_text(block)
    # By the settings of `make check`, whose cache is of no use to any others.
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "."]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        timeout=5 * TIMEOUT_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout


@pytest.mark.long
def test_code_that_fails_or_writes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, block, shown in (("same", "print(12)", "1..."), ("other", "print(12)", "2")):
        (tmp_path / folder).mkdir()
        monkeypatch.setitem(
            globals(), "shown_beside", lambda block=block, shown=shown: {block: shown}
        )
        with contextlib.nullcontext() if folder == "same" else pytest.raises(AssertionError):
            run_blocks([block], tmp_path / folder)


# What the documents name


@each_text
def test_make_knows_the_targets_that_documents_name(path: Path) -> None:
    assert unknown_targets(text_of(path), (ROOT / "Makefile").read_text()) == []


def test_an_unknown_target_is_found() -> None:
    makefile = "NAME := x\ntest: venv\n\tmake hidden\nvenv:\n"
    text = "We make progress; `make`, `make NAME=y test` and `make gone`.\n\n"
    text += "```\nmake -B venv  # make it anew\nmake lost && cd\n```\n```python\n# make envs\n```\n"
    assert unknown_targets(text, makefile) == ["lost", "gone"]


@each_text
def test_links_lead_to_files(path: Path) -> None:
    assert broken_links(text_of(path), path.parent) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "here.md").touch()
    text = "[a](here.md#part) ![b](gone.png) [c](https://example.org/x) [d](#part) [`e`](../gone)"
    assert broken_links(text, tmp_path) == ["gone.png", "../gone"]


@pytest.mark.parametrize("path", [README, ROOT / "docs" / "why.md"], ids=lambda path: path.name)
def test_figures_are_those_that_were_measured(path: Path) -> None:
    text = path.read_text()
    assert len(FIGURE.findall(text)) == text.count("<!-- measured:") > 9
    assert wrong_figures(text) == []


def test_a_figure_that_was_not_measured_is_found() -> None:
    step = "cages / a step of 16 environments that do nothing / ProcessCage, 2 workers"
    ratio = f"<!-- measured: {step} / AsyncVectorEnv -->"
    found = round(measured(*f"{step} / AsyncVectorEnv".split(" / ")), 2)
    wrong = found + 0.01
    assert wrong_figures(f"{found:.2f} times {ratio}, {wrong:.2f} {ratio}")[0].startswith(
        f"{wrong:.2f}: "
    )
    assert len(wrong_figures(f"1,000 <!-- measured: {step} / median_us -->")) == 1
    assert len(wrong_figures("2020-01-01 <!-- begun: cages -->, 99.0 <!-- load: cages -->")) == 2


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@each_text
def test_documents_name_no_path_of_a_machine(path: Path) -> None:
    assert machine_paths(path.read_text()) == []


@pytest.mark.parametrize("folder", ["work", "tmp", "home"])
def test_a_path_of_a_machine_is_found(folder: str) -> None:
    assert machine_paths(f'open("/{folder}/x")') == [f'/{folder}/x")']
    assert machine_paths(f"https://example.org/{folder}/x or ../{folder}/x") == []

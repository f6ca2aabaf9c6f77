"""The rules of the repository: layers, sizes, names, light import, packaging. No behaviour."""

import ast
import functools
import graphlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tokenize
import tomllib
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from optional import needs

pytestmark = pytest.mark.rules

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_ROOTS = {"parllel": ROOT / "parllel", "parllel.kernels": ROOT / "kernels"}

# Low to high. A module imports from its own layer's part and from the layers below it.
# Parts of one layer are siblings and never import each other.
LAYERS = (
    ("parllel.kernels", "parllel.ranks"),
    ("parllel.cuda", "parllel.generator_states", "parllel.schedules"),
    ("parllel.storages",),
    ("parllel.ops",),
    ("parllel.arrays",),
    ("parllel.tree",),
    ("parllel.cages", "parllel.transforms", "parllel.replays"),
    ("parllel.samplers",),
    ("parllel.patterns",),
    ("parllel.data",),
    ("parllel.torch.distributions", "parllel.torch.operators"),
    ("parllel.torch.agents",),
    ("parllel.torch.models", "parllel.torch.algos"),
    ("parllel.torch",),  # the __init__ alone: what lies below it is listed above
    ("parllel.runners", "parllel.evaluation"),
    ("parllel.__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
LEAF = "parllel.metrics"  # imports no parllel module; all but the kernels may import it
TESTING = "parllel.testing"  # may import everything; nothing in the package imports it
FRONT = "parllel"  # re-exports the primitive types; nothing in the package imports it
FRONT_MAY_IMPORT = {"parllel.arrays", "parllel.storages", "parllel.tree"}
CUPY_MAY_BE_IMPORTED_BY = {"parllel.cuda", TESTING}

MODULE_LINES = 300  # of code: docstrings, comments and blank lines are free
FUNCTION_LINES = 45
TOP_LEVEL = {
    *("Dockerfile", "pyproject.toml", "parllel", "kernels", "examples", "tests", "bench"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "MANIFEST.in"),
    *("Makefile", "docs"),
}
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}
INSTALLED_SUFFIXES = {".py", ".ptx"}


def package_modules() -> dict[str, Path]:
    """Map each installed module's dotted name to its file."""
    modules = {}
    for package, folder in PACKAGE_ROOTS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join((package, *parts))] = path
    return modules


MODULES = package_modules()
each_module = pytest.mark.parametrize("module", MODULES)


def installed_names(root: Path) -> set[str]:
    """Return the paths that an installation of the tree at `root` must hold."""
    names = set()
    for source, target in (("parllel", "parllel"), ("kernels", "parllel/kernels")):
        for path in (root / source).rglob("*"):
            if path.suffix in INSTALLED_SUFFIXES or path.name == "py.typed":
                names.add(f"{target}/{path.relative_to(root / source).as_posix()}")
    return names


def repository_files() -> list[str]:
    """List the files that are in git or would be added by `git add .`.

    A test that asks for them is skipped in a tree that git does not know, such as an unpacked
    source distribution.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("this tree has no .git, which tells the repository's files from others")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.splitlines()


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


# Checkers: each returns what is wrong, as text


def imports(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in the source."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _dynamic_import(node)


def _dynamic_import(call: ast.Call) -> Iterator[str]:
    function = call.func.attr if isinstance(call.func, ast.Attribute) else call.func
    function = function.id if isinstance(function, ast.Name) else function
    if function in ("import_module", "__import__") and call.args:
        name = call.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


def part_of(name: str) -> str:
    """Return the part of the package that a dotted name lies in; "" outside the package."""
    if name.partition(".")[0] != "parllel":
        return ""
    while name not in RANK and name not in (LEAF, TESTING, FRONT):
        name = name.rpartition(".")[0]
    return name


def layer_fault(module: str, imported: str) -> str | None:
    """Say why `module` may not import `imported`; None where it may."""
    if imported.partition(".")[0] == "kernels":
        return "the installed name is parllel.kernels"
    if imported.partition(".")[0] in ("cupy", "cupyx"):
        allowed = part_of(module) in CUPY_MAY_BE_IMPORTED_BY
        return None if allowed else "only parllel.cuda talks to CuPy"
    here, there = part_of(module), part_of(imported)
    if not there or here in (there, TESTING):
        return None
    if here == FRONT:
        return None if there in FRONT_MAY_IMPORT else "`import parllel` gives primitive types only"
    if there == FRONT:
        return "import from the submodule that defines it"
    if there == TESTING:
        return "nothing in the package depends on parllel.testing"
    if here == LEAF:
        return "parllel.metrics is a leaf"
    if there == LEAF:
        return "kernels import no other parllel module" if RANK[here] == 0 else None
    if RANK[there] == RANK[here]:
        return "siblings never import each other"
    return "imports point down only" if RANK[there] > RANK[here] else None


def import_faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """List the imports that go against the layers."""
    found = imports(source, module, is_package=is_package)
    faults = ((imported, layer_fault(module, imported)) for imported in found)
    return [f"{module} imports {imported}: {fault}" for imported, fault in faults if fault]


def file_of(name: str, modules: Collection[str]) -> str:
    """Return the module that a dotted name is in: itself, or what it is a name in; "" outside."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next, and the last is the first; [] for none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def import_graph(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Map each module to those that it imports, be it in a function or for type checkers alone.

    Args:
        sources: of modules, by their names; and whether they are packages.
    """
    graph = {}
    for module, (source, is_package) in sources.items():
        names = imports(source, module, is_package=is_package)
        graph[module] = {file_of(name, sources) for name in names} - {"", module}
    return graph


def unplaced(modules: list[str]) -> list[str]:
    """List the modules that no layer claims."""
    inits = (FRONT, "parllel.torch")
    return [name for name in modules if name not in inits and part_of(name) in inits]


# Tokens that lie on lines without code, too.
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no docstring, no comment, not blank."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                assert first.end_lineno is not None
                if isinstance(first.value.value, str):
                    lines.difference_update(range(first.lineno, first.end_lineno + 1))
    return lines


def size_faults(source: str) -> list[str]:
    """List what has more lines of code than is allowed; decorators don't count for a function."""
    faults = []
    lines = code_lines(source)
    if len(lines) > MODULE_LINES:
        faults.append(f"module: {len(lines)} lines of code, at most {MODULE_LINES}")
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            n_lines = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            if n_lines > FUNCTION_LINES:
                faults.append(f"{node.name}: {n_lines} lines of code, at most {FUNCTION_LINES}")
    return faults


def has_first_line(source: str) -> bool:
    """Tell whether the module's docstring begins with text on its first line."""
    docstring = ast.get_docstring(parsed(source), clean=False)
    return docstring is not None and docstring.partition("\n")[0].strip() != ""


def strangers(files: list[str]) -> list[str]:
    """List the top-level entries that the repository may not have."""
    entries = {file.partition("/")[0] for file in files}
    return sorted(entry for entry in entries - TOP_LEVEL if not entry.startswith("."))


def vague_names(files: list[str]) -> list[str]:
    """List the files whose name does not say what they hold."""
    return [file for file in files if file.rpartition("/")[2] in VAGUE_NAMES]


def nested(files: list[str]) -> list[str]:
    """List the files that lie in a folder under kernels/."""
    return [file for file in files if file.startswith("kernels/") and file.count("/") > 1]


def package_list_faults(listed: list[str], modules: dict[str, Path]) -> set[str]:
    """Return the packages listed but not on disk, or on disk but not listed."""
    on_disk = {name for name, path in modules.items() if path.name == "__init__.py"}
    return on_disk ^ set(listed)


# Layers


@each_module
def test_imports_point_down(module: str) -> None:
    path = MODULES[module]
    is_package = path.name == "__init__.py"
    assert import_faults(path.read_text(), module, is_package=is_package) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    sources = {
        module: (path.read_text(), path.name == "__init__.py") for module, path in MODULES.items()
    }
    assert circle(import_graph(sources)) == []


def test_a_circle_is_found() -> None:
    late = "if TYPE_CHECKING:\n    from parllel.a import A"
    sources = {
        "parllel.a": ("from parllel.b import B", False),
        "parllel.b": ("def f():\n    import parllel.c.d", False),
        "parllel.c": ("", True),
        "parllel.c.d": ("from parllel import c, e", False),
        "parllel.e": ("", False),
    }
    assert circle(import_graph(sources)) == []
    sources["parllel.e"] = (late, False)
    found = circle(import_graph(sources))
    assert found[0] == found[-1]
    assert set(found) == {"parllel.a", "parllel.b", "parllel.c.d", "parllel.e"}


def test_every_module_has_a_layer() -> None:
    assert unplaced(list(MODULES)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("parllel.ops.row_copy", "import parllel.arrays.array"),
        ("parllel.arrays.array", "import parllel.tree.saving"),
        ("parllel.arrays.array", "from parllel.tree import ArrayDict"),
        ("parllel.arrays.array", "def late():\n    from parllel.cages.cage import Cage"),
        ("parllel.arrays.array", "if TYPE_CHECKING:\n    from parllel.samplers import Sampler"),
        ("parllel.arrays.array", "from importlib import import_module\nimport_module('cupy')"),
        ("parllel.arrays.array", "from ..tree import ArrayDict"),
        ("parllel.arrays.array", "from parllel import ArrayDict"),
        ("parllel.arrays.array", "from parllel import tree"),
        ("parllel.arrays.array", "import cupy.cuda"),
        ("parllel.arrays.array", "from parllel.testing.contracts import check"),
        ("parllel.arrays.array", "from kernels.rows import copy"),
        ("parllel.kernels.rows", "from parllel.storages.local import Local"),
        ("parllel.kernels.rows", "from parllel.metrics import Metrics"),
        ("parllel.metrics", "from parllel.arrays.array import Array"),
        ("parllel.cages.serial_cage", "from parllel.replays.replay_buffer import Ring"),
        ("parllel.torch.agents.gaussian", "from parllel.torch.algos.ppo import PPO"),
        ("parllel.torch.algos.ppo", "from parllel.runners.on_policy import OnPolicy"),
        ("parllel", "from parllel.samplers import Sampler"),
    ],
)
def test_an_import_against_the_layers_is_found(module: str, source: str) -> None:
    assert len(import_faults(source, module, is_package=module == FRONT)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("parllel", "from parllel.arrays.array import Array"),
        ("parllel.arrays.array", "from parllel.arrays.location import Location"),
        ("parllel.arrays.array", "from .location import Location"),
        ("parllel.arrays.array", "import numpy as np\nfrom parllel.kernels import rows"),
        ("parllel.cuda", "import cupy"),
        ("parllel.samplers.basic_sampler", "from parllel.metrics import Metrics"),
        ("parllel.testing.contracts", "import cupy\nfrom parllel.runners import OnPolicy"),
        ("parllel.torch.algos.ppo", "from parllel.torch.agents.agent import Agent"),
    ],
)
def test_an_import_along_the_layers_is_accepted(module: str, source: str) -> None:
    assert import_faults(source, module, is_package=module == FRONT) == []


def test_a_module_without_a_layer_is_found() -> None:
    new = ["parllel.novelty", "parllel.torch.novelty"]
    assert unplaced(["parllel", "parllel.arrays.array", "parllel.torch", *new]) == new


# Sizes, first lines, names


@each_module
def test_sizes_stay_in_bounds(module: str) -> None:
    assert size_faults(MODULES[module].read_text()) == []


@each_module
def test_a_module_says_what_it_holds(module: str) -> None:
    assert has_first_line(MODULES[module].read_text())


def test_a_module_that_is_too_long_is_found() -> None:
    assert size_faults("x = 0\n" * MODULE_LINES) == []
    assert len(size_faults("x = 0\n" * (MODULE_LINES + 1))) == 1


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_a_function_that_is_too_long_is_found(keyword: str) -> None:
    longest = f"class C:\n  {keyword} f():\n" + "    x = 0\n" * (FUNCTION_LINES - 1)
    assert size_faults(longest) == []
    assert len(size_faults(longest + "    x = 0\n")) == 1


def test_docstrings_comments_and_blank_lines_are_free() -> None:
    source = '"""Says it.\n\nAll."""\n\n# Why.\ndef f():\n    """Do."""\n    # So.\n    return 0\n'
    assert code_lines(source) == {6, 9}
    assert code_lines('x = """a\nb"""\n') == {1, 2}  # no docstring


@pytest.mark.parametrize("source", ["x = 0", '"""\nSays it too late."""', '"""   """'])
def test_a_module_without_a_first_line_is_found(source: str) -> None:
    assert has_first_line('"""Says it."""')
    assert not has_first_line(source)


def test_top_level_holds_only_what_the_frame_permits() -> None:
    assert strangers(repository_files()) == []


def test_a_stranger_at_the_top_level_is_found() -> None:
    assert strangers(["src/x.py", ".ci/run", "docs/design.md", "setup.py"]) == ["setup.py", "src"]


def test_file_names_say_what_the_files_hold() -> None:
    assert vague_names(repository_files()) == []


def test_a_vague_file_name_is_found() -> None:
    vague = ["parllel/cages/utils.py", "tests/helpers.py"]
    assert vague_names([*vague, "parllel/cuda.py"]) == vague


def test_modules_of_tests_have_names_of_their_own() -> None:
    """With one name twice, pytest collects neither: `import file mismatch`."""
    names = [path.name for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_kernels_are_flat() -> None:
    assert nested(repository_files()) == []


def test_a_nested_kernel_is_found() -> None:
    assert nested(["kernels/a.py", "kernels/deep/b.py"]) == ["kernels/deep/b.py"]


# Import

# OpenBLAS starts its threads when NumPy is imported: one for it, so that any other one shows.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
HEAVY = ("torch", "cupy", "numba.cuda", "gymnasium")
REPORT = """
import json, os, sys, threading
tasks = "/proc/self/task"
n_threads = len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count()
print(json.dumps({"loaded": sorted(sys.modules), "n_threads": n_threads}))
"""


def loaded_by(statement: str) -> tuple[set[str], int]:
    """Run a statement in a new interpreter; return the heavy modules loaded and its threads."""
    command = [sys.executable, "-c", statement + REPORT]
    environment = os.environ | ONE_BLAS_THREAD
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    report = json.loads(run.stdout)
    return set(HEAVY) & set(report["loaded"]), report["n_threads"]


def test_import_parllel_loads_nothing_heavy_and_starts_no_thread() -> None:
    assert loaded_by("import parllel") == (set(), 1)


def test_a_heavy_import_or_a_thread_is_found() -> None:
    sleeper = "import threading as t; t.Thread(target=t.Event().wait, daemon=True).start()"
    assert loaded_by(f"import gymnasium; {sleeper}") == ({"gymnasium"}, 2)


# Packaging


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Build the tree's "wheel" or "sdist" into the folder and return its file."""
    options = [f"--{kind}", "--no-isolation", "--outdir", str(folder)]
    command = [sys.executable, "-m", "build", *options, str(tree)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (file,) = folder.iterdir()
    return file


def build_wheel(tree: Path, folder: Path) -> set[str]:
    """Build the tree's wheel into the folder and return the paths it installs."""
    with zipfile.ZipFile(build("wheel", tree, folder)) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def build_sdist(tree: Path, folder: Path) -> set[str]:
    """Build the tree's source distribution into the folder and return the files in it."""
    with tarfile.open(build("sdist", tree, folder)) as archive:
        files = [each.name for each in archive.getmembers() if not each.isdir()]
    return {name.partition("/")[2] for name in files}


def copy_tree(folder: Path) -> Path:
    """Copy the repository, links as links, so that a build leaves nothing in the checkout."""
    for name in repository_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():  # not deleted since the last commit
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    return folder


def test_the_package_list_equals_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert package_list_faults(settings["tool"]["setuptools"]["packages"], MODULES) == set()


def test_a_package_missing_from_either_side_is_found() -> None:
    on_disk = {"parllel": Path("__init__.py"), "parllel.new": Path("new/__init__.py")}
    faults = package_list_faults(["parllel", "parllel.gone"], on_disk)
    assert faults == {"parllel.new", "parllel.gone"}


@needs("build")
def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    assert "parllel/py.typed" in installed_names(tree)
    assert build_wheel(tree, tmp_path / "wheel") == installed_names(tree)


@needs("build")
def test_the_sdist_holds_the_package_once_and_its_tests(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    names = build_sdist(tree, tmp_path / "sdist")
    assert installed_names(tree) <= names
    assert not {name for name in names if name.startswith("kernels/")}
    folders = (".ci/", "bench/", "docs/", "examples/", "tests/")
    beside = {name for name in repository_files() if name.startswith(folders)}
    assert beside | {"Makefile", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names


def test_an_editable_install_is_a_path_that_type_checkers_follow(tmp_path: Path) -> None:
    tree, folder = copy_tree(tmp_path / "tree"), tmp_path / "wheel"
    folder.mkdir()
    program = "import sys; from setuptools import build_meta as b; b.build_editable(sys.argv[1])"
    command = [sys.executable, "-c", program, str(folder)]
    subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    (wheel,) = folder.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".pth"))
        assert archive.read(path).decode().strip() == str(tree)
    assert (tree / "parllel" / "kernels" / "rows.py").exists()


@needs("build")
def test_a_file_missing_from_the_wheel_is_found(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    (tree / "kernels" / "deep").mkdir()
    (tree / "kernels" / "deep" / "forgotten.py").touch()
    missing = installed_names(tree) - build_wheel(tree, tmp_path / "wheel")
    assert missing == {"parllel/kernels/deep/forgotten.py"}

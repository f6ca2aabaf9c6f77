"""Compiled kernels: their code, their disk cache, its faults, and what is said about them."""

import ast
import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from numba.core import ir

import parllel.kernels
from long_run import all_but_first
from parllel.kernels.inlining import with_shared_scopes
from parllel.kernels.targets import find_cpu_kernels

KERNELS = Path(parllel.kernels.__file__).parent  # a source distribution holds them there only
COMPILE_TWO = """
from parllel.kernels import normalize, priorities
normalize._ON_CPU.compiled, priorities.WEIGH_ON_CPU.compiled
"""
# It takes the kernel that is compiled fastest.
REPORT_CACHE = """
import sys
from parllel.kernels import priorities
assert "numba" not in sys.modules
stats = priorities.WEIGH_ON_CPU.compiled.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), stats.cache_path)
"""
# In a child for each folder: Numba itself is imported once.
REPORT_CACHES = """
import os, sys
import numba
for folder in sys.argv[1:]:
    if os.fork() == 0:
        sys.path.insert(0, folder)
        from parllel.kernels import priorities
        assert priorities.__file__.startswith(folder)
        stats = priorities.WEIGH_ON_CPU.compiled.stats
        print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
COMPILE_ALL = """
from parllel.kernels.targets import compile_seconds, find_cpu_kernels
before = compile_seconds()
kernels = find_cpu_kernels()
assert compile_seconds() == before == 0
compiled = [kernel.compiled for kernel in kernels]
assert compile_seconds() > 0
print(sum(sum(each.stats.cache_misses.values()) for each in compiled), len(compiled))
"""
PRINT_CODE = """
from parllel.kernels import advantage
print(*advantage._ON_CPU.compiled.inspect_llvm().values())
"""

PRINT_DRAW_CODE = """
from parllel.kernels import transitions
print(*transitions.ON_CPU.compiled.inspect_llvm().values())
"""
SHARE_NOTHING = """
import contextlib
from parllel.kernels import inlining
inlining.with_shared_scopes = lambda scope: contextlib.nullcontext()
"""


def copy_of_package(folder: Path) -> Path:
    """Return a package `parllel` that holds nothing but the kernels, and nothing compiled."""
    package = folder / "parllel"
    shutil.copytree(KERNELS, package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    return package


def run_in(package: Path, program: str, *arguments: object, **environment: str) -> tuple[str, str]:
    """Return what a program prints to both streams in a process that imports this package."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("NUMBA_")}
    finished = subprocess.run(
        [sys.executable, "-B", "-c", program, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=package.parent,
        env=inherited | environment,
        timeout=120,
    )
    return finished.stdout, finished.stderr


def report_cache(package: Path, **environment: str) -> tuple[int, int, str]:
    """Return cache hits, cache misses and the cache's folder."""
    hits, misses, folder = run_in(package, REPORT_CACHE, **environment)[0].split()
    return int(hits), int(misses), folder


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A package with two compiled kernels, to be read or copied, and what its compiler told."""
    package = copy_of_package(tmp_path_factory.mktemp("compiled"))
    stdout, stderr = run_in(package, COMPILE_TWO)
    assert stdout == ""
    return package, stderr


@pytest.fixture
def copied(compiled: tuple[Path, str], tmp_path: Path) -> Path:
    """A package of the test's own whose kernels, as `REPORT_CACHE` asks for them, are compiled."""
    package = tmp_path / "parllel"
    shutil.copytree(compiled[0], package)
    return package


@pytest.mark.long
def test_rows_are_computed_in_vectors(tmp_path: Path) -> None:
    """In a package of its own: Numba cannot show code that came from the cache."""
    code, _ = run_in(copy_of_package(tmp_path), PRINT_CODE)
    assert re.search(r"fadd contract <\d+ x float>", code)
    assert "fpext" not in code, "a float32 is widened to float64"


@pytest.mark.long
def test_shared_scopes_change_no_code(tmp_path: Path) -> None:
    """Of a kernel whose parts have branches and loops, and parts of their own."""
    package = copy_of_package(tmp_path)
    codes = [
        run_in(package, program, NUMBA_CACHE_DIR=str(tmp_path / name), PYTHONHASHSEED="0")[0]
        for name, program in (("shared", PRINT_DRAW_CODE), ("own", SHARE_NOTHING + PRINT_DRAW_CODE))
    ]
    assert codes[0] == codes[1]
    assert "draw_in_turn" in codes[0]


def test_scopes_are_shared_for_the_time_of_a_context() -> None:
    loc = ir.unknown_loc
    block = ir.Block(ir.Scope(None, loc), loc)
    with with_shared_scopes(ir.Scope):
        with with_shared_scopes(ir.Scope):
            assert copy.deepcopy(block).scope is block.scope
        assert copy.deepcopy(block).scope is block.scope
    assert copy.deepcopy(block).scope is not block.scope


def test_scopes_are_their_own_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), with_shared_scopes(ir.Scope):
        raise ZeroDivisionError
    assert "__deepcopy__" not in vars(ir.Scope)


def test_compiling_is_told_once_and_loading_never(compiled: tuple[Path, str]) -> None:
    package, stderr = compiled
    [line] = stderr.splitlines()
    folder = str(package / "kernels" / "__pycache__")
    assert folder in line
    assert "python -m parllel compile" in line
    stdout, stderr = run_in(package, REPORT_CACHE)
    assert stdout.split() == ["1", "0", folder]  # a second process compiles nothing
    assert stderr == ""


@pytest.mark.parametrize("name", all_but_first(["moment_layout.py", "targets.py"]))
def test_the_cache_notices_an_edit_of_another_module(name: str, copied: Path) -> None:
    """A constant is compiled in, wherever it comes from."""
    with (copied / "kernels" / name).open("a") as module:
        module.write("\n# another line\n")
    hits, misses, _ = report_cache(copied)
    assert (hits, misses) == (0, 1)


@pytest.mark.long
def test_a_read_only_package_is_cached_in_the_users_folder(tmp_path: Path) -> None:
    package = copy_of_package(tmp_path)
    # A file in the folder's place: unlike a missing permission, it stops root as well.
    (package / "kernels" / "__pycache__").touch()
    users = tmp_path / "users"
    assert report_cache(package, XDG_CACHE_HOME=str(users))[:2] == (0, 1)
    hits, misses, folder = report_cache(package, XDG_CACHE_HOME=str(users))
    assert (hits, misses) == (1, 0)
    assert Path(folder).is_relative_to(users)


@pytest.mark.long
def test_no_place_for_the_cache_is_no_error(tmp_path: Path) -> None:
    package = copy_of_package(tmp_path)
    (package / "kernels" / "__pycache__").touch()
    nowhere = tmp_path / "file"
    nowhere.touch()
    places = {"XDG_CACHE_HOME": str(nowhere), "HOME": str(nowhere), "IPYTHONDIR": str(nowhere)}
    assert report_cache(package, **places) == (0, 1, "None")


def cached(package: Path, suffix: str) -> Path:
    [path] = (package / "kernels" / "__pycache__").glob(f"priorities.weigh_*.{suffix}")
    return path


def flip_a_bit(whole: bytes) -> bytes:
    flipped = bytearray(whole)
    flipped[len(whole) * 3 // 4] ^= 1
    return bytes(flipped)


@pytest.mark.long
def test_damaged_files_are_compiled_again_and_mended(
    compiled: tuple[Path, str], tmp_path: Path
) -> None:
    damages: list[Callable[[bytes], bytes]] = [
        flip_a_bit,  # Numba itself would run it as machine code
        lambda whole: b"",
        lambda whole: whole[:20],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
    ]
    folders = []
    for number, damage in enumerate(damages):
        for suffix in ("nbc", "nbi"):
            folders.append(tmp_path / f"{number}-{suffix}")
            package = folders[-1] / "parllel"
            shutil.copytree(compiled[0], package)
            path = cached(package, suffix)
            path.write_bytes(damage(path.read_bytes()))
    for expected in ("0 1", "1 0"):
        found, _ = run_in(tmp_path / "parllel", REPORT_CACHES, *folders)
        assert found.splitlines() == [expected] * len(folders)


@pytest.mark.long
def test_what_can_not_be_kept_is_told_and_used(copied: Path) -> None:
    """A folder in a file's place stops a write as a full disk does, and stops root as well."""
    for suffix in ("nbi", "nbc"):
        path = cached(copied, suffix)
        path.unlink()
        path.mkdir()
    stdout, stderr = run_in(copied, REPORT_CACHE)
    assert stdout.split()[:2] == ["0", "1"]
    assert stderr.count("set NUMBA_CACHE_DIR") == 1


@pytest.mark.long
def test_numbas_switch_for_debuggers_leaves_kernels_compiled(tmp_path: Path) -> None:
    program = f"""
{REPORT_CACHE}
import numba
assert numba.config.DISABLE_JIT == 1
assert not hasattr(numba.njit(lambda: 0), "compile")
"""
    package = copy_of_package(tmp_path)
    without_prefix = "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'"
    assert run_in(package, without_prefix + program)[0].split()[:2] == ["0", "1"]


@pytest.mark.long
def test_a_stderr_that_takes_no_text_stops_nothing(tmp_path: Path) -> None:
    """In a forked child each: compiling is told once."""
    program = """
import os, sys
from parllel.kernels import priorities

for stream in (None, open("/dev/full", "w"), open("/dev/null")):
    if os.fork() == 0:
        own, sys.stderr = sys.stderr, stream
        stats = priorities.WEIGH_ON_CPU.compiled.stats
        sys.stderr = own
        sys.stdout.flush()
        os._exit(0 if stats.cache_misses else 1)
    print(os.wait()[1], flush=True)
"""
    package = copy_of_package(tmp_path)
    (package / "kernels" / "__pycache__").touch()  # nothing can be kept for the next one
    nowhere = str(package / "__init__.py")
    places = {"XDG_CACHE_HOME": nowhere, "HOME": nowhere, "IPYTHONDIR": nowhere}
    assert run_in(package, program, **places)[0].split() == ["0", "0", "0"]


def test_each_twin_that_a_module_asks_for_is_found() -> None:
    """No other call of `twin` in the package's kernels would be missed by a compilation ahead."""
    made = 0
    for path in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "twin" or path.name == "targets.py"
                made += node.func.id == "CpuKernel"
    assert len(find_cpu_kernels()) == made > 0
    assert len({kernel.entry for kernel in find_cpu_kernels()}) == made


@pytest.mark.long
def test_all_kernels_are_compiled_ahead() -> None:
    """In the package itself, whose kernels are compiled before most tests: all take long."""
    n = len(find_cpu_kernels())
    for kernel in find_cpu_kernels():
        _ = kernel.compiled
    assert run_in(KERNELS.parent, COMPILE_ALL)[0].split() == ["0", str(n)]


@pytest.mark.long
def test_each_kernel_that_is_missing_is_compiled_once(tmp_path: Path) -> None:
    """In a package of a few kernels, and what these need."""
    package = copy_of_package(tmp_path)
    kept = {"normalize", "running_returns", "array_checks", "moment_layout", "__init__"}
    kept |= {"targets", "addresses", "instructions", "words", "code_cache", "inlining"}
    for path in (package / "kernels").glob("*.py"):
        if path.stem not in kept:
            path.unlink()
    misses, n = map(int, run_in(package, COMPILE_ALL)[0].split())
    assert misses == n >= 2
    assert run_in(package, COMPILE_ALL)[0].split() == ["0", str(n)]

"""The machine of a bench: processor and its load, versions, commit; nothing about GPUs."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

# Those that are installed are named.
_PACKAGES = ("numpy", "numba", "llvmlite", "torch", "cupy-cuda12x", "cupy-cuda13x")


def describe_machine() -> dict[str, str]:
    """Return the facts that tell one run from another, by their names."""
    return {
        "processor": _processor(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "versions": _versions(),
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the processor's name; `platform.processor` says only the architecture on Linux."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _versions() -> str:
    installed = []
    for package in _PACKAGES:
        try:
            installed.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return " ".join([f"Python {platform.python_version()}", *installed])


def _commit() -> str:
    """Return the commit, marked where a tracked file differs that is no result of a bench."""
    commit = _git("rev-parse", "--short", "HEAD")
    is_dirty = _git("diff", "--name-only", "HEAD", "--", ":/", ":(exclude,top)bench/results")
    return f"{commit}-dirty" if is_dirty else commit or "none yet"


def _git(*arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else ""

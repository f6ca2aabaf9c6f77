"""The options and the import path with which another Python behaves as this one does."""

from __future__ import annotations

import sys
from multiprocessing import util


def interpreter_flags() -> list[str]:
    """Return options of this interpreter (-I, -E, -s, -W, -X, -O and others) for another one."""
    options = sys._xoptions.items()
    return [
        *util._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # as it starts its own
        *(f"-X{name}" if value is True else f"-X{name}={value}" for name, value in options),
    ]


def import_path() -> list[str]:
    """Return `sys.path` without entries that are no strings, which Python does not look at."""
    return [str(entry) for entry in sys.path if isinstance(entry, str)]

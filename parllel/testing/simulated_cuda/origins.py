"""Where in a program simulated work comes from, for messages."""

import os
import sys

_PACKAGES = ("parllel/testing/simulated_cuda/", "parllel/cuda/")
_OWN_FOLDERS = tuple(name.replace("/", os.sep) for name in _PACKAGES)


def find_origin() -> str:
    """Return file and line of the nearest caller outside of the simulation and parllel.cuda."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_own(filename: str) -> bool:
    return any(folder in filename for folder in _OWN_FOLDERS)

"""The kind of memory to use where nobody says one."""

from __future__ import annotations

from parllel import cuda
from parllel.storages.device import Device
from parllel.storages.local import Local


def default_storage() -> str:
    """Return "device" where this process can use a CUDA device, and "local" elsewhere.

    The first call imports CuPy where it is installed, and starts no CUDA context. Asked once and
    passed on, the answer keeps all memory of a program in one place.
    """
    return Device.kind if cuda.is_available() else Local.kind

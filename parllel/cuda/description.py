"""A description of the devices, their memory and the versions, for people."""

from __future__ import annotations

from typing import Any

from parllel.cuda.library import version_text, why_unavailable

_MIB = 2**20


def describe() -> str:
    """Return what CUDA devices there are, with their memory and the versions, as text.

    One plain sentence where NVIDIA's management library (nvidia-ml-py), which is asked, or the
    driver is missing. Starts no CUDA context, imports no torch, and waits for nothing.
    """
    try:
        import pynvml

        is_refused, start = pynvml.NVMLError, pynvml.nvmlInit
    except ModuleNotFoundError:
        return (
            "The devices can't be described: nvidia-ml-py is not installed;"
            " `pip install 'parllel[cuda13]'` brings it (or cuda12)."
        )
    except KeyboardInterrupt:  # it is the user's, and not the library's
        raise
    except BaseException as error:  # a broken library may raise anything, or exit
        return f"The devices can't be described: nvidia-ml-py can't be imported ({error})."
    try:
        start()
    except is_refused as error:
        return f"No NVIDIA driver answers ({error}): only host storages can be used."
    lines = []
    try:
        lines.append(_versions(pynvml))
        for number in range(pynvml.nvmlDeviceGetCount()):
            lines.append(_device(pynvml, number))
        pynvml.nvmlShutdown()
    except Exception as error:  # the driver's, or any of a broken library
        lines.append(f"More can't be described: nvidia-ml-py raises {error!r}.")
    reason = why_unavailable()
    if reason is not None:
        lines.append(f"parllel can't use them: {reason}.")
    return "\n".join(lines)


def _versions(pynvml: Any) -> str:  # Any: the module, which ships no types
    driver = pynvml.nvmlSystemGetDriverVersion()
    cuda = version_text(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    cupy, torch = _version_of("cupy-cuda13x", "cupy-cuda12x", "cupy"), _version_of("torch")
    return f"NVIDIA driver {driver}, for CUDA up to {cuda}; CuPy {cupy}; torch {torch}"


def _device(pynvml: Any, number: int) -> str:  # Any: as above
    """Describe one device, by the driver's number, which CUDA's own need not follow."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        name = pynvml.nvmlDeviceGetName(handle)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    except pynvml.NVMLError as error:
        return f"device {number} can't be described ({error})"
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError:  # a device that shares the host's memory has none of its own
        nbytes = "no memory of its own"
    else:
        total, free = memory.total // _MIB, memory.free // _MIB
        nbytes = f"{total:,} MiB of memory, {free:,} MiB free"
    return f"device {number}: {name}, compute capability {major}.{minor}, {nbytes}"


def _version_of(*names: str) -> str:
    """Return the version of the first of some packages that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"

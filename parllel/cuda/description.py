"""A description of the devices, their memory and the versions, for people."""

from __future__ import annotations

from typing import Any

from parllel.cuda.library import version_text, why_unavailable

_MIB = 2**20


def describe() -> str:
    """Return what CUDA devices there are, as text; one plain sentence where there are none.

    Asks NVIDIA's management library, which starts no CUDA context and waits for nothing.
    """
    try:
        import pynvml
    except ImportError:
        return (
            "The devices can't be described: nvidia-ml-py is not installed;"
            " `pip install 'parllel[cuda13]'` brings it (or cuda12)."
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"No NVIDIA driver answers ({error}): only host storages can be used."
    try:
        lines = [_versions(pynvml)]
        for number in range(pynvml.nvmlDeviceGetCount()):
            lines.append(_device(pynvml, number))
    finally:
        pynvml.nvmlShutdown()
    reason = why_unavailable()
    if reason is not None:
        lines.append(f"parllel can't use them: {reason}.")
    return "\n".join(lines)


def _versions(pynvml: Any) -> str:  # Any: the module, which ships no types
    driver = pynvml.nvmlSystemGetDriverVersion()
    cuda = version_text(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    return f"NVIDIA driver {driver}, for CUDA up to {cuda}; CuPy {_cupy_version()}"


def _device(pynvml: Any, number: int) -> str:  # Any: as above
    """Describe one device, by the driver's number, which CUDA's own need not follow."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name, total, free = pynvml.nvmlDeviceGetName(handle), memory.total, memory.free
    return (
        f"device {number}: {name}, compute capability {major}.{minor},"
        f" {total // _MIB:,} MiB of memory, {free // _MIB:,} MiB free"
    )


def _cupy_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"

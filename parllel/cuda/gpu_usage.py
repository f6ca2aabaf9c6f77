"""GpuUsage: how busy and how full a GPU is, asked of NVIDIA's management library (NVML)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from parllel.cuda.library import is_available, library

_GB = 10**9

# What a module raises that is missing or broken, or whose library does not answer: whatever it is,
# no run ends for it.
_BROKEN = (Exception, SystemExit)


class GpuUsage:
    """Numbers of CUDA's current device for the log of a run.

    There are none where there is no usable device, or nvidia-ml-py is not installed or broken, or
    NVML does not answer: nothing is raised. NVML stays open until `close`, since to open it takes
    milliseconds.

    Example:
        >>> usage = GpuUsage()
        >>> set(usage.read()) <= {"gpu/memory_used_gb", "gpu/utilization"}
        True
        >>> usage.close()
    """

    def __init__(self) -> None:
        self._nvml: Any = None  # Any: the module, which ships no types; None where it is closed
        if not is_available():
            return
        # By its address on the bus: NVML's numbers of the devices are others than CUDA's.
        address = library().cuda.Device().pci_bus_id
        try:
            import pynvml

            pynvml.nvmlInit()
        except _BROKEN:
            return
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(address)
        except _BROKEN:
            with suppress(*_BROKEN):
                pynvml.nvmlShutdown()
            return
        self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """Return the numbers of this moment, without waiting for work of the device.

        Returns:
            `gpu/memory_used_gb`, the memory that all programs use on the device, in units of 10**9
            bytes; `gpu/utilization`, the share in [0, 1] of the last moments (NVML: between 1/6 s
            and 1 s) in which a kernel ran. What the device does not tell is left out.
        """
        nvml, numbers = self._nvml, {}
        if nvml is None:
            return {}
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        if memory is not None:
            numbers["gpu/memory_used_gb"] = memory.used / _GB
        if rates is not None:
            numbers["gpu/utilization"] = rates.gpu / 100  # percent
        return numbers

    def close(self) -> None:
        """Close NVML. Afterwards there are no numbers; a second call does nothing."""
        if self._nvml is not None:
            with suppress(*_BROKEN):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _ask(self, function: str) -> Any:
        """Return what NVML says; None for what this device or module does not support."""
        try:
            return getattr(self._nvml, function)(self._handle)
        except _BROKEN:
            return None

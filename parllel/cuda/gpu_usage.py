"""GpuUsage: how busy and how full a GPU is, asked of NVIDIA's management library (NVML)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parllel.cuda.library import is_available, library

_GB = 10**9


class GpuUsage:
    """Numbers of CUDA's current device for the log of a run.

    There are none where there is no usable device, or nvidia-ml-py is not installed, or NVML does
    not answer: nothing is raised. NVML stays open until `close`, since to open it takes
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
        try:
            import pynvml
        except ImportError:
            return
        # By its address on the bus: NVML's numbers of the devices are others than CUDA's.
        address = library().cuda.Device().pci_bus_id
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(address)
        except pynvml.NVMLError:
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
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates)
        if memory is not None:
            numbers["gpu/memory_used_gb"] = memory.used / _GB
        if rates is not None:
            numbers["gpu/utilization"] = rates.gpu / 100  # percent
        return numbers

    def close(self) -> None:
        """Close NVML. Afterwards there are no numbers; a second call does nothing."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _ask(self, function: Callable[[Any], Any]) -> Any:
        """Return what NVML says; None for what this device does not support."""
        try:
            return function(self._handle)
        except self._nvml.NVMLError:
            return None

"""What NVML says of the GPU that a bench runs on: name, driver, clocks, memory, power."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from parllel import cuda

_MIB = 2**20


class GpuState(NamedTuple):
    """The current device at one moment; None for what it does not tell.

    Clocks of an idle GPU are low: ask while there is work in its queue.
    """

    name: str
    driver: str
    memory_total_mib: float | None
    memory_used_mib: float | None
    sm_clock_mhz: float | None
    sm_clock_max_mhz: float | None
    memory_clock_mhz: float | None
    memory_clock_max_mhz: float | None
    power_w: float | None
    power_limit_w: float | None

    def describe_device(self) -> str:
        """Return what stays while a bench runs, and what memory is used."""
        used, total = _text(self.memory_used_mib), _text(self.memory_total_mib)
        return f"{self.name} | driver {self.driver} | {used} of {total} MiB of memory used"

    def describe_clocks(self) -> str:
        """Return what changes while a bench runs."""
        sm = f"SM at {_text(self.sm_clock_mhz)} of {_text(self.sm_clock_max_mhz)} MHz"
        memory = f"memory at {_text(self.memory_clock_mhz)} of {_text(self.memory_clock_max_mhz)}"
        power = f"{_text(self.power_w)} of {_text(self.power_limit_w)} W"
        return f"{sm} | {memory} MHz | {power}"


def read_gpu() -> GpuState:
    """Ask NVML for the state of CUDA's current device. Waits for no work of it.

    Without nvidia-ml-py, which parllel[cuda13] and [cuda12] bring, only its name is told, by torch.

    Raises:
        CudaUnavailableError: there is no usable device.
    """
    # By its address on the bus: NVML's numbers of the devices are others than CUDA's.
    address = cuda.library().cuda.Device().pci_bus_id
    if importlib.util.find_spec("pynvml") is None:
        import torch

        return GpuState(torch.cuda.get_device_name(), "?", *8 * [None])
    import pynvml

    pynvml.nvmlInit()
    try:
        return _read(pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(address))
    finally:
        pynvml.nvmlShutdown()


def _read(pynvml: Any, handle: Any) -> GpuState:  # Any: the module, which ships no types
    def ask(function: Callable[..., Any], *arguments: int) -> Any:
        try:
            return function(handle, *arguments)
        except pynvml.NVMLError:  # not supported, or no permission
            return None

    memory = ask(pynvml.nvmlDeviceGetMemoryInfo)
    sm, mem = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    return GpuState(
        name=pynvml.nvmlDeviceGetName(handle),
        driver=pynvml.nvmlSystemGetDriverVersion(),
        memory_total_mib=memory and memory.total / _MIB,
        memory_used_mib=memory and memory.used / _MIB,
        sm_clock_mhz=ask(pynvml.nvmlDeviceGetClockInfo, sm),
        sm_clock_max_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, sm),
        memory_clock_mhz=ask(pynvml.nvmlDeviceGetClockInfo, mem),
        memory_clock_max_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, mem),
        power_w=_watts(ask(pynvml.nvmlDeviceGetPowerUsage)),
        power_limit_w=_watts(ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)),
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _text(number: float | None) -> str:
    return "?" if number is None else f"{number:,.0f}"

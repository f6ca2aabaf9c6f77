"""Whether CuPy and a device can be used, and why not."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, TypeAlias

from numpy.typing import NDArray

from parllel.ranks import device_of_rank, n_ranks

Library: TypeAlias = Any  # the module cupy, which ships no types
DeviceArray: TypeAlias = Any  # cupy.ndarray
"""An array of CuPy, `cupy.ndarray`: memory of the device."""
AnyArray: TypeAlias = NDArray[Any] | DeviceArray
"""An array of NumPy or of CuPy."""
Stream: TypeAlias = Any  # cupy.cuda.Stream
"""A stream of CuPy, `cupy.cuda.Stream`."""

# Error codes of the CUDA runtime (cudaError_t).
_INITIALIZATION_ERROR = 3
_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100

OLDEST_CAPABILITY = 75  # kernels/parllel.ptx is made for sm_75

# The CuPy that was found usable in this process. What a forked child inherits is not.
_usable: dict[str, Library] = {}
if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_usable.clear)


class CudaUnavailableError(RuntimeError):
    """There is no CUDA device that this process can use; the message says why, and what to do.

    >>> raise CudaUnavailableError("CUDA is not available: CuPy is not installed; ...")
    Traceback (most recent call last):
    parllel.cuda.library.CudaUnavailableError: CUDA is not available: CuPy is not installed; ...
    """


def library() -> Library:
    """Return CuPy, after making sure that a device can be used. Starts no context.

    Of several ranks of a run, each has a device of its own: the first call makes it the current one
    of this thread, also for torch, which starts a context there.

    Raises:
        RankError: there are fewer devices than ranks on this machine, and more than one.
        CudaUnavailableError: no CuPy, no driver, too old a driver, no device.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and cupy is _usable.get("cupy"):  # each piece of work asks this
        return cupy
    reason = why_unavailable()
    if reason is not None:
        raise CudaUnavailableError(
            f'CUDA is not available: {reason}. storage="local" and storage="shared" need no GPU'
        )
    import cupy as found

    _use_device_of_rank(found)
    _usable["cupy"] = found
    return found


def _use_device_of_rank(cupy: Library) -> None:
    if n_ranks() == 1:
        return
    number = device_of_rank(cupy.cuda.runtime.getDeviceCount())
    cupy.cuda.Device(number).use()
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number)


def is_available() -> bool:
    """Tell whether a device can be used by this process."""
    return why_unavailable() is None


def why_unavailable() -> str | None:
    """Say why no device can be used; None where one can. The first call imports CuPy."""
    if sys.modules.get("cupy") is None:
        reason = _why_no_cupy(tuple(map(str, sys.path)), "cupy" in sys.modules)
        if reason is not None:
            return reason
    import cupy

    return _why_no_device(cupy, os.getpid())


# Python would import a CuPy that fails anew at each question. By what decides which CuPy it is: the
# path, and whether `sys.modules` rules all of them out.
@functools.lru_cache(maxsize=1)
def _why_no_cupy(path: tuple[str, ...], is_ruled_out: bool) -> str | None:
    try:
        import cupy  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return f"CuPy can't be imported ({error})"
        return "CuPy is not installed; `pip install 'parllel[cuda13]'` brings it (or cuda12)"
    except ImportError as error:
        return f"CuPy can't be imported ({error})"
    except OSError as error:  # CuPy makes its cache of kernels while it is imported
        return (
            f"CuPy can't be imported ({error}); if it names CuPy's cache of kernels, set"
            " CUPY_CACHE_DIR to a folder that can be written"
        )
    except KeyboardInterrupt:  # it is the user's, and not the library's
        raise
    except BaseException as error:  # a broken library may raise anything, or exit
        return f"CuPy can't be imported ({type(error).__name__}: {error})"
    return None


@functools.lru_cache(maxsize=1)  # by process: what a forked child inherits can't be used there
def _why_no_device(cupy: Library, process: int) -> str | None:
    try:
        runtime = cupy.cuda.runtime
        try:
            if runtime.getDeviceCount() == 0:
                return _no_device()
            capability = int(cupy.cuda.Device().compute_capability)
        except runtime.CUDARuntimeError as error:
            return _explain(error, runtime.driverGetVersion(), runtime.runtimeGetVersion())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in _why_no_cupy; CuPy loads CUDA's libraries when asked
        return f"CuPy can't find out about devices ({type(error).__name__}: {error})"
    if capability < OLDEST_CAPABILITY:
        return (
            f"the current device has compute capability {capability / 10}, expected"
            f" {OLDEST_CAPABILITY / 10} or more (Turing and newer)"
        )
    return None


def _explain(error: Any, driver: int, runtime: int) -> str:  # Any: cupy's CUDARuntimeError
    """Put an error of the CUDA runtime into words. Versions are 1000 * major + 10 * minor."""
    if error.status == _INSUFFICIENT_DRIVER and driver == 0:
        return "no NVIDIA driver was found (libcuda.so.1 can't be loaded)"
    if error.status == _INSUFFICIENT_DRIVER:
        return (
            f"the NVIDIA driver is too old: it supports CUDA {version_text(driver)}, and this CuPy"
            f" needs CUDA {version_text(runtime)}; update the driver, or install an older CuPy"
            " (`pip install 'parllel[cuda12]'`)"
        )
    if error.status == _NO_DEVICE:
        return _no_device()
    if error.status == _INITIALIZATION_ERROR:
        return (
            "CUDA can't be started in this process, probably because it was forked from one that"
            ' uses CUDA; start it with the "spawn" or "forkserver" method'
        )
    return f"CUDA can't be started ({error})"


def _no_device() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    return f"the NVIDIA driver sees no device{hint}"


def version_text(version: int) -> str:
    """Return CUDA's number of a version as people write it: 12040 is "12.4"."""
    return f"{version // 1000}.{version % 1000 // 10}"

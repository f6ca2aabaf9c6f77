"""DLPack: export of an Array's elements, as the array API standard 2023.12 describes it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol, TypeAlias, TypeGuard

from numpy.typing import NDArray

from parllel import cuda
from parllel.storages import Side

Capsule: TypeAlias = Any  # PyCapsule, a type without a name in Python
DLDevice: TypeAlias = tuple[Enum | int, int]  # type and number

HOST = (1, 0)  # kDLCPU
_NO_ORDER = -1

# Flags of DLPack 1, DLPACK_FLAG_BITMASK_*
_READ_ONLY = 1
_IS_COPIED = 2


class SupportsDLPack(Protocol):
    """An object that exports its elements by DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Capsule:  # Any: a stream of its own library
        """Return a capsule of its elements."""

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Return DLPack's device type, an integer or an enumeration's, and number."""


class Exportable(Protocol):
    """The questions that `export` asks an Array."""

    @property
    def side(self) -> Side:
        """The side that works on the memory."""

    @property
    def is_on_host(self) -> bool:
        """Whether the host can read and write the memory."""

    @property
    def is_gathered(self) -> bool:
        """Whether reading it gathers a copy."""

    def to_ndarray(self) -> NDArray[Any]:
        """Return the elements as an array of NumPy."""

    def to_cupy(self) -> cuda.DeviceArray:
        """Return the elements as an array of CuPy."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device type and number."""


class CopyRefusedError(BufferError, ValueError):
    """The elements can't be exported without a copy, and the receiver asked for none.

    It is a BufferError and a ValueError: the standard wants the one where it describes `copy`, and
    the other where it describes `dl_device`.

    >>> issubclass(CopyRefusedError, BufferError) and issubclass(CopyRefusedError, ValueError)
    True
    """


def export(
    array: Exportable,
    *,
    stream: int | None,
    max_version: tuple[int, int] | None,
    dl_device: DLDevice | None,
    copy: bool | None,
) -> Capsule:
    """Return a capsule of an Array's elements; arguments and errors are those of `__dlpack__`."""
    if copy is not None and not isinstance(copy, bool):
        raise TypeError(f"copy: got {copy!r}, expected True, False or None")
    is_versioned = _is_versioned(max_version)
    is_asked_to_host = dl_device is not None and _check_device(dl_device, array) == HOST
    is_for_host = is_asked_to_host or array.side == "host"
    is_backwards = not array.is_gathered and _has_negative_strides(array)
    needs_copy = array.is_gathered or is_backwards or (is_for_host and not array.is_on_host)
    if copy is False and needs_copy:
        raise CopyRefusedError(_describe_copy(array))
    if copy is None and needs_copy and not is_versioned:
        raise BufferError(
            f"{_describe_copy(array)}; it is read-only, which DLPack before 1.0 can't tell: ask"
            " with max_version=(1, 0), or for a copy of your own with copy=True"
        )
    options = {"max_version": max_version} if is_versioned else {}  # NumPy 2.0 takes no options
    if is_for_host:
        capsule = _export_to_host(array, stream, copy=copy, needs_copy=needs_copy, options=options)
    else:
        caller, receiver = cuda.current_stream(), cuda.hand_over(stream)
        # The standard has copies made in the receiver's stream: there their memory belongs, too.
        with cuda.use_stream(receiver):
            values = array.to_cupy()
            values = values.copy() if is_backwards or (copy and not needs_copy) else values
            capsule = values.__dlpack__(stream=_NO_ORDER, **options)
        if copy or needs_copy:
            cuda.order_streams(receiver, caller)  # what the caller writes next is not in the copy
    if is_versioned and (copy or needs_copy):
        _mark(capsule, _IS_COPIED if copy else _IS_COPIED | _READ_ONLY)
    return capsule


def _export_to_host(
    array: Exportable,
    stream: int | None,
    *,
    copy: bool | None,
    needs_copy: bool,
    options: Mapping[str, Any],
) -> Capsule:
    if stream is not None:
        raise ValueError(f"stream: got {stream!r}, expected None: memory of the host has no stream")
    if array.side == "gpu" and array.is_on_host:  # managed memory
        cuda.synchronize()  # a receiver on the host can't wait for a stream
    values = array.to_ndarray()
    if min(values.strides, default=0) < 0 or (copy and not needs_copy):
        values = values.copy()
    if needs_copy:
        values.flags.writeable = copy is True
    return values.__dlpack__(**options)


def _is_versioned(max_version: object) -> bool:
    """Whether the receiver takes a capsule of DLPack 1."""
    if max_version is None:
        return False
    if not _is_pair(max_version):
        raise TypeError(f"max_version: got {max_version!r}, expected two integers, as in (1, 0)")
    return bool(max_version[0] >= 1)


def _check_device(wanted: object, array: Exportable) -> tuple[int, int]:
    own = array.__dlpack_device__()
    if isinstance(wanted, tuple) and wanted and isinstance(wanted[0], Enum):
        wanted = (wanted[0].value, *wanted[1:])
    if not _is_pair(wanted):
        raise TypeError(
            f"dl_device: got {wanted!r}, expected a device type and a number, as in {HOST}"
        )
    device = (int(wanted[0]), int(wanted[1]))
    if device not in (own, HOST):
        raise BufferError(
            f"dl_device: got {device}, expected {own}, where the memory is, or {HOST}, the host;"
            ' `.to("device")` and `.to("local")` make an Array elsewhere'
        )
    return device


def _is_pair(value: object) -> TypeGuard[tuple[int, int]]:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) for n in value)


def _has_negative_strides(array: Exportable) -> bool:
    """Whether the elements lie backwards in memory: `torch.from_dlpack` ends the process then.

    Proof: pytorch issue 188023; `test_a_view_with_a_negative_step_is_handed_out_as_a_copy`.
    """
    values = array.to_ndarray() if array.is_on_host else array.to_cupy()
    return min(values.strides, default=0) < 0


def _describe_copy(array: Exportable) -> str:
    if array.is_gathered:
        return "a view made with integer arrays or a mask can't be handed out without a copy"
    if _has_negative_strides(array):
        return "a view with a negative step can't be handed out without a copy"
    return "device memory can't be handed to the host without a copy"


# The flags are set in the capsule itself, because no library sets them here: CuPy has no read-only
# arrays, NumPy 2.0 sets no flags, and later ones call a copy only what they copied themselves, so
# that a gather would be copied twice. Without the flags, what is written to a copy would be lost
# without an error (tests/arrays/test_dlpack.py).
class _Versioned(ctypes.Structure):
    """The first members of a DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    )


_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _mark(capsule: Capsule, flags: int) -> None:
    """Set flags of a capsule that neither NumPy nor CuPy sets."""
    _Versioned.from_address(_address_in(capsule, b"dltensor_versioned")).flags |= flags

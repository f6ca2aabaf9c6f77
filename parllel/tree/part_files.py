"""Parts of an Array's memory as .npy files: written once, and checked when they are read."""

from __future__ import annotations

import ast
import io
import os
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import cuda
from parllel.cuda import AnyArray
from parllel.storages import nbytes_of
from parllel.tree.whole_files import CheckedWriter, FileCheck, open_plain_file, write_new_file

_CHUNK_NBYTES = 2**23  # read or written at once: a copy of it is made of device memory
_MAGIC, _HEADER_BEGIN = b"\x93NUMPY\x01\x00", 10  # behind two bytes with the header's length
_HEADER_NBYTES = 10_000  # at most, as NumPy has it
# What Python's parser and NumPy raise for headers that no NumPy wrote.
_HEADER_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, OSError),
    *(RecursionError, SyntaxError, TypeError, ValueError, Warning),
)


class PartCheck(NamedTuple):
    """The form and the checksum with which a part's file is compared.

    Args:
        header: the bytes before the elements, which are always compared.
        whole: all bytes.
    """

    header: FileCheck
    whole: FileCheck


def header_of(part: AnyArray) -> bytes:
    """Return the beginning of the .npy file of a C-contiguous array.

    Raises:
        TypeError: such a file can't hold the dtype, or NumPy does not read it back.
    """
    file = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(file, _content(part.dtype, part.shape))
        read = np.lib.format.descr_to_dtype(_parse(file.getvalue())[0]["descr"])
    except ValueError as error:
        raise TypeError(f"dtype: got {part.dtype}, which NumPy does not read back") from error
    if read != part.dtype:
        raise TypeError(f"dtype: got {part.dtype}, which NumPy reads back as {read}")
    return file.getvalue()


def write_part(path: Path, header: bytes, part: AnyArray) -> PartCheck:
    """Write a new .npy file, and return when its bytes are on the disk.

    Args:
        path: a name that no file has.
        header: what `header_of` returned for the array.
        part: array [n, ...], C-contiguous. From device memory, the host waits for the caller's
            current stream.

    Raises:
        OSError: the disk is full, or the like; nothing is left of the file.
    """

    def write(file: CheckedWriter) -> None:
        file.write(header)
        for rows in _chunks(part):
            file.write(_as_bytes(rows))

    whole = write_new_file(path, write)
    return PartCheck(FileCheck(0, 0).after(header), whole)


class PartFile:
    """A .npy file that was opened for reading; its name may be deleted, or given to another file.

    Args:
        path: the file.
        check: what `write_part` returned for it.

    Attributes:
        path: the file.
        dtype, shape: of the array in it.

    Raises:
        ValueError: it is no such file, or its length or header are not those that were saved.
        OSError: it can't be read.
    """

    def __init__(self, path: Path, check: PartCheck) -> None:
        self.path, self._check = path, check
        try:
            self._file = open_plain_file(path)
        except FileNotFoundError as error:
            raise ValueError(f"{path}: {error.strerror}; the file is not what was saved") from error
        weakref.finalize(self, self._file.close)
        nbytes = os.fstat(self._file.fileno()).st_size
        if nbytes != check.whole.nbytes:
            raise self._fault(f"{nbytes:,} bytes, expected {check.whole.nbytes:,}")
        if not 0 < check.header.nbytes <= min(_HEADER_BEGIN + _HEADER_NBYTES, nbytes):
            raise self._fault(f"a header of {check.header.nbytes:,} bytes")
        header = bytearray(check.header.nbytes)
        self._read_at(0, memoryview(header))
        self._compare(FileCheck(0, 0).after(bytes(header)), check.header)
        try:
            content, n_read = _parse(bytes(header))
            self.dtype = np.lib.format.descr_to_dtype(content["descr"])
            self.shape: tuple[int, ...] = content["shape"]
            self._check_array(content)
        except _HEADER_ERRORS as error:
            raise self._fault(f"header: {type(error).__name__} {error}") from error
        if n_read + nbytes_of(self.shape, self.dtype) != nbytes or n_read != len(header):
            raise self._fault(f"{nbytes:,} bytes, expected those of {self.dtype} {self.shape}")

    def map(self) -> NDArray[Any]:
        """Return the array over the file, read when it is used; what is written stays here."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)  # no bytes to map
        offset = self._check.header.nbytes
        return np.asarray(np.memmap(self._file, self.dtype, "c", offset, self.shape))

    def compare(self) -> None:
        """Read the file, and compare its bytes with those that were saved.

        Raises:
            ValueError: they are others, or bytes of booleans are neither 0 nor 1.
            OSError: they can't be read.
        """
        chunk = np.empty(min(_CHUNK_NBYTES, max(1, self._nbytes)), np.uint8)
        crc32 = self._check.header.crc32
        for begin in range(0, self._nbytes, len(chunk)):
            rows = chunk[: self._nbytes - begin]
            self._read_at(self._check.header.nbytes + begin, rows.data)
            crc32 = zlib.crc32(rows.data, crc32)
            if self.dtype == np.bool_ and rows.max() > 1:
                raise self._fault(f"a boolean of {rows.max()}, expected 0 or 1")
        self._compare(FileCheck(self._check.whole.nbytes, crc32), self._check.whole)

    def read_into(self, part: AnyArray) -> None:
        """Read the elements. Compare the file before: elements are written while they are read.

        Args:
            part: array of the file's dtype and shape, C-contiguous, overwritten. The host waits for
                nothing on a device.

        Raises:
            ValueError: the file has changed since it was compared; a part of it was read.
            OSError: it can't be read.
        """
        position, crc32 = self._check.header
        for rows in _chunks(part):
            is_here = isinstance(rows, np.ndarray)
            values = rows if is_here else np.empty(rows.shape, rows.dtype)
            data = _as_bytes(values)
            self._read_at(position, data)
            position, crc32 = position + data.nbytes, zlib.crc32(data, crc32)
            if not is_here:
                cuda.copy_to_device(values, out_device=rows)
        self._compare(FileCheck(position, crc32), self._check.whole)

    def _check_array(self, content: dict[str, Any]) -> None:
        """Raise ValueError unless a header is what is written for its own dtype and shape."""
        if content != _content(self.dtype, self.shape) or {*map(type, self.shape)} != {int}:
            raise ValueError(
                f"{content!s:.200}, expected what NumPy writes for an array in C order"
            )
        if self.dtype.hasobject or not self.dtype.itemsize or min(self.shape) < 0:
            raise ValueError(f"{self.dtype} {self.shape}, expected numbers")

    @property
    def _nbytes(self) -> int:
        return self._check.whole.nbytes - self._check.header.nbytes

    def _read_at(self, position: int, out: memoryview) -> None:
        n_read = 0
        while n_read < len(out):
            found = os.preadv(self._file.fileno(), [out[n_read:]], position + n_read)
            if not found:
                raise self._fault("it was cut while it was read")
            n_read += found

    def _compare(self, found: FileCheck, expected: FileCheck) -> None:
        if found != expected:
            raise self._fault(
                f"{found.nbytes:,} bytes with CRC-32 {found.crc32:08x}, expected"
                f" {expected.nbytes:,} with {expected.crc32:08x}"
            )

    def _fault(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}; the file is not what was saved")


def _parse(header: bytes) -> tuple[dict[str, Any], int]:
    """Return the content of a header of version 1.0, and how many bytes it has.

    NumPy's own reader would also repair headers, and warn.
    """
    length = int.from_bytes(header[len(_MAGIC) : _HEADER_BEGIN], "little")
    text = header[_HEADER_BEGIN : _HEADER_BEGIN + length]
    if header[: len(_MAGIC)] != _MAGIC or len(text) != length or length > _HEADER_NBYTES:
        raise ValueError("it is none of version 1.0")
    content = ast.literal_eval(text.decode("latin1"))
    if not isinstance(content, dict) or content.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("it has other keys than a header of an array")
    return content, _HEADER_BEGIN + length


def _content(dtype: np.dtype[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(map(int, shape)),
    }


def _chunks(part: AnyArray) -> Iterator[AnyArray]:
    """Yield all rows of an array, some at a time."""
    n_rows = max(1, _CHUNK_NBYTES * len(part) // max(part.nbytes, 1))
    yield from (part[begin : begin + n_rows] for begin in range(0, len(part), n_rows))


def _as_bytes(rows: AnyArray) -> memoryview:
    values = rows if isinstance(rows, np.ndarray) else cuda.to_host(rows)
    return values.reshape(-1).view(np.uint8).data

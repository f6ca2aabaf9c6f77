"""JSON files with a checksum of their own, as a save has them: written, read, and checked."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parllel.tree.whole_files import open_plain_file

_MOST_NBYTES = 2**26  # of a stranger's file: some 100,000 leaves
_HEAD = '{"crc32": "'


class DamagedError(ValueError):
    """The text is no JSON with the checksum of its bytes."""


def to_data(content: Mapping[str, Any]) -> bytes:
    """Return the text of a JSON file, whose first line is the CRC-32 of all that follows.

    Raises:
        TypeError, ValueError: JSON can't hold a value, or it is nested too deeply or too long.

    >>> from_data(to_data({"n_batches": 7}))
    {'n_batches': 7}
    >>> from_data(to_data({"n_batches": 7}).replace(b"7", b"8"))
    Traceback (most recent call last):
    parllel.tree.saved_json.DamagedError: its bytes are not those that were saved (CRC-32)
    """
    try:
        rest = b"\n" + json.dumps(content, indent=1).encode()[1:]
    except RecursionError as error:
        raise ValueError(
            "values are nested too deeply for JSON; save less with the tree"
        ) from error
    data = _head_of(rest) + rest
    if len(data) > _MOST_NBYTES:
        raise ValueError(
            f"{len(data):,} bytes of JSON, expected {_MOST_NBYTES:,} at most; put large values into"
            " Arrays of the tree"
        )
    return data


def from_data(data: bytes) -> dict[str, Any]:
    """Return what `to_data` was given.

    Raises:
        DamagedError: the text is another one.
    """
    content = parse(data)
    check_crc32(data)
    del content["crc32"]
    return content


def parse(data: bytes) -> dict[str, Any]:
    """Return what a text holds, whose checksum was not compared.

    Raises:
        DamagedError: it is no JSON, or it holds something else than names and values.
    """
    try:
        content = json.loads(data, object_pairs_hook=_to_dict)
    except (RecursionError, ValueError) as error:
        raise DamagedError(str(error)) from error
    if not isinstance(content, dict):
        raise DamagedError(f"it holds a {type(content).__name__}")
    return content


def check_crc32(data: bytes) -> None:
    """Raise DamagedError unless the first line is the CRC-32 of all that follows."""
    length = len(_head_of(b""))
    if data[:length] != _head_of(data[length:]):
        raise DamagedError("its bytes are not those that were saved (CRC-32)")


def is_begun(data: bytes) -> bool:
    """Whether a text may be the beginning of one of `to_data`, which was cut off."""
    return _HEAD.encode().startswith(data[: len(_HEAD)])


def read_data(path: Path) -> bytes:
    """Return the bytes of a JSON file, which may come from a stranger.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no plain file, or too long.
    """
    with open_plain_file(path) as file:
        nbytes = os.fstat(file.fileno()).st_size
        if nbytes > _MOST_NBYTES:
            raise ValueError(f"{path}: {nbytes:,} bytes, expected {_MOST_NBYTES:,} at most")
        return file.read(_MOST_NBYTES)


def _head_of(rest: bytes) -> bytes:
    return f'{_HEAD}{zlib.crc32(rest):08x}",'.encode()


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError(f"a key twice, among {sorted(content)}")
    return content

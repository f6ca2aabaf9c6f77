"""A model's parameters as a file: put in place when it is whole, and checked before it is used."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from parllel.tree.whole_files import CheckedWriter, replace_file

_COMPILED = "_orig_mod."  # what torch.compile puts into the names of a model's parameters
# The file is a zip file, as torch writes it; behind it is the checksum of all bytes before.
_MARK = b"parllel crc32 "
_CHECKSUM_LENGTH = len(_MARK) + 8
_ZIP_END, _ZIP_END_LENGTH = b"PK\5\6", 22  # what a zip file ends with


def write_parameters(model: nn.Module, path: str | Path) -> None:
    """Write a model's parameters and buffers to a file, with a checksum.

    It is written and put in place as `replace_file` does it. The file of a model that
    `torch.compile` returned is that of the model that it was given.

    Args:
        model: the model, on any device.
        path: the file. `torch.load` reads it too.

    Raises:
        OSError: the file can't be written.
        ValueError: names of parameters differ only by what `torch.compile` adds.
    """
    own = model.state_dict()
    state = {_plain(name): value for name, value in own.items()}
    if len(state) < len(own):
        raise ValueError(
            f"model: parameters of one name but for {_COMPILED!r}, which torch.compile adds; give"
            " the attribute another name"
        )

    def write(file: CheckedWriter) -> None:
        torch.save(state, file)  # type: ignore[arg-type]  # it calls write and flush alone
        file.write(_MARK + b"%08x" % file.check.crc32)

    replace_file(Path(path), write)


def read_parameters(model: nn.Module, path: str | Path) -> None:
    """Read a model's parameters and buffers from a file, to where the model is.

    All is read and compared first, so a file that is refused changes nothing. No code in the file
    runs. A file of `torch.save(model.state_dict(), path)` is read too.

    Args:
        model: the model, on any device, compiled or not.
        path: the file, of a model on any device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is not one of parameters, or its parameters have
            other names, shapes or dtypes than the model's, or the model has one that was
            expanded.
    """
    saved = _read(Path(path))
    own = model.state_dict()
    names = {_plain(name): name for name in own}
    values = {_plain(name): value for name, value in saved.items()}
    if names.keys() != values.keys():
        raise ValueError(
            f"{path}: parameters of the model that are not in the file"
            f" {sorted(names.keys() - values.keys())}, of the file that are not in the model"
            f" {sorted(values.keys() - names.keys())}, expected the same; load it into a model"
            " like the one that was saved"
        )
    for name, value in values.items():
        got, expected = _look(value), _look(own[names[name]])
        if _is_expanded(own[names[name]]):  # torch would find out when others are loaded
            raise ValueError(
                f"{path}: {name} of the model is one element many times in memory (`expand`), which"
                " can't be loaded; have the model clone it"
            )
        if expected is not None and got != expected:
            raise ValueError(
                f"{path}: {name} is {got}, expected {expected} as in the model; load it into a"
                " model like the one that was saved"
            )
    model.load_state_dict({names[name]: value for name, value in values.items()})


def _plain(name: str) -> str:
    return name.replace(_COMPILED, "")


def _look(value: object) -> str | None:
    """Return dtype and form of a tensor; None for what takes any, such as a lazy parameter."""
    if not isinstance(value, torch.Tensor) or is_lazy(value):
        return None
    form = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if value.layout is not torch.strided:
        form += f", {str(value.layout).removeprefix('torch.')}"
    return f"{form}, without values" if value.is_meta else form


def _is_expanded(value: object) -> bool:
    if _look(value) is None or not isinstance(value, torch.Tensor):
        return False
    is_strided = value.layout is torch.strided
    return is_strided and any(
        size > 1 and not stride for size, stride in zip(value.shape, value.stride(), strict=True)
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: no file, expected one that save wrote")
    content = path.read_bytes()
    if not _is_intact(content):
        raise ValueError(
            f"{path}: it is damaged, or not a file of parameters: its checksum is another one;"
            " take an older file"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types for a file that is none of its
        raise ValueError(f"{path}: torch can't read it as parameters: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{path}: it holds a {type(state).__name__}, expected parameters by their names, as"
            " save writes them"
        )
    return state


def _is_intact(content: bytes) -> bool:
    """Compare the checksum; or those of a zip file's members, where there is none of ours."""
    end = content[-_CHECKSUM_LENGTH:]
    if end.startswith(_MARK):
        return end[len(_MARK) :] == b"%08x" % zlib.crc32(content[:-_CHECKSUM_LENGTH])
    if content[-_ZIP_END_LENGTH:][:4] != _ZIP_END:  # a checksum whose mark is damaged
        return False
    try:
        return zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
        return False

"""A model's parameters as a file: put in place when it is whole, and checked before it is used.

safetensors is imported where a file is written or read: who saves nothing does without it.
"""

from __future__ import annotations

import io
import json
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

from parllel.tree.whole_files import replace_file

_COMPILED = "_orig_mod."  # what torch.compile puts into the names of a model's parameters
# The file's metadata have this key. Its value is the CRC-32 of the file with zeros for the digits.
_KEY, _MARK, _ZEROS = "parllel", "crc32 ", "0" * 8
_TORCH_FILE = b"PK\3\4"  # how files of torch.save begin: they are zip files
_METADATA = "__metadata__"  # where a safetensors file has a tensor of this name, it is none


def write_parameters(model: nn.Module, path: str | Path) -> None:
    """Write a model's parameters and buffers to a safetensors file, with a checksum.

    It is put together in the host's memory, then written and put in place as `replace_file` does
    it. The file of a model that `torch.compile` returned is that of the model that it was given.
    A tensor that has several names is written for each of them.

    Args:
        model: the model, on any device.
        path: the file. All that reads safetensors reads it.

    Raises:
        OSError: the file can't be written.
        TypeError: a part of the model's state is no dense tensor: extra state that is no tensor,
            a sparse or quantized tensor, a lazy parameter.
        ValueError: names of parameters differ only by what `torch.compile` adds.
    """
    own = model.state_dict()
    state = {_plain(name): value for name, value in own.items()}
    if len(state) < len(own):
        raise ValueError(
            f"model: parameters of one name but for {_COMPILED!r}, which torch.compile adds; give"
            " the attribute another name"
        )
    for name, value in state.items():
        _check_is_storable(name, value)
    # Each in memory of its own: safetensors takes no two that share some, and wants rows in order.
    tensors = {
        name: torch.empty(value.shape, dtype=value.dtype).copy_(value)
        for name, value in state.items()
    }
    from safetensors.torch import save

    content = bytearray(save(tensors, {_KEY: _MARK + _ZEROS}))
    place = _place_of_digits(content, _ZEROS)
    content[place : place + len(_ZEROS)] = b"%08x" % zlib.crc32(content)
    replace_file(Path(path), lambda file: file.write(memoryview(content)))


def read_parameters(model: nn.Module, path: str | Path) -> None:
    """Read a model's parameters and buffers from a file, to where the model is.

    All is read and compared first, so a file that is refused changes nothing. No code in the file
    runs. Files of `safetensors.torch.save_file(model.state_dict(), path)` and of
    `torch.save(model.state_dict(), path)` are read too.

    Args:
        model: the model, on any device, compiled or not.
        path: the file, of a model on any device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is not one of parameters, or its parameters have
            other names, shapes or dtypes than the model's, or the model has one that was
            expanded, or one under two names that has two values in the file.
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
    for name, own_name in names.items():
        got, expected = _look(values[name]), _look(own[own_name])
        if _is_expanded(own[own_name]):  # torch would find out when others are loaded
            raise ValueError(
                f"{path}: {name} of the model is one element many times in memory (`expand`), which"
                " can't be loaded; have the model clone it"
            )
        if expected is not None and got != expected:
            raise ValueError(
                f"{path}: {name} is {got}, expected {expected} as in the model; load it into a"
                " model like the one that was saved"
            )
    _check_tied(path, {name: own[own_name] for name, own_name in names.items()}, values)
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


def _check_is_storable(name: str, value: object) -> None:
    """Raise TypeError for what a safetensors file can't hold."""
    if not isinstance(value, torch.Tensor):
        what: str | None = f"a {type(value).__name__}"
    elif is_lazy(value):
        what = "a lazy parameter without values; run the model once before it is saved"
    elif value.is_meta or value.is_quantized or value.layout is not torch.strided:
        what = "quantized" if value.is_quantized else _look(value)
    elif not _has_type_for(value.dtype):
        what = str(value.dtype)
    elif name == _METADATA:
        what = "of a name that the file format uses itself"
    else:
        return
    raise TypeError(
        f"model: {name} of its state is {what}, expected a dense tensor with values, as a"
        " safetensors file holds it; keep it out of the model's state_dict, or use torch.save"
    )


def _has_type_for(dtype: torch.dtype) -> bool:
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        save({"x": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, SafetensorError):
        return False
    return True


def _check_tied(path: str | Path, own: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse two values for a tensor that the model has under two names."""
    first: dict[object, str] = {}
    for name, tensor in own.items():
        if _look(tensor) is None or tensor.layout is not torch.strided or not tensor.numel():
            continue
        other = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if other != name and not _are_same(values[other], values[name]):
            raise ValueError(
                f"{path}: {other} and {name} differ, and are one tensor of the model; load it into"
                " a model like the one that was saved"
            )


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def _read(path: Path) -> Mapping[str, Any]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: no file, expected one that save wrote")
    content = path.read_bytes()
    if content.startswith(_TORCH_FILE):
        return _read_torch_file(path, content)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(content)
        is_intact = _is_intact(content)
    except (SafetensorError, KeyError, ValueError):  # KeyError: a dtype that torch has not
        is_intact = False
    if not is_intact:
        raise _damaged(path)
    return state


def _is_intact(content: bytes) -> bool:
    """Compare the checksum of a safetensors file; return True for one without."""
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    metadata: dict[str, str] = json.loads(header).get(_METADATA) or {}
    mark = metadata.get(_KEY)
    if mark is None:  # of a file that another program wrote, or the key itself is damaged
        return not any(value.startswith(_MARK) for value in metadata.values())
    digits = mark.removeprefix(_MARK)
    place = _place_of_digits(content, digits)
    if place < 0 or len(digits) != len(_ZEROS):
        return False
    before, after = memoryview(content)[:place], memoryview(content)[place + len(digits) :]
    crc = zlib.crc32(after, zlib.crc32(_ZEROS.encode(), zlib.crc32(before)))
    return digits == f"{crc:08x}"


def _place_of_digits(content: bytes | bytearray, digits: str) -> int:
    """Return where a file's checksum begins; -1 where there is none like it."""
    before = f'"{_KEY}":"{_MARK}'  # not in a name: a quotation mark would be escaped there
    place = content.find(f'{before}{digits}"'.encode())
    return place + len(before) if place >= 0 else -1


def _read_torch_file(path: Path, content: bytes) -> Mapping[str, Any]:
    try:
        if zipfile.ZipFile(io.BytesIO(content)).testzip() is not None:
            raise _damaged(path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _damaged(path) from error
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


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path}: it is damaged, or not a file of parameters: its checksum is another one, or it"
        " can't be read as a safetensors file; take an older file"
    )

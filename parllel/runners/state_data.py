"""Nested states as JSON and tensors: no class but those named here is written, or made by reading.

A state is what `state_dict` of some part of a run returns: dictionaries, lists and tuples of
tensors, NumPy arrays, numbers, texts and None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parllel.tree import TreePath, path_text


def to_data(state: object) -> tuple[Any, dict[str, Tensor]]:
    """Return a state as a value that JSON holds, and its tensors by name, on the host.

    >>> data, tensors = to_data({"step": 3, "weight": torch.ones(2)})
    >>> data
    {'dict': [['step', 3], ['weight', {'tensor': '0 weight'}]]}
    >>> tensors["0 weight"]
    tensor([1., 1.])

    Raises:
        TypeError: the state has something else than the kinds above; the message has its path.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, (), tensors), tensors


def from_data(data: Any, tensors: Mapping[str, Tensor]) -> Any:  # Any: what JSON holds
    """Return the state that `to_data` was given, with its tensors on the host.

    >>> from_data({"tuple": [1, {"tensor": "0 a"}]}, {"0 a": torch.ones(2)})
    (1, tensor([1., 1.]))

    Raises:
        ValueError: the data are not those of a state.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError(f"state: got {str(data)[:100]}, expected what to_data returns")
    ((kind, content),) = data.items()
    if kind == "dict":
        return {key: from_data(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        members = [from_data(value, tensors) for value in content]
        return members if kind == "list" else tuple(members)
    if kind not in _READERS:
        raise ValueError(f"state: got the kind {kind!r}, expected one of {sorted(_READERS)}")
    return _READERS[kind](tensors[content])


def _pack(value: Any, path: TreePath, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        if not all(type(key) in (bool, int, str) for key in value):
            raise TypeError(f"{path_text(path)}: got the keys {list(value)}, expected texts")
        pairs = value.items()
        return {"dict": [[key, _pack(each, (*path, str(key)), tensors)] for key, each in pairs]}
    if isinstance(value, list | tuple):
        numbered = enumerate(value)
        members = [_pack(each, (*path, str(number)), tensors) for number, each in numbered]
        return {"list" if isinstance(value, list) else "tuple": members}
    kind, tensor = _as_tensor(value, path)
    # The number tells tensors apart whose paths have the same text.
    name = f"{len(tensors)} {path_text(path)}"
    tensors[name] = tensor
    return {kind: name}


def _as_tensor(value: Any, path: TreePath) -> tuple[str, Tensor]:
    """Return the kind of a value, and a copy of its own that is dense and on the host."""
    kind = "tensor"
    try:
        if isinstance(value, np.ndarray | np.generic):
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            value = torch.from_numpy(np.array(value))
        elif isinstance(value, bytes):
            kind, value = "bytes", torch.from_numpy(np.frombuffer(value, np.uint8).copy())
        if isinstance(value, Tensor) and _is_dense(value):
            own = value.detach().to("cpu", copy=True)
            return kind, own.contiguous()
    except (TypeError, ValueError):  # torch has no such dtype
        pass
    dtype = f" of {value.dtype}" if hasattr(value, "dtype") else ""
    raise TypeError(
        f"{path_text(path)}: got a {type(value).__name__}{dtype}, expected a dense tensor, an array"
        " of numbers, a number, a text, None, or a dict, list or tuple of these"
    )


def _is_dense(value: Tensor) -> bool:
    """Whether a file of safetensors holds such a tensor."""
    is_held = not value.is_quantized and value.dtype != torch.complex128
    return is_held and value.layout is torch.strided


def _to_scalar(tensor: Tensor) -> Any:
    return tensor.numpy()[()]


_READERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda tensor: tensor,
    "array": lambda tensor: tensor.numpy(),
    "scalar": _to_scalar,
    "bytes": lambda tensor: tensor.numpy().tobytes(),
}

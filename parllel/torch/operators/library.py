"""The operators' library of torch, and how their tensors become arrays that kernels take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parllel.arrays.interop import to_device
from parllel.cuda import AnyArray

# As long as it lives, torch knows the operators: torch.ops.parllel.
_LIBRARY = torch.library.Library("parllel", "DEF")  # type: ignore[no-untyped-call]  # torch's gap


def define(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:  # Any: as the schema says
    """Make an operator of torch, and return it.

    Args:
        schema: name, arguments and results in torch's notation; arguments that are written have an
            alias, as in `Tensor(a!)`.
        implementation: computes it, on the CPU and on a GPU. The results are new tensors.
        fake: returns empty tensors of the same shapes, dtypes and devices.
    """
    library: Any = _LIBRARY  # Any: torch's methods are untyped
    library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    name = schema.partition("(")[0]
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"parllel::{name}", fake, lib=library)
    operator: Callable[..., Any] = getattr(torch.ops.parllel, name).default
    return operator


def as_array(tensor: Tensor) -> AnyArray:
    """Return a tensor's memory as an array of NumPy or CuPy, C-contiguous: a copy where it is not.

    The caller's current stream waits for torch's work.

    Raises:
        TypeError: the tensor is of a dtype that NumPy has not, as bfloat16.
    """
    values = tensor.detach().contiguous()
    if values.is_cuda:
        return to_device(values)
    try:
        return values.numpy()
    except TypeError as error:
        raise TypeError(
            f"got a tensor of {tensor.dtype}, expected a dtype that NumPy has too; convert it, as"
            " with tensor.float()"
        ) from error

"""fit_elements, device_elements: values of any library as the elements of some slots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from parllel.arrays.interop import is_tensor, to_device, to_host
from parllel.arrays.jagged import Jagged
from parllel.arrays.jagged_writer import ElementForm, Fitted
from parllel.cuda import tensor_over


def fit_elements(value: Any, form: ElementForm, batch_shape: tuple[int, ...]) -> list[Fitted]:
    """Return the elements that a value of any library has for some slots, in C order.

    Args:
        value: what is written, as `JaggedArray` says.
        form: what elements are.
        batch_shape: batch dimensions of the slots; () for one slot.

    What elements of a JaggedArray lost before still counts as dropped.

    Raises:
        ValueError: an element does not fit, or there are others than the slots' batch dimensions.
    """
    lost = _lost_before(value)
    if lost is not None:
        fitted = fit_elements(value.to_ndarray(), form, batch_shape)
        counts = np.broadcast_to(lost, len(fitted)).tolist()  # one element may become all
        pairs = zip(fitted, counts, strict=True)
        return [each._replace(n_dropped=each.n_dropped + n) for each, n in pairs]
    if not isinstance(value, Jagged | list | tuple):
        value = to_host(value)
    n_elements = math.prod(batch_shape)
    if isinstance(value, Jagged):
        if value.batch_shape != batch_shape:
            raise ValueError(
                f"writing a Jagged of batch_shape {value.batch_shape}, expected {batch_shape}"
                f" as the rows have, of elements {form}"
            )
        elements: Any = _elements_of(value.to_ndarray())
    elif not batch_shape:
        return [form.fit(value, "element")]
    elif isinstance(value, list | tuple) or getattr(value, "dtype", None) == np.object_:
        elements = _nested(value, batch_shape, form)
    else:
        array = np.asarray(value)
        n_lead = array.ndim - 1 - len(form.item_shape)
        if n_lead == 0:
            return [form.fit(array, "element")] * n_elements
        if n_lead < 0 or array.shape[:n_lead] != batch_shape:
            raise ValueError(
                f"writing a value of shape {array.shape}, expected one element, {form}; or"
                f" elements of one length with the dimensions {batch_shape} in front"
            )
        elements = array.reshape(n_elements, *array.shape[n_lead:])
    fitted = [form.fit(each, _name(number, batch_shape)) for number, each in enumerate(elements)]
    if len(fitted) != n_elements:
        raise ValueError(f"got {len(fitted)} elements, expected {n_elements}")
    return fitted


def _lost_before(value: Any) -> list[int] | None:
    """Return the number of items that each element of a JaggedArray has lost; None of others."""
    dropped = getattr(value, "dropped", None)
    return None if dropped is None else np.ravel(dropped.to_ndarray()).tolist()


def _elements_of(jagged: Jagged) -> Iterator[Any]:
    begins = jagged.offsets[:-1].tolist()
    for begin, n_items in zip(begins, jagged.counts.tolist(), strict=True):
        yield jagged.values[begin : begin + n_items]


def _nested(value: Any, batch_shape: tuple[int, ...], form: ElementForm) -> list[Any]:
    """Return the elements of a nested list as a flat one."""
    elements = [value]
    for depth, length in enumerate(batch_shape):
        for each in elements:
            n_found = len(each) if isinstance(each, list | tuple | np.ndarray) else None
            if n_found != length:
                got = type(each).__name__ if n_found is None else f"a list of {n_found}"
                raise ValueError(
                    f"writing a nested list: got {got} at depth {depth}, expected {length} entries,"
                    f" as the rows have the batch_shape {batch_shape}; elements are {form}"
                )
        elements = [inner for each in elements for inner in each]
    return elements


def _name(number: int, batch_shape: tuple[int, ...]) -> str:
    place = tuple(int(at) for at in np.unravel_index(number, batch_shape))
    return f"element {place[0] if len(place) == 1 else place}"


class DeviceElements(NamedTuple):
    """Elements on a device, at one length.

    Args:
        rows: tensor [k, longest, *item_shape].
        lengths: tensor of int64 [k].
        longest: length of the longest one.
        dropped: the number of items that each element lost.
    """

    rows: Any
    lengths: Any
    longest: int
    dropped: Sequence[int]


def device_elements(value: Any, form: ElementForm, batch_shape: tuple[int, ...]) -> DeviceElements:
    """Return the elements that a value on a device has for some slots; the host waits for lengths.

    Args:
        value: JaggedArray, Jagged, tensor or array of CuPy, on a device.
        form: what elements are.
        batch_shape: batch dimensions of the slots; () for one slot.

    Raises:
        ValueError: the elements have other items or another dtype, there are others than the
            slots' batch dimensions, or one is too long.
    """
    lost = _lost_before(value)
    jagged = value.to_torch() if hasattr(value, "to_torch") else value
    if not isinstance(jagged, Jagged):
        jagged = _dense(jagged, form, batch_shape)
    name = str(jagged.dtype).removeprefix("torch.")
    if name != form.dtype.name or jagged.feature_shape != form.item_shape:
        raise ValueError(
            f"writing elements (n, {', '.join(map(str, jagged.feature_shape))}), {name}, expected"
            f" {form}; nothing on a device is converted"
        )
    if jagged.batch_shape != batch_shape and batch_shape:
        raise ValueError(
            f"writing a Jagged of batch_shape {jagged.batch_shape}, expected {batch_shape}"
        )
    n_elements = math.prod(jagged.batch_shape)
    rows, mask = Jagged(jagged.values, jagged.offsets, jagged.lengths, (n_elements,)).padded()
    counts = to_host(jagged.counts)
    longest = rows.shape[1]
    dropped = np.zeros(len(counts), np.int64)
    if longest > form.capacity and form.on_overflow != "grow":
        if form.on_overflow == "raise":
            form.fit(np.empty((longest, *form.item_shape), form.dtype), "element")
        dropped = np.maximum(counts - form.capacity, 0)
        longest = form.capacity
        rows, mask = rows[:, :longest], mask[:, :longest]
    if lost is not None:
        dropped = dropped + lost
    return DeviceElements(rows, mask.sum(-1), int(longest), dropped.tolist())


def _dense(value: Any, form: ElementForm, batch_shape: tuple[int, ...]) -> Jagged:
    """Return elements of one length, or one for all slots, as a Jagged of tensors."""
    import torch

    tensor = value if is_tensor(value) else tensor_over(to_device(value))
    n_lead = tensor.ndim - 1 - len(form.item_shape)
    n_elements = math.prod(batch_shape)
    if n_lead == 0:
        tensor = tensor.expand(n_elements, *tensor.shape)
    elif n_lead < 0 or tuple(tensor.shape[:n_lead]) != batch_shape:
        raise ValueError(
            f"writing a value of shape {tuple(tensor.shape)}, expected one element, {form}; or"
            f" elements of one length with the dimensions {batch_shape} in front"
        )
    else:
        tensor = tensor.reshape(n_elements, *tensor.shape[n_lead:])
    n_items = tensor.shape[1]
    starts = torch.arange(n_elements + 1) * n_items
    offsets = tensor.new_empty(n_elements + 1, dtype=torch.int64).copy_(starts)
    values = tensor.reshape(n_elements * n_items, *tensor.shape[2:])
    return Jagged(values, offsets, None, batch_shape or (1,))

"""Hypothesis strategies for the law of indices: Arrays, views of them, and indices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from parllel.arrays import Array
from parllel.testing.contracts.array_case import ArrayCase
from parllel.testing.contracts.index_model import Axis, Model

FAR = 10**20  # far outside, and more than 64 bits
SIGNED = (np.int8, np.int16, np.int32, np.int64)
UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)


class Case(NamedTuple):
    """A view to be held to its model.

    Args:
        view: a view of an Array.
        base: a view of the Array's whole base buffer, where each element is its flat position.
        model: the elements that the view has to show.
    """

    view: Array
    base: Array
    model: Model


@st.composite
def stores(draw: st.DrawFn, arrays: ArrayCase) -> Case:
    """Draw an Array of a case at some point of its life, with the window in view."""
    is_empty = draw(st.sampled_from([False] * 9 + [True]))
    T = draw(st.sampled_from([3, 1, 2, 4, 5, 6, 7] + [0] * is_empty))
    batch_shape = (T, *draw(st.sampled_from([(3,), (), (2,), (2, 3)] + [(0,)] * is_empty)))
    shapes = [(), (), (4,), (3, 2)] + [(0,)] * is_empty
    feature_shape = draw(st.sampled_from(shapes)) if arrays.indexes_features else ()
    padding = draw(st.sampled_from(range(T + 1)))
    full_size = T * draw(st.sampled_from([1, 2, 3]))
    window: dict[str, Any] = {"padding": padding, "full_size": full_size}
    array = arrays.array(batch_shape, np.int32, feature_shape=feature_shape, **window)
    base = array[-padding : full_size + padding]
    offset = 0
    for is_reset in draw(st.lists(st.sampled_from([False, False, False, True]), max_size=5)):
        if is_reset:
            array.reset()
            offset = full_size - T
        else:
            array.rotate()
            offset = (offset + T) % max(full_size, 1)
    values = np.arange(base.size).reshape(base.shape)
    base[...] = values
    model = Model(base.shape, len(batch_shape), {}, {}, values, [], 0)
    others = {n: Axis(0, 1, length) for n, length in enumerate(base.shape) if n > 0}
    return Case(array, base, model.place({}, {0: Axis(padding + offset, 1, T)} | others))


@st.composite
def integers_of_any_kind(draw: st.DrawFn, axis: Axis, extent: int) -> Any:
    """Draw an index: mostly inside the base buffer, as a Python integer or one of NumPy's."""
    legal = [index for index in range(-40, 41) if 0 <= axis.at(index) < extent]
    wild = st.one_of(st.integers(-40, 40), st.sampled_from([FAR, -FAR, 2**62, 2**63 - 1]))
    is_wild = not legal or draw(st.integers(0, 9)) == 9
    index = draw(wild if is_wild else st.sampled_from(legal))
    kinds: list[Callable[[int], Any]] = [int]
    for dtype in (*SIGNED, *UNSIGNED):
        if np.iinfo(dtype).min <= index <= np.iinfo(dtype).max:
            kinds += [dtype, functools.partial(np.array, dtype=dtype)]
    return draw(st.sampled_from(kinds))(index)


@st.composite
def slices(draw: st.DrawFn, axis: Axis) -> slice:
    """Draw a slice with ends in the view or near it, left out, or far away."""
    step = draw(st.sampled_from([None, 1, 2, 3, -1, -2, -3]))
    near = st.integers(-axis.length - 3, axis.length + 3)
    if draw(st.integers(0, 9)) == 9:
        ends = st.one_of(near, near.map(np.int16), st.sampled_from([FAR, -FAR]))
        return slice(draw(ends), draw(ends), step)
    start, stop = sorted((draw(near), draw(near)), reverse=step is not None and step < 0)
    is_left_out = draw(
        st.sampled_from([(False, True), (True, False), (True, True), (False, False)])
    )
    return slice(None if is_left_out[0] else start, None if is_left_out[1] else stop, step)


@st.composite
def integer_arrays(draw: st.DrawFn, axis: Axis, extent: int, shape: tuple[int, ...]) -> Any:
    """Draw an integer array, or the list of it, which broadcasts to the shape."""
    shapes = [shape, (1,) * len(shape), shape[-1:], (1,)]
    shape = draw(st.sampled_from(shapes))
    legal = [index for index in range(-40, 41) if 0 <= axis.at(index) < extent]
    is_wild = not legal or draw(st.integers(0, 9)) == 9
    elements = st.sampled_from([-(2**62), 2**62, -40, 40] if is_wild else legal)
    size = math.prod(shape)
    values = draw(st.lists(elements, min_size=size, max_size=size))
    dtypes = [
        dtype
        for dtype in (*SIGNED, *UNSIGNED)
        if all(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max for value in values)
    ]
    indices = np.array(values, draw(st.sampled_from(dtypes))).reshape(shape)
    return draw(st.sampled_from([indices, indices, indices.tolist()])) if size else indices


@st.composite
def indices(draw: st.DrawFn, model: Model) -> Any:
    """Draw an index of the view: any mixture of legal items."""
    n_dims = len(model.live)
    n_used = draw(st.sampled_from(range(n_dims, -1, -1)))
    at = draw(st.sampled_from([n_used, *range(n_used + 1)]))  # where `...` may stand
    shape = draw(st.sampled_from([(2,), (3,), (1,), (2, 3), (4,), (2, 1), (0,)]))
    kinds = draw(st.sampled_from(["is", "iss", "sa", "isa", "aas", "ism", "sm"]))
    items = draw(items_for(model, range(at), kinds, shape))
    if at < n_used or draw(st.booleans()):
        items.append(...)
    items += draw(items_for(model, range(n_dims - n_used + at, n_dims), kinds, shape))
    return items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


@st.composite
def items_for(
    draw: st.DrawFn, model: Model, places: range, kinds: str, shape: tuple[int, ...]
) -> list[Any]:
    """Draw the items for neighbouring dimensions of the view."""
    items: list[Any] = []
    numbers = list(model.live)
    place, end = places.start, places.stop
    while place < end:
        axis, extent = model.live[numbers[place]], model.extents[numbers[place]]
        kind, width = draw(st.sampled_from(kinds)), 1
        if kind == "i":
            items.append(draw(integers_of_any_kind(axis, extent)))
        elif kind == "s":
            items.append(draw(slices(axis)))
        elif kind == "a":
            items.append(draw(integer_arrays(axis, extent, shape)))
        else:
            width = draw(st.integers(1, end - place))
            items.append(draw(masks(model.shown.shape[place : place + width])))
        place += width
    return items


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Draw a mask of this shape, or the list of it."""
    size = math.prod(shape)
    bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    mask = np.array(bits, bool).reshape(shape)
    return draw(st.sampled_from([mask, mask.tolist()])) if size else mask


@st.composite
def views(draw: st.DrawFn, arrays: ArrayCase) -> Case:
    """Draw a view that up to 3 indices or steps in time lead to."""
    view, base, model = draw(stores(arrays))
    for _ in range(draw(st.sampled_from([1, 2, 3, 0]))):
        step: Any = draw(st.sampled_from(["index", "index", "index", "next", "previous"]))
        index = ... if model.is_gathered else draw(indices(model))
        try:
            following = model[index] if step == "index" and not model.is_gathered else model
            if step != "index":
                following = model.later(1 if step == "next" else -1)
        except IndexError:
            continue
        model = following
        view = view[index] if step == "index" else getattr(view, step)
    return Case(view, base, model)

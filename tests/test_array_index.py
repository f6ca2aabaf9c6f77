"""The law of indexing: every index on every view, against naive arithmetic and plain NumPy.

The model of a view knows, for each axis of the base buffer, where the view begins and how it goes
on. Every element of the base buffer holds its own flat position, so that what a view shows tells
which elements it shows. NumPy itself decides how integers, slices and arrays combine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from parllel import Array

LAW = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
FAR = 10**20  # far outside, and more than 64 bits
SIGNED = (np.int8, np.int16, np.int32, np.int64)
UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)


# The model


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a view: where it begins in the base buffer, and how it goes on."""

    start: int
    step: int
    length: int

    def at(self, index: int) -> int:
        return self.start + index * self.step


@dataclasses.dataclass(frozen=True)
class Model:
    """What a view shows, as flat positions of the base buffer."""

    extents: tuple[int, ...]
    n_batch_axes: int
    fixed: dict[int, int]  # base axis -> the position that an earlier index chose
    live: dict[int, Axis]  # base axis -> what the view shows of it; empty once gathered
    shown: NDArray[Any]
    rows: list[int]  # of the base buffer, whether or not the other axes show anything of them
    n_batch_dims: int
    is_gathered: bool = False

    def __getitem__(self, index: Any) -> Model:
        """Return the model of `view[index]`, or raise IndexError."""
        items, split = spread(index, len(self.live))
        translated = dict(zip(self.live, map(self.translate, self.live, items), strict=True))
        key = split_at(split, map(as_key, translated.values()))
        shown = self.picked()[key]
        n_dims = count_batch_dims(translated, split, shown.ndim, self.n_batch_axes)
        if any(isinstance(entry, np.ndarray) for entry in key):
            rows = rows_of(translated[0]) if 0 in translated else self.rows
            return Model(
                self.extents, self.n_batch_axes, {}, {}, shown, rows, n_dims, is_gathered=True
            )
        fixed = self.fixed | {n: e for n, e in translated.items() if isinstance(e, int)}
        live = {n: e for n, e in translated.items() if isinstance(e, Axis)}
        return self.place(fixed, live)

    def translate(self, number: int, item: Any) -> int | Axis | NDArray[Any]:
        """Return where an item of an index leads to on one axis of the base buffer."""
        axis, extent = self.live[number], self.extents[number]
        if isinstance(item, slice):
            return walk(axis, extent, item)
        indices = np.array(item, object)
        positions = [axis.at(int(index)) for index in indices.ravel()]
        if any(not 0 <= position < extent for position in positions):
            raise IndexError(f"{item} is outside")
        if indices.ndim == 0:
            return positions[0]
        return np.array(positions, int).reshape(indices.shape)

    def picked(self) -> NDArray[Any]:
        """Return the flat positions that earlier integers left over."""
        base = np.arange(math.prod(self.extents)).reshape(self.extents)
        return base[tuple(self.fixed.get(n, slice(None)) for n in range(base.ndim))]

    def place(self, fixed: dict[int, int], live: dict[int, Axis]) -> Model:
        """Return the model of a view without arrays."""
        entries: dict[int, Any] = fixed | live
        model = dataclasses.replace(
            self,
            fixed=fixed,
            live=live,
            rows=rows_of(entries[0]),
            n_batch_dims=sum(n < self.n_batch_axes for n in live),
        )
        shown = model.picked()[tuple(map(as_key, live.values()))]
        return dataclasses.replace(model, shown=shown)

    def later(self, by: int) -> Model:
        """Return the model of the same rows `by` rows later, or raise IndexError."""
        rows = [row + by for row in self.rows]
        if any(not 0 <= row < self.extents[0] for row in rows):
            raise IndexError(f"rows {rows}")
        if self.is_gathered:
            shown = self.shown + by * math.prod(self.extents[1:])
            return dataclasses.replace(self, shown=shown, rows=rows)
        fixed, live = dict(self.fixed), dict(self.live)
        if 0 in fixed:
            fixed[0] += by
        else:
            live[0] = dataclasses.replace(live[0], start=live[0].start + by)
        return self.place(fixed, live)


def walk(axis: Axis, extent: int, item: slice) -> Axis:
    """Walk from a slice's start to its stop, inside the base buffer alone."""
    step = 1 if item.step is None else int(item.step)
    first, end = (0, axis.length) if step > 0 else (axis.length - 1, -1)
    start = axis.at(first if item.start is None else int(item.start))
    stop = axis.at(end if item.stop is None else int(item.stop))
    stride = axis.step * step
    # NumPy's rule: a start outside the buffer is moved to the buffer's end.
    start = min(max(start, 0), extent) if stride > 0 else min(max(start, -1), extent - 1)
    length, position = 0, start
    while 0 <= position < extent and (position < stop if stride > 0 else position > stop):
        length, position = length + 1, position + stride
    return Axis(start, stride, length)


def spread(index: Any, n_dims: int) -> tuple[list[Any], int | None]:
    """Return one item for each dimension, and where `...` stands that spans none of them.

    Any other `...` is filled up, and masks are the indices that they stand for.
    """
    given = list(index) if isinstance(index, tuple) else [index]
    n_given = sum(np.ndim(item) if is_mask(item) else 1 for item in given if item is not Ellipsis)
    rest = [slice(None)] * (n_dims - n_given)
    items: list[Any] = []
    split = None
    for item in given:
        if item is Ellipsis:
            split = None if rest else len(items)
            items, rest = items + rest, []
        elif is_mask(item):
            places = [place for place, is_set in np.ndenumerate(np.array(item)) if is_set]
            items += [np.array([place[n] for place in places], int) for n in range(np.ndim(item))]
        else:
            items.append(item)
    return items + rest, split


def split_at(place: int | None, key: Iterable[Any]) -> tuple[Any, ...]:
    """Return a key with the `...` that spans nothing: NumPy has arrays on its sides apart."""
    items = list(key)
    return tuple(items) if place is None else (*items[:place], ..., *items[place:])


def is_mask(item: Any) -> bool:
    return not isinstance(item, slice) and item is not Ellipsis and np.asarray(item).dtype == bool


def as_key(entry: int | Axis | NDArray[Any]) -> Any:
    """Return what NumPy calls the entry."""
    if not isinstance(entry, Axis):
        return entry
    if not entry.length:
        return slice(0, 0)
    stop = entry.at(entry.length)
    return slice(entry.start, None if stop < 0 else stop, entry.step)


def rows_of(entry: int | Axis | NDArray[Any]) -> list[int]:
    if isinstance(entry, Axis):
        return [entry.at(index) for index in range(entry.length)]
    return np.ravel(entry).tolist()


def count_batch_dims(
    entries: dict[int, Any], split: int | None, n_dims: int, n_batch_axes: int
) -> int:
    """Count the leading dimensions that stem from batch axes.

    NumPy tells where it puts them: the same kind of index goes to an array whose axes all have
    their own length. The dimensions of arrays stem from the first axis that has one.
    """
    axis_of = {11 + number: number for number in entries}
    sizes, key = [], []
    arrays = [n for n, entry in entries.items() if isinstance(entry, np.ndarray)]
    n_array_dims = max((entries[n].ndim for n in arrays), default=0)
    if arrays:
        axis_of[7] = arrays[0]
    for number, entry in entries.items():
        sizes.append(11 + number)
        if isinstance(entry, Axis):
            key.append(slice(None))
        else:
            key.append(np.zeros((7,) * n_array_dims, int) if number in arrays else 0)
    shape = np.broadcast_to(np.int8(0), sizes)[split_at(split, key)].shape
    assert len(shape) == n_dims
    is_batch = [axis_of[length] < n_batch_axes for length in shape]
    return (*is_batch, False).index(False)


# What Hypothesis draws


@st.composite
def stores(draw: st.DrawFn) -> tuple[Array, NDArray[Any], Model]:
    """Draw an Array at some point of its life, its base buffer, and the model of its window."""
    is_empty = draw(st.sampled_from([False] * 9 + [True]))
    T = draw(st.sampled_from([3, 1, 2, 4, 5, 6, 7] + [0] * is_empty))
    batch_shape = (T, *draw(st.sampled_from([(3,), (), (2,), (2, 3)] + [(0,)] * is_empty)))
    feature_shape = draw(st.sampled_from([(), (), (4,), (3, 2)] + [(0,)] * is_empty))
    padding = draw(st.sampled_from(range(T + 1)))
    full_size = T * draw(st.sampled_from([1, 2, 3]))
    kwargs: dict[str, Any] = {"padding": padding, "full_size": full_size}
    array = Array(batch_shape, np.int32, feature_shape=feature_shape, **kwargs)
    everything = array[-padding : full_size + padding]
    offset = 0
    for is_reset in draw(st.lists(st.sampled_from([False, False, False, True]), max_size=5)):
        if is_reset:
            array.reset()
            offset = full_size - T
        else:
            array.rotate()
            offset = (offset + T) % max(full_size, 1)
    base = everything.to_ndarray()
    base[...] = np.arange(base.size).reshape(base.shape)
    model = Model(base.shape, len(batch_shape), {}, {}, base, [], 0)
    others = {n: Axis(0, 1, length) for n, length in enumerate(base.shape) if n > 0}
    return array, base, model.place({}, {0: Axis(padding + offset, 1, T)} | others)


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
            kinds += [dtype, lambda index, dtype=dtype: np.array(index, dtype)]
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
    """Draw an index of the view: any mixture of what is legal."""
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
    size = math.prod(shape)
    bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    mask = np.array(bits, bool).reshape(shape)
    return draw(st.sampled_from([mask, mask.tolist()])) if size else mask


@st.composite
def views(draw: st.DrawFn) -> tuple[Array, NDArray[Any], Model]:
    """Draw a view that up to 3 indices or steps in time lead to, its base buffer and its model."""
    view, base, model = draw(stores())
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
    return view, base, model


def assert_shows(view: Array, model: Model) -> None:
    assert_array_equal(view.to_ndarray(), model.shown, strict=False)


# The law


@LAW
@given(views())
def test_a_chain_of_indices_leads_where_the_model_says(case: Any) -> None:
    view, _, model = case
    assert_shows(view, model)


@LAW
@given(views(), st.data())
def test_an_index_leads_where_the_model_says_or_raises_with_it(case: Any, data: Any) -> None:
    view, _, model = case
    assume(not model.is_gathered)
    index = data.draw(indices(model))
    try:
        expected = model[index]
    except IndexError:
        with pytest.raises(IndexError):
            view[index]
    else:
        assert_shows(view[index], expected)


@LAW
@given(views(), st.data(), st.booleans())
def test_a_write_changes_exactly_the_addressed_elements(
    case: Any, data: Any, is_scalar: bool
) -> None:
    view, base, model = case
    index = ... if model.is_gathered else data.draw(indices(model))
    expected = base.copy()
    try:
        shown = model.shown if model.is_gathered else model[index].shown
    except IndexError:
        with pytest.raises(IndexError):
            view[index] = -1
    else:
        values = np.array(-7) if is_scalar else -1 - shown
        expected.ravel()[shown] = values
        view[index] = -7 if is_scalar else values
    assert_array_equal(base, expected)


PLAIN = st.integers(-9, 9)


@LAW
@given(views(), st.one_of(PLAIN, st.tuples(PLAIN, PLAIN)), st.sampled_from([0, 1, -1]))
def test_plain_integers_go_where_the_model_says(case: Any, index: Any, by: int) -> None:
    """Python integers have a short way of their own, for reading and for writing."""
    view, base, model = case
    assume(len(model.live) >= (1 if isinstance(index, int) else 2))
    try:
        expected = model[index]
    except IndexError:
        for use in (lambda: view[index], lambda: view.__setitem__(index, -1)):
            with pytest.raises(IndexError):
                use()
        assert_array_equal(base, np.arange(base.size).reshape(base.shape))
        return
    element = view[index]
    assert_shows(element, expected)
    if by and 0 <= expected.rows[0] + by < len(base):
        expected = expected.later(by)
        element = element.next if by > 0 else element.previous
        assert_shows(element, expected)
    changed = base.copy()
    changed.ravel()[expected.shown] = -1
    element[...] = -1
    assert_array_equal(base, changed)
    changed.ravel()[model[index].shown] = -2
    view[index] = -2
    assert_array_equal(base, changed)


@LAW
@given(views(), st.sampled_from([1, -1]))
def test_next_and_previous_are_one_row_away_or_outside(case: Any, by: int) -> None:
    view, _, model = case
    name = "next" if by > 0 else "previous"
    try:
        expected = model.later(by)
    except IndexError:
        with pytest.raises(IndexError, match=name):
            getattr(view, name)
    else:
        assert_shows(getattr(view, name), expected)


@LAW
@given(views())
def test_what_a_view_tells_about_itself_agrees_with_what_it_shows(case: Any) -> None:
    view, _, model = case
    shape = model.shown.shape
    assert view.shape == shape  # asked before the elements are looked up, and after
    assert view.to_ndarray().shape == view.shape == shape
    assert (view.ndim, view.size) == (len(shape), math.prod(shape))
    assert view.nbytes == 4 * view.size
    assert view.n_batch_dims == model.n_batch_dims
    assert view.batch_shape == shape[: model.n_batch_dims]
    assert view.feature_shape == shape[model.n_batch_dims :]
    if shape:
        assert (len(view), view.first, view.last) == (shape[0], 0, shape[0] - 1)


@LAW
@given(views())
def test_a_view_without_arrays_shares_memory_and_a_gathered_one_does_not(case: Any) -> None:
    view, base, model = case
    assume(model.shown.size)
    assert np.shares_memory(view.to_ndarray(), base) is not model.is_gathered


@settings(LAW, max_examples=100)
@given(views())
def test_a_gathered_view_takes_no_further_index_but_everything(case: Any) -> None:
    view, _, model = case
    assume(model.is_gathered)
    for everything in (..., (), slice(None), (slice(None), ...)):
        if view.ndim or everything != slice(None):
            assert_shows(view[everything], model)
    for index in (0, slice(0, 1), [0], np.ones(model.shown.shape, bool)):
        with pytest.raises(IndexError):
            view[index]


# The rule in single steps, so that nobody has to trust the model


def numbered(T: int = 5, B: int = 4, **kwargs: int) -> Array:
    """Return an Array of which each element is its index: 10 * t + b."""
    array = Array((T, B), np.int32, **kwargs)
    for t in range(-array.padding, T + array.padding):
        array[t] = 10 * t + np.arange(B)
    return array


def test_a_negative_index_lies_before_the_beginning() -> None:
    array = numbered(padding=2)
    assert array[-2, 0].item() == -20
    assert array[2:5][-1, 0].item() == 10
    assert array[2:5][-4, 0].item() == -20


def test_an_index_counts_in_the_views_own_direction() -> None:
    array = numbered(padding=1)
    assert array[::-1][0, 0].item() == 40
    assert array[::-1][-1, 0].item() == 50
    assert array[1::2, 0][2].item() == 50


def test_a_slice_reaches_into_the_padding_and_is_cut_off_at_the_ends_of_the_base() -> None:
    array = numbered(padding=1)
    assert array[-1:1, 0].to_ndarray().tolist() == [-10, 0]
    assert array[-100:100, 0].to_ndarray().tolist() == [-10, 0, 10, 20, 30, 40, 50]
    assert array[100:].shape == (0, 4)
    assert array[:100, 3].to_ndarray().tolist() == [3, 13, 23, 33, 43, 53]


def test_a_slice_is_cut_off_at_a_position_of_the_base_whatever_the_views_step() -> None:
    array = numbered(padding=1)
    assert array[::2][-1:, 0].to_ndarray().tolist() == [-10, 10, 30, 50]  # from row -2, cut off
    assert array[1::2][-1:, 0].to_ndarray().tolist() == [-10, 10, 30]  # from row -1


def test_a_slice_that_begins_behind_its_end_is_empty() -> None:
    array = numbered(padding=1)
    for empty in (np.s_[-9:1:-1], np.s_[2:2], np.s_[4:1], np.s_[9:-9], np.s_[-1:-9], np.s_[9:9:-1]):
        assert array[empty].shape == array[empty].to_ndarray().shape == (0, 4)


def test_an_element_of_one_dimension_is_a_view() -> None:
    array = Array((5,), np.int32)
    element = array[2]
    assert element.shape == ()
    element[...] = 7
    element.to_ndarray()[...] += 1
    assert array.to_ndarray().tolist() == [0, 0, 8, 0, 0]


def test_the_column_of_an_element_is_counted_in_its_view() -> None:
    array = numbered(padding=1)
    assert array[:, 1:][2, 1].next.item() == 32
    assert array[:, ::-1][2, 0].previous.item() == 13
    assert array[1:, [0, 3]].next[...].to_ndarray().tolist()[0] == [20, 23]


def test_columns_have_no_padding() -> None:
    array = numbered(padding=1)
    with pytest.raises(IndexError):
        array[0, -1]
    with pytest.raises(IndexError):
        array[0, 4]
    assert array[0, 1:3][-1].item() == 0


def test_an_integer_of_an_earlier_index_does_not_join_the_arrays_of_a_later_one() -> None:
    array = Array((2, 3, 4), np.int32)
    assert array[0][:, [0, 1]].shape == np.zeros((2, 3, 4))[0][:, [0, 1]].shape == (3, 2)
    assert array[0, :, [0, 1]].shape == np.zeros((2, 3, 4))[0, :, [0, 1]].shape == (2, 3)


def test_next_keeps_an_integer_beside_arrays_joined_to_them() -> None:
    array = Array((3, 4), np.int32, feature_shape=(5,))
    view = array[0, :, [0, 1, 2]]
    assert view.next.shape == view.next.to_ndarray().shape == view.shape == (3, 4)
    assert view.next.batch_shape == view.batch_shape


def test_arrays_apart_bring_their_dimensions_to_the_front() -> None:
    array = Array((3, 4, 5), np.int32)
    assert array[[[0], [1]], :, [0, 1]].shape == (2, 2, 4)
    assert array[:, [0, 1], [2, 3]].shape == (3, 2)


def test_an_ellipsis_of_no_dimension_sets_arrays_apart_as_in_numpy() -> None:
    array, ndarray = Array((3, 4, 5), np.int32), np.zeros((3, 4, 5))
    assert array[:, [0, 1], [2, 3]].shape == ndarray[:, [0, 1], [2, 3]].shape == (3, 2)
    view = array[:, [0, 1], ..., [2, 3]]
    assert view.shape == ndarray[:, [0, 1], ..., [2, 3]].shape == (2, 3)
    assert view.to_ndarray().shape == (2, 3)


def test_dimensions_of_arrays_on_features_are_no_batch_dimensions_at_the_front() -> None:
    array = Array((2, 3), np.int32, feature_shape=(4, 5, 6))
    view = array[:, :, [0, 1], :, [0, 1]]
    assert (view.batch_shape, view.feature_shape) == ((), (2, 2, 3, 5))


def test_arrays_on_batch_axes_make_batch_dimensions() -> None:
    array = Array((5, 4), np.int32, feature_shape=(3,))
    assert array[[0, 1, 2], [0, 1, 2]].batch_shape == (3,)
    assert array[[[0], [1]], [0, 1, 2]].batch_shape == (2, 3)
    assert array[np.ones((5, 4), bool)].batch_shape == (20,)
    assert array[2, [0, 1]].batch_shape == (2,)


def test_an_integer_beside_an_array_on_features_makes_no_batch_dimension() -> None:
    array = Array((5,), np.int32, feature_shape=(3,))
    assert array[2, [0, 1]].batch_shape == array[2][[0, 1]].batch_shape == ()


# Errors


@pytest.mark.parametrize(
    "index",
    [
        *(None, np.newaxis, True, np.True_, 1.0, np.float32(1), "0", b"0", 1j, object()),
        *({0: 1}, {0}, [0.5], ["a"], [None], (0, None), (0, True), np.array(True), (slice(0), "x")),
        *(FAR * np.ones(1, object), np.zeros(2), [[0.0]]),
    ],
)
def test_an_index_of_another_kind_raises_index_error(index: Any) -> None:
    array = numbered()
    with pytest.raises(IndexError, match="expected integers"):
        array[index]
    with pytest.raises(IndexError, match="expected integers"):
        array[index] = 0


@pytest.mark.parametrize("index", [5, -2, (0, 4), (0, -1), [0, 5], (slice(None), [0, 4]), (0, [4])])
def test_an_integer_outside_the_base_raises_index_error(index: Any) -> None:
    array = numbered(padding=1)
    index = 6 if isinstance(index, int) and index > 0 else index
    index = [0, 6] if isinstance(index, list) else index
    with pytest.raises(IndexError, match="outside the base buffer"):
        array[index]
    with pytest.raises(IndexError, match="outside the base buffer"):
        array[index] = 0


@pytest.mark.parametrize("start", range(-2, 7))
@pytest.mark.parametrize("step", [1, 2, 3, -1, -2, -3])
def test_the_error_of_an_integer_outside_tells_the_ends_that_are_legal(
    start: int, step: int
) -> None:
    view = numbered(padding=2)[start::step]
    with pytest.raises(IndexError) as caught:
        view[FAR]
    at_least, at_most = map(
        int, str(caught.value).split("expected ")[1].split(",")[0].split(" to ")
    )
    for index in (at_least, at_most):
        view[index]
    for index in (at_least - 1, at_most + 1, [at_least - 1], [at_most + 1]):
        with pytest.raises(IndexError):
            view[index]


@pytest.mark.parametrize(
    "index",
    [
        *(FAR, -FAR, (FAR, [0]), ([0], FAR), 2**62, [2**62], [-(2**62)]),
        *(np.array([2**63 - 1]), np.array([2**64 - 1], np.uint64), np.array([2**63], np.uint64)),
        np.uint64(2**64 - 1),
    ],
)
def test_a_huge_integer_is_outside_and_never_wraps_around(index: Any) -> None:
    array = Array((8, 8), np.int32, padding=1)
    for view in (array, array[::4], array[::4, ::4], array[::-2]):
        with pytest.raises(IndexError):
            view[index]


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ((0, 0, 0), "too many indices"),
        ((..., 0, 0, 0), "too many indices"),
        ((..., ...), "twice|2 times"),
        (np.ones(4, bool), r"mask: got shape \(4,\), expected \(5,\)"),
        (np.ones((5, 3), bool), r"mask: got shape \(5, 3\), expected \(5, 4\)"),
        ((0, np.ones(5, bool)), r"mask: got shape \(5,\), expected \(4,\)"),
        (np.ones((5, 4, 1), bool), "too many indices"),
        ([True, False], "mask: got shape"),
        (([0, 1], [0, 1, 2]), r"shapes \(2,\) and \(3,\)"),
        ((np.ones(5, bool), np.ones(4, bool)), r"shapes \(5,\) and \(4,\)"),
    ],
)
def test_an_index_of_a_wrong_shape_raises_index_error(index: Any, what: str) -> None:
    array = numbered()
    with pytest.raises(IndexError, match=what):
        array[index]
    with pytest.raises(IndexError, match=what):
        array[index] = 0


def test_a_step_of_zero_raises_value_error() -> None:
    with pytest.raises(ValueError, match="step"):
        numbered()[::0]


def test_other_things_that_numpy_takes_for_integers_are_taken() -> None:
    torch = pytest.importorskip("torch")
    array = numbered()
    steps = Array.from_numpy([1, 3])
    assert array[torch.tensor(2), torch.tensor([1, 2])].to_ndarray().tolist() == [21, 22]
    assert array[torch.arange(5) == 2].to_ndarray().tolist() == [[20, 21, 22, 23]]
    assert array[steps, 0].to_ndarray().tolist() == [10, 30]
    assert array[steps[0], 0].item() == 10
    assert array[[]].shape == (0, 4)
    assert array[range(2), 0].to_ndarray().tolist() == [0, 10]

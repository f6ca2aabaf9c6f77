"""ArrayIndexContract: the law of indices, held against a model of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from parllel.arrays import Array
from parllel.testing.contracts.array_case import ArrayCase
from parllel.testing.contracts.index_examples import Case, indices, integer_arrays, views
from parllel.testing.contracts.index_model import Model

PLAIN = st.integers(-9, 9)


class ArrayIndexContract(ArrayCase):
    """Indices lead to the elements that the model names, for reading and for writing."""

    def assert_follows(self, view: Array, model: Model) -> None:
        """Check that a view shows the elements that its model names."""
        self.assert_shows(view, model.shown)

    # The law

    def test_a_chain_of_indices_leads_where_the_model_says(self) -> None:
        def law(case: Case) -> None:
            self.assert_follows(case.view, case.model)

        self.hold(law, views(self))

    def test_an_index_leads_where_the_model_says_or_raises_with_it(self) -> None:
        def law(case: Case, data: st.DataObject) -> None:
            assume(not case.model.is_gathered)
            index = data.draw(indices(case.model))
            try:
                expected = case.model[index]
            except IndexError:
                with pytest.raises(IndexError):
                    case.view[index]
            else:
                self.assert_follows(case.view[index], expected)

        self.hold(law, views(self), st.data())

    def test_a_write_changes_exactly_the_addressed_elements(self) -> None:
        def law(case: Case, data: st.DataObject, is_scalar: bool) -> None:
            view, base, model = case
            index = ... if model.is_gathered else data.draw(indices(model))
            expected = self.read(base).copy()
            try:
                shown = model.shown if model.is_gathered else model[index].shown
            except IndexError:
                with pytest.raises(IndexError):
                    view[index] = -1
            else:
                values = np.array(-7) if is_scalar else -1 - shown
                expected.ravel()[shown] = values
                view[index] = -7 if is_scalar else values
            self.assert_shows(base, expected)

        self.hold(law, views(self), st.data(), st.booleans())

    def test_plain_integers_go_where_the_model_says(self) -> None:
        def law(case: Case, index: object, by: int) -> None:
            """Python integers have a short way of their own, for reading and for writing."""
            view, base, model = case
            assume(len(model.live) >= (1 if isinstance(index, int) else 2))
            before = self.read(base).copy()
            try:
                expected = model[index]
            except IndexError:
                for use in (lambda: view[index], lambda: view.__setitem__(index, -1)):
                    with pytest.raises(IndexError):
                        use()
                self.assert_shows(base, before)
                return
            element = view[index]
            self.assert_follows(element, expected)
            if by and 0 <= expected.rows[0] + by < len(base):
                expected = expected.later(by)
                element = element.next if by > 0 else element.previous
                self.assert_follows(element, expected)
            changed = before
            changed.ravel()[expected.shown] = -1
            element[...] = -1
            self.assert_shows(base, changed)
            changed.ravel()[model[index].shown] = -2
            view[index] = -2
            self.assert_shows(base, changed)

        plain = st.one_of(PLAIN, st.tuples(PLAIN, PLAIN))
        self.hold(law, views(self), plain, st.sampled_from([0, 1, -1]))

    def test_next_and_previous_are_one_row_away_or_outside(self) -> None:
        def law(case: Case, by: int) -> None:
            name = "next" if by > 0 else "previous"
            try:
                expected = case.model.later(by)
            except IndexError:
                with pytest.raises(IndexError, match=name):
                    getattr(case.view, name)
            else:
                self.assert_follows(getattr(case.view, name), expected)

        self.hold(law, views(self), st.sampled_from([1, -1]))

    def test_what_a_view_tells_about_itself_agrees_with_what_it_shows(self) -> None:
        def law(case: Case) -> None:
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

        self.hold(law, views(self))

    def test_a_view_without_arrays_shares_memory_and_a_gathered_one_does_not(self) -> None:
        def law(case: Case) -> None:
            view, base, model = case
            assume(model.shown.size)
            if self.is_on_host:
                is_shared = np.shares_memory(view.to_ndarray(), base.to_ndarray())
                assert is_shared is not model.is_gathered
            if self.is_for_gpu:
                address, first = (array.to_cupy().data.ptr for array in (view, base))
                is_inside = first <= address < first + base.nbytes
                assert is_inside is hasattr(view, "__cuda_array_interface__")
                assert is_inside is not model.is_gathered

        self.hold(law, views(self))

    def test_a_gathered_view_takes_no_further_index_but_everything(self) -> None:
        def law(case: Case, data: st.DataObject) -> None:
            view, _, model = case
            if not model.is_gathered:
                assume(model.live)
                number, axis = next(iter(model.live.items()))
                index = data.draw(integer_arrays(axis, model.extents[number], (3,)))
                assume(is_legal(model, index))
                view, model = view[index], model[index]
            for everything in (..., (), slice(None), (slice(None), ...)):
                if view.ndim or everything != slice(None):
                    self.assert_follows(view[everything], model)
            for further in (0, slice(0, 1), [0], np.ones(model.shown.shape, bool)):
                with pytest.raises(IndexError):
                    view[further]

        self.hold(law, views(self), st.data())


def is_legal(model: Model, index: object) -> bool:
    """Tell whether a view has an index."""
    try:
        model[index]
    except IndexError:
        return False
    return True

"""SequenceReplayBuffer: the windows of a ring, held against a plain list of steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_list import Chances, Model, Shape, chances, shapes
from window_list import Form, assert_is, forms, in_ring, make_kind, read_windows, windows_of


def assert_holds_the_list(model: Model, form: Form) -> None:
    """Draw so many that each window comes; each has to be the list's."""
    expected = windows_of(model, form)
    if not expected:
        with pytest.raises(RuntimeError, match=r"replay: (\d+ steps of each|no window of)"):
            model.replay.sample(4)
        return
    # 60 windows at most: one of them is missing with a probability below 60 * exp(-25).
    assert len(expected) <= 60
    found = read_windows(model.replay.sample(1500), model, form)
    assert found.keys() == expected.keys()
    for index, rows in expected.items():
        assert_is(found[index], rows, model)


@given(case=st.tuples(shapes, forms).map(in_ring), chances=chances, seed=st.integers(0, 99))
def test_what_is_sampled_is_what_the_list_has(
    case: tuple[Shape, Form], chances: Chances, seed: int
) -> None:
    shape, form = case
    model = Model(shape, chances, seed=seed, kind=make_kind(form))
    assert_holds_the_list(model, form)
    for _ in range(3 * shape.n_windows):
        if model.rng.integers(10) < chances.reset:
            model.reset()
        model.write_batch()
        assert_holds_the_list(model, form)

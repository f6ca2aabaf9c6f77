"""Steps that are no transitions: compiled, and thread by thread, against plain loops."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parllel.kernels import valid_steps
from parllel.kernels.targets import Axes, launch_plainly
from parllel.ops.valid_steps import clear_steps, cut_episodes

FLAGS = ("valid", "terminated", "truncated")


def make(steps: int, width: int, seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {
        name: rng.random((steps, width)) < chance
        for name, chance in zip(FLAGS, (0.6, 0.2, 0.2), strict=True)
    }
    arrays["value"] = rng.standard_normal((steps + 1, width), np.float32)
    arrays["final_value"] = np.full((steps, width), np.nan, np.float32)
    return arrays


def outputs_of(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    shape = arrays["valid"].shape
    floats = np.full(shape, 7, np.float32)
    return {"out_truncated": np.zeros(shape, bool), "out_final_value": floats}


def addresses(*arrays: NDArray[Any]) -> list[int]:
    return [array.ctypes.data for array in arrays]


@given(
    steps=st.integers(1, 9),
    width=st.integers(1, 4),
    seed=st.integers(0, 99),
    n_threads=st.sampled_from([None, 1, 3]),
)
def test_episodes_end_before_steps_that_are_not_valid(
    steps: int, width: int, seed: int, n_threads: int | None
) -> None:
    """Compiled, and as plain Python on a grid of any size; results are cleared in the same way."""
    arrays = make(steps, width, seed)
    valid, terminated, truncated, value, _ = arrays.values()
    flags, values = truncated.copy(), arrays["final_value"].copy()
    for t in range(steps - 1):
        for b in range(width):
            if valid[t, b] and not valid[t + 1, b] and not (terminated | truncated)[t, b]:
                flags[t, b], values[t, b] = True, value[t + 1, b]
    out, results = outputs_of(arrays), np.ones((2, steps, width), np.float32)
    if n_threads is None:
        cut_episodes(**arrays, **out)
        clear_steps(valid, out_advantage=results[0], out_return=results[1])
    else:
        grid = {"grid": Axes(2, 1), "block": Axes(n_threads, 1)}
        places = addresses(*arrays.values()), addresses(*out.values())
        launch_plainly(valid_steps.CUT, (*places[0], width, valid.size, *places[1]), **grid)
        arguments = addresses(valid)[0], valid.size, *addresses(*results)
        launch_plainly(valid_steps.CLEAR, arguments, **grid)
    np.testing.assert_array_equal(out["out_truncated"], flags)
    np.testing.assert_array_equal(out["out_final_value"], values)
    assert (results == valid).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_is_written_of_no_step(shape: tuple[int, int]) -> None:
    arrays = make(*shape, seed=0)
    cut_episodes(**arrays, **outputs_of(arrays))
    results = np.empty((2, *shape), np.float32)
    clear_steps(arrays["valid"], out_advantage=results[0], out_return=results[1])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("value", np.zeros((3, 2), np.float32), "value: shape (3, 2), expected (4, 2)"),
        ("valid", np.ones((3, 2), np.uint8), "valid: dtype uint8, expected bool"),
        ("out_final_value", np.zeros((3, 4), np.float32)[:, ::2], "out_final_value: strides"),
        ("out_truncated", np.zeros((1, 2), bool), "out_truncated: shape (1, 2), expected (3, 2)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, wrong: NDArray[Any], message: str) -> None:
    arrays = make(3, 2, seed=0)
    given = {**arrays, **outputs_of(arrays), name: wrong}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        cut_episodes(**given)


def test_an_output_over_an_input_is_refused() -> None:
    arrays = make(3, 2, seed=0)
    with pytest.raises(ValueError, match=r"^out_truncated: overlaps truncated"):
        cut_episodes(**arrays, **{**outputs_of(arrays), "out_truncated": arrays["truncated"]})

"""StepCopy: what it keeps, what it converts, and what it refuses."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, cuda
from parllel.cages import MisfitError
from parllel.samplers.step_copy import Place, StepCopy
from parllel.testing.device_envs import put_tensor
from parllel.testing.simulated_cuda import simulated_cuda

T, B = 3, 2
on_a_device = pytest.mark.usefixtures("cuda_device")


def make_copy(dtype: Any = np.float32, storage: str = "device") -> tuple[Array, StepCopy]:
    leaf = Array((T, B), dtype, feature_shape=(2,), storage=storage)
    copy = StepCopy([Place(("x",), leaf)], T)
    copy.begin_batch()
    return leaf, copy


def test_what_a_launch_reads_stays_until_it_ran() -> None:
    with simulated_cuda("lazy"):
        leaf, copy = make_copy()
        value = put_tensor(np.full((B, 2), 5, np.float32), "gpu")
        read = weakref.ref(value)
        copy.run(0, [value])
        del value
        gc.collect()
        assert read() is not None  # another library would give the memory to its next array
        cuda.synchronize()
        copy.run(1, [cuda.to_device(np.zeros((B, 2), np.float32))])
        gc.collect()
        assert read() is None
        assert leaf[0].to_ndarray().tolist() == [[5, 5]] * B
        copy.close()


@on_a_device
@pytest.mark.parametrize("storage", ["device", "local"])
def test_values_in_other_forms_are_converted(storage: str) -> None:
    side: Any = "gpu" if storage == "device" else "host"
    table = np.arange(4 * B).reshape(B, 4)
    forms = {
        "wider": put_tensor(table[:, :2].astype(np.float64), side),
        "with gaps": put_tensor(table.astype(np.float32), side)[:, ::2],
        "short": put_tensor(table[:, :2].astype(np.float32), side).to(torch.bfloat16),
        "with a gradient": put_tensor(table[:, :2].astype(np.float32), side).requires_grad_(),
        "of the host": table[:, :2].astype(np.float32),
    }
    for form, value in forms.items():
        leaf, copy = make_copy(storage=storage)
        copy.run(1, [value])
        expected = table[:, ::2] if form == "with gaps" else table[:, :2]
        assert leaf.to_ndarray()[1].tolist() == expected.tolist(), form
        assert not leaf.to_ndarray()[[0, 2]].any(), form
        copy.close()


@on_a_device
@pytest.mark.parametrize("storage", ["device", "local"])
@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (bool, np.zeros((B, 2), np.float32), "x: got float32, expected bool, as the tree has it"),
        (np.int32, np.zeros((B, 2), np.float64), "x: got float64, expected int32"),
        (
            np.float32,
            np.zeros((B, 1), np.float32),
            r"x: got shape \(2, 1\), expected shape \(2, 2\)",
        ),
        (
            np.float32,
            np.zeros((1, 2), np.float32),
            r"x: got shape \(1, 2\), expected shape \(2, 2\)",
        ),
        (np.float32, np.zeros(2, np.float32), r"x: got shape \(2,\), expected shape \(2, 2\)"),
    ],
)
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_nothing_is_broadcast_or_loses_its_kind(
    storage: str, dtype: Any, value: Any, message: str, is_elsewhere: bool
) -> None:
    leaf, copy = make_copy(dtype, storage)
    if (storage == "device") is not is_elsewhere:
        value = put_tensor(value, "gpu")
    with pytest.raises(MisfitError, match=message):
        copy.run(0, [value])
    assert not leaf.to_ndarray().any()
    copy.close()


@on_a_device
def test_a_place_follows_its_window() -> None:
    leaf = Array((T, B), np.int32, storage="device", full_size=3 * T, padding=1)
    copy = StepCopy([Place(("x",), leaf, shift=1)], T)
    for batch in range(4):
        leaf.rotate()
        copy.begin_batch()
        for t in range(T):
            copy.run(t, [put_tensor(np.full(B, 10 * batch + t, np.int32), "gpu")])
        rows = [leaf[t].to_ndarray()[0] for t in range(1, T + 1)]
        assert rows == [10 * batch + t for t in range(T)]
    copy.close()


def test_a_table_goes_when_the_launch_has_read_it() -> None:
    with simulated_cuda("lazy") as simulation:
        leaf, copy = make_copy()
        copy.run(0, [cuda.to_device(np.full((B, 2), 5, np.float32))])
        assert simulation.n_pending > 0
        del copy
        gc.collect()
        assert simulation.n_pending == 0  # before the page-locked memory is given back
        assert leaf[0].to_ndarray().tolist() == [[5, 5]] * B

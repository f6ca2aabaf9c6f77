"""ArrayWritingContract: the values that can be written into Arrays, and how they arrive."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from parllel.arrays import Array, Leaf
from parllel.storages import KINDS
from parllel.testing.contracts.array_case import ArrayCase

VALUES: list[Callable[[ArrayCase], Any]] = [
    *(lambda _, value=value: value for value in (3, 2.5, True, np.float32(1.5), np.int8(-3))),
    *(lambda _, value=value: value for value in ([1, 2, 3, 4], (1, 2, 3, 4), range(4), [[8]])),
    lambda _: [[5], [6], [7]],
    lambda _: np.array(4.0),
    lambda _: np.array([[[8]]]),
    lambda _: np.arange(12).reshape(3, 4),
    lambda _: np.arange(12.0).reshape(3, 4),
    lambda _: np.eye(3, 4, dtype=bool),
    lambda _: np.arange(24, dtype="f8").reshape(4, 6)[:3, ::-2].repeat(2, 1)[:, :4],
    lambda _: np.ones(4, ">f4"),
    lambda _: torch.tensor(4.0),
    lambda _: torch.arange(4),
    lambda _: torch.ones(3, 4, dtype=torch.bfloat16),
    lambda _: torch.ones(4, dtype=torch.half),
    lambda _: torch.ones(4, requires_grad=True),
    lambda _: torch.nn.Parameter(torch.ones(3, 4)),
    lambda _: torch.ones(4) > 0,
    lambda _: torch.arange(12.0).reshape(4, 3).T,
    lambda _: torch.ones(4).double(),
    lambda _: torch.eye(4)[:3],
    lambda case: case.counted(3),
    lambda case: case.counted(3)[1],
    lambda case: case.counted(3)[:, 2:3],
    lambda case: case.counted(3)[::-1, ::-1],
    lambda case: case.counted(5)[[4, 2, 0]],
    lambda case: case.counted(3)[0, 3],
    lambda case: case.counted(3).to_torch()[:, :1],
    lambda _: ArrayCase().counted(3)[1:2],
    lambda _: [torch.tensor(1.0), 2, 3, 4],
    lambda _: [np.arange(4), np.ones(4), np.zeros(4)],
    lambda _: [[0, 1, 2, 3]] * 3,
]


class OnlyDLPack:
    """Hands its memory out through DLPack and in no other way."""

    def __init__(self, owner: Leaf) -> None:
        self._owner = owner

    def __dlpack__(self, **options: Any) -> Any:
        return self._owner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._owner.__dlpack_device__()
        return device


def as_ndarray(value: object) -> NDArray[Any]:
    """Return the array that NumPy would write for a value."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().cpu().numpy()
    return value.to_ndarray() if isinstance(value, Array) else np.asarray(value)


class ArrayWritingContract(ArrayCase):
    """Values of any library are written into Arrays by NumPy's rules."""

    @pytest.mark.parametrize("make_value", VALUES)
    def test_anything_that_looks_like_an_array_can_be_written(
        self, make_value: Callable[[ArrayCase], Any]
    ) -> None:
        array, value = self.counted(), make_value(self)
        expected, plain = self.read(array).copy(), as_ndarray(value)
        for index in ((slice(1, 4),), (slice(3, 0, -1),), ([0, 2, 4],), (np.arange(5) % 2 == 0,)):
            array[index] = value
            expected[index] = plain
            self.assert_shows(array, expected)
        if plain.size == 1:
            array[2, 3] = array[0, 0][...] = plain.item()
            array[1, 1] = value if plain.ndim == 0 else 0
            for place in ((2, 3), (0, 0), (1, 1)):
                expected[place] = plain.item() if place != (1, 1) or plain.ndim == 0 else 0
            self.assert_shows(array, expected)
        if plain.ndim == 1:
            array[2] = value
            self.assert_shows(array[2], plain)

    def test_tensors_of_every_float_and_bool_arrive_exactly(self) -> None:
        values = [0.5, -1.25, 96.0, 0.0]
        array = self.array((4,))
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            array[...] = torch.tensor(values, dtype=dtype)
            self.assert_shows(array, values)
        flags = self.array((4,), bool)
        flags[...] = torch.tensor(values) > 0
        self.assert_shows(flags, [True, False, True, False])
        complex_array = self.array((2,), np.complex64)
        complex_array[...] = torch.tensor([1 + 2j, 3j]).conj()
        self.assert_shows(complex_array, [1 - 2j, -3j])

    def test_a_value_is_cast_as_numpy_casts_it(self) -> None:
        values = np.array([0.0, 1.9, -2.9, 100.0])
        for dtype in ("i8", "u1", "?", "f2", "c8"):
            array = self.array((4,), dtype)
            positive = np.abs(values) if dtype == "u1" else values
            array[...] = positive
            self.assert_shows(array, positive.astype(dtype))

    @pytest.mark.parametrize("as_owner", [np.asarray, torch.tensor, Array.from_numpy])
    def test_objects_that_know_only_dlpack_can_be_written(
        self, as_owner: Callable[[Any], Any]
    ) -> None:
        array, owner = self.array((2, 4)), as_owner([0.0, 1.0, 2.0, 3.0])
        array[1] = OnlyDLPack(owner)
        array[0, ::-1] = OnlyDLPack(owner)
        self.assert_shows(array, [[3, 2, 1, 0], [0, 1, 2, 3]])

    @pytest.mark.parametrize("is_other_written", [False, True])
    def test_an_array_and_one_in_memory_of_another_kind_are_written_from_each_other(
        self, is_other_written: bool
    ) -> None:
        own = {"local", "shared", "inherited", self.storage}
        for kind in KINDS if self.is_for_gpu else own:
            one, other = self.counted(), Array((5, 4), np.float32, storage=kind)
            other[...] = np.arange(20, 40).reshape(5, 4)
            target, source = (other, one) if is_other_written else (one, other)
            expected = self.read(target).copy()
            target[1:3] = source[3:]
            target[[0, 4]] = source[2]
            target[3, ::-1] = source[[0, 1, 2, 3], [0, 0, 0, 0]]
            values = self.read(source)
            expected[1:3], expected[[0, 4]] = values[3:], values[2]
            expected[3, ::-1] = values[:4, 0]
            self.assert_shows(target, expected)

    @pytest.mark.parametrize(
        ("to", "source"),
        [
            (np.s_[1:], np.s_[:4]),
            (np.s_[:4], np.s_[1:]),
            (np.s_[...], np.s_[::-1]),
            (np.s_[:, 1:], np.s_[:, :3]),
            (np.s_[[0, 1, 2]], np.s_[[1, 2, 0]]),
            (np.s_[[4, 3, 2]], np.s_[0:3]),
            (np.s_[2:5], np.s_[[0, 2, 4]]),
            (np.s_[...], np.s_[0]),
            (np.s_[...], np.s_[...]),
        ],
    )
    @pytest.mark.parametrize("is_tensor", [False, True])
    def test_overlapping_memory_is_written_as_if_copied_first(
        self, is_tensor: bool, to: Any, source: Any
    ) -> None:
        array = self.counted()
        expected = self.read(array).copy()
        if is_tensor and source == np.s_[::-1]:
            source = np.s_[:]  # torch knows no negative step
        array[to] = array[source].to_torch() if is_tensor else array[source]
        expected[to] = expected[source].copy()
        self.assert_shows(array, expected)

    def test_item_assignment_works_as_an_operator(self) -> None:
        array = self.counted()
        set_item: Callable[..., None] = operator.setitem  # its types know no Array
        set_item(array[np.array([1, 3]), np.array([0, 2])], ..., 42)
        assert [array[1, 0].item(), array[3, 2].item()] == [42, 42]
        assert (self.read(array) == 42).sum() == 2

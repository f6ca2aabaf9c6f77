"""PointCloud, the space of clouds of points: a space as gymnasium's own."""

import copy
import json
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from parllel.cages import PointCloud


def test_samples_are_members_with_all_numbers_of_points() -> None:
    space = PointCloud(5, (2, 3), min_points=2, low=-1, high=[1, 2, 3], seed=0)
    samples = [space.sample() for _ in range(100)]
    assert all(each in space for each in samples)
    assert {len(each) for each in samples} == {2, 3, 4, 5}
    most = np.concatenate(samples).max(axis=(0, 1))
    assert most[2] > most[1] > most[0] > 0.9
    assert np.concatenate(samples).min() < -0.9


def test_the_same_seed_draws_the_same_clouds() -> None:
    one, other = PointCloud(9, seed=3), PointCloud(9)
    other.seed(3)
    for _ in range(5):
        np.testing.assert_array_equal(one.sample(), other.sample())
    assert not np.array_equal(one.sample(), PointCloud(9, seed=4).sample())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
def test_points_have_the_dtype_of_the_space_and_its_bounds_by_default(dtype: type) -> None:
    space = PointCloud(4, (), dtype, min_points=4, seed=0)
    assert space.sample().dtype == dtype
    assert space.sample().shape == (4,)
    assert space.sample() in space


def test_what_is_no_member() -> None:
    space = PointCloud(4, (2,), min_points=1, low=0, high=1)
    inside = np.full((3, 2), 0.5, np.float32)
    assert inside in space
    outside = {
        "too many": np.full((5, 2), 0.5, np.float32),
        "too few": inside[:0],
        "wide": np.full((3, 3), 0.5, np.float32),
        "flat": np.full(3, 0.5, np.float32),
        "of floats that lose": inside.astype(np.float64),
        "below": inside - 1,
        "above": inside + 1,
        "NaN": inside * np.nan,
        "a list": inside.tolist(),
        "no cloud": np.float32(3),
    }
    assert [name for name, value in outside.items() if value in space] == []
    assert inside.astype(np.float16) in space  # as in a Box


def test_an_empty_cloud_is_one() -> None:
    space = PointCloud(0, (3,))
    assert space.sample().shape == (0, 3)
    assert space.sample() in space
    assert space.from_jsonable(space.to_jsonable([space.sample()]))[0].shape == (0, 3)


def test_clouds_come_back_from_json_and_spaces_from_copies() -> None:
    space = PointCloud(6, (2,), min_points=1, seed=0)
    clouds = [space.sample(), space.sample()]
    found = space.from_jsonable(json.loads(json.dumps(space.to_jsonable(clouds))))
    for one, other in zip(clouds, found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert other in space
    for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert twin == space
        np.testing.assert_array_equal(twin.sample(), copy.deepcopy(space).sample())


def test_spaces_differ_by_each_argument() -> None:
    space = PointCloud(6, (2,))
    assert space == PointCloud(6, (2,), seed=5)
    others = [
        PointCloud(7, (2,)),
        PointCloud(6, (3,)),
        PointCloud(6, (2,), np.float64),
        PointCloud(6, (2,), min_points=1),
        PointCloud(6, (2,), low=0),
        PointCloud(6, (2,), high=9),
        gym.spaces.Box(0, 1),
    ]
    assert [other for other in others if space == other] == []
    assert not space.is_np_flattenable
    assert "0 to 6 points" in repr(space)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="min_points: got 7, expected from 0 to max_points, 6"):
        PointCloud(6, min_points=7)
    with pytest.raises(ValueError, match="min_points: got -1"):
        PointCloud(6, min_points=-1)
    with pytest.raises(TypeError):
        PointCloud(2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype: got bool"):
        PointCloud(6, dtype=bool)
    with pytest.raises(ValueError, match="broadcast"):
        PointCloud(6, (2,), low=[0, 0, 0])
    with pytest.raises(ValueError, match="mask"):
        PointCloud(6).sample(mask=np.ones(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "name", "bound"),
    [("int32", "low", 0.5), ("uint8", "low", -1), ("float32", "high", 1e300)],
)
def test_bounds_that_the_dtype_cannot_hold_are_refused(dtype: str, name: str, bound: float) -> None:
    bounds: Any = {name: bound}
    with pytest.raises(ValueError, match=f"{name}: got .*expected a number of {dtype}"):
        PointCloud(6, (2,), dtype, **bounds)

"""Named values for one step of the contract's tree, in all forms that trees are written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from parllel.arrays import Array
from parllel.tree import ArrayDict


@dataclass(frozen=True)
class Moves:
    """The actions of a step, as a dataclass."""

    pinky: Any
    the_brain: Any


@dataclass(frozen=True)
class Step:
    """A step, as a dataclass."""

    observation: Any
    action: Any
    done: Any


class MovesTuple(NamedTuple):
    """The actions, in another order than the tree's: names count, places don't."""

    the_brain: Any
    pinky: Any


class StepTuple(NamedTuple):
    """A step, as a named tuple."""

    observation: Any
    action: MovesTuple
    done: Any


def new_values(B: int) -> dict[str, Any]:
    """Return values for a step of `B` environments."""
    rng = np.random.default_rng(1)
    return {
        "observation": rng.random((B, 4), np.float32),
        "action": {
            "pinky": rng.integers(0, 100, B),
            "the_brain": rng.random((B, 2), np.float32),
        },
        "done": rng.random(B) < 0.5,
    }


def as_dataclass(values: dict[str, Any]) -> Step:
    """Return values as dataclasses."""
    return Step(values["observation"], Moves(**values["action"]), values["done"])


def as_named_tuple(values: dict[str, Any]) -> StepTuple:
    """Return values as named tuples."""
    return StepTuple(values["observation"], MovesTuple(**values["action"]), values["done"])


def as_tensors(values: dict[str, Any]) -> ArrayDict:
    """Return values as a tree of tensors."""
    return ArrayDict(values).apply(torch.from_numpy)


def as_arrays(values: dict[str, Any]) -> ArrayDict:
    """Return values as a tree of Arrays in local memory."""
    return ArrayDict(values).apply(Array.from_numpy, force_32bit=False)


def reversed_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return values under names in the opposite order."""
    return dict(reversed(values.items()))


CONVERTERS: tuple[Callable[[dict[str, Any]], Any], ...] = (
    *(dict, ArrayDict, as_dataclass, as_named_tuple, as_tensors, as_arrays, reversed_names),
)

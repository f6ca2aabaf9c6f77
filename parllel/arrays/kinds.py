"""The kinds of Array that the package has: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import DTypeLike

from parllel.arrays.array_spec import ArraySpec
from parllel.arrays.frame_array import FrameSpec
from parllel.arrays.frame_buffer import Fill
from parllel.arrays.jagged_array import JaggedSpec

KINDS: tuple[type[ArraySpec], ...] = (ArraySpec, FrameSpec, JaggedSpec)


def spec_from_entry(
    entry: Mapping[str, Any], dtype: DTypeLike, kinds: Iterable[type[ArraySpec]] = ()
) -> ArraySpec:
    """Return the spec of an Array that was saved.

    Args:
        entry: result of `ArraySpec.to_entry`, read from JSON.
        dtype: type of the elements.
        kinds: the spec's classes of kinds of Array that are not in the package.

    Raises:
        KeyError, TypeError, ValueError: it is no such entry, or its kind is unknown.
    """
    known = {each.kind: each for each in (*KINDS, *kinds)}
    arguments = dict(entry)
    kind = arguments.pop("kind")
    if kind not in known:
        raise ValueError(
            f"kind of Array: got {kind!r}, expected one of {sorted(known)}; give the"
            " spec's class of another kind as kinds=(...,)"
        )
    return known[kind].of(dtype=dtype, **arguments)


def stacked_spec(spec: ArraySpec, fill: Fill, n_agent_dims: int = 0) -> ArraySpec:
    """Return the spec of an Array that stores each frame of its stacks once.

    Args:
        spec: spec of a plain Array, whose samples are stacks, [stack, *frame_shape].
        fill: content of a stack before the beginning of its episode, "first" or "zero".
        n_agent_dims: number of dimensions of a sample before those of a stack: 1 where samples are
            those of several agents, [N, stack, *frame_shape].

    Raises:
        ValueError: samples are single numbers; or fill is another word.
    """
    return FrameSpec.of_stacks(spec, fill, n_agent_dims)

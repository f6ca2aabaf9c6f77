"""The kinds of Array that the package has: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import DTypeLike

from parllel.arrays.frame_array import FrameSpec
from parllel.arrays.frame_buffer import Fill
from parllel.arrays.spec import ArraySpec

KINDS: tuple[type[ArraySpec], ...] = (ArraySpec, FrameSpec)


def spec_from_entry(
    entry: Mapping[str, Any], dtype: DTypeLike, kinds: Iterable[type[ArraySpec]] = ()
) -> ArraySpec:
    """Return the spec of an Array that was saved.

    Args:
        entry: what `ArraySpec.to_entry` returned, read from JSON.
        dtype: of the elements.
        kinds: the specs of kinds of Array that are not the package's own.

    Raises:
        KeyError, TypeError, ValueError: it is no such entry, or its kind is not known.
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


def stacked_spec(spec: ArraySpec, fill: Fill) -> ArraySpec:
    """Return the spec of an Array that stores each frame of its stacks once.

    Args:
        spec: what its Arrays hold are stacks, [stack, *frame_shape].
        fill: what a stack holds before its episode's beginning, "first" or "zero".

    Raises:
        ValueError: it holds single numbers; or fill is another word.
    """
    return FrameSpec.of_stacks(spec, fill)

"""build_transition_tree: the sample tree of a ring, made without an agent or an environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from parllel.arrays import ArraySpec
from parllel.cages import empty_rows, row_specs
from parllel.patterns import FrameFills, frame_specs
from parllel.tree import ArrayDict, allocate_tree, dict_map


def build_transition_tree(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    n_steps: int,
    batch_shape: tuple[int, int] | None = None,
    storage: str = "local",
    frames: FrameFills | None = None,
) -> ArrayDict:
    """Allocate the branches that transitions have, as spaces tell their shapes and dtypes.

    It is what `from_minari` fills: one environment, and one batch that is the whole ring.

    Args:
        observation_space, action_space: of a single environment, or of a data set. Numbers of 64
            bits are stored with 32, unless a bound of the space needs more.
        n_steps: number of steps of each environment that the ring keeps.
        batch_shape: (T, B), steps of a batch and environments; by default (n_steps, 1).
        storage: kind of the memory.
        frames: as for `patterns.build_sample_tree`: what stacks of frames are filled with at an
            episode's beginning, where their frames are to be stored once.

    Returns:
        `observation` (padding 1), `action`, `reward` (float32), `terminated` and `truncated`
        (bool), all [T, B, ...] with `full_size = n_steps`.

    Raises:
        TypeError: a space's values are no arrays of one shape.
        ValueError: a space's values have any length; or as for `build_sample_tree`.
        MemoryError: there is no memory for it.

    >>> tree = build_transition_tree(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), n_steps=100)
    >>> tree["observation"].shape, tree["action"].dtype, tree["reward"].full_size
    ((100, 1, 3), dtype('int32'), 100)
    """
    T, B = batch_shape or (n_steps, 1)
    shape = (T, B)
    observation = dict_map(_padded, row_specs(observation_space, shape), n_steps)
    if frames is not None:
        observation = frame_specs(("observation",), observation, frames)
    action = dict_map(_spec_of, empty_rows(action_space, (1,)), shape, n_steps)
    dtypes = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_}
    others = {name: ArraySpec.of(shape, dtype, full_size=n_steps) for name, dtype in dtypes.items()}
    return allocate_tree(
        ArrayDict({"observation": observation, "action": action, **others}), storage
    )


def _padded(spec: ArraySpec, full_size: int) -> ArraySpec:
    return spec.changed(padding=1, full_size=full_size)


def _spec_of(rows: Any, shape: tuple[int, int], full_size: int) -> ArraySpec:  # Any: of NumPy
    return ArraySpec.of(shape, rows.dtype, rows.shape[1:], full_size=full_size)

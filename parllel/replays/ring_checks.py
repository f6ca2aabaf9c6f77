"""Checks of the sample tree of a replay buffer: what kernels read has a dtype and a shape."""

from __future__ import annotations

import numpy as np

from parllel.arrays import Array
from parllel.tree import ArrayDict, leaves_of, path_text
from parllel.tree.agent_forms import N_BATCH, has_agents, part_for, parts_of
from parllel.tree.leaves import describe_leaf


def check_tree(
    samples: ArrayDict, *, takes_agents: bool, takes_stacks_of_agents: bool = False
) -> None:
    """Raise unless a tree has the branches, the ring and the padding that a buffer reads.

    >>> check_tree(ArrayDict({"reward": Array((2, 1), np.float32)}), takes_agents=False)
    Traceback (most recent call last):
    ValueError: samples: branches ['observation', 'terminated', 'truncated'] are missing

    Args:
        samples: the branches that have a row for each step.
        takes_agents: whether there may be several agents.
        takes_stacks_of_agents: whether stacks of frames may have more batch dimensions than (T, B).

    Raises:
        TypeError: a leaf is no Array.
        ValueError: a leaf has another dtype, shape, ring or padding than the buffer needs.
    """
    missing = [
        name for name in ("observation", "reward", "terminated", "truncated") if name not in samples
    ]
    if missing:
        raise ValueError(f"samples: branches {missing} are missing")
    for path, leaf in samples.walk():
        if not isinstance(leaf, Array):
            raise TypeError(f"{path_text(path)}: got a {type(leaf).__name__}, expected an Array")
    _check_steps(samples, takes_agents=takes_agents)
    rings = {
        path_text(path): (*leaf.shape[:N_BATCH], leaf.full_size) for path, leaf in samples.walk()
    }
    if len(set(rings.values())) != 1:
        raise ValueError(f"samples: got (T, B, full_size) of {rings}, expected the same for all")
    for path, leaf in samples.walk():
        is_plain = not leaf.n_older_steps or len(leaf.batch_shape) == N_BATCH
        if not (is_plain or takes_stacks_of_agents):
            raise ValueError(
                f"{path_text(path)}: got stacks of batch dimensions {leaf.batch_shape}, expected"
                " (T, B); store whole stacks (frames=None), or make the others a part of the frame:"
                " its feature_shape"
            )
    for path, leaf in leaves_of(samples["observation"]):
        if leaf.padding < 1:
            text = path_text(("observation", *path))
            raise ValueError(
                f"{text}: got padding 0, expected 1 or more: the last step's next observation lies"
                " behind the ring"
            )


def _check_steps(samples: ArrayDict, *, takes_agents: bool) -> None:
    """Raise where a kernel can't read a leaf: its dtype and dimensions are fixed."""
    rewards = parts_of(samples["reward"])
    is_of_agents = has_agents(samples["reward"])
    for path, reward in rewards.items():
        if 0 in reward.shape[N_BATCH:]:
            raise ValueError(
                f"{path_text(('reward', *path))}: got shape {reward.shape} of no agent, expected"
                " one agent or more"
            )
    for name in ("reward", "terminated", "truncated", *(["valid"] if "valid" in samples else [])):
        dtype = np.dtype(np.float32 if name == "reward" else bool)
        for path, reward in rewards.items():
            leaf = part_for(name, samples[name], path) if is_of_agents else samples[name]
            shapes = [reward.shape, reward.shape[:N_BATCH]] if takes_agents else []
            is_alike = isinstance(leaf, Array) and leaf.shape in shapes and leaf.dtype == dtype
            is_plain = isinstance(leaf, Array) and leaf.ndim == N_BATCH and leaf.dtype == dtype
            if not is_alike and (not is_plain or is_of_agents):
                found = " ".join(describe_leaf(leaf)[:2])
                more = " or (T, B, N), as reward has" if takes_agents else ""
                raise ValueError(
                    f"{path_text((name, *path))}: got {found}, expected an Array {dtype} (T, B)"
                    + more
                )

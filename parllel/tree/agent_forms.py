"""Quantities of several agents: their two forms, a dictionary and an agent axis, told apart here.

A quantity, such as `reward` or `agent_info.value`, has a leaf [T, B] for one agent. For several
ones it is a dictionary of such leaves by the agents' names, or one leaf [T, B, N] with an axis of
agents behind the batch. What works on columns of numbers does the same to the leaves of both: it
takes `parts_of` a quantity, and puts the results together with `joined`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parllel.arrays import Array, Leaf
from parllel.tree.array_dict import ArrayDict
from parllel.tree.dict_map import Rows, leaves_of
from parllel.tree.path import TreePath, path_text

N_BATCH = 2  # dimensions of a batch, T and B; agents come behind


def parts_of(quantity: Rows) -> dict[TreePath, Any]:
    """Return the leaves of a quantity by the agents' names; `()` names one leaf for all agents.

    >>> import numpy as np
    >>> parts_of(ArrayDict({"pinky": np.zeros((5, 4)), "inky": np.zeros((5, 4))})).keys()
    dict_keys([('pinky',), ('inky',)])
    >>> parts_of(np.zeros((5, 4, 2))).keys()
    dict_keys([()])
    """
    return dict(leaves_of(quantity))


def part_for(name: str, quantity: Rows, path: TreePath) -> Any:  # Any: a leaf of any library
    """Return the leaf of a quantity that belongs to an agent; one leaf is that of all agents.

    Args:
        name: the name of the quantity, for errors.
        quantity: a leaf, or a dictionary by agents.
        path: the agent's names, as `parts_of` has them of another quantity.

    Raises:
        ValueError: there is no such agent, or there are more quantities below its name.

    >>> flags = ArrayDict({"pinky": True, "inky": False})
    >>> part_for("terminated", flags, ("inky",)), part_for("terminated", True, ("inky",))
    (False, True)
    """
    if isinstance(quantity, Array) or not isinstance(quantity, ArrayDict):  # quickly told
        return quantity
    found: Any = quantity
    for agent in path:
        found = found[agent] if isinstance(found, ArrayDict) and agent in found else None
    if found is None or isinstance(found, ArrayDict):
        agents = [path_text(each) for each in parts_of(quantity)]
        own = path_text(path) if path else "one leaf with all agents"
        raise ValueError(
            f"{name}: got agents {agents}, expected {own} among them, as another quantity of the"
            " batch has it: give all quantities of agents in one form, by the same names, or with"
            " an agent axis [T, B, N]"
        )
    return found


def joined(parts: Mapping[TreePath, Any]) -> Any:  # Any: a leaf, or a tree of leaves
    """Return a quantity of its parts: the reverse of `parts_of`.

    >>> joined({("pinky",): 1, ("inky",): 2})
    ArrayDict({
        'pinky': 1,
        'inky': 2,
    })
    >>> joined({(): 1})
    1
    """
    if () in parts:
        return parts[()]
    tree: dict[str, Any] = {}
    for path, leaf in parts.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return ArrayDict(tree)


def agents_of(leaf: Leaf) -> tuple[int, ...]:
    """Return the agent axis of a leaf [T, B, N]: (N,), or () where it has none."""
    return tuple(leaf.shape[N_BATCH:])


def has_agents(quantity: Rows) -> bool:
    """Tell whether a quantity is one of several agents, in either form."""
    return isinstance(quantity, ArrayDict) or len(quantity.shape) > N_BATCH

"""ArrayDict: trees of Arrays and other arrays."""

from parllel.tree.array_dict import ArrayDict, allocate_tree, dict_map
from parllel.tree.description import TreeDescription

__all__ = [
    "ArrayDict",
    "TreeDescription",
    "allocate_tree",
    "dict_map",
]

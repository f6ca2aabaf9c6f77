"""ArrayDict: trees of Arrays and other arrays."""

from parllel.tree.array_dict import ArrayDict, allocate_tree, dict_map
from parllel.tree.description import TreeDescription
from parllel.tree.saving import SavedTree, open_tree, save_tree

__all__ = [
    "ArrayDict",
    "SavedTree",
    "TreeDescription",
    "allocate_tree",
    "dict_map",
    "open_tree",
    "save_tree",
]

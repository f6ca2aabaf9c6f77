"""ArrayDict: trees of Arrays and other arrays."""

from parllel.tree.array_dict import ArrayDict, allocate_tree, dict_map, leaves_of
from parllel.tree.description import TreeDescription
from parllel.tree.path import TreePath, path_text
from parllel.tree.saving import SavedTree, open_tree, save_tree

__all__ = [
    "ArrayDict",
    "SavedTree",
    "TreeDescription",
    "TreePath",
    "allocate_tree",
    "dict_map",
    "leaves_of",
    "open_tree",
    "path_text",
    "save_tree",
]

"""ArrayDict: trees of Arrays and other arrays."""

from parllel.tree.array_dict import ArrayDict, allocate_tree
from parllel.tree.dict_map import Rows, dict_map, leaves_of
from parllel.tree.path import TreePath, path_text
from parllel.tree.row_parts import RowParts
from parllel.tree.saving import SavedTree, open_tree, save_tree
from parllel.tree.tree_description import TreeDescription

__all__ = [
    "ArrayDict",
    "RowParts",
    "Rows",
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

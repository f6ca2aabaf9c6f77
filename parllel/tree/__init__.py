"""ArrayDict: trees of Arrays and other arrays."""

from parllel.tree.array_dict import ArrayDict, allocate_tree, dict_map

__all__ = ["ArrayDict", "allocate_tree", "dict_map"]

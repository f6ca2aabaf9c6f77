"""Data sets: episodes of a ring to files of other libraries, and back."""

from parllel.data.from_minari import from_minari
from parllel.data.to_minari import to_minari
from parllel.data.transition_tree import build_transition_tree

__all__ = ["build_transition_tree", "from_minari", "to_minari"]

"""TreePath: the names that lead to a leaf of a tree, and the text that messages show for them."""

from __future__ import annotations

from typing import TypeAlias

TreePath: TypeAlias = tuple[str, ...]
"""Names of the branches from the root to a leaf: `("observation", "camera")`. It serves as a key:
unlike its text, it is another one for each leaf, whatever characters the names have."""


def path_text(path: TreePath) -> str:
    """Return a path as messages and tables show it.

    >>> path_text(("observation", "camera"))
    'observation.camera'
    >>> path_text(("a.b", "c"))
    "'a.b'.c"
    """
    text = ".".join(path)
    if text.count(".") == len(path) - 1 and "'" not in text and '"' not in text and "" not in path:
        return text  # nearly all: errors and launches name all leaves
    return ".".join(name if _is_plain(name) else repr(name) for name in path)


def _is_plain(name: str) -> bool:
    """Whether a name can't be mistaken for several ones, or for a quoted one."""
    return "." not in name and name[:1] not in ("", "'", '"')

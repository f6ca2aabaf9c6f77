"""Errors of leaves, told with the path of the leaf."""

from __future__ import annotations

from typing import Any, NoReturn

from parllel.tree.path import TreePath, path_text

# Exceptions that are made of one message, so that a new one can say more.
_PLAIN = (AttributeError, IndexError, KeyError, MemoryError, RuntimeError, TypeError, ValueError)


def raise_at(path: TreePath, error: Exception) -> NoReturn:
    """Raise the error of a branch: its type and its message, with the leaf's path before it.

    An exception of another type stays itself and gets the path as a note.

    Args:
        path: the way from the tree to the branch. An error that came through here before has the
            way from that branch to the leaf, which is put behind it.
        error: the exception that the branch raised.
    """
    path += getattr(error, "leaf_path", ())
    if not path:
        raise error
    message = getattr(error, "leaf_message", None)
    if message is None:
        message = str(error.args[0]) if error.args else type(error).__name__
    if type(error) not in _PLAIN:
        vars(error)["leaf_path"] = path
        error.add_note(f"at the leaf {path_text(path)}")
        raise error
    located: Any = type(error)(f"{path_text(path)}: {message}")
    located.leaf_path, located.leaf_message = path, message
    raise located from (error.__cause__ or error)

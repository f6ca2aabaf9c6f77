"""Errors of leaves, told with the path of the leaf."""

from __future__ import annotations

from typing import Any, NoReturn

# Exceptions that are made of one message, so that a new one can say more.
_PLAIN = (AttributeError, IndexError, KeyError, MemoryError, RuntimeError, TypeError, ValueError)


def raise_at(name: str, error: Exception) -> NoReturn:
    """Raise the error of the branch `name`: its type and its message, with the path before it.

    An exception of another type stays itself and gets the path as a note.
    """
    path = ".".join(part for part in (name, getattr(error, "leaf_path", "")) if part)
    if not path:
        raise error
    message = getattr(error, "leaf_message", None)
    if message is None:
        message = str(error.args[0]) if error.args else type(error).__name__
    if type(error) not in _PLAIN:
        vars(error)["leaf_path"] = path
        error.add_note(f"at the leaf {path}")
        raise error
    located: Any = type(error)(f"{path}: {message}")
    located.leaf_path, located.leaf_message = path, message
    raise located from (error.__cause__ or error)

"""Imports of the packages that `pip install parllel[train]` brings, or an error that says so."""

import importlib
from types import ModuleType


def import_from_train_extra(module: str, *, needed_by: str) -> ModuleType:
    """Import a module that only some sinks need, when such a sink is made.

    Args:
      module: full name of the module.
      needed_by: name of the class that needs it, for the message.

    Raises:
      ModuleNotFoundError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{needed_by} needs {error.name!r}, which is not installed; "
            "run: pip install parllel[train]",
            name=error.name,
        ) from error

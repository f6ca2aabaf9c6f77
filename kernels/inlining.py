"""A remedy for the time that Numba takes to inline parts. It changes no code that is compiled."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def with_shared_scopes(scope: Any) -> Iterator[None]:
    """Let copies of a function's blocks share its scope, which lists all its variables.

    To inline a function, Numba copies it block after block, and with each block the whole scope: of
    a kernel with hundreds of blocks millions of variables, which is half of the time of compiling
    it. It writes to no scope that it inlines but names which it uses nowhere, so that the code is
    the same. Proof: `test_shared_scopes_change_no_code`.

    Args:
        scope: Numba's class `ir.Scope`, of the target. It is changed for the time of the context,
            in which no other thread may compile for the target.
    """
    own = vars(scope).get("__deepcopy__")
    scope.__deepcopy__ = lambda self, memo: self
    try:
        yield
    finally:
        if own is None:
            del scope.__deepcopy__
        else:
            scope.__deepcopy__ = own

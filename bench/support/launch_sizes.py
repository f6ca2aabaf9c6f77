"""Launches of copies with blocks of other sizes than the library's own, to tune them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parllel.ops import launching


@contextmanager
def blocks_of(threads: int) -> Iterator[None]:
    """Let the library launch copies with blocks of another size inside the `with` block."""
    kept = launching.SIZES
    launching.SIZES = kept._replace(copy_threads=threads)
    try:
        yield
    finally:
        launching.SIZES = kept


def with_blocks_of(threads: int, call: Callable[[], object]) -> Callable[[], object]:
    def sized_call() -> None:
        with blocks_of(threads):
            call()

    return sized_call

"""Window: the rows of a base buffer that an Array shows, and how the window moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Window:
    """A window of `length` rows that moves through a ring of `full_size` rows.

    >>> window = Window(length=2, full_size=4, padding=1)
    >>> window.rows, window.n_rows
    (range(1, 3), 6)
    >>> window.advance(), window.rows, window.advance(), window.rows
    (False, range(3, 5), True, range(1, 3))

    The base buffer holds `padding` rows before the ring and `padding` rows behind it:

        row        0 ... padding ... padding + full_size ... 2 * padding + full_size
                   before the ring | the ring             | behind the ring

    Args:
        length: number of visible rows, T.
        full_size: number of rows of the ring, a multiple of `length`.
        padding: number of rows on each side of the ring, at most `length`.
        offset: row of the ring where the window begins.
    """

    length: int
    full_size: int
    padding: int
    offset: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= self.length:
            raise ValueError(
                f"padding: got {self.padding}, expected 0 to {self.length} = batch_shape[0]: a"
                " larger one would not fit into the next batch"
            )
        if self.full_size < self.length or self.full_size % max(self.length, 1):
            raise ValueError(
                f"full_size: got {self.full_size}, expected a multiple of {self.length} ="
                " batch_shape[0], the rows by which rotate() moves on"
            )

    @property
    def n_rows(self) -> int:
        """Number of rows of the base buffer, with the padding on both sides."""
        return self.full_size + 2 * self.padding

    @property
    def rows(self) -> range:
        """The rows of the base buffer that are visible."""
        start = self.padding + self.offset
        return range(start, start + self.length)

    @property
    def ring(self) -> range:
        """The rows of the base buffer without the padding."""
        return range(self.padding, self.padding + self.full_size)

    def advance(self) -> bool:
        """Move on by the window's own length; return whether it started again at row 0."""
        self.offset += self.length
        if self.offset < self.full_size:
            return False
        self.offset = 0
        return True

    def move(self, begin: int) -> None:
        """Move to a row of the ring that is a multiple of the window's own length."""
        if begin not in range(0, self.full_size, max(self.length, 1)):
            raise ValueError(
                f"window_begin: got {begin}, expected a multiple of {self.length} below"
                f" {self.full_size}"
            )
        self.offset = begin

    def reset(self) -> None:
        """Move to the end of the ring, so that the next `advance` leads to its beginning."""
        self.offset = self.full_size - self.length

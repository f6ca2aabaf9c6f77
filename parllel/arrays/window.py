"""Window: the part of a base buffer's time axis that an Array shows, and how it moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Window:
    """A window of `length` rows that slides over a ring of `full_size` rows.

    The base buffer holds `padding` rows before the ring and `padding` rows behind it:

        row        0 ... padding ... padding + full_size ... 2 * padding + full_size
                   before the ring | the ring             | behind the ring

    Args:
        length: rows that are visible, T.
        full_size: rows of the ring, a multiple of `length`.
        padding: rows on each side of the ring, at most `length`.
        offset: where the window begins in the ring.
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
        """Rows of the base buffer, the padding on both sides included."""
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
        """Move on by the window's own length. Return whether it wrapped to the beginning."""
        self.offset += self.length
        if self.offset < self.full_size:
            return False
        self.offset = 0
        return True

    def move(self, begin: int) -> None:
        """Move to a row of the ring, a multiple of the window's own length."""
        if begin not in range(0, self.full_size, max(self.length, 1)):
            raise ValueError(
                f"window_begin: got {begin}, expected a multiple of {self.length} below"
                f" {self.full_size}"
            )
        self.offset = begin

    def reset(self) -> None:
        """Move to the end of the ring, from where the next `advance` lands at its beginning."""
        self.offset = self.full_size - self.length

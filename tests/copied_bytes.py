"""CopiedBytes: a stand-in for the memory of kernels that copy, which counts and checks."""

import ctypes
from collections import Counter
from collections.abc import Callable


class CopiedBytes:
    """Copies as a GPU would: insists on its alignment, and counts bytes and words.

    Args:
        readable: where bytes may be read, as pairs of begin and end: words that are loaded to be
            shifted have bytes beside those that are copied. None: anywhere.

    Attributes:
        n_writes: how often each address was written.
        n_words: how many words of each size were written.
        names: the functions of `kernels.addresses`, by name.
        is_rehearsed: whether nothing is written, nor counted.
    """

    def __init__(self, readable: list[tuple[int, int]] | None = None) -> None:
        self.n_writes: Counter[int] = Counter()
        self.n_words: Counter[int] = Counter()
        self._readable = readable
        self.is_rehearsed = False
        self.names: dict[str, object] = {
            f"copy_{size}": self._make_copy(size) for size in (1, 4, 8, 16)
        }
        self.names["copy_4_of_16"] = self._copy_4_of_16
        self.names["store_word"] = self._store_word
        for most, size in ((4, 1), (4, 16), (8, 16)):
            batch = self._make_batch(self._make_copy(size), most, size)
            self.names[f"copy_up_to_{most}_of_{size}"] = batch

    def _make_copy(self, size: int) -> Callable[[int, int], None]:
        def copy(destination: int, source: int) -> None:
            assert destination % size == source % size == 0
            self._move(destination, source, size)

        return copy

    def check_readable(self, address: int) -> None:
        """Raise unless 16 bytes may be read at a multiple of 16."""
        assert address % 16 == 0
        if self._readable is not None:
            assert any(begin <= address and address + 16 <= end for begin, end in self._readable)

    def _store_word(self, address: int, word: bytes) -> None:
        assert address % 16 == 0
        assert len(word) == 16
        if self.is_rehearsed:
            return
        self.n_writes.update(range(address, address + 16))
        self.n_words[16] += 1
        ctypes.memmove(address, word, 16)

    def _make_batch(
        self, copy: Callable[[int, int], None], most: int, size: int
    ) -> Callable[[int, int, int, int, int], None]:
        def copy_up_to(destination: int, source: int, at: int, step: int, end: int) -> None:
            assert at < end, "the word that is loaded for those that are missing"
            assert step > 0
            assert (end - at) % size == step % size == 0
            for offset in range(at, min(end, at + most * step), step):
                copy(destination + offset, source + offset)

        return copy_up_to

    def _copy_4_of_16(self, destination: int, source: int, step: int) -> None:
        for word in range(4):
            self._make_copy(16)(destination + word * step, source + word * step)

    def _move(self, destination: int, source: int, size: int) -> None:
        if self.is_rehearsed:
            return
        self.n_writes.update(range(destination, destination + size))
        self.n_words[size] += 1
        ctypes.memmove(destination, source, size)

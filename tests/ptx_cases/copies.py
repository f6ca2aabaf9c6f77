"""Cases of `rows`, `frames` and `shifted_frames`: copies of bytes, against NumPy's indexing."""

from typing import Any

import numpy as np
import numpy.typing as npt

from parllel import cuda
from parllel.cuda import DeviceArray
from parllel.kernels.image_shift import NO_IMAGE, Image, draw_shift, make_image
from parllel.kernels.transitions import Seed
from parllel.ops.row_copy import RowCopy
from parllel.ops.stack_gather import RowSource, StackGather
from ptx_cases.comparing import assert_bits

# Every kind of word, remainders of all of them, and parts of a row that is split.
_SHORT = (0, 1, 3, 4, 8, 12, 16, 17, 31, 64, 100, 127, 128, 129, 255, 300)
_LONG = (1000, 1024, 2049, 7056, 8176, 16385, 20_003)
_FRAMES = ((), (1,), (3, 3), (16,), (7, 13), (129,), (12, 16), (127, 16), (64, 64))
# Of bytes, at any address: few lanes for the bytes at both ends; a word for each lane; lanes of
# which some have three words, and some four; or some four, and some five.
_OF_BYTES = ((128,), (8, 16), (34, 16), (111, 16), (132, 16))
_N_BESIDE = 3


class _Side:
    """Rows in device memory, somewhere in a block that is all compared."""

    def __init__(
        self, rng: np.random.Generator, n_rows: int, nbytes: int, *, is_aligned: bool
    ) -> None:
        offset = 16 if is_aligned else int(rng.choice([0, 8, 8, 1, 2, 4, 16, 19]))
        gap = -nbytes % 16
        stride = nbytes + (
            gap if is_aligned else int(rng.choice([0, 0, 1, 4, -nbytes % 8, 16, gap]))
        )
        sign = int(rng.choice([1, -1]))
        first = offset + (n_rows - 1) * stride * (sign < 0)
        # Nothing lies behind the last row: a word that reaches beyond it is found.
        size = offset + (n_rows - 1) * stride + nbytes
        self.block = cuda.to_device(rng.integers(0, 255, size, np.uint8))
        shape, strides = (n_rows, nbytes), (sign * stride, 1)
        memory = self.block[first:].data
        self.rows = cuda.library().ndarray(shape, np.uint8, memptr=memory, strides=strides)
        self.host = cuda.to_host(self.block).copy()
        self.host_rows = np.ndarray(shape, np.uint8, self.host, first, strides)


def pick(
    rng: np.random.Generator, count: int, limit: int, *, twice: bool
) -> range | npt.NDArray[Any]:
    """Return rows below a limit, as a range, or as integers of the host or the device."""
    if rng.random() < 0.4 and 0 < count <= limit:
        start = int(rng.integers(0, limit - count + 1))
        return range(start, start + count)[:: int(rng.choice([1, -1]))]
    rows = rng.integers(0, limit, count) if twice else rng.permutation(limit)[:count]
    return rows.astype(np.int64)


def somewhere(rng: np.random.Generator, index: range | npt.NDArray[Any]) -> Any:
    """Return an index of the host, or integers of it on the device."""
    is_sent = isinstance(index, np.ndarray) and rng.random() < 0.5
    return cuda.to_device(index) if is_sent else index


def copy_rows(rng: np.random.Generator) -> None:
    """Rows of several leaves, at any address, forwards and backwards; all bytes around them."""
    n_written, n_read = (int(n) for n in rng.integers(1, 40, 2))
    count = int(rng.choice([0, 1, rng.integers(0, n_written + 1), n_written]))
    written = pick(rng, count, n_written, twice=False)
    read = pick(rng, count, n_read, twice=True)
    lengths = rng.choice(_SHORT, int(rng.integers(1, 6))).tolist()
    if rng.random() < 0.5:
        lengths.append(int(rng.choice(_LONG)))
    are_aligned = rng.random(len(lengths)) < 0.4
    leaves = [
        [_Side(rng, n, nbytes, is_aligned=bool(is_aligned)) for n in (n_written, n_read)]
        for nbytes, is_aligned in zip(lengths, are_aligned, strict=True)
    ]
    copy = RowCopy([leaf[0].rows for leaf in leaves], [leaf[1].rows for leaf in leaves])
    copy.run(somewhere(rng, written), somewhere(rng, read))
    for destination, source in leaves:
        destination.host_rows[np.asarray(written, int)] = source.host_rows[np.asarray(read, int)]
        assert_bits("rows", destination.block, destination.host)
        assert_bits("rows that are read", source.block, source.host)


def copy_by_written_tables(rng: np.random.Generator) -> None:
    """Rows of several leaves, whose table launches write; nothing behind the table."""
    n_rows, n_leaves = 9, int(rng.integers(1, 5))
    widths = rng.choice([1, 8, 300, 20_003], n_leaves).tolist()
    read = [rng.integers(0, 255, (n_rows, width), np.uint8) for width in widths]
    written = [cuda.to_device(np.zeros_like(each)) for each in read]
    tables: list[DeviceArray] = []

    def allocate(n: int) -> DeviceArray:
        tables.append(cuda.library().empty(n, np.int64))
        return tables[-1]

    index = rng.integers(0, n_rows, n_rows)
    copy = RowCopy(written, [cuda.to_device(each) for each in read], allocate=allocate)
    copy.run(range(n_rows), cuda.to_device(index))
    assert len(tables) == 1
    for got, each in zip(written, read, strict=True):
        assert_bits("rows", got, each[index])


def place(values: npt.NDArray[Any], offset: int) -> DeviceArray:
    """Return values in device memory, so many bytes behind the beginning of an allocation."""
    block = cuda.to_device(np.zeros(offset + values.nbytes, np.uint8))
    memory = block[offset:].data
    placed = cuda.library().ndarray(values.shape, values.dtype, memptr=memory)
    cuda.copy_to_device(values, out_device=placed)
    return placed


class Film:
    """Frames, and stacks of them by their definition.

    Args:
        rng: draws everything.
        n_columns, n_steps: environments, and steps of each.
        picked: numbers of rows that an index picks from, below 0 for what lies beside; or None.
        has_agents: whether some films have a stack of each agent.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        n_columns: int,
        n_steps: int,
        picked: npt.NDArray[Any] | None,
        *,
        has_agents: bool = False,
    ) -> None:
        shape = _FRAMES[rng.integers(len(_FRAMES))]
        dtype = np.dtype(["u1", "<i2", "f4", "f8"][rng.integers(4)])
        # Of the first frame in its allocation, and of the first stack.
        self.offset, self.out_offset = (rng.choice([0, 1, 7], 2) * dtype.itemsize).tolist()
        if rng.random() < 0.5:
            self.offset = self.out_offset = 0
        if rng.random() < 0.5:
            shape, dtype = _OF_BYTES[rng.integers(len(_OF_BYTES))], np.dtype("u1")
            shifts = rng.integers(0, 16, 2) * int(rng.random() < 0.6)
            self.offset, self.out_offset = shifts.tolist()
        self.is_stacked = bool(rng.random() < 0.7)
        self.n_columns, self.stack = n_columns, int(rng.integers(1, 6)) if self.is_stacked else 1
        self.n_before = (self.stack - 1) * n_columns
        # Stacks of a row: one, or one of each agent.
        self.agents = tuple(rng.integers(1, 4, int(has_agents and self.is_stacked)))
        n = (self.n_before + n_columns * n_steps, *self.agents)
        self.frames = rng.integers(0, 200, (*n, *shape)).astype(dtype)
        self.is_first = rng.random(n) < rng.choice([0, 0.3, 1])
        is_blank = self.is_stacked and rng.random() < 0.5
        self.blank = rng.integers(0, 200, (1, *shape)).astype(dtype) if is_blank else None
        self.picked = self.beside = self.beside_rows = None
        if picked is not None:
            self.picked = picked
            self.beside = rng.integers(0, 200, (_N_BESIDE, *n[1:], *shape)).astype(dtype)
            if self.is_stacked:
                rows = rng.integers(0, n_columns * n_steps, _N_BESIDE)
                self.beside_rows = rows.astype(np.int64)

    def to_device(self) -> RowSource:
        frames = place(self.frames, self.offset)
        flags = cuda.to_device(self.is_first)
        optional = (self.blank, self.picked, self.beside, self.beside_rows)
        return RowSource(
            frames[self.n_before :],
            flags[self.n_before :] if self.is_stacked else None,
            self.n_columns if self.is_stacked else 1,
            self.stack,
            *(None if each is None else cuda.to_device(each) for each in optional),
        )

    def stack_of(self, index: int) -> npt.NDArray[Any]:
        """Return the frames that end with a row's, the oldest first; of plain rows the row."""
        if not self.agents:
            return self.stack_of_one(index, ())
        return np.stack([self.stack_of_one(index, (n,)) for n in range(self.agents[0])])

    def stack_of_one(self, index: int, agent: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the stack of one agent, or of a row that has none."""
        row = index if self.picked is None else int(self.picked[index])
        if row >= 0:
            return self.stack_at(row, agent)
        newest = self.beside[(-1 - row, *agent)]
        if not self.is_stacked:
            return newest
        older = self.stack_at(int(self.beside_rows[-1 - row]), agent)
        return np.concatenate([older, newest[None]])[-self.stack :]

    def stack_at(self, row: int, agent: tuple[int, ...] = ()) -> npt.NDArray[Any]:
        """Return the stack of a row of the ring; of plain rows the row."""
        at = row + self.n_before
        frames, is_begun = [self.frames[(at, *agent)]], bool(self.is_first[(at, *agent)])
        while len(frames) < self.stack:
            at -= 0 if is_begun else self.n_columns
            is_blank = is_begun and self.blank is not None
            frames.append(self.blank[0] if is_blank else self.frames[(at, *agent)])
            is_begun = is_begun or bool(self.is_first[(at, *agent)])
        return np.stack(frames[::-1]) if self.is_stacked else frames[0]


def gather_stacks(rng: np.random.Generator) -> None:
    """Stacks and plain rows of several leaves, some by way of other rows, some with one beside."""
    n_columns, n_steps = int(rng.integers(1, 5)), int(rng.integers(1, 12))
    limit, picked = n_columns * n_steps, None
    if rng.random() < 0.5:
        picked = rng.integers(0, limit, 16).astype(np.int64)
        if rng.random() < 0.7:
            picked[rng.integers(0, 16, 4)] = -1 - rng.integers(0, _N_BESIDE, 4)
        limit = len(picked)
    films = [
        Film(rng, n_columns, n_steps, picked, has_agents=number > 1)
        for number in range(int(rng.integers(1, 5)))
    ]
    sources = [film.to_device() for film in films]
    count = int(rng.integers(0, 20))
    expected = [
        np.full((count + 2, *source.shape[1:]), 7, film.frames.dtype)
        for source, film in zip(sources, films, strict=True)
    ]
    outputs = [place(each, film.out_offset) for each, film in zip(expected, films, strict=True)]
    index = pick(rng, count, limit, twice=True)
    StackGather(sources, outputs).run(somewhere(rng, index))
    for film, output, rows in zip(films, outputs, expected, strict=True):
        for number, row in enumerate(index):
            rows[number] = film.stack_of(int(row))
        assert_bits("frames", output, rows)


# Height, width and bytes of a pixel: rows of words or not, and edges longer than a word.
_IMAGES = ((84, 84, 1), (8, 32, 3), (4, 20, 4), (7, 13, 1), (4, 64, 16), (6, 5, 17), (32, 48, 1))
# Words of each size, and several of them for a lane.
_BESIDE = ((3, 3), (16,), (8,), (130,), (129,), (127, 16), (64, 64))


def gather_shifted(rng: np.random.Generator) -> None:
    """Stacks of shifted images, against windows of padded ones; beside them plain bytes."""
    n_columns, n_rows, count = int(rng.integers(1, 3)), 6, int(rng.integers(1, 4))
    seed = np.array([*rng.integers(0, 2**32, 2), rng.integers(0, 2**40)])
    index = rng.integers(0, n_rows, count)
    picked = rng.integers(-_N_BESIDE, n_rows, n_rows) if rng.random() < 0.5 else None
    # Beside small images, few lanes share a row: each has several words of other leaves.
    images = _IMAGES if rng.random() < 0.4 else ((3, 2, 1),)
    sources, outputs, stacks = [], [], []
    for number in range(int(rng.integers(1, 5))):
        height, width, nbytes = images[rng.integers(len(images))]
        image, n_frames, offsets = NO_IMAGE, int(rng.integers(1, 4)), [0, 0, 0, 1]
        shape: tuple[int, ...] = (height, width, nbytes)
        if number and rng.random() < 0.7:
            shape, offsets = _BESIDE[rng.integers(len(_BESIDE))], [0, 0, 8, 8, 4, 1]
        else:
            most = int(rng.integers(1, min(height, width, 7)))
            sizes = {"height": height, "width": width, "pixel_nbytes": nbytes}
            image = make_image(most=most, stream=int(rng.integers(0, 2)), **sizes)
        n_before = (n_frames - 1) * n_columns
        frames = rng.integers(0, 256, (n_before + n_rows, *shape), np.uint8)
        beside = rng.integers(0, 256, (_N_BESIDE, *shape), np.uint8)
        beside_rows = rng.integers(0, n_rows, _N_BESIDE)
        offset = int(rng.choice(offsets))
        optional: dict[str, Any] = {"image": image}
        if n_frames > 1:
            flags = cuda.to_device(np.zeros(n_before + n_rows, bool))
            optional |= {"is_first": flags[n_before:], "n_columns": n_columns, "stack": n_frames}
        if picked is not None:
            optional |= {"rows": cuda.to_device(picked), "beside": place(beside, offset)}
            optional["beside_rows"] = cuda.to_device(beside_rows)
        sources.append(RowSource(place(frames, offset)[n_before:], **optional))
        backs = np.arange(n_frames)[::-1]
        stack = []
        for row in index if picked is None else picked[index]:
            if row >= 0:
                stack.append(frames[n_before + row - backs * n_columns])
            else:
                older = n_before + beside_rows[-1 - row] - (backs[:-1] - 1) * n_columns
                stack.append(np.concatenate([frames[older], beside[-1 - row][None]]))
        stacks.append(np.array(stack))
        outputs.append(cuda.to_device(np.zeros((count, *sources[-1].shape[1:]), np.uint8)))
    StackGather(sources, outputs).run(somewhere(rng, index), seed=cuda.to_device(seed))
    for source, output, expected in zip(sources, outputs, stacks, strict=True):
        for item in range(count if source.image.most else 0):
            expected[item] = _shift(expected[item], source.image, Seed(*seed.tolist()), item)
        assert_bits("shifted", output, expected.reshape(output.shape))


def _shift(stack: npt.NDArray[Any], image: Image, seed: Seed, item: int) -> npt.NDArray[Any]:
    shift = draw_shift(image, seed, item)
    pad = (image.most, image.most)
    padded = np.pad(stack, ((0, 0), pad, pad, (0, 0)), mode="edge")
    top, left = image.most + shift.down, image.most + shift.right // image.pixel_nbytes
    return padded[:, top : top + stack.shape[1], left : left + stack.shape[2]]

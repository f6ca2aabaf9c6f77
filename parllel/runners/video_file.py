"""Files of videos, written frame by frame, and frames of several agents side by side."""

from __future__ import annotations

import functools
import math
import operator
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parllel.metrics.train_extra import import_from_train_extra
from parllel.tree.whole_files import replace_file

Frame: TypeAlias = NDArray[np.uint8]

AddFrame: TypeAlias = Callable[[Frame, float | None], object]
"""A function that takes a frame, and what the environment says of frames per second."""

_SUFFIXES = (".mp4", ".gif")
_FPS = 30.0  # of environments that don't say
_SLOWEST = 0.01  # frames per second: a GIF counts hundredths of seconds in 16 bits
_GAP = 8  # pixels between two agents, and around their names


@contextmanager
def encoded(
    path: str | Path, fps: float | None, scale: int, *, needed_by: str
) -> Iterator[VideoEncoder]:
    """Return an encoder whose video takes the place of a file when the `with` block is left.

    An error leaves the former file as it was.

    Args:
        path: the file, which ends in one of the suffixes.
        fps: frames per second; None leaves it to the environment.
        scale: factor by which the caller enlarges frames, which is checked here.
        needed_by: the caller's name, for errors.

    Raises:
        FileNotFoundError, IsADirectoryError, ModuleNotFoundError, TypeError, ValueError: as for
            `record_video`.
    """
    path = Path(path)
    _check(path, fps, scale)
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder, f"video{path.suffix.lower()}")
        with VideoEncoder(unfinished, fps, needed_by) as encoder:
            yield encoder
        with unfinished.open("rb") as video:
            replace_file(path, lambda file: shutil.copyfileobj(video, file))


def _check(path: Path, fps: float | None, scale: int) -> None:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"path: got {path}, expected a name that ends in {' or '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: {path.parent} is no folder; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"path: {path} is a folder; choose another name")
    if fps is not None:
        _check_fps("fps", fps)
    try:
        operator.index(scale)
    except TypeError:
        raise TypeError(f"scale: got {scale!r}, expected an integer of 1 or more") from None
    if scale < 1:
        raise ValueError(f"scale: got {scale}, expected 1 or more")


def _check_fps(name: str, fps: object, way_out: str = "") -> float:
    """Return a number of frames per second as a float, as encoders want it."""
    number = float(fps) if isinstance(fps, Real) else math.nan
    if not _SLOWEST <= number < math.inf:
        raise ValueError(
            f"{name}: got {fps!r}, expected {_SLOWEST} frames per second or more{way_out}"
        )
    return number


class VideoEncoder:
    """A video that is written frame by frame; its file is whole when the `with` block is left.

    Args:
        path: the file, which ends in one of the suffixes.
        fps: frames per second; None leaves it to the environment.
        needed_by: the caller's name, for errors.
    """

    def __init__(self, path: Path, fps: float | None, needed_by: str) -> None:
        self._imageio = import_from_train_extra("imageio.v2", needed_by=needed_by)
        self._is_gif = path.suffix == ".gif"
        if not self._is_gif:
            import_from_train_extra("imageio_ffmpeg", needed_by=needed_by)
        self._path, self._fps = path, fps
        self._writer: Any = None  # Any: imageio has a class for each format
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, frame: Frame, env_fps: float | None) -> None:
        """Write the next frame, uint8 [H, W, 3]; the first one's rate is that of the video.

        Raises:
            ValueError: the frame has another shape than the first one, or the environment says a
                rate that is none.
        """
        if self._writer is None:
            self._shape = frame.shape
            name, way_out = "metadata: render_fps", "; or give fps="
            told = env_fps or _FPS if self._fps is None else self._fps
            self._writer = self._open(_check_fps(name, told, way_out))
        if frame.shape != self._shape:
            raise ValueError(
                f"render: the environment gave a frame {frame.shape} after others {self._shape};"
                " all frames of a video have one size"
            )
        if not self._is_gif:  # its colors belong to squares of 2 by 2 pixels
            height, width, _ = frame.shape
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._writer.append_data(frame)

    def _open(self, fps: float) -> Any:
        if self._is_gif:
            return self._imageio.get_writer(self._path, duration=1000 / fps, loop=0)
        # Blocks of 1: imageio would stretch frames to multiples of 16.
        return self._imageio.get_writer(self._path, fps=fps, macro_block_size=1, quality=8)


class FilmColumn:
    """The frames of one agent in a video of several, kept until all agents have played.

    Args:
        name: text above the frames.
        scale: factor by which frames are enlarged.
    """

    def __init__(self, name: str, scale: int) -> None:
        self.fps: float | None = None
        self._name, self._scale = name, scale
        self._frames: list[Frame] = []

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Frame, env_fps: float | None) -> None:
        """Keep a frame."""
        self._frames.append(frame)
        self.fps = env_fps

    def shown(self, number: int) -> Frame:
        """Return a frame below the name; behind the last frame, that one."""
        frame = enlarged(self._frames[min(number, len(self) - 1)], self._scale)
        label = _label(self._name)
        width = max(label.shape[1], frame.shape[1])
        return np.concatenate([_widened(label, width), _widened(frame, width)])


def side_by_side(columns: Sequence[FilmColumn]) -> Iterator[tuple[Frame, float | None]]:
    """Yield the frames of all columns beside each other, with their number per second.

    Raises:
        ValueError: the frames of two columns differ in height.
    """
    for number in range(max(map(len, columns))):
        shown = [column.shown(number) for column in columns]
        heights = [len(frame) for frame in shown]
        if len(set(heights)) > 1:
            raise ValueError(
                f"render: the agents' frames are {heights} pixels high with their names, expected"
                " one height"
            )
        gap = np.zeros((heights[0], _GAP, 3), np.uint8)
        parts = [part for frame in shown for part in (gap, frame)][1:]
        yield np.concatenate(parts, axis=1), columns[0].fps


def enlarged(frame: Frame, scale: int) -> Frame:
    """Return a frame in which each pixel is a square of some pixels."""
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def _widened(frame: Frame, width: int) -> Frame:
    """Return a frame in the middle of one that is black and as wide as given."""
    missing = width - frame.shape[1]
    return np.pad(frame, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))


@functools.cache
def _label(text: str) -> Frame:
    """Return one line of text as a picture, white on black; all texts have the same height."""
    image = import_from_train_extra("PIL.Image", needed_by="record_side_by_side")
    draw = import_from_train_extra("PIL.ImageDraw", needed_by="record_side_by_side")
    measured = draw.Draw(image.new("L", (1, 1)))
    _, _, width, _ = measured.textbbox((0, 0), text)
    _, _, _, height = measured.textbbox((0, 0), "Agjpqy|")
    picture = image.new("L", (math.ceil(width) + 2 * _GAP, math.ceil(height) + _GAP))
    draw.Draw(picture).text((_GAP, _GAP // 2), text, fill=255)
    return np.asarray(picture)[:, :, None].repeat(3, axis=2)

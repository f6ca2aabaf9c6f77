"""record_video: episodes of an agent as an MP4 or a GIF."""

from __future__ import annotations

import math
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Self, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from parllel.cages import Seed, SerialCage
from parllel.metrics.train_extra import import_from_train_extra
from parllel.patterns import MakeEnv
from parllel.samplers import Actor, EvalSampler
from parllel.tree.whole_files import replace_file

_SUFFIXES = (".mp4", ".gif")
_RENDER_MODE = "rgb_array"
_FPS = 30.0  # of environments that don't say


def record_video(
    agent: Actor,
    make_env: MakeEnv,
    path: str | Path,
    *,
    n_episodes: int = 1,
    deterministic: bool = True,
    seed: Seed = None,
    fps: float | None = None,
    scale: int = 1,
    max_steps: int = 10_000,
    storage: str | None = None,
) -> list[float]:
    """Play episodes in one environment, and write what it shows as a video.

    The frames of an episode are those that the environment rendered before each action, and one
    after its last. The video is written whole or not at all; a former one is replaced. An MP4 is
    encoded while it is played, in another process; the frames of a GIF are kept until its end. A
    recurrent agent gets its former state back.

    Args:
        agent: as for `EvalSampler`.
        make_env: makes the environment, with render_mode="rgb_array"; or an id, with which it is
            made so.
        path: the file, `*.mp4` (H.264) or `*.gif`.
        n_episodes: number of episodes, one after the other in the video.
        deterministic: whether the agent takes its most probable actions.
        seed: given, each call plays the same episodes, up to what the agent draws.
        fps: frames per second; by default what the environment's metadata call `render_fps`,
            else 30. A GIF rounds the time of a frame to a hundredth of a second.
        scale: factor by which frames are enlarged, pixel by pixel.
        max_steps: steps in all after which an unfinished episode is cut off. Its frames are in the
            video.
        storage: as for `EvalSampler`.

    Returns:
        The return of each episode that was finished.

    Raises:
        FileNotFoundError: the video's folder does not exist.
        ModuleNotFoundError: imageio or imageio-ffmpeg is not installed; the extra `train` brings
            them.
        TypeError: the environment renders no frame uint8 [H, W, 3].
        ValueError: the path has another suffix, the environment another render mode, n_episodes,
            fps, scale or max_steps is not positive, or the size of the frames changes.
    """
    path = Path(path)
    _check(path, fps, scale)
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder, f"video{path.suffix.lower()}")
        with _Encoder(unfinished, fps, scale) as encoder:
            make_filmed = partial(_make_filmed, make_env, encoder)
            with SerialCage(make_filmed, seed=seed) as cage:
                sampler = EvalSampler(
                    [cage],
                    agent,
                    n_episodes=n_episodes,
                    max_steps=max_steps,
                    deterministic=deterministic,
                    storage=storage,
                )
                try:
                    episodes = sampler.collect_episodes()
                finally:
                    sampler.close()
        with unfinished.open("rb") as video:
            replace_file(path, lambda file: shutil.copyfileobj(video, file))
    return [float(episode.episode_return) for episode in episodes]


def _check(path: Path, fps: float | None, scale: int) -> None:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"path: got {path}, expected a name that ends in {' or '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: {path.parent} is no folder; make it first")
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps: got {fps}, expected more than 0 frames per second")
    if scale < 1:
        raise ValueError(f"scale: got {scale}, expected 1 or more")


def _make_filmed(make_env: MakeEnv, encoder: _Encoder) -> gym.Env[Any, Any]:
    if isinstance(make_env, str):
        make_env = partial(gym.make, make_env, render_mode=_RENDER_MODE)
    env: Any = make_env()  # Any: what a user's function returns
    if not isinstance(env, gym.Env):
        return env  # type: ignore[no-any-return]  # the cage says what is wrong
    mode = env.render_mode
    if mode != _RENDER_MODE:
        env.close()
        raise ValueError(
            f"make_env: the environment's render_mode is {mode!r}, expected {_RENDER_MODE!r}; make"
            f" it with gym.make(..., render_mode={_RENDER_MODE!r})"
        )
    return _Filmed(env, encoder)


class _Filmed(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that gives an encoder a frame before each action, and one after the last."""

    def __init__(self, env: gym.Env[Any, Any], encoder: _Encoder) -> None:
        super().__init__(env)
        self._encoder = encoder
        # The frame after a reset waits for the first action: the last reset is followed by none.
        self._first: NDArray[np.uint8] | None = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**options)
        self._first = self._frame()
        return result

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._first is not None:
            self._encoder.add(self._first, self.metadata.get("render_fps"))
            self._first = None
        result = self.env.step(action)
        self._encoder.add(self._frame(), self.metadata.get("render_fps"))
        return result

    def _frame(self) -> NDArray[np.uint8]:
        """Return a copy of what the environment shows: it may draw into the same memory again."""
        frame: Any = self.env.render()  # Any: what an environment gives
        is_array = isinstance(frame, np.ndarray)
        if not is_array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            found = f"{frame.dtype} {frame.shape}" if is_array else type(frame).__name__
            raise TypeError(f"render: the environment gave {found}, expected uint8 (H, W, 3)")
        copied: NDArray[np.uint8] = frame.copy()
        return copied


class _Encoder:
    """A video that is written frame by frame; its file is whole when the `with` block is left.

    Args:
        path: the file, which ends in one of the suffixes.
        fps: frames per second; None leaves it to the environment.
        scale: factor by which frames are enlarged.
    """

    def __init__(self, path: Path, fps: float | None, scale: int) -> None:
        self._imageio = import_from_train_extra("imageio.v2", needed_by="record_video")
        self._is_gif = path.suffix == ".gif"
        if not self._is_gif:
            import_from_train_extra("imageio_ffmpeg", needed_by="record_video")
        self._path, self._fps, self._scale = path, fps, scale
        self._writer: Any = None  # Any: imageio has a class for each format
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, frame: NDArray[np.uint8], env_fps: float | None) -> None:
        if self._writer is None:
            self._shape = frame.shape
            self._writer = self._open(self._fps or env_fps or _FPS)
        if frame.shape != self._shape:
            raise ValueError(
                f"render: the environment gave a frame {frame.shape} after others {self._shape};"
                " all frames of a video have one size"
            )
        frame = frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        if not self._is_gif:  # its colors belong to squares of 2 by 2 pixels
            height, width, _ = frame.shape
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._writer.append_data(frame)

    def _open(self, fps: float) -> Any:
        if self._is_gif:
            return self._imageio.get_writer(self._path, duration=1000 / fps, loop=0)
        # Blocks of 1: imageio would stretch frames to multiples of 16.
        return self._imageio.get_writer(self._path, fps=fps, macro_block_size=1, quality=8)

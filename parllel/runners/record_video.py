"""record_video, record_side_by_side: episodes of one agent, or of several, as an MP4 or a GIF."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from parllel.cages import Capacities, Seed, SerialCage
from parllel.cages.parallel_agents import as_single_env
from parllel.patterns import MakeEnv
from parllel.runners.generators import unchanged_generators
from parllel.runners.video_file import AddFrame, FilmColumn, encoded, enlarged, side_by_side
from parllel.samplers import Actor, EvalSampler

_RENDER_MODE = "rgb_array"


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
    capacity: Capacities = None,
) -> list[float]:
    """Play episodes in one environment, and write what it shows as a video.

    The frames of an episode are those that the environment rendered before each action, and one
    after its last. The video is written whole or not at all; a former one is replaced. An MP4 is
    encoded while it is played, in another process; the frames of a GIF are kept until its end. A
    recurrent agent gets its former state back. The global generators of Python, NumPy and torch,
    and the agent's own (`generator`), are afterwards as they were: training draws the same numbers
    with videos and without them.

    Args:
        agent: as for `EvalSampler`.
        make_env: makes the environment, with render_mode="rgb_array"; or an id, with which it is
            made so.
        path: the file, `*.mp4` (H.264) or `*.gif`.
        n_episodes: number of episodes, one after the other in the video.
        deterministic: whether the agent takes its most probable actions.
        seed: given, each call plays the same episodes, up to what the agent draws.
        fps: frames per second, at least 0.01; by default what the environment's metadata call
            `render_fps`, else 30. A GIF rounds the time of a frame to a hundredth of a second.
        scale: whole factor by which frames are enlarged, pixel by pixel.
        max_steps: steps in all after which an unfinished episode is cut off. Its frames are in the
            video.
        storage, capacity: as for `EvalSampler`.

    Returns:
        The return of each episode that was finished.

    Raises:
        FileNotFoundError: the video's folder does not exist.
        IsADirectoryError: the path is that of a folder.
        ModuleNotFoundError: imageio or imageio-ffmpeg is not installed; the extra `train` brings
            them.
        TypeError: the environment renders no frame uint8 [H, W, 3] of a pixel or more, or scale is
            no integer.
        ValueError: the path has another suffix, the environment another render mode, n_episodes,
            scale or max_steps is not positive, fps is too small or no number, here or in the
            environment's metadata, or the size of the frames changes.
    """
    with encoded(path, fps, scale, needed_by="record_video") as encoder:
        return _play(
            agent,
            make_env,
            lambda frame, env_fps: encoder.add(enlarged(frame, scale), env_fps),
            n_episodes=n_episodes,
            deterministic=deterministic,
            seed=seed,
            max_steps=max_steps,
            storage=storage,
            capacity=capacity,
        )


def record_side_by_side(
    agents: Mapping[str, Actor],
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
    capacity: Capacities = None,
) -> dict[str, list[float]]:
    """Play episodes of several agents, and write them as one video, side by side.

    Each agent plays in an environment of its own, and has its name above. One that is done before
    the others stands still. All frames are kept until the last agent is done.

    Args:
        agents: the agents, from left to right, by the names that are shown.
        make_env, path, n_episodes, deterministic, fps, scale, storage, capacity: as for
            `record_video`.
        seed: given, all agents have the same first observation.
        max_steps: steps of each agent, as for `record_video`. With more episodes than these steps
            hold, all agents play to the end of the video.

    Returns:
        The returns of the episodes that were finished, by the agents' names.

    Raises:
        ValueError: there is no agent; or as for `record_video`, whose other errors are raised too.
    """
    if not agents:
        raise ValueError("agents: got none, expected one or more by their names")
    columns = {name: FilmColumn(name, scale) for name in agents}
    returns: dict[str, list[float]] = {}
    with encoded(path, fps, scale, needed_by="record_side_by_side") as encoder:
        for name, agent in agents.items():
            returns[name] = _play(
                agent,
                make_env,
                columns[name].add,
                n_episodes=n_episodes,
                deterministic=deterministic,
                seed=seed,
                max_steps=max_steps,
                storage=storage,
                capacity=capacity,
            )
        for frame, env_fps in side_by_side(list(columns.values())):
            encoder.add(frame, env_fps)
    return returns


def _play(
    agent: Actor,
    make_env: MakeEnv,
    add: AddFrame,
    *,
    n_episodes: int,
    deterministic: bool,
    seed: Seed,
    max_steps: int,
    storage: str | None,
    capacity: Capacities,
) -> list[float]:
    """Play episodes, and give all frames to a function; return what `record_video` does."""
    make_filmed = partial(_make_filmed, make_env, add)
    with unchanged_generators(agent), SerialCage(make_filmed, seed=seed) as cage:
        sampler = EvalSampler(
            [cage],
            agent,
            n_episodes=n_episodes,
            max_steps=max_steps,
            deterministic=deterministic,
            storage=storage,
            capacity=capacity,
        )
        try:
            episodes = sampler.collect_episodes()
        finally:
            sampler.close()
    return [float(episode.episode_return) for episode in episodes]


def _make_filmed(make_env: MakeEnv, add: AddFrame) -> gym.Env[Any, Any]:
    if isinstance(make_env, str):
        make_env = partial(gym.make, make_env, render_mode=_RENDER_MODE)
    env: Any = as_single_env(make_env())  # Any: what a user's function returns
    if not isinstance(env, gym.Env):
        return env  # type: ignore[no-any-return]  # the cage says what is wrong
    mode = env.render_mode
    if mode != _RENDER_MODE:
        env.close()
        raise ValueError(
            f"make_env: the environment's render_mode is {mode!r}, expected {_RENDER_MODE!r}; make"
            f" it with gym.make(..., render_mode={_RENDER_MODE!r})"
        )
    return _Filmed(env, add)


class _Filmed(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that gives a function a frame before each action, and one after the last."""

    def __init__(self, env: gym.Env[Any, Any], add: AddFrame) -> None:
        super().__init__(env)
        self._add = add
        # The frame after a reset waits for the first action: the last reset is followed by none.
        self._first: NDArray[np.uint8] | None = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**options)
        self._first = self._frame()
        return result

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._first is not None:
            self._add(self._first, self.metadata.get("render_fps"))
            self._first = None
        result = self.env.step(action)
        self._add(self._frame(), self.metadata.get("render_fps"))
        return result

    def _frame(self) -> NDArray[np.uint8]:
        """Return a copy of what the environment shows: it may draw into the same memory again."""
        frame: Any = self.env.render()  # Any: what an environment gives
        is_array = isinstance(frame, np.ndarray)
        is_picture = is_array and frame.dtype == np.uint8 and frame.ndim == 3 and frame.size > 0
        if not is_picture or frame.shape[2] != 3:
            found = f"{frame.dtype} {frame.shape}" if is_array else type(frame).__name__
            raise TypeError(f"render: the environment gave {found}, expected uint8 (H, W, 3)")
        copied: NDArray[np.uint8] = frame.copy()
        return copied

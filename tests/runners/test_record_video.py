"""record_video: the frames of a video are what the environment showed to the agent, in order."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from optional import needs
from parllel.runners import record_side_by_side, record_video
from parllel.testing.toy_agents import Relay

pytestmark = needs("imageio", "imageio_ffmpeg")

SIZE, CELL = (33, 50), 8  # an odd height


class Marked(gym.Env[Any, Any]):
    """An episode of a few steps whose pictures show a number: one bright square in each.

    The number is 10 * episode + step; the episode ends after `episode + 1` steps.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - as gymnasium has it
    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = "rgb_array", size: Any = SIZE) -> None:
        self.render_mode = render_mode
        self.episode, self.steps = -1, 0
        self.size = size
        self.picture = np.zeros((*size, 3), np.uint8)
        self.shown: list[int] = []

    def _obs(self) -> Any:
        return np.array([self.number], np.float32)

    @property
    def number(self) -> int:
        return 10 * self.episode + self.steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._obs(), float(action), self.steps > self.episode, False, {}

    def render(self) -> Any:  # into the same memory each time
        self.picture[:] = 20
        row, column = divmod(self.number, 6)
        self.picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 230
        return self.picture


class Lengthening(Marked):
    """Observations that grow with each step, and no space that says how long they get."""

    observation_space = spaces.Sequence(spaces.Discrete(100))

    def _obs(self) -> Any:
        return (1,) * self.steps


class Ones:
    """An agent that notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        rows = observation.to_ndarray()
        self.seen += rows[:, 0].astype(int).tolist()
        return np.ones(len(rows), np.int64), {}


def frames_of(path: Path) -> np.ndarray:
    if path.suffix == ".gif":
        from PIL import Image, ImageSequence

        with Image.open(path) as file:
            return np.stack(
                [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(file)]
            )
    told, content = decode(path)
    width, height = map(int, re.findall(r"Video:.* (\d+)x(\d+)", told)[0])
    return np.frombuffer(content, np.uint8).reshape(-1, height, width, 3)


def decode(path: Path) -> tuple[str, bytes]:
    """Return what ffmpeg says of a video, and its pixels."""
    from imageio_ffmpeg import get_ffmpeg_exe

    options = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [get_ffmpeg_exe(), "-i", str(path), *options]
    finished = subprocess.run(command, capture_output=True, check=True)
    return finished.stderr.decode(), finished.stdout


def numbers(frames: np.ndarray, scale: int = 1) -> list[int]:
    cell, gray = CELL * scale, frames.mean(-1)
    found = []
    for frame in gray:
        rows, columns = frame.shape[0] // cell, frame.shape[1] // cell
        cells = (
            frame[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).mean((1, 3))
        )
        row, column = np.unravel_index(cells.argmax(), cells.shape)
        found.append(int(6 * row + column))
        assert cells.max() > 200
        assert np.sort(cells, axis=None)[-2] < 50
    return found


@pytest.mark.parametrize("name", ["a.mp4", "b.GIF", "c.gif"])
@pytest.mark.parametrize("scale", [1, 3])
def test_a_video_shows_what_the_agent_saw_and_the_end(
    name: str, scale: int, tmp_path: Path
) -> None:
    agent, path = Ones(), tmp_path / name
    path.write_text("a former video")
    returns = record_video(agent, Marked, path, n_episodes=3, scale=scale)
    assert returns == [1.0, 2.0, 3.0]
    assert agent.seen == [0, 10, 11, 20, 21, 22]
    frames = frames_of(path.rename(path.with_suffix(path.suffix.lower())))
    assert numbers(frames, scale) == [0, 1, 10, 11, 12, 20, 21, 22, 23]
    odd = scale * SIZE[0] % 2 if path.suffix == ".mp4" else 0
    assert frames.shape[1:] == (scale * SIZE[0] + odd, scale * SIZE[1], 3)
    assert len(list(tmp_path.iterdir())) == 1


class Filmed(Relay):
    """Agents who come and go, with the pictures of `Marked`: of all of them together."""

    metadata = {"render_fps": 20}  # noqa: RUF012 - as PettingZoo has it
    render_mode: Any = "rgb_array"

    def render(self) -> Any:
        marked = Marked()
        marked.episode, marked.steps = self._episode, self._step
        return marked.render()


class Idle:
    """Three agents that do nothing."""

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        return np.zeros((len(observation), 3), np.int64), {}


def test_a_video_shows_all_agents_of_an_environment(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    (mean_return,) = record_video(Idle(), Filmed, path, n_episodes=1)
    assert mean_return == pytest.approx((3 + 100 + 2000) / 3)
    assert numbers(frames_of(path)) == [0, 1, 2, 3, 4, 5, 6]


def test_a_video_has_the_speed_of_the_environment_or_the_given_one(tmp_path: Path) -> None:
    from PIL import Image

    for fps, expected in ((None, 20), (5, 5)):
        record_video(Ones(), Marked, tmp_path / "a.mp4", fps=fps)
        assert f" {expected} fps" in decode(tmp_path / "a.mp4")[0]
        record_video(Ones(), Marked, tmp_path / "a.gif", fps=fps)
        with Image.open(tmp_path / "a.gif") as file:
            assert file.info["duration"] == 1000 / expected


def test_an_episode_that_is_cut_off_is_shown_and_has_no_return(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    assert record_video(Ones(), Marked, path, n_episodes=3, max_steps=4) == [1.0, 2.0]
    assert numbers(frames_of(path)) == [0, 1, 10, 11, 12, 20, 21]


@needs("pygame")  # it draws CartPole
def test_the_same_seed_gives_the_same_video(tmp_path: Path) -> None:
    returns = []
    for name in ("a.gif", "b.gif"):
        path = tmp_path / name
        returns.append(record_video(Zeros(), "CartPole-v1", path, seed=7, n_episodes=2))
    assert returns[0] == returns[1]
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


class Zeros:
    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        return np.zeros(len(observation), np.int64), {}


class Growing(Marked):
    def render(self) -> Any:
        return np.zeros((8 + self.number, 8, 3), np.uint8)


class Gray(Marked):
    def render(self) -> Any:
        return np.zeros((8, 8), np.uint8)


class Empty(Marked):
    def render(self) -> Any:
        return np.zeros((0, 8, 3), np.uint8)


def saying(render_fps: Any) -> Marked:
    """Return an environment whose metadata tell a number of frames per second."""
    env = Marked()
    env.metadata = {**env.metadata, "render_fps": render_fps}
    return env


class Failing(Marked):
    def step(self, action: Any) -> Any:
        if self.number == 11:
            raise RuntimeError("the game is over")
        return super().step(action)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"make_env": lambda: Marked(None)},
            ValueError,
            r"render_mode is None, expected 'rgb_arra",
        ),
        ({"make_env": lambda: Marked("human")}, ValueError, r"render_mode is 'human', expected"),
        ({"make_env": lambda: 3}, TypeError, "make_env"),
        ({"make_env": Growing}, ValueError, r"a frame \(9, 8, 3\) after others \(8, 8, 3\)"),
        ({"make_env": Gray}, TypeError, r"gave uint8 \(8, 8\), expected uint8 \(H, W, 3\)"),
        ({"make_env": Failing}, RuntimeError, "the game is over"),
        ({"fps": 0}, ValueError, "fps: got 0"),
        ({"scale": 0}, ValueError, "scale: got 0"),
        ({"scale": 1.5}, TypeError, r"scale: got 1\.5, expected an integer"),
        ({"make_env": lambda: saying(-1)}, ValueError, r"render_fps: got -1, expected .* give fps"),
        ({"make_env": lambda: saying(math.nan)}, ValueError, "render_fps: got nan"),
        ({"make_env": lambda: saying("30")}, ValueError, "render_fps: got '30'"),
        ({"make_env": Empty}, TypeError, r"gave uint8 \(0, 8, 3\)"),
        ({"n_episodes": 0}, ValueError, "n_episodes: got 0"),
        ({"max_steps": 0}, ValueError, "max_steps: got 0"),
        ({"name": "a.avi"}, ValueError, r"expected a name that ends in \.mp4 or \.gif"),
        ({"name": "missing/a.gif"}, FileNotFoundError, "missing is no folder; make it first"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_what_goes_wrong_leaves_the_former_video(
    name: str, change: dict[str, Any], error: Any, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("a former video")
    options = {"make_env": Marked, "n_episodes": 2, **change}
    make_env = options.pop("make_env")
    path = tmp_path / options.pop("name", name)
    with pytest.raises(error, match=message):
        record_video(Ones(), make_env, path, **options)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        (name, "a former video")
    ]


def test_a_given_speed_stands_above_what_an_environment_says(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    record_video(Ones(), lambda: saying(-1), path, fps=np.float32(25))  # type: ignore[arg-type]
    assert path.stat().st_size > 0
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; choose another name"):
        record_video(Ones(), Marked, path)


@pytest.mark.parametrize(("name", "missing"), [("a.gif", "imageio"), ("a.mp4", "imageio_ffmpeg")])
def test_a_missing_library_is_an_error_that_names_the_extra(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    message = f"record_video needs '{missing}.*pip install parllel\\[train\\]"
    with pytest.raises(ModuleNotFoundError, match=message):
        record_video(Ones(), Marked, tmp_path / name)


# Several agents


class Zero(Ones):
    """An agent that takes the action that pays nothing."""

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        return np.zeros(len(observation), np.int64), {}


class Wide(Marked):
    """Shows pictures in which a row of pixels tells the number; the action is the growth of it."""

    def render(self) -> Any:
        picture = np.full((20, 60, 3), 20, np.uint8)
        picture[0, : 1 + self.number] = 230
        return picture


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
@pytest.mark.parametrize("scale", [1, 2])
def test_agents_are_shown_side_by_side_below_their_names(
    name: str, scale: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    agents = {"one": Ones(), "none": Zero(), "a name that is wider than the picture": Zero()}
    returns = record_side_by_side(agents, Wide, path, n_episodes=3, scale=scale)
    assert returns == dict(zip(agents, [[1.0, 2.0, 3.0], [0.0] * 3, [0.0] * 3], strict=True))
    frames = frames_of(path)
    assert len(frames) == 9
    label = frames.shape[1] - 20 * scale
    assert 10 < label < 30
    tile = 60 * scale
    first, second = frames[:, :, :tile], frames[:, :, tile + 8 : 2 * tile + 8]
    last = frames[:, :, 2 * tile + 16 :]
    assert last.shape[2] > tile  # as wide as its name
    for part in (first, second, last):
        letters = part[:, :label].max(axis=(0, 3))
        assert letters.max() > 150
        assert (np.abs(part[0, :label].astype(int) - part[-1, :label]) < 60).all()
    for part in (first, second):
        row = part[:, label + scale // 2, :, 0] > 125
        shown = [0, 1, 10, 11, 12, 20, 21, 22, 23]
        assert (row.sum(1) // scale).tolist() == [1 + number for number in shown]
    with pytest.raises(ValueError, match="agents: got none"):
        record_side_by_side({}, Wide, path)


def test_an_agent_that_is_done_stands_still(tmp_path: Path) -> None:
    class Ending(Wide):
        def step(self, action: Any) -> Any:
            *others, _, info = super().step(action)
            observation, reward, _ = others
            return observation, reward, action == 1 or self.steps == 4, False, info

    path = tmp_path / "a.gif"
    record_side_by_side({"1": Ones(), "0": Zero()}, Ending, path)
    frames = frames_of(path)
    row = frames[:, -20, :, 0] > 125
    assert row[:, :60].sum(1).tolist() == [1, 2, 2, 2, 2]
    assert row[:, 68:].sum(1).tolist() == [1, 2, 3, 4, 5]


def test_frames_of_other_heights_are_refused_and_the_former_video_stays(tmp_path: Path) -> None:
    path, heights = tmp_path / "a.gif", iter((8, 9))
    path.write_text("a former video")
    agents = {"one": Ones(), "other": Ones()}
    with pytest.raises(ValueError, match=r"frames are \[\d+, \d+\] pixels high"):
        record_side_by_side(agents, lambda: Marked(size=(40 + next(heights), 50)), path)
    assert path.read_text() == "a former video"
    with pytest.raises(TypeError, match=r"gave uint8 \(8, 8\), expected uint8"):
        record_side_by_side(agents, Gray, path)
    assert path.read_text() == "a former video"


def test_observations_without_a_largest_length_are_filmed_with_a_capacity(tmp_path: Path) -> None:
    class Always:
        def step(self, observation: Any, *, deterministic: bool = False) -> Any:
            return np.ones(len(observation), np.int64), {}

    path = tmp_path / "film.gif"
    with pytest.raises(ValueError, match="largest length"):
        record_video(Always(), Lengthening, path)
    assert record_video(Always(), Lengthening, path, n_episodes=2, capacity=9) == [1.0, 2.0]
    assert len(frames_of(path)) == 2 + 3

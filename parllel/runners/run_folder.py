"""RunFolder: the folder of a run, with its config, numbers, curve, checkpoints and model."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from parllel.metrics import (
    CsvMetrics,
    LearningCurve,
    Metrics,
    MetricsSink,
    ProgressBar,
    TensorBoardMetrics,
)
from parllel.runners.run_config import RunConfig
from parllel.tree import saved_json
from parllel.tree.whole_files import make_folders, replace_file

# A resumed run may have others of these: where it lies, how long it is, which memory it has.
_MAY_CHANGE = ("out", "resume", "steps", "storage")


class RunFolder:
    """The folder of a run, and the names of what lies in it.

    - `config.json`: the program's name, as `program`, and the arguments of the run;
    - `metrics.csv`, `tensorboard/`, `learning_curve.png`: its numbers (`open_metrics`);
    - `checkpoints/`, `model.safetensors`, `video.gif`: names for the program to use.

    >>> import tempfile
    >>> config = RunConfig(out=Path(tempfile.mkdtemp()) / "run")
    >>> run = RunFolder(config, name="example")
    >>> sorted(path.name for path in run.path.iterdir()), run.model.name
    (['config.json'], 'model.safetensors')
    >>> RunFolder(config, name="example")
    Traceback (most recent call last):
    FileExistsError: ...: there is a run in this folder; choose another one (out), or go on...

    Args:
        config: the arguments of the run: a frozen dataclass, whose values JSON holds.
        name: the program's name. Where the config names no folder, it is a new one below
            `runs/<name>`, called by the time.

    Attributes:
        path: the folder.
        checkpoints, model, curve, video: paths in it.

    Raises:
        FileExistsError: there is a run in the folder, and it is not to be resumed.
        FileNotFoundError: there is none to resume.
        NotADirectoryError: the folder's name is that of a file.
        ValueError: a run is to be resumed that another program has begun, or that was begun with
            other arguments, or whose `config.json` is damaged; or no folder is named to resume.
    """

    def __init__(self, config: RunConfig, *, name: str) -> None:
        if config.out is None and config.resume:
            raise ValueError("resume: got no folder, expected the one of the run (out)")
        self.path = _new_folder(Path("runs") / name) if config.out is None else config.out
        self._config_path = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.curve = self.path / "learning_curve.png"
        self.video = self.path / "video.gif"
        content = {"program": name, **_as_json(config)}
        if config.resume:
            self._check_same(content)
            return
        if any(path.exists() and not path.is_dir() for path in (self.path, *self.path.parents)):
            raise NotADirectoryError(
                f"{self.path}: a file has this name, or that of a folder above; choose another"
                " folder (out)"
            )
        if self._config_path.exists():
            raise FileExistsError(
                f"{self.path}: there is a run in this folder; choose another one (out), or go on"
                " with it (resume)"
            )
        make_folders(self.path)
        text = json.dumps(content, indent=1).encode()
        replace_file(self._config_path, lambda file: file.write(text))

    def _check_same(self, config: Mapping[str, Any]) -> None:
        if not self._config_path.exists():
            raise FileNotFoundError(f"{self._config_path}: there is no run to resume; leave it out")
        begun = {"program": config["program"], **_read_config(self._config_path)}
        names = sorted((begun.keys() | config.keys()) - set(_MAY_CHANGE))
        differing = {
            name: (begun.get(name), config.get(name))
            for name in names
            if not _is_same(begun.get(name), config.get(name))
        }
        if differing:
            raise ValueError(
                f"{self.path}: the run was begun with other arguments (then, now): {differing};"
                " resume it with the same"
            )

    def open_metrics(
        self,
        n_steps: int,
        *,
        curve: Sequence[str] = ("train/episode_return",),
        sinks: Sequence[MetricsSink] = (),
    ) -> Metrics:
        """Return the sinks of the run: a table, TensorBoard, a curve, a progress bar, and others.

        Args:
            n_steps: number of environment steps of the run.
            curve: keys of the numbers that the learning curve shows.
            sinks: more sinks, which are closed with these.

        Raises:
            ModuleNotFoundError: a package of parllel[train] is not installed.
        """
        table = self.path / "metrics.csv"
        return Metrics(
            CsvMetrics(table),
            TensorBoardMetrics(self.path / "tensorboard"),
            LearningCurve(self.curve, y=curve, history=table),
            ProgressBar(n_steps),
            *sinks,
        )


def _new_folder(parent: Path) -> Path:
    """Make a folder that is called by the time; programs that start together get one each."""
    make_folders(parent)
    started = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in itertools.count(1):
        path = parent / (started if number == 1 else f"{started}_{number}")
        with suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _is_same(one: Any, other: Any) -> bool:  # Any: what JSON holds
    """Whether two arguments are the same; NaN is the same as NaN."""
    return one == other or json.dumps(one) == json.dumps(other)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return saved_json.parse(saved_json.read_data(path))
    except saved_json.DamagedError as error:
        raise ValueError(
            f"{path}: no config of a run, expected a JSON object of its arguments: {error}; put the"
            " file back as the run wrote it, or begin another run (out)"
        ) from error


def _as_json(config: RunConfig) -> dict[str, Any]:
    """Return the fields of a config as JSON holds them: tuples are lists, paths are texts."""
    loaded: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=_as_text))
    return loaded


def _as_text(value: object) -> str:
    if not isinstance(value, Path):
        raise TypeError(f"config: got {value!r}, expected numbers, texts, paths, or lists of these")
    return str(value)

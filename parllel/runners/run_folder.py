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
from parllel.ranks import check_same, gather, n_ranks, rank
from parllel.runners.run_config import RunConfig
from parllel.tree import saved_json
from parllel.tree.whole_files import make_folders, replace_file

# A resumed run may have others of these: where it lies, how long it is, which memory it has.
_N_RANKS = "n_ranks"  # beside the arguments, where there are several
_MAY_CHANGE = ("out", "resume", "steps", "storage")


class RunFolder:
    """The folder of a run, and the names of what lies in it.

    - `config.json`: the program's name, as `program`, and the arguments of the run;
    - `metrics.csv`, `tensorboard/`, `learning_curve.png`: its numbers (`open_metrics`);
    - `checkpoints/`, `model.safetensors`, `video.gif`: names for the program to use.

    Of several ranks (`parllel.ranks`), rank 0 has the folder, and rank r the one `rank-<r>` in it,
    with its own checkpoints and whatever it writes; only rank 0 writes numbers.

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
        RankError: another rank has ended, or did not come in time.
        ValueError: a run is to be resumed that another program has begun, or that was begun with
            other arguments or by another number of ranks, or whose `config.json` is damaged; or no
            folder is named to resume. Or ranks have other arguments.
    """

    def __init__(self, config: RunConfig, *, name: str) -> None:
        if config.out is None and config.resume:
            raise ValueError("resume: got no folder, expected the one of the run (out)")
        content = {"program": name, **_as_json(config)}
        check_same(
            "the arguments of the run", {key: json.dumps(each) for key, each in content.items()}
        )
        path = _folder_of_all(name) if config.out is None else config.out
        self.path = path / f"rank-{rank()}" if rank() else path
        self._config_path = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.curve = self.path / "learning_curve.png"
        self.video = self.path / "video.gif"
        if config.resume:
            _check_n_ranks(path)
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
        of_ranks = {_N_RANKS: n_ranks()} if n_ranks() > 1 else {}
        text = json.dumps({**content, **of_ranks}, indent=1).encode()
        replace_file(self._config_path, lambda file: file.write(text))

    def _check_same(self, config: Mapping[str, Any]) -> None:
        if not self._config_path.exists():
            raise FileNotFoundError(f"{self._config_path}: there is no run to resume; leave it out")
        begun = {"program": config["program"], **_read_config(self._config_path)}
        names = sorted((begun.keys() | config.keys()) - {*_MAY_CHANGE, _N_RANKS})
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

    def print(self, text: str) -> None:
        """Print a text; of several ranks, the first one does it alone."""
        if not rank():
            print(text, flush=True)

    def open_metrics(
        self,
        n_steps: int,
        *,
        curve: Sequence[str] = ("train/episode_return",),
        sinks: Sequence[MetricsSink] = (),
    ) -> Metrics:
        """Return the sinks of the run: a table, TensorBoard, a curve, a progress bar, and others.

        Of several ranks, the first one has all of them, and others only `sinks`, which their
        runners write nothing to.

        Args:
            n_steps: number of environment steps of the run.
            curve: keys of the numbers that the learning curve shows.
            sinks: more sinks, which are closed with these.

        Raises:
            ModuleNotFoundError: a package of parllel[train] is not installed.
        """
        if rank():
            return Metrics(*sinks)
        table = self.path / "metrics.csv"
        return Metrics(
            CsvMetrics(table),
            TensorBoardMetrics(self.path / "tensorboard"),
            LearningCurve(self.curve, y=curve, history=table),
            ProgressBar(n_steps),
            *sinks,
        )


def _folder_of_all(name: str) -> Path:
    """Return a new folder of a program; ranks of one run have the one that rank 0 has made."""
    own = "" if rank() else str(_new_folder(Path("runs") / name))
    return Path(gather("the name of the run's folder", own)[0])


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


def _check_n_ranks(path: Path) -> None:
    """Refuse to go on with a run in a folder by another number of ranks than it was begun with."""
    config_path = path / "config.json"
    if not config_path.exists():  # of another machine, or there is no run: others tell of that
        return
    begun = _read_config(config_path).get(_N_RANKS, 1)
    if begun != n_ranks():
        raise ValueError(
            f"{path}: got {n_ranks()} ranks to go on with the run, expected {begun}, as it was"
            f" begun with; start as many (torchrun --nproc-per-node {begun}), or begin another run"
            " (out)"
        )


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

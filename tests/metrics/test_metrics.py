"""Every sink, read back with the reader its users have: csv, TensorBoard, an image, a terminal."""

import csv
import errno
import io
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optional import needs
from parllel.metrics import (
    ConsoleMetrics,
    CsvMetrics,
    LearningCurve,
    Metrics,
    MetricsSink,
    ProgressBar,
    TensorBoardMetrics,
    TrackerMetrics,
)

RETURN = "train/episode_return"
LOSS = "train/loss"


class Recorder(MetricsSink):
    """Remember the calls."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []
        self.n_finished = 0

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.logs.append((step, values))

    def _finish(self) -> None:
        self.n_finished += 1


class Broken(MetricsSink):
    """Fail at every opportunity."""

    def __init__(self, name: str = "broken") -> None:
        self.name = name

    def _write(self, step: int, values: dict[str, float]) -> None:
        raise OSError(f"{self.name}: write")

    def _finish(self) -> None:
        raise OSError(f"{self.name}: finish")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def read_picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def run_python(source: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", source, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class FakeRun:
    """A run as wandb and trackio have it: `log(dict, step=)` and `finish()`."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.logs: list[tuple[int | None, dict[str, Any]]] = []
        self.n_finished = 0

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.logs.append((step, data))
        if "log" in self.broken:
            raise ConnectionError("the network is down")

    def finish(self) -> None:
        self.n_finished += 1
        if "finish" in self.broken:
            raise ConnectionError("the network is down")


# Each makes a sink that writes into the folder.
FILE_SINKS: dict[str, Callable[[Path], MetricsSink]] = {
    "csv": lambda folder: CsvMetrics(folder / "metrics.csv"),
    "tensorboard": TensorBoardMetrics,
    "curve": lambda folder: LearningCurve(folder / "curve.png", y=[RETURN]),
}
SINKS = FILE_SINKS | {
    "console": lambda folder: ConsoleMetrics(stream=io.StringIO()),
    "progress": lambda folder: ProgressBar(100, is_disabled=False, stream=io.StringIO()),
    "null": lambda folder: Metrics(),
    "tracker": lambda folder: TrackerMetrics(FakeRun()),
}
NEEDED = {"tensorboard": "tensorboard", "curve": "matplotlib", "progress": "tqdm"}


def each(sinks: dict[str, Callable[[Path], MetricsSink]]) -> pytest.MarkDecorator:
    marks = {name: [needs(NEEDED[name])] if name in NEEDED else [] for name in sinks}
    cases = [pytest.param(make, id=name, marks=marks[name]) for name, make in sinks.items()]
    return pytest.mark.parametrize("make_sink", cases)


each_sink, each_file_sink = each(SINKS), each(FILE_SINKS)


# The contract of all sinks


@each_sink
def test_close_twice_is_close_once(
    make_sink: Callable[[Path], MetricsSink], tmp_path: Path
) -> None:
    sink = make_sink(tmp_path)
    sink.log(1, {RETURN: 2.0})
    sink.close()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    sink.close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


@each_sink
def test_log_after_close_is_an_error(
    make_sink: Callable[[Path], MetricsSink], tmp_path: Path
) -> None:
    with make_sink(tmp_path) as sink:
        pass
    with pytest.raises(RuntimeError, match=r"log\(\) after close\(\)"):
        sink.log(1, {RETURN: 2.0})


@each_sink
def test_a_sink_takes_logs_without_values_and_values_that_are_not_finite(
    make_sink: Callable[[Path], MetricsSink], tmp_path: Path
) -> None:
    with make_sink(tmp_path) as sink:
        sink.log(0, {})
        sink.log(1, {RETURN: math.nan})
        sink.log(2, {RETURN: math.inf})
        sink.log(2, {RETURN: -math.inf})


@each_file_sink
def test_no_sink_holds_a_file_open(
    make_sink: Callable[[Path], MetricsSink], tmp_path: Path
) -> None:
    def open_here() -> list[str]:
        handles = map(os.path.realpath, Path("/proc/self/fd").iterdir())
        return [target for target in handles if target.startswith(str(tmp_path))]

    with (tmp_path / "proof").open("w"):
        assert open_here() == [str(tmp_path / "proof")]
    with make_sink(tmp_path) as sink:
        assert open_here() == []
        sink.log(1, {RETURN: 2.0})
        assert open_here() == []
    assert open_here() == []


@each_file_sink
def test_a_path_that_cannot_be_written_is_an_error_at_once(
    make_sink: Callable[[Path], MetricsSink], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_sink(tmp_path / "file")


@pytest.mark.parametrize(
    "sink", [CsvMetrics, pytest.param(LearningCurve, marks=needs("matplotlib"))]
)
def test_a_folder_in_the_file_s_place_is_an_error_at_once(
    sink: type[CsvMetrics | LearningCurve], tmp_path: Path
) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(IsADirectoryError):
        sink(tmp_path / "taken.png")


@each_file_sink
def test_missing_folders_are_made(make_sink: Callable[[Path], MetricsSink], tmp_path: Path) -> None:
    with make_sink(tmp_path / "a" / "b") as sink:
        sink.log(1, {RETURN: 2.0})
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


@each_file_sink
def test_a_relative_path_means_the_folder_at_construction(
    make_sink: Callable[[Path], MetricsSink], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path)
    with make_sink(Path("here")) as sink:
        monkeypatch.chdir(tmp_path / "later")
        sink.log(1, {RETURN: 2.0})
    assert len(list((tmp_path / "here").iterdir())) == 1
    assert list((tmp_path / "later").iterdir()) == []


# Numbers


@pytest.mark.parametrize(
    "value",
    [
        2.5,
        Decimal("2.5"),
        np.float32(2.5),
        np.array(2.5),
        torch.tensor(2.5),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.tensor(1.25, requires_grad=True) * 2,
    ],
    ids=repr,
)
def test_anything_with_float_is_a_number(value: float) -> None:
    sink = Recorder()
    sink.log(1, {LOSS: value})
    assert sink.logs == [(1, {LOSS: 2.5})]
    assert type(sink.logs[0][1][LOSS]) is float


@pytest.mark.parametrize("value", [3, True, np.int64(3), np.bool_(True), torch.tensor(3)], ids=repr)
def test_whole_numbers_and_flags_are_numbers(value: float) -> None:
    sink = Recorder()
    sink.log(1, {LOSS: value})
    assert sink.logs == [(1, {LOSS: float(value)})]


@pytest.mark.parametrize(
    "value",
    ["2.5", np.str_("2.5"), b"2.5", None, 1j, [2.5], np.zeros(1), torch.zeros(1), torch.zeros(3)],
    ids=repr,
)
def test_a_value_that_is_no_number_is_an_error_that_names_its_key(value: object) -> None:
    with pytest.raises(TypeError, match=f"^{LOSS}: got .*, expected one number"):
        Metrics().log(1, {RETURN: 1.0, LOSS: value})  # type: ignore[dict-item]


@pytest.mark.parametrize("step", [7, np.int64(7), torch.tensor(7)], ids=repr)
def test_a_step_is_any_integer(step: int) -> None:
    sink = Recorder()
    sink.log(step, {})
    assert sink.logs == [(7, {})]


def test_a_step_that_is_no_integer_from_0_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"step: got 7\.0, expected an integer"):
        Metrics().log(7.0, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step: got -1, expected >= 0"):
        Metrics().log(-1, {})


@pytest.mark.parametrize(("key", "error"), [("step", ValueError), ("", ValueError), (1, TypeError)])
def test_a_key_that_is_reserved_or_no_string_is_an_error(key: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^key {key!r}"):
        Metrics().log(1, {key: 1.0})


def test_a_log_with_a_bad_value_reaches_no_sink() -> None:
    sink = Recorder()
    with pytest.raises(TypeError):
        Metrics(sink).log(1, {RETURN: 1.0, LOSS: "much"})  # type: ignore[dict-item]
    assert sink.logs == []


# Metrics


def test_metrics_passes_each_log_to_all_sinks_in_order() -> None:
    first, second = Recorder(), Recorder()
    second.logs = first.logs  # one list shows the order
    with Metrics(first, Metrics(second)) as metrics:
        metrics.log(1, {LOSS: 0.5})
        metrics.log(2, {LOSS: 0.25})
    assert [step for step, _ in first.logs] == [1, 1, 2, 2]
    assert (first.n_finished, second.n_finished) == (1, 1)


def test_sinks_do_not_share_the_dictionary_they_own() -> None:
    first, second = Recorder(), Recorder()
    Metrics(first, second).log(1, {LOSS: 0.5})
    first.logs[0][1].clear()
    assert second.logs == [(1, {LOSS: 0.5})]


@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_failing_sink_does_not_stop_others(n_before: int) -> None:
    recorders = [Recorder(), Recorder()]
    metrics = Metrics(*recorders[:n_before], Broken(), *recorders[n_before:])
    with pytest.raises(OSError, match="broken: write"):
        metrics.log(1, {LOSS: 0.5})
    with pytest.raises(OSError, match="broken: finish"):
        metrics.close()
    assert all(sink.logs == [(1, {LOSS: 0.5})] and sink.n_finished == 1 for sink in recorders)


def test_when_several_sinks_fail_all_errors_show() -> None:
    with pytest.raises(OSError, match="last: finish") as caught:
        Metrics(Broken("first"), Broken("last")).close()
    assert str(caught.value.__context__) == "first: finish"


def test_metrics_says_how_to_pass_sinks() -> None:
    with pytest.raises(TypeError, match=r"separate arguments, Metrics\(a, b\)"):
        Metrics([Recorder()])  # type: ignore[arg-type]


@needs("matplotlib", "tensorboard")
def test_an_interrupted_run_leaves_complete_files(tmp_path: Path) -> None:
    sinks = [make_sink(tmp_path) for make_sink in FILE_SINKS.values()]

    def train(metrics: MetricsSink) -> None:
        metrics.log(1, {RETURN: 2.0})
        metrics.log(2, {RETURN: 3.0})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Metrics(*sinks) as metrics:
        train(metrics)
    assert [row[RETURN] for row in read_csv(tmp_path / "metrics.csv")] == ["2.0", "3.0"]
    assert read_scalars(tmp_path) == {RETURN: [(1, 2.0), (2, 3.0)]}
    assert read_picture(tmp_path / "curve.png").std() > 0


@needs("tensorboard")
def test_a_killed_run_loses_no_row_and_no_event(tmp_path: Path) -> None:
    source = """if True:
        import os, signal, sys
        from parllel.metrics import CsvMetrics, Metrics, TensorBoardMetrics
        metrics = Metrics(CsvMetrics(sys.argv[1] + "/metrics.csv"), TensorBoardMetrics(sys.argv[1]))
        metrics.log(1, {"loss": 0.5})
        metrics.log(2, {"loss": 0.25})
        os.kill(os.getpid(), signal.SIGKILL)"""
    assert run_python(source, tmp_path).returncode == -signal.SIGKILL
    assert [row["loss"] for row in read_csv(tmp_path / "metrics.csv")] == ["0.5", "0.25"]
    assert read_scalars(tmp_path) == {"loss": [(1, 0.5), (2, 0.25)]}


# What is imported


@needs("matplotlib", "tensorboard", "tqdm")
def test_importing_and_using_the_sinks_loads_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    source = """if True:
        import sys
        from parllel.metrics import *
        loaded = {"torch", "matplotlib", "tensorboard", "tqdm"} & set(sys.modules)
        assert not loaded, loaded
        folder = sys.argv[1]
        sinks = LearningCurve(folder + "/a.png", y="loss"), TensorBoardMetrics(folder)
        with Metrics(*sinks, ProgressBar(2, is_disabled=False)) as metrics:
            metrics.log(1, {"loss": 0.5})
        loaded = {"torch", "matplotlib.pyplot"} & set(sys.modules)
        assert not loaded, loaded"""
    run = run_python(source, tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("library", "sink"),
    [
        ("tqdm", "ProgressBar(10)"),
        ("tensorboard", "TensorBoardMetrics('.')"),
        ("matplotlib", "LearningCurve('a.png')"),
    ],
)
def test_a_missing_library_is_an_error_that_names_the_extra(library: str, sink: str) -> None:
    source = f"""if True:
        import sys
        class Absent:
            def find_spec(name, *_):
                if name == {library!r}:
                    raise ModuleNotFoundError(name=name)
        sys.meta_path.insert(0, Absent)
        from parllel.metrics import *
        {sink}"""
    last_line = run_python(source).stderr.splitlines()[-1]
    assert last_line == (
        f"ModuleNotFoundError: {sink.partition('(')[0]} needs '{library}', which is not installed; "
        "run: pip install parllel[train]"
    )


# CSV


def test_csv_has_one_row_for_each_log(tmp_path: Path) -> None:
    with CsvMetrics(tmp_path / "m.csv") as sink:
        sink.log(10, {LOSS: 0.1, RETURN: 1e-300})
        sink.log(10, {RETURN: math.nan, LOSS: -math.inf})
    assert read_csv(tmp_path / "m.csv") == [
        {"step": "10", LOSS: "0.1", RETURN: "1e-300"},
        {"step": "10", LOSS: "-inf", RETURN: "nan"},
    ]


def test_csv_columns_grow_with_new_keys(tmp_path: Path) -> None:
    with CsvMetrics(tmp_path / "m.csv") as sink:
        sink.log(1, {"a": 1.0})
        sink.log(2, {"b": 2.0, "c, d": 3.0})
        sink.log(3, {"a": 4.0})
    assert read_csv(tmp_path / "m.csv") == [
        {"step": "1", "a": "1.0", "b": "", "c, d": ""},
        {"step": "2", "a": "", "b": "2.0", "c, d": "3.0"},
        {"step": "3", "a": "4.0", "b": "", "c, d": ""},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


LOGS = st.lists(
    st.dictionaries(st.text("abc,\"' é", min_size=1, max_size=3), st.floats()), max_size=8
)


@given(LOGS, st.integers(0, 8))
def test_csv_reads_back_what_was_logged_also_when_reopened(
    logs: list[dict[str, float]], n_before: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.csv")
        for part in (logs[:n_before], logs[n_before:]):
            sink = CsvMetrics(path)
            for step, values in enumerate(part):
                sink.log(step, values)
                last = read_csv(path)[-1]  # readable at any moment
                assert last["step"] == str(step)
        rows = read_csv(path)
    read = [
        {key: float(text) for key, text in row.items() if key != "step" and text} for row in rows
    ]
    assert list(map(repr, read)) == [
        repr({key: values[key] for key in row if key in values})
        for row, values in zip(rows, logs, strict=True)
    ]


def test_csv_continues_a_file_under_one_header(tmp_path: Path) -> None:
    for step, key in ((1, "a"), (2, "b")):
        with CsvMetrics(tmp_path / "m.csv") as sink:
            sink.log(step, {key: 0.5})
    assert (tmp_path / "m.csv").read_text() == "step,a,b\n1,0.5,\n2,,0.5\n"


def test_csv_drops_a_row_that_a_crash_cut_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.csv"
    path.write_text("step,a\n1,0.5\n2,0.1")  # the last number may have been 0.125
    with CsvMetrics(path) as sink:
        sink.log(3, {"a": 0.75})
    assert path.read_text() == "step,a\n1,0.5\n3,0.75\n"
    assert "dropped an unfinished last row: b'2,0.1'" in caplog.text


def test_csv_leaves_a_foreign_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("seed,score\n0,1")
    with pytest.raises(ValueError, match="the first column is 'seed', expected 'step'"):
        CsvMetrics(path)
    assert path.read_text() == "seed,score\n0,1"


def test_csv_keeps_the_old_file_if_widening_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    sink = CsvMetrics(tmp_path / "m.csv")
    sink.log(1, {"a": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            sink.log(2, {"b": 0.5})
    assert (tmp_path / "m.csv").read_text() == "step,a\n1,0.5\n"
    sink.log(3, {"b": 0.5})
    assert (tmp_path / "m.csv").read_text() == "step,a,b\n1,0.5,\n3,,0.5\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


# TensorBoard


@needs("tensorboard")
def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    with TensorBoardMetrics(tmp_path) as sink:
        sink.log(2**40, {LOSS: 0.5, RETURN: math.inf})
        sink.log(2**40 + 1, {LOSS: 0.25})
    assert read_scalars(tmp_path) == {
        LOSS: [(2**40, 0.5), (2**40 + 1, 0.25)],
        RETURN: [(2**40, math.inf)],
    }


@needs("tensorboard")
def test_tensorboard_continues_a_folder(tmp_path: Path) -> None:
    sinks = [TensorBoardMetrics(tmp_path) for _ in range(3)]  # in one second, in one process
    for step, sink in enumerate(sinks):
        sink.log(step, {LOSS: 0.5})
    assert len(list(tmp_path.iterdir())) == 3
    assert read_scalars(tmp_path) == {LOSS: [(0, 0.5), (1, 0.5), (2, 0.5)]}


@needs("tensorboard")
def test_tensorboard_reads_files_of_one_second_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, nanoseconds in enumerate([7, 80, 100_000_000, 999_999_999]):
        monkeypatch.setattr(time, "time_ns", lambda now=nanoseconds: 10**18 + now)
        TensorBoardMetrics(tmp_path).log(step, {LOSS: 0.5})
    assert read_scalars(tmp_path)[LOSS] == [(step, 0.5) for step in range(4)]


class Full(io.FileIO):
    """A file on a disk that takes no more than some bytes beyond what the file has."""

    room = 0

    def write(self, data: Any) -> int:
        if not Full.room:
            raise OSError(errno.ENOSPC, "no space left on device")
        n = min(len(data), Full.room)
        Full.room -= n
        return super().write(data[:n])


@pytest.mark.parametrize("room", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("is_truncated", [True, False])
def test_csv_rows_never_fuse_after_a_full_disk(
    room: int, is_truncated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, real_open = CsvMetrics(tmp_path / "m.csv"), Path.open
    sink.log(1, {"a": 0.5, "b": 0.25})

    def open_full(path: Path, mode: str, **options: Any) -> Any:
        return Full(path, mode)

    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_full)
        if not is_truncated:  # the row's part stays for a while
            full.setattr(os, "truncate", lambda *_: _raise(OSError("can't")))
        Full.room = room
        with pytest.raises(OSError, match="no space left"):
            sink.log(2, {"a": 0.125, "b": 0.5})
    assert Path.open is real_open
    sink.log(3, {"a": 1, "b": 2})
    sink.log(4, {"a": 1, "c": 3})
    assert read_csv(tmp_path / "m.csv") == [
        {"step": "1", "a": "0.5", "b": "0.25", "c": ""},
        {"step": "3", "a": "1.0", "b": "2.0", "c": ""},
        {"step": "4", "a": "1.0", "b": "", "c": "3.0"},
    ]


def _raise(error: Exception) -> None:
    raise error


def test_csv_survives_a_cut_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also within a header whose keys have lines, quotes and characters of several bytes."""
    values = {'a\n"b': 1.0, "ü": 2.0, "\n": 3.0}
    with CsvMetrics(tmp_path / "whole.csv") as sink:
        for step in (1, 2):
            sink.log(step, values)
    content = (tmp_path / "whole.csv").read_bytes()
    whole = read_csv(tmp_path / "whole.csv")
    for length in range(len(content)):
        path = tmp_path / "cut.csv"
        path.write_bytes(content[:length])
        with CsvMetrics(path) as sink:
            sink.log(3, values)
        rows = read_csv(path)
        assert rows[-1] == whole[-1] | {"step": "3"}
        assert rows[:-1] == whole[: len(rows) - 1]
        assert len(rows) == 1 + max(0, content[:length].count(b"\n") - 3)


def test_csv_refuses_what_is_no_file_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path(os.devnull)):
        with pytest.raises(ValueError, match="it is a FIFO or a device"):
            CsvMetrics(path)


@pytest.mark.parametrize("cut", ["", "st", "step", "step,los"])
def test_csv_writes_a_header_anew_that_was_cut_short(cut: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(cut)
    with CsvMetrics(tmp_path / "m.csv") as sink:
        sink.log(1, {"loss": 0.5})
    assert (tmp_path / "m.csv").read_text() == "step,loss\n1,0.5\n"


def test_csv_refuses_two_runs_in_one_file(tmp_path: Path) -> None:
    first, second = (CsvMetrics(tmp_path / "m.csv") for _ in range(2))
    second.log(1, {"a": 0.5})
    for values in ({"a": 1.0}, {"b": 1.0}):
        with pytest.raises(RuntimeError, match=r"m\.csv: it has .* another run or program"):
            first.log(1, values)
    second.log(2, {"a": 0.25})
    assert (tmp_path / "m.csv").read_text() == "step,a\n1,0.5\n2,0.25\n"


def test_csv_refuses_what_it_could_not_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with pytest.raises(ValueError, match="a carriage return"):
        CsvMetrics(path).log(1, {"a\rb": 1.0})
    path.write_text("step," + "x" * 300_000 + "\n1,2\n")
    with pytest.raises(ValueError, match=r"m\.csv: no table that CsvMetrics wrote"):
        CsvMetrics(path)


@needs("tensorboard")
def test_tensorboard_goes_on_in_a_new_file_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = TensorBoardMetrics(tmp_path)
    sink.log(1, {LOSS: 0.5})
    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda path, mode: io.BufferedWriter(Full(path, mode)))
        Full.room = 9
        with pytest.raises(OSError, match="no space left"):
            sink.log(2, {LOSS: 0.25})
    sink.log(3, {LOSS: 0.125})
    assert len(list(tmp_path.iterdir())) == 2
    assert read_scalars(tmp_path) == {LOSS: [(1, 0.5), (3, 0.125)]}


# Console


def test_console_prints_the_step_and_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleMetrics().log(12288, {RETURN: 123.456, LOSS: 0.01234, "n": 7})
    words = capsys.readouterr().out.split()
    assert words == ["step", "12,288", RETURN, "123.5", LOSS, "0.01234", "n", "7"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-3, "-3"),
        (1234567, "1,234,567"),
        (12345.6, "12,346"),
        (0.000123456, "0.0001235"),
        (1.5e9, "1.500e+09"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_console_prints_numbers_for_people(
    value: float, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleMetrics().log(1, {"x": value})
    assert capsys.readouterr().out.split() == ["step", "1", "x", text]


@pytest.mark.parametrize(("columns", "n_lines"), [(40, 4), (70, 2), (300, 1)])
def test_console_lines_are_aligned_and_fit_the_terminal(
    columns: int,
    n_lines: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ConsoleMetrics().log(1, {"a": 0.5, "long_name": 2.0, "b": 123456.0, "c": math.nan})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == n_lines
    # Cells are of one width, so lines of as many cells end in one column.
    assert len({len(line) for line in lines}) == 1
    assert columns == 40 or max(map(len, lines)) <= columns


def test_console_columns_stay_when_a_long_key_is_absent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = ConsoleMetrics()
    for values in ({"a": 1.0, "long_name": 2.0}, {"a": 1.0}):
        sink.log(1, values)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first[: len(last)] == last


def test_console_prints_every_nth_log_and_the_rest_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ConsoleMetrics(every=2) as sink:
        sink.log(1, {"rare": 5.0, "x": 1.0})
        assert capsys.readouterr().out == ""
        sink.log(2, {"x": 2.0})
        assert capsys.readouterr().out.split() == ["step", "2", "rare", "5", "x", "2"]
        sink.log(3, {"x": 3.0})
    assert capsys.readouterr().out.split() == ["step", "3", "x", "3"]
    with pytest.raises(ValueError, match="every: got 0, expected >= 1"):
        ConsoleMetrics(every=0)


def test_console_prints_the_chosen_keys_in_their_order() -> None:
    stream = io.StringIO()
    ConsoleMetrics(keys=["b", "a", "absent"], stream=stream).log(1, {"a": 1, "b": 2, "c": 3})
    assert stream.getvalue().split() == ["step", "1", "b", "2", "a", "1"]


@needs("tqdm")
def test_console_lines_stand_above_an_active_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(ProgressBar(100, is_disabled=False, stream=sys.stdout), ConsoleMetrics()) as both:
        both.log(50, {LOSS: 0.5})
        both.log(100, {LOSS: 0.25})
    # A carriage return begins a line of the terminal anew.
    shown = [line.rpartition("\r")[2] for line in capsys.readouterr().out.split("\n")]
    assert [line.split() for line in shown[:2]] == [
        ["step", "50", LOSS, "0.5000"],
        ["step", "100", LOSS, "0.2500"],
    ]
    assert shown[2].startswith("100%|")


# Progress bar


def bar_text(total_steps: int, logs: list[tuple[int, dict[str, float]]]) -> str:
    """Return the bar as it stands at the end, in a window of any width."""
    stream, widths = (
        io.StringIO(),
        {"COLUMNS": "", "LINES": ""},
    )  # a worker of pytest-xdist has them
    with (
        patch.dict(os.environ, widths),
        ProgressBar(total_steps, (RETURN, LOSS), is_disabled=False, stream=stream) as sink,
    ):
        for step, values in logs:
            sink.log(step, values)
    return stream.getvalue().rpartition("\r")[2]


@needs("tqdm")
def test_progress_bar_shows_the_steps_and_the_chosen_metrics() -> None:
    text = bar_text(2000, [(500, {RETURN: 21.456, "other": 1.0}), (1000, {LOSS: 0.5})])
    assert text.startswith(" 50%|")
    assert "1.00k/2.00k" in text
    assert f"{RETURN} 21.46, {LOSS} 0.5000" in text
    assert "other" not in text


@needs("tqdm")
def test_progress_bar_shows_where_the_time_goes_and_the_state_of_a_gpu() -> None:
    shares = {"policy": 0.25, "envs": 0.5, "learn": 0.2, "transfer": 0.05}
    times = {f"time/{name}_share": share for name, share in shares.items()}
    gpu = {"gpu/memory_used_gb": 3.14, "gpu/utilization": 0.875}
    text = bar_text(100, [(10, gpu), (20, {RETURN: 2.0} | times), (30, {"time/envs_share": 0.4})])
    assert f"{RETURN} 2, " in text
    assert text.rstrip("]\n ").endswith("envs 40% policy 25% transfer 5% learn 20% GPU 88% 3.1 GB")
    assert "steps/s" in text


@needs("tqdm")
def test_progress_bar_ends_full_when_the_last_batch_overshoots() -> None:
    assert bar_text(1000, [(900, {}), (800, {}), (1030, {})]).startswith("100%|")


@needs("tqdm")
def test_progress_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(100) as sink:
        sink.log(50, {RETURN: 1.0})
    assert capsys.readouterr() == ("", "")


@needs("tqdm")
def test_progress_bar_goes_on_at_the_initial_step() -> None:
    stream = io.StringIO()
    with ProgressBar(100, initial_step=80, is_disabled=False, stream=stream):
        assert " 80%|" in stream.getvalue()
    with pytest.raises(ValueError, match="total_steps: got 0, expected >= 1"):
        ProgressBar(0)


@needs("tqdm")
def test_progress_bar_leaves_the_start_method_open() -> None:
    source = """if True:
        import multiprocessing, threading
        from parllel.metrics import *
        metrics = Metrics(ProgressBar(10, is_disabled=False), ConsoleMetrics())
        metrics.log(5, {"loss": 0.5})
        metrics.close()
        multiprocessing.set_start_method("spawn")
        assert threading.active_count() == 1"""
    run = run_python(source)
    assert run.returncode == 0, run.stderr


# Learning curve

DPI = 150


def draw(path: Path, points: list[tuple[int, dict[str, float]]], **options: object) -> np.ndarray:
    """Draw and return the picture, float [height, width, 3] in [0, 1]."""
    with LearningCurve(path, **options) as sink:  # type: ignore[arg-type]
        for step, values in points:
            sink.log(step, values)
    return read_picture(path)[..., :3]


def n_blue(picture: np.ndarray) -> int:
    """Count the pixels that only a curve can have."""
    return int(np.sum(picture[..., 2] - picture[..., 0] > 0.3))


@needs("matplotlib")
@pytest.mark.parametrize("n_points", [1, 2, 500])
def test_curve_is_a_picture_of_the_stated_size(n_points: int, tmp_path: Path) -> None:
    points = [(step, {RETURN: math.sin(step)}) for step in range(n_points)]
    picture = draw(tmp_path / "c.png", points)
    assert picture.shape == (4 * DPI, 8 * DPI, 3)
    assert n_blue(picture) > 20  # one marker has a radius of 2 points = 4 pixels
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


@needs("matplotlib")
def test_curve_has_one_panel_for_each_key_that_was_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = [(step, {"a": step, "b_s": -step, "c": 0.0}) for step in range(100)]
    picture = draw(tmp_path / "c.png", points, y=["a", "typo", "b_s"], title="A run")
    assert picture.shape == ((0.8 + 2 * 3.2) * DPI, 8 * DPI, 3)
    halves = np.array_split(picture, 2)
    assert all(n_blue(half) > 1000 for half in halves)
    assert "nothing was logged for 'typo' over 'step'" in caplog.text


@needs("matplotlib")
def test_curve_over_a_logged_x_takes_points_that_have_both(tmp_path: Path) -> None:
    times = [(step, {"time/run_s": 0.5 * step, LOSS: 1.0}) for step in range(9)]
    both = draw(tmp_path / "a.png", times, x="time/run_s", y=LOSS)
    with_others = [*times, (10, {LOSS: 5.0}), (10, {"time/run_s": 99.0})]
    again = draw(tmp_path / "b.png", with_others, x="time/run_s", y=LOSS)
    np.testing.assert_array_equal(again, both)


@needs("matplotlib")
def test_curve_marks_values_that_are_not_finite(tmp_path: Path) -> None:
    def n_orange(last: float) -> int:
        points = [*((step, {RETURN: 1.0 * step}) for step in range(20)), (20, {RETURN: last})]
        picture = draw(tmp_path / "c.png", points)
        return int(np.sum(picture[..., 0] - picture[..., 2] > 0.3))

    assert n_orange(20.0) == 0
    assert n_orange(math.nan) > 0
    assert n_orange(math.inf) > 0


@needs("matplotlib")
def test_curve_of_nothing_but_nan_is_drawn(tmp_path: Path) -> None:
    picture = draw(tmp_path / "c.png", [(step, {RETURN: math.nan}) for step in range(100)])
    below_legend = picture[len(picture) // 4 :]
    assert n_blue(below_legend) == 0
    assert below_legend.std() > 0


@needs("matplotlib")
def test_curve_without_points_writes_a_sentence_and_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), LearningCurve(tmp_path / "c.png") as sink:
        sink.log(1, {LOSS: 0.5})
    assert list(tmp_path.iterdir()) == []
    assert f"nothing was logged for '{RETURN}' over 'step', so no picture is drawn" in caplog.text


@needs("matplotlib")
def test_curve_keeps_an_old_picture_until_the_new_one_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "c.png"
    path.write_bytes(b"old")
    sink = LearningCurve(path)
    sink.log(1, {RETURN: 0.5})
    assert path.read_bytes() == b"old"
    sink.close()
    assert read_picture(path).std() > 0


@needs("matplotlib")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "c.pdf"}, r"path: got 'c\.pdf', expected a file name that ends in \.png"),
        ({"y": []}, "expected one key or more"),
        ({"smooth": 0}, "smooth=0"),
    ],
)
def test_curve_refuses_what_it_cannot_draw(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningCurve(**({"path": "c.png"} | options))  # type: ignore[arg-type]


@needs("matplotlib")
@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf)), min_size=1),
    st.data(),
)
def test_moving_mean_is_the_mean_of_the_window(y: list[float], data: st.DataObject) -> None:
    from parllel.metrics.curve_figure import moving_mean

    window = data.draw(st.integers(1, len(y)))
    expected = []
    for i, value in enumerate(y):
        inside = y[max(0, i - window // 2) : i + (window - 1) // 2 + 1]
        finite = [other for other in inside if math.isfinite(other)]
        expected.append(sum(finite) / len(finite) if math.isfinite(value) else math.nan)
    # 100 terms of at most 1e6, each rounded by 1.2e-16 of a sum of at most 1e8: below 2e-6.
    np.testing.assert_allclose(moving_mean(y, window), expected, rtol=0, atol=2e-6)


# wandb and trackio


def test_a_tracker_gets_each_log_with_its_step_and_is_finished_once() -> None:
    run = FakeRun()
    with TrackerMetrics(run) as metrics:
        metrics.log(128, {LOSS: 0.5})
        metrics.log(256, {RETURN: math.inf})
        assert run.n_finished == 0
    metrics.close()
    assert run.logs == [(128, {LOSS: 0.5}), (256, {RETURN: math.inf})]
    assert run.n_finished == 1


def test_a_module_is_a_tracker_too() -> None:
    run, module = FakeRun(), ModuleType("wandb")
    module.log, module.finish = run.log, run.finish  # type: ignore[attr-defined]
    with TrackerMetrics(module) as metrics:
        metrics.log(1, {LOSS: 0.5})
    assert (run.logs, run.n_finished) == ([(1, {LOSS: 0.5})], 1)


def test_errors_of_a_tracker_are_told_once_and_end_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = FakeRun("log", "finish")
    with TrackerMetrics(run) as metrics:
        metrics.log(1, {LOSS: 0.5})
        metrics.log(2, {LOSS: 0.25})
    assert [step for step, _ in run.logs] == [1, 2]
    assert run.n_finished == 1
    (record,) = caplog.records
    assert "FakeRun failed; the run goes on" in record.message
    assert "ConnectionError: the network is down" in record.message


def test_a_keyboard_interrupt_in_a_tracker_is_the_users() -> None:
    run = FakeRun()
    run.log = Interrupted()  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt), TrackerMetrics(run) as metrics:
        metrics.log(1, {LOSS: 0.5})
    assert run.n_finished == 1


class Interrupted:
    def __call__(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def test_what_is_no_tracker_is_refused() -> None:
    with pytest.raises(TypeError, match=r"tracker: got 'pong', expected an object with log"):
        TrackerMetrics("pong")  # type: ignore[arg-type]

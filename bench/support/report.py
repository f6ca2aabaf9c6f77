"""Report: what a bench measured, printed as it comes, and written as a JSON file and a picture."""

import argparse
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.gpu_state import GpuState
from support.timing import Summary, print_table, print_target, print_title, summarize

RESULTS = Path(__file__).resolve().parents[1] / "results"


def parse_out(description: str) -> Path:
    """Return the folder that the command line names for the results."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where a JSON file and a PNG are written (default: bench/results)",
    )
    out: Path = parser.parse_args().out
    return out


class Report:
    """Prints title, tables and targets, and keeps them for `write`.

    Args:
        bench: what the files are named after, together with the device.
        title: what was measured.
        notes: lines on how it was measured.
        gpu: the device; None for the CPU.
    """

    def __init__(
        self, bench: str, title: str, notes: Sequence[str], *, gpu: GpuState | None = None
    ) -> None:
        machine = print_title(title)
        if gpu is not None:
            print(gpu.describe_device(), gpu.describe_clocks(), sep=" | ")
        print(*notes, sep="\n")
        device = "cpu" if gpu is None else re.sub(r"\W+", "_", gpu.name.lower())
        self._file_name = f"{bench}_{device}"
        self._content: dict[str, Any] = {
            "bench": bench,
            "title": title,
            "notes": list(notes),
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "gpu": gpu and gpu._asdict(),
            "tables": [],
            "targets": [],
        }
        self._summaries: list[tuple[str, dict[str, Summary]]] = []  # of each heading

    def add_table(
        self,
        heading: str,
        seconds: Mapping[str, Sequence[float]],
        *,
        references: Sequence[str] = (),
        columns: Mapping[str, Mapping[str, float]] | None = None,
        gpu: GpuState | None = None,
    ) -> None:
        """Print and keep what contestants took.

        Args:
            heading: what they did.
            seconds: name -> samples.
            references: names of contestants to compare with.
            columns: title -> name -> what else is known of contestants; of some or of all.
            gpu: its state at that time.
        """
        print(f"\n{heading}", end="")
        print_table("", seconds, references=references, columns=columns)
        if gpu is not None:
            print(gpu.describe_clocks())
        summaries = summarize(seconds, references)
        contestants = {name: summary._asdict() for name, summary in summaries.items()}
        for title, column in (columns or {}).items():
            for name, number in column.items():
                contestants[name][title] = number
        table = {"heading": heading, "gpu": gpu and gpu._asdict(), "contestants": contestants}
        self._content["tables"].append(table)
        self._summaries.append((heading, summaries))

    def add_target(self, claim: str, measured: float, limit: float) -> None:
        """Print and keep whether a number is at most its limit."""
        is_met = print_target(claim, measured, limit)
        self._content["targets"].append(
            {"claim": claim, "measured": measured, "at_most": limit, "is_met": is_met}
        )

    def write(self, folder: Path) -> None:
        """Write the JSON file and the PNG into a folder, which is made where it is missing.

        Without matplotlib there is no picture.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._file_name}.json"
        path.write_text(json.dumps(_rounded(self._content), indent=1) + "\n")
        if importlib.util.find_spec("matplotlib") is None:
            print(f"\nwritten: {path}; matplotlib is not installed: no picture")
            return
        from support.figure import Panel, draw_panels

        machine, gpu = self._content["machine"], self._content["gpu"]
        device = machine["processor"] if gpu is None else gpu["name"]
        draw_panels(
            path.with_suffix(".png"),
            [Panel(heading, summaries) for heading, summaries in self._summaries],
            title=self._content["title"],
            subtitle=f"{device}, load {machine['load']}, commit {machine['commit']}",
        )
        print(f"\nwritten: {path} and {path.with_suffix('.png').name}")


def rates(seconds: Mapping[str, Sequence[float]], nbytes: int) -> dict[str, float]:
    """Return the GB/s of each contestant that moves `nbytes` in a call."""
    return {
        name: nbytes / (summary.median_us * 1e3) for name, summary in summarize(seconds).items()
    }


def _rounded(content: Any) -> Any:
    """Return JSON content with 4 significant digits: more of them would be noise."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.4g}") if isinstance(content, float) else content

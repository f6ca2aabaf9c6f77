"""The directive `measured-tables` shows what the benches wrote, with machine, load and date.

No figure is typed: tables, targets and pictures are those of bench/results.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
QUARTILES = ("first_quartile_us", "third_quartile_us")
COUNTED = {"median_us", *QUARTILES, "n_samples", "times"}  # all else is a column of its own


def reports() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Return the files of benches, with what they hold."""
    for path in sorted(RESULTS.rglob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "tables" in content:
            yield path, content


def page(path: Path, report: Mapping[str, Any], to_root: str) -> Iterator[str]:
    """Return the Markdown of one file; `to_root` leads from the page to the repository's root."""
    yield f"## {report['title']}"
    yield provenance(report)
    yield " ".join(report["notes"])
    for table in report["tables"]:
        yield f"**{table['heading']}**"
        yield "\n".join(rows_of(table["contestants"]))
    if report.get("targets"):
        yield "**Targets**"
        yield "\n".join(targets_of(report["targets"]))
    picture = path.with_suffix(".png")
    if picture.exists():
        place = picture.relative_to(ROOT).as_posix()
        yield f"![{report['title']}]({to_root}/{place})"


def provenance(report: Mapping[str, Any]) -> str:
    """Say when, on which machine and with what a bench was run."""
    machine, gpu = report["machine"], report.get("gpu")
    device = f", {gpu['name']}" if gpu else ""
    day = report["begun"].partition("T")[0]
    return (
        f"{day}, {machine['processor']}{device}, load {machine['load']} when it began, commit"
        f" {machine['commit']}; {machine['versions']}."
    )


def rows_of(contestants: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Return the lines of a table: a contestant in each."""
    against = list(dict.fromkeys(name for row in contestants.values() for name in row["times"]))
    beside = list(
        dict.fromkeys(name for row in contestants.values() for name in row if name not in COUNTED)
    )
    heads = ["contestant", "median", "quartiles", *(f"times *{name}*" for name in against), *beside]
    yield line(heads)
    yield line(["---"] + ["---:"] * (len(heads) - 1))
    for name, row in contestants.items():
        size, unit = unit_of(row["median_us"])
        quartiles = " to ".join(f"{row[key] / size:.3g}" for key in QUARTILES) + f" {unit}"
        ratios = [number(row["times"].get(other)) for other in against]
        rest = [number(row.get(other)) for other in beside]
        yield line([name, f"{row['median_us'] / size:.3g} {unit}", quartiles, *ratios, *rest])


def targets_of(targets: list[Mapping[str, Any]]) -> Iterator[str]:
    yield line(["claim", "measured", "at most", "met"])
    yield line(["---", "---:", "---:", "---"])
    for each in targets:
        met = "yes" if each["is_met"] else "**no**"
        yield line([each["claim"], number(each["measured"]), number(each["at_most"]), met])


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def unit_of(us: float) -> tuple[float, str]:
    """Return the unit in which a time is read, and its microseconds."""
    return (1e6, "s") if us >= 1e6 else (1e3, "ms") if us >= 1e3 else (1.0, "us")


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class MeasuredTables(SphinxDirective):
    """```{measured-tables}``` shows all files of bench/results that have tables."""

    def run(self) -> list[nodes.Node]:
        to_root = "/".join([".."] * (self.env.docname.count("/") + 1))
        found: list[nodes.Node] = []
        for path, report in reports():
            self.env.note_dependency(str(path))
            text = "\n\n".join(page(path, report, to_root))
            found += self.parse_text_to_nodes(text, allow_section_headings=True)
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("measured-tables", MeasuredTables)
    return {"parallel_read_safe": True}

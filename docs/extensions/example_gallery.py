"""The directive `example` shows a program of examples/ with its curves, its times and the machine.

Scores, times, machines and curves are those of bench/results/learning_EXAMPLE_DEVICE.json; videos
and what is told of them are those of docs/videos.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
RESULTS = ROOT / "bench" / "results"
VIDEOS = ROOT / "docs" / "videos"


def example_names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.py"))


def shown(name: str) -> Iterator[str]:
    """Return the Markdown of one example: what it does, its command, video and measured runs."""
    source = (EXAMPLES / f"{name}.py").read_text()
    summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
    yield " ".join(summary.split())
    yield f"    python examples/{name}.py"
    yield f"[examples/{name}.py](../examples/{name}.py)"
    video = VIDEOS / f"{name}.gif"
    if video.exists():
        yield f"![Episodes of {name}](videos/{video.name})"
        yield filmed(json.loads(video.with_suffix(".json").read_text()))
    for path in sorted(RESULTS.glob(f"learning_{name}_*.json")):
        content = json.loads(path.read_text())
        yield "\n".join(runs_of(content["runs"]))
        yield measured_on(content)
        picture = path.with_suffix(".png")
        if picture.exists():
            yield f"![The curves of {name}](../bench/results/{picture.name})"


def runs_of(runs: list[Mapping[str, Any]]) -> Iterator[str]:
    """Return the lines of a table: a seed in each."""
    yield "| seed | environment steps | score | time |"
    yield "|---|---:|---:|---:|"
    for run in runs:
        steps = run["curve"][-1][0]
        yield f"| {run['seed']} | {steps:,} | {run['score']:g} | {run['seconds']:.0f} s |"


def filmed(about: Mapping[str, Any]) -> str:
    """Say of which run a video is, and what was reached in it."""
    played = []
    for name, returns in about["returns"].items():
        # Those that ended before a film was cut off are the short ones: their mean says nothing.
        is_whole = len(returns) == about["n_episodes"]
        mean = f", mean return {sum(returns) / len(returns):.2f}" if is_whole else ""
        played.append(f"{name}, {len(returns) or 'no'} episodes ended{mean}")
    run = f"--seed {about['seed']} --steps {about['steps']}"
    return f"The video is of a run with `{run}`: {'; '.join(played)}. {measured_on(about)}"


def measured_on(content: Mapping[str, Any]) -> str:
    machine = content["machine"]
    day = f"{content['begun'].partition('T')[0]}, " if "begun" in content else ""
    return (
        f"Measured on {day}{machine['processor']}, load {machine['load']} when it began, commit"
        f" {machine['commit']}; {machine['versions']}."
    )


class Example(SphinxDirective):
    """```{example} NAME``` shows an example; without a name, all that the page does not name."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        named = self.env.metadata[self.env.docname].setdefault("examples", "").split()
        names = self.arguments or [name for name in example_names() if name not in named]
        self.env.metadata[self.env.docname]["examples"] = " ".join([*named, *names])
        found: list[nodes.Node] = []
        for name in names:
            heading = [] if self.arguments else [f"## {name}.py"]
            text = "\n\n".join([*heading, *shown(name)])
            found += self.parse_text_to_nodes(text, allow_section_headings=True)
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("example", Example)
    return {"parallel_read_safe": True}

"""Traces of a batch: what is in them, and what they leave as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optional import needs
from parllel import ArrayDict
from parllel.cages import SerialCage
from parllel.patterns import build_example, build_sample_tree
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.samplers.trace import Trace
from parllel.testing.contracts.tree_case import leaves
from parllel.testing.toy_envs import Walk

T = 4


class Agent:
    """Does the same always, until it fails."""

    fails = False

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        if self.fails:
            raise RuntimeError("the agent fails")
        n = len(observation)
        return np.zeros(n, np.int64), {"value": np.zeros(n, np.float32)}

    def value(self, observation: Any) -> Any:
        return np.zeros(len(observation), np.float32)


def make_sampler(kind: type[BasicSampler], *sizes: int) -> BasicSampler:
    agent = Agent()
    samples = build_sample_tree(build_example(Walk), agent, batch_shape=(T, sum(sizes)))
    cages = [SerialCage(Walk, n_envs=size, seed=number) for number, size in enumerate(sizes)]
    return kind(cages, agent, samples)


def values(samples: ArrayDict) -> dict[str, Any]:
    return {path: leaf.to_ndarray().tolist() for path, leaf in leaves(samples).items()}


@needs("matplotlib")
@pytest.mark.parametrize("kind", [BasicSampler, AlternatingSampler])
def test_a_trace_is_of_a_batch_like_any_other(kind: type[BasicSampler], tmp_path: Path) -> None:
    traced, plain = make_sampler(kind, 1, 2), make_sampler(kind, 1, 2)
    agent, transfers = traced.agent, [group.transfer for group in traced._groups]
    for number in range(3):
        samples, _ = traced.trace(tmp_path / f"{number}.json")
        assert values(samples) == values(plain.collect_batch()[0])
    assert traced.agent is agent
    assert [group.transfer for group in traced._groups] == transfers
    assert [cage for group in traced._groups for cage in group.cages] == traced.cages


@needs("matplotlib")
def test_a_trace_shows_environments_agent_copies_and_waits(tmp_path: Path) -> None:
    sampler = make_sampler(AlternatingSampler, 1, 2)
    sampler.trace(tmp_path / "batch.json")
    events = json.loads((tmp_path / "batch.json").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [(lanes[event["tid"]], event["name"]) for event in events if event["ph"] == "X"]
    assert list(lanes.values()) == ["environments 0", "environments 1", "agent", "copies", "waits"]
    for lane in ("environments 0", "environments 1"):
        assert spans.count((lane, "step")) == T
        assert spans.count(("waits", f"for {lane}")) == T
    assert spans.count(("agent", "step")) == 2 * T
    assert ("agent", "value") in spans
    assert spans.count(("copies", "outputs to the tree")) == 2 * T
    assert min(event["ts"] for event in events if event["ph"] == "X") == 0
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")
    assert (tmp_path / "batch.png").read_bytes().startswith(b"\x89PNG")


@needs("matplotlib")
def test_environments_step_between_the_start_and_the_end_of_their_wait(tmp_path: Path) -> None:
    sampler = make_sampler(BasicSampler, 2)
    sampler.trace(tmp_path / "batch.json")
    events = json.loads((tmp_path / "batch.json").read_text())["traceEvents"]
    steps = [event for event in events if event["name"] == "step" and event["tid"] == 0]
    waits = [event for event in events if event["name"] == "for environments 0"]
    for step, wait in zip(steps, waits, strict=True):
        assert step["ts"] + step["dur"] <= wait["ts"] + wait["dur"]


def test_after_an_exception_nothing_is_traced_any_more(tmp_path: Path) -> None:
    sampler = make_sampler(BasicSampler, 2)
    agent, transfer = sampler.agent, sampler._groups[0].transfer
    agent.fails = True
    with pytest.raises(RuntimeError, match="the agent fails"):
        sampler.trace(tmp_path / "batch.json")
    assert sampler.agent is agent
    assert sampler._groups[0].transfer is transfer
    assert not list(tmp_path.iterdir())


def test_a_trace_sums_up_what_a_lane_was_busy_with(tmp_path: Path) -> None:
    trace = Trace("a", "b", "c")
    trace.add("b", "x", 1.0, 3.0)
    trace.add("b", "y", 4.0, 5.0)
    trace.add("a", "z", 2.0, 2.5)
    assert trace.lanes == ["a", "b"]
    assert (trace.busy_s("a"), trace.busy_s("b"), trace.busy_s("c")) == (0.5, 3.0, 0.0)
    trace.write_json(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [(event["ts"], event["dur"]) for event in events if event["ph"] == "X"] == [
        (0, 2e6),
        (3e6, 1e6),
        (1e6, 5e5),
    ]


@needs("matplotlib")
def test_the_picture_shows_each_span_in_the_lane_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    trace = Trace("b", "unused", "a")
    trace.add("a", "x", 10.0, 10.5)
    trace.add("b", "y", 11.0, 11.25)
    trace.add("a", "z", 11.75, 12.0)
    trace.write_png(tmp_path / "t.png")
    (axes,) = drawn[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["b (12%)", "a (38%)"]  # of 2 s: 0.25 s and 0.75 s
    assert list(axes.get_yticks()) == [0, 1]
    assert axes.yaxis_inverted()  # the first lane is on top
    bars = [
        [tuple(path.get_extents().extents.round(3)) for path in lane.get_paths()]
        for lane in axes.collections
    ]
    assert bars == [  # left, bottom, right and top, in ms from the first span and in lanes
        [(1000, -0.4, 1250, 0.4)],
        [(0, 0.6, 500, 1.4), (1750, 0.6, 2000, 1.4)],
    ]


@needs("matplotlib")
def test_an_empty_trace_can_be_written(tmp_path: Path) -> None:
    Trace().write_json(tmp_path / "t.json")
    Trace().write_png(tmp_path / "t.png")
    assert json.loads((tmp_path / "t.json").read_text()) == {"traceEvents": []}

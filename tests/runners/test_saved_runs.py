"""Runs in files: whole or not there, refused where damaged, and resumed bit for bit."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from long_run import all_but_first
from optional import needs
from parllel import Array, ArrayDict
from parllel.cages import SerialCage
from parllel.cages.states.attributes import attributes_of, set_attributes
from parllel.generator_states import set_generator_state
from parllel.metrics import Metrics
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import ReplayBuffer
from parllel.runners import (
    Checkpoints,
    Evaluator,
    RLRunner,
    RunConfig,
    RunFolder,
    load_run,
    save_run,
)
from parllel.runners.state_data import from_data, to_data
from parllel.samplers import BasicSampler, EvalSampler
from parllel.testing.toy_envs import Clock
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.distributions import Categorical
from parllel.torch.models import ActorCritic
from parllel.tree import saved_json
from parllel.tree.file_locks import try_lock

KILLED_RUNS = Path(__file__).parents[1] / "killed_runs.py"


# States


def test_a_state_comes_back_with_its_kinds_and_bits() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "none": None,
        "flag": True,
        "large": 2**127 + 1,
        "odd": [0.1, float("inf"), -0.0],
        "text": "ä.b",
        "nested": {"a.b": (1, [2, {"c": b"\0\xff"}]), "a": {"b": np.uint32([7, 2**32 - 1])}},
        "numbers": {0: torch.tensor(3.0), 1: np.float64(0.1)},
        "transposed": base.T,
        "shared": base[:, 1:],
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3, dtype=torch.int64),
        "no bytes": b"",
        "learned": nn.Parameter(torch.ones(2)),
    }
    data, tensors = to_data(state)
    found = from_data(json.loads(json.dumps(data)), tensors)
    assert list(found) == list(state)
    assert_equal(found, state)
    assert np.signbit(found["odd"][2])
    found["shared"][...] = -1  # a copy of its own
    assert base.min() == 0


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected.detach())
    elif isinstance(expected, np.ndarray | np.generic):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        (np.array([None]), "ndarray of object"),
        (np.array(["a"]), "ndarray of <U1"),
        (torch.eye(2).to_sparse(), "Tensor of torch.float32"),
        (torch.zeros(2, dtype=torch.complex128), "Tensor of torch.complex128"),
        (print, "builtin_function_or_method"),
    ],
)
def test_what_no_file_should_hold_is_refused_with_its_path(value: object, named: str) -> None:
    with pytest.raises(TypeError, match=rf"^a\.b\.1: got a {named}, expected a dense tensor"):
        to_data({"a": {"b": [0, value]}})


def test_keys_are_texts_or_numbers() -> None:
    with pytest.raises(TypeError, match=r"^a: got the keys \[\(1, 2\)\], expected texts"):
        to_data({"a": {(1, 2): 3}})


# Runs


def make_parts(seed: int) -> dict[str, Any]:
    """Return a part of each kind, whose content depends on the seed."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 * (seed + 1))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(3)).sum().backward()
        optimizer.step()
    tree = ArrayDict({"a": Array((4, 2), np.float32)})
    tree["a"][...] = seed
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    parts = {"model": model, "optimizer": optimizer, "rng": rng, "generator": generator}
    return {**parts, "tree": tree, "replay": make_replay(seed)}


def make_replay(seed: int) -> ReplayBuffer:
    samples = ArrayDict(
        {
            "observation": Array((2, 1), np.float32, full_size=4, padding=1),
            "reward": Array((2, 1), np.float32, full_size=4),
            "terminated": Array((2, 1), bool, full_size=4),
            "truncated": Array((2, 1), bool, full_size=4),
        }
    )
    replay = ReplayBuffer(samples, rng=np.random.default_rng(seed))
    replay.restart()
    replay.begin_batch()
    samples.rotate()
    samples["reward"][...] = seed
    replay.end_batch()
    return replay


def content_of(parts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells whether parts are equal; it draws from a copy of their generators."""
    rng, generator = np.random.default_rng(), torch.Generator()
    rng.bit_generator.state = parts["rng"].bit_generator.state
    generator.set_state(parts["generator"].get_state())
    return (
        [each.tolist() for each in parts["model"].parameters()],
        parts["optimizer"].state_dict()["state"][0]["exp_avg"].tolist(),
        parts["optimizer"].param_groups[0]["lr"],
        rng.integers(2**40),
        torch.rand(2, generator=generator).tolist(),
        parts["tree"]["a"].to_ndarray().tolist(),
        parts["replay"].samples["reward"].full.to_ndarray().tolist(),
        (len(parts["replay"]), parts["replay"]._key),
    )


def test_each_kind_of_part_comes_back(tmp_path: Path) -> None:
    parts, others = make_parts(1), make_parts(2)
    assert content_of(parts) != content_of(others)
    save_run(tmp_path, **parts)
    draws = [draw() for draw in GENERATORS]
    assert load_run(tmp_path, **others)
    assert content_of(others) == content_of(parts)
    assert [draw() for draw in GENERATORS] == draws


GENERATORS: list[Callable[[], object]] = [
    random.random,
    lambda: np.random.random(),  # noqa: NPY002
    lambda: torch.rand(()).item(),
]


def test_the_newest_checkpoint_alone_stays(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        save_run(tmp_path, **make_parts(seed))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000003"]
    others = make_parts(0)
    assert load_run(tmp_path, **others)
    assert others["tree"]["a"].to_ndarray().max() == 3


def test_there_may_be_nothing_to_load(tmp_path: Path) -> None:
    parts = make_parts(1)
    before = content_of(parts)
    for folder in (tmp_path, tmp_path / "missing"):
        assert not load_run(folder, **parts)
    (tmp_path / "checkpoint-000001.unfinished").mkdir()
    assert not load_run(tmp_path, **parts)
    assert content_of(parts) == before


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    class Broken(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

    parts = make_parts(1)
    save_run(tmp_path, **parts)
    with pytest.raises(KeyboardInterrupt):
        save_run(tmp_path, **{**make_parts(2), "model": Broken(3, 2)})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]
    (tmp_path / "checkpoint-000002.unfinished").mkdir()  # as a process that is killed leaves it
    assert save_run(tmp_path, **parts).name == "checkpoint-000002"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002"]


def test_two_processes_do_not_save_to_one_folder(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try_lock(descriptor)
    with pytest.raises(BlockingIOError, match="another process saves there; give each run a"):
        save_run(tmp_path, model=nn.Linear(2, 2))
    os.close(descriptor)
    save_run(tmp_path, model=nn.Linear(2, 2))


def test_other_parts_than_those_that_were_saved_are_refused(tmp_path: Path) -> None:
    parts = make_parts(1)
    save_run(tmp_path, **parts)
    others = make_parts(2)
    before = content_of(others)
    del parts["model"]
    with pytest.raises(KeyError, match=r"saved with the parts .*'model', .*, expected"):
        load_run(tmp_path, **parts)
    swapped = {**others, "replay": others["optimizer"], "optimizer": others["replay"]}
    for order in (list(swapped), list(reversed(swapped))):  # whichever part comes first
        with pytest.raises(ValueError, match="saved as a part of another kind"):
            load_run(tmp_path, **{name: swapped[name] for name in order})
    assert content_of(others) == before


def test_a_part_has_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'\.\./part': the name of a part has to be"):
        save_run(tmp_path / "runs", **{"../part": nn.Linear(2, 2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.update(parts=[]),
        lambda content: content["parts"]["model"].pop("crc32"),
        lambda content: content["parts"]["model"].update(state={"dict": 3}),
        lambda content: content["parts"]["model"].update(state={"dict": [[1]]}),
        lambda content: content["parts"]["model"].update(state={"code": "print()"}),
        lambda content: content["parts"]["model"].update(state={"tensor": "9 none"}),
        lambda content: content["parts"].update(model=3),
    ],
)
def test_a_file_of_a_stranger_with_a_right_checksum_is_refused(
    change: Callable[[Any], object], tmp_path: Path
) -> None:
    checkpoint = save_run(tmp_path, model=nn.Linear(2, 2))
    path, model = checkpoint / "run.json", nn.Linear(2, 2)
    content, before = saved_json.from_data(path.read_bytes()), model.weight.tolist()
    change(content)
    path.write_bytes(saved_json.to_data(content))
    with pytest.raises(ValueError, match=r"run\.json: format|no state of a run"):
        load_run(tmp_path, model=model)
    assert model.weight.tolist() == before


@pytest.mark.parametrize("part", [3, "model", None, np.zeros(2)])
def test_a_part_without_a_state_is_refused(part: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^part: got a .*, expected an object with state_dict and"):
        save_run(tmp_path, part=part)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_damaged_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    checkpoint = save_run(tmp_path, **make_parts(1))
    others = make_parts(2)
    before = content_of(others)
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    assert len(paths) > 10
    state = random.getstate()
    for path in paths:
        if path.parent != checkpoint:
            continue  # trees are read after states: tests/tree and tests/replays damage those
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        original = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_run(tmp_path, **others)
        path.write_bytes(original)
    assert content_of(others) == before
    assert random.getstate() == state


def test_a_state_that_points_out_of_its_words_is_refused(tmp_path: Path) -> None:
    checkpoint = save_run(tmp_path, model=nn.Linear(2, 2))
    path = checkpoint / "run.json"
    content = saved_json.from_data(path.read_bytes())

    def change(value: Any) -> None:
        for pair in value["dict"]:
            if pair[0] == "pos":
                pair[1] = 10**6
            elif isinstance(pair[1], dict) and "dict" in pair[1]:
                change(pair[1])

    change(content["parts"]["generators"]["state"])
    path.write_bytes(saved_json.to_data(content))
    with pytest.raises(ValueError, match=r"generator: position 1000000, expected 0 to 624"):
        load_run(tmp_path, model=nn.Linear(2, 2))


class Choosy:
    """A part that raises an error of some kind where it is given a state."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    "error",
    [KeyError("a"), TypeError("b"), AttributeError("c"), StopIteration(), OverflowError("d")],
)
def test_a_part_that_does_not_take_what_was_saved_is_named(
    error: Exception, tmp_path: Path
) -> None:
    checkpoint = save_run(tmp_path, own=Choosy())
    text = f"{checkpoint}: part 'own' does not take what was saved: {type(error).__name__}: {error}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}") as raised:
        load_run(tmp_path, own=Choosy(error))
    assert raised.value.__cause__ is error
    with pytest.raises(MemoryError, match="full") as other:
        load_run(tmp_path, own=Choosy(MemoryError("full")))
    assert other.value.__notes__ == [f"part 'own' of {checkpoint}"]
    model, larger = nn.Linear(2, 2), nn.Linear(2, 3)
    save_run(tmp_path, model=model)
    with pytest.raises(ValueError, match=r"(?s)part 'model' does not take .*: RuntimeError"):
        load_run(tmp_path, model=larger)


def test_a_tree_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2):
        tree = ArrayDict({"a": Array((4, 2), np.float32)})
        tree["a"][...] = seed
        folders.append(save_run(tmp_path / str(seed), tree=tree))
    shutil.rmtree(folders[0] / "tree")
    shutil.copytree(folders[1] / "tree", folders[0] / "tree")
    with pytest.raises(ValueError, match="it is another tree than the one that was saved"):
        load_run(tmp_path / "1", tree=ArrayDict({"a": Array((4, 2), np.float32)}))


def make_sampler(cage: SerialCage, generator: torch.Generator | None = None) -> BasicSampler:
    example = build_example(Clock, storage="local")
    model = ActorCritic(nn.Flatten(), 2, n_features=2)
    agent = CategoricalPgAgent(model, Categorical(2), example["observation"], generator)
    samples = build_sample_tree(example, agent, batch_shape=(8, cage.n_envs))
    return BasicSampler([cage], agent, samples)


def test_generators_of_parts_are_checked_too() -> None:
    """NumPy itself would take the state, and read foreign memory."""
    state = np.random.Generator(np.random.MT19937(0)).bit_generator.state
    state["state"]["pos"] = 10**6
    rng = np.random.Generator(np.random.MT19937(1))
    data = {"generator": state, "random_state": state}
    owner = SimpleNamespace(rng=rng, old=np.random.RandomState(1))
    before = attributes_of(owner)
    for name, kind in (("rng", "generator"), ("old", "random_state")):
        with pytest.raises(ValueError, match="position 1000000, expected 0 to 624"):
            set_attributes(owner, {**before, name: {kind: data[kind]}})
    with pytest.raises(ValueError, match="position 1000000, expected 0 to 624"):
        set_generator_state(rng, state)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"seed": -1}, ValueError, "non-negative"),
        ({"agent": 3}, TypeError, "agent: got a int, expected an object with state_dict"),
        ({"runner": nn.Linear(1, 1)}, TypeError, "runner: it is added by itself"),
        ({"generators": nn.Linear(1, 1)}, TypeError, "generators: it is saved in any case"),
        ({"agent": nn.Linear(1, 1)}, ValueError, "the sampler's agent is missing; add it"),
    ],
)
def test_checkpoints_find_what_is_wrong_when_they_are_made(
    arguments: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    with SerialCage(Clock, n_envs=2) as cage:
        sampler = make_sampler(cage)
        Checkpoints(tmp_path, sampler, seed=0, agent=sampler.agent)
        with pytest.raises(error, match=match):
            Checkpoints(tmp_path, sampler, **{"seed": 0, "agent": sampler.agent, **arguments})


def test_it_is_told_where_checkpoints_cut_off_all_episodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for length, n_told in ((4, 0), (100, 1)):
        caplog.clear()
        with SerialCage(Clock, {"length": length}, n_envs=2) as cage:
            sampler = make_sampler(cage)
            folder = tmp_path / str(length)
            checkpoints = Checkpoints(folder, sampler, seed=0, agent=sampler.agent)
            RLRunner(sampler, Idler(), Metrics(), n_steps=5 * 16, after_batch=[checkpoints]).run()
        told = [each for each in caplog.records if "no episode ended since" in each.message]
        assert len(told) == n_told


def test_a_run_goes_on_with_its_own_seed_and_number_of_environments(tmp_path: Path) -> None:
    def go_on(n_steps: int, n_envs: int = 2, seed: int = 0) -> int:
        with SerialCage(Clock, n_envs=n_envs) as cage:
            sampler = make_sampler(cage)
            checkpoints = Checkpoints(tmp_path, sampler, seed=seed, agent=sampler.agent)
            runner = RLRunner(
                sampler, Idler(), Metrics(), n_steps=n_steps, after_batch=[checkpoints]
            )
            return runner.run(resume=checkpoints).n_steps

    assert go_on(32) == 32
    with pytest.raises(ValueError, match=r"other settings \(then, now\): {'seed': \(0, 1\)}"):
        go_on(64, seed=1)
    with pytest.raises(ValueError, match=r"other settings \(then, now\): {'n_envs': \(2, 3\)}"):
        go_on(64, n_envs=3)
    assert go_on(64) == 64


class Idler:
    """An algorithm that learns nothing."""

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        return {}


class Remembering(Idler):
    """An algorithm with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_an_algorithm_with_a_state_is_a_part(tmp_path: Path) -> None:
    with SerialCage(Clock, n_envs=2) as cage:
        sampler = make_sampler(cage)
        algorithm = Remembering()
        options: Any = {"seed": 0, "agent": sampler.agent}
        without = Checkpoints(tmp_path, sampler, **options)
        runner = RLRunner(sampler, algorithm, Metrics(), n_steps=16, after_batch=[without])
        for call in (lambda: runner.run(resume=without), runner.run):
            with pytest.raises(ValueError, match=r"algorithm is missing.*add it, as algorithm="):
                call()
        assert not list(tmp_path.iterdir())
        Checkpoints(tmp_path, sampler, algorithm=algorithm, **options)(runner)


def test_evaluations_leave_the_generator_of_an_agent_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    with SerialCage(Clock, n_envs=2) as cage:
        agent = make_sampler(cage, generator).agent
        before = generator.get_state()
        eval_sampler = EvalSampler([cage], agent, n_episodes=2, deterministic=False)
        run = SimpleNamespace(n_steps=1, metrics=Metrics())
        Evaluator(eval_sampler)(run)  # type: ignore[arg-type]
        assert torch.equal(generator.get_state(), before)
        eval_sampler.collect_episodes()
        assert not torch.equal(generator.get_state(), before)


# Runs that are killed


def killed_runs(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(KILLED_RUNS), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "n_kills"),
    [
        ("frames with environments", 20),  # it saves all kinds of parts: where a kill falls counts
        ("ppo", 6),
        ("dqn", 6),
        ("ppo with environments", 6),
    ],
)
def test_a_run_that_is_killed_ends_with_the_same_weights(
    kind: str, n_kills: int, tmp_path: Path
) -> None:
    found = killed_runs(kind, str(n_kills), str(tmp_path))
    assert found["n_kills"] >= n_kills
    assert found["n_wrong"] == 0
    assert found["n_resumed"] > n_kills // 4  # not only before the first checkpoint


# The folder of a run


@dataclass(frozen=True)
class Config(RunConfig):
    """The arguments of a program."""

    steps: int = 100
    sizes: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    run = RunFolder(Config(out=out, seed=3), name="program")
    assert json.loads((out / "config.json").read_text())["sizes"] == [64, 64]
    assert run.checkpoints.parent == out
    with pytest.raises(FileExistsError, match="there is a run in this folder; choose another one"):
        RunFolder(Config(out=out, seed=3), name="program")
    RunFolder(Config(out=out, seed=3, resume=True, steps=999, storage="local"), name="program")


def test_a_run_is_resumed_with_its_own_arguments(tmp_path: Path) -> None:
    RunFolder(Config(out=tmp_path), name="program")
    match = r"\(then, now\): \{'learning_rate': \(0.001, 0.1\), 'seed': \(0, 1\)\}"
    with pytest.raises(ValueError, match=match):
        RunFolder(Config(out=tmp_path, resume=True, learning_rate=0.1, seed=1), name="program")
    with pytest.raises(FileNotFoundError, match="there is no run to resume"):
        RunFolder(Config(out=tmp_path / "other", resume=True), name="program")
    with pytest.raises(ValueError, match="resume: got no folder"):
        RunFolder(Config(resume=True), name="program")


def test_a_run_is_resumed_by_its_own_program(tmp_path: Path) -> None:
    """Two programs with the same arguments: before the first checkpoint, nothing else differs."""
    RunFolder(Config(out=tmp_path), name="program")
    with pytest.raises(ValueError, match=r"\{'program': \('program', 'other'\)\}"):
        RunFolder(Config(out=tmp_path, resume=True), name="other")


def test_an_argument_that_is_no_number_is_the_same_again(tmp_path: Path) -> None:
    for resume in (False, True):
        config = Config(out=tmp_path, learning_rate=math.nan, resume=resume)
        RunFolder(config, name="program")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": -5}, {"seed": -1}])
def test_a_run_that_can_not_begin_leaves_no_folder(wrong: dict[str, int], tmp_path: Path) -> None:
    ((name, number),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}: got {number}, expected"):
        RunFolder(Config(out=tmp_path / "run", **wrong), name="program")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_no_files_place(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(NotADirectoryError, match="a file has this name"):
            RunFolder(Config(out=out), name="program")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"seed": 0, "seed": 0}', b"[" * 100_000],
)
def test_a_damaged_config_is_an_error_with_its_file(content: bytes, tmp_path: Path) -> None:
    RunFolder(Config(out=tmp_path), name="program")
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: no config of a run, expected"):
        RunFolder(Config(out=tmp_path, resume=True), name="program")
    assert path.read_bytes() == content
    path.write_text('{"model": "large"}')  # of another program
    with pytest.raises(ValueError, match=r"'model': \('large', None\), 'seed': \(None, 0\)"):
        RunFolder(Config(out=tmp_path, resume=True), name="program")


@needs("matplotlib", "tensorboard", "tqdm")
@pytest.mark.parametrize(
    ("row", "message"),
    all_but_first(
        [
            ("10,x", r"line 3: train/episode_return: got 'x', expected a number"),
            ("1o,1.0", r"line 3: step: got '1o', expected an integer"),
            ("10", r"line 3: got 1 cells, expected 2"),
            ("10,1.0,2.0", r"line 3: got 3 cells, expected 2"),
            ("", r"line 3: got 0 cells, expected 2"),
            ("10,\0", r"line 3: .*"),
        ],
        n_short=3,
    ),
)
def test_a_damaged_table_is_an_error_with_its_line(row: str, message: str, tmp_path: Path) -> None:
    run = RunFolder(Config(out=tmp_path), name="program")
    with run.open_metrics(100) as metrics:
        metrics.log(5, {"train/episode_return": 1.0})
    path = tmp_path / "metrics.csv"
    with path.open("a") as file:
        file.write(f"{row}\n")
    before = path.read_text()
    resumed = RunFolder(Config(out=tmp_path, resume=True), name="program")
    with resumed.open_metrics(100) as metrics:
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}"):
            metrics.rewind(20)
        assert path.read_text() == before
        curve = metrics._sinks[2]  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}"):
            curve.rewind(20)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_without_a_folder_gets_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Config(), name="program")
    assert run.path.parent == Path("runs/program")
    assert (run.path / "config.json").exists()
    others = {RunFolder(Config(seed=seed), name="program").path for seed in range(3)}
    assert len({run.path, *others}) == 4  # though they begin in the same second


@needs("matplotlib", "tensorboard", "tqdm")
def test_numbers_after_the_checkpoint_are_logged_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(Config(out=tmp_path), name="program")
    with run.open_metrics(100) as metrics:
        for step in (10, 20, 30):
            metrics.log(step, {"train/episode_return": step, f"only/{step}": 0.5})
    resumed = RunFolder(Config(out=tmp_path, resume=True), name="program")
    with resumed.open_metrics(100) as metrics:
        metrics.rewind(20)
        metrics.log(30, {"train/episode_return": 31})
        curve = metrics._sinks[2]._points["train/episode_return"]  # type: ignore[attr-defined]
        assert [list(points) for points in curve] == [[10, 20, 30], [10, 20, 31]]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows == [
        "step,train/episode_return,only/10,only/20,only/30",
        "10,10.0,0.5,,",
        "20,20.0,,0.5,",
        "30,31.0,,,",
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(each.step, each.value) for each in events.Scalars("train/episode_return")]
    assert scalars == [(10, 10), (20, 20), (30, 31)]

"""docs/gpu.md says how many launches, copies and waits something takes; the simulation counts."""

import copy
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch  # noqa: F401  # before a simulation, which gives its operations their order
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation

from parllel import Array, ArrayDict, FrameArray, cuda
from parllel.cages import DeviceCage, DeviceStep, SerialCage
from parllel.cages.device.maniskill import ManiSkill
from parllel.cuda import library, streams
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import (
    HindsightReplayBuffer,
    Minibatches,
    Prefetcher,
    PrioritizedReplayBuffer,
    PrioritizedSequenceReplayBuffer,
    ReplayBuffer,
    SequenceReplayBuffer,
)
from parllel.samplers import AlternatingSampler, BasicSampler
from parllel.samplers.ahead_copy import ENGINE_NBYTES
from parllel.testing.device_envs import FakeManiSkill
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.testing.toy_envs import Clock
from parllel.transforms import ClipRewards, EstimateAdvantage, NormalizeAdvantage, NormalizeRewards

TABLE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
ROW = re.compile(r"^\| (?P<what>[^|]+?) \|(?P<counts>(?: *\d+ *\|){5})$", re.MULTILINE)
OF_A_STEP = re.compile(r"^\| (?P<what>it [^|]+?) \| (?P<n>\d+) \|[^|]+\|$", re.MULTILINE)
BYTES = re.compile(r"^\| (?P<what>[^|]+?) \| (?P<nbytes>[\d,]+) \|$", re.MULTILINE)
T, B, STACK = 5, 4, 4
GOALS = ("achieved_goal", "desired_goal")
SCREEN = (84, 84)


class Agent:
    """Returns device arrays that were made once, as an agent on a GPU does."""

    def __init__(self) -> None:
        self._results: dict[int, Any] = {}

    def _result(self, observation: Any) -> Any:
        n = len(observation)
        if n not in self._results:
            self._results[n] = (
                cuda.to_device(np.zeros(n, np.int64)),
                cuda.to_device(np.zeros(n, np.float32)),
            )
        return self._results[n]

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        action, value = self._result(observation)
        return action, {"value": value}

    def value(self, observation: Any) -> Any:
        return self._result(observation)[1]


class PolicyAgent(Agent):
    """Returns value and log-probability of an action too, and looks at stacks before.

    Args:
        action, value: what the results are: of the device, or of the host.
    """

    def __init__(
        self,
        action: Callable[[Any], Any] = cuda.to_device,
        value: Callable[[Any], Any] = cuda.to_device,
    ) -> None:
        super().__init__()
        self._as_action, self._as_value = action, value

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        n = len(observation)
        if n not in self._results:
            zeros = np.zeros(n, np.float32)
            self._results[n] = (
                self._as_action(np.zeros(n, np.int64)),
                {"value": self._as_value(zeros), "log_prob": self._as_value(zeros)},
            )
        if observation.ndim == 3:  # not a row of plain numbers
            observation.to_cupy()
        action, info = self._results[n]
        return action, info

    def value(self, observation: Any) -> Any:
        return self._results[len(observation)][1]["value"]


class Screen(gym.Env[Any, int]):
    """Shows nothing, in the size of an Atari game's frames."""

    observation_space = spaces.Box(0, 255, SCREEN, np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(SCREEN, np.uint8), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(SCREEN, np.uint8), 0.0, False, False, {}


def make_stacked_clock() -> gym.Env[Any, Any]:
    return FrameStackObservation(Clock(), STACK)


def make_stacked_screen() -> gym.Env[Any, Any]:
    return FrameStackObservation(Screen(), STACK)


def make_sampler(
    make_env: Callable[..., Any] = Clock, agent: Any = None, **options: Any
) -> BasicSampler:
    agent = agent or Agent()
    samples = build_sample_tree(build_example(make_env), agent, batch_shape=(T, B), **options)
    return BasicSampler([SerialCage(make_env, n_envs=B)], agent, samples)


def sampled() -> ArrayDict:
    return make_sampler().collect_batch()[0]


def sampled_frames() -> ArrayDict:
    samples, _ = make_sampler(make_stacked_clock, frames="first").collect_batch()
    assert isinstance(samples["observation"], FrameArray)
    return samples


class Step:
    """One step of a sampler in the middle of a batch, from acting to its end."""

    def __init__(self, make_env: Callable[..., Any] = Clock, **options: Any) -> None:
        self._sampler = make_sampler(make_env, **options)
        self._sampler.collect_batch()
        self._sampler._rotate()

    def __call__(self) -> None:
        (group,) = self._sampler._groups
        group.act(self._sampler.agent, 0)
        group.finish(0)

    @property
    def nbytes_to_device(self) -> dict[str, int]:
        """Bytes of each leaf that a step's launch brings to the tree, of one environment."""
        (group,) = self._sampler._groups
        (staged,) = group.transfer._steps[0].to_tree  # type: ignore[attr-defined]
        table = staged.rows._table
        return {
            name: int(entry[-1]) for name, entry in zip(table.names, table.entries, strict=True)
        }


class Still(ManiSkill):
    """Returns one step again and again; no time is spent on the host's environments."""

    still: DeviceStep | None = None

    def step(self, action: Any) -> DeviceStep:
        if self.still is None:
            self.still = super().step(action)
        return self.still


class ReadingAgent(PolicyAgent):
    """Reads the rows that it values, all of a batch where each step truncates all episodes."""

    def __init__(self) -> None:
        super().__init__()
        self._results[T * B] = None, {"value": cuda.to_device(np.zeros(T * B, np.float32))}

    def value(self, observation: Any) -> Any:
        observation.to_cupy()
        return super().value(observation)


class DeviceStepping:
    """One step of environments on the device, in the middle of a batch.

    Args:
        is_cut: whether each step truncates all episodes.
    """

    def __init__(self, *, is_cut: bool = False) -> None:
        make_env = partial(Clock, length=1 if is_cut else 99, end="truncated")
        kwargs = {"env_fns": [make_env] * B, "side": "gpu"}
        cage = DeviceCage(FakeManiSkill, kwargs, make_dialect=Still)
        agent = ReadingAgent()
        samples = build_sample_tree(build_example(Clock), agent, batch_shape=(T, B))
        self._sampler = BasicSampler([cage], agent, samples)
        self._sampler.collect_batch()  # allocates
        self._sampler._rotate()

    def __call__(self) -> None:
        self.step(0)

    def step(self, t: int) -> None:
        (group,) = self._sampler._groups
        group.act(self._sampler.agent, t)
        group.finish(t)


def ending_on_device(*, is_cut: bool) -> Callable[[], Any]:
    """Return the end of a batch: rewards and flags come to the host, and values are completed."""
    stepping = DeviceStepping(is_cut=is_cut)
    for t in range(T):
        stepping.step(t)
    return stepping._sampler._complete_batch


class AheadStep:
    """One step of one of two groups, whose observations are large."""

    def __init__(self) -> None:
        n_envs, agent = 2 * -(-ENGINE_NBYTES // (STACK * math.prod(SCREEN))), Agent()
        cages = [SerialCage(make_stacked_screen, n_envs=n_envs // 2) for _ in range(2)]
        example = build_example(make_stacked_screen)
        samples = build_sample_tree(example, agent, batch_shape=(1, n_envs))
        self._sampler = AlternatingSampler(cages, agent, samples)
        self._sampler.collect_batch()
        self._sampler._rotate()

    def __call__(self) -> None:
        group, _ = self._sampler._groups
        group.act(self._sampler.agent, 0)
        group.finish(0)


def rotation(full_size: int, n_before: int) -> Callable[[], Any]:
    samples = make_sampler(full_size=full_size).samples
    for _ in range(n_before):
        samples.rotate()
    return samples.rotate


def reading(
    read: Callable[[ArrayDict], Any], sampled: Callable[[], ArrayDict] = sampled
) -> Callable[[], Any]:
    samples = sampled()
    return lambda: read(samples)


def writing() -> Callable[[], Any]:
    samples = sampled()["agent_info"]
    index, values = (np.array([0, 2]), np.array([1, 1])), cuda.to_device(np.zeros(2, np.float32))

    def write() -> None:
        samples[index] = {"value": values}

    return write


def minibatch(samples: ArrayDict) -> Callable[[], Any]:
    minibatches = Minibatches(2, np.random.default_rng(0)).of(samples)
    next(minibatches)
    return lambda: next(minibatches)


def minibatch_pass(sampled: Callable[[], ArrayDict] = sampled) -> Callable[[], Any]:
    samples, minibatches = sampled(), Minibatches(2, np.random.default_rng(0))
    list(minibatches.of(samples))
    return lambda: list(minibatches.of(samples))


def sampled_valid(*invalid: tuple[int, int]) -> ArrayDict:
    """Return a batch that tells which rows are transitions."""
    samples, is_valid = sampled(), np.ones((T, B), bool)
    for row in invalid:
        is_valid[row] = False
    return ArrayDict({**samples, "valid": Array.from_numpy(is_valid, storage="device")})


def long_batch() -> ArrayDict:
    """Return a batch of so many steps that time is divided among threads."""
    floats, flags = (Array((256, 2), dtype, storage="device") for dtype in (np.float32, bool))
    value = Array((256, 2), np.float32, padding=1, storage="device")
    names = ("reward", "final_value"), ("terminated", "truncated")
    leaves = {**dict.fromkeys(names[0], floats), **dict.fromkeys(names[1], flags)}
    return ArrayDict({**leaves, "agent_info": {"value": value}})


def transform(
    make: Callable[[], Any], sampled: Callable[[], ArrayDict] = sampled
) -> Callable[[], Any]:
    batch, step = EstimateAdvantage()(sampled()), make()
    step(batch)  # allocates its outputs
    return lambda: step(batch)


def filled(kind: Any, *, has_frames: bool = False, storage: str = "device") -> Any:
    """Return a buffer whose ring is full, and which was drawn from."""
    ring: dict[str, Any] = {"full_size": 3 * T, "storage": storage}
    of_frames: dict[str, Any] = {"make_env": make_stacked_clock, "frames": "first"}
    samples = make_sampler(**ring, **(of_frames if has_frames else {})).samples
    of_steps = issubclass(kind, ReplayBuffer)
    size = {"n_steps": 2} if of_steps else {"length": 4, "burn_in": 2}
    replay = kind(samples, rng=np.random.default_rng(0), n_final_obs=60, **size)
    replay.restart()
    for _ in range(4):
        replay.begin_batch()
        samples.rotate()
        replay.end_batch()
    replay.sample(8)  # allocates its outputs
    return replay


def drawing(kind: Any, *, has_frames: bool = False) -> Callable[[], Any]:
    replay = filled(kind, has_frames=has_frames)
    return lambda: replay.sample(8)


def drawing_goals() -> Callable[[], Any]:
    """Draw from a tree with goals, by functions that launch nothing of this package."""
    ring: dict[str, Any] = {"storage": "device", "full_size": 3 * T}
    samples = ArrayDict({"reward": Array((T, B), np.float32, **ring)})
    for name in ("terminated", "truncated"):
        samples[name] = Array((T, B), bool, **ring)
    goals = {name: {"x": samples["reward"].new_array(padding=1)} for name in GOALS}
    samples["observation"] = {"observation": samples["reward"].new_array(padding=1), **goals}
    replay = HindsightReplayBuffer(
        samples,
        rng=np.random.default_rng(0),
        compute_reward=lambda achieved, desired: achieved["x"] - desired["x"],
        compute_terminated=lambda achieved, desired: achieved["x"] == desired["x"],
    )
    replay.restart()
    replay.begin_batch()
    samples.rotate()
    replay.end_batch()
    replay.sample(8)  # allocates its outputs
    return lambda: replay.sample(8)


def updating() -> Callable[[], Any]:
    replay = filled(PrioritizedReplayBuffer)
    index = replay._outputs.tree["index"]  # a tensor of the simulation is one of the host
    error = cuda.to_device(np.ones(8, np.float32))
    return lambda: replay.update_priorities(index, error)


def ending(kind: type[ReplayBuffer], *, has_ends: bool = False) -> Callable[[], Any]:
    replay = filled(kind)
    replay.begin_batch()
    replay.samples.rotate()
    for t in range(T if has_ends else 0):
        replay.add_final_obs(t, {0: np.zeros(2, np.float32), 3: np.zeros(2, np.float32)})
    return replay.end_batch


class Prefetched:
    """One minibatch, and the wait until the next one is drawn, which makes the counts exact."""

    def __init__(self) -> None:
        self._prefetcher = Prefetcher(filled(ReplayBuffer, storage="pinned"), 8, storage="device")
        self._prefetcher.next()
        self()

    def __call__(self) -> None:
        self._prefetcher.next()
        self._prefetcher.settle()

    def close(self) -> None:
        self._prefetcher.close()


OPERATIONS: dict[str, Callable[[], Callable[[], Any]]] = {
    "`tree.rotate()` where a leaf wraps": lambda: rotation(T, 1),
    "`tree.rotate()` where none wraps": lambda: rotation(3 * T, 0),
    "a time step of `BasicSampler`": Step,
    "its step in `AlternatingSampler`, with observations of 2 MB or more": AheadStep,
    "its reset": lambda: make_sampler().reset,
    "a time step of `BasicSampler` with a `DeviceCage`": DeviceStepping,
    "the same where episodes end": lambda: DeviceStepping(is_cut=True),
    "the end of its batch": lambda: ending_on_device(is_cut=False),
    "the end of its batch where episodes were truncated; the agent's values aside": lambda: (
        ending_on_device(is_cut=True)
    ),
    "`tree.to_torch()`": lambda: reading(ArrayDict.to_torch),
    "`tree[t, b].to_torch()`, integer arrays": lambda: reading(
        lambda samples: samples["agent_info"][[0, 2], [1, 3]].to_torch()
    ),
    "`tree[t, b] = ...`, integer arrays, from the device": writing,
    "`array.to_ndarray()`": lambda: reading(lambda samples: samples["reward"].to_ndarray()),
    "a minibatch of `Minibatches`": lambda: minibatch(sampled()),
    "the same of a tree with a `FrameArray`": lambda: minibatch(sampled_frames()),
    "a pass of 2 minibatches over a new batch": minibatch_pass,
    "`EstimateAdvantage`": lambda: transform(EstimateAdvantage),
    "`EstimateAdvantage` of 256 steps or more, in up to 4,096 environments": lambda: transform(
        EstimateAdvantage, long_batch
    ),
    "`NormalizeAdvantage` (of up to 8,000 rows; of more: 4)": lambda: transform(NormalizeAdvantage),
    "`ClipRewards`": lambda: transform(ClipRewards),
    "`NormalizeRewards` (of up to 8,000 rows; of more: 5)": lambda: transform(NormalizeRewards),
    "`EstimateAdvantage` of a batch with `valid`, all rows valid": lambda: transform(
        EstimateAdvantage, sampled_valid
    ),
    "`NormalizeAdvantage` of a batch with `valid`, all rows valid": lambda: transform(
        NormalizeAdvantage, sampled_valid
    ),
    "`EstimateAdvantage` of a batch where an episode is cut off by a row that is not valid": (
        lambda: transform(EstimateAdvantage, lambda: sampled_valid((2, 1)))
    ),
    "`NormalizeAdvantage` of a batch with a row that is not valid": lambda: transform(
        NormalizeAdvantage, lambda: sampled_valid((2, 1))
    ),
    "a pass of 2 minibatches over a new batch with `valid`": lambda: minibatch_pass(sampled_valid),
    "a time step of `BasicSampler` with a `FrameArray`, the agent's reading aside": lambda: Step(
        make_stacked_clock, frames="first"
    ),
    "`array[t].to_torch()` of a `FrameArray`": lambda: reading(
        lambda samples: samples["observation"][2].to_torch(), sampled_frames
    ),
    "`ReplayBuffer.sample`": lambda: drawing(ReplayBuffer),
    "`ReplayBuffer.sample` from a tree with a `FrameArray`": lambda: drawing(
        ReplayBuffer, has_frames=True
    ),
    "`ReplayBuffer.begin_batch` of a full ring": lambda: filled(ReplayBuffer).begin_batch,
    "`ReplayBuffer.end_batch` where no episode ended": lambda: ending(ReplayBuffer),
    "`ReplayBuffer.end_batch` where some did; `observation` is 1 leaf": lambda: ending(
        ReplayBuffer, has_ends=True
    ),
    "`PrioritizedReplayBuffer.sample`": lambda: drawing(PrioritizedReplayBuffer),
    "`HindsightReplayBuffer.sample`, the functions' own launches aside": drawing_goals,
    "`SequenceReplayBuffer.sample`": lambda: drawing(SequenceReplayBuffer),
    "`PrioritizedSequenceReplayBuffer.sample`": lambda: drawing(PrioritizedSequenceReplayBuffer),
    "`PrioritizedReplayBuffer.update_priorities`": updating,
    "`PrioritizedReplayBuffer.begin_batch` of a full ring": lambda: (
        filled(PrioritizedReplayBuffer).begin_batch
    ),
    "`PrioritizedReplayBuffer.end_batch` where no episode ended": lambda: ending(
        PrioritizedReplayBuffer
    ),
    "a minibatch of a `Prefetcher` for the device (its thread waits)": Prefetched,
}
STEPS: dict[str, Callable[[], Step]] = {
    "it returns arrays of the device": lambda: Step(agent=PolicyAgent()),
    "it reads stacks of a `FrameArray`, and returns arrays of the device": lambda: Step(
        make_stacked_clock, agent=PolicyAgent(), frames="first"
    ),
    "it returns a list of actions, the rest on the device": lambda: Step(
        agent=PolicyAgent(action=np.ndarray.tolist)
    ),
    "it returns actions on the device, the rest on the host": lambda: Step(
        agent=PolicyAgent(value=np.array)
    ),
    "it returns arrays of the host": lambda: Step(agent=PolicyAgent(np.array, np.array)),
}
OBSERVATIONS: dict[str, dict[str, Any]] = {
    "`FrameArray`: one frame and its flag": {"frames": "first"},
    "`Array`: whole stacks": {},
}

OF_NO_DEVICE = {"`tree.rotate()` where none wraps"}  # it moves a number of the host


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    before, found = copy.copy(cuda.counters), {}
    yield found
    found |= cuda.counters.since(before).as_dict()


@pytest.mark.parametrize("what", OPERATIONS)
def test_the_documents_say_what_the_simulation_counts(what: str) -> None:
    rows = {row["what"]: row["counts"] for row in ROW.finditer(TABLE.read_text())}
    documented = [int(cell) for cell in rows[what].split("|")[:-1]]
    # Not on the first device: what forgets which one is current is refused.
    with simulated_cuda("lazy", n_devices=2) as simulation, cuda.use_device(1):
        run = OPERATIONS[what]()
        with counted() as counts:
            run()
        if isinstance(run, Prefetched):
            run.close()
        assert {launch.device for launch in simulation.launches} <= {1}
    names = (
        "launches",
        "copies_to_device",
        "copies_to_host",
        "event_synchronizations",
        "stream_synchronizations",
    )
    assert [counts[name] for name in names] == documented
    assert counts["device_synchronizations"] == 0


@pytest.mark.long
@pytest.mark.parametrize("what", [what for what in OPERATIONS if what not in OF_NO_DEVICE])
def test_what_was_made_on_one_device_is_refused_while_another_one_is_current(what: str) -> None:
    with simulated_cuda("lazy", n_devices=2) as simulation:
        with cuda.use_device(1):
            run = OPERATIONS[what]()
        with pytest.raises(RuntimeError, match=r"use_device\(1\)"):
            run()
        assert {launch.device for launch in simulation.launches} <= {1}
        if isinstance(run, Prefetched):
            run.close()


@pytest.mark.parametrize("what", STEPS)
def test_the_documents_say_what_a_step_queues_in_its_stream(what: str) -> None:
    documented = {row["what"]: int(row["n"]) for row in OF_A_STEP.finditer(TABLE.read_text())}
    assert documented.keys() == STEPS.keys()
    with simulated_cuda("lazy") as simulation:
        step = STEPS[what]()
        before = simulation.n_operations
        step()
        assert simulation.n_operations - before == documented[what]
        streams = {launch.stream for launch in simulation.launches}
    assert streams == {0}


def test_a_step_asks_twice_for_the_library_and_once_for_the_stream() -> None:
    calls: Counter[str] = Counter()
    asked = {
        each.__code__: each.__name__
        for each in (library, streams.current_stream_of, streams.use_stream.__wrapped__)
    }

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in asked:
            calls[asked[frame.f_code]] += 1

    with simulated_cuda("lazy"):
        step = Step(agent=PolicyAgent())
        sys.setprofile(count)
        try:
            step()
        finally:
            sys.setprofile(None)
    assert calls == {"library": 2, "current_stream_of": 1}  # and no context of `use_stream`


def test_every_row_of_the_documents_is_counted() -> None:
    assert {row["what"] for row in ROW.finditer(TABLE.read_text())} == set(OPERATIONS)


@pytest.mark.parametrize("what", OBSERVATIONS)
def test_the_documents_say_how_many_bytes_of_an_observation_go_to_the_device(what: str) -> None:
    documented = {row["what"]: row["nbytes"] for row in BYTES.finditer(TABLE.read_text())}
    assert documented.keys() == OBSERVATIONS.keys()
    with simulated_cuda("lazy"):
        step = Step(make_stacked_screen, **OBSERVATIONS[what])
        with counted() as counts:
            step()
        nbytes = step.nbytes_to_device
    # The second launch reads the staged step.
    assert (counts["launches"], counts["bytes_to_device"]) == (2, 0)
    of_observation = sum(size for name, size in nbytes.items() if name.startswith("observation"))
    assert of_observation == int(documented[what].replace(",", ""))
    small = {name: size for name, size in nbytes.items() if not name.startswith("observation")}
    assert small == {"reward": 4, "terminated": 1, "truncated": 1}

"""Whole time steps: BasicSampler in any memory, and loops by hand in NumPy and in torch."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parllel import Array, cuda
from parllel.cages import VectorCage
from parllel.patterns import build_sample_tree, example_of
from parllel.samplers import BasicSampler
from support.row_trees import Shapes
from support.still_envs import DecidedAgent, StepSize, StillEnvs

T = 8  # time steps of a batch

OF_THE_STEP = ("reward", "terminated", "truncated")

Results = Mapping[str, NDArray[Any]]  # Any: of every dtype

# Branches of a sample tree that a batch fills, by the names that loops by hand give their arrays.
WRITTEN = {
    "observation": ("observation",),
    "action": ("action",),
    "reward": ("reward",),
    "terminated": ("terminated",),
    "truncated": ("truncated",),
    "value": ("agent_info", "value"),
    "log_prob": ("agent_info", "log_prob"),
}


class Loop(Protocol):
    """Something that collects batches of T steps of environments that stand still."""

    def collect_batch(self) -> object:
        """Collect T steps."""

    def results(self) -> Results:
        """Return what the last batch has written, in host memory, [T, B, ...]."""

    def close(self) -> None:
        """Give the memory back."""


class Sampled:
    """A `BasicSampler` of environments that stand still.

    Args:
        size: environments and observations.
        storage: kind of memory of the sample tree.
        has_frames: whether each frame is stored once.
    """

    def __init__(self, size: StepSize, storage: str, *, has_frames: bool = False) -> None:
        self._stack = ExitStack()
        cage = self._stack.enter_context(VectorCage(StillEnvs, {"size": size}, seed=0))
        agent = DecidedAgent(cuda.to_device if storage == "device" else None)
        example = example_of(cage, storage=storage)
        options: Any = {"frames": "first"} if has_frames else {}
        samples = build_sample_tree(example, agent, batch_shape=(T, size.n_envs), **options)
        self._samples = samples
        self._sampler = BasicSampler([cage], agent, samples)
        self.collect_batch = self._sampler.collect_batch
        for each in (example, samples, self._sampler):
            self._stack.callback(each.close)

    def results(self) -> Results:
        results = {}
        for name, path in WRITTEN.items():
            leaf: Any = self._samples
            for key in path:
                leaf = leaf[key]
            results[name] = leaf[0:T].to_ndarray()
        return results

    def close(self) -> None:
        self._stack.close()


class ByNumpy:
    """The plainest loop in host memory: arrays of NumPy, one assignment for each leaf."""

    def __init__(self, size: StepSize) -> None:
        self._envs, self._agent = StillEnvs(size), DecidedAgent()
        self.rows = {
            name: np.zeros((T + 1, size.n_envs, *shape), dtype)
            for name, (dtype, shape) in leaves_of(size).items()
        }
        self.rows["observation"][T], _ = self._envs.reset()

    def collect_batch(self) -> None:
        rows, names = self.rows, ("observation", *OF_THE_STEP)
        rows["observation"][0] = rows["observation"][T]
        for t in range(T):
            rows["action"][t], info = self._agent.step(rows["observation"][t])
            results = self._envs.step(rows["action"][t])
            for name, values in zip(names, results, strict=False):
                rows[name][t + (name == "observation")] = values
            for name, values in info.items():
                rows[name][t] = values

    def results(self) -> Results:
        return {name: rows[:T] for name, rows in self.rows.items()}

    def close(self) -> None:
        self._envs.close()


class ByTorch:
    """The plainest loop with a batch in device memory: torch copies each leaf, from pinned rows.

    The host waits once in a step, for the actions. The copies of the step before lie before them in
    the stream, so that the pinned rows may be written again.
    """

    def __init__(self, size: StepSize) -> None:
        leaves, n_envs = leaves_of(size), size.n_envs
        self._envs = StillEnvs(size)
        action, info = DecidedAgent(cuda.to_device).results(n_envs)
        decided = {"action": action, **info}
        self._decided = {name: cuda.tensor_over(values) for name, values in decided.items()}
        self.rows = {
            name: cuda.tensor_over(cuda.to_device(np.zeros((T + 1, n_envs, *shape), dtype)))
            for name, (dtype, shape) in leaves.items()
        }
        self._pinned = {
            name: Array((n_envs,), leaves[name][0], feature_shape=leaves[name][1], storage="pinned")
            for name in ("observation", "action", *OF_THE_STEP)
        }
        self._hosts = {name: array.to_ndarray() for name, array in self._pinned.items()}
        self._tensors = {name: array.to_torch() for name, array in self._pinned.items()}
        self._event = cuda.Event()
        self._hosts["observation"][...], _ = self._envs.reset()
        self.rows["observation"][T].copy_(self._tensors["observation"], non_blocking=True)

    def collect_batch(self) -> None:
        rows, hosts, tensors = self.rows, self._hosts, self._tensors
        rows["observation"][0].copy_(rows["observation"][T])
        for t in range(T):
            tensors["action"].copy_(self._decided["action"], non_blocking=True)
            self._event.record()
            for name, values in self._decided.items():
                rows[name][t].copy_(values)
            self._event.synchronize()
            results = self._envs.step(hosts["action"])
            for name, values in zip(("observation", *OF_THE_STEP), results, strict=False):
                hosts[name][...] = values
                row = rows[name][t + (name == "observation")]
                row.copy_(tensors[name], non_blocking=True)

    def results(self) -> Results:
        return {name: rows[:T].cpu().numpy() for name, rows in self.rows.items()}

    def close(self) -> None:
        cuda.synchronize()
        self._envs.close()
        self._hosts, self._tensors = {}, {}
        for array in self._pinned.values():
            array.close()


def leaves_of(size: StepSize) -> Shapes:
    """Return dtype and shape of each leaf that loops by hand fill."""
    flags: Shapes = {"terminated": ("?", ()), "truncated": ("?", ())}
    floats: Shapes = dict.fromkeys(("reward", "value", "log_prob"), ("f4", ()))
    return {"observation": ("u1", size.shape), "action": ("i8", ()), **floats, **flags}


def check_results(loops: Mapping[str, Loop]) -> None:
    """Refuse a loop that writes something else than that of NumPy, which is among them."""
    for loop in loops.values():
        loop.collect_batch()
        loop.collect_batch()
    expected = next(loop for loop in loops.values() if isinstance(loop, ByNumpy)).results()
    for name, loop in loops.items():
        for leaf, found in loop.results().items():
            assert (found == expected[leaf]).all(), (name, leaf)

"""What a tree says of its memory: before it is allocated, and after."""

from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict, cuda
from parllel.arrays import ArraySpec, FrameSpec
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer, SequenceReplayBuffer
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree import allocate_tree

T, B = 10, 3
FRAME_TABLE = 20 * 8  # bytes on a device of what gathers a leaf of frames


def make_specs(full_size: int = 10 * T) -> ArrayDict:
    def spec(dtype: type, feature_shape: tuple[int, ...] = (), padding: int = 0) -> ArraySpec:
        return ArraySpec.of((T, B), dtype, feature_shape, padding, full_size)

    return ArrayDict(
        {
            "observation": {"camera": spec(np.uint8, (7, 5), 1), "arm": spec(np.float32, (3,), 1)},
            "frames": FrameSpec.of((T, B), np.uint8, (3, 3), 1, full_size, stack=4, fill="zero"),
            "reward": spec(np.float32),
            "terminated": spec(bool),
            "truncated": spec(bool),
        }
    )


@pytest.mark.parametrize("storage", ["local", "shared", "inherited"])
def test_the_bytes_that_are_promised_are_those_of_the_block(storage: str) -> None:
    specs = make_specs()
    promised = specs.describe(storage)
    tree = allocate_tree(specs, storage)
    measured = tree.describe()
    assert measured == promised
    block = tree["reward"]._buffer.memory
    assert promised.nbytes == block.nbytes == block._taken
    assert all(leaf.nbytes % 256 == 0 for leaf in promised.leaves)
    tree.close()


@pytest.mark.parametrize("storage", ["device", "managed"])
def test_the_bytes_that_are_promised_are_those_that_a_device_gives(storage: str) -> None:
    with simulated_cuda("lazy", capacity=10**6) as simulation:
        before = simulation.used_nbytes
        promised = make_specs().describe(storage)
        tree = allocate_tree(make_specs(), storage)
        assert simulation.used_nbytes - before == promised.nbytes + FRAME_TABLE
        assert tree.describe() == promised
        assert promised.device_total_nbytes == cuda.total_nbytes() == 10**6
        assert promised.device_share == promised.nbytes / 10**6
        assert str(promised).splitlines()[-1].endswith("% of the device's 1,000,000")


@pytest.mark.parametrize(
    ("kind", "tables"),
    # Tables of addresses and the state of draws; where the levels of 300 priorities begin: 304, 32,
    # 16 and 1; the form of windows, and a row of zeros for each leaf but observations.
    [
        (ReplayBuffer, 8 * (10 + 8)),
        (PrioritizedReplayBuffer, 8 * (10 + 8 + 4 + 4)),
        (SequenceReplayBuffer, 8 * (10 + 8 + 5) + 9 + 4 + 1 + 1),
    ],
)
def test_a_replay_buffer_promises_its_own_memory_too(kind: Any, tables: int) -> None:
    specs = make_specs()
    with simulated_cuda("lazy") as simulation:
        plan = ArrayDict({"samples": specs, "replay": kind.make_specs(specs, 20)})
        promised, before = plan.describe("device"), simulation.used_nbytes
        samples = allocate_tree(specs, "device")
        small = FRAME_TABLE + tables + 1  # and one flag for all steps in place of `valid`
        form = {"length": 2} if kind is SequenceReplayBuffer else {}
        replay = kind(samples, rng=np.random.default_rng(0), n_final_obs=20, **form)
        assert simulation.used_nbytes - before == promised.nbytes + small
        assert replay.describe() == promised


def test_the_usual_table_has_a_slot_for_each_16_steps() -> None:
    specs = ReplayBuffer.make_specs(make_specs(full_size=1000 * T))
    assert specs["observation"]["arm"].batch_shape == (1000 * T * B // 16 + B,)
    assert specs["slot"].batch_shape == (1000 * T, B)


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_the_usual_table_has_a_slot_for_each_80_steps_of_frames(kind: type[ReplayBuffer]) -> None:
    """All of a buffer of frames has at most 7,200 bytes for each transition."""
    window = {"padding": 1, "full_size": 100_000}
    specs = ArrayDict(
        {
            "observation": FrameSpec.of((1000, 10), np.uint8, (84, 84), **window),
            "action": ArraySpec.of((1000, 10), np.int64, full_size=100_000),
            "reward": ArraySpec.of((1000, 10), np.float32, full_size=100_000),
            "terminated": ArraySpec.of((1000, 10), bool, full_size=100_000),
            "truncated": ArraySpec.of((1000, 10), bool, full_size=100_000),
        }
    )
    own = kind.make_specs(specs)
    assert own["observation"].batch_shape == (10**6 // 80 + 10,)
    assert own["observation"].feature_shape == (84, 84)
    assert ArrayDict({"samples": specs, "replay": own}).describe().nbytes <= 7_200 * 10**6


def test_a_table_names_all_leaves_and_their_sum() -> None:
    tree = allocate_tree(make_specs())
    tree["numpy"], tree["torch"] = np.zeros((2, 3)), torch.zeros(())
    lines = [line.split() for line in str(tree.describe()).splitlines()]
    assert lines[0] == ["path", "dtype", "shape", "rows", "storage", "bytes"]
    nbytes = -(-102 * B * 35 // 256) * 256
    assert lines[1] == [
        "observation.camera", "uint8", "(10,", "3,", "7,", "5)", "102", "local", f"{nbytes:,}",
    ]  # fmt: skip
    assert lines[-3] == ["numpy", "float64", "(2,", "3)", "2", "local", "48"]
    assert lines[-2] == ["torch", "torch.float32", "()", "0", "cpu", "4"]
    assert lines[-1] == ["total", f"{tree.describe().nbytes:,}"]


def test_without_a_device_there_is_no_share() -> None:
    assert make_specs().describe().device_share is None
    assert make_specs().describe("device").device_share is None
    assert make_specs().describe().leaves[0].storage == "-"
    assert ArrayDict({"a": Array((3,), bool)[1]}).describe().leaves[0].rows == 0


def test_an_empty_tree_takes_nothing() -> None:
    assert ArrayDict().describe().nbytes == 0


def test_a_notebook_shows_the_same_cells() -> None:
    tree = ArrayDict({"a": {"<b>": Array((3, 2), np.float32, padding=1)}, "n": np.zeros(4)})
    description = tree.describe()
    table = description._repr_html_()
    assert table.startswith("<table><thead><tr><th>path</th>")
    assert "<td>a.&lt;b&gt;</td>" in table
    for line in str(description).splitlines()[1:]:
        for cell in line.replace("<b>", "&lt;b&gt;").split("  "):
            assert f"<td>{cell.strip()}</td>" in table

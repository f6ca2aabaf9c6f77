"""docs/scaling.md: its tables are those of bench/scaling.py, and that computes what it says."""

import re

import numpy as np
import pytest

import scaling
from parllel import Array, ArrayDict
from parllel.patterns import build_sample_tree
from parllel.tree import leaves_of


def test_the_tables_of_the_document_are_those_of_the_script() -> None:
    text = scaling.DOCUMENT.read_text()
    assert scaling.filled(text) == text, "run `python bench/scaling.py`"
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == scaling.TABLES.keys()


def test_an_altered_number_is_found() -> None:
    text = scaling.DOCUMENT.read_text()
    altered = text.replace("7,063", "7,064")
    assert altered != text
    assert scaling.filled(altered) == text


def test_bytes_of_a_step_are_those_of_a_sample_tree() -> None:
    """By the memory that more steps take."""

    class Agent:
        def step(self, observation: object, *, deterministic: bool = False) -> object:
            return np.zeros(1, np.int32), {}

    atari = scaling.tasks()[0]
    example = ArrayDict(
        {
            "observation": Array((1,), np.uint8, feature_shape=(4, 84, 84)),
            "action": Array((1,), np.int32),
            "reward": Array((1,), np.float32),
            "terminated": Array((1,), np.bool_),
            "truncated": Array((1,), np.bool_),
            "env_info": {},
        }
    )
    sizes = []
    for T in (100, 600):
        tree = build_sample_tree(example, Agent(), batch_shape=(T, 3), frames="zero")
        sizes.append(sum(leaf.spec.nbytes for _, leaf in leaves_of(tree)))
        tree.close()
    per_step = (sizes[1] - sizes[0]) / (500 * 3)
    rounding = 2 * 256 / (500 * 3)  # each part of an Array begins at a multiple of 256 bytes
    assert per_step == pytest.approx(atari.n_rows + atari.n_action, abs=rounding)


def test_rates_and_times_are_those_of_a_loop() -> None:
    assert scaling.PCIE_4.rate == pytest.approx(31.508, abs=1e-3)
    assert scaling.PCIE_5.rate == pytest.approx(63.015, abs=1e-3)
    task = scaling.tasks()[1]
    n_gpus, rate = 8, scaling.NVLINK.rate * 1e9
    part, seconds = task.n_gradients / n_gpus, 0.0
    for _ in range(n_gpus - 1):  # each GPU adds a part to what it was sent, and sends it on
        seconds += part / rate
    for _ in range(n_gpus - 1):  # and then the sums
        seconds += part / rate
    assert scaling.all_reduce_s(task, scaling.CLUSTERS[1]) == pytest.approx(seconds)
    assert scaling.all_reduce_s(task, scaling.CLUSTERS[0]) == 0

"""VectorCage over envpool's own environments, where envpool is installed (it takes 800 MB)."""

from typing import Any

import numpy as np
import pytest

from parllel.cages import VectorCage
from parllel.testing.contracts.cage_calls import random_step, reset, step

envpool = pytest.importorskip("envpool", reason="pip install envpool, to test VectorCage with it")

# envpool declares the bounds of its spaces in float64.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")

CARTPOLE = {
    "task_id": "CartPole-v1",
    "env_type": "gymnasium",
    "num_envs": 3,
    "seed": 5,
    "max_episode_steps": 12,
}


def test_cartpole_gives_its_own_transitions_without_a_step_spent_on_a_reset() -> None:
    n_steps, action = 60, np.array([0, 1, 0])
    lived: list[list[Any]] = [[], [], []]
    bare = envpool.make(**CARTPOLE)
    shown, _ = bare.reset()
    is_reset = np.zeros(3, bool)
    for _ in range(n_steps):
        after, reward, terminated, truncated, info = bare.step(action)
        for number in np.flatnonzero(~is_reset):
            row = (reward[number], terminated[number], truncated[number])
            row += (info["elapsed_step"][number],)
            lived[number].append((shown[number].copy(), after[number].copy(), *row))
        shown, is_reset = after, terminated | truncated
    with VectorCage(envpool.make, CARTPOLE, seed=0) as cage:
        shown, info = reset(cage)
        assert [one["elapsed_step"] for one in info] == [0, 0, 0]
        for t in range(n_steps):
            after, *results, infos = step(cage, action)
            assert list(cage.invalid) == []
            for number in range(3):
                if t == len(lived[number]):  # the bare environment spent steps on resets
                    return
                true_after = cage.final_obs.get(number, after[number])
                expected = lived[number][t]
                np.testing.assert_array_equal(shown[number], expected[0])
                np.testing.assert_array_equal(true_after, expected[1])
                row = (*(result[number] for result in results), infos[number]["elapsed_step"])
                assert row == expected[2:]
            shown = after
    raise AssertionError("no episode ended")


def test_what_random_actions_are_drawn_depends_on_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        with VectorCage(envpool.make, CARTPOLE, seed=seed) as cage:
            drawn.append([random_step(cage)[0].tolist() for _ in range(8)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_part_of_the_environments_at_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size: got 2, expected 3 = num_envs"):
        VectorCage(envpool.make, {**CARTPOLE, "batch_size": 2})


def test_pong_is_written_in_place() -> None:
    kwargs = {"task_id": "Pong-v5", "env_type": "gymnasium", "num_envs": 2, "seed": 1}
    images = np.zeros((2, 2, 4, 84, 84), np.uint8)
    with VectorCage(envpool.make, kwargs) as cage:
        reset(cage, out_obs=images[0])
        step(cage, np.array([2, 3]), out_obs=images[1])
    np.testing.assert_array_equal(images[1][:, :3], images[0][:, 1:])
    assert images[1].any(axis=(1, 2, 3)).all()

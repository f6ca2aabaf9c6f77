"""Windows of several agents: each of their rows is a step of the list, as is what follows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_batches import FORMS, Shape, by_agent
from numpy.typing import NDArray
from test_agent_replay import T, World, _host, each_form

from long_run import all_but_first
from parllel import ArrayDict
from parllel.replays import (
    PrioritizedSequenceReplayBuffer,
    SequenceReplayBuffer,
)
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule

LENGTH, BURN_IN = 3, 2
ENDS = ("pad", "stop", "cross")


def make_world(form: str, end: str, *, kind: Any = SequenceReplayBuffer, **more: Any) -> World:
    def make(samples: ArrayDict, *, rng: Any, n_steps: int, discount: float) -> Any:
        return kind(samples, rng=rng, length=LENGTH, burn_in=BURN_IN, episode_end=end)

    return World(form, Shape(T, 2, 3), kind=make, **more)


def read(minibatch: ArrayDict, form: str) -> dict[str, NDArray[Any]]:
    """Return a minibatch with an axis of agents, which is behind time and windows."""
    found = {name: by_agent(minibatch[name], _host).copy() for name in minibatch}
    if form != "axis":
        found["observation"] = np.moveaxis(found["observation"], -1, 2)
    return found


def check_window(world: World, found: dict[str, NDArray[Any]], item: int) -> int:
    """Compare each row of a window with the list; return in how many an agent lives alone."""
    s, n_alone = world.steps, 0
    number, b = divmod(int(found["index"][item]), world.shape.B)
    valid, mask = found["valid"][:, item], found["mask"][:, item]
    observation = found["observation"][:, item]
    assert mask[BURN_IN]
    assert valid[mask].any(axis=1).all()
    for row in range(BURN_IN + LENGTH):
        alive = valid[row]
        if not alive.any():
            assert not mask[row]
            continue
        step = int(observation[row, alive.argmax(), 0]) // 100  # as observations are numbered
        if world_is_plain(world):
            assert step == number + row - BURN_IN
        for name in ("reward", "terminated", "truncated", "valid"):
            assert (found[name][row, item] == getattr(s, name)[step, b]).all(), name
        assert (observation[row, alive] == s.observation[step, b, alive]).all()
        assert mask[row] == (row >= BURN_IN)
        # What an agent's value goes on with.
        goes_on = alive & ~s.terminated[step, b]
        is_over = s.is_end[step, b] | s.truncated[step, b]
        following = np.where(is_over[:, None], s.final[step, b], s.observation[step + 1, b])
        assert (observation[row + 1, goes_on] == following[goes_on]).all()
        n_alone += not alive.all()
        first = step == 0 or s.is_end[step - 1, b]
        assert found["is_first"][row, item] == first
    return n_alone


def world_is_plain(world: World) -> bool:
    """Tell whether rows of windows are steps one after the other, whatever episodes there are."""
    return bool(world.replay.episode_end != "cross")


@each_form
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("seed", all_but_first(range(3)))
def test_windows_are_those_of_the_list(seed: int, end: str, form: str) -> None:
    world = make_world(form, end, seed=seed)
    n_alone = 0
    drawn = set()
    for _ in range(5):
        world.write(1)
        found = read(world.replay.sample(60), form)
        for item in range(60):
            n_alone += check_window(world, found, item)
        drawn |= set(found["index"].tolist())
    assert n_alone > 20  # some live where others do not
    assert len(drawn) > 8


def test_both_forms_draw_the_same_windows() -> None:
    found = []
    for form in FORMS:
        world = make_world(form, "pad", kind=PrioritizedSequenceReplayBuffer, seed=3)
        world.write(4)
        minibatch = world.replay.sample(30)
        error = minibatch["mask"].float()[BURN_IN:]
        world.replay.update_priorities(minibatch["index"], error, minibatch["mask"][BURN_IN:])
        found.append(read(world.replay.sample(30), form))
    for name, values in found[0].items():
        assert (values == found[1][name]).all(), name


@each_schedule
@each_form
@pytest.mark.parametrize("end", all_but_first(ENDS[1:]))
def test_a_device_draws_the_windows_of_the_host(
    end: str, form: str, schedule: str, seed: int
) -> None:
    def draw(storage: str) -> list[dict[str, NDArray[Any]]]:
        world, found = make_world(form, end, storage=storage, seed=4), []
        for _ in range(5):
            world.write(1)
            found.append(read(world.replay.sample(16), form))
        return found

    expected = draw("local")
    with simulated_cuda(schedule, seed=seed):
        found = draw("device")
    for mine, own in zip(found, expected, strict=True):
        for name, values in own.items():
            assert mine[name].tobytes() == values.tobytes(), name


def test_a_saved_ring_draws_the_same_windows(tmp_path: Path) -> None:
    worlds = [make_world("axis", "stop", seed=5) for _ in range(2)]
    worlds[0].write(4)
    worlds[0].replay.save(tmp_path)
    worlds[1].replay.load(tmp_path)
    opened = SequenceReplayBuffer.open(tmp_path)
    draws = [read(each.sample(20), "axis") for each in (worlds[0].replay, worlds[1].replay, opened)]
    for other in draws[1:]:
        for name, values in draws[0].items():
            assert (values == other[name]).all(), name

"""The goals that a plain list of steps allows in hindsight, and those of a minibatch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parllel import ArrayDict
from parllel.replays import HindsightReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from step_list import DISCOUNT, Chances, Model, Shape, Step, check_clouds, show_goals

STRATEGIES = ("future", "final", "episode")


def compute_reward(achieved: Any, desired: Any) -> Tensor:
    """Pay what tells the two goals apart, with small integers that float32 has."""
    return 1000 * achieved["at"][:, 0] - desired["at"][:, 0]


def compute_terminated(achieved: Any, desired: Any) -> Tensor:
    """End where the goal is achieved, or where the level of the goal is a multiple of 5."""
    is_there = (achieved["at"] == desired["at"]).all(-1)
    return is_there | (desired["level"] % 5 == 0)


def make_hindsight(tree: ArrayDict, *, n_steps: int = 1, **settings: Any) -> HindsightReplayBuffer:
    """Make a buffer with the arguments that `step_list.Model` gives to any."""
    assert n_steps == 1
    functions = {"compute_reward": compute_reward, "compute_terminated": compute_terminated}
    return HindsightReplayBuffer(tree, **{**functions, **settings})


def make_model(shape: Shape, chances: Chances, *, seed: int, **settings: Any) -> Model:
    kind: Any = make_hindsight
    shape = shape._replace(has_goals=True, n_steps=1)
    return Model(shape, chances, seed=seed, kind=kind, **settings)


def is_known(step: Step) -> bool:
    """Tell whether the observation after a step is there, and the step valid."""
    if not step.valid or step.next_observation < 0:
        return False
    return not step.terminated or step.next_observation != step.observation


def is_open(step: Step) -> bool:
    return step.valid and not (step.terminated or step.truncated)


def goals_of(model: Model, strategy: str) -> dict[int, list[int]]:
    """Return the observations whose goals each transition may get, by its index."""
    found = {}
    for column, steps in enumerate(model.steps):
        for number in range(model.first, len(steps)):
            if is_known(steps[number]):
                goals = list(_later(steps, number))
                if strategy == "final":
                    goals = goals[-1:]
                if strategy == "episode":
                    goals += _earlier(steps, number, model.first)
                found[number * model.shape.B + column] = goals
    return found


def _later(steps: list[Step], number: int) -> Iterator[int]:
    for step in steps[number:]:
        if is_known(step):
            yield step.next_observation
        if not is_open(step):
            return


def _earlier(steps: list[Step], number: int, first: int) -> Iterator[int]:
    for step in reversed(steps[first:number]):
        if not is_open(step):
            return
        yield step.next_observation


def read_goals(minibatch: ArrayDict, n: int) -> NDArray[np.int64]:
    """Return the first n transitions of a minibatch, after a look at all that depends on goals.

    Returns:
        int64 [n, 2]: the index of each, and the observation that achieves its goal.
    """
    columns = {path: leaf[:n].cpu() for path, leaf in leaves(check_clouds(minibatch)).items()}
    goal = columns["observation.desired_goal.level"]
    for branch in ("observation", "next_observation"):
        desired = {name: columns[f"{branch}.desired_goal.{name}"] for name in ("at", "level")}
        assert (desired["level"] == goal).all()
        assert (desired["at"] == torch.stack([goal, 2 * goal], 1)).all()
    after = {name: columns[f"next_observation.achieved_goal.{name}"] for name in ("at", "level")}
    assert (after["level"] == columns["next_observation.deep.number"]).all()
    reward, terminated = (
        function(after, {"at": columns["observation.desired_goal.at"], "level": goal})
        for function in (compute_reward, compute_terminated)
    )
    assert (columns["reward"] == reward).all()
    assert (columns["n_step_return"] == reward).all()
    assert (columns["terminated"] == terminated).all()
    assert (columns["n_step_discount"] == torch.where(terminated, 0.0, DISCOUNT)).all()
    return torch.stack([columns["index"], goal], 1).numpy()


def count_pairs(pairs: NDArray[np.int64]) -> dict[tuple[int, int], int]:
    """Return how often each pair of numbers comes, of int64 [n, 2] from 0 on."""
    base = int(pairs.max()) + 1
    found, counts = np.unique(pairs[:, 0] * base + pairs[:, 1], return_counts=True)
    keys = zip((found // base).tolist(), (found % base).tolist(), strict=True)
    return dict(zip(keys, counts.tolist(), strict=True))


def assert_untouched(minibatch: ArrayDict, n: int, model: Model) -> None:
    """Check that the transitions behind the first n are those of the list."""
    columns = {path: leaf[n:].cpu() for path, leaf in leaves(check_clouds(minibatch)).items()}
    steps = [
        model.steps[index % model.shape.B][index // model.shape.B]
        for index in columns["index"].tolist()
    ]
    for name in ("reward", "terminated", "truncated"):
        assert columns[name].tolist() == [getattr(step, name) for step in steps]
    assert columns["n_step_return"].tolist() == columns["reward"].tolist()
    expected = [0.0 if step.terminated else DISCOUNT for step in steps]
    assert columns["n_step_discount"].tolist() == expected
    for branch, field in (("observation", "observation"), ("next_observation",) * 2):
        shown = [show_goals(getattr(step, field)) for step in steps]
        for goal in ("achieved_goal", "desired_goal"):
            for name in ("at", "level"):
                found = columns[f"{branch}.{goal}.{name}"].numpy()
                rows = np.array([each[goal][name] for each in shown]).reshape(found.shape)
                assert (found == rows).all()

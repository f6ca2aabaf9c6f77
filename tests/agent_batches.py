"""Batches of several agents that come and go, in each form, and those of each agent."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parllel import Array, ArrayDict
from parllel.tree import leaves_of

NAMES = ("pinky", "inky", "clyde")
FORMS = ("axis", "dictionary")
N_OBS = 3
Numbers = dict[str, NDArray[Any]]


class Shape(NamedTuple):
    T: int = 7
    B: int = 3
    N: int = 3


USUAL = Shape()


def random_lives(rng: np.random.Generator, shape: Shape) -> tuple[NDArray[np.bool_], ...]:
    """Return when agents are alive, and the flags of their last steps, bool [T, B, N] each.

    An environment's episode ends when all of its agents have ended; the next step begins another,
    in which some agents come later. The batch begins and ends in the middle of episodes.
    """
    T, B, N = shape
    valid, terminated = np.zeros((T, B, N), bool), np.zeros((T, B, N), bool)
    truncated = np.zeros((T, B, N), bool)
    for b in range(B):
        state = np.where(rng.random(N) < 0.7, 1, 0)  # 0: not yet there, 1: alive, 2: gone
        state[int(rng.integers(N))] = 1
        for t in range(T):
            acted = state == 1
            valid[t, b] = acted
            ends = acted & (rng.random(N) < 0.25)
            how = rng.integers(1, 4, N)
            terminated[t, b] = ends & (how & 1 > 0)
            truncated[t, b] = ends & (how & 2 > 0) | ~acted
            state[ends] = 2
            born = (state == 0) & (rng.random(N) < 0.3)  # also where all others have just ended
            state[born], truncated[t, b, born] = 1, False
            if not (state == 1).any():
                state = np.where(rng.random(N) < 0.7, 1, 0)
                state[int(rng.integers(N))] = 1
    return valid, terminated, truncated


def random_numbers(
    seed: int, shape: Shape = USUAL, *, dies: bool = True, poison: float = np.nan
) -> Numbers:
    """Return what a batch has, with an axis of agents; dead rows hold what nothing may read.

    Args:
        seed: of the numbers.
        shape: T, B and N.
        dies: whether agents come and go; else all have the flags of the first one.
        poison: what dead rows hold.
    """
    rng, (T, B, N) = np.random.default_rng(seed), shape

    def some(*more: int, steps: int = T) -> NDArray[np.float32]:
        return rng.standard_normal((steps, B, N, *more)).astype(np.float32)

    valid, terminated, truncated = random_lives(rng, shape)
    if not dies:
        valid = np.ones_like(valid)
        terminated, truncated = (rng.random((T, B, 1)) < 0.2 for _ in range(2))
        terminated, truncated = (np.repeat(each, N, axis=2) for each in (terminated, truncated))
    numbers = {
        "observation": some(N_OBS, steps=T + 1),
        "action": rng.integers(2, size=(T, B, N)),
        "reward": some(),
        "value": some(steps=T + 1),
        "log_prob": -np.abs(some()),
        "final_value": some(),
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
    }
    for name in ("observation", "reward", "value", "log_prob", "final_value"):
        numbers[name][:T][~valid] = poison
    return numbers


def _leaf(values: NDArray[Any], T: int, storage: str) -> Array:
    n_padding = len(values) - T
    leaf = Array(
        (T, values.shape[1]),
        values.dtype,
        feature_shape=values.shape[2:],
        padding=n_padding,
        storage=storage,
    )
    leaf[: len(values)] = values
    return leaf


def make_batch(
    numbers: Numbers, form: str, storage: str = "local", *, shared: bool = False
) -> ArrayDict:
    """Return a batch in one form: "axis", "dictionary", or the number of an agent: its own alone.

    Args:
        numbers: what it has, with an axis of agents.
        form: the form.
        storage: kind of the memory.
        shared: whether flags are those of the first agent, for all of them, without `valid`.
    """
    T = len(numbers["reward"])
    tree: dict[str, Any] = {}
    for name, values in numbers.items():
        if shared and name == "valid":
            continue
        if shared and name in ("terminated", "truncated"):
            tree[name] = _leaf(values[:, :, 0], T, storage)
        elif form == "axis":
            tree[name] = _leaf(values, T, storage)
        elif form == "dictionary":
            tree[name] = {
                each: _leaf(values[:, :, i], T, storage)
                for i, each in enumerate(NAMES[: values.shape[2]])
            }
        else:
            tree[name] = _leaf(values[:, :, int(form)], T, storage)
    tree["agent_info"] = {name: tree.pop(name) for name in ("value", "log_prob")}
    return ArrayDict(tree)


def by_agent(branch: Any, to_host: Any = None) -> NDArray[Any]:
    """Return a quantity of a batch or a minibatch with an axis of agents, on the host."""
    read = to_host or (lambda leaf: np.asarray(leaf))
    if isinstance(branch, Mapping):
        leaves = dict(leaves_of(ArrayDict(branch)))
        return np.stack([read(leaves[(name,)]) for name in NAMES if (name,) in leaves], axis=-1)
    return np.asarray(read(branch))

"""What agents of a `Relay` do, in plain lists: the loop by hand that cages and samplers match.

It asks the environment itself, and knows nothing of slots but the order of `possible_agents`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from parllel.arrays import Array
from parllel.cages import Cage, empty_rows, spawn_seeds
from parllel.cages.seeds import seed_words
from parllel.testing.toy_agents import ENDS, Life, Relay
from parllel.tree import ArrayDict, dict_map

NAMES = ("ada", "bob", "cyd")
Kwargs = Mapping[str, Any]


class Row(NamedTuple):
    """One step of one environment; lists and dictionaries have an entry for each agent's name.

    Args:
        observation: what each agent is shown before the step; None where it is shown nothing.
        reward, terminated, truncated, valid: as a row of a sample tree has them.
        after: what each agent is shown after the step, before any reset.
        is_end: whether the step ends the episode.
        returns: where it does, the return of each agent.
        finals: where it does, the last thing that each agent was shown in the episode.
    """

    observation: Mapping[str, Any]
    reward: Mapping[str, float]
    terminated: Mapping[str, bool]
    truncated: Mapping[str, bool]
    valid: Mapping[str, bool]
    after: Mapping[str, Any]
    is_end: bool
    returns: Mapping[str, float]
    finals: Mapping[str, Any]


def act(observation: Any, slot: int) -> Any:
    """Return the action of a slot after observations [..., 3 or more], of any library."""
    return (observation[..., 0] + observation[..., 1] + 2 * observation[..., 2] + slot) % 4


def play(kwargs: Kwargs, seed: int, n_envs: int, n_steps: int) -> list[list[Row]]:
    """Return the rows of each environment, and a row behind the last one for its observation."""
    words = [seed_words(each)[0] for each in spawn_seeds(seed, n_envs)]
    return [_play_one(Relay(**kwargs), word, n_steps) for word in words]


def _play_one(env: Relay, seed: int, n_steps: int) -> list[Row]:
    names = list(env.possible_agents)
    shown, _ = env.reset(seed=seed)
    rows, returns = [], dict.fromkeys(names, 0.0)
    last: dict[str, Any] = {name: np.copy(each) for name, each in shown.items()}
    for _ in range(n_steps + 1):
        living = set(env.agents)
        actions = {
            name: np.int64(act(shown[name], slot))
            for slot, name in enumerate(names)
            if name in living
        }
        before = {name: np.copy(each) for name, each in shown.items()}
        shown, reward, terminated, truncated, _ = env.step(actions)
        after = {name: np.copy(each) for name, each in shown.items()}
        last.update(after)
        for name in living:
            returns[name] += reward[name]
        is_end = not env.agents
        rows.append(
            Row(
                {name: before.get(name) for name in names},
                {name: reward.get(name, 0.0) for name in names},
                {name: terminated.get(name, False) for name in names},
                {name: truncated.get(name, name not in env.agents) for name in names},
                {name: name in living for name in names},
                {name: after.get(name) for name in names},
                is_end,
                dict(returns) if is_end else {},
                {name: last.get(name) for name in names} if is_end else {},
            )
        )
        if is_end:
            shown, _ = env.reset()
            returns = dict.fromkeys(names, 0.0)
            last = {name: np.copy(each) for name, each in shown.items()}
    return rows


def value_of(observation: Any) -> Any:
    """Return the values of observations [..., 3 or more], of any library."""
    return 100 * observation[..., 0] + 7 * observation[..., 1] + observation[..., 2]


def table(rows: list[list[Row]], pick: Callable[[Row], Mapping[str, Any]], name: str) -> Any:
    """Return [T, B] of one agent, of all rows but the last one of each environment."""
    return np.array([[pick(row)[name] for row in column[:-1]] for column in rows]).T


def observations(rows: list[list[Row]], name: str, size: int) -> NDArray[np.float32]:
    """Return what an agent is shown, [T + 1, B, size]; zeros where it is shown nothing."""
    nothing = np.zeros(size, np.float32)
    shown = [
        [nothing if row.observation[name] is None else row.observation[name] for row in column]
        for column in rows
    ]
    return np.array(shown).swapaxes(0, 1)


def leaf(tree: Any, name: str) -> Any:
    """Return one agent's part of a quantity in either form, on the host: [T, B, ...]."""
    if isinstance(tree, ArrayDict):
        own = tree[name]
        return np.asarray(own.to_ndarray() if isinstance(own, Array) else own)
    values = tree.to_ndarray() if isinstance(tree, Array) else tree
    return np.asarray(values)[:, :, NAMES.index(name)]


@st.composite
def lives(draw: st.DrawFn) -> dict[str, Life]:
    """Return lives of three agents, of whom one acts from the first step on.

    One that would begin after a step in which no agent acts never comes: the episode has ended.
    """
    found: dict[str, Life] = {}
    for name in draw(st.permutations(NAMES)):
        first = draw(st.integers(1, 4)) if found else 1
        last = draw(st.integers(first, first + 3))
        found[name] = Life(first, last, draw(st.sampled_from(ENDS)))
    return {name: found[name] for name in NAMES}


def compare(cage: Cage, rows: list[list[Row]], storage: str = "local") -> None:
    """Step a cage of `Relay` environments, and compare all that it gives with their rows.

    Args:
        cage: a new cage, whose summaries are `TrajInfo`.
        rows: what `play` returned for the same environments and seed.
        storage: kind of the memory that results are written to.
    """
    assert cage.agents is not None
    n_steps, n_envs = len(rows[0]) - 1, cage.n_envs
    places = _places(cage, n_steps, storage)
    expected_episodes = [
        (row.returns, sum(row.returns.values()) / len(NAMES))
        for t in range(n_steps)
        for row in (column[t] for column in rows)
        if row.is_end
    ]
    action = places["action"]
    for t in range(n_steps):
        for b in range(n_envs):
            _set(action, t, b, rows[b][t])
    own = (lambda tree, t: dict_map(lambda each: each[t, 0], tree)) if n_envs == 1 else _row
    cage.reset_async(out_obs=own(places["observation"], 0))
    cage.await_step()
    completed = []
    for t in range(n_steps):
        command = cage.prepare_step(
            own(action, t),
            out_obs=own(places["observation"], t + 1),
            out_reward=own(places["reward"], t),
            out_terminated=own(places["terminated"], t),
            out_truncated=own(places["truncated"], t),
            out_valid=own(places["valid"], t),
            out_info=ArrayDict(),
        )
        cage.start_command(command)
        cage.await_step()
        ended = {b: column[t].finals for b, column in enumerate(rows) if column[t].is_end}
        assert list(cage.final_obs) == list(ended)
        for b, finals in ended.items():
            _compare_final(cage.final_obs[b], finals)
        completed += cage.take_completed()
    compare_rows(places, rows)
    assert len(completed) == len(expected_episodes)
    for traj, (returns, mean) in zip(completed, expected_episodes, strict=True):
        assert traj.returns == returns
        np.testing.assert_allclose(traj.episode_return, mean)


def compare_rows(places: Mapping[str, Any], rows: list[list[Row]]) -> None:
    """Compare a tree's rows [T, B, ...] in either form with those of a loop by hand."""
    for name in NAMES:
        shown = leaf(places["observation"], name)
        expected = observations(rows, name, shown.shape[-1])[: len(shown)]
        np.testing.assert_array_equal(shown, expected, err_msg=name)
        for field in ("reward", "terminated", "truncated", "valid"):
            expected = table(rows, operator.attrgetter(field), name)
            found = leaf(places[field], name)
            np.testing.assert_array_equal(found, expected, err_msg=f"{field} of {name}")


def _places(cage: Cage, n_steps: int, storage: str) -> dict[str, Any]:
    """Return memory for all results, [T, B, ...]; observations have a row more."""
    agents = cage.agents
    assert agents is not None
    shape = n_steps, cage.n_envs
    places = {
        "observation": empty_rows(cage.observation_space, (n_steps + 1, cage.n_envs)),
        "action": empty_rows(cage.action_space, shape),
        "reward": agents.rows(shape, np.float32),
        "terminated": agents.flag_rows(shape),
        "truncated": agents.flag_rows(shape),
        "valid": agents.flag_rows(shape),
    }
    return {name: dict_map(_array_like, rows, storage) for name, rows in places.items()}


def _array_like(rows: NDArray[Any], storage: str) -> Array:
    return Array(rows.shape[:2], rows.dtype, feature_shape=rows.shape[2:], storage=storage)


def _row(tree: Any, t: int) -> Any:
    return tree[t]


def _set(tree: Any, t: int, b: int, row: Row) -> None:
    """Write the actions of a step; an empty slot gets one that no agent may take."""
    for slot, name in enumerate(NAMES):
        action = act(row.observation[name], slot) if row.valid[name] else 99
        if isinstance(tree, ArrayDict):
            tree[name][t, b] = action
        else:
            tree[t, b, slot] = action


def _compare_final(final_obs: Any, finals: Mapping[str, Any]) -> None:
    for slot, name in enumerate(NAMES):
        shown = final_obs[name] if isinstance(final_obs, Mapping) else final_obs[slot]
        expected = np.zeros_like(shown) if finals[name] is None else finals[name]
        np.testing.assert_array_equal(shown, expected, err_msg=name)

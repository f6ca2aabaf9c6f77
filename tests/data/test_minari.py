"""Data sets of Minari: a ring's episodes go out and come back bit for bit; others are refused."""

import copy
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from optional import needs
from parllel import ArrayDict
from parllel.cages import SerialCage
from parllel.data import build_transition_tree, from_minari, to_minari
from parllel.patterns import build_example, build_sample_tree
from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer, episodes_of
from parllel.samplers import BasicSampler
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree import leaves_of

pytestmark = [
    needs("minari", "h5py"),
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]

N_ENVS, T, RING = 3, 4, 40
SPACE = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (32, 32, 3), np.uint8),  # as large as what Minari compresses
        "stack": spaces.Box(0, 255, (3, 4), np.uint8),
        "pair": spaces.Tuple((spaces.Box(-9, 9, (2,), np.float64), spaces.Discrete(5, start=2))),
    }
)
ACTIONS = spaces.Dict({"move": spaces.Discrete(3), "force": spaces.Box(-1, 1, (2,), np.float32)})


class World(gym.Env[Any, Any]):
    """Random observations of every form; an episode has 1 to 7 steps, and ends in either way."""

    observation_space, action_space = SPACE, ACTIONS

    def _observe(self) -> dict[str, Any]:
        self.frames = [*self.frames[1:], self.np_random.integers(256, size=4, dtype=np.uint8)]
        return {
            "image": self.np_random.integers(256, size=(32, 32, 3), dtype=np.uint8),
            "stack": np.array(self.frames),
            "pair": (self.np_random.random(2), int(self.np_random.integers(2, 7))),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 8))
        self.frames = [np.zeros(4, np.uint8)] * 3
        return self._observe(), {"level": np.float32(0)}

    def step(self, action: Any) -> Any:
        self.left -= 1
        is_over, coin = self.left == 0, bool(self.np_random.integers(2))
        reward = float(np.float32(self.np_random.random()))
        info = {"level": np.float32(self.left)}
        return self._observe(), reward, is_over and coin, is_over and not coin, info


class Random:
    """An agent that acts at random, and tells how sure it is."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def step(self, observation: Any, *, deterministic: bool = False) -> Any:
        n = len(observation["image"])
        move = self._rng.integers(3, size=n)
        force = self._rng.random((n, 2)).astype(np.float32)
        return ArrayDict({"move": move, "force": force}), {"sure": force[:, 0]}


def collect(n_batches: int, storage: str = "local", **options: Any) -> ReplayBuffer:
    """Return a buffer that a sampler has fed."""
    example = build_example(World, storage=storage)
    samples = build_sample_tree(
        example, Random(), batch_shape=(T, N_ENVS), full_size=RING, frames={"stack": "zero"}
    )
    options = {"keep_terminated": True, **options}
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0), **options)
    cage = SerialCage(World, n_envs=N_ENVS, seed=1)
    sampler = BasicSampler([cage], Random(), samples, replay=replay)
    for _ in range(n_batches):
        sampler.collect_batch()
    sampler.close()
    return replay


def ring_for(dataset: Any, kind: Any = ReplayBuffer, **options: Any) -> Any:
    tree = build_transition_tree(
        dataset.observation_space, dataset.action_space, n_steps=dataset.total_steps, **options
    )
    return kind(tree, rng=np.random.default_rng(0), n_final_obs=dataset.total_episodes)


def bits_of(episode: Any) -> dict[str, Any]:
    """Return what an episode has by the paths of leaves, with their dtypes."""
    tree = {"observation": episode.observation, "terminated": episode.terminated}
    tree |= {"truncated": episode.truncated}
    tree |= {name: episode.branches[name] for name in ("action", "reward")}
    return {
        "/".join(path): (str(leaf.dtype), leaf.shape, leaf.tobytes())
        for path, leaf in ArrayDict(tree).walk()
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def write(replay: Any, name: str = "world/mixed-v0", **options: Any) -> Any:
    places = {"observation_space": SPACE, "action_space": ACTIONS}
    return to_minari(replay, name, **(places | options))


@pytest.mark.parametrize(
    ("n_batches", "frames"),
    [
        pytest.param(6, None, marks=pytest.mark.long),
        pytest.param(6, {"stack": "zero"}, marks=pytest.mark.long),
        pytest.param(25, None, marks=pytest.mark.long),
        (25, {"stack": "zero"}),
    ],
)
def test_episodes_come_back_bit_for_bit(n_batches: int, frames: Any) -> None:
    replay = collect(n_batches)
    dataset = write(replay)
    whole = [each for each in episodes_of(replay) if each.is_whole]
    assert len(whole) == dataset.total_episodes > 8
    assert {each.env for each in whole} == set(range(N_ENVS))
    back = ring_for(dataset, frames=frames)
    from_minari(dataset, back)
    assert [bits_of(each) for each in episodes_of(back)] == list(map(bits_of, whole))
    assert all(each.is_whole for each in episodes_of(back))
    again = write(back, "world/again-v0")
    for one, other in zip(dataset, again, strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            trees = (plain(getattr(each, name)) for each in (one, other))
            first, second = (dict(leaves_of(tree)) for tree in trees)
            assert first.keys() == second.keys()
            for path, leaf in first.items():
                assert (leaf.dtype, leaf.tobytes()) == (second[path].dtype, second[path].tobytes())


def plain(value: Any) -> Any:
    """Return a tree of dictionaries and tuples as an ArrayDict."""
    if isinstance(value, tuple):
        value = {str(number): part for number, part in enumerate(value)}
    if isinstance(value, dict):
        return ArrayDict({name: plain(part) for name, part in value.items()})
    return value


def test_a_data_set_has_what_its_spaces_say_and_infos_behind_that_of_the_reset() -> None:
    replay = collect(6)
    whole = [each for each in episodes_of(replay) if each.is_whole]
    for found, episode in zip(write(replay), whole, strict=True):
        n = len(found.rewards)
        for at in range(n + 1):
            pair = tuple(part[at] for part in found.observations["pair"])
            members = {name: found.observations[name][at] for name in ("image", "stack")}
            assert SPACE.contains({**members, "pair": pair})
        level, sure = found.infos["env_info"]["level"], found.infos["agent_info"]["sure"]
        assert (level[0], sure[0], len(level), len(sure)) == (0, 0, n + 1, n + 1)
        assert level[1:].tolist() == list(range(n - 1, -1, -1))
        assert sure[1:].tobytes() == episode.branches["agent_info"]["sure"].tobytes()


@pytest.mark.long
def test_infos_come_back_to_branches_that_the_tree_has() -> None:
    dataset = write(collect(6))
    tree = build_transition_tree(SPACE, ACTIONS, n_steps=dataset.total_steps)
    tree["env_info"] = ArrayDict({"level": tree["reward"].new_array()})
    tree["valid"] = tree["reward"].new_array(dtype=bool)
    n_final_obs = dataset.total_episodes
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0), n_final_obs=n_final_obs)
    from_minari(dataset, replay)
    assert replay.samples["valid"].to_ndarray().all()
    levels = [each.branches["env_info"]["level"] for each in episodes_of(replay)]
    for found, episode in zip(levels, dataset, strict=True):
        assert found.tolist() == list(range(len(episode) - 1, -1, -1))
    tree["other"] = tree["reward"].new_array()
    with pytest.raises(ValueError, match=r"episode 0.*other: .*infos have no such entry"):
        from_minari(dataset, ReplayBuffer(tree, rng=np.random.default_rng(0)))


@pytest.mark.long
def test_parts_of_episodes_are_left_out_or_kept_and_told(caplog: pytest.LogCaptureFixture) -> None:
    replay = collect(25)  # the ring has come round twice
    episodes = list(episodes_of(replay))
    parts = [each for each in episodes if not each.is_whole]
    assert {(each.has_begin, each.has_end) for each in parts} >= {(False, True), (True, False)}
    n_steps = sum(len(each.terminated) for each in parts)
    with caplog.at_level(logging.WARNING):
        dropped = write(replay, "world/dropped-v0")
        kept = write(replay, "world/kept-v0", partial="keep")
    told = [each.getMessage() for each in caplog.records]
    for text, what in zip(told, ("left out", "kept"), strict=True):
        assert f"{n_steps} steps of {len(parts)} episodes" in text
        assert what in text
    assert kept.total_steps - dropped.total_steps == n_steps
    for found, episode in zip(kept, episodes, strict=True):
        ends = found.terminations | found.truncations
        assert ends.tolist() == [False] * (len(found) - 1) + [True]
        assert found.truncations[-1] == (not episode.terminated[-1])


@pytest.mark.long
def test_a_ring_on_a_device_goes_out_and_comes_back() -> None:
    with simulated_cuda("lazy"):
        replay = collect(25, storage="device")
        dataset = write(replay)
        whole = [bits_of(each) for each in episodes_of(replay) if each.is_whole]
        back = ring_for(dataset, storage="device", frames={"stack": "zero"})
        from_minari(dataset, back)
        assert [bits_of(each) for each in episodes_of(back)] == whole


@pytest.mark.long
def test_any_buffer_of_transitions_draws_what_the_data_set_has() -> None:
    dataset = write(collect(6))
    replay = ring_for(dataset, PrioritizedReplayBuffer)
    from_minari(dataset, replay)
    batch = replay.sample(400)
    followers = {
        step.tobytes(): after.tobytes()
        for episode in dataset
        for step, after in zip(
            episode.observations["image"], episode.observations["image"][1:], strict=False
        )
    }
    images = (batch[name]["image"].numpy() for name in ("observation", "next_observation"))
    for step, after in zip(*images, strict=True):
        assert followers[step.tobytes()] == after.tobytes()


@pytest.mark.long
def test_batches_shorter_than_episodes_hold_the_same() -> None:
    dataset = write(collect(6))
    whole = ring_for(dataset)
    from_minari(dataset, whole)
    single = ring_for(dataset, batch_shape=(1, 1), frames={"stack": "zero"})
    from_minari(dataset, single)
    assert list(map(bits_of, episodes_of(single))) == list(map(bits_of, episodes_of(whole)))


# What is refused


def test_episodes_that_terminated_need_their_final_observations(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"terminated at step \d+.*keep_terminated=True"):
        write(collect(6, keep_terminated=False))
    assert files_in(folder) == []


def files_in(folder: Path) -> list[str]:
    return [name for _, _, files in os.walk(folder) for name in files if name != ".DS_Store"]


def test_nothing_stays_of_a_data_set_that_fails(folder: Path) -> None:
    replay = collect(6)
    image = replay.samples["reward"].to_ndarray()
    image[-1] = np.nan  # of an episode that others come before
    with pytest.raises(ValueError, match="reward: got a NaN"):
        write(replay, partial="keep")
    assert [each for each in files_in(folder) if each != "namespace_metadata.json"] == []
    image[-1] = 0
    assert write(replay).total_episodes


def test_numbers_that_a_space_has_not_are_not_written(folder: Path) -> None:
    replay = collect(6)
    actions = spaces.Dict({**ACTIONS.spaces, "move": spaces.Discrete(2)})
    with pytest.raises(ValueError, match=r"action.move: got \d to 2, expected values of Discrete"):
        write(replay, action_space=actions)
    pair = spaces.Tuple((SPACE["pair"][0], spaces.Discrete(5)))
    with pytest.raises(ValueError, match=r"observation.pair.1: got \d to [56], expected"):
        write(replay, observation_space=other_space(pair=pair))
    assert [each for each in files_in(folder) if each != "namespace_metadata.json"] == []


@pytest.mark.parametrize("name", ["no version", "world/mixed", "../up-v0"])
def test_a_name_that_is_none_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="dataset_id: got"):
        write(collect(6), name)
    assert files_in(folder) == []


@pytest.mark.long
def test_what_exists_is_not_overwritten() -> None:
    replay = collect(6)
    n_episodes = write(replay).total_episodes
    with pytest.raises(ValueError, match=r"exists at .*raise its version"):
        write(replay)
    import minari

    assert minari.load_dataset("world/mixed-v0").total_episodes == n_episodes


def other_space(**members: Any) -> spaces.Dict:
    return spaces.Dict({**SPACE.spaces, **members})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (other_space(image=spaces.Box(0, 255, (32, 32), np.uint8)), "observation.image: the tree"),
        (other_space(more=spaces.Discrete(2)), "observation: the tree has branches"),
        (other_space(pair=spaces.Discrete(2)), "observation.pair: the tree has branches"),
        (other_space(image=spaces.Text(9)), "observation.image: got Text"),
        (
            other_space(stack=spaces.Box(-128, 127, (3, 4), np.int8)),
            r"observation.stack: got .*uint8.*expected .*int8",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_refused_by_the_name_of_the_leaf(
    space: Any, message: str, folder: Path
) -> None:
    replay = collect(6)
    with pytest.raises((ValueError, TypeError), match=message):
        write(replay, observation_space=space)
    dataset = write(replay)
    back = ring_for(dataset)
    dataset._observation_space = space
    if "int8" not in message:  # of integers, the numbers count
        with pytest.raises((ValueError, TypeError), match=message):
            from_minari(dataset, back)


class Foreign:
    """A data set from outside, of one episode of four steps."""

    observation_space = spaces.Dict(
        {"state": spaces.Box(-9, 9, (2,)), "tuple": spaces.Tuple([spaces.Discrete(3)])}
    )
    action_space = spaces.Discrete(3, start=-1)
    total_steps, total_episodes = 4, 1

    def __init__(self, **changes: Any) -> None:
        from minari import EpisodeData

        self.total_steps = changes.pop("total_steps", 4)
        state = np.arange(10, dtype=np.float32).reshape(5, 2)
        whole = EpisodeData(
            id=7,
            observations={"state": state, "tuple": (np.array([0, 1, 2, 1, 0]),)},
            actions=np.array([-1, 0, 1, 1]),
            rewards=np.arange(4.0),
            terminations=np.array([False, False, False, True]),
            truncations=np.zeros(4, bool),
            infos=None,
        )
        self.episode = replace(whole, **changes)

    def iterate_episodes(self) -> Iterator[Any]:
        yield self.episode


STATE = np.zeros((5, 2), np.float32)
PAIR = (np.zeros(5, np.int64),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": {"state": STATE[:4], "tuple": PAIR}}, r"observation.state: got \(4, 2\)"),
        ({"observations": {"state": STATE + np.nan, "tuple": PAIR}}, "observation.state: got a Na"),
        ({"observations": {"state": STATE}}, r"observation: got \['state'\], expected"),
        ({"observations": {"state": STATE, "tuple": PAIR[0]}}, "observation.tuple: got a ndarray"),
        ({"observations": {"state": STATE, "tuple": (PAIR[0] + 3,)}}, "tuple.0: got 3 to 3"),
        ({"observations": {"state": STATE.astype(str), "tuple": PAIR}}, "observation.state: got"),
        ({"observations": STATE}, "observation: got a ndarray, expected"),
        ({"actions": np.array([-1, 0, 1, 2])}, "action: got -1 to 2, expected values of Disc"),
        ({"actions": np.array([0.5, 0, 1, 1])}, r"action: got .*float64.*0\.5"),
        ({"actions": np.array([0, 1, 1])}, r"action: got \(3,\)"),
        ({"actions": np.array([[0], [1], [1], [1]])}, r"action: got \(4, 1\)"),
        ({"rewards": np.array([0, np.inf, 0, 0])}, "reward: got a NaN or an infinity"),
        ({"rewards": np.zeros((4, 1))}, r"reward: got \(4, 1\)"),
        ({"terminations": np.zeros(3, bool)}, r"terminated: got \(3,\)"),
        ({"truncations": np.array([0, 0, 0, 7])}, r"truncated: got .*7"),
        ({"total_steps": 5}, "4 steps of a batch of 5"),
    ],
)
def test_an_episode_that_is_wrong_is_refused_and_the_ring_stays_empty(
    changes: dict[str, Any], message: str
) -> None:
    dataset: Any = Foreign(**changes)
    replay = ring_for(dataset)
    with pytest.raises(ValueError, match=message) as caught:
        from_minari(dataset, replay)
    assert "total_steps" in changes or "episode 7 of 4 steps" in str(caught.value)
    assert len(replay) == 0
    assert list(episodes_of(replay)) == []  # no batch is left half written
    replay = ring_for(Foreign())
    with pytest.raises(ValueError, match="from_minari: "):
        from_minari(dataset, replay)
    from_minari(Foreign(), replay)  # after an error it takes a good one
    assert len(replay) == 4


def test_other_dtypes_that_lose_nothing_are_taken() -> None:
    dataset: Any = Foreign(
        actions=np.array([-1, 0, 1, 1], np.float64),
        rewards=[0, 1, 2, 3],
        terminations=np.array([0, 0, 0, 1]),
        truncations=[0, 0, 0, 0],
    )
    replay, plain = ring_for(dataset), ring_for(dataset)
    from_minari(dataset, replay)
    from_minari(Foreign(), plain)
    (found,), (expected,) = episodes_of(replay), episodes_of(plain)
    assert bits_of(found) == bits_of(expected)


def test_an_episode_without_an_end_is_truncated_there_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset: Any = Foreign(terminations=np.zeros(4, bool))
    replay = ring_for(dataset)
    with caplog.at_level(logging.WARNING):
        from_minari(dataset, replay)
    (episode,) = episodes_of(replay)
    assert episode.truncated.tolist() == [False, False, False, True]
    assert episode.observation["state"][-1].tolist() == [8, 9]
    assert "1 of 1 episodes have no flag" in caplog.text


def test_flags_within_an_episode_end_it_there() -> None:
    dataset: Any = Foreign(truncations=np.array([False, True, False, False]))
    dataset.total_episodes = 2  # so that there is room for both final observations
    replay = ring_for(dataset)
    from_minari(dataset, replay)
    first, second = episodes_of(replay)
    assert first.observation["state"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert second.observation["state"].tolist() == [[4, 5], [6, 7], [8, 9]]


def test_a_stack_that_does_not_follow_is_refused() -> None:
    space = spaces.Box(0, 255, (2, 1), np.uint8)
    for stacks in ([[0, 1], [5, 2]], [[0, 1], [0, 2]]):  # the second one looks like a first one
        dataset: Any = Foreign(
            observations=np.array(stacks, np.uint8)[..., None],
            actions=np.zeros(1, int),
            rewards=np.zeros(1),
            terminations=np.ones(1, bool),
            truncations=np.zeros(1, bool),
        )
        dataset.observation_space, dataset.total_steps = space, 1
        with pytest.raises(ValueError, match=r"neither goes on|does not go"):
            from_minari(dataset, ring_for(dataset, frames="zero"))


@pytest.mark.parametrize("name", ["a/b", "."])
def test_names_that_files_do_not_have_are_refused(name: str) -> None:
    space = spaces.Dict({name: spaces.Discrete(2)})
    tree = build_transition_tree(space, spaces.Discrete(2), n_steps=4)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected one without '/'"):
        to_minari(replay, "a/b-v0", observation_space=space, action_space=spaces.Discrete(2))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Sequence(spaces.Discrete(2))])
def test_trees_are_made_of_spaces_of_arrays_alone(space: Any) -> None:
    flag = spaces.Discrete(2)
    with pytest.raises((TypeError, ValueError), match=r"observation.name: (got )?(Text|Sequence)"):
        build_transition_tree(spaces.Dict({"name": space}), flag, n_steps=4)
    with pytest.raises(TypeError, match=r"got (Text|Sequence).*expected a space of arrays"):
        build_transition_tree(flag, spaces.Dict({"name": space}), n_steps=4)


def test_members_without_a_number_are_members() -> None:
    dataset: Any = Foreign(observations={"none": np.zeros((5, 0)), "state": STATE})
    members = {"none": spaces.Box(0, 1, (0,)), "state": Foreign.observation_space["state"]}
    dataset.observation_space = spaces.Dict(members)
    replay = ring_for(dataset)
    from_minari(dataset, replay)
    (episode,) = episodes_of(replay)
    assert episode.observation["none"].shape == (5, 0)
    assert replay.sample(3)["next_observation"]["none"].shape == (3, 0)


def test_a_ring_that_does_not_fit_is_refused() -> None:
    dataset: Any = Foreign()
    arguments = (dataset.observation_space, dataset.action_space)
    for n_steps, batch_shape in ((3, (3, 1)), (9, (3, 1)), (4, (4, 2))):
        tree = build_transition_tree(*arguments, n_steps=n_steps, batch_shape=batch_shape)
        with pytest.raises(ValueError, match=r"steps, expected 1 to|2 environments, expected 1"):
            from_minari(dataset, ReplayBuffer(tree, rng=np.random.default_rng(0)))


def test_steps_that_would_be_lost_are_an_error() -> None:
    dataset: Any = Foreign(truncations=np.ones(4, bool))
    tree = ring_for(dataset).samples
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0), n_final_obs=2)
    with pytest.raises(ValueError, match="the first 2 steps were lost"):
        from_minari(dataset, replay)


@pytest.mark.long
def test_a_buffer_keeps_what_it_was_made_with(tmp_path: Path) -> None:
    replay = collect(6)
    replay.save(tmp_path / "ring")
    opened = ReplayBuffer.open(tmp_path / "ring")
    assert opened.keeps_terminated
    assert list(map(bits_of, episodes_of(opened))) == list(map(bits_of, episodes_of(replay)))
    other = ReplayBuffer(copy.copy(replay.samples), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="keep_terminated"):
        other.load(tmp_path / "ring")

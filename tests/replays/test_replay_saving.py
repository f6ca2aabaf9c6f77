"""Replay buffers that are saved and go on: the same bits as if nothing had been in between."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parllel import Array, ArrayDict
from parllel.replays import Prefetcher, PrioritizedReplayBuffer, ReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import save_tree
from step_list import Chances, Model, Shape, read

SHAPE = Shape(T=3, B=2, n_windows=3, n_steps=2, n_final_obs=7, stack=2)
each_kind = pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])


def make_model(kind: type[ReplayBuffer], storage: str = "local", **settings: float) -> Model:
    return Model(SHAPE, Chances(reset=2), seed=0, kind=kind, storage=storage, **settings)


def train(model: Model, n_batches: int, *, beta_step: float = 0.01) -> list[Any]:
    """Return all minibatches and priorities of some batches, with updates and resets."""
    results: list[Any] = []
    for _ in range(n_batches):
        if model.rng.integers(10) < model.chances.reset:
            model.reset()
        model.write_batch()
        for _ in range(2):
            minibatch = model.replay.sample(9)
            results.append({path: leaf.tolist() for path, leaf in leaves(minibatch).items()})
            if isinstance(model.replay, PrioritizedReplayBuffer):
                index = np.array(results[-1]["index"])
                error = np.float32(0.1) * (index % 13).astype(np.float32)
                model.replay.update_priorities(index, error)
                model.replay.beta += beta_step
                results.append(model.replay.priorities["sums"].to_ndarray().tolist())
    return results


def go_on(model: Model, replay: Any, tree: Any) -> Model:
    """Return a model whose lists go on where another one's are, with a buffer of its own."""
    other = copy.copy(model)
    for name in vars(model).keys() - {"replay", "tree"}:
        setattr(other, name, copy.deepcopy(getattr(model, name)))
    other.replay, other.tree = replay, tree
    return other


@each_kind
@pytest.mark.parametrize("n_batches", [1, 3, 7])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    tmp_path: Path, kind: type[ReplayBuffer], n_batches: int
) -> None:
    model = make_model(kind)
    train(model, n_batches)
    model.replay.save(tmp_path)
    fresh = make_model(kind)
    fresh.write_batch()  # whatever it holds
    fresh.replay.load(tmp_path)
    resumed = go_on(model, fresh.replay, fresh.tree)
    assert train(resumed, 6) == train(model, 6)


@each_kind
def test_a_buffer_over_its_files_goes_on_too(tmp_path: Path, kind: type[ReplayBuffer]) -> None:
    model = make_model(kind)
    train(model, 4)
    model.replay.save(tmp_path)
    opened = kind.open(tmp_path)
    resumed = go_on(model, opened, opened.samples)
    assert train(resumed, 6) == train(model, 6)
    assert opened.samples["reward"].storage == "mapped"


@each_kind
@pytest.mark.parametrize(("saved_in", "loaded_in"), [("device", "local"), ("local", "device")])
def test_a_run_goes_on_in_memory_of_another_kind(
    cuda_device: torch.device,
    tmp_path: Path,
    kind: type[ReplayBuffer],
    saved_in: str,
    loaded_in: str,
) -> None:
    # An exponent of 1, for which a GPU's power is the host's to the last digit.
    settings = {"alpha": 1.0, "beta": 1.0} if kind is PrioritizedReplayBuffer else {}
    model = make_model(kind, saved_in, **settings)
    train(model, 3, beta_step=0.0)
    model.replay.save(tmp_path)
    fresh = make_model(kind, loaded_in, **settings)
    fresh.replay.load(tmp_path)
    resumed = go_on(model, fresh.replay, fresh.tree)
    assert train(resumed, 4, beta_step=0.0) == train(model, 4, beta_step=0.0)


def test_new_environments_cut_off_the_episodes_of_the_save(tmp_path: Path) -> None:
    model = make_model(ReplayBuffer)
    train(model, 4)
    model.replay.save(tmp_path)
    fresh = make_model(ReplayBuffer)
    fresh.replay.load(tmp_path)
    resumed = go_on(model, fresh.replay, fresh.tree)
    resumed.reset()
    for _ in range(3):
        assert read(resumed.replay.sample(1500), resumed.frames) == resumed.transitions()
        resumed.write_batch()


def test_a_prefetcher_is_waited_for(tmp_path: Path) -> None:
    model = make_model(ReplayBuffer)
    train(model, 3)
    with Prefetcher(model.replay, 9) as prefetcher:
        prefetcher.next()
        model.replay.save(tmp_path)
    opened = ReplayBuffer.open(tmp_path)
    assert opened._n_drawn == 6 + 2
    assert opened.sample(9)["index"].tolist() == model.replay.sample(9)["index"].tolist()


def learn(prefetcher: Prefetcher, replay: PrioritizedReplayBuffer) -> list[dict[str, list[Any]]]:
    drawn = []
    for _ in range(5):
        minibatch = prefetcher.next()
        drawn.append({path: leaf.tolist() for path, leaf in leaves(minibatch).items()})
        index = minibatch["index"]
        replay.update_priorities(index, (index % 7).float())
    return drawn


@pytest.mark.parametrize("n_batches", [2, 3])
def test_what_is_drawn_ahead_is_drawn_again_after_a_save(tmp_path: Path, n_batches: int) -> None:
    """So that a resumed run, whose prefetcher is a new one, equals one that went on."""
    model = make_model(PrioritizedReplayBuffer)
    train(model, 3)
    replay = model.replay
    with Prefetcher(replay, 9, n_batches=n_batches) as prefetcher:
        learn(prefetcher, replay)
        replay.save(tmp_path)
        expected = learn(prefetcher, replay)
    replay = make_model(PrioritizedReplayBuffer).replay
    replay.load(tmp_path)
    with Prefetcher(replay, 9, n_batches=n_batches) as prefetcher:
        assert learn(prefetcher, replay) == expected
        replay.load(tmp_path)
        assert learn(prefetcher, replay) == expected


def test_numbers_of_other_libraries_are_saved(tmp_path: Path) -> None:
    model = make_model(ReplayBuffer)
    rng = np.random.default_rng(0)
    numbers: Any = {"n_steps": np.int64(2), "discount": torch.tensor(0.5), "beta": np.float32(0.5)}
    replay = PrioritizedReplayBuffer(model.tree, rng=rng, n_final_obs=7, **numbers)
    replay.beta = np.float32(0.25)
    replay.save(tmp_path)
    opened = PrioritizedReplayBuffer.open(tmp_path)
    assert (opened.n_steps, opened.discount, opened.beta) == (2, 0.5, 0.25)


def test_only_what_was_saved_is_opened(tmp_path: Path) -> None:
    model = make_model(PrioritizedReplayBuffer)
    model.replay.save(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"settings \['alpha', .*'n_steps'\] of a ReplayBuffer"):
        ReplayBuffer.open(tmp_path / "buffer")
    save_tree(model.tree, tmp_path / "tree", {})
    with pytest.raises(
        ValueError, match=r"saved with settings \[\], expected .* of a ReplayBuffer"
    ):
        ReplayBuffer.open(tmp_path / "tree")


def test_half_a_batch_is_not_saved(tmp_path: Path) -> None:
    model = make_model(ReplayBuffer)
    model.replay.begin_batch()
    with pytest.raises(RuntimeError, match="a batch is being written; save after end_batch"):
        model.replay.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["local", "device"])
def test_a_load_forgets_final_observations_of_half_a_batch(
    tmp_path: Path, storage: str, cuda_device: torch.device
) -> None:
    """Their slots are those of other steps again."""
    settings: Any = {"full_size": 8, "storage": storage}
    tree = ArrayDict(
        {
            "observation": Array((2, 1), np.float32, padding=1, **settings),
            "reward": Array((2, 1), np.float32, **settings),
            **{name: Array((2, 1), bool, **settings) for name in ("terminated", "truncated")},
        }
    )
    replay = ReplayBuffer(tree, rng=np.random.default_rng(0), n_final_obs=4)
    replay.restart()
    for number in range(3):
        replay.begin_batch()
        tree.rotate()
        tree["truncated"][...] = True
        replay.add_final_obs(0, {0: np.float32(2 * number + 1)})
        if number == 2:  # and here something raises
            break
        replay.add_final_obs(1, {0: np.float32(2 * number + 2)})
        replay.end_batch()
        replay.save(tmp_path)
    assert replay._first == 1  # the table has 4 rows
    replay.load(tmp_path)
    replay.begin_batch()
    tree.rotate()
    tree["truncated"][...] = False
    replay.end_batch()
    minibatch = replay.sample(200)
    index, after = (minibatch[name].cpu() for name in ("index", "next_observation"))
    assert index.unique().tolist() == list(range(6))
    assert (after == torch.where(index < 4, index + 1, 0)).all()


def with_other_discount(tree: Any) -> ReplayBuffer:
    return ReplayBuffer(tree, rng=np.random.default_rng(0), n_steps=2, discount=0.25, n_final_obs=7)


def with_priorities(tree: Any) -> ReplayBuffer:
    rng = np.random.default_rng(0)
    return PrioritizedReplayBuffer(tree, rng=rng, n_steps=2, discount=0.5, n_final_obs=7)


@pytest.mark.parametrize(
    ("make_buffer", "message"),
    [
        (with_other_discount, r"saved with .*0\.5.*, expected .*0\.25.* of this ReplayBuffer"),
        (with_priorities, "expected .*alpha.* as of this PrioritizedReplayBuffer"),
    ],
)
def test_a_save_of_other_settings_is_refused(
    tmp_path: Path, make_buffer: Callable[[Any], ReplayBuffer], message: str
) -> None:
    model = make_model(ReplayBuffer)
    train(model, 2)
    model.replay.save(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_buffer(model.tree).load(tmp_path)


def test_a_save_with_a_larger_table_is_refused(tmp_path: Path) -> None:
    model = make_model(ReplayBuffer)
    model.replay.save(tmp_path)
    rng = np.random.default_rng(0)
    other = ReplayBuffer(model.tree, rng=rng, n_steps=2, discount=0.5, n_final_obs=6)
    with pytest.raises(ValueError, match="saved with 7 final observations, expected at most 6; "):
        other.load(tmp_path)


def test_a_table_that_grew_as_far_as_it_may_is_loaded(tmp_path: Path) -> None:
    shape = SHAPE._replace(n_final_obs=None)
    model, other = (Model(shape, Chances(truncated=9), seed=seed) for seed in range(2))
    train(model, 9)
    n_slots = len(model.replay.final_obs.owner)
    assert len(other.replay.final_obs.owner) < n_slots == model.replay.final_obs.most_slots
    model.replay.save(tmp_path)
    other.replay.load(tmp_path)
    assert len(other.replay.final_obs.owner) == n_slots


@each_kind
@pytest.mark.parametrize("storage", ["local", "device"])
def test_a_table_that_grew_is_saved_and_grows_on(
    cuda_device: torch.device, tmp_path: Path, kind: type[ReplayBuffer], storage: str
) -> None:
    shape, often = SHAPE._replace(n_final_obs=None), Chances(terminated=1, truncated=6, reset=2)
    model = Model(shape, often, seed=0, kind=kind, storage=storage)
    before = len(model.replay.final_obs.owner)
    train(model, 2)
    n_slots = len(model.replay.final_obs.owner)
    model.replay.save(tmp_path)
    other = Model(shape, often, seed=1, kind=kind, storage=storage)
    other.replay.load(tmp_path)
    resumed = [go_on(model, other.replay, other.tree)]
    if storage == "local":
        opened = kind.open(tmp_path)
        resumed.append(go_on(model, opened, opened.samples))
    expected = train(model, 5)
    for each in resumed:
        assert train(each, 5) == expected
    assert before < n_slots < len(other.replay.final_obs.owner)
    assert other.replay._first == model.replay._first == model.first

"""Replay of several agents: both forms, against lists of each environment's and agent's steps."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from agent_batches import FORMS, NAMES, Shape, by_agent, random_lives
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parllel import Array, ArrayDict, cuda
from parllel.arrays import FrameArray
from parllel.replays import (
    HindsightReplayBuffer,
    Prefetcher,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    SequenceReplayBuffer,
)
from parllel.testing.simulated_cuda import simulated_cuda
from parllel.tree import dict_map
from profiles import fewer_examples
from schedules import each_schedule

T, DISCOUNT = 4, 0.9
each_form = pytest.mark.parametrize("form", FORMS)
_FLAGS = ("terminated", "truncated", "valid")


class Steps(NamedTuple):
    """All steps of B environments with N agents, [n, B, N, ...]; the dead see zeros."""

    observation: NDArray[np.float32]  # before each step, and behind the last
    final: NDArray[np.float32]  # after each step, before any reset
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]

    @property
    def is_end(self) -> NDArray[np.bool_]:
        """Where episodes of environments end, [n, B]."""
        ends: NDArray[np.bool_] = (self.terminated | self.truncated).all(axis=2)
        return ends


def make_steps(seed: int, n: int, shape: Shape) -> Steps:
    """Each observation is the number of its step, its environment, its agent; less 0.5 if final."""
    rng, (_, B, N) = np.random.default_rng(seed), shape
    valid, terminated, truncated = random_lives(rng, Shape(n, B, N))
    observation = np.zeros((n + 1, B, N, 2), np.float32)
    observation[..., 0] = 100 * np.arange(n + 1)[:, None, None] + 10 * np.arange(B)[:, None]
    observation[..., 0] += np.arange(N)
    observation[..., 1] = 1
    final = observation[1:] - np.float32([0.5, 0])
    reward = rng.standard_normal((n, B, N)).astype(np.float32)
    reward[~valid] = 0
    return Steps(observation, final, reward, terminated, truncated, valid)


def make_tree(
    form: str, shape: Shape, full_size: int, storage: str, *, one: bool = False
) -> ArrayDict:
    def make(dtype: Any, feature: tuple[int, ...] = (), padding: int = 0) -> Any:
        more = (shape.N,) if form == "axis" else ()
        leaves = [
            Array(
                (T, shape.B),
                dtype,
                feature_shape=(*more, *feature),
                full_size=full_size,
                padding=padding,
                storage=storage,
            )
            for _ in NAMES[: shape.N]
        ]
        return leaves[0] if form == "axis" else dict(zip(NAMES, leaves, strict=False))

    return ArrayDict(
        {
            "observation": make(np.float32, (2,), 1),
            "reward": make(np.float32),
            **{name: make(bool) for name in _FLAGS},
        }
    )


def in_form(form: str, values: NDArray[Any], axis: int) -> Any:
    """Return values with an axis of agents in a form."""
    if form == "axis":
        return values
    return dict(zip(NAMES, np.moveaxis(values, axis, 0), strict=False))


class World:
    """A buffer over a ring, which batches of known steps are written to as a sampler does it."""

    def __init__(
        self,
        form: str,
        shape: Shape,
        *,
        n_steps: int = 1,
        full_size: int = 12,
        storage: str = "local",
        kind: Any = ReplayBuffer,
        seed: int = 0,
    ) -> None:
        self.form, self.shape, self.n_steps, self.full_size = form, shape, n_steps, full_size
        self.samples = make_tree(form, shape, full_size, storage)
        self.replay = kind(
            self.samples, rng=np.random.default_rng(1), n_steps=n_steps, discount=DISCOUNT
        )
        self.steps = make_steps(seed, 10 * T, shape)
        self.n_written = 0

    def write(self, n_batches: int) -> None:
        for _ in range(n_batches):
            if not self.n_written:
                self.replay.restart()
                self._put("observation", T, self.steps.observation[0])  # behind the last row
            self.replay.begin_batch()
            self.samples.rotate()
            for t in range(T):
                number = self.n_written + t
                for name in ("reward", *_FLAGS):
                    self._put(name, t, getattr(self.steps, name)[number])
                ends = self.steps.is_end[number]
                after = self.steps.observation[number + 1].copy()
                # Who ends while others go on sees its last observation in the next row.
                own = (self.steps.terminated | self.steps.truncated)[number] & self.steps.valid[
                    number
                ]
                own = own & ~ends[:, None]
                after[own] = self.steps.final[number][own]
                self._put("observation", t + 1, after)
                cut = {
                    int(b): in_form(self.form, self.steps.final[number, b], 0)
                    for b in np.flatnonzero(ends)
                }
                if cut:
                    self.replay.add_final_obs(t, cut)
            self.replay.end_batch()
            self.n_written += T

    def _put(self, name: str, t: int, values: NDArray[Any]) -> None:
        self.samples[name][t] = in_form(self.form, values, 1)

    def expected(self, identity: int) -> dict[str, Any] | None:
        """Return the transition that begins with a step, by loops; None where there is none."""
        number, b = divmod(identity, self.shape.B)
        s = self.steps
        span = []
        for step in range(number, number + self.n_steps):
            if step >= self.n_written or not s.valid[step, b].any():
                return None
            span.append(step)
            if s.is_end[step, b]:
                break
        last, is_end = span[-1], bool(s.is_end[span[-1], b])
        found: dict[str, Any] = {"next_observation": np.zeros((self.shape.N, 2), np.float32)}
        for name in ("n_step_return", "n_step_discount"):
            found[name] = np.zeros(self.shape.N)
        for name in _FLAGS:
            found[name] = np.zeros(self.shape.N, bool)
        for i in range(self.shape.N):
            own_last = s.terminated[last, b, i] | s.truncated[last, b, i]
            has_ended_now = own_last and s.valid[last, b, i]
            shows_final = is_end or has_ended_now
            found["next_observation"][i] = (
                s.final[last] if shows_final else s.observation[last + 1]
            )[b, i]
            if not s.valid[number, b, i]:
                found["truncated"][i] = True
                continue
            total, factor, ends_at = 0.0, 1.0, None
            for step in span:
                total += factor * float(s.reward[step, b, i])
                factor *= DISCOUNT
                if s.terminated[step, b, i] or s.truncated[step, b, i]:
                    ends_at = step
                    break
            if ends_at is not None:
                found["terminated"][i] = s.terminated[ends_at, b, i]
                found["truncated"][i] = s.truncated[ends_at, b, i]
            is_open = found["truncated"][i] and not found["terminated"][i] and ends_at != last
            if is_open:
                continue
            found["valid"][i] = True
            found["n_step_return"][i] = total
            found["n_step_discount"][i] = 0 if found["terminated"][i] else factor
        return found

    def oldest(self) -> int:
        """Return the number of the oldest step that can be there."""
        first = self.n_written - self.full_size + (1 if self.n_written % self.full_size else 0)
        return max(0, first)

    def sampleable(self) -> set[int]:
        numbers = range(self.oldest() * self.shape.B, self.n_written * self.shape.B)
        return {each for each in numbers if self.expected(each) is not None}


def check(world: World, minibatch: ArrayDict) -> set[int]:
    """Compare a minibatch with the list; return the numbers of its transitions."""
    found = {
        name: by_agent(minibatch[name], _host)
        for name in minibatch
        if name not in ("index", "weight")
    }
    index = _host(minibatch["index"]).tolist()
    for item, identity in enumerate(index):
        expected = world.expected(identity)
        assert expected is not None, identity
        number, b = divmod(identity, world.shape.B)
        for name in _FLAGS:
            assert found[name][item].tolist() == expected[name].tolist(), name
        for name in ("n_step_return", "n_step_discount"):
            np.testing.assert_allclose(found[name][item], expected[name], rtol=1e-5, atol=1e-6)
        own = found["next_observation"][item]
        own = own.T if world.form != "axis" else own
        assert (own == expected["next_observation"]).all()
        assert (found["reward"][item] == world.steps.reward[number, b]).all()
    return set(index)


def _host(leaf: Any) -> NDArray[Any]:
    values: NDArray[Any] = leaf.cpu().numpy()
    return values


@fewer_examples(4)
@given(
    seed=st.integers(0, 2**31),
    shape=st.builds(Shape, st.just(T), st.integers(1, 3), st.integers(1, 3)),
    n_steps=st.integers(1, 3),
    n_batches=st.integers(1, 5),
    form=st.sampled_from(FORMS),
    kind=st.sampled_from([ReplayBuffer, PrioritizedReplayBuffer]),
)
def test_transitions_are_those_of_the_list(
    seed: int, shape: Shape, n_steps: int, n_batches: int, form: str, kind: Any
) -> None:
    world = World(form, shape, n_steps=n_steps, kind=kind, seed=seed)
    world.write(n_batches)
    if not (there := world.sampleable()):
        return
    drawn: set[int] = set()
    for _ in range(6):
        drawn |= check(world, world.replay.sample(40))
    assert drawn <= there
    # Each comes with a probability of 1 / 36 or more: 240 draws miss one in 900 of them.
    assert len(there - drawn) <= max(1, len(there) // 4)


def test_both_forms_draw_the_same_minibatches() -> None:
    found = []
    for form in FORMS:
        world = World(form, Shape(T, 2, 3), n_steps=2, kind=PrioritizedReplayBuffer, seed=3)
        world.write(4)
        minibatch = world.replay.sample(64)
        error = np.linspace(0, 3, 64).astype(np.float32)
        world.replay.update_priorities(minibatch["index"], error)
        minibatch = world.replay.sample(64)
        found.append({name: by_agent(minibatch[name], _host).copy() for name in minibatch})
    for name in found[0]:
        own = np.moveaxis(found[1][name], -1, 1) if "observation" in name else found[1][name]
        assert (found[0][name] == own).all(), name


@each_schedule
@each_form
@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_buffer_on_the_device_draws_what_the_hosts_draws(
    kind: Any, form: str, schedule: str, seed: int
) -> None:
    def draw(storage: str) -> list[dict[str, NDArray[Any]]]:
        world = World(form, Shape(T, 2, 3), n_steps=2, kind=kind, storage=storage, seed=4)
        found = []
        for _ in range(5):
            world.write(1)
            minibatch = world.replay.sample(16)
            found.append({name: by_agent(minibatch[name], _host).copy() for name in minibatch})
        world.replay.restart()  # episodes under way are cut off
        minibatch = world.replay.sample(16)
        found.append({name: by_agent(minibatch[name], _host).copy() for name in minibatch})
        return found

    expected = draw("local")
    with simulated_cuda(schedule, seed=seed):
        found = draw("device")
    for mine, own in zip(found, expected, strict=True):
        for name in own:
            assert mine[name].tobytes() == own[name].tobytes(), name


@each_form
def test_a_draw_is_three_launches_on_the_device(form: str) -> None:
    with simulated_cuda("lazy") as simulation:
        world = World(form, Shape(T, 2, 3), storage="device")
        world.write(2)
        world.replay.sample(8)
        before = simulation.counters.launches
        world.replay.sample(8)
        assert simulation.counters.launches - before == 3


@each_form
def test_a_saved_buffer_goes_on_with_the_same_minibatches(form: str, tmp_path: Path) -> None:
    world, other = (World(form, Shape(T, 2, 3), n_steps=2, seed=5) for _ in range(2))
    world.write(3)
    world.replay.sample(8)
    world.replay.save(tmp_path / "replay")
    expected = [dict_map(_copied, world.replay.sample(8)) for _ in range(2)]
    other.replay.load(tmp_path / "replay")
    opened = ReplayBuffer.open(tmp_path / "replay")
    for replay in (other.replay, opened):
        for each in expected:
            minibatch = replay.sample(8)
            for path, leaf in minibatch.walk():
                assert leaf.numpy().tobytes() == dict(each.walk())[path], path


def _copied(leaf: Any) -> bytes:
    return bytes(leaf.numpy().tobytes())


@each_form
def test_a_restart_truncates_all_agents_and_keeps_their_observations(form: str) -> None:
    world = World(form, Shape(T, 1, 3), seed=0)
    world.steps.terminated[:] = world.steps.truncated[:] = False
    world.steps.valid[:] = True
    world.write(1)
    world.replay.restart()
    world._put("observation", T, np.zeros((1, 3, 2), np.float32))  # as the reset does it
    minibatch = world.replay.sample(50)
    last = (_host(minibatch["index"]) == T - 1).nonzero()[0][0]
    assert by_agent(minibatch["truncated"], _host)[last].all()
    assert not by_agent(minibatch["terminated"], _host).any()
    own = by_agent(minibatch["next_observation"], _host)[last]
    own = own if form == "axis" else own.T
    assert (own == world.steps.observation[T, 0]).all()
    assert (by_agent(minibatch["n_step_discount"], _host) == np.float32(DISCOUNT)).all()


@each_form
def test_steps_are_appended_with_the_ends_of_environments(form: str) -> None:
    shape = Shape(T, 2, 3)
    world, by_hand = World(form, shape, seed=6), World(form, shape, seed=6)
    world.write(2)
    s, replay = by_hand.steps, by_hand.replay
    replay.reset(in_form(form, s.observation[0], 1))
    for number in range(2 * T):
        ends = s.is_end[number]
        own = (s.terminated | s.truncated)[number] & s.valid[number] & ~ends[:, None]
        after = np.where(own[..., None], s.final[number], s.observation[number + 1])
        alive, over = s.valid[number], s.terminated[number]
        has_terminated = ends & (over | ~alive).all(axis=1)
        final = {
            int(b): in_form(form, s.final[number, b], 0)
            for b in np.flatnonzero(ends & ~has_terminated)
        }
        rows = {name: in_form(form, getattr(s, name)[number], 1) for name in ("reward", *_FLAGS)}
        if final:
            with pytest.raises(ValueError, match=r"final_obs: environments .* are truncated"):
                replay.append(in_form(form, after, 1), **rows)
        replay.append(in_form(form, after, 1), final_obs=final, **rows)
    by_hand.n_written = 2 * T
    for name in _FLAGS:
        own, expected = (each.replay.agents.tree[name].to_ndarray() for each in (by_hand, world))
        assert (own == expected).all()


def test_frames_of_each_agent_are_stacked_as_ever() -> None:
    """Dictionaries of stacks, each frame stored once: draws show stacks that end where they do."""
    samples = make_tree("dictionary", Shape(T, 2, 2), 12, "local")
    frames = {
        name: FrameArray(
            (T, 2), np.uint8, feature_shape=(3,), stack=2, full_size=12, padding=1, fill="first"
        )
        for name in NAMES[:2]
    }
    samples = ArrayDict({**samples, "observation": frames})
    replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
    stack = {name: np.full((2, 2, 3), 10 * i, np.uint8) for i, name in enumerate(NAMES[:2])}
    replay.reset(stack)
    off = {name: np.zeros(2, bool) for name in NAMES[:2]}
    on = {name: np.ones(2, bool) for name in NAMES[:2]}
    for number in range(1, 2 * T + 1):
        stack = {
            name: np.stack([each[:, 1], np.full((2, 3), 10 * i + number, np.uint8)], 1)
            for i, (name, each) in enumerate(stack.items())
        }
        reward = {name: np.zeros(2, np.float32) for name in NAMES[:2]}
        replay.append(stack, reward=reward, terminated=off, truncated=off, valid=on)
    minibatch = replay.sample(30)
    number = minibatch["index"].numpy() // 2
    for i, name in enumerate(NAMES[:2]):
        newest = minibatch["observation"][name][:, 1, 0].numpy()
        assert (newest == 10 * i + number).all()
        after = minibatch["next_observation"][name][:, :, 0].numpy()
        assert (after == np.stack([newest, newest + 1], 1)).all()


def test_trees_that_do_not_fit_are_refused() -> None:
    tree, rng = make_tree("dictionary", Shape(T, 2, 3), 12, "local"), np.random.default_rng(0)
    one = ArrayDict({**tree, "valid": {"pinky": tree["valid"]["pinky"]}})
    with pytest.raises(ValueError, match=r"valid: got agents \['pinky'\], expected inky among"):
        ReplayBuffer(one, rng=rng)
    doubles = {name: Array((T, 2), np.float64, full_size=12) for name in NAMES}
    with pytest.raises(ValueError, match=r"reward.pinky: got .* expected an Array float32 \(T, "):
        ReplayBuffer(ArrayDict({**tree, "reward": doubles}), rng=rng)
    window: dict[str, int] = {"stack": 2, "full_size": 12, "padding": 1}
    frames = {name: FrameArray((T, 2), np.uint8, **window) for name in NAMES}
    with pytest.raises(ValueError, match="stacks of frames of several agents"):
        SequenceReplayBuffer(ArrayDict({**tree, "observation": frames}), rng=rng, length=2)
    goals = {"achieved_goal": tree["observation"], "desired_goal": tree["observation"]}
    with pytest.raises(ValueError, match=r"reward.* expected an Array float32 \(T, B\)"):
        HindsightReplayBuffer(
            ArrayDict({**tree, "observation": goals}),
            rng=rng,
            compute_reward=_no_reward,
            compute_terminated=_no_reward,
        )


def _no_reward(achieved: Any, desired: Any) -> Any:
    raise NotImplementedError


@pytest.mark.simulation("they launch captured graphs of the simulation")
@each_schedule
@each_form
def test_a_captured_draw_is_the_next_one_each_time(form: str, schedule: str, seed: int) -> None:
    def draw(capture: bool) -> list[dict[str, bytes]]:
        found, graph = [], None
        with simulated_cuda(schedule, seed=seed):
            stream = cuda.new_stream()
            with cuda.use_stream(stream):
                world = World(form, Shape(T, 2, 3), n_steps=2, storage="device", seed=7)
                world.write(2)
                minibatch = world.replay.sample(8)
                if capture:
                    stream.begin_capture()
                    world.replay.sample(8)
                    graph = stream.end_capture()
                for _ in range(3):
                    if graph is None:
                        world.replay.sample(8)
                    else:
                        graph.launch()
                    found.append(
                        {name: by_agent(minibatch[name], _host).tobytes() for name in minibatch}
                    )
                    world.write(1)
        return found

    assert draw(capture=True) == draw(capture=False)


@each_form
def test_minibatches_that_are_drawn_ahead_are_the_same(form: str) -> None:
    world, other = (World(form, Shape(T, 2, 3), n_steps=2, seed=8) for _ in range(2))
    world.write(2)
    other.write(2)
    with Prefetcher(other.replay, batch_size=8) as prefetcher:
        for _ in range(3):
            expected, found = world.replay.sample(8), prefetcher.next()
            for name in expected:
                assert (by_agent(expected[name], _host) == by_agent(found[name], _host)).all(), name

"""A plain list of what environments did, and the same steps in the tree of a replay buffer."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from parllel import ArrayDict, Jagged, cuda
from parllel.arrays import ArraySpec, Fill, FrameSpec, JaggedSpec
from parllel.replays import ReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from parllel.tree import allocate_tree

CAPACITY = 4  # points of a cloud
DISCOUNT = 0.5  # with rewards that are small integers, returns are exact in float32


class Step(NamedTuple):
    """What one environment did in one step."""

    observation: int
    action: int
    reward: int
    terminated: bool
    truncated: bool
    valid: bool
    next_observation: int  # the true one; where it was not given, its own after a
    # termination, and else -1


class Transition(NamedTuple):
    """What a minibatch has to hold for a transition."""

    observation: int
    action: int
    next_observation: int
    n_step_return: float
    n_step_discount: float
    terminated: bool
    truncated: bool


class Shape(NamedTuple):
    """A ring, and what is drawn from it."""

    T: int = 3
    B: int = 2
    n_windows: int = 3
    padding: int = 1
    n_steps: int = 1
    n_final_obs: int | None = 50  # None: as many as there are
    has_valid: bool = False
    stack: int = 0  # frames of the observation's leaf `camera`; 0 for none
    fill: Fill = "first"
    has_goals: bool = False  # whether observations have goals, which `show_goals` gives
    has_state: bool = False  # whether the agent's state is kept: the number of the observation
    has_clouds: bool = False  # whether there are elements of different length, as of `cloud_of`

    @property
    def n_older(self) -> int:
        """Frames of a stack that belong to earlier steps."""
        return max(self.stack - 1, 0)


class Chances(NamedTuple):
    """How often things happen, in tenths."""

    terminated: int = 2
    truncated: int = 2
    invalid: int = 0
    not_given: int = 0
    reset: int = 0


class Model:
    """Steps in plain lists, and the same ones in a tree that a replay buffer reads."""

    def __init__(
        self,
        shape: Shape,
        chances: Chances,
        *,
        seed: int,
        storage: str = "local",
        kind: type[ReplayBuffer] = ReplayBuffer,
        **settings: Any,
    ):
        self.shape, self.chances = shape, chances
        self.rng = np.random.default_rng(seed)
        self.tree = make_tree(shape, storage)
        self.replay: Any = kind(
            self.tree,
            rng=np.random.default_rng(seed),
            n_steps=shape.n_steps,
            discount=DISCOUNT,
            n_final_obs=shape.n_final_obs,
            **settings,
        )
        self.steps: list[list[Step]] = [[] for _ in range(shape.B)]
        self.given: list[int] = []  # numbers of the steps whose final observation is in the table
        self.first = 0
        self.frames: dict[int, tuple[int, ...]] = {}  # of each observation
        self.reset()

    def new_observation(self, before: int | None = None) -> int:
        """Return the number of an observation, which may go on with an earlier one."""
        number, n = len(self.frames) + 1, self.shape.stack
        if before is None:
            older = (number if self.shape.fill == "first" else 0,) * self.shape.n_older
        else:
            older = self.frames[before][1:]
        self.frames[number] = (*older, number) if n else ()
        return number

    def show(self, number: int) -> ArrayDict:
        """Return the observation of a number."""
        observation = show(number)
        if self.shape.stack:
            observation["camera"] = np.array(self.frames[number], np.int32)[:, None]
        if self.shape.has_clouds:
            observation["cloud"] = cloud_of(number)
        if self.shape.has_goals:
            observation = ArrayDict({**observation, **show_goals(number)})
        return observation

    def reset(self) -> None:
        self.replay.restart()
        last = len(self.steps[0]) - 1 - self.shape.n_older
        begin = max(self.first, last)  # before `give`, for all columns together
        for steps in self.steps:
            for number in range(begin, len(steps)):
                step = steps[number]
                if number > last:  # a reset may write the frames of its stack
                    steps[number] = step._replace(truncated=True, next_observation=-1)
                elif not (step.terminated or step.truncated):
                    steps[number] = step._replace(truncated=True)
                    self.give(number)
        self.now = [self.new_observation() for _ in self.steps]
        for column, number in enumerate(self.now):
            self.tree["observation"][self.shape.T, column] = self.show(number)

    def give(self, number: int) -> None:
        """Put a final observation into the table: it may cost the oldest steps."""
        self.given.append(number)
        n_kept = self.shape.n_final_obs
        if n_kept is not None and len(self.given) > n_kept:
            self.first = max(self.first, self.given[-1 - n_kept] + 1)

    def write_batch(self) -> None:
        self.replay.begin_batch()
        self.tree.rotate()
        for t in range(self.shape.T):
            final_obs = {}
            for column in range(self.shape.B):
                step, following = self.draw_step(self.now[column])
                self.steps[column].append(step)
                self.now[column] = following
                self.write_step(t, column, step, following)
                was_given = step.next_observation not in (-1, following, step.observation)
                if was_given:
                    final_obs[column] = self.show(step.next_observation)
                    self.give(len(self.steps[column]) - 1)
            if final_obs:
                self.replay.add_final_obs(t, final_obs)
        self.replay.end_batch()
        if self.shape.has_clouds:
            poison(self.tree)
        full_size, stop = self.shape.T * self.shape.n_windows, len(self.steps[0])
        # The newest next observation took the place of the oldest step's, but for a full lap; and
        # a frame away from the stacks of the rows after it, but not from those of the ring's first.
        row = stop % full_size
        lost = [each for each in range(row, full_size) if row <= each <= row + self.shape.n_older]
        self.first = max(self.first, stop - full_size + (len(lost) if row else 0))

    def draw_step(self, observation: int) -> tuple[Step, int]:
        chance = lambda tenths: bool(self.rng.integers(10) < tenths)  # noqa: E731
        terminated, truncated = chance(self.chances.terminated), chance(self.chances.truncated)
        valid = not (self.shape.has_valid and chance(self.chances.invalid))
        next_observation = following = self.new_observation(observation)
        if terminated or truncated:
            following = self.new_observation()
            if terminated and (not truncated or chance(5)) and chance(5):
                next_observation = observation  # not given: its own stands there
            elif chance(self.chances.not_given):
                next_observation = observation if terminated else -1
        action, reward = int(self.rng.integers(1, 100)), int(self.rng.integers(-8, 9))
        step = Step(observation, action, reward, terminated, truncated, valid, next_observation)
        return step, following

    def write_step(self, t: int, column: int, step: Step, following: int) -> None:
        tree = self.tree
        for name in ("action", "reward", "terminated", "truncated"):
            tree[name][t, column] = getattr(step, name)
        if self.shape.has_valid:
            tree["valid"][t, column] = step.valid
        if self.shape.has_state:
            tree["agent_info"]["rnn_state"]["h"][t, column] = step.observation
        if self.shape.has_clouds:
            tree["message"][t, column] = message_of(step.observation)
        tree["observation"][t + 1, column] = self.show(following)

    def transitions(self) -> dict[int, Transition]:
        """Return all transitions that can be sampled, by their index."""
        n_there = len(self.steps[0]) - self.first
        return self.whole_transitions() if n_there >= self.shape.n_steps else {}

    def whole_transitions(self) -> dict[int, Transition]:
        """Return the same also where fewer than n_steps steps are there: then none is drawn."""
        stop, found = len(self.steps[0]), {}
        for number in range(self.first, stop):
            for column, steps in enumerate(self.steps):
                transition = self.transition(steps[number : number + self.shape.n_steps])
                if transition is not None:
                    found[number * self.shape.B + column] = transition
        return found

    def transition(self, window: list[Step]) -> Transition | None:
        total = 0.0
        for length, step in enumerate(window, 1):
            total += DISCOUNT ** (length - 1) * step.reward
            is_end = step.terminated or step.truncated
            if not step.valid or (is_end and step.next_observation < 0):
                return None
            if is_end or length == self.shape.n_steps:
                return Transition(
                    window[0].observation,
                    window[0].action,
                    step.next_observation,
                    total,
                    0.0 if step.terminated else DISCOUNT**length,
                    step.terminated,
                    step.truncated,
                )
        return None


def show(number: int) -> ArrayDict:
    """Return the observation of a number."""
    state = np.array([number, -number, 3 * number], np.float32)
    return ArrayDict({"state": state, "deep": {"number": np.int32(number)}})


def cloud_of(number: int) -> NDArray[np.float32]:
    """Return the cloud of an observation, of 0 to `CAPACITY` points [number, item, -item]."""
    n_items = number % (CAPACITY + 1)
    return np.array([[number, at, -at] for at in range(n_items)], "f4").reshape(n_items, 3)


def message_of(number: int) -> NDArray[np.int64]:
    """Return what is sent in the step from an observation: a few times its number."""
    return np.full(number % 3, number)


def poison(tree: ArrayDict) -> None:
    """Write numbers that no element has behind all elements of different length."""
    for _, leaf in tree.walk():
        parts = leaf.memory_parts
        if "lengths" in parts:
            values, lengths = (
                cuda.to_host(part) if cuda.is_device_array(part) else part
                for part in (parts["values"], parts["lengths"])
            )
            values = values if values.flags.writeable else values.copy()
            values[np.arange(values.shape[lengths.ndim]) >= lengths[..., None]] = -99
            if cuda.is_device_array(parts["values"]):
                cuda.copy_to_device(values, out_device=parts["values"])


def check_clouds(minibatch: ArrayDict) -> ArrayDict:
    """Compare elements of different length with the numbers of their observations.

    Args:
        minibatch: transitions, or windows with their rows first.

    Returns:
        The minibatch without these leaves.
    """
    rest = ArrayDict(minibatch)
    for name in ("observation", "next_observation"):
        if "cloud" in rest.get(name, ()):
            found = rest[name]["cloud"]
            numbers = rest[name]["deep"]["number"].cpu().numpy()
            check_jagged(found, [cloud_of(number) for number in numbers.ravel().tolist()])
            assert found.batch_shape == numbers.shape
            branch = {key: leaf for key, leaf in rest[name].items() if key != "cloud"}
            rest[name] = ArrayDict(branch)
    if "message" in rest:
        numbers = rest["observation"]["deep"]["number"].cpu().numpy()
        found = rest["message"]
        is_step = np.ones(found.batch_shape, bool)
        if "mask" in rest:  # a window, whose last observation belongs to no step
            numbers, is_step = numbers[:-1], rest["action"].cpu().numpy() > 0
        sent = [
            message_of(number if there else 0)
            for number, there in zip(numbers.ravel().tolist(), is_step.ravel(), strict=True)
        ]
        check_jagged(found, sent)
        del rest["message"]
    return rest


def check_jagged(found: Jagged, expected: list[NDArray[Any]]) -> None:
    """Compare packed elements, of which nothing else may be there."""
    assert found.is_packed
    host = found.to_ndarray()
    assert host.offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    np.testing.assert_array_equal(host.values, np.concatenate(expected))


def show_goals(number: int) -> dict[str, Any]:
    """Return the goals of an observation, trees: what is achieved there, and what is desired."""
    achieved = {"at": np.array([number, 2 * number], np.float32), "level": np.int64(number)}
    desired = {"at": np.array([-number, 2 * number], np.float32), "level": np.int64(-number)}
    return {"achieved_goal": achieved, "desired_goal": desired}


def make_tree(shape: Shape, storage: str = "local") -> ArrayDict:
    def spec(dtype: Any, feature_shape: tuple[int, ...] = (), padding: int = 0) -> ArraySpec:
        full_size = shape.T * shape.n_windows
        return ArraySpec.of((shape.T, shape.B), dtype, feature_shape, padding, full_size)

    specs: dict[str, Any] = {
        "observation": {
            "state": spec(np.float32, (3,), shape.padding),
            "deep": {"number": spec(np.int32, (), shape.padding)},
        },
        "action": spec(np.int64),
        "reward": spec(np.float32),
        "terminated": spec(bool),
        "truncated": spec(bool),
    }
    if shape.has_valid:
        specs["valid"] = spec(bool)
    if shape.has_clouds:
        window = shape.T * shape.n_windows
        form = (shape.T, shape.B), np.float32, (3,), shape.padding, window, CAPACITY
        specs["observation"]["cloud"] = JaggedSpec.of(*form)
        specs["message"] = JaggedSpec.of((shape.T, shape.B), np.int64, (), 0, window, 2)
    if shape.has_state:
        specs["agent_info"] = {"rnn_state": {"h": spec(np.float32, (2,))}}
        specs["initial_rnn_state"] = {"h": ArraySpec.of((shape.B,), np.float32, (2,))}
    for name in ("achieved_goal", "desired_goal") if shape.has_goals else ():
        leaves = {"at": spec(np.float32, (2,), 1), "level": spec(np.int64, (), 1)}
        specs["observation"][name] = leaves
    if shape.stack:
        specs["observation"]["camera"] = FrameSpec.of(
            (shape.T, shape.B),
            np.int32,
            (1,),
            shape.padding,
            shape.T * shape.n_windows,
            shape.stack,
            shape.fill,
        )
    return allocate_tree(ArrayDict(specs), storage)


def read(
    minibatch: ArrayDict, frames: Mapping[int, tuple[int, ...]] | None = None
) -> dict[int, Transition]:
    """Return the transitions of a minibatch by their index, after a look at all observations.

    Args:
        minibatch: in host memory.
        frames: of each observation, where there are stacks.
    """
    minibatch = check_clouds(minibatch)
    indices, first = np.unique(minibatch["index"].numpy(), return_index=True)
    columns = {path: leaf.numpy()[first] for path, leaf in leaves(minibatch).items()}
    for name in ("observation", "next_observation"):
        numbers = columns[f"{name}.deep.number"]
        expected = np.stack([numbers, -numbers, 3 * numbers], axis=1)
        assert (columns[f"{name}.state"] == expected).all()
        if f"{name}.camera" in columns:
            assert frames is not None
            stacks = [list(frames[number]) for number in numbers.tolist()]
            assert columns[f"{name}.camera"][:, :, 0].tolist() == stacks
    fields = (
        "observation.deep.number",
        "action",
        "next_observation.deep.number",
        "n_step_return",
        "n_step_discount",
        "terminated",
        "truncated",
    )
    rows = zip(*(columns[field].tolist() for field in fields), strict=True)
    return dict(zip(indices.tolist(), itertools.starmap(Transition, rows), strict=True))


def _in_ring(shape: Shape) -> Shape:
    """Return a shape whose transitions are no longer than what is always left of the ring."""
    n_others = shape.T * (shape.n_windows - 1)  # rows beside those of the newest batch
    lost = 1 + min(shape.n_older, n_others - 1) if n_others else 0
    return shape._replace(n_steps=min(shape.n_steps, shape.T + n_others - lost))


shapes = st.builds(
    Shape,
    T=st.integers(1, 4),
    B=st.integers(1, 3),
    n_windows=st.integers(1, 5),
    padding=st.just(1),
    n_steps=st.integers(1, 5),
    n_final_obs=st.sampled_from((1, 3, 7, None)),
    has_valid=st.booleans(),
    stack=st.sampled_from((0, 0, 1, 2, 4)),
    fill=st.sampled_from(("first", "zero")),
    has_goals=st.just(False),  # left out, Hypothesis would choose it
    has_state=st.just(False),
    has_clouds=st.booleans(),
).map(_in_ring)
chances = st.builds(
    Chances,
    terminated=st.integers(0, 3),
    truncated=st.integers(0, 3),
    invalid=st.integers(0, 3),
    not_given=st.sampled_from((0, 0, 2)),
    reset=st.integers(0, 3),
)

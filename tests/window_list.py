"""The windows of a plain list of steps, and those of a minibatch, to be compared."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from parllel import ArrayDict
from parllel.replays import SequenceReplayBuffer
from parllel.testing.contracts.tree_case import leaves
from step_list import Model, Shape, Step, check_clouds


class Form(NamedTuple):
    """What windows are drawn."""

    length: int = 3
    burn_in: int = 0
    stride: int = 1
    episode_end: str = "stop"

    @property
    def n_rows(self) -> int:
        return self.burn_in + self.length


class Row(NamedTuple):
    """A row of a window: the observation, and the step if it is one."""

    observation: int
    is_first: bool = False
    step: Step | None = None
    mask: bool = False
    is_true: bool = True  # whether the stack of frames is that of the observation


def make_kind(form: Form, kind: Any = SequenceReplayBuffer) -> Any:
    """Return what makes a buffer of windows, in the place of one of transitions."""

    def make(tree: ArrayDict, *, n_steps: int, discount: float, **settings: Any) -> Any:
        return kind(tree, **{**form._asdict(), **settings})

    return make


def is_break(step: Step) -> bool:
    return step.terminated or step.truncated or not step.valid


def is_learnable(step: Step) -> bool:
    return step.valid and not ((step.terminated or step.truncated) and step.next_observation < 0)


def following(step: Step) -> int:
    """Return the observation after a step; its own where it is not known."""
    return step.next_observation if step.next_observation >= 0 else step.observation


def windows_of(model: Model, form: Form) -> dict[int, list[Row]]:
    """Return all windows that can be drawn, by their index."""
    found = {}
    for column, steps in enumerate(model.steps):
        for number in range(model.first, len(steps)):
            rows = window(model, form, steps, number, model.now[column])
            if rows is not None:
                found[number * model.shape.B + column] = rows
    return found


def window(model: Model, form: Form, steps: list[Step], number: int, now: int) -> list[Row] | None:
    """Return the rows of the window that a step names; None where none can be drawn."""
    begin = number  # of the episode
    while begin > 0 and not is_break(steps[begin - 1]):
        begin -= 1
    first = max(begin, number - form.burn_in)
    if model.first and first <= model.first:  # the step before tells whether an episode begins
        return None
    end = number  # behind the episode, whose last step may be one that is not learned from
    while end < len(steps) and not is_break(steps[end]):
        end += 1
    is_over = end < len(steps)
    n_steps = end - number + (is_over and is_learnable(steps[end]))
    is_named = number % form.stride == 0
    if form.episode_end != "cross":
        is_named = is_named or number == begin
    if form.episode_end == "stop":
        is_named = is_named or (is_over and n_steps == form.length)
    if not is_named:
        return None
    before = [
        Row(each.observation, at + first == begin, each)
        for at, each in enumerate(steps[first:number])
    ]
    padding = [Row(steps[first].observation, is_true=False)] * (form.burn_in - len(before))
    if form.episode_end == "cross":
        after = cross(model, form, steps, number, now)
    else:
        after = within(form, steps[number : number + n_steps], is_over, number == begin, now)
    return None if after is None else padding + before + after


def within(
    form: Form, steps: list[Step], is_over: bool, begins: bool, now: int
) -> list[Row] | None:
    rows = [
        Row(step.observation, begins and at == 0, step, True)
        for at, step in enumerate(steps[: form.length])
    ]
    if len(rows) < form.length and (form.episode_end == "stop" or not rows or not is_over):
        return None
    last = rows[-1].step
    after = Row(following(last), is_true=not last.terminated)
    return [*rows, after, *[after._replace(is_true=False)] * (form.length - len(rows))]


def cross(model: Model, form: Form, steps: list[Step], number: int, now: int) -> list[Row] | None:
    if number + form.length > len(steps):
        return None
    rows: list[Row] = []
    at = number
    while len(rows) <= form.length:
        begins = at == 0 or is_break(steps[at - 1])
        if begins and rows:
            observation = steps[at].observation if at < len(steps) else now
            rows += [Row(observation, is_true=False)] * model.shape.n_older
        if at == len(steps):
            rows.append(Row(now, begins))
            break
        step = steps[at]
        rows.append(Row(step.observation, begins, step, is_learnable(step)))
        is_ended = step.terminated or step.truncated
        if is_ended and len(rows) == form.length:
            rows.append(Row(following(step), is_true=not step.terminated))
        elif step.truncated and not step.terminated and step.next_observation >= 0:
            rows.append(Row(step.next_observation))
        at += 1
    rows = rows[: form.length + 1]
    rows[-1] = rows[-1]._replace(step=None, mask=False)
    n_tried = 2 if form.length > model.shape.n_older + 1 else 1
    return rows if any(map(is_learnable, steps[number : number + n_tried])) else None


def read_windows(minibatch: ArrayDict, model: Model, form: Form) -> dict[int, dict[str, Any]]:
    """Return the windows of a minibatch by their index, after a look at all observations."""
    minibatch = check_clouds(minibatch)
    index, first = np.unique(minibatch["index"].cpu().numpy(), return_index=True)
    found = {
        path: leaf.cpu().numpy() if leaf.ndim == 1 else leaf.cpu().numpy()[:, first]
        for path, leaf in leaves(minibatch).items()
    }
    numbers = found["observation.deep.number"]
    assert (found["observation.state"] == np.stack([numbers, -numbers, 3 * numbers], -1)).all()
    assert numbers.shape == (form.n_rows + 1, len(index))
    assert "valid" not in found
    return {
        number: {name: leaf[:, at] for name, leaf in found.items() if leaf.ndim > 1}
        for at, number in enumerate(index.tolist())
    }


def assert_is(window: dict[str, Any], rows: list[Row], model: Model) -> None:
    """Compare a window of a minibatch with the list's."""
    steps = rows[:-1]
    assert window["observation.deep.number"].tolist() == [row.observation for row in rows]
    assert window["is_first"].tolist() == [row.is_first for row in rows]
    assert window["mask"].tolist() == [row.mask for row in steps]
    for name in ("action", "reward", "terminated", "truncated"):
        expected = [0 if row.step is None else getattr(row.step, name) for row in steps]
        assert window[name].tolist() == expected, name
    if model.shape.stack:
        for row, stack in zip(rows, window["observation.camera"][..., 0].tolist(), strict=True):
            assert not row.is_true or stack == list(model.frames[row.observation])


def in_ring(case: tuple[Shape, Form]) -> tuple[Shape, Form]:
    """Return windows that are not longer than what is always left of the ring."""
    shape, form = case
    n_others = shape.T * (shape.n_windows - 1)
    lost = 1 + min(shape.n_older, n_others - 1) if n_others else 0
    most = shape.T + n_others - lost - 1
    if most < 1:
        return in_ring((shape._replace(n_windows=shape.n_windows + 1), form))
    length = min(form.length, most)
    return shape, form._replace(length=length, burn_in=min(form.burn_in, most - length))


forms = st.builds(
    Form,
    length=st.integers(1, 6),
    burn_in=st.integers(0, 5),
    stride=st.integers(1, 4),
    episode_end=st.sampled_from(("stop", "pad", "cross")),
)

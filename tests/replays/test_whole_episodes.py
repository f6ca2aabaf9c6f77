"""Episodes out of a ring are those that the list of all steps has, bit for bit."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parllel import ArrayDict
from parllel.replays import Episode, episodes_of
from profiles import fewer_examples
from step_list import Chances, Model, Shape, Step, chances, shapes

MANY_ENDS = Chances(terminated=2, truncated=3)


def expected_of(model: Model) -> Iterator[tuple[int, list[Step], int, bool, bool]]:
    """Yield environment, steps, number of the last observation, and whether both ends are there."""
    for column, steps in enumerate(model.steps):
        before = model.first - 1
        is_known = before >= len(steps) - model.replay.full_size
        has_begin = before < 0 or (
            is_known and (steps[before].terminated or steps[before].truncated)
        )
        part: list[Step] = []
        for step in steps[model.first :]:
            is_end = step.valid and (step.terminated or step.truncated)
            is_lost = is_end and step.next_observation in (-1, step.observation)
            if step.valid and not is_lost:
                part.append(step)
            if not step.valid or is_lost:
                if part:
                    yield column, part, step.observation, has_begin, False
                has_begin = is_lost or (has_begin and not part)
                part = []
            elif is_end:
                yield column, part, step.next_observation, has_begin, True
                has_begin, part = True, []
        if part:
            yield column, part, model.now[column], has_begin, False


def is_told(model: Model) -> bool:
    """Whether all episodes that terminated have a final observation."""
    return not any(
        step.valid and step.terminated and step.next_observation == step.observation
        for steps in model.steps
        for step in steps[model.first :]
    )


def check(model: Model, found: list[Episode]) -> None:
    expected = list(expected_of(model))
    assert len(found) == len(expected)
    for episode, (column, steps, last, has_begin, has_end) in zip(found, expected, strict=True):
        assert (episode.env, episode.has_begin, episode.has_end) == (column, has_begin, has_end)
        for name in ("action", "reward"):
            assert episode.branches[name].tolist() == [getattr(step, name) for step in steps]
        assert episode.terminated.tolist() == [step.terminated for step in steps]
        assert episode.truncated.tolist() == [step.truncated for step in steps]
        numbers = [*(step.observation for step in steps), last]
        for path, leaf in episode.observation.walk():
            shown = [ArrayDict({"o": model.show(number)}) for number in numbers]
            values = np.stack([dict(each.walk())["o", *path] for each in shown])
            np.testing.assert_array_equal(leaf, values)
            assert leaf.dtype == dict(model.tree["observation"].walk())[path].dtype


plain_shapes = shapes.map(lambda shape: shape._replace(has_clouds=False))


@fewer_examples(10)
@given(shape=plain_shapes, chances=chances, seed=st.integers(0, 99))
@example(Shape(T=3, B=2, n_windows=2, stack=3), Chances(reset=3, truncated=3, terminated=0), 2)
def test_episodes_are_what_the_list_has(shape: Shape, chances: Chances, seed: int) -> None:
    model = Model(shape, chances, seed=seed)
    for _ in range(2 * shape.n_windows + 2):
        if model.rng.integers(10) < chances.reset:
            model.reset()
        model.write_batch()
        if is_told(model):
            check(model, list(episodes_of(model.replay)))
        else:
            with pytest.raises(ValueError, match="keep_terminated=True"):
                list(episodes_of(model.replay))

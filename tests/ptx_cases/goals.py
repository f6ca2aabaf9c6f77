"""Cases of draws of goals in hindsight: by lists of the steps of an episode."""

import numpy as np

from parllel import cuda
from parllel.kernels.hindsight import GOAL_STREAM
from parllel.kernels.transitions import Seed
from parllel.kernels.window_search import PAD, WindowTable
from parllel.ops.hindsight import STRATEGIES, Strategy, draw_goals
from ptx_cases.comparing import assert_bits
from ptx_cases.draws import Ring, draw_below, some_seed
from ptx_cases.windows import Episodes


def draw(rng: np.random.Generator) -> None:
    """Goals for any steps that are there, also for those that could not be drawn themselves."""
    chances = tuple(rng.choice([0, 0.1, 0.4], 3).tolist())
    ring, seed = Ring(rng, 1, chances), some_seed(rng)
    first, stop, width = ring.steps.first, ring.steps.stop, ring.width
    episodes = Episodes(ring, WindowTable(length=1, burn_in=0, stride=1, ends=PAD, n_older=0))
    n, strategy = int(rng.choice([1, 7, 130])), STRATEGIES[int(rng.integers(3))]
    identity = rng.integers(first * width, stop * width, n)
    code, state = cuda.library().empty(n, np.int64), ring.make_state(seed)
    draw_goals(ring.on_device, state, strategy, identity=cuda.to_device(identity), out_code=code)
    expected = [
        find(episodes, strategy, seed, item, *divmod(each, width))
        for item, each in enumerate(identity.tolist())
    ]
    assert_bits("code", code, np.array(expected))
    assert state.read_number() == seed.number, "number: it was counted up"


def find(
    episodes: Episodes, strategy: Strategy, seed: Seed, item: int, number: int, column: int
) -> int:
    """Return the code of the goal of an item, which is a step."""
    steps = []
    for at in range(number, episodes.stop):
        if episodes.is_learnable(at, column):
            steps.append(at)
        if episodes.is_break(at, column):
            break
    if not steps:
        return episodes.place(number, column)
    if strategy == "episode":
        for at in reversed(range(episodes.first, number)):
            if episodes.is_break(at, column):
                break
            steps.insert(0, at)
    if strategy == "final":
        chosen = steps[-1]
    else:
        chosen = steps[draw_below(seed, item, GOAL_STREAM, len(steps))]
    return episodes.following(episodes.place(chosen, column))

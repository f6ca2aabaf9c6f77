"""Which cases execute which entry of the shipped PTX, and how many of each the tests run."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from ptx_cases import (
    agents,
    breaks,
    computations,
    copies,
    draws,
    elements,
    goals,
    priorities,
    valid_steps,
    windows,
)

Run: TypeAlias = Callable[[np.random.Generator], None]


class Case(NamedTuple):
    """Random launches of an entry by the library's own code, compared with a reference.

    Some launch nothing: of no rows, for example.
    """

    run: Run
    n: int  # how many


CASES: dict[str, tuple[Case, ...]] = {
    "advantage": (Case(computations.walk_steps, 12), Case(computations.walk_spans, 4)),
    "advantage_carries": (Case(computations.walk_spans, 8),),
    "advantage_spans": (Case(computations.walk_spans, 8),),
    "clear_steps": (Case(valid_steps.clear, 16),),
    "cut_episodes": (Case(valid_steps.cut, 24),),
    "draw_by_priority": (Case(priorities.draw_shares, 30),),
    "draw_goals": (Case(goals.draw, 60),),
    "draw_transitions": (
        Case(draws.draw_evenly, 16),
        Case(draws.draw_nothing, 1),
        Case(draws.draw_late, 1),
    ),
    "draw_windows": (Case(windows.draw_evenly, 100), Case(windows.draw_nothing, 1)),
    "draw_windows_by_priority": (Case(windows.draw_shares, 200),),
    "earn_of_agents": (Case(agents.earn, 40),),
    "frames": (Case(copies.gather_stacks, 48),),
    "gather_windows": (Case(windows.gather_rows, 210),),
    "join_agent_ends": (Case(agents.join, 40),),
    "mark_breaks": (Case(breaks.mark, 60),),
    "merge_moments": (Case(computations.measure_many, 4),),
    "moments": (Case(computations.measure, 8),),
    "normalize": (Case(computations.scale_values, 12),),
    "ragged": (Case(elements.pack, 56),),
    "refresh_priorities": (Case(priorities.refresh_leaves, 30),),
    "refresh_windows": (Case(windows.refresh_leaves, 40),),
    "rows": (Case(copies.copy_rows, 48),),
    "running_returns": (Case(computations.sum_up, 12),),
    "shifted_frames": (Case(copies.gather_shifted, 100),),
    "update_moments": (Case(computations.measure, 8),),
    "update_priorities": (
        Case(priorities.update_leaves, 30),
        Case(priorities.update_by_powers, 10),
    ),
    "update_windows": (Case(windows.update_leaves, 30),),
    "weigh_priorities": (Case(priorities.weigh, 60),),
    "write_row_entry": (Case(copies.copy_by_written_tables, 16),),
}

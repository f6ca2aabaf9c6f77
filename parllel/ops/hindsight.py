"""Random draws of goals for transitions of a ring, in hindsight: of NumPy or CuPy arrays."""

from __future__ import annotations

from typing import Literal, TypeAlias

from parllel.cuda import AnyArray
from parllel.kernels import hindsight as kernel
from parllel.ops.breaks import check_breaks
from parllel.ops.launching import launch_items
from parllel.ops.sides import as_argument, common_side
from parllel.ops.transitions import DrawState, SampledRing

Strategy: TypeAlias = Literal["future", "final", "episode"]
_NUMBERS: dict[Strategy, int] = {
    "future": kernel.FUTURE,
    "final": kernel.FINAL,
    "episode": kernel.EPISODE,
}
STRATEGIES = tuple(_NUMBERS)


def draw_goals(
    ring: SampledRing,
    state: DrawState,
    strategy: Strategy,
    *,
    identity: AnyArray,
    out_code: AnyArray,
) -> None:
    """Draw for transitions of one step another step of their episode, of which the goal is.

    On a GPU it is one launch in the caller's current stream, and nothing waits for it.

    Args:
        ring: what the transitions were drawn from; it has `breaks`.
        state: the state that their draw has counted up. It is read, and not counted up again, so
            that goals are a function of the same key and number as the transitions.
        strategy: "future" for the transition's own step and all later ones that are there,
            "final" for the last of these, "episode" for those before, too.
        identity: int64 [n], numbers of the transitions (`DrawnTransitions`), all of steps that are
            there.
        out_code: int64 [n], overwritten with codes of the observations after the chosen steps
            (`sequences.WindowSource`): their places, or -1 - slot of final ones. A step whose
            following observation is not known is not chosen.

    Raises:
        TypeError: some arrays are NumPy's and some are CuPy's.
        ValueError: there are not as many numbers as codes, or the ring has no breaks.
    """
    check_breaks(ring)
    common_side("goals", (identity, out_code))
    if len(identity) != len(out_code):
        raise ValueError(f"goals: got {len(identity)} transitions and {len(out_code)} codes")
    before = (ring.argument, *state.arguments, _NUMBERS[strategy], len(out_code))
    arguments = (*before, as_argument(identity), as_argument(out_code))
    if ring.side == "gpu":
        launch_items(kernel.DEVICE.name, len(out_code), arguments)
    else:
        kernel.ON_CPU.compiled(*arguments)

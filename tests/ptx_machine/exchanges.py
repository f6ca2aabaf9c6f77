"""Exchanges: `shfl.sync`, for which lanes of a warp wait for each other.

Source: PTX ISA, "Data Movement and Conversion Instructions: shfl.sync".
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ptx_machine.faults import DivergedError, UndefinedError, UnknownTextError
from ptx_machine.number_types import DTYPES, is_literal
from ptx_machine.team import WARP, Picked, Team, Values

_U32 = DTYPES["u32"]
_LANES = np.arange(WARP, dtype=np.uint32)
_BITS = np.uint32(1) << _LANES
_RESULT = re.compile(r"(%r\d+)(?:\|(%p\d+))?")


class Exchange:
    """One `shfl.sync` of an entry.

    Args:
        direction: "down", the only one that is known: lane i gets what lane i + `delta` has.
        operands: registers of the result, of the value, `delta`, the bounds of lanes, the mask.
    """

    def __init__(self, direction: str, operands: Sequence[str]) -> None:
        if direction != "down.b32" or len(operands) != 5:
            raise UnknownTextError("no exchange that the machine knows")
        result, *self._read = operands
        found = _RESULT.fullmatch(result)
        wrong = [each for each in self._read if not (each.startswith("%r") or is_literal(each))]
        if found is None or wrong:
            raise UnknownTextError(f"operands {operands}")
        self._result, self._is_inside = found.groups()

    def find_ready(self, team: Team, picked: Picked) -> Picked:
        """Return those threads of which all lanes are here that their mask names, with that mask.

        Raises:
            UndefinedError: a mask does not name its own lane.
        """
        masks = self._get(team, 3, picked)
        if ((masks >> team.lanes[picked] & 1) == 0).any():
            raise UndefinedError("a lane that is not in its own mask")
        here = team.by_lane(picked, masks)
        are_there = here[team.warps[picked]] == masks[:, None]
        named = (are_there * _BITS).sum(axis=1, dtype=np.uint32) & masks
        return picked[named == masks]

    def __call__(self, team: Team, picked: Picked) -> None:
        """Hand the values over, among threads that are all ready."""
        value, delta, bounds, masks = (self._get(team, at, picked) for at in range(4))
        lanes = team.lanes[picked]
        segment, last = bounds >> 8 & 31, bounds & 31
        last = (lanes & segment) | (last & ~segment)
        of = lanes + (delta & 31)
        is_inside = of <= last
        of = np.where(is_inside, of, lanes)
        if ((masks >> of & 1) == 0).any():
            raise UndefinedError("the value of a lane that is not in the mask")
        handed = team.by_lane(picked, value)[team.warps[picked], of]
        team.write(self._result, handed, picked)
        if self._is_inside is not None:
            team.write(self._is_inside, is_inside, picked)

    def _get(self, team: Team, number: int, picked: Picked) -> Values:
        return np.broadcast_to(team.read(self._read[number], _U32, picked), len(picked))


def refuse_waiting(entry: str, team: Team, is_waiting: npt.NDArray[np.bool_]) -> None:
    """Raise where lanes wait for others that never come."""
    if is_waiting.any():
        thread = team.threads[is_waiting][0] - 1
        raise DivergedError(f"{entry}, thread {thread}: waits for lanes that do not come")

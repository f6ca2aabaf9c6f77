"""Moments: how many numbers there were, their mean and their squared deviations; and the merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from parllel.ranks import gather, n_ranks
from parllel.transforms.running_moments import RunningMoments

_Key = TypeVar("_Key")


class Moments(NamedTuple):
    """Moments of numbers in double precision, of NumPy or of torch: each element has its own.

    >>> import numpy as np
    >>> one, other = (Moments(1, np.array([number]), np.zeros(1)) for number in (4.0, 6.0))
    >>> both = one.merged(other)
    >>> both.count, both.mean, both.variance
    (2, array([5.]), array([1.]))

    Args:
        count: how many numbers of each element.
        mean: float64 [F...]; 0 where there are no numbers.
        m2: float64 [F...], sum of squared deviations from the mean.
    """

    # Any: arrays of NumPy, or tensors; a count may be an integer.
    count: Any
    mean: Any
    m2: Any

    @property
    def variance(self) -> Any:  # Any: as the fields
        """Mean squared deviation; 0 where there are no numbers."""
        return self.m2 / (self.count + (self.count == 0))

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the numbers of both, which stay as they are.

        d = mean_other - mean
        mean = mean + d * n_other / (n + n_other)
        M2 = M2 + M2_other + d**2 * n * n_other / (n + n_other)

        Source: Chan, Golub, LeVeque 1979, STAN-CS-79-773, eq. 2.1.
        """
        count = self.count + other.count
        share = other.count / (count + (count == 0))
        change = other.mean - self.mean
        mean = self.mean + change * share
        return Moments(count, mean, self.m2 + other.m2 + change * change * (self.count * share))

    @classmethod
    def of(cls, moments: RunningMoments) -> Moments:
        """Return the moments that an object in float32 has found, of NumPy.

        The host waits where they live in memory of a GPU.
        """
        saved = {name: np.asarray(each, np.float64) for name, each in moments.state_dict().items()}
        if not moments.count:  # what is kept may be of rows before a reset, and NaN
            return cls(0, np.zeros_like(saved["m2"]), np.zeros_like(saved["m2"]))
        return cls(int(saved["count"]), saved["shift"] + saved["offset"], saved["m2"])

    def give_to(self, moments: RunningMoments) -> None:
        """Set an object in float32 to these moments, of NumPy; its own are forgotten."""
        shift = np.asarray(self.mean, np.float32)
        offset = np.asarray(self.mean - shift, np.float32)
        state = {"count": self.count, "shift": shift, "offset": offset, "m2": self.m2}
        moments.load_state_dict(state)


def over_ranks(what: str, found: Mapping[_Key, Moments]) -> dict[_Key, Moments]:
    """Return the moments of what all ranks have found, which are the same bits on each.

    All moments are exchanged at once, in double precision, and merged in the order of the ranks.
    Where there is one rank, they are returned as they are.

    >>> over_ranks("rewards", {"cat": Moments(1, 4.0, 0.0)})
    {'cat': Moments(count=1, mean=4.0, m2=0.0)}

    Args:
        what: what they are moments of, as for `ranks.gather`.
        found: moments of NumPy, by the same keys on all ranks.

    Raises:
        RankError: as for `ranks.gather`.
        ValueError: a rank has moments of something else, or of other features.
    """
    if n_ranks() == 1:
        return dict(found)
    given = gather(what, {key: tuple(moments) for key, moments in found.items()})
    shapes = [{key: np.shape(mean) for key, (_, mean, _) in each.items()} for each in given]
    if any(each != shapes[0] for each in shapes):
        raise ValueError(
            f"{what}: got moments of {shapes} by ranks, expected the same agents and features on"
            " each; give all ranks the same environments"
        )
    together = {}
    for key in found:
        first, *others = [Moments(*each[key]) for each in given]
        for other in others:
            first = first.merged(other)
        together[key] = first
    return together

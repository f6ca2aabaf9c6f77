"""One space of actions for an agent: what it scales and counts by must not change unseen."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces


def check_same_space(known: spaces.Space[Any] | None, space: spaces.Space[Any]) -> None:
    """Refuse a space that differs from the one in which an agent acts already.

    An agent has one scale. Were it that of the sampler that was made last, as of evaluation,
    actions of training would be scaled by other bounds from then on.

    >>> check_same_space(None, spaces.Discrete(2))
    >>> check_same_space(spaces.Discrete(2), spaces.Discrete(2, start=1))
    Traceback (most recent call last):
    ValueError: action space: got Discrete(2, start=1), expected Discrete(2), in which this ...

    Args:
        known: the space of its environments; None where it was told of none.
        space: the space of other environments.

    Raises:
        ValueError: they differ.
    """
    if known is not None and space != known:
        raise ValueError(
            f"action space: got {space}, expected {known}, in which this agent acts already; give"
            " evaluation the environments of training, or make another agent"
        )

"""Scheduled: an algorithm whose numbers follow schedules, and so may those of its agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

_Agent = TypeVar("_Agent")


class Scheduled(ABC, Generic[_Agent]):
    """Set numbers by the progress of a run, in an algorithm and in the agent that it trains.

    Subclasses define `_set_numbers`, and call it where they go on from a saved state.

    Args:
        agent: the agent; if it has a method `set_progress` too, that is called.

    Example:
        >>> class Halving(Scheduled[object]):
        ...     def _set_numbers(self, progress):
        ...         self.rate = 0.5**progress
        >>> algorithm = Halving(agent=object())
        >>> algorithm.set_progress(1.0)
        >>> algorithm.rate
        0.5
    """

    def __init__(self, agent: _Agent) -> None:
        self._agent = agent

    def set_progress(self, progress: float) -> None:
        """Set what has a schedule, here and in the agent, before a batch is collected.

        Args:
            progress: share of the run that is done, in [0, 1].

        Raises:
            TypeError, ValueError: a schedule gives no number, or one that means nothing.
        """
        self._set_numbers(progress)
        if (set_progress := getattr(self._agent, "set_progress", None)) is not None:
            set_progress(progress)

    @abstractmethod
    def _set_numbers(self, progress: float) -> None:
        """Set the algorithm's own numbers to what they are at some progress."""

"""PolicyBefore: the log-probabilities of the policy that acted, in the mode that learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class PolicyBefore:
    """The model as it was before the updates of a batch, asked in training mode.

    Dropout and batch normalization give another log-probability in training mode than they gave
    when the agent acted. A ratio of the two would not be 1 for a policy that has not changed, so
    both have to come from one mode and the same random numbers.

    Args:
        model: the model, in training mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> before, rows = PolicyBefore(model), torch.ones(64, 2)
        >>> before.is_needed(lambda: model(rows))
        True
        >>> before.keep()
        >>> was = before.ask(lambda: model(rows))  # the dropout's next random numbers stay unused
        >>> torch.equal(model(rows), was)
        True
    """

    def __init__(self, model: object) -> None:
        self._model = model if isinstance(model, nn.Module) else nn.Module()
        # None: not found out yet. A function has no modes.
        self._is_needed: bool | None = None if isinstance(model, nn.Module) else False
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def is_needed(self, evaluate: Callable[[], Tensor]) -> bool:
        """Return whether the model's answers in training mode are of their own kind.

        They are if random numbers change them, or if they change a buffer. The first call finds
        out with two evaluations, after which all buffers and random numbers are what they were,
        and waits for the device; later calls return what was found.
        """
        if self._is_needed is None:
            buffers = [buffer.clone() for buffer in self._model.buffers()]
            with self._unchanged():
                first = evaluate().clone()
                is_random = not torch.equal(first, evaluate())
                is_changing = any(map(_differ, buffers, self._model.buffers()))
            self._is_needed = is_random or is_changing
        return self._is_needed

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the parameters as they are now, until the next call."""
        own = [parameter.detach() for parameter in self._model.parameters()]
        if len(self._kept) != len(own):
            self._kept = [torch.empty_like(parameter) for parameter in own]
        for kept, parameter in zip(self._kept, own, strict=True):
            kept.copy_(parameter)

    @torch.no_grad()
    def ask(self, evaluate: Callable[[], Tensor]) -> Tensor:
        """Return what `evaluate` returns with the parameters that were kept.

        Parameters, buffers and random numbers are the same afterwards.
        """
        with self._unchanged():
            self._swap()
            try:
                return evaluate().clone()
            finally:
                self._swap()

    def _swap(self) -> None:
        for number, parameter in enumerate(self._model.parameters()):
            parameter.data, self._kept[number] = self._kept[number], parameter.data

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Put buffers and random numbers back after the `with` block."""
        buffers = [buffer.clone() for buffer in self._model.buffers()]
        places = {parameter.device for parameter in self._model.parameters()}
        with torch.random.fork_rng([place for place in places if place.type == "cuda"]):
            try:
                yield
            finally:
                for buffer, former in zip(self._model.buffers(), buffers, strict=True):
                    buffer.copy_(former)


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one, other)

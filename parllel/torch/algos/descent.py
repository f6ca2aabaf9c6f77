"""Descent: the steps of an optimizer along gradients of bounded length, and their state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parllel.torch.algos.over_ranks import MeanGradient


class Descent:
    """Make an optimizer's steps, along gradients that are cut down to a norm.

    Of several ranks (`parllel.ranks`), a gradient is the mean of those of all, before it is cut
    down: so all ranks make the same step, and have to call `backward` as often as each other.

    Args:
        optimizer: has the parameters.
        max_grad_norm: norm to which a larger gradient is cut down.
        model: the model that learns, whose parameters the optimizer has to have, or some of them.

    Raises:
        ValueError: the optimizer has no parameter of the model.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0]))
        >>> descent = Descent(torch.optim.SGD([weight], lr=1.0), max_grad_norm=0.5)
        >>> descent.backward(2 * weight.sum())
        tensor(2.)
        >>> descent.step()
        >>> weight.data
        tensor([2.5000])
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_grad_norm: float, model: object = None
    ) -> None:
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        if isinstance(model, nn.Module):
            learned = {id(parameter) for parameter in model.parameters()}
            if learned and learned.isdisjoint(map(id, self._parameters)):
                raise ValueError(
                    "optimizer: it has no parameter of the agent's model, so that nothing would be"
                    " learned; make it with agent.model.parameters()"
                )
        self._gradient = MeanGradient(self._parameters)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer has now; a program may add some."""
        return [each for group in self._optimizer.param_groups for each in group["params"]]

    @property
    def rate(self) -> float:
        """The learning rate of the first group; waits for a device where it is a tensor there."""
        return float(self._optimizer.param_groups[0]["lr"])

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all groups."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in place: a captured step reads it there
            else:
                group["lr"] = rate

    def backward(self, loss: Tensor) -> Tensor:
        """Compute the gradient of a loss, cut it down, and return its norm from before.

        Nothing waits for a device. A step along a gradient that is not finite spoils parameters.

        Raises:
            RankError: another rank has ended, or did not come in time.
            ValueError: there are several ranks, and a parameter learns that did not before.
        """
        parameters = self._parameters
        self._gradient.check(parameters)
        self._optimizer.zero_grad(set_to_none=True)
        self._gradient.backward(loss)
        return nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)

    def step(self) -> None:
        """Make the optimizer's step."""
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:  # Any: numbers, tensors, and lists and dictionaries
        """Return the optimizer's state, over its own memory."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an optimizer of the same parameters was when `state_dict` was called.

        Raises:
            KeyError, ValueError: the state is that of other groups of parameters.
        """
        # A copy: torch goes on with the tensors that it is given, which may be another optimizer's.
        self._optimizer.load_state_dict(copy.deepcopy(dict(state)))

"""Learner: what algorithms share: the agent, steps of an optimizer, schedules, and their state."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from parllel.schedules import value_at
from parllel.torch.algos.descent import Descent
from parllel.torch.algos.not_finite import refuse_loss
from parllel.torch.algos.over_ranks import begin_alike
from parllel.tree import ArrayDict

_Agent = TypeVar("_Agent")


class Learner(ABC, Generic[_Agent]):
    """Train an agent by the steps of an optimizer, with numbers that follow a run's progress.

    Subclasses define `optimize`. They extend `_set_numbers`, which they call when they are made,
    and `state_dict` and `_load` by what they have beside an optimizer.

    Several ranks of a run (`parllel.ranks`) begin with the model of rank 0 and with the same
    settings, which is checked here, and go along the mean of their gradients. So they have to make
    as many steps as each other: what decides on a step has to be the same on all
    (`mean_over_ranks`).

    Args:
        agent: the agent, with a `model`; if it has a method `set_progress`, too, that is called.
        optimizer: updates the parameters of the agent's model.
        settings: the algorithm's settings, with `learning_rate` and `max_grad_norm`.

    Raises:
        ValueError: the optimizer has no parameter of the model.

    Example:
        >>> from types import SimpleNamespace
        >>> from parllel.schedules import linear
        >>> class Smallest(Learner[Any]):
        ...     def optimize(self, batch):
        ...         return {"norm": self._descend(self._agent.model.weight.square().sum(), batch)}
        >>> agent = SimpleNamespace(model=nn.Linear(1, 1))
        >>> settings = SimpleNamespace(learning_rate=linear(0.5, 0.0), max_grad_norm=math.inf)
        >>> optimizer = torch.optim.SGD(agent.model.parameters())
        >>> algorithm = Smallest(agent, optimizer, settings)
        >>> algorithm.set_progress(0.0)
        >>> sorted(algorithm.optimize(ArrayDict()))
        ['norm']
        >>> agent.model.weight.item()
        0.0
    """

    # Any: each algorithm has a class of its own for them.
    def __init__(self, agent: _Agent, optimizer: torch.optim.Optimizer, settings: Any) -> None:
        self._agent, self._settings = agent, settings
        begin_alike(self, agent, optimizer, settings)
        self._descent = Descent(optimizer, settings.max_grad_norm, self._model)

    @property
    def _model(self) -> Any:  # Any: a module, or what else the agent makes its results of
        return self._agent.model  # type: ignore[attr-defined]  # which each kind of agent has

    @abstractmethod
    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        """Learn after one batch of the sampler, and return what is to be logged."""

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

    def _set_numbers(self, progress: float) -> None:
        """Set the algorithm's own numbers to what they are at some progress."""
        rate = self._settings.learning_rate
        if rate is not None:
            self._descent.set_rate(value_at("learning_rate", rate, progress, least=0))
        self._progress = progress

    def _descend(self, loss: Tensor, batch: ArrayDict) -> Tensor:
        """Make a step of the optimizer along a loss; return the norm of its gradient.

        On the host, a step that is not finite is refused before it is made.
        """
        norm = self._descent.backward(loss)
        if norm.device.type == "cpu":
            self._check_gradient(norm.item(), batch)
        self._descent.step()
        return norm

    def _check_gradient(self, norm: float, batch: ArrayDict) -> None:
        if not math.isfinite(norm):
            refuse_loss("the norm of the gradient", batch, self._model)

    def state_dict(self) -> dict[str, Any]:  # Any: tensors, numbers, lists and dictionaries
        """Return all that the next updates depend on, beside what is saved by itself.

        That is the agent, the batch or the replay buffer, and the settings.
        """
        return {"optimizer": self._descent.state_dict(), "progress": self._progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an algorithm with the same settings was when `state_dict` was called.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: the state is another one's. Nothing was
                changed.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(state)
        except BaseException:  # an interrupt, too
            self._load(before)
            raise

    def _load(self, state: Mapping[str, Any]) -> None:
        """Take over a state of `state_dict`; if this raises, `load_state_dict` undoes it."""
        self._descent.load_state_dict(state["optimizer"])
        self._set_numbers(state["progress"])


def check_agent(
    agent: object, needed: Sequence[str], like: str, *, modules: Sequence[str] = ()
) -> None:
    """Refuse an agent that lacks what an algorithm asks for.

    >>> check_agent(nn.Linear(1, 1), ["weight", "model"], "QAgent (see DQNAgent)")
    Traceback (most recent call last):
    TypeError: agent: Linear has no model, expected an agent as torch.agents.QAgent (see DQNAgent)

    Args:
        agent: the agent.
        needed: the names of its attributes.
        like: an agent that has them, for errors.
        modules: paths of those that have to be modules, as `model.critic`.

    Raises:
        TypeError: there is no such attribute, or it is no `torch.nn.Module`.
    """
    if missing := [name for name in needed if not hasattr(agent, name)]:
        raise TypeError(
            f"agent: {type(agent).__name__} has no {' and no '.join(missing)}, expected an agent"
            f" as torch.agents.{like}"
        )
    for path in modules:
        part: object = agent
        for name in path.split("."):
            part = getattr(part, name, None)
        if not isinstance(part, nn.Module):
            raise TypeError(
                f"{path}: got a {type(part).__name__}, expected a torch.nn.Module, which can be"
                " copied and learn"
            )

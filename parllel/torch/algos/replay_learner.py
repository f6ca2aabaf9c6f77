"""ReplayLearner: the frame of algorithms that learn from a replay buffer, with a target network."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from parllel.replays import Prefetcher
from parllel.replays.base_replay import BaseReplay
from parllel.torch.algos.learner import Learner
from parllel.torch.algos.over_ranks import mean_over_ranks
from parllel.torch.algos.replay_draws import ReplayDraws
from parllel.torch.algos.settings import check_counts, check_number
from parllel.torch.algos.target_network import TargetNetwork
from parllel.tree import ArrayDict
from parllel.tree.agent_forms import has_agents


def check_replay_settings(settings: object) -> None:
    """Refuse those settings that mean nothing which all these algorithms have.

    Raises:
        TypeError: one is of another type, or a schedule gives no number.
        ValueError: one is out of range.
    """
    check_counts(settings, "batch_size", "n_updates", "target_period")
    check_number(settings, "target_share", above=0, most=1)
    check_number(settings, "learning_rate", least=0, may_change=True, is_optional=True)
    check_number(settings, "beta", least=0, may_change=True, is_optional=True)
    check_number(settings, "max_grad_norm", above=0, most=math.inf)


_Agent = TypeVar("_Agent")


class ReplayLearner(Learner[_Agent]):
    """Make updates after each batch, of minibatches that are drawn from a replay buffer.

    Subclasses define `_learn_from`, the steps of one update; `_reported`, the names of what it
    returns. A target network follows the agent's after every `target_period` updates.

    Nothing is read from a device during updates. There, an error of the numbers shows when the
    updates of the batch are done.

    Args:
        agent: the agent that learns.
        replay: the buffer that the sampler writes to (`replay=`).
        optimizer: updates the parameters of the agent's model.
        settings: the algorithm's settings, with those that `check_replay_settings` names.
        followed: the network of which a copy is kept for targets: the model, or a part of it.
        prefetcher: draws the minibatches of `replay` ahead, with the settings' `batch_size`.

    Raises:
        ValueError: there is a `beta` for a buffer without priorities, the prefetcher has another
            buffer, or the optimizer has no parameter of the model. Or the buffer has several
            agents, and the subclass does not say `_takes_agents`.

    Example:
        >>> from types import SimpleNamespace
        >>> from parllel.torch.algos import DQNSettings
        >>> class Rewards(ReplayLearner[Any]):  # predicts them
        ...     _reported = ("loss",)
        ...     def _learn_from(self, minibatch, batch):
        ...         errors = self._model(minibatch["observation"])[:, 0] - minibatch["reward"]
        ...         loss = errors.square().mean()
        ...         return [loss.detach(), self._descend(loss, batch)]
        >>> minibatch = ArrayDict({"observation": torch.ones(4, 2), "reward": torch.ones(4)})
        >>> replay = SimpleNamespace(sample=lambda batch_size: minibatch)
        >>> agent = SimpleNamespace(model=nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(agent.model.parameters(), lr=0.1)
        >>> settings = DQNSettings(batch_size=4, n_updates=50)
        >>> algorithm = Rewards(agent, replay, optimizer, settings, followed=agent.model)
        >>> algorithm.set_progress(0.0)
        >>> algorithm.optimize(ArrayDict())["loss"] > algorithm.optimize(ArrayDict())["loss"]
        True
    """

    _reported: ClassVar[tuple[str, ...]]
    _takes_agents: ClassVar[bool] = False  # whether it learns by `valid`, where agents are alive

    def __init__(
        self,
        agent: _Agent,
        replay: BaseReplay[Any],
        optimizer: torch.optim.Optimizer,
        settings: Any,  # as for Learner
        *,
        followed: nn.Module,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        if not self._takes_agents:
            self._refuse_agents(replay)
        super().__init__(agent, optimizer, settings)
        self._draws = ReplayDraws(
            replay, settings.batch_size, beta=settings.beta, prefetcher=prefetcher
        )
        self._target = TargetNetwork(followed)
        self._n_updates = 0

    def _refuse_agents(self, replay: object) -> None:
        """Refuse minibatches of several agents, which would be learned from also where none is."""
        samples: Mapping[str, Any] = getattr(replay, "samples", {})
        if "reward" in samples and has_agents(samples["reward"]):
            raise ValueError(
                "replay: its rewards are those of several agents, expected one:"
                f" {type(self).__name__} would learn from rows without an agent, too; learn with"
                " PPO and IndependentPgAgents, or write a ReplayLearner that reads the minibatch's"
                " valid"
            )

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        """Make the updates that follow one batch of the sampler, which the buffer has already.

        Args:
            batch: the sampler's batch; it is read only to explain numbers that are not finite.

        Returns:
            What the class says of an update: means over the updates, and over ranks. `n_updates`,
            since the beginning; `learning_rate`.

        Raises:
            RuntimeError: the buffer has no transition yet.
            ValueError: a loss or a gradient is NaN or infinite: on the host before that step of
                the update is made, on a GPU when all are; or the prefetcher has another batch size.
        """
        rows = [self._update(batch) for _ in range(self._settings.n_updates)]
        numbers = mean_over_ranks(torch.stack(rows).mean(dim=0))
        *means, norm = numbers.tolist()  # the one read of a device
        self._check_gradient(norm, batch)
        return dict(zip(self._reported, means, strict=True)) | {
            "n_updates": float(self._n_updates),
            "learning_rate": self._descent.rate,
        }

    def _update(self, batch: ArrayDict) -> Tensor:
        numbers = torch.stack(self._learn_from(self._draws.next(), batch))
        self._n_updates += 1
        if self._n_updates % self._settings.target_period == 0:
            self._target.follow(self._settings.target_share)
        return numbers

    @abstractmethod
    def _learn_from(self, minibatch: ArrayDict, batch: ArrayDict) -> list[Tensor]:
        """Make the steps of one update, and give the errors back to the buffer (`_draws`).

        Args:
            minibatch: what was drawn.
            batch: the sampler's batch, for `_descend`.

        Returns:
            The numbers that are reported, in the order of `_reported`; and the norm of the
            gradient, or the sum of several.
        """

    def _set_numbers(self, progress: float) -> None:
        super()._set_numbers(progress)
        self._draws.set_progress(progress)

    def state_dict(self) -> dict[str, Any]:  # Any: as for Learner
        """Return all that the next updates depend on, beside the agent and the replay buffer."""
        own = {"target": self._target.state_dict(), "n_updates": self._n_updates}
        return {**super().state_dict(), **own}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._target.load_state_dict(state["target"])
        self._n_updates = operator.index(state["n_updates"])
        super()._load(state)

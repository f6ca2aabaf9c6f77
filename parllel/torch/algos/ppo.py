"""PPO: proximal policy optimization with a clipped objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from parllel.replays import Minibatches
from parllel.torch.agents import Evaluation
from parllel.tree import ArrayDict


class PPOAgent(Protocol):
    """An agent that PPO can train.

    >>> class Undecided:
    ...     def evaluate(self, observation, action):
    ...         zeros = torch.zeros(len(action))
    ...         return Evaluation(log_prob=zeros, entropy=zeros, value=zeros)
    >>> agent: PPOAgent = Undecided()
    >>> agent.evaluate(torch.ones(2, 4), torch.tensor([0, 1])).value
    tensor([0., 0.])
    """

    def evaluate(self, observation: Tensor | ArrayDict, action: Tensor) -> Evaluation:
        """Return log-probability, entropy and value of each row, with gradients.

        Args:
            observation: rows [N, ...] of observations, a tensor or a tree of tensors.
            action: [N, ...], the actions that were taken.
        """


@dataclass(frozen=True)
class PPOSettings:
    """The numbers of PPO; the defaults are those of the paper and its common implementations.

    Args:
        n_epochs: number of passes over each batch.
        n_minibatches: number of parts of each pass.
        clip: bound on the change of the probability ratio, epsilon in the paper.
        value_coefficient, entropy_coefficient: weights of the value loss and the entropy bonus.
        max_grad_norm: norm to which a larger gradient is cut down.
        kl_limit: estimated KL divergence from the batch's policy, in nats, beyond which no more
            minibatches of the batch are used; None for no limit.

    Raises:
        ValueError: a number is outside the range in which it means something.

    Example:
        >>> PPOSettings(n_epochs=10, kl_limit=0.02).clip
        0.2
    """

    n_epochs: int = 4
    n_minibatches: int = 4
    clip: float = 0.2
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    max_grad_norm: float = 0.5
    kl_limit: float | None = None

    def __post_init__(self) -> None:
        counts = {"n_epochs": self.n_epochs, "n_minibatches": self.n_minibatches}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}: got {count}, expected 1 or more")
        for name in ("clip", "max_grad_norm", "kl_limit"):
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise ValueError(f"{name}: got {number}, expected a number above 0")


class PPO:
    """Learn from batches with the clipped surrogate objective.

    The batch has the branches `observation`, `action`, `advantage`, `return_` and
    `agent_info.log_prob`, as the transforms leave it.

    Args:
        agent: the agent that learns.
        optimizer: updates the parameters of the agent's model.
        settings: the numbers of PPO; the defaults if left out.
        rng: source of randomness of the minibatches.
        scheduler: changes the learning rate; it is stepped once for each batch with updates.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; the KL estimate is k3 of
        Schulman 2020, "Approximating KL divergence".

    Example:
        >>> from parllel import Array
        >>> from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
        >>> from parllel.torch.distributions import Categorical, DistParams
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.pi, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)
        ...     def forward(self, observation):
        ...         value = self.critic(observation).squeeze(-1)
        ...         return ModelOutputs(DistParams(logits=self.pi(observation)), value)
        >>> model = Model()
        >>> agent = CategoricalPgAgent(model, Categorical(dim=2), torch.zeros(1, 3))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> batch = ArrayDict(  # as sampler and transforms leave it: T = 8 steps, B = 4
        ...     {
        ...         "observation": Array((8, 4), np.float32, feature_shape=(3,)),
        ...         "action": Array((8, 4), np.int64),
        ...         "advantage": Array((8, 4), np.float32),
        ...         "return_": Array((8, 4), np.float32),
        ...         "agent_info": {"log_prob": Array((8, 4), np.float32)},
        ...     }
        ... )
        >>> numbers = PPO(agent, optimizer, rng=np.random.default_rng(0)).optimize(batch)
        >>> numbers["n_updates"]  # 4 passes of 4 minibatches
        16.0
    """

    def __init__(
        self,
        agent: PPOAgent,
        optimizer: torch.optim.Optimizer,
        settings: PPOSettings | None = None,
        *,
        rng: np.random.Generator,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        self._agent = agent
        self._optimizer = optimizer
        self._settings = settings or PPOSettings()
        self._minibatches = Minibatches(self._settings.n_minibatches, rng)
        self._scheduler = scheduler
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        """Learn from one batch.

        Returns:
            `policy_loss`, `value_loss`, `entropy` in nats, `kl` in nats and `clip_fraction`: means
            over the minibatches, with the one that passed the KL limit; `n_updates`, the number
            of the optimizer's steps; `learning_rate`, with which they were made.
        """
        needed = ArrayDict(
            {
                "observation": batch["observation"],
                "action": batch["action"],
                "advantage": batch["advantage"],
                "return_": batch["return_"],
                "old_log_prob": batch["agent_info"]["log_prob"],
            }
        )
        learning_rate = self._optimizer.param_groups[0]["lr"]
        rows, n_updates = self._run_epochs(needed)
        if self._scheduler is not None and n_updates:  # torch warns of a schedule before updates
            self._scheduler.step()
        means = torch.stack(rows).mean(dim=0).tolist()
        names = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction")
        return dict(zip(names, means, strict=True)) | {
            "n_updates": float(n_updates),
            "learning_rate": float(learning_rate),
        }

    def _run_epochs(self, batch: ArrayDict) -> tuple[list[Tensor], int]:
        """Return a row of five numbers for each minibatch, and the number of updates."""
        rows: list[Tensor] = []
        limit = self._settings.kl_limit
        for minibatch in self._minibatches.of(batch, n_passes=self._settings.n_epochs):
            loss, numbers = self._loss(minibatch)
            rows.append(numbers)
            if limit is not None and numbers[3] > limit:
                return rows, len(rows) - 1
            self._update(loss)
        return rows, len(rows)

    def _loss(self, minibatch: ArrayDict) -> tuple[Tensor, Tensor]:
        """Return the loss to minimize, and the five numbers that `optimize` reports."""
        settings = self._settings
        evaluation = self._agent.evaluate(minibatch["observation"], minibatch["action"])
        advantage = minibatch["advantage"]
        log_ratio = evaluation.log_prob - minibatch["old_log_prob"]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = 0.5 * nn.functional.mse_loss(evaluation.value, minibatch["return_"])
        entropy = evaluation.entropy.mean()
        loss = (
            policy_loss
            + settings.value_coefficient * value_loss
            - settings.entropy_coefficient * entropy
        )
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean()
            clip_fraction = (ratio != clipped).float().mean()
            numbers = torch.stack([policy_loss, value_loss, entropy, kl, clip_fraction])
        return loss, numbers

    def _update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm)
        self._optimizer.step()

"""PPO: proximal policy optimization with a clipped objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from parllel.replays import Minibatches
from parllel.torch.agents import Evaluation
from parllel.torch.agents.modes import in_mode
from parllel.torch.algos.not_finite import parameter_not_finite
from parllel.torch.algos.policy_before import PolicyBefore
from parllel.tree import ArrayDict, leaves_of
from parllel.tree.not_finite import find_not_finite

_NAMES = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction")  # what is reported


class PPOAgent(Protocol):
    """An agent that PPO can train, as `CategoricalPgAgent`; one without that base is as good.

    >>> class Normal:
    ...     def __init__(self, model):
    ...         self.model = model
    ...     def evaluate(self, observation, action):
    ...         mean, value = self.model(observation).unbind(-1)
    ...         log_prob = -((action - mean) ** 2) / 2
    ...         return Evaluation(log_prob, torch.zeros_like(value), value)
    >>> agent: PPOAgent = Normal(nn.Linear(3, 2))
    >>> agent.evaluate(torch.zeros(5, 3), torch.zeros(5)).value.shape
    torch.Size([5])
    """

    @property
    def model(self) -> Callable[..., Any]:  # Any: whatever `evaluate` makes its results of
        """The model that is trained: PPO puts a `torch.nn.Module` into its training mode."""

    # Any: each agent names what it takes, a tensor or a tree of tensors.
    def evaluate(self, observation: Any, action: Any) -> Evaluation:
        """Return log-probability, entropy and value of each row, with gradients.

        Args:
            observation: rows [N, ...] of observations, a tensor or a tree of tensors.
            action: [N, ...], the actions that were taken, as the observation.
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
    `agent_info.log_prob`, as the transforms leave it. Rows that its branch `valid` calls no
    transitions are left out, whatever they hold (`Minibatches`).

    The model learns in its training mode. Where that mode gives other log-probabilities than the
    model acts with (dropout, batch normalization), those that the ratio divides by are computed
    again for each minibatch, with the parameters from before the updates and the same random
    numbers. So the ratio of a policy that has not changed is 1.

    Args:
        agent: the agent that learns.
        optimizer: updates the parameters of the agent's model.
        settings: the numbers of PPO; the defaults if left out.
        rng: source of randomness of the minibatches.
        scheduler: changes the learning rate; it is stepped once for each batch with updates.

    Raises:
        TypeError: the agent has no `evaluate` or no `model`, or rng is no generator of NumPy.

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
        missing = [name for name in ("evaluate", "model") if not hasattr(agent, name)]
        if missing:
            raise TypeError(
                f"agent: {type(agent).__name__} has no {' and no '.join(missing)}, expected an"
                " agent as torch.agents.CategoricalPgAgent (see PPOAgent)"
            )
        self._agent = agent
        self._optimizer = optimizer
        self._settings = settings or PPOSettings()
        self._minibatches = Minibatches(self._settings.n_minibatches, rng)
        self._scheduler = scheduler
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._before = PolicyBefore(agent.model)

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        """Learn from one batch.

        A loss, an observation or a gradient that is NaN or infinite ends the batch. On the host
        the update is not made. On a GPU, numbers are read when the updates of the batch are done,
        or with each minibatch where there is a `kl_limit`: parameters may have become NaN, and an
        older file of them is needed.

        Returns:
            `policy_loss`, `value_loss`, `entropy` in nats, `kl` in nats and `clip_fraction`: means
            over the minibatches, with the one that passed the KL limit; `n_updates`, the number
            of the optimizer's steps; `learning_rate`, with which they were made.

        Raises:
            ValueError: a loss, an observation or a gradient is NaN or infinite: the message names
                the first such leaf, row and environment of the batch. Or a branch is missing, the
                agent evaluates to another shape, or there are fewer valid rows than minibatches.
        """
        needed = _needed(batch)
        learning_rate = self._optimizer.param_groups[0]["lr"]
        with in_mode(self._agent.model, training=True):
            rows, norms = self._run_epochs(needed, batch)
        n_updates = len(norms)
        if self._scheduler is not None and n_updates:  # torch warns of a schedule before updates
            self._scheduler.step()
        total_norm = torch.stack(norms).sum() if norms else torch.zeros_like(rows[0][0])
        *means, total = torch.cat([torch.stack(rows).mean(dim=0), total_norm[None]]).tolist()
        self._check(means, batch)
        self._check_gradient(total, batch)
        return dict(zip(_NAMES, means, strict=False)) | {
            "n_updates": float(n_updates),
            "learning_rate": float(learning_rate),
        }

    def _run_epochs(self, needed: ArrayDict, batch: ArrayDict) -> tuple[list[Tensor], list[Tensor]]:
        """Return a row of numbers for each minibatch, and the norm of each update's gradient."""
        rows: list[Tensor] = []
        norms: list[Tensor] = []
        limit = self._settings.kl_limit
        for minibatch in self._minibatches.of(needed, n_passes=self._settings.n_epochs):
            loss, numbers = self._loss(self._with_policy_before(minibatch, is_first=not rows))
            rows.append(numbers)
            on_host = numbers.device.type == "cpu"
            if on_host or limit is not None:
                read = numbers.tolist()
                self._check(read, batch)
                if limit is not None and not read[_NAMES.index("kl")] <= limit:
                    break
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
            limit_norm = self._settings.max_grad_norm
            norms.append(nn.utils.clip_grad_norm_(self._parameters, limit_norm))
            if on_host:
                self._check_gradient(norms[-1].item(), batch)
            self._optimizer.step()
        return rows, norms

    def _with_policy_before(self, minibatch: ArrayDict, *, is_first: bool) -> ArrayDict:
        """Return a minibatch with what the policy's ratio divides by; see the class."""

        def log_prob() -> Tensor:
            return self._agent.evaluate(minibatch["observation"], minibatch["action"]).log_prob

        if not self._before.is_needed(log_prob):
            return minibatch
        if is_first:
            self._before.keep()
        return ArrayDict({**minibatch, "old_log_prob": self._before.ask(log_prob)})

    def _loss(self, minibatch: ArrayDict) -> tuple[Tensor, Tensor]:
        """Return the loss to minimize, and the five numbers that `optimize` reports.

        Behind them is the sum of the observations, which is finite if all of them are.
        """
        settings = self._settings
        evaluation = self._agent.evaluate(minibatch["observation"], minibatch["action"])
        advantage = minibatch["advantage"]
        _check_shapes(evaluation, advantage.shape)
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
            observed = _sum_of_floats(minibatch["observation"], like=policy_loss)
            numbers = torch.stack([policy_loss, value_loss, entropy, kl, clip_fraction, observed])
        return loss, numbers

    def _check(self, numbers: list[float], batch: ArrayDict) -> None:
        """Raise ValueError if what `_loss` returned tells of a NaN or an infinity."""
        *losses, kl, _, observed = numbers
        bad = [name for name, loss in zip(_NAMES, losses, strict=False) if not math.isfinite(loss)]
        if bad or math.isnan(kl):
            self._explain(f"{bad[0] if bad else 'kl'} is not finite", batch)
        for name, number in (("kl", kl), ("the sum of observations", observed)):
            if not math.isfinite(number) and find_not_finite(batch):  # both may also overflow
                self._explain(f"{name} is not finite", batch)

    def _check_gradient(self, norm: float, batch: ArrayDict) -> None:
        if not math.isfinite(norm):
            self._explain("the norm of the gradient is not finite", batch)

    def _explain(self, what: str, batch: ArrayDict) -> NoReturn:
        found = find_not_finite(batch)
        if found is not None:
            raise ValueError(
                f"batch: {what}, as {found}; find out why the environment or the agent gave it"
            )
        name = parameter_not_finite(self._agent.model)
        if name is not None:
            raise ValueError(
                f"batch: {what}: the model's parameter {name} is not finite, and all of the batch"
                " is; load older parameters, and learn with a smaller rate or max_grad_norm"
            )
        raise ValueError(
            f"batch: {what}, and all of the batch and of the model's parameters is finite; look"
            " for a division by 0 or the like in the model, or for numbers too large for float32"
        )


def _needed(batch: ArrayDict) -> ArrayDict:
    """Return the branches that PPO reads.

    Raises:
        ValueError: one is missing.
    """
    missing = [name for name in ("advantage", "return_") if name not in batch]
    if missing:
        raise ValueError(
            f"batch: there is no {' and no '.join(missing)}, which transforms.EstimateAdvantage"
            " adds; apply it to the batch first, as RLRunner does with its transforms="
        )
    if "log_prob" not in batch.get("agent_info", {}):
        raise ValueError(
            "batch: there is no agent_info.log_prob, the log-probability of each action; the"
            " agent's step returns it in its mapping"
        )
    own = ("observation", "action", "advantage", "return_", "valid")
    branches = {name: batch[name] for name in own if name in batch}
    return ArrayDict({**branches, "old_log_prob": batch["agent_info"]["log_prob"]})


def _check_shapes(evaluation: Evaluation, expected: torch.Size) -> None:
    """Raise ValueError where torch would spread numbers over a matrix."""
    for name, tensor in zip(evaluation._fields, evaluation, strict=True):
        if tensor.shape != expected:
            raise ValueError(
                f"evaluate: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)},"
                " a number for each row"
            )


def _sum_of_floats(observation: Tensor | ArrayDict, *, like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for _, leaf in leaves_of(observation):
        if leaf.is_floating_point():
            total = total + leaf.sum()
    return total

"""PPO: proximal policy optimization with a clipped objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from parllel.arrays import Jagged
from parllel.generator_states import set_generator_state
from parllel.ranks import n_ranks
from parllel.replays import Minibatches
from parllel.samplers import RecurrentActor
from parllel.schedules import Schedule, value_at
from parllel.torch.agents import Evaluation, Recurrence
from parllel.torch.agents.modes import in_mode
from parllel.torch.algos.agent_columns import AgentColumns
from parllel.torch.algos.learner import Learner, check_agent
from parllel.torch.algos.left_out import clear_rows, where_valid
from parllel.torch.algos.not_finite import refuse_loss
from parllel.torch.algos.over_ranks import mean_over_ranks
from parllel.torch.algos.policy_before import PolicyBefore
from parllel.torch.algos.settings import check_counts, check_number
from parllel.tree import ArrayDict, leaves_of
from parllel.tree.not_finite import find_not_finite

_NAMES = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction")  # what is reported
_OF_SEQUENCES = ("initial_rnn_state", "terminated", "truncated")  # read for agents with a state


class PPOAgent(Protocol):
    """An agent that PPO can train, as `PgAgent`; one without that base is as good.

    If it has a method `set_progress` too, PPO calls it when its own is called.

    >>> class Normal:
    ...     def __init__(self, model):
    ...         self.model = model
    ...     def evaluate(self, observation, action):
    ...         mean, value = self.model(observation).unbind(-1)
    ...         log_prob = -((action - mean) ** 2) / 2
    ...         return Evaluation(log_prob, torch.zeros_like(value), value)
    >>> agent: PPOAgent = Normal(torch.nn.Linear(3, 2))
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

    Those that say so may be a schedule, a function of the run's progress (`parllel.schedules`).

    Args:
        n_epochs: number of passes over each batch.
        n_minibatches: number of parts of each pass.
        clip: bound on the change of the probability ratio, epsilon in the paper; or a schedule.
        value_clip: bound on the change of a value estimate from the one that the agent acted
            with, in units of the return; a number or a schedule. None for no bound.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus; or a schedule.
        learning_rate: the optimizer's learning rate, of all its groups; a number or a schedule.
            None leaves it to the optimizer.
        max_grad_norm: norm to which a larger gradient is cut down; math.inf for no bound.
        kl_limit: estimated KL divergence from the batch's policy, in nats, beyond which no more
            minibatches of the batch are used; None for no limit.

    Raises:
        TypeError: a setting is of another type than is written here (a number is an int or a
            float), or a schedule gives no number at 0 or 1.
        ValueError: a number is outside the range in which it means something.

    Example:
        >>> from parllel.schedules import linear
        >>> PPOSettings(n_epochs=10, clip=linear(0.2, 0.1), kl_limit=0.02).clip
        linear(0.2, 0.1, until=1.0)
    """

    n_epochs: int = 4
    n_minibatches: int = 4
    clip: float | Schedule = 0.2
    value_clip: float | Schedule | None = None
    value_coefficient: float = 0.5
    entropy_coefficient: float | Schedule = 0.0
    learning_rate: float | Schedule | None = None
    max_grad_norm: float = 0.5
    kl_limit: float | None = None

    def __post_init__(self) -> None:
        check_counts(self, "n_epochs", "n_minibatches")
        check_number(self, "clip", above=0, may_change=True)
        check_number(self, "value_clip", above=0, may_change=True, is_optional=True)
        check_number(self, "value_coefficient", least=0)
        check_number(self, "entropy_coefficient", least=0, may_change=True)
        check_number(self, "learning_rate", least=0, may_change=True, is_optional=True)
        check_number(self, "max_grad_norm", above=0, most=math.inf)
        check_number(self, "kl_limit", above=0, is_optional=True)

    def at(self, progress: float) -> PPONumbers:
        """Return the numbers that may be schedules at some progress of the run.

        Raises:
            TypeError, ValueError: a schedule gives no number, or one below 0.
        """
        bound = self.value_clip
        return PPONumbers(
            clip=value_at("clip", self.clip, progress, least=0),
            value_clip=None if bound is None else value_at("value_clip", bound, progress, least=0),
            entropy_coefficient=value_at(
                "entropy_coefficient", self.entropy_coefficient, progress, least=0
            ),
        )


class PPONumbers(NamedTuple):
    """The settings of PPO that may change while it learns, at some progress of the run."""

    clip: float
    value_clip: float | None
    entropy_coefficient: float


class PPO(Learner[PPOAgent]):
    """Learn from batches with the clipped surrogate objective.

    The batch has the branches `observation`, `action`, `advantage`, `return_` and
    `agent_info.log_prob`, as the transforms leave it. Rows that its branch `valid` calls no
    transitions are left out, whatever they hold (`Minibatches`).

    The model learns in its training mode. Where that mode gives other log-probabilities than the
    model acts with (dropout, batch normalization), those that the ratio divides by are computed
    again for each minibatch, with the parameters from before the updates and the same random
    numbers. So the ratio of a policy that has not changed is 1.

    An agent that goes on from a state (`RecurrentPgAgent`) learns from minibatches of whole
    environments, over all T steps of which `evaluate` runs from the state before the batch. A
    `RecurrentSampler` makes such batches. Steps that are not valid are run over and have no weight,
    whatever they hold: each mean divides by the number of valid steps of its minibatch.

    Several agents (`IndependentPgAgents`): the batch's quantities are dictionaries by agents, or
    have an agent axis [T, B, N], and so has what `evaluate` returns. Agents that share a model
    (`agent.shared_by`) have one loss, whose means are over all rows in which one of them is alive;
    the losses of different models are added. So each model learns as in a run of its own, but that
    `max_grad_norm` bounds the norm of all gradients together, and `kl_limit` the mean over models.
    What `optimize` returns are means over models. Rows in which an agent is not alive have no
    weight; they are run over with zeros in the place of what is not finite.

    Args:
        agent: the agent that learns.
        optimizer: updates the parameters of the agent's model.
        settings: the numbers of PPO; the defaults if left out.
        rng: source of randomness of the minibatches.

    Raises:
        TypeError: the agent has no `evaluate` or no `model`, or rng is no generator of NumPy.

    With `value_clip` the value loss of a row is the larger one of (V - R)^2 / 2 and
    (V_old + clip(V - V_old) - R)^2 / 2, and the batch has the branch `agent_info.value`, too.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; the KL estimate is k3 of
        Schulman 2020, "Approximating KL divergence"; value clipping as in Engstrom et al. 2020,
        arXiv:2005.12729, section 3.

    Example:
        >>> from parllel import Array
        >>> from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
        >>> from parllel.torch.distributions import Categorical, DistParams
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.pi, self.critic = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)
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

    _settings: PPOSettings

    def __init__(
        self,
        agent: PPOAgent,
        optimizer: torch.optim.Optimizer,
        settings: PPOSettings | None = None,
        *,
        rng: np.random.Generator,
    ) -> None:
        check_agent(agent, ("evaluate", "model"), "CategoricalPgAgent (see PPOAgent)")
        super().__init__(agent, optimizer, settings or PPOSettings())
        self._is_recurrent = isinstance(agent, RecurrentActor)
        self._minibatches = Minibatches(
            self._settings.n_minibatches, rng, whole_envs=self._is_recurrent
        )
        self._rng = rng
        self._before = PolicyBefore(agent.model)
        self._columns = AgentColumns()  # of one agent; of the batch's once there is one
        self._leaves_out = False  # whether rows of the batch may not be valid
        self._set_numbers(0.0)

    def _set_numbers(self, progress: float) -> None:
        super()._set_numbers(progress)
        self._numbers = self._settings.at(progress)

    def state_dict(self) -> dict[str, Any]:  # Any: as for Learner
        """Return all that the next updates depend on beside the agent, the batch and the settings.

        Dropout draws by torch's own generator, whose state the program has to keep itself.
        """
        return {**super().state_dict(), "rng": self._rng.bit_generator.state}

    def _load(self, state: Mapping[str, Any]) -> None:
        set_generator_state(self._rng, state["rng"])
        super()._load(state)

    def optimize(self, batch: ArrayDict) -> dict[str, float]:
        """Learn from one batch.

        A loss, an observation or a gradient that is NaN or infinite ends the batch. On the host
        the update is not made. On a GPU, numbers are read when the updates of the batch are done,
        or with each minibatch where there is a `kl_limit`: parameters may have become NaN, and an
        older file of them is needed.

        Returns:
            `policy_loss`, `value_loss`, `entropy` in nats, `kl` in nats and `clip_fraction`: means
            over the minibatches, with the one that passed the KL limit; `n_updates`, the number
            of the optimizer's steps; `learning_rate`, with which they were made. Of several ranks,
            means are over all of them, and so is what `kl_limit` is compared with.

        Raises:
            ValueError: a loss, an observation or a gradient is NaN or infinite: the message names
                the first such leaf, row and environment of the batch. Or a branch is missing, the
                agent evaluates to another shape, or there are fewer valid rows than minibatches.
        """
        needed = _needed(
            batch,
            with_value=self._numbers.value_clip is not None,
            with_state=self._is_recurrent,
        )
        self._leaves_out = "valid" in needed
        shared_by = getattr(self._agent, "shared_by", None)
        self._columns = AgentColumns.of(needed, shared_by)
        if self._is_recurrent and self._columns.has_agents:
            raise TypeError(
                "batch: it has several agents, and the agent goes on from a state, which is kept"
                " for environments only; give each row what it needs of the past, as stacked frames"
            )
        with in_mode(self._model, training=True):
            rows, norms = self._run_epochs(needed, batch)
        total_norm = torch.stack(norms).sum() if norms else torch.zeros_like(rows[0][0])
        means_of_rows = mean_over_ranks(torch.stack(rows).mean(dim=0))
        *means, total = torch.cat([means_of_rows, total_norm[None]]).tolist()
        self._check(means, batch)
        self._check_gradient(total, batch)
        return dict(zip(_NAMES, means, strict=False)) | {
            "n_updates": float(len(norms)),
            "learning_rate": self._descent.rate,
        }

    def _run_epochs(self, needed: ArrayDict, batch: ArrayDict) -> tuple[list[Tensor], list[Tensor]]:
        """Return a row of numbers for each minibatch, and the norm of each update's gradient."""
        rows: list[Tensor] = []
        norms: list[Tensor] = []
        limit = self._settings.kl_limit
        for minibatch in self._minibatches.of(needed, n_passes=self._settings.n_epochs):
            if self._is_recurrent:
                minibatch = _without_invalid(minibatch)
            minibatch = self._columns.of_minibatch(minibatch)
            loss, numbers = self._loss(self._with_policy_before(minibatch, is_first=not rows))
            if limit is not None:  # all ranks end the batch together
                numbers = mean_over_ranks(numbers)
            rows.append(numbers)
            if numbers.device.type == "cpu" or limit is not None:
                read = numbers.tolist()
                self._check(read, batch)
                if limit is not None and not read[_NAMES.index("kl")] <= limit:
                    break
            norms.append(self._descend(loss, batch))
        return rows, norms

    def _with_policy_before(self, minibatch: ArrayDict, *, is_first: bool) -> ArrayDict:
        """Return a minibatch with what the policy's ratio divides by; see the class."""

        def log_prob() -> Tensor:
            return self._evaluate(minibatch).log_prob

        if not self._before.is_needed(log_prob):
            return minibatch
        if is_first:
            self._before.keep()
        return ArrayDict({**minibatch, "old_log_prob": self._before.ask(log_prob)})

    def _evaluate(self, minibatch: ArrayDict) -> Evaluation:
        """Return what the agent makes of a minibatch, which has whole environments for a state."""
        agent: Any = self._agent  # Any: a recurrent one takes an argument more
        told = {"recurrence": _recurrence(minibatch)} if self._is_recurrent else {}
        evaluation: Evaluation = agent.evaluate(
            minibatch["observation"], minibatch["action"], **told
        )
        if not self._columns.has_agents:
            return evaluation
        return Evaluation(*map(self._columns.stacked, Evaluation._fields, evaluation))

    def _loss(self, minibatch: ArrayDict) -> tuple[Tensor, Tensor]:
        """Return the loss to minimize, and the five numbers that `optimize` reports.

        Behind them is the sum of the observations, which is finite if all of them are.
        """
        evaluation = self._evaluate(minibatch)
        _check_shapes(evaluation, minibatch["advantage"].shape)
        # Other minibatches have only rows that are valid.
        has_others = self._is_recurrent or self._columns.has_agents
        valid = minibatch.get("valid") if has_others else None
        advantage = where_valid(valid, minibatch["advantage"])
        log_ratio = where_valid(valid, evaluation.log_prob - minibatch["old_log_prob"])
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self._numbers.clip, 1 + self._numbers.clip)
        n_valid = self._count_over_ranks(advantage, valid)

        def mean(numbers: Tensor, valid: Tensor | None) -> Tensor:
            return self._columns.sum_of_means(numbers, valid, n_valid)

        policy_loss = -mean(torch.minimum(ratio * advantage, clipped * advantage), valid)
        value_loss = mean(self._value_losses(evaluation.value, minibatch, valid), valid)
        entropy = mean(evaluation.entropy, valid)
        loss = (
            policy_loss
            + self._settings.value_coefficient * value_loss
            - self._numbers.entropy_coefficient * entropy
        )
        with torch.no_grad():
            kl = mean(ratio - 1 - log_ratio, valid)
            clip_fraction = mean((ratio != clipped).float(), valid)
            means = torch.stack([policy_loss, value_loss, entropy, kl, clip_fraction])
            observed = _sum_of_floats(minibatch["observation"], like=policy_loss)
            numbers = torch.cat([means / self._columns.n_models, observed[None]])
        return loss, numbers

    def _count_over_ranks(self, numbers: Tensor, valid: Tensor | None) -> Tensor | None:
        """Return what sums of a minibatch are divided by; None for its own number of rows."""
        if n_ranks() == 1 or not self._leaves_out:
            return None
        return mean_over_ranks(self._columns.count(numbers, valid))

    def _value_losses(self, value: Tensor, minibatch: ArrayDict, valid: Tensor | None) -> Tensor:
        """Return half of the squared error of each row's value."""
        return_, clip = minibatch["return_"], self._numbers.value_clip
        losses = 0.5 * where_valid(valid, value - return_) ** 2
        if clip is None:
            return losses
        old = minibatch["old_value"]
        clipped = old + (value - old).clamp(-clip, clip)
        return torch.maximum(losses, 0.5 * where_valid(valid, clipped - return_) ** 2)

    def _check(self, numbers: list[float], batch: ArrayDict) -> None:
        """Raise ValueError if what `_loss` returned tells of a NaN or an infinity."""
        *losses, kl, _, observed = numbers
        bad = [name for name, loss in zip(_NAMES, losses, strict=False) if not math.isfinite(loss)]
        if bad or math.isnan(kl):
            refuse_loss(bad[0] if bad else "kl", batch, self._model)
        for name, number in (("kl", kl), ("the sum of observations", observed)):
            if not math.isfinite(number) and find_not_finite(batch):  # both may also overflow
                refuse_loss(name, batch, self._model)


def _needed(batch: ArrayDict, *, with_value: bool, with_state: bool) -> ArrayDict:
    """Return the branches that PPO reads.

    Args:
        batch: the batch.
        with_value: whether the value estimates that the agent acted with are read.
        with_state: whether the agent goes on from a state.

    Raises:
        ValueError: one is missing.
    """
    missing = [name for name in ("advantage", "return_") if name not in batch]
    if missing:
        raise ValueError(
            f"batch: there is no {' and no '.join(missing)}, which transforms.EstimateAdvantage"
            " adds; apply it to the batch first, as RLRunner does with its transforms="
        )
    agent_info = batch.get("agent_info", {})
    kept = {"log_prob": "log-probability of each action"}
    kept |= (
        {"value": "value estimate of each observation, which value_clip needs"}
        if with_value
        else {}
    )
    for name, meaning in kept.items():
        if name not in agent_info:
            raise ValueError(
                f"batch: there is no agent_info.{name}, the {meaning}; the agent's step returns it"
                " in its mapping"
            )
    own = ["observation", "action", "advantage", "return_", "valid"]
    own += _OF_SEQUENCES if with_state else ()
    branches = {name: batch[name] for name in own if name in batch}
    if with_state:
        if missing := [name for name in _OF_SEQUENCES if name not in batch]:
            raise ValueError(
                f"batch: there is no {' and no '.join(missing)}, expected the batch of a"
                " RecurrentSampler: the agent goes on from a state"
            )
        branches |= {"previous": agent_info["previous"]} if "previous" in agent_info else {}
    return ArrayDict({**branches, **{f"old_{name}": agent_info[name] for name in kept}})


def _recurrence(minibatch: ArrayDict) -> Recurrence:
    """Return what a minibatch of whole environments tells of states: an end puts them back."""
    is_over = minibatch["terminated"] | minibatch["truncated"]
    if "valid" in minibatch:
        is_over = is_over | ~minibatch["valid"]
    is_first = torch.zeros_like(is_over)
    is_first[1:] = is_over[:-1]
    return Recurrence(minibatch["initial_rnn_state"], is_first, minibatch.get("previous"))


def _without_invalid(minibatch: ArrayDict) -> ArrayDict:
    """Return a minibatch of whole environments whose invalid rows hold no NaN for the model."""
    if "valid" not in minibatch:
        return minibatch
    names = [name for name in ("observation", "action", "previous") if name in minibatch]
    cleared = {name: clear_rows(minibatch[name], ~minibatch["valid"]) for name in names}
    return ArrayDict({**minibatch, **cleared})


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
    for _, each in leaves_of(observation):
        leaf = each.packed().values if isinstance(each, Jagged) else each
        if leaf.is_floating_point():
            total = total + leaf.sum()
    return total

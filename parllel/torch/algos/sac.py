"""SAC: soft actor-critic, which learns continuous actions from transitions of a replay buffer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from parllel.replays import Prefetcher, ReplayBuffer
from parllel.schedules import Schedule, value_at
from parllel.torch.agents.modes import in_mode
from parllel.torch.algos.descent import Descent
from parllel.torch.algos.learner import check_agent
from parllel.torch.algos.replay_learner import ReplayLearner, check_replay_settings
from parllel.torch.algos.settings import check_flag, check_number
from parllel.tree import ArrayDict

_REPORTED = ("critic_loss", "policy_loss", "temperature", "entropy", "value", "td_error")


class SACAgent(Protocol):
    """An agent that SAC can train, as `QPgAgent`; one without that base is as good.

    If it has a method `set_progress` too, SAC calls it when its own is called.

    >>> class Own:  # of one number
    ...     def __init__(self, model):
    ...         self.model = model
    ...     def encode(self, observation):
    ...         return observation
    ...     def own_action(self, action):
    ...         return action
    ...     def draw_action(self, features):
    ...         noise = torch.randn(len(features), 1)
    ...         return self.model.policy(features) + noise, -0.5 * (noise**2).sum(-1)
    ...     def action_values(self, features, action, *, critic=None):
    ...         rows = torch.cat([features, action], -1)
    ...         return (critic or self.model.critic)(rows).T
    >>> agent: SACAgent = Own(nn.ModuleDict({"policy": nn.Linear(3, 1), "critic": nn.Linear(4, 2)}))
    >>> agent.own_action(torch.zeros(5, 1)).shape
    torch.Size([5, 1])
    """

    @property
    def model(self) -> Any:  # Any: a torch.nn.Module whose attribute `critic` is one, too
        """The model that is trained. SAC keeps a copy of its part `critic` as target network."""

    # Any: each agent names what it takes, a tensor or a tree of tensors.
    def encode(self, observation: Any) -> Tensor:
        """Return features [N, ...] of observations, with gradients.

        The critics' loss trains what computes them; the policy's loss does not.
        """

    def own_action(self, action: Any) -> Tensor:
        """Return the policy's own actions [N, k] for those of the sample tree."""

    def draw_action(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Draw own actions [N, k] for features; return their log-probabilities [N], too.

        Both have gradients by the policy's parameters, which go through the action.
        """

    def action_values(self, features: Tensor, action: Tensor, *, critic: Any = None) -> Tensor:
        """Return what each of n critics estimates, float32 [n, N], with gradients.

        Args:
            features: those of the observations.
            action: own actions [N, k].
            critic: a copy of the model's part of that name; that one by default.
        """


@dataclass(frozen=True)
class SACSettings:
    """The numbers of SAC; the defaults are those of the paper.

    The number of steps of a return and the discount are the replay buffer's (`n_steps`,
    `discount`); the number of critics is a matter of the model.

    Args:
        batch_size: number of transitions of an update.
        n_updates: number of updates for each batch of the sampler.
        temperature: weight of the entropy against rewards, alpha in the paper, above 0: the first
            one where it is learned; else a number or a schedule (`parllel.schedules`).
        learns_temperature: whether the temperature follows the entropy.
        target_entropy: entropy in nats, of own actions, that the temperature is to keep up; None
            for -k, where actions have k numbers.
        temperature_rate: learning rate of the logarithm of the temperature (Adam); a number or a
            schedule.
        target_period: number of updates from one change of the target critics to the next.
        target_share: share of the difference by which they follow then, in (0, 1].
        learning_rate: the optimizer's learning rate, of all its groups; a number or a schedule.
            None leaves it to the optimizer.
        beta: exponent of the importance weights of a PrioritizedReplayBuffer; a number or a
            schedule. None leaves it to the buffer.
        max_grad_norm: norm to which a larger gradient is cut down, that of the critics and that of
            the policy each; math.inf for no bound.

    Raises:
        TypeError: a setting is of another type than is written here (a number is an int or a
            float), or a schedule gives no number at 0 or 1.
        ValueError: a number is outside the range in which it means something.

    Example:
        >>> SACSettings(temperature=0.1, learns_temperature=False).target_share
        0.005
    """

    batch_size: int = 256
    n_updates: int = 1
    temperature: float | Schedule = 1.0
    learns_temperature: bool = True
    target_entropy: float | None = None
    temperature_rate: float | Schedule = 3e-4
    target_period: int = 1
    target_share: float = 0.005
    learning_rate: float | Schedule | None = None
    beta: float | Schedule | None = None
    max_grad_norm: float = math.inf

    def __post_init__(self) -> None:
        check_replay_settings(self)
        check_flag(self, "learns_temperature")
        check_number(self, "temperature", above=0, may_change=not self.learns_temperature)
        check_number(self, "target_entropy", is_optional=True)
        check_number(self, "temperature_rate", above=0, may_change=True)


class SAC(ReplayLearner[SACAgent]):
    """Learn a policy that gets rewards and stays random, from transitions of a replay buffer.

    An update makes three steps, one after the other, from one minibatch:

        critics:     mean over rows of sum_i 1/2 * (Q_i(s, a) - y)**2,
                     y = R + g * (min_i Q'_i(s', a') - alpha * log pi(a' | s')),  a' ~ pi(s')
        policy:      mean over rows of alpha * log pi(b | s) - min_i Q_i(s, b),  b ~ pi(s)
        temperature: mean over rows of -alpha * (log pi(b | s) + target_entropy)

    R and g are the n-step return and its discount, as the buffer gives them: g is 0 after a
    termination, and a truncation cuts nothing off. The entropies of the steps within R are left
    out. s' is the observation after n steps, and Q' are the target critics: copies of the model's
    as they are when this object is made, which then follow them.

    An encoder before policy and critics learns by the critics' loss alone; the policy takes the
    features that the critics' step was made with, and the target critics those of the same encoder
    (Yarats et al. 2021, arXiv:2107.09645, section 3.1).

    From a `PrioritizedReplayBuffer`, the losses of critics and policy have importance weights, and
    the critics' mean absolute errors become the new priorities.

    `optimize` reports of an update `critic_loss`; `policy_loss`; `temperature`; `entropy` of the
    policy in nats, of own actions; `value` of the actions that were taken; and `td_error`, the
    absolute error.

    Args:
        agent: the agent that learns.
        replay: the buffer that the sampler writes to (`replay=`).
        optimizer: updates all parameters of the agent's model; critics and policy may be groups
            with rates of their own.
        settings: the numbers of SAC; the defaults if left out.
        prefetcher: draws the minibatches of `replay` ahead, with the settings' `batch_size`.

    Raises:
        TypeError: the agent lacks a method, or its model or the part `critic` of it is no
            `torch.nn.Module`.
        ValueError: there is a `beta` for a buffer without priorities, the prefetcher has another
            buffer, the buffer draws sequences, or the optimizer lacks a parameter of the model.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, algorithm 1 and eq. 5, 9, 18; the smaller one
        of two critics: Fujimoto et al. 2018, arXiv:1802.09477, eq. 10.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> from parllel import Array
        >>> from parllel.torch.agents import QPgAgent
        >>> from parllel.torch.distributions import SquashedGaussian
        >>> from parllel.torch.models import SoftActorCritic
        >>> samples = ArrayDict(
        ...     {
        ...         "observation": Array((4, 1), np.float32, feature_shape=(3,), padding=1),
        ...         "action": Array((4, 1), np.float32, feature_shape=(2,)),
        ...         "reward": Array((4, 1), np.float32),
        ...         "terminated": Array((4, 1), bool),
        ...         "truncated": Array((4, 1), bool),
        ...     }
        ... )
        >>> replay = ReplayBuffer(samples, rng=np.random.default_rng(0))
        >>> replay.restart()  # a sampler calls this and the next three methods
        >>> replay.begin_batch()
        >>> samples.rotate()
        >>> replay.end_batch()
        >>> model = SoftActorCritic(3, n_actions=2, sizes=(16,))
        >>> agent = QPgAgent(model, SquashedGaussian(2), torch.zeros(1, 3))
        >>> agent.bind_actions(spaces.Box(0, 5, (2,)))  # a sampler does it
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> sac = SAC(agent, replay, optimizer, SACSettings(batch_size=8))
        >>> sac.optimize(samples)["n_updates"]
        1.0
    """

    _settings: SACSettings
    _reported: ClassVar[tuple[str, ...]] = _REPORTED

    def __init__(
        self,
        agent: SACAgent,
        replay: ReplayBuffer,
        optimizer: torch.optim.Optimizer,
        settings: SACSettings | None = None,
        *,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        needed = ("encode", "own_action", "draw_action", "action_values", "model")
        check_agent(agent, needed, "QPgAgent (see SACAgent)", modules=["model", "model.critic"])
        if hasattr(replay, "burn_in"):
            raise ValueError(
                f"replay: got a {type(replay).__name__}, which draws sequences, expected a buffer"
                " of transitions, as ReplayBuffer"
            )
        settings = settings or SACSettings()
        super().__init__(
            agent,
            replay,
            optimizer,
            settings,
            followed=agent.model.critic,
            prefetcher=prefetcher,
        )
        _check_optimizer(optimizer, agent.model)
        device = next(agent.model.parameters()).device
        first = value_at("temperature", settings.temperature, 0.0)
        self._log_temperature = nn.Parameter(torch.tensor(first, device=device).log())
        self._heating = Descent(torch.optim.Adam([self._log_temperature]), math.inf)
        self._set_numbers(0.0)

    def _learn_from(self, minibatch: ArrayDict, batch: ArrayDict) -> list[Tensor]:
        temperature = self._log_temperature.detach().exp()
        target = self._targets(minibatch, temperature)
        with in_mode(self._model, training=True):
            critic_loss, error, value, features = self._critic_loss(minibatch, target)
            norm = self._descend(critic_loss, batch)
            policy_loss, log_prob, n_actions = self._policy_loss(features, minibatch, temperature)
            norm = norm + self._descend(policy_loss, batch)
        if self._settings.learns_temperature:
            self._heat(log_prob, n_actions)
        self._draws.give_back(minibatch, error)
        losses = critic_loss.detach(), policy_loss.detach()
        others = temperature, -log_prob.mean(), value.mean(), error.mean(), norm
        return [*losses, *others]

    @torch.no_grad()
    def _targets(self, minibatch: ArrayDict, temperature: Tensor) -> Tensor:
        """Return y of each transition, float32 [N]."""
        agent = self._agent
        with in_mode(self._model, training=False):
            features = agent.encode(minibatch["next_observation"])
            action, log_prob = agent.draw_action(features)
        values = agent.action_values(features, action, critic=self._target.model)
        next_value = values.amin(dim=0) - temperature * log_prob
        discount = minibatch["n_step_discount"]
        # Whatever the value is where nothing follows: 0 * inf would be NaN.
        following = torch.where(discount == 0, 0, discount * next_value)
        target: Tensor = minibatch["n_step_return"] + following
        return target

    def _critic_loss(
        self, minibatch: ArrayDict, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the loss; each transition's mean absolute error and value; and the features."""
        features = self._agent.encode(minibatch["observation"])
        action = self._agent.own_action(minibatch["action"])
        values = self._agent.action_values(features, action)
        if values.ndim != 2 or values.shape[1:] != target.shape:
            raise ValueError(
                f"action_values: got {tuple(values.shape)}, expected (n, {len(target)}), a row for"
                " each critic"
            )
        errors = values - target
        loss = self._draws.weigh(0.5 * errors**2, minibatch).sum(dim=0).mean()
        error, value = errors.detach().abs().mean(dim=0), values.detach().mean(dim=0)
        return loss, error, value, features.detach()

    def _policy_loss(
        self, features: Tensor, minibatch: ArrayDict, temperature: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Return the loss, the log-probability of each new action, and how many numbers it has."""
        action, log_prob = self._agent.draw_action(features)
        with _frozen(self._model.critic):
            value = self._agent.action_values(features, action).amin(dim=0)
        losses = temperature * log_prob - value
        loss = self._draws.weigh(losses, minibatch).mean()
        return loss, log_prob.detach(), action[0].numel()

    def _heat(self, log_prob: Tensor, n_actions: int) -> None:
        """Make the step of the temperature: up where there is less entropy than is wanted."""
        target = self._settings.target_entropy
        missing = log_prob + (-n_actions if target is None else target)
        self._heating.backward(-(self._log_temperature.exp() * missing).mean())
        self._heating.step()

    def _set_numbers(self, progress: float) -> None:
        super()._set_numbers(progress)
        rate = self._settings.temperature_rate
        self._heating.set_rate(value_at("temperature_rate", rate, progress, least=0))
        if not self._settings.learns_temperature:
            temperature = value_at("temperature", self._settings.temperature, progress, least=0)
            # Of 0, the logarithm is -inf, and its exponential is 0 again.
            self._log_temperature.detach().fill_(temperature).log_()

    def state_dict(self) -> dict[str, Any]:  # Any: as for Learner
        """Return all that the next updates depend on, beside the agent and the replay buffer."""
        return {
            **super().state_dict(),
            "log_temperature": self._log_temperature.detach(),
            "temperature_optimizer": self._heating.state_dict(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self._log_temperature.copy_(state["log_temperature"])
        self._heating.load_state_dict(state["temperature_optimizer"])
        super()._load(state)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients by a network's parameters inside the `with` block."""
    learning = [each for each in network.parameters() if each.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that would leave a part of the model as it is."""
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise ValueError(
                f"optimizer: it has no parameter {name} of the agent's model, which would not be"
                " learned; make it with agent.model.parameters(), or set requires_grad_(False)"
            )

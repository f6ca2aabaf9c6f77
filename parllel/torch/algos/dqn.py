"""DQN: action values learned from transitions or sequences of a replay buffer (R2D2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from parllel.ranks import n_ranks
from parllel.replays import Prefetcher
from parllel.replays.base_replay import BaseReplay
from parllel.samplers import RecurrentActor
from parllel.schedules import Schedule
from parllel.torch.agents.modes import in_mode
from parllel.torch.algos.learner import check_agent
from parllel.torch.algos.left_out import clear_rows
from parllel.torch.algos.over_ranks import mean_over_ranks
from parllel.torch.algos.replay_learner import ReplayLearner, check_replay_settings
from parllel.torch.algos.sequence_returns import n_step_returns, squash, unsquash
from parllel.torch.algos.settings import check_counts, check_flag, check_number
from parllel.tree import ArrayDict, dict_map


class DQNAgent(Protocol):
    """An agent that DQN can train, as `QAgent`; one without that base is as good.

    If it has a method `set_progress` too, DQN calls it when its own is called.

    >>> class Own:
    ...     def __init__(self, model):
    ...         self.model = model
    ...     def action_values(self, observation, *, model=None):
    ...         return (model or self.model)(observation)
    ...     def action_index(self, action):
    ...         return action.long()
    >>> agent: DQNAgent = Own(nn.Linear(3, 2))
    >>> agent.action_values(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    @property
    def model(self) -> Callable[..., Any]:  # Any: whatever `action_values` makes values of
        """The model that is trained, a `torch.nn.Module`: DQN keeps a copy as target network."""

    # Any: each agent names what it takes, a tensor or a tree of tensors.
    def action_values(self, observation: Any, *, model: Callable[..., Any] | None = None) -> Tensor:
        """Return the values of all actions, float32 [N, n], with gradients.

        Args:
            observation: rows [N, ...] of observations, a tensor or a tree of tensors.
            model: the model to ask, a copy of the agent's own; that one by default.

        Returns:
            The values; -inf for actions that are not allowed.
        """

    def action_index(self, action: Any) -> Tensor:
        """Return the columns of `action_values` for actions [N] of the tree, int64 [N]."""


@dataclass(frozen=True)
class DQNSettings:
    """The numbers of DQN.

    Of transitions, the number of steps of a return and the discount are the replay buffer's
    (`n_steps`, `discount`); a dueling network is a matter of the model.

    Args:
        batch_size: number of transitions, or of sequences, of an update.
        n_updates: number of updates for each batch of the sampler.
        double: whether the agent's own network chooses the next action, whose value the target
            network gives; otherwise the target network does both.
        loss: "squared" takes half of the square of each error. "huber" does the same for errors
            from -1 to 1, and takes the absolute value less 1/2 of larger ones.
        target_period: number of updates from one change of the target network to the next.
        target_share: share of the agent's network that the target network takes on at each
            change, in (0, 1]: target += share * (own - target). With 1 it is a copy; averaging
            has a small share and a period of 1.
        learning_rate: the optimizer's learning rate, of all its groups; a number or a schedule
            (`parllel.schedules`). None leaves it to the optimizer.
        beta: exponent of the importance weights of a PrioritizedReplayBuffer; a number or a
            schedule. None leaves it to the buffer.
        max_grad_norm: norm to which a larger gradient is cut down; math.inf for no bound.
        n_steps, discount: of returns within sequences, where the buffer draws these; None where it
            draws transitions.
        rescales_values: whether the network learns h(value), which grows as a square root
            (`sequence_returns.squash`), so that returns of any size need no clipping of rewards.

    Raises:
        TypeError: a setting is of another type than is written here (a number is an int or a
            float), or a schedule gives no number at 0 or 1.
        ValueError: a number is outside the range in which it means something; or there is one of
            n_steps and discount.

    Example:
        >>> DQNSettings(target_period=1, target_share=0.005).double
        True
    """

    batch_size: int = 32
    n_updates: int = 1
    double: bool = True
    loss: Literal["huber", "squared"] = "huber"
    target_period: int = 1000
    target_share: float = 1.0
    learning_rate: float | Schedule | None = None
    beta: float | Schedule | None = None
    max_grad_norm: float = 10.0
    n_steps: int | None = None
    discount: float | None = None
    rescales_values: bool = False

    def __post_init__(self) -> None:
        check_replay_settings(self)
        check_flag(self, "double")
        check_flag(self, "rescales_values")
        if (self.n_steps is None) != (self.discount is None):
            raise ValueError(
                f"n_steps: got {self.n_steps} with discount {self.discount}, expected both for"
                " sequences, and none for transitions"
            )
        if self.n_steps is not None:
            check_counts(self, "n_steps")
        check_number(self, "discount", least=0, most=1, is_optional=True)
        if self.loss not in ("huber", "squared"):
            raise ValueError(f"loss: got {self.loss!r}, expected 'huber' or 'squared'")


class _Learned(NamedTuple):
    """What an update learns, of transitions [N] or of sequences [K, N].

    Args:
        value: the values of the actions that were taken, with gradients.
        target: what these are to become.
        mask: bool, the steps to learn from; None for all.
    """

    value: Tensor
    target: Tensor
    mask: Tensor | None


class DQN(ReplayLearner[DQNAgent]):
    """Learn action values from transitions that are drawn from a replay buffer.

    error = Q(s, a) - (R + g * Q'(s', a*)),  a* = argmax_a Q(s', a) or, not double, of Q'(s', a)

    R and g are the n-step return and its discount, as the buffer gives them (g is 0 after a
    termination), s' the observation after n steps, and Q' the target network. Actions that the
    observation's mask does not allow are no a*. The loss is the mean of the errors' losses; from a
    `PrioritizedReplayBuffer`, each has its importance weight, and the errors become the new
    priorities.

    Of an agent that goes on from a state (`RecurrentQAgent`), it learns from the sequences of a
    `SequenceReplayBuffer` (R2D2). The model runs over each from the state that was stored when the
    agent acted. Over the first `burn_in` steps it does so without gradients, so that the state is
    one of the present parameters. Returns go `n_steps` of the settings ahead, within the sequence.
    The loss is the mean over all steps to learn from; by priority, the weight is that of the
    sequence, and its priority is made of its steps' errors.

    The target network is a copy of the agent's as it is when this object is made.

    `optimize` reports of an update `loss`; `value`, of the actions that were taken; and `td_error`,
    the absolute error.

    Args:
        agent: the agent that learns.
        replay: the buffer that the sampler writes to (`replay=`): a `ReplayBuffer`, or a
            `SequenceReplayBuffer` for an agent that goes on from a state; with or without priority.
        optimizer: updates the parameters of the agent's model.
        settings: the numbers of DQN; the defaults if left out.
        prefetcher: draws the minibatches of `replay` ahead, with the settings' `batch_size`.

    Raises:
        TypeError: the agent lacks a method, or its model is no `torch.nn.Module`.
        ValueError: there is a `beta` for a buffer without priorities, the prefetcher has another
            buffer, or the optimizer has no parameter of the model. Or an agent with a state is to
            learn from transitions, one without from sequences, or sequences without `n_steps` and
            `discount`.

    Source: Mnih et al. 2015, Nature 518; van Hasselt et al. 2016, arXiv:1509.06461, eq. 4 (double);
        Hessel et al. 2018, arXiv:1710.02298 (several steps); Schaul et al. 2016, arXiv:1511.05952,
        algorithm 1 (weights); Lillicrap et al. 2016, arXiv:1509.02971 (averaged target);
        Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement learning"
        (sequences); Pohlen et al. 2018, arXiv:1805.11593, section 3.2 (rescaled values).

    Example:
        >>> import numpy as np
        >>> from parllel import Array
        >>> from parllel.replays import ReplayBuffer
        >>> from parllel.torch.agents import QAgent
        >>> samples = ArrayDict(
        ...     {
        ...         "observation": Array((4, 1), np.float32, feature_shape=(3,), padding=1),
        ...         "action": Array((4, 1), np.int64),
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
        >>> model = nn.Linear(3, 2)
        >>> agent = QAgent(model, torch.zeros(1, 3), epsilon=0.1)
        >>> dqn = DQN(agent, replay, torch.optim.Adam(model.parameters()), DQNSettings(n_updates=4))
        >>> sorted(dqn.optimize(samples))
        ['learning_rate', 'loss', 'n_updates', 'td_error', 'value']
    """

    _settings: DQNSettings
    _reported: ClassVar[tuple[str, ...]] = ("loss", "value", "td_error")

    def __init__(
        self,
        agent: DQNAgent,
        replay: BaseReplay[Any],
        optimizer: torch.optim.Optimizer,
        settings: DQNSettings | None = None,
        *,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        needed = ("action_values", "action_index", "model")
        check_agent(agent, needed, "QAgent (see DQNAgent)", modules=["model"])
        settings = settings or DQNSettings()
        self._burn_in = _check_kind(agent, replay, settings)
        model: Any = agent.model  # a module, which was checked
        super().__init__(agent, replay, optimizer, settings, followed=model, prefetcher=prefetcher)
        self._set_numbers(0.0)

    def _learn_from(self, minibatch: ArrayDict, batch: ArrayDict) -> list[Tensor]:
        if self._burn_in is None:
            learned = self._of_transitions(minibatch)
        else:
            learned = self._of_sequences(minibatch, self._burn_in)
        n_learned = None
        if learned.mask is not None and n_ranks() > 1:
            n_learned = mean_over_ranks(learned.mask.sum().float())
        loss, error = self._loss(learned, minibatch, n_learned)
        norm = self._descend(loss, batch)
        self._draws.give_back(minibatch, error, learned.mask)
        value = learned.value.detach()
        means = [_mean(each, learned.mask, n_learned) for each in (value, error.abs())]
        return [loss.detach(), *means, norm]

    def _loss(
        self, learned: _Learned, minibatch: ArrayDict, n_learned: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and the error of each step without gradients; 0 of masked ones."""
        error = learned.value - learned.target
        if learned.mask is not None:
            # No NaN of another row goes back through it.
            error = torch.where(learned.mask, error, 0)
        if self._settings.loss == "huber":
            zeros = torch.zeros_like(error)
            losses = nn.functional.huber_loss(error, zeros, reduction="none")
        else:
            losses = 0.5 * error**2
        losses = self._draws.weigh(losses, minibatch)
        return _mean(losses, learned.mask, n_learned), error.detach()

    def _of_transitions(self, minibatch: ArrayDict) -> _Learned:
        """Return values, and the targets R + g * Q'(s', a*), of transitions [N]."""
        index = self._agent.action_index(minibatch["action"])
        with in_mode(self._model, training=True):
            values = self._agent.action_values(minibatch["observation"])
        following = minibatch["next_observation"]
        with torch.no_grad():
            next_values = self._agent.action_values(following, model=self._target.model)
            chooser = next_values
            if self._settings.double:
                with in_mode(self._model, training=False):
                    chooser = self._agent.action_values(following)
            next_value = self._best(next_values, chooser)
            discount = minibatch["n_step_discount"]
            # Whatever the value is where nothing follows: 0 * inf would be NaN.
            rest = torch.where(discount == 0, 0, discount * next_value)
            target = self._as_learned(minibatch["n_step_return"] + rest)
        return _Learned(_value_of(values, index), target, None)

    def _of_sequences(self, minibatch: ArrayDict, burn_in: int) -> _Learned:
        """Return values and targets of the K steps behind the burn-in of sequences, [K, N]."""
        agent: Any = self._agent  # Any: one with a state, which was checked
        observation, recurrence = minibatch["observation"], agent.recurrence(minibatch)
        names = ("action", "reward", "terminated", "mask")
        action, reward, terminated, mask = (
            dict_map(_rows_from, minibatch[name], burn_in) for name in names
        )
        with in_mode(self._model, training=True):
            rest = agent.burn_in(observation, recurrence, burn_in)
            learned_rows = dict_map(_rows_from, observation, burn_in)
            is_left_out = ~_is_used(mask, terminated, rest.is_first)
            if rest.previous is not None:
                rest = rest._replace(previous=clear_rows(rest.previous, is_left_out))
            values = agent.action_values(clear_rows(learned_rows, is_left_out), recurrence=rest)
        numbers = self._settings
        assert numbers.n_steps is not None  # which was checked
        assert numbers.discount is not None
        with torch.no_grad():
            next_values = agent.action_values(
                observation, model=self._target.model, recurrence=recurrence
            )[burn_in:]
            next_value = self._best(next_values, values if numbers.double else next_values)
            returns = n_step_returns(
                reward,
                terminated,
                mask,
                next_value,
                n_steps=numbers.n_steps,
                discount=numbers.discount,
            )
        index = torch.where(mask, agent.action_index(action), 0)  # others hold no action
        return _Learned(_value_of(values[:-1], index), self._as_learned(returns), mask)

    def _best(self, values: Tensor, chooser: Tensor) -> Tensor:
        """Return the value, as a return, of the action that is best for another network."""
        value = _value_of(values, chooser.argmax(-1))
        return unsquash(value) if self._settings.rescales_values else value

    def _as_learned(self, returns: Tensor) -> Tensor:
        return squash(returns) if self._settings.rescales_values else returns


def _check_kind(agent: object, replay: object, settings: DQNSettings) -> int | None:
    """Return the steps of burn-in of sequences; None where the buffer draws transitions."""
    burn_in: int | None = getattr(replay, "burn_in", None)
    has_state = isinstance(agent, RecurrentActor)
    if has_state and burn_in is None:
        raise ValueError(
            f"replay: got a {type(replay).__name__}, which draws transitions, expected a"
            f" SequenceReplayBuffer: {type(agent).__name__} goes on from a state"
        )
    if not has_state and burn_in is not None:
        raise ValueError(
            f"agent: {type(agent).__name__} goes on from no state, expected one that does, as"
            " torch.agents.RecurrentQAgent, for a buffer of sequences"
        )
    if (settings.n_steps is None) != (burn_in is None):
        found = "none for sequences" if burn_in is not None else f"{settings.n_steps}"
        raise ValueError(
            f"n_steps: got {found}, expected n_steps and discount in DQNSettings where sequences"
            " are drawn, and in the buffer where transitions are"
        )
    return burn_in


def _value_of(values: Tensor, index: Tensor) -> Tensor:
    """Return the values of one action in each row, float32 also of bfloat16."""
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1).float()


def _mean(numbers: Tensor, mask: Tensor | None, n_learned: Tensor | None) -> Tensor:
    """Return the mean of the steps that are learned from.

    Of several ranks, the sum is divided by the mean of their numbers of steps, as for
    `mean_of_valid`. It is NaN where there is none, because a buffer on a device has found no
    sequence to draw: a runner refuses such a number. No gradient comes of it.
    """
    if mask is None:
        return numbers.mean()
    return torch.where(mask, numbers, 0).sum() / (mask.sum() if n_learned is None else n_learned)


def _is_used(mask: Tensor, terminated: Tensor, is_first: Tensor) -> Tensor:
    """Return whether anything learned depends on a row, bool [K + 1, N].

    What is learned is the value of each step to learn from, and of the observation after it unless
    it terminated its episode. A value depends on all rows before it in its episode.

    >>> mask = torch.tensor([[True], [False], [True]])  # both of these steps end their episode
    >>> is_first = torch.tensor([[False], [True], [True], [False]])
    >>> _is_used(mask, mask, is_first).flatten()
    tensor([ True, False,  True, False])
    """
    nothing = torch.zeros_like(mask[:1])
    is_read = torch.cat([mask, nothing]) | torch.cat([nothing, mask & ~terminated])
    episode = is_first.cumsum(0)
    # That of the nearest row from there on which is read.
    read = torch.where(is_read, episode, len(episode) + 1).flip(0).cummin(0).values.flip(0)
    return read == episode


def _rows_from(leaf: Tensor, begin: int) -> Tensor:
    return leaf[begin:]

"""Actor, Agent and their recurrent kinds: the protocols of what samplers ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from parllel.cages import as_tree
from parllel.tree import Rows, leaves_of, path_text

_Rows: TypeAlias = Any
"""Rows of the tree, `parllel.tree.Rows`. Any, since each agent names those that it takes."""


def check_step(agent: object, result: object) -> None:
    """Raise TypeError if what an agent's `step` returned is no pair of actions and a mapping."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return
    found = type(result).__name__
    if isinstance(result, tuple):
        found = f"({', '.join(type(part).__name__ for part in result)})"
    raise TypeError(
        f"agent: {type(agent).__name__}.step returned {found}, expected (actions, mapping): a row"
        " for each environment, and what else learning needs, or {} for nothing"
    )


def check_rows(name: str, given: object, rows: Rows) -> None:
    """Raise ValueError if what an agent gave has other shapes than the rows that it goes to.

    Of one row, or of one number, a write would make as many as there are environments.

    >>> import numpy as np
    >>> from parllel.arrays import Array
    >>> check_rows("value", np.zeros(1, np.float32), Array((3,), np.float32))
    Traceback (most recent call last):
    ValueError: value: got shape (1,) of the agent's value, expected (3,): a row for each ...

    Args:
        name: the name of the branch, for errors.
        given: rows of any library, or a tree of these. A branch that it lacks is not missed here.
        rows: Array, or a tree of Arrays.
    """
    found = dict(leaves_of(as_tree(given)))
    for path, leaf in leaves_of(rows):
        if path in found and (shape := _shape_of(found[path])) != leaf.shape:
            text = path_text((name, *path))
            raise ValueError(
                f"{text}: got shape {shape} of the agent's {name}, expected {leaf.shape}: a row for"
                " each environment that it was asked for"
            )


def _shape_of(leaf: Any) -> tuple[int, ...]:  # Any: of any library, or a list or a number
    return tuple(leaf.shape) if hasattr(leaf, "shape") else np.shape(leaf)


def has_receive_reward(agent: object) -> bool:
    """Tell whether an agent wants to be given the rewards of each step."""
    return callable(getattr(agent, "receive_reward", None))


class Part(NamedTuple):
    """The environments whose rows an agent is given, where groups of environments take turns.

    Args:
        columns: their columns of the sample tree.
        n_envs: number of all environments.

    Example:
        >>> epsilon = [0.1, 0.2, 0.3, 0.4]
        >>> part = Part(range(2, 4), n_envs=4)
        >>> epsilon[part.columns.start : part.columns.stop]
        [0.3, 0.4]
    """

    columns: range
    n_envs: int


class Actor(Protocol):
    """The object that a sampler asks for actions. What learns by values is an `Agent`.

    It may have a method `acting` too, which returns a context manager: a sampler enters it
    once for each batch, and an actor can do there what it would do in each call otherwise. Serial
    cages step their environments inside of it. If it has a method `bind_actions`, that is
    called with the space of a single environment's actions when a sampler is made. If it has an
    attribute `takes_part` that is true, `step` is given `part=`, a `Part`, by a sampler whose
    groups of environments take turns; it needs this where environments differ for it.

    If it has an attribute `observes` that is true, it learns of observations as such, as their
    mean and deviation, and a `BasicSampler` tells it of each batch. Before the first step it calls
    `begin_batch()`, and behind the last `observe(observation, valid=, final_obs=)`: the tree's rows
    [T, B, ...]; which of them are transitions, bool [T, B] on the host, or None for all (of several
    agents who come and go, which of them act, in their form); and the final observations of
    episodes, rows [k, ...], or None. An `EvalSampler` calls neither.

    Example:
        >>> import numpy as np
        >>> class Zeros:  # always takes action 0
        ...     def step(self, observation, *, deterministic=False):
        ...         return np.zeros(len(observation), np.int64), {}
        >>> actor: Actor = Zeros()
    """

    def step(
        self, observation: _Rows, *, deterministic: bool = False
    ) -> tuple[object, Mapping[str, object]]:
        """Choose an action for each environment.

        Args:
            observation: rows [B, ...] of the sample tree, one for each environment.
            deterministic: take the most probable action instead of drawing one.

        Returns:
            The actions, rows [B, ...] of any library, and a mapping of other rows that are kept
            for learning: the branch `agent_info` of the sample tree. It is empty where nothing
            is kept.
        """


class Agent(Actor, Protocol):
    """An actor that also estimates values.

    Example:
        >>> import numpy as np
        >>> class Zeros:  # always takes action 0, and expects nothing
        ...     def step(self, observation, *, deterministic=False):
        ...         n_envs = len(observation)
        ...         return np.zeros(n_envs, np.int64), {"value": np.zeros(n_envs, np.float32)}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> agent: Agent = Zeros()
    """

    def value(self, observation: _Rows) -> object:
        """Return a value estimate for each row, float32 [n].

        Args:
            observation: rows [n, ...] of the sample tree, or final observations of episodes:
                Arrays, and trees of Arrays where the tree's observation is one.
        """


@runtime_checkable
class RecurrentActor(Actor, Protocol):
    """An actor that keeps a state for each environment, which its steps carry on.

    Samplers know one by its methods `begin` and `reset_state` (`isinstance` asks for these): it
    needs no state before `begin` was called. If it has a method `receive_reward` too, that is given
    the rewards of each step, rows [B] of the sample tree, when they are there: before the actor is
    asked for values, puts a state back, or makes the next step.

    Example:
        >>> import numpy as np
        >>> class Alternating:  # action 0 in the first step of an episode, then 1, then 0
        ...     def begin(self, n_envs):
        ...         self.rnn_state = np.zeros(n_envs, np.int64)
        ...     def reset_state(self, columns):
        ...         self.rnn_state[columns] = 0
        ...     def step(self, observation, *, deterministic=False):
        ...         action = self.rnn_state.copy()
        ...         self.rnn_state = 1 - action
        ...         return action, {}
        >>> isinstance(Alternating(), RecurrentActor)
        True
    """

    if TYPE_CHECKING:  # `isinstance` must not ask for it: it is there after `begin` only
        rnn_state: Any  # Any: rows of whatever library the agent uses
        """The state before the next step: rows [B, ...], or a tree or tuple of such, the first
        dimension of which counts environments (torch's own [layers, B, ...] is transposed). It may
        be set. Before the first `begin` it is None or missing.
        """

    def begin(self, n_envs: int) -> None:
        """Make a new state for n environments at the beginning of an episode."""

    def reset_state(self, columns: Sequence[int]) -> None:
        """Put the state of these environments back to the beginning of an episode."""

    def step(
        self, observation: _Rows, *, deterministic: bool = False
    ) -> tuple[object, Mapping[str, object]]:
        """Return actions and a mapping, as `Actor.step`, and carry the state on."""


@runtime_checkable
class RecurrentAgent(RecurrentActor, Protocol):
    """A recurrent actor that also estimates values.

    Example:
        >>> import numpy as np
        >>> class Counting:  # its state and value is the number of steps in the episode
        ...     def begin(self, n_envs):
        ...         self.rnn_state = np.zeros(n_envs, np.float32)
        ...     def reset_state(self, columns):
        ...         self.rnn_state[columns] = 0
        ...     def step(self, observation, *, deterministic=False):
        ...         value = self.value(observation)
        ...         self.rnn_state += 1
        ...         return np.zeros(len(observation), np.int64), {"value": value}
        ...     def value(self, observation, *, columns=None):
        ...         return self.rnn_state.copy() if columns is None else self.rnn_state[columns]
        >>> agent: RecurrentAgent = Counting()
    """

    def value(self, observation: _Rows, *, columns: Sequence[int] | None = None) -> object:
        """Return a value estimate for each row, given the state, which stays what it is.

        Args:
            observation: rows [n, ...], as for `Agent.value`.
            columns: the environment of each row; all environments in their order by default.
        """

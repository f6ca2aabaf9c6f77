"""Agent and RecurrentAgent: the protocols of what samplers ask for actions and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from parllel.tree import Rows


class Agent(Protocol):
    """The object that a sampler asks for actions and values.

    An agent may have a method `acting` too, which returns a context manager: a sampler enters it
    once for each batch, and an agent can do there what it would do in each call otherwise. Serial
    cages step their environments inside of it. If it has a method `bind_actions`, that is called
    with the space of a single environment's actions when a sampler is made.

    Example:
        >>> import numpy as np
        >>> class Zeros:  # an agent that always takes action 0, and expects nothing
        ...     def step(self, observation, *, deterministic=False):
        ...         n_envs = len(observation)
        ...         return np.zeros(n_envs, np.int64), {"value": np.zeros(n_envs, np.float32)}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> agent: Agent = Zeros()
    """

    def step(
        self, observation: Rows, *, deterministic: bool = False
    ) -> tuple[object, Mapping[str, object]]:
        """Choose an action for each environment.

        Args:
            observation: rows [B, ...] of the sample tree, one for each environment.
            deterministic: take the most probable action instead of drawing one.

        Returns:
            The actions, rows [B, ...] of any library, and a mapping of other rows that are kept
            for learning: the branch `agent_info` of the sample tree.
        """

    def value(self, observation: Rows) -> object:
        """Return a value estimate for each row, float32 [n].

        Args:
            observation: rows [n, ...] of the sample tree, or final observations of episodes: NumPy
                arrays, or Arrays in device memory where a GPU works on the tree.
        """


class RecurrentAgent(Protocol):
    """An agent that keeps a state for each environment, which its steps carry on.

    Example:
        >>> import numpy as np
        >>> class Counting:  # its state and value is the number of steps in the episode
        ...     rnn_state = None
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

    rnn_state: Any  # Any: rows of whatever library the agent uses
    """The state before the next step: rows [B, ...], or a tree or tuple of such. It may be set.

    Before the first `begin` it is None: the attribute is there from the start, as it tells such
    agents from others.
    """

    def begin(self, n_envs: int) -> None:
        """Make a new state for n environments at the beginning of an episode."""

    def reset_state(self, columns: Sequence[int]) -> None:
        """Put the state of these environments back to the beginning of an episode."""

    def step(
        self, observation: Rows, *, deterministic: bool = False
    ) -> tuple[object, Mapping[str, object]]:
        """Return actions and a mapping, as `Agent.step`, and carry the state on."""

    def value(self, observation: Rows, *, columns: Sequence[int] | None = None) -> object:
        """Return a value estimate for each row, given the state, which stays what it is.

        Args:
            observation: rows [n, ...], as for `Agent.value`.
            columns: the environment of each row; all environments in their order by default.
        """

"""RecurrentSampler: collects batches for agents that keep a state for each environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from parllel.cages import Cage, as_tree
from parllel.samplers.basic_sampler import BasicSampler
from parllel.samplers.group import Group
from parllel.tree import ArrayDict


class RecurrentAgent(Protocol):
    """An agent with a state for each environment, which its steps carry on."""

    rnn_state: Any
    """State before the next step, an array [B, ...], or a tree or tuple of such. It may be set."""

    def begin(self, n_envs: int) -> None:
        """Make a new state for n environments at the beginning of an episode."""

    def reset_state(self, columns: Sequence[int]) -> None:
        """Put the state of these environments back to the beginning of an episode."""

    def step(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        """Return actions and a mapping, as `Agent.step`; carry the state on."""

    def value(self, observation: Any, *, columns: Sequence[int] | None = None) -> Any:
        """Return a value estimate for each row, given the state of these environments; of all.

        The state stays what it is.
        """


class RecurrentSampler(BasicSampler):
    """Collect what `BasicSampler` collects, with an agent that keeps a state.

    Episodes go on from batch to batch and begin anew within a batch, and every row is kept. Where
    an episode ends at step t, the agent's state of that environment is put back before step
    t + 1; who unrolls the batch has to do the same, beginning with the first row's state:

    - `initial_rnn_state[b]`: the agent's state before step 0.
    - `bootstrap_value[b]`, where the tree has it: value of the observation after the batch, given
      the state after it (that of a new episode where the last step ended one).
    - `valid[t, b]`, where the tree has it: whether the row is a transition to learn from.
    - `final_value` and the row after `agent_info.value` as `BasicSampler` has them; a final
      observation is valued with the state that saw its episode.

    Args:
        cages, samples, max_steps_decorrelate: as for `BasicSampler`; the tree has a branch
            `initial_rnn_state` of leading dimension B.
        agent: a `RecurrentAgent`.

    Raises:
        ValueError: as for `BasicSampler`; or there is no `initial_rnn_state`.
    """

    agent: Any  # a RecurrentAgent

    def __init__(
        self,
        cages: Sequence[Cage],
        agent: RecurrentAgent,
        samples: ArrayDict,
        *,
        max_steps_decorrelate: int = 0,
    ) -> None:
        super().__init__(cages, agent, samples, max_steps_decorrelate=max_steps_decorrelate)
        if "initial_rnn_state" not in samples:
            raise ValueError(
                "samples: there is no initial_rnn_state; patterns.build_sample_tree makes it for an"
                " agent with rnn_state"
            )
        self._has_bootstrap_value = "bootstrap_value" in samples

    def reset(self) -> None:
        """Reset all environments, and the agent's state of them."""
        super().reset()
        self.agent.begin(self.batch_B)

    def _collect_steps(self) -> None:
        self.samples["initial_rnn_state"][...] = as_tree(self.agent.rnn_state)
        super()._collect_steps()

    def _finish(self, group: Group, t: int) -> None:
        super()._finish(group, t)
        rows = group.host_rows(t)
        is_done = rows["terminated"].to_ndarray() | rows["truncated"].to_ndarray()
        if is_done.any():
            self.agent.reset_state((np.flatnonzero(is_done) + group.columns.start).tolist())

    def _value(self, observation: Any, columns: Sequence[int] | None = None) -> Any:
        return self.agent.value(observation, columns=columns)

    def _complete_batch(self) -> None:
        super()._complete_batch()
        if self._has_bootstrap_value:
            last = self.samples["observation"][self.batch_T]
            self.samples["bootstrap_value"][...] = self._value(last)

"""AgentColumns: minibatches of several agents as columns of numbers, whichever form they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parllel.torch.algos.left_out import finite_rows, mean_of_valid
from parllel.tree import ArrayDict, TreePath, path_text
from parllel.tree.agent_forms import N_BATCH, has_agents, part_for, parts_of

_QUANTITIES = ("advantage", "return_", "old_log_prob", "old_value")


@dataclass(frozen=True)
class AgentColumns:
    """The agents of a batch: what is a dictionary becomes columns [n, N], as an agent axis is.

    Args:
        has_agents: whether there are several; else there is nothing to do.
        names: the agents' names in the order of columns; empty for an agent axis.
        valid_of_each: whether agents are alive in rows of their own; else only rows are gathered
            that are valid for all.
        groups: the columns of the agents that share a model, for each model.

    >>> batch = {name: torch.zeros(4, 2, 3) for name in ("advantage", "return_", "old_log_prob")}
    >>> columns = AgentColumns.of(ArrayDict(batch), [[0, 2], [1]])
    >>> columns.sum_of_means(torch.tensor([[1.0, 5.0, 3.0]]), None)  # 2 of one model, and 5
    tensor(7.)
    """

    has_agents: bool = False
    names: tuple[TreePath, ...] = ()
    valid_of_each: bool = False
    groups: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, batch: ArrayDict, shared_by: Sequence[Sequence[str | int]] | None) -> AgentColumns:
        """Return the agents of a batch.

        Args:
            batch: the branches that PPO reads.
            shared_by: for each model the agents that have it, by names or by places in the axis;
                None where all share one.

        Raises:
            ValueError: a quantity has other agents than `advantage`, or `shared_by` does not have
                each agent once.
        """
        advantage = batch["advantage"]
        if not has_agents(advantage):
            return cls()
        names = tuple(parts_of(advantage)) if isinstance(advantage, ArrayDict) else ()
        width = len(names) or advantage.shape[N_BATCH]
        for name in _QUANTITIES:
            for path in names or ((),):
                if name in batch:
                    part_for(name, batch[name], path)
        each: list[Any] = [path[0] if len(path) == 1 else path_text(path) for path in names]
        each = each or list(range(width))
        groups = [each] if shared_by is None else [list(group) for group in shared_by]
        found = [agent for group in groups for agent in group]
        if len(found) != len(each) or set(found) != set(each):
            raise ValueError(
                f"batch: its advantages are those of agents {each}, expected {found}, for which"
                " the agent was made"
            )
        columns = tuple(tuple(sorted(map(each.index, group))) for group in groups)
        valid = "valid" in batch and has_agents(batch["valid"])
        return cls(True, names, valid, columns)

    @property
    def n_models(self) -> int:
        """Number of models; 1 for one agent."""
        return max(1, len(self.groups))

    def stacked(self, name: str, quantity: Any) -> Tensor:  # Any: a tensor, or a tree of them
        """Return a quantity [n, N] of a dictionary of [n]; one of an axis is that already.

        Raises:
            ValueError: the dictionary has other agents, or is none.
        """
        if not self.names:
            return quantity  # type: ignore[no-any-return]  # a tensor
        if not isinstance(quantity, ArrayDict):
            if isinstance(quantity, Tensor):
                raise ValueError(
                    f"{name}: got a tensor {tuple(quantity.shape)}, expected one for each of"
                    f" {[path_text(path) for path in self.names]}, as the batch has"
                )
            quantity = ArrayDict(quantity)
        return torch.stack([part_for(name, quantity, path) for path in self.names], dim=-1)

    def of_minibatch(self, minibatch: ArrayDict) -> ArrayDict:
        """Return a minibatch with quantities [n, N], and nothing that is not finite of the dead."""
        if not self.has_agents:
            return minibatch
        changed: dict[str, Any] = {
            name: self.stacked(name, minibatch[name]) for name in _QUANTITIES if name in minibatch
        }
        branches = {name: minibatch[name] for name in minibatch if name != "valid"}
        if self.valid_of_each:
            valid = minibatch["valid"]
            for name in ("observation", "action"):
                changed[name] = self._finite(name, minibatch[name], valid)
            changed["valid"] = self.stacked("valid", valid)
        return ArrayDict({**branches, **changed})

    def _finite(self, name: str, rows: Any, valid: Any) -> Any:  # Any: trees of tensors
        """Return rows of all agents without NaN where an agent is not alive."""
        if not self.names:
            return finite_rows(rows, ~valid)
        own = {}
        for agent, branch in rows.items():
            is_agent = agent in valid and isinstance(valid[agent], Tensor)
            own[agent] = finite_rows(branch, ~valid[agent]) if is_agent else branch
        return ArrayDict(own)

    def sum_of_means(
        self, numbers: Tensor, valid: Tensor | None, n_valid: Tensor | None = None
    ) -> Tensor:
        """Return the means over the rows of each model's agents, added over models.

        Args:
            numbers: float32 [n], or [n, N] of several agents.
            valid: bool, of the same shape: the numbers that count; None for all.
            n_valid: [n_models], as `mean_of_valid` takes it for each model.
        """
        if len(self.groups) <= 1:
            return mean_of_valid(numbers, valid, None if n_valid is None else n_valid[0])
        means = [
            mean_of_valid(
                _take(numbers, group),
                None if valid is None else _take(valid, group),
                None if n_valid is None else n_valid[number],
            )
            for number, group in enumerate(self.groups)
        ]
        return torch.stack(means).sum()

    def count(self, numbers: Tensor, valid: Tensor | None) -> Tensor:
        """Return how many numbers of each model count, float32 [n_models].

        >>> AgentColumns(True, groups=((0, 2), (1,))).count(torch.zeros(4, 3), None)
        tensor([8., 4.])

        Args:
            numbers, valid: as for `sum_of_means`.
        """
        counted = torch.ones_like(numbers) if valid is None else valid.to(torch.float32)
        if len(self.groups) <= 1:
            return counted.sum()[None]
        return torch.stack([_take(counted, group).sum() for group in self.groups])


def _take(numbers: Tensor, columns: Sequence[int]) -> Tensor:
    # No index by a list, which torch would copy to a device.
    return torch.stack([numbers[:, column] for column in columns], dim=-1)

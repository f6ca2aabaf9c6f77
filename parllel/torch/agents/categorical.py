"""CategoricalPgAgent: a policy-gradient agent that chooses among discrete actions."""

from __future__ import annotations

from parllel.torch.agents.pg_agent import Evaluation, ModelOutputs, PgAgent
from parllel.torch.distributions import DistParams

__all__ = ["CategoricalPgAgent", "DistParams", "Evaluation", "ModelOutputs"]


class CategoricalPgAgent(PgAgent):
    """Choose among discrete actions: the name of `PgAgent` with a `Categorical`.

    Example:
        >>> import torch
        >>> from parllel.torch.distributions import Categorical
        >>> def model(observation):
        ...     return ModelOutputs(DistParams(logits=observation), observation.sum(dim=-1))
        >>> agent = CategoricalPgAgent(model, Categorical(dim=2), torch.zeros(1, 2))
        >>> action, agent_info = agent.step(torch.tensor([[0.0, 9.0]]), deterministic=True)
        >>> action, agent_info["value"]
        (tensor([1]), tensor([9.]))
    """

"""Agents: a model with what turns its outputs into actions."""

from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.categorical import CategoricalPgAgent
from parllel.torch.agents.pg_agent import Evaluation, ModelOutputs, PgAgent
from parllel.torch.agents.q_agent import QAgent

__all__ = [
    "Agent",
    "CategoricalPgAgent",
    "Evaluation",
    "ModelOutputs",
    "PgAgent",
    "QAgent",
    "in_inference_mode",
]

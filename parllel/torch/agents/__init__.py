"""Agents: a model with what turns its outputs into actions."""

from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.categorical import CategoricalPgAgent
from parllel.torch.agents.independent_pg_agents import IndependentPgAgents
from parllel.torch.agents.pg_agent import Evaluation, ModelOutputs, PgAgent
from parllel.torch.agents.previous_inputs import PreviousInputs
from parllel.torch.agents.q_agent import QAgent
from parllel.torch.agents.qpg_agent import QPgAgent
from parllel.torch.agents.recurrent import Recurrence
from parllel.torch.agents.recurrent_pg_agent import RecurrentPgAgent
from parllel.torch.agents.recurrent_q_agent import RecurrentQAgent

__all__ = [
    "Agent",
    "CategoricalPgAgent",
    "Evaluation",
    "IndependentPgAgents",
    "ModelOutputs",
    "PgAgent",
    "PreviousInputs",
    "QAgent",
    "QPgAgent",
    "Recurrence",
    "RecurrentPgAgent",
    "RecurrentQAgent",
    "in_inference_mode",
]

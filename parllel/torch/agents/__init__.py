"""Agents: a model with the distribution of its actions."""

from parllel.torch.agents.agent import Agent, in_inference_mode
from parllel.torch.agents.categorical import CategoricalPgAgent, Evaluation, ModelOutputs

__all__ = ["Agent", "CategoricalPgAgent", "Evaluation", "ModelOutputs", "in_inference_mode"]

"""Samplers: collect samples from cages with an agent."""

from parllel.samplers.alternating import AlternatingSampler
from parllel.samplers.basic import BasicSampler
from parllel.samplers.evaluation import EvalSampler
from parllel.samplers.recurrent import RecurrentAgent, RecurrentSampler
from parllel.samplers.sampler import Agent, Recorder, Sampler

__all__ = [
    "Agent",
    "AlternatingSampler",
    "BasicSampler",
    "EvalSampler",
    "Recorder",
    "RecurrentAgent",
    "RecurrentSampler",
    "Sampler",
]

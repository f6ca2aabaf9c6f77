"""Samplers: collect samples from cages with an agent."""

from parllel.samplers.alternating_sampler import AlternatingSampler
from parllel.samplers.basic_sampler import BasicSampler
from parllel.samplers.eval_sampler import EvalSampler
from parllel.samplers.recurrent_sampler import RecurrentAgent, RecurrentSampler
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

"""Samplers: collect samples from cages with an agent."""

from parllel.samplers.agent import Actor, Agent, Part, RecurrentActor, RecurrentAgent
from parllel.samplers.alternating_sampler import AlternatingSampler
from parllel.samplers.basic_sampler import BasicSampler
from parllel.samplers.eval_sampler import EvalSampler
from parllel.samplers.recorder import Recorder
from parllel.samplers.recurrent_sampler import RecurrentSampler
from parllel.samplers.sampler import Sampler

__all__ = [
    "Actor",
    "Agent",
    "AlternatingSampler",
    "BasicSampler",
    "EvalSampler",
    "Part",
    "Recorder",
    "RecurrentActor",
    "RecurrentAgent",
    "RecurrentSampler",
    "Sampler",
]

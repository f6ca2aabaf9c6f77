"""Replays: how stored samples are drawn for learning."""

from parllel.replays.minibatches import Minibatches
from parllel.replays.prioritized import PrioritizedReplayBuffer
from parllel.replays.ring import ReplayBuffer

__all__ = ["Minibatches", "PrioritizedReplayBuffer", "ReplayBuffer"]

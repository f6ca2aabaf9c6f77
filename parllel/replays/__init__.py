"""Replays: how stored samples are drawn for learning."""

from parllel.replays.minibatches import Minibatches
from parllel.replays.prefetch import Prefetcher
from parllel.replays.prioritized import PrioritizedReplayBuffer
from parllel.replays.ring import ReplayBuffer

__all__ = ["Minibatches", "Prefetcher", "PrioritizedReplayBuffer", "ReplayBuffer"]

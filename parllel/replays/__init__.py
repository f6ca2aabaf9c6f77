"""Replays: how stored samples are drawn for learning."""

from parllel.replays.batch_parts import BatchParts
from parllel.replays.episodes import Episode, episodes_of
from parllel.replays.hindsight_replay_buffer import HindsightReplayBuffer
from parllel.replays.minibatches import Minibatches
from parllel.replays.prefetcher import Prefetcher
from parllel.replays.prioritized_replay_buffer import PrioritizedReplayBuffer
from parllel.replays.prioritized_sequence_replay_buffer import PrioritizedSequenceReplayBuffer
from parllel.replays.random_shift import RandomShift
from parllel.replays.replay_buffer import ReplayBuffer
from parllel.replays.sequence_replay_buffer import SequenceReplayBuffer

__all__ = [
    "BatchParts",
    "Episode",
    "HindsightReplayBuffer",
    "Minibatches",
    "Prefetcher",
    "PrioritizedReplayBuffer",
    "PrioritizedSequenceReplayBuffer",
    "RandomShift",
    "ReplayBuffer",
    "SequenceReplayBuffer",
    "episodes_of",
]

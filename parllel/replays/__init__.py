"""Replays: how stored samples are drawn for learning."""

from parllel.replays.minibatches import Minibatches

__all__ = ["Minibatches"]

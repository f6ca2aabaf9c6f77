"""Algorithms: how an agent learns from a batch."""

from parllel.torch.algos.ppo import PPO, PPOAgent, PPOSettings

__all__ = ["PPO", "PPOAgent", "PPOSettings"]

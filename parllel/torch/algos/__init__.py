"""Algorithms: how an agent learns from a batch, or from a replay buffer."""

from parllel.torch.algos.dqn import DQN, DQNAgent, DQNSettings
from parllel.torch.algos.ppo import PPO, PPOAgent, PPOSettings

__all__ = ["DQN", "PPO", "DQNAgent", "DQNSettings", "PPOAgent", "PPOSettings"]

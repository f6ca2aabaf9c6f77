"""Algorithms: how an agent learns from a batch, or from a replay buffer."""

from parllel.torch.algos.dqn import DQN, DQNAgent, DQNSettings
from parllel.torch.algos.ppo import PPO, PPOAgent, PPOSettings
from parllel.torch.algos.sac import SAC, SACAgent, SACSettings

__all__ = [
    "DQN",
    "PPO",
    "SAC",
    "DQNAgent",
    "DQNSettings",
    "PPOAgent",
    "PPOSettings",
    "SACAgent",
    "SACSettings",
]

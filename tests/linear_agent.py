"""An agent with a linear policy and value, and a batch of its own actions, for tests of PPO."""

import numpy as np
import torch
from torch import Tensor, nn

from parllel import Array, ArrayDict
from parllel.torch.agents import CategoricalPgAgent, ModelOutputs
from parllel.torch.distributions import Categorical, DistParams

T, B = 12, 5


class Model(nn.Module):
    """A linear policy and value, which remember where their input lies."""

    def __init__(self, n_inputs: int = 3, n_actions: int = 4) -> None:
        super().__init__()
        self.pi, self.critic = nn.Linear(n_inputs, n_actions), nn.Linear(n_inputs, 1)
        self.seen: list[int] = []

    def forward(self, observation: Tensor) -> ModelOutputs:
        self.seen.append(observation.data_ptr())
        dist_params = DistParams(logits=self.pi(observation))
        return ModelOutputs(dist_params=dist_params, value=self.critic(observation).squeeze(-1))


def make_agent(seed: int = 0, **model: int) -> CategoricalPgAgent:
    torch.manual_seed(seed)
    net = Model(**model)
    example = np.zeros((1, net.pi.in_features), np.float32)
    generator = torch.Generator().manual_seed(seed)
    return CategoricalPgAgent(net, Categorical(net.pi.out_features), example, generator)


def ppo_batch(agent: CategoricalPgAgent, *, off_policy: float = 0.0, seed: int = 0) -> ArrayDict:
    """Return a batch of the agent's own actions, with log-probabilities that are off by noise."""
    rng = np.random.default_rng(seed)
    batch = ArrayDict(
        {
            "observation": Array((T, B), np.float32, feature_shape=(3,), padding=1),
            "action": Array((T, B), np.int32),
            "advantage": Array((T, B), np.float32),
            "return_": Array((T, B), np.float32),
            "agent_info": {"log_prob": Array((T, B), np.float32)},
            "env_info": {},
        }
    )
    batch["observation"][...] = rng.standard_normal((T, B, 3))
    batch["advantage"][...] = rng.standard_normal((T, B))
    batch["return_"][...] = 2 * rng.standard_normal((T, B))
    for t in range(T):
        action, agent_info = agent.step(batch["observation"][t])
        batch["action"][t] = action
        noise = off_policy * rng.standard_normal(B)
        batch["agent_info"]["log_prob"][t] = agent_info["log_prob"].numpy() + noise
    return batch


def parameters(agent: CategoricalPgAgent) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.model.parameters()])

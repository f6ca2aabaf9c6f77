"""Models: networks that take rows of observations as agents give them, also frames of bytes.

    encoder = NatureCnn(frame_shape=(4, 84, 84))
    model = ActorCritic(encoder, n_logits=6)  # for PgAgent
    model = QNetwork(encoder, n_actions=6, dueling=True)  # for QAgent
    core, head = Lstm(512, 256), QNetwork(nn.Identity(), 6, n_features=256)
    model = RecurrentNetwork(encoder, core, head)  # for RecurrentQAgent
    model = GaussianActorCritic(Mlp(17), n_actions=6)  # for PgAgent, continuous actions
    model = SoftActorCritic(17, n_actions=6)  # for QPgAgent

An encoder is any `nn.Module` that turns rows into features [B, n_features]. `torch.compile(model)`
compiles a model as a whole; agents save and load it as the plain one.
"""

from parllel.torch.models.action_critics import ActionCritics
from parllel.torch.models.actor_critic import ActorCritic
from parllel.torch.models.frame_conv import FrameConv
from parllel.torch.models.gaussian_actor_critic import GaussianActorCritic
from parllel.torch.models.gaussian_head import GaussianHead
from parllel.torch.models.gru import Gru
from parllel.torch.models.impala_cnn import ImpalaCnn
from parllel.torch.models.lstm import Lstm
from parllel.torch.models.mlp import Mlp
from parllel.torch.models.nature_cnn import NatureCnn
from parllel.torch.models.normalize_observations import NormalizeObservations
from parllel.torch.models.q_network import DuelingHead, QNetwork
from parllel.torch.models.recurrent_network import RecurrentNetwork
from parllel.torch.models.soft_actor_critic import SoftActorCritic
from parllel.torch.models.twin_mlp import TwinMlp

__all__ = [
    "ActionCritics",
    "ActorCritic",
    "DuelingHead",
    "FrameConv",
    "GaussianActorCritic",
    "GaussianHead",
    "Gru",
    "ImpalaCnn",
    "Lstm",
    "Mlp",
    "NatureCnn",
    "NormalizeObservations",
    "QNetwork",
    "RecurrentNetwork",
    "SoftActorCritic",
    "TwinMlp",
]

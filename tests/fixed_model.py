"""A policy and a value function whose numbers are at hand without compiling anything."""

import numpy as np

from inchworm import spaces
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic, PolicyNetwork
from inchworm.models.heads import make_head
from inchworm.models.mlp import MLP
from inchworm.models.network import Network, VectorEncoder
from inchworm.models.settings import ModelSettings


def fixed_model(spec: spaces.EnvSpec, log_std: float = 0.0, settings: ModelSettings | None = None) -> ActorCritic:
    """A small model of fixed random weights; orthogonal ones take seconds to compile.

    Its distributions are Gaussians of this log-std, or what `settings` make them.
    """
    rng = np.random.default_rng(0)
    inputs = sum(map(observations.num_features, spaces.leaves(spec.observation_space)))

    def network(outputs):
        weights = [rng.normal(size=size).astype(np.float32) for size in ((inputs, 8), (8, outputs))]
        layers = MLP(tuple(weights), (np.zeros(8, np.float32), np.zeros(outputs, np.float32)), "tanh")
        return Network(VectorEncoder(spec.observation_space), None, layers)

    head = observations.to_numpy(make_head(spec.action_space, settings or ModelSettings(log_std=log_std)))
    return ActorCritic(
        PolicyNetwork(network(head.num_outputs), head), network(1), spec.observation_space, spec.action_space
    )

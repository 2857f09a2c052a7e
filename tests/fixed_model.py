"""A policy and a value function whose numbers are at hand without compiling anything."""

import numpy as np

from inchworm import spaces
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic, CategoricalHead, GaussianHead, Policy
from inchworm.models.networks import MLP


def fixed_model(spec: spaces.EnvSpec, log_std: float) -> ActorCritic:
    """A small model of fixed random weights; orthogonal ones take seconds to compile."""
    rng = np.random.default_rng(0)
    inputs = observations.num_features(spec.observation_space)

    def mlp(outputs):
        weights = [rng.normal(size=size).astype(np.float32) for size in ((inputs, 8), (8, outputs))]
        return MLP(tuple(weights), (np.zeros(8, np.float32), np.zeros(outputs, np.float32)), "tanh")

    match spec.action_space:
        case spaces.Discrete(n):
            head = CategoricalHead(n)
        case spaces.Box(size=size):
            head = GaussianHead(np.full(size, log_std, np.float32))
    return ActorCritic(Policy(mlp(head.num_outputs), head), mlp(1), spec.observation_space, spec.action_space)

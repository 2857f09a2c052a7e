"""The policy and the value function, as two separate trees of parameters."""

from dataclasses import dataclass, field
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Float

from inchworm import spaces
from inchworm.errors import UnsupportedSpaceError
from inchworm.models.networks import MLP, orthogonal_mlp
from inchworm.models.observations import (
    Normalizers,
    check_observation_space,
    encode,
    num_features,
)
from inchworm.rl.distributions import Categorical, DiagonalGaussian, Distribution
from inchworm.types import AnyArray, ArrayTree, PRNGKey


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CategoricalHead:
    """Network outputs are the logits of one choice out of n."""

    n: int = field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        return self.n

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: ArrayTree | None) -> Categorical:
        return Categorical(outputs) if mask is None else Categorical.masked(outputs, mask)

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[AnyArray, "*batch n"]:
        """Noise for a block of actions of the given leading shape."""
        return Categorical.draw_noise(key, (*shape, self.n))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianHead:
    """Network outputs are the means; the standard deviation is one learned vector, the same in every state."""

    log_std: AnyArray
    """(A,)"""

    @property
    def num_outputs(self) -> int:
        return self.log_std.shape[0]

    def __call__(self, outputs: Float[AnyArray, "*batch A"], mask: ArrayTree | None) -> DiagonalGaussian:
        return DiagonalGaussian(outputs, self.log_std)

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[AnyArray, "*batch A"]:
        """Noise for a block of actions of the given leading shape."""
        return DiagonalGaussian.draw_noise(key, (*shape, self.num_outputs))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Policy:
    """pi(. | s): a network and the head that makes a distribution of its outputs."""

    network: MLP
    head: CategoricalHead | GaussianHead

    def __call__(self, features: Float[AnyArray, "*batch F"], mask: ArrayTree | None = None) -> Distribution:
        return self.head(self.network(features), mask)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ActorCritic:
    """A policy and a value function that share no parameters."""

    policy: Policy
    value: MLP
    observation_space: spaces.Space = field(metadata={"static": True})
    action_space: spaces.Space = field(metadata={"static": True})

    @classmethod
    def init(
        cls,
        key: PRNGKey,
        spec: spaces.EnvSpec,
        hidden_sizes: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
    ) -> Self:
        """A fresh model; its policy is nearly the same in every state.

        The last policy layer is orthogonal with gain 0.01 (the authors' code has the factor, not the paper), the
        value's with gain 1, log-std starts at 0.

        Raises:
            UnsupportedSpaceError: no policy handles one of the spaces.
        """
        check_observation_space(spec.observation_space)
        head = _make_head(spec.action_space)
        policy_key, value_key = jax.random.split(key)
        inputs = num_features(spec.observation_space)
        return cls(
            Policy(orthogonal_mlp(policy_key, inputs, hidden_sizes, head.num_outputs, activation, 0.01), head),
            orthogonal_mlp(value_key, inputs, hidden_sizes, 1, activation, 1.0),
            spec.observation_space,
            spec.action_space,
        )

    def act(self, normalizers: Normalizers, obs: ArrayTree, mask: ArrayTree | None = None) -> Distribution:
        """pi(. | obs) for a batch of raw observations."""
        return self.policy(encode(self.observation_space, normalizers, obs), mask)

    def evaluate(
        self, normalizers: Normalizers, obs: ArrayTree, mask: ArrayTree | None = None
    ) -> tuple[Distribution, Float[AnyArray, "*batch"]]:
        """pi(. | obs) and V(obs) for a batch of raw observations."""
        features = encode(self.observation_space, normalizers, obs)
        return self.policy(features, mask), self.value(features)[..., 0]

    def values(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch"]:
        """V(obs) for a batch of raw observations."""
        return self.value(encode(self.observation_space, normalizers, obs))[..., 0]


def _make_head(space: spaces.Space) -> CategoricalHead | GaussianHead:
    match space:
        case spaces.Discrete(n):
            return CategoricalHead(n)
        case spaces.Box(dtype=dtype, size=size) if jnp.issubdtype(dtype, jnp.floating) and size > 0:
            return GaussianHead(jnp.zeros(size, jnp.float32))
        case _:
            raise UnsupportedSpaceError(
                "action_space",
                repr(space),
                "has no policy",
                "Actions may be Discrete or a Box of floats; turn others into these with a gymnasium.ActionWrapper.",
            )

"""The policy and the value function, as separate trees of parameters or on a trunk that they share."""

from dataclasses import field, replace
from typing import NamedTuple, Self

import jax
from jaxtyping import Bool, Float

from inchworm import spaces
from inchworm.models.heads import BetaHead, Head, Mask, ProductHead, follow_schedule, make_head
from inchworm.models.mlp import MLP, orthogonal_mlp
from inchworm.models.network import CustomNetwork, Network, VectorEncoder, make_network
from inchworm.models.observations import Normalizers
from inchworm.models.settings import ModelSettings
from inchworm.numerics.tree import pytree
from inchworm.rl.distributions import Distribution
from inchworm.types import AnyArray, ArrayTree, PRNGKey

First = Bool[AnyArray, "*batch"] | None
"""Where episodes start; only models with memory read it."""


class Unrolled(NamedTuple):
    """What a model says about T steps of N environments."""

    distribution: Distribution
    value: Float[AnyArray, "*batch"]
    carries: ArrayTree
    """Recurrent states after each step, (T, N, ...), before any reset; None without memory."""


@pytree
class PolicyNetwork:
    """pi(. | s) by a network of its own."""

    network: Network
    head: Head

    def unroll(
        self, normalizers: Normalizers, obs: ArrayTree, first: First, mask: Mask, carry: ArrayTree
    ) -> tuple[Distribution, ArrayTree]:
        """The distributions of T steps of N environments, and the carries after each, as in `Network.unroll`."""
        outputs, carries = self.network.unroll(normalizers, obs, first, carry)
        return self.head(outputs, mask), carries


@pytree
class ActorCritic:
    """A policy and a value function that share no parameters."""

    policy: PolicyNetwork
    value: Network
    observation_space: spaces.Space = field(metadata={"static": True})
    action_space: spaces.Space = field(metadata={"static": True})

    @property
    def head(self) -> Head:
        """What makes distributions of the policy's outputs."""
        return self.policy.head

    @property
    def reader(self) -> Network:
        """The network that reads observations for the policy."""
        return self.policy.network

    @property
    def recurrent(self) -> bool:
        """True if the model has memory."""
        return self.policy.network.core is not None

    def initial_carry(self, num_envs: int) -> ArrayTree:
        """The recurrent state at an episode's start, (N, ...); None without memory."""
        if not self.recurrent:
            return None
        return self.policy.network.initial_carry(num_envs), self.value.initial_carry(num_envs)

    def act(
        self, normalizers: Normalizers, obs: ArrayTree, first: First = None, mask: Mask = None, carry: ArrayTree = None
    ) -> tuple[Distribution, ArrayTree]:
        """pi(. | obs) for one step of N environments, and the carry after it.

        With memory, the carry is set back where `first` is true before the step.
        """
        if not self.recurrent:
            return self.head(self.outputs(normalizers, obs), mask), None
        outputs, policy_carry = self.policy.network.step(normalizers, obs, first, carry[0])
        # The value function remembers too, and must have seen what the policy saw.
        _, value_carry = self.value.step(normalizers, obs, first, carry[1])
        return self.head(outputs, mask), (policy_carry, value_carry)

    def outputs(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch outputs"]:
        """What the head reads, of a model without memory, for any batch."""
        return self.policy.network.unroll(normalizers, obs, None, None)[0]

    def unroll(
        self, normalizers: Normalizers, obs: ArrayTree, first: First = None, mask: Mask = None, carry: ArrayTree = None
    ) -> Unrolled:
        """pi(. | obs) and V(obs) for T steps of N environments; without memory the leading axes are any batch."""
        policy_carry, value_carry = carry if self.recurrent else (None, None)
        distribution, policy_carries = self.policy.unroll(normalizers, obs, first, mask, policy_carry)
        value, value_carries = self.value.unroll(normalizers, obs, first, value_carry)
        return Unrolled(distribution, value[..., 0], (policy_carries, value_carries) if self.recurrent else None)

    def look_ahead(
        self, normalizers: Normalizers, next_obs: ArrayTree, carries: ArrayTree
    ) -> Float[AnyArray, "*batch"]:
        """V(next_obs), from the carries after each step that `unroll` gives."""
        return self.value.look_ahead(normalizers, next_obs, carries[1] if self.recurrent else None)[..., 0]

    def with_log_std(self, log_std: Float[AnyArray, ""]) -> Self:
        """The model with every log-std that follows a schedule set to this."""
        return replace(self, policy=replace(self.policy, head=follow_schedule(self.policy.head, log_std)))


@pytree
class SharedActorCritic:
    """A policy and a value function that share all but their last layers."""

    trunk: Network
    policy: MLP
    value: MLP
    head: Head
    observation_space: spaces.Space = field(metadata={"static": True})
    action_space: spaces.Space = field(metadata={"static": True})

    @property
    def reader(self) -> Network:
        """The network that reads observations for the policy."""
        return self.trunk

    @property
    def recurrent(self) -> bool:
        """True if the model has memory."""
        return self.trunk.core is not None

    def initial_carry(self, num_envs: int) -> ArrayTree:
        """As in `ActorCritic`."""
        return self.trunk.initial_carry(num_envs)

    def act(
        self, normalizers: Normalizers, obs: ArrayTree, first: First = None, mask: Mask = None, carry: ArrayTree = None
    ) -> tuple[Distribution, ArrayTree]:
        """As in `ActorCritic`."""
        features, carry = self.trunk.step(normalizers, obs, first, carry)
        return self.head(self.policy(features), mask), carry

    def outputs(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch outputs"]:
        """As in `ActorCritic`."""
        return self.policy(self.trunk.unroll(normalizers, obs, None, None)[0])

    def unroll(
        self, normalizers: Normalizers, obs: ArrayTree, first: First = None, mask: Mask = None, carry: ArrayTree = None
    ) -> Unrolled:
        """As in `ActorCritic`."""
        features, carries = self.trunk.unroll(normalizers, obs, first, carry)
        return Unrolled(self.head(self.policy(features), mask), self.value(features)[..., 0], carries)

    def look_ahead(
        self, normalizers: Normalizers, next_obs: ArrayTree, carries: ArrayTree
    ) -> Float[AnyArray, "*batch"]:
        """As in `ActorCritic`."""
        return self.value(self.trunk.look_ahead(normalizers, next_obs, carries))[..., 0]

    def with_log_std(self, log_std: Float[AnyArray, ""]) -> Self:
        """As in `ActorCritic`."""
        return replace(self, head=follow_schedule(self.head, log_std))


Model = ActorCritic | SharedActorCritic


def runs_on_numpy(model: Model) -> bool:
    """True if the policy's code runs on NumPy arrays too: no images, memory, user's network, Beta or bfloat16."""
    reader = model.reader
    heads = model.head.parts if isinstance(model.head, ProductHead) else (model.head,)
    plain = isinstance(reader.encoder, VectorEncoder) and reader.core is None and reader.compute_dtype == "float32"
    return plain and not any(isinstance(head, BetaHead) for head in heads)


def make_model(
    key: PRNGKey, spec: spaces.EnvSpec, settings: ModelSettings, custom_network: CustomNetwork | None = None
) -> Model:
    """A fresh model; its policy is nearly the same in every state.

    The last policy layer is orthogonal with gain 0.01 (the authors' code has the factor, not the paper), the value's
    with gain 1; a learned log-std starts at 0.

    Raises:
        UnsupportedSpaceError: no policy handles one of the spaces.
        ConfigError: the user's own network does not return features.
    """
    head = make_head(spec.action_space, settings)
    policy_key, value_key = jax.random.split(key)
    parts = (spec.observation_space, settings, custom_network)
    if not settings.shared_trunk:
        network, _ = make_network(policy_key, *parts, head.num_outputs, 0.01)
        value, _ = make_network(value_key, *parts, 1, 1.0)
        return ActorCritic(PolicyNetwork(network, head), value, spec.observation_space, spec.action_space)
    trunk_key, policy_key = jax.random.split(policy_key)
    trunk, width = make_network(trunk_key, *parts, None, 1.0)
    policy = orthogonal_mlp(policy_key, width, (), head.num_outputs, settings.activation, 0.01)
    value = orthogonal_mlp(value_key, width, (), 1, settings.activation, 1.0)
    return SharedActorCritic(trunk, policy, value, head, spec.observation_space, spec.action_space)

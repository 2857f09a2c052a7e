"""Independent distributions of the leaves of a Dict or Tuple space."""

from dataclasses import field
from functools import reduce
from operator import add
from typing import Any

import jax
from jaxtyping import Float

from inchworm import spaces
from inchworm.numerics.tree import pytree
from inchworm.rl.distributions.bernoulli import Bernoulli
from inchworm.rl.distributions.beta import Beta
from inchworm.rl.distributions.categorical import Categorical
from inchworm.rl.distributions.diagonal_gaussian import DiagonalGaussian
from inchworm.rl.distributions.multi_categorical import MultiCategorical
from inchworm.rl.distributions.rounding import FLOAT32
from inchworm.rl.distributions.tanh_gaussian import TanhGaussian
from inchworm.types import AnyArray, ArrayTree, PRNGKey

LeafDistribution = Categorical | MultiCategorical | Bernoulli | DiagonalGaussian | TanhGaussian | Beta


@pytree
class Product:
    """p(a) = prod_k p_k(a_k), where a_k is the k-th leaf of an action a of the space.

    Actions are trees like the space. Noise is a tuple, with what its own `draw_noise` gives for each part.
    """

    parts: tuple[LeafDistribution, ...]
    """One for each leaf, in the order of `spaces.leaves(space)`."""
    space: spaces.Space = field(metadata={"static": True})

    def sample_from(self, noise: tuple[AnyArray, ...]) -> ArrayTree:
        """Each part's sample from its own noise."""
        samples = [part.sample_from(own) for part, own in zip(self.parts, noise, strict=True)]
        return spaces.unflatten(self.space, samples)

    def sample(self, key: PRNGKey) -> ArrayTree:
        """A sample for each distribution of the batch; the k-th part has the k-th key that `key` is split into."""
        keys = jax.random.split(key, len(self.parts))
        return spaces.unflatten(self.space, [part.sample(own) for part, own in zip(self.parts, keys, strict=True)])

    def log_prob(self, action: ArrayTree) -> Float[AnyArray, "*batch"]:
        """log p(action), summed over the parts."""
        leaves = spaces.flatten(self.space, action)
        return reduce(add, [part.log_prob(leaf) for part, leaf in zip(self.parts, leaves, strict=True)])

    def entropy(self) -> Float[AnyArray, "*batch"]:
        """H, summed over the parts, in nats."""
        return reduce(add, [part.entropy() for part in self.parts])

    def mode(self) -> ArrayTree:
        """Each part's mode."""
        return spaces.unflatten(self.space, [part.mode() for part in self.parts])

    def kl(self, other: "Product") -> Float[AnyArray, "*batch"]:
        """KL(self‖other), summed over the parts, in nats."""
        parts: tuple[Any, ...] = other.parts  # each of the same kind as this one's
        return reduce(add, [part.kl(others) for part, others in zip(self.parts, parts, strict=True)])

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> float | Float[AnyArray, ""]:
        """As far as its parts' together."""
        return sum(part.log_prob_tolerance(rounding) for part in self.parts)

"""Independent bits."""

from typing import Self

import jax
from jaxtyping import Bool, Float, Int

from inchworm.numerics.tree import pytree
from inchworm.rl.distributions.categorical import MASKED_LOGIT, Categorical, kl_terms
from inchworm.rl.distributions.rounding import FLOAT32
from inchworm.types import AnyArray, PRNGKey


@pytree
class Bernoulli:
    """p(a_i = 1) = 1 / (1 + exp(-logits_i)), independent over i; an action is n integers, each 0 or 1."""

    logits: Float[AnyArray, "*batch n"]

    @classmethod
    def masked(cls, logits: Float[AnyArray, "*batch n"], mask: Bool[AnyArray, "*batch pairs"]) -> Self:
        """The distribution over the allowed values only.

        Each bit has a pair of neighbours in the mask (*batch, 2 n): may it be 0, may it be 1.
        """
        xp = logits.__array_namespace__()
        zero_allowed, one_allowed = mask[..., 0::2], mask[..., 1::2]
        return cls(xp.where(one_allowed, xp.where(zero_allowed, logits, -MASKED_LOGIT), MASKED_LOGIT))

    @staticmethod
    def draw_noise(key: PRNGKey, shape: tuple[int, ...]) -> Float[AnyArray, "*batch n"]:
        """Standard logistic noise of shape (*batch, n)."""
        return jax.random.logistic(key, shape)

    def sample_from(self, noise: Float[AnyArray, "*batch n"]) -> Int[AnyArray, "*batch n"]:
        """1 where logits + noise > 0, since the noise is above -x with probability 1 / (1 + exp(-x))."""
        return (self.logits + noise > 0).astype(self.logits.__array_namespace__().int32)

    def sample(self, key: PRNGKey) -> Int[AnyArray, "*batch n"]:
        """A sample for each distribution of the batch."""
        return self.sample_from(self.draw_noise(key, self.logits.shape))

    def log_prob(self, action: Int[AnyArray, "*batch n"]) -> Float[AnyArray, "*batch"]:
        """log p(action), summed over the bits: -softplus(-x) of a one and -softplus(x) of a zero."""
        xp = self.logits.__array_namespace__()
        return -xp.sum(xp.logaddexp(0.0, xp.where(action > 0, -self.logits, self.logits)), axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        """H = -sum_i sum_a p(a_i) log p(a_i), in nats."""
        xp = self.logits.__array_namespace__()
        log_p = self._log_probs()
        return -xp.sum(xp.exp(log_p) * log_p, axis=(-2, -1))

    def mode(self) -> Int[AnyArray, "*batch n"]:
        """The more likely value of each bit."""
        return (self.logits > 0).astype(self.logits.__array_namespace__().int32)

    def kl(self, other: "Bernoulli") -> Float[AnyArray, "*batch"]:
        """KL(self‖other) = sum_i sum_a p(a_i) (log p(a_i) - log q(a_i)), in nats."""
        xp = self.logits.__array_namespace__()
        return xp.sum(kl_terms(self._log_probs(), other._log_probs()), axis=(-2, -1))

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> Float[AnyArray, ""]:
        """How far two evaluations of `log_prob` may lie apart through the rounding of a network alone.

        A single choice's tolerance, times the number of bits.
        """
        return self.logits.shape[-1] * Categorical(self.logits).log_prob_tolerance(rounding)

    def _log_probs(self) -> Float[AnyArray, "*batch two n"]:
        """log p of a zero and of a one, for every bit."""
        xp = self.logits.__array_namespace__()
        return -xp.logaddexp(0.0, xp.stack([self.logits, -self.logits], axis=-2))

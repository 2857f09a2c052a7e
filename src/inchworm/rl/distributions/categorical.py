"""One choice out of n."""

from typing import Self

import jax
from jaxtyping import Bool, Float, Int

from inchworm.numerics.tree import pytree
from inchworm.rl.distributions.rounding import FLOAT32, output_error
from inchworm.types import AnyArray, PRNGKey

MASKED_LOGIT = -1e9
"""Logit of a forbidden action: finite, because the entropy of -inf and its gradient are NaN."""


@pytree
class Categorical:
    """p(a) = softmax(logits)_a for a = 0, ..., n - 1."""

    logits: Float[AnyArray, "*batch n"]

    @classmethod
    def masked(cls, logits: Float[AnyArray, "*batch n"], mask: Bool[AnyArray, "*batch n"]) -> Self:
        """The distribution over the allowed actions only, those whose mask is true."""
        return cls(logits.__array_namespace__().where(mask, logits, MASKED_LOGIT))

    @staticmethod
    def draw_noise(key: PRNGKey, shape: tuple[int, ...]) -> Float[AnyArray, "*batch n"]:
        """Standard Gumbel noise of shape (*batch, n)."""
        return jax.random.gumbel(key, shape)

    def sample_from(self, noise: Float[AnyArray, "*batch n"]) -> Int[AnyArray, "*batch"]:
        """The Gumbel-max trick: argmax(logits + noise) is a sample."""
        return self.logits.__array_namespace__().argmax(self.logits + noise, axis=-1)

    def sample(self, key: PRNGKey) -> Int[AnyArray, "*batch"]:
        """A sample for each distribution of the batch."""
        return self.sample_from(self.draw_noise(key, self.logits.shape))

    def log_probs(self) -> Float[AnyArray, "*batch n"]:
        """log p of every action: log-softmax, never the logarithm of a softmax."""
        xp = self.logits.__array_namespace__()
        shifted = self.logits - xp.max(self.logits, axis=-1, keepdims=True)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))

    def log_prob(self, action: Int[AnyArray, "*batch"]) -> Float[AnyArray, "*batch"]:
        """log p(action)."""
        xp = self.logits.__array_namespace__()
        return xp.take_along_axis(self.log_probs(), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[AnyArray, "*batch"]:
        """H = -sum_a p(a) log p(a), in nats."""
        xp = self.logits.__array_namespace__()
        log_p = self.log_probs()
        return -xp.sum(xp.exp(log_p) * log_p, axis=-1)

    def mode(self) -> Int[AnyArray, "*batch"]:
        """The most likely action."""
        return self.logits.__array_namespace__().argmax(self.logits, axis=-1)

    def kl(self, other: "Categorical") -> Float[AnyArray, "*batch"]:
        """KL(self‖other) = sum_a p(a) (log p(a) - log q(a)), in nats."""
        log_p, log_q = self.log_probs(), other.log_probs()
        return self.logits.__array_namespace__().sum(kl_terms(log_p, log_q), axis=-1)

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> Float[AnyArray, ""]:
        """How far two evaluations of `log_prob` may lie apart through the rounding of a network alone.

        With d = 2e-6 + rounding max |logit| the error of a logit of what is allowed, log p(a) moves by that of its own
        logit less the mean of all of them, 2 d at most. To this comes 1e-4.
        """
        xp = self.logits.__array_namespace__()
        size = xp.abs(self.logits)
        return 1e-4 + 2.0 * output_error(rounding, xp.max(xp.where(size < -0.5 * MASKED_LOGIT, size, 0.0)))


def kl_terms(log_p: Float[AnyArray, "*#batch n"], log_q: Float[AnyArray, "*#batch n"]) -> Float[AnyArray, "*batch n"]:
    """p(a) (log p(a) - log q(a)) + q(a) - p(a): summed over all outcomes a, KL(p‖q).

    The difference q - p sums to zero. With it every term is at least zero, and at p = q its derivatives by log p and
    by log q are zero exactly, not up to the rounding of sum_a p(a) = 1.
    """
    xp = log_p.__array_namespace__()
    p, q = xp.exp(log_p), xp.exp(log_q)
    return p * (log_p - log_q) + (q - p)

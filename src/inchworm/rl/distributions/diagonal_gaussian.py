"""Independent normal distributions over the elements of a vector."""

import math

import jax
from jaxtyping import Float

from inchworm.numerics.tree import pytree
from inchworm.rl.distributions.rounding import FLOAT32, output_error
from inchworm.types import AnyArray, PRNGKey

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@pytree
class DiagonalGaussian:
    """Normal(mean_i, exp(log_std_i)^2), independent over i; a `log_std` without batch axes is shared."""

    mean: Float[AnyArray, "*batch A"]
    log_std: Float[AnyArray, "*#batch A"]

    @staticmethod
    def draw_noise(key: PRNGKey, shape: tuple[int, ...]) -> Float[AnyArray, "*batch A"]:
        """Standard normal noise of shape (*batch, A)."""
        return jax.random.normal(key, shape)

    def sample_from(self, noise: Float[AnyArray, "*batch A"]) -> Float[AnyArray, "*batch A"]:
        """mean + std * noise."""
        return self.mean + self.log_std.__array_namespace__().exp(self.log_std) * noise

    def sample(self, key: PRNGKey) -> Float[AnyArray, "*batch A"]:
        """A sample for each distribution of the batch."""
        return self.sample_from(self.draw_noise(key, self.mean.shape))

    def log_prob(self, action: Float[AnyArray, "*batch A"]) -> Float[AnyArray, "*batch"]:
        """Logarithm of the density, summed over the action's elements."""
        xp = self.mean.__array_namespace__()
        standardized = (action - self.mean) * xp.exp(-self.log_std)
        return xp.sum(-0.5 * standardized**2 - self.log_std - LOG_SQRT_2PI, axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        """H = sum_i (log_std_i + 1/2 log(2 pi e)), in nats; negative for narrow distributions."""
        xp = self.mean.__array_namespace__()
        log_std = xp.broadcast_to(self.log_std, self.mean.shape)
        return xp.sum(log_std + (0.5 + LOG_SQRT_2PI), axis=-1)

    def mode(self) -> Float[AnyArray, "*batch A"]:
        """The mean."""
        return self.mean

    def kl(self, other: "DiagonalGaussian") -> Float[AnyArray, "*batch"]:
        """KL(self‖other), in nats.

        sum_i (log(sigma'_i / sigma_i) + (sigma_i^2 + (mu_i - mu'_i)^2) / (2 sigma'_i^2) - 1/2), primes for `other`.
        """
        xp = self.mean.__array_namespace__()
        log_scale = self.log_std - other.log_std
        shift = (self.mean - other.mean) * xp.exp(-other.log_std)
        # expm1 keeps the difference of near-equal variances exact where the KL is small.
        return xp.sum(0.5 * (xp.expm1(2.0 * log_scale) + shift**2) - log_scale, axis=-1)

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> Float[AnyArray, ""]:
        """How far two evaluations of `log_prob` may lie apart through the rounding of a network alone.

        With d_i = 2e-6 + rounding max |mean_i| the error of a mean and x_i = d_i / min std_i, over the batch, the
        logarithm moves by z . x + |x|^2 / 2, where z . x is normal with a deviation of |x|: five of them out that is
        5 |x| + |x|^2 / 2. To this comes 1e-4. A log-std that is an output too, and not one for all states, has an error
        of e = 2e-6 + rounding max |log_std|: x grows by a factor of exp(e), and where z_i is five the term
        z_i^2 / 2 + log_std_i moves by 24 e, to first order.
        """
        xp = self.mean.__array_namespace__()
        size = self.mean.shape[-1]
        largest = xp.max(xp.abs(self.mean).reshape((-1, size)), axis=0)
        narrowest = xp.min(self.log_std.reshape((-1, size)), axis=0)
        of_log_std = 0.0
        if self.log_std.ndim == self.mean.ndim:
            of_log_std = output_error(rounding, xp.max(xp.abs(self.log_std)))
        x = xp.linalg.norm(output_error(rounding, largest) * xp.exp(of_log_std - narrowest))
        return 1e-4 + 5.0 * x + 0.5 * x**2 + 24.0 * of_log_std

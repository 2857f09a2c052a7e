"""Independent normal distributions over the elements of a vector."""

import math

import jax
from jaxtyping import Float

from inchworm.numerics.tree import pytree
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

    def log_prob_tolerance(self) -> Float[AnyArray, ""]:
        """How far two float32 evaluations of `log_prob` may lie apart through rounding alone.

        An error of d = 2e-6 + 1e-6 max_i |mean_i| in the mean is x = d / min_i std_i deviations, which five deviations
        out moves the logarithm by 5 x + x^2 / 2; to this comes 1e-4.
        """
        xp = self.log_std.__array_namespace__()
        error = (2e-6 + 1e-6 * xp.max(xp.abs(self.mean))) * xp.exp(-xp.min(self.log_std))
        return 1e-4 + 5.0 * error + 0.5 * error**2

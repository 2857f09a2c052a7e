"""Independent beta distributions over the elements of a vector in (0, 1)."""

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma, gammaln
from jaxtyping import Array, Float, UInt32

from inchworm.numerics.tree import pytree
from inchworm.rl.distributions.rounding import FLOAT32, output_error
from inchworm.types import AnyArray, PRNGKey

EDGE = 1e-6
"""Distance that samples keep from 0 and 1, where a logarithm of the density may be infinite."""


@pytree
class Beta:
    """Density y_i^(alpha_i - 1) (1 - y_i)^(beta_i - 1) / B(alpha_i, beta_i) on (0, 1), independent over i.

    With both parameters at least 1, as `mode` needs them, no density is infinite. Computed by JAX whatever the
    arrays, because NumPy has none of the functions. In single precision `log_prob`, `entropy` and `kl` are off by
    about 1e-7 (alpha + beta) log(alpha + beta).
    """

    alpha: Float[AnyArray, "*batch A"]
    beta: Float[AnyArray, "*batch A"]

    @staticmethod
    def draw_noise(key: PRNGKey, shape: tuple[int, ...]) -> UInt32[AnyArray, "*batch words"]:
        """The data of one random key a row, for shape (*batch, A), of JAX's default kind of key: two words each."""
        return jax.random.key_data(jax.random.split(key, shape[:-1]))

    def sample_from(self, noise: UInt32[AnyArray, "*batch words"]) -> Float[Array, "*batch A"]:
        """What `jax.random.beta` draws with each row's key, no closer than 1e-6 to 0 and 1; without a gradient."""
        *batch, num_words = noise.shape
        size = self.alpha.shape[-1]
        keys = jax.random.wrap_key_data(jnp.asarray(noise).reshape((-1, num_words)))
        alpha, beta = (
            jax.lax.stop_gradient(jnp.broadcast_to(each, (*batch, size)).reshape((-1, size)))
            for each in (self.alpha, self.beta)
        )
        drawn = jax.vmap(jax.random.beta)(keys, alpha, beta)
        return jnp.clip(drawn, EDGE, 1.0 - EDGE).reshape((*batch, size))

    def sample(self, key: PRNGKey) -> Float[Array, "*batch A"]:
        """A sample for each distribution of the batch."""
        return self.sample_from(self.draw_noise(key, self.alpha.shape))

    def log_prob(self, action: Float[AnyArray, "*batch A"]) -> Float[Array, "*batch"]:
        """Logarithm of the density, summed over the action's elements."""
        log_density = (self.alpha - 1.0) * jnp.log(action) + (self.beta - 1.0) * jnp.log1p(-action)
        return jnp.sum(log_density - betaln(self.alpha, self.beta), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """H = sum_i (log B(a, b) - (a - 1) E[log y] - (b - 1) E[log(1 - y)]), in nats.

        E[log y] = digamma(a) - digamma(a + b), and with b for a E[log(1 - y)].
        """
        of_both = digamma(self.alpha + self.beta)
        log_y, log_rest = digamma(self.alpha) - of_both, digamma(self.beta) - of_both
        terms = betaln(self.alpha, self.beta) - (self.alpha - 1.0) * log_y - (self.beta - 1.0) * log_rest
        return jnp.sum(terms, axis=-1)

    def mode(self) -> Float[Array, "*batch A"]:
        """(alpha - 1) / (alpha + beta - 2), and the mean where both are 1; as far from 0 and 1 as samples are."""
        total = self.alpha + self.beta - 2.0
        peak = (self.alpha - 1.0) / jnp.where(total > 0, total, 1.0)
        return jnp.clip(jnp.where(total > 0, peak, self.alpha / (self.alpha + self.beta)), EDGE, 1.0 - EDGE)

    def kl(self, other: "Beta") -> Float[Array, "*batch"]:
        """KL(self‖other) = sum_i (D(a', a) + D(b', b) - D(a' + b', a + b)), in nats, primes for `other`.

        D(x', x) = log Gamma(x') - log Gamma(x) - digamma(x) (x' - x), so that each D is exactly zero at x' = x, and
        so are its derivatives.
        """
        apart = _divergence(other.alpha, self.alpha) + _divergence(other.beta, self.beta)
        return jnp.sum(apart - _divergence(other.alpha + other.beta, self.alpha + self.beta), axis=-1)

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> Float[Array, ""]:
        """How far two evaluations of `log_prob` may lie apart through the rounding of a network alone.

        With d = 2e-6 + rounding alpha the error of a parameter, which lies above the size of the output behind it, the
        logarithm moves by d (log y - E[log y]), whose deviation is below x = d sqrt(1/alpha + 1/alpha^2), because
        Var[log y] <= trigamma(alpha). Over all alpha_i and beta_i these make |x|, of the batch's largest, and five
        deviations out 5 |x| + |x|^2 / 2. To this comes the rounding of log Gamma itself, which grows with the
        parameters: 1e-4 + 4e-7 sum_i s_i log s_i for s = alpha + beta.
        """
        total = self.alpha + self.beta
        of_log_gamma = 1e-4 + 4e-7 * jnp.max(jnp.sum(total * jnp.log(total), axis=-1))

        def squares(shape: Float[AnyArray, "*batch A"]) -> Float[Array, "*batch"]:
            return jnp.sum(output_error(rounding, shape) ** 2 * (1.0 / shape + 1.0 / shape**2), axis=-1)

        x = jnp.sqrt(jnp.max(squares(self.alpha) + squares(self.beta)))
        return of_log_gamma + 5.0 * x + 0.5 * x**2


def _divergence(new: Float[AnyArray, "*shape"], old: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """log Gamma's distance above its tangent at `old`."""
    return gammaln(new) - gammaln(old) - digamma(old) * (new - old)

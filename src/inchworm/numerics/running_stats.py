"""Mean and variance of a stream of samples, kept so that parts can be merged."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from inchworm.numerics.tree import along_rows
from inchworm.types import AnyArray


class RunningStats(NamedTuple):
    """Count, mean and sum of squared deviations of all samples so far.

    Starts empty; an empty one has mean 0 and `std` 1, so that normalising by it changes nothing.
    """

    count: Float[AnyArray, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Float[AnyArray, "*shape"]
    squared_deviations: Float[AnyArray, "*shape"]

    @property
    def variance(self) -> Float[AnyArray, "*shape"]:
        """Population variance; 1 while empty."""
        xp = self.mean.__array_namespace__()
        return xp.where(self.count > 0, self.squared_deviations / xp.maximum(self.count, 1.0), 1.0)

    @property
    def std(self) -> Float[AnyArray, "*shape"]:
        """Population standard deviation; 1 while empty."""
        return self.mean.__array_namespace__().sqrt(self.variance)


def empty(shape: tuple[int, ...]) -> RunningStats:
    """Statistics of no samples."""
    return RunningStats(jnp.zeros((), jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def of_samples(samples: Float[AnyArray, "B *shape"], weight: Float[AnyArray, " B"]) -> RunningStats:
    """Statistics of a batch; samples of weight 0 count for nothing."""
    count = jnp.sum(weight)
    weight = along_rows(weight, samples)
    mean = jnp.sum(samples * weight, axis=0) / jnp.maximum(count, 1.0)
    return RunningStats(count, mean, jnp.sum(weight * (samples - mean) ** 2, axis=0))


def merge(a: RunningStats, b: RunningStats) -> RunningStats:
    """Statistics of the two streams together.

    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances": with n = n_a + n_b and d = mean_b - mean_a, mean = mean_a + d n_b / n and
    M2 = M2_a + M2_b + d^2 n_a n_b / n.
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    delta = b.mean - a.mean
    return RunningStats(
        count,
        a.mean + delta * share,
        a.squared_deviations + b.squared_deviations + delta**2 * a.count * share,
    )

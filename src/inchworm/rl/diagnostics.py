"""Averages over the valid rows, and the numbers that tell how an update went."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from inchworm.types import AnyArray

Scalar = Float[Array, ""] | float


def weighted_mean(x: Float[AnyArray, "*shape"], weight: Float[AnyArray, "*shape"]) -> Float[Array, ""]:
    """Mean over rows of weight one; zero where there is none."""
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def centred(x: Float[AnyArray, "*shape"], weight: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """x less its mean over the rows of weight one; exactly zero where all of them are alike.

    The mean of equal numbers is off by its rounding; the mean of what that leaves is not.
    """
    rough = x - weighted_mean(x, weight)
    return rough - weighted_mean(rough, weight)


def weighted_variance(x: Float[AnyArray, "*shape"], weight: Float[AnyArray, "*shape"]) -> Float[Array, ""]:
    """Population variance over rows of weight one."""
    return weighted_mean(centred(x, weight) ** 2, weight)


def spread(x: Float[AnyArray, "*shape"], weight: Float[AnyArray, "*shape"]) -> Float[Array, ""]:
    """Population standard deviation over rows of weight one, also of numbers whose squares overflow."""
    largest = jnp.max(jnp.abs(x) * weight)
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(weighted_variance(x / unit, weight))


def standardize(x: Float[AnyArray, "*shape"], weight: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """Shift and scale to mean 0 and standard deviation 1 over the rows of weight one.

    Where all rows are alike the result is zero, not NaN: the deviation is guarded by 1e-8.
    """
    rows = centred(x, weight)
    return rows / (jnp.sqrt(weighted_mean(rows**2, weight)) + 1e-8)


def clip_fraction(
    log_ratio: Float[AnyArray, "*shape"],
    clip_range: Scalar,
    weight: Float[AnyArray, "*shape"],
    clip_range_high: Scalar | None = None,
) -> Float[Array, ""]:
    """Share of transitions whose ratio lies outside [1 - epsilon, 1 + epsilon], or an upper end of its own."""
    change = jnp.expm1(log_ratio)
    outside = (change < -clip_range) | (change > (clip_range if clip_range_high is None else clip_range_high))
    return weighted_mean(outside.astype(log_ratio.dtype), weight)


def explained_variance(
    value: Float[AnyArray, "*shape"], returns: Float[AnyArray, "*shape"], weight: Float[AnyArray, "*shape"]
) -> Float[Array, ""]:
    """1 - Var(returns - value) / Var(returns): 1 is perfect, 0 no better than a constant.

    Zero where the returns do not vary.
    """
    spread = weighted_variance(returns, weight)
    unexplained = weighted_variance(returns - value, weight)
    return jnp.where(spread > 0, 1.0 - unexplained / spread, 0.0)

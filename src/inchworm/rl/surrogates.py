"""What the policy and the value function are moved by: one function, one equation of arXiv:1707.06347.

All work on single transitions; the caller averages. Surrogates are maximised, losses minimised. They take the
logarithm of the probability ratio, log r = log pi(a|s) - log pi_old(a|s), because p / p_old is NaN where both
underflow.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from inchworm.types import AnyArray

Scalar = Float[Array, ""] | float

MAX_LOG_RATIO = 80.0
"""Ratios stop growing here, short of infinity, whose product with the zero gradient of a clipped branch is NaN."""


def probability_ratio(log_ratio: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """r = pi(a|s) / pi_old(a|s), finite whatever its logarithm."""
    return jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO))


def surrogate(log_ratio: Float[AnyArray, "*shape"], advantage: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """The surrogate of conservative policy iteration, L^CPI of equation (6): r A.

    Its gradient at r = 1 is the policy gradient A grad log pi of equation (1).
    """
    return probability_ratio(log_ratio) * advantage


def clipped_surrogate(
    log_ratio: Float[AnyArray, "*shape"],
    advantage: Float[AnyArray, "*shape"],
    clip_range: Scalar,
    clip_range_high: Scalar | None = None,
) -> Float[AnyArray, "*shape"]:
    """PPO's clipped surrogate, equation (7): min(r A, clip(r, 1 - epsilon, 1 + epsilon) A).

    The minimum makes it a lower bound: no gradient where the ratio has already moved past the range in the
    direction the advantage asks for, full gradient where it has moved the wrong way. With `clip_range_high` the
    upper end of the range is 1 + clip_range_high instead; not in the paper.
    """
    ratio = probability_ratio(log_ratio)
    high = clip_range if clip_range_high is None else clip_range_high
    clipped_ratio = jnp.clip(ratio, 1.0 - clip_range, 1.0 + high)
    return jnp.minimum(ratio * advantage, clipped_ratio * advantage)


def log_clipped_surrogate(
    log_ratio: Float[AnyArray, "*shape"],
    advantage: Float[AnyArray, "*shape"],
    clip_range: Scalar,
    clip_range_high: Scalar | None = None,
) -> Float[AnyArray, "*shape"]:
    """The surrogate clipped in log space: min(r A, exp(clip(log r, -epsilon, epsilon)) A).

    Section 6.1 names it without an equation; this is the reading in which it differs from equation (7), whose range
    in log space is [log(1 - epsilon), log(1 + epsilon)].
    """
    high = clip_range if clip_range_high is None else clip_range_high
    clipped_ratio = jnp.exp(jnp.clip(log_ratio, -clip_range, high))
    return jnp.minimum(probability_ratio(log_ratio) * advantage, clipped_ratio * advantage)


def squared_error(value: Float[AnyArray, "*shape"], returns: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """Value loss (V(s) - V_targ)^2 of equation (9), without a factor of one half."""
    return (value - returns) ** 2


def clipped_squared_error(
    value: Float[AnyArray, "*shape"],
    old_value: Float[AnyArray, "*shape"],
    returns: Float[AnyArray, "*shape"],
    clip_range_value: Scalar,
) -> Float[AnyArray, "*shape"]:
    """Value loss that also keeps the new value near the old one: the larger of the two squared errors.

    max((V - G)^2, (V_old + clip(V - V_old, -c, c) - G)^2). Not in the paper: openai/baselines ppo2 (2018). The
    range c is in units of the (scaled) return.
    """
    near_old = old_value + jnp.clip(value - old_value, -clip_range_value, clip_range_value)
    return jnp.maximum(squared_error(value, returns), squared_error(near_old, returns))

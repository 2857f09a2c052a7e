"""What the policy and the value function are moved by: one function, one equation of arXiv:1707.06347.

All work on single transitions; the caller averages. Surrogates are maximised, losses minimised. They take the
logarithm of the probability ratio, log r = log pi(a|s) - log pi_old(a|s), because p / p_old is NaN where both
underflow.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from inchworm.types import AnyArray

Scalar = Float[Array, ""] | float


def clipped_surrogate(
    log_ratio: Float[AnyArray, "*shape"], advantage: Float[AnyArray, "*shape"], clip_range: Scalar
) -> Float[AnyArray, "*shape"]:
    """PPO's clipped surrogate, equation (7): min(r A, clip(r, 1 - epsilon, 1 + epsilon) A).

    The minimum makes it a lower bound: no gradient where the ratio has already moved past the range in the
    direction the advantage asks for, full gradient where it has moved the wrong way.
    """
    ratio = jnp.exp(log_ratio)
    clipped_ratio = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return jnp.minimum(ratio * advantage, clipped_ratio * advantage)


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

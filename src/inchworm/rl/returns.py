"""Advantages and value targets from rewards, values and the two ways an episode can end.

`terminated` and `truncated` stay apart until here: a terminated step has no future, a truncated one keeps the
value of its true successor. Rows that are not `valid` are no transitions and get zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from inchworm.types import AnyArray

Scalar = Float[Array, ""] | float


def td_residual(
    reward: Float[AnyArray, "T N"],
    value: Float[AnyArray, "T N"],
    next_value: Float[AnyArray, "T N"],
    terminated: Bool[AnyArray, "T N"],
    gamma: Scalar,
) -> Float[AnyArray, "T N"]:
    """Temporal-difference residual, equation (12) of arXiv:1707.06347 with the end of the task written out.

    delta_t = r_t + gamma (1 - terminated_t) V(next_obs_t) - V(obs_t)
    """
    return reward + gamma * jnp.where(terminated, 0.0, next_value) - value


def generalized_advantage(
    reward: Float[AnyArray, "T N"],
    value: Float[AnyArray, "T N"],
    next_value: Float[AnyArray, "T N"],
    terminated: Bool[AnyArray, "T N"],
    truncated: Bool[AnyArray, "T N"],
    valid: Bool[AnyArray, "T N"],
    gamma: Scalar,
    gae_lambda: Scalar,
) -> Float[Array, "T N"]:
    """Generalized advantage estimate, GAE(gamma, lambda) of arXiv:1506.02438.

    A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}

    with done = terminated or truncated, A = 0 where a row is not valid, and the row past the horizon worth zero,
    so that the last row bootstraps from V(next_obs) instead of ending an episode. This is equation (11) of
    arXiv:1707.06347 with the exponent of its last term corrected to T - t - 1. lambda = 0 gives the one-step
    advantage, lambda = 1 the Monte-Carlo return minus the value.
    """
    delta = jnp.where(valid, td_residual(reward, value, next_value, terminated, gamma), 0.0)
    decay = jnp.where(valid & ~(terminated | truncated), gamma * gae_lambda, 0.0)

    def step(
        later: Float[Array, " N"], row: tuple[Float[Array, " N"], Float[Array, " N"]]
    ) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        delta_t, decay_t = row
        advantage = delta_t + decay_t * later
        return advantage, advantage

    _, advantage = jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantage


def td_target(
    reward: Float[AnyArray, "T N"],
    next_value: Float[AnyArray, "T N"],
    terminated: Bool[AnyArray, "T N"],
    gamma: Scalar,
) -> Float[AnyArray, "T N"]:
    """One-step value target r_t + gamma (1 - terminated_t) V(next_obs_t), without gradient."""
    return jax.lax.stop_gradient(td_residual(reward, jnp.zeros_like(next_value), next_value, terminated, gamma))


def lambda_return(advantage: Float[AnyArray, "T N"], value: Float[AnyArray, "T N"]) -> Float[AnyArray, "T N"]:
    """TD(lambda) return, the value function's target: G_t = A_t + V(obs_t), without gradient."""
    return jax.lax.stop_gradient(advantage + value)


def discounted_return(
    reward: Float[AnyArray, "T N"],
    done: Bool[AnyArray, "T N"],
    valid: Bool[AnyArray, "T N"],
    start: Float[AnyArray, " N"],
    gamma: Scalar,
) -> tuple[Float[Array, "T N"], Float[Array, " N"]]:
    """Discounted sum of the rewards so far in each episode, G_t = r_t + gamma G_{t-1}, for scaling rewards.

    Args:
        reward: raw rewards.
        done: where an episode ends; the sum starts anew after it.
        valid: rows that are no transition leave the sum as it was.
        start: the sum each environment arrives with.
        gamma: discount.

    Returns:
        G at every step, and the sum each environment leaves with.
    """

    def step(
        total: Float[Array, " N"], row: tuple[Float[Array, " N"], Bool[Array, " N"], Bool[Array, " N"]]
    ) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        reward_t, done_t, valid_t = row
        total_t = jnp.where(valid_t, reward_t + gamma * total, total)
        return jnp.where(done_t & valid_t, 0.0, total_t), total_t

    rows = (jnp.asarray(reward), jnp.asarray(done), jnp.asarray(valid))
    end, totals = jax.lax.scan(step, jnp.asarray(start), rows)
    return totals, end

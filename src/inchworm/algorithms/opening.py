"""The opening pass of every update: what theta_old says about the rollout.

One batched evaluation gives old distributions, values, advantages and value targets, and checks that the policy
that is about to move is the one that acted.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inchworm.models.actor_critic import ActorCritic
from inchworm.models.observations import Normalizers
from inchworm.numerics.tree import flatten_time
from inchworm.rl.diagnostics import explained_variance
from inchworm.rl.distributions import Distribution
from inchworm.rl.returns import generalized_advantage, lambda_return
from inchworm.types import Batch, Metrics, Rollout

Scalar = Float[Array, ""] | float


def opening_pass(
    model: ActorCritic, normalizers: Normalizers, rollout: Rollout, gamma: Scalar, gae_lambda: Scalar
) -> tuple[Batch, Distribution, Metrics]:
    """The batch to learn from, the old distributions, and the metrics known before the first step.

    `policy/log_ratio_at_start` is the largest |log pi(a|s) - stored log-prob| over the valid rows: the ratio that
    equation (6) divides by must be 1 before the first step. `policy/log_ratio_tolerance` is what rounding allows.
    """
    distribution, value = model.evaluate(normalizers, rollout.obs, rollout.mask)
    next_value = model.values(normalizers, rollout.next_obs)
    advantage = generalized_advantage(
        rollout.reward,
        value,
        next_value,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma,
        gae_lambda,
    )
    returns = lambda_return(advantage, value)
    weight = rollout.valid.astype(jnp.float32)
    drift = jnp.where(rollout.valid, distribution.log_prob(rollout.action) - rollout.log_prob, 0.0)
    batch = Batch(rollout.obs, rollout.action, rollout.mask, rollout.log_prob, advantage, value, returns, weight)
    metrics = {
        "policy/log_ratio_at_start": jnp.max(jnp.abs(drift)),
        "policy/log_ratio_tolerance": jnp.asarray(distribution.log_prob_tolerance()),
        "value/explained_variance": explained_variance(value, returns, weight),
    }
    return jax.lax.stop_gradient((flatten_time(batch), distribution, metrics))

"""The opening pass of every update: what theta_old says about the rollout.

One batched evaluation gives old distributions, values, advantages and value targets, and checks that the policy
that is about to move is the one that acted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inchworm import spaces
from inchworm.algorithms import health
from inchworm.algorithms.batch import unroll
from inchworm.algorithms.settings import Now, Settings
from inchworm.models.actor_critic import Model
from inchworm.models.observations import Normalizers
from inchworm.numerics.tree import broadcast_rows
from inchworm.rl.diagnostics import explained_variance, spread, standardize
from inchworm.rl.distributions import BFLOAT16, FLOAT32, Distribution
from inchworm.rl.distributions.categorical import MASKED_LOGIT
from inchworm.rl.returns import generalized_advantage, lambda_return, td_target
from inchworm.types import AnyArray, ArrayTree, Batch, Metrics, Rollout

ROUNDING = {"float32": FLOAT32, "bfloat16": BFLOAT16}
"""Of networks that compute in a dtype."""

CHECKED_STEPS = 16
"""Of a policy with memory, at the start of each rollout: a memory can double rounding errors at every step, so that
later ones say nothing of whether the policy is the one that acted."""


class Opening(NamedTuple):
    """What every update starts from."""

    batch: Batch
    """Leaves (T, N, ...), the carry (N, ...)."""
    old: Distribution
    """pi_old(. | obs) at every step, all of its leaves (T, N, ...)."""
    metrics: Metrics
    """Those known before the first step."""


def opening_pass(model: Model, normalizers: Normalizers, rollout: Rollout, config: Settings, now: Now) -> Opening:
    """The batch to learn from and the old distributions.

    `policy/log_ratio_at_start` is the largest |log pi(a|s) - stored log-prob| over the valid rows, with memory those of
    the first `CHECKED_STEPS` steps: the ratio that equation (6) divides by must be 1 before the first step.
    `policy/log_ratio_tolerance` is what rounding allows.
    """
    old, value, carries = unroll(model, normalizers, rollout)
    raw_advantage, returns = advantages_and_returns(model, normalizers, rollout, value, carries, config, now)
    advantage = in_units(raw_advantage, rollout, config)
    weight = rollout.valid.astype(jnp.float32)
    drift = jnp.where(rollout.valid, old.log_prob(rollout.action) - rollout.log_prob, 0.0)
    checked = drift[:CHECKED_STEPS] if model.recurrent else drift
    batch = Batch(
        obs=rollout.obs,
        first=rollout.first,
        action=rollout.action,
        mask=rollout.mask,
        carry=rollout.carry,
        log_prob=rollout.log_prob,
        advantage=advantage,
        value=value,
        returns=returns,
        weight=weight,
    )
    metrics = {
        "policy/log_ratio_at_start": jnp.max(jnp.abs(checked)),
        "policy/log_ratio_tolerance": jnp.float32(old.log_prob_tolerance(ROUNDING[config.compute_dtype])),
        "advantage/std": spread(raw_advantage, weight),
        **health.of_policy(model, normalizers, rollout, old),
    }
    if rollout.tail is None:
        metrics["value/explained_variance"] = explained_variance(value, returns, weight)
    if rollout.mask is not None:
        nothing_allowed = ~spaces.allows_something(model.action_space, rollout.mask)
        forbidden = rollout.valid & ((rollout.log_prob < 0.5 * MASKED_LOGIT) | nothing_allowed)
        metrics["policy/forbidden_actions"] = jnp.sum(forbidden).astype(jnp.float32)
    # A log-std that is the same in every state has no axes of its own for time and environments.
    return jax.lax.stop_gradient(Opening(batch, broadcast_rows(old, rollout.reward.shape), metrics))


def advantages_and_returns(
    model: Model,
    normalizers: Normalizers,
    rollout: Rollout,
    value: Float[AnyArray, "T N"],
    carries: ArrayTree,
    config: Settings,
    now: Now,
) -> tuple[Float[AnyArray, "T N"], Float[AnyArray, "T N"]]:
    """Advantages, in units of the scaled reward, and the value function's targets."""
    next_value = _successor_value(model, normalizers, rollout, value, carries)
    if rollout.tail is not None:  # no value function: what came after the horizon stands at its last row
        value, next_value = jnp.zeros_like(value), jnp.zeros_like(next_value).at[-1].set(rollout.tail)
    flags = (rollout.terminated, rollout.truncated, rollout.valid)

    def estimate(gae_lambda: Float[Array, ""] | float) -> Float[AnyArray, "T N"]:
        return generalized_advantage(rollout.reward, value, next_value, *flags, now["gamma"], gae_lambda)

    advantage = estimate(now["gae_lambda"])
    match config.value_target:
        case "lambda_return":
            returns = lambda_return(advantage, value)
        case "monte_carlo":
            returns = lambda_return(estimate(1.0), value)
        case "td":
            returns = td_target(rollout.reward, next_value, rollout.terminated, now["gamma"])
    return advantage, returns


def in_units(advantage: Float[AnyArray, "T N"], rollout: Rollout, config: Settings) -> Float[AnyArray, "T N"]:
    """Advantages as the policy learns from them: standardised over the batch if asked for."""
    if config.normalize_advantage != "batch":
        return advantage
    return standardize(advantage, rollout.valid.astype(jnp.float32))


def _successor_value(
    model: Model, normalizers: Normalizers, rollout: Rollout, value: Float[AnyArray, "T N"], carries: ArrayTree
) -> Float[AnyArray, "T N"]:
    """V(next_obs), where an estimator reads it: everywhere but at terminations.

    Where an episode goes on, its successor is the next row's observation, whose value is there already. Only rollouts
    with a time limit in them are looked at once more.
    """
    last = jax.tree.map(lambda leaf: leaf[-1:], (rollout.next_obs, carries))
    following = jnp.concatenate([value[1:], model.look_ahead(normalizers, *last)])

    def all_anew(next_obs: ArrayTree) -> Float[AnyArray, "T N"]:
        return model.look_ahead(normalizers, next_obs, carries)

    cut = rollout.truncated & rollout.valid
    return jax.lax.cond(jnp.any(cut[:-1]), all_anew, lambda _: following, rollout.next_obs)

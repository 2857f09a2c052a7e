"""Metrics that tell whether there is something to learn from, and whether it reaches the policy.

None of them is used in training; `inchworm doctor` reads them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inchworm import spaces
from inchworm.models.actor_critic import Model
from inchworm.models.observations import Normalizers, share_clipped
from inchworm.rl.diagnostics import spread, weighted_mean
from inchworm.rl.distributions import DiagonalGaussian, Distribution, Product, TanhGaussian
from inchworm.types import AnyArray, Metrics, Rollout


def of_policy(model: Model, normalizers: Normalizers, rollout: Rollout, old: Distribution) -> Metrics:
    """What arrives at the policy that acted, and what the environment takes of what it sends.

    `observation/clipped` is there where observations are normalised, the others for the Gaussians in a policy.
    """
    weight = rollout.valid.astype(jnp.float32)
    metrics: Metrics = {}
    clipped = share_clipped(model.observation_space, normalizers, rollout.obs, weight)
    if clipped is not None:
        metrics["observation/clipped"] = clipped
    parts = old.parts if isinstance(old, Product) else (old,)
    deviations = [jnp.exp(part.log_std) for part in parts if isinstance(part, DiagonalGaussian | TanhGaussian)]
    if deviations:
        metrics["policy/std"] = jnp.mean(jnp.stack([jnp.mean(each) for each in deviations]))
        metrics["policy/std_min"] = jnp.min(jnp.stack([jnp.min(each) for each in deviations]))
    actions = spaces.flatten(model.action_space, rollout.action)
    beyond = [
        _beyond(leaf, action, weight)
        for leaf, action, part in zip(spaces.leaves(model.action_space), actions, parts, strict=True)
        if isinstance(leaf, spaces.Box) and isinstance(part, DiagonalGaussian)
    ]
    if beyond:
        metrics["action/out_of_bounds"] = jnp.mean(jnp.stack(beyond))
    return metrics


def of_rewards(rollout: Rollout) -> Metrics:
    """What the environments paid, and how their episodes ended.

    Of rewards that are not finite these are not either: they are no part of what is looked at before an update counts.
    """
    weight = rollout.valid.astype(jnp.float32)
    return {
        "reward/mean": weighted_mean(rollout.reward, weight),
        "reward/std": spread(rollout.reward, weight),
        "episode/terminations": jnp.sum(weight * rollout.terminated),
        "episode/truncations": jnp.sum(weight * rollout.truncated),
    }


def _beyond(
    leaf: spaces.Box, action: Float[AnyArray, "T N *shape"], weight: Float[AnyArray, "T N"]
) -> Float[Array, ""]:
    """Share of the numbers of actions that lie beyond their bounds, and are clipped on their way."""
    low, high = (np.asarray(bound, np.float32).reshape(leaf.shape) for bound in spaces.bounds(leaf))
    outside = ((action < low) | (action > high)).astype(jnp.float32)
    return weighted_mean(jnp.mean(outside.reshape((*weight.shape, -1)), axis=-1), weight)

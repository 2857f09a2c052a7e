"""Rollouts inside compiled code."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from inchworm import spaces
from inchworm.envs.traced import TracedEnvs
from inchworm.models.actor_critic import Model
from inchworm.models.observations import Normalizers
from inchworm.numerics.devices import split
from inchworm.types import ArrayTree, Episodes, Rollout


class Standing(NamedTuple):
    """Where N environments stand, and the policy in them."""

    envs: ArrayTree
    """The environments' own state."""
    obs: ArrayTree
    first: Bool[Array, " N"]
    carry: ArrayTree
    """The policy's memory of the running episodes."""
    episode_return: Float[Array, " N"]
    episode_length: Float[Array, " N"]


TracedRollout = Callable[[Model, Normalizers, ArrayTree, Standing], tuple[Rollout, Episodes, Standing]]
"""Steps N environments T times under one policy: from the model, how observations are scaled, and the noise of all
actions (T, N, ...)."""


def at_start(model: Model, envs: ArrayTree, obs: ArrayTree) -> Standing:
    """Environments that were just reset."""
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    zeros = jnp.zeros(num_envs, jnp.float32)
    return Standing(envs, obs, jnp.ones(num_envs, bool), model.initial_carry(num_envs), zeros, zeros)


def make_rollout(envs: TracedEnvs, squash: spaces.Squash) -> TracedRollout:
    """The function that collects a rollout from environments."""
    action_space = envs.spec.action_space
    door = spaces.action_door(action_space, squash)

    def collect(
        model: Model, normalizers: Normalizers, noise: ArrayTree, start: Standing
    ) -> tuple[Rollout, Episodes, Standing]:
        def one_step(now: Standing, draws: tuple[ArrayTree, ArrayTree]) -> tuple[Standing, tuple[Rollout, Episodes]]:
            noise, chance = draws
            mask = envs.mask(now.envs)
            distribution, carry = model.act(normalizers, now.obs, now.first, mask, now.carry)
            action = distribution.sample_from(noise)
            sent = spaces.unflatten(action_space, door(spaces.flatten(action_space, action)))
            state, step = envs.step(now.envs, sent, chance)
            reward = jnp.where(step.valid, step.reward, jnp.float32(0.0))
            episode_return = now.episode_return + reward
            episode_length = now.episode_length + step.valid

            row = Rollout(
                obs=now.obs,
                first=now.first,
                action=action,
                mask=mask,
                log_prob=distribution.log_prob(action),
                reward=reward,
                terminated=step.terminated & step.valid,
                truncated=step.truncated & step.valid,
                next_obs=step.next_obs,
                carry=None,
                valid=step.valid,
            )
            ended = Episodes(
                step.over, jnp.where(step.over, episode_return, 0.0), jnp.where(step.over, episode_length, 0.0)
            )
            after = Standing(
                envs=state,
                obs=step.obs,
                first=step.first,
                carry=carry,
                episode_return=jnp.where(step.over, 0.0, episode_return),
                episode_length=jnp.where(step.over, 0.0, episode_length),
            )
            return after, (row, ended)

        chance, state = envs.chance(start.envs, jax.tree.leaves(noise)[0].shape[0])
        draws = split((noise, chance), 1)
        end, (rollout, episodes) = jax.lax.scan(one_step, start._replace(envs=state), draws)
        return rollout._replace(carry=start.carry), episodes, end

    return collect

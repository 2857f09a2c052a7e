"""Rollouts inside compiled code."""

from typing import NamedTuple, Protocol

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
    counted: Bool[Array, " N"]
    """Where the running episode began in a batch."""


class TracedRollout(Protocol):
    """Steps N environments T times under one policy."""

    def __call__(
        self,
        model: Model,
        normalizers: Normalizers,
        noise: ArrayTree,
        start: Standing,
        in_batch: Bool[Array, ""] | bool = True,
    ) -> tuple[Rollout, Episodes, Standing]:
        """With the noise of all actions (T, N, ...), from where the environments stand to where they stand then.

        Steps past the horizon are not `in_batch`. Episodes that begin there belong to no batch, and are not told even
        where they end in the next one: the longer an episode, the more often it would be one of them.
        """
        ...


def at_start(model: Model, envs: ArrayTree, obs: ArrayTree) -> Standing:
    """Environments that were just reset."""
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    zeros = jnp.zeros(num_envs, jnp.float32)
    return Standing(
        envs, obs, jnp.ones(num_envs, bool), model.initial_carry(num_envs), zeros, zeros, jnp.ones(num_envs, bool)
    )


def make_rollout(envs: TracedEnvs, squash: spaces.Squash, deterministic: bool = False) -> TracedRollout:
    """The function that collects a rollout from environments, with sampled actions or the distributions' modes."""
    action_space = envs.spec.action_space
    door = spaces.action_door(action_space, squash)

    def collect(
        model: Model,
        normalizers: Normalizers,
        noise: ArrayTree,
        start: Standing,
        in_batch: Bool[Array, ""] | bool = True,
    ) -> tuple[Rollout, Episodes, Standing]:
        def one_step(now: Standing, draws: tuple[ArrayTree, ArrayTree]) -> tuple[Standing, tuple[Rollout, Episodes]]:
            noise, chance = draws
            mask = envs.mask(now.envs)
            distribution, carry = model.act(normalizers, now.obs, now.first, mask, now.carry)
            action = distribution.mode() if deterministic else distribution.sample_from(noise)
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
            counted = jnp.where(now.episode_length == 0, in_batch, now.counted)
            told = step.over & counted
            ended = Episodes(told, jnp.where(told, episode_return, 0.0), jnp.where(told, episode_length, 0.0))
            after = Standing(
                envs=state,
                obs=step.obs,
                first=step.first,
                carry=carry,
                episode_return=jnp.where(step.over, 0.0, episode_return),
                episode_length=jnp.where(step.over, 0.0, episode_length),
                counted=counted,
            )
            return after, (row, ended)

        chance, state = envs.chance(start.envs, jax.tree.leaves(noise)[0].shape[0])
        draws = split((noise, chance), 1)
        end, (rollout, episodes) = jax.lax.scan(one_step, start._replace(envs=state), draws)
        return rollout._replace(carry=start.carry), episodes, end

    return collect

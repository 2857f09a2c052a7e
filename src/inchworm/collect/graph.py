"""Rollouts from JAX environments: collected and learned from in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from inchworm import spaces
from inchworm.algorithms.iteration import Iterate
from inchworm.algorithms.state import TrainState, collection_key
from inchworm.collect import tail as tails
from inchworm.collect.acting import prepare
from inchworm.envs.jax_env import JaxEnv, first_key, masks_of
from inchworm.envs.pool import environment_seed
from inchworm.errors import CheckpointError
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.numerics.tree import from_arrays, to_arrays
from inchworm.types import ArrayTree, Episodes, Metrics, PRNGKey, Rollout


class EnvState(NamedTuple):
    """Where N environments stand."""

    state: ArrayTree
    obs: ArrayTree
    first: Bool[Array, " N"]
    carry: ArrayTree
    """The policy's memory of the running episodes."""
    key: PRNGKey
    """A key for each environment, (N,)."""
    episode_return: Float[Array, " N"]
    episode_length: Float[Array, " N"]


GraphRollout = Callable[[Model, ObsStats, PRNGKey, EnvState], tuple[Rollout, Episodes, EnvState]]


def make_start(env: JaxEnv) -> Callable[[Model, PRNGKey], EnvState]:
    """The function that resets environments with the keys (N,) they are given."""

    def start(model: Model, keys: PRNGKey) -> EnvState:
        key, state, obs = jax.vmap(lambda key: _reset(env, key))(keys)
        num_envs = len(keys)
        return EnvState(
            state=state,
            obs=_stored(env.spec.observation_space, obs),
            first=jnp.ones(num_envs, bool),
            carry=model.initial_carry(num_envs),
            key=key,
            episode_return=jnp.zeros(num_envs),
            episode_length=jnp.zeros(num_envs),
        )

    return start


def make_rollout(env: JaxEnv, shape: tuple[int, int], squash: spaces.Squash) -> GraphRollout:
    """The function that steps N environments T times under one policy with frozen statistics."""
    observation_space, action_space = env.spec.observation_space, env.spec.action_space
    door = spaces.action_door(action_space, squash)

    def to_environment(action: ArrayTree) -> ArrayTree:
        return spaces.unflatten(action_space, door(spaces.flatten(action_space, action)))

    def collect(model: Model, obs_stats: ObsStats, key: PRNGKey, start: EnvState) -> tuple[Rollout, Episodes, EnvState]:
        normalizers, noise = prepare(model, obs_stats, key, shape)

        def one_step(now: EnvState, noise: ArrayTree) -> tuple[EnvState, tuple[Rollout, Episodes]]:
            mask = jax.vmap(lambda state: masks_of(env, state))(now.state)
            distribution, carry = model.act(normalizers, now.obs, now.first, mask, now.carry)
            action = distribution.sample_from(noise)
            log_prob = distribution.log_prob(action)

            keys = jax.vmap(jax.random.split)(now.key)
            step = jax.vmap(env.step)(now.state, to_environment(action), keys[:, 1])
            next_obs = _stored(observation_space, step.obs)
            reward = step.reward.astype(jnp.float32)
            terminated = step.terminated.astype(bool)
            done = terminated | step.truncated.astype(bool)
            reset_key, reset_state, reset_obs = jax.vmap(lambda key: _reset(env, key))(keys[:, 0])
            episode_return, episode_length = now.episode_return + reward, now.episode_length + 1.0

            row = Rollout(
                obs=now.obs,
                first=now.first,
                action=action,
                mask=mask,
                log_prob=log_prob,
                reward=reward,
                terminated=terminated,
                # A termination outranks a time limit that falls on the same step.
                truncated=done & ~terminated,
                next_obs=next_obs,
                carry=None,
                valid=jnp.ones_like(done),
            )
            after = EnvState(
                state=_where(done, reset_state, step.state),
                obs=_where(done, _stored(observation_space, reset_obs), next_obs),
                first=done,
                carry=carry,
                key=jnp.where(done, reset_key, keys[:, 0]),
                episode_return=jnp.where(done, 0.0, episode_return),
                episode_length=jnp.where(done, 0.0, episode_length),
            )
            ended = Episodes(done, jnp.where(done, episode_return, 0.0), jnp.where(done, episode_length, 0.0))
            return after, (row, ended)

        end, (rollout, episodes) = jax.lax.scan(one_step, start, noise)
        return rollout._replace(carry=start.carry), episodes, end

    return collect


def _reset(env: JaxEnv, key: PRNGKey) -> tuple[PRNGKey, ArrayTree, ArrayTree]:
    key, reset_key = jax.random.split(key)
    return key, *env.reset(reset_key)


def _stored(space: spaces.Space, obs: ArrayTree) -> ArrayTree:
    """Observations in the dtypes in which rollouts keep them."""
    leaves = zip(spaces.leaves(space), spaces.flatten(space, obs), strict=True)
    return spaces.unflatten(space, [leaf.astype(spaces.storage_dtype(kind)) for kind, leaf in leaves])


def _where(condition: Bool[Array, " N"], if_true: ArrayTree, if_false: ArrayTree) -> ArrayTree:
    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, if_true, if_false)


class GraphCollector:
    """Keeps JAX environments between compiled calls, each of which collects a rollout and updates from it."""

    def __init__(self, start: Any, advance: Any, num_envs: int, seed: int) -> None:
        """Takes the compiled functions `make_start` and `make_advance` give."""
        self._start_compiled, self._advance_compiled = start, advance
        seeds = [environment_seed(seed, index, 0) for index in range(num_envs)]
        self._keys = jnp.stack([first_key(s) for s in seeds])
        self._now: EnvState | None = None
        self._saved: dict[str, np.ndarray] = {}
        self.acted_with: tuple[Model, ObsStats] | None = None

    def advance(self, state: TrainState) -> tuple[TrainState, Metrics, Episodes]:
        """One iteration: a rollout, and the update from it."""
        self.acted_with = (state.model, state.obs_stats)
        state, self._now, metrics, episodes = self._advance_compiled(state, self._stand(state.model))
        return state, metrics, jax.device_get(episodes)

    def _stand(self, model: Model) -> EnvState:
        if self._saved:
            template = jax.eval_shape(self._start_compiled, model, self._keys)
            now, self._saved = from_arrays(template, self._saved), {}
            return now
        return self._start_compiled(model, self._keys) if self._now is None else self._now

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Where the environments stand, as arrays by name and a JSON document."""
        return (self._saved or ({} if self._now is None else to_arrays(self._now))), {"kind": "jax"}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> list[str]:
        """Takes up where a snapshot was made, exactly.

        Raises:
            CheckpointError: the snapshot is not one of such a collector.
        """
        if document.get("kind") != "jax":
            raise CheckpointError(
                "collector", document.get("kind"), "is not of a JAX environment", "Resume from another checkpoint."
            )
        self._saved = dict(arrays)
        return []

    def close(self) -> None:
        """There is nothing to close."""


def make_advance(rollout: GraphRollout, iterate: Iterate, tail_gamma: float | None = None) -> Any:
    """An iteration as one function: from the training state and the environments' to those after it.

    With `tail_gamma` episodes that the horizon cuts are continued to their end, discounted by it.
    """

    def advance(state: TrainState, now: EnvState) -> tuple[TrainState, EnvState, Metrics, Episodes]:
        key = collection_key(state.key, state.iteration)
        collected, episodes, now = rollout(state.model, state.obs_stats, key, now)
        if tail_gamma is None:
            new_state, metrics = iterate(state, collected)
            return new_state, now, metrics, episodes

        horizon, num_envs = collected.reward.shape

        def unfinished(carry: tuple[Any, EnvState, Any]) -> Bool[Array, ""]:
            tail, _, steps = carry
            return jnp.any(tail.alive) & (steps < tails.MAX_TAIL_STEPS)

        def go_on(carry: tuple[Any, EnvState, Any]) -> tuple[Any, EnvState, Any]:
            tail, now, steps = carry
            steps += horizon
            *more, now = rollout(state.model, state.obs_stats, jax.random.fold_in(key, steps), now)
            return tails.extend(tail, *more, tail_gamma), now, steps

        tail, now, steps = jax.lax.while_loop(unfinished, go_on, (tails.start(collected), now, jnp.array(0)))
        collected, episodes = tails.attach(collected, episodes, tail)
        new_state, metrics = iterate(state, collected)
        return new_state, now, metrics | {"collect/tail_steps": (steps * num_envs).astype(jnp.float32)}, episodes

    return advance

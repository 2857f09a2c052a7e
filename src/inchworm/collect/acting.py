"""Policies that act between the steps of Python environments.

Two ways with one result: the policy's own code on NumPy arrays, which for small networks costs a quarter of a
compiled call there, and one compiled call a step for what NumPy is slow at.
"""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from inchworm import spaces
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic
from inchworm.models.observations import Normalizers, ObsStats
from inchworm.types import AnyArray, ArrayTree, PRNGKey

MAX_NUMPY_ENVS = 64
"""Beyond about this many environments a compiled call is the faster one."""


class Actor(Protocol):
    """Acts for one rollout, with parameters, statistics and noise fixed at its start."""

    def act(self, t: int, obs: ArrayTree) -> np.ndarray:
        """The policy's own actions (N, ...) at step t for observations (N, ...)."""
        ...

    def log_prob(self, actions: np.ndarray) -> np.ndarray:
        """log pi(a_t | s_t) of the rollout's actions (T, N, ...), by the distributions that acted."""
        ...


def make_actor(model: ActorCritic, obs_stats: ObsStats, key: PRNGKey, horizon: int, num_envs: int) -> Actor:
    """The faster actor for this many environments."""
    normalizers, noise = _prepare(model, obs_stats, key, (horizon, num_envs))
    if num_envs <= MAX_NUMPY_ENVS:
        return NumpyActor(model, normalizers, noise)
    return CompiledActor(model, normalizers, noise)


@partial(jax.jit, static_argnums=3)
def _prepare(
    model: ActorCritic, obs_stats: ObsStats, key: PRNGKey, shape: tuple[int, int]
) -> tuple[Normalizers, Float[AnyArray, "T N noise"]]:
    return observations.freeze(obs_stats), model.policy.head.draw_noise(key, shape)


class NumpyActor:
    """Runs the policy's code on NumPy arrays."""

    def __init__(self, model: ActorCritic, normalizers: Normalizers, noise: AnyArray) -> None:
        self._space = model.observation_space
        self._policy, self._normalizers, self._noise = observations.to_numpy((model.policy, normalizers, noise))
        self._outputs: list[np.ndarray] = []

    def act(self, t: int, obs: ArrayTree) -> np.ndarray:
        outputs = self._policy.network(observations.encode(self._space, self._normalizers, obs))
        self._outputs.append(outputs)
        return self._policy.head(outputs, None).sample_from(self._noise[t])

    def log_prob(self, actions: np.ndarray) -> np.ndarray:
        # Once for the whole rollout: a batch of one is nearly all overhead.
        return self._policy.head(np.stack(self._outputs), None).log_prob(actions)


class CompiledActor:
    """One compiled call a step, whose one answer holds actions and log-probabilities side by side."""

    def __init__(self, model: ActorCritic, normalizers: Normalizers, noise: AnyArray) -> None:
        self._model, self._normalizers, self._noise = model, normalizers, noise
        self._log_probs: list[np.ndarray] = []

    def act(self, t: int, obs: ArrayTree) -> np.ndarray:
        packed = np.asarray(_act_packed(self._model, self._normalizers, self._noise, t, obs))
        self._log_probs.append(packed[:, -1])
        if isinstance(self._model.action_space, spaces.Discrete):
            return packed[:, 0].astype(np.int32)
        return packed[:, :-1]

    def log_prob(self, actions: np.ndarray) -> np.ndarray:
        return np.stack(self._log_probs)


@jax.jit
def _act_packed(
    model: ActorCritic, normalizers: Normalizers, noise: Float[AnyArray, "T N noise"], t: Int[AnyArray, ""], obs: Any
) -> Float[AnyArray, "N packed"]:
    distribution = model.act(normalizers, obs)
    action = distribution.sample_from(noise[t])
    log_prob = distribution.log_prob(action)
    columns = action.reshape((len(log_prob), -1)).astype(jnp.float32)
    return jnp.concatenate([columns, log_prob[:, None]], axis=-1)

"""How a policy acts between the steps of Python environments.

Two ways, chosen by speed: the policy's own code on NumPy arrays, which for small networks costs a quarter of a
compiled call there, and one compiled call a step for what NumPy is slow at or cannot do.
"""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from inchworm import spaces
from inchworm.models import observations
from inchworm.models.actor_critic import Model, runs_on_numpy
from inchworm.models.observations import Normalizers, ObsStats
from inchworm.types import ArrayTree, PRNGKey

MAX_NUMPY_ENVS = 64
"""Beyond about this many environments a compiled call is the faster one."""


class Actor(Protocol):
    """Acts for one rollout, with parameters, statistics and noise fixed at its start."""

    carry: ArrayTree
    """The recurrent state after the last step."""

    def act(self, t: int, obs: ArrayTree, first: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
        """The leaves (N, ...) of the policy's own actions at step t, for observations (N, ...)."""
        ...

    def log_prob(self, actions: ArrayTree) -> np.ndarray:
        """log pi(a_t | s_t) of the rollout's actions (T, N, ...), by the distributions that acted."""
        ...


def make_actor(model: Model, obs_stats: ObsStats, carry: ArrayTree, key: PRNGKey, shape: tuple[int, int]) -> Actor:
    """The faster actor for T steps of N environments."""
    normalizers, noise = prepare(model, obs_stats, key, shape)
    if shape[1] <= MAX_NUMPY_ENVS and runs_on_numpy(model):
        return NumpyActor(model, normalizers, noise)
    return CompiledActor(model, normalizers, noise, carry)


@partial(jax.jit, static_argnums=3)
def prepare(model: Model, obs_stats: ObsStats, key: PRNGKey, shape: tuple[int, int]) -> tuple[Normalizers, ArrayTree]:
    """What is fixed at a rollout's start: how observations are scaled, and the noise of all its actions (T, N, ...)."""
    return observations.freeze(obs_stats), model.head.draw_noise(key, shape)


class NumpyActor:
    """Runs the policy's code on NumPy arrays."""

    carry: ArrayTree = None

    def __init__(self, model: Model, normalizers: Normalizers, noise: ArrayTree) -> None:
        self._model, self._normalizers, noise = observations.to_numpy((model, normalizers, noise))
        self._noise = list(zip(*noise, strict=True)) if isinstance(noise, tuple) else noise
        self._space = model.action_space
        self._single = not isinstance(self._space, spaces.Dict | spaces.Tuple)
        self._outputs: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []

    def act(self, t: int, obs: ArrayTree, first: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
        outputs = self._model.outputs(self._normalizers, obs)
        self._outputs.append(outputs)
        if mask is not None:
            self._masks.append(mask)
        action = self._model.head(outputs, mask).sample_from(self._noise[t])
        return [action] if self._single else spaces.flatten(self._space, action)

    def log_prob(self, actions: ArrayTree) -> np.ndarray:
        # Once for the whole rollout: a batch of one is nearly all overhead.
        masks = np.stack(self._masks) if self._masks else None
        return self._model.head(np.stack(self._outputs), masks).log_prob(actions)


class CompiledActor:
    """One compiled call a step, whose one answer holds actions and log-probabilities side by side."""

    def __init__(self, model: Model, normalizers: Normalizers, noise: ArrayTree, carry: ArrayTree) -> None:
        self.carry = carry
        self._fixed = (model, normalizers, noise)
        self._leaves = [spaces.own_action(leaf) for leaf in spaces.leaves(model.action_space)]
        self._ends = np.cumsum([int(np.prod(shape)) for shape, _ in self._leaves]).tolist()
        self._log_probs: list[np.ndarray] = []

    def act(self, t: int, obs: ArrayTree, first: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
        answer, self.carry = _act_packed(*self._fixed, np.int32(t), obs, first, mask, self.carry)
        packed = np.asarray(answer)
        self._log_probs.append(packed[:, -1])
        columns = np.split(packed[:, :-1], self._ends[:-1], axis=1) if len(self._ends) > 1 else [packed[:, :-1]]
        return [
            part.astype(dtype, copy=False).reshape((len(packed), *shape))
            for part, (shape, dtype) in zip(columns, self._leaves, strict=True)
        ]

    def log_prob(self, actions: ArrayTree) -> np.ndarray:
        return np.stack(self._log_probs)


@jax.jit
def _act_packed(
    model: Model,
    normalizers: Normalizers,
    noise: ArrayTree,
    t: Any,
    obs: ArrayTree,
    first: Bool[Array, " N"],
    mask: Bool[Array, "N M"] | None,
    carry: ArrayTree,
) -> tuple[Float[Array, "N packed"], ArrayTree]:
    distribution, carry = model.act(normalizers, obs, first, mask, carry)
    action = distribution.sample_from(jax.tree.map(lambda leaf: leaf[t], noise))
    log_prob = distribution.log_prob(action)
    # Whole numbers up to 2^24 keep their value in float32.
    columns = [
        leaf.reshape((len(log_prob), -1)).astype(jnp.float32) for leaf in spaces.flatten(model.action_space, action)
    ]
    return jnp.concatenate([*columns, log_prob[:, None]], axis=-1), carry

"""A trained policy, ready to act: parameters, statistics and action transform in one."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from inchworm import spaces
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic
from inchworm.models.observations import ObsStats

NOISE_BLOCK = 256
"""Steps of noise drawn at once."""


@dataclass
class Policy:
    """Acts on raw observations, as it did when it was trained."""

    model: ActorCritic
    obs_stats: ObsStats
    seed: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    """Where the policy comes from: environment, algorithm, versions."""

    def __post_init__(self) -> None:
        self._policy, self._normalizers = observations.to_numpy(
            (self.model.policy, observations.freeze(self.obs_stats))
        )
        self._door = spaces.action_door(self.action_space)
        self._key = jax.random.key(self.seed)
        self._noise: np.ndarray = np.empty((0, 0))
        self._drawn, self._used = 0, 0

    @property
    def observation_space(self) -> spaces.Space:
        return self.model.observation_space

    @property
    def action_space(self) -> spaces.Space:
        return self.model.action_space

    def act(self, obs: Any, *, deterministic: bool = False) -> Any:
        """Actions for one observation or a batch of them, ready for the environment.

        Args:
            obs: as the environment gives it, or stacked along a leading axis.
            deterministic: take the distribution's mode instead of a sample.

        Returns:
            One action or a batch of them: clipped to a Box's bounds, in the action space's shape and dtype.

        Raises:
            ConfigError: the observation's shape is not the space's.
        """
        leaves, single = self._batch(obs)
        features = observations.encode(
            self.observation_space, self._normalizers, spaces.unflatten(self.observation_space, leaves)
        )
        distribution = self._policy(features)
        own = distribution.mode() if deterministic else distribution.sample_from(self._next_noise(len(features)))
        actions = self._door(own)
        return actions[0] if single else actions

    def _batch(self, obs: Any) -> tuple[list[np.ndarray], bool]:
        """The observation's leaves with a leading axis, and whether it had none."""
        leaves = []
        single = False
        try:
            values = spaces.flatten(self.observation_space, obs)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ConfigError(
                "obs",
                repr(obs),
                "does not have the observation space's structure",
                f"Expected {self.observation_space}.",
            ) from error
        for space, value in zip(spaces.leaves(self.observation_space), values, strict=True):
            array = np.asarray(value, spaces.storage_dtype(space))
            shape = space.shape if isinstance(space, spaces.Box) else ()
            if array.shape == shape:
                array, single = array[None], True
            elif array.shape[1:] != shape or array.ndim != len(shape) + 1:
                raise ConfigError(
                    "obs",
                    repr(array.shape),
                    "is the shape of neither one observation nor a batch",
                    f"Give {shape} or (batch, {', '.join(map(str, shape))}).",
                )
            leaves.append(array)
        if len({len(leaf) for leaf in leaves}) > 1:
            raise ConfigError("obs", repr(obs), "has parts of different batch sizes", "Stack all parts alike.")
        return leaves, single

    def _next_noise(self, batch: int) -> np.ndarray:
        if self._used == len(self._noise) or self._noise.shape[1] != batch:
            block_key = jax.random.fold_in(self._key, self._drawn)
            self._noise = np.asarray(self.model.policy.head.draw_noise(block_key, (NOISE_BLOCK, batch)))
            self._drawn, self._used = self._drawn + 1, 0
        self._used += 1
        return self._noise[self._used - 1]

"""A trained policy, ready to act: parameters, statistics and action transform in one."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inchworm import spaces
from inchworm.errors import ConfigError
from inchworm.models import observations
from inchworm.models.actor_critic import Model, runs_on_numpy
from inchworm.models.observations import Normalizers, ObsStats
from inchworm.models.settings import ModelSettings
from inchworm.types import ArrayTree, PRNGKey

NOISE_BLOCK = 256
"""Steps of noise drawn at once."""


@dataclass(repr=False)
class Policy:
    """Acts on raw observations, as it did when it was trained."""

    model: Model
    obs_stats: ObsStats
    settings: ModelSettings = field(default_factory=ModelSettings)
    """What the model was made by."""
    seed: int = 0
    """Of the noise of sampled actions, the same from the first action on."""
    info: dict[str, Any] = field(default_factory=dict)
    """Where the policy comes from: environment, algorithm, versions."""

    def __post_init__(self) -> None:
        self._on_numpy = runs_on_numpy(self.model)
        normalizers = observations.freeze(self.obs_stats)
        parts = (self.model, normalizers)
        self._acting, self._normalizers = observations.to_numpy(parts) if self._on_numpy else parts
        self._door = spaces.action_door(self.action_space, self.settings.squash)
        self._key = jax.random.key(self.seed)
        self._noise: list[ArrayTree] = []
        self._noise_batch = 0
        self._drawn = 0

    def __repr__(self) -> str:
        said = [f"{self.info[name]}" for name in ("env", "algorithm") if name in self.info]
        steps = [f"{self.info['env_steps']:,} steps"] if "env_steps" in self.info else []
        return f"Policy({', '.join([*said, *steps, f'{self.observation_space} to {self.action_space}'])})"

    @property
    def observation_space(self) -> spaces.Space:
        return self.model.observation_space

    @property
    def action_space(self) -> spaces.Space:
        return self.model.action_space

    @property
    def recurrent(self) -> bool:
        """True if the policy remembers the episode's earlier observations."""
        return self.model.recurrent

    def act(self, obs: Any, carry: Any = None, *, mask: Any = None, deterministic: bool = False) -> Any:
        """Actions for one observation or a batch of them, ready for the environment.

        Args:
            obs: as the environment gives it, or stacked along a leading axis.
            carry: with memory, what the last call returned; None at an episode's start.
            mask: which choices are allowed, a flag for each of the action space's logits; None for all.
            deterministic: take the distribution's mode instead of a sample.

        Returns:
            One action or a batch of them, in the action space's shape, dtype and bounds. A policy with memory returns
            a pair of that and the carry for the next call.

        Raises:
            ConfigError: observation, mask or carry do not have the shape they should, an observation is not finite, or
                a policy without memory is given a carry.
        """
        leaves, single = self._batch(obs)
        batch = len(leaves[0])
        stacked = spaces.unflatten(self.observation_space, leaves)
        flags = None if mask is None else self._flags(mask, batch)
        carry = self._carry(carry, batch)
        if self._on_numpy:
            distribution, _ = self._acting.act(self._normalizers, stacked, mask=flags)
            own = distribution.mode() if deterministic else distribution.sample_from(self._next_noise(batch))
        else:
            self._drawn += 1
            key = jax.random.fold_in(self._key, self._drawn)
            own, carry = _act(self._acting, self._normalizers, key, stacked, flags, carry, deterministic)
        sent = self._door([np.asarray(leaf) for leaf in spaces.flatten(self.action_space, own)])
        action = spaces.unflatten(self.action_space, [leaf[0] for leaf in sent] if single else sent)
        return (action, carry) if self.recurrent else action

    def _carry(self, carry: ArrayTree, batch: int) -> ArrayTree:
        """The carry to go on from; jax would stretch one of a single environment over a batch without a word."""
        if not self.recurrent:
            if carry is None:
                return None
            raise ConfigError(
                "carry",
                type(carry).__name__,
                "is given to a policy without memory",
                "Leave it out; a mask goes by its keyword: policy.act(obs, mask=...).",
            )
        start = self.model.initial_carry(batch)
        if carry is None:
            return start
        found, expected = (jax.tree.map(np.shape, tree) for tree in (carry, start))
        if found != expected:
            raise ConfigError(
                "carry",
                repr(found),
                f"are the shapes of no carry for {batch} observations",
                f"Give what the last call returned, of shapes {expected}, or None at an episode's start.",
            )
        return carry

    def _flags(self, mask: Any, batch: int) -> np.ndarray:
        """The mask as flags (batch, M)."""
        flags = np.asarray(mask)
        columns = spaces.num_mask_columns(self.action_space)
        if columns == 0 or flags.shape[-1:] != (columns,) or flags.size != batch * columns:
            raise ConfigError(
                "mask",
                repr(flags.shape),
                "is no mask for these actions",
                f"Give one of shape ({columns},) for each observation." if columns else "A Box has no mask.",
            )
        flags = flags.astype(bool).reshape(batch, columns)
        if not spaces.allows_something(self.action_space, flags).all():
            raise ConfigError("mask", flags.tolist(), "allows nothing", "Allow one option of every choice at least.")
        return flags

    def _batch(self, obs: Any) -> tuple[list[np.ndarray], bool]:
        """The observation's leaves with a leading axis, and whether it had none."""
        leaves = []
        single = False
        parts = spaces.leaves(self.observation_space)
        try:
            values = spaces.flatten(self.observation_space, obs)
            arrays = [_as_stored(part, value) for part, value in zip(parts, values, strict=True)]
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise ConfigError(
                "obs",
                repr(obs),
                "does not have the observation space's structure",
                f"Expected {self.observation_space}.",
            ) from error
        for part, array in zip(parts, arrays, strict=True):
            shape = spaces.leaf_shape(part)
            if array.shape == shape:
                array, single = array[None], True
            elif array.shape[1:] != shape or array.ndim != len(shape) + 1:
                raise ConfigError(
                    "obs",
                    repr(array.shape),
                    "is the shape of neither one observation nor a batch",
                    f"Give {shape} or (batch, {', '.join(map(str, shape))}).",
                )
            # Counting takes half the time of `all`, and this runs between environment steps.
            if array.dtype.kind == "f" and np.count_nonzero(np.isfinite(array)) < array.size:
                raise ConfigError(
                    "obs",
                    repr(obs),
                    "holds NaN or infinity, to which any action would answer",
                    "Find where it comes from.",
                )
            leaves.append(array)
        if len({len(leaf) for leaf in leaves}) > 1:
            raise ConfigError("obs", repr(obs), "has parts of different batch sizes", "Stack all parts alike.")
        return leaves, single

    def _next_noise(self, batch: int) -> ArrayTree:
        if not self._noise or self._noise_batch != batch:
            block_key = jax.random.fold_in(self._key, self._drawn)
            noise = observations.to_numpy(self.model.head.draw_noise(block_key, (NOISE_BLOCK, batch)))
            rows = list(zip(*noise, strict=True)) if isinstance(noise, tuple) else list(noise)
            self._noise, self._noise_batch = rows[::-1], batch
            self._drawn += 1
        return self._noise.pop()


@partial(jax.jit, static_argnums=6)
def _act(
    model: Model,
    normalizers: Normalizers,
    key: PRNGKey,
    obs: ArrayTree,
    mask: ArrayTree,
    carry: ArrayTree,
    deterministic: bool,
) -> tuple[ArrayTree, ArrayTree]:
    batch = jax.tree.leaves(obs)[0].shape[0]
    distribution, carry = model.act(normalizers, obs, jnp.zeros(batch, bool), mask, carry)
    if deterministic:
        return distribution.mode(), carry
    return distribution.sample_from(model.head.draw_noise(key, (batch,))), carry


def _as_stored(leaf: spaces.Leaf, value: Any) -> np.ndarray:
    """An observation's leaf in the dtype that it is stored in; `ValueError` where that would be another observation."""
    array, dtype = np.asarray(value), spaces.storage_dtype(leaf)
    if array.dtype == dtype and dtype.kind == "f":
        return array
    if array.dtype.kind not in ("biuf" if dtype.kind == "f" else "biu"):
        raise ValueError(f"{array.dtype} in place of {dtype}")
    if dtype.kind != "f":
        low, high = spaces.limits(leaf)
        if ((array < low) | (array > high)).any():
            raise ValueError("a number outside the space")
    return array.astype(dtype)

"""From raw observations to the vector a network reads, in one place for acting, updating and evaluation."""

from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from inchworm import spaces
from inchworm.errors import UnsupportedSpaceError
from inchworm.numerics import running_stats
from inchworm.numerics.running_stats import RunningStats
from inchworm.types import AnyArray, ArrayTree

OBSERVATION_CLIP = 5.0
"""Normalised observations are clipped to +-5, as in the authors' code (openai/baselines ppo1)."""

ObsStats = tuple[RunningStats | None, ...]
"""Statistics of each leaf of the observation, None for leaves that are not normalised."""


class Normalizer(NamedTuple):
    """Statistics frozen for one iteration, ready to apply."""

    mean: Float[AnyArray, "*shape"]
    inverse_std: Float[AnyArray, "*shape"]

    def __call__(self, x: Float[AnyArray, "*batch"]) -> Float[AnyArray, "*batch"]:
        """(x - mean) / std, clipped to +-`OBSERVATION_CLIP`."""
        xp = x.__array_namespace__()
        scaled = (x - self.mean) * self.inverse_std
        return xp.minimum(xp.maximum(scaled, -OBSERVATION_CLIP), OBSERVATION_CLIP)


Normalizers = tuple[Normalizer | None, ...]
"""A normaliser for each leaf of the observation, None for leaves that pass unchanged."""


def check_observation_space(space: spaces.Space) -> None:
    """Raises `UnsupportedSpaceError` for a leaf that `encode` cannot read."""
    for leaf in spaces.leaves(space):
        if isinstance(leaf, spaces.Box) and len(leaf.shape) == 3 and leaf.dtype == "uint8":
            raise UnsupportedSpaceError(
                "observation_space",
                repr(leaf),
                "holds images, and convolutional policies are not there yet",
                "Reduce the observation to a vector with a gymnasium.ObservationWrapper.",
            )


def num_features(space: spaces.Space) -> int:
    """Length of the vector that `encode` makes."""
    return sum(leaf.size if isinstance(leaf, spaces.Box) else leaf.n for leaf in spaces.leaves(space))


def has_scale(leaf: spaces.Box | spaces.Discrete) -> TypeGuard[spaces.Box]:
    """True for a leaf of measurements, a Box of floats: these are normalised, counts and choices are not."""
    return isinstance(leaf, spaces.Box) and np.issubdtype(np.dtype(leaf.dtype), np.floating)


def empty_stats(space: spaces.Space, normalize: bool) -> ObsStats:
    """Statistics of no observations; those of float Box leaves only, and none at all if not `normalize`."""
    return tuple(
        running_stats.empty(leaf.shape) if normalize and has_scale(leaf) else None for leaf in spaces.leaves(space)
    )


def absorb(stats: ObsStats, space: spaces.Space, obs: ArrayTree, weight: Float[AnyArray, " B"]) -> ObsStats:
    """The statistics after a batch of observations (B, ...); rows of weight 0 count for nothing."""
    leaves = spaces.flatten(space, obs)
    return tuple(
        None if old is None else running_stats.merge(old, running_stats.of_samples(leaf, weight))
        for old, leaf in zip(stats, leaves, strict=True)
    )


def freeze(stats: ObsStats) -> Normalizers:
    """What acting and updating both normalise by until the statistics change."""
    # 1e-8 under the root (ppo2), not beside it: else the rounding of a constant feature's mean becomes a deviation.
    return tuple(
        None if leaf is None else Normalizer(leaf.mean, 1.0 / jnp.sqrt(leaf.variance + 1e-8)) for leaf in stats
    )


def encode(space: spaces.Space, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch F"]:
    """The features of a batch of raw observations.

    Box leaves are normalised if they have statistics, and flattened; Discrete ones become one-hot vectors; all
    are laid side by side.
    """
    if isinstance(space, spaces.Box | spaces.Discrete):  # the common case, run between environment steps
        return _encode_leaf(space, normalizers[0], obs)
    parts = [
        _encode_leaf(leaf, normalizer, value)
        for leaf, normalizer, value in zip(spaces.leaves(space), normalizers, spaces.flatten(space, obs), strict=True)
    ]
    return parts[0].__array_namespace__().concatenate(parts, axis=-1)


def _encode_leaf(leaf: spaces.Box | spaces.Discrete, normalizer: Normalizer | None, value: AnyArray) -> AnyArray:
    if isinstance(leaf, spaces.Discrete):
        xp = value.__array_namespace__()
        return (value[..., None] == xp.arange(leaf.start, leaf.start + leaf.n)).astype("float32")
    if normalizer is not None:
        value = normalizer(value)
    if len(leaf.shape) != 1:
        value = value.reshape((*value.shape[: value.ndim - len(leaf.shape)], leaf.size))
    return value if value.dtype == jnp.float32 else value.astype("float32")


def to_numpy(tree: ArrayTree) -> ArrayTree:
    """The same pytree with NumPy leaves of its own, safe from the buffers JAX may reuse."""
    return jax.tree.map(np.array, tree)

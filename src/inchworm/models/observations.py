"""From raw observations to the vector a network reads, in one place for acting, updating and evaluation."""

from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inchworm import spaces
from inchworm.models.convolution import channels_first
from inchworm.numerics import running_stats
from inchworm.numerics.running_stats import RunningStats
from inchworm.rl.diagnostics import weighted_mean
from inchworm.types import AnyArray, ArrayTree

OBSERVATION_CLIP = 5.0
"""Normalised observations are clipped to +-5, as in the authors' code (openai/baselines ppo1)."""

MIN_SIDE = 20
"""Of what is taken for an image by its shape alone."""
MAX_CHANNELS = 4
"""Of a frame that is taken for an image by its shape and bounds."""

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


def num_features(leaf: spaces.Leaf) -> int:
    """Length of the vector that a leaf becomes."""
    match leaf:
        case spaces.Discrete(n):
            return n
        case spaces.MultiDiscrete(nvec):
            return sum(nvec)
        case _:
            return leaf.size


def is_image(leaf: spaces.Leaf) -> TypeGuard[spaces.Box]:
    """True for what goes through a convolutional network.

    That is a Box of bytes with three axes, or with two of some length, a frame without colours; and what cannot be
    mistaken: a stack of a few such frames, and a frame or a stack of floats from 0 to 1 or to 255.
    """
    if not isinstance(leaf, spaces.Box):
        return False
    if leaf.dtype == "uint8" and len(leaf.shape) < 4:
        return len(leaf.shape) == 3 or (len(leaf.shape) == 2 and min(leaf.shape) >= MIN_SIDE)
    frame = leaf.shape[-3:]
    if len(leaf.shape) not in (3, 4) or not (leaf.dtype == "uint8" or (_is_float(leaf) and _has_pixels_bounds(leaf))):
        return False
    sides, channels = (frame[1:], frame[0]) if channels_first(frame) else (frame[:2], frame[2])
    plain = min(sides) >= MIN_SIDE and channels <= MAX_CHANNELS
    return plain and (len(leaf.shape) == 3 or leaf.shape[0] < min(sides))


def may_be_image(leaf: spaces.Leaf) -> bool:
    """True for what becomes a vector and could have been meant as an image."""
    if not isinstance(leaf, spaces.Box) or is_image(leaf) or sum(side >= MIN_SIDE for side in leaf.shape) < 2:
        return False
    return len(leaf.shape) > 2 or _has_pixels_bounds(leaf)


def _has_pixels_bounds(leaf: spaces.Box) -> bool:
    return not np.any(leaf.low) and np.unique(leaf.high).tolist() in ([1.0], [255.0])


def _is_float(leaf: spaces.Box) -> bool:
    return np.issubdtype(np.dtype(leaf.dtype), np.floating)


def has_scale(leaf: spaces.Leaf) -> TypeGuard[spaces.Box]:
    """True for a leaf of measurements, a Box of floats: these are normalised; counts, choices and images are not."""
    return isinstance(leaf, spaces.Box) and _is_float(leaf) and not is_image(leaf)


def reaches_network_raw(leaf: spaces.Leaf, normalize: bool) -> bool:
    """True for numbers that the network gets as they are: not normalised, and not divided by their upper bound, as
    bytes and images are."""
    scaled = isinstance(leaf, spaces.Box) and (leaf.dtype == "uint8" or is_image(leaf))
    return isinstance(leaf, spaces.Box) and not scaled and not (normalize and has_scale(leaf))


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


def share_clipped(
    space: spaces.Space, normalizers: Normalizers, obs: ArrayTree, weight: Float[AnyArray, "*batch"]
) -> Float[Array, ""] | None:
    """Share of the normalised numbers of observations that are clipped; None where nothing is normalised."""
    sizes, shares = [], []
    for leaf, normalizer, value in zip(spaces.leaves(space), normalizers, spaces.flatten(space, obs), strict=True):
        if normalizer is not None and isinstance(leaf, spaces.Box):
            beyond = jnp.abs((value - normalizer.mean) * normalizer.inverse_std) > OBSERVATION_CLIP
            rows = jnp.mean(beyond.astype(jnp.float32).reshape((*weight.shape, leaf.size)), axis=-1)
            sizes.append(leaf.size)
            shares.append(weighted_mean(rows, weight))
    return jnp.average(jnp.stack(shares), weights=jnp.array(sizes, jnp.float32)) if shares else None


def normalize(space: spaces.Space, normalizers: Normalizers, obs: ArrayTree) -> ArrayTree:
    """The observation with its float leaves scaled, in the space's structure: images by their bound."""
    parts = zip(spaces.leaves(space), normalizers, spaces.flatten(space, obs), strict=True)
    return spaces.unflatten(space, [_scaled(*part) for part in parts])


def _scaled(leaf: spaces.Leaf, normalizer: Normalizer | None, value: AnyArray) -> AnyArray:
    if normalizer is not None:
        return normalizer(value)
    return scale_by_bound(leaf, value) if is_image(leaf) and _is_float(leaf) else value


def encode(space: spaces.Space, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch F"]:
    """The features of a batch of raw observations.

    Box leaves are normalised if they have statistics, bytes divided by their upper bound, and all flattened; choices
    become one-hot vectors, bits numbers; everything is laid side by side.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):  # the common case, run between environment steps
        return encode_leaf(space, normalizers[0], obs)
    parts = [
        encode_leaf(leaf, normalizer, value)
        for leaf, normalizer, value in zip(spaces.leaves(space), normalizers, spaces.flatten(space, obs), strict=True)
    ]
    return parts[0].__array_namespace__().concatenate(parts, axis=-1)


def encode_leaf(leaf: spaces.Leaf, normalizer: Normalizer | None, value: AnyArray) -> Float[AnyArray, "*batch F"]:
    """The features of one leaf."""
    match leaf:
        case spaces.Discrete(n, start):
            return _one_hot(value, n, start)
        case spaces.MultiDiscrete(nvec, shape, start):
            xp = value.__array_namespace__()
            flat = value.reshape((*value.shape[: value.ndim - len(shape)], len(nvec)))
            return xp.concatenate([_one_hot(flat[..., i], n, start[i]) for i, n in enumerate(nvec)], axis=-1)
        case _:
            if normalizer is not None:
                value = normalizer(value)
            elif isinstance(leaf, spaces.Box) and leaf.dtype == "uint8":
                value = scale_by_bound(leaf, value)
            if len(leaf.shape) != 1:
                value = value.reshape((*value.shape[: value.ndim - len(leaf.shape)], leaf.size))
            return value if value.dtype == jnp.float32 else value.astype("float32")


def scale_by_bound(leaf: spaces.Box, value: AnyArray) -> Float[AnyArray, "*shape"]:
    """Bytes or pixels divided by their upper bound: numbers within [0, 1]."""
    return value.astype("float32") / np.float32(max(1.0, np.max(leaf.high)))


def _one_hot(value: AnyArray, n: int, start: int) -> AnyArray:
    xp = value.__array_namespace__()
    return (value[..., None] == xp.arange(start, start + n)).astype("float32")


def to_numpy(tree: ArrayTree) -> ArrayTree:
    """The same pytree with NumPy leaves of its own, safe from the buffers JAX may reuse."""
    return jax.tree.map(np.array, tree)

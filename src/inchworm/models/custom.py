"""Networks of the user's own, made by whatever library: their arrays are parameters, all else stays as it is."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from inchworm import spaces
from inchworm.errors import ConfigError
from inchworm.models.observations import Normalizers, normalize
from inchworm.numerics.tree import pytree
from inchworm.types import AnyArray, ArrayTree, PRNGKey

CustomNetwork = Callable[[PRNGKey, spaces.Space], Callable[[Any], Any]]
"""A network of the user's own: from a key and the observation space to a pytree that is called with a batch of
normalised observations, a tree like the space with leaves (B, ...), and returns features (B, F)."""

Kept = tuple[tuple[int, Any], ...]
"""Leaves that are no parameters, and their places among all."""


@pytree
class CustomEncoder:
    """A network of the user's own, fed with normalised observations."""

    network: Any
    """None in place of what is `kept`."""
    kept: Kept = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})
    """Of the whole network, which its arrays and what is kept are put together by."""
    space: spaces.Space = field(metadata={"static": True})

    def __call__(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch F"]:
        leaves = spaces.flatten(self.space, normalize(self.space, normalizers, obs))
        batch = leaves[0].shape[: leaves[0].ndim - len(spaces.leaf_shape(spaces.leaves(self.space)[0]))]
        flat = [leaf.reshape((math.prod(batch), *leaf.shape[len(batch) :])) for leaf in leaves]
        features = self.call(spaces.unflatten(self.space, flat))
        return features.reshape((*batch, features.shape[-1]))

    def call(self, obs: ArrayTree) -> Any:
        """What the network says about a batch of observations, leaves (B, ...)."""
        leaves = jax.tree.leaves(self.network)
        for place, leaf in self.kept:
            leaves.insert(place, leaf)
        return jax.tree.unflatten(self.structure, leaves)(obs)


def make_custom_encoder(custom: CustomNetwork, key: PRNGKey, space: spaces.Space) -> tuple[CustomEncoder, int]:
    """The encoder that a user's function makes, and how many features it gives.

    Raises:
        ConfigError: it makes none, or one with leaves that can be neither trained nor kept.
    """
    try:
        network = custom(key, space)
    except Exception as error:
        raise ConfigError(
            "network",
            getattr(custom, "__qualname__", type(custom).__name__),
            f"raises {type(error).__name__}: {error}",
            "Give a function that takes a random key and the observation space, and returns a pytree.",
        ) from error
    encoder = _part(network, space)
    return encoder, _width_of(encoder, type(network).__name__)


def _part(network: Any, space: spaces.Space) -> CustomEncoder:
    """The network with its parameters apart from all else.

    What is no array, as an activation, a number or a flag, becomes part of the structure that programs are compiled
    for, so that it reaches the network as it was.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(network)
    kept: list[tuple[int, Any]] = []
    for place, (path, leaf) in enumerate(paths):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "the network"
        if not isinstance(leaf, jax.Array | np.ndarray):
            _check_kept(name, leaf)
            kept.append((place, leaf))
        elif not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise _misfit(name, f"is an array of {leaf.dtype}, which has no gradient")
    _check_kept("its structure", structure)
    if kept:
        left_out = {place for place, _ in kept}
        leaves = [None if place in left_out else leaf for place, (_, leaf) in enumerate(paths)]
        network = jax.tree.unflatten(structure, leaves)
    return CustomEncoder(network, tuple(kept), structure, space)


def _check_kept(name: str, part: Any) -> None:
    """Raises `ConfigError` for what cannot be part of a structure."""
    try:
        hash(part)
    except TypeError as error:
        raise _misfit(name, f"is of type {type(part).__name__} and cannot be hashed ({error})") from error


def _misfit(name: str, problem: str) -> ConfigError:
    return ConfigError(
        "network",
        name,
        f"{problem}, where a network is made of arrays of floats, its parameters, and of what stays as it is",
        "Make it a static field, as a function, a number or a tuple, or leave it out.",
    )


def _width_of(encoder: CustomEncoder, name: str) -> int:
    """How many features a network gives for one observation."""
    leaves = spaces.leaves(encoder.space)
    shapes = [jax.ShapeDtypeStruct((1, *spaces.leaf_shape(leaf)), spaces.storage_dtype(leaf)) for leaf in leaves]
    one = spaces.unflatten(encoder.space, shapes)
    try:
        program, features = jax.make_jaxpr(lambda encoder, obs: encoder.call(obs), return_shape=True)(encoder, one)
    except Exception as error:
        raise _no_features(name, f"{type(error).__name__}: {error}") from error
    hidden = sum(isinstance(const, Tracer) for const in program.consts)
    if hidden:
        raise ConfigError(
            "network",
            name,
            f"reads {hidden} array{'s' if hidden > 1 else ''} that it was made with and that are not among its leaves, "
            "so that they would not be trained",
            "Return a pytree that holds them, as jax.tree_util.Partial(function, parameters).",
        )
    if len(getattr(features, "shape", ())) != 2 or features.shape[0] != 1:
        raise _no_features(name, f"an array of shape {getattr(features, 'shape', type(features).__name__)}")
    return features.shape[1]


def _no_features(name: str, found: str) -> ConfigError:
    return ConfigError(
        "network",
        name,
        f"gives {found} for a batch of one observation",
        "Return an array of shape (batch, features) for observations of shape (batch, ...).",
    )

"""From raw observations to outputs: encoder, recurrent core and layers."""

import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from inchworm import spaces
from inchworm.errors import ConfigError
from inchworm.models.convolution import IMAGE_NETWORKS
from inchworm.models.mlp import MLP, orthogonal_mlp
from inchworm.models.observations import (
    Normalizers,
    encode,
    encode_leaf,
    is_image,
    normalize,
    num_features,
    scale_bytes,
)
from inchworm.models.recurrent import GRU, LSTM, orthogonal_gru, orthogonal_lstm
from inchworm.models.settings import ModelSettings
from inchworm.numerics.tree import pytree
from inchworm.types import AnyArray, ArrayTree, PRNGKey

CustomNetwork = Callable[[PRNGKey, spaces.Space], Callable[[Any], Any]]
"""A network of the user's own: from a key and the observation space to a pytree that is called with a batch of
normalised observations, a tree like the space with leaves (B, ...), and returns features (B, F)."""


@pytree
class VectorEncoder:
    """Lays all leaves side by side; it has no parameters, and runs on NumPy arrays too."""

    space: spaces.Space = field(metadata={"static": True})

    def __call__(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch F"]:
        return encode(self.space, normalizers, obs)


@pytree
class ImageEncoder:
    """Each image goes through a convolutional network of its own, all else is laid beside what these say."""

    networks: tuple[Any, ...]
    """One for each leaf of the space, None where it is no image."""
    space: spaces.Space = field(metadata={"static": True})

    def __call__(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch F"]:
        rows = zip(self.networks, spaces.leaves(self.space), normalizers, spaces.flatten(self.space, obs), strict=True)
        parts = [
            network(scale_bytes(leaf, value)) if is_image(leaf) else encode_leaf(leaf, normalizer, value)
            for network, leaf, normalizer, value in rows
        ]
        return jnp.concatenate(parts, axis=-1)


@pytree
class CustomEncoder:
    """A network of the user's own, fed with normalised observations."""

    network: Any
    space: spaces.Space = field(metadata={"static": True})

    def __call__(self, normalizers: Normalizers, obs: ArrayTree) -> Float[AnyArray, "*batch F"]:
        leaves = spaces.flatten(self.space, normalize(self.space, normalizers, obs))
        batch = leaves[0].shape[: leaves[0].ndim - len(spaces.leaf_shape(spaces.leaves(self.space)[0]))]
        flat = [leaf.reshape((math.prod(batch), *leaf.shape[len(batch) :])) for leaf in leaves]
        features = self.network(spaces.unflatten(self.space, flat))
        return features.reshape((*batch, features.shape[-1]))


@pytree
class Network:
    """Encoder, recurrent core if there is one, and layers: from raw observations to outputs."""

    encoder: VectorEncoder | ImageEncoder | CustomEncoder
    core: GRU | LSTM | None
    layers: MLP
    compute_dtype: str = field(default="float32", metadata={"static": True})
    """Of encoder and layers; parameters, memory and outputs are float32."""

    def initial_carry(self, num_envs: int) -> ArrayTree:
        """The recurrent state at an episode's start, (N, ...); None without a core."""
        return None if self.core is None else self.core.initial_carry(num_envs)

    def step(
        self, normalizers: Normalizers, obs: ArrayTree, first: Bool[AnyArray, " N"] | None, carry: ArrayTree
    ) -> tuple[Float[AnyArray, "N outputs"], ArrayTree]:
        """Outputs for one step of N environments, and the carry after it."""
        narrow = self._narrow()
        features = narrow._features(normalizers, obs)
        if narrow.core is not None:
            assert first is not None
            features, carry = narrow.core.step(carry, self._widen(features), first)
        return self._widen(narrow.layers(self._cast(features))), carry

    def unroll(
        self, normalizers: Normalizers, obs: ArrayTree, first: Bool[AnyArray, "*batch"] | None, carry: ArrayTree
    ) -> tuple[Float[AnyArray, "*batch outputs"], ArrayTree]:
        """Outputs for T steps of N environments, and the carries after each of them, (T, N, ...).

        Without a core the leading axes are any batch.
        """
        narrow = self._narrow()
        features = narrow._features(normalizers, obs)
        carries = None
        if narrow.core is not None:
            assert first is not None
            features, carries = narrow.core.unroll(carry, self._widen(features), first)
        return self._widen(narrow.layers(self._cast(features))), carries

    def look_ahead(self, normalizers: Normalizers, next_obs: ArrayTree, carries: ArrayTree) -> AnyArray:
        """Outputs for the successors of T steps of N environments, from the carries after those steps."""
        if self.core is None:
            return self.unroll(normalizers, next_obs, None, None)[0]

        def one(obs: ArrayTree, carry: ArrayTree) -> AnyArray:
            never = jnp.zeros(jax.tree.leaves(obs)[0].shape[0], bool)
            return self.step(normalizers, obs, never, carry)[0]

        return jax.vmap(one)(next_obs, carries)

    def _features(self, normalizers: Normalizers, obs: ArrayTree) -> AnyArray:
        return self._cast(self.encoder(normalizers, obs))

    def _narrow(self) -> "Network":
        """The network with its parameters in the dtype to compute in, but for memory and a user's own part."""
        if self.compute_dtype == "float32":
            return self
        encoder = self.encoder if isinstance(self.encoder, CustomEncoder) else self._cast(self.encoder)
        return replace(self, encoder=encoder, layers=self._cast(self.layers))

    def _cast(self, tree: Any) -> Any:
        if self.compute_dtype == "float32":
            return tree
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.compute_dtype), tree)

    def _widen(self, tree: Any) -> Any:
        if self.compute_dtype == "float32":
            return tree
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def make_network(
    key: PRNGKey,
    space: spaces.Space,
    settings: ModelSettings,
    custom: CustomNetwork | None,
    outputs: int | None,
    last_layer_scale: float,
) -> tuple[Network, int]:
    """A network that reads observations of a space, and the width of what it gives.

    With `outputs` None it ends in its last hidden layer.
    """
    encoder, width = _make_encoder(jax.random.fold_in(key, 1), space, settings, custom)
    core = None
    if settings.recurrent != "none":
        make_core = {"gru": orthogonal_gru, "lstm": orthogonal_lstm}[settings.recurrent]
        core, width = make_core(jax.random.fold_in(key, 2), width, settings.recurrent_size), settings.recurrent_size
    layers = orthogonal_mlp(key, width, settings.hidden_sizes, outputs, settings.activation, last_layer_scale)
    return Network(encoder, core, layers, settings.compute_dtype), (
        width,
        *settings.hidden_sizes,
        *([] if outputs is None else [outputs]),
    )[-1]


def _make_encoder(
    key: PRNGKey, space: spaces.Space, settings: ModelSettings, custom: CustomNetwork | None
) -> tuple[VectorEncoder | ImageEncoder | CustomEncoder, int]:
    """The encoder, and the length of the vector it makes of an observation."""
    leaves = spaces.leaves(space)
    if custom is not None:
        encoder = CustomEncoder(_call_custom(custom, key, space), space)
    elif any(map(is_image, leaves)):
        make = IMAGE_NETWORKS[settings.image_network]
        keys = jax.random.split(key, len(leaves))
        rows = zip(keys, leaves, strict=True)
        encoder = ImageEncoder(
            tuple(make(k, spaces.leaf_shape(leaf)) if is_image(leaf) else None for k, leaf in rows), space
        )
    else:
        return VectorEncoder(space), sum(map(num_features, leaves))
    return encoder, _width_of(encoder, leaves)


def _call_custom(custom: CustomNetwork, key: PRNGKey, space: spaces.Space) -> Any:
    try:
        return custom(key, space)
    except Exception as error:
        raise ConfigError(
            "network",
            getattr(custom, "__qualname__", type(custom).__name__),
            f"raises {type(error).__name__}: {error}",
            "Give a function that takes a random key and the observation space, and returns a pytree.",
        ) from error


def _width_of(encoder: ImageEncoder | CustomEncoder, leaves: list[spaces.Leaf]) -> int:
    """How many features an encoder gives for one observation."""
    one = spaces.unflatten(
        encoder.space,
        [jax.ShapeDtypeStruct((1, *spaces.leaf_shape(leaf)), spaces.storage_dtype(leaf)) for leaf in leaves],
    )

    def features_of(encoder: ImageEncoder | CustomEncoder, obs: ArrayTree) -> AnyArray:
        return encoder.network(obs) if isinstance(encoder, CustomEncoder) else encoder((None,) * len(leaves), obs)

    try:
        features = jax.eval_shape(features_of, encoder, one)
        if len(features.shape) == 2 and features.shape[0] == 1:
            return features.shape[1]
        found = f"an array of shape {features.shape}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    raise ConfigError(
        "network",
        type(getattr(encoder, "network", encoder)).__name__,
        f"gives {found} for a batch of one observation",
        "Return an array of shape (batch, features) for observations of shape (batch, ...).",
    )

"""From raw observations to outputs: encoder, recurrent core and layers."""

from dataclasses import field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from inchworm import spaces
from inchworm.models.convolution import IMAGE_NETWORKS
from inchworm.models.custom import CustomEncoder, CustomNetwork, make_custom_encoder
from inchworm.models.mlp import MLP, orthogonal_mlp
from inchworm.models.observations import (
    Normalizers,
    encode,
    encode_leaf,
    is_image,
    num_features,
    scale_by_bound,
)
from inchworm.models.recurrent import GRU, LSTM, orthogonal_gru, orthogonal_lstm
from inchworm.models.settings import ModelSettings
from inchworm.numerics.tree import pytree
from inchworm.types import AnyArray, ArrayTree, PRNGKey


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
            network(scale_by_bound(leaf, value)) if is_image(leaf) else encode_leaf(leaf, normalizer, value)
            for network, leaf, normalizer, value in rows
        ]
        return jnp.concatenate(parts, axis=-1)


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
        return make_custom_encoder(custom, key, space)
    if not any(map(is_image, leaves)):
        return VectorEncoder(space), sum(map(num_features, leaves))
    make = IMAGE_NETWORKS[settings.image_network]
    rows = zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    networks = tuple(make(k, spaces.leaf_shape(leaf)) if is_image(leaf) else None for k, leaf in rows)
    widths = [
        num_features(leaf) if network is None else network.num_features
        for network, leaf in zip(networks, leaves, strict=True)
    ]
    return ImageEncoder(networks, space), sum(widths)

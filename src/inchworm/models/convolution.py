"""Convolutional networks, which make a vector of features of an image.

A network is a pytree of its arrays that knows the shape of one image, so any number of batch axes may stand before
it. Images are (H, W, C), (C, H, W) or, with one channel, (H, W). Of a stack of S images, (S, H, W, C) or (S, C, H, W),
the frames' channels stand side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from inchworm.errors import UnsupportedSpaceError
from inchworm.models.mlp import orthogonal
from inchworm.numerics.tree import pytree
from inchworm.types import AnyArray, PRNGKey

SECTIONS = (16, 32, 32)
"""Channels of the sections of IMPALA's network."""
LAYERS_PER_SECTION = 5
"""One convolution before the pooling, two in each of two residual blocks."""


@pytree
class CNN:
    """Convolutions without padding and a dense layer, each followed by relu."""

    kernels: tuple[AnyArray, ...]
    """One (height, width, channels in, channels out) array a layer."""
    biases: tuple[AnyArray, ...]
    dense_weight: AnyArray
    """(flattened last layer, features)"""
    dense_bias: AnyArray
    strides: tuple[int, ...] = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    """Of one image, as it comes."""

    @property
    def num_features(self) -> int:
        return self.dense_bias.shape[0]

    def __call__(self, images: Shaped[AnyArray, "*batch_and_shape"]) -> Float[Array, "*batch features"]:
        x, batch = _channels_last(images, self.shape, self.dense_weight.dtype)
        for kernel, bias, stride in zip(self.kernels, self.biases, self.strides, strict=True):
            x = jax.nn.relu(_convolve(x, kernel, bias, stride, "VALID"))
        return _dense(x, self.dense_weight, self.dense_bias).reshape(*batch, self.num_features)


@pytree
class ImpalaCNN:
    """The residual network of IMPALA without its LSTM: Espeholt et al. 2018, arXiv:1802.01561, figure 3, right.

    Each section is a convolution, a max-pooling that halves height and width, and two residual blocks
    x + conv(relu(conv(relu(x)))). All kernels are 3x3, all borders padded.
    """

    kernels: tuple[AnyArray, ...]
    """One (3, 3, channels in, channels out) array a layer, `LAYERS_PER_SECTION` a section."""
    biases: tuple[AnyArray, ...]
    dense_weight: AnyArray
    """(flattened last layer, features)"""
    dense_bias: AnyArray
    shape: tuple[int, ...] = field(metadata={"static": True})
    """Of one image, as it comes."""

    @property
    def num_features(self) -> int:
        return self.dense_bias.shape[0]

    def __call__(self, images: Shaped[AnyArray, "*batch_and_shape"]) -> Float[Array, "*batch features"]:
        x, batch = _channels_last(images, self.shape, self.dense_weight.dtype)
        layers = list(zip(self.kernels, self.biases, strict=True))
        for start in range(0, len(layers), LAYERS_PER_SECTION):
            first, *blocks = layers[start : start + LAYERS_PER_SECTION]
            x = _halve(_convolve(x, *first, 1, "SAME"))
            for inner, outer in zip(blocks[::2], blocks[1::2], strict=True):
                y = _convolve(jax.nn.relu(x), *inner, 1, "SAME")
                x = x + _convolve(jax.nn.relu(y), *outer, 1, "SAME")
        return _dense(jax.nn.relu(x), self.dense_weight, self.dense_bias).reshape(*batch, self.num_features)


class _Layers(NamedTuple):
    """Convolutions without padding, and the width of the dense layer that follows."""

    channels: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    features: int

    @property
    def smallest(self) -> int:
        """Height and width of the smallest image."""
        side = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            side = (side - 1) * stride + size
        return side


LAYERS = {
    "nature": _Layers((32, 64, 64), sizes=(8, 4, 3), strides=(4, 2, 1), features=512),
    "small": _Layers((16, 32), sizes=(8, 4), strides=(4, 2), features=256),
}


def nature_cnn(key: PRNGKey, shape: tuple[int, ...]) -> CNN:
    """The network of Mnih et al. 2015, "Human-level control through deep reinforcement learning".

    Raises:
        UnsupportedSpaceError: `shape` is no image, or one smaller than 36x36.
    """
    return _orthogonal_cnn(key, shape, LAYERS["nature"])


def small_cnn(key: PRNGKey, shape: tuple[int, ...]) -> CNN:
    """The network of Mnih et al. 2016, arXiv:1602.01783, which the Atari runs of arXiv:1707.06347 use.

    Raises:
        UnsupportedSpaceError: `shape` is no image, or one smaller than 20x20.
    """
    return _orthogonal_cnn(key, shape, LAYERS["small"])


def impala_cnn(key: PRNGKey, shape: tuple[int, ...]) -> ImpalaCNN:
    """The network of `ImpalaCNN`, with 16, 32 and 32 channels and 256 features.

    Raises:
        UnsupportedSpaceError: `shape` is no image.
    """
    height, width, channels = _height_width_channels(shape)
    shapes = []
    for channels_out in SECTIONS:
        shapes += [(3, 3, channels, channels_out)] + [(3, 3, channels_out, channels_out)] * (LAYERS_PER_SECTION - 1)
        height, width, channels = -(-height // 2), -(-width // 2), channels_out
    *kernels, dense = _orthogonal_weights(key, [*shapes, (height * width * channels, 256)])
    return ImpalaCNN(tuple(kernels), _zero_biases(kernels), dense, jnp.zeros(256, jnp.float32), shape)


IMAGE_NETWORKS = {"nature": nature_cnn, "small": small_cnn, "impala": impala_cnn}


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the first axis of an image of three axes holds its channels: the smaller of first and last axis does.

    The last if both are equal. (4, 84, 84) has them first, (84, 84, 4) and (8, 8, 8) last.
    """
    return shape[0] < shape[-1]


def _orthogonal_cnn(key: PRNGKey, shape: tuple[int, ...], layers: _Layers) -> CNN:
    channels, sizes, strides, features = layers
    height, width, channels_in = _height_width_channels(shape)
    if min(height, width) < layers.smallest:
        fitting = [name for name, other in LAYERS.items() if min(height, width) >= other.smallest]
        choice = " or ".join(f'"{name}"' for name in [*fitting, "impala"])
        raise UnsupportedSpaceError(
            "observation_space",
            f"an image of {height}x{width}",
            "is smaller than the network's kernels reach",
            f"Set image_network to {choice}, or give images of at least {layers.smallest}x{layers.smallest}.",
        )
    shapes = []
    for channels_out, size, stride in zip(channels, sizes, strides, strict=True):
        shapes.append((size, size, channels_in, channels_out))
        height, width = (height - size) // stride + 1, (width - size) // stride + 1
        channels_in = channels_out
    *kernels, dense = _orthogonal_weights(key, [*shapes, (height * width * channels_in, features)])
    return CNN(tuple(kernels), _zero_biases(kernels), dense, jnp.zeros(features, jnp.float32), strides, shape)


def _orthogonal_weights(key: PRNGKey, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Weights of orthonormal columns or rows times sqrt(2), all axes but the last taken as one."""
    sizes = [math.prod(shape) for shape in shapes]
    # One draw and one decomposition for all weights of a shape, because each costs time to compile.
    parts = jnp.split(jax.random.normal(key, (sum(sizes),), jnp.float32), np.cumsum(sizes)[:-1])
    weights = {}
    for shape in dict.fromkeys(shapes):
        alike = [index for index, other in enumerate(shapes) if other == shape]
        normal = jnp.stack([parts[index].reshape(-1, shape[-1]) for index in alike])
        for index, weight in zip(alike, math.sqrt(2.0) * jax.vmap(orthogonal)(normal), strict=True):
            weights[index] = weight.reshape(shape)
    return [weights[index] for index in range(len(shapes))]


def _zero_biases(kernels: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(jnp.zeros(kernel.shape[-1], jnp.float32) for kernel in kernels)


def _height_width_channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) == 3:
        return (shape[1], shape[2], shape[0]) if channels_first(shape) else (shape[0], shape[1], shape[2])
    if len(shape) == 4:
        height, width, channels = _height_width_channels(shape[1:])
        return height, width, shape[0] * channels
    raise UnsupportedSpaceError(
        "observation_space",
        f"shape {shape}",
        "is no image",
        "Give images of shape (H, W), (H, W, C) or (C, H, W), or a stack of such with colours.",
    )


def _channels_last(
    images: Shaped[AnyArray, "*batch_and_shape"], shape: tuple[int, ...], dtype: Any
) -> tuple[Float[Array, "B H W C"], tuple[int, ...]]:
    """Images with one batch axis as floats, and the batch axes that they had."""
    # The image axes are taken from the array, so that images of another shape reach the kernels and are refused there.
    axes = images.ndim - len(shape)
    batch = images.shape[:axes]
    x = jnp.asarray(images).reshape(math.prod(batch), *images.shape[axes:])
    if len(shape) == 2:
        x = x[..., None]
    elif channels_first(shape[-3:]):
        x = jnp.moveaxis(x, -3, -1)
    if len(shape) == 4:
        x = jnp.moveaxis(x, 1, -2).reshape(*x.shape[:1], *x.shape[2:4], x.shape[1] * x.shape[4])
    return x.astype(dtype), batch


def _convolve(
    x: Float[Array, "B H W C"],
    kernel: Float[AnyArray, "h w C D"],
    bias: Float[AnyArray, " D"],
    stride: int,
    padding: str,
) -> Float[Array, "B H2 W2 D"]:
    def by_library(x: Array, kernel: Array) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)

    def by_product(x: Array, kernel: Array) -> Array:
        return _convolve_by_product(x, kernel, stride, padding)

    return lax.platform_dependent(x, jnp.asarray(kernel), cpu=by_product, default=by_library) + bias


def _convolve_by_product(
    x: Float[Array, "B H W C"], kernel: Float[AnyArray, "h w C D"], stride: int, padding: str
) -> Float[Array, "B H2 W2 D"]:
    """The sum over the places in a window of matrix products of the pixels there.

    XLA's own convolution on a CPU is up to thirty times as slow inside a loop, as that over minibatches, as outside.
    """
    size = kernel.shape[0]
    if padding == "SAME":
        pads = [_same_padding(length, size, stride) for length in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
    if stride > 1 and size % stride == 0:
        # Squares of stride x stride pixels become one with so many times the channels: fewer and longer pieces to lay
        # side by side.
        batch, channels = x.shape[0], x.shape[3]
        rows, columns = height + size // stride - 1, width + size // stride - 1
        x = x[:, : rows * stride, : columns * stride].reshape(batch, rows, stride, columns, stride, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, stride * stride * channels)
        kernel = kernel.reshape(size // stride, stride, size // stride, stride, channels, -1)
        kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(size // stride, size // stride, x.shape[3], -1)
        size, stride = size // stride, 1
    parts = [
        x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    ]
    return sum(parts[1:], parts[0])


def _same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, so that ceil(length / stride) windows fit."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def _halve(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Maxima of 3x3 windows at a stride of 2."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def _dense(
    x: Float[Array, "B H W C"], weight: Float[AnyArray, "inputs features"], bias: Float[AnyArray, " features"]
) -> Float[Array, "B features"]:
    return jax.nn.relu(jnp.dot(x.reshape(len(x), -1), weight) + bias)

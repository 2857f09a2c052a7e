"""Convolutional networks against loops, and what they make of an image's shape and dtype."""

import itertools
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm import spaces
from inchworm.errors import UnsupportedSpaceError
from inchworm.models import convolution, observations
from inchworm.models.convolution import (
    CNN,
    IMAGE_NETWORKS,
    ImpalaCNN,
    channels_first,
    impala_cnn,
    nature_cnn,
    small_cnn,
)
from inchworm.models.network import ImageEncoder

rng = np.random.default_rng(0)
apply = jax.jit(lambda network, images: network(images))
encode = jax.jit(lambda encoder, normalizers, obs: encoder(normalizers, obs))


def normal(*shape):
    return np.float32(0.5 * rng.normal(size=shape))


def two_layers(shape):
    """3x3 kernels at a stride of 2 and 2x2 kernels, for images of seven rows, six columns and two channels."""
    return CNN(KERNELS, BIASES, *DENSE, (2, 1), shape)


KERNELS, BIASES = (normal(3, 3, 2, 3), normal(2, 2, 3, 4)), (normal(3), normal(4))
DENSE = (normal(2 * 1 * 4, 5), normal(5))
IMAGES = normal(2, 3, 7, 6, 2)
NETWORK = two_layers((7, 6, 2))
# One section of two channels.
RESIDUAL = ImpalaCNN(
    (normal(3, 3, 1, 2), *(normal(3, 3, 2, 2) for _ in range(4))),
    tuple(normal(2) for _ in range(5)),
    normal(3 * 2 * 2, 4),
    normal(4),
    (6, 4, 1),
)


def convolve(image, kernel, bias, stride):
    """One image (H, W, C), by loops over its pixels."""
    size = len(kernel)
    rows, columns = ((side - size) // stride + 1 for side in image.shape[:2])
    result = np.zeros((rows, columns, kernel.shape[-1]))
    for r, c in itertools.product(range(rows), range(columns)):
        patch = image[r * stride : r * stride + size, c * stride : c * stride + size]
        result[r, c] = np.einsum("hwi,hwio->o", patch, kernel) + bias
    return result


def relu(x):
    return np.maximum(x, 0.0)


def pad(image, before, after, value):
    return np.pad(image, ((before, after), (before, after), (0, 0)), constant_values=value)


def test_a_network_is_loops_over_pixels():
    expected = []
    for image in IMAGES.reshape(6, 7, 6, 2):
        first = relu(convolve(image, KERNELS[0], BIASES[0], 2))
        second = relu(convolve(first, KERNELS[1], BIASES[1], 1))
        expected.append(relu(second.reshape(-1) @ DENSE[0] + DENSE[1]))
    assert np.any(np.equal(expected, 0))
    assert np.any(np.greater(expected, 0))
    np.testing.assert_allclose(apply(NETWORK, IMAGES).reshape(6, 5), expected, rtol=1e-5, atol=1e-5)


def test_a_residual_section_is_loops_over_pixels():
    kernels, biases, image = RESIDUAL.kernels, RESIDUAL.biases, normal(6, 4, 1)
    x = convolve(pad(image, 1, 1, 0.0), kernels[0], biases[0], 1)
    # 'SAME' at a stride of 2 pads an even side only after its end.
    x = pad(x, 0, 1, -np.inf)
    x = np.array([[x[r : r + 3, c : c + 3].max(axis=(0, 1)) for c in (0, 2)] for r in (0, 2, 4)])
    for block in (1, 3):
        y = convolve(pad(relu(x), 1, 1, 0.0), kernels[block], biases[block], 1)
        x = x + convolve(pad(relu(y), 1, 1, 0.0), kernels[block + 1], biases[block + 1], 1)
    expected = relu(relu(x).reshape(-1) @ RESIDUAL.dense_weight + RESIDUAL.dense_bias)
    np.testing.assert_allclose(apply(RESIDUAL, image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("size", "stride"), [(8, 4), (4, 2), (6, 2), (3, 1), (3, 2), (1, 1), (2, 3)])
def test_a_convolution_by_products_is_the_library_s(size, stride, padding):
    images, kernel, bias = normal(2, 21, 18, 3), normal(size, size, 3, 5), normal(5)
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=layout) + bias
    found = jax.jit(convolution._convolve, static_argnums=(3, 4))(images, kernel, bias, stride, padding)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((7, 6), (7, 6, 1)),
        ((7, 6, 2), (7, 6, 2)),
        ((2, 7, 6), (7, 6, 2)),
        ((3, 7, 6, 2), (7, 6, 6)),
        ((3, 2, 7, 6), (7, 6, 6)),
    ],
)
def test_an_image_s_height_width_and_channels_are_read_from_its_shape(shape, found):
    assert convolution._height_width_channels(shape) == found


def test_a_stack_of_images_whose_channels_come_first_is_the_transposed_stack():
    stacked = normal(5, 2, 7, 6, 3)
    last, _ = convolution._channels_last(stacked, (2, 7, 6, 3), np.float32)
    first, _ = convolution._channels_last(np.moveaxis(stacked, -1, -3), (2, 3, 7, 6), np.float32)
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize(("name", "side"), [("nature", 36), ("small", 20)])
def test_the_smallest_image_that_fits_is_named_and_taken(name, side):
    IMAGE_NETWORKS[name](jax.random.key(0), (side, side))
    with pytest.raises(UnsupportedSpaceError, match=f"images of at least {side}x{side}"):
        IMAGE_NETWORKS[name](jax.random.key(0), (side - 1, side))
    with pytest.raises(UnsupportedSpaceError, match='Set image_network to "small" or "impala"'):
        IMAGE_NETWORKS["nature"](jax.random.key(0), (20, 20))


def test_batch_axes_pass_through():
    assert apply(NETWORK, IMAGES).shape == (2, 3, 5)
    for t, n in np.ndindex(2, 3):
        np.testing.assert_allclose(apply(NETWORK, IMAGES)[t, n], apply(NETWORK, IMAGES[t, n]), rtol=1e-5, atol=1e-6)


def test_channels_first_is_the_transposed_image():
    moved = np.moveaxis(IMAGES, -1, -3)
    np.testing.assert_array_equal(apply(two_layers((2, 7, 6)), moved), apply(NETWORK, IMAGES))


def test_an_image_of_two_axes_has_one_channel():
    network = CNN((KERNELS[0][:, :, :1],), BIASES[:1], normal(3 * 2 * 3, 5), DENSE[1], (2,), (7, 6))
    with_channel = replace(network, shape=(7, 6, 1))
    np.testing.assert_array_equal(apply(network, IMAGES[..., 0]), apply(with_channel, IMAGES[..., :1]))


@pytest.mark.parametrize(
    ("high", "bound"), [(255.0, 255), (1.0, 1), ((9.0,) * 83 + (4.0,), 9), (0.0, 1)], ids=["255", "1", "of each", "0"]
)
def test_an_image_s_bytes_are_divided_by_their_upper_bound_as_all_others_are(high, bound):
    space = spaces.Box((7, 6, 2), "uint8", 0.0, high)
    pixels = rng.integers(0, bound + 1, size=(3, 7, 6, 2), dtype=np.uint8)
    features = encode(ImageEncoder((NETWORK,), space), (None,), pixels)
    np.testing.assert_allclose(features, apply(NETWORK, pixels / np.float32(bound)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(observations.encode(space, (None,), pixels), (pixels / bound).reshape(3, 84), rtol=1e-6)


def test_the_frames_of_a_stack_are_channels_side_by_side():
    stacked = normal(5, 2, 7, 6, 1)
    side_by_side = np.concatenate([stacked[:, 0], stacked[:, 1]], axis=-1)
    expected = apply(NETWORK, side_by_side)
    np.testing.assert_array_equal(apply(two_layers((2, 7, 6, 1)), stacked), expected)
    np.testing.assert_array_equal(apply(two_layers((2, 1, 7, 6)), np.moveaxis(stacked, -1, 2)), expected)
    colours = normal(5, 4, 36, 40, 3)
    made = jax.jit(small_cnn, static_argnums=1)
    folded = np.moveaxis(colours, 1, -2).reshape(5, 36, 40, 12)
    np.testing.assert_array_equal(folded[..., 3:6], colours[:, 1])
    stack, image = made(jax.random.key(0), (4, 36, 40, 3)), made(jax.random.key(0), (36, 40, 12))
    np.testing.assert_array_equal(apply(stack, colours), apply(image, folded))


def test_a_float_image_is_divided_by_its_bound_and_otherwise_as_it_is():
    network = small_cnn(jax.random.key(0), (20, 20, 1))
    for high in (1.0, 255.0):
        space = spaces.Box((20, 20, 1), "float64", 0.0, high)
        pixels = np.float32(rng.uniform(0, high, size=(3, 20, 20, 1)))
        features = encode(ImageEncoder((network,), space), (None,), pixels)
        np.testing.assert_allclose(features, apply(network, pixels / np.float32(high)), rtol=1e-5, atol=1e-6)


def test_images_of_another_layout_are_refused():
    with pytest.raises(TypeError):
        NETWORK(np.moveaxis(IMAGES, -1, -3))


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 84, 84), True), ((84, 84, 4), False), ((210, 160, 3), False), ((8, 8, 8), False)]
)
def test_the_smaller_of_first_and_last_axis_holds_the_channels(shape, expected):
    assert channels_first(shape) is expected


def count(make, shape):
    network = jax.eval_shape(lambda key: make(key, shape), jax.random.key(0))
    features = jax.eval_shape(lambda net, x: net(x), network, jax.ShapeDtypeStruct((2, 3, *shape), jnp.uint8))
    assert features.shape == (2, 3, network.num_features)
    assert features.dtype == jnp.float32
    return sum(leaf.size for leaf in jax.tree.leaves(network)), network.num_features


def test_sizes_by_hand():
    # 84 -> 20 -> 9 -> 7, and 84 -> 20 -> 9.
    nature = 8 * 8 * 4 * 32 + 32 + 4 * 4 * 32 * 64 + 64 + 3 * 3 * 64 * 64 + 64 + 7 * 7 * 64 * 512 + 512
    assert count(nature_cnn, (4, 84, 84)) == (nature, 512) == (1_684_128, 512)
    small = 8 * 8 * 4 * 16 + 16 + 4 * 4 * 16 * 32 + 32 + 9 * 9 * 32 * 256 + 256
    assert count(small_cnn, (84, 84, 4)) == (small, 256) == (676_144, 256)
    # 84 -> 42 -> 21 -> 11.
    sections = (9 * 4 * 16 + 16) + 4 * (9 * 16 * 16 + 16) + (9 * 16 * 32 + 32) + 9 * (9 * 32 * 32 + 32)
    assert count(impala_cnn, (4, 84, 84)) == (sections + 11 * 11 * 32 * 256 + 256, 256) == (1_089_232, 256)
    # 64 x 36: 64 -> 15 -> 6 -> 4 and 36 -> 8 -> 3 -> 1, one channel.
    narrow = nature - 8 * 8 * 3 * 32 - (7 * 7 - 4 * 1) * 64 * 512
    assert count(nature_cnn, (64, 36)) == (narrow, 512)


@pytest.fixture(scope="module", params=list(IMAGE_NETWORKS))
def fresh(request):
    shape = {"nature": (36, 36, 1), "small": (20, 20, 1), "impala": (8, 8, 1)}[request.param]
    return jax.jit(IMAGE_NETWORKS[request.param], static_argnums=1)(jax.random.key(0), shape)


def test_fresh_weights_are_orthogonal_with_gain_root_two(fresh):
    for kernel in (*fresh.kernels, fresh.dense_weight):
        flat = np.asarray(kernel).reshape(-1, kernel.shape[-1])
        wide = flat if flat.shape[0] <= flat.shape[1] else flat.T
        np.testing.assert_allclose(wide @ wide.T, 2.0 * np.eye(len(wide)), atol=2e-5)
    assert not any(np.any(bias) for bias in (*fresh.biases, fresh.dense_bias))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    alike = [kernel for kernel in fresh.kernels if kernel.shape == fresh.kernels[-1].shape]
    assert all((np.asarray(a) != b).any() for a, b in itertools.pairwise(alike))


@pytest.mark.parametrize("network", [NETWORK, RESIDUAL], ids=["plain", "residual"])
def test_forward_mode_is_the_transpose_of_reverse_mode(network):
    """What TRPO's Fisher products need: u . (J v) = (J' u) . v, here with the features for u, the parameters for v."""
    images = rng.integers(0, 256, size=(2, *network.shape), dtype=np.uint8)

    @jax.jit
    def derivatives(network):
        features, forward = jax.linearize(lambda network: network(images), network)
        return features, forward(network), jax.linear_transpose(forward, network)(features)[0]

    features, pushed, gradient = derivatives(network)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))
    products = jax.tree.map(lambda a, b: float((a * b).sum()), gradient, network)
    assert float((features * pushed).sum()) == pytest.approx(math.fsum(jax.tree.leaves(products)), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "smallest", "fitting"), [(nature_cnn, 36, '"small" or "impala"'), (small_cnn, 20, '"impala"')]
)
def test_an_image_too_small_is_refused_with_the_smallest_size_and_what_takes_it(make, smallest, fitting):
    for shape in ((smallest - 1, smallest, 3), (3, smallest, smallest - 1), (smallest - 1, smallest)):
        with pytest.raises(
            UnsupportedSpaceError, match=rf"Set image_network to {fitting}, or give .* at least {smallest}x{smallest}\."
        ):
            make(jax.random.key(0), shape)
        for name in fitting.replace('"', "").split(" or "):
            jax.eval_shape(partial(IMAGE_NETWORKS[name], shape=shape), jax.random.key(0))
    jax.eval_shape(lambda key: make(key, (smallest, smallest, 3)), jax.random.key(0))
    with pytest.raises(UnsupportedSpaceError, match='image_network to "impala", or'):
        make(jax.random.key(0), (19, 36, 3))


@pytest.mark.parametrize("make", IMAGE_NETWORKS.values())
def test_what_is_no_image_is_refused(make):
    for shape in ((84,), (2, 4, 84, 84, 3)):
        with pytest.raises(UnsupportedSpaceError, match="is no image"):
            make(jax.random.key(0), shape)

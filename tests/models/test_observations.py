"""From raw observations to features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm import spaces
from inchworm.models import observations
from inchworm.models.observations import Normalizer
from inchworm.numerics import running_stats

absorb = jax.jit(observations.absorb, static_argnums=1)
encode = jax.jit(observations.encode, static_argnums=0)
freeze = jax.jit(observations.freeze)

VECTOR = spaces.Box((3,), "float32", -1.0, 1.0)
rng = np.random.default_rng(0)


def normalizers(space: spaces.Space, *obs: np.ndarray) -> observations.Normalizers:
    stats = observations.empty_stats(space, True)
    for batch in obs:
        stats = absorb(stats, space, batch, np.ones(len(batch), np.float32))
    return freeze(stats)


def test_a_network_of_the_user_s_own_sees_images_of_floats_divided_by_their_bound_and_bytes_as_they_are():
    pictures = spaces.Box((24, 24, 3), "float32", 0.0, 255.0)
    obs = np.full((2, 24, 24, 3), 51.0, np.float32)
    np.testing.assert_allclose(observations.normalize(pictures, (None,), obs), 0.2)
    frames = spaces.Box((24, 24, 3), "uint8", 0.0, 255.0)
    assert observations.normalize(frames, (None,), obs.astype(np.uint8)).dtype == np.uint8


def test_before_the_first_update_observations_pass_unchanged():
    x = np.float32(rng.uniform(-4, 4, size=(5, 3)))
    np.testing.assert_array_equal(encode(VECTOR, normalizers(VECTOR), x), x)


def test_a_normalised_batch_has_mean_zero_and_deviation_one():
    x = np.float32(rng.normal([100, 0, -3], [10, 1, 0.01], size=(4000, 3)))
    features = np.asarray(encode(VECTOR, normalizers(VECTOR, x[:1000], x[1000:]), x), np.float64)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(0), 1, rtol=1e-3)


def test_normalised_observations_are_clipped_at_five():
    x = np.float32([[-1, 0, 1], [1, 0, -1]])
    features = encode(VECTOR, normalizers(VECTOR, x), np.float32([[100, 0, -4]]))
    np.testing.assert_allclose(features, [[5, 0, -4]], rtol=1e-6)


def test_a_feature_that_never_varies_normalises_to_nothing():
    # The mean of 0.1 is off by a rounding; that must not be read as a deviation of one.
    constant = np.full((2048, 3), [0.1, 1.0, -7.3], np.float32)
    features = np.asarray(encode(VECTOR, normalizers(VECTOR, constant, constant), constant[:1]))
    assert np.abs(features).max() < 0.02


def test_statistics_leave_out_rows_of_weight_zero():
    x = np.float32([[1, 2, 3], [3, 2, 1], [1e9, 1e9, 1e9]])
    (stats,) = absorb(observations.empty_stats(VECTOR, True), VECTOR, x, np.float32([1, 1, 0]))
    assert stats.count == 2
    np.testing.assert_array_equal(stats.mean, [2, 2, 2])


MIXED = spaces.Dict(
    (
        ("camera", spaces.Box((2, 2), "float32", -1.0, 1.0)),
        ("gear", spaces.Discrete(3, start=-1)),
        ("level", spaces.Box((), "float64", 0.0, 9.0)),
        ("pair", spaces.Tuple((spaces.Box((2,), "int32", 0.0, 9.0), spaces.Box((1,), "uint8", 0.0, 255.0)))),
    )
)
MIXED_OBS = {
    "camera": np.float32([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
    "gear": np.int32([-1, 1]),
    "level": np.float32([0.5, 0.25]),
    "pair": (np.int32([[3, 4], [5, 6]]), np.uint8([[204], [255]])),
}
MIXED_FEATURES = [[1, 2, 3, 4, 1, 0, 0, 0.5, 3, 4, 0.8], [5, 6, 7, 8, 0, 0, 1, 0.25, 5, 6, 1.0]]


@pytest.mark.parametrize(("function", "kind"), [(observations.encode, np.ndarray), (encode, jax.Array)])
def test_leaves_are_flattened_made_one_hot_and_laid_side_by_side(function, kind):
    features = function(MIXED, (None,) * 5, MIXED_OBS)
    assert isinstance(features, kind)
    assert features.dtype == np.float32
    assert sum(map(observations.num_features, spaces.leaves(MIXED))) == 11
    np.testing.assert_allclose(features, MIXED_FEATURES, rtol=1e-6)


def test_only_float_boxes_have_statistics():
    stats = observations.empty_stats(MIXED, True)
    assert [part is not None for part in stats] == [True, False, True, False, False]
    assert observations.empty_stats(MIXED, False) == (None,) * 5
    after = absorb(stats, MIXED, MIXED_OBS, np.ones(2, np.float32))
    assert [part is not None for part in after] == [True, False, True, False, False]
    np.testing.assert_array_equal(after[0].mean, [[3, 4], [5, 6]])
    assert after[2].mean == 0.375


def test_normalised_leaves_keep_their_place_among_the_others():
    stats = absorb(observations.empty_stats(MIXED, True), MIXED, MIXED_OBS, np.ones(2, np.float32))
    features = np.asarray(encode(MIXED, freeze(stats), MIXED_OBS))
    # Two samples lie one deviation below and above their mean.
    np.testing.assert_allclose(features[:, :4], [[-1] * 4, [1] * 4], rtol=1e-6)
    np.testing.assert_allclose(features[:, 7], [1, -1], rtol=1e-5)
    others = [4, 5, 6, 8, 9, 10]
    np.testing.assert_allclose(features[:, others], np.array(MIXED_FEATURES)[:, others], rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=str)
def test_any_leading_axes_are_kept(lead):
    space = spaces.Tuple((spaces.Box((2, 2), "float32", -1.0, 1.0), spaces.Discrete(3)))
    obs = (np.ones((*lead, 2, 2), np.float32), np.zeros(lead, np.int32))
    assert observations.encode(space, (None, None), obs).shape == (*lead, 7)


def test_numpy_and_jax_give_the_same_features():
    x = np.float32(rng.normal(5, 2, size=(64, 3)))
    on_jax = normalizers(VECTOR, x)
    on_numpy = observations.to_numpy(on_jax)
    features = observations.encode(VECTOR, on_numpy, x)
    assert (type(features), features.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(features, encode(VECTOR, on_jax, x), rtol=1e-6, atol=1e-7)


def test_to_numpy_copies():
    source = np.zeros(2)
    observations.to_numpy({"x": source})["x"][0] = 1
    assert source[0] == 0


def test_frozen_statistics_are_mean_and_inverse_deviation():
    stats = (running_stats.RunningStats(jnp.float32(4), jnp.array([1.0, 2.0]), jnp.array([16.0, 64.0])), None)
    (normalizer, nothing) = freeze(stats)
    assert isinstance(normalizer, Normalizer)
    assert nothing is None
    np.testing.assert_allclose(normalizer.inverse_std, [0.5, 0.25], rtol=1e-6)


def test_choices_and_bits_become_one_hot_vectors_and_numbers():
    space = spaces.Tuple((spaces.MultiDiscrete((2, 3), (2, 1), (0, -1)), spaces.MultiBinary((1, 3))))
    obs = (np.int32([[[1], [-1]], [[0], [1]]]), np.int8([[[1, 0, 1]], [[0, 0, 1]]]))
    features = observations.encode(space, (None, None), obs)
    np.testing.assert_array_equal(features, [[0, 1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 1, 0, 0, 1]])
    assert features.dtype == np.float32


@pytest.mark.parametrize(
    ("leaf", "image"),
    [
        (spaces.Box((84, 84, 3), "uint8", 0.0, 255.0), True),
        (spaces.Box((84, 84), "uint8", 0.0, 255.0), True),
        (spaces.Box((84, 8), "uint8", 0.0, 255.0), False),
        (spaces.MultiBinary((4, 4, 1)), False),
        (spaces.Box((8, 8, 8), "uint8", 0.0, 255.0), True),
        (spaces.Box((2, 64, 64, 3), "uint8", 0.0, 255.0), True),
        (spaces.Box((4, 3, 84, 60), "uint8", 0.0, 255.0), True),
        (spaces.Box((4, 19, 64, 3), "uint8", 0.0, 255.0), False),
        (spaces.Box((64, 64, 64, 3), "uint8", 0.0, 255.0), False),
        (spaces.Box((2, 64, 64, 9), "uint8", 0.0, 255.0), False),
        (spaces.Box((64, 64, 3), "float32", 0.0, 1.0), True),
        (spaces.Box((4, 84, 84), "float64", 0.0, 255.0), True),
        (spaces.Box((2, 64, 64, 3), "float32", 0.0, (1.0,) * (2 * 64 * 64 * 3)), True),
        (spaces.Box((64, 64, 3), "float32", -1.0, 1.0), False),
        (spaces.Box((64, 64, 3), "float32", 0.0, 0.5), False),
        (spaces.Box((64, 64, 3), "float32", -np.inf, np.inf), False),
        (spaces.Box((10, 10, 4), "float32", 0.0, 1.0), False),
        (spaces.Box((64, 64, 9), "float32", 0.0, 1.0), False),
        (spaces.Box((84, 84), "float32", 0.0, 1.0), False),
        (spaces.Box((64, 64, 3), "int32", 0.0, 255.0), False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_image_is_of_bytes_or_beyond_doubt_a_stack_of_images_or_an_image_of_floats(leaf, image):
    assert observations.is_image(leaf) == image


@pytest.mark.parametrize(
    ("leaf", "doubt"),
    [
        (spaces.Box((64, 64, 64, 3), "uint8", 0.0, 255.0), True),
        (spaces.Box((64, 64, 3), "float32", -np.inf, np.inf), True),
        (spaces.Box((64, 64, 3), "int32", 0.0, 255.0), True),
        (spaces.Box((84, 84), "float32", 0.0, 1.0), True),
        (spaces.Box((84, 84), "float32", -1.0, 1.0), False),
        (spaces.Box((64, 64, 3), "float32", 0.0, 1.0), False),
        (spaces.Box((10, 10, 4), "float32", 0.0, 1.0), False),
        (spaces.Box((100, 8, 3), "float32", 0.0, 1.0), False),
        (spaces.Box((84, 8), "uint8", 0.0, 255.0), False),
        (spaces.MultiBinary((84, 84, 3)), False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_may_be_an_image_but_becomes_a_vector_is_known(leaf, doubt):
    assert observations.may_be_image(leaf) == doubt


def test_images_of_floats_have_no_statistics_and_need_no_scale():
    image = spaces.Box((64, 64, 3), "float32", 0.0, 1.0)
    assert observations.empty_stats(image, True) == (None,)
    assert not observations.reaches_network_raw(image, True)
    assert not observations.reaches_network_raw(image, False)


def test_normalising_keeps_the_structure_of_the_space():
    stats = absorb(observations.empty_stats(MIXED, True), MIXED, MIXED_OBS, np.ones(2, np.float32))
    normalized = observations.normalize(MIXED, observations.to_numpy(freeze(stats)), MIXED_OBS)
    assert jax.tree.structure(normalized) == jax.tree.structure(MIXED_OBS)
    np.testing.assert_allclose(normalized["camera"], [np.full((2, 2), -1), np.full((2, 2), 1)], rtol=1e-6)
    np.testing.assert_array_equal(normalized["gear"], MIXED_OBS["gear"])


@pytest.mark.parametrize(
    ("leaf", "normalized", "raw"),
    [
        (spaces.Box((3,), "float32", -1.0, 1.0), True, False),
        (spaces.Box((3,), "float32", -1.0, 1.0), False, True),
        (spaces.Box((3,), "int32", 0.0, 9.0), True, True),
        (spaces.Box((3,), "uint8", 0.0, 255.0), False, False),
        (spaces.Box((40, 40, 3), "float32", 0.0, 1.0), False, False),
        (spaces.Discrete(3), False, False),
        (spaces.MultiBinary((3,)), True, False),
    ],
)
def test_numbers_reach_the_network_raw_where_nothing_scales_them(leaf, normalized, raw):
    assert observations.reaches_network_raw(leaf, normalized) == raw


def test_choices_side_by_side_are_one_hot_in_batches_of_two_dimensions():
    leaf = spaces.MultiDiscrete((2, 3), (2,), (0, 5))
    values = np.int32([[[0, 5], [1, 7]], [[1, 6], [0, 7]], [[0, 6], [1, 5]]])
    found = observations.encode_leaf(leaf, None, values)
    assert found.shape == (3, 2, 5)
    np.testing.assert_array_equal(found[0], [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]])
    np.testing.assert_array_equal(found[1], [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])


@pytest.mark.parametrize(("side", "image"), [(observations.MIN_SIDE - 1, False), (observations.MIN_SIDE, True)])
def test_a_frame_is_an_image_from_its_smallest_side_on(side, image):
    grey = spaces.Box((40, side), "uint8", 0.0, 255.0)
    colours = spaces.Box((3, side, 40), "float32", 0.0, 1.0)
    assert observations.is_image(grey) == observations.is_image(colours) == image
    # Of floats without the bounds of pixels, a stack of large sides may have been meant as one.
    assert observations.may_be_image(spaces.Box((2, side, 40), "float32", -1.0, 1.0)) == image

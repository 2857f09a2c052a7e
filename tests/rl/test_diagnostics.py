"""Weighted averages, and the numbers that tell how an update went, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm.rl import diagnostics

weighted_mean = jax.jit(diagnostics.weighted_mean)
weighted_variance = jax.jit(diagnostics.weighted_variance)
spread = jax.jit(diagnostics.spread)
standardize = jax.jit(diagnostics.standardize)
clip_fraction = jax.jit(diagnostics.clip_fraction)
explained_variance = jax.jit(diagnostics.explained_variance)

X = np.float32([1, 2, 3, 1e6])
WEIGHT = np.float32([1, 1, 1, 0])


def test_rows_of_weight_zero_do_not_enter_mean_and_variance():
    assert weighted_mean(X, WEIGHT) == 2
    assert weighted_variance(X, WEIGHT) == pytest.approx(2 / 3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_spread_of_numbers_whose_squares_are_no_numbers_is_their_deviation(scale):
    with np.errstate(over="ignore"):
        x = np.float32(scale * np.array([1.0, 2.0, 3.0, 1e6]))
    assert spread(x, WEIGHT) == pytest.approx(scale * math.sqrt(2 / 3), rel=1e-5, abs=0)


def test_the_spread_of_zeros_is_zero():
    assert spread(np.zeros(4, np.float32), WEIGHT) == 0


def test_the_mean_of_no_rows_is_zero():
    assert weighted_mean(X, np.zeros(4, np.float32)) == 0
    assert weighted_variance(X, np.zeros(4, np.float32)) == 0


def test_standardized_rows_have_mean_zero_and_population_deviation_one():
    found = np.asarray(standardize(X, WEIGHT))[:3]
    np.testing.assert_allclose(found, np.array([-1, 0, 1]) / math.sqrt(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(found, oracles.standardize(X, WEIGHT)[:3], rtol=1e-6)


def test_a_deviation_of_the_guard_s_own_size_counts_half():
    np.testing.assert_allclose(standardize(np.float32([1e-8, -1e-8]), np.ones(2, np.float32)), [0.5, -0.5], rtol=1e-5)


def test_rows_that_are_all_alike_standardize_to_zero():
    np.testing.assert_array_equal(standardize(np.full(4, 7, np.float32), np.ones(4, np.float32)), np.zeros(4))
    np.testing.assert_array_equal(
        standardize(np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)), np.zeros((2, 2))
    )


@pytest.mark.parametrize("value", [123.456, 0.1, -7.7e-3, 1e6 / 3])
@pytest.mark.parametrize("rows", [3, 64, 2048])
def test_the_rounding_of_the_mean_is_no_deviation(value, rows):
    alike, weight = np.full(rows, value, np.float32), np.ones(rows, np.float32)
    np.testing.assert_array_equal(standardize(alike, weight), np.zeros(rows))
    noise = np.float32(np.random.default_rng(0).normal(size=rows))
    assert explained_variance(noise, alike, weight) == 0


@pytest.mark.parametrize(
    ("ratio", "outside"), [(1.0, 0), (1.19, 0), (1.21, 1), (0.81, 0), (0.79, 1), (5.0, 1), (0.01, 1)]
)
def test_a_ratio_counts_as_clipped_outside_one_plus_minus_the_range(ratio, outside):
    assert clip_fraction(np.log(np.float32([ratio])), 0.2, np.ones(1, np.float32)) == outside


def test_a_ratio_at_an_end_of_the_range_is_inside():
    low, high = (float(abs(np.asarray(jax.jit(jnp.expm1)(np.float32(x))))) for x in (-0.3, 0.3))
    for log_ratio, farther in ((-0.3, -0.31), (0.3, 0.31)):
        assert clip_fraction(np.float32([log_ratio]), low, np.ones(1, np.float32), high) == 0
        assert clip_fraction(np.float32([farther]), low, np.ones(1, np.float32), high) == 1


def test_the_clip_fraction_is_a_share_of_the_rows_that_count():
    log_ratio = np.log(np.float32([1.0, 1.5, 0.9, 5.0]))
    assert clip_fraction(log_ratio, 0.2, np.float32([1, 1, 1, 0])) == pytest.approx(1 / 3)


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant():
    returns, weight = np.float32([1, 2, 4, -50]), np.float32([1, 1, 1, 0])
    assert explained_variance(returns, returns, weight) == 1
    assert explained_variance(np.full(4, 9, np.float32), returns, weight) == pytest.approx(0, abs=1e-6)
    assert explained_variance(-returns, returns, weight) == pytest.approx(-3)
    # Half the returns: the residual has half the deviation, so a quarter of the variance is left.
    assert explained_variance(returns / 2, returns, weight) == pytest.approx(0.75)


def test_explained_variance_does_not_depend_on_the_size_of_the_returns():
    returns, value, weight = np.float32([1, 2, 4]), np.float32([1, 1, 5]), np.ones(3, np.float32)
    # Variance 14/9, and 2/3 of (0, 1, -1).
    for size in (1e-3, 1.0, 1e3):
        assert explained_variance(size * value, size * returns, weight) == pytest.approx(1 - 3 / 7, rel=1e-4)


def test_explained_variance_is_zero_where_returns_do_not_vary():
    assert explained_variance(np.float32([1, 2]), np.float32([3, 3]), np.ones(2, np.float32)) == 0

"""Running mean and variance against the moments of the whole stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from inchworm.numerics import running_stats

SHAPE = (16, 3)


@jax.jit
def absorb(stats, samples, weight):
    return running_stats.merge(stats, running_stats.of_samples(samples, weight))


def stream(seed: int, parts: int, offset: float = 0.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    samples = [np.float32(offset + generator.normal(k, 1 + k, size=SHAPE)) for k in range(parts)]
    weights = [np.float32(generator.random(SHAPE[0]) < 0.7) for _ in range(parts)]
    weights[0][0] = 1.0
    return samples, weights


def take_in(samples: list[np.ndarray], weights: list[np.ndarray]) -> running_stats.RunningStats:
    stats = running_stats.empty(SHAPE[1:])
    for part, weight in zip(samples, weights, strict=True):
        stats = absorb(stats, part, weight)
    return stats


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=40)
def test_parts_give_the_moments_of_the_concatenated_stream(seed, parts):
    samples, weights = stream(seed, parts)
    stats = take_in(samples, weights)
    count, mean, variance = oracles.stream_moments(samples, weights)
    assert stats.count == count
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats.squared_deviations / count, variance, rtol=1e-4, atol=1e-5)


def test_variance_and_std_are_those_of_the_population():
    stats = running_stats.of_samples(jnp.array([1.0, 2.0, 3.0, 1e9]), jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert (stats.count, stats.mean) == (3, 2)
    assert stats.variance == pytest.approx(2 / 3)
    assert stats.std == pytest.approx((2 / 3) ** 0.5)


def test_a_mean_far_from_zero_does_not_cost_the_variance_its_digits():
    samples, weights = stream(0, 10, offset=1e4)
    stats = take_in(samples, weights)
    _, mean, variance = oracles.stream_moments(samples, weights)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(stats.squared_deviations / stats.count, variance, rtol=1e-3)
    # The textbook E[x^2] - E[x]^2 in the same precision has nothing left.
    x = np.concatenate(samples)[np.concatenate(weights) > 0]
    naive = np.mean(x * x, axis=0) - np.mean(x, axis=0) ** 2
    assert (np.abs(naive / variance - 1) > 0.01).any()


def test_parts_merge_in_any_order():
    samples, weights = stream(1, 5)
    forward, backward = take_in(samples, weights), take_in(samples[::-1], weights[::-1])
    for ours, theirs in zip(forward, backward, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_no_samples_have_mean_zero_and_deviation_one():
    stats = running_stats.empty((2,))
    np.testing.assert_array_equal(stats.mean, [0, 0])
    np.testing.assert_array_equal(stats.std, [1, 1])


def test_one_sample_is_its_own_mean_and_has_no_deviation():
    one = running_stats.of_samples(jnp.array([5.0, 9.0]), jnp.array([1.0, 0.0]))
    for stats in (one, running_stats.merge(running_stats.empty(()), one)):
        assert (stats.count, stats.mean, stats.std) == (1, 5, 0)


def test_a_part_without_a_row_that_counts_changes_nothing_bit_for_bit():
    stats = take_in(*stream(2, 3))
    after = absorb(stats, np.full(SHAPE, 7, np.float32), np.zeros(SHAPE[0], np.float32))
    for ours, theirs in zip(after, stats, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_of_a_constant_the_mean_is_exact_and_the_deviation_zero():
    stats = take_in([np.full(SHAPE, 2.5, np.float32)] * 4, [np.ones(SHAPE[0], np.float32)] * 4)
    np.testing.assert_array_equal(stats.mean, np.full(3, 2.5))
    np.testing.assert_array_equal(stats.squared_deviations, np.zeros(3))


def test_a_long_stream_keeps_its_mean_in_single_precision():
    stats = running_stats.RunningStats(jnp.float32(2**24), jnp.zeros(3), jnp.full(3, 2.0**24))
    for _ in range(64):
        stats = absorb(stats, np.ones(SHAPE, np.float32), np.ones(SHAPE[0], np.float32))
    count = 2**24 + 64 * SHAPE[0]
    assert stats.count == count
    np.testing.assert_allclose(stats.mean, 64 * SHAPE[0] / count, rtol=1e-4)

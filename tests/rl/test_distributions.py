"""Action distributions against scipy, integrals and samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import oracles
from inchworm.rl.distributions import Categorical, DiagonalGaussian

NUM_SAMPLES = 1_000_000
# Statistical bounds are five standard errors: a right implementation misses one once in two million tries.
SIGMAS = 5.0

rng = np.random.default_rng(0)
LOGITS = np.float32(rng.normal(size=(6, 4)) * 2)
OTHER_LOGITS = np.float32(rng.normal(size=(6, 4)))
CHOICES = np.int32(rng.integers(4, size=6))
MEAN = np.float32(rng.normal(size=(6, 3)))
OTHER_MEAN = np.float32(rng.normal(size=(6, 3)))
LOG_STD = np.float32([-1.0, 0.0, 0.7])
OTHER_LOG_STD = np.float32([-0.5, -0.2, 1.0])
VECTORS = np.float32(rng.normal(size=(6, 3)))

CATEGORICAL = (Categorical(LOGITS), Categorical(OTHER_LOGITS), CHOICES)
GAUSSIAN = (DiagonalGaussian(MEAN, LOG_STD), DiagonalGaussian(OTHER_MEAN, OTHER_LOG_STD), VECTORS)


def quantities(distribution, other, action):
    """Everything deterministic that a distribution tells."""
    return {
        "log_prob": distribution.log_prob(action),
        "entropy": distribution.entropy(),
        "kl": distribution.kl(other),
        "mode": distribution.mode(),
    }


compiled_quantities = jax.jit(quantities)


@pytest.fixture(scope="module")
def categorical():
    return compiled_quantities(*CATEGORICAL)


@pytest.fixture(scope="module")
def gaussian():
    return compiled_quantities(*GAUSSIAN)


def test_categorical_log_prob_is_that_of_the_softmax(categorical):
    expected = [
        scipy.stats.rv_discrete(values=(range(4), p)).logpmf(a)
        for p, a in zip(oracles.softmax(LOGITS), CHOICES, strict=True)
    ]
    np.testing.assert_allclose(categorical["log_prob"], expected, rtol=1e-5)


def test_categorical_entropy_is_scipy_s(categorical):
    expected = scipy.stats.entropy(oracles.softmax(LOGITS), axis=-1)
    np.testing.assert_allclose(categorical["entropy"], expected, rtol=1e-5)


def test_categorical_kl_is_scipy_s_with_the_old_one_first(categorical):
    old, new = oracles.softmax(LOGITS), oracles.softmax(OTHER_LOGITS)
    np.testing.assert_allclose(categorical["kl"], scipy.stats.entropy(old, new, axis=-1), rtol=1e-5)


def test_gaussian_log_prob_is_scipy_s_summed_over_the_action(gaussian):
    expected = scipy.stats.norm(MEAN, np.exp(LOG_STD)).logpdf(VECTORS).sum(axis=-1)
    np.testing.assert_allclose(gaussian["log_prob"], expected, rtol=1e-5)


def test_gaussian_entropy_is_the_integral(gaussian):
    expected = sum(oracles.normal_entropy(0.3, std) for std in np.exp(LOG_STD))
    np.testing.assert_allclose(gaussian["entropy"], np.full(6, expected), rtol=1e-6)


def test_gaussian_kl_is_the_integral_with_the_old_one_first(gaussian):
    expected = [
        sum(oracles.normal_kl(*four) for four in zip(mean, np.exp(LOG_STD), other, np.exp(OTHER_LOG_STD), strict=True))
        for mean, other in zip(MEAN, OTHER_MEAN, strict=True)
    ]
    np.testing.assert_allclose(gaussian["kl"], expected, rtol=1e-5)


def test_modes_are_the_likeliest_action(categorical, gaussian):
    np.testing.assert_array_equal(categorical["mode"], LOGITS.argmax(-1))
    np.testing.assert_array_equal(gaussian["mode"], MEAN)


def test_kl_is_not_symmetric_and_its_order_is_self_then_other():
    even, skewed = (Categorical(np.log(np.float32([p]))) for p in ([0.5, 0.5], [0.9, 0.1]))
    assert even.kl(skewed) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5)
    assert skewed.kl(even) == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-5)
    mean = np.zeros((1, 1), np.float32)
    narrow, wide = (DiagonalGaussian(mean, np.log(np.float32([std]))) for std in (1, 2))
    assert narrow.kl(wide) == pytest.approx(math.log(2) + 1 / 8 - 1 / 2, rel=1e-5)
    assert wide.kl(narrow) == pytest.approx(-math.log(2) + 2 - 1 / 2, rel=1e-5)


def test_kl_of_a_distribution_with_itself_is_exactly_zero():
    for distribution, _, action in (CATEGORICAL, GAUSSIAN):
        np.testing.assert_array_equal(compiled_quantities(distribution, distribution, action)["kl"], np.zeros(6))


def test_a_kl_of_one_part_in_a_hundred_million_is_still_resolved():
    base, step = np.zeros((1, 1), np.float32), np.float32(1e-4)
    kl = DiagonalGaussian(base, base[0]).kl(DiagonalGaussian(base, base[0] + step))
    # To second order in the change of log sigma the KL is its square.
    assert kl[0] == pytest.approx(step**2, rel=5e-3)


@jax.jit
def surprise_and_log_ratio(distribution, other, noise):
    """-log p(a) and log p(a) - log q(a) of a sample a ~ p for each row of noise."""

    def of_one(row):
        log_p = distribution.log_prob(distribution.sample_from(row))
        return -log_p, log_p - other.log_prob(distribution.sample_from(row))

    return jax.vmap(of_one)(noise)


@pytest.mark.parametrize("case", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_entropy_and_kl_are_means_over_samples(case):
    exact = quantities(*case)
    first, first_other = (jax.tree.map(lambda leaf: leaf[0] if leaf.ndim == 2 else leaf, each) for each in case[:2])
    noise = first.draw_noise(jax.random.key(0), (NUM_SAMPLES, len(jax.tree.leaves(first)[0])))
    samples = surprise_and_log_ratio(first, first_other, noise)
    for sample, mean in zip(samples, (exact["entropy"][0], exact["kl"][0]), strict=True):
        sample = np.asarray(sample, np.float64)
        assert abs(sample.mean() - mean) < SIGMAS * sample.std() / math.sqrt(NUM_SAMPLES)


def test_categorical_samples_have_the_frequencies_of_the_softmax():
    noise = Categorical.draw_noise(jax.random.key(1), (NUM_SAMPLES, 4))
    frequency = (
        np.bincount(np.asarray(Categorical(jnp.asarray(LOGITS[0])).sample_from(noise)), minlength=4) / NUM_SAMPLES
    )
    p = oracles.softmax(LOGITS[0])
    assert (np.abs(frequency - p) < SIGMAS * np.sqrt(p * (1 - p) / NUM_SAMPLES)).all()


def test_gaussian_samples_have_the_mean_deviation_and_independence_stated():
    noise = DiagonalGaussian.draw_noise(jax.random.key(2), (NUM_SAMPLES, 3))
    samples = np.asarray(DiagonalGaussian(jnp.asarray(MEAN[0]), jnp.asarray(LOG_STD)).sample_from(noise), np.float64)
    std = np.exp(LOG_STD)
    assert (np.abs(samples.mean(0) - MEAN[0]) < SIGMAS * std / math.sqrt(NUM_SAMPLES)).all()
    assert (np.abs(samples.std(0) / std - 1) < SIGMAS / math.sqrt(2 * NUM_SAMPLES)).all()
    correlations = np.corrcoef(samples.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < SIGMAS / math.sqrt(NUM_SAMPLES)).all()
    assert scipy.stats.kstest((samples[:20_000, 0] - MEAN[0, 0]) / std[0], "norm").pvalue > 1e-6


@pytest.mark.parametrize("distribution", [CATEGORICAL[0], GAUSSIAN[0]], ids=["categorical", "gaussian"])
def test_a_sample_is_a_function_of_the_key_alone(distribution):
    sample = jax.jit(lambda key: distribution.sample(key))
    np.testing.assert_array_equal(sample(jax.random.key(7)), sample(jax.random.key(7)))
    assert (np.asarray(sample(jax.random.key(8))) != sample(jax.random.key(7))).any()


MASK = np.array([True, False, True, False])


def test_masked_actions_are_never_sampled_and_the_others_keep_their_odds():
    masked = Categorical.masked(jnp.asarray(LOGITS[0]), jnp.asarray(MASK))
    noise = Categorical.draw_noise(jax.random.key(3), (NUM_SAMPLES, 4))
    frequency = np.bincount(np.asarray(masked.sample_from(noise)), minlength=4) / NUM_SAMPLES
    assert (frequency[~MASK] == 0).all()
    p = oracles.softmax(LOGITS[0, MASK])
    assert (np.abs(frequency[MASK] - p) < SIGMAS * np.sqrt(p * (1 - p) / NUM_SAMPLES)).all()


def test_a_masked_distribution_is_that_over_the_allowed_actions():
    masked = Categorical.masked(jnp.asarray(LOGITS[0]), jnp.asarray(MASK))
    p = oracles.softmax(LOGITS[0, MASK])
    assert masked.entropy() == pytest.approx(scipy.stats.entropy(p), rel=1e-5)
    assert masked.log_prob(jnp.array(2)) == pytest.approx(math.log(p[1]), rel=1e-5)
    other = Categorical.masked(jnp.asarray(OTHER_LOGITS[0]), jnp.asarray(MASK))
    assert masked.kl(other) == pytest.approx(scipy.stats.entropy(p, oracles.softmax(OTHER_LOGITS[0, MASK])), rel=1e-5)


@jax.jit
def masked_quantities_and_jacobian(logits, mask, allowed):
    def of(z):
        masked, other = (Categorical.masked(x, mask) for x in (z, jnp.asarray(OTHER_LOGITS[0])))
        return jnp.stack([masked.entropy(), masked.log_prob(allowed), masked.kl(other), other.kl(masked)])

    return of(logits), jax.jacobian(of)(logits)


@pytest.mark.parametrize("mask", [MASK, np.array([False, True, False, False])], ids=["two allowed", "one allowed"])
def test_masked_actions_have_no_gradient_and_the_gradients_are_finite(mask):
    values, jacobian = masked_quantities_and_jacobian(LOGITS[0], mask, np.flatnonzero(mask)[0])
    assert np.isfinite(values).all()
    assert np.isfinite(jacobian).all()
    np.testing.assert_array_equal(np.asarray(jacobian)[:, ~mask], 0)
    if mask.sum() == 1:
        np.testing.assert_array_equal(values, np.zeros(4))
    else:
        assert (np.asarray(jacobian)[:, mask] != 0).all()


def test_the_entropy_s_slope_by_a_logit_is_minus_pi_times_log_pi_plus_entropy():
    slope = jax.jit(jax.grad(lambda z: Categorical(z).entropy().sum()))(LOGITS)
    p = oracles.softmax(LOGITS)
    entropy = scipy.stats.entropy(p, axis=-1)[:, None]
    np.testing.assert_allclose(slope, -p * (np.log(p) + entropy), atol=1e-6)


def test_slopes_of_log_prob_are_the_score_functions():
    choice = jax.jit(jax.grad(lambda z: Categorical(z).log_prob(CHOICES).sum()))(LOGITS)
    np.testing.assert_allclose(choice, np.eye(4)[CHOICES] - oracles.softmax(LOGITS), atol=1e-6)

    def gaussian_log_prob(mean, log_std):
        return DiagonalGaussian(mean, log_std).log_prob(VECTORS).sum()

    by_mean, by_log_std = jax.jit(jax.grad(gaussian_log_prob, argnums=(0, 1)))(MEAN, LOG_STD)
    standardized = (VECTORS.astype(np.float64) - MEAN) / np.exp(LOG_STD)
    np.testing.assert_allclose(by_mean, standardized / np.exp(LOG_STD), rtol=1e-4)
    np.testing.assert_allclose(by_log_std, (standardized**2 - 1).sum(0), rtol=1e-4, atol=1e-5)


def test_a_shared_log_std_means_the_same_as_one_repeated_for_each_state():
    repeated = DiagonalGaussian(MEAN, np.tile(LOG_STD, (6, 1)))
    for name, value in quantities(GAUSSIAN[0], GAUSSIAN[1], VECTORS).items():
        np.testing.assert_allclose(quantities(repeated, GAUSSIAN[1], VECTORS)[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_numpy_and_jax_give_the_same_numbers_in_single_precision(case):
    on_numpy, on_jax = quantities(*case), compiled_quantities(*case)
    for name, value in on_numpy.items():
        assert isinstance(value, np.ndarray)
        assert value.dtype == on_jax[name].dtype or (name == "mode" and value.dtype.kind == "i")
        assert value.dtype in (np.float32, np.int64)
        np.testing.assert_allclose(value, on_jax[name], rtol=2e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_the_same_noise_is_the_same_sample_on_numpy_and_on_jax(case):
    distribution = case[0]
    shape = distribution.mode().shape if distribution is GAUSSIAN[0] else LOGITS.shape
    noise = distribution.draw_noise(jax.random.key(4), shape)
    assert noise.dtype == jnp.float32
    on_numpy = distribution.sample_from(np.asarray(noise))
    on_jax = jax.tree.map(jnp.asarray, distribution).sample_from(noise)
    np.testing.assert_allclose(on_numpy, on_jax, rtol=1e-6)
    assert on_numpy.dtype == on_jax.dtype or on_numpy.dtype.kind == "i"


def test_masking_keeps_single_precision_on_numpy_and_on_jax():
    assert Categorical.masked(LOGITS, np.tile(MASK, (6, 1))).logits.dtype == np.float32
    assert Categorical.masked(jnp.asarray(LOGITS), jnp.tile(MASK, (6, 1))).logits.dtype == jnp.float32


def test_extreme_logits_give_finite_numbers():
    extreme = jnp.array([[0.0, -200.0, -1e9], [1e8, 0.0, -1e8]])
    found = compiled_quantities(Categorical(extreme), Categorical(extreme[::-1]), jnp.array([1, 2], jnp.int32))
    assert all(np.isfinite(value).all() for value in found.values())
    np.testing.assert_allclose(found["log_prob"], [-200, -2e8])
    np.testing.assert_array_equal(found["entropy"], [0, 0])


def test_rounding_stays_within_the_stated_tolerance():
    narrow = DiagonalGaussian(jnp.asarray(MEAN), jnp.full(3, -4.0))
    for distribution, action in ((CATEGORICAL[0], CHOICES), (narrow, MEAN + VECTORS * np.exp(np.float32(-4)))):
        tolerance = distribution.log_prob_tolerance()
        on_numpy = jax.tree.map(np.asarray, distribution).log_prob(action)
        assert np.abs(on_numpy - jax.jit(lambda d, a: d.log_prob(a))(distribution, action)).max() <= tolerance
        # Still tight enough to notice an action moved by a thousandth of a deviation at three deviations out.
        assert tolerance < 3e-3

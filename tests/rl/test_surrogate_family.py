"""The surrogates beside the clipped one: values by hand, gradients against finite differences in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.rl.distributions import Categorical
from inchworm.rl.surrogates import clipped_surrogate, log_clipped_surrogate, probability_ratio, surrogate

# Advantage up and down, ratio beyond the upper and the lower end of [0.8, 1.2], and inside.
LOG_RATIO = np.log(np.float32([1.5, 0.5, 1.5, 0.5, 1.1, 1.1]))
ADVANTAGE = np.float32([2.0, 2.0, -2.0, -2.0, 2.0, -2.0])


def test_the_unclipped_surrogate_is_ratio_times_advantage():
    np.testing.assert_allclose(surrogate(LOG_RATIO, ADVANTAGE), [3.0, 1.0, -3.0, -1.0, 2.2, -2.2], rtol=1e-6)


def test_an_upper_end_of_its_own_moves_that_end_only():
    values = clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, 0.3)
    np.testing.assert_allclose(values, [2.6, 1.0, -3.0, -1.6, 2.2, -2.2], rtol=1e-6)


def test_the_range_in_log_space_goes_from_exp_minus_epsilon_to_exp_epsilon():
    low, high = math.exp(-0.2), math.exp(0.2)
    expected = [2 * high, 1.0, -3.0, -2 * low, 2.2, -2.2]
    np.testing.assert_allclose(log_clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2), expected, rtol=1e-6)


def test_an_upper_end_of_its_own_moves_that_end_only_in_log_space_too():
    low, high = math.exp(-0.2), math.exp(0.3)
    expected = [2 * high, 1.0, -3.0, -2 * low, 2.2, -2.2]
    np.testing.assert_allclose(log_clipped_surrogate(LOG_RATIO, ADVANTAGE, 0.2, 0.3), expected, rtol=1e-6)


def test_a_ratio_grows_to_the_exponential_of_80_and_no_further():
    logs = np.float32([-200.0, 0.0, 10.0, 79.0, 80.0, 81.0, 1e6, np.inf])
    expected = np.exp(np.float64([-200, 0, 10, 79, 80, 80, 80, 80]))
    np.testing.assert_allclose(probability_ratio(logs), expected, rtol=1e-5, atol=1e-45)


def numpy_surrogate(kind, log_ratio, advantage):
    ratio = np.exp(log_ratio)
    match kind:
        case "none":
            return ratio * advantage
        case "clip":
            return np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
        case "log_clip":
            return np.minimum(ratio * advantage, np.exp(np.clip(log_ratio, -0.2, 0.2)) * advantage)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("none", surrogate),
        ("clip", lambda r, a: clipped_surrogate(r, a, 0.2)),
        ("log_clip", lambda r, a: log_clipped_surrogate(r, a, 0.2)),
    ],
    ids=["none", "clip", "log_clip"],
)
def test_each_surrogate_s_gradient_is_that_of_finite_differences(kind, function):
    gradient = jax.grad(lambda r: jnp.sum(function(r, ADVANTAGE)))(LOG_RATIO)
    wide, step = LOG_RATIO.astype(np.float64), 1e-6
    ahead, behind = (numpy_surrogate(kind, wide + sign * step, ADVANTAGE.astype(np.float64)) for sign in (1, -1))
    np.testing.assert_allclose(gradient, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-6)


def test_the_kl_penalty_s_gradient_is_that_of_finite_differences_with_the_old_policy_first():
    old, beta, action = np.array([0.2, -0.4, 0.1]), 3.0, 1
    new = np.array([0.5, 0.3, -0.6])

    def log_softmax(z):
        return z - np.log(np.exp(z).sum())

    def objective(z):
        p, q = log_softmax(old), log_softmax(z)
        return np.exp(q[action] - p[action]) * 1.5 - beta * (np.exp(p) * (p - q)).sum()

    def ours(z):
        policy, before = Categorical(z), Categorical(jnp.float32(old))
        log_ratio = policy.log_prob(jnp.int32(action)) - before.log_prob(jnp.int32(action))
        return surrogate(log_ratio, jnp.float32(1.5)) - beta * before.kl(policy)

    value, gradient = jax.value_and_grad(ours)(jnp.float32(new))
    assert float(value) == pytest.approx(objective(new), rel=1e-5)
    step = 1e-6 * np.eye(3)
    expected = [(objective(new + d) - objective(new - d)) / 2e-6 for d in step]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)

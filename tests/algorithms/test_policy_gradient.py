"""One gradient step per rollout: the gradient is the policy gradient, the adaptive step size follows its rule, and the
trust region holds a step back as its equation says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.algorithms.optimizer import adapted_learning_rate, make_direction
from inchworm.algorithms.policy_gradient import A2C, REINFORCE, PolicyGradient, trust_region_gain
from inchworm.algorithms.ppo import adapted_kl_coef
from inchworm.errors import ConfigError
from inchworm.rl.distributions import Categorical, DiagonalGaussian
from inchworm.types import Batch


def test_the_step_size_falls_above_twice_and_rises_below_half_of_the_target():
    scale = jnp.float32(1.0)
    rates = []
    for kl in (0.03, 0.021, 0.02, 0.01, 0.005, 0.0049, 0.001):
        scale = adapted_learning_rate(scale, jnp.float32(kl), jnp.float32(0.01))
        rates.append(float(scale))
    # By hand: / 1.5, / 1.5, then three times as it was (the bounds themselves change nothing), * 1.5, * 1.5.
    np.testing.assert_allclose(rates, [1 / 1.5, 1 / 2.25, 1 / 2.25, 1 / 2.25, 1 / 2.25, 1 / 1.5, 1.0], rtol=1e-6)


def test_beta_follows_a_sequence_worked_by_hand_and_stays_in_its_range():
    beta, betas = jnp.float32(1.0), []
    for kl in (0.02, 0.016, 0.0149, 0.01, 0.0068, 0.0066, 0.0):
        beta = adapted_kl_coef(beta, jnp.float32(kl), jnp.float32(0.01))
        betas.append(float(beta))
    # d_targ = 0.01: doubled above 0.015, halved below 0.00667.
    assert betas == [2.0, 4.0, 4.0, 4.0, 4.0, 2.0, 1.0]
    assert float(adapted_kl_coef(jnp.float32(1e-8), jnp.float32(0.0), jnp.float32(0.01))) == pytest.approx(1e-8)
    assert float(adapted_kl_coef(jnp.float32(1e8), jnp.float32(1.0), jnp.float32(0.01))) == pytest.approx(1e8)


def rows(advantage, action):
    ones = np.ones_like(advantage)
    return Batch(None, None, action, None, None, 0 * ones, advantage, ones, ones, ones)


def test_within_the_bound_the_trust_region_changes_nothing():
    logits = np.float32([[[0.3, -0.2, 0.1]]])
    batch = rows(np.float32([[2.0]]), np.int32([[1]]))
    new, average = Categorical(jnp.asarray(logits)), Categorical(jnp.asarray(logits))
    # At the average itself k = 0.
    held = jax.grad(lambda d: trust_region_gain(d, average, batch, 1.0).sum())(new)
    free = jax.grad(lambda d: (d.log_prob(batch.action) * batch.advantage).sum())(new)
    np.testing.assert_allclose(held.logits, free.logits, atol=1e-6)


def test_beyond_the_bound_the_gradient_loses_what_it_has_along_the_kl():
    new = DiagonalGaussian(jnp.float32([[[1.0]]]), jnp.float32([[[0.0]]]))
    average = DiagonalGaussian(jnp.float32([[[0.0]]]), jnp.float32([[[0.0]]]))
    batch = rows(np.float32([[4.0]]), np.float32([[[2.0]]]))
    # By hand, with mean m = 1, s = log_std = 0, action 2: g = A ((a - m), (a - m)^2 - 1) = (4, 0), and
    # KL(average‖new) = s + (1 + m^2) / (2 e^{2s}) - 1/2 gives k = (m, 1 - (1 + m^2)) = (1, -1).
    # k.g = 4, |k|^2 = 2, bound 1: g - (4 - 1) / 2 k = (2.5, 1.5).
    held = jax.grad(lambda d: trust_region_gain(d, average, batch, 1.0).sum())(new)
    np.testing.assert_allclose(held.mean.ravel(), [2.5], atol=1e-5)
    np.testing.assert_allclose(held.log_std.ravel(), [1.5], atol=1e-5)


def test_one_step_algorithms_refuse_what_needs_minibatches():
    with pytest.raises(ConfigError, match="there are no minibatches"):
        PolicyGradient(normalize_advantage="minibatch")


def test_a2c_and_reinforce_are_one_update_with_other_defaults():
    a2c, reinforce = A2C(), REINFORCE()
    assert (a2c.num_envs, a2c.horizon, a2c.gradient_steps_per_iteration) == (16, 5, 1)
    assert str(reinforce.gae_lambda) == "1.0"


def test_an_optax_chain_that_holds_its_learning_rate_is_refused():
    import optax

    make_direction(1e-5, None, False, optax.scale_by_rms())
    with pytest.raises(ConfigError, match="Leave the learning rate out"):
        make_direction(1e-5, None, False, optax.adam(1e-3))

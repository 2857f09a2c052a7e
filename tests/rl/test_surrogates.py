"""The clipped surrogate by cases, the value losses by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracles
from inchworm.rl.surrogates import clipped_squared_error, clipped_surrogate, squared_error

EPSILON = 0.2
surrogate_of = jax.jit(clipped_surrogate)
surrogate_and_slope = jax.jit(jax.value_and_grad(clipped_surrogate))
# Advantage, ratio, value and slope by the ratio: where the ratio has gone too far in the advantage's direction the
# value is held and the slope is zero, elsewhere the slope is the advantage.
CASES = [
    (2.0, 1.5, 2.4, 0.0),
    (2.0, 1.1, 2.2, 2.0),
    (2.0, 0.5, 1.0, 2.0),
    (-2.0, 1.5, -3.0, -2.0),
    (-2.0, 0.9, -1.8, -2.0),
    (-2.0, 0.5, -1.6, 0.0),
    (0.0, 1.5, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "value", "slope"), CASES)
def test_the_clip_holds_only_in_the_direction_of_the_advantage(advantage, ratio, value, slope):
    found, by_log_ratio = surrogate_and_slope(np.float32(math.log(ratio)), np.float32(advantage), EPSILON)
    assert found == pytest.approx(value, rel=1e-6)
    assert by_log_ratio / ratio == pytest.approx(slope, rel=1e-5)


@given(st.floats(-3, 3, width=32), st.floats(-5, 5, width=32), st.floats(0.01, 0.5))
def test_the_surrogate_is_the_oracle_s_for_any_ratio_and_advantage(log_ratio, advantage, clip_range):
    found = surrogate_of(np.float32([log_ratio]), np.float32([advantage]), clip_range)
    expected = oracles.clipped_surrogate(math.exp(log_ratio), advantage, clip_range)
    np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-6)


def test_the_surrogate_never_exceeds_the_unclipped_one():
    grid = np.array(list(itertools.product(np.linspace(-2, 2, 21), np.linspace(-3, 3, 13))), np.float32)
    log_ratio, advantage = grid.T
    unclipped = np.exp(log_ratio) * advantage
    clipped = np.asarray(surrogate_of(log_ratio, advantage, EPSILON))
    assert (clipped <= unclipped + 1e-6).all()
    assert (clipped < unclipped - 0.1).any()


def test_a_clipped_branch_has_slope_zero_however_large_the_ratio():
    for log_ratio in (79.0, 89.0, 200.0):
        assert surrogate_and_slope(np.float32(log_ratio), np.float32(2.0), EPSILON) == (pytest.approx(2.4), 0.0)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_at_ratio_one_value_and_slope_are_the_advantage(advantage):
    found, slope = surrogate_and_slope(np.float32(0), np.float32(advantage), EPSILON)
    assert (found, slope) == (advantage, advantage)


def test_the_value_loss_has_no_factor_of_one_half():
    assert squared_error(jnp.float32(3), jnp.float32(1)) == 4
    assert jax.grad(squared_error)(jnp.float32(3), jnp.float32(1)) == 4


# Value, old value, target, and the larger of (V - G)^2 and (V_old + clip(V - V_old, -0.5, 0.5) - G)^2.
@pytest.mark.parametrize(
    ("value", "old_value", "target", "error", "slope"),
    [
        (1.2, 1.0, 3.0, 3.24, -3.6),  # moved less than the range: the plain error
        (2.0, 1.0, 3.0, 2.25, 0.0),  # moved past it towards the target: held at 1.5, no pull
        (0.0, 1.0, 3.0, 9.0, -6.0),  # moved past it away from the target: the plain error pulls back
        (0.0, 1.0, -3.0, 12.25, 0.0),  # below, towards a target below
    ],
)
def test_the_clipped_value_loss_takes_the_larger_error(value, old_value, target, error, slope):
    def loss(v):
        return clipped_squared_error(v, jnp.float32(old_value), jnp.float32(target), 0.5)

    found, gradient = jax.value_and_grad(loss)(jnp.float32(value))
    assert found == pytest.approx(error, rel=1e-6)
    assert gradient == pytest.approx(slope, rel=1e-6, abs=1e-6)

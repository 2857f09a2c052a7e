"""Advantages, value targets and the return so far, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from inchworm.rl.returns import discounted_return, generalized_advantage, lambda_return, td_residual, td_target

SHAPE = (8, 3)
advantage_of = jax.jit(generalized_advantage)
return_of = jax.jit(discounted_return)


def column(*values: float, dtype: type = np.float32) -> jax.Array:
    return jnp.array(values, dtype)[:, None]


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100)
def test_generalized_advantage_is_the_double_sum_for_any_pattern_of_ends(seed, gamma, gae_lambda):
    block = oracles.patterns(seed, SHAPE)
    np.testing.assert_allclose(
        advantage_of(**block, gamma=gamma, gae_lambda=gae_lambda),
        oracles.generalized_advantage(**block, gamma=gamma, gae_lambda=gae_lambda),
        atol=2e-5,
    )


def test_compiled_and_eager_advantages_agree():
    block = oracles.patterns(0, SHAPE)
    np.testing.assert_allclose(
        advantage_of(**block, gamma=0.9, gae_lambda=0.8),
        generalized_advantage(**jax.tree.map(jnp.asarray, block), gamma=0.9, gae_lambda=0.8),
        atol=1e-6,
    )


def test_three_steps_by_hand():
    # gamma = 0.5, lambda = 0.5, so gamma lambda = 0.25. Step 1 is truncated; step 2 is the horizon's last.
    no = column(False, False, False, dtype=bool)
    advantage = advantage_of(
        reward=column(1, 2, 3),
        value=column(10, 20, 30),
        next_value=column(20, 8, 40),
        terminated=no,
        truncated=column(False, True, False, dtype=bool),
        valid=~no,
        gamma=0.5,
        gae_lambda=0.5,
    )
    # delta = 1 + 10 - 10 = 1, 2 + 4 - 20 = -14, 3 + 20 - 30 = -7; A_0 = 1 - 14 / 4, A_1 and A_2 stand alone.
    np.testing.assert_array_equal(advantage, column(-2.5, -14, -7))


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=30)
def test_lambda_zero_is_the_temporal_difference(seed, gamma):
    block = oracles.patterns(seed, SHAPE)
    future = np.where(block["terminated"], 0.0, block["next_value"])
    delta = np.where(block["valid"], block["reward"] + gamma * future - block["value"], 0.0)
    np.testing.assert_allclose(advantage_of(**block, gamma=gamma, gae_lambda=0.0), delta, atol=1e-6)


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=30)
def test_lambda_one_is_the_monte_carlo_return_minus_the_value(seed, gamma):
    block = oracles.patterns(seed, SHAPE)
    block["valid"][:] = True
    # Telescoping needs V(next_obs_t) = V(obs_{t+1}) inside episodes; at their ends the two are different states.
    inside = ~(block["terminated"] | block["truncated"])[:-1]
    block["next_value"][:-1] = np.where(inside, block["value"][1:], block["next_value"][:-1])
    returns = oracles.monte_carlo_return(
        block["reward"], block["next_value"], block["terminated"], block["truncated"], gamma
    )
    advantage = advantage_of(**block, gamma=gamma, gae_lambda=1.0)
    np.testing.assert_allclose(advantage, returns - block["value"], atol=2e-5)
    np.testing.assert_allclose(lambda_return(advantage, jnp.asarray(block["value"])), returns, atol=2e-5)


def test_a_terminated_step_has_no_future_and_a_truncated_one_keeps_its_own():
    yes, no = column(True, dtype=bool), column(False, dtype=bool)
    step = {"reward": column(1), "value": column(2), "next_value": column(10)}
    ends = {"valid": yes, "gamma": 0.9, "gae_lambda": 0.95}
    assert advantage_of(**step, terminated=yes, truncated=no, **ends) == -1
    assert advantage_of(**step, terminated=no, truncated=yes, **ends) == 8
    assert advantage_of(**step, terminated=no, truncated=no, **ends) == 8


def test_both_flags_mean_terminated():
    block = oracles.patterns(3, SHAPE)
    both = advantage_of(**{**block, "truncated": block["terminated"] | block["truncated"]}, gamma=0.9, gae_lambda=0.9)
    once = advantage_of(**{**block, "truncated": block["truncated"] & ~block["terminated"]}, gamma=0.9, gae_lambda=0.9)
    np.testing.assert_array_equal(both, once)


def test_the_value_after_a_termination_may_be_anything():
    block = oracles.patterns(4, SHAPE)
    assert block["terminated"].any()
    poisoned = {**block, "next_value": np.where(block["terminated"], np.float32(np.nan), block["next_value"])}
    np.testing.assert_array_equal(
        advantage_of(**poisoned, gamma=0.9, gae_lambda=0.9), advantage_of(**block, gamma=0.9, gae_lambda=0.9)
    )


def test_rows_that_are_no_transition_get_zero_and_may_hold_anything():
    block = oracles.patterns(5, SHAPE)
    gone = ~block["valid"]
    assert gone.any()
    clean = advantage_of(**block, gamma=0.9, gae_lambda=0.9)
    for name in ("reward", "value", "next_value"):
        block[name] = np.where(gone, np.float32(np.nan), block[name])
    poisoned = np.asarray(advantage_of(**block, gamma=0.9, gae_lambda=0.9))
    np.testing.assert_array_equal(poisoned, clean)
    assert (poisoned[gone] == 0).all()


def test_the_horizon_bootstraps_and_does_not_end_the_episode():
    no = column(False, dtype=bool)
    last = advantage_of(column(0), column(0), column(10), no, no, ~no, 0.9, 0.95)
    np.testing.assert_allclose(last, 9.0)


def test_the_residual_is_equation_12():
    terminated = column(False, True, dtype=bool)
    residual = td_residual(column(1, 1), column(3, 3), column(10, 10), terminated, 0.5)
    np.testing.assert_array_equal(residual, column(3, -2))


def test_the_one_step_target_is_the_reward_and_what_follows_unless_the_task_ended():
    terminated = column(False, True, dtype=bool)
    np.testing.assert_array_equal(td_target(column(1, 2), column(10, 10), terminated, 0.5), column(6, 2))


def test_value_targets_carry_no_gradient():
    gradient = jax.grad(lambda v: lambda_return(v * 2, v).sum())(jnp.ones((2, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))
    no = jnp.zeros((2, 2), bool)
    gradient = jax.grad(lambda v: td_target(v, v, no, 0.9).sum())(jnp.ones((2, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=60)
def test_the_return_so_far_is_the_sum_looking_back(seed, gamma):
    block = oracles.patterns(seed, SHAPE)
    start = np.random.default_rng(seed).normal(size=SHAPE[1]).astype(np.float32)
    done = block["terminated"] | block["truncated"]
    found = return_of(block["reward"], done, block["valid"], start, gamma)
    expected = oracles.discounted_return_so_far(block["reward"], done, block["valid"], start, gamma)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_two_rollouts_give_the_return_so_far_of_one_twice_as_long():
    block = oracles.patterns(6, SHAPE)
    done = block["terminated"] | block["truncated"]
    whole, end = return_of(block["reward"], done, block["valid"], jnp.zeros(3), 0.9)
    halves, carried = [], jnp.zeros(3)
    for part in (slice(0, 4), slice(4, 8)):
        totals, carried = return_of(block["reward"][part], done[part], block["valid"][part], carried, 0.9)
        halves.append(totals)
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    np.testing.assert_array_equal(carried, end)


def test_single_precision_stays():
    assert advantage_of(**oracles.patterns(0, SHAPE), gamma=0.9, gae_lambda=0.9).dtype == jnp.float32

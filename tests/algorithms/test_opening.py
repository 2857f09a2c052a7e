"""What the old parameters say about a rollout, against oracles."""

import dataclasses

import jax
import numpy as np
import pytest

import oracles
from inchworm.algorithms import ppo
from inchworm.algorithms.batch import from_rows, to_rows
from inchworm.algorithms.opening import opening_pass
from inchworm.algorithms.ppo import PPO
from inchworm.models import observations
from inchworm.models.observations import Normalizer
from inchworm.spaces import Box, Discrete, EnvSpec

SPEC = EnvSpec(Box((3,), "float32", -1.0, 1.0), Discrete(4))
SHAPE = (8, 3)
GAMMA, LAMBDA = 0.9, 0.8
NORMALIZERS = (Normalizer(np.float32([0.3, -0.1, 0.5]), np.float32([0.5, 0.4, 0.6])),)

CONFIG = PPO(
    num_envs=SHAPE[1],
    horizon=SHAPE[0],
    minibatch_size=24,
    hidden_sizes=(8,),
    gamma=GAMMA,
    gae_lambda=LAMBDA,
    normalize_advantage="none",
    normalize_observation=False,
)

compiled = jax.jit(opening_pass, static_argnums=3)


def opened(model, normalizers, rollout, config=CONFIG):
    return compiled(model, normalizers, rollout, config, config.at(0.0, 1000))


@pytest.fixture(scope="module")
def state(made_up):
    return made_up(ppo.make(CONFIG, SPEC, 1000).init)


@pytest.fixture(scope="module")
def rollout(state, act_out):
    rollout = act_out(state, SHAPE, seed=0, invalid=0.15)
    distribution, _ = observations.to_numpy(state.model).act(NORMALIZERS, rollout.obs)
    log_prob = distribution.log_prob(rollout.action)
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    assert not rollout.valid.all()
    return rollout._replace(log_prob=log_prob)


@pytest.fixture(scope="module")
def opening(state, rollout):
    return opened(state.model, NORMALIZERS, rollout)


def features(obs: np.ndarray) -> np.ndarray:
    normalizer = NORMALIZERS[0]
    return np.clip((obs.reshape(-1, 3) - normalizer.mean) * normalizer.inverse_std, -5, 5)


def oracle_value(state, obs: np.ndarray) -> np.ndarray:
    network = state.model.value.layers
    return oracles.mlp(network.weights, network.biases, features(obs))[:, 0].reshape(SHAPE)


def test_advantages_are_the_double_sum_over_the_values_of_both_observations(state, rollout, opening):
    batch, _, _ = opening
    expected = oracles.generalized_advantage(
        rollout.reward,
        oracle_value(state, rollout.obs),
        oracle_value(state, rollout.next_obs),
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        GAMMA,
        LAMBDA,
    )
    np.testing.assert_allclose(batch.advantage, expected, atol=1e-5)


def test_without_a_time_limit_inside_the_rollout_successors_have_the_values_of_the_next_rows(state, rollout):
    truncated = np.zeros(SHAPE, bool)
    truncated[-1] = ~rollout.terminated[-1]
    next_obs = np.concatenate([rollout.obs[1:], rollout.next_obs[-1:]])
    lived = rollout._replace(truncated=truncated, next_obs=next_obs, valid=np.ones(SHAPE, bool))
    batch, _, _ = opened(state.model, NORMALIZERS, lived)
    flags = (lived.terminated, lived.truncated, lived.valid)
    values = (oracle_value(state, lived.obs), oracle_value(state, next_obs))
    expected = oracles.generalized_advantage(lived.reward, *values, *flags, GAMMA, LAMBDA)
    np.testing.assert_allclose(batch.advantage, expected, atol=1e-5)


@pytest.mark.parametrize("row", range(SHAPE[0]))
def test_one_time_limit_in_any_row_bootstraps_from_its_own_successor(state, rollout, row):
    truncated = np.zeros(SHAPE, bool)
    truncated[row, 1] = True
    next_obs = np.concatenate([rollout.obs[1:], rollout.next_obs[-1:]])
    next_obs[row, 1] = [-2.0, 3.0, 1.0]
    cut = rollout._replace(
        truncated=truncated, terminated=np.zeros(SHAPE, bool), next_obs=next_obs, valid=np.ones(SHAPE, bool)
    )
    batch, _, _ = opened(state.model, NORMALIZERS, cut)
    flags = (cut.terminated, cut.truncated, cut.valid)
    values = (oracle_value(state, cut.obs), oracle_value(state, next_obs))
    expected = oracles.generalized_advantage(cut.reward, *values, *flags, GAMMA, LAMBDA)
    np.testing.assert_allclose(batch.advantage, expected, atol=1e-5)


def test_returns_are_advantage_plus_value(state, rollout, opening):
    batch, _, _ = opening
    np.testing.assert_allclose(batch.value, oracle_value(state, rollout.obs), atol=1e-5)
    np.testing.assert_allclose(batch.returns, np.asarray(batch.advantage) + batch.value, atol=1e-6)


def test_every_field_of_a_row_is_that_of_one_transition(rollout, opening):
    batch, _, _ = opening
    rows = to_rows(batch, recurrent=False)
    np.testing.assert_array_equal(rows.obs, rollout.obs.reshape(24, 3))
    for name in ("first", "action", "log_prob"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(rollout, name).ravel())
    np.testing.assert_array_equal(rows.weight, rollout.valid.ravel())
    np.testing.assert_array_equal(rows.advantage, batch.advantage.ravel())


def test_with_memory_a_row_is_an_environment_s_whole_trajectory(opening):
    batch = opening.batch._replace(carry=np.arange(3.0))
    rows = to_rows(batch, recurrent=True)
    np.testing.assert_array_equal(rows.obs[1], batch.obs[:, 1])
    np.testing.assert_array_equal(rows.advantage[2], batch.advantage[:, 2])
    np.testing.assert_array_equal(rows.carry, [0, 1, 2])
    back = from_rows(rows, recurrent=True)
    for ours, theirs in zip(*map(jax.tree.leaves, (back, batch)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_old_distribution_is_that_of_every_row(state, rollout, opening):
    _, old, _ = opening
    network = state.model.policy.network.layers
    logits = oracles.mlp(network.weights, network.biases, features(rollout.obs))
    np.testing.assert_allclose(old.logits.reshape(24, 4), logits, atol=1e-5)


def test_the_policy_that_acted_starts_at_ratio_one(opening):
    _, old, metrics = opening
    assert metrics["policy/log_ratio_at_start"] < 1e-5
    assert metrics["policy/log_ratio_tolerance"] == pytest.approx(1e-4 + 2e-6 * (2 + np.abs(old.logits).max()))


def test_one_wrong_stored_log_prob_shows_in_the_log_ratio_at_start(state, rollout):
    row = tuple(np.argwhere(rollout.valid)[3])
    log_prob = rollout.log_prob.copy()
    log_prob[row] -= 0.01
    _, _, metrics = opened(state.model, NORMALIZERS, rollout._replace(log_prob=log_prob))
    assert metrics["policy/log_ratio_at_start"] == pytest.approx(0.01, rel=1e-2)
    assert metrics["policy/log_ratio_at_start"] > metrics["policy/log_ratio_tolerance"]


def test_the_log_ratio_of_a_row_that_is_no_transition_does_not_count(state, rollout):
    log_prob = np.where(rollout.valid, rollout.log_prob, 7.0).astype(np.float32)
    _, _, metrics = opened(state.model, NORMALIZERS, rollout._replace(log_prob=log_prob))
    assert metrics["policy/log_ratio_at_start"] < 1e-5


def test_what_follows_a_termination_is_never_read_and_what_follows_a_truncation_is(state, rollout, opening):
    batch, _, _ = opening
    for name, changes in (("terminated", False), ("truncated", True)):
        ends = getattr(rollout, name) & rollout.valid
        moved = np.where(ends[..., None], rollout.next_obs + 1, rollout.next_obs).astype(np.float32)
        other, _, _ = opened(state.model, NORMALIZERS, rollout._replace(next_obs=moved))
        assert (np.asarray(other.advantage) != np.asarray(batch.advantage)).any() == changes


def test_explained_variance_is_that_of_the_values_over_the_valid_rows(opening):
    batch, _, metrics = opening
    counted = np.asarray(batch.weight) > 0
    returns, value = (np.asarray(each, np.float64)[counted] for each in (batch.returns, batch.value))
    expected = 1 - np.var(returns - value) / np.var(returns)
    assert metrics["value/explained_variance"] == pytest.approx(expected, abs=1e-4)


def test_nothing_of_the_opening_carries_a_gradient(state, rollout):
    def total(model):
        batch, old, _ = opening_pass(model, NORMALIZERS, rollout, CONFIG, CONFIG.at(0.0, 1000))
        return batch.advantage.sum() + batch.returns.sum() + batch.value.sum() + old.logits.sum()

    rollout = jax.tree.map(jax.numpy.asarray, rollout)
    gradient = jax.jit(jax.grad(total))(state.model)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_value_targets_are_the_lambda_return_the_monte_carlo_return_or_one_reward_and_the_next_value(
    state, rollout, opening
):
    parts = (rollout.reward, oracle_value(state, rollout.obs), oracle_value(state, rollout.next_obs))
    ends = (rollout.terminated, rollout.truncated, rollout.valid)
    monte_carlo = oracles.generalized_advantage(*parts, *ends, GAMMA, 1.0) + parts[1]
    td = parts[0] + GAMMA * np.where(rollout.terminated, 0.0, parts[2])
    for target, expected in (("monte_carlo", monte_carlo), ("td", td)):
        config = dataclasses.replace(CONFIG, value_target=target)
        batch, _, _ = opened(state.model, NORMALIZERS, rollout, config)
        np.testing.assert_allclose(batch.returns[rollout.valid], expected[rollout.valid], atol=1e-5)
        # What the policy learns from is another setting.
        np.testing.assert_allclose(batch.advantage, opening.batch.advantage, atol=1e-6)


def test_advantages_over_the_batch_are_standardised_over_the_valid_rows(state, rollout, opening):
    config = dataclasses.replace(CONFIG, normalize_advantage="batch")
    batch, _, _ = opened(state.model, NORMALIZERS, rollout, config)
    expected = oracles.standardize(np.asarray(opening.batch.advantage), rollout.valid)
    np.testing.assert_allclose(batch.advantage, expected, atol=1e-5)
    np.testing.assert_allclose(batch.returns, opening.batch.returns, atol=1e-6)


def test_gamma_and_lambda_may_move_over_the_run(state, rollout, opening):
    config = dataclasses.replace(CONFIG, gamma=f"linear:0.5:{GAMMA}:10", gae_lambda=f"linear:0:{LAMBDA}:10")
    batch, _, _ = compiled(state.model, NORMALIZERS, rollout, config, config.at(10.0, 1000))
    np.testing.assert_allclose(batch.advantage, opening.batch.advantage, atol=1e-5)
    early, _, _ = compiled(state.model, NORMALIZERS, rollout, config, config.at(0.0, 1000))
    future = 0.5 * np.where(rollout.terminated, 0.0, oracle_value(state, rollout.next_obs))
    delta = np.where(rollout.valid, rollout.reward + future - oracle_value(state, rollout.obs), 0.0)
    np.testing.assert_allclose(early.advantage, delta, atol=1e-5)


def test_a_memory_that_multiplies_rounding_errors_is_no_drift_of_the_policy(state, act_out):
    config = dataclasses.replace(CONFIG, recurrent="gru", recurrent_size=32, horizon=256, minibatch_size=768)
    model = ppo.make(config, SPEC, 1000).init(jax.random.key(0)).model
    network = model.policy.network
    quiet, loud = 0.1 * network.core.input_weight, 4.0 * network.core.recurrent_weight
    core = dataclasses.replace(network.core, input_weight=quiet, recurrent_weight=loud)
    layers = jax.tree.map(lambda leaf: 10.0 * leaf, network.layers)  # so that the memory matters to the actions
    policy = dataclasses.replace(model.policy, network=dataclasses.replace(network, core=core, layers=layers))
    model = dataclasses.replace(model, policy=policy)

    act, start, log_probs = jax.jit(type(model).act), model.initial_carry(3), []
    rollout = act_out(state, (256, 3), seed=0)._replace(carry=start)
    carry = jax.tree.map(lambda leaf: leaf + 1e-7, start)  # a rounding error
    for obs, first, action in zip(rollout.obs, rollout.first, rollout.action, strict=True):
        distribution, carry = act(model, NORMALIZERS, obs, first, None, carry)
        log_probs.append(distribution.log_prob(action))
    rollout = rollout._replace(log_prob=np.stack(log_probs))
    _, old, metrics = opened(model, NORMALIZERS, rollout, config)
    everywhere = np.abs(old.log_prob(rollout.action) - rollout.log_prob).max()
    assert metrics["policy/log_ratio_at_start"] < metrics["policy/log_ratio_tolerance"] < everywhere

    other = rollout._replace(log_prob=rollout.log_prob - 0.01)
    _, _, metrics = opened(model, NORMALIZERS, other, config)
    assert metrics["policy/log_ratio_at_start"] > 10 * metrics["policy/log_ratio_tolerance"]


def test_with_memory_the_ratio_is_checked_in_the_first_sixteen_steps(state, act_out, made_up):
    config = dataclasses.replace(CONFIG, recurrent="gru", recurrent_size=4, horizon=18, minibatch_size=54)
    model = made_up(ppo.make(config, SPEC, 1000).init).model
    rollout = act_out(state, (18, 3), seed=0)._replace(carry=model.initial_carry(3))
    rollout = rollout._replace(
        log_prob=np.array(opened(model, NORMALIZERS, rollout, config).old.log_prob(rollout.action))
    )
    for row, counts in ((15, True), (16, False)):
        log_prob = rollout.log_prob.copy()
        log_prob[row, 1] -= 0.5
        metrics = opened(model, NORMALIZERS, rollout._replace(log_prob=log_prob), config).metrics
        assert metrics["policy/log_ratio_at_start"] == pytest.approx(0.5 * counts, abs=1e-5)

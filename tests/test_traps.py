"""Traps in common descriptions of PPO, numbered as in the project's list of them.

Each test states the right form, and where it can, plants the wrong one and shows that the oracle tells them apart.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import oracles
import probes
from inchworm import spaces
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.opening import opening_pass
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.state import Algorithm
from inchworm.collect.host import HostRollouts
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic, make_model
from inchworm.rl import diagnostics, surrogates
from inchworm.rl.distributions import Categorical, DiagonalGaussian
from inchworm.rl.returns import generalized_advantage, lambda_return

CHOICE = spaces.EnvSpec(spaces.Box((3,), "float32", -1.0, 1.0), spaces.Discrete(4))
SHAPE = (8, 3)
GAMMA, LAMBDA, EPSILON = 0.9, 0.8, 0.2
TOLERANCE = 1e-4

advantage_of = jax.jit(generalized_advantage)
standardize = jax.jit(diagnostics.standardize)
surrogate_and_slope = jax.jit(jax.value_and_grad(surrogates.clipped_surrogate))
entropy_slope = jax.jit(jax.grad(lambda z: Categorical(z).entropy()))
CONFIG = PPO(
    num_envs=SHAPE[1],
    horizon=SHAPE[0],
    minibatch_size=24,
    hidden_sizes=(8,),
    gamma=GAMMA,
    gae_lambda=LAMBDA,
    normalize_advantage="none",
)
NOW = CONFIG.at(0.0, 1000)
opened = jax.jit(opening_pass, static_argnums=3)


def apart(wrong, right) -> bool:
    """True if an oracle comparison at the tests' tolerance would notice."""
    return float(np.abs(np.asarray(wrong) - np.asarray(right)).max()) > 100 * TOLERANCE


def valid_block(seed: int) -> dict[str, np.ndarray]:
    block = oracles.patterns(seed, SHAPE)
    return block | {"valid": np.ones(SHAPE, bool)}


def oracle_advantage(block: dict[str, np.ndarray]) -> np.ndarray:
    return oracles.generalized_advantage(**block, gamma=GAMMA, gae_lambda=LAMBDA)


def probabilities(model: ActorCritic, obs: np.ndarray) -> np.ndarray:
    layers = model.policy.network.layers
    return oracles.softmax(oracles.mlp(layers.weights, layers.biases, obs.reshape(-1, 3)))


def ratios(update, model: ActorCritic) -> np.ndarray:
    """pi_model / pi_stored of every transition of a recorded update."""
    taken = update.rollout.action.ravel()
    new = probabilities(model, update.rollout.obs)[np.arange(len(taken)), taken]
    return new / np.exp(update.rollout.log_prob.ravel())


def test_trap_1_the_ratio_divides_by_the_stored_probability_through_all_epochs(recorded_updates):
    update = recorded_updates[0]
    for index in range(3):
        epoch = update.epoch(index)
        assert sorted(epoch.log_prob) == sorted(update.rollout.log_prob.ravel())
    # Had the denominator been recomputed, no ratio could have left the range.
    assert update.metrics["policy/clip_fraction"] > 0
    assert apart(ratios(update, update.after.model), 1.0)


def test_trap_2_a_column_against_a_vector_is_refused_where_plain_broadcasting_would_kill_the_gradient():
    log_ratio, weight = jnp.zeros((4, 1)), jnp.ones(4)
    advantage = jnp.asarray(oracles.standardize(np.array([1.0, 2.0, -4.0, 0.5]), np.ones(4)), jnp.float32)
    for function in (surrogates.squared_error, lambda a, b: surrogates.clipped_surrogate(a, b, EPSILON)):
        with pytest.raises(TypeCheckError):
            function(log_ratio, advantage)
        with pytest.raises(TypeCheckError):
            jax.eval_shape(function, log_ratio, advantage)

    def planted(x):
        return jnp.mean(jnp.minimum(jnp.exp(x) * advantage, jnp.clip(jnp.exp(x), 0.8, 1.2) * advantage))

    np.testing.assert_allclose(jax.jit(jax.grad(planted))(log_ratio), np.zeros((4, 1)), atol=1e-7)
    right = jax.jit(jax.grad(lambda x: surrogates.clipped_surrogate(x, advantage, EPSILON).mean()))(
        np.zeros(4, np.float32)
    )
    np.testing.assert_allclose(right, np.asarray(advantage) / 4, rtol=1e-5)
    with pytest.raises(TypeCheckError):
        diagnostics.weighted_mean(log_ratio, weight)


def test_trap_3_nothing_leaks_across_an_episode_s_end():
    block = valid_block(0)
    right = oracle_advantage(block)
    np.testing.assert_allclose(advantage_of(**block, gamma=GAMMA, gae_lambda=LAMBDA), right, atol=TOLERANCE)
    no = np.zeros(SHAPE, bool)
    leaking = oracle_advantage(block | {"terminated": no, "truncated": no})
    merged = oracle_advantage(block | {"terminated": block["terminated"] | block["truncated"], "truncated": no})
    reset_value = np.where(block["truncated"], np.roll(block["value"], -1, axis=0), block["next_value"])
    from_the_reset = oracle_advantage(block | {"next_value": reset_value})
    for wrong in (leaking, merged, from_the_reset):
        assert apart(wrong, right)


def test_trap_4_every_actor_bootstraps_from_its_own_last_state():
    block = valid_block(1)
    found = np.asarray(advantage_of(**block, gamma=GAMMA, gae_lambda=LAMBDA))
    for n in range(SHAPE[1]):
        alone = {name: array[:, [n]] for name, array in block.items()}
        np.testing.assert_allclose(found[:, [n]], oracle_advantage(alone), atol=TOLERANCE)
    shared = block["next_value"].copy()
    shared[-1] = shared[-1, 0]
    assert apart(oracle_advantage(block | {"next_value": shared}), found)


def test_trap_5_a_reset_row_changes_nothing_in_the_rows_that_are_transitions():
    block = valid_block(2)
    at = 3
    # A vector environment that resets in the next step: the episode ends in row 2, and row 3 is no transition.
    block["terminated"][at - 1] = True
    row = {"reward": 0.0, "value": 5.0, "next_value": 7.0, "terminated": False, "truncated": False, "valid": False}
    longer = {name: np.insert(array, at, row[name], axis=0) for name, array in block.items()}
    found = np.asarray(advantage_of(**longer, gamma=GAMMA, gae_lambda=LAMBDA))
    np.testing.assert_allclose(np.delete(found, at, axis=0), oracle_advantage(block), atol=TOLERANCE)
    taken_for_a_transition = oracle_advantage(longer | {"valid": np.ones_like(longer["valid"])})
    assert apart(taken_for_a_transition[at], 0.0)


def test_trap_6_returns_are_the_advantage_plus_the_value():
    block = valid_block(3)
    inside = ~(block["terminated"] | block["truncated"])[:-1]
    block["next_value"][:-1] = np.where(inside, block["value"][1:], block["next_value"][:-1])
    monte_carlo = oracles.monte_carlo_return(
        block["reward"], block["next_value"], block["terminated"], block["truncated"], GAMMA
    )
    advantage = advantage_of(**block, gamma=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(lambda_return(advantage, jnp.asarray(block["value"])), monte_carlo, atol=TOLERANCE)
    assert apart(advantage, monte_carlo)


def test_trap_6_the_last_term_has_the_exponent_t_minus_t_minus_one():
    no = np.zeros((2, 1), bool)
    ones = np.ones((2, 1), np.float32)
    found = advantage_of(ones, 0 * ones, 0 * ones, no, no, ~no, GAMMA, LAMBDA)
    # delta = 1 in both steps; as printed in the paper the last row would be (gamma lambda)^2.
    np.testing.assert_allclose(found, [[1 + GAMMA * LAMBDA], [1.0]], rtol=1e-6)


def test_trap_7_targets_carry_no_gradient_and_stop_at_a_termination():
    def target_of(next_value, terminated):
        no = jnp.zeros((1, 1), bool)
        advantage = generalized_advantage(
            jnp.ones((1, 1)), jnp.zeros((1, 1)), next_value, terminated, no, ~no, GAMMA, LAMBDA
        )
        return lambda_return(advantage, jnp.zeros((1, 1)))[0, 0]

    ten, yes = jnp.full((1, 1), 10.0), jnp.ones((1, 1), bool)
    value_and_slope = jax.jit(jax.value_and_grad(target_of))
    assert value_and_slope(ten, yes) == (1.0, 0.0)
    assert value_and_slope(ten, ~yes) == (1.0 + 10.0 * GAMMA, 0.0)


def test_trap_8_k_counts_epochs_over_the_whole_batch_not_minibatches(recorded_updates):
    assert PPO().gradient_steps_per_iteration == 320
    update = recorded_updates[0]
    assert len(update.minibatches) == 12
    for index in range(3):
        assert len(np.unique(update.epoch(index).obs, axis=0)) == 24


@pytest.mark.parametrize(
    ("advantage", "ratio", "slope"), [(1.0, 1.5, 0.0), (1.0, 0.5, 1.0), (-1.0, 1.5, -1.0), (-1.0, 0.5, 0.0)]
)
def test_trap_10_the_clip_needs_the_advantage_s_sign(advantage, ratio, slope):
    found, by_log_ratio = surrogate_and_slope(jnp.log(ratio), jnp.float32(advantage), EPSILON)
    assert found == pytest.approx(oracles.clipped_surrogate(ratio, advantage, EPSILON), rel=1e-6)
    assert by_log_ratio / ratio == pytest.approx(slope, abs=1e-6)
    # Clipping the ratio whatever the sign is wrong exactly where a gradient should lead back.
    planted = min(max(ratio, 1 - EPSILON), 1 + EPSILON) * advantage
    assert apart(planted, found) == (slope != 0)


def test_trap_11_the_unclipped_objective_is_another_one():
    for ratio, same in ((1.1, True), (0.9, True), (1.5, False)):
        clipped, _ = surrogate_and_slope(jnp.log(ratio), jnp.float32(2.0), EPSILON)
        assert (abs(float(clipped) - 2 * ratio) < TOLERANCE) == same


def test_trap_12_the_clip_bounds_neither_ratio_nor_kl_and_the_kl_is_measured(recorded_updates):
    update = recorded_updates[0]
    after = ratios(update, update.after.model)
    assert ((after > 1 + EPSILON) | (after < 1 - EPSILON)).any()
    old, new = (probabilities(m, update.rollout.obs) for m in (update.before.model, update.after.model))
    kl = np.sum(old * np.log(old / new), axis=1).mean()
    assert kl > 0.01
    assert update.metrics["policy/kl"] == pytest.approx(kl, rel=1e-3)


def test_trap_13_a_logit_rises_by_the_entropy_s_gradient_if_its_surprise_exceeds_the_entropy():
    p = np.array([0.3, 0.3, 0.3, 0.1])
    slope = np.asarray(entropy_slope(np.log(p).astype(np.float32)))
    entropy = -np.sum(p * np.log(p))
    np.testing.assert_allclose(slope, -p * (np.log(p) + entropy), atol=1e-6)
    np.testing.assert_array_equal(slope > 0, -np.log(p) > entropy)
    assert ((slope > 0) != (np.log(p) + 1 < 0)).any()


def test_trap_14_the_surprise_of_a_sample_has_no_expected_gradient_but_the_entropy_has():
    logits = np.float32([1.0, 0.0, -1.0, 0.5])
    p = oracles.softmax(logits)
    surprise = jax.jit(jax.jacobian(lambda z: -Categorical(z).log_probs()))(logits)
    np.testing.assert_allclose(p @ np.asarray(surprise, np.float64), np.zeros(4), atol=1e-7)
    assert apart(entropy_slope(logits), 0.0)


def test_trap_14_a_gaussian_s_entropy_may_be_negative():
    narrow = DiagonalGaussian(np.zeros((1, 1), np.float32), np.float32([-3.0]))
    assert narrow.entropy()[0] == pytest.approx(oracles.normal_entropy(0.0, math.exp(-3.0)), rel=1e-5)
    assert narrow.entropy()[0] < 0


def test_trap_15_probabilities_that_underflow_still_have_logarithms_and_ratios():
    logits = np.float32([[0.0, -200.0]])
    action = np.int32([1])
    log_prob = Categorical(logits).log_prob(action)
    assert log_prob[0] == pytest.approx(-200)
    other = Categorical(logits + np.float32([[0.0, 0.1]])).log_prob(action)
    assert np.exp(other - log_prob)[0] == pytest.approx(math.exp(0.1), rel=1e-4)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.exp(logits) / np.exp(logits).sum()
        assert np.isinf(np.log(p)[0, 1])
        assert np.isnan(p[0, 1] / p[0, 1])


@pytest.fixture(scope="module")
def door(made_up):
    """A rollout of an environment that remembers what it was sent, by a policy wider than its bounds."""
    made = []

    def factory():
        made.append(probes.Counting(continuous=True))
        return made[-1]

    pool = GymnasiumPool(factory, 1, seed=0)
    model = made_up(lambda key: make_model(key, pool.spec, CONFIG))
    rollout, _ = HostRollouts(pool, 16, CONFIG.squash).collect(
        model, observations.empty_stats(CHOICE.observation_space, False), jax.random.key(1)
    )
    return model, rollout, np.array(made[0].actions)


def test_trap_16_actions_are_clipped_at_the_environment_s_door_and_stored_as_they_were(door):
    model, rollout, sent = door
    stored = rollout.action[:, 0]
    assert (np.abs(stored) > 1).any()
    np.testing.assert_array_equal(sent, np.clip(stored, -1, 1))
    layers = model.policy.network.layers
    mean = oracles.mlp(layers.weights, layers.biases, rollout.obs[:, 0])
    std = np.exp(model.head.log_std)
    of_stored, of_sent = (oracles.normal_log_density(a, mean, std).sum(axis=-1) for a in (stored, sent))
    np.testing.assert_allclose(rollout.log_prob[:, 0], of_stored, atol=TOLERANCE)
    assert apart(of_sent, of_stored)


def test_trap_16_a_vector_s_log_prob_is_summed_and_its_log_std_learned():
    mean, log_std, action = np.float32([[0.1, -0.2]]), np.float32([-0.5, 0.3]), np.float32([[0.4, 0.6]])
    found = DiagonalGaussian(mean, log_std).log_prob(action)
    parts = oracles.normal_log_density(action, mean, np.exp(log_std))
    np.testing.assert_allclose(found, parts.sum(axis=-1), rtol=1e-5)
    assert apart(parts.mean(axis=-1), found)
    spec = spaces.EnvSpec(CHOICE.observation_space, spaces.Box((2,), "float32", -1.0, 1.0))
    model = jax.eval_shape(lambda key: make_model(key, spec, CONFIG), jax.random.key(0))
    shapes = [leaf.shape for leaf in jax.tree.leaves(model.head)]
    assert (shapes, model.head.learned) == ([(2,)], True)


def test_trap_18_the_value_loss_is_the_paper_s_without_one_half_and_with_c1_of_one():
    assert surrogates.squared_error(jnp.float32(3), jnp.float32(1)) == 4
    assert PPO().vf_coef.start == 1


def test_trap_20_the_surrogate_is_maximised(recorded_updates):
    for update in recorded_updates:
        epoch = update.epoch(0)
        taken = np.arange(24), epoch.action
        ratio = probabilities(update.after.model, epoch.obs)[taken] / np.exp(epoch.log_prob)
        after = np.mean([oracles.clipped_surrogate(*row, EPSILON) for row in zip(ratio, epoch.advantage, strict=True)])
        assert after > np.mean(epoch.advantage) + 0.02


def test_trap_22_the_kl_is_old_to_new(recorded_updates):
    update = recorded_updates[0]
    old, new = (probabilities(m, update.rollout.obs) for m in (update.before.model, update.after.model))
    forward, backward = np.sum(old * np.log(old / new), axis=1).mean(), np.sum(new * np.log(new / old), axis=1).mean()
    assert abs(forward - backward) > 100 * TOLERANCE * forward
    assert update.metrics["policy/kl"] == pytest.approx(forward, rel=1e-3)


def test_trap_24_advantages_are_scaled_per_batch_by_default_and_a_zero_deviation_is_guarded(recorded_updates):
    assert PPO().normalize_advantage == "batch"
    advantages = recorded_updates[0].epoch(0).advantage
    np.testing.assert_allclose([advantages.mean(), advantages.std()], [0, 1], atol=1e-5)
    alike = standardize(np.full(4, 3, np.float32), np.ones(4, np.float32))
    np.testing.assert_array_equal(alike, np.zeros(4))
    with np.errstate(invalid="ignore"):
        assert np.isnan((np.full(4, 3.0) - 3.0) / np.std(np.full(4, 3.0))).all()


def test_trap_25_targets_and_advantages_stay_those_of_the_old_values_in_every_epoch(recorded_updates):
    update = recorded_updates[0]
    rows = update.rollout.obs.reshape(24, 3)
    epochs = []
    for index in range(3):
        epoch = update.epoch(index)
        order = [int(np.flatnonzero((rows == obs).all(axis=1))[0]) for obs in epoch.obs]
        back = np.argsort(order)
        epochs.append({name: getattr(epoch, name)[back] for name in ("returns", "advantage", "value")})
    for later in epochs[1:]:
        for name, array in epochs[0].items():
            np.testing.assert_array_equal(later[name], array)
    # Recomputed with the critic that has moved on, they would not have stayed.
    layers = update.after.model.value.layers
    moved = oracles.mlp(layers.weights, layers.biases, rows)[:, 0]
    assert apart(moved, epochs[0]["value"])


def test_trap_26_statistics_are_frozen_between_acting_and_updating(recorded_updates, act_out):
    def only_open(state, rollout):
        normalizers = observations.freeze(state.obs_stats)
        return state, opening_pass(state.model, normalizers, rollout, CONFIG, NOW).metrics

    space = CHOICE.observation_space
    state = recorded_updates[-1].after._replace(obs_stats=observations.empty_stats(space, True))
    iterate = jax.jit(make_iteration(Algorithm(lambda key: state, only_open), CHOICE, CONFIG, 1000))
    for seed in range(2):
        rollout = act_out(state, SHAPE, seed)
        after, metrics = iterate(state, rollout)
        assert metrics["policy/log_ratio_at_start"] <= metrics["policy/log_ratio_tolerance"]
        # Statistics that have already taken the rollout in see another policy.
        _, metrics = iterate(state._replace(obs_stats=after.obs_stats), rollout)
        assert metrics["policy/log_ratio_at_start"] > 100 * metrics["policy/log_ratio_tolerance"]
        state = after


def test_trap_27_an_update_learns_from_its_own_rollout_and_from_no_older_one(recorded_updates):
    first, second = recorded_updates
    own, older = (update.rollout.obs.reshape(-1, 3) for update in (second, first))
    seen = np.concatenate([minibatch.obs for minibatch in second.minibatches])
    assert {tuple(row) for row in seen} == {tuple(row) for row in own}
    assert not {tuple(row) for row in seen} & {tuple(row) for row in older}


def test_trap_28_the_clip_needs_stored_log_probs_alone_but_the_kl_the_whole_old_distribution(recorded_updates):
    update = recorded_updates[0]
    taken = np.arange(24), update.rollout.action.ravel()
    old, new = (probabilities(m, update.rollout.obs) for m in (update.before.model, update.after.model))
    from_samples = np.mean(np.log(old[taken] / new[taken]))
    exact = np.sum(old * np.log(old / new), axis=1).mean()
    assert update.metrics["policy/kl"] == pytest.approx(exact, rel=1e-3)
    assert abs(from_samples - exact) > 100 * TOLERANCE * exact
    # The opening keeps the old distribution itself; the batch that the loss sees holds its log-probabilities only.
    normalizers = observations.freeze(update.before.obs_stats)
    _, kept, _ = opened(update.before.model, normalizers, update.rollout, CONFIG, NOW)
    np.testing.assert_allclose(np.exp(kept.log_probs()).reshape(24, 4), old, atol=1e-6)
    sizes = {leaf.size // 6 for leaf in jax.tree.leaves(update.minibatches[0]._replace(obs=None))}
    assert sizes == {1}


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_trap_29_where_the_two_terms_tie_the_gradient_is_the_whole_advantage(advantage):
    _, slope = surrogate_and_slope(jnp.float32(0.0), jnp.float32(advantage), EPSILON)
    assert slope == advantage

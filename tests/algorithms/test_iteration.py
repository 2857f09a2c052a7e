"""What surrounds every update: blanked rows, reward scaling, statistics in their order, and the finite guard."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm.algorithms import policy_gradient, ppo, trpo
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.policy_gradient import A2C
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.state import Algorithm, TrainState, collection_key, update_key, zero
from inchworm.algorithms.trpo import TRPO
from inchworm.models import observations
from inchworm.numerics import running_stats
from inchworm.numerics.tree import fingerprint
from inchworm.spaces import Box, EnvSpec
from inchworm.types import Rollout

SHAPE = (8, 4)
TOTAL_STEPS = 1000
OBSERVATION = Box((3,), "float32", -1.0, 1.0)
SPEC = EnvSpec(OBSERVATION, Box((2,), "float32", -1.0, 1.0))
CONFIG = PPO(
    num_envs=4, horizon=8, num_epochs=1, minibatch_size=16, hidden_sizes=(8,), gamma=0.9, normalize_return=True
)
SMALL = {"num_envs": 4, "horizon": 8, "hidden_sizes": (8,), "action_distribution": "beta"}
GO_ON = {"iteration", "skipped", "skipped_in_row", "discounted_return"}
"""What an update that is dropped moves too."""


def witness(state: TrainState, rollout) -> tuple[TrainState, dict]:
    """An update that learns nothing and keeps what it saw in place of a model."""
    seen = {
        "reward": rollout.reward,
        "obs": rollout.obs,
        "obs_stats": state.obs_stats,
        "return_std": state.return_stats.std,
        "add": state.model["add"],
    }
    # NaN or infinity can be planted into what the update makes.
    opt_state = state.opt_state + state.model["add"][0]
    return state._replace(model=seen, opt_state=opt_state), {"metric": state.model["add"][1]}


def witness_state(add: tuple[float, float] = (0.0, 0.0)) -> TrainState:
    model = {
        "reward": jnp.zeros(SHAPE),
        "obs": jnp.zeros((*SHAPE, 3)),
        "obs_stats": observations.empty_stats(OBSERVATION, True),
        "return_std": jnp.zeros(()),
        "add": jnp.array(add),
    }
    return TrainState(
        model=model,
        opt_state=jnp.zeros(()),
        obs_stats=observations.empty_stats(OBSERVATION, True),
        return_stats=running_stats.empty(()),
        discounted_return=jnp.zeros(SHAPE[1]),
        adaptive={},
        key=jax.random.key(0),
        iteration=zero(),
        skipped=zero(),
        skipped_in_row=zero(),
    )


def iterating(config: PPO):
    return jax.jit(make_iteration(Algorithm(witness_state, witness), SPEC, config, TOTAL_STEPS))


@pytest.fixture(scope="module")
def iterate_witness():
    return iterating(CONFIG)


@pytest.fixture(scope="module")
def ppo_state(made_up):
    return made_up(ppo.make(CONFIG, SPEC, TOTAL_STEPS).init)


@pytest.fixture(scope="module")
def iterate():
    return jax.jit(make_iteration(ppo.make(CONFIG, SPEC, TOTAL_STEPS), SPEC, CONFIG, TOTAL_STEPS))


@pytest.fixture(scope="module")
def rollouts(ppo_state, act_out):
    return [act_out(ppo_state, SHAPE, seed, invalid=0.2) for seed in range(3)]


@pytest.fixture(scope="module")
def trained(ppo_state, iterate, rollouts):
    """A state with statistics and optimiser moments, and a rollout acted by it."""
    state, _ = iterate(ppo_state, rollouts[0])
    return state


@pytest.fixture(scope="module")
def fresh_rollout(trained, act_out):
    return act_out(trained, SHAPE, seed=9, invalid=0.2)


def clean(rollout):
    """The rollout with zeros where rows are no transition."""
    return rollout._replace(reward=np.where(rollout.valid, rollout.reward, 0.0).astype(np.float32))


def held(state: TrainState) -> str:
    """Fingerprint of what an update that is dropped must leave as it was."""
    return fingerprint({name: value for name, value in state._asdict().items() if name not in GO_ON})


def test_rewards_are_scaled_by_statistics_that_have_already_taken_them_in(iterate_witness, rollouts):
    state, totals, start = witness_state(), [], np.zeros(SHAPE[1])
    for rollout in rollouts:
        state, _ = iterate_witness(state, rollout)
        done = rollout.terminated | rollout.truncated
        so_far, start = oracles.discounted_return_so_far(rollout.reward, done, rollout.valid, start, 0.9)
        totals.append(so_far[rollout.valid])
        std = np.concatenate(totals).std()
        np.testing.assert_allclose(state.model["return_std"], std, rtol=1e-5)
        np.testing.assert_allclose(state.model["reward"], clean(rollout).reward / std, rtol=1e-4)
        np.testing.assert_allclose(state.discounted_return, start, rtol=1e-4, atol=1e-5)


def test_rewards_are_clipped_to_their_sign(rollouts):
    config = dataclasses.replace(CONFIG, normalize_return=False, clip_reward=True)
    state, _ = iterating(config)(witness_state(), rollouts[0])
    signs = np.sign(clean(rollouts[0]).reward)
    assert set(np.unique(signs)) == {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(state.model["reward"], signs)


def test_scaled_rewards_are_clipped_at_ten(iterate_witness, rollouts):
    rollout = clean(rollouts[0])
    reward = np.zeros(SHAPE, np.float32)
    first = tuple(np.argwhere(rollout.valid)[0])
    reward[first] = 1e6
    state, _ = iterate_witness(witness_state(), rollout._replace(reward=reward, terminated=np.ones(SHAPE, bool)))
    # One of the n valid returns is x and the others 0: its deviation is x sqrt(n - 1) / n.
    n = rollout.valid.sum()
    assert state.model["reward"][first] == pytest.approx(min(n / np.sqrt(n - 1), 10), rel=1e-4)
    huge = state._replace(return_stats=running_stats.RunningStats(*(jnp.float32(x) for x in (1e6, 0, 1e-2))))
    state, _ = iterate_witness(huge, rollout._replace(reward=np.sign(rollout.reward)))
    np.testing.assert_allclose(np.abs(state.model["reward"])[rollout.valid], 10, rtol=1e-6)


def test_without_scaling_rewards_reach_the_update_as_they_are(rollouts):
    state, _ = iterating(dataclasses.replace(CONFIG, normalize_return=False))(witness_state(), rollouts[0])
    np.testing.assert_array_equal(state.model["reward"], clean(rollouts[0]).reward)
    assert state.return_stats.count == 0


def test_observation_statistics_change_only_after_the_update(iterate_witness, rollouts):
    state, parts, weights = witness_state(), [], []
    for rollout in rollouts:
        before = fingerprint(state.obs_stats)
        state, _ = iterate_witness(state, rollout)
        assert fingerprint(state.model["obs_stats"]) == before
        parts.append(rollout.obs.reshape(-1, 3))
        weights.append(rollout.valid.ravel())
        count, mean, variance = oracles.stream_moments(parts, weights)
        assert state.obs_stats[0].count == count
        np.testing.assert_allclose(state.obs_stats[0].mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.obs_stats[0].variance, variance, rtol=1e-4)


def test_the_update_sees_raw_observations_and_a_valid_row_s_where_there_is_no_transition(iterate_witness, rollouts):
    state, _ = iterate_witness(witness_state(), rollouts[0])
    obs, valid = rollouts[0].obs, rollouts[0].valid
    np.testing.assert_array_equal(state.model["obs"], np.where(valid[..., None], obs, obs[valid][0]))


def beta_actions(made_up, config, algorithms, spec):
    """A state and a rollout of a Beta policy; the invalid rows hold what an environment's reset leaves there."""
    algorithm = algorithms.make(config, spec, TOTAL_STEPS)
    state, generator = made_up(algorithm.init), np.random.default_rng(0)
    valid = generator.random(SHAPE) < 0.8
    blank = valid[..., None]
    obs, next_obs = np.float32(generator.normal(size=(2, *SHAPE, 3))) * blank
    action = np.float32(generator.uniform(0.1, 0.9, size=(*SHAPE, 2))) * blank
    distribution, _ = jax.jit(lambda model, obs: model.act(observations.freeze(state.obs_stats), obs))(state.model, obs)
    log_prob = np.where(valid, np.asarray(distribution.log_prob(action)), 0.0).astype(np.float32)
    flags = np.zeros(SHAPE, bool)
    reward = np.float32(generator.normal(size=SHAPE))
    return algorithm, state, Rollout(obs, flags, action, None, log_prob, reward, flags, flags, next_obs, None, valid)


@pytest.mark.parametrize(
    ("algorithms", "config"),
    [
        (ppo, PPO(minibatch_size=16, num_epochs=1, **SMALL)),
        (ppo, PPO(minibatch_size=16, num_epochs=1, surrogate="kl", **SMALL)),
        (policy_gradient, A2C(**SMALL)),
        (trpo, TRPO(minibatch_size=16, num_value_epochs=1, **SMALL)),
    ],
    ids=["ppo", "ppo-kl", "a2c", "trpo"],
)
def test_zeros_in_rows_that_are_no_transition_do_no_harm_to_a_beta_policy(made_up, algorithms, config):
    algorithm, state, rollout = beta_actions(made_up, config, algorithms, SPEC)
    assert not rollout.valid.all()
    after, metrics = jax.jit(make_iteration(algorithm, SPEC, config, TOTAL_STEPS))(state, rollout)
    assert metrics["guard/skipped"] == 0
    assert fingerprint(after.model) != fingerprint(state.model)


def test_rewards_that_hardly_vary_stay_apart_and_within_five(iterate_witness, rollouts):
    # Episodes of one step that pay 1.0 or 1.1: the deviation of returns is 0.05, by which all would be clipped.
    reward = np.float32(np.where(np.arange(32).reshape(SHAPE) % 2, 1.0, 1.1))
    ones = np.ones(SHAPE, bool)
    state, _ = iterate_witness(
        witness_state(), rollouts[0]._replace(reward=reward, terminated=ones, truncated=~ones, valid=ones)
    )
    np.testing.assert_allclose(state.model["reward"], reward / (1.05 / 5.0), rtol=1e-5)


def test_returns_whose_deviation_is_of_the_guard_s_own_size_are_scaled_by_half(iterate_witness, rollouts):
    reward = np.float32(np.where(np.arange(32).reshape(SHAPE) % 2, 1e-8, -1e-8))
    ones = np.ones(SHAPE, bool)
    rollout = rollouts[0]._replace(reward=reward, terminated=ones, truncated=~ones, valid=ones)
    state, _ = iterate_witness(witness_state(), rollout)
    np.testing.assert_allclose(state.model["reward"], 0.5e8 * reward, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["obs", "next_obs", "reward", "log_prob", "action"])
def test_one_bad_number_in_the_rollout_leaves_what_was_learned_bit_for_bit(iterate, trained, fresh_rollout, field, bad):
    row = tuple(np.argwhere(fresh_rollout.valid)[5])
    poisoned = getattr(fresh_rollout, field).copy()
    poisoned[row if poisoned.ndim == 2 else (*row, 0)] = bad
    after, metrics = iterate(trained, fresh_rollout._replace(**{field: poisoned}))
    assert held(after) == held(trained)
    assert metrics["guard/skipped"] == 1
    assert (after.iteration, after.skipped, after.skipped_in_row) == (trained.iteration + 1, 1, 1)


@pytest.mark.parametrize("add", [(np.nan, 0.0), (np.inf, 0.0), (0.0, np.nan)], ids=["state", "infinity", "metric"])
def test_a_bad_number_made_by_the_update_leaves_what_was_learned_bit_for_bit(iterate_witness, rollouts, add):
    state = witness_state(add)
    # What is planted waits in the optimiser's summand, not in the state that the guard compares.
    after, metrics = iterate_witness(state, rollouts[0])
    assert held(after) == held(state)
    assert (metrics["guard/skipped"], after.skipped) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_through_a_dropped_update_the_running_returns_go_on_by_finite_rewards(iterate_witness, rollouts, bad):
    ends, start = np.zeros(SHAPE, bool), np.float32([10.0, 20.0, 30.0, 40.0])
    ends[3, 0] = ends[-1, 1] = True  # the first starts anew, the second has just ended, the others run through
    reward = rollouts[0].reward.copy()
    rollout = rollouts[0]._replace(
        reward=reward, terminated=ends, truncated=np.zeros(SHAPE, bool), valid=np.ones(SHAPE, bool)
    )
    reward[5] = bad
    after, metrics = iterate_witness(witness_state()._replace(discounted_return=start), rollout)
    assert metrics["guard/skipped"] == 1
    counted = np.where(np.isfinite(reward), reward, 0.0)
    _, expected = oracles.discounted_return_so_far(counted, ends, rollout.valid, start, 0.9)
    assert expected[1] == 0
    np.testing.assert_allclose(after.discounted_return, expected, rtol=1e-5)


def test_a_running_return_that_overflows_starts_anew(iterate_witness, rollouts):
    none, huge = np.zeros(SHAPE, bool), np.full(SHAPE, 3e38, np.float32)
    rollout = rollouts[0]._replace(reward=huge, terminated=none, truncated=none, valid=~none)
    after, metrics = iterate_witness(witness_state(), rollout)
    assert metrics["guard/skipped"] == 1
    np.testing.assert_array_equal(after.discounted_return, np.zeros(SHAPE[1]))


def test_a_good_update_moves_parameters_optimiser_and_statistics_and_is_not_counted(iterate, trained, fresh_rollout):
    after, metrics = iterate(trained, fresh_rollout)
    for field in ("model", "opt_state", "obs_stats", "return_stats", "discounted_return"):
        assert fingerprint(getattr(after, field)) != fingerprint(getattr(trained, field)), field
    assert fingerprint(after.key) == fingerprint(trained.key)
    assert metrics["guard/skipped"] == 0
    assert (after.iteration, after.skipped, after.skipped_in_row) == (trained.iteration + 1, 0, 0)


def test_skips_are_counted_in_all_and_in_a_row(iterate_witness, rollouts):
    bad = rollouts[0]._replace(reward=np.full(SHAPE, np.nan, np.float32), valid=np.ones(SHAPE, bool))
    state, counts = witness_state(), []
    for rollout in (bad, bad, rollouts[0], bad):
        state, _ = iterate_witness(state, rollout)
        counts.append((int(state.iteration), int(state.skipped), int(state.skipped_in_row)))
    assert counts == [(1, 1, 1), (2, 2, 2), (3, 2, 0), (4, 3, 1)]


def garbage(array: np.ndarray, valid: np.ndarray, value: float) -> np.ndarray:
    return np.where(valid.reshape(valid.shape + (1,) * (array.ndim - 2)), array, array.dtype.type(value))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("fields", [["obs", "next_obs", "reward", "log_prob"], ["action"]], ids=",".join)
def test_rows_that_are_no_transition_may_hold_anything(iterate, trained, fresh_rollout, fields, value):
    zeros, filled = (
        fresh_rollout._replace(**{f: garbage(getattr(fresh_rollout, f), fresh_rollout.valid, v) for f in fields})
        for v in (0.0, value)
    )
    assert not fresh_rollout.valid.all()
    expected, expected_metrics = iterate(trained, zeros)
    found, metrics = iterate(trained, filled)
    assert metrics["guard/skipped"] == 0
    assert fingerprint(found) == fingerprint(expected)
    assert fingerprint(metrics) == fingerprint(expected_metrics)


def test_flags_of_rows_that_are_no_transition_do_not_matter(iterate, trained, fresh_rollout):
    flipped = {f: np.where(fresh_rollout.valid, getattr(fresh_rollout, f), True) for f in ("terminated", "truncated")}
    expected, _ = iterate(trained, fresh_rollout._replace(**{f: v & fresh_rollout.valid for f, v in flipped.items()}))
    found, _ = iterate(trained, fresh_rollout._replace(**flipped))
    assert fingerprint(found) == fingerprint(expected)


def test_the_same_state_and_rollout_give_the_same_result_bit_for_bit(iterate, trained, fresh_rollout):
    first, second = (iterate(trained, fresh_rollout) for _ in range(2))
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize(("schedule", "start", "later"), [("linear:1:0", 1.0, 1.0 - 0.32), ("linear:0:1", 0.0, 0.32)])
def test_the_maximum_entropy_objective_takes_alpha_log_probs_from_the_rewards(rollouts, schedule, start, later):
    config = dataclasses.replace(CONFIG, normalize_return=False, max_entropy_alpha=schedule)
    iterate, rollout = iterating(config), clean(rollouts[0])
    # Ten iterations of 32 steps are 0.32 of the budget.
    for iteration, alpha in ((0, start), (10, later)):
        state, _ = iterate(witness_state()._replace(iteration=jnp.int32(iteration)), rollout)
        expected = np.where(rollout.valid, rollout.reward - alpha * rollout.log_prob, 0)
        np.testing.assert_allclose(state.model["reward"], expected, rtol=1e-5, atol=1e-6)


def test_noise_and_shuffles_of_all_iterations_have_keys_of_their_own():
    run = jax.random.key(0)
    keys = [draw(run, jnp.int32(iteration)) for draw in (collection_key, update_key) for iteration in range(20)]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in [run, *keys]}) == 41


def seen_by_an_update(config, rollout):
    """The rollout as the update gets it, and the state after."""
    seen = []

    def update(state, rollout):
        seen.append(rollout)
        return state, {}

    algorithm = Algorithm(witness_state, update)
    state, _ = make_iteration(algorithm, SPEC, config, TOTAL_STEPS)(witness_state(), jax.tree.map(jnp.asarray, rollout))
    return seen[0], state


def test_rewards_are_clipped_to_their_sign_then_lose_alpha_log_probs_and_then_are_scaled(rollouts):
    config, rollout = dataclasses.replace(CONFIG, clip_reward=True, max_entropy_alpha=0.5), clean(rollouts[0])
    rewards = np.where(rollout.valid, np.sign(rollout.reward) - 0.5 * rollout.log_prob, 0.0)
    done = rollout.terminated | rollout.truncated
    totals, _ = oracles.discounted_return_so_far(rewards, done, rollout.valid, np.zeros(SHAPE[1]), 0.9)
    seen, state = seen_by_an_update(config, rollout)
    np.testing.assert_allclose(seen.reward, rewards / totals[rollout.valid].std(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.return_stats.mean, totals[rollout.valid].mean(), rtol=1e-4)


def test_what_follows_the_horizon_is_scaled_like_rewards_and_no_running_return_outlives_it(rollouts):
    rollout, tail = clean(rollouts[0]), np.float32([3.0, -400.0, 0.0, 50.0])
    plain, _ = seen_by_an_update(CONFIG, rollout)
    seen, state = seen_by_an_update(CONFIG, rollout._replace(tail=tail))
    scale = np.abs(rollout.reward).sum() / np.abs(np.asarray(plain.reward)).sum()
    # Unlike a reward it is not clipped: it stands for many.
    np.testing.assert_allclose(seen.tail, tail / scale, rtol=1e-4)
    np.testing.assert_array_equal(seen.reward, plain.reward)
    np.testing.assert_array_equal(state.discounted_return, np.zeros(SHAPE[1]))


def test_a_scheduled_log_std_moves_after_the_update_and_the_update_still_finds_ratio_one(made_up, act_out):
    config = dataclasses.replace(CONFIG, log_std="linear:0:-1")
    algorithm = ppo.make(config, SPEC, TOTAL_STEPS)
    iterate = jax.jit(make_iteration(algorithm, SPEC, config, TOTAL_STEPS))
    state = made_up(algorithm.init)
    state = state._replace(model=state.model.with_log_std(jnp.float32(0)))
    for iteration in range(1, 3):
        state, metrics = iterate(state, act_out(state, SHAPE, seed=iteration))
        assert metrics["policy/log_ratio_at_start"] <= metrics["policy/log_ratio_tolerance"]
        np.testing.assert_allclose(state.model.head.log_std, -32 * iteration / TOTAL_STEPS, rtol=1e-5)

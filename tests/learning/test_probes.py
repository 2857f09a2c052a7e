"""PPO reaches the known answer on every probe, through the collector and the update that training uses."""

from functools import cache

import jax
import numpy as np
import pytest

import probes
from inchworm.algorithms import ppo
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.state import TrainState
from inchworm.collect.collector import TurnCollector
from inchworm.collect.host import HostRollouts
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.models import observations
from inchworm.spaces import EnvSpec

GAMMA = 0.9
WORTH = 1 / (1 - GAMMA)
TOTAL_STEPS = 5_120
CONFIG = PPO(
    num_envs=8,
    horizon=16,
    num_epochs=4,
    minibatch_size=32,
    learning_rate="linear:0.01:0",
    gamma=GAMMA,
    hidden_sizes=(16,),
)
TOLERANCE = 0.05


@cache
def compiled(spec: EnvSpec):
    """One compilation for all probes of the same spaces."""
    algorithm = ppo.make(CONFIG, spec, TOTAL_STEPS)
    iteration = make_iteration(algorithm, spec, CONFIG, TOTAL_STEPS)
    return jax.jit(algorithm.init), jax.jit(iteration)


def train(probe: type[probes.Probe], continuous: bool = False, seed: int = 0) -> TrainState:
    pool = GymnasiumPool(lambda: probe(continuous=continuous), CONFIG.num_envs, seed)
    init, iterate = compiled(pool.spec)
    rollouts = HostRollouts(pool, CONFIG.horizon, CONFIG.squash)
    collector = TurnCollector(rollouts, init(jax.random.key(seed)), iterate, None)
    for _ in range(TOTAL_STEPS // CONFIG.steps_per_iteration):
        (((metrics, _),),) = collector.advance([1])
        assert metrics["policy/log_ratio_at_start"] <= metrics["policy/log_ratio_tolerance"]
    state = collector.state(0)
    assert state.skipped == 0
    return state


def answers(state: TrainState, *obs: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability (density) of the likeliest action, that action, and the value, for each observation."""
    model, normalizers = observations.to_numpy((state.model, observations.freeze(state.obs_stats)))
    distribution, value, _ = model.unroll(normalizers, np.float32(obs)[:, None])
    return np.exp(distribution.log_prob(distribution.mode())), distribution.mode(), value


def values(state: TrainState, *obs: float) -> np.ndarray:
    return answers(state, *obs)[2]


def test_one_step_of_reward_one_is_worth_one():
    np.testing.assert_allclose(values(train(probes.ConstantReward), 0), [1], atol=TOLERANCE)


def test_the_value_follows_the_observation():
    np.testing.assert_allclose(values(train(probes.RewardByObservation), -1, 1), [-1, 1], atol=TOLERANCE)


def test_a_reward_one_step_away_is_worth_gamma():
    np.testing.assert_allclose(values(train(probes.TwoStepDiscount), -1, 1), [GAMMA, 1], atol=TOLERANCE)


def test_an_endless_reward_of_one_is_worth_one_over_one_minus_gamma():
    np.testing.assert_allclose(values(train(probes.Endless), 0), [WORTH], rtol=TOLERANCE)


def test_a_time_limit_does_not_lower_the_value():
    (value,) = values(train(probes.OnlyTruncates), 0)
    assert value == pytest.approx(WORTH, rel=TOLERANCE)
    truncated_sum = sum(GAMMA**k for k in range(probes.OnlyTruncates.limit))
    assert value > 2 * truncated_sum


def test_the_better_of_two_actions_wins():
    probability, action, value = answers(train(probes.RewardByAction), 0)
    assert (action[0], probability[0] > 0.95) == (1, True)
    np.testing.assert_allclose(value, [1], atol=TOLERANCE)


def test_the_better_action_for_each_observation_wins():
    probability, action, value = answers(train(probes.RewardByObservationAndAction), -1, 1)
    np.testing.assert_array_equal(action, [0, 1])
    assert (probability > 0.95).all()
    np.testing.assert_allclose(value, [1, 1], atol=TOLERANCE)


def test_a_vector_action_settles_at_its_optimum():
    state = train(probes.RewardByAction, continuous=True)
    _, action, value = answers(state, 0)
    np.testing.assert_allclose(action, [[probes.BEST_VECTOR]], atol=TOLERANCE)
    np.testing.assert_allclose(value, [1], atol=TOLERANCE)
    assert np.exp(state.model.head.log_std) < 0.2


def test_a_vector_action_settles_at_the_optimum_of_each_observation():
    _, action, value = answers(train(probes.RewardByObservationAndAction, continuous=True), -1, 1)
    np.testing.assert_allclose(action, [[-probes.BEST_VECTOR], [probes.BEST_VECTOR]], atol=TOLERANCE)
    np.testing.assert_allclose(value, [1, 1], atol=TOLERANCE)

"""Episodes of a JAX environment played side by side are those played one by one."""

import jax
import numpy as np
import pytest

import inchworm as iw
from inchworm.build import make_algorithm
from inchworm.collect.evaluate import evaluate, evaluate_at_once
from inchworm.envs.jax_control import CLASSIC_CONTROL
from inchworm.envs.jax_env import GymnasiumView
from inchworm.models.policy import Policy
from jax_probes import Cue, Recall

SMALL = {"num_envs": 2, "horizon": 8, "hidden_sizes": (8,), "recurrent_size": 8, "minibatch_size": 16}
CASES = {
    "cart-pole": (CLASSIC_CONTROL["CartPole-v1"], {}),
    "masked hybrid of dicts": (Cue("hybrid", masked=True, dict_obs=True), {}),
    "memory": (Recall(), {"recurrent": "gru"}),
}


def untrained(env, settings):
    config = iw.PPO(**SMALL | settings)
    state = make_algorithm(config, env.spec, 1000).init(jax.random.key(1))
    return Policy(state.model, state.obs_stats, config)


@pytest.mark.parametrize("case", CASES)
def test_returns_are_those_of_episodes_played_one_by_one(case):
    env, settings = CASES[case]
    policy = untrained(env, settings)
    at_once = evaluate_at_once(policy, env, episodes=5, seed=3)
    alone = one_by_one(policy, env, episodes=5, seed=3)
    assert at_once.lengths == alone.lengths
    np.testing.assert_allclose(at_once.returns, alone.returns, atol=1e-4)
    assert at_once.unfinished == 0


def one_by_one(policy, env, **options):
    return evaluate(policy, lambda: GymnasiumView(env), **options)


@pytest.mark.parametrize("play", [evaluate_at_once, one_by_one])
def test_sampled_actions_differ_from_modes_and_are_decided_by_the_seed(play):
    env, _ = CASES["cart-pole"]
    policy = untrained(env, {})
    sampled = play(policy, env, episodes=50, deterministic=False, seed=3)
    policy.act(np.zeros(4, np.float32))
    assert sampled == play(policy, env, episodes=50, deterministic=False, seed=3)
    assert sampled.returns != play(policy, env, episodes=50, deterministic=False, seed=4).returns
    assert sampled.returns != play(policy, env, episodes=50, seed=3).returns
    assert 15 < sampled.mean < 35, "random play comes to 22"


def test_episodes_that_do_not_end_are_cut_and_counted():
    pendulum = CLASSIC_CONTROL["Pendulum-v1"]
    cut = evaluate_at_once(untrained(pendulum, {}), pendulum, episodes=3, max_episode_steps=125)
    assert (cut.unfinished, cut.lengths) == (3, [125] * 3)
    assert all(value < -10 for value in cut.returns)

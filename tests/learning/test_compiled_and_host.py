"""The compiled path learns what the host path learns."""

import jax
import numpy as np
import pytest
from scipy import stats

from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.ppo import PPO
from inchworm.build import make_algorithm
from inchworm.collect.collector import Collector, TurnCollector
from inchworm.collect.graph import GraphCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_control import CLASSIC_CONTROL
from inchworm.envs.jax_env import GymnasiumView
from inchworm.envs.traced import Copies

SEEDS = range(20)
NUM_ITERATIONS, NUM_COUNTED = 40, 15
CONFIG = PPO(
    num_envs=4,
    horizon=64,
    minibatch_size=64,
    num_epochs=4,
    learning_rate="linear:0.003:0",
    normalize_observation=False,
    hidden_sizes=(16,),
)


def returns(outcomes) -> tuple[float, float]:
    """Mean returns of the episodes that ended in the first iterations, and in the last."""
    parts = (outcomes[:NUM_COUNTED], outcomes[-NUM_COUNTED:])
    episodes = [np.concatenate([one.episodes.episode_return[one.episodes.ended] for one in part]) for part in parts]
    return float(episodes[0].mean()), float(episodes[1].mean())


@pytest.mark.slow
def test_over_twenty_seeds_both_come_to_the_same_returns_on_cartpole():
    env = CLASSIC_CONTROL["CartPole-v1"]
    total_steps = NUM_ITERATIONS * CONFIG.steps_per_iteration
    learner = make_algorithm(CONFIG, env.spec, total_steps)
    iterate = make_iteration(learner, env.spec, CONFIG, total_steps)
    shape, envs = (CONFIG.horizon, CONFIG.num_envs), Copies(env)
    advance = make_advance(make_rollout(envs, CONFIG.squash), iterate, shape, None)
    programs = make_programs(learner.init, envs, advance, capacity=NUM_ITERATIONS)
    init, iterate = jax.jit(learner.init), jax.jit(iterate)

    def host(seed: int) -> Collector:
        pool = GymnasiumPool(lambda: GymnasiumView(env), CONFIG.num_envs, seed)
        return TurnCollector(
            HostRollouts(pool, CONFIG.horizon, CONFIG.squash), init(jax.random.key(seed)), iterate, None
        )

    compiled = [GraphCollector(programs, [seed], CONFIG.num_envs).advance([NUM_ITERATIONS])[0] for seed in SEEDS]
    by_host = []
    for seed in SEEDS:
        collector = host(seed)
        by_host.append([collector.advance([1])[0][0] for _ in range(NUM_ITERATIONS)])
    (early, late), (early_by_host, late_by_host) = (
        np.transpose([returns(outcomes) for outcomes in path]) for path in (compiled, by_host)
    )
    assert late.mean() > 3 * early.mean(), "it learned, so that a path that learns less would show"
    assert stats.ks_2samp(late, late_by_host).pvalue > 0.05
    assert stats.ttest_ind(late, late_by_host, equal_var=False).pvalue > 0.05
    np.testing.assert_allclose(early_by_host.mean(), early.mean(), rtol=0.1)

"""REINFORCE without a baseline: returns alone, with what the horizon cuts continued to its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.algorithms import opening
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.policy_gradient import REINFORCE
from inchworm.build import make_algorithm
from inchworm.collect import tail as tails
from inchworm.collect.collector import TurnCollector
from inchworm.collect.graph import GraphCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_env import GymnasiumView
from inchworm.envs.traced import Copies
from inchworm.errors import ConfigError
from inchworm.models.actor_critic import make_model
from inchworm.spaces import Box, Discrete, EnvSpec
from inchworm.types import Episodes, Rollout
from jax_probes import Cue


def rollout(reward, done):
    reward, done = np.float32(reward), np.array(done, bool)
    zeros = np.zeros_like(done)
    # All environments begin an episode in the first row, and another after each end.
    first = np.concatenate([np.ones_like(done[:1]), done[:-1]])
    none = Rollout(None, first, None, None, 0 * reward, reward, done, zeros, None, None, ~zeros)
    lengths = np.float32(np.arange(1, 1 + len(done)))[:, None] * np.ones_like(reward)
    return none, Episodes(done, np.float32(np.where(done, 10.0 * lengths, 0)), np.float32(np.where(done, lengths, 0)))


def test_the_tail_is_the_discounted_rest_of_the_episode_over_several_rollouts():
    first, _ = rollout([[1, 1], [1, 1]], [[0, 0], [0, 1]])
    second = rollout([[2, 50], [4, 50]], [[0, 0], [0, 1]])
    third = rollout([[8, 50], [16, 50]], [[1, 0], [0, 0]])
    tail = tails.start(first)
    for more in (second, third):
        tail = tails.extend(tail, *more, jnp.float32(0.5))
    # Environment 0 goes on with 2, 4, 8 and ends; 1 had ended at the horizon.
    np.testing.assert_allclose(tail.total, [2 + 4 / 2 + 8 / 4, 0.0])
    assert not tail.alive.any()
    np.testing.assert_array_equal(tail.episodes.ended, [[True, False]])
    np.testing.assert_allclose(tail.episodes.episode_return, [[10.0, 0.0]])


def test_only_episodes_that_begin_in_a_batch_are_counted():
    # Environment 0 begins in the batch and ends in the tail; 1 was begun in the tail of the batch before, ends in
    # this one and begins another, which ends in it too; 2 was begun before as well, and ends in the tail.
    first, ended = rollout([[1, 1, 1], [1, 1, 1], [1, 1, 1]], [[0, 1, 0], [0, 0, 0], [0, 1, 0]])
    first = first._replace(first=np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], bool))
    more = rollout([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]])
    tail = tails.extend(tails.start(first), *more, jnp.float32(0.5))
    assert not tail.alive.any()
    _, counted = tails.attach(first, ended, jax.device_get(tail))
    np.testing.assert_array_equal(counted.ended, [[0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_advantages_are_the_returns_to_go_with_the_tail_and_nothing_after_a_time_limit():
    config = REINFORCE(num_envs=2, horizon=3, baseline=False, gamma=0.5, normalize_advantage="none")
    reward = np.float32([[1, 1], [2, 2], [4, 4]])
    truncated = np.array([[0, 0], [0, 1], [0, 0]], bool)
    zeros = np.zeros_like(truncated)
    next_obs = np.ones((3, 2, 1), np.float32)
    made = Rollout(
        None, zeros, None, None, 0 * reward, reward, zeros, truncated, next_obs, None, ~zeros, np.float32([8, 16])
    )
    spec = EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(2))
    model = make_model(jax.random.key(0), spec, config)
    # The value function's opinion must not matter.
    values = jnp.full((3, 2), -1e6)
    advantage, _ = opening.advantages_and_returns(model, (None,), made, values, None, config, config.at(0.0, 1.0))
    # 1 + (2 + (4 + 8 / 2) / 2) / 2; beside it an episode that a time limit cuts after two steps, then 4 + 16 / 2.
    np.testing.assert_allclose(advantage, [[4.0, 2.0], [6.0, 2.0], [8.0, 12.0]])


def test_compiled_and_host_loops_continue_episodes_alike():
    env = Cue("discrete", length=7)
    config = REINFORCE(num_envs=3, horizon=5, hidden_sizes=(4,), baseline=False, normalize_return=True)
    learner = make_algorithm(config, env.spec, 1000)
    iterate = make_iteration(learner, env.spec, config, 1000)
    shape, envs = (config.horizon, config.num_envs), Copies(env)
    advance = make_advance(make_rollout(envs, config.squash), iterate, shape, config.tail_gamma)
    graph = GraphCollector(make_programs(learner.init, envs, advance, capacity=2), [5], config.num_envs)
    rollouts = HostRollouts(
        GymnasiumPool(lambda: GymnasiumView(env), config.num_envs, 5), config.horizon, config.squash
    )
    state = jax.jit(learner.init)(jax.random.key(5))
    host = TurnCollector(rollouts, state, jax.jit(iterate), config.tail_gamma)
    # Five steps of seven, the rest in the five steps after the horizon, which end three steps into the next episode;
    # then one step into the one after, whose other six take twice the horizon.
    for tail_steps, by_graph in zip((15.0, 30.0), graph.advance([2])[0], strict=True):
        ((by_host,),) = host.advance([1])
        assert by_graph.metrics["collect/tail_steps"] == by_host.metrics["collect/tail_steps"] == tail_steps
        for ours, theirs in zip(by_graph.episodes, by_host.episodes, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    models = graph.state(0).model, host.state(0).model
    for ours, theirs in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_has_no_meaning_without_a_baseline_is_refused():
    for settings in ({"gae_lambda": 0.9}, {"max_entropy_alpha": 0.1}, {"gamma": "linear:0.9:0.99"}):
        with pytest.raises(ConfigError, match="without a baseline"):
            REINFORCE(baseline=False, **settings)

"""REINFORCE without a baseline: returns alone, with what the horizon cuts continued to its end."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.algorithms import opening
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.policy_gradient import REINFORCE
from inchworm.algorithms.settings import Continuation
from inchworm.algorithms.state import Algorithm
from inchworm.build import make_algorithm
from inchworm.collect import tail as tails
from inchworm.collect.collector import TurnCollector
from inchworm.collect.graph import GraphCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.pool import PoolRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_env import GymnasiumView
from inchworm.envs.traced import Copies, Transition
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
    second = rollout([[2, 50], [4, 50]], [[0, 0], [0, 0]])
    third = rollout([[8, 50], [16, 50]], [[1, 0], [0, 0]])
    tail = tails.start(first)
    for more in (second, third):
        tail = tails.extend(tail, *more, Continuation(0.5, False))
    # Environment 0 goes on with 2, 4, 8 and ends; 1 had ended at the horizon.
    np.testing.assert_allclose(tail.total, [2 + 4 / 2 + 8 / 4, 0.0])
    assert not tail.alive.any()
    np.testing.assert_array_equal(tail.episodes.ended, [[True, False]])
    np.testing.assert_allclose(tail.episodes.episode_return, [[10.0, 0.0]])


def test_only_returns_whose_last_row_is_a_transition_and_ends_nothing_go_on_past_the_horizon():
    first, _ = rollout([[0, 0, 0, 0]] * 2, [[0, 1, 0, 0], [1, 0, 0, 0]])
    truncated, valid = np.zeros((2, 2, 4), bool)
    truncated[1, 2] = True
    valid = ~valid
    valid[1, 3] = False
    more = rollout([[5, 5, 5, 5]], [[1, 1, 1, 1]])
    tail = tails.start(first._replace(truncated=truncated, valid=valid))
    np.testing.assert_array_equal(tail.alive, [False, True, False, False])
    np.testing.assert_array_equal(tails.extend(tail, *more, Continuation(0.5, False)).total, [0, 5, 0, 0])


def test_a_return_ends_where_a_row_is_terminated_or_truncated_or_no_transition():
    first, _ = rollout([[0, 0, 0, 0]], [[0, 0, 0, 0]])
    more, episodes = rollout([[1, 1, 1, 1]] * 4, [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    truncated, valid = np.zeros((2, 4, 4), bool)
    truncated[2, 1] = True
    valid = ~valid
    valid[3, 2] = False
    more = more._replace(truncated=truncated, valid=valid)
    tail = tails.extend(tails.start(first), more, episodes, Continuation(1.0, False))
    np.testing.assert_allclose(tail.total, [2, 3, 3, 4])
    np.testing.assert_array_equal(tail.alive, [False, False, False, True])


def test_clipped_rewards_are_clipped_in_the_tail_too():
    config = REINFORCE(num_envs=1, horizon=2, baseline=False, clip_reward=True, gamma=0.5)
    spec = EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(2))
    obs = {"obs": np.zeros((2, 1, 1), np.float32), "next_obs": np.zeros((2, 1, 1), np.float32)}
    batch, more = (rollout([[100], [-100]], [[0], [done]]) for done in (0, 1))
    tail = tails.extend(tails.start(batch[0]), *more, config.continuation)
    collected, _ = tails.attach(*batch, tail)
    collected = jax.tree.map(jnp.asarray, collected._replace(action=np.zeros((2, 1), np.int32), **obs))
    learner, seen = make_algorithm(config, spec, 1000), []

    def update(state, rollout):
        seen.append(rollout)
        return state, {}

    make_iteration(Algorithm(learner.init, update), spec, config, 1000)(learner.init(jax.random.key(0)), collected)
    np.testing.assert_array_equal(seen[0].reward, [[1], [-1]])
    np.testing.assert_array_equal(seen[0].tail, [1 - 0.5])


class Games:
    """Every step pays 1 and takes a life at its end; a game is over with the last of its lives.

    An episode is a life for what is learned and a game for what is told, as with Atari. Told late, a game is over only
    at the step after it, which starts the next one and is no transition.
    """

    spec = EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(2))

    def __init__(self, life, lives, late):
        self.life, self.game, self.late = np.array(life), np.array(life) * lives, late
        zeros = jnp.zeros(len(life), jnp.int32)
        self.start = {"step": zeros, "resets_next": zeros > 0}, jnp.zeros((len(life), 1))

    def scope(self):
        return contextlib.nullcontext()

    def chance(self, state, horizon):
        return None, state

    def mask(self, state):
        return None

    def step(self, state, action, chance):
        resets = state["resets_next"]
        step = jnp.where(resets, 0, state["step"] + 1)
        lost, over = ~resets & (step % self.life == 0), ~resets & (step == self.game)
        obs = jnp.zeros((len(self.life), 1))
        after = {"step": step if self.late else jnp.where(over, 0, step), "resets_next": over & self.late}
        first = resets | lost
        told = resets if self.late else over
        return after, Transition(obs, jnp.ones(len(step)), lost, lost & False, ~resets, obs, first, told)


@pytest.mark.parametrize("late", [False, True])
def test_with_lives_returns_end_with_a_life_and_games_are_told_once_if_they_began_in_a_batch(late):
    lives, horizon = 3, 4
    life = [2, 3, 7]
    games = Games(life, lives, late)
    config = REINFORCE(num_envs=3, horizon=horizon, hidden_sizes=(4,), baseline=False, gamma=1.0)
    learner, seen = make_algorithm(config, games.spec, 1000), []

    def iterate(state, rollout):
        seen.append(jax.device_get(rollout))
        return state._replace(iteration=state.iteration + 1), {"guard/skipped": np.float32(0.0)}

    state = jax.jit(learner.init)(jax.random.key(0))
    rollouts = PoolRollouts(lambda restart: games, (horizon, 3), "clip")
    collector = TurnCollector(rollouts, state, iterate, config.continuation)
    outcomes = [collector.advance([1])[0][0] for _ in range(30)]

    # The same by hand, game by game: at which step of the run it began, and what it came to.
    batches, clock = [], 0
    for outcome in outcomes:
        batches.append(clock)
        clock += horizon + int(outcome.metrics["collect/tail_steps"]) // 3
    in_batch = np.zeros(clock + 1, bool)
    for begin in batches:
        in_batch[begin : begin + horizon] = True
    told = np.sum([outcome.episodes.ended.sum(axis=0) for outcome in outcomes], axis=0)
    for index, one in enumerate(life):
        length, gap = one * lives, one * lives + late
        begun = in_batch[np.arange(0, clock - gap + 1, gap)]
        assert 0 < told[index] == begun.sum() < len(begun)
        ended = np.concatenate([outcome.episodes.ended[:, index] for outcome in outcomes])
        lengths = np.concatenate([outcome.episodes.episode_length[:, index] for outcome in outcomes])
        returns = np.concatenate([outcome.episodes.episode_return[:, index] for outcome in outcomes])
        np.testing.assert_array_equal(lengths[ended], length)
        np.testing.assert_array_equal(returns[ended], length)
    # Where a batch is cut in the middle of a life, its tail is the rest of that life.
    for begin, rollout in zip(batches, seen, strict=True):
        for index, one in enumerate(life):
            step = (begin + horizon) % (one * lives + late)
            assert rollout.tail[index] == -step % one


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
    advance = make_advance(make_rollout(envs, config.squash), iterate, shape, config.continuation)
    graph = GraphCollector(make_programs(learner.init, envs, advance, capacity=2), [5], config.num_envs)
    rollouts = HostRollouts(
        GymnasiumPool(lambda: GymnasiumView(env), config.num_envs, 5), config.horizon, config.squash
    )
    state = jax.jit(learner.init)(jax.random.key(5))
    host = TurnCollector(rollouts, state, jax.jit(iterate), config.continuation)
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

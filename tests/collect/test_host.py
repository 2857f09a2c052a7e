"""Rollouts from Python environments: what is in their rows, and that they can be had again."""

import itertools
import json
import time

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from gymnasium.vector import SyncVectorEnv

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.collect import acting
from inchworm.collect.host import HostRollouts
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.vector import VectorPool
from inchworm.errors import CheckpointError
from inchworm.models import observations
from inchworm.models.actor_critic import make_model
from inchworm.models.settings import ModelSettings
from inchworm.numerics.running_stats import RunningStats

NUM_ENVS = 3
HORIZON = 16


class Toy(gymnasium.Env):
    """Observes its step and its episode; every seventh step or so ends by itself or by a limit."""

    observation_space = gym_spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym_spaces.Discrete(3)

    def __init__(self):
        self.episode, self.sent = -1, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.count, self.last = 0, int(self.np_random.integers(5, 10))
        return self.observation(), {}

    def step(self, action):
        self.sent.append(np.array(action))
        self.count += 1
        done = self.count == self.last
        cut = done and self.episode % 2 == 1
        reward = float(self.np_random.normal()) + float(np.sum(action))
        return self.observation(), reward, done and not cut, cut, {}

    def observation(self):
        return np.array([self.count, self.episode, self.np_random.normal()], np.float32)


class BoxToy(Toy):
    action_space = gym_spaces.Box(np.float32([[-0.5, 0.0]]), np.float32([[0.1, 0.3]]))


class DictToy(Toy):
    observation_space = gym_spaces.Dict(walk=gym_spaces.Box(-np.inf, np.inf, (3,)), choice=gym_spaces.Discrete(10))

    def observation(self):
        return {"walk": super().observation(), "choice": self.count}


class PartsToy(Toy):
    """Acted on in parts, and counts their sum as reward."""

    action_space = gym_spaces.Dict(
        bits=gym_spaces.MultiBinary(2),
        choice=gym_spaces.Discrete(3, start=1),
        push=gym_spaces.Box(-1.0, 1.0, (2,)),
    )

    def step(self, action):
        assert self.action_space.contains(action)
        self.parts = action
        obs, _, *rest = super().step(sum(float(np.sum(part)) for part in action.values()))
        return obs, float(self.sent[-1]), *rest


class TwoPartsToy(PartsToy):
    action_space = gym_spaces.Dict(choice=gym_spaces.Discrete(3), push=gym_spaces.Box(-1.0, 1.0, (2,)))


TOYS = [Toy, BoxToy, DictToy]


def statistics(spec):
    """Statistics that are not those of any rollout, so that forgetting them shows."""
    return tuple(
        RunningStats(*(np.float32(x) for x in (50.0, [3.0, 1.0, 0.5], [9.0, 4.0, 2.0])))
        if isinstance(leaf, spaces.Box)
        else None
        for leaf in spaces.leaves(spec.observation_space)
    )


class Run:
    """A collector with a fixed model, and rollouts by number."""

    def __init__(self, toy, horizon=HORIZON, pool=None, model=None):
        self.pool = pool or GymnasiumPool(toy, NUM_ENVS, 4)
        self.collector = HostRollouts(self.pool, horizon, "clip")
        self.model, self.stats = model or fixed_model(self.pool.spec, log_std=-0.5), statistics(self.pool.spec)

    def collect(self, number):
        return self.collector.collect(self.model, self.stats, jax.random.key(number))


def walks(obs):
    """The part of observations that is (count, episode, noise)."""
    return obs["walk"] if isinstance(obs, dict) else obs


def test_the_time_of_acting_and_that_of_stepping_are_told_apart(monkeypatch):
    clock = itertools.accumulate(itertools.cycle([1.0, 2.0, 5.0]))
    run = Run(Toy)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    run.collect(0)
    assert run.collector.seconds == {"policy": 2.0 * HORIZON, "environment": 5.0 * HORIZON}


def assert_same(found, expected):
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("toy", TOYS)
def test_next_obs_is_the_true_successor_and_first_marks_where_episodes_start(toy):
    run = Run(toy)
    rollouts = [run.collect(number)[0] for number in range(3)]
    obs, next_obs = (np.concatenate([walks(getattr(one, name)) for one in rollouts]) for name in ("obs", "next_obs"))
    first, terminated, truncated = (
        np.concatenate([getattr(one, name) for one in rollouts]) for name in ("first", "terminated", "truncated")
    )
    count, episode = obs[..., 0], obs[..., 1]
    np.testing.assert_array_equal(first, count == 0)
    # The final observation is the ended episode's own, one step on.
    np.testing.assert_array_equal(next_obs[..., 0], count + 1)
    np.testing.assert_array_equal(next_obs[..., 1], episode)
    done = terminated | truncated
    np.testing.assert_array_equal(done[:-1], first[1:])
    np.testing.assert_array_equal(obs[1:][~done[:-1]], next_obs[:-1][~done[:-1]])
    np.testing.assert_array_equal(truncated, done & (episode % 2 == 1))
    assert terminated.any()
    assert truncated.any()
    assert all(one.valid.all() for one in rollouts)


def test_the_last_row_of_the_horizon_is_not_an_end():
    class Endless(Toy):
        def step(self, action):
            self.last = -1
            return super().step(action)

    run = Run(Endless)
    for number in range(3):
        rollout, episodes = run.collect(number)
        assert not rollout.terminated.any()
        assert not rollout.truncated.any()
        assert not episodes.ended.any()
        np.testing.assert_array_equal(rollout.first.any(axis=1), [number == 0] + [False] * (HORIZON - 1))
        np.testing.assert_array_equal(rollout.next_obs[-1, :, 0], HORIZON * (number + 1))


@pytest.mark.parametrize("horizon", [1, HORIZON])
def test_episode_returns_and_lengths_equal_a_count_by_hand_across_rollouts(horizon):
    run = Run(Toy, horizon)
    collected = [run.collect(number) for number in range(48 // horizon)]
    reward, done = (
        np.concatenate(parts)
        for parts in zip(*((one.reward, one.terminated | one.truncated) for one, _ in collected), strict=True)
    )
    ended, episode_return, episode_length = (
        np.concatenate(parts) for parts in zip(*(episodes for _, episodes in collected), strict=True)
    )
    total, length = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS)
    for t in range(48):
        total, length = total + reward[t], length + 1
        np.testing.assert_array_equal(ended[t], done[t])
        np.testing.assert_allclose(episode_return[t], np.where(done[t], total, 0.0), rtol=1e-12)
        np.testing.assert_array_equal(episode_length[t], np.where(done[t], length, 0.0))
        total, length = np.where(done[t], 0.0, total), np.where(done[t], 0.0, length)
    assert ended.sum() > 10
    assert set(episode_length[ended]) <= {5, 6, 7, 8, 9}


@jax.jit
def model_log_prob(model, normalizers, obs, action):
    return model.act(normalizers, obs)[0].log_prob(action)


@pytest.mark.parametrize("toy", [*TOYS, PartsToy])
def test_the_stored_log_prob_is_the_models(toy):
    run = Run(toy)
    run.collect(0)
    rollout, _ = run.collect(1)
    log_prob = model_log_prob(run.model, observations.freeze(run.stats), rollout.obs, rollout.action)
    np.testing.assert_allclose(rollout.log_prob, log_prob, atol=1e-5)
    assert run.collector.acted_with == (run.model, run.stats)


def test_stored_actions_are_unclipped_while_the_environment_got_clipped_ones():
    run = Run(BoxToy)
    rollout, _ = run.collect(0)
    assert rollout.action.shape == (HORIZON, NUM_ENVS, 2)
    assert rollout.action.dtype == np.float32
    low, high = BoxToy.action_space.low, BoxToy.action_space.high
    for index, env in enumerate(run.pool._envs):
        own = rollout.action[:, index].reshape(HORIZON, 1, 2)
        np.testing.assert_array_equal(env.sent, np.clip(own, low, high))
        assert (own < low).any()
        assert (own > high).any()


def test_an_action_in_parts_is_stored_as_the_policys_own_and_sent_as_the_environments():
    run = Run(PartsToy)
    rollout, _ = run.collect(0)
    own = rollout.action
    assert {name: (part.shape[2:], part.dtype) for name, part in own.items()} == {
        "bits": ((2,), np.int32),
        "choice": ((), np.int32),
        "push": ((2,), np.float32),
    }
    assert (np.abs(own["push"]) > 1).any()
    for index, env in enumerate(run.pool._envs):
        assert env.parts["choice"] == own["choice"][-1, index] + 1
        np.testing.assert_array_equal(env.parts["bits"], own["bits"][-1, index])
        np.testing.assert_array_equal(env.parts["push"], np.clip(own["push"][-1, index], -1, 1))


@pytest.mark.parametrize("toy", TOYS)
def test_a_rollouts_arrays_have_the_types_that_are_promised(toy):
    rollout, _ = Run(toy).collect(0)
    for name in ("first", "terminated", "truncated", "valid"):
        assert getattr(rollout, name).dtype == bool
    assert rollout.log_prob.dtype == rollout.reward.dtype == np.float32
    assert walks(rollout.obs).dtype == walks(rollout.next_obs).dtype == np.float32
    if toy is not BoxToy:
        assert rollout.action.dtype == np.int32
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(rollout)} == {(HORIZON, NUM_ENVS)}


@pytest.mark.parametrize("toy", [*TOYS, PartsToy, TwoPartsToy])
def test_both_actors_give_the_same_rollout(toy, monkeypatch):
    def rollouts(max_numpy_envs, actor):
        monkeypatch.setattr(acting, "MAX_NUMPY_ENVS", max_numpy_envs)
        run = Run(toy)
        made = acting.make_actor(run.model, run.stats, None, jax.random.key(0), (HORIZON, NUM_ENVS))
        assert type(made) is actor
        return [run.collect(number)[0] for number in range(2)]

    on_numpy = rollouts(NUM_ENVS, acting.NumpyActor)
    compiled = rollouts(NUM_ENVS - 1, acting.CompiledActor)
    for one, two in zip(on_numpy, compiled, strict=True):
        for ours, theirs in zip(*map(jax.tree.leaves, (one.action, two.action)), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(one.log_prob, two.log_prob, atol=1e-5)
        np.testing.assert_allclose(one.reward, two.reward, atol=1e-5)
        assert_same((one.obs, one.next_obs, one.terminated), (two.obs, two.next_obs, two.terminated))


@pytest.mark.parametrize("max_numpy_envs", [NUM_ENVS, NUM_ENVS - 1])
@pytest.mark.parametrize("toy", TOYS)
def test_rollouts_from_the_same_key_are_bit_identical(toy, max_numpy_envs, monkeypatch):
    monkeypatch.setattr(acting, "MAX_NUMPY_ENVS", max_numpy_envs)
    one, two, other = Run(toy), Run(toy), Run(toy)
    assert (one.collect(0)[0].log_prob != other.collect(1)[0].log_prob).any()
    two.collect(0)
    assert_same(one.collect(1), two.collect(1))


@pytest.mark.parametrize("max_numpy_envs", [NUM_ENVS, NUM_ENVS - 1])
def test_later_rollouts_do_not_overwrite_earlier_ones(max_numpy_envs, monkeypatch):
    monkeypatch.setattr(acting, "MAX_NUMPY_ENVS", max_numpy_envs)
    run = Run(DictToy)
    kept = [run.collect(number) for number in range(2)]
    copies = jax.tree.map(np.array, kept)
    for number in range(2, 5):
        run.collect(number)
    assert_same(kept, copies)


def stored(snapshot):
    """A snapshot as a checkpoint would give it back."""
    arrays, document = snapshot
    return {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(document))


def without_hidden_state(toy):
    class NoHidden(toy):
        # The replay makes a new environment, whose episodes count from zero.
        def reset(self, *, seed=None, options=None):
            self.episode = -1
            return super().reset(seed=seed)

    return NoHidden


@pytest.mark.parametrize("toy", [BoxToy, DictToy, PartsToy])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_restored_collector_goes_on_bit_for_bit(toy, before):
    run, fresh = (Run(without_hidden_state(toy)) for _ in range(2))
    for number in range(before):
        run.collect(number)
    assert fresh.collector.restore(*stored(run.collector.snapshot()))[0] == []
    for number in range(before, before + 3):
        assert_same(fresh.collect(number), run.collect(number))


@pytest.fixture(scope="module")
def remembering(made_up):
    """A model with memory for `Toy`."""
    spec = spaces.EnvSpec(spaces.Box((3,), "float32", -np.inf, np.inf), spaces.Discrete(3))
    settings = ModelSettings(hidden_sizes=(), recurrent="gru", recurrent_size=4)
    return made_up(lambda key: make_model(key, spec, settings))


def test_memory_goes_on_from_one_rollout_to_the_next_and_is_set_back_at_episode_starts(remembering):
    run = Run(Toy, model=remembering)
    rollouts = [run.collect(number)[0] for number in range(2)]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(rollouts[0].carry))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(rollouts[1].carry))
    normalizers = observations.freeze(run.stats)
    unroll = jax.jit(lambda model, rollout: model.unroll(normalizers, rollout.obs, rollout.first, None, rollout.carry))
    for rollout in rollouts:
        assert rollout.first[1:].any()
        distribution = unroll(remembering, rollout).distribution
        np.testing.assert_allclose(rollout.log_prob, distribution.log_prob(rollout.action), atol=1e-5)
    forgetful = rollouts[1]._replace(carry=rollouts[0].carry)
    log_prob = unroll(remembering, forgetful).distribution.log_prob(forgetful.action)
    assert np.abs(rollouts[1].log_prob - log_prob).max() > 1e-3


@pytest.mark.parametrize("before", [0, 1])
def test_a_restored_collector_takes_the_policys_memory_up(remembering, before):
    run, fresh, third = (Run(without_hidden_state(Toy), model=remembering) for _ in range(3))
    for number in range(before):
        run.collect(number)
    assert fresh.collector.restore(*stored(run.collector.snapshot()))[0] == []
    # A snapshot of what was restored and not yet used holds it too.
    assert third.collector.restore(*stored(fresh.collector.snapshot()))[0] == []
    after = run.collect(before)[0]
    for other in (fresh, third):
        rollout = other.collect(before)[0]
        assert_same(rollout.carry, after.carry)
        np.testing.assert_array_equal(rollout.log_prob, after.log_prob)


def test_a_snapshot_does_not_change_while_collecting_goes_on():
    run = Run(Toy)
    run.collect(0)
    snapshot = run.collector.snapshot()
    arrays, document = stored(snapshot)
    run.collect(1)
    assert_same(snapshot[0], arrays)
    assert snapshot[1] == document


def test_only_environments_that_started_anew_begin_an_episode():
    class Still(gymnasium.Env):
        """Looks the same in every state."""

        observation_space, action_space = Toy.observation_space, Toy.action_space
        age = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.count = 0
            return np.zeros(3, np.float32), {}

        def step(self, action):
            self.age, self.count = self.age + 1, self.count + 1
            return np.zeros(3, np.float32), self.reward(), self.count == 6, False, {}

        def reward(self):
            return 1.0

    class Aging(Still):
        def reward(self):
            return float(self.age)

    def run():
        made = []
        return Run(None, pool=GymnasiumPool(lambda: made.append(0) or (Aging if len(made) == 2 else Still)(), 3, 0))

    # Sixteen steps are two episodes and four steps, of which the replay of Aging does not know the first.
    before, after = run(), run()
    before.collect(0)
    problems, _ = after.collector.restore(*stored(before.collector.snapshot()))
    assert len(problems) == 1
    assert problems[0].startswith("environment 1:")
    rollout, episodes = after.collect(1)
    np.testing.assert_array_equal(rollout.first[0], [False, True, False])
    ends = np.argmax(episodes.ended, axis=0)
    np.testing.assert_array_equal(ends, [1, 5, 1])
    np.testing.assert_array_equal(episodes.episode_length[ends, range(3)], 6)
    np.testing.assert_array_equal(episodes.episode_return[ends, range(3)], [6, rollout.reward[:6, 1].sum(), 6])


def test_a_restored_vector_environment_begins_new_episodes():
    def run():
        return Run(None, pool=VectorPool(SyncVectorEnv([Toy] * NUM_ENVS), 4))

    before, after = run(), run()
    before.collect(0)
    assert len(after.collector.restore(*stored(before.collector.snapshot()))[0]) == 1
    rollout, episodes = after.collect(1)
    assert rollout.first[0].all()
    assert rollout.valid[0].all()
    for index in range(NUM_ENVS):
        end = np.flatnonzero(episodes.ended[:, index])[0]
        assert episodes.episode_length[end, index] == end + 1
        assert episodes.episode_return[end, index] == pytest.approx(rollout.reward[: end + 1, index].sum(), rel=1e-6)


GARBLED = {
    "no first": lambda arrays, document: arrays.pop("first"),
    "no returns": lambda arrays, document: arrays.pop("episode_return"),
    "another number of environments": lambda arrays, document: arrays.update(first=np.ones(1, bool)),
    "lengths of nothing": lambda arrays, document: arrays.update(episode_length=None),
    "no actions": lambda arrays, document: arrays.pop("pool.actions.0.0"),
    "no pool": lambda arrays, document: document.clear(),
    "a pool of nothing": lambda arrays, document: document.update(pool=None),
}


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("garble", GARBLED.values(), ids=GARBLED.keys())
def test_a_garbled_snapshot_is_refused(garble):
    run = Run(Toy)
    run.collect(0)
    arrays, document = stored(run.collector.snapshot())
    garble(arrays, document)
    with pytest.raises(CheckpointError):
        Run(Toy).collector.restore(arrays, document)


def test_closing_a_collector_closes_its_environments():
    closed = []

    class Closing(Toy):
        def close(self):
            closed.append(self)

    Run(Closing).collector.close()
    assert len(closed) == NUM_ENVS

"""Rollouts and updates in turn: each rollout's noise, and a learner whose environments cannot be brought back."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixed_model import fixed_model
from inchworm.algorithms.settings import Continuation
from inchworm.collect import tail as tails
from inchworm.collect.collector import TurnCollector
from inchworm.collect.host import HostRollouts
from inchworm.collect.pool import PoolRollouts
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.pool import PoolSnapshot, read_restarts
from inchworm.errors import CheckpointError
from inchworm.spaces import Box, Discrete, EnvSpec
from probes import Probe


class State(NamedTuple):
    discounted_return: object


class Pool:
    """Three environments, of which a restore loses the second."""

    spec = EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(2))
    num_envs = 3

    def reset(self, obs):
        pass

    def snapshot(self):
        return PoolSnapshot({}, {})

    def restore(self, snapshot, obs, started_anew):
        started_anew[1] = True
        return ["environment 1: lost"]


class Envs:
    """Three environments of a pool that always starts anew."""

    spec = Pool.spec
    start = (np.zeros(3, np.float32), np.zeros((3, 1), np.float32))
    scope = contextlib.nullcontext

    def close(self):
        pass


@pytest.mark.parametrize(
    ("rollouts", "expected"),
    [
        (lambda: HostRollouts(Pool(), 4, "clip"), [1.0, 0.0, 3.0]),
        (lambda: PoolRollouts(lambda restart: Envs(), (4, 3), "clip"), [0.0, 0.0, 0.0]),
    ],
    ids=["host", "pool"],
)
def test_what_a_lost_episode_paid_does_not_go_on_into_the_next_one(rollouts, expected):
    state = State(jnp.float32([1.0, 2.0, 3.0]))
    collector = TurnCollector(rollouts(), state, None, None)
    problems = collector.restore(0, state, *collector.snapshot(0))
    assert len(problems) == 1
    np.testing.assert_array_equal(collector.state(0).discounted_return, expected)


def test_a_pool_is_told_how_often_it_was_started_anew():
    told = []

    def make(restarts):
        told.append(restarts)
        return Envs()

    rollouts = PoolRollouts(make, (4, 3), "clip")
    for _ in range(2):
        rollouts.restore(*rollouts.snapshot())
    assert told == [0, 1, 2]


class Timed:
    """Rollouts that take two seconds of acting and three of stepping."""

    shape = (1, 1)

    def __init__(self):
        self.seconds = {"policy": 0.0, "environment": 0.0}

    def collect(self, model, obs_stats, key):
        self.seconds = {"policy": self.seconds["policy"] + 2.0, "environment": self.seconds["environment"] + 3.0}
        return None, None


def test_the_times_of_an_iteration_are_its_own():
    state = Learner(None, (), jax.random.key(0), jnp.int32(0))
    collector = TurnCollector(Timed(), state, lambda state, rollout: (state, {"loss": jnp.float32(1.0)}), None)
    for _ in range(3):
        (((metrics, _),),) = collector.advance([1])
        assert metrics == {"loss": 1.0, "time/policy": 2.0, "time/environment": 3.0}


class Learner(NamedTuple):
    model: object
    obs_stats: tuple
    key: object
    iteration: object


def test_no_step_of_a_run_has_the_noise_of_another_past_the_horizon_neither():
    class Recorder(Probe):
        """Episodes of ten steps that look alike."""

        def step(self, action):
            sent.append(float(action[0]))
            self.t += 1
            return self.observe(), 0.0, self.t == 10, False, {}

    sent = []
    pool = GymnasiumPool(lambda: Recorder(continuous=True), 1, 0)
    # Narrow enough for the bounds to cut nothing.
    model = fixed_model(pool.spec, log_std=-4.0)
    learner = Learner(model, (None,), jax.random.key(0), jnp.int32(0))

    def iterate(state, rollout):
        return state._replace(iteration=state.iteration + 1), {"loss": jnp.float32(0.0)}

    collector = TurnCollector(HostRollouts(pool, 4, "clip"), learner, iterate, Continuation(0.9, False))
    steps = [collector.advance([1])[0][0].metrics["collect/tail_steps"] for _ in range(3)]
    assert steps[0] == 8
    assert len(sent) == sum(steps) + 3 * 4
    assert len(set(sent)) == len(sent)


@pytest.mark.parametrize("document", [{}, None, {"kind": "pool"}, {"kind": "vector", "restarts": 0}])
def test_a_document_of_other_environments_is_refused(document):
    assert read_restarts({"kind": "pool", "restarts": 2}, "pool") == 2
    with pytest.raises(CheckpointError):
        read_restarts(document, "pool")


class Rollouts:
    """Rollouts of which only this is known."""

    shape, seconds = (4, 2), {}

    def __init__(self, acted_with=None):
        self.acted_with, self.closed = acted_with, 0

    def close(self):
        self.closed += 1


def test_environments_are_closed_once_however_often_a_collector_is():
    rollouts = Rollouts()
    collector = TurnCollector(rollouts, None, None, None)
    assert rollouts.closed == 0
    collector.close()
    collector.close()
    assert rollouts.closed == 1


def test_what_moved_between_acting_and_updating_is_named():
    state = Learner({"a": np.zeros(2), "b": np.ones(2)}, (), None, None)
    collector = TurnCollector(Rollouts(({"a": np.zeros(2), "b": np.zeros(2)}, ())), state, None, None)
    (moved,) = collector.moved(0)
    assert moved.endswith("b")
    assert TurnCollector.capacity == 1


def test_a_return_that_never_ends_is_given_up_after_so_many_steps_of_each_environment(monkeypatch):
    class Endless(Probe):
        def step(self, action):
            return self.observe(), 0.0, False, False, {}

    monkeypatch.setattr(tails, "MAX_TAIL_STEPS", 8)
    pool = GymnasiumPool(lambda: Endless(continuous=True), 3, 0)
    learner = Learner(fixed_model(pool.spec), (None,), jax.random.key(0), jnp.int32(0))

    def iterate(state, rollout):
        return state, {"loss": jnp.float32(0.0)}

    collector = TurnCollector(HostRollouts(pool, 4, "clip"), learner, iterate, Continuation(0.9, False))
    ((outcome,),) = collector.advance([1])
    assert outcome.metrics["collect/tail_steps"] == 8 * 3
    assert outcome.metrics["time/environment"] > 0
    assert outcome.metrics["time/policy"] > 0
    assert len(outcome.episodes.ended) == 4 + 1

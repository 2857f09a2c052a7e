"""Simulators with Brax's interface: which of their ends are the task's, and which the time limit's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.envs.simulated import simulated


class State(NamedTuple):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Countdown:
    """Tells the steps so far, and ends with the one of the number given."""

    action_size = 1

    def __init__(self, last: int) -> None:
        self.last = last

    def reset(self, key):
        return State(jnp.zeros(1), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        obs = state.obs + 1
        return State(obs, obs[0], (obs[0] >= self.last).astype(jnp.float32))


@pytest.mark.parametrize(("last", "ends"), [(9, (False, True)), (3, (True, True)), (2, (True, False))])
def test_the_time_limit_truncates_and_only_the_task_terminates(last, ends):
    env = simulated("Countdown", Countdown(last), max_episode_steps=3)
    (state, _), seen = env.reset(jax.random.key(0)), []
    for _ in range(min(last, 3)):
        step = env.step(state, jnp.zeros(1), jax.random.key(0))
        state = step.state
        seen.append((bool(step.terminated), bool(step.truncated)))
    assert seen[:-1] == [(False, False)] * (len(seen) - 1)
    assert seen[-1] == ends
    np.testing.assert_array_equal(step.obs, [len(seen)])

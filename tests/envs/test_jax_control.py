"""Classic control in JAX does what Gymnasium's does, step by step."""

from functools import cache

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.envs.gymnasium import spec_of
from inchworm.envs.jax_control import CLASSIC_CONTROL, Clocked

STEPS = 2000
TOLERANCE = 3e-6
"""Of float32 against Gymnasium's float64, relative to 1 + |value|, for one step from the same state."""


@cache
def compiled(name):
    env = CLASSIC_CONTROL[name]
    return jax.jit(env.reset), jax.jit(env.step)


def choose(name, rng, physics, action_space):
    """Actions that go to all parts of the state space, ends of episodes among them."""
    if name == "MountainCar-v0":
        return int(physics[1] >= 0) * 2 if rng.random() < 0.9 else int(rng.integers(3))
    if name == "MountainCarContinuous-v0":
        return np.float32([np.sign(physics[1] or 1.0) * rng.uniform(0.5, 1.0)])
    if name == "Acrobot-v1":
        return 2 if physics[3] > 0 else 0
    return action_space.sample()


@pytest.mark.parametrize("name", CLASSIC_CONTROL)
def test_a_step_comes_to_the_same_as_in_gymnasium(name):
    theirs, env = gymnasium.make(name), CLASSIC_CONTROL[name]
    _, step = compiled(name)
    rng = np.random.default_rng(0)
    theirs.action_space.seed(0)
    theirs.reset(seed=0)
    ends = set()
    for _ in range(STEPS):
        physics = np.float64(theirs.unwrapped.state)
        elapsed = theirs.get_wrapper_attr("_elapsed_steps")
        action = choose(name, rng, physics, theirs.action_space)
        ours = step(Clocked(jnp.float32(physics), jnp.int32(elapsed)), jnp.asarray(action), jax.random.key(0))
        obs, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_allclose(ours.obs, obs, rtol=TOLERANCE, atol=TOLERANCE)
        assert float(ours.reward) == pytest.approx(float(reward), rel=TOLERANCE, abs=TOLERANCE)
        assert (bool(ours.terminated), bool(ours.truncated)) == (terminated, truncated)
        assert [leaf.dtype for leaf in (ours.obs, ours.reward, ours.terminated)] == ["float32", "float32", "bool"]
        if terminated or truncated:
            ends.add(terminated)
            theirs.reset()
    assert ends >= {"Pendulum-v1": {False}, "Acrobot-v1": {True}}.get(name, {True})
    assert env.max_episode_steps == theirs.spec.max_episode_steps


@pytest.mark.parametrize("name", CLASSIC_CONTROL)
def test_spaces_are_those_of_gymnasium(name):
    assert CLASSIC_CONTROL[name].spec == spec_of(gymnasium.make(name))


@pytest.mark.parametrize("name", CLASSIC_CONTROL)
def test_starts_are_spread_as_in_gymnasium(name):
    reset, _ = compiled(name)
    theirs = gymnasium.make(name).unwrapped
    starts = np.stack([np.array(theirs.reset(seed=seed)[0]) for seed in range(1000)])
    ours = np.stack([reset(jax.random.key(seed))[1] for seed in range(1000)])
    # Means of 1,000 draws differ by 0.045 deviations of them; five times that.
    spread = starts.std(axis=0) + 1e-7
    np.testing.assert_array_less(np.abs(ours.mean(axis=0) - starts.mean(axis=0)) / spread, 0.25)
    np.testing.assert_allclose(ours.std(axis=0) + 1e-7, spread, rtol=0.1)
    assert (ours.min(axis=0) >= starts.min(axis=0) - 0.1 * spread).all()
    assert (ours.max(axis=0) <= starts.max(axis=0) + 0.1 * spread).all()

"""EnvPool inside compiled rollouts does what its Python interface does."""

import jax
import numpy as np
import pytest

from inchworm import spaces
from inchworm.algorithms.ppo import PPO
from inchworm.collect.pool import PoolRollouts
from inchworm.envs.pool import environment_seed
from inchworm.models import observations
from inchworm.models.actor_critic import make_model
from inchworm.numerics.tree import to_arrays

envpool = pytest.importorskip("envpool", reason="install inchworm[envpool]")

from inchworm.envs.envpool_envs import MAX_SEED, EnvPoolEnvs  # noqa: E402

N = 3
TASKS = {
    "HalfCheetah-v5": {"max_episode_steps": 60},
    "CartPole-v1": {},
    "Pendulum-v1": {"max_episode_steps": 30},
    "Hopper-v5": {},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_compiled_step_is_bit_for_bit_the_python_step(name):
    kwargs, steps, seed = TASKS[name], 1000, 7
    rollouts = PoolRollouts(lambda restart: EnvPoolEnvs(name, kwargs, N, seed, restart, 1), (250, N), "clip")
    spec = rollouts._envs.spec
    model = jax.jit(lambda key: make_model(key, spec, PPO(hidden_sizes=(4,))))(jax.random.key(0))
    stats = observations.empty_stats(spec.observation_space, True)
    collected = [rollouts.collect(model, stats, jax.random.key(i)) for i in range(steps // 250)]
    rollout, episodes = jax.tree.map(lambda *leaves: np.concatenate(leaves), *collected)
    assert not [name for name, leaf in to_arrays((rollout, rollouts._now)).items() if leaf.dtype.itemsize == 8]

    seeds = [environment_seed(seed, index, 0) % MAX_SEED for index in range(N)]
    theirs = envpool.make_gymnasium(name, num_envs=N, num_threads=1, env_seed=seeds, **kwargs)
    obs, _ = theirs.reset()
    resets_next, first = np.zeros(N, bool), np.ones(N, bool)
    totals = np.zeros(N)
    door = spaces.action_door(spec.action_space, "clip")
    for t in range(steps):
        np.testing.assert_array_equal(rollout.obs[t], np.asarray(obs, rollout.obs.dtype))
        np.testing.assert_array_equal(rollout.first[t], first)
        action = np.asarray(door([jax.numpy.asarray(rollout.action[t])])[0])
        obs, reward, terminated, truncated, _ = theirs.step(action.astype(theirs.action_space.dtype))
        valid = ~resets_next
        np.testing.assert_array_equal(rollout.valid[t], valid)
        np.testing.assert_array_equal(rollout.next_obs[t], np.asarray(obs, rollout.obs.dtype))
        np.testing.assert_array_equal(rollout.reward[t], np.where(valid, np.float32(reward), 0))
        np.testing.assert_array_equal(rollout.terminated[t], terminated & valid)
        np.testing.assert_array_equal(rollout.truncated[t], truncated & ~terminated & valid)
        totals += np.where(valid, np.float32(reward), 0)
        ended = (terminated | truncated) & valid
        np.testing.assert_array_equal(episodes.ended[t], ended)
        np.testing.assert_allclose(episodes.episode_return[t][ended], totals[ended], rtol=1e-4)
        totals[ended] = 0
        first, resets_next = resets_next, ended
    assert episodes.ended.sum() > 3

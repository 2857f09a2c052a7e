"""Atari games inside compiled rollouts are preprocessed as by Gymnasium's wrappers."""

import gymnasium
import jax
import numpy as np
import pytest

ale_py = pytest.importorskip("ale_py", reason="install inchworm[atari]")
pytest.importorskip("chex", reason="install inchworm[atari]")
pytest.importorskip("cv2", reason="Gymnasium's preprocessing needs opencv-python-headless")

from inchworm.algorithms.ppo import PPO  # noqa: E402
from inchworm.collect.pool import PoolRollouts  # noqa: E402
from inchworm.envs.ale_envs import MAX_SEED, AleEnvs  # noqa: E402
from inchworm.envs.pool import environment_seed  # noqa: E402
from inchworm.models import observations  # noqa: E402
from inchworm.models.actor_critic import make_model  # noqa: E402

gymnasium.register_envs(ale_py)

STEPS, SEED, MAX_FRAMES = 1000, 3, 1200
PLAIN = {"noop_max": 0, "use_fire_reset": False, "max_num_frames_per_episode": MAX_FRAMES}
"""Without what Gymnasium's wrappers do not do, or do by their own chance."""
ENDS = {"Pong": {"truncated"}, "Breakout": {"life", "over"}, "SpaceInvaders": {"life", "truncated"}}


def wrapped(name):
    env = gymnasium.make(
        f"ALE/{name}-v5", frameskip=1, repeat_action_probability=0.0, max_num_frames_per_episode=MAX_FRAMES
    )
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=0)
    return gymnasium.wrappers.FrameStackObservation(env, 4, padding_type="zero")


@pytest.mark.parametrize("name", ENDS)
def test_frames_are_those_of_gymnasium_s_wrappers(name):
    env, n = f"{name}NoFrameskip-v4", 2
    rollouts = PoolRollouts(lambda restart: AleEnvs(env, PLAIN, n, SEED, restart, 1), (STEPS, n), "clip")
    spec = rollouts._envs.spec
    settings = PPO(hidden_sizes=(), image_network="small", shared_trunk=True)
    model = jax.jit(lambda key: make_model(key, spec, settings))(jax.random.key(0))
    stats = observations.empty_stats(spec.observation_space, False)
    rollout, episodes = jax.device_get(rollouts.collect(model, stats, jax.random.key(0)))
    assert rollout.obs.dtype == np.uint8
    seen = set()
    for index in range(n):
        theirs = wrapped(name)
        obs, _ = theirs.reset(seed=environment_seed(SEED, index, 0) % MAX_SEED)
        lives, total, over = theirs.unwrapped.ale.lives(), 0.0, False
        for t in range(STEPS):
            np.testing.assert_array_equal(rollout.obs[t, index], obs)
            assert rollout.valid[t, index] == (not over)
            if over:
                obs, _ = theirs.reset()
                lives, total, over = theirs.unwrapped.ale.lives(), 0.0, False
                np.testing.assert_array_equal(rollout.next_obs[t, index], obs)
                row = rollout.terminated, rollout.truncated, rollout.reward, episodes.ended
                assert [leaf[t, index] for leaf in row] == [False, False, 0, False]
                continue
            obs, reward, terminated, _, info = theirs.step(rollout.action[t, index])
            frames = info["episode_frame_number"]
            lost, lives = 0 < info["lives"] < lives, info["lives"]
            truncated = frames >= MAX_FRAMES and not (terminated or lost)
            total, over = total + float(reward), terminated or frames >= MAX_FRAMES
            np.testing.assert_array_equal(rollout.next_obs[t, index], obs)
            assert rollout.reward[t, index] == reward
            assert (rollout.terminated[t, index], rollout.truncated[t, index]) == (terminated or lost, truncated)
            assert episodes.ended[t, index] == over
            if over:
                assert episodes.episode_return[t, index] == total
            seen |= {kind for kind, is_so in (("life", lost), ("over", terminated), ("truncated", truncated)) if is_so}
    assert seen >= ENDS[name]

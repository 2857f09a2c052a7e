"""The invariant of masks: an update tells of stored actions that their masks forbid, and the loop stops."""

import jax
import numpy as np

from inchworm.algorithms.opening import opening_pass
from inchworm.algorithms.ppo import PPO
from inchworm.errors import InvariantError
from inchworm.loop import _broken_invariant
from inchworm.models.actor_critic import make_model
from inchworm.spaces import Box, Discrete, EnvSpec
from inchworm.types import Rollout


def test_forbidden_actions_are_counted_where_rows_are_valid_and_stop_the_run():
    config = PPO(num_envs=2, horizon=2, minibatch_size=2, hidden_sizes=(3,))
    model = make_model(jax.random.key(0), EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(2)), config)
    flags = np.zeros((2, 2), bool)
    mask = np.ones((2, 2, 2), bool)
    # Action 0 is forbidden in three rows, one of which is no transition, and taken everywhere.
    mask[0, 0, 0] = mask[1, 0, 0] = mask[1, 1, 0] = False
    valid = np.array([[True, True], [True, False]])
    obs, action = np.zeros((2, 2, 1), np.float32), np.zeros((2, 2), np.int32)
    log_prob = model.unroll((None,), obs, flags, mask).distribution.log_prob(action)
    rollout = Rollout(obs, flags, action, mask, log_prob, np.zeros((2, 2), np.float32), flags, flags, obs, None, valid)
    metrics = opening_pass(model, (None,), rollout, config, config.at(0.0, 1.0)).metrics
    assert metrics["policy/forbidden_actions"] == 2.0
    # A mask that allows nothing counts too, though the action's probability is that of one among equals.
    nothing = mask & np.array([[True, False], [True, True]])[..., None]
    log_prob = model.unroll((None,), obs, flags, nothing).distribution.log_prob(action)
    metrics = opening_pass(
        model, (None,), rollout._replace(mask=nothing, log_prob=log_prob), config, config.at(0.0, 1.0)
    ).metrics
    assert metrics["policy/forbidden_actions"] == 3.0
    error = _broken_invariant({"policy/forbidden_actions": 2.0, "guard/skipped": 0.0}, list)
    assert isinstance(error, InvariantError)
    assert str(error).startswith("policy/forbidden_actions = 2: actions were stored that their mask")

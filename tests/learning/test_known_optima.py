"""Probes whose optimum is known and that only one feature can reach: memory, masks, the maximum-entropy objective."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.policy_gradient import A2C
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.state import collection_key
from inchworm.algorithms.trpo import TRPO
from inchworm.build import make_algorithm
from inchworm.collect.acting import prepare
from inchworm.collect.rollout import at_start, make_rollout
from inchworm.envs.jax_env import Step
from inchworm.envs.traced import Copies
from inchworm.models import observations
from inchworm.rl.distributions import Categorical
from inchworm.spaces import Box, Discrete, EnvSpec
from jax_probes import Recall


def train(env, config, iterations, seed=0):
    """The final state, and what `per_rollout` of each rollout came to: rewards (iterations, T, N)."""
    total_steps = config.steps_per_iteration * iterations
    learner = make_algorithm(config, env.spec, total_steps)
    iterate = make_iteration(learner, env.spec, config, total_steps)
    envs, shape = Copies(env), (config.horizon, config.num_envs)
    rollout = make_rollout(envs, config.squash)

    def run(key):
        state = learner.init(key)
        now = at_start(state.model, *envs.start(jax.random.split(jax.random.fold_in(key, 1), config.num_envs)))

        def iteration(carry, _):
            state, now = carry
            key = collection_key(state.key, state.iteration)
            normalizers, noise = prepare(state.model, state.obs_stats, key, shape)
            collected, episodes, now = rollout(state.model, normalizers, noise, now)
            state, _ = iterate(state, collected)
            return (state, now), (collected.reward, episodes)

        (state, _), seen = jax.lax.scan(iteration, (state, now), length=iterations)
        return state, seen

    return jax.jit(run)(jax.random.key(seed))


def last_returns(episodes, iterations):
    ended = np.asarray(episodes.ended[-iterations:])
    return np.asarray(episodes.episode_return[-iterations:])[ended]


SMALL = {"num_envs": 32, "horizon": 18, "hidden_sizes": (16,), "recurrent_size": 16, "normalize_observation": False}
EPOCHS = {"num_epochs": 4, "minibatch_size": 144, "learning_rate": "linear:1e-2:0", "max_grad_norm": 0.5}
MEMORY_CASES = {
    "PPO with GRU": PPO(**SMALL, **EPOCHS, recurrent="gru", ent_coef=0.01),
    "PPO with LSTM": PPO(**SMALL, **EPOCHS, recurrent="lstm", ent_coef=0.01),
    "TRPO with GRU": TRPO(**SMALL, recurrent="gru", num_value_epochs=4, minibatch_size=144, max_kl=0.05),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if "TRPO" in case else case for case in MEMORY_CASES]
)
def test_a_cue_is_remembered_for_eight_steps(case):
    _, (_, episodes) = train(Recall(), MEMORY_CASES[case], 150)
    assert last_returns(episodes, 10).mean() > 0.95


def test_without_memory_the_cue_is_guessed():
    config = PPO(**SMALL, **EPOCHS, ent_coef=0.01)
    _, (_, episodes) = train(Recall(), config, 150)
    assert 0.4 < last_returns(episodes, 10).mean() < 0.6


@dataclass(frozen=True)
class OnlyOne:
    """Each step allows one action out of ten, another each time, and the observation says nothing of it."""

    spec: ClassVar[EnvSpec] = EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(10))

    def reset(self, key):
        return jax.random.randint(key, (), 0, 10), jnp.zeros(1)

    def step(self, state, action, key):
        after = jax.random.randint(key, (), 0, 10)
        wrong = jnp.where(action == state, 0.0, 1.0)
        return Step(after, jnp.zeros(1), wrong, jax.random.bernoulli(key, 0.1), jnp.array(False))

    def action_mask(self, state):
        return jnp.arange(10) == state


def test_in_a_hundred_thousand_steps_no_masked_action_is_taken():
    config = A2C(num_envs=100, horizon=10, hidden_sizes=(8,), learning_rate=0.1)
    state, (wrong, _) = train(OnlyOne(), config, 100)
    assert wrong.size == 100_000
    assert not wrong.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.model)))


@dataclass(frozen=True)
class Bandit:
    """One state, one step, three arms that pay 1, 0.5 and 0."""

    spec: ClassVar[EnvSpec] = EnvSpec(Box((1,), "float32", -1.0, 1.0), Discrete(3))
    arms: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.0)

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1)

    def step(self, state, action, key):
        return Step(state, jnp.zeros(1), jnp.array(self.arms)[action], jnp.array(True), jnp.array(False))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_maximum_entropy_bandit_reaches_the_softmax_of_its_rewards(alpha):
    config = PPO(
        num_envs=64,
        horizon=16,
        num_epochs=2,
        minibatch_size=256,
        hidden_sizes=(),
        normalize_observation=False,
        normalize_advantage="none",
        learning_rate="linear:2e-2:0",
        max_entropy_alpha=alpha,
    )
    state, _ = train(Bandit(), config, 300)
    model = jax.device_get(state.model)
    normalizers = observations.freeze(state.obs_stats)
    distribution = model.unroll(normalizers, np.zeros((1, 1), np.float32)).distribution
    assert isinstance(distribution, Categorical)
    expected = np.exp(np.array(Bandit.arms) / alpha)
    np.testing.assert_allclose(np.exp(distribution.log_probs()[0]), expected / expected.sum(), atol=0.02)

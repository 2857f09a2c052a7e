"""A stand-in for PureJaxRL, which is no package but files to copy: written anew from what its authors describe
(https://chrislu.page/blog/meta-disco, arXiv:2210.05639) and from the details of PPO that it follows
(https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details), with none of its code.

What makes PureJaxRL what it is, is the same here: a whole training is one compiled function, a scan over updates, each
a scan over the steps of environments side by side and then scans over epochs and minibatches; networks by Flax,
distributions by Distrax, environments and the wrapper that sums up episodes by gymnax; random keys split at every step;
the value loss clipped; a time limit ends the task; and every step of the training answered with its episode's return.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from math import sqrt
from typing import Any, NamedTuple, cast

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported

import distrax
import gymnax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from gymnax.wrappers.purerl import FlattenObservationWrapper, LogWrapper

from peers.protocol import Clock, PPOWork, Training, Work, main


class ActorCritic(nn.Module):
    """A policy and a value function with tanh units of their own."""

    num_actions: int
    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[distrax.Categorical, jax.Array]:
        logits = self._network(obs, self.num_actions, last_scale=0.01)
        value = self._network(obs, 1, last_scale=1.0)
        return distrax.Categorical(logits=logits), value[..., 0]

    def _network(self, x: jax.Array, num_outputs: int, last_scale: float) -> jax.Array:
        for size in self.hidden_sizes:
            x = nn.tanh(nn.Dense(size, kernel_init=nn.initializers.orthogonal(sqrt(2.0)))(x))
        return nn.Dense(num_outputs, kernel_init=nn.initializers.orthogonal(last_scale))(x)


Evaluate = Callable[[Any, jax.Array], tuple[distrax.Categorical, jax.Array]]
"""From weights and observations to policy and value."""


class Transition(NamedTuple):
    """A step of every environment, (N, ...), or those of a rollout, (T, N, ...)."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array
    info: dict[str, jax.Array]


class Minibatch(NamedTuple):
    """Transitions with what is learned from them."""

    transition: Transition
    advantage: jax.Array
    target: jax.Array


class Runner(NamedTuple):
    """What a training carries from step to step."""

    learner: TrainState
    env_state: Any
    obs: jax.Array
    key: jax.Array


def make_training(work: PPOWork) -> Callable[[jax.Array], tuple[Runner, dict[str, jax.Array]]]:
    """The training of a work as a function of its random key; it answers with every step's returns and lengths."""
    env, parameters = gymnax.make(work.env_id)
    env = LogWrapper(FlattenObservationWrapper(env))
    network = ActorCritic(env.action_space(parameters).n, work.hidden_sizes)

    def learning_rate(gradient_steps: Any) -> Any:
        # The same throughout an update.
        return work.learning_rate * (1.0 - gradient_steps // work.gradient_steps_per_iteration / work.iterations)

    clip = optax.clip_by_global_norm(work.max_grad_norm)
    optimizer = optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def evaluate(weights: Any, obs: jax.Array) -> tuple[distrax.Categorical, jax.Array]:
        return cast(Any, network.apply(weights, obs))

    def start(key: jax.Array) -> Runner:
        key, network_key, env_key = jax.random.split(key, 3)
        env_keys = jax.random.split(env_key, work.num_envs)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(env_keys, parameters)
        weights = network.init(network_key, obs)
        learner = TrainState.create(apply_fn=network.apply, params=weights, tx=optimizer)
        return Runner(learner, env_state, obs, key)

    def env_step(runner: Runner, nothing: None) -> tuple[Runner, Transition]:
        key, action_key, step_key = jax.random.split(runner.key, 3)
        policy, value = evaluate(runner.learner.params, runner.obs)
        action = policy.sample(seed=action_key)
        step_keys = jax.random.split(step_key, work.num_envs)
        obs, env_state, reward, done, info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            step_keys, runner.env_state, action, parameters
        )
        transition = Transition(runner.obs, action, policy.log_prob(action), value, reward, done, info)
        return Runner(runner.learner, env_state, obs, key), transition

    def gradient_step(learner: TrainState, minibatch: Minibatch) -> tuple[TrainState, jax.Array]:
        loss, gradient = jax.value_and_grad(_loss)(learner.params, evaluate, minibatch, work)
        return learner.apply_gradients(grads=gradient), loss

    def update(runner: Runner, nothing: None) -> tuple[Runner, dict[str, jax.Array]]:
        runner, rollout = jax.lax.scan(env_step, runner, None, work.horizon)
        _, last_value = evaluate(runner.learner.params, runner.obs)
        advantage = _advantages(rollout, last_value, work)
        batch = Minibatch(rollout, advantage, advantage + rollout.value)
        rows = jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), batch)

        def epoch(learner: TrainState, key: jax.Array) -> tuple[TrainState, jax.Array]:
            order = jax.random.permutation(key, work.steps_per_iteration).reshape((-1, work.minibatch_size))
            return jax.lax.scan(gradient_step, learner, jax.tree.map(lambda leaf: leaf[order], rows))

        key, shuffle_key = jax.random.split(runner.key)
        epoch_keys = jax.random.split(shuffle_key, work.num_epochs)
        learner, _ = jax.lax.scan(epoch, runner.learner, epoch_keys)
        return runner._replace(learner=learner, key=key), rollout.info

    def training(key: jax.Array) -> tuple[Runner, dict[str, jax.Array]]:
        return jax.lax.scan(update, start(key), None, work.iterations)

    return training


def _advantages(rollout: Transition, last_value: jax.Array, work: PPOWork) -> jax.Array:
    """Generalized advantage estimates, from the last step to the first."""

    def step(later: tuple[jax.Array, jax.Array], now: Transition) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        advantage, next_value = later
        goes_on = 1.0 - now.done
        residual = now.reward + work.gamma * goes_on * next_value - now.value
        advantage = residual + work.gamma * work.gae_lambda * goes_on * advantage
        return (advantage, now.value), advantage

    _, advantages = jax.lax.scan(step, (jnp.zeros_like(last_value), last_value), rollout, reverse=True)
    return advantages


def _loss(weights: Any, evaluate: Evaluate, minibatch: Minibatch, work: PPOWork) -> jax.Array:
    """PPO's loss with the value function's clipped like the policy's."""
    old, advantage, target = minibatch
    policy, value = evaluate(weights, old.obs)
    ratio = jnp.exp(policy.log_prob(old.action) - old.log_prob)
    clipped_ratio = jnp.clip(ratio, 1.0 - work.clip_range, 1.0 + work.clip_range)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * advantage, clipped_ratio * advantage).mean()

    near_old = old.value + jnp.clip(value - old.value, -work.clip_range, work.clip_range)
    value_loss = jnp.maximum((value - target) ** 2, (near_old - target) ** 2).mean()
    return -gain + work.vf_coef * value_loss - work.ent_coef * policy.entropy().mean()


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train in one compiled call; steps are those that its optimiser and its answers count."""
    if type(work) is not PPOWork or work.normalize:
        raise ValueError(f"{work.name} is no work for the stand-in for PureJaxRL")
    training = jax.jit(make_training(work)).lower(jax.random.key(seed)).compile()
    jax.block_until_ready(training(jax.random.key(seed)))
    with clock.whole_training():
        end, info = jax.block_until_ready(training(jax.random.key(seed)))
    return Training(
        env_steps=info["returned_episode_returns"].size,
        gradient_steps=int(end.learner.step),
        gradient_steps_source="steps of the optimiser",
        parameter_shapes=[list(leaf.shape) for leaf in jax.tree.leaves(end.learner.params)],
        simulator=f"gymnax {version('gymnax')}",
        device=jax.devices()[0].device_kind,
    )


if __name__ == "__main__":
    main("purejaxrl", train, packages=("gymnax", "jax", "jaxlib", "flax", "distrax", "optax", "numpy"))

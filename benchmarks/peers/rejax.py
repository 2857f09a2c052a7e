"""Rejax on gymnax's environments: its PPO, whose whole training is one compiled call, without evaluations.

It is not quite the same algorithm. Each update evaluates policy and value function apart, with an optimiser of its
own; gradients are clipped element by element; the value loss is clipped; a time limit ends the task; Adam's epsilon is
1e-8. Nothing about the training is recorded but the state it ends in.
"""

from __future__ import annotations

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported

import jax
import optax
from rejax import PPO

from peers.protocol import Clock, PPOWork, Training, Work, main


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train with Rejax's PPO; steps are those that it and its optimisers have counted."""
    if type(work) is not PPOWork or work.normalize:
        raise ValueError(f"{work.name} is no work for Rejax")
    training = jax.jit(algorithm_of(work).train).lower(jax.random.key(seed)).compile()
    jax.block_until_ready(training(jax.random.key(seed)))
    with clock.whole_training():
        state, _ = jax.block_until_ready(training(jax.random.key(seed)))
    return Training(
        env_steps=int(state.global_step),
        gradient_steps=min(int(state.actor_ts.step), int(state.critic_ts.step)),
        gradient_steps_source="steps of the policy's and the value function's optimiser",
        parameter_shapes=[
            list(leaf.shape) for part in (state.actor_ts, state.critic_ts) for leaf in jax.tree.leaves(part.params)
        ],
        simulator=f"gymnax {version('gymnax')}",
        device=jax.devices()[0].device_kind,
    )


def algorithm_of(work: PPOWork) -> PPO:
    """The settings of a work as Rejax names them."""
    gradient_steps = work.iterations * work.gradient_steps_per_iteration
    algorithm = PPO.create(
        env=work.env_id,
        total_timesteps=work.total_steps,
        num_envs=work.num_envs,
        num_steps=work.horizon,
        num_minibatches=work.steps_per_iteration // work.minibatch_size,
        num_epochs=work.num_epochs,
        learning_rate=optax.linear_schedule(work.learning_rate, 0.0, gradient_steps),
        max_grad_norm=work.max_grad_norm,
        gamma=work.gamma,
        gae_lambda=work.gae_lambda,
        clip_eps=work.clip_range,
        vf_coef=work.vf_coef,
        ent_coef=work.ent_coef,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": work.hidden_sizes},
        eval_freq=work.total_steps,
        skip_initial_evaluation=True,
    )
    # It evaluates at the end whatever it is told, with the callback.
    return algorithm.replace(eval_callback=lambda algorithm, state, key: ())


if __name__ == "__main__":
    main("rejax", train, packages=("rejax", "gymnax", "jax", "jaxlib", "flax", "optax", "numpy"))

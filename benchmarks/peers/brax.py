"""Brax's PPO on Brax's environments, with its unrolls of 10 steps, no evaluations, and a return to Python an iteration.

It is not quite the same algorithm. Advantages are estimated within unrolls, and minibatches are made of whole ones; the
learning rate does not move; Adam's epsilon is 1e-8; an episode starts where the environment's first one did; rewards
are not normalised.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported

import jax
import jax.numpy as jnp
from brax import envs
from brax.training.agents.ppo import train as ppo
from brax.training.agents.ppo.networks import make_ppo_networks
from flax import linen

from peers.protocol import Clock, PPOWork, Training, Work, main

UNROLL_LENGTH = 10
"""As in the settings that Brax gives for its environments."""
EPISODE_LENGTH = 1000


def _device_put_replicated(tree: Any, devices: list[Any]) -> Any:
    """Leaves once for each device, stacked, as `jax.pmap` takes them."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), tree)


# Brax 0.14.2 calls it once, at the start of a training; JAX 0.10 has it no more.
jax.device_put_replicated = _device_put_replicated  # type: ignore[attr-defined]


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train with Brax's PPO, which tells of its environment steps after each iteration, but not of its optimiser."""
    if type(work) is not PPOWork or work.horizon % UNROLL_LENGTH or work.minibatch_size % UNROLL_LENGTH:
        raise ValueError(f"{work.name} is no work for Brax")
    env_steps = 0

    def on_iteration(steps: int, make_policy: Any, parameters: Any) -> None:
        nonlocal env_steps
        env_steps = steps
        if steps > 0:  # it is called before the first iteration too
            clock.iteration_done()

    _, (_, policy, value), _ = ppo.train(
        envs.get_environment(work.env_id),
        **settings_of(work),
        episode_length=EPISODE_LENGTH,
        seed=seed,
        num_evals=work.iterations + 1,
        run_evals=False,
        policy_params_fn=on_iteration,
    )
    return Training(
        env_steps=env_steps,
        gradient_steps=work.iterations * work.gradient_steps_per_iteration,
        gradient_steps_source="its settings",
        parameter_shapes=[list(leaf.shape) for leaf in jax.tree.leaves((policy, value))],
        simulator=f"Brax {version('brax')}",
        device=jax.devices()[0].device_kind,
    )


def settings_of(work: PPOWork) -> dict[str, Any]:
    """The settings of a work as Brax names them."""

    def networks(obs_size: Any, action_size: int, **more: Any) -> Any:
        return make_ppo_networks(
            obs_size,
            action_size,
            policy_hidden_layer_sizes=work.hidden_sizes,
            value_hidden_layer_sizes=work.hidden_sizes,
            activation=linen.tanh,
            distribution_type="normal",
            noise_std_type="log",
            **more,
        )

    return {
        "num_timesteps": work.total_steps,
        "num_envs": work.num_envs,
        "unroll_length": UNROLL_LENGTH,
        "batch_size": work.minibatch_size // UNROLL_LENGTH,
        "num_minibatches": work.steps_per_iteration // work.minibatch_size,
        "num_updates_per_batch": work.num_epochs,
        "learning_rate": work.learning_rate,
        "max_grad_norm": work.max_grad_norm,
        "discounting": work.gamma,
        "gae_lambda": work.gae_lambda,
        "clipping_epsilon": work.clip_range,
        "vf_loss_coefficient": work.vf_coef,
        "entropy_cost": work.ent_coef,
        "normalize_observations": work.normalize,
        "network_factory": networks,
    }


if __name__ == "__main__":
    main("brax", train, packages=("brax", "jax", "jaxlib", "flax", "optax", "numpy", "mujoco"))

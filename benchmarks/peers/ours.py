"""Inchworm through its public API, on a CPU with its own default of one thread.

Its metrics files are written during the timed part, for they cannot be turned off; Stable-Baselines3 logs nothing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported

import jax
import safetensors.numpy

import inchworm as iw
from peers.protocol import Clock, Training, Work, main


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train with `iw.train`; gradient steps are those that Adam has counted in the last checkpoint."""
    algorithm = iw.PPO(
        num_envs=work.num_envs,
        horizon=work.horizon,
        minibatch_size=work.minibatch_size,
        num_epochs=work.num_epochs,
        learning_rate=f"linear:{work.learning_rate}:0",
        gamma=work.gamma,
        gae_lambda=work.gae_lambda,
        clip_range=work.clip_range,
        normalize_advantage="minibatch",
        normalize_observation=False,
        normalize_return=False,
        ent_coef=work.ent_coef,
        vf_coef=work.vf_coef,
        max_grad_norm=work.max_grad_norm,
        hidden_sizes=work.hidden_sizes,
        activation="tanh",
    )
    env_steps = 0

    def on_iteration(iteration: iw.Iteration) -> None:
        nonlocal env_steps
        clock.iteration_done()
        env_steps = iteration.env_steps

    with tempfile.TemporaryDirectory() as folder:
        run = iw.train(
            work.env_id,
            algorithm,
            total_steps=work.total_steps,
            seed=seed,
            out=folder,
            on_iteration=on_iteration,
            checkpoint_seconds=1e9,  # only the one at the end, after the clock has stopped
            evaluation_episodes=0,
            progress=False,
        )
        gradient_steps = _adam_count(run.folder / "checkpoints")
    return Training(
        env_steps=env_steps,
        gradient_steps=gradient_steps,
        gradient_steps_source="Adam's count in the last checkpoint",
        parameter_shapes=[list(leaf.shape) for leaf in jax.tree.leaves(run.policy.model)],
    )


def _adam_count(checkpoints: Path) -> int:
    """How many gradients the optimiser of the newest checkpoint has taken in."""
    state = safetensors.numpy.load_file(max(checkpoints.iterdir()) / "state.safetensors")
    (count,) = (state[name] for name in state if name.startswith("opt_state.") and name.endswith(".count"))
    return int(count)


if __name__ == "__main__":
    main("ours", train, packages=("inchworm", "jax", "jaxlib", "optax"))

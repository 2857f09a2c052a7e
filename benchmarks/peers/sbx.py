"""SBX, Stable-Baselines3's algorithms in JAX, with the environments of `peers.sb3`.

A gradient step is one compiled call, and so is a step of the policy; the rest is Stable-Baselines3's Python. Policy and
value function have an optimiser each, so that one step of both counts as one.
"""

from __future__ import annotations

import flax.linen
import jax
from sbx import PPO

from peers.protocol import Clock, PPOWork, Training, Work, gymnasium_simulator, main
from peers.sb3 import common_settings, learn, ppo_settings

PACKAGES = ("sbx-rl", "jax", "jaxlib", "flax", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")


def train(work: Work, seed: int, clock: Clock, processes: bool = False) -> Training:
    """Train with SBX's PPO; gradient steps are those that the policy's training state has counted."""
    if type(work) is not PPOWork:
        raise ValueError(f"{work.name} is no work for SBX")
    settings = common_settings(work, seed, processes)
    settings["policy_kwargs"]["activation_fn"] = flax.linen.tanh
    model = PPO("MlpPolicy", **settings, **ppo_settings(work))
    learn(model, work, clock)
    states = (model.policy.actor_state, model.policy.vf_state)
    return Training(
        env_steps=model.num_timesteps,
        gradient_steps=int(states[0].step),
        gradient_steps_source="steps of the policy's training state",
        parameter_shapes=[list(leaf.shape) for state in states for leaf in jax.tree.leaves(state.params)],
        simulator=gymnasium_simulator(work.env_id),
    )


if __name__ == "__main__":
    main("sbx", train, PACKAGES)

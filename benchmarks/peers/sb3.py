"""Stable-Baselines3, with one torch thread and no logging.

Its environments are in its own process (DummyVecEnv), which its guide to vectorised environments takes for the faster
choice with simple ones. Its page on PPO sets each into a process of its own: that is `peers.sb3_processes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from peers.protocol import Clock, PPOWork, Training, Work, gymnasium_simulator, main

PACKAGES = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")


class TellClock(BaseCallback):
    """SB3 has no hook at the end of an iteration; the next rollout's start and the end of training stand for it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > 0:
            self._clock.iteration_done()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._clock.iteration_done()


def train(work: Work, seed: int, clock: Clock, processes: bool = False) -> Training:
    """Train with SB3's PPO."""
    if type(work) is not PPOWork:
        raise ValueError(f"{work.name} is no work for Stable-Baselines3")
    model = PPO("MlpPolicy", **common_settings(work, seed, processes), **ppo_settings(work))
    return train_torch(model, work, clock)


def common_settings(work: Work, seed: int, processes: bool = False) -> dict[str, Any]:
    """What all on-policy algorithms of SB3, sb3-contrib and SBX are told alike."""
    torch.set_num_threads(1)
    hidden_sizes = list(work.hidden_sizes)
    return {
        "env": make_environments(work, seed, processes),
        "n_steps": work.horizon,
        "batch_size": work.minibatch_size,
        "gamma": work.gamma,
        "gae_lambda": work.gae_lambda,
        "normalize_advantage": True,
        "policy_kwargs": {"net_arch": {"pi": hidden_sizes, "vf": hidden_sizes}, "activation_fn": torch.nn.Tanh},
        "seed": seed,
        "device": "cpu",
    }


def make_environments(work: Work, seed: int, processes: bool) -> VecEnv:
    """Its vectorised environments, each in a process of its own if `processes`."""
    kind = SubprocVecEnv if processes else DummyVecEnv
    envs = make_vec_env(work.env_id, n_envs=work.num_envs, seed=seed, vec_env_cls=kind)
    return VecNormalize(envs, gamma=work.gamma) if work.normalize else envs


def ppo_settings(work: PPOWork) -> dict[str, Any]:
    """What PPO is told besides."""
    return {
        "learning_rate": _linear(work.learning_rate),
        "n_epochs": work.num_epochs,
        "clip_range": work.clip_range,
        "ent_coef": work.ent_coef,
        "vf_coef": work.vf_coef,
        "max_grad_norm": work.max_grad_norm,
    }


def train_torch(model: OnPolicyAlgorithm, work: Work, clock: Clock) -> Training:
    """Train a model of SB3 or sb3-contrib; gradient steps are counted by a hook of its optimiser."""
    gradient_steps = 0

    def count(*_: object) -> None:
        nonlocal gradient_steps
        gradient_steps += 1

    model.policy.optimizer.register_step_post_hook(count)
    learn(model, work, clock)
    return Training(
        env_steps=model.num_timesteps,
        gradient_steps=gradient_steps,
        gradient_steps_source="calls of the optimiser's step",
        parameter_shapes=[
            list(parameter.shape)
            for name, parameter in model.policy.named_parameters()
            if "bias_hh" not in name  # the second bias of PyTorch's LSTM
        ],
        simulator=gymnasium_simulator(work.env_id),
    )


def learn(model: OnPolicyAlgorithm, work: Work, clock: Clock) -> None:
    """Train a model of SB3 or of a library that extends it, and tell the clock."""
    update = model.train

    def timed_update() -> None:
        with clock.update():
            update()

    model.train = timed_update  # type: ignore[method-assign]
    model.learn(work.total_steps, callback=TellClock(clock), log_interval=None)  # type: ignore[arg-type]  # None: no logging


def _linear(start: float) -> Callable[[float], float]:
    return lambda progress_remaining: start * progress_remaining


if __name__ == "__main__":
    main("sb3", train, PACKAGES)

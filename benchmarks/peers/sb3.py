"""Stable-Baselines3 at its fastest documented setting here: DummyVecEnv, one torch thread, no logging."""

from __future__ import annotations

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from peers.protocol import Clock, Training, Work, main


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


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train with SB3's PPO; gradient steps are counted by a hook of the optimiser."""
    torch.set_num_threads(1)
    hidden_sizes = list(work.hidden_sizes)
    model = PPO(
        "MlpPolicy",
        make_vec_env(work.env_id, n_envs=work.num_envs, seed=seed),
        learning_rate=lambda progress_remaining: work.learning_rate * progress_remaining,
        n_steps=work.horizon,
        batch_size=work.minibatch_size,
        n_epochs=work.num_epochs,
        gamma=work.gamma,
        gae_lambda=work.gae_lambda,
        clip_range=work.clip_range,
        normalize_advantage=True,
        ent_coef=work.ent_coef,
        vf_coef=work.vf_coef,
        max_grad_norm=work.max_grad_norm,
        policy_kwargs={"net_arch": {"pi": hidden_sizes, "vf": hidden_sizes}, "activation_fn": torch.nn.Tanh},
        seed=seed,
        device="cpu",
    )
    gradient_steps = 0

    def count(*_: object) -> None:
        nonlocal gradient_steps
        gradient_steps += 1

    model.policy.optimizer.register_step_post_hook(count)
    model.learn(work.total_steps, callback=TellClock(clock), log_interval=None)  # type: ignore[arg-type]  # None: no logging
    return Training(
        env_steps=model.num_timesteps,
        gradient_steps=gradient_steps,
        gradient_steps_source="calls of the optimiser's step",
        parameter_shapes=[list(parameter.shape) for parameter in model.policy.parameters()],
    )


if __name__ == "__main__":
    main("sb3", train, packages=("stable-baselines3", "torch"))

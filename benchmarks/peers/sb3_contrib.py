"""TRPO and RecurrentPPO of sb3-contrib, run as `peers.sb3` runs Stable-Baselines3."""

from __future__ import annotations

from sb3_contrib import TRPO, RecurrentPPO

from peers.protocol import Clock, RecurrentPPOWork, Training, TRPOWork, Work, main
from peers.sb3 import PACKAGES, common_settings, ppo_settings, train_torch


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train with the algorithm that the work is for."""
    settings = common_settings(work, seed)
    match work:
        case TRPOWork():
            model = TRPO(
                "MlpPolicy",
                **settings,
                learning_rate=work.value_learning_rate,
                n_critic_updates=work.num_epochs,
                target_kl=work.max_kl,
                cg_max_steps=work.cg_iters,
                cg_damping=work.cg_damping,
                line_search_max_iter=work.max_backtracks,
                line_search_shrinking_factor=work.shrink,
                sub_sampling_factor=1,
            )
        case RecurrentPPOWork():
            settings["policy_kwargs"] |= {"lstm_hidden_size": work.lstm_size}
            model = RecurrentPPO("MlpLstmPolicy", **settings, **ppo_settings(work))
        case _:
            raise ValueError(f"{work.name} is no work for sb3-contrib")
    return train_torch(model, work, clock)


if __name__ == "__main__":
    main("sb3_contrib", train, packages=("sb3-contrib", *PACKAGES))

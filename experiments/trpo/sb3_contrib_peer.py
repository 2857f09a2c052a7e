"""One training by sb3-contrib's TRPO, written as one JSON file.

    python experiments/trpo/sb3_contrib_peer.py Hopper-v5 --seed 0 --total-steps 1000000 --settings '{...}' --out FILE

run.py starts this with the peers' interpreter and gives the settings by Inchworm's names. The environment is as
Gymnasium makes it: observations and rewards are not normalised.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

PACKAGES = ("sb3-contrib", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
EVALUATION_EPISODES = 20
EVALUATION_SEED_OFFSET = 1_000_000
"""Evaluation environments get other seeds than those of training."""


class Curve(BaseCallback):
    """Notes the mean return of the last 100 episodes after each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.model.ep_info_buffer:
            self.points.append((self.num_timesteps, self.return_100()))

    def return_100(self) -> float:
        return float(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))


def make_model(env: str, seed: int, settings: dict[str, Any]) -> TRPO:
    """sb3-contrib's TRPO with settings that have Inchworm's names."""
    hidden_sizes = list(settings["hidden_sizes"])
    return TRPO(
        "MlpPolicy",
        make_vec_env(env, n_envs=settings["num_envs"], seed=seed),
        learning_rate=settings["value_learning_rate"],
        n_steps=settings["horizon"],
        batch_size=settings["minibatch_size"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        cg_max_steps=settings["cg_iters"],
        cg_damping=settings["cg_damping"],
        line_search_shrinking_factor=settings["shrink"],
        line_search_max_iter=settings["max_backtracks"],
        n_critic_updates=settings["num_value_epochs"],
        normalize_advantage=True,
        target_kl=settings["max_kl"],
        sub_sampling_factor=1,
        policy_kwargs={"net_arch": {"pi": hidden_sizes, "vf": hidden_sizes}, "activation_fn": torch.nn.Tanh},
        stats_window_size=100,
        seed=seed,
        device="cpu",
    )


def evaluate(model: TRPO, env: str, seed: int, deterministic: bool) -> dict[str, float]:
    """Mean and deviation of the returns of whole episodes."""
    envs = make_vec_env(env, n_envs=1, seed=EVALUATION_SEED_OFFSET + seed)
    returns, _ = evaluate_policy(model, envs, EVALUATION_EPISODES, deterministic, return_episode_rewards=True)
    return {"mean": float(np.mean(returns)), "std": float(np.std(returns))}


def note_update(model: TRPO, number: int, out: Path) -> None:
    """Trains until the update of that number and writes down its rollout, and the parameters before and after."""
    update, count = model.train, 0

    def parameters(when: str) -> dict[str, np.ndarray]:
        return {f"{when}.{name}": value.numpy().copy() for name, value in model.policy.state_dict().items()}

    def train() -> None:
        nonlocal count
        count += 1
        names = ("observations", "actions", "log_probs", "advantages") if count == number else ()
        # Copied before the update, which flattens them.
        noted = {name: getattr(model.rollout_buffer, name).copy() for name in names} | parameters("before")
        update()
        if count == number:
            np.savez(out, **noted, **parameters("after"))

    model.train = train  # type: ignore[method-assign]
    model.learn(number * model.n_steps, log_interval=None)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description="One training by sb3-contrib's TRPO, written as one JSON file.")
    parser.add_argument("env")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--settings", type=json.loads, required=True, help="a JSON object with Inchworm's names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--update", type=int, help="write down this update of the training instead")
    options = parser.parse_args()

    torch.set_num_threads(1)
    model = make_model(options.env, options.seed, options.settings)
    if options.update is not None:
        note_update(model, options.update, options.out)
        return
    curve = Curve()
    started = time.perf_counter()
    model.learn(options.total_steps, callback=curve, log_interval=None)  # type: ignore[arg-type]  # None: no logging
    seconds = time.perf_counter() - started
    document = {
        "task": options.env,
        "seed": options.seed,
        "settings": options.settings,
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
        "env_steps": model.num_timesteps,
        "seconds": seconds,
        "return_100": curve.return_100(),
        "evaluation_deterministic": evaluate(model, options.env, options.seed, True),
        "evaluation_stochastic": evaluate(model, options.env, options.seed, False),
        "curve": curve.points,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.out.with_suffix(".tmp")
    unfinished.write_text(json.dumps(document) + "\n", encoding="utf-8")
    unfinished.replace(options.out)


if __name__ == "__main__":
    main()

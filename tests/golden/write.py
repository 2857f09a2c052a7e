"""Writes runs of this version, which later versions have to load.

    python tests/golden/write.py

Each version adds a folder of its own, once, when it is released, and changes none of another.
"""

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import inchworm as iw
from inchworm.numerics.tree import fingerprint

SMALL: dict[str, Any] = {"num_envs": 2, "horizon": 16, "minibatch_size": 16, "hidden_sizes": (4,)}
RUNS = {
    "ppo-choices": ("CartPole-v1", iw.PPO(**SMALL, num_epochs=1)),
    "ppo-numbers": ("Pendulum-v1", iw.PPO(**SMALL, num_epochs=1, normalize_return=True)),
    "ppo-beta-kl": (
        "Pendulum-v1",
        iw.PPO(**SMALL, num_epochs=1, action_distribution="beta", surrogate="kl", target_kl=0.01),
    ),
    "ppo-tanh-state": ("Pendulum-v1", iw.PPO(**SMALL, action_distribution="tanh_gaussian", log_std="state")),
    "ppo-gru": ("CartPole-v1", iw.PPO(**SMALL, recurrent="gru", recurrent_size=4)),
    "ppo-lstm-shared": ("CartPole-v1", iw.PPO(**SMALL, recurrent="lstm", recurrent_size=4, shared_trunk=True)),
    "trpo": ("Pendulum-v1", iw.TRPO(**SMALL, num_value_epochs=1)),
    "npg": ("CartPole-v1", iw.NPG(**SMALL, num_value_epochs=1)),
    "a2c": ("CartPole-v1", iw.A2C(num_envs=2, horizon=5, hidden_sizes=(4,))),
    "reinforce": ("CartPole-v1", iw.REINFORCE(num_envs=2, horizon=16, hidden_sizes=(4,))),
}
KEPT = ("config.json", "metrics.jsonl", "summary.json", "checkpoints", "policy")
"""Of a run's folder; where it was made and its pictures are no part of it."""
OBSERVATIONS = 5


def observations(policy: iw.Policy) -> np.ndarray:
    """Some observations, the same in every version."""
    shape = policy.observation_space.shape  # type: ignore[union-attr]
    return (np.arange(OBSERVATIONS * int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape) / 10.0) - 0.5


def acts(policy: iw.Policy) -> Any:
    """What a policy does there, by its modes."""
    answer = policy.act(observations(policy), deterministic=True)
    return np.asarray(answer[0] if policy.recurrent else answer).tolist()


def main() -> None:
    target = Path(__file__).parent / version("inchworm")
    sys.argv = ["golden"]  # which runs remember
    for name, (env, algorithm) in RUNS.items():
        with tempfile.TemporaryDirectory() as out:
            how: dict[str, Any] = {"evaluation_episodes": 0, "progress": False, "out": out, "checkpoint_seconds": 1e6}
            steps = 10 * algorithm.steps_per_iteration
            stop = lambda report: report.iteration == 6  # noqa: E731
            run = iw.train(env, algorithm, total_steps=steps, seed=1, on_iteration=stop, **how)
            (target / name).mkdir(parents=True)
            for kept in KEPT:
                source = run.folder / kept
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name / kept)
            expected = {"parameters": fingerprint(run.policy.model), "actions": acts(run.policy)}
            (target / name / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()

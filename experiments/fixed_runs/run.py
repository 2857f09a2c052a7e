"""A fixed set of short runs and the hash of the parameters each ends with: does a change move results?

python experiments/fixed_runs/run.py             runs all of them and says which end with other parameters than before
python experiments/fixed_runs/run.py --write     keeps what they end with now

Hashes depend on the processor and on the versions of JAX, NumPy and the simulators. So a change is judged by running
the commit before it and the commit after it on one machine.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import inchworm as iw
from inchworm.io.provenance import provenance

RESULTS = Path(__file__).parent / "results.json"

ALGORITHMS = ("ppo", "trpo", "npg", "a2c", "reinforce")
SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"num_envs": 4, "horizon": 64, "minibatch_size": 64, "num_epochs": 3},
    "trpo": {"num_envs": 4, "horizon": 64},
    "npg": {"num_envs": 4, "horizon": 64},
    "a2c": {"num_envs": 4, "horizon": 16},
    "reinforce": {"num_envs": 4, "horizon": 64},
}


def train(env: str, algorithm: str, folder: str, **more: Any) -> iw.Run:
    """A run of 2,048 steps and a fixed seed, without evaluation."""
    settings: dict[str, Any] = {"total_steps": 2048, "seed": 7, "evaluation_episodes": 0, "progress": False}
    settings |= {"out": folder} | SMALL[algorithm] | more
    return iw.train(env, algorithm, **settings)


def resumed(env: str, algorithm: str, folder: str, **more: Any) -> iw.Run:
    """The same, stopped half-way and resumed."""
    half = train(env, algorithm, folder, on_iteration=lambda report: report.env_steps >= 1024, **more)
    return iw.resume(half.folder, evaluation_episodes=0, progress=False)


def seeds(folder: str, **more: Any) -> list[iw.Run]:
    """Three seeds at once."""
    given: dict[str, Any] = {"total_steps": 2048, "seeds": (1, 2, 3), "evaluation_episodes": 0, "progress": False}
    return list(iw.train_seeds("CartPole-v1", out=folder, **given, **SMALL["ppo"], **more))


def fixed_runs(folder: str) -> dict[str, str]:
    """The name of every run and the hash of its parameters."""
    runs: dict[str, iw.Run] = {}
    for algorithm in ALGORITHMS:
        runs[f"{algorithm} CartPole-v1"] = train("CartPole-v1", algorithm, folder)
        runs[f"{algorithm} Pendulum-v1"] = train("Pendulum-v1", algorithm, folder)
        runs[f"{algorithm} CartPole-v1 in JAX"] = train("CartPole-v1", algorithm, folder, backend="jax")
        runs[f"{algorithm} CartPole-v1 resumed"] = resumed("CartPole-v1", algorithm, folder)
        runs[f"{algorithm} CartPole-v1 in JAX resumed"] = resumed("CartPole-v1", algorithm, folder, backend="jax")
    runs["ppo HalfCheetah-v5"] = train("HalfCheetah-v5", "ppo", folder)
    runs["ppo HalfCheetah-v5 in two processes"] = train("HalfCheetah-v5", "ppo", folder, env_processes=2)
    runs["ppo HalfCheetah-v5 in two processes, resumed"] = resumed("HalfCheetah-v5", "ppo", folder, env_processes=2)
    for memory in ("gru", "lstm"):
        runs[f"ppo CartPole-v1 with a {memory}"] = train("CartPole-v1", "ppo", folder, recurrent=memory)
        runs[f"trpo CartPole-v1 with a {memory}"] = train("CartPole-v1", "trpo", folder, recurrent=memory)
    for name in ("tanh_gaussian", "beta"):
        runs[f"ppo Pendulum-v1 {name}"] = train("Pendulum-v1", "ppo", folder, action_distribution=name)
    for control, surrogate in {"penalty": "kl", "stop": "clip", "roll_back": "clip", "learning_rate": "none"}.items():
        more: dict[str, Any] = {"surrogate": surrogate, "target_kl": 0.001, "kl_control": control}
        runs[f"ppo CartPole-v1 {surrogate}, {control}"] = train("CartPole-v1", "ppo", folder, **more)
    runs["ppo CartPole-v1 shared trunk"] = train("CartPole-v1", "ppo", folder, shared_trunk=True)
    for where, group in {"": seeds(folder), " in JAX": seeds(folder, backend="jax")}.items():
        runs |= {f"ppo CartPole-v1{where}, seed {run.config.seed} of three": run for run in group}
    return {name: run.summary["parameters_sha256"] for name, run in runs.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what the runs end with now")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where what they ended with is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fixed_runs(folder)
    if options.write:
        facts = {key: value for key, value in provenance().items() if key in ("commit", "numerics", "python")}
        options.results.write_text(json.dumps(facts | {"parameters_sha256": found}, indent=1) + "\n")
        print(f"{len(found)} runs written to {options.results}")
        return 0
    before = json.loads(options.results.read_text())["parameters_sha256"]
    others = [name for name in sorted(found.keys() | before.keys()) if found.get(name) != before.get(name)]
    for name in others:
        print(f"{name}: {before.get(name, 'is new')} before, {found.get(name, 'is gone')} now")
    print(f"{len(found) - len(others)} of {len(found)} runs end with the parameters of before.")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())

"""Does it learn? Trains on small tasks and on MuJoCo over several seeds and holds the returns against stated bars.

    make learning                                             all of it, about two hours on two cores
    python experiments/learning/run.py --tasks CartPole-v1    one task

The score of a run is the paper's: the mean return of its last 100 training episodes, actions sampled. Each run is an
`inchworm train` of its own; results/<task>.json holds what the runs wrote, and results/<task>.png their curves.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.stats import bootstrap

from inchworm.io.curve import plot_curves
from inchworm.io.loggers import read_metrics
from inchworm.io.provenance import provenance
from inchworm.io.run_folder import RunFolder, read_json

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    """A bar to clear."""

    total_steps: int
    seeds: int
    bar: float
    every_seed: bool
    """True if each seed must clear the bar, False if their mean must."""
    reference: str
    env: str | None = None
    """Where it is not the task's name."""
    options: tuple[str, ...] = ()
    """Of the command line, beside the preset's settings."""
    below: bool = False
    """True if scores must stay below the bar: what a task needs is missing on purpose."""
    package: str | None = None
    """An optional package that the task is left out without."""


BLIND = "blind_cartpole:make"
"""CartPole without its velocities, see blind_cartpole.py."""
BRIEF = ("--learning-rate", "5e-4", "--num-epochs", "4", "--minibatch-size", "128")
"""For a twentieth of the steps that the preset of Atari games is made for, which is hardly off random play by then."""
MEMORY = ("--horizon", "128", "--minibatch-size", "256", "--preset", "classic")

TASKS = {
    "CartPole-v1": Task(100_000, 10, 475.0, True, "solved at 475 (Gymnasium)"),
    "Pendulum-v1": Task(300_000, 10, -250.0, False, "-172 for one tuned run (RL-Zoo, 100k steps)"),
    "InvertedPendulum-v5": Task(1_000_000, 5, 950.0, False, "955 in the paper (v1), 963 in CleanRL (v4)"),
    "Hopper-v5": Task(1_000_000, 10, 1800.0, False, "2130 in the paper (v1), 2383 in CleanRL (v4)"),
    "HalfCheetah-v5": Task(1_000_000, 5, 1500.0, False, "1810 in the paper (v1), 1443 in CleanRL (v4)"),
    "CartPole-v1-ppo-kl": Task(
        100_000,
        5,
        475.0,
        True,
        "solved at 475 (Gymnasium)",
        "CartPole-v1",
        ("--surrogate", "kl", "--target-kl", "0.01", "--learning-rate", "linear:3e-4:0"),
    ),
    "CartPole-v1-trpo": Task(200_000, 5, 475.0, True, "solved at 475", "CartPole-v1", ("--algorithm", "trpo")),
    "CartPole-v1-a2c": Task(500_000, 5, 475.0, True, "solved at 475", "CartPole-v1", ("--algorithm", "a2c")),
    "CartPole-v1-reinforce": Task(
        1_000_000, 5, 475.0, True, "solved at 475", "CartPole-v1", ("--algorithm", "reinforce")
    ),
    "Acrobot-v1": Task(200_000, 5, -90.0, False, "-100 is solved; RL-Zoo's PPO -74 after 1M steps"),
    "blind-CartPole-gru": Task(
        300_000, 5, 400.0, False, "an MLP stays far below", BLIND, (*MEMORY, "--recurrent", "gru")
    ),
    "blind-CartPole-mlp": Task(300_000, 5, 150.0, False, "velocities are not seen", BLIND, MEMORY, below=True),
    "Pong": Task(
        500_000,
        3,
        -18.0,
        False,
        "random play -20.7; at best 21",
        "PongNoFrameskip-v4",
        (*BRIEF, "--clip-range", "0.1", "--ent-coef", "0.005"),
        package="ale_py",
    ),
    "gymnax-Breakout": Task(
        1_000_000,
        3,
        10.0,
        False,
        "random play 0.43",
        "Breakout-MinAtar",
        ("--backend", "gymnax"),
        package="gymnax",
    ),
    "brax-inverted-pendulum": Task(
        200_000, 3, 950.0, False, "at best 1,000", "inverted_pendulum", ("--backend", "brax"), package="brax"
    ),
    "playground-CartpoleBalance": Task(
        300_000,
        3,
        700.0,
        False,
        "at best 1,000",
        "CartpoleBalance",
        ("--backend", "playground"),
        package="mujoco_playground",
    ),
}


def train(task: str, seed: int, runs: Path) -> RunFolder:
    """One run in a process of its own; an earlier one of the same name is kept as it is."""
    given = TASKS[task]
    pattern = f"**/seed{seed}/curve.png"
    if not list((runs / task).glob(pattern)):
        command = [sys.executable, "-m", "inchworm", "train", given.env or task, *given.options]
        command += ["--total-steps", str(given.total_steps), "--seed", str(seed), "--name", f"seed{seed}"]
        command += ["--out", str(runs / task), "--no-video", "--no-progress"]
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path})
    return RunFolder(next((runs / task).glob(pattern)).parent)


def result(task: str, folders: list[RunFolder]) -> dict[str, Any]:
    """What the runs of a task came to."""
    bar = TASKS[task]
    summaries = [read_json(folder.summary) for folder in folders]
    scores = [summary["return_100"] for summary in summaries]
    # Percentiles, because the corrected interval is undefined where all seeds score alike.
    interval = bootstrap((scores,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    facts = provenance()
    return {
        "task": task,
        "command": f"python experiments/learning/run.py --tasks {task}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": facts["versions"] | {"python": facts["python"]},
        "machine": {"cpu": facts["numerics"]["cpu"], "cores": facts["cores"]},
        "settings": read_json(folders[0].config),
        "score": "mean return of the last 100 training episodes",
        "bar": {
            "value": bar.bar,
            "at": "most" if bar.below else "least",
            "of": "every seed" if bar.every_seed else "the mean",
            "reference": bar.reference,
        },
        "passed": _passes(bar, scores),
        "mean": float(np.mean(scores)),
        "std_over_seeds": float(np.std(scores, ddof=1)),
        "bootstrap_95_interval_of_the_mean": [float(interval.low), float(interval.high)],
        "seeds": [
            {
                "seed": summary["seed"],
                "commit": read_json(folder.provenance)["commit"],
                "return_100": summary["return_100"],
                "evaluation_deterministic": summary["evaluation_deterministic"]["mean"],
                "evaluation_stochastic": summary["evaluation_stochastic"]["mean"],
                "skipped_updates": summary["skipped_updates"],
                "parameters_sha256": summary["parameters_sha256"],
            }
            for folder, summary in zip(folders, summaries, strict=True)
        ],
    }


def _passes(bar: Task, scores: list[float]) -> bool:
    if bar.below:
        return bool(np.mean(scores) <= bar.bar)
    return bool((min(scores) if bar.every_seed else np.mean(scores)) >= bar.bar)


def main(tasks: tuple[str, ...] = tuple(TASKS), jobs: int = 2, runs: Path = Path("runs/learning")) -> None:
    """Trains the presets over several seeds and holds the returns against stated bars.

    Args:
        tasks: of those in TASKS; those whose package is not installed are left out, with a word.
        jobs: runs at once.
        runs: where the runs' folders are kept; runs found there are not repeated.
    """
    (HERE / "results").mkdir(exist_ok=True)
    packages = {task: TASKS[task].package for task in tasks}
    missing = {task: package for task, package in packages.items() if package and find_spec(package) is None}
    for task, package in missing.items():
        print(f"{task}: left out, because {package} is not installed (docs/environments.md says how)", flush=True)
    there = [task for task in tasks if task not in missing]
    with ThreadPoolExecutor(jobs) as pool:
        started = {task: [pool.submit(train, task, seed, runs) for seed in range(TASKS[task].seeds)] for task in there}
        for task, futures in started.items():
            report(task, [future.result() for future in futures])


def report(task: str, folders: list[RunFolder]) -> None:
    """Writes and prints what the runs of a task came to."""
    document = result(task, folders)
    (HERE / "results" / f"{task}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    curves = [(folder.path.name, read_metrics(folder.metrics)) for folder in folders]
    plot_curves(curves, HERE / "results" / f"{task}.png", f"{task}, {len(curves)} seeds")
    low, high = document["bootstrap_95_interval_of_the_mean"]
    verdict = "clears" if document["passed"] else "MISSES"
    print(
        f"{task:<20} {document['mean']:9,.1f} ± {document['std_over_seeds']:,.1f} over seeds, "
        f"95 % [{low:,.1f}, {high:,.1f}], lowest {min(seed['return_100'] for seed in document['seeds']):,.1f}: "
        f"{verdict} {document['bar']['value']:,.0f} for {document['bar']['of']}",
        flush=True,
    )


if __name__ == "__main__":
    tyro.cli(main)

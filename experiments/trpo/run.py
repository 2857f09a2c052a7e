"""Does TRPO learn as well as sb3-contrib's? Trains both with the same settings on three tasks over several seeds.

    python experiments/trpo/run.py                              all of it, some hours on two cores
    python experiments/trpo/run.py --tasks Hopper-v5 --seeds 5  one task

The score of a run is the mean return of its last 100 training episodes, actions sampled; afterwards each policy plays
20 episodes with sampled actions and 20 with the distributions' modes. results/<task>.json holds what the runs came to,
and results/<task>.png their curves. The peer has an environment of its own, which benchmarks/compare.py installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from scipy.stats import bootstrap

from inchworm.io.loggers import read_metrics
from inchworm.io.provenance import provenance
from inchworm.io.run_folder import RunFolder, read_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from compare import install_group  # noqa: E402  (the path is set just above)

TASKS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
TOTAL_STEPS = 1_000_000
SETTINGS: dict[str, Any] = {
    "num_envs": 1,
    "horizon": 2048,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "max_kl": 0.01,
    "cg_iters": 15,
    "cg_damping": 0.1,
    "max_backtracks": 10,
    "shrink": 0.8,
    "value_learning_rate": 1e-3,
    "num_value_epochs": 10,
    "minibatch_size": 128,
    "hidden_sizes": (64, 64),
}
"""Of both sides: sb3-contrib's defaults, by its own reading (`our_settings`)."""
OURS_ONLY = {"normalize_advantage": "batch", "normalize_observation": False, "normalize_return": False}
"""What the peer does anyway, or only with a wrapper."""
PER_ACTION_DIMENSION = ("max_kl", "cg_damping")
SCORES = ("return_100", "evaluation_deterministic", "evaluation_stochastic")
SIDES = ("inchworm", "sb3_contrib")


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    facts: dict[str, Any]
    """As results/<task>.json has them for a seed."""
    curve: list[tuple[int, float]]
    """Environment steps, and the mean return of the last 100 episodes then."""

    def score(self, name: str) -> float:
        value = self.facts[name]
        return value["mean"] if isinstance(value, dict) else value


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains TRPO and sb3-contrib's TRPO with the same settings and compares their returns."""

    tasks: tuple[str, ...] = TASKS
    """Environment ids."""
    seeds: int = 5
    """How many runs of each side; they have the seeds 0, 1, 2, ..."""
    jobs: int = 2
    """Runs at once."""
    total_steps: int = TOTAL_STEPS
    """Budget of a run; another than the usual one makes a trial, whose result goes to <task>-trial.json."""
    runs: Path = Path("runs/trpo")
    """Where the runs are kept; runs found there are not repeated."""
    results: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: experiments/trpo/results)")] = HERE / "results"
    """Folder of the JSON files and pictures."""

    @property
    def trial(self) -> str:
        """Part of the names of a trial's files."""
        return "" if self.total_steps == TOTAL_STEPS else "-trial"

    def run_name(self, seed: int) -> str:
        return f"seed{seed}" if not self.trial else f"seed{seed}-{self.total_steps}"

    def command(self, task: str) -> str:
        steps = f" --total-steps {self.total_steps}" if self.trial else ""
        return f"python experiments/trpo/run.py --tasks {task} --seeds {self.seeds}{steps}"


def our_settings(task: str) -> dict[str, Any]:
    """`SETTINGS` such that our update is the peer's.

    The peer's KL divergence of two diagonal Gaussians is averaged over the A dimensions of an action, where it is a
    sum: its bound of 0.01 lets the KL come to 0.01 A, and its damping of 0.1 acts like 0.1 A. With both multiplied by
    A, one update of either side from the same parameters on the same rollout moves them alike (`one_update.py`).
    """
    with closing(gymnasium.make(task)) as env:
        dimensions = int(np.prod(env.action_space.shape or (1,)))
    return SETTINGS | {name: SETTINGS[name] * dimensions for name in PER_ACTION_DIMENSION} | OURS_ONLY


def train_ours(task: str, seed: int, options: Options) -> Outcome:
    """One `inchworm train` in a process of its own; an earlier one of the same name is kept as it is."""
    folder = RunFolder(options.runs / task / "trpo" / options.run_name(seed))
    if not folder.curve.exists():
        command = [sys.executable, "-m", "inchworm", "train", task, "--algorithm", "trpo", "--preset", "paper"]
        command += ["--total-steps", str(options.total_steps), "--seed", str(seed)]
        command += ["--name", folder.path.name, "--out", str(options.runs), "--no-video", "--no-progress"]
        subprocess.run(command + flags(our_settings(task)), check=True, stdout=subprocess.DEVNULL)
    summary, facts = read_json(folder.summary), read_json(folder.provenance)
    evaluations = {
        name: {part: summary[name][part] for part in ("mean", "std")} for name in SCORES if name != "return_100"
    }
    return Outcome(
        {"seed": seed, "return_100": summary["return_100"]}
        | evaluations
        | {
            "env_steps": summary["env_steps"],
            "seconds": summary["seconds"],
            "skipped_updates": summary["skipped_updates"],
            "commit": facts["commit"],
            "versions": facts["versions"] | {"python": facts["python"]},
        },
        [
            (row["env_steps"], row["episode/return_100"])
            for row in read_metrics(folder.metrics)
            if row.get("episode/return_100") is not None
        ],
    )


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as options of `inchworm train`."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def train_theirs(task: str, seed: int, options: Options, peers_python: Path) -> Outcome:
    """One training by sb3-contrib in a process of its own; an earlier one of the same name is kept as it is."""
    file = options.runs / task / "sb3_contrib" / f"{options.run_name(seed)}.json"
    if not file.exists():
        command = [str(peers_python), str(HERE / "sb3_contrib_peer.py"), task, "--seed", str(seed)]
        command += ["--total-steps", str(options.total_steps), "--settings", json.dumps(SETTINGS), "--out", str(file)]
        subprocess.run(command, check=True)
    document = read_json(file)
    shown = ("seed", *SCORES, "env_steps", "seconds", "versions")
    return Outcome({name: document[name] for name in shown}, [tuple(point) for point in document["curve"]])


def result(task: str, sides: dict[str, list[Outcome]], options: Options) -> dict[str, Any]:
    """What the runs of a task came to."""
    facts = provenance()
    return {
        "task": task,
        "command": options.command(task),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpu": facts["numerics"]["cpu"], "cores": facts["cores"]},
        "settings": {"inchworm": our_settings(task), "sb3_contrib": SETTINGS},
        "total_steps": options.total_steps,
        "scores": {name: compare(*([run.score(name) for run in sides[side]] for side in SIDES)) for name in SCORES},
        "seeds": {side: [run.facts for run in runs] for side, runs in sides.items()},
    }


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Means over seeds, and by how much ours is better; intervals hold 95 % of bootstrap samples."""

    def interval(samples: tuple[list[float], ...], statistic: Any) -> list[float] | None:
        if len(ours) < 2:
            return None
        # Percentiles, because the corrected interval is undefined where all seeds score alike.
        found = bootstrap(samples, statistic, n_resamples=10_000, method="percentile", rng=0).confidence_interval
        return [float(found.low), float(found.high)]

    document: dict[str, Any] = {}
    for side, scores in zip(SIDES, (ours, theirs), strict=True):
        document[side] = {
            "mean": float(np.mean(scores)),
            "std_over_seeds": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            "bootstrap_95_interval_of_the_mean": interval((scores,), np.mean),
        }
    document["difference"] = {
        "mean": float(np.mean(ours) - np.mean(theirs)),
        "bootstrap_95_interval": interval(
            (ours, theirs), lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis)
        ),
    }
    return document


def plot(sides: dict[str, list[Outcome]], path: Path, title: str) -> None:
    """Every run's curve, thin, and the mean over the seeds of each side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for index, (side, runs) in enumerate(sides.items()):
        curves = [dict(run.curve) for run in runs]
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=f"C{index}", alpha=0.35, linewidth=0.8)
        common = sorted(set.intersection(*map(set, curves)))
        means = [np.mean([curve[steps] for curve in curves]) for steps in common]
        axes.plot(common, means, color=f"C{index}", linewidth=2.2, label=f"{side}, mean of {len(runs)} seeds")
    axes.set(title=title, xlabel="environment steps", ylabel="mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(task: str, sides: dict[str, list[Outcome]], options: Options) -> None:
    """Writes and prints what the runs of a task came to."""
    document = result(task, sides, options)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"{task}{options.trial}"
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    plot(sides, stem.with_name(f"{stem.name}.png"), f"{task}, TRPO")
    for name, score in document["scores"].items():
        ours, theirs = (f"{score[side]['mean']:,.1f} ± {score[side]['std_over_seeds'] or 0:,.1f}" for side in SIDES)
        difference = score["difference"]
        interval = difference["bootstrap_95_interval"]
        spread = "" if interval is None else f", 95 % [{interval[0]:+,.1f}, {interval[1]:+,.1f}]"
        print(f"{task:<15} {name:<25} {ours} beside {theirs}: {difference['mean']:+,.1f}{spread}", flush=True)


def main(options: Options) -> None:
    peers_python = install_group(Path(sys.executable), "torch")
    with ThreadPoolExecutor(options.jobs) as pool:
        started: dict[str, dict[str, list[Any]]] = {}
        for task in options.tasks:
            started[task] = {side: [] for side in SIDES}
            for seed in range(options.seeds):
                started[task]["inchworm"].append(pool.submit(train_ours, task, seed, options))
                started[task]["sb3_contrib"].append(pool.submit(train_theirs, task, seed, options, peers_python))
        for task, sides in started.items():
            report(task, {side: [run.result() for run in runs] for side, runs in sides.items()}, options)


if __name__ == "__main__":
    main(tyro.cli(Options))

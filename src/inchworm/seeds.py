"""The same training with several seeds at once."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

from inchworm.algorithms.settings import Settings
from inchworm.api import load, plan, train
from inchworm.checks import check_integer
from inchworm.config import RunConfig
from inchworm.envs.source import EnvSource
from inchworm.errors import ConfigError
from inchworm.io.curve import plot_group
from inchworm.io.progress import GroupProgress
from inchworm.io.run_folder import RunFolder, create_run_folder, write_json
from inchworm.models.network import CustomNetwork
from inchworm.run import Run
from inchworm.runner import OwnParts, Trainer, make_collector, train_together
from inchworm.train import Iteration
from inchworm.workers import Report, call_in_processes, cores


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ by their seeds."""

    folder: Path
    runs: list[Run]
    summary: dict[str, Any]
    """What they came to together: means and deviations over seeds."""

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Run:
        return self.runs[index]


def train_seeds(
    env: Any,
    algorithm: Settings | str | None = None,
    *,
    seeds: Sequence[int],
    total_steps: int | None = None,
    preset: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    backend: str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    stop_return: float | None = None,
    max_seconds: float | None = None,
    checkpoint_seconds: float = 60.0,
    keep_checkpoints: int = 3,
    threads: int = 1,
    evaluation_episodes: int = 20,
    progress: bool = True,
    network: CustomNetwork | None = None,
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> RunGroup:
    """Trains a policy for each of several seeds at once; each run is the one that `train` gives for its seed.

    Runs of a JAX environment are compiled into one program: on a CPU they are split between its cores and bit for bit
    those of `train`, on an accelerator they are vectorised. Others are trained in processes, one for each core.
    Beside the runs' folders a further one, `...-seeds`, holds their curves in one picture and what they came to.

    Args:
        env: as in `train`; where processes train, something that can be sent to them: an id, `module:factory`, or a
            function or class at the top level of a module.
        algorithm: as in `train`, like all that is not named here.
        seeds: of the runs.
        name: start of the folders' names; None for a time stamp.
        progress: show one line for all.

    Raises:
        InchwormError: one of its kinds; if some runs fail, the others are finished before.
    """
    seeds = [check_integer("seeds", seed, 0, 2**32 - 1) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds", seeds, "are none, or some of them twice", "Give different ones, e.g. 0 1 2.")
    check_integer("evaluation_episodes", evaluation_episodes, 0)
    own = OwnParts(network, optimizer)
    config, source = plan(
        env,
        algorithm,
        own,
        preset=preset,
        env_kwargs=env_kwargs,
        backend=backend,
        settings=settings,
        threads=threads,
        cpu_devices=min(len(cores()), len(seeds)),
        total_steps=total_steps,
        seed=seeds[0],
        stop_return=stop_return,
        max_seconds=max_seconds,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
    )
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    line = GroupProgress(len(seeds), config.total_steps) if progress else None
    # What can fail for a wrong setting comes before anything is written.
    collector = None if source.jax_env is None else make_collector(configs, source, own)
    group = create_run_folder(Path(out), config.env, config.algorithm_name, "seeds", name and f"{name}-seeds")
    names = [group.path.name.removesuffix("seeds") + f"seed{seed}" for seed in seeds]
    if collector is not None:
        folders = [create_run_folder(Path(out), config.env, config.algorithm_name, "", name) for name in names]
        observers = [None if line is None else _observer(line, index) for index in range(len(seeds))]
        trainers = [
            Trainer(one, source, collector, index, evaluation_episodes, observer, False)
            for index, (one, observer) in enumerate(zip(configs, observers, strict=True))
        ]
        runs = train_together(trainers, collector, folders)
    else:
        calls = [
            (env, env_kwargs, backend, one, str(out), name, evaluation_episodes, network, optimizer)
            for one, name in zip(configs, names, strict=True)
        ]
        runs = _in_processes(calls, source, network, line)
    return _conclude(group, config, runs)


def _observer(line: GroupProgress, index: int) -> Any:
    def tell(report: Iteration) -> None:
        line.tell(index, report.env_steps, report.metrics.get("episode/return_100", math.nan))

    return tell


def _in_processes(
    calls: Sequence[tuple[Any, ...]], source: EnvSource, network: CustomNetwork | None, line: GroupProgress | None
) -> list[Run]:
    if source.vector is not None:
        raise ConfigError(
            "env",
            source.name,
            "is one vector environment, where each seed needs its own",
            "Give a function at the top level of a module that makes one.",
        )

    def watch(reports: np.ndarray) -> None:
        if line is not None:
            for index in np.flatnonzero(~np.isnan(reports[:, 0])).tolist():
                line.tell(index, *reports[index].tolist())

    results = call_in_processes(_train_one, calls, watch)
    runs = [dataclasses.replace(load(path, network=network), source=source) for path in results if type(path) is str]
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(failures, key=lambda failure: isinstance(failure, CancelledError)):
        raise KeyboardInterrupt if isinstance(failure, CancelledError) else failure
    return runs


def _train_one(
    env: Any,
    env_kwargs: dict[str, Any] | None,
    backend: str | None,
    config: RunConfig,
    out: str,
    name: str,
    evaluation_episodes: int,
    network: CustomNetwork | None,
    optimizer: optax.GradientTransformation | None,
    report: Report,
) -> str:
    """In a process of its own; returns the run's folder."""

    def tell(iteration: Iteration) -> None:
        report(iteration.env_steps, iteration.metrics.get("episode/return_100", math.nan))

    run = train(
        env,
        config.algorithm,
        total_steps=config.total_steps,
        seed=config.seed,
        env_kwargs=env_kwargs,
        backend=backend,
        out=out,
        name=name,
        stop_return=config.stop_return,
        max_seconds=config.max_seconds,
        checkpoint_seconds=config.checkpoint_seconds,
        keep_checkpoints=config.keep_checkpoints,
        threads=config.threads,
        evaluation_episodes=evaluation_episodes,
        on_iteration=tell,
        progress=False,
        network=network,
        optimizer=optimizer,
    )
    return str(run.folder)


def _conclude(group: RunFolder, config: RunConfig, runs: list[Run]) -> RunGroup:
    """What the runs came to together: a picture, and means with deviations over seeds."""
    scores = {
        "return_100": [run.summary["return_100"] for run in runs],
        **{
            kind: [run.summary[kind]["mean"] for run in runs]
            for kind in ("evaluation_deterministic", "evaluation_stochastic")
            if all(kind in run.summary for run in runs)
        },
    }
    summary: dict[str, Any] = {
        "env": config.env,
        "algorithm": config.algorithm_name,
        "seeds": [run.config.seed for run in runs],
        "runs": [run.folder.name for run in runs],
    }
    for kind, values in scores.items():
        if all(value is not None for value in values):
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            summary[kind] = {"mean": float(np.mean(values)), "std_over_seeds": deviation}
    write_json(group.summary, summary)
    title = f"{config.env}, {type(config.algorithm).__name__}, {len(runs)} seeds"
    plot_group([run.metrics() for run in runs], group.curve, title)
    return RunGroup(group.path, runs, summary)

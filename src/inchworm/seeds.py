"""The same training with several seeds at once."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax
from gymnasium.vector import VectorEnv

from inchworm.algorithms.settings import Settings
from inchworm.api import load
from inchworm.build import OwnParts, make_collector
from inchworm.checks import check_flag, check_integer, check_path
from inchworm.config import RunConfig
from inchworm.envs.source import EnvSource, env_reference
from inchworm.errors import ConfigError, InchwormError, WorkerError
from inchworm.io.curve import plot_group
from inchworm.io.progress import GroupProgress, say
from inchworm.io.run_folder import RunFolder, check_name, check_new, create_run_folder, free_stamp, write_json
from inchworm.io.words import as_html, final_return, group_scores, short
from inchworm.loop import Iteration, Observer
from inchworm.models.network import CustomNetwork
from inchworm.planning import plan
from inchworm.run import Run
from inchworm.runner import Trainer, device_name, headline, train_together, what_is_left
from inchworm.warning import warn
from inchworm.workers import check_outside, cores, reference, run_workers


@dataclass(frozen=True, repr=False)
class RunGroup:
    """Runs that differ by their seeds."""

    folder: Path
    runs: list[Run]
    summary: dict[str, Any]
    """What they came to together: means and deviations over seeds."""

    def __repr__(self) -> str:
        return f"RunGroup({str(self.folder)!r}, {', '.join(f'{name} {text}' for name, text in self._scores().items())})"

    def _repr_html_(self) -> str:
        """What a notebook shows: scores and curves."""
        title = f"{self.summary['env']}, {self.summary['algorithm']}, {len(self)} seeds"
        return as_html(title, self._scores() | {"folder": str(self.folder)}, RunFolder(self.folder).curve)

    def _scores(self) -> dict[str, str]:
        each = {f"seed {run.config.seed}": final_return(run.summary) for run in self}
        return each | group_scores(self.summary)

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
    if "on_iteration" in settings:
        problem = "is not heard where several seeds are trained, some in other processes"
        raise ConfigError("on_iteration", settings["on_iteration"], problem, "Train seed by seed, with iw.train.")
    if not isinstance(seeds, Iterable):
        raise ConfigError("seeds", seeds, "is no list of seeds", "Give several, e.g. range(3).")
    seeds = [check_integer("seeds", seed, 0, 2**32 - 1) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds", seeds, "are none, or some of them twice", "Give different ones, e.g. 0 1 2.")
    check_integer("evaluation_episodes", evaluation_episodes, 0)
    check_flag("progress", progress)
    out = check_path("out", out)
    check_name(name)
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
        runs=len(seeds),
        total_steps=total_steps,
        seed=seeds[0],
        stop_return=stop_return,
        max_seconds=max_seconds,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
    )
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    # What can fail for a wrong setting comes before anything is written.
    of_env = (out, config.env, config.algorithm_name)
    endings = ["seeds", *(f"seed{seed}" for seed in seeds)]
    stem = free_stamp(*of_env, endings) if name is None else name
    group_name, *names = [f"{stem}-{ending}" for ending in endings]
    check_new(*of_env, [group_name, *names])
    with contextlib.ExitStack() as stack:
        collector, calls = None, []
        if source.jax_env is not None:
            collector = stack.enter_context(contextlib.closing(make_collector(configs, source, own)))
        else:
            whole = {"evaluation_episodes": evaluation_episodes, "backend": backend, "out": str(out)}
            calls = [whole | call for call in _calls(env, source, own, configs, names)]
        group = create_run_folder(*of_env, "", group_name)
        stack.callback(_remove_without_runs, group, names)
        about = {"env": config.env, "algorithm": config.algorithm_name, "seeds": seeds, "runs": names}
        write_json(group.summary, about)  # by which the folder is known for what it is from now on
        if progress:
            numbers = ", ".join(map(str, seeds))
            say(f"{headline(config)}, seeds {numbers}, on {device_name()}\n{short(group.path)}")
        # As many processes at a time as there are cores, so that the last begin when the first are over.
        rounds = 1 if collector is not None else -(-len(seeds) // len(cores()))
        seconds = None if config.max_seconds is None else rounds * config.max_seconds
        line = GroupProgress(len(seeds), config.total_steps, seconds, progress)
        stack.callback(line.close)
        line.note("compiling")
        if collector is not None:
            folders = [create_run_folder(*of_env, "", one) for one in names]
            trainers = [
                Trainer(one, source, collector, index, evaluation_episodes, [_observer(line, index)], False, line.note)
                for index, one in enumerate(configs)
            ]
            results = train_together(trainers, collector, folders)
        else:
            results = [
                _named(answer, group.path.with_name(call["name"]), config, source)
                if isinstance(answer, InchwormError)
                else dataclasses.replace(load(answer, network=network), source=source)
                for answer, call in zip(
                    run_workers("inchworm.seed_process", calls, line.tell, line.note), calls, strict=True
                )
            ]
    runs = [result for result in results if isinstance(result, Run)]
    failures = [result for result in results if isinstance(result, InchwormError)]
    for failure in failures[1:]:
        warn(f"Another run failed too: {failure}")
    if not runs:
        raise failures[0]
    together = _conclude(group, config, runs)
    if failures:
        raise failures[0]
    return together


def _remove_without_runs(group: RunFolder, names: Sequence[str]) -> None:
    """Removes the folder of several seeds again where none of them came to anything, so that its name is free."""
    if not any(group.path.with_name(name).exists() for name in names):
        group.summary.unlink(missing_ok=True)
        group.path.rmdir()


def _observer(line: GroupProgress, index: int) -> Observer:
    def tell(report: Iteration) -> None:
        line.tell(index, report.env_steps, report.metrics.get("episode/return_recent"))

    return tell


def _calls(
    env: Any, source: EnvSource, own: OwnParts, configs: Sequence[RunConfig], names: Sequence[str]
) -> list[dict[str, Any]]:
    """What processes are told that train a seed each.

    Raises:
        ConfigError: something cannot be told.
    """
    check_outside("seeds")
    if isinstance(env, VectorEnv):
        raise ConfigError(
            "env",
            repr(env),
            "is one vector environment, where each seed needs its own",
            "Give a function at the top level of a module that makes one.",
        )
    if own.optimizer is not None:
        raise ConfigError(
            "optimizer",
            own.optimizer,
            "cannot be sent to the processes that train the seeds",
            "Train seed by seed, or in a JAX environment, whose seeds are trained in this process.",
        )
    if source.vector is not None:
        source.vector().close()  # each process makes one of its own
    whole = {"env": env_reference(env), "network": reference("network", own.network)}
    return [whole | {"config": one.to_json(), "name": name} for one, name in zip(configs, names, strict=True)]


def _named(error: InchwormError, folder: Path, config: RunConfig, source: EnvSource) -> InchwormError:
    """An error with what becomes of the run, where a process died."""
    return WorkerError(f"{error} {what_is_left(folder, config, source)}") if type(error) is WorkerError else error


def _conclude(group: RunFolder, config: RunConfig, runs: list[Run]) -> RunGroup:
    """What the runs came to together: a picture, and means with deviations over seeds; of those that did."""
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

"""Trains runs in their folders: watches them, writes what they come to."""

import contextlib
import json
import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from inchworm import spaces
from inchworm.algorithms.state import TrainState
from inchworm.build import OwnParts, make_collector
from inchworm.collect.collector import Collector
from inchworm.config import RunConfig
from inchworm.envs.source import EnvSource
from inchworm.errors import CheckpointError, EnvironmentContractError, InchwormError, TrainingError, WorkerError
from inchworm.io import checkpoint as checkpoints
from inchworm.io.checkpoint import Checkpoint
from inchworm.io.curve import plot_curves
from inchworm.io.loggers import JsonLines, TensorBoard
from inchworm.io.policy_file import save_policy
from inchworm.io.progress import ProgressLine
from inchworm.io.provenance import differing_numerics, provenance
from inchworm.io.run_folder import RunFolder, create_run_folder, read_json, write_json
from inchworm.loop import Iteration, LiveRun, Observer, Progress, train_loop
from inchworm.models.policy import Policy
from inchworm.numerics.tree import fingerprint, from_arrays, to_arrays
from inchworm.run import Run
from inchworm.signals import leave, told_to_stop


class Trainer:
    """One run in its folder: watches it while it is trained, and writes the results."""

    def __init__(
        self,
        config: RunConfig,
        source: EnvSource,
        collector: Collector,
        index: int,
        evaluation_episodes: int,
        on_iteration: Observer | None,
        show_progress: bool,
    ) -> None:
        """Takes the run of that index among the collector's."""
        self.config, self.source, self.collector, self.index = config, source, collector, index
        self.evaluation_episodes, self.on_iteration = evaluation_episodes, on_iteration
        self.show_progress = show_progress
        self.progress = Progress()
        self.best: tuple[int, float] | None = None
        self.save_failure: CheckpointError | None = None

    def start(
        self, stack: contextlib.ExitStack, folder: RunFolder, checkpoint: Checkpoint | None, parent: Path | None
    ) -> LiveRun:
        """Begins the run in a folder, from nothing or from a checkpoint."""
        self.folder = folder
        stack.enter_context(folder.lock())
        if checkpoint is None:
            write_json(self.folder.provenance, provenance() | {"resumed": []})
        else:
            self._take_up(checkpoint, parent)
        write_json(self.folder.config, self.config.to_json())
        return LiveRun(self.config, self.progress, self._observers(stack), self._save)

    def finish(self, run: LiveRun) -> Run:
        """Writes what the run came to.

        Raises:
            TrainingError: it could not go on.
            CheckpointError: its last checkpoint could not be written.
        """
        if run.failure is not None:
            raise type(run.failure)(f"{run.failure} {what_is_left(self.folder.path)}") from run.failure
        assert run.reason is not None
        state = self.collector.state(self.index)
        policy = Policy(state.model, state.obs_stats, self.config.algorithm, self.config.seed, self._policy_info())
        save_policy(self.folder.policy, policy)
        summary = self._summary(state, run.reason)
        write_json(self.folder.summary, summary)
        if self.save_failure is not None:
            raise self.save_failure
        return Run(self.folder.path, self.config, policy, summary, self.source)

    def evaluate(self, run: Run) -> None:
        """Adds returns in environments apart from training to the summary, and draws the curve.

        What keeps the policy from being evaluated is warned of: the run itself is good.
        """
        if self.evaluation_episodes and self.source.factory is None:
            warnings.warn(
                "The run was not evaluated, because a vector environment cannot play its episodes. Call "
                "run.evaluate(env=...), or `inchworm evaluate --env module:factory`, with what makes one environment.",
                stacklevel=5,
            )
        elif self.evaluation_episodes:
            try:
                for kind, deterministic in (("deterministic", True), ("stochastic", False)):
                    result = run.evaluate(episodes=self.evaluation_episodes, deterministic=deterministic)
                    run.summary[f"evaluation_{kind}"] = result.summary()
            except InchwormError as error:
                warnings.warn(f"The run's evaluation was broken off: {error}", stacklevel=5)
            write_json(self.folder.summary, run.summary)
        title = f"{self.config.env}, {type(self.config.algorithm).__name__}, seed {self.config.seed}"
        plot_curves([("", run.metrics())], self.folder.curve, title)

    def _take_up(self, checkpoint: Checkpoint, parent: Path | None) -> None:
        """State, environments and progress of a checkpoint."""
        template = jax.eval_shape(partial(self.collector.state, self.index))
        state = from_arrays(template, checkpoint.state)
        problems = self.collector.restore(
            self.index, state, checkpoint.collector_arrays, checkpoint.collector.get("collector", {})
        )
        try:
            remembered = dict(checkpoint.collector["progress"])
            self.progress.iteration = int(remembered["iteration"])
            self.progress.seconds = float(remembered["seconds"])
            self.progress.episodes = int(remembered["episodes"])
            self.progress.returns.extend(float(value) for value in remembered["returns"])
            self.progress.lengths.extend(float(value) for value in remembered["lengths"])
            best = checkpoint.collector["best"]
            self.best = None if best is None or parent is not None else (int(best[0]), float(best[1]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                "collector.json", repr(error), "does not hold a run's progress", "Resume from another checkpoint."
            ) from error
        now = provenance()
        try:
            then = read_json((self.folder if parent is None else RunFolder(parent)).provenance)
            problems += differing_numerics(then, now)
        except CheckpointError as error:
            then = {}
            problems.append(f"what the run ran on before is not known ({str(error).rstrip('.')})")
        if parent is not None:
            problems.append("the budget is another, and schedules follow it")
        for problem in problems:
            warnings.warn(f"This resume is not exact: {problem}.", stacklevel=4)
        event = {"iteration": self.progress.iteration, "exact": not problems, "because": problems, **now}
        document = then if parent is None else now | {"parent": str(parent), "resumed": []}
        document["resumed"] = [*document.get("resumed", []), event]
        write_json(self.folder.provenance, document)

    def _observers(self, stack: contextlib.ExitStack) -> list[Observer]:
        """What is told of each iteration: the metrics file, TensorBoard, the progress line, the user."""
        start = self.progress.iteration
        lines = JsonLines(self.folder.metrics, start)
        board = TensorBoard(self.folder.tensorboard, start * self.config.algorithm.steps_per_iteration)
        stack.callback(lines.close)
        stack.callback(board.close)

        def to_metrics_file(report: Iteration) -> None:
            head = {"iteration": report.iteration, "env_steps": report.env_steps, "seconds": round(report.seconds, 4)}
            lines.write(head | report.metrics)

        def to_tensorboard(report: Iteration) -> None:
            board.write(report.env_steps, report.metrics)

        observers: list[Observer] = [to_metrics_file, to_tensorboard]
        if self.show_progress:
            line = ProgressLine()

            def to_progress_line(report: Iteration) -> None:
                final = report.env_steps >= report.total_steps
                line.update(
                    report.env_steps,
                    report.total_steps,
                    report.seconds,
                    report.metrics.get("episode/return_100"),
                    final,
                )

            observers.append(to_progress_line)
        if self.on_iteration is not None:
            observers.append(self.on_iteration)
        return observers

    def _save(self, state: TrainState, progress: Progress) -> None:
        """Writes a checkpoint; where that fails, training goes on and the next one may succeed."""
        arrays, document = self.collector.snapshot(self.index)
        mean_return = progress.mean_return
        best = self.best
        if mean_return is not None and math.isfinite(mean_return) and (best is None or mean_return > best[1]):
            best = (progress.iteration, mean_return)
        remembered = {
            "iteration": progress.iteration,
            "seconds": progress.seconds,
            "episodes": progress.episodes,
            "returns": list(progress.returns),
            "lengths": list(progress.lengths),
        }
        try:
            checkpoints.save_checkpoint(
                self.folder.checkpoints,
                Checkpoint(
                    iteration=progress.iteration,
                    env_steps=progress.iteration * self.config.algorithm.steps_per_iteration,
                    state=to_arrays(state),
                    collector_arrays=arrays,
                    collector={"collector": document, "progress": remembered, "best": best},
                    meta={
                        "env": self.config.env,
                        "algorithm": self.config.algorithm_name,
                        "return_100": mean_return,
                        "decided_by": decisive(self.config),
                        **spaces.spec_to_json(self.source.spec),
                    },
                ),
            )
            self.best, self.save_failure = best, None
            kept = None if best is None else self.folder.checkpoints / f"{best[0]:06d}"
            checkpoints.prune_checkpoints(self.folder.checkpoints, self.config.keep_checkpoints, kept)
        except CheckpointError as error:
            self.save_failure = error
            warnings.warn(f"No checkpoint was written, training goes on: {error}", stacklevel=3)

    def _policy_info(self) -> dict[str, Any]:
        facts = provenance()
        return {
            "env": self.config.env,
            "algorithm": self.config.algorithm_name,
            "seed": self.config.seed,
            "env_steps": self.progress.iteration * self.config.algorithm.steps_per_iteration,
            "versions": facts["versions"],
        }

    def _summary(self, state: TrainState, reason: str) -> dict[str, Any]:
        return {
            "env": self.config.env,
            "algorithm": self.config.algorithm_name,
            "seed": self.config.seed,
            "stopped_by": reason,
            "iterations": self.progress.iteration,
            "env_steps": self.progress.iteration * self.config.algorithm.steps_per_iteration,
            "gradient_steps": self.progress.iteration * self.config.algorithm.gradient_steps_per_iteration,
            "skipped_updates": int(state.skipped),
            "episodes": self.progress.episodes,
            "return_100": self.progress.mean_return,
            "seconds": self.progress.seconds,
            "parameters_sha256": fingerprint(state.model),
        }


def train_alone(
    config: RunConfig,
    source: EnvSource,
    own: OwnParts,
    *,
    out: Path,
    name: str | None,
    evaluation_episodes: int,
    on_iteration: Observer | None,
    progress: bool,
) -> Run:
    """A whole run in a folder of its own below `out`.

    Raises:
        InchwormError: one of its kinds; what can fail for a wrong setting does so before anything is written.
        KeyboardInterrupt: Ctrl-C, after everything was saved.
        SystemExit: SIGTERM likewise.
    """
    with contextlib.closing(make_collector([config], source, own)) as collector:
        trainer = Trainer(config, source, collector, 0, evaluation_episodes, on_iteration, progress)
        folder = create_run_folder(out, config.env, config.algorithm_name, f"seed{config.seed}", name)
        (run,) = train_together([trainer], collector, [folder])
    return finished(run)


def train_together(
    trainers: Sequence[Trainer],
    collector: Collector,
    folders: Sequence[RunFolder],
    checkpoint: Checkpoint | None = None,
    parent: Path | None = None,
) -> list[Run | InchwormError]:
    """Whole runs side by side, from nothing, or one from a checkpoint.

    Returns:
        Each run, or why it could not go on or be saved.

    Raises:
        KeyboardInterrupt: Ctrl-C, after everything was saved.
        SystemExit: SIGTERM likewise.
    """
    results: list[Run | InchwormError] = []
    with contextlib.ExitStack() as stack:
        places = zip(trainers, folders, strict=True)
        lives = [trainer.start(stack, folder, checkpoint, parent) for trainer, folder in places]
        with told_to_stop() as interrupted:
            try:
                train_loop(lives, collector, interrupted)
            except (EnvironmentContractError, WorkerError) as error:
                left = " ".join(what_is_left(folder.path) for folder in folders)
                if isinstance(error, WorkerError):
                    raise WorkerError(f"{error} {left}") from error
                raise error.with_fix(f"{error.fix} {left}") from error
            for trainer, live in zip(trainers, lives, strict=True):
                try:
                    results.append(trainer.finish(live))
                except (TrainingError, CheckpointError) as error:
                    results.append(error)
        for live in lives:
            if live.interruption is not None:
                raise live.interruption
        runs = [result for result in results if isinstance(result, Run)]
        if stopped := [run for run in runs if run.summary["stopped_by"].startswith("SIG")]:
            _leave(stopped, [result for result in results if isinstance(result, InchwormError)])
        for trainer, result in zip(trainers, results, strict=True):
            if isinstance(result, Run):
                trainer.evaluate(result)
    return results


def what_is_left(folder: Path) -> str:
    """A sentence on how a run that failed can go on."""
    if checkpoints.list_checkpoints(RunFolder(folder).checkpoints):
        return f"`inchworm resume {folder}` goes on from its last checkpoint."
    return f"The run in {folder} left no checkpoint."


def finished(result: Run | InchwormError) -> Run:
    """The run, or its error raised."""
    if isinstance(result, InchwormError):
        raise result
    return result


def decisive(config: RunConfig) -> dict[str, Any]:
    """What of a configuration a checkpoint cannot do without: other values would make it another run's."""
    document = json.loads(json.dumps(config.to_json()))
    return {name: document[name] for name in ("env", "env_kwargs", "algorithm", "total_steps", "seed")} | {
        f"settings.{name}": value for name, value in document["settings"].items()
    }


def _leave(runs: Sequence[Run], failures: Sequence[InchwormError]) -> None:
    """Ends the program as the signal asked, now that everything is saved."""
    for failure in failures:
        print(f"One run had failed before: {failure}")
    reason = runs[0].summary["stopped_by"]
    print(f"Stopped by {reason}; everything is saved. Continue with:")
    for run in runs:
        print(f"  {_call_to_resume(run)}")
    leave(reason)


def _call_to_resume(run: Run) -> str:
    folder, config = run.folder, run.config
    again = ["env"] * (not config.env_by_id) + list(config.own_parts)
    if again:
        return f"iw.resume({str(folder)!r}, {', '.join(f'{part}=...' for part in again)}) in Python"
    return f"inchworm resume {folder}" + (f" --env {config.env}" if ":" in config.env else "")

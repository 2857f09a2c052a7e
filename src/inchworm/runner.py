"""Trains runs in their folders: watches them, writes what they come to."""

import contextlib
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
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
from inchworm.errors import CheckpointError, EnvironmentContractError, InchwormError, RunFolderError, WorkerError
from inchworm.io import checkpoint as checkpoints
from inchworm.io.checkpoint import Checkpoint
from inchworm.io.curve import plot_curves
from inchworm.io.loggers import JsonLines, TensorBoard, numbers_of
from inchworm.io.policy_file import save_policy
from inchworm.io.progress import ProgressLine, say
from inchworm.io.provenance import differing_numerics, provenance
from inchworm.io.run_folder import RunFolder, create_run_folder, read_json, write_json, writing
from inchworm.io.words import count, short
from inchworm.loop import Ended, Iteration, LiveRun, Observer, Progress, train_loop
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.models.policy import Policy
from inchworm.numerics.tree import fingerprint, from_arrays, to_arrays
from inchworm.run import Run, evaluate_until, given_again
from inchworm.signals import GivenUpError, acknowledge, leave, told_to_stop
from inchworm.warning import warn


class Trainer:
    """One run in its folder: watches it while it is trained, and writes the results."""

    def __init__(
        self,
        config: RunConfig,
        source: EnvSource,
        collector: Collector,
        index: int,
        evaluation_episodes: int,
        callbacks: Sequence[Observer],
        show_progress: bool,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Takes the run of that index among the collector's; `note` is told what goes on where no line is shown."""
        self.config, self.source, self.collector, self.index = config, source, collector, index
        self.evaluation_episodes, self.callbacks = evaluation_episodes, callbacks
        self.show_progress, self.note = show_progress, note
        self.progress = Progress()
        self.best: tuple[int, float] | None = None
        self.save_failure: CheckpointError | None = None

    def start(
        self, stack: contextlib.ExitStack, folder: RunFolder, checkpoint: Checkpoint | None, parent: Path | None
    ) -> LiveRun:
        """Begins the run in a folder, from nothing or from a checkpoint."""
        self.folder = folder
        stack.enter_context(folder.lock())
        with writing(folder.path):
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
            CheckpointError, RunFolderError: its last checkpoint or what it came to could not be written.
        """
        if run.failure is not None:
            raise type(run.failure)(
                f"{run.failure} {what_is_left(self.folder.path, self.config, self.source)}"
            ) from run.failure
        assert run.reason is not None
        if not self.folder.config.exists():
            fix = "Leave the folder of a run where it is until the run has ended."
            raise RunFolderError("run", str(self.folder.path), "was removed or moved while it was trained", fix)
        state = self.collector.state(self.index)
        policy = policy_of(self.config, state.model, state.obs_stats, self._env_steps)
        save_policy(self.folder.policy, policy)
        summary = self._summary(state, run.reason)
        with writing(self.folder.path):
            write_json(self.folder.summary, summary)
        if summary["skipped_updates"]:
            warn(
                f"{summary['skipped_updates']} of {summary['iterations']} updates met NaN or infinity in rewards, "
                "observations, gradients or parameters and were dropped. Look at the environment with `inchworm check`."
            )
        if self.save_failure is not None:
            raise self.save_failure
        return Run(self.folder.path, self.config, policy, summary, self.source)

    def conclude(self, run: Run, interrupted: Callable[[], str | None]) -> None:
        """Adds returns in environments apart from training to the summary, and draws the curve.

        What keeps it from either is warned of: the run itself is good.
        """
        if self.evaluation_episodes and self.source.factory is None:
            warn(
                "The run was not evaluated, because a vector environment cannot play its episodes. Call "
                "run.evaluate(env=...), or `inchworm evaluate --env module:factory`, with what makes one environment."
            )
        elif self.evaluation_episodes and interrupted() is None:
            with _forgiven("The run's evaluation was broken off"):
                self._evaluate(run, interrupted)
        title = f"{self.config.env}, {type(self.config.algorithm).__name__}, seed {self.config.seed}"
        with _forgiven("The run's curve was not drawn"):
            plot_curves([("", run.metrics())], self.folder.curve, title)
        run.summary["complete"] = True
        with _forgiven("The run's summary was not written"):
            write_json(self.folder.summary, run.summary)

    def _evaluate(self, run: Run, interrupted: Callable[[], str | None]) -> None:
        """Both evaluations, each until a signal comes or half of the time that they may take is over."""
        seconds = evaluation_seconds(self.config, self.progress.seconds) / 2
        for kind, deterministic in (("deterministic", True), ("stochastic", False)):
            ends: list[float] = []

            def over(episodes: int, kind: str = kind, ends: list[float] = ends) -> bool:
                self.note(f"{kind} evaluation: {episodes} of {count(self.evaluation_episodes, 'episode')}")
                # From the first step on, because what is compiled for it says nothing about the rest.
                now, end = time.monotonic(), *(ends or [time.monotonic() + seconds])
                ends[:] = [end]
                return interrupted() is not None or now >= end

            result = evaluate_until(run, over, episodes=self.evaluation_episodes, deterministic=deterministic)
            if result.returns:
                run.summary[f"evaluation_{kind}"] = result.summary() | {"asked": self.evaluation_episodes}
            if interrupted() is not None:
                return
            if len(result.returns) < self.evaluation_episodes and not result.unfinished:
                call = command("evaluate", self.folder.path, self.config, self.source)
                warn(
                    f"The {kind} evaluation was ended after {seconds:,.0f} seconds, at {len(result.returns)} of "
                    f"{count(self.evaluation_episodes, 'episode')}; `{call}` has no such limit."
                )

    def _take_up(self, checkpoint: Checkpoint, parent: Path | None) -> None:
        """State, environments and progress of a checkpoint."""
        template = jax.eval_shape(partial(self.collector.state, self.index))
        state = from_arrays(template, checkpoint.state)
        problems = self.collector.restore(
            self.index, state, checkpoint.collector_arrays, checkpoint.collector.get("collector", {})
        )
        try:
            remembered = dict(checkpoint.collector["progress"])
            recent = remembered.get("recent", [])
            self.progress.iteration = int(remembered["iteration"])
            self.progress.seconds = float(remembered["seconds"])
            self.progress.episodes = int(remembered["episodes"])
            self.progress.returns.extend(float(value) for value in remembered["returns"])
            self.progress.lengths.extend(float(value) for value in remembered["lengths"])
            self.progress.recent.extend(Ended(int(at), int(episodes), float(total)) for at, episodes, total in recent)
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
        before = checkpoint.meta.get("decided_by", {})
        if before.get("total_steps", self.config.total_steps) != self.config.total_steps:
            problems.append("the budget is another, and schedules follow it")
        if parent is not None and before.get("env", self.config.env) != self.config.env:
            problems.append(f"the environment was {before['env']} and is {self.config.env}")
        for problem in problems:
            warn(f"This resume is not exact: {problem}.")
        event = {"iteration": self.progress.iteration, "exact": not problems, "because": problems, **now}
        document = then if parent is None else now | {"parent": str(parent.resolve()), "resumed": []}
        document["resumed"] = [*document.get("resumed", []), event]
        write_json(self.folder.provenance, document)

    def _observers(self, stack: contextlib.ExitStack) -> list[Observer]:
        """What is told of each iteration: the user, then the metrics file, TensorBoard and the progress line."""
        start = self.progress.iteration
        lines = JsonLines(self.folder.metrics, start)
        stack.callback(lines.close)
        board = TensorBoard(self.folder.path, start * self.config.algorithm.steps_per_iteration, self.config.to_json())
        stack.callback(board.close)
        told: set[str] = set()

        def to_metrics_file(report: Iteration) -> None:
            row = {"iteration": report.iteration, "env_steps": report.env_steps, "seconds": round(report.seconds, 4)}
            lines.write(row | numbers_of(report.metrics, row.keys(), told))

        def to_tensorboard(report: Iteration) -> None:
            board.write(report.env_steps, numbers_of(report.metrics, (), told))

        observers: list[Observer] = [*self.callbacks, to_metrics_file, to_tensorboard]
        if self.show_progress:
            config = self.config
            say(f"{headline(config)}, seed {config.seed}, on {device_name(config.devices)}\n{short(self.folder.path)}")
            line = ProgressLine(self.config.total_steps, self.config.max_seconds, self.progress.seconds)
            stack.callback(line.close)
            line.note("compiling")
            self.note = line.note

            def to_progress_line(report: Iteration) -> None:
                line.update(report.env_steps, report.seconds, report.metrics.get("episode/return_recent"))

            observers.append(to_progress_line)
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
            "recent": list(progress.recent),
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
            warn(f"No checkpoint was written, training goes on: {error}")

    @property
    def _env_steps(self) -> int:
        return self.progress.iteration * self.config.algorithm.steps_per_iteration

    def _summary(self, state: TrainState, reason: str) -> dict[str, Any]:
        return {
            "env": self.config.env,
            "algorithm": self.config.algorithm_name,
            "seed": self.config.seed,
            "stopped_by": reason,
            "iterations": self.progress.iteration,
            "env_steps": self._env_steps,
            "gradient_steps": self.progress.iteration * self.config.algorithm.gradient_steps_per_iteration,
            "skipped_updates": int(state.skipped),
            "episodes": self.progress.episodes,
            "return_100": self.progress.mean_return,
            "return_over": len(self.progress.returns),
            "seconds": self.progress.seconds,
            "parameters_sha256": fingerprint(state.model),
            "complete": False,
        }


def train_alone(
    config: RunConfig,
    source: EnvSource,
    own: OwnParts,
    *,
    out: Path,
    name: str | None,
    evaluation_episodes: int,
    callbacks: Sequence[Observer],
    progress: bool,
    note: Callable[[str], None] = lambda text: None,
) -> Run:
    """A whole run in a folder of its own below `out`.

    Raises:
        InchwormError: one of its kinds; what can fail for a wrong setting does so before anything is written.
        KeyboardInterrupt: Ctrl-C, after everything was saved.
        SystemExit: SIGTERM likewise.
    """
    with contextlib.closing(make_collector([config], source, own)) as collector:
        trainer = Trainer(config, source, collector, 0, evaluation_episodes, callbacks, progress, note)
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
        with told_to_stop(acknowledge) as interrupted:
            try:
                train_loop(lives, collector, interrupted)
            except (EnvironmentContractError, WorkerError) as error:
                left = " ".join(what_is_left(one.folder.path, one.config, one.source) for one in trainers)
                if isinstance(error, WorkerError):
                    raise WorkerError(f"{error} {left}") from error
                raise error.with_fix(f"{error.fix} {left}") from error
            for trainer, live in zip(trainers, lives, strict=True):
                try:
                    results.append(trainer.finish(live))
                except InchwormError as error:
                    results.append(error)
            # Before evaluation opens environments: of some there can be only one at a time.
            with contextlib.suppress(GivenUpError):
                collector.close()
            for live in lives:
                if live.interruption is not None:
                    raise live.interruption
            with contextlib.suppress(GivenUpError):
                for trainer, result in zip(trainers, results, strict=True):
                    if isinstance(result, Run) and not result.summary["stopped_by"].startswith("SIG"):
                        trainer.conclude(result, interrupted)
    if reason := interrupted():
        _leave(reason, results)
    return results


def evaluation_seconds(config: RunConfig, trained: float) -> float:
    """How long the evaluations at the end may take: a tenth of the time of training, or a minute if that is more.

    Where `max_seconds` bounds training, it is a tenth of that, or ten seconds.
    """
    return max(trained / 10, 60.0) if config.max_seconds is None else max(config.max_seconds / 10, 10.0)


@contextlib.contextmanager
def _forgiven(what: str) -> Iterator[None]:
    """Warns of an error that what has been trained must not be lost for."""
    try:
        yield
    except Exception as error:
        warn(f"{what}: {error if isinstance(error, InchwormError) else f'{type(error).__name__}: {error}'}")


def headline(config: RunConfig) -> str:
    """One line that says what is about to be trained."""
    settings = "settings of your own" if config.preset is None else f"preset {config.preset}"
    return f"{type(config.algorithm).__name__} on {config.env}, {settings}, {config.total_steps:,} steps"


def device_name(count: int = 1) -> str:
    """What JAX computes on."""
    device = jax.devices()[0]
    name = "CPU" if device.platform == "cpu" else device.device_kind
    return name if count == 1 else f"{count} x {name}"


def policy_of(config: RunConfig, model: Model, obs_stats: ObsStats, env_steps: int) -> Policy:
    """A run's policy after so many steps."""
    info = {
        "env": config.env,
        "algorithm": config.algorithm_name,
        "seed": config.seed,
        "env_steps": env_steps,
        "versions": provenance()["versions"],
    }
    return Policy(model, obs_stats, config.algorithm, config.seed, info)


def what_is_left(folder: Path, config: RunConfig, source: EnvSource) -> str:
    """A sentence on how a run that failed can go on."""
    if checkpoints.list_checkpoints(RunFolder(folder).checkpoints):
        return f"`{command('resume', folder, config, source)}` goes on from its last checkpoint."
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


def _leave(reason: str, results: Sequence[Run | InchwormError]) -> None:
    """Ends the program as the signal asked, now that everything is saved."""
    for failure in results:
        if isinstance(failure, InchwormError):
            print(f"One run had failed before: {failure}")
    print(f"Stopped by {reason}; everything is saved.")
    for run in results:
        if isinstance(run, Run):
            assert run.source is not None
            steps, total = run.summary["env_steps"], run.config.total_steps
            if run.summary["stopped_by"] == reason:
                print(f"After {steps:,} of {total:,} steps. Continue with:")
                print(f"  {command('resume', run.folder, run.config, run.source)}")
            else:
                print(f"The run itself is over, after {steps:,} steps. Play whole episodes with:")
                print(f"  {command('evaluate', run.folder, run.config, run.source)}")
    leave(reason)


def command(verb: str, folder: Path, config: RunConfig, source: EnvSource) -> str:
    """What to type to resume or evaluate a run: a command, or a call where code of the user's own is needed again.

    What is needed again is as the user has given it to this process, in `source`; the configuration may be read from a
    file, which must not have a word in what users are told to type.
    """
    again = ["env"] * (not config.env_by_id) + list(config.own_parts)
    if again and verb == "resume":
        return f"iw.resume({str(folder)!r}, {', '.join(f'{part}=...' for part in again)})"
    if again:
        network = ", network=..." if "network" in again else ""
        return f"iw.load({str(folder)!r}{network}).{verb}({'' if config.env_by_id else 'env=...'})"
    return shlex.join(["inchworm", verb, short(folder), *given_again(source.name, source.kwargs)])

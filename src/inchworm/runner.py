"""Trains runs in their folders: builds the parts, watches them, writes the results."""

import contextlib
import json
import math
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import optax

from inchworm.algorithms import iteration, policy_gradient, ppo, trpo
from inchworm.algorithms.policy_gradient import PolicyGradient
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.settings import Settings
from inchworm.algorithms.state import Algorithm, TrainState
from inchworm.algorithms.trpo import TRPO
from inchworm.checks import check_hashable
from inchworm.collect import graph
from inchworm.collect.collector import Collector, TurnCollector
from inchworm.collect.graph import GraphCollector, Programs, StackedCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.pool import PoolRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.config import RunConfig
from inchworm.envs.jax_env import JaxEnv
from inchworm.envs.source import EnvSource
from inchworm.envs.traced import Copies
from inchworm.errors import CheckpointError, ConfigError, TrainingError
from inchworm.io import checkpoint as checkpoints
from inchworm.io.checkpoint import Checkpoint
from inchworm.io.curve import plot_curves
from inchworm.io.loggers import JsonLines, TensorBoard
from inchworm.io.policy_file import save_policy
from inchworm.io.progress import ProgressLine
from inchworm.io.provenance import differing_numerics, provenance
from inchworm.io.run_folder import RunFolder, read_json, write_json
from inchworm.models.network import CustomNetwork
from inchworm.models.policy import Policy
from inchworm.numerics.tree import fingerprint, from_arrays, to_arrays
from inchworm.run import Run
from inchworm.spaces import EnvSpec
from inchworm.train import Iteration, LiveRun, Observer, Progress, train_loop

MAX_STEPS_PER_CALL = 2**18
"""Of a compiled call of several iterations, which keeps a few numbers for each step."""


@dataclass(frozen=True)
class OwnParts:
    """Code of the user's own that takes part in a run."""

    network: CustomNetwork | None = None
    optimizer: optax.GradientTransformation | None = None

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("network", callable, "a function of a random key and the observation space"),
            ("optimizer", lambda value: isinstance(value, optax.GradientTransformation), "an optax chain"),
        ):
            value = getattr(self, name)
            check_hashable(name, value)
            if value is not None and not fits(value):
                raise ConfigError(name, value, f"is not {what}", f"Give {what}, or leave it out.")

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in ("network", "optimizer") if getattr(self, name) is not None)

    def check_given_again(self, config: RunConfig) -> None:
        """Raises `ConfigError` unless just those parts are here that the run was started with."""
        for name in ("network", "optimizer"):
            before, now = name in config.own_parts, getattr(self, name) is not None
            if before != now:
                problem = "is code of your own, which is not stored with a run" if before else "was not part of the run"
                fix = f"Give it again in Python: iw.resume(folder, {name}=...)." if before else "Leave it out."
                raise ConfigError(name, getattr(self, name), problem, fix)


def make_algorithm(config: Settings, spec: EnvSpec, total_steps: int, own: OwnParts | None = None) -> Algorithm:
    """The algorithm that settings stand for."""
    own = own or OwnParts()
    parts = (spec, total_steps, own.network, own.optimizer)
    match config:
        case PPO():
            return ppo.make(config, *parts)
        case TRPO():
            return trpo.make(config, *parts)
        case PolicyGradient():
            return policy_gradient.make(config, *parts)
    raise AssertionError(config)


@dataclass(frozen=True)
class _Compiled:
    """The compiled functions of a run; runs of one process that differ by their seeds share them."""

    init: Any
    iterate: Any
    programs: Programs | None
    """With a JAX environment: environments and learner together."""


@lru_cache(maxsize=16)
def _compiled(
    config: Settings, spec: EnvSpec, total_steps: int, own: OwnParts, jax_env: JaxEnv | None, stacked: bool = False
) -> _Compiled:
    algorithm = make_algorithm(config, spec, total_steps, own)
    iterate = iteration.make_iteration(algorithm, spec, config, total_steps)
    programs = None
    if jax_env is not None:
        envs, shape = Copies(jax_env), (config.horizon, config.num_envs)
        advance = make_advance(make_rollout(envs, config.squash), iterate, shape, config.continuation)
        iterations = -(-total_steps // config.steps_per_iteration)
        capacity = max(1, min(iterations, MAX_STEPS_PER_CALL // config.steps_per_iteration))
        programs = make_programs(algorithm.init, envs, advance, capacity, stacked)
    return _Compiled(jax.jit(algorithm.init), jax.jit(iterate), programs)


def make_collector(configs: Sequence[RunConfig], source: EnvSource, own: OwnParts) -> Collector:
    """What trains a run, or with a JAX environment several that differ by their seeds.

    Raises:
        EnvironmentContractError: the environments do not keep their interface's promises.
        ConfigError: they do not fit the settings.
    """
    config = configs[0]
    algorithm = config.algorithm
    stacked = len(configs) > 1 and jax.default_backend() != "cpu"
    compiled = _compiled(algorithm, source.spec, config.total_steps, own, source.jax_env, stacked)
    devices = _devices(config.devices)
    if compiled.programs is not None:
        seeds = [one.seed for one in configs]
        if stacked:
            return StackedCollector(compiled.programs, seeds, algorithm.num_envs)
        if len(devices) > 1:
            programs = graph.on_devices(compiled.programs, devices, algorithm.num_envs)
            return GraphCollector(programs, seeds, algorithm.num_envs, devices[:1])
        return GraphCollector(compiled.programs, seeds, algorithm.num_envs, jax.devices()[: len(seeds)])
    shape = (algorithm.horizon, algorithm.num_envs)
    if source.traced is not None:
        rollouts = PoolRollouts(partial(source.traced, algorithm.num_envs, config.seed), shape, algorithm.squash)
    else:
        pool = source.make_pool(algorithm.num_envs, config.seed)
        rollouts = HostRollouts(pool, algorithm.horizon, algorithm.squash)
    state = compiled.init(jax.random.key(config.seed))
    iterate = compiled.iterate
    if len(devices) > 1:
        iterate = iteration.on_devices(iterate, devices, algorithm.num_envs)
    return TurnCollector(rollouts, state, iterate, algorithm.continuation)


def _devices(count: int) -> list[Any]:
    """The first devices of JAX's default kind.

    Raises:
        ConfigError: there are fewer.
    """
    there = jax.devices()
    if count > len(there):
        fix = "Take fewer."
        if jax.default_backend() == "cpu":
            fix = f"Take fewer, or set JAX_NUM_CPU_DEVICES={count} before JAX is first used, to simulate them on a CPU."
        raise ConfigError("devices", count, f"is more than JAX sees here, {len(there)} of {jax.default_backend()}", fix)
    return there[:count]


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
            newest = checkpoints.list_checkpoints(self.folder.checkpoints)[-1:]
            where = f"Last good checkpoint: {newest[0]}." if newest else "There was no checkpoint yet."
            raise type(run.failure)(f"{run.failure} {where}") from run.failure
        if self.save_failure is not None:
            raise self.save_failure
        assert run.reason is not None
        state = self.collector.state(self.index)
        policy = Policy(state.model, state.obs_stats, self.config.algorithm, self.config.seed, self._policy_info())
        save_policy(self.folder.policy, policy)
        summary = self._summary(state, run.reason)
        write_json(self.folder.summary, summary)
        return Run(self.folder.path, self.config, policy, summary, self.source)

    def evaluate(self, run: Run) -> None:
        """Adds returns in environments apart from training to the summary, and draws the curve."""
        if self.evaluation_episodes and self.source.factory is not None:
            for kind, deterministic in (("deterministic", True), ("stochastic", False)):
                result = run.evaluate(episodes=self.evaluation_episodes, deterministic=deterministic)
                run.summary[f"evaluation_{kind}"] = result.summary()
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


def train_together(
    trainers: Sequence[Trainer],
    collector: Collector,
    folders: Sequence[RunFolder],
    checkpoint: Checkpoint | None = None,
    parent: Path | None = None,
) -> list[Run]:
    """Whole runs side by side, from nothing, or one from a checkpoint.

    Raises:
        TrainingError: one could not go on; the others are finished before.
        CheckpointError: the last checkpoint of one could not be written.
        KeyboardInterrupt: Ctrl-C, after everything was saved.
        SystemExit: SIGTERM likewise.
    """
    runs, failures = [], []
    with contextlib.ExitStack() as stack:
        stack.callback(collector.close)
        places = zip(trainers, folders, strict=True)
        lives = [trainer.start(stack, folder, checkpoint, parent) for trainer, folder in places]
        with _signals() as interrupted:
            train_loop(lives, collector, interrupted)
            for trainer, live in zip(trainers, lives, strict=True):
                try:
                    runs.append((trainer, trainer.finish(live)))
                except (TrainingError, CheckpointError) as error:
                    failures.append(error)
        if stopped := [run for _, run in runs if run.summary["stopped_by"].startswith("SIG")]:
            _leave(stopped)
        for trainer, run in runs:
            trainer.evaluate(run)
    for failure in failures:
        raise failure
    return [run for _, run in runs]


def decisive(config: RunConfig) -> dict[str, Any]:
    """What of a configuration a checkpoint cannot do without: other values would make it another run's."""
    document = json.loads(json.dumps(config.to_json()))
    return {name: document[name] for name in ("env", "env_kwargs", "algorithm", "total_steps", "seed")} | {
        f"settings.{name}": value for name, value in document["settings"].items()
    }


@contextlib.contextmanager
def _signals() -> Iterator[Any]:
    """Turns the first SIGTERM, SIGHUP or Ctrl-C into a reason to stop; a second Ctrl-C interrupts at once."""
    caught: list[str] = []

    def note(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(runs: Sequence[Run]) -> None:
    """Ends the program as the signal asked, now that everything is saved."""
    reason = runs[0].summary["stopped_by"]
    print(f"Stopped by {reason}; everything is saved. Continue with:")
    for run in runs:
        print(f"  {_call_to_resume(run)}")
    if reason == "SIGINT":
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.Signals[reason])


def _call_to_resume(run: Run) -> str:
    folder, config = run.folder, run.config
    again = ["env"] * (not config.env_by_id) + list(config.own_parts)
    if again:
        return f"iw.resume({str(folder)!r}, {', '.join(f'{part}=...' for part in again)}) in Python"
    return f"inchworm resume {folder}" + (f" --env {config.env}" if ":" in config.env else "")

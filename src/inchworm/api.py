"""Train, resume, load: the only module that knows all parts."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import optax

from inchworm.algorithms import policy_gradient, ppo, trpo
from inchworm.algorithms.iteration import make_iteration
from inchworm.algorithms.policy_gradient import PolicyGradient
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.settings import Settings
from inchworm.algorithms.state import Algorithm, TrainState
from inchworm.algorithms.trpo import TRPO
from inchworm.checks import check_choice, check_hashable, check_integer, check_output
from inchworm.collect.collector import Collector, TurnCollector
from inchworm.collect.evaluate import Evaluation, evaluate
from inchworm.collect.graph import GraphCollector, Programs, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.record import render_episode
from inchworm.collect.rollout import make_rollout
from inchworm.config import ALGORITHMS, PRESETS, RunConfig, check_known, preset_for
from inchworm.envs.gymnasium import EnvFactory, make_factory
from inchworm.envs.jax_env import JaxEnv
from inchworm.envs.source import EnvSource, env_source
from inchworm.envs.traced import Copies
from inchworm.errors import CheckpointError, ConfigError
from inchworm.io import checkpoint as checkpoints
from inchworm.io.checkpoint import Checkpoint
from inchworm.io.curve import plot_curves
from inchworm.io.loggers import JsonLines, TensorBoard, read_metrics
from inchworm.io.policy_file import load_policy, save_policy
from inchworm.io.progress import ProgressLine
from inchworm.io.provenance import differing_numerics, provenance
from inchworm.io.run_folder import RunFolder, create_run_folder, open_run_folder, read_json, write_json
from inchworm.io.video import write_video
from inchworm.models.network import CustomNetwork
from inchworm.models.policy import Policy
from inchworm.numerics.tree import fingerprint, from_arrays, to_arrays
from inchworm.spaces import EnvSpec
from inchworm.train import Iteration, LiveRun, Observer, Progress, train_loop

MAX_STEPS_PER_CALL = 2**18
"""Of a compiled call of several iterations, which keeps a few numbers for each step."""


@dataclass(frozen=True)
class Run:
    """A finished or stopped run."""

    folder: Path
    config: RunConfig
    policy: Policy
    summary: dict[str, Any]
    """What the run came to: steps, return of the last 100 episodes, evaluations, why it stopped, parameters' hash."""
    source: EnvSource | None = dataclasses.field(default=None, repr=False)
    """Where its environments came from; None if the run was loaded."""

    def evaluate(
        self, *, episodes: int = 20, deterministic: bool = True, seed: int | None = None, env: Any = None
    ) -> Evaluation:
        """Returns of whole episodes in environments apart from training.

        `env` is needed where the run was loaded and its environment is code of your own.
        """
        check_integer("episodes", episodes, 1)
        seed = self.config.seed if seed is None else check_integer("seed", seed, 0, 2**32 - 1)
        factory = _factory_of(self.environments(env))
        return evaluate(self.policy, factory, episodes=episodes, deterministic=deterministic, seed=seed)

    def environments(self, env: Any = None) -> EnvSource:
        """Where environments like the run's come from: what is given, or what it was trained in."""
        return self.source if env is None and self.source is not None else _source_of(self.config, env)

    def metrics(self) -> list[dict[str, Any]]:
        """One row an iteration, as in metrics.jsonl."""
        return read_metrics(RunFolder(self.folder).metrics)


def train(
    env: Any,
    algorithm: Settings | str | None = None,
    *,
    total_steps: int | None = None,
    seed: int = 0,
    preset: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    stop_return: float | None = None,
    max_seconds: float | None = None,
    checkpoint_seconds: float = 60.0,
    keep_checkpoints: int = 3,
    threads: int = 1,
    evaluation_episodes: int = 20,
    on_iteration: Observer | None = None,
    progress: bool = True,
    network: CustomNetwork | None = None,
    optimizer: optax.GradientTransformation | None = None,
    **settings: Any,
) -> Run:
    """Trains a policy.

    Args:
        env: a Gymnasium id, `module:factory`, a class, a function that makes an environment, a vector environment, or
            a JAX environment.
        algorithm: its settings, taken as they are, as `iw.PPO(clip_range=0.1)`; or its name, as "trpo", to get the
            preset's settings; None for the preset's PPO.
        total_steps: budget in environment steps; None for the preset's.
        seed: of parameters, noise, shuffles and environments.
        preset: one of `PRESETS`; None for the one that fits the environment.
        env_kwargs: keyword arguments of the environment.
        out: folder below which the run's own is made.
        name: of the run's folder; None for a time stamp and the seed.
        stop_return: stop once the last 100 episodes' mean return reaches this.
        max_seconds: stop after this much wall-clock time.
        checkpoint_seconds: interval between checkpoints; one is always written at the end.
        keep_checkpoints: how many of the newest stay, beside the best.
        threads: of XLA's CPU backend; takes effect if nothing was computed with JAX before.
        evaluation_episodes: episodes of each of the two evaluations at the end; 0 for none.
        on_iteration: called with an `Iteration` after each; returning True stops the run.
        progress: show a line that tells how training goes.
        network: makes a network of your own, in place of what encodes observations: a function of a random key and
            the observation space that returns a pytree, which is called with a batch of normalised observations and
            returns features (batch, F). It is code, and not stored with the run.
        optimizer: an optax chain without a learning rate, in place of Adam and gradient clipping. Not stored either.
        settings: of the algorithm, in place of the preset's.

    Raises:
        InchwormError: one of its kinds, see `inchworm.errors`; each names the value at fault.
        KeyboardInterrupt: Ctrl-C, after the last checkpoint is written.
        SystemExit: SIGTERM, with code 143, after the last checkpoint is written.
    """
    check_integer("evaluation_episodes", evaluation_episodes, 0)
    configure_jax(check_integer("threads", threads, 1))
    source = env_source(env, env_kwargs)
    check_hashable("env", source.jax_env)
    chosen = PRESETS[check_choice("preset", preset, PRESETS)] if preset else PRESETS[preset_name(source)]
    if isinstance(algorithm, Settings) and (settings or preset):
        raise ConfigError(
            "algorithm",
            repr(algorithm),
            "is given together with a preset or single settings",
            "Give either settings inside it, or settings and a preset without it.",
        )
    if not isinstance(algorithm, Settings):
        defaults = chosen.settings(check_choice("algorithm", algorithm or "ppo", ALGORITHMS))
        if source.num_envs is not None:
            settings.setdefault("num_envs", source.num_envs)
        check_known("settings", settings, type(defaults))
        algorithm = dataclasses.replace(defaults, **settings)
    config = RunConfig(
        env=source.name,
        env_kwargs=source.kwargs if source.by_id else {},
        env_by_id=source.by_id,
        algorithm=algorithm,
        total_steps=chosen.total_steps if total_steps is None else total_steps,
        seed=seed,
        stop_return=stop_return,
        max_seconds=max_seconds,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
        threads=threads,
    )
    own = _OwnParts(network, optimizer)
    config = dataclasses.replace(config, own_parts=own.names())
    # What can fail for a wrong environment or setting comes before anything is written.
    collector = _make_collector(config, source, own)
    trainer = _Trainer(config, source, collector, 0, evaluation_episodes, on_iteration, progress)
    folder = create_run_folder(Path(out), config.env, config.algorithm_name, seed, name)
    return _run(trainer, collector, folder)


def resume(
    path: str | Path,
    env: Any = None,
    *,
    total_steps: int | None = None,
    evaluation_episodes: int = 20,
    on_iteration: Observer | None = None,
    progress: bool = True,
    network: CustomNetwork | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Run:
    """Goes on with a stopped run from its newest good checkpoint.

    The result is bit for bit that of the run that was never stopped, or a warning says what keeps it from being so
    and `provenance.json` records it.

    Args:
        path: the run's folder.
        env: the environment again, where the run was started with a function or class.
        total_steps: a larger budget makes a new run beside the old one, which names its parent.
        evaluation_episodes: as in `train`.
        on_iteration: as in `train`.
        progress: as in `train`.
        network: again, where the run was started with one.
        optimizer: again, where the run was started with one.

    Raises:
        InchwormError: one of its kinds, see `inchworm.errors`.
    """
    folder = open_run_folder(Path(path))
    config = RunConfig.from_json(read_json(folder.config))
    configure_jax(config.threads)
    _, checkpoint = checkpoints.load_newest(folder.checkpoints, _warn_of_damage)
    _check_unedited(config, checkpoint)
    source = _source_of(config, env)
    if total_steps is not None and total_steps != config.total_steps:
        check_integer("total_steps", total_steps, checkpoint.env_steps + 1)
        config = dataclasses.replace(config, total_steps=total_steps)
        parent, folder = folder, None
    elif checkpoint.env_steps >= config.total_steps:
        raise ConfigError(
            "run", str(path), f"has finished its {config.total_steps} steps", "Give a larger --total-steps to go on."
        )
    else:
        parent = None
    own = _OwnParts(network, optimizer)
    own.check_given_again(config)
    collector = _make_collector(config, source, own)
    trainer = _Trainer(config, source, collector, 0, evaluation_episodes, on_iteration, progress)
    if folder is None:
        folder = create_run_folder(
            Path(path).resolve().parents[2], config.env, config.algorithm_name, config.seed, None
        )
    return _run(trainer, collector, folder, checkpoint, None if parent is None else parent.path)


def load(path: str | Path, *, network: CustomNetwork | None = None) -> Run:
    """A run with its policy, to evaluate or to act; `network` again, where the run was started with one.

    Raises:
        RunFolderError: there is no run.
        CheckpointError: its files are damaged.
    """
    folder = open_run_folder(Path(path))
    config = RunConfig.from_json(read_json(folder.config))
    configure_jax(config.threads)
    policy = load_policy(folder.policy, network)
    summary: dict[str, Any] = {}
    if folder.summary.exists():
        try:
            summary = read_json(folder.summary)
        except CheckpointError as error:
            warnings.warn(f"The run is loaded without its summary: {error}", stacklevel=2)
    return Run(folder.path, config, policy, summary)


def record(run: Run, *, out: str | Path | None = None, seed: int = 0, env: Any = None) -> tuple[Path, int, float]:
    """Writes a video of the policy's first 300 steps in an episode.

    Returns:
        The video's path, its number of frames, and the return up to the last of them.

    Raises:
        MissingDependencyError: there is no renderer or no video writer.
    """
    check_integer("seed", seed, 0, 2**32 - 1)
    path = Path(out) if out is not None else RunFolder(run.folder).video
    check_output("out", path, (".mp4",))
    source = run.environments(env)
    if source.by_id:
        factory = make_factory(source.name, source.kwargs | {"render_mode": "rgb_array"})
    else:
        factory = _factory_of(source)
    frames, total, fps = render_episode(run.policy, factory, seed=seed)
    write_video(frames, path, fps)
    return path, len(frames), total


def configure_jax(threads: int = 1) -> None:
    """Settings of JAX that small networks on a CPU need; they act only before its first computation.

    Dispatch in the calling thread, because handing each small call to another costs 30 to 70 us; a fixed number of
    threads, because XLA's results depend on it; and a cache of compiled programs.
    """
    os.environ.setdefault("NPROC", str(threads))
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache_home / "inchworm" / f"jax-{jax.__version__}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def preset_name(source: EnvSource) -> str:
    """The preset an environment gets when none is named."""
    return preset_for(source.name, source.entry_point, source.spec.action_space)


@dataclass(frozen=True)
class _OwnParts:
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


def _make_algorithm(config: Settings, spec: EnvSpec, total_steps: int, own: _OwnParts) -> Algorithm:
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
def _compiled(config: Settings, spec: EnvSpec, total_steps: int, own: _OwnParts, jax_env: JaxEnv | None) -> _Compiled:
    algorithm = _make_algorithm(config, spec, total_steps, own)
    iterate = make_iteration(algorithm, spec, config, total_steps)
    programs = None
    if jax_env is not None:
        envs, shape = Copies(jax_env), (config.horizon, config.num_envs)
        advance = make_advance(make_rollout(envs, config.squash), iterate, shape, config.tail_gamma)
        iterations = -(-total_steps // config.steps_per_iteration)
        capacity = max(1, min(iterations, MAX_STEPS_PER_CALL // config.steps_per_iteration))
        programs = make_programs(algorithm.init, envs, advance, capacity, None)
    return _Compiled(jax.jit(algorithm.init), jax.jit(iterate), programs)


def _make_collector(config: RunConfig, source: EnvSource, own: _OwnParts) -> Collector:
    algorithm = config.algorithm
    compiled = _compiled(algorithm, source.spec, config.total_steps, own, source.jax_env)
    if compiled.programs is not None:
        return GraphCollector(compiled.programs, [config.seed], algorithm.num_envs)
    pool = source.make_pool(algorithm.num_envs, config.seed)
    rollouts = HostRollouts(pool, algorithm.horizon, algorithm.squash)
    state = compiled.init(jax.random.key(config.seed))
    return TurnCollector(rollouts, state, compiled.iterate, algorithm.tail_gamma)


def _run(
    trainer: "_Trainer",
    collector: Collector,
    folder: RunFolder,
    checkpoint: Checkpoint | None = None,
    parent: Path | None = None,
) -> Run:
    """The whole run, from nothing or from a checkpoint."""
    with contextlib.ExitStack() as stack:
        stack.callback(collector.close)
        live = trainer.start(stack, folder, checkpoint, parent)
        with _signals() as interrupted:
            train_loop([live], collector, interrupted)
            run = trainer.finish(live)
        if run.summary["stopped_by"].startswith("SIG"):
            _leave(run)
        trainer.evaluate(run)
    return run


class _Trainer:
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
                        "decided_by": _decisive(self.config),
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


def _decisive(config: RunConfig) -> dict[str, Any]:
    """What of a configuration a checkpoint cannot do without: other values would make it another run's."""
    document = json.loads(json.dumps(config.to_json()))
    return {name: document[name] for name in ("env", "env_kwargs", "algorithm", "total_steps", "seed")} | {
        f"settings.{name}": value for name, value in document["settings"].items()
    }


def _check_unedited(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raises `ConfigError` if `config.json` says other things than when the checkpoint was written."""
    then, now = checkpoint.meta.get("decided_by"), _decisive(config)
    for name, value in now.items():
        if then is not None and then.get(name, value) != value:
            raise ConfigError(
                name,
                value,
                f"is in config.json, but the checkpoint was made with {then[name]!r}",
                "Put it back to go on with this run, or start a new one with `inchworm train`.",
            )


def _source_of(config: RunConfig, env: Any) -> EnvSource:
    """The environment of a run: by its id, or as the user gives it again."""
    if env is not None:
        return env_source(env, config.env_kwargs)
    if config.env_by_id and ":" not in config.env:
        return env_source(config.env, config.env_kwargs)
    # Importing a module because a file names it would be running what a file says.
    raise ConfigError(
        "env",
        config.env,
        "is code of your own, which is not stored with a run",
        "Give it again: env=... in Python, --env module:factory on the command line.",
    )


def _factory_of(source: EnvSource) -> EnvFactory:
    if source.factory is None:
        raise ConfigError(
            "env",
            source.name,
            "is a vector environment, where a single one is needed",
            "Give env= a function that makes one.",
        )
    return source.factory


def _warn_of_damage(path: Path, error: CheckpointError) -> None:
    warnings.warn(f"The checkpoint {path.name} is passed over, an older one is used: {error}", stacklevel=4)


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


def _leave(run: Run) -> None:
    """Ends the program as the signal asked, now that everything is saved."""
    folder, config, reason = run.folder, run.config, run.summary["stopped_by"]
    again = ["env"] * (not config.env_by_id) + list(config.own_parts)
    if again:
        call = f"iw.resume({str(folder)!r}, {', '.join(f'{part}=...' for part in again)}) in Python"
    else:
        call = f"inchworm resume {folder}" + (f" --env {config.env}" if ":" in config.env else "")
    print(f"Stopped by {reason}; everything is saved. Continue with: {call}")
    if reason == "SIGINT":
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.Signals[reason])

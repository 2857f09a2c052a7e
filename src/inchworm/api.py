"""Train, resume, load: what the command line and Python call."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optax

from inchworm import spaces
from inchworm.algorithms.settings import Settings
from inchworm.build import OwnParts, make_collector
from inchworm.checks import check_choice, check_flag, check_integer, check_path
from inchworm.config import RunConfig
from inchworm.errors import CheckpointError, ConfigError
from inchworm.io import checkpoint as checkpoints
from inchworm.io.checkpoint import Checkpoint
from inchworm.io.policy_file import load_policy, policy_template
from inchworm.io.run_folder import RunFolder, create_run_folder, open_run_folder, out_of, read_json, read_summary
from inchworm.loop import RETURNS, Observer, has_reached_return
from inchworm.models.network import CustomNetwork
from inchworm.models.policy import Policy
from inchworm.numerics.tree import from_arrays
from inchworm.planning import configure_jax, plan, start_jax
from inchworm.run import Run, check_fits, source_of
from inchworm.runner import Trainer, decisive, finished, policy_of, train_alone, train_together
from inchworm.spaces import EnvSpec
from inchworm.warning import warn
from inchworm.workers import check_outside

WHICH = ("last", "best")
"""Of a run's checkpoints."""


def train(
    env: Any,
    algorithm: Settings | str | None = None,
    *,
    total_steps: int | None = None,
    seed: int = 0,
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
    devices: int = 1,
    env_processes: int = 1,
    evaluation_episodes: int = 20,
    on_iteration: Observer | Sequence[Observer] | None = None,
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
        backend: whose environments an id stands for: "gymnasium", "envpool", "ale", "jax" (classic control of this
            library), "gymnax", "brax" or "playground"; None for ALE's if it is an Atari game, else for Gymnasium's.
        out: folder below which the run's own is made.
        name: of the run's folder; None for a time stamp and the seed.
        stop_return: stop once the last 100 episodes' mean return reaches this.
        max_seconds: stop after this much wall-clock time.
        checkpoint_seconds: interval between checkpoints; one is always written at the end.
        keep_checkpoints: how many of the newest stay, beside the best.
        threads: of XLA's CPU backend; takes effect if nothing was computed with JAX before.
        devices: accelerators that share the environments and every minibatch; on a CPU they are simulated.
        env_processes: processes that share the stepping of Gymnasium's environments, this one included. Results are
            the same with any number. They pay where cores are free and several environments take longer to step than
            about 0.1 ms together.
        evaluation_episodes: episodes of each of the two evaluations at the end; 0 for none. A vector environment gets
            none: call `run.evaluate(env=...)` with a function that makes one environment.
        on_iteration: called with an `Iteration` after each, or several such functions; returning True stops the run.
            What one adds to the iteration's metrics is logged. One that raises is warned of, and called again.
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
    out, callbacks = check_path("out", out), _callbacks(on_iteration)
    check_flag("progress", progress)
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
        devices=devices,
        env_processes=env_processes,
        total_steps=total_steps,
        seed=seed,
        stop_return=stop_return,
        max_seconds=max_seconds,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
    )
    check_integer("evaluation_episodes", evaluation_episodes, 0)
    return train_alone(
        config,
        source,
        own,
        out=out,
        name=name,
        evaluation_episodes=evaluation_episodes,
        callbacks=callbacks,
        progress=progress,
    )


def resume(
    path: str | Path,
    env: Any = None,
    *,
    env_kwargs: dict[str, Any] | None = None,
    total_steps: int | None = None,
    which: str = "last",
    evaluation_episodes: int = 20,
    on_iteration: Observer | Sequence[Observer] | None = None,
    progress: bool = True,
    network: CustomNetwork | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Run:
    """Goes on with a stopped run from its newest good checkpoint.

    The result is bit for bit that of the run that was never stopped, or a warning says what keeps it from being so
    and `provenance.json` records it.

    Args:
        path: the run's folder.
        env: the environment again, where the run was started with a function or class; with a larger budget it may be
            another one of the same spaces.
        env_kwargs: its keyword arguments again, where those of the run may name files or modules.
        total_steps: a larger budget makes a new run, which names the old one as its parent, where that was made, or
            beside its folder if that was moved.
        which: "last", or "best" to make a new run that goes on from the checkpoint with the highest mean return.
        evaluation_episodes: as in `train`.
        on_iteration: as in `train`.
        progress: as in `train`.
        network: again, where the run was started with one.
        optimizer: again, where the run was started with one.

    Raises:
        InchwormError: one of its kinds, see `inchworm.errors`.
    """
    path = check_path("path", path)
    check_flag("progress", progress)
    check_integer("evaluation_episodes", evaluation_episodes, 0)
    folder = open_run_folder(path)
    config = RunConfig.from_json(read_json(folder.config))
    if config.env_processes > 1:
        check_outside("env_processes")
    configure_jax(config.threads, config.devices)
    checkpoint = _checkpoint(folder, which)
    _check_unedited(config, checkpoint)
    _check_return(config, checkpoint)
    source = source_of(config, env, env_kwargs)
    start_jax()
    check_fits(source, _spaces_of(checkpoint))
    longer, parent = total_steps not in (None, config.total_steps), None
    out = out_of(path, config.env, config.algorithm_name)
    if longer:
        total_steps = check_integer("total_steps", total_steps, 1)
        if total_steps <= checkpoint.env_steps:
            problem = f"is no more than the {checkpoint.env_steps:,} steps that are done"
            raise ConfigError("total_steps", total_steps, problem, "Give a larger number.")
        config = dataclasses.replace(config, total_steps=total_steps)
    elif checkpoint.env_steps >= config.total_steps and (folder.is_complete(checkpoint.env_steps) or which == "best"):
        raise ConfigError(
            "run",
            str(path),
            f"has finished its {config.total_steps:,} steps",
            "To go on, give a larger total_steps (--total-steps).",
        )
    if longer or which == "best":
        parent, folder = folder, None
        config = dataclasses.replace(
            config, env=source.name, env_kwargs=source.kwargs, env_by_id=source.by_id, backend=source.backend
        )
    else:
        before = {"env": config.env} if config.env_by_id else {}
        before |= {"env_kwargs": config.env_kwargs} if env_kwargs is not None else {}
        now = {"env": source.name, "env_kwargs": source.kwargs}
        for field in before:
            if now[field] != before[field]:
                raise ConfigError(
                    field,
                    now[field],
                    f"is not what the run was trained in, {before[field]}",
                    "Leave it out; with a larger total_steps it makes a new run.",
                )
    own, callbacks = OwnParts(network, optimizer), _callbacks(on_iteration)
    own.check_given_again(config)
    with contextlib.closing(make_collector([config], source, own)) as collector:
        trainer = Trainer(config, source, collector, 0, evaluation_episodes, callbacks, progress)
        if folder is None:
            folder = create_run_folder(out, config.env, config.algorithm_name, f"seed{config.seed}", None)
        before = None if parent is None else parent.path
        (run,) = train_together([trainer], collector, [folder], checkpoint, before)
    return finished(run)


def load(path: str | Path, *, which: str = "last", network: CustomNetwork | None = None) -> Run:
    """A run with its policy, to evaluate or to act.

    Args:
        path: the run's folder.
        which: "last" for the policy that the run ended with, or that of its newest checkpoint where it has not ended
            yet; "best" for that of the checkpoint with the highest mean return of 100 episodes.
        network: again, where the run was started with one.

    Raises:
        RunFolderError: there is no run.
        CheckpointError: its files are damaged, or it has no best checkpoint yet.
    """
    folder = open_run_folder(check_path("path", path))
    config = RunConfig.from_json(read_json(folder.config))
    configure_jax(config.threads)
    check_choice("which", which, WHICH)
    policy = None
    if which == "last" and folder.policy.is_dir():
        policy = load_policy(folder.policy, network=network)
    if policy is None or _steps_of_newest(folder, config) > policy.info.get("env_steps", 0):
        checkpoint = _checkpoint(folder, which)
        about = {"which": which, "env_steps": checkpoint.env_steps, "stopped_by": which}
        if which == "last":
            warn(f"The run has not ended: this is the policy of its newest checkpoint, {checkpoint.env_steps:,} steps.")
            about = {"env_steps": checkpoint.env_steps}
        return Run(folder.path, config, _policy_in(checkpoint, config, network), about)
    summary: dict[str, Any] = {}
    if folder.summary.exists():
        try:
            summary = read_summary(folder.summary)
        except CheckpointError as error:
            warn(f"The run is loaded without its summary: {error}")
    return Run(folder.path, config, policy, summary)


def _check_unedited(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raises `ConfigError` if `config.json` says other things than when the checkpoint was written."""
    then, now = checkpoint.meta.get("decided_by"), decisive(config)
    for name, value in now.items():
        if then is not None and then.get(name, value) != value:
            raise ConfigError(
                name,
                value,
                f"is in config.json, but the checkpoint was made with {then[name]!r}",
                "Put it back to go on with this run, or start a new one with `inchworm train`.",
            )


def _check_return(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Raises `ConfigError` if the run has the return at which it was to stop, so that it would stop at once."""
    try:
        returns = [float(value) for value in checkpoint.collector["progress"]["returns"]]
    except (KeyError, TypeError, ValueError):
        return  # what is wrong with it is told where it is taken up
    if has_reached_return(config, returns):
        raise ConfigError(
            "stop_return",
            config.stop_return,
            f"has been reached: the mean of the last {RETURNS} returns is {fmean(returns):,.1f}",
            "To go on, write another, or null, into the run's config.json.",
        )


def _spaces_of(checkpoint: Checkpoint) -> EnvSpec:
    """What the policy of a checkpoint was trained for."""
    try:
        return spaces.spec_from_json(checkpoint.meta)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "manifest.json", repr(error), "does not say which spaces it is for", "Resume from another checkpoint."
        ) from error


def _checkpoint(folder: RunFolder, which: str) -> Checkpoint:
    """A run's newest checkpoint that is whole, or its best.

    Raises:
        CheckpointError: there is none.
    """
    check_choice("which", which, WHICH)
    _, newest = checkpoints.load_newest(folder.checkpoints, _warn_of_damage)
    if which == "last":
        return newest
    best = newest.collector.get("best")
    if not isinstance(best, list) or len(best) != 2 or type(best[0]) is not int:
        raise CheckpointError("which", which, "is not known: no episode had ended", 'Take "last".')
    return checkpoints.load_checkpoint(folder.checkpoints / f"{best[0]:06d}")


def _steps_of_newest(folder: RunFolder, config: RunConfig) -> int:
    """Environment steps of the newest checkpoint, by its name; 0 without any."""
    names = [path.name for path in checkpoints.list_checkpoints(folder.checkpoints)]
    return int(names[-1]) * config.algorithm.steps_per_iteration if names else 0


def _policy_in(checkpoint: Checkpoint, config: RunConfig, network: CustomNetwork | None) -> Policy:
    """The policy that a checkpoint holds beside what only training needs.

    Raises:
        ConfigError: it has a network of the user's own, which is not given.
        CheckpointError: it does not fit the run's settings.
    """
    settings = config.algorithm
    OwnParts(network).check_given_again(dataclasses.replace(config, own_parts=set(config.own_parts) & {"network"}))
    template = policy_template(_spaces_of(checkpoint), settings, settings.normalize_observation, network)
    arrays = {name: array for name, array in checkpoint.state.items() if name.partition(".")[0] in template}
    return policy_of(config, **from_arrays(template, arrays), env_steps=checkpoint.env_steps)


def _callbacks(on_iteration: Any) -> list[Observer]:
    """The functions that are to be told of each iteration."""
    given = [] if on_iteration is None else on_iteration
    callbacks = list(given) if isinstance(given, list | tuple) else [given]
    for callback in callbacks:
        if not callable(callback):
            raise ConfigError(
                "on_iteration",
                repr(callback),
                "cannot be called",
                "Give a function of an Iteration, or a list of them.",
            )
    return callbacks


def _warn_of_damage(path: Path, error: CheckpointError) -> None:
    warn(f"The checkpoint {path.name} is passed over, an older one is used: {error}")

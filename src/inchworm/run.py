"""A finished run: its policy, and what it came to."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inchworm import spaces
from inchworm.checks import check_integer, check_output, check_path
from inchworm.collect.evaluate import Evaluation, evaluate, evaluate_at_once, never
from inchworm.collect.record import render_episode
from inchworm.config import RunConfig
from inchworm.envs.making import EnvFactory
from inchworm.envs.source import EnvSource, env_source, is_object
from inchworm.errors import ConfigError, EnvironmentContractError
from inchworm.io.loggers import read_metrics
from inchworm.io.run_folder import RunFolder
from inchworm.io.video import write_video
from inchworm.io.words import as_html, scores
from inchworm.models.policy import Policy
from inchworm.spaces import EnvSpec


@dataclass(frozen=True, repr=False)
class Run:
    """A finished or stopped run."""

    folder: Path
    config: RunConfig
    policy: Policy
    summary: dict[str, Any]
    """What the run came to: steps, return of the last 100 episodes, evaluations, why it stopped, parameters' hash."""
    source: EnvSource | None = None
    """Where its environments came from; None if the run was loaded."""

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {text}" for name, text in scores(self.summary).items())
        return f"Run({str(self.folder)!r}, {self.config.env}, {self.config.algorithm_name}, {facts or 'not finished'})"

    def _repr_html_(self) -> str:
        """What a notebook shows: scores and curve."""
        title = f"{self.config.env}, {self.config.algorithm_name}, seed {self.config.seed}"
        return as_html(title, scores(self.summary) | {"folder": str(self.folder)}, RunFolder(self.folder).curve)

    def evaluate(
        self,
        *,
        episodes: int = 20,
        deterministic: bool = True,
        seed: int | None = None,
        env: Any = None,
        env_kwargs: dict[str, Any] | None = None,
    ) -> Evaluation:
        """Returns of whole episodes in environments apart from training.

        `env` is needed where the run was loaded and its environment is code of your own; `env_kwargs` where it was
        loaded and they may name files or modules.
        """
        how: dict[str, Any] = {"episodes": episodes, "deterministic": deterministic, "seed": seed}
        return evaluate_until(self, never, env=env, env_kwargs=env_kwargs, **how)

    def environments(self, env: Any = None, env_kwargs: dict[str, Any] | None = None) -> EnvSource:
        """Where environments like the run's come from: what is given, or what it was trained in.

        Raises:
            ConfigError: the policy does not fit them, or what makes them has to be given again.
        """
        if self.source is not None and env is None and env_kwargs is None:
            source = self.source
        else:
            if env_kwargs is None and self.source is not None and not is_object(env):
                env_kwargs = self.source.kwargs  # which the user has given in this process
            source = source_of(self.config, env, env_kwargs)
        check_fits(source, EnvSpec(self.policy.observation_space, self.policy.action_space))
        return source

    def record(
        self,
        *,
        out: str | Path | None = None,
        seed: int = 0,
        env: Any = None,
        env_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Path, int, float]:
        """Writes a video of the policy's first 300 steps in an episode, by default video.mp4 in the run's folder.

        `env` and `env_kwargs` are as in `evaluate`.

        Returns:
            The video's path, its number of frames, and the return up to the last of them.

        Raises:
            MissingDependencyError: there is no renderer or no video writer.
        """
        check_integer("seed", seed, 0, 2**32 - 1)
        path = RunFolder(self.folder).video if out is None else check_path("out", out)
        check_output("out", path, (".mp4",))
        source = self.environments(env, env_kwargs)
        if not source.draws:
            raise EnvironmentContractError(
                "env",
                source.name,
                "draws no pictures, as it is written in JAX",
                "Give env=, or --env module:factory, for a Gymnasium environment of the same spaces that does.",
            )
        factory = source.renderer or factory_of(source)
        frames, total, fps = render_episode(self.policy, factory, seed=seed)
        write_video(frames, path, fps)
        return path, len(frames), total

    def metrics(self) -> list[dict[str, Any]]:
        """One row an iteration, as in metrics.jsonl."""
        return read_metrics(RunFolder(self.folder).metrics)


def evaluate_until(
    run: Run,
    over: Callable[[int], bool],
    *,
    episodes: int,
    deterministic: bool,
    seed: int | None = None,
    env: Any = None,
    env_kwargs: dict[str, Any] | None = None,
) -> Evaluation:
    """As `Run.evaluate`, of the episodes that end before `over` says so, which is told how many have."""
    episodes = check_integer("episodes", episodes, 1)
    seed = run.config.seed if seed is None else check_integer("seed", seed, 0, 2**32 - 1)
    source = run.environments(env, env_kwargs)
    how: dict[str, Any] = {"episodes": episodes, "deterministic": deterministic, "seed": seed, "over": over}
    if source.jax_env is not None:
        return evaluate_at_once(run.policy, source.jax_env, **how)
    return evaluate(run.policy, factory_of(source), **how)


def source_of(config: RunConfig, env: Any, env_kwargs: dict[str, Any] | None = None) -> EnvSource:
    """The environment of a run whose configuration was read from a file: by its id, or as the user gives it again.

    Raises:
        ConfigError: what the file says would import a module or open a file, and the user has not given it again.
    """
    if env is None and (":" in config.env or not config.env_by_id):
        # Importing a module because a file names it would be running what a file says.
        raise ConfigError(
            "env",
            config.env,
            "is code of your own, which is not stored with a run",
            "Give it again: env=... in Python, --env module:factory on the command line.",
        )
    if env_kwargs is None and not is_object(env):
        if not is_plain(config.env_kwargs):
            raise ConfigError(
                "env_kwargs",
                json.dumps(config.env_kwargs),
                "are the run's, and may name a file or a module, which nothing is opened or imported for",
                "Give them again: env_kwargs=... in Python, --env-kwargs on the command line.",
            )
        env_kwargs = config.env_kwargs
    by_id = env is None or (isinstance(env, str) and ":" not in env)
    return env_source(config.env if env is None else env, env_kwargs, config.backend if by_id else None)


def given_again(env: str, env_kwargs: dict[str, Any]) -> list[str]:
    """The options that give an environment again to a command, where it would not take a file's word for it."""
    of_env = ["--env", env] if ":" in env else []
    return of_env + ([] if is_plain(env_kwargs) else ["--env-kwargs", json.dumps(env_kwargs)])


def is_plain(value: Any) -> bool:
    """Whether JSON holds nothing that can name a file or a module: its texts are words, as in `desc: ["SFFF"]`."""
    match value:
        case dict():
            return all(map(is_plain, [*value, *value.values()]))
        case list():
            return all(map(is_plain, value))
        case str():
            return re.fullmatch(r"[\w +-]*", value) is not None
    return True


def check_fits(source: EnvSource, spec: EnvSpec) -> None:
    """Raises `ConfigError` for environments whose spaces are not those that a policy was trained for."""
    for name, bounds in {"observation_space": False, "action_space": True}.items():
        found, expected = getattr(source.spec, name), getattr(spec, name)
        if spaces.form(found, bounds=bounds) != spaces.form(expected, bounds=bounds):
            raise ConfigError(
                "env", source.name, f"has {name} {found}, and the policy was trained for {expected}", "Give another."
            )


def factory_of(source: EnvSource) -> EnvFactory:
    if source.factory is None:
        raise ConfigError(
            "env",
            source.name,
            "is a vector environment, where a single one is needed",
            "Give env= a function that makes one.",
        )
    return source.factory

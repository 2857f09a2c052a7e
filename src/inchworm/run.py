"""A finished run: its policy, and what it came to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inchworm import spaces
from inchworm.checks import check_integer
from inchworm.collect.evaluate import Evaluation, evaluate, evaluate_at_once, never
from inchworm.config import RunConfig
from inchworm.envs.making import EnvFactory
from inchworm.envs.source import EnvSource, env_source, is_object
from inchworm.errors import ConfigError
from inchworm.io.loggers import read_metrics
from inchworm.io.run_folder import RunFolder
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
        self, *, episodes: int = 20, deterministic: bool = True, seed: int | None = None, env: Any = None
    ) -> Evaluation:
        """Returns of whole episodes in environments apart from training.

        `env` is needed where the run was loaded and its environment is code of your own.
        """
        return evaluate_until(self, never, episodes=episodes, deterministic=deterministic, seed=seed, env=env)

    def environments(self, env: Any = None) -> EnvSource:
        """Where environments like the run's come from: what is given, or what it was trained in.

        Raises:
            ConfigError: the policy does not fit them.
        """
        source = self.source if env is None and self.source is not None else source_of(self.config, env)
        check_fits(source, EnvSpec(self.policy.observation_space, self.policy.action_space))
        return source

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
) -> Evaluation:
    """As `Run.evaluate`, of the episodes that end before `over` says so, which is told how many have."""
    episodes = check_integer("episodes", episodes, 1)
    seed = run.config.seed if seed is None else check_integer("seed", seed, 0, 2**32 - 1)
    source = run.environments(env)
    how: dict[str, Any] = {"episodes": episodes, "deterministic": deterministic, "seed": seed, "over": over}
    if source.jax_env is not None:
        return evaluate_at_once(run.policy, source.jax_env, **how)
    return evaluate(run.policy, factory_of(source), **how)


def source_of(config: RunConfig, env: Any) -> EnvSource:
    """The environment of a run: by its id, or as the user gives it again."""
    if env is not None:
        by_id = isinstance(env, str) and ":" not in env
        return env_source(env, None if is_object(env) else config.env_kwargs, config.backend if by_id else None)
    if config.env_by_id and ":" not in config.env:
        return env_source(config.env, config.env_kwargs, config.backend)
    # Importing a module because a file names it would be running what a file says.
    raise ConfigError(
        "env",
        config.env,
        "is code of your own, which is not stored with a run",
        "Give it again: env=... in Python, --env module:factory on the command line.",
    )


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

"""`inchworm check ENV`."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from inchworm.checks import check_integer
from inchworm.cli.options import Argument, Choices, read_options
from inchworm.cli.report import found_section, page
from inchworm.config import PRESETS, Preset
from inchworm.envs.inspect import Report, inspect_environment
from inchworm.envs.source import BACKENDS, env_source
from inchworm.planning import configure_jax, preset_name
from inchworm.warning import plain


@dataclass(frozen=True, kw_only=True)
class Options:
    """Looks at an environment before training in it: spaces, answers, seeds, scales, speed, and the settings it gets.

    Exit status 2 if something will break or spoil training.
    """

    env: Annotated[str, Argument("ENV")]
    """Gymnasium id (HalfCheetah-v5), or module:factory for an environment of your own."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, as a JSON object."""
    backend: Annotated[str | None, Choices(BACKENDS)] = None
    """Whose environment ENV stands for; by default as in `inchworm train`."""
    steps: int = 2000
    """Random steps to try, in about three seconds at most."""
    seed: int = 0
    """Seed of the environment and of the actions."""


def main(arguments: list[str]) -> int:
    options = read_options("check", Options, arguments)
    check_integer("steps", options.steps, 1)
    check_integer("seed", options.seed, 0, 2**32 - 2)
    configure_jax()
    with _silence():
        source = env_source(options.env, options.env_kwargs, options.backend)
        name = preset_name(source)
        preset = PRESETS[name]
        report = inspect_environment(
            source,
            steps=options.steps,
            seed=options.seed,
            normalize_observation=preset.settings("ppo").normalize_observation,
            normalize_return=preset.settings("ppo").normalize_return,
        )
    print(plain(_page(options.env, report, name, preset)))
    return 2 if report.problems else 0


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides what environments print, at each of thousands of steps or in compiled code, from the report."""
    stderr = os.dup(2)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(action="ignore"),
    ):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _page(env: str, report: Report, name: str, preset: Preset) -> str:
    sections = [
        (env, report.facts.items()),
        found_section("Problems", report.problems),
        found_section("Warnings", report.warnings),
        ("PPO settings it would get", _settings(name, preset).items()),
    ]
    return page(sections)


def _settings(name: str, preset: Preset) -> dict[str, str]:
    """The settings that say most about how training will go."""
    algorithm = preset.settings("ppo")
    normalized = {
        "observations": algorithm.normalize_observation,
        "returns": algorithm.normalize_return,
        f"advantages over the {algorithm.normalize_advantage}": algorithm.normalize_advantage != "none",
    }
    shown = ("num_envs", "horizon", "minibatch_size", "num_epochs", "learning_rate", "gamma", "gae_lambda")
    return {
        "preset": f"{name} ({preset.about})",
        **{setting: str(getattr(algorithm, setting)) for setting in shown},
        "normalisation": ", ".join(part for part, on in normalized.items() if on) or "none",
        "total_steps": f"{preset.total_steps:,}",
    }

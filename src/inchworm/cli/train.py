"""`inchworm train ENV`."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from inchworm.algorithms.settings import Settings
from inchworm.api import train
from inchworm.cli.options import Argument, Choices, Groups, help_page, read
from inchworm.cli.report import report, report_group
from inchworm.config import ALGORITHMS, PRESETS
from inchworm.envs.source import BACKENDS, env_source
from inchworm.errors import ConfigError
from inchworm.models.settings import ModelSettings
from inchworm.planning import configure_jax, preset_name
from inchworm.seeds import train_seeds


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains a policy and leaves a run folder with its curve, evaluation, checkpoints and policy.

    The settings and defaults shown are those of the algorithm and of the preset that fits ENV: name both before --help
    to see them. Where a setting takes linear:A:B, it goes from A to B over the budget.
    """

    env: Annotated[str, Argument("ENV")]
    """Gymnasium id (HalfCheetah-v5), or module:factory for an environment of your own."""
    algorithm: Annotated[str, Choices(tuple(ALGORITHMS))] = "ppo"
    """How the policy is improved."""
    preset: Annotated[str | None, Choices(tuple(PRESETS))] = None
    """Settings to start from; by default those that fit ENV."""
    total_steps: int = 1_000_000
    """Budget in environment steps; the run stops at the first iteration that reaches it."""
    seed: int = 0
    """Seed of parameters, noise, shuffles and environments."""
    seeds: tuple[int, ...] = ()
    """Several seeds at once, in place of --seed: a run for each, and a picture of all."""
    stop_return: float | None = None
    """Stop once the mean return of the last 100 episodes reaches this."""
    max_seconds: float | None = None
    """Stop after this much wall-clock time, in seconds; each resume has as much again."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions:
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, as a JSON object."""
    backend: Annotated[str | None, Choices(BACKENDS)] = None
    """Whose environments ENV stands for, where jax is classic control of this library; by default ALE's for Atari
    games, else Gymnasium's."""
    env_processes: int = 1
    """Processes that share the stepping of Gymnasium's environments; the results are the same."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    out: Path = Path("runs")
    """Folder below which the run's own is made."""
    name: str | None = None
    """Name of the run's folder; by default a time stamp and the seed."""
    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least this often, in seconds."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay, beside the best."""
    evaluation_episodes: int = 20
    """Episodes of each of the two evaluations at the end; 0 for none."""
    video: bool = True
    """Record a video at the end, where the environment can be rendered; of a single seed."""
    progress: bool = True
    """Show a line that tells how training goes."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    threads: int = 1
    """Threads of XLA's CPU backend; more than one pays only for wide networks."""
    devices: int = 1
    """Accelerators that share the environments and every minibatch."""


def groups(*algorithms: type[Settings]) -> Groups:
    """The options of a training with one of the algorithms, by title."""
    return {
        "run": [Options],
        "environment": [EnvironmentOptions],
        "output": [OutputOptions],
        "machine": [MachineOptions],
        "policy and value networks": [ModelSettings],
        "rollouts, returns and advantages": [Settings],
        " or ".join(algorithm.__name__ for algorithm in algorithms): algorithms,
    }


def main(arguments: list[str]) -> int:
    # All algorithms' options are read, because which algorithm it is stands among them; training refuses the others'.
    named = read("train", groups(*ALGORITHMS.values()), arguments)
    if named.pop("help", False):
        print(_help(named))
        return 0
    video = named.pop("video", True)
    if "seeds" not in named:
        report(train(**named), video)
        return 0
    for name in ("seed", "devices", "env_processes"):
        if name in named:
            flag = name.replace("_", "-")
            raise ConfigError(name, named[name], "does not go with --seeds", f"Leave out --{flag}, or --seeds.")
    report_group(train_seeds(**named))
    return 0


def _help(named: Mapping[str, Any]) -> str:
    """The help with the defaults of the algorithm and of the preset that are named, or that fit the environment."""
    algorithm = named.get("algorithm", "ppo")
    preset = named.get("preset", "paper")
    if "preset" not in named and "env" in named:
        # Before an environment is made, because making one may compute with JAX.
        configure_jax(named.get("threads", 1), named.get("devices", 1))
        preset = preset_name(env_source(named["env"], named.get("env_kwargs"), named.get("backend")))
    settings = PRESETS[preset].settings(algorithm)
    defaults = vars(settings) | {"algorithm": algorithm, "total_steps": PRESETS[preset].total_steps}
    return help_page("train", inspect.getdoc(Options) or "", groups(type(settings)), defaults)

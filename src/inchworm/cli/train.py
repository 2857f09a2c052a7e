"""`inchworm train ENV`."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from inchworm.algorithms.settings import Settings
from inchworm.api import train
from inchworm.checks import check_choice, read_integer
from inchworm.config import ALGORITHMS, PRESETS
from inchworm.envs.source import env_source
from inchworm.errors import ConfigError
from inchworm.io.report import describe, final_return, group_scores, scores
from inchworm.planning import configure_jax, preset_name
from inchworm.rl.schedules import Scalar, Schedule
from inchworm.run import Run
from inchworm.seeds import RunGroup, train_seeds


def read_env_kwargs(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError("env-kwargs", text, "is no JSON object", "Give e.g. '{\"forward_reward_weight\": 2.0}'.")
    return value


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains a policy and leaves a run folder with its curve, evaluation, checkpoints and policy.

    The settings and defaults shown are those of the algorithm and of the preset that fits ENV: name both before --help
    to see them.
    """

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """Gymnasium id (HalfCheetah-v5), or module:factory for an environment of your own."""
    algorithm: str = "ppo"
    """What moves the policy: ppo, trpo, npg, a2c or reinforce."""
    preset: str | None = None
    """Settings to start from: paper, mujoco, batched, classic, pendulum or atari; by default the one that fits ENV."""
    total_steps: int = 1_000_000
    """Budget in environment steps; the run stops at the first iteration that reaches it."""
    seed: int | None = None
    """Seed of parameters, noise, shuffles and environments; 0 if none is given."""
    seeds: tuple[int, ...] | None = None
    """Several seeds at once, in place of --seed: a run for each, and a picture of all."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as a JSON object."""
    backend: str | None = None
    """Whose environments ENV stands for: gymnasium, envpool, ale, jax (classic control of this library), gymnax, brax
    or playground; by default ALE's for Atari games, else Gymnasium's."""
    out: Path = Path("runs")
    """Folder below which the run's own is made."""
    name: str | None = None
    """Name of the run's folder; by default a time stamp and the seed."""
    stop_return: float | None = None
    """Stop once the mean return of the last 100 episodes reaches this."""
    max_seconds: float | None = None
    """Stop after this much wall-clock time, in seconds; a resumed run has as much again."""
    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least this often, in seconds."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay, beside the best."""
    threads: int = 1
    """Threads of XLA's CPU backend; more than one pays only for wide networks."""
    devices: int = 1
    """Accelerators that share the environments and every minibatch."""
    env_processes: int = 1
    """Processes that share the stepping of Gymnasium's environments; the results are the same."""
    evaluation_episodes: int = 20
    """Episodes of each of the two evaluations at the end; 0 for none."""
    video: bool = True
    """Record a video at the end, where the environment can be rendered; of a single seed."""
    progress: bool = True
    """Show a line that tells how training goes."""


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    given: dict[str, Any] = {"env": options.env, "env_kwargs": read_env_kwargs(options.env_kwargs)}
    given |= _settings_in(arguments, options.settings)  # type: ignore[attr-defined]
    passed_on = "algorithm preset backend total_steps out name stop_return max_seconds checkpoint_seconds "
    passed_on += "keep_checkpoints threads evaluation_episodes progress"
    given |= {name: getattr(options, name) for name in passed_on.split()}
    if options.seeds is None:
        alone: dict[str, Any] = {"devices": options.devices, "env_processes": options.env_processes}
        report(train(**given, **alone, seed=options.seed or 0), options.video)
        return 0
    for name, without in {"seed": None, "devices": 1, "env_processes": 1}.items():
        if (value := getattr(options, name)) != without:
            flag = name.replace("_", "-")
            raise ConfigError(name, value, "does not go with --seeds", f"Leave out --{flag}, or --seeds.")
    report_group(train_seeds(**given, seeds=options.seeds))
    return 0


def report(run: Run, video: bool) -> None:
    """Prints what a run came to and where everything is."""
    shown = {"stopped by": run.summary["stopped_by"]} | scores(run.summary)
    shown |= {"run": run.folder, "curve": run.folder / "curve.png"}
    print(describe(shown))
    if video and run.source is not None and run.source.draws:
        # A renderer can take the whole process down; by now everything else is on disk.
        own = ["--env", run.config.env] if ":" in run.config.env else []
        subprocess.run([sys.executable, "-m", "inchworm", "record", str(run.folder), *own], check=False)


def report_group(group: RunGroup) -> None:
    """Prints what several seeds came to."""
    shown = {f"seed {run.config.seed}": f"{final_return(run.summary)}, {run.folder}" for run in group}
    shown |= group_scores(group.summary) | {"curve": str(group.folder / "curve.png")}
    print(describe(shown))


def _parse(arguments: list[str]) -> Options:
    """One flat parser whose defaults are those of the algorithm and of the preset that fits the environment."""
    # Before an environment is made, because making one may compute with JAX.
    configure_jax(_number_after("--threads", arguments), _number_after("--devices", arguments), _runs_in(arguments))
    algorithm = _value_of("--algorithm", arguments)
    algorithm = check_choice("--algorithm", "ppo" if algorithm is None else algorithm, ALGORITHMS)
    named = _environment_of(arguments, ALGORITHMS[algorithm])
    preset = _value_of("--preset", arguments)
    if preset is not None:
        check_choice("preset", preset, PRESETS)
    elif named is not None:
        kwargs = _value_of("--env-kwargs", arguments)
        source = env_source(named, read_env_kwargs(kwargs) if kwargs else {}, _value_of("--backend", arguments))
        preset = preset_name(source)
    chosen = PRESETS[preset or "paper"]
    settings = tyro.conf.OmitArgPrefixes[ALGORITHMS[algorithm]]
    with_settings = dataclasses.make_dataclass(
        "Options", [("settings", settings)], bases=(Options,), frozen=True, kw_only=True
    )
    with_settings.__doc__ = Options.__doc__
    with readers():
        return tyro.cli(
            with_settings,
            prog="inchworm train",
            args=arguments,
            default=with_settings(
                env=tyro.MISSING,
                settings=chosen.settings(algorithm),
                algorithm=algorithm,
                total_steps=chosen.total_steps,
            ),
        )


def _settings_in(arguments: list[str], settings: Settings) -> dict[str, Any]:
    """Those of the settings that options name."""
    options = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in arguments if word[:2] == "--"}
    return {name: value for name, value in vars(settings).items() if {name, f"no_{name}"} & options}


def _environment_of(arguments: list[str], settings: type) -> str | None:
    """The word that names the environment: the first that is neither an option, nor the value of one, nor a number."""
    flags = {field.name for kind in (Options, settings) for field in dataclasses.fields(kind) if field.type is bool}
    without_value = {"h", "help", *flags, *(f"no_{flag}" for flag in flags)}
    words = zip_longest(arguments, arguments[1:], fillvalue="")
    for word, following in words:
        if word.isdigit():  # a further value of a list
            continue
        if not word.startswith("-"):
            return word
        has_value = "=" not in word and word.lstrip("-").replace("-", "_") not in without_value
        if has_value and not following.startswith("--"):
            next(words, None)
    return None


def _runs_in(arguments: list[str]) -> int:
    """How many seeds follow --seeds; 1 if it is not given."""
    words = arguments[arguments.index("--seeds") + 1 :] if "--seeds" in arguments else []
    return max(1, len(list(takewhile(str.isdigit, words))))


def _number_after(option: str, arguments: list[str]) -> int:
    """What follows an option; 1 if it is not given, or no number, which the parser will say."""
    value = _value_of(option, arguments) or ""
    return max(1, int(value)) if value.isdigit() else 1


def _value_of(option: str, arguments: list[str]) -> str | None:
    """What follows an option, the last time it is given; None if it is not, or another option follows.

    That a value is missing the parser says.
    """
    value = None
    for word, following in zip_longest(arguments, arguments[1:]):
        if word == option:
            value = None if following is None or following.startswith("--") else following
        elif word.startswith(option + "="):
            value = word.partition("=")[2]
    return value


def readers() -> tyro.constructors.ConstructorRegistry:
    """How the words of options become the values of settings."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_integer_rule)
    registry.primitive_rule(_optional_rule)
    registry.primitive_rule(_scalar_rule)
    return registry


def _integer_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Whole numbers may be written as 1e6 too."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda given: read_integer(given[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def _optional_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Numbers that may be None, which is written as `none` in small letters or large, as in every such setting."""
    parts = set(get_args(info.type))
    if parts not in ({int, type(None)}, {float, type(None)}):
        return None
    read, metavar = (read_integer, "INT|none") if int in parts else (float, "FLOAT|none")
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: None if given[0].lower() == "none" else read(given[0]),
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def _scalar_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Settings that may be schedules are read from their text form; the settings' own checks judge it."""
    names = {get_args(part) for part in get_args(info.type) if get_origin(part) is Literal}
    parts = {part for part in get_args(info.type) if get_origin(part) is not Literal}
    if not set(get_args(Scalar)) <= parts <= {*get_args(Scalar), type(None)}:
        return None
    words = [*(name for group in names for name in group), *(["none"] if type(None) in parts else [])]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="|".join(["NUMBER", "linear:A:B", *words]),
        instance_from_str=lambda given: None if given[0].lower() == "none" else given[0],
        is_instance=lambda value: value is None or isinstance(value, float | str | Schedule),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )

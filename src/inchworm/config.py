"""What a run is: its configuration as data, and the presets that fit an environment."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from inchworm import spaces
from inchworm.algorithms.ppo import PPO
from inchworm.checks import check_choice, check_integer, check_number, did_you_mean
from inchworm.errors import CheckpointError, ConfigError
from inchworm.rl.schedules import Schedule

ALGORITHMS = {"ppo": PPO}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, written to `config.json`."""

    env: str
    """Environment id, or the name of the factory that makes it."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    env_by_id: bool = True
    """False if the environment is made by a factory that must be given again to resume."""
    algorithm: PPO
    total_steps: int
    """Budget in environment steps; the run stops at the first iteration that reaches it."""
    seed: int = 0
    stop_return: float | None = None
    """Stop once the mean return of the last 100 episodes reaches this."""
    max_seconds: float | None = None
    """Stop after this much wall-clock time, in seconds."""
    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least this often, in seconds; one is always written at the end."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay, beside the best."""
    threads: int = 1
    """Threads of XLA's CPU backend; more than one pays only for wide networks, and changes results in the last bits."""

    def __post_init__(self) -> None:
        check_number("checkpoint_seconds", self.checkpoint_seconds, minimum=0.0)
        integers = {
            "total_steps": (1, None),
            "seed": (0, 2**32 - 1),
            "keep_checkpoints": (1, None),
            "threads": (1, None),
        }
        for name, (minimum, maximum) in integers.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum, maximum))
        if self.stop_return is not None:
            check_number("stop_return", self.stop_return)
        if self.max_seconds is not None:
            check_number("max_seconds", self.max_seconds, above=0.0)
        if self.total_steps < self.algorithm.steps_per_iteration:
            raise ConfigError(
                "total_steps",
                self.total_steps,
                f"is less than one iteration of num_envs * horizon = {self.algorithm.steps_per_iteration} steps",
                "Raise it, or lower horizon or num_envs.",
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON; schedules in their text form."""
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "algorithm"}
        name = next(name for name, cls in ALGORITHMS.items() if isinstance(self.algorithm, cls))
        settings = {f.name: getattr(self.algorithm, f.name) for f in dataclasses.fields(self.algorithm)}
        settings = {key: str(value) if isinstance(value, Schedule) else value for key, value in settings.items()}
        return document | {"algorithm": name, "settings": settings}

    @classmethod
    def from_json(cls, document: Any) -> "RunConfig":
        """The configuration that `to_json` wrote.

        Raises:
            CheckpointError: the document is none.
            ConfigError: a setting is wrong.
        """
        try:
            document = dict(document)
            settings = document.pop("settings")
            algorithm_class = ALGORITHMS[check_choice("algorithm", document.pop("algorithm"), ALGORITHMS)]
            check_known("settings", settings, algorithm_class)
            check_known("config", document, cls)
            return cls(**document, algorithm=algorithm_class(**settings))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "config.json",
                repr(error),
                "is no run's configuration",
                "The file is damaged or newer than this version.",
            ) from error


def check_known(where: str, settings: dict[str, Any], cls: type) -> None:
    """Raises `ConfigError` for a setting the class does not have, and names the nearest one it has."""
    known = [f.name for f in dataclasses.fields(cls)]
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(
                name,
                value,
                f"is not a setting of {cls.__name__}" + did_you_mean(name, known),
                f"Its settings are {', '.join(known)}.",
            )


@dataclass(frozen=True)
class Preset:
    """Settings that fit a kind of environment."""

    algorithm: PPO
    total_steps: int
    about: str


PRESETS = {
    "paper": Preset(PPO(), 1_000_000, "Table 3 of the paper with the authors' code details: iw.PPO() as it is"),
    "mujoco": Preset(
        PPO(normalize_return=True, max_grad_norm=0.5),
        1_000_000,
        "continuous control: Table 3, with ppo2's reward scaling and gradient clipping",
    ),
    "classic": Preset(
        PPO(
            num_envs=8,
            horizon=128,
            minibatch_size=64,
            learning_rate="linear:1e-3:0",
            normalize_observation=False,
            normalize_return=True,
        ),
        100_000,
        "small discrete tasks: eight environments, a larger step size, rewards scaled",
    ),
    "pendulum": Preset(
        PPO(
            num_envs=8,
            horizon=256,
            gamma=0.9,
            normalize_return=True,
            max_grad_norm=0.5,
        ),
        300_000,
        "short-sighted continuous control: gamma 0.9",
    ),
}

_PRESET_OF_ENV = {"Pendulum-v1": "pendulum"}
_PRESET_OF_MODULE = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.classic_control": "classic"}


def preset_for(env: str, entry_point: str, action_space: spaces.Space) -> str:
    """The preset that fits: by the environment's id, then by the module it comes from, then by its actions."""
    if env in _PRESET_OF_ENV:
        return _PRESET_OF_ENV[env]
    if isinstance(action_space, spaces.Box):
        return "mujoco"
    for module, preset in _PRESET_OF_MODULE.items():
        if entry_point.startswith(module):
            return preset
    return "classic"

"""What a run is: its configuration as data, and the presets that fit an environment."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from inchworm import spaces
from inchworm.algorithms.policy_gradient import A2C, REINFORCE
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.settings import Settings, check_numbers
from inchworm.algorithms.trpo import NPG, TRPO
from inchworm.checks import check_choice, check_integer, check_known
from inchworm.errors import CheckpointError, ConfigError
from inchworm.models.settings import to_json

MAX_PROCESSORS = 1024
"""Threads, devices or processes of a run; JAX would try to start as many as it is asked for."""

ALGORITHMS: dict[str, type[Settings]] = {"ppo": PPO, "trpo": TRPO, "npg": NPG, "a2c": A2C, "reinforce": REINFORCE}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, written to `config.json`."""

    env: str
    """Environment id, or the name of the factory that makes it."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    env_by_id: bool = True
    """False if the environment is made by a factory that must be given again to resume."""
    backend: str = "gymnasium"
    """Whose environments are stepped: gymnasium, envpool, ale, jax (those of this library), gymnax, brax or
    playground."""
    own_parts: tuple[str, ...] = ()
    """Which of `network` and `optimizer` are code of the user's own, which must be given again to resume."""
    preset: str | None = None
    """The preset that its settings started from; None if they were given whole."""
    algorithm: Settings
    total_steps: int
    """Budget in environment steps; the run stops at the first iteration that reaches it."""
    seed: int = 0
    stop_return: float | None = None
    """Stop once the mean return of the last 100 episodes reaches this."""
    max_seconds: float | None = None
    """Stop after this much wall-clock time, in seconds; a resumed run has as much again."""
    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least this often, in seconds; one is always written at the end."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay, beside the best."""
    threads: int = 1
    """Threads of XLA's CPU backend; more than one pays only for wide networks, and changes results in the last bits."""
    devices: int = 1
    """Accelerators that share the environments and every minibatch."""
    env_processes: int = 1
    """Processes that share the stepping of Gymnasium's environments, this one included; the results are the same."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "own_parts", tuple(self.own_parts))
        integers = {
            "total_steps": (1, None),
            "seed": (0, 2**32 - 1),
            "keep_checkpoints": (1, None),
            "threads": (1, MAX_PROCESSORS),
            "devices": (1, MAX_PROCESSORS),
            "env_processes": (1, MAX_PROCESSORS),
        }
        for name, (minimum, maximum) in integers.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum, maximum))
        check_numbers(self, checkpoint_seconds={"minimum": 0.0}, stop_return={}, max_seconds={"above": 0.0})
        if self.total_steps < self.algorithm.steps_per_iteration:
            raise ConfigError(
                "total_steps",
                self.total_steps,
                f"is less than one iteration of num_envs * horizon = {self.algorithm.steps_per_iteration} steps",
                "Raise it, or lower horizon or num_envs.",
            )
        if self.env_processes > self.algorithm.num_envs:
            raise ConfigError(
                "env_processes",
                self.env_processes,
                f"is more than there are environments, num_envs = {self.algorithm.num_envs}",
                "Lower it, or raise num_envs.",
            )
        rows = {"num_envs": self.algorithm.num_envs}
        if isinstance(self.algorithm, PPO | TRPO):
            rows["minibatch_size"] = self.algorithm.minibatch_size // self.algorithm.steps_per_row
        for name, count in rows.items():
            if count % self.devices:
                raise ConfigError(
                    "devices",
                    self.devices,
                    f"cannot have equal shares of {name} = {getattr(self.algorithm, name)}",
                    f"Take another {name}, or a number of devices that divides {count}.",
                )

    def to_json(self) -> dict[str, Any]:
        """As JSON; schedules in their text form."""
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "algorithm"}
        settings = to_json(self.algorithm, type(self.algorithm))
        return document | {"algorithm": self.algorithm_name, "settings": settings}

    @property
    def algorithm_name(self) -> str:
        """As the command line calls it."""
        return name_of(type(self.algorithm))

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
            check_known(document, cls)
            return cls(**document, algorithm=algorithm_class(**settings))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "config.json",
                repr(error),
                "is no run's configuration",
                "The file is damaged or newer than this version.",
            ) from error


def name_of(kind: type) -> str:
    """The name of an algorithm's class in `ALGORITHMS`.

    Raises:
        ConfigError: it is none of them.
    """
    for name, known in ALGORITHMS.items():
        if known is kind:
            return name
    names = ", ".join(f"iw.{known.__name__}" for known in ALGORITHMS.values())
    raise ConfigError("algorithm", kind.__name__, "is no algorithm", f"Give one of {names}.")


@dataclass(frozen=True)
class Preset:
    """Settings that fit a kind of environment."""

    algorithms: dict[str, Settings]
    """By name; an algorithm that is not here has its own defaults."""
    total_steps: int
    about: str

    def settings(self, algorithm: str) -> Settings:
        """The settings an algorithm gets."""
        return self.algorithms.get(algorithm) or ALGORITHMS[algorithm]()


_SIXTEEN: dict[str, Any] = {"num_envs": 16, "horizon": 128, "normalize_return": True}

PRESETS = {
    "paper": Preset({}, 1_000_000, "Table 3 of the paper with the authors' code details: iw.PPO() as it is"),
    "mujoco": Preset(
        {
            "ppo": PPO(normalize_return=True, max_grad_norm=0.5),
            "trpo": TRPO(normalize_return=True),
            "npg": NPG(normalize_return=True),
            "a2c": A2C(normalize_return=True),
            "reinforce": REINFORCE(normalize_return=True),
        },
        1_000_000,
        "continuous control: Table 3, with ppo2's reward scaling and gradient clipping",
    ),
    "batched": Preset(
        {
            "ppo": PPO(**_SIXTEEN, max_grad_norm=0.5),
            "trpo": TRPO(**_SIXTEEN),
            "npg": NPG(**_SIXTEEN),
            "a2c": A2C(normalize_return=True),
            "reinforce": REINFORCE(normalize_return=True),
        },
        1_000_000,
        "continuous control in JAX: as mujoco, with sixteen environments, which cost little more than one",
    ),
    "classic": Preset(
        {
            "ppo": PPO(
                num_envs=8,
                horizon=128,
                minibatch_size=64,
                learning_rate="linear:1e-3:0",
                normalize_observation=False,
                normalize_return=True,
            ),
            "trpo": TRPO(num_envs=8, horizon=128, normalize_observation=False, normalize_return=True),
            "npg": NPG(num_envs=8, horizon=128, normalize_observation=False, normalize_return=True),
            "a2c": A2C(normalize_observation=False, normalize_return=True),
            "reinforce": REINFORCE(normalize_observation=False, normalize_return=True),
        },
        100_000,
        "small discrete tasks: eight environments, a larger step size, rewards scaled",
    ),
    "pendulum": Preset(
        {
            "ppo": PPO(
                num_envs=8,
                horizon=256,
                gamma=0.9,
                normalize_return=True,
                max_grad_norm=0.5,
            )
        },
        300_000,
        "short-sighted continuous control: gamma 0.9",
    ),
    "atari": Preset(
        {
            "ppo": PPO(
                num_envs=8,
                horizon=128,
                learning_rate="linear:2.5e-4:0",
                num_epochs=3,
                minibatch_size=256,
                clip_range="linear:0.1:0",
                vf_coef=1.0,
                ent_coef=0.01,
                image_network="small",
                shared_trunk=True,
                hidden_sizes=(),
                clip_reward=True,
            )
        },
        10_000_000,
        "Table 5: a small network that policy and value share, step size and clip annealed, the sign of rewards",
    ),
}

_PRESET_OF_ENV = {"Pendulum": "pendulum"}
"""By ids without their versions."""
_PRESET_OF_MODULE = {
    "ale_py": "atari",
    "envpool.atari": "atari",
}


def preset_for(env: str, entry_point: str, action_space: spaces.Space, in_jax: bool = False) -> str:
    """The preset that fits: by the environment's id if it has one, then by its actions, then by its module."""
    if (preset := _PRESET_OF_ENV.get(re.sub(r"-v\d+$", "", env))) is not None:
        return preset
    if isinstance(action_space, spaces.Box):
        return "batched" if in_jax else "mujoco"
    for module, preset in _PRESET_OF_MODULE.items():
        if entry_point.startswith(module):
            return preset
    return "classic"

"""The settings that every algorithm shares."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Array, Float

from inchworm.checks import check_choice, check_flag, check_integer, check_number
from inchworm.errors import ConfigError
from inchworm.models.settings import ModelSettings
from inchworm.rl.schedules import Scalar, Schedule, check_scalar

Now = dict[str, Float[Array, ""]]
"""Every setting that may be a schedule, by name, at one point of a run."""


class Continuation(NamedTuple):
    """How rewards after the horizon add up to returns."""

    gamma: float
    clip_reward: bool


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """What is collected, and what becomes of it before it moves the parameters."""

    num_envs: int = 1
    """Environments stepped side by side, N."""
    horizon: int = 2048
    """Steps of each environment in an iteration, T (Table 3)."""
    gamma: Scalar = 0.99
    """Discount (Table 3)."""
    gae_lambda: Scalar = 0.95
    """lambda of the generalized advantage estimate (Table 3): 0 gives one-step, 1 Monte-Carlo advantages."""
    value_target: Literal["lambda_return", "td", "monte_carlo"] = "lambda_return"
    """What the value function is fitted to: advantage + value, one reward and the next value, or lambda = 1."""
    normalize_advantage: Literal["none", "minibatch", "batch"] = "batch"
    """Where advantages get mean 0 and deviation 1: nowhere, in minibatches (ppo2), over the batch (authors' code)."""
    max_entropy_alpha: Scalar = 0.0
    """The reward becomes r - alpha log pi(a|s), the maximum-entropy objective; `ent_coef` is another thing."""
    normalize_observation: bool = True
    """Scale float observations by running statistics and clip at 5 (authors' code)."""
    clip_reward: bool = False
    """Learn from the sign of each reward only (Atari); returns are reported as they are."""
    normalize_return: bool = False
    """Divide rewards by the running deviation of the discounted return (ppo2, not in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in {"num_envs": 1, "horizon": 1}.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum))
        check_scalars(
            self,
            gamma={"minimum": 0.0, "maximum": 1.0},
            gae_lambda={"minimum": 0.0, "maximum": 1.0},
            max_entropy_alpha={"minimum": 0.0},
        )
        check_choice("value_target", self.value_target, ("lambda_return", "td", "monte_carlo"))
        check_choice("normalize_advantage", self.normalize_advantage, ("none", "minibatch", "batch"))
        if self.steps_per_iteration == 1 and self.normalize_advantage != "none":
            raise ConfigError(
                "normalize_advantage",
                self.normalize_advantage,
                "makes 0 of the one advantage that num_envs * horizon = 1 gives, so that nothing is learned",
                'Set it to "none", or raise horizon.',
            )
        check_flag("normalize_observation", self.normalize_observation)
        check_flag("normalize_return", self.normalize_return)
        check_flag("clip_reward", self.clip_reward)

    @property
    def steps_per_iteration(self) -> int:
        """Transitions of one iteration, N T."""
        return self.num_envs * self.horizon

    @property
    def steps_per_row(self) -> int:
        """Transitions in a row of a minibatch: one, or with memory an environment's whole trajectory."""
        return 1 if self.recurrent == "none" else self.horizon

    @property
    def gradient_steps_per_iteration(self) -> int:
        """How often an iteration moves the policy's parameters."""
        return 1

    @property
    def continuation(self) -> Continuation | None:
        """How returns go on past the horizon, where no value function stands for the rest."""
        return None

    @property
    def moving(self) -> list[str]:
        """The names of the scalar settings that change over the run."""
        return [name for name, value in vars(self).items() if isinstance(value, Schedule) and value.start != value.end]

    def at(self, env_steps: Float[Array, ""] | float, total_steps: float) -> Now:
        """Every scalar setting after `env_steps` of a run of `total_steps`."""
        scalars = {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}
        return {name: schedule(env_steps, total_steps) for name, schedule in scalars.items()}


def check_scalars(settings: Any, **limits: dict[str, float]) -> None:
    """Puts the named scalar settings into the form of schedules; None stays where a setting may be None.

    Raises:
        ConfigError: one is no number or schedule, or leaves its limits.
    """
    _check_each(check_scalar, settings, limits)


def check_numbers(settings: Any, **limits: dict[str, float]) -> None:
    """Makes the named settings plain floats; None stays where a setting may be None.

    Raises:
        ConfigError: one is no number, or leaves its limits.
    """
    _check_each(check_number, settings, limits)


def _check_each(check: Callable[..., Any], settings: Any, limits: dict[str, dict[str, float]]) -> None:
    optional = {field.name for field in dataclasses.fields(settings) if NoneType in get_args(field.type)}
    for name, bounds in limits.items():
        value = getattr(settings, name)
        if value is not None or name not in optional:
            object.__setattr__(settings, name, check(name, value, **bounds))


def minibatch_sizes(batch_size: int, row: int) -> list[int]:
    """The sizes of minibatches that cover a batch exactly once, in whole rows, smallest first."""
    rows = batch_size // row
    small = [count for count in range(1, math.isqrt(rows) + 1) if rows % count == 0]
    return [count * row for count in sorted({*small, *(rows // count for count in small)}) if count * row > 1]


def check_minibatch_size(minibatch_size: int, settings: Settings) -> None:
    """Raises `ConfigError` unless minibatches of this size cover the batch exactly once.

    A minibatch of a policy with memory holds whole environments.
    """
    batch_size = settings.steps_per_iteration
    row = settings.steps_per_row
    if batch_size % minibatch_size == 0 and minibatch_size % row == 0:
        return
    sizes = minibatch_sizes(batch_size, row)
    nearest = sorted(sorted(sizes, key=lambda size: abs(size - minibatch_size))[:3])
    problem = f"does not divide num_envs * horizon = {batch_size}, and no transition may be dropped"
    if batch_size % minibatch_size == 0:
        problem = f"is no multiple of horizon = {row}, and a policy with memory learns from whole trajectories"
    raise ConfigError(
        "minibatch_size",
        minibatch_size,
        problem,
        f"Use {' or '.join(map(str, nearest))}." if nearest else "Raise num_envs or horizon.",
    )

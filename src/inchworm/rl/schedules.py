"""Settings that move with the number of environment steps.

A scalar setting is a number, a `Schedule`, or the text of one: `3e-4`, `linear:3e-4:0` (over the whole budget),
`linear:0.2:0.1:500000` (over the first 500,000 steps, then constant). The text is what configuration files and
the command line hold.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from inchworm.checks import read_integer
from inchworm.errors import ConfigError

FORMS = "Give a number, linear:START:END (over the whole budget) or linear:START:END:STEPS."


@dataclass(frozen=True)
class Schedule:
    """A scalar that goes linearly from `start` to `end`.

    Attributes:
        start: value at step 0.
        end: value at the last step, and after it; equal to `start` for a constant.
        steps: environment steps it takes to arrive; None for the run's whole budget.
    """

    start: float
    end: float
    steps: int | None = None

    def __call__(self, env_steps: Float[Array, ""] | float, total_steps: float) -> Float[Array, ""]:
        """The value after `env_steps` environment steps of a run of `total_steps`."""
        # A whole number would have to fit into 32 bits.
        fraction = jnp.clip(env_steps / float(self.steps or total_steps), 0.0, 1.0)
        return jnp.asarray(self.start + (self.end - self.start) * fraction, jnp.float32)

    def __str__(self) -> str:
        if self.start == self.end:
            return repr(self.start)
        text = f"linear:{self.start!r}:{self.end!r}"
        return text if self.steps is None else f"{text}:{self.steps}"


Scalar = float | str | Schedule
"""A setting that may be a schedule, in any of its forms; `check_scalar` makes it a `Schedule`."""


def check_scalar(
    field: str, value: Any, *, above: float = -math.inf, minimum: float = -math.inf, maximum: float = math.inf
) -> Schedule:
    """The schedule a scalar setting stands for; `ConfigError` if it is none or leaves the range.

    `above` bounds one end only, so that a learning rate may start or end at zero, but not stay there.
    """
    schedule = _parse(field, value)
    fix = f"Stay between {minimum:g} and {maximum:g}." if math.isfinite(maximum) else f"Give {minimum:g} or more."
    if math.isfinite(above):
        fix = f"Give more than {above:g}; a schedule may start or end there."
    for end in (schedule.start, schedule.end):
        if not math.isfinite(end):
            raise ConfigError(field, value, "is not finite", FORMS)
        if not minimum <= end <= maximum:
            raise ConfigError(field, value, "is out of range", fix)
    if not max(schedule.start, schedule.end) > above:
        raise ConfigError(field, value, "is out of range", fix)
    return schedule


def _parse(field: str, value: Any) -> Schedule:
    try:
        if isinstance(value, Schedule):
            if value.steps is None or (isinstance(value.steps, Integral) and value.steps > 0):
                return Schedule(float(value.start), float(value.end), value.steps)
        elif isinstance(value, Real) and not isinstance(value, bool):
            return Schedule(float(value), float(value))
        elif isinstance(value, str):
            kind, *numbers = value.split(":")
            if not numbers:
                return Schedule(float(kind), float(kind))
            if kind == "linear" and len(numbers) == 2:
                return Schedule(float(numbers[0]), float(numbers[1]))
            if kind == "linear" and len(numbers) == 3 and (steps := read_integer(numbers[2])) > 0:
                return Schedule(float(numbers[0]), float(numbers[1]), steps)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(field, value, "is neither a number nor a schedule", FORMS)

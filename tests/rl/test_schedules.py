"""Scalar settings that move with the environment steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inchworm.errors import ConfigError
from inchworm.rl.schedules import Schedule, check_scalar

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("schedule", "env_steps", "value"),
    [
        (Schedule(0.3, 0.3), 500, 0.3),
        (Schedule(3e-4, 0.0), 0, 3e-4),
        (Schedule(3e-4, 0.0), 250, 2.25e-4),
        (Schedule(3e-4, 0.0), 1000, 0.0),
        (Schedule(3e-4, 0.0), 1500, 0.0),
        (Schedule(0.2, 0.1, 500), 250, 0.15),
        (Schedule(0.2, 0.1, 500), 800, 0.1),
        (Schedule(-0.7, -1.6), 500, -1.15),
        (Schedule(1.0, 0.0, 2 * 10**10), 10**10, 0.5),
    ],
)
def test_a_schedule_is_linear_and_then_constant(schedule, env_steps, value):
    assert schedule(env_steps, 1000) == pytest.approx(value, rel=1e-6, abs=1e-10)


def test_a_schedule_compiles_and_is_single_precision():
    found = jax.jit(lambda steps: Schedule(1.0, 0.0)(steps, 10))(jnp.float32(4))
    assert found == pytest.approx(0.6)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    ("setting", "schedule"),
    [
        (3e-4, Schedule(3e-4, 3e-4)),
        (1, Schedule(1.0, 1.0)),
        (np.float32(0.5), Schedule(0.5, 0.5)),
        ("3e-4", Schedule(3e-4, 3e-4)),
        ("linear:3e-4:0", Schedule(3e-4, 0.0)),
        ("linear:0.2:0.1:500000", Schedule(0.2, 0.1, 500_000)),
        ("linear:0:3e-4:1e6", Schedule(0.0, 3e-4, 1_000_000)),
        (Schedule(1.0, 0.5, 7), Schedule(1.0, 0.5, 7)),
        (Schedule(1.0, 0.5, 1), Schedule(1.0, 0.5, 1)),
        ("linear:1:0.5:1", Schedule(1.0, 0.5, 1)),
    ],
)
def test_every_form_of_a_scalar_becomes_a_schedule(setting, schedule):
    assert check_scalar("x", setting) == schedule


@given(FINITE, FINITE, st.none() | st.integers(1, 10**12))
def test_the_text_of_a_schedule_is_the_schedule(start, end, steps):
    schedule = Schedule(start, end, steps)
    back = check_scalar("x", str(schedule))
    assert (back.start, back.end) == (start, end)
    assert back.steps == (steps if start != end else None)


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "fast",
        "linear",
        "linear:1",
        "linear:1:2:3:4",
        "linear:1:2:0",
        "linear:1:2:-5",
        "linear:1:2:0.5",
        "linear:1:2:1e-3",
        "linear:a:2",
        "cosine:1:0",
        "nan",
        "inf",
        "linear:nan:0",
        "linear:1:inf",
        math.nan,
        math.inf,
        10**400,
        True,
        None,
        [0.1],
        1j,
        Schedule(math.nan, 0.0),
        Schedule(1.0, math.inf),
        Schedule(1.0, 0.0, 0),
        Schedule(1.0, 0.0, -5),
        Schedule("fast", 0.0),  # type: ignore[arg-type]
    ],
    ids=lambda setting: repr(setting)[:40],
)
def test_what_is_no_schedule_is_refused_by_name(setting):
    with pytest.raises(ConfigError) as error:
        check_scalar("clip_range", setting)
    assert error.value.field == "clip_range"


def test_both_ends_must_keep_the_limits_and_one_of_them_may_be_asked_for_more():
    limits = {"above": 0.0, "minimum": 0.0, "maximum": 1.0}
    assert check_scalar("x", "linear:1:0", **limits) == Schedule(1.0, 0.0)
    assert check_scalar("x", "linear:0:1", **limits) == Schedule(0.0, 1.0)
    for setting in ("linear:-0.1:1", "linear:0.5:-0.1", "linear:0.5:1.1", "linear:0:0", 1.5, 0.0):
        with pytest.raises(ConfigError, match="out of range"):
            check_scalar("x", setting, **limits)


@pytest.mark.parametrize(
    ("limits", "fix"),
    [
        ({"minimum": 0.0}, "Give 0 or more."),
        ({"minimum": 0.0, "maximum": 1.0}, "Stay between 0 and 1."),
        ({"above": 0.0}, "Give more than 0; a schedule may start or end there."),
    ],
)
def test_what_a_scalar_may_be_is_told_where_it_is_not(limits, fix):
    with pytest.raises(ConfigError) as error:
        check_scalar("x", -1.0, **limits)
    assert error.value.fix == fix

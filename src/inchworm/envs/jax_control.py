"""Gymnasium's classic control in JAX: the same dynamics, rewards, ends and starts, in float32.

Each task is three pure functions of its physical state, an array (k,), and a time limit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from inchworm.envs.jax_env import Clocked, Step
from inchworm.spaces import Box, Discrete, EnvSpec
from inchworm.types import PRNGKey

State = Float[Array, " k"]
Obs = Float[Array, " n"]
Moved = tuple[State, Float[Array, ""], Bool[Array, ""]]
"""The state after a step, its reward, and whether the task is over."""


@dataclass(frozen=True)
class ClassicControl:
    """A JAX environment made of a task's functions."""

    name: str
    """Gymnasium's id of the task."""
    spec: EnvSpec
    start: Callable[[PRNGKey], State]
    move: Callable[[State, Array], Moved]
    observe: Callable[[State], Obs]
    max_episode_steps: int

    def reset(self, key: PRNGKey) -> tuple[Clocked, Obs]:
        physics = self.start(key)
        return Clocked(physics, jnp.int32(0)), self.observe(physics)

    def step(self, state: Clocked, action: Array, key: PRNGKey) -> Step:
        physics, reward, terminated = self.move(state.physics, action)
        steps = state.steps + 1
        return Step(Clocked(physics, steps), self.observe(physics), reward, terminated, steps >= self.max_episode_steps)


def _uniform(low: tuple[float, ...], high: tuple[float, ...]) -> Callable[[PRNGKey], State]:
    """A state drawn uniformly between two corners."""
    corners = np.array(low, np.float32), np.array(high, np.float32)
    return lambda key: jax.random.uniform(key, (len(low),), jnp.float32, *corners)


def _box(*high: float, low: tuple[float, ...] | None = None) -> Box:
    """Observations within bounds, which Gymnasium holds in float32; symmetric unless `low` is given."""
    highs = np.array(high, np.float32)
    lows = -highs if low is None else np.array(low, np.float32)
    return Box((len(high),), "float32", tuple(lows.tolist()), tuple(highs.tolist()))


def _same(physics: State) -> Obs:
    return physics


# Barto, Sutton & Anderson 1983; the equations are Florian's "Correct equations for the dynamics of the cart-pole
# system", without friction.
GRAVITY = 9.8
POLE_MASS, CART_MASS = 0.1, 1.0
HALF_LENGTH = 0.5
PUSH = 10.0
CART_SECONDS = 0.02
CART_LIMIT, POLE_LIMIT = 2.4, math.radians(12)


def _move_cart_pole(physics: State, action: Array) -> Moved:
    _, speed, angle, spin = physics
    mass = CART_MASS + POLE_MASS
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    push = (jnp.where(action == 1, PUSH, -PUSH) + POLE_MASS * HALF_LENGTH * spin**2 * sin) / mass
    turn = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / mass))
    acceleration = push - POLE_MASS * HALF_LENGTH * turn * cos / mass
    after = physics + CART_SECONDS * jnp.stack([speed, acceleration, spin, turn])
    return after, jnp.float32(1.0), (jnp.abs(after[0]) > CART_LIMIT) | (jnp.abs(after[2]) > POLE_LIMIT)


# A rod of mass 1 and length 1 that hangs from one end.
PENDULUM_GRAVITY, PENDULUM_SECONDS = 10.0, 0.05
MAX_SPEED, MAX_TORQUE = 8.0, 2.0


def _move_pendulum(physics: State, action: Array) -> Moved:
    angle, speed = physics
    torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
    from_top = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    cost = from_top**2 + 0.1 * speed**2 + 0.001 * torque**2
    turn = 1.5 * PENDULUM_GRAVITY * jnp.sin(angle) + 3.0 * torque
    speed = jnp.clip(speed + turn * PENDULUM_SECONDS, -MAX_SPEED, MAX_SPEED)
    return jnp.stack([angle + speed * PENDULUM_SECONDS, speed]), -cost, jnp.array(False)


def _observe_pendulum(physics: State) -> Obs:
    return jnp.stack([jnp.cos(physics[0]), jnp.sin(physics[0]), physics[1]])


# Sutton & Barto's book, 11.3 of the first edition: two links of mass and length 1, each with its centre in the middle
# and a moment of inertia of 1, and a torque on the joint between them.
ACROBOT_SECONDS = 0.2
CENTRE = 0.5
MAX_SPINS = np.array([4 * np.pi, 9 * np.pi], np.float32)


def _acrobot_slope(physics: State, torque: Float[Array, ""]) -> State:
    angle1, angle2, spin1, spin2 = physics
    sin, cos = jnp.sin(angle2), jnp.cos(angle2)
    d1 = CENTRE**2 + (1 + CENTRE**2 + 2 * CENTRE * cos) + 2
    d2 = CENTRE**2 + CENTRE * cos + 1
    phi2 = CENTRE * GRAVITY * jnp.sin(angle1 + angle2)
    phi1 = -CENTRE * sin * spin2 * (spin2 + 2 * spin1) + (CENTRE + 1) * GRAVITY * jnp.sin(angle1) + phi2
    turn2 = (torque + d2 / d1 * phi1 - CENTRE * spin1**2 * sin - phi2) / (CENTRE**2 + 1 - d2**2 / d1)
    turn1 = -(d2 * turn2 + phi1) / d1
    return jnp.stack([spin1, spin2, turn1, turn2])


def _move_acrobot(physics: State, action: Array) -> Moved:
    torque, h = action.astype(jnp.float32) - 1.0, ACROBOT_SECONDS
    # One step of the fourth-order Runge-Kutta method.
    k1 = _acrobot_slope(physics, torque)
    k2 = _acrobot_slope(physics + h / 2 * k1, torque)
    k3 = _acrobot_slope(physics + h / 2 * k2, torque)
    k4 = _acrobot_slope(physics + h * k3, torque)
    after = physics + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    angles = (after[:2] + jnp.pi) % (2 * jnp.pi) - jnp.pi
    spins = jnp.clip(after[2:], -MAX_SPINS, MAX_SPINS)
    terminated = -jnp.cos(angles[0]) - jnp.cos(angles[0] + angles[1]) > 1.0
    return jnp.concatenate([angles, spins]), jnp.where(terminated, 0.0, -1.0), terminated


def _observe_acrobot(physics: State) -> Obs:
    angle1, angle2, *spins = physics
    return jnp.stack([jnp.cos(angle1), jnp.sin(angle1), jnp.cos(angle2), jnp.sin(angle2), *spins])


# Moore 1990.
LEFT_END, RIGHT_END = -1.2, 0.6
MAX_CAR_SPEED = 0.07
SLOPE = 0.0025


def _drive(physics: State, thrust: Float[Array, ""]) -> State:
    """The car after a step on its hills; the left end is a wall."""
    position, velocity = physics
    velocity = jnp.clip(velocity + thrust - SLOPE * jnp.cos(3 * position), -MAX_CAR_SPEED, MAX_CAR_SPEED)
    position = jnp.clip(position + velocity, LEFT_END, RIGHT_END)
    velocity = jnp.where((position == jnp.float32(LEFT_END)) & (velocity < 0), 0.0, velocity)
    return jnp.stack([position, velocity])


def _move_mountain_car(physics: State, action: Array) -> Moved:
    after = _drive(physics, 0.001 * (action.astype(jnp.float32) - 1.0))
    return after, jnp.float32(-1.0), (after[0] >= 0.5) & (after[1] >= 0)


def _move_mountain_car_continuous(physics: State, action: Array) -> Moved:
    after = _drive(physics, 0.0015 * jnp.clip(action[0], -1.0, 1.0))
    terminated = (after[0] >= 0.45) & (after[1] >= 0)
    return after, jnp.where(terminated, 100.0, 0.0) - 0.1 * action[0] ** 2, terminated


_CAR_BOX = _box(RIGHT_END, MAX_CAR_SPEED, low=(LEFT_END, -MAX_CAR_SPEED))
_CAR_START = _uniform((-0.6, 0.0), (-0.4, 0.0))

CLASSIC_CONTROL = {
    task.name: task
    for task in (
        ClassicControl(
            "CartPole-v1",
            EnvSpec(_box(2 * CART_LIMIT, np.inf, 2 * POLE_LIMIT, np.inf), Discrete(2)),
            _uniform((-0.05,) * 4, (0.05,) * 4),
            _move_cart_pole,
            _same,
            500,
        ),
        ClassicControl(
            "Pendulum-v1",
            EnvSpec(_box(1.0, 1.0, MAX_SPEED), Box((1,), "float32", -MAX_TORQUE, MAX_TORQUE)),
            _uniform((-np.pi, -1.0), (np.pi, 1.0)),
            _move_pendulum,
            _observe_pendulum,
            200,
        ),
        ClassicControl(
            "Acrobot-v1",
            EnvSpec(_box(1.0, 1.0, 1.0, 1.0, *MAX_SPINS.tolist()), Discrete(3)),
            _uniform((-0.1,) * 4, (0.1,) * 4),
            _move_acrobot,
            _observe_acrobot,
            500,
        ),
        ClassicControl("MountainCar-v0", EnvSpec(_CAR_BOX, Discrete(3)), _CAR_START, _move_mountain_car, _same, 200),
        ClassicControl(
            "MountainCarContinuous-v0",
            EnvSpec(_CAR_BOX, Box((1,), "float32", -1.0, 1.0)),
            _CAR_START,
            _move_mountain_car_continuous,
            _same,
            999,
        ),
    )
}
"""By Gymnasium's ids."""

"""Runs that are sick each in a way of its own, and runs that are well, for the rules of `inchworm doctor`."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

import inchworm as iw

SMALL = iw.PPO(
    num_envs=4, horizon=64, minibatch_size=64, num_epochs=4, hidden_sizes=(16,), learning_rate=1e-3,
    normalize_return=True,
)  # fmt: skip


class Task(gymnasium.Env):
    """Is near a point that moves at random; pays for actions that are near it, for 20 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: gymnasium.Space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    limit = 20

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self) -> np.ndarray:
        self.place = self.np_random.uniform(-0.5, 0.5)
        return self.seen()

    def seen(self) -> np.ndarray:
        return np.array([self.place, 1.0], np.float32)

    def step(self, action):
        self.steps += 1
        reward = self.pay(np.ravel(action)[0])
        over = self.steps == self.limit
        return self.look(), reward, *self.ends(over), {}

    def pay(self, action: Any) -> float:
        return 1.0 - (action - self.place) ** 2

    def ends(self, over: bool) -> tuple[bool, bool]:
        return False, over


class Choice(Task):
    """The same with two choices, above and below zero."""

    action_space = gymnasium.spaces.Discrete(2)

    def pay(self, action: Any) -> float:
        return float(action == (self.place > 0))


class Noise(Choice):
    """Pays at random, whatever is done."""

    def pay(self, action: Any) -> float:
        return float(self.np_random.normal())


class Nothing(Choice):
    """Pays nothing."""

    def pay(self, action: Any) -> float:
        return 0.0


class HugeNumbers(Task):
    """Shows a number that is now and then huge."""

    def seen(self) -> np.ndarray:
        return np.array([self.place, 1e6 if self.np_random.uniform() < 0.03 else 1.0], np.float32)


class NarrowBounds(Task):
    """Takes actions of a hundredth."""

    action_space = gymnasium.spaces.Box(-0.01, 0.01, (1,), np.float32)


class LimitTerminates(Task):
    """Says that it terminated where its time was over."""

    def ends(self, over: bool) -> tuple[bool, bool]:
        return over, False


class SometimesNaN(Task):
    """Pays NaN now and then."""

    def pay(self, action: Any) -> float:
        return float("nan") if self.np_random.uniform() < 5e-4 else super().pay(action)


class Slow(Task):
    """Takes its time."""

    def pay(self, action: Any) -> float:
        time.sleep(4e-3)
        return super().pay(action)


class Falls(Choice):
    """Pays well for a while, and then for the opposite, too seldom to learn it."""

    steps_in_all = 0

    def pay(self, action: Any) -> float:
        Falls.steps_in_all += 1
        return super().pay(action) * (Falls.steps_in_all < 6000)


@dataclass(frozen=True)
class Run:
    """A run, and what is said of it."""

    env: Any
    algorithm: Any
    steps: int
    finding: str | None
    how: dict[str, Any] = field(default_factory=dict)


def _with(**settings: Any) -> iw.PPO:
    return dataclasses.replace(SMALL, **settings)


SICK: dict[str, Callable[[], Run]] = {
    "steps too large": lambda: Run(Task, _with(learning_rate=0.1), 8000, "policy/kl"),
    "a narrow clip": lambda: Run(
        Task, _with(clip_range=0.01, learning_rate=0.01, num_epochs=10), 8000, "policy/clip_fraction"
    ),
    "a value function that overshoots": lambda: Run(
        Noise, _with(value_learning_rate=10.0), 8000, "value/explained_variance"
    ),
    "noise that is followed": lambda: Run(
        Noise, _with(surrogate="none", learning_rate=0.03, num_epochs=10), 8000, "policy/entropy"
    ),
    "no rewards": lambda: Run(Nothing, SMALL, 8000, "advantage/std"),
    "huge observations": lambda: Run(HugeNumbers, SMALL, 8000, "observation/clipped"),
    "a deviation that vanishes": lambda: Run(Task, _with(log_std="state", learning_rate=1.0), 8000, "policy/std_min"),
    "narrow bounds": lambda: Run(NarrowBounds, SMALL, 8000, "action/out_of_bounds"),
    "a time limit that terminates": lambda: Run(LimitTerminates, SMALL, 8000, "episode/terminations"),
    "rewards that are NaN": lambda: Run(SometimesNaN, SMALL, 8000, "guard/skipped"),
    "a task that changes": lambda: Run(Falls, SMALL, 16_000, "episode/return"),
}
"""By what ails them; made when they are asked for, because some tasks count."""

HEALTHY: dict[str, Run] = {
    "CartPole, PPO": Run("CartPole-v1", "ppo", 60_000, None),
    "CartPole, TRPO": Run("CartPole-v1", "trpo", 60_000, None),
    "CartPole, A2C": Run("CartPole-v1", "a2c", 100_000, None),
    "CartPole in JAX, PPO": Run("CartPole-v1", "ppo", 200_000, None, {"backend": "jax"}),
    "Acrobot, PPO": Run("Acrobot-v1", "ppo", 60_000, None),
    "Pendulum, PPO": Run("Pendulum-v1", "ppo", 150_000, None),
    "Pendulum in JAX, PPO": Run("Pendulum-v1", "ppo", 300_000, None, {"backend": "jax"}),
    "HalfCheetah, PPO": Run("HalfCheetah-v5", "ppo", 100_000, None),
    "InvertedPendulum, PPO": Run("InvertedPendulum-v5", "ppo", 60_000, None),
    "Hopper, TRPO": Run("Hopper-v5", "trpo", 100_000, None),
    "a point that moves, PPO": Run(Task, SMALL, 30_000, None),
}
"""By what is learned, and how."""

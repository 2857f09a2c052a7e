"""Brax's environments as JAX environments."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from inchworm import spaces
from inchworm.checks import did_you_mean
from inchworm.envs.jax_env import Step
from inchworm.envs.pool import first_line
from inchworm.errors import EnvironmentContractError, MissingDependencyError
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree, PRNGKey


class Clocked(NamedTuple):
    """A simulator's state, and the steps since the episode's start."""

    simulation: Any
    steps: Int[Array, ""]


@dataclass(frozen=True, eq=False)
class SimulatedEnv:
    """An environment with Brax's interface, as MuJoCo Playground's have it too, and a time limit."""

    name: str
    env: Any
    spec: EnvSpec
    max_episode_steps: int

    def reset(self, key: PRNGKey) -> tuple[Clocked, ArrayTree]:
        simulation = self.env.reset(key)
        return Clocked(simulation, jnp.int32(0)), simulation.obs

    def step(self, state: Clocked, action: Array, key: PRNGKey) -> Step:
        simulation, steps = self.env.step(state.simulation, action), state.steps + 1
        return Step(
            Clocked(simulation, steps),
            simulation.obs,
            simulation.reward,
            simulation.done.astype(bool),
            steps >= self.max_episode_steps,
        )


def simulated(name: str, env: Any, max_episode_steps: int) -> SimulatedEnv:
    """An environment with its spaces: observations as the simulator gives them, actions between -1 and 1."""
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    action = spaces.Box((env.action_size,), "float32", -1.0, 1.0)
    return SimulatedEnv(name, env, EnvSpec(_space_of(obs), action), max_episode_steps)


def _space_of(obs: Any) -> spaces.Space:
    if isinstance(obs, dict):
        return spaces.Dict(tuple(sorted((name, _space_of(part)) for name, part in obs.items())))
    return spaces.Box(obs.shape, "float32", float("-inf"), float("inf"))


@lru_cache
def make_brax(env: str, kwargs: str = "{}") -> SimulatedEnv:
    """The environment of a name; keyword arguments, as JSON, are Brax's own and `max_episode_steps`.

    Raises:
        MissingDependencyError: Brax is not installed.
        EnvironmentContractError: there is no such environment, or it does not take the arguments.
    """
    try:
        from brax import envs
    except ImportError as error:
        raise MissingDependencyError(
            "backend", "brax", f"needs a package that is not installed ({error})", 'pip install "inchworm[brax]".'
        ) from error
    known = sorted(envs._envs)
    if env not in known:
        raise EnvironmentContractError(
            "env", env, "is no environment that Brax knows" + did_you_mean(env, known), f"Give {' or '.join(known)}."
        )
    settings = json.loads(kwargs)
    limit = settings.pop("max_episode_steps", 1000)
    try:
        return simulated(env, envs.get_environment(env, **settings), limit)
    except TypeError as error:
        raise EnvironmentContractError(
            "env_kwargs", kwargs, f"do not fit {env}: {first_line(error)}", "Check the environment's arguments."
        ) from error

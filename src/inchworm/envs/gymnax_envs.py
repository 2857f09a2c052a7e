"""gymnax's environments as JAX environments."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array

from inchworm import spaces
from inchworm.envs.foreign import check_known_id, check_kwargs, constructing, importing
from inchworm.envs.jax_env import Step
from inchworm.errors import MissingDependencyError, UnsupportedSpaceError
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree, PRNGKey


@dataclass(frozen=True, eq=False)
class GymnaxEnv:
    """One of gymnax's environments without its automatic reset; its time limit is a truncation."""

    name: str
    env: Any
    params: Any
    spec: EnvSpec

    @property
    def max_episode_steps(self) -> int:
        return int(self.params.max_steps_in_episode)

    def reset(self, key: PRNGKey) -> tuple[ArrayTree, ArrayTree]:
        obs, state = self.env.reset_env(key, self.params)
        return state, obs

    def step(self, state: ArrayTree, action: Array, key: PRNGKey) -> Step:
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, self.params)
        return Step(state, obs, reward, terminated, self.env.is_truncated(state, self.params))


def make_gymnax(env: str, kwargs: dict[str, Any]) -> GymnaxEnv:
    """The environment of an id; keyword arguments are its parameters.

    Raises:
        MissingDependencyError: gymnax is not installed, or one from before it told time limits apart.
        EnvironmentContractError: there is no such environment, or what it downloads cannot be had.
        ConfigError: it has no such parameter, or not such a value.
        UnsupportedSpaceError: one of its spaces has no counterpart.
    """
    with importing("gymnax", "gymnax"):
        import gymnax
        from gymnax.environments.environment import Environment
    if not hasattr(Environment, "is_truncated"):
        raise MissingDependencyError(
            "backend", "gymnax", "is a version that takes time limits for terminations", 'pip install "gymnax>=1.0".'
        )
    check_known_id(env, gymnax.registered_envs, "gymnax")
    with constructing(env, {}):
        made, params = gymnax.make(env)
    params = params.replace(**check_kwargs(kwargs, vars(params)))
    with constructing(env, kwargs):
        observations, actions = made.observation_space(params), made.action_space(params)
    spec = EnvSpec(_space_of(observations, "observation_space"), _space_of(actions, "action_space"))
    return GymnaxEnv(env, made, params, spec)


def _space_of(space: Any, name: str) -> spaces.Space:
    match type(space).__name__:
        case "Discrete":
            return spaces.Discrete(int(space.n), 0, "int32")
        case "Box":
            shape = tuple(int(length) for length in np.atleast_1d(space.shape)) if space.shape != () else ()
            low, high = (_bound(bound, shape) for bound in (space.low, space.high))
            return spaces.Box(shape, np.dtype(space.dtype).name, low, high)
    raise UnsupportedSpaceError(
        name, repr(space), "is not a space of gymnax that policies read or write", "Choose another environment."
    )


def _bound(bound: Any, shape: tuple[int, ...]) -> float | tuple[float, ...]:
    values = np.broadcast_to(np.asarray(bound, np.float64), shape).ravel().tolist()
    return values[0] if len(set(values)) == 1 else tuple(values)

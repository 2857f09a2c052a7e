"""Whatever a user gives as an environment, as one thing: a name, a way to make it, a pool of it."""

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import gymnasium
from gymnasium.vector import VectorEnv

from inchworm.envs.gymnasium import EnvFactory, GymnasiumPool, make_factory, spec_of
from inchworm.envs.jax_env import GymnasiumView, JaxEnv
from inchworm.envs.pool import Pool
from inchworm.envs.vector import VectorPool, vector_spec_of
from inchworm.errors import ConfigError
from inchworm.spaces import EnvSpec


@dataclass(frozen=True)
class EnvSource:
    """Where environments come from."""

    name: str
    """Environment id, or the factory's qualified name."""
    by_id: bool
    """True if the name and the keyword arguments are enough to make it again."""
    factory: EnvFactory | None
    """Makes one environment; None if the user gave a vector environment."""
    spec: EnvSpec
    entry_point: str
    """Module of the environment's class."""
    max_episode_steps: int | None
    """The environment's own time limit, if it states one."""
    vector: VectorEnv | None = None
    jax_env: JaxEnv | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def num_envs(self) -> int | None:
        """The number of environments, where it is given with them."""
        return None if self.vector is None else self.vector.num_envs

    def make_pool(self, num_envs: int, seed: int) -> Pool:
        """The environments of one run.

        Raises:
            ConfigError: a vector environment has another number of them.
        """
        if self.vector is None:
            assert self.factory is not None
            return GymnasiumPool(self.factory, num_envs, seed)
        if self.vector.num_envs != num_envs:
            raise ConfigError(
                "num_envs",
                num_envs,
                f"is not the vector environment's own number, {self.vector.num_envs}",
                f"Set num_envs={self.vector.num_envs}.",
            )
        return VectorPool(self.vector, seed)


def env_source(env: Any, kwargs: dict[str, Any] | None = None) -> EnvSource:
    """Reads what the user gave: an id, `module:factory`, a class, a function, a vector or a JAX environment.

    Makes one environment to learn its spaces, and closes it.

    Raises:
        ConfigError: it is none of these.
        EnvironmentContractError: there is no such environment, or its spaces are unsupported.
        MissingDependencyError: its package is not installed.
    """
    kwargs = dict(kwargs or {})
    if isinstance(env, str):
        try:
            json.dumps(kwargs)
        except TypeError as error:
            raise ConfigError(
                "env_kwargs", kwargs, "cannot be written to config.json", "Give a function that makes the environment."
            ) from error
        return _from_factory(env, True, make_factory(env, kwargs), kwargs)
    if isinstance(env, VectorEnv):
        name = getattr(env.spec, "id", None) or type(env).__qualname__
        return EnvSource(name, False, None, vector_spec_of(env), type(env).__module__, None, env)
    if isinstance(getattr(env, "spec", None), EnvSpec) and isinstance(env, JaxEnv) and not isinstance(env, type):
        name, module = type(env).__qualname__, type(env).__module__
        return EnvSource(name, False, partial(GymnasiumView, env), env.spec, module, None, jax_env=env)
    if isinstance(env, gymnasium.Env):
        raise ConfigError(
            "env",
            repr(env),
            "is an environment, where a way to make one is needed (training and evaluation use their own)",
            "Give its class, or a function that makes and returns it.",
        )
    if not callable(env):
        raise ConfigError("env", repr(env), "is no environment", "Give an id, a class or a function that makes one.")
    name = getattr(env, "__qualname__", type(env).__qualname__).replace("<", "").replace(">", "")
    return _from_factory(name, False, cast(EnvFactory, partial(env, **kwargs)), kwargs)


def _from_factory(name: str, by_id: bool, factory: EnvFactory, kwargs: dict[str, Any]) -> EnvSource:
    env = factory()
    if isinstance(env, VectorEnv):
        vector = env_source(env)
        return EnvSource(name, False, None, vector.spec, vector.entry_point, None, env)
    if not isinstance(env, gymnasium.Env):
        raise ConfigError("env", repr(env), f"is what {name} returned, not a gymnasium.Env", "Return an environment.")
    limit = getattr(env.spec, "max_episode_steps", None)
    source = EnvSource(name, by_id, factory, spec_of(env), type(env.unwrapped).__module__, limit, kwargs=kwargs)
    env.close()
    return source

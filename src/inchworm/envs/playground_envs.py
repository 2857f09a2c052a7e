"""MuJoCo Playground's environments as JAX environments."""

import json
from functools import lru_cache

from inchworm.checks import did_you_mean
from inchworm.envs.brax_envs import SimulatedEnv, simulated
from inchworm.envs.pool import first_line
from inchworm.errors import EnvironmentContractError, MissingDependencyError


@lru_cache
def make_playground(env: str, kwargs: str = "{}") -> SimulatedEnv:
    """The environment of a name; keyword arguments, as JSON, override its configuration.

    Raises:
        MissingDependencyError: Playground is not installed.
        EnvironmentContractError: there is no such environment, or its configuration has no such field.
    """
    try:
        from mujoco_playground import registry
    except ImportError as error:
        raise MissingDependencyError(
            "backend",
            "playground",
            f"needs a package that is not installed ({error})",
            'pip install "inchworm[playground]".',
        ) from error
    if env not in registry.ALL_ENVS:
        near = did_you_mean(env, registry.ALL_ENVS)
        raise EnvironmentContractError(
            "env", env, "is no environment that Playground knows" + near, "Give one of its names, or another backend."
        )
    try:
        config = registry.get_default_config(env)
        overrides = json.loads(kwargs)
        made = registry.load(env, config=config, config_overrides=overrides)
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentContractError(
            "env_kwargs", kwargs, f"do not fit {env}: {first_line(error)}", "Give fields of its configuration."
        ) from error
    return simulated(env, made, int(overrides.get("episode_length", config.episode_length)))

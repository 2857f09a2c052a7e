"""MuJoCo Playground's environments as JAX environments."""

from typing import Any

from inchworm.checks import check_integer
from inchworm.envs.foreign import check_known_id, check_kwargs, constructing, importing
from inchworm.envs.simulated import SimulatedEnv, simulated


def make_playground(env: str, kwargs: dict[str, Any]) -> SimulatedEnv:
    """The environment of a name; keyword arguments override its configuration.

    Raises:
        MissingDependencyError: Playground is not installed.
        EnvironmentContractError: there is no such environment, or its robot's model cannot be downloaded.
        ConfigError: its configuration has no such field, or not such a value.
    """
    with importing("playground", "playground"):
        from mujoco_playground import registry
    check_known_id(env, registry.ALL_ENVS, "Playground")
    config = registry.get_default_config(env)
    overrides = check_kwargs(kwargs, dict(config), closed=False)
    with constructing(env, overrides):
        made = registry.load(env, config=config, config_overrides=overrides)
    repeat = check_integer("action_repeat", overrides.get("action_repeat", config.get("action_repeat", 1)), 1)
    length = overrides.get("episode_length", config.episode_length)
    with constructing(env, {}):
        return simulated(env, made, -(-length // repeat), repeat)  # a length counts the simulator's steps

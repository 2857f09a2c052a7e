"""Brax's environments as JAX environments."""

from typing import Any

from inchworm.envs.foreign import check_known_id, check_kwargs, constructing, importing
from inchworm.envs.simulated import SimulatedEnv, simulated

DEFAULTS = {"max_episode_steps": 1000, "backend": "generalized", "n_frames": 1, "debug": False}
"""Arguments of all Brax environments; some have more."""


def make_brax(env: str, kwargs: dict[str, Any]) -> SimulatedEnv:
    """The environment of a name; keyword arguments are Brax's own and `max_episode_steps`.

    Raises:
        MissingDependencyError: Brax is not installed.
        EnvironmentContractError: there is no such environment.
        ConfigError: it does not take the arguments.
    """
    with importing("brax", "brax"):
        from brax import envs
    check_known_id(env, sorted(envs._envs), "Brax")
    settings = check_kwargs(kwargs, DEFAULTS, closed=False)
    limit = settings.pop("max_episode_steps", DEFAULTS["max_episode_steps"])
    with constructing(env, settings):
        return simulated(env, envs.get_environment(env, **settings), limit)

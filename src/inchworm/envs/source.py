"""Whatever a user gives as an environment, as one thing: a name, a way to make it, a pool of it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import gymnasium
from gymnasium.vector import VectorEnv

from inchworm.checks import check_choice, did_you_mean
from inchworm.envs.ale_envs import ALE_MAX_STEPS, AleEnvs, AleView, drawing_view, is_game
from inchworm.envs.brax_envs import make_brax
from inchworm.envs.envpool_envs import EnvPoolEnvs, EnvPoolView
from inchworm.envs.gymnasium import EnvFactory, GymnasiumPool, make_factory, spec_of
from inchworm.envs.gymnax_envs import make_gymnax
from inchworm.envs.jax_control import CLASSIC_CONTROL
from inchworm.envs.jax_env import GymnasiumView, JaxEnv
from inchworm.envs.playground_envs import make_playground
from inchworm.envs.pool import Pool
from inchworm.envs.traced import StartedEnvs
from inchworm.envs.vector import VectorPool, vector_spec_of
from inchworm.errors import ConfigError, EnvironmentContractError
from inchworm.spaces import EnvSpec
from inchworm.workers import cores

BACKENDS = ("gymnasium", "envpool", "ale", "jax", "gymnax", "brax", "playground")


@dataclass(frozen=True)
class EnvSource:
    """Where environments come from."""

    name: str
    """Environment id, or the factory's qualified name."""
    by_id: bool
    """True if the name, the keyword arguments and the backend are enough to make it again."""
    factory: EnvFactory | None
    """Makes one environment; None if the user gave a vector environment."""
    spec: EnvSpec
    entry_point: str
    """Module of the environment's class."""
    max_episode_steps: int | None
    """The environment's own time limit, if it states one."""
    backend: str = "gymnasium"
    """Whose environments are stepped in training: one of `BACKENDS`."""
    renderer: EnvFactory | None = None
    """Makes one environment that draws itself; None if the factory makes such ones."""
    vector: VectorEnv | None = None
    jax_env: JaxEnv | None = None
    traced: Callable[[int, int, int], StartedEnvs] | None = None
    """Makes N environments that compiled rollouts step, from N, the run's seed and how often they were started anew."""
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


def env_source(env: Any, kwargs: dict[str, Any] | None = None, backend: str | None = None) -> EnvSource:
    """Reads what the user gave: an id, `module:factory`, a class, a function, a vector or a JAX environment.

    Makes one environment to learn its spaces, and closes it. An id is Gymnasium's unless another backend is named;
    only Atari games are ALE's, because they need its preprocessing to be learned.

    Raises:
        ConfigError: it is none of these.
        EnvironmentContractError: there is no such environment, or its spaces are unsupported.
        MissingDependencyError: its package is not installed.
    """
    kwargs = dict(kwargs or {})
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    if isinstance(env, str):
        try:
            json.dumps(kwargs)
        except TypeError as error:
            raise ConfigError(
                "env_kwargs", kwargs, "cannot be written to config.json", "Give a function that makes the environment."
            ) from error
        match backend:
            case "envpool":
                return _from_envpool(env, kwargs)
            case "jax":
                return _from_jax_id(env, kwargs)
            case "gymnax":
                made = make_gymnax(env, tuple(sorted(kwargs.items())))
                return _from_jax_library(made, backend, made.params.max_steps_in_episode, kwargs)
            case "brax" | "playground":
                make = make_brax if backend == "brax" else make_playground
                made = make(env, json.dumps(kwargs, sort_keys=True))
                return _from_jax_library(made, backend, made.max_episode_steps, kwargs)
            case "ale":
                return _from_ale(env, kwargs)
            case None if is_game(env):
                return _from_ale(env, kwargs)
            case _:
                source = _from_factory(env, True, make_factory(env, kwargs), kwargs)
                return dataclasses.replace(source, renderer=_gymnasium_renderer(env, kwargs))
    if backend is not None:
        raise ConfigError(
            "backend", backend, "is named for an environment that is given as an object", "Leave it out, or give an id."
        )
    if isinstance(env, VectorEnv):
        name = getattr(env.spec, "id", None) or type(env).__qualname__
        return EnvSource(name, False, None, vector_spec_of(env), type(env).__module__, None, vector=env)
    if isinstance(getattr(env, "spec", None), EnvSpec) and isinstance(env, JaxEnv) and not isinstance(env, type):
        name, module = getattr(env, "name", type(env).__qualname__), type(env).__module__
        return EnvSource(name, False, partial(GymnasiumView, env), env.spec, module, None, "jax", jax_env=env)
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
        return EnvSource(name, False, None, vector.spec, vector.entry_point, None, vector=env)
    if not isinstance(env, gymnasium.Env):
        raise ConfigError("env", repr(env), f"is what {name} returned, not a gymnasium.Env", "Return an environment.")
    limit = getattr(env.spec, "max_episode_steps", None)
    source = EnvSource(name, by_id, factory, spec_of(env), type(env.unwrapped).__module__, limit, kwargs=kwargs)
    env.close()
    return source


def _from_envpool(env: str, kwargs: dict[str, Any]) -> EnvSource:
    view = EnvPoolView(env, kwargs)
    spec, limit = spec_of(view), view.max_episode_steps
    view.close()
    threads = len(cores())

    def traced(num_envs: int, seed: int, restart: int) -> EnvPoolEnvs:
        return EnvPoolEnvs(env, kwargs, num_envs, seed, restart, min(num_envs, threads))

    factory = partial(EnvPoolView, env, kwargs)
    # EnvPool draws only where a display is; Gymnasium's environment of the same id stands in for it.
    renderer = make_factory(env, {"render_mode": "rgb_array"})
    return EnvSource(env, True, factory, spec, "envpool", limit, "envpool", renderer, traced=traced, kwargs=kwargs)


def _from_ale(env: str, kwargs: dict[str, Any]) -> EnvSource:
    view = AleView(env, kwargs)
    spec = spec_of(view)
    view.close()
    threads = len(cores())

    def traced(num_envs: int, seed: int, restart: int) -> AleEnvs:
        return AleEnvs(env, kwargs, num_envs, seed, restart, min(num_envs, threads))

    factory, renderer = partial(AleView, env, kwargs), partial(drawing_view, env, kwargs)
    return EnvSource(env, True, factory, spec, "ale_py", ALE_MAX_STEPS, "ale", renderer, traced=traced, kwargs=kwargs)


def _from_jax_id(env: str, kwargs: dict[str, Any]) -> EnvSource:
    if env not in CLASSIC_CONTROL:
        raise EnvironmentContractError(
            "env",
            env,
            "is no environment that is written in JAX here" + did_you_mean(env, CLASSIC_CONTROL),
            f"Give one of {', '.join(CLASSIC_CONTROL)}, a JAX environment as an object, or another backend.",
        )
    try:
        jax_env = dataclasses.replace(CLASSIC_CONTROL[env], **kwargs)
    except TypeError as error:
        raise EnvironmentContractError(
            "env_kwargs", repr(kwargs), f"do not fit {env}: {error}", "It takes max_episode_steps only."
        ) from error
    return EnvSource(
        env,
        True,
        partial(GymnasiumView, jax_env),
        jax_env.spec,
        "gymnasium.envs.classic_control",
        jax_env.max_episode_steps,
        "jax",
        # It does not draw itself; Gymnasium's own is the same step by step.
        _gymnasium_renderer(env, kwargs),
        jax_env=jax_env,
        kwargs=kwargs,
    )


def _from_jax_library(env: Any, backend: str, max_episode_steps: int, kwargs: dict[str, Any]) -> EnvSource:
    factory = partial(GymnasiumView, env)
    return EnvSource(env.name, True, factory, env.spec, backend, max_episode_steps, backend, jax_env=env, kwargs=kwargs)


def _gymnasium_renderer(env: str, kwargs: dict[str, Any]) -> EnvFactory:
    return make_factory(env, kwargs | {"render_mode": "rgb_array"})

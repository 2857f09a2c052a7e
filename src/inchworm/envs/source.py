"""Whatever a user gives as an environment, as one thing: a name, a way to make it, a pool of it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.vector import VectorEnv

from inchworm.checks import check_choice
from inchworm.envs.ale_envs import AleEnvs, ale_view, drawing_view, is_game
from inchworm.envs.brax_envs import make_brax
from inchworm.envs.envpool_envs import EnvPoolEnvs, envpool_view
from inchworm.envs.foreign import check_known_id, check_kwargs
from inchworm.envs.gymnasium import GymnasiumPool, spec_of
from inchworm.envs.gymnax_envs import make_gymnax
from inchworm.envs.jax_contract import check_jax_env
from inchworm.envs.jax_control import CLASSIC_CONTROL, ClassicControl
from inchworm.envs.jax_env import GymnasiumView, JaxEnv
from inchworm.envs.making import EnvFactory, Factory, name_of
from inchworm.envs.playground_envs import make_playground
from inchworm.envs.pool import Pool, close_env, first_line
from inchworm.envs.process_pool import ProcessPool
from inchworm.envs.single_view import SingleView
from inchworm.envs.traced import StartedEnvs
from inchworm.envs.vector import VectorPool, vector_spec_of
from inchworm.errors import ConfigError
from inchworm.spaces import EnvSpec
from inchworm.workers import cores, reference, referred

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
    vector: Callable[[], VectorEnv] | None = None
    """Gives a vector environment, where the user gave one or a way to make one: at first the one that is there."""
    num_envs: int | None = None
    """The number of environments, where it is given with them."""
    jax_env: JaxEnv | None = None
    traced: Callable[[int, int, int], StartedEnvs] | None = None
    """Makes N environments that compiled rollouts step, from N, the run's seed and how often they were started anew."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    origin: Any = None
    """Where the factory makes Gymnasium's environments one by one, what it was made of: an id, a class, a function."""

    @property
    def draws(self) -> bool:
        """Whether there is anything that draws pictures of it, if it supports it."""
        return self.renderer is not None or self.jax_env is None

    def make_pool(self, num_envs: int, seed: int, horizon: int, processes: int = 1) -> Pool:
        """The environments of one run, for rollouts of as many steps.

        Raises:
            ConfigError: a vector environment has another number of them, or other processes cannot make them.
        """
        if self.vector is None:
            assert self.factory is not None
            if processes == 1:
                return GymnasiumPool(self.factory, num_envs, seed)
            found_by = env_reference(self.origin)
            return ProcessPool(self.factory, self.spec, num_envs, seed, horizon, processes, found_by, self.kwargs)
        if self.num_envs != num_envs:
            raise ConfigError(
                "num_envs",
                num_envs,
                f"is not the vector environment's own number, {self.num_envs}",
                f"Set num_envs={self.num_envs}.",
            )
        return VectorPool(self.vector(), seed)


def env_reference(env: Any) -> Any:
    """What other processes find an environment by, as JSON; with an id goes what it stands for in this process.

    Raises:
        ConfigError: there is nothing they could find it by.
    """
    if not isinstance(env, str) or env not in gymnasium.registry:
        return reference("env", env)
    try:
        return {"registered": gymnasium.spec(env).to_json()}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "env",
            env,
            f"is registered with something that other processes cannot be told ({first_line(error)})",
            "Register it with its entry point as a text, module:Class, or give the class or function itself.",
        ) from error


def env_referred(where: Any) -> Any:
    """What `env_reference` refers to; an id stands here for what it stood for there."""
    if not isinstance(where, dict) or "registered" not in where:
        return referred(where)
    spec = GymnasiumSpec.from_json(where["registered"])
    gymnasium.registry[spec.id] = spec
    return spec.id


def env_source(env: Any, kwargs: dict[str, Any] | None = None, backend: str | None = None) -> EnvSource:
    """Reads what the user gave: an id, `module:factory`, a class, a function, a vector or a JAX environment.

    Makes one environment to learn its spaces, and closes it. An id is Gymnasium's unless another backend is named;
    only Atari games are ALE's, because they need its preprocessing to be learned.

    Raises:
        ConfigError: it is none of these, or does not take the keyword arguments.
        EnvironmentContractError: there is no such environment, its spaces are unsupported, or a JAX environment does
            not keep its interface's promises.
        MissingDependencyError: its package is not installed.
    """
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        raise ConfigError("env_kwargs", repr(kwargs), "is no dict of arguments by name", 'Give e.g. {"size": 8}.')
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    if isinstance(env, str):
        return _from_id(env, kwargs, backend)
    if backend is not None:
        raise ConfigError(
            "backend", backend, "is named for an environment that is given as an object", "Leave it out, or give an id."
        )
    _check_one_agent(env)
    if is_object(env) and kwargs:
        raise ConfigError(
            "env_kwargs",
            kwargs,
            "are given with an environment that is made already",
            "Make it with these, or give an id.",
        )
    if isinstance(env, VectorEnv):
        name = getattr(env.spec, "id", None) or type(env).__qualname__
        return _from_vector(name, env, lambda: env)
    if is_object(env):
        name = getattr(env, "name", None)
        return _from_jax(name if isinstance(name, str) else type(env).__qualname__, env, {})
    if isinstance(env, gymnasium.Env):
        raise ConfigError(
            "env",
            repr(env),
            "is an environment, where a way to make one is needed (training and evaluation use their own)",
            "Give its class, or a function that makes and returns it.",
        )
    if not callable(env):
        raise ConfigError("env", repr(env), "is no environment", "Give an id, a class or a function that makes one.")
    kwargs, _ = _stored_kwargs(kwargs)
    return _from_factory(name_of(env), env, kwargs)


def _check_one_agent(env: Any) -> None:
    """Raises `ConfigError` for environments with PettingZoo's interfaces."""
    kind = env if isinstance(env, type) else type(env)
    known = any(base.__module__.partition(".")[0] == "pettingzoo" for base in kind.__mro__)
    if (known or hasattr(env, "possible_agents")) and not issubclass(kind, gymnasium.Env):
        raise ConfigError(
            "env",
            name_of(kind),
            "is an environment of several agents, and a policy plays one",
            "Give a gymnasium.Env in which one agent acts and the others are part of what it lives in.",
        )


def is_object(env: Any) -> bool:
    """Whether it is an environment itself, a vector or a JAX one, and not a way to make one."""
    if isinstance(env, VectorEnv):
        return True
    # Not by isinstance: since Python 3.12 a protocol does not see what a wrapper passes on with __getattr__.
    methods = [getattr(env, name, None) for name in ("reset", "step")]
    return isinstance(getattr(env, "spec", None), EnvSpec) and all(map(callable, methods)) and not isinstance(env, type)


def _from_id(env: str, kwargs: dict[str, Any], backend: str | None) -> EnvSource:
    kwargs, document = _stored_kwargs(kwargs)
    backend = backend or ("ale" if is_game(env) else "gymnasium")
    match backend:
        case "gymnasium":
            source = _from_factory(env, env, kwargs)
            drawn = source.jax_env is None
            return dataclasses.replace(source, renderer=_gymnasium_renderer(env, kwargs) if drawn else None)
        case "envpool":
            # EnvPool draws only where a display is; Gymnasium's environment of the same id stands in for it.
            renderer = _gymnasium_renderer(env, {})
            return _from_pool(env, kwargs, backend, envpool_view, EnvPoolEnvs, renderer)
        case "ale":
            return _from_pool(env, kwargs, backend, ale_view, AleEnvs, partial(drawing_view, env, kwargs))
    jax_env = _jax_env(env, document, backend)
    # This library's do not draw themselves; Gymnasium's own are the same step by step.
    own = backend == "jax"
    return EnvSource(
        env,
        True,
        partial(GymnasiumView, jax_env),
        jax_env.spec,
        "gymnasium.envs.classic_control" if own else backend,
        jax_env.max_episode_steps,
        backend,
        _gymnasium_renderer(env, kwargs) if own else None,
        jax_env=jax_env,
        kwargs=kwargs,
    )


def _stored_kwargs(kwargs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments as a resumed run will read them, and their text.

    Raises:
        ConfigError: they have none.
    """
    try:
        document = json.dumps(kwargs, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "env_kwargs",
            kwargs,
            "cannot be written to config.json, and so not be read again",
            "Give a function that makes the environment with them.",
        ) from error
    return json.loads(document), document


@lru_cache
def _jax_env(env: str, kwargs: str, backend: str) -> Any:
    """A JAX environment, by its arguments as JSON. Always the same, because compiled programs are kept by it."""
    make = {"jax": _classic_control, "gymnax": make_gymnax, "brax": make_brax, "playground": make_playground}[backend]
    return make(env, json.loads(kwargs))


def _classic_control(env: str, kwargs: dict[str, Any]) -> ClassicControl:
    check_known_id(env, CLASSIC_CONTROL, "this library's JAX suite", " or ".join(CLASSIC_CONTROL))
    task = CLASSIC_CONTROL[env]
    return dataclasses.replace(task, **check_kwargs(kwargs, {"max_episode_steps": task.max_episode_steps}))


def _from_factory(name: str, origin: Any, kwargs: dict[str, Any]) -> EnvSource:
    factory = Factory(origin, kwargs)
    env = factory()
    if isinstance(env, VectorEnv):
        first = [env]
        source = _from_vector(name, env, lambda: first.pop() if first else factory())
        return dataclasses.replace(source, kwargs=kwargs)
    if is_object(env):
        return _from_jax(name, env, kwargs)
    try:
        _check_one_agent(env)
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(
                "env", repr(env), f"is what {name} returned, not a gymnasium.Env", "Return an environment."
            )
        limit = getattr(env.spec, "max_episode_steps", None)
        spec, module, by_id = spec_of(env), type(env.unwrapped).__module__, isinstance(origin, str)
        return EnvSource(name, by_id, factory, spec, module, limit, kwargs=kwargs, origin=origin)
    finally:
        if isinstance(env, gymnasium.Env):
            close_env(name, env)


def _from_jax(name: str, env: Any, kwargs: dict[str, Any]) -> EnvSource:
    check_jax_env(env)
    module = type(env).__module__
    return EnvSource(
        name, False, partial(GymnasiumView, env), env.spec, module, None, "jax", jax_env=env, kwargs=kwargs
    )


def _from_vector(name: str, env: VectorEnv, give: Callable[[], VectorEnv]) -> EnvSource:
    spec, module = vector_spec_of(env), type(env).__module__
    return EnvSource(name, False, None, spec, module, None, vector=give, num_envs=env.num_envs)


def _from_pool(
    env: str,
    kwargs: dict[str, Any],
    backend: str,
    make_view: Callable[[str, dict[str, Any]], SingleView],
    make_envs: Callable[[str, dict[str, Any], int, int, int, int], StartedEnvs],
    renderer: EnvFactory,
) -> EnvSource:
    factory, threads = partial(make_view, env, kwargs), len(cores())
    view = factory()
    view.close()

    def traced(num_envs: int, seed: int, restart: int) -> StartedEnvs:
        return make_envs(env, kwargs, num_envs, seed, restart, min(num_envs, threads))

    spec, module, limit = view.env_spec, view.module, view.max_episode_steps
    return EnvSource(env, True, factory, spec, module, limit, backend, renderer, traced=traced, kwargs=kwargs)


def _gymnasium_renderer(env: str, kwargs: dict[str, Any]) -> EnvFactory:
    return Factory(env, kwargs | {"render_mode": "rgb_array"})

"""The parts of a run: its algorithm, its compiled functions, its collector."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import optax

from inchworm.algorithms import iteration, policy_gradient, ppo, trpo
from inchworm.algorithms.policy_gradient import PolicyGradient
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.settings import Settings
from inchworm.algorithms.state import Algorithm
from inchworm.algorithms.trpo import TRPO
from inchworm.checks import check_hashable
from inchworm.collect import graph
from inchworm.collect.collector import Collector, TurnCollector
from inchworm.collect.graph import GraphCollector, Programs, StackedCollector, make_advance, make_programs
from inchworm.collect.host import HostRollouts
from inchworm.collect.pool import PoolRollouts
from inchworm.collect.rollout import make_rollout
from inchworm.config import RunConfig
from inchworm.envs.jax_env import JaxEnv
from inchworm.envs.source import EnvSource
from inchworm.envs.traced import Copies
from inchworm.errors import ConfigError
from inchworm.models.network import CustomNetwork
from inchworm.spaces import EnvSpec

MAX_STEPS_PER_CALL = 2**18
"""Of a compiled call of several iterations, which keeps a few numbers for each step."""


@dataclass(frozen=True)
class OwnParts:
    """Code of the user's own that takes part in a run."""

    network: CustomNetwork | None = None
    optimizer: optax.GradientTransformation | None = None

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("network", callable, "a function of a random key and the observation space"),
            ("optimizer", lambda value: isinstance(value, optax.GradientTransformation), "an optax chain"),
        ):
            value = getattr(self, name)
            check_hashable(name, value)
            if value is not None and not fits(value):
                raise ConfigError(name, value, f"is not {what}", f"Give {what}, or leave it out.")

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in ("network", "optimizer") if getattr(self, name) is not None)

    def check_given_again(self, config: RunConfig) -> None:
        """Raises `ConfigError` unless just those parts are here that the run was started with."""
        for name in ("network", "optimizer"):
            before, now = name in config.own_parts, getattr(self, name) is not None
            if before != now:
                problem = "is code of your own, which is not stored with a run" if before else "was not part of the run"
                fix = f"Give it again in Python: iw.resume(folder, {name}=...)." if before else "Leave it out."
                raise ConfigError(name, getattr(self, name), problem, fix)


def make_algorithm(config: Settings, spec: EnvSpec, total_steps: int, own: OwnParts | None = None) -> Algorithm:
    """The algorithm that settings stand for."""
    own = own or OwnParts()
    parts = (spec, total_steps, own.network, own.optimizer)
    match config:
        case PPO():
            return ppo.make(config, *parts)
        case TRPO():
            return trpo.make(config, *parts)
        case PolicyGradient():
            return policy_gradient.make(config, *parts)
    raise AssertionError(config)


@dataclass(frozen=True)
class _Compiled:
    """The compiled functions of a run; runs of one process that differ by their seeds share them."""

    init: Any
    iterate: Any
    programs: Programs | None
    """With a JAX environment: environments and learner together."""


@lru_cache(maxsize=16)
def _compiled(
    config: Settings, spec: EnvSpec, total_steps: int, own: OwnParts, jax_env: JaxEnv | None, stacked: bool = False
) -> _Compiled:
    algorithm = make_algorithm(config, spec, total_steps, own)
    iterate = iteration.make_iteration(algorithm, spec, config, total_steps)
    programs = None
    if jax_env is not None:
        envs, shape = Copies(jax_env), (config.horizon, config.num_envs)
        advance = make_advance(make_rollout(envs, config.squash), iterate, shape, config.continuation)
        iterations = -(-total_steps // config.steps_per_iteration)
        capacity = max(1, min(iterations, MAX_STEPS_PER_CALL // config.steps_per_iteration))
        programs = make_programs(algorithm.init, envs, advance, capacity, stacked)
    return _Compiled(jax.jit(algorithm.init), jax.jit(iterate), programs)


def make_collector(configs: Sequence[RunConfig], source: EnvSource, own: OwnParts) -> Collector:
    """What trains a run, or with a JAX environment several that differ by their seeds.

    Raises:
        EnvironmentContractError: the environments do not keep their interface's promises.
        ConfigError: they do not fit the settings.
    """
    config = configs[0]
    algorithm = config.algorithm
    stacked = len(configs) > 1 and jax.default_backend() != "cpu"
    compiled = _compiled(algorithm, source.spec, config.total_steps, own, source.jax_env, stacked)
    devices = _devices(config.devices)
    if compiled.programs is not None:
        seeds = [one.seed for one in configs]
        if stacked:
            return StackedCollector(compiled.programs, seeds, algorithm.num_envs)
        if len(devices) > 1:
            programs = graph.on_devices(compiled.programs, devices, algorithm.num_envs)
            return GraphCollector(programs, seeds, algorithm.num_envs, devices[:1])
        return GraphCollector(compiled.programs, seeds, algorithm.num_envs, jax.devices()[: len(seeds)])
    shape = (algorithm.horizon, algorithm.num_envs)
    # Before environments are opened, because a network of the user's own may be refused.
    state = compiled.init(jax.random.key(config.seed))
    if source.traced is not None:
        rollouts = PoolRollouts(partial(source.traced, algorithm.num_envs, config.seed), shape, algorithm.squash)
    else:
        pool = source.make_pool(algorithm.num_envs, config.seed, algorithm.horizon, config.env_processes)
        with contextlib.ExitStack() as if_refused:
            if_refused.callback(pool.close)
            rollouts = HostRollouts(pool, algorithm.horizon, algorithm.squash)
            if_refused.pop_all()
    iterate = compiled.iterate
    if len(devices) > 1:
        iterate = iteration.on_devices(iterate, devices, algorithm.num_envs)
    return TurnCollector(rollouts, state, iterate, algorithm.continuation)


def _devices(count: int) -> list[Any]:
    """The first devices of JAX's default kind.

    Raises:
        ConfigError: there are fewer.
    """
    there = jax.devices()
    if count > len(there):
        fix = "Take fewer."
        if jax.default_backend() == "cpu":
            fix = f"Take fewer, or set JAX_NUM_CPU_DEVICES={count} before JAX is first used, to simulate them on a CPU."
        raise ConfigError("devices", count, f"is more than JAX sees here, {len(there)} of {jax.default_backend()}", fix)
    return there[:count]

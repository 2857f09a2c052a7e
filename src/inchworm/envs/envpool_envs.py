"""EnvPool: C++ environments in threads, stepped inside compiled rollouts through its XLA interface."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from inchworm.envs.foreign import check_known_id, check_kwargs, constructing, importing
from inchworm.envs.gymnasium import spec_of
from inchworm.envs.pool import environment_seed
from inchworm.envs.single_view import MAX_SEED, SingleView
from inchworm.envs.traced import Transition, stored
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree
from inchworm.workers import cores

RESERVED = ("num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players", "gym_reset_return_info")
"""Arguments that a run's other settings decide, or that compiled rollouts rest on."""


def make_envpool(env: str, kwargs: dict[str, Any], num_envs: int, seeds: list[int], threads: int) -> Any:
    """EnvPool's own object for N environments.

    Raises:
        MissingDependencyError: the package is not installed.
        EnvironmentContractError: it has no such environment.
        ConfigError: the environment does not take the arguments.
    """
    with importing("envpool", "envpool"):
        import envpool
    check_known_id(env, envpool.list_all_envs(), "EnvPool")
    with constructing(env, kwargs):
        defaults = envpool.make_spec(env).config._asdict() if kwargs else {}
        settings = check_kwargs(kwargs, defaults, RESERVED, closed=False)
        settings = _affinity(threads) | settings
        env_seed = [seed % MAX_SEED for seed in seeds]
        return envpool.make_gymnasium(env, num_envs=num_envs, num_threads=threads, env_seed=env_seed, **settings)


def _affinity(threads: int) -> dict[str, int]:
    """Each thread stays on a core of its own, where there are as many as this process may use.

    Else the system moves them about as they wake, which takes longer than a step of CartPole. With fewer threads than
    cores it has a choice, and other runs may be on the first ones.
    """
    there = cores()
    contiguous = there == list(range(there[0], there[0] + len(there)))
    return {"thread_affinity_offset": there[0]} if threads == len(there) and contiguous else {}


class PoolState(NamedTuple):
    """What a pool's environments are to compiled code."""

    handle: Array
    """Passed from step to step, so that they stay in order."""
    resets_next: Bool[Array, " N"]
    """Whose next step only starts an episode anew."""


class EnvPoolEnvs:
    """N environments of an EnvPool as `TracedEnvs`.

    EnvPool's MuJoCo environments read and give 64-bit numbers, which JAX has only inside `scope()`: tracing a step, and
    calling what was compiled of it, must be inside one. It reports an episode that ends in the very step of its time
    limit as cut by it.
    """

    def __init__(self, env: str, kwargs: dict[str, Any], num_envs: int, seed: int, restart: int, threads: int) -> None:
        """Makes and starts them.

        Raises:
            InchwormError: they cannot be made, see `make_envpool`, or one of the spaces has no counterpart.
        """
        seeds = [environment_seed(seed, index, restart) for index in range(num_envs)]
        self._pool = make_envpool(env, kwargs, num_envs, seeds, threads)
        self.spec: EnvSpec = spec_of(self._pool)
        self._action_dtype = self._pool.spec.action_array_spec["action"].dtype
        with self.scope():
            handle, _, _, self._step = self._pool.xla()
        obs, _ = self._pool.reset()
        state = PoolState(jnp.asarray(handle), jnp.zeros(num_envs, bool))
        self.start: tuple[PoolState, ArrayTree] = state, stored(self.spec.observation_space, obs)

    @staticmethod
    def scope() -> contextlib.AbstractContextManager[Any]:
        """Where 64-bit numbers exist."""
        return jax.enable_x64(True)

    def chance(self, state: PoolState, horizon: int) -> tuple[None, PoolState]:
        """Nothing: they draw for themselves."""
        return None, state

    def step(self, state: PoolState, action: ArrayTree, chance: None) -> tuple[PoolState, Transition]:
        handle, answer = self._step(state.handle, action.astype(self._action_dtype))
        raw_obs, reward, terminated, truncated, _ = answer
        obs, valid = stored(self.spec.observation_space, raw_obs), ~state.resets_next
        done = (terminated | truncated) & valid
        return PoolState(handle, done), Transition(
            next_obs=obs,
            reward=reward.astype(jnp.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
            valid=valid,
            obs=obs,
            first=state.resets_next,
            over=done,
        )

    def mask(self, state: PoolState) -> None:
        """None: EnvPool's environments have no masks."""

    def close(self) -> None:
        self._pool.close()


def envpool_view(env: str, kwargs: dict[str, Any]) -> SingleView:
    """A single environment of EnvPool as a Gymnasium one."""
    with importing("envpool", "envpool"):
        import envpool

    def restart(pool: Any, seed: int) -> tuple[Any, Any]:
        # Its seeds are fixed when it is made.
        pool.close()
        pool = make_envpool(env, kwargs, 1, [seed], 1)
        return pool, pool.reset()

    pool = make_envpool(env, kwargs, 1, [0], 1)
    # The modules are told apart by its registry alone: the class of every pool is made at run time.
    module = envpool.registration.registry.specs[env][0]  # pyright: ignore[reportAttributeAccessIssue]
    return SingleView(pool, spec_of(pool), restart, module, pool.config.get("max_episode_steps"))

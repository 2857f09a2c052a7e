"""EnvPool: C++ environments in threads, stepped inside compiled rollouts through its XLA interface."""

import contextlib
from functools import partial
from typing import Any, ClassVar, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from inchworm.checks import did_you_mean
from inchworm.envs.gymnasium import spec_of
from inchworm.envs.pool import environment_seed, first_line
from inchworm.envs.traced import Transition, stored
from inchworm.errors import EnvironmentContractError, MissingDependencyError
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree

MAX_SEED = 2**31
"""EnvPool's seeds are 32-bit integers with a sign."""


def make_envpool(env: str, kwargs: dict[str, Any], num_envs: int, seeds: list[int], threads: int) -> Any:
    """EnvPool's own object for N environments.

    Raises:
        MissingDependencyError: the package is not installed.
        EnvironmentContractError: it has no such environment, or refuses the arguments.
    """
    try:
        import envpool
    except ImportError as error:
        raise MissingDependencyError(
            "backend", "envpool", f"is not installed ({error})", 'pip install "inchworm[envpool]".'
        ) from error
    if env not in envpool.list_all_envs():
        near = did_you_mean(env, envpool.list_all_envs())
        raise EnvironmentContractError(
            "env", env, "is no environment that EnvPool knows" + near, "Give one of its ids, or another backend."
        )
    try:
        return envpool.make_gymnasium(
            env, num_envs=num_envs, num_threads=threads, env_seed=[seed % MAX_SEED for seed in seeds], **kwargs
        )
    except Exception as error:
        raise EnvironmentContractError(
            "env", env, f"cannot be made by EnvPool: {first_line(error)}", "Check the environment's arguments."
        ) from error


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
            MissingDependencyError: EnvPool is not installed.
            EnvironmentContractError: it has no such environment, or refuses the arguments.
            UnsupportedSpaceError: one of its spaces has no counterpart.
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


class EnvPoolView(gymnasium.Env):
    """A single environment of EnvPool as a Gymnasium one."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, env: str, kwargs: dict[str, Any]) -> None:
        self._make = partial(make_envpool, env, kwargs, 1)
        self._pool = self._make([0], 1)
        self.max_episode_steps: int | None = self._pool.config.get("max_episode_steps")
        self.observation_space, self.action_space = self._pool.observation_space, self._pool.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            # Its seeds are fixed when it is made.
            self._pool.close()
            self._pool = self._make([seed], 1)
        obs, _ = self._pool.reset()
        return jax.tree.map(lambda leaf: np.array(leaf[0]), obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self._pool.step(np.asarray(action)[None])
        return (
            jax.tree.map(lambda leaf: np.array(leaf[0]), obs),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {},
        )

    def close(self) -> None:
        self._pool.close()

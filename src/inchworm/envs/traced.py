"""What compiled rollouts need of environments: N of them, stepped side by side inside the compiled code."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from inchworm import spaces
from inchworm.envs.jax_env import JaxEnv, masks_of, reset_key, step_keys
from inchworm.numerics.tree import where_rows
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree, PRNGKey


class Transition(NamedTuple):
    """What one step of N environments came to."""

    next_obs: ArrayTree
    """The true successors (N, ...), at an episode's end too."""
    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    """Never where `terminated` is true."""
    valid: Bool[Array, " N"]
    """False where the step was none, but only started an episode anew; the fields above then mean nothing."""
    obs: ArrayTree
    """What the policy sees next (N, ...): after an end the first observation of the next episode."""
    first: Bool[Array, " N"]
    """True where that starts an episode."""
    over: Bool[Array, " N"]
    """True where an episode ended whose return counts. A lost life may end one for the returns, but not for this."""


class TracedEnvs(Protocol):
    """N environments of one specification as pure functions of their state."""

    spec: EnvSpec

    def chance(self, state: ArrayTree, horizon: int) -> tuple[ArrayTree, ArrayTree]:
        """What is left to chance in the next T steps, leaves (T, ...), drawn at once; and the state after that."""
        ...

    def step(self, state: ArrayTree, action: ArrayTree, chance: ArrayTree) -> tuple[ArrayTree, Transition]:
        """One step with actions (N, ...) of the action space, and its share of chance."""
        ...

    def mask(self, state: ArrayTree) -> Bool[Array, "N M"] | None:
        """The choices allowed next, None without masks."""
        ...


class StartedEnvs(TracedEnvs, Protocol):
    """Environments outside JAX that compiled code steps."""

    start: tuple[ArrayTree, ArrayTree]
    """Their state and first observations."""

    def scope(self) -> AbstractContextManager[Any]:
        """In which they are traced, and what was compiled of them is called."""
        ...

    def close(self) -> None:
        """Closes the environments."""
        ...


class CopiesState(NamedTuple):
    """Where N copies of a JAX environment stand."""

    envs: ArrayTree
    key: PRNGKey
    """Of each environment, (N,); it never changes."""
    steps: Int[Array, ""]
    """Steps so far; with the key it gives what is left to chance in the next."""


class Copies:
    """N copies of a JAX environment, each started anew in the step that ends its episode."""

    def __init__(self, env: JaxEnv) -> None:
        self.spec = env.spec
        self._env = env

    def start(self, keys: PRNGKey) -> tuple[CopiesState, ArrayTree]:
        """State and first observations of as many environments as there are keys."""
        envs, obs = jax.vmap(self._env.reset)(jax.vmap(reset_key)(keys))
        return CopiesState(envs, keys, jnp.int32(0)), stored(self.spec.observation_space, obs)

    def chance(self, state: CopiesState, horizon: int) -> tuple[PRNGKey, CopiesState]:
        """For each step the keys (N, 2) of the step and of the reset after it."""
        steps = state.steps + jnp.arange(horizon, dtype=jnp.int32)
        keys = jax.vmap(lambda step: jax.vmap(lambda key: step_keys(key, step))(state.key))(steps)
        return keys, state._replace(steps=state.steps + horizon)

    def step(self, state: CopiesState, action: ArrayTree, chance: PRNGKey) -> tuple[CopiesState, Transition]:
        step = jax.vmap(self._env.step)(state.envs, action, chance[:, 0])
        next_obs = stored(self.spec.observation_space, step.obs)
        terminated = step.terminated.astype(bool)
        done = terminated | step.truncated.astype(bool)

        def start_anew() -> tuple[ArrayTree, ArrayTree]:
            fresh, obs = jax.vmap(self._env.reset)(chance[:, 1])
            obs = stored(self.spec.observation_space, obs)
            return _where(done, fresh, step.state), _where(done, obs, next_obs)

        # Most steps end no episode, and a reset can cost more than a step.
        envs, obs = jax.lax.cond(jnp.any(done), start_anew, lambda: (step.state, next_obs))
        return state._replace(envs=envs), Transition(
            next_obs=next_obs,
            reward=step.reward.astype(jnp.float32),
            terminated=terminated,
            truncated=done & ~terminated,
            valid=jnp.ones_like(done),
            obs=obs,
            first=done,
            over=done,
        )

    def mask(self, state: CopiesState) -> Bool[Array, "N M"] | None:
        return jax.vmap(lambda now: masks_of(self._env, now))(state.envs)


def stored(space: spaces.Space, obs: ArrayTree) -> ArrayTree:
    """Observations in the dtypes in which rollouts keep them."""
    leaves = zip(spaces.leaves(space), spaces.flatten(space, obs), strict=True)
    return spaces.unflatten(space, [leaf.astype(spaces.storage_dtype(kind)) for kind, leaf in leaves])


def _where(condition: Bool[Array, " N"], if_true: ArrayTree, if_false: ArrayTree) -> ArrayTree:
    """Of each environment one of two states or observations, leaves (N, ...).

    Leaves without an axis of environments stay as in the second: MuJoCo's states have such, which all environments
    share and no step changes.
    """

    def choose(a: Array, b: Array) -> Array:
        return where_rows(condition, a, b) if a.shape[:1] == condition.shape else b

    return jax.tree.map(choose, if_true, if_false)
